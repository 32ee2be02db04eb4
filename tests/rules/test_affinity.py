"""Affinity, ITS4xx: each mechanism put into a real capture, and what looks like it and is allowed."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of

from itstrace import Confidence, Severity
from itstrace.lives import live
from itstrace.observe.runs import Stamps
from itstrace.replay import replay
from itstrace.rules import RULES, check
from itstrace.rules._waits import waits
from itstrace.rules.case import Case

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from itstrace import Analysis, Finding
    from itstrace.observe import Observations
    from itstrace.observe.runs import Runs

#: Captures in which pending LPIs are moved, and nothing of this goes wrong.
MOVED = ["6.1-clean.dat", "6.12-clean.dat", "7.3-guest-mistakes.dat"]
_KERNELS = {"6.1": "6.1.0-56-arm64", "6.12": "6.12.107", "7.3": "7.3.4"}


def _again(
    name: str,
    obs: Observations,
    *,
    gaps: pl.DataFrame | None = None,
    settings: dict[str, float] | None = None,
) -> list[Finding]:
    """All findings over changed observations of a sample."""
    analysis = analysis_of(SAMPLES / name)
    history = replay(obs, kernel=_KERNELS[name.split("-", maxsplit=1)[0]])
    findings, _ = check(
        obs,
        history,
        live(obs, history),
        gaps=analysis.gaps if gaps is None else gaps,
        damage=[],
        start_ns=analysis.start_ns,
        end_ns=analysis.end_ns,
        settings=settings,
    )
    return findings


def _of(findings: list[Finding], code: str) -> list[Finding]:
    return [finding for finding in findings if finding.code == code]


def _case(analysis: Analysis, code: str = "ITS403") -> Case:
    return Case(
        analysis.observations,
        analysis.history,
        analysis.lives,
        analysis.gaps,
        analysis.damage,
        analysis.start_ns,
        analysis.end_ns,
        RULES[code],
        {},
    )


def _about(finding: Finding, intid: int) -> bool:
    return any(subject.intid == intid for subject in finding.subjects)


def _everywhere(analysis: Analysis) -> pl.DataFrame:
    """One gap over the whole capture."""
    return pl.DataFrame(
        {"cpu": [0], "from_ns": [analysis.start_ns], "to_ns": [analysis.end_ns], "lost": [1]},
        schema=analysis.gaps.schema,
    )


def _edited(runs: Runs, vcpu: int | None, keep: Callable[[Any], Any]) -> Runs:
    """Runs with only those entries and exits of a vCPU (None: of all) whose seq is kept."""
    other = copy.copy(runs)

    def edited(stamps: dict[tuple[int, int], Stamps]) -> dict[tuple[int, int], Stamps]:
        kept = {}
        for key, one in stamps.items():
            mask = keep(one.seq) if vcpu is None or key[1] == vcpu else one.seq >= 0
            kept[key] = Stamps(one.seq[mask], one.time_ns[mask])
        return kept

    other.entries, other.exits = edited(runs.entries), edited(runs.exits)
    return other


# --- ITS403


def _handed_over(name: str) -> dict[str, Any]:
    """A pending LPI of a sample that was moved, handed over and filled on the new vCPU; what comes of it next is later."""
    analysis = analysis_of(SAMPLES / name)
    for row in waits(_case(analysis)).iter_rows(named=True):
        if row["fill_seq"] is None or row["fill_seq"] != row["end_seq"] or row["fill_vcpu"] != row["vcpu"]:
            continue
        later = analysis.observations.queueings.filter(
            (pl.col("intid") == row["intid"]) & (pl.col("seq") > row["from_seq"])
        )
        ends = pl.Series([row["to_seq"], *later["seq"].head(1)], dtype=pl.UInt64).drop_nulls().sort()
        if ends.len() and ends[0] > row["fill_seq"] + 10:
            return {**row, "again_seq": ends[0] - 1}
    raise AssertionError(name)


def _stranded(name: str, owner: int | None) -> tuple[dict[str, Any], Observations]:
    """That LPI not filled until just before, when an MSI finds it on the list of `owner`."""
    row = _handed_over(name)
    obs = analysis_of(SAMPLES / name).observations
    waiting = (pl.col("intid") == row["intid"]) & pl.col("seq").is_between(row["from_seq"], row["again_seq"])
    like = obs.queueings.filter((pl.col("intid") == row["intid"]) & (pl.col("seq") < row["from_seq"]))
    after_ns = obs.folds.filter(pl.col("seq") < row["again_seq"])["time_ns"].max()
    found = like.tail(1).with_columns(
        seq=pl.lit(row["again_seq"], dtype=pl.UInt64),
        time_ns=pl.lit(after_ns, dtype=pl.Int64),
        target_vcpu=pl.lit(row["vcpu"], dtype=pl.Int32),
        owner_vcpu=pl.lit(owner, dtype=pl.Int32),
        pending=pl.lit(value=True),
        enabled=pl.lit(value=True),
        active=pl.lit(value=False),
    )
    return row, replace(
        obs, fills=obs.fills.filter(~waiting), queueings=pl.concat([obs.queueings, found]).sort("seq")
    )


@pytest.mark.parametrize("name", MOVED)
def test_an_lpi_that_stays_on_the_old_list_is_stranded(name: str) -> None:
    """ITS403: on every kernel; the next MSI finds it on the old vCPU's list, which is proof."""
    row = _handed_over(name)
    row, obs = _stranded(name, row["lists"][0])
    found = [f for f in _of(_again(name, obs), "ITS403") if _about(f, row["intid"])]

    assert not _of(analysis_of(SAMPLES / name).findings, "ITS403")
    assert [f.mechanism for f in found] == ["the old vCPU's exit did not hand the LPI over"]
    assert found[0].confidence is Confidence.CERTAIN
    assert found[0].severity is Severity.ERROR
    assert found[0].vcpus == tuple(sorted((row["lists"][0], row["vcpu"])))
    assert row["by"] in found[0].blames
    assert {row["by"], row["again_seq"]} <= set(found[0].seqs)


