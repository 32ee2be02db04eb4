"""ITS207, and ITS204 for MOVALL: commands that did nothing, something else, or more. Each fault is put into real captures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.undone import (
    SAMPLE,
    blame,
    commands_of,
    host_findings,
    with_operands,
    within,
    without_effect,
)

from itstrace import Severity
from itstrace.findings import Confidence

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
@pytest.mark.parametrize("opcode", ["MAPC", "MAPD", "MAPTI", "MOVI", "INT", "INV", "DISCARD"])
def test_a_command_that_leaves_no_trace_was_not_carried_out(kernel: str, opcode: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    # On 7.3 nothing shows that a device is mapped, only that it is unmapped.
    valid = False if (kernel, opcode) == ("7.3", "MAPD") else None
    row = commands_of(analysis, opcode, valid=valid)[-1]
    found = host_findings(analysis, without_effect(analysis.observations, row))
    blaming = blame(found, row["seq"])

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
    rows = commands_of(analysis, opcode, valid=valid)
    for row in {rows[0]["seq"]: rows[0], rows[-1]["seq"]: rows[-1]}.values():
        found = host_findings(analysis, without_effect(analysis.observations, row))

        assert blame(found, row["seq"]) == [("ITS207", f"{opcode} left no trace of its effect")]
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
    row = commands_of(analysis, opcode, valid=valid)[0]
    found = host_findings(analysis, with_operands(obs, frame, row, **{column: pl.col(column) + 1}))

    assert ("ITS207", mechanism) in blame(found, row["seq"])


def test_an_event_unmapped_instead_of_another_is_found_where_it_is_shown() -> None:
    """6.1 has a probe in its_free_ite."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.1"])
    row = commands_of(analysis, "DISCARD")[0]
    found = host_findings(
        analysis, with_operands(analysis.observations, "allocations", row, event_id=pl.col("event_id") + 1)
    )

    assert blame(found, row["seq"]) == [("ITS207", "DISCARD unmapped another event")]


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
def test_an_int_of_another_event_is_found(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    row = commands_of(analysis, "INT")[0]
    mine = (pl.col("from_command") == row["seq"]).fill_null(value=False)
    other = obs.injections.with_columns(
        event_id=pl.when(mine).then(pl.col("event_id") + 1).otherwise("event_id")
    )
    found = host_findings(analysis, replace(obs, injections=other))

    assert ("ITS207", "INT triggered another event") in blame(found, row["seq"])


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_an_lpi_given_to_another_vcpu_than_asked_is_found(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    row = commands_of(analysis, "MOVI")[0]
    found = host_findings(
        analysis, with_operands(analysis.observations, "retargets", row, vcpu=1 - pl.col("vcpu"))
    )

    assert ("ITS207", "MOVI was carried out with another vCPU") in blame(found, row["seq"])


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_an_event_mapped_to_another_collection_than_asked_is_found(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    row = commands_of(analysis, "MAPTI")[0]
    found = host_findings(
        analysis,
        with_operands(analysis.observations, "allocations", row, icid=1 - pl.col("icid").cast(pl.Int64)),
    )

    assert blame(found, row["seq"]) == [("ITS207", "MAPTI was carried out with another collection")]


@pytest.mark.corpus
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
def test_an_lpi_that_movall_leaves_behind_is_found(corpus: Path, kernel: str) -> None:
    analysis = analysis_of(corpus / f"torture-{kernel}" / "trace.dat")
    obs = analysis.observations
    row = commands_of(analysis, "MOVALL")[0]
    asked = analysis.history.expected.filter((pl.col("seq") == row["seq"]) & (pl.col("what") == "retarget"))
    left = asked["intid"][0]
    kept = obs.retargets.filter(~(within(row) & (pl.col("intid") == left)))
    found = host_findings(analysis, replace(obs, retargets=kept))

    assert asked.height > 1
    assert blame(found, row["seq"]) == [("ITS207", "MOVALL did not retarget its LPI")]
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

        assert blame(host_findings(analysis, shifted), row["seq"] - 1) == [("ITS207", mechanism)]


def test_what_a_task_does_without_a_command_is_found() -> None:
    """An LPI retargeted while its vCPU's task was about to enter the guest."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    done = obs.retargets.row(3, named=True)
    entered = obs.runs.next_entry_of_task(obs.retargets.filter(pl.col("seq") == done["seq"]))["entry_seq"][0]
    later = obs.retargets.with_columns(
        seq=pl.when(pl.col("seq") == done["seq"]).then(entered).otherwise("seq").cast(pl.UInt64)
    ).sort("seq")
    found = host_findings(analysis, replace(obs, retargets=later))

    assert [one.mechanism for one in found if not one.blames] == ["no command retargeted an LPI"]
    assert [one.intid for one in found if not one.blames] == [done["intid"]]


@pytest.mark.parametrize(
    ("opcode", "frame"), [("MAPTI", "allocations"), ("MOVI", "retargets"), ("MAPD", "allocations")]
)
def test_a_command_that_was_carried_out_twice_is_found(opcode: str, frame: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    row = commands_of(analysis, opcode)[0]
    rows = getattr(obs, frame)
    doubled = {frame: pl.concat([rows, rows.filter(within(row)).head(1)]).sort("seq")}
    found = host_findings(analysis, replace(obs, **doubled))

    assert blame(found, row["seq"]) == [("ITS207", f"{opcode} was carried out twice")]


def test_a_probe_that_is_recorded_twice_says_nothing() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    doubled = pl.concat([obs.allocations, obs.allocations]).sort("seq")

    assert not host_findings(analysis, replace(obs, allocations=doubled))


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
    clear = commands_of(analysis, "CLEAR")[0]
    asked = analysis.history.expected.filter(
        (pl.col("seq") == clear["seq"]) & (pl.col("what") == "clear_pending")
    )
    intid = asked["intid"][0]
    after = obs.queueings.filter((pl.col("intid") == intid) & (pl.col("seq") > clear["seq"]))
    kept = (pl.col("seq") == after["seq"][0]) | pl.col("pending")
    found = host_findings(analysis, replace(obs, queueings=obs.queueings.with_columns(pending=kept)))

    assert after["cause"][0] == "inv"
    assert not after["pending"][0]
    assert blame(found, clear["seq"]) == [("ITS207", "CLEAR left the LPI pending")]


def test_an_lpi_cleared_and_injected_anew_is_no_clear_that_failed() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    clear = commands_of(analysis, "CLEAR")[0]
    asked = analysis.history.expected.filter(
        (pl.col("seq") == clear["seq"]) & (pl.col("what") == "clear_pending")
    )
    later = obs.queueings.filter((pl.col("intid") == asked["intid"][0]) & (pl.col("seq") > clear["seq"]))
    first = pl.col("seq") == later["seq"][0]
    injected = obs.queueings.with_columns(
        pending=first | pl.col("pending"), cause=pl.when(first).then(pl.lit("msi")).otherwise("cause")
    )

    assert not host_findings(analysis, replace(obs, queueings=injected))


def test_what_follows_from_a_command_that_failed_is_not_told_again() -> None:
    """An event that was not mapped cannot be moved, read or discarded: one finding, of the MAPTI."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    mapti = commands_of(analysis, "MAPTI")[-1]
    same = (pl.col("dw0") // 2**32 == mapti["dw0"] >> 32) & (
        (pl.col("dw1") & 0xFFFFFFFF) == mapti["dw1"] & 0xFFFFFFFF
    )
    rest = analysis.observations.commands.filter(same & (pl.col("seq") > mapti["seq"]))
    rest = rest.filter((pl.col("dw0") & 0xFF).is_in([0x01, 0x0C, 0x0F]))
    found = host_findings(analysis, without_effect(analysis.observations, mapti, *rest.to_dicts()))

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
    found = [one for one in host_findings(analysis, silent) if one.code == "ITS207"]

    assert found
    assert {(one.severity, one.confidence) for one in found} == {(Severity.NOTE, Confidence.UNPROVEN)}
    assert all("its_alloc_coll" in one.doubt and one.capture_next for one in found)


def test_an_effect_that_was_not_recorded_is_not_missed() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    fed = {name: event for name, event in obs.fed_by.items() if name not in ("affinity", "invalidate")}
    blind = replace(obs, fed_by=fed, retargets=obs.retargets.clear(), invalidations=obs.invalidations.clear())

    assert not host_findings(analysis, blind)


def test_nothing_is_missed_near_lost_records() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    row = commands_of(analysis, "MOVI")[0]
    gap = pl.DataFrame(
        {"cpu": [0], "from_ns": [row["time_ns"]], "to_ns": [row["end_ns"]], "lost": [1]},
        schema=analysis.gaps.schema,
    )
    gone = without_effect(analysis.observations, row)

    assert host_findings(analysis, gone)
    assert not host_findings(analysis, gone, gaps=gap)


def test_in_a_capture_that_begins_late_it_is_likely_at_best() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    row = commands_of(analysis, "MOVI")[-1]
    unknown = pl.lit(value=False)
    late = replace(
        without_effect(obs, row),
        itss=obs.itss.with_columns(complete=unknown),
        vms=obs.vms.with_columns(complete=unknown),
    )
    found = [one for one in host_findings(analysis, late) if one.code == "ITS207"]

    assert [(one.blames, one.confidence) for one in found] == [((row["seq"],), Confidence.LIKELY)]
    assert found[0].doubt


def test_a_device_of_a_two_level_table_is_likely_only_where_the_first_level_was_not_recorded() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.1"])
    obs = analysis.observations
    row = commands_of(analysis, "MAPD", valid=True)[0]
    base = (pl.col("offset") == 0x100).cast(pl.UInt64)
    levels = obs.register_writes.with_columns(value=pl.col("value") | base * 2**62)
    found = [
        [one.confidence for one in host_findings(analysis, made) if row["seq"] in one.blames]
        for made in (without_effect(obs, row), replace(without_effect(obs, row), register_writes=levels))
    ]

    assert found == [[Confidence.CERTAIN], [Confidence.LIKELY]]


def test_a_device_that_the_first_level_has_no_entry_for_is_the_guest_s_mistake() -> None:
    """KVM reads the entry, which is not valid, and maps nothing."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    row = commands_of(analysis, "MAPD", valid=True)[0]
    read = obs.guest_reads.filter(pl.col("size_bytes") == 32).head(1)
    entry = read.with_columns(seq=row["seq"], pid=row["pid"], size_bytes=8, value=0).cast(read.schema)
    gone = without_effect(obs, row)
    # One record earlier, for there to be a place after it.
    moved = gone.commands.with_columns(seq=pl.col("seq") - (pl.col("seq") == row["seq"]).cast(pl.UInt64))
    refused = replace(gone, commands=moved, guest_reads=pl.concat([gone.guest_reads, entry]).sort("seq"))

    assert blame(host_findings(analysis, gone), row["seq"])
    assert not blame(host_findings(analysis, refused), row["seq"] - 1)


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
    moved = host_findings(analysis, replace(obs, retargets=untold), kernel="7.3.4")
    right = obs.queueings.with_columns(
        target_vcpu=pl.when(pl.col("intid") >= 8198).then(2).otherwise("target_vcpu")
    )
    right = right.cast({"target_vcpu": pl.Int32})
    fills = obs.fills.with_columns(
        target_vcpu=pl.when(pl.col("intid") >= 8198).then(2).otherwise("target_vcpu")
    )
    fills = fills.cast({"target_vcpu": pl.Int32})
    stayed = host_findings(
        analysis, replace(obs, retargets=untold, queueings=right, fills=fills), kernel="7.3.4"
    )

    assert {one.intid for found in moved if found.code == "ITS204" for one in found.subjects} >= {8198, 8199}
    assert "ITS204" not in {one.code for one in stayed}
