"""ITS2xx: KVM's state departs from the commands. Each fault is put into real captures, and taken out again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of

from itstrace import Severity
from itstrace.findings import Confidence
from itstrace.lives import live
from itstrace.replay import replay
from itstrace.rules import check

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from itstrace import Analysis, Finding
    from itstrace.observe import Observations

HOST = ("ITS201", "ITS202", "ITS203", "ITS204", "ITS205", "ITS206", "ITS207", "ITS208")
CLEAN = [
    "6.1-clean.dat",
    "6.12-clean.dat",
    "7.3-guest-mistakes.dat",
    "7.3-migrate.dat",
    "6.12-double-delivery.dat",
]
SAMPLE = {"6.1": "6.1-clean.dat", "6.12": "6.12-clean.dat", "7.3": "7.3-guest-mistakes.dat"}
#: Frames whose records a command leaves behind.
_TRACES = (
    "allocations",
    "retargets",
    "invalidations",
    "config_calls",
    "configs",
    "invalls",
    "guest_reads",
    "queueings",
)

Row = dict[str, Any]


def _again(
    analysis: Analysis, obs: Observations, *, gaps: pl.DataFrame | None = None, kernel: str | None = None
) -> list[Finding]:
    kernel = kernel or analysis.info.kernel
    history = replay(obs, kernel=kernel)
    findings, _ = check(
        obs,
        history,
        live(obs, history),
        gaps=analysis.gaps if gaps is None else gaps,
        damage=[],
        start_ns=analysis.start_ns,
        end_ns=analysis.end_ns,
        kernel=kernel,
    )
    return [one for one in findings if one.code in HOST]


def _commands(analysis: Analysis, opcode: str, *, valid: bool | None = None) -> list[Row]:
    """Commands of one kind that KVM surely had to carry out."""
    history = analysis.history
    sure = history.expected.filter("certain")["command_seq"]
    names = history.verdicts.filter((pl.col("opcode") == opcode) & (pl.col("verdict") == "ok"))
    rows = analysis.observations.commands.filter(pl.col("seq").is_in(names["seq"].implode()))
    rows = rows.filter(pl.col("seq").is_in(sure.implode())).join(names.select("seq", "text"), on="seq")
    if valid is not None:
        rows = rows.filter(pl.col("dw2") // 2**63 == int(valid))
    return rows.to_dicts()


def _within(row: Row) -> pl.Expr:
    inside: pl.Expr = (
        (pl.col("pid") == row["pid"]) & (pl.col("seq") > row["seq"]) & (pl.col("seq") < row["end_seq"])
    )
    return inside


def _ignored(obs: Observations, *rows: Row) -> Observations:
    """These commands did nothing at all."""
    for row in rows:
        kept = {name: getattr(obs, name).filter(~_within(row)) for name in _TRACES}
        ints = (pl.col("from_command") == row["seq"]).fill_null(value=False)
        obs = replace(obs, injections=obs.injections.filter(~ints), **kept)
    return obs


def _changed(obs: Observations, frame: str, row: Row, **columns: pl.Expr) -> Observations:
    """What a command did, it did with other operands."""
    rows = getattr(obs, frame)
    changed = {
        name: pl.when(_within(row)).then(value).otherwise(name).alias(name) for name, value in columns.items()
    }
    return replace(obs, **{frame: rows.with_columns(**changed).cast(rows.schema)})


def _blaming(findings: Iterable[Finding], seq: int) -> list[tuple[str, str]]:
    return [(one.code, one.mechanism) for one in findings if seq in one.blames]


# --- clean captures


@pytest.mark.parametrize(
    "name", [*CLEAN, "6.12-lost-records.dat", "6.12-tracefs-trace.txt.zst", "6.12-perf.data.zst"]
)
def test_a_capture_without_a_fault_of_the_host_s_has_none(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)

    assert not [one for one in analysis.findings if one.code in HOST]


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["torture-6.1", "torture-6.12", "torture-7.3", "boot-6.12", "migrate-7.3"])
def test_long_captures_without_a_fault_of_the_host_s_have_none(corpus: Path, name: str) -> None:
    analysis = analysis_of(corpus / name / "trace.dat")

    assert not [one for one in analysis.findings if one.code in HOST]


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "code", "mechanism"),
    [
        ("F1-61", "ITS207", "update_affinity was called and the LPI kept its target"),
        ("F1-612", "ITS207", "update_affinity was called and the LPI kept its target"),
        ("L-F1-612", "ITS207", "update_affinity was called and the LPI kept its target"),
        ("F2-612", "ITS201", "the cache was dropped and still gave the translation"),
        ("F5-73", "ITS205", "the property byte was not read"),
        ("F9a-612", "ITS207", "MOVI left no trace of its effect"),
        ("F9b-73", "ITS207", "DISCARD left no trace of its effect"),
        ("F9f-612", "ITS207", "INV read another LPI's configuration"),
        ("F11-movall-612", "ITS204", "MOVALL moved LPIs of other vCPUs"),
        ("F13-612", "ITS203", "an event was looked up as another"),
    ],
)
def test_known_faults_are_named_by_their_mechanism(
    corpus: Path, name: str, code: str, mechanism: str
) -> None:
    findings = analysis_of(corpus / "faults" / name / "trace.dat").findings
    found = next(one for one in findings if (one.code, one.mechanism) == (code, mechanism))

    assert found.severity is Severity.ERROR
    assert found.suspect
    assert found.guest_saw
    assert found.evidence
    assert found.blames or name == "F13-612"


# --- ITS207: nothing, or something else


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
@pytest.mark.parametrize("opcode", ["MAPC", "MAPD", "MAPTI", "MOVI", "INT", "INV", "DISCARD"])
def test_a_command_that_leaves_no_trace_was_not_carried_out(kernel: str, opcode: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    # On 7.3 nothing shows that a device is mapped, only that it is unmapped.
    valid = False if (kernel, opcode) == ("7.3", "MAPD") else None
    row = _commands(analysis, opcode, valid=valid)[-1]
    found = _again(analysis, _ignored(analysis.observations, row))
    blaming = _blaming(found, row["seq"])

    if opcode == "DISCARD" and kernel != "6.1":
        # What comes next shows whether the event was unmapped, though its cache was not dropped.
        assert blaming[0][0] in ("ITS202", "ITS207")
    elif opcode == "MAPTI" and kernel == "7.3":
        assert {code for code, _ in blaming} <= {"ITS205", "ITS207"}
    else:
        assert blaming == [("ITS207", f"{opcode} left no trace of its effect")]


#: (opcode, V) of which every kernel has a probe that shows the effect.
_SHOWN = [
    ("MAPC", True),
    ("MAPC", False),
    ("MAPD", False),
    ("MOVI", None),
    ("MOVALL", None),
    ("INT", None),
    ("INV", None),
    ("INVALL", None),
]
#: 7.3 has no probe for what a mapping allocates; what follows from one that is ignored is ITS203's.
_ALLOCATING = [("MAPD", True), ("MAPTI", None), ("MAPI", None)]


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("kernel", "opcode", "valid"),
    [
        (kernel, *which)
        for kernel in ("6.1", "6.12", "7.3")
        for which in (_SHOWN if kernel == "7.3" else _SHOWN + _ALLOCATING)
    ],
)
def test_every_opcode_that_is_ignored_is_found(
    corpus: Path, kernel: str, opcode: str, *, valid: bool | None
) -> None:
    analysis = analysis_of(corpus / f"torture-{kernel}" / "trace.dat")
    rows = _commands(analysis, opcode, valid=valid)
    for row in {rows[0]["seq"]: rows[0], rows[-1]["seq"]: rows[-1]}.values():
        found = _again(analysis, _ignored(analysis.observations, row))

        assert _blaming(found, row["seq"]) == [("ITS207", f"{opcode} left no trace of its effect")]
        assert all(one.severity is Severity.ERROR for one in found)


@pytest.mark.parametrize(
    ("kernel", "opcode", "frame", "column", "mechanism"),
    [
        *(
            (kernel, *which)
            for kernel in sorted(SAMPLE)
            for which in (
                ("MAPC", "allocations", "icid", "MAPC mapped another collection"),
                ("MOVI", "retargets", "intid", "MOVI retargeted another LPI"),
                ("INV", "config_calls", "intid", "INV read another LPI's configuration"),
            )
        ),
        *(
            (kernel, *which)
            for kernel in ("6.1", "6.12")
            for which in (
                ("MAPD", "allocations", "device_id", "MAPD mapped another device"),
                ("MAPTI", "allocations", "event_id", "MAPTI mapped another event"),
                ("INVALL", "invalls", "vcpu", "INVALL read another vCPU's configuration"),
            )
        ),
        ("7.3", "MAPD", "allocations", "device_id", "MAPD unmapped another device"),
    ],
)
def test_a_command_that_was_done_to_something_else_is_found(
    kernel: str, opcode: str, frame: str, column: str, mechanism: str
) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    valid = " unmapped " not in mechanism if opcode in ("MAPC", "MAPD") else None
    row = _commands(analysis, opcode, valid=valid)[0]
    found = _again(analysis, _changed(obs, frame, row, **{column: pl.col(column) + 1}))

    assert ("ITS207", mechanism) in _blaming(found, row["seq"])


def test_an_event_unmapped_instead_of_another_is_found_where_it_is_shown() -> None:
    """6.1 has a probe in its_free_ite."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.1"])
    row = _commands(analysis, "DISCARD")[0]
    found = _again(
        analysis, _changed(analysis.observations, "allocations", row, event_id=pl.col("event_id") + 1)
    )

    assert _blaming(found, row["seq"]) == [("ITS207", "DISCARD unmapped another event")]


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
def test_an_int_of_another_event_is_found(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    row = _commands(analysis, "INT")[0]
    mine = (pl.col("from_command") == row["seq"]).fill_null(value=False)
    other = obs.injections.with_columns(
        event_id=pl.when(mine).then(pl.col("event_id") + 1).otherwise("event_id")
    )
    found = _again(analysis, replace(obs, injections=other))

    assert ("ITS207", "INT triggered another event") in _blaming(found, row["seq"])


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_an_lpi_given_to_another_vcpu_than_asked_is_found(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    row = _commands(analysis, "MOVI")[0]
    found = _again(analysis, _changed(analysis.observations, "retargets", row, vcpu=1 - pl.col("vcpu")))

    assert ("ITS207", "MOVI was carried out with another vCPU") in _blaming(found, row["seq"])


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_an_event_mapped_to_another_collection_than_asked_is_found(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    row = _commands(analysis, "MAPTI")[0]
    found = _again(
        analysis, _changed(analysis.observations, "allocations", row, icid=1 - pl.col("icid").cast(pl.Int64))
    )

    assert _blaming(found, row["seq"]) == [("ITS207", "MAPTI was carried out with another collection")]


@pytest.mark.corpus
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
def test_an_lpi_that_movall_leaves_behind_is_found(corpus: Path, kernel: str) -> None:
    analysis = analysis_of(corpus / f"torture-{kernel}" / "trace.dat")
    obs = analysis.observations
    row = _commands(analysis, "MOVALL")[0]
    asked = analysis.history.expected.filter((pl.col("seq") == row["seq"]) & (pl.col("what") == "retarget"))
    left = asked["intid"][0]
    kept = obs.retargets.filter(~(_within(row) & (pl.col("intid") == left)))
    found = _again(analysis, replace(obs, retargets=kept))

    assert asked.height > 1
    assert _blaming(found, row["seq"]) == [("ITS207", "MOVALL did not retarget its LPI")]
    assert found[0].intid == left


@pytest.mark.corpus
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
def test_what_a_command_did_besides_is_found(corpus: Path, kernel: str) -> None:
    """A SYNC that unmaps a collection, and one that was to fail and was carried out."""
    analysis = analysis_of(corpus / f"torture-{kernel}" / "trace.dat")
    obs = analysis.observations
    verdicts = analysis.history.verdicts
    freed = obs.allocations.filter(pl.col("op") == "free_collection").head(1)
    for opcode, fault, mechanism in (
        ("SYNC", None, "SYNC also unmapped another collection"),
        ("MAPC", "MAPC_PROCNUM_OOR", "MAPC was carried out although it must fail"),
    ):
        seqs = verdicts.filter((pl.col("opcode") == opcode) & pl.col("fault").eq_missing(pl.lit(fault)))[
            "seq"
        ]
        row = obs.commands.filter(pl.col("seq").is_in(seqs.implode())).row(0, named=True)
        more = freed.with_columns(seq=row["seq"], pid=row["pid"], time_ns=row["time_ns"]).cast(freed.schema)
        # One record earlier, for there to be a place after it.
        moved = obs.commands.with_columns(seq=pl.col("seq") - (pl.col("seq") == row["seq"]).cast(pl.UInt64))
        shifted = replace(obs, commands=moved, allocations=pl.concat([obs.allocations, more]).sort("seq"))

        assert _blaming(_again(analysis, shifted), row["seq"] - 1) == [("ITS207", mechanism)]


def test_what_a_task_does_without_a_command_is_found() -> None:
    """An LPI retargeted while its vCPU's task was about to enter the guest."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    done = obs.retargets.row(3, named=True)
    entered = obs.runs.next_entry_of_task(obs.retargets.filter(pl.col("seq") == done["seq"]))["entry_seq"][0]
    later = obs.retargets.with_columns(
        seq=pl.when(pl.col("seq") == done["seq"]).then(entered).otherwise("seq").cast(pl.UInt64)
    ).sort("seq")
    found = _again(analysis, replace(obs, retargets=later))

    assert [one.mechanism for one in found if not one.blames] == ["no command retargeted an LPI"]
    assert [one.intid for one in found if not one.blames] == [done["intid"]]


@pytest.mark.parametrize(
    ("opcode", "frame"), [("MAPTI", "allocations"), ("MOVI", "retargets"), ("MAPD", "allocations")]
)
def test_a_command_that_was_carried_out_twice_is_found(opcode: str, frame: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    row = _commands(analysis, opcode)[0]
    rows = getattr(obs, frame)
    doubled = {frame: pl.concat([rows, rows.filter(_within(row)).head(1)]).sort("seq")}
    found = _again(analysis, replace(obs, **doubled))

    assert _blaming(found, row["seq"]) == [("ITS207", f"{opcode} was carried out twice")]


def test_a_probe_that_is_recorded_twice_says_nothing() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    doubled = pl.concat([obs.allocations, obs.allocations]).sort("seq")

    assert not _again(analysis, replace(obs, allocations=doubled))


def test_a_target_that_stays_after_update_affinity_is_found() -> None:
    """The LPI is seen with its old target though update_affinity was called for it."""
    faulty, clean = (analysis_of(SAMPLES / name) for name in ("6.1-stale-target.dat", "6.1-clean.dat"))
    found = [one for one in faulty.findings if one.code == "ITS207"]

    assert [one.mechanism for one in found] == ["update_affinity was called and the LPI kept its target"]
    assert found[0].count == 18
    assert found[0].suspect == ("update_affinity",)
    assert not [one for one in clean.findings if one.code == "ITS207"]


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_a_clear_that_clears_nothing_is_found(kernel: str) -> None:
    """The LPI is still latched when its configuration is read next, and nothing injected it."""
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    clear = _commands(analysis, "CLEAR")[0]
    asked = analysis.history.expected.filter(
        (pl.col("seq") == clear["seq"]) & (pl.col("what") == "clear_pending")
    )
    intid = asked["intid"][0]
    after = obs.queueings.filter((pl.col("intid") == intid) & (pl.col("seq") > clear["seq"]))
    kept = (pl.col("seq") == after["seq"][0]) | pl.col("pending")
    found = _again(analysis, replace(obs, queueings=obs.queueings.with_columns(pending=kept)))

    assert after["cause"][0] == "inv"
    assert not after["pending"][0]
    assert _blaming(found, clear["seq"]) == [("ITS207", "CLEAR left the LPI pending")]


def test_an_lpi_cleared_and_injected_anew_is_no_clear_that_failed() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    clear = _commands(analysis, "CLEAR")[0]
    asked = analysis.history.expected.filter(
        (pl.col("seq") == clear["seq"]) & (pl.col("what") == "clear_pending")
    )
    later = obs.queueings.filter((pl.col("intid") == asked["intid"][0]) & (pl.col("seq") > clear["seq"]))
    first = pl.col("seq") == later["seq"][0]
    injected = obs.queueings.with_columns(
        pending=first | pl.col("pending"), cause=pl.when(first).then(pl.lit("msi")).otherwise("cause")
    )

    assert not _again(analysis, replace(obs, queueings=injected))


def test_what_follows_from_a_command_that_failed_is_not_told_again() -> None:
    """An event that was not mapped cannot be moved, read or discarded: one finding, of the MAPTI."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    mapti = _commands(analysis, "MAPTI")[-1]
    same = (pl.col("dw0") // 2**32 == mapti["dw0"] >> 32) & (
        (pl.col("dw1") & 0xFFFFFFFF) == mapti["dw1"] & 0xFFFFFFFF
    )
    rest = analysis.observations.commands.filter(same & (pl.col("seq") > mapti["seq"]))
    rest = rest.filter((pl.col("dw0") & 0xFF).is_in([0x01, 0x0C, 0x0F]))
    found = _again(analysis, _ignored(analysis.observations, mapti, *rest.to_dicts()))

    assert rest.height
    assert [(one.code, one.mechanism, one.blames) for one in found if one.code == "ITS207"] == [
        ("ITS207", "MAPTI left no trace of its effect", (mapti["seq"],))
    ]


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
def test_a_probe_that_never_fired_may_not_have_been_switched_on(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    ops = pl.col("op") != "alloc_collection"
    silent = replace(
        obs,
        allocations=obs.allocations.filter(ops),
        records={name: n for name, n in obs.records.items() if name != "alloc_collection"},
    )
    found = [one for one in _again(analysis, silent) if one.code == "ITS207"]

    assert found
    assert {(one.severity, one.confidence) for one in found} == {(Severity.NOTE, Confidence.UNPROVEN)}
    assert all("its_alloc_coll" in one.doubt and one.capture_next for one in found)


def test_an_effect_that_was_not_recorded_is_not_missed() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    fed = {name: event for name, event in obs.fed_by.items() if name not in ("affinity", "invalidate")}
    blind = replace(obs, fed_by=fed, retargets=obs.retargets.clear(), invalidations=obs.invalidations.clear())

    assert not _again(analysis, blind)


def test_nothing_is_missed_near_lost_records() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    row = _commands(analysis, "MOVI")[0]
    gap = pl.DataFrame(
        {"cpu": [0], "from_ns": [row["time_ns"]], "to_ns": [row["end_ns"]], "lost": [1]},
        schema=analysis.gaps.schema,
    )
    gone = _ignored(analysis.observations, row)

    assert _again(analysis, gone)
    assert not _again(analysis, gone, gaps=gap)


def test_in_a_capture_that_begins_late_it_is_likely_at_best() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    row = _commands(analysis, "MOVI")[-1]
    unknown = pl.lit(value=False)
    late = replace(
        _ignored(obs, row),
        itss=obs.itss.with_columns(complete=unknown),
        vms=obs.vms.with_columns(complete=unknown),
    )
    found = [one for one in _again(analysis, late) if one.code == "ITS207"]

    assert [(one.blames, one.confidence) for one in found] == [((row["seq"],), Confidence.LIKELY)]
    assert found[0].doubt


def test_a_device_of_a_two_level_table_is_likely_only_where_the_first_level_was_not_recorded() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.1"])
    obs = analysis.observations
    row = _commands(analysis, "MAPD", valid=True)[0]
    base = (pl.col("offset") == 0x100).cast(pl.UInt64)
    levels = obs.register_writes.with_columns(value=pl.col("value") | base * 2**62)
    found = [
        [one.confidence for one in _again(analysis, made) if row["seq"] in one.blames]
        for made in (_ignored(obs, row), replace(_ignored(obs, row), register_writes=levels))
    ]

    assert found == [[Confidence.CERTAIN], [Confidence.LIKELY]]


def test_a_device_that_the_first_level_has_no_entry_for_is_the_guest_s_mistake() -> None:
    """KVM reads the entry, which is not valid, and maps nothing."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    row = _commands(analysis, "MAPD", valid=True)[0]
    read = obs.guest_reads.filter(pl.col("size_bytes") == 32).head(1)
    entry = read.with_columns(seq=row["seq"], pid=row["pid"], size_bytes=8, value=0).cast(read.schema)
    gone = _ignored(obs, row)
    # One record earlier, for there to be a place after it.
    moved = gone.commands.with_columns(seq=pl.col("seq") - (pl.col("seq") == row["seq"]).cast(pl.UInt64))
    refused = replace(gone, commands=moved, guest_reads=pl.concat([gone.guest_reads, entry]).sort("seq"))

    assert _blaming(_again(analysis, gone), row["seq"])
    assert not _blaming(_again(analysis, refused), row["seq"] - 1)


# --- ITS202


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
@pytest.mark.parametrize("opcode", ["MOVI", "MAPD"])
def test_a_cache_that_was_not_dropped_is_found(kernel: str, opcode: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    row = _commands(analysis, opcode, valid=False if opcode == "MAPD" else None)[0]
    kept = replace(obs, invalidations=obs.invalidations.filter(~_within(row)))

    assert _blaming(_again(analysis, kept), row["seq"]) == [
        ("ITS202", f"{opcode} did not drop the translation cache")
    ]


def test_a_discard_that_only_kept_the_cache_is_told_from_one_that_was_ignored() -> None:
    """By what the event's next MAPTI or MSI shows; ignored, it leaves the event mapped."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    expected = analysis.history.expected.filter((pl.col("what") == "alloc_event") & pl.col("certain"))
    pairs = [
        (row, again)
        for row in _commands(analysis, "DISCARD")
        for again in expected.filter(
            (pl.col("device_id") == row["dw0"] >> 32)
            & (pl.col("event_id") == row["dw1"] & 0xFFFFFFFF)
            & (pl.col("seq") > row["seq"])
        )["seq"].head(1)
    ]
    row, again = pairs[0]
    mapti = obs.commands.filter(pl.col("seq") == again).row(0, named=True)
    silent = pl.col("seq").is_between(row["seq"], again) & ~pl.col("cached")
    unheard = replace(obs, injections=obs.injections.filter(~silent))
    kept, ignored = _again(analysis, _ignored(unheard, row)), _again(analysis, _ignored(unheard, row, mapti))

    assert _blaming(kept, row["seq"]) == [("ITS202", "DISCARD did not drop the translation cache")]
    assert _blaming(ignored, row["seq"]) == [("ITS207", "DISCARD left no trace of its effect")]
    assert not _blaming(ignored, mapti["seq"])


def test_registers_that_must_drop_the_cache_and_do_not_are_found() -> None:
    analysis = analysis_of(SAMPLES / "6.12-double-delivery.dat")
    obs = analysis.observations
    wanted = analysis.history.expected.filter(
        pl.col("command_seq").is_null() & pl.col("certain") & (pl.col("what") == "invalidate")
    )
    writes = obs.redistributor_writes.filter(pl.col("seq").is_in(wanted["seq"].implode()))
    kept = obs.invalidations
    for write in writes.to_dicts():
        later = obs.commands.filter((pl.col("pid") == write["pid"]) & (pl.col("seq") > write["seq"]))
        kept = kept.filter(~_within(write | {"end_seq": later["seq"].min() or 2**63}))
    found = _again(analysis, replace(obs, invalidations=kept))

    assert {(one.code, one.mechanism) for one in found} == {
        ("ITS202", "GICR_CTLR did not drop the translation cache")
    }
    assert found[0].count == writes.height > 0


# --- ITS201, ITS203


def test_a_stale_translation_says_what_became_of_the_cache() -> None:
    analysis = analysis_of(SAMPLES / "6.12-stale-translation.dat")
    obs = analysis.observations
    stale = next(one for one in analysis.findings if one.code == "ITS201")
    discard = obs.commands.filter(pl.col("seq") == stale.blames[0]).row(0, named=True)
    undropped = replace(obs, invalidations=obs.invalidations.filter(pl.col("seq") < discard["seq"]))
    fed = {name: event for name, event in obs.fed_by.items() if name != "invalidate"}
    unknown = replace(obs, fed_by=fed, invalidations=obs.invalidations.clear())

    assert stale.mechanism == "the cache was dropped and still gave the translation"
    assert stale.suspect[0] == "vgic_its_invalidate_cache"
    assert [one.mechanism for one in _again(analysis, undropped) if one.code == "ITS201"] == [
        "the cache was not dropped"
    ]
    assert [one.mechanism for one in _again(analysis, unknown) if one.code == "ITS201"] == [
        "the cache gave a translation that is gone"
    ]


def test_a_missing_invalidation_leads_to_the_stale_translation() -> None:
    analysis = analysis_of(SAMPLES / "6.12-stale-translation.dat")
    obs = analysis.observations
    stale = next(one for one in analysis.findings if one.code == "ITS201")
    discard = obs.commands.filter(pl.col("seq") == stale.blames[0]).row(0, named=True)
    undropped = replace(obs, invalidations=obs.invalidations.filter(~_within(discard)))
    found = {one.code: one for one in _again(analysis, undropped)}
    cause = found.get("ITS202") or found["ITS207"]

    assert found["ITS201"].id in cause.leads_to


def test_an_irqfd_that_hits_the_cache_right_after_the_command_may_have_been_under_way() -> None:
    analysis = analysis_of(SAMPLES / "6.12-stale-translation.dat")
    obs = analysis.observations
    stale = next(one for one in analysis.findings if one.code == "ITS201")
    discard = obs.commands.filter(pl.col("seq") == stale.blames[0]).row(0, named=True)
    hit = pl.col("time_ns") == stale.time_ns
    for wait_ns, severity in ((1_000_000, Severity.NOTE), (50_000_000, Severity.ERROR)):
        at = discard["end_ns"] + wait_ns
        soon = obs.injections.with_columns(
            seq=pl.when(hit).then("queue_seq").otherwise("seq"),
            time_ns=pl.when(hit).then(at).otherwise("time_ns"),
        )
        found = [one for one in _again(analysis, replace(obs, injections=soon)) if one.code == "ITS201"]

        assert [one.severity for one in found] == [severity]


def test_a_wrong_lookup_is_one_finding_whatever_it_finds() -> None:
    """Some of the wrong events are mapped, and some are not."""
    analysis = analysis_of(SAMPLES / "6.12-wrong-translation.dat")
    found = [one for one in analysis.findings if one.code == "ITS203"]

    assert [one.mechanism for one in found] == ["an event was looked up as another"]
    assert len(found[0].subjects) == 8
    assert "vgic_its_resolve_lpi" in found[0].suspect


def test_an_msi_refused_although_its_event_is_mapped_blames_the_mapping() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    taken = obs.injections.filter(
        ~pl.col("cached") & (pl.col("result") == 0) & pl.col("from_command").is_null()
    )
    hit = pl.col("seq") == taken["seq"][0]
    refused = obs.injections.with_columns(
        result=pl.when(hit).then(0x010307).otherwise("result").cast(pl.Int32),
        intid=pl.when(~hit).then("intid"),
    )
    found = [one for one in _again(analysis, replace(obs, injections=refused)) if one.code == "ITS203"]

    assert [one.mechanism for one in found] == ["the tables lack what a command put there"]
    assert found[0].intid == taken["intid"][0]
    assert len(found[0].blames) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_an_msi_of_an_event_that_was_never_mapped_must_not_be_taken(*, cached: bool) -> None:
    """Of an ITS that is known from its first command on; else nobody knows."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    taken = obs.injections.filter((pl.col("cached") == cached) & (pl.col("result") == 0))
    hit = pl.col("seq") == taken["seq"][0]
    strange = replace(
        obs,
        injections=obs.injections.with_columns(
            event_id=pl.when(hit).then(29).otherwise("event_id").cast(pl.UInt32)
        ),
    )
    late = replace(strange, itss=obs.itss.with_columns(complete=pl.lit(value=False)))
    code = "ITS201" if cached else "ITS203"

    assert [one.event_id for one in _again(analysis, strange) if one.code == code] == [29]
    assert code not in {one.code for one in _again(analysis, late)}


# --- ITS204


@pytest.mark.corpus
def test_movall_that_moves_too_much_leads_to_stale_targets(corpus: Path) -> None:
    analysis = analysis_of(corpus / "faults/F11-movall-612/trace.dat")
    found = next(one for one in analysis.findings if one.code == "ITS204")

    assert found.count == 8
    assert {one.intid for one in found.subjects} == {8198, 8199, 8200, 8201}
    assert any(one.startswith("ITS402") for one in found.leads_to)


@pytest.mark.corpus
def test_where_update_affinity_does_not_tell_the_target_what_comes_next_does(corpus: Path) -> None:
    """As 7.3 records it: called for all, the new vCPU unknown."""
    analysis = analysis_of(corpus / "faults/F11-movall-612/trace.dat")
    obs = analysis.observations
    untold = obs.retargets.with_columns(vcpu=pl.lit(None, dtype=pl.Int32))
    moved = _again(analysis, replace(obs, retargets=untold), kernel="7.3.4")
    right = obs.queueings.with_columns(
        target_vcpu=pl.when(pl.col("intid") >= 8198).then(2).otherwise("target_vcpu")
    )
    right = right.cast({"target_vcpu": pl.Int32})
    fills = obs.fills.with_columns(
        target_vcpu=pl.when(pl.col("intid") >= 8198).then(2).otherwise("target_vcpu")
    )
    fills = fills.cast({"target_vcpu": pl.Int32})
    stayed = _again(analysis, replace(obs, retargets=untold, queueings=right, fills=fills), kernel="7.3.4")

    assert {one.intid for found in moved if found.code == "ITS204" for one in found.subjects} >= {8198, 8199}
    assert "ITS204" not in {one.code for one in stayed}


# --- ITS205


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
def test_a_call_that_reads_no_byte_is_found(kernel: str) -> None:
    """On 6.1 it also leaves without the return being recorded."""
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    row = _commands(analysis, "INV")[0]
    none = pl.lit(None)
    empty = {"read_seq": none, "read_gpa": none, "value": none, "read_result": none}
    if kernel == "6.1":
        empty |= {"end_seq": none, "end_ns": none, "enabled": none, "priority": none, "result": none}
    found = _again(analysis, _changed(obs, "config_calls", row, **empty))

    assert _blaming(found, row["seq"]) == [("ITS205", "the property byte was not read")]
    assert found[0].severity is Severity.ERROR


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
def test_where_no_byte_was_recorded_at_all_it_may_have_been_filtered_out(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    none = obs.config_calls.with_columns(
        pl.lit(None).alias(name) for name in ("read_seq", "read_gpa", "value", "read_result")
    ).cast(obs.config_calls.schema)
    bare = replace(obs, config_calls=none, guest_reads=obs.guest_reads.filter(pl.col("size_bytes") != 1))
    found = _again(analysis, bare)

    assert {(one.code, one.severity, one.confidence) for one in found} == {
        ("ITS205", Severity.NOTE, Confidence.UNPROVEN)
    }


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
@pytest.mark.parametrize(
    ("changed", "mechanism"),
    [
        ({"value": pl.col("value") ^ 1}, "the enable bit that was read was not taken over"),
        ({"value": pl.col("value") ^ 0x20}, "the priority that was read was not taken over"),
        ({"read_gpa": pl.col("read_gpa") + 1}, "another property byte was read"),
    ],
)
def test_a_byte_that_is_not_what_the_lpi_has_is_found(
    kernel: str, changed: dict[str, pl.Expr], mechanism: str
) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    row = _commands(analysis, "INV")[0]
    found = _again(analysis, _changed(analysis.observations, "config_calls", row, **changed))

    assert _blaming(found, row["seq"]) == [("ITS205", mechanism)]


def test_a_write_to_invlpir_that_reads_nothing_is_found() -> None:
    """Linux guests send no INV: they write the register."""
    analysis = analysis_of(SAMPLES / "7.3-migrate.dat")
    obs = analysis.observations
    asked = obs.vm_events.filter(pl.col("what") == "invlpir").row(3, named=True)
    mine = (
        (pl.col("pid") == asked["pid"]) & (pl.col("intid") == asked["intid"]) & (pl.col("seq") > asked["seq"])
    )
    call = obs.config_calls.filter(mine)["seq"][0]
    uncalled = obs.config_calls.filter(pl.col("seq") != call)
    empty = obs.config_calls.with_columns(
        pl.when(pl.col("seq") != call).then(name).alias(name) for name in ("read_seq", "read_gpa", "value")
    )
    for calls in (uncalled, empty):
        made = _again(analysis, replace(obs, config_calls=calls))
        found = [one for one in made if one.mechanism == "the property byte was not read"]

        assert [(one.code, one.intid, one.blames) for one in found] == [
            ("ITS205", asked["intid"], (asked["seq"],))
        ]
        assert "GICR_INVLPIR" in found[0].message


@pytest.mark.corpus
@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_invall_takes_over_only_the_bytes_of_its_vcpu(corpus: Path, kernel: str) -> None:
    """It reads them all: one that is not its vCPU's differs, and that is right; one of its vCPU's must not."""
    analysis = analysis_of(corpus / f"torture-{kernel}" / "trace.dat")
    calls = analysis.observations.config_calls
    differs = calls.filter(~pl.col("applied") & ((pl.col("value") & 1) != pl.col("enabled").cast(pl.UInt8)))

    assert differs.height == 1
    assert "ITS205" not in {one.code for one in analysis.findings}


def test_an_lpi_whose_enable_bit_changes_by_itself_is_found() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["7.3"])
    obs = analysis.observations
    row = obs.queueings.filter("enabled", "pending").filter(pl.col("cause") == "int").row(5, named=True)
    here = pl.col("seq") == row["seq"]
    off = obs.queueings.with_columns(enabled=pl.col("enabled") & ~here)
    found = [one for one in _again(analysis, replace(obs, queueings=off)) if one.code == "ITS205"]

    assert [(one.mechanism, one.intid) for one in found] == [
        ("the enable bit changed without being read", row["intid"])
    ]


# --- ITS206


@pytest.mark.parametrize(
    ("kernel", "severity"),
    [
        ("6.12.90-arm64", Severity.ERROR),
        ("6.12.107+deb13-arm64", Severity.NOTE),
        ("7.1.0-rc6", Severity.ERROR),
        ("7.3.4+deb13-arm64", Severity.NOTE),
        ("7.3.3", Severity.ERROR),
        ("6.1.0-56-arm64", Severity.NOTE),
    ],
)
def test_two_invalidations_at_once_are_found(kernel: str, severity: Severity) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    drops = obs.invalidations.with_columns(end_seq=pl.col("seq") + 1, end_ns=pl.col("time_ns") + 1000)
    first = drops.row(5, named=True)
    other = drops.filter(pl.col("seq") == first["seq"]).with_columns(
        pl.col("seq", "end_seq") + 1, pl.col("time_ns", "end_ns") + 500, pid=pl.col("pid") + 1
    )
    longer = drops.with_columns(
        end_seq=pl.when(pl.col("seq") == first["seq"]).then(first["seq"] + 3).otherwise("end_seq")
    )
    fed = {**obs.fed_by, "invalidate_end": "its:its_inval_cache_ret"}
    apart = replace(obs, invalidations=drops, fed_by=fed)
    both = replace(
        obs,
        invalidations=pl.concat([longer, other.cast(longer.schema)]).sort("seq").cast(drops.schema),
        fed_by=fed,
    )
    found = [one for one in _again(analysis, both, kernel=kernel) if one.code == "ITS206"]

    assert "ITS206" not in {one.code for one in _again(analysis, apart, kernel=kernel)}
    assert [one.severity for one in found] == [severity]


# --- ITS208


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
@pytest.mark.parametrize(
    ("value", "mechanism"),
    [
        (pl.col("value") ^ 1, "the list register was given another INTID"),
        (pl.col("value") ^ 1 << 62, "the list register was given the wrong state (pending as inactive)"),
        (pl.col("value") | 1 << 61, "the list register was given the HW bit"),
        (pl.col("value") ^ 1 << 60, "the list register was given Group 0"),
        (pl.col("value") ^ 0x20 << 48, "the list register was given another priority"),
    ],
)
def test_a_list_register_that_is_not_the_lpi_is_found(kernel: str, value: pl.Expr, mechanism: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    fill = analysis.lives.fills.filter("pending").filter(~pl.col("active")).row(-1, named=True)
    returns = obs.fill_returns.filter((pl.col("pid") == fill["pid"]) & (pl.col("seq") > fill["seq"]))
    here = pl.col("seq") == returns["seq"][0]
    bent = obs.fill_returns.with_columns(value=pl.when(here).then(value).otherwise("value").cast(pl.UInt64))
    found = [one for one in _again(analysis, replace(obs, fill_returns=bent)) if one.code == "ITS208"]

    assert [(one.mechanism, one.intid, one.vcpus) for one in found] == [
        (mechanism, fill["intid"], (fill["vcpu"],))
    ]
    assert len(found[0].evidence) == 2


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
def test_a_fold_that_finds_another_intid_than_was_filled_is_found(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    fill = obs.fills.filter((pl.col("ended_by") == "fold") & (pl.col("lr") == 0)).row(3, named=True)
    here = pl.col("seq") == fill["end_seq"]
    folds = obs.folds.with_columns(lr0=pl.when(here).then(pl.col("lr0") ^ 2).otherwise("lr0").cast(pl.UInt64))
    found = [one for one in _again(analysis, replace(obs, folds=folds)) if one.code == "ITS208"]

    assert [(one.mechanism, one.intid) for one in found] == [
        ("the fold found another INTID than was filled", fill["intid"])
    ]