@pytest.mark.parametrize("name", MOVED)
def test_an_lpi_lost_in_the_move_is_told_as_such(name: str) -> None:
    """ITS403: the next MSI finds it on no list: it may have been lost before, and that is said."""
    row, obs = _stranded(name, None)
    others = obs.queueings.filter(pl.col("owner_vcpu") == row["lists"][0])
    found = [f for f in _of(_again(name, obs), "ITS403") if _about(f, row["intid"])]

    assert len(found) == 1
    assert found[0].confidence is Confidence.LIKELY
    assert found[0].doubt
    assert found[0].capture_next
    assert (found[0].mechanism == "the LPI was on no vCPU's list after the move") == bool(others.height)


def test_an_lpi_that_was_passed_over_before_it_was_moved_is_not_stranded() -> None:
    """ITS403: what the old vCPU did not take along while it was still its own was lost there: ITS301's."""
    name = "6.1-clean.dat"
    row, obs = _stranded(name, None)
    queue = obs.queueings.filter(
        (pl.col("intid") == row["intid"]) & (pl.col("seq") <= row["placed_seq"]) & pl.col("pending")
    ).row(-1, named=True)
    # Queued, and never filled on the old vCPU either.
    fills = obs.fills.filter(
        ~((pl.col("intid") == row["intid"]) & pl.col("seq").is_between(queue["seq"], row["again_seq"]))
    )
    findings = _again(name, replace(obs, fills=fills))

    assert not [f for f in _of(findings, "ITS403") if _about(f, row["intid"])]
    assert [f for f in _of(findings, "ITS301") if _about(f, row["intid"])]


def test_nothing_is_stranded_across_lost_records_or_where_it_was_disabled() -> None:
    """ITS403: a gap, or the LPI's disabling right after the move, excuses the wait."""
    name = "6.1-clean.dat"
    analysis = analysis_of(SAMPLES / name)
    row = _handed_over(name)
    row, obs = _stranded(name, row["lists"][0])
    disabled = obs.configs.head(1).with_columns(
        seq=pl.lit(row["from_seq"] + 1, dtype=pl.UInt64),
        time_ns=pl.lit(row["from_ns"] + 1, dtype=pl.Int64),
        intid=pl.lit(row["intid"], dtype=pl.UInt32),
        enabled=pl.lit(value=False),
        result=pl.lit(0, dtype=pl.Int32),
    )
    masked = replace(obs, configs=pl.concat([obs.configs, disabled]).sort("seq"))

    assert _of(_again(name, obs), "ITS403")
    assert not _of(_again(name, obs, gaps=_everywhere(analysis)), "ITS403")
    assert not [f for f in _of(_again(name, masked), "ITS403") if _about(f, row["intid"])]


def _asleep(name: str, vcpu: int | None) -> tuple[dict[str, Any], Observations]:
    """A moved LPI whose old vCPU (or, `vcpu` None, every vCPU) never ran again after the move."""
    row = _handed_over(name)
    obs = analysis_of(SAMPLES / name).observations
    waiting = (pl.col("intid") == row["intid"]) & (pl.col("seq") >= row["from_seq"])
    old = row["lists"][0] if vcpu is None else vcpu
    return row, replace(
        obs,
        fills=obs.fills.filter(~waiting),
        queueings=obs.queueings.filter(~waiting),
        folds=obs.folds.filter((pl.col("vcpu") != old) | (pl.col("seq") < row["from_seq"])),
        runs=_edited(obs.runs, vcpu, lambda seq: seq < row["from_seq"]),
    )


@pytest.mark.parametrize("name", MOVED)
def test_an_lpi_whose_old_vcpu_never_runs_again_is_likely_stranded(name: str) -> None:
    """ITS403: nothing kicks the old vCPU for a move. The guest may have wanted it, so it is not certain."""
    row = _handed_over(name)
    row, obs = _asleep(name, row["lists"][0])
    found = [f for f in _of(_again(name, obs), "ITS403") if _about(f, row["intid"])]

    assert len(found) == 1
    assert found[0].mechanism.startswith("the old vCPU did not")
    assert found[0].confidence is Confidence.LIKELY
    assert "sched_switch" in found[0].capture_next
    assert not [
        f
        for f in _of(_again(name, obs, settings={"stranded-factor": 1e9}), "ITS403")
        if _about(f, row["intid"])
    ]


def test_a_vm_that_is_stopped_strands_nothing() -> None:
    """ITS403: where no vCPU runs any more, the old one is not to blame."""
    row, obs = _asleep("6.1-clean.dat", None)

    assert not [f for f in _of(_again("6.1-clean.dat", obs), "ITS403") if _about(f, row["intid"])]


@pytest.mark.corpus
def test_a_list_that_is_never_pruned_strands_moved_lpis(corpus: Path) -> None:
    """ITS403: L-F3b, a kernel whose prune leaves moved LPIs where they are; the truth has LPI 8202 stranded 1.44 s."""
    (found,) = _of(analysis_of(corpus / "faults/L-F3b-612/trace.dat").findings, "ITS403")

    assert {subject.intid for subject in found.subjects} == {8202, 8203}
    assert found.confidence is Confidence.CERTAIN
    assert found.vcpus == (0, 1)
    assert "LPI 8202" in found.worst
    assert "1.44 s" in found.worst
    assert found.guest_saw


# --- ITS404


def _window(name: str = "6.1-clean.dat") -> tuple[Finding, Observations, dict[str, Any]]:
    """The note of a sample, its observations, and the fill that it is about."""
    analysis = analysis_of(SAMPLES / name)
    (note,) = _of(analysis.findings, "ITS404")
    fill = analysis.observations.fills.filter(pl.col("seq") == note.seqs[0]).row(0, named=True)
    return note, analysis.observations, fill


def test_the_window_until_the_next_exit_is_a_note() -> None:
    """ITS404: the LPI was in its list register when it was moved; whether it was taken before cannot be told."""
    note, obs, fill = _window()
    texts = analysis_of(SAMPLES / "6.1-clean.dat").history.verdicts.filter(
        pl.col("seq").is_in(list(note.blames))
    )

    assert note.severity is Severity.NOTE
    assert note.confidence is Confidence.UNPROVEN
    assert note.doubt
    assert texts["opcode"].to_list() == ["MOVI"]
    # Not taken, it is no delivery; it goes on to the new vCPU.
    back = obs.fills.with_columns(
        state=pl.when(pl.col("seq") == fill["seq"]).then(1).otherwise("state").cast(pl.UInt8)
    )
    assert not _of(_again("6.1-clean.dat", replace(obs, fills=back)), "ITS404")


def test_entering_the_guest_with_the_lpi_only_after_sync_is_certain() -> None:
    """ITS404: still a note, but the guest surely took it after the move."""
    _, obs, fill = _window()
    later = _edited(obs.runs, fill["vcpu"], lambda seq: (seq < fill["seq"]) | (seq > fill["end_seq"] - 1))
    entries = later.entries[fill["vm"], fill["vcpu"]]
    place = int((entries.seq < fill["seq"]).sum())
    # The one entry with it, just before the fold.
    entries.seq[place], entries.time_ns[place] = fill["end_seq"] - 1, fill["end_ns"] - 1
    (note,) = _of(_again("6.1-clean.dat", replace(obs, runs=later)), "ITS404")

    assert note.severity is Severity.NOTE
    assert note.confidence is Confidence.CERTAIN


def test_a_list_register_left_past_the_exit_is_an_error() -> None:
    """ITS404: the same LPI, read back only long after the old vCPU's next exit."""
    _, obs, fill = _window()
    exits = obs.runs.exits[fill["vm"], fill["vcpu"]]
    place = int((exits.seq < fill["end_seq"]).sum()) + 3
    late = (int(exits.seq[place]) + 1, int(exits.time_ns[place]) + 1)
    this = pl.col("seq") == fill["seq"]
    kept = obs.fills.with_columns(
        end_seq=pl.when(this).then(pl.lit(late[0], dtype=pl.UInt64)).otherwise("end_seq"),
        end_ns=pl.when(this).then(pl.lit(late[1], dtype=pl.Int64)).otherwise("end_ns"),
    )
    found = [
        f
        for f in _of(_again("6.1-clean.dat", replace(obs, fills=kept)), "ITS404")
        if f.severity is Severity.ERROR
    ]

    assert [(f.intid, f.mechanism) for f in found] == [
        (fill["intid"], "left in the old vCPU's list register past its exit")
    ]


def test_a_delivery_after_a_move_that_did_not_take_follows_from_it() -> None:
    """ITS404: filled anew on the old vCPU is an error, and its cause is ITS402's finding about the same MOVI."""
    findings = analysis_of(SAMPLES / "6.1-stale-target.dat").findings
    (cause,) = _of(findings, "ITS402")
    (effect,) = [f for f in _of(findings, "ITS404") if f.severity is Severity.ERROR]

    assert effect.mechanism == "filled anew on the old vCPU"
    assert effect.id in cause.leads_to
    assert cause.id in effect.caused_by
    assert set(effect.blames) <= set(cause.blames)


def test_a_move_without_sync_promises_nothing() -> None:
    """ITS404: without the SYNC of the old redistributor, taking it there is allowed."""
    name = "6.1-clean.dat"
    _, obs, _ = _window(name)
    # Opcode SYNC; Spec: IHI 0069H, ITS commands.
    unsynced = obs.commands.filter(pl.col("dw0") % 256 != 0x05)

    assert not _of(_again(name, replace(obs, commands=unsynced)), "ITS404")


# --- ITS405


def test_moving_to_and_fro_is_a_note_from_a_number_on() -> None:
    """ITS405: MOVI ping-pong of a pending LPI, four times in this sample; never more than a note."""
    name = "7.3-guest-mistakes.dat"
    analysis = analysis_of(SAMPLES / name)
    (note,) = _of(analysis.findings, "ITS405")
    more = _again(name, analysis.observations, settings={"thrash-moves": 5})

    assert note.severity is Severity.NOTE
    assert note.intid == 8192
    assert note.measure == 4
    assert len(note.blames) == 4
    assert not _of(more, "ITS405")


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["boot-6.12/trace.dat", "faults/L-clean-a-612/trace.dat"])
def test_affinity_churn_under_io_is_no_thrashing(corpus: Path, name: str) -> None:
    """ITS405, and all of ITS4xx: interrupts moved on purpose while devices work."""
    found = [f for f in analysis_of(corpus / name).findings if f.code.startswith("ITS4")]

    assert not found


def test_moves_of_a_disabled_lpi_are_no_thrashing() -> None:
    """ITS405: it could not be delivered anyway."""
    name = "7.3-guest-mistakes.dat"
    analysis = analysis_of(SAMPLES / name)
    obs = analysis.observations
    (note,) = _of(analysis.findings, "ITS405")
    first = analysis.lives.lives.filter((pl.col("intid") == note.intid) & (pl.col("moves") >= note.measure))[
        "queued_seq"
    ][0]
    masked = obs.queueings.with_columns(
        enabled=pl.when(pl.col("seq") == first).then(pl.lit(value=False)).otherwise("enabled")
    )

    assert not _of(_again(name, replace(obs, queueings=masked)), "ITS405")


# --- ITS406


@pytest.mark.parametrize("name", MOVED)
def test_another_object_while_the_first_is_in_a_list_register_is_one_too_many(name: str) -> None:
    """ITS406: an LPI queued and filled; before the fill is read back, a call for it comes with another irq pointer."""
    obs = analysis_of(SAMPLES / name).observations
    fill = obs.fills.filter(pl.col("pending") & (pl.col("state") == 0)).row(5, named=True)
    first = obs.queueings.filter(
        (pl.col("intid") == fill["intid"]) & (pl.col("seq") < fill["seq"]) & pl.col("pending")
    ).tail(1)
    call = first.with_columns(
        seq=pl.lit(fill["seq"] + 1, dtype=pl.UInt64),
        time_ns=pl.lit(fill["time_ns"] + 1, dtype=pl.Int64),
        owner_vcpu=pl.lit(fill["vcpu"], dtype=pl.Int32),
    )
    other = call.with_columns(pl.col("irq") + 256)
    same, two = (
        _again(name, replace(obs, queueings=pl.concat([obs.queueings, extra]).sort("seq")))
        for extra in (call, other)
    )
    (found,) = _of(two, "ITS406")

    assert not _of(same, "ITS406")
    assert found.intid == fill["intid"]
    assert found.severity is Severity.ERROR
    assert f"{first['irq'][0]:#x}" in found.message
    assert {first["seq"][0], fill["seq"] + 1} <= set(found.seqs)


@pytest.mark.parametrize("name", ["6.1-clean.dat", "6.12-clean.dat", "7.3-guest-mistakes.dat"])
def test_pointers_change_where_objects_are_freed(name: str) -> None:
    """ITS406: an LPI that was taken, discarded and mapped again has a new object; that is no second one."""
    analysis = analysis_of(SAMPLES / name)
    pointers = analysis.observations.queueings.group_by("vm", "intid").agg(pl.col("irq").n_unique())

    assert (pointers["irq"] > 1).any()
    assert not _of(analysis.findings, "ITS406")


@pytest.mark.parametrize("name", ["6.1-clean.dat", "6.12-clean.dat"])
def test_an_object_made_after_the_delivery_is_no_second_one(name: str) -> None:
    """ITS406: from a call on that finds the LPI on no list, everything of it has another pointer."""
    obs = analysis_of(SAMPLES / name).observations
    free = obs.queueings.filter("pending", "enabled", pl.col("owner_vcpu").is_null())
    since = free.group_by("vm", "intid").agg(since=pl.col("seq").max())

    def renewed(frame: pl.DataFrame) -> pl.DataFrame:
        late = pl.col("seq") >= pl.col("since")
        rows = frame.join(since, on=["vm", "intid"], how="left", maintain_order="left")
        return rows.with_columns(irq=pl.col("irq") + 256 * late.fill_null(value=False).cast(pl.UInt64)).drop(
            "since"
        )

    changed = replace(obs, queueings=renewed(obs.queueings), retargets=renewed(obs.retargets))

    assert not _of(_again(name, changed), "ITS406")


def test_one_lpi_in_two_list_registers_of_one_vcpu_is_two_objects() -> None:
    """ITS406: no pointers are needed where one entry's list registers hold the LPI twice."""
    name = "6.12-clean.dat"
    obs = analysis_of(SAMPLES / name).observations
    fill = obs.fills.filter(pl.col("pending") & (pl.col("state") == 0))[10]
    twin = fill.with_columns(pl.col("seq") + 1, pl.col("lr") + 1)
    findings = _again(name, replace(obs, fills=pl.concat([obs.fills, twin]).sort("seq")))

    assert [(f.intid, f.confidence) for f in _of(findings, "ITS406")] == [
        (fill["intid"][0], Confidence.CERTAIN)
    ]


# --- ITS401


def _moved_in_a_register(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A fill that came back untaken, and the next fill of that LPI, on another vCPU."""
    fills = analysis_of(SAMPLES / name).observations.fills
    for first in fills.filter(pl.col("state") == 1).iter_rows(named=True):
        later = fills.filter((pl.col("intid") == first["intid"]) & (pl.col("seq") > first["seq"]))
        if later.height and later["vcpu"][0] != first["vcpu"]:
            return first, later.row(0, named=True)
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["6.1-clean.dat", "6.12-clean.dat"])
def test_a_fold_that_is_skipped_leaves_the_lpi_on_two_vcpus(name: str) -> None:
    """ITS401: moved and handed over, but the first list register is read back only after the second was filled."""
    first, second = _moved_in_a_register(name)
    obs = analysis_of(SAMPLES / name).observations
    this = pl.col("seq") == first["seq"]
    late = obs.fills.with_columns(
        end_seq=pl.when(this).then(second["seq"] + 1).otherwise("end_seq").cast(pl.UInt64),
        end_ns=pl.when(this).then(second["time_ns"] + 1).otherwise("end_ns").cast(pl.Int64),
        state=pl.when(this).then(0).otherwise("state").cast(pl.UInt8),
    )
    (found,) = _of(_again(name, replace(obs, fills=late)), "ITS401")

    assert (found.intid, found.count) == (first["intid"], 1)
    assert found.vcpus == (0, 1)
    assert found.mechanism == "the vCPU's exit did not read the list register back"
    assert "kvm_vgic_sync_hwstate" in found.suspect
    assert "One MSI was taken on both vCPUs" in found.guest_saw


def test_queued_elsewhere_out_of_a_list_register_is_enough() -> None:
    """ITS401: a call that finds no owner, and queues the LPI for the other vCPU while it sits in a list register."""
    name = "6.12-clean.dat"
    obs = analysis_of(SAMPLES / name).observations
    fill = obs.fills.filter(pl.col("pending") & (pl.col("state") == 0)).row(10, named=True)
    call = obs.queueings.filter(pl.col("intid") == fill["intid"]).head(1)
    extra = call.with_columns(
        seq=pl.lit(fill["seq"] + 1, dtype=pl.UInt64),
        time_ns=pl.lit(fill["time_ns"] + 1, dtype=pl.Int64),
        target_vcpu=pl.lit(1 - fill["vcpu"], dtype=pl.Int32),
        owner_vcpu=pl.lit(None, dtype=pl.Int32),
        pending=pl.lit(value=True),
        enabled=pl.lit(value=True),
    )
    findings = _again(name, replace(obs, queueings=pl.concat([obs.queueings, extra]).sort("seq")))
    (found,) = _of(findings, "ITS401")
    owned = extra.with_columns(owner_vcpu=pl.lit(fill["vcpu"], dtype=pl.Int32))
    allowed = _again(name, replace(obs, queueings=pl.concat([obs.queueings, owned]).sort("seq")))

    assert found.intid == fill["intid"]
    assert "queued for" in found.message
    assert not _of(allowed, "ITS401")


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("folder", "both", "back"),
    [("F12-bug17-61", 10, 0), ("F12-bug17-612", 4, 0), ("F12-all-73", 0, 10)],
)
def test_what_the_guest_took_is_told_from_the_folds(corpus: Path, folder: str, both: int, back: int) -> None:
    """ITS401: the guest's own log says 1+1 in ten rounds on 6.1, 1+0 in all rounds on 7.3, which folds at the next exit."""
    (found,) = _of(analysis_of(corpus / "faults" / folder / "trace.dat").findings, "ITS401")

    assert found.mechanism.startswith("EnableLPIs=0 took the LPI off")
    assert "vgic_flush_pending_lpis" in found.suspect
    assert (f"taken on both {both} times" in found.message) == bool(both)
    assert (f"not taken it when its list register was read back, {back} times" in found.guest_saw) == bool(
        back
    )


# --- ITS402


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("folder", "mechanism", "blamed"),
    [
        ("F1-61", "MOVI did not change the target, though update_affinity ran", "MOVI"),
        ("F1-612", "MOVI did not change the target, though update_affinity ran", "MOVI"),
        ("L-F1-612", "MOVI did not change the target, though update_affinity ran", "MOVI"),
        ("F9a-612", "MOVI was not carried out: update_affinity never ran", "MOVI"),
        ("F11-movall-612", "MOVALL moved an LPI that the vCPU it moves from did not have", "MOVALL"),
        ("F12-bug15-612", "MAPTI kept the old target", "MAPTI"),
    ],
)
def test_a_stale_target_is_told_by_its_cause(corpus: Path, folder: str, mechanism: str, blamed: str) -> None:
    """ITS402: one finding per cause, which blames the commands that made the target wrong."""
    analysis = analysis_of(corpus / "faults" / folder / "trace.dat")
    (found,) = _of(analysis.findings, "ITS402")
    opcodes = analysis.history.verdicts.filter(pl.col("seq").is_in(list(found.blames)))["opcode"]

    assert found.mechanism == mechanism
    assert set(opcodes) == {blamed}
    assert found.worst
    assert "on the vCPU that it had been moved away from" in found.guest_saw


@pytest.mark.corpus
def test_an_lpi_that_two_events_share_keeps_its_target(corpus: Path) -> None:
    """KVM gives a shared LPI no new target at the second MAPTI; the mistake is the guest's (ITS106), not a stale target."""
    codes = {one.code for one in analysis_of(corpus / "faults/F12-bug01-612/trace.dat").findings}

    assert "ITS106" in codes
    assert "ITS402" not in codes


def test_a_move_that_kvm_never_began_is_told_apart() -> None:
    """ITS402: the same capture without any call of update_affinity: MOVI was not carried out at all."""
    name = "6.1-stale-target.dat"
    obs = analysis_of(SAMPLES / name).observations
    (found,) = _of(_again(name, replace(obs, retargets=obs.retargets.clear())), "ITS402")

    assert found.mechanism == "MOVI was not carried out: update_affinity never ran"


@pytest.mark.parametrize("name", ["6.1-clean.dat", "6.12-clean.dat", "7.3-guest-mistakes.dat"])
def test_a_fill_off_its_own_target_is_stale_unless_active(name: str) -> None:
    """ITS402: KVM's own target is another vCPU. An active LPI stays where it is, and may."""
    obs = analysis_of(SAMPLES / name).observations
    fill = obs.fills.filter(pl.col("pending") & ~pl.col("active") & (pl.col("state") == 0)).row(5, named=True)
    this = pl.col("seq") == fill["seq"]
    off = obs.fills.with_columns(
        target_vcpu=pl.when(this).then(1 - fill["vcpu"]).otherwise("target_vcpu").cast(pl.Int32)
    )
    active = off.with_columns(
        active=pl.when(this).then(pl.lit(value=True)).otherwise("active"),
        pending=pl.when(this).then(pl.lit(value=False)).otherwise("pending"),
    )
    (found,) = _of(_again(name, replace(obs, fills=off)), "ITS402")

    assert found.mechanism == "filled on a vCPU that is not its target"
    assert found.intid == fill["intid"]
    assert "vgic_target_oracle" in found.suspect
    assert not _of(_again(name, replace(obs, fills=active)), "ITS402")


# --- all of them


@pytest.mark.parametrize("name", MOVED)
def test_a_gap_over_all_of_it_silences_them(name: str) -> None:
    """Every rule of affinity needs an unbroken run of records."""
    row = _handed_over(name)
    _, obs = _stranded(name, row["lists"][0])
    findings = _again(name, obs, gaps=_everywhere(analysis_of(SAMPLES / name)))

    assert not [f for f in findings if f.code.startswith("ITS4")]


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "since", "until"),
    [
        # An LPI mapped anew, to a collection whose vCPU nobody told since.
        ("faults/L-clean-a-612/trace.dat", 19811, 28534),
        # MOVI that waits for the lock of its ITS, from a collection whose vCPU is not known.
        ("torture-7.3/trace.dat", 27109, 2**62),
        # MOVALL to a vCPU that does not exist.
        ("torture-7.3/trace.dat", 4024, 133148),
    ],
)
def test_a_capture_that_begins_anywhere_has_no_stale_targets(
    corpus: Path, name: str, since: int, until: int
) -> None:
    """ITS402 and ITS404: what the tables held before is not known, and nothing is made of it."""
    analysis = analysis_of(corpus / name)
    obs = analysis.observations
    frames: dict[str, Any] = {
        field.name: frame.filter(pl.col("seq").is_between(since, until))
        for field in fields(obs)
        if isinstance(frame := getattr(obs, field.name), pl.DataFrame) and "seq" in frame.columns
    }
    unknown: dict[str, Any] = {
        "vms": obs.vms.with_columns(complete=pl.lit(value=False)),
        "itss": obs.itss.with_columns(complete=pl.lit(value=False)),
    }
    cut = replace(
        obs, **frames, **unknown, runs=_edited(obs.runs, None, lambda seq: (seq >= since) & (seq <= until))
    )
    history = replay(cut, kernel=analysis.info.kernel)
    findings, _ = check(
        cut,
        history,
        live(cut, history),
        gaps=analysis.gaps,
        damage=[],
        start_ns=analysis.start_ns,
        end_ns=analysis.end_ns,
    )

    assert not [f for f in findings if f.code.startswith("ITS4") and f.severity is not Severity.NOTE]


def test_a_move_that_was_lost_is_not_held_against_the_kernel() -> None:
    """ITS402: where a gap swallowed a MOVI, the target after it is unknown, however long ago the gap was."""
    name = "6.12-clean.dat"
    analysis = analysis_of(SAMPLES / name)
    obs = analysis.observations
    moved = analysis.history.targets.filter(pl.col("set_by").is_not_null() & pl.col("ended_by").is_not_null())
    used = obs.queueings.filter("pending")
    # A move after which the LPI was queued for its new vCPU before it was moved again.
    for row in moved.iter_rows(named=True):
        later = used.filter(
            (pl.col("intid") == row["intid"]) & pl.col("seq").is_between(row["from_seq"] + 50, row["to_seq"])
        )
        opcode = analysis.history.verdicts.filter(pl.col("seq") == row["set_by"])["opcode"][0]
        if opcode == "MOVI" and later.height:
            break
    end_seq = obs.commands.filter(pl.col("seq") == row["set_by"])["end_seq"][0]
    within = pl.col("seq").is_between(row["set_by"], end_seq)
    following = obs.commands.filter(pl.col("seq") > end_seq)["seq"][0]
    without = replace(
        obs,
        commands=obs.commands.filter(~within).with_columns(
            lost_before=pl.col("lost_before") | (pl.col("seq") == following)
        ),
        retargets=obs.retargets.filter(~within),
    )
    gap = pl.DataFrame(
        {"cpu": [0], "from_ns": [row["from_ns"] - 1], "to_ns": [row["from_ns"] + 1], "lost": [1]},
        schema=analysis.gaps.schema,
    )
    silently = replace(without, commands=obs.commands.filter(~within))

    assert _of(_again(name, silently), "ITS402")
    assert not _of(_again(name, without, gaps=gap), "ITS402")
