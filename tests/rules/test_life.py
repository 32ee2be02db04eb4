"""The first half of an LPI's life: lost, refused, doubled, late, disabled, too many (ITS301 to 304, 308, 309).

Where no capture shows a mechanism, it is put into a real one: observations are taken out, added or moved.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from conftest import SAMPLES, analysis_of

from itstrace import Confidence, Severity
from itstrace.gic.faults import Fault
from itstrace.gic.registers import GITS_CTLR
from itstrace.lives import live
from itstrace.observe.joins import after
from itstrace.observe.runs import WAITING, Runs, Stamps
from itstrace.replay import replay
from itstrace.rules import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from itstrace import Analysis, Finding
    from itstrace.observe import Observations

LPI = ["vm", "intid"]
EBUSY = -16
#: Clean, with each kernel's own probes.
CLEAN = ("6.1-clean.dat", "6.12-clean.dat")


def found(
    obs: Observations, analysis: Analysis, code: str, *, losses_told: bool = True, **settings: float
) -> list[Finding]:
    """What a rule says of changed observations of a capture."""
    history = replay(obs, kernel=analysis.info.kernel)
    findings, _ = check(
        obs,
        history,
        live(obs, history),
        gaps=analysis.gaps,
        damage=[],
        start_ns=analysis.start_ns,
        end_ns=analysis.end_ns,
        losses_told=losses_told,
        kernel=analysis.info.kernel,
        settings={name.replace("_", "-"): value for name, value in settings.items()},
    )
    return [finding for finding in findings if finding.code == code]


def sample(name: str) -> Analysis:
    return analysis_of(SAMPLES / name)


def gap_over(analysis: Analysis) -> pl.DataFrame:
    return pl.DataFrame(
        {"cpu": [0], "from_ns": [analysis.start_ns], "to_ns": [analysis.end_ns], "lost": [1]},
        schema=analysis.gaps.schema,
    )


def without_chains(analysis: Analysis, chains: pl.DataFrame, keep: str = "none") -> pl.DataFrame:
    """FILLS without those of some chains (vm, intid, chain); `keep` first, last or none of each."""
    fills = analysis.lives.fills.join(chains, on=["vm", "intid", "chain"], how="semi")
    ends = fills.group_by("vm", "intid", "chain").agg(
        pl.col("seq").min() if keep == "first" else pl.col("seq").max()
    )
    gone = fills if keep == "none" else fills.join(ends, on="seq", how="anti")
    return analysis.observations.fills.join(gone, on="seq", how="anti")


def every(number: int, rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_row_index("_n").filter(pl.col("_n") % number == number - 1).drop("_n")


def chains_of(analysis: Analysis, fills: int) -> pl.DataFrame:
    """Chains of at least so many fills, taken in the end, on one vCPU."""
    grouped = analysis.lives.fills.group_by("vm", "intid", "chain", maintain_order=True).agg(
        n=pl.len(), taken=pl.col("taken").last(), vcpus=pl.col("vcpu").n_unique()
    )
    return grouped.filter((pl.col("n") >= fills) & pl.col("taken") & (pl.col("vcpus") == 1))


# --- ITS301


@pytest.mark.parametrize("name", CLEAN)
def test_lpis_that_are_queued_and_never_filled_are_lost(name: str) -> None:
    analysis = sample(name)
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    lost = found(replace(analysis.observations, fills=gone), analysis, "ITS301")

    assert [finding.mechanism for finding in lost] == ["queued, and on no list"]
    assert lost[0].severity == Severity.ERROR
    assert lost[0].confidence == Confidence.CERTAIN
    assert lost[0].count > 5
    assert "waited" in lost[0].worst
    assert lost[0].measure > 0
    assert not found(analysis.observations, analysis, "ITS301")


@pytest.mark.corpus
@pytest.mark.parametrize("folder", ["faults/clean-73-b", "migrate-7.3"])
def test_lost_on_7_3_and_where_no_run_was_recorded(corpus: Path, folder: str) -> None:
    """In `migrate-7.3` no entry or exit was recorded: that the next queueing finds no owner shows it."""
    analysis = analysis_of(corpus / folder / "trace.dat")
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    lost = found(replace(analysis.observations, fills=gone), analysis, "ITS301")

    assert "queued, and on no list" in {finding.mechanism for finding in lost}
    assert not found(analysis.observations, analysis, "ITS301")


def test_the_next_queueing_shows_it_only_for_the_same_interrupt() -> None:
    """An LPI freed and mapped anew is another one: without runs, nothing shows then that the old one was lost."""
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    still = replace(obs, fills=gone, runs=runs_with(obs.runs, lambda _: False))
    others = still.queueings.with_columns(irq=pl.col("seq"))

    assert found(still, analysis, "ITS301")
    assert not found(replace(still, queueings=others), analysis, "ITS301")


def test_an_lpi_on_its_list_that_is_left_out_is_passed_over() -> None:
    analysis = sample("6.12-clean.dat")
    gone = without_chains(analysis, chains_of(analysis, 6), keep="last")
    lost = found(replace(analysis.observations, fills=gone), analysis, "ITS301")

    assert {finding.mechanism for finding in lost} == {"on its vCPU's list, and not put into a list register"}
    assert "vgic_flush_lr_state" in lost[0].suspect


@pytest.mark.parametrize("name", CLEAN)
def test_an_lpi_folded_back_pending_must_be_filled_again(name: str) -> None:
    analysis = sample(name)
    gone = without_chains(analysis, chains_of(analysis, 3), keep="first")
    lost = found(replace(analysis.observations, fills=gone), analysis, "ITS301")

    assert [finding.mechanism for finding in lost] == [
        "still pending when its list register was folded, and not put into one again"
    ]
    assert "was folded back still pending" in lost[0].message


def test_an_lpi_that_is_taken_and_never_queued_is_lost() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    firsts = analysis.lives.lives.filter((pl.col("outcome") == "delivered") & (pl.col("refills") == 0))
    some = every(5, firsts)
    fills = obs.fills.filter(~pl.col("seq").is_in(some["filled_seq"].implode()))
    queueings = obs.queueings.filter(~pl.col("seq").is_in(some["queued_seq"].implode()))
    gone = pl.col("queue_seq").is_in(some["queued_seq"].implode())
    injections = obs.injections.with_columns(queue_seq=pl.when(~gone).then("queue_seq"))
    changed = replace(obs, fills=fills, queueings=queueings, injections=injections)
    lost = found(changed, analysis, "ITS301")

    (taken,) = (f for f in lost if f.mechanism == "an injection was taken and never queued")
    assert taken.confidence == Confidence.LIKELY
    assert "GICv4" in taken.doubt
    assert taken.count > 2
    # Delivered all the same: the queueing was not recorded.
    assert not found(replace(changed, fills=obs.fills), analysis, "ITS301")
    # Nothing is ever queued: it is not recorded, or all of it is forwarded.
    nothing = replace(
        changed,
        queueings=obs.queueings.clear(),
        injections=obs.injections.with_columns(queue_seq=pl.lit(None, dtype=pl.UInt64)),
    )
    assert not found(nothing, analysis, "ITS301")


def enabled_while_pending(analysis: Analysis) -> pl.DataFrame:
    """Queueings that the reading of a configuration made of an LPI that was pending and disabled until then."""
    rows = analysis.observations.queueings.with_columns(
        before=pl.col("enabled").shift(1).over(LPI), was=pl.col("pending").shift(1).over(LPI)
    )
    return rows.filter(pl.col("pending") & pl.col("enabled") & ~pl.col("before") & pl.col("was"))


def test_an_lpi_enabled_while_pending_and_not_queued_is_lost() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    by_inv = enabled_while_pending(analysis).filter(~pl.col("cause").is_in(["msi", "int"]))
    first_fill = after(by_inv, analysis.lives.fills, LPI, chain="chain")
    gone = without_chains(analysis, first_fill.select("vm", "intid", "chain"))
    queueings = obs.queueings.join(by_inv, on="seq", how="anti")
    lost = found(replace(obs, fills=gone, queueings=queueings), analysis, "ITS301")

    assert by_inv.height > 2
    assert "enabled while pending, and never queued" in {finding.mechanism for finding in lost}
    one = next(f for f in lost if f.mechanism.startswith("enabled"))
    texts = analysis.history.verdicts.filter(pl.col("seq").is_in(list(one.blames)))["opcode"]
    assert set(texts) == {"INV"}


def test_a_flush_that_leaves_the_latch_set_is_told_apart() -> None:
    analysis = sample("6.12-double-delivery.dat")
    obs = analysis.observations
    (note,) = found(obs, analysis, "ITS301")

    assert (note.severity, note.intid) == (Severity.NOTE, 8193)
    assert note.mechanism == "EnableLPIs=0 took it off its list and left its latch set"
    # Nobody fires it again: the vCPU that MOVI gave it to enters the guest without it.
    silent = obs.queueings.filter(~pl.col("cause").is_in(["int", "msi"]) | (pl.col("target_vcpu") == 1))
    quiet = obs.fills.filter((pl.col("intid") != 8193) | (pl.col("vcpu") == 1))
    missed = found(replace(obs, queueings=silent, fills=quiet), analysis, "ITS301")

    assert Severity.WARNING in {f.severity for f in missed if f.mechanism == note.mechanism}
    # A kernel that clears the latch drops it for good, which is another rule's.
    cleared = replay(obs, kernel="6.1.0")
    findings, _ = check(obs, cleared, live(obs, cleared), gaps=analysis.gaps, damage=[])
    assert "ITS301" not in {finding.code for finding in findings}


def test_an_lpi_moved_on_its_way_is_not_this_rules() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    (lost,) = found(replace(obs, fills=gone), analysis, "ITS301")
    at = obs.queueings.filter("pending").select(
        "seq", "time_ns", "cpu", "pid", "vm", "irq", "intid", vcpu="target_vcpu"
    )
    moves = pl.concat([obs.retargets, at.with_columns(pl.col("seq") + 1).select(obs.retargets.columns)]).sort(
        "seq"
    )

    assert lost.count
    assert not found(replace(obs, fills=gone, retargets=moves), analysis, "ITS301")
    # On another vCPU's list still: it waits for its move.
    away = obs.queueings.with_columns(owner_vcpu=1 - pl.col("target_vcpu"))
    assert not found(replace(obs, fills=gone, queueings=away), analysis, "ITS301")


def test_one_loss_is_a_guess_where_losses_are_not_told() -> None:
    analysis = sample("6.12-clean.dat")
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    whole = replace(analysis.observations, fills=gone)
    (told,) = found(whole, analysis, "ITS301")
    last = without_chains(
        analysis, chains_of(analysis, 1).filter(pl.col("intid") == told.intid).tail(3).head(1)
    )
    (one,) = found(replace(whole, fills=last), analysis, "ITS301", losses_told=False)

    assert (one.count, one.severity, one.confidence) == (1, Severity.NOTE, Confidence.UNPROVEN)
    (many,) = found(whole, analysis, "ITS301", losses_told=False)
    assert (many.severity, many.confidence) == (Severity.WARNING, Confidence.LIKELY)


@pytest.mark.corpus
def test_a_stranded_lpi_is_neither_lost_nor_late(corpus: Path) -> None:
    analysis = analysis_of(corpus / "faults/L-F3b-612/trace.dat")

    assert not {"ITS301", "ITS304"} & {finding.code for finding in analysis.findings}


@pytest.mark.corpus
def test_lost_as_often_as_the_truth_has_it(corpus: Path) -> None:
    """The answer key names eight LPIs that a later queueing found pending and on no list; more were never found again."""
    analysis = analysis_of(corpus / "faults/F8-612/trace.dat")
    (lost,) = [finding for finding in analysis.findings if finding.code == "ITS301"]

    assert lost.count >= 8
    assert {8192, 8193, 8195, 8196, 8197, 8198} <= {subject.intid for subject in lost.subjects}


# --- ITS302


def refused(analysis: Analysis, result: int, rows: pl.Expr) -> Observations:
    obs = analysis.observations
    changed = pl.when(rows).then(pl.lit(result, dtype=pl.Int32)).otherwise("result")
    return replace(obs, injections=obs.injections.with_columns(result=changed))


def new_reasons(analysis: Analysis, obs: Observations) -> dict[str, Finding]:
    """ITS302 by mechanism, without what the capture had before."""
    old = {f.mechanism for f in found(analysis.observations, analysis, "ITS302")}
    return {f.mechanism: f for f in found(obs, analysis, "ITS302") if f.mechanism not in old}


@pytest.mark.parametrize(
    ("result", "mechanism", "confidence"),
    [
        (EBUSY, "refused as switched off although all is on", Confidence.LIKELY),
        (int(Fault.INT_UNMAPPED_INTERRUPT), "refused although its event is mapped", Confidence.CERTAIN),
    ],
)
@pytest.mark.parametrize("name", CLEAN)
def test_a_refusal_without_a_reason_is_kvms(
    name: str, result: int, mechanism: str, confidence: Confidence
) -> None:
    analysis = sample(name)
    live_msis = pl.col("from_command").is_null() & (pl.col("result") == 0)
    (finding,) = new_reasons(analysis, refused(analysis, result, live_msis)).values()

    assert (finding.mechanism, finding.severity, finding.confidence) == (
        mechanism,
        Severity.ERROR,
        confidence,
    )
    assert "vgic_its_resolve_lpi" in finding.suspect


def test_an_event_that_was_taken_down_is_expected_to_fire_once_and_blames_who_did_it() -> None:
    """Once, soon after, is a driver that unloads; again is a warning."""
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    (once,) = found(obs, analysis, "ITS302")
    texts = analysis.history.verdicts.filter(pl.col("seq").is_in(list(once.blames)))["opcode"]
    late = obs.injections.filter((pl.col("result") > 0) & pl.col("from_command").is_null())
    again = late.with_columns(pl.col("seq", "end_seq") + 1)
    (twice,) = found(
        replace(obs, injections=pl.concat([obs.injections, again]).sort("seq")), analysis, "ITS302"
    )

    assert (once.severity, once.mechanism) == (
        Severity.NOTE,
        "fired once while its event was being taken down",
    )
    assert set(texts) <= {"DISCARD", "MAPD"}
    assert texts.len()
    assert (twice.severity, twice.count) == (Severity.WARNING, 2 * once.count)


def test_what_was_mapped_before_the_capture_is_not_known() -> None:
    analysis = sample("6.12-clean.dat")
    obs = refused(analysis, int(Fault.INT_UNMAPPED_INTERRUPT), pl.col("device_id") == 0x77)
    one = obs.injections.filter(pl.col("from_command").is_null()).head(1)
    stranger = one.with_columns(
        device_id=pl.lit(0x77, dtype=pl.UInt32),
        result=pl.lit(int(Fault.INT_UNMAPPED_INTERRUPT), dtype=pl.Int32),
        queue_seq=pl.lit(None, dtype=pl.UInt64),
    )
    whole = replace(obs, injections=pl.concat([obs.injections, stranger]).sort("seq"))
    begun = replace(whole, itss=obs.itss.with_columns(complete=pl.lit(value=False)))

    (certain,) = new_reasons(analysis, whole).values()
    assert (certain.mechanism, certain.severity) == ("no event maps it", Severity.ERROR)
    (guess,) = new_reasons(analysis, begun).values()
    assert (guess.severity, guess.confidence) == (Severity.WARNING, Confidence.LIKELY)


def test_a_refusal_before_the_its_is_enabled_is_a_note() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    on = obs.register_writes.filter((pl.col("offset") == GITS_CTLR) & (pl.col("value") & 1 == 1)).row(
        0, named=True
    )
    early = obs.injections.head(1).with_columns(
        seq=pl.lit(on["seq"] - 1, dtype=pl.UInt64),
        end_seq=pl.lit(on["seq"], dtype=pl.UInt64),
        time_ns=pl.lit(on["time_ns"] - 1),
        result=pl.lit(EBUSY, dtype=pl.Int32),
        from_command=pl.lit(None, dtype=pl.UInt64),
    )
    (finding,) = new_reasons(
        analysis, replace(obs, injections=pl.concat([early, obs.injections]).sort("seq"))
    ).values()

    assert (finding.mechanism, finding.severity) == ("the ITS was not enabled yet", Severity.NOTE)


def test_an_msi_of_an_orphan_blames_the_mapc() -> None:
    analysis = sample("7.3-guest-mistakes.dat")
    obs = analysis.observations
    orphans = analysis.history.mappings.filter(pl.col("icid").is_null() & ~pl.col("assumed"))
    its = ["vm", "its", "device_id", "event_id"]
    as_msis = obs.injections.filter(pl.col("result") == int(Fault.INT_UNMAPPED_INTERRUPT)).with_columns(
        from_command=pl.lit(None, dtype=pl.UInt64)
    )
    as_msis = as_msis.join(orphans.select(its), on=its, how="semi")
    reasons = {f.mechanism: f for f in found(replace(obs, injections=as_msis), analysis, "ITS302")}
    finding = reasons["its event's collection is not mapped"]
    blamed = analysis.history.verdicts.filter(pl.col("seq").is_in(list(finding.blames)))

    assert set(blamed["opcode"]) == {"MAPC"}


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["torture-6.1", "torture-6.12", "torture-7.3"])
def test_who_switched_it_off_is_told(corpus: Path, name: str) -> None:
    analysis = analysis_of(corpus / name / "trace.dat")
    said = {f.mechanism: f.severity for f in analysis.findings if f.code == "ITS302"}

    assert said["its vCPU's EnableLPIs was cleared"] == Severity.WARNING
    assert said["the ITS was switched off, and its event mapped"] == Severity.WARNING


# --- ITS303


def test_two_causes_of_duplicates_are_two_findings() -> None:
    analysis = sample("6.12-duplicate-delivery.dat")
    obs = analysis.observations
    (kept,) = found(obs, analysis, "ITS303")
    blind = obs.fills.with_columns(latch_kept=pl.lit(None, dtype=pl.Boolean))
    (unseen,) = found(replace(obs, fills=blind), analysis, "ITS303")

    assert kept.confidence == Confidence.CERTAIN
    assert kept.mechanism == "a fill left pending_latch set"
    assert unseen.confidence == Confidence.LIKELY
    assert unseen.mechanism == "nothing that was seen made it pending again"
    assert "populate_lr_ret" in unseen.capture_next


def test_a_list_register_that_the_fold_does_not_show_accounts_for_anything() -> None:
    """The probe of the fold shows the first four: what became of the others is not known."""
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    refills = analysis.lives.fills.filter(pl.col("latched_by") == "fold")
    unseen = obs.fills.with_columns(state=pl.lit(None, dtype=pl.UInt8))

    assert refills.height > 10
    assert not found(replace(obs, fills=unseen), analysis, "ITS303")


def test_a_flush_does_not_reach_what_has_moved_on() -> None:
    """6.1: moved to vCPU 0 unseen, the LPI is on no list of vCPU 1 any more when that is flushed, and is delivered."""
    analysis = sample("6.1-clean.dat")
    obs = analysis.observations
    rows = analysis.lives.fills.filter(
        (pl.col("latched_by") == "queue") & (pl.col("vcpu") == 0) & pl.col("taken")
    )
    one = rows.row(-1, named=True)
    moved = obs.queueings.with_columns(
        target_vcpu=pl.when(pl.col("seq") == one["latched_seq"])
        .then(1)
        .otherwise("target_vcpu")
        .cast(pl.Int32)
    )
    flush = obs.vm_events.filter(pl.col("what") == "flush_lpis").head(1)
    for vcpu, expected in ((1, 0), (0, 1)):
        late = flush.with_columns(
            seq=pl.lit(one["seq"] - 1, dtype=pl.UInt64),
            time_ns=pl.lit(one["time_ns"] - 1),
            vcpu=pl.lit(vcpu, dtype=pl.Int32),
        )
        events = pl.concat([obs.vm_events, late]).sort("seq")
        queueings = moved if vcpu == 1 else obs.queueings
        doubled = found(replace(obs, vm_events=events, queueings=queueings), analysis, "ITS303")
        assert len(doubled) == expected, vcpu


# --- ITS304


def runs_with(runs: Runs, keep: Callable[[tuple[int, int]], bool], **why: int) -> Runs:
    """Runs of some vCPUs only; `why=` they left the guest each time."""
    changed = copy.copy(runs)
    changed.entries = {key: stamps for key, stamps in runs.entries.items() if keep(key)}
    changed.exits = {
        key: Stamps(stamps.seq, stamps.time_ns, np.full_like(stamps.why, why["why"]) if why else stamps.why)
        for key, stamps in runs.exits.items()
        if keep(key)
    }
    return changed


def slept_on(analysis: Analysis, *, vcpu_runs: bool = False) -> pl.DataFrame:
    """QUEUEINGS as they were if nobody had woken (or kicked) the vCPU: each at the begin of the stay that it ended."""
    obs = analysis.observations
    rows = obs.queueings.filter(pl.col("pending") & pl.col("enabled") & pl.col("owner_vcpu").is_null())
    rows = rows.join(
        obs.vcpus.select("vm", "pid", target_vcpu="vcpu"), on=["vm", "pid", "target_vcpu"], how="anti"
    )
    at = rows.select("vm", "seq", vcpu="target_vcpu")
    last, entry, leave = obs.runs.last_exit(at), obs.runs.next_entry(at), obs.runs.next_exit(at)
    rows = rows.with_columns(last, back=entry["entry_seq"], leave=leave["exit_seq"])
    if vcpu_runs:
        frame = obs.runs.frame().select("vm", "vcpu", "enter_seq", "enter_ns", leave="exit_seq")
        rows = rows.filter(pl.col("leave") < pl.col("back"))
        rows = rows.join(frame.rename({"vcpu": "target_vcpu"}), on=["vm", "target_vcpu", "leave"])
        rows = rows.with_columns(new_seq=pl.col("enter_seq") + 1, new_ns=pl.col("enter_ns") + 1)
    else:
        rows = rows.filter((pl.col("why") == WAITING) & (pl.col("back") < pl.col("leave")))
        rows = rows.with_columns(new_seq=pl.col("exit_seq") + 1, new_ns=pl.col("exit_ns") + 1)
    moved = obs.queueings.join(rows.select("seq", "new_seq", "new_ns"), on="seq", how="left")
    return (
        moved.with_columns(seq=pl.coalesce("new_seq", "seq"), time_ns=pl.coalesce("new_ns", "time_ns"))
        .select(obs.queueings.columns)
        .sort("seq")
    )


def test_late_as_the_truth_has_it() -> None:
    """The answer key counted 14 deliveries of more than 200 ms to a vCPU that nobody woke, 2.9 s at the most."""
    (late,) = [f for f in sample("6.12-late-delivery.dat").findings if f.code == "ITS304"]

    assert late.severity == Severity.WARNING
    assert late.confidence == Confidence.CERTAIN
    assert late.mechanism == "a vCPU that waited in WFI was not woken"
    assert late.count == 14
    assert late.vcpus == (1,)
    assert "2.90 s" in late.worst
    assert "kvm_vcpu_kick" in late.suspect


@pytest.mark.corpus
@pytest.mark.parametrize("folder", ["faults/F1-61", "faults/F9a-612", "faults/F5-73", "boot-6.12"])
def test_a_vcpu_that_nobody_wakes_is_late_on_every_kernel(corpus: Path, folder: str) -> None:
    """The vCPU's own timer is what wakes it: each LPI that came while it waited is moved to the begin of the wait."""
    analysis = analysis_of(corpus / folder / "trace.dat")
    slept = replace(analysis.observations, queueings=slept_on(analysis))
    (late,) = [f for f in found(slept, analysis, "ITS304") if f.severity == Severity.WARNING]

    assert late.mechanism == "a vCPU that waited in WFI was not woken"
    assert not found(analysis.observations, analysis, "ITS304")


def test_late_only_if_nothing_explains_it() -> None:
    analysis = sample("6.1-stale-target.dat")
    obs = replace(analysis.observations, queueings=slept_on(analysis))
    (late,) = found(obs, analysis, "ITS304")
    pid = obs.vcpus.filter(pl.col("vcpu") == late.vcpus[0])["pid"][0]

    assert late.severity == Severity.WARNING
    assert not found(analysis.observations, analysis, "ITS304")
    # Its own task queued it: the vCPU was out, and on its way back.
    own = obs.queueings.with_columns(pid=pl.lit(pid, dtype=pl.Int32))
    assert not found(replace(obs, queueings=own), analysis, "ITS304")
    # It left the guest for another reason than WFI: its thread was busy.
    trapped = runs_with(obs.runs, lambda _: True, why=0x24)
    assert not found(replace(obs, runs=trapped), analysis, "ITS304")
    # Records were lost.
    assert not found(obs, replace(analysis, gaps=gap_over(analysis)), "ITS304")
    # A number of the user's own.
    assert not found(obs, analysis, "ITS304", late_floor_ms=10_000)


def test_a_vm_that_was_saved_was_stopped() -> None:
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    ends = obs.fills.filter((pl.col("vcpu") == 1) & pl.col("pending"))
    saved = ends.select(
        pl.col("seq") - 1,
        "time_ns",
        "cpu",
        "pid",
        "vm",
        what=pl.lit("save_tables"),
        vcpu=None,
        its=None,
        intid=None,
    ).cast(obs.vm_events.schema)

    assert not found(
        replace(obs, vm_events=pl.concat([obs.vm_events, saved]).sort("seq")), analysis, "ITS304"
    )


def test_where_nothing_else_runs_it_is_a_note() -> None:
    """A VM of which nothing ran may have been paused. If all of it comes back together, it surely was."""
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    (note,) = found(replace(obs, runs=runs_with(obs.runs, lambda key: key[1] == 1)), analysis, "ITS304")

    assert (note.severity, note.confidence) == (Severity.NOTE, Confidence.UNPROVEN)
    together = copy.copy(obs.runs)
    together.entries = dict.fromkeys(obs.runs.entries, obs.runs.entries[0, 1])
    together.exits = dict.fromkeys(obs.runs.exits, obs.runs.exits[0, 1])
    later = together.entries[0, 1]
    together.entries[0, 0] = Stamps(later.seq + 1, later.time_ns + 1000)
    assert not found(replace(obs, runs=together), analysis, "ITS304")


def test_one_late_delivery_is_told_from_a_stall_of_the_machine() -> None:
    """One that is very late is enough where the others went on running; a machine that stood still explains it."""
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    (all_of_them,) = (finding for finding in analysis.findings if finding.code == "ITS304")
    begin, end = (
        next(one.seq for one in all_of_them.evidence if one.event == event and one.seq is not None)
        for event in ("queue_irq", "kvm_entry")
    )
    alone = replace(
        obs,
        queueings=obs.queueings.filter(
            (pl.col("target_vcpu") != 1) | (pl.col("cause") == "msi") | (pl.col("seq") == begin)
        ).filter((pl.col("target_vcpu") != 1) | (pl.col("seq") >= begin) & (pl.col("seq") < end)),
    )
    (one,) = found(alone, analysis, "ITS304")
    assert one.severity == Severity.WARNING
    still = copy.copy(obs.runs)
    still.entries = {key: without(stamps, begin + 9, end - 9) for key, stamps in obs.runs.entries.items()}
    still.exits = {key: without(stamps, begin + 9, end - 9) for key, stamps in obs.runs.exits.items()}
    (stalled,) = found(replace(alone, runs=still), analysis, "ITS304")

    assert (stalled.severity, stalled.confidence) == (Severity.NOTE, Confidence.UNPROVEN)
    assert "too seldom to tell it from a stall" in stalled.doubt


def without(stamps: Stamps, begin: int, end: int) -> Stamps:
    keep = (stamps.seq < np.uint64(begin)) | (stamps.seq > np.uint64(end))
    return Stamps(stamps.seq[keep], stamps.time_ns[keep], stamps.why[keep] if len(stamps.why) else stamps.why)


def test_without_reasons_of_exits_it_is_a_note() -> None:
    """A capture whose kvm_exit has no esr_ec tells neither that the vCPU waited nor how the host schedules."""
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    mute = copy.copy(obs.runs)
    mute.exits = {key: Stamps(stamps.seq, stamps.time_ns) for key, stamps in obs.runs.exits.items()}
    (note,) = found(replace(obs, runs=mute), analysis, "ITS304")

    assert (note.severity, note.confidence) == (Severity.NOTE, Confidence.UNPROVEN)
    assert note.mechanism == "a vCPU that was out of the guest did not come back"


def test_a_vcpu_that_is_not_kicked_is_late() -> None:
    analysis = sample("6.12-clean.dat")
    late = replace(analysis.observations, queueings=slept_on(analysis, vcpu_runs=True))
    low: dict[str, Any] = {"late_factor": 0.05, "late_floor_ms": 0.5}
    (kick,) = found(late, analysis, "ITS304", **low)
    usual = sum(f.count for f in found(analysis.observations, analysis, "ITS304", **low))

    assert kick.mechanism == "a vCPU that ran in the guest was not kicked"
    assert kick.count > usual
    assert not found(late, analysis, "ITS304")


def test_an_lpi_that_never_comes_before_the_end_is_late_too() -> None:
    """The capture ends while the vCPU still waits, with the LPI that it gets 2.9 s late in the whole one."""
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    (whole,) = (finding for finding in analysis.findings if finding.code == "ITS304")
    cut = next(one.seq for one in whole.evidence if one.event == "populate_lr" and one.seq is not None)
    frames: dict[str, Any] = {
        name: frame.filter(pl.col("seq") < cut)
        for name in obs.__dataclass_fields__
        if isinstance(frame := getattr(obs, name), pl.DataFrame) and "seq" in frame.columns
    }
    ended = copy.copy(obs.runs)
    ended.entries = {key: upto(stamps, cut) for key, stamps in obs.runs.entries.items()}
    ended.exits = {key: upto(stamps, cut) for key, stamps in obs.runs.exits.items()}
    (late,) = found(replace(obs, runs=ended, **frames), analysis, "ITS304")

    assert late.count < whole.count
    assert "had not entered the guest when the capture or the VM ended" in late.message


def upto(stamps: Stamps, cut: int) -> Stamps:
    keep = stamps.seq < np.uint64(cut)
    return Stamps(stamps.seq[keep], stamps.time_ns[keep], stamps.why[keep] if len(stamps.why) else stamps.why)


# --- ITS308


def test_a_fill_that_says_disabled_is_certain() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    seq = obs.fills.filter("pending")["seq"][20]
    one = pl.col("seq") == seq
    off = obs.fills.with_columns(enabled=pl.when(one).then(pl.lit(value=False)).otherwise("enabled"))
    (finding,) = found(replace(obs, fills=off), analysis, "ITS308")

    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 1)
    assert finding.mechanism == "filled though disabled"
    # Lost records do not change what the fill itself says.
    assert found(replace(obs, fills=off), replace(analysis, gaps=gap_over(analysis)), "ITS308")
    # An active LPI is filled to let the guest end it.
    active = off.with_columns(active=pl.when(one).then(pl.lit(value=True)).otherwise("active"))
    assert not found(replace(obs, fills=active), analysis, "ITS308")
    assert not found(obs, analysis, "ITS308")


@pytest.mark.parametrize(
    ("says", "mechanism"),
    [
        (None, "filled after its configuration was read as disabled"),
        (True, "enabled again without its configuration being read"),
    ],
)
@pytest.mark.parametrize("name", CLEAN)
def test_what_kvm_read_counts_where_the_fill_does_not_say_it(name: str, mechanism: str, says: object) -> None:
    """An LPI is disabled while it is pending, and the reading that enables it again is taken out."""
    analysis = sample(name)
    obs = analysis.observations
    fills = obs.fills.with_columns(enabled=pl.lit(says, dtype=pl.Boolean))
    again = enabled_while_pending(analysis)
    near = again.join(obs.configs.select("vm", "intid", at="seq"), on=LPI).filter(
        (pl.col("at") > pl.col("seq")) & (pl.col("at") < pl.col("seq") + 4)
    )
    queueings = obs.queueings.join(again, on="seq", how="anti")
    configs = obs.configs.filter(~pl.col("seq").is_in(near["at"].implode()))
    found_off = found(replace(obs, fills=fills, queueings=queueings, configs=configs), analysis, "ITS308")

    assert [finding.mechanism for finding in found_off] == [mechanism]
    assert found_off[0].confidence == Confidence.LIKELY
    assert not found(replace(obs, fills=fills), analysis, "ITS308")


# --- ITS309


def stormy(analysis: Analysis, per_fill: int, every_ns: int = 4_000_000) -> Observations:
    """An LPI of vCPU 0 that is filled every 4 ms for three seconds, `per_fill` MSIs each time."""
    obs = analysis.observations
    pattern = obs.fills.filter((pl.col("vcpu") == 0) & pl.col("pending") & (pl.col("state") == 0)).tail(1)
    intid = pattern["intid"][0]
    begin, base = int(np.quantile(obs.runs.entries[0, 0].time_ns, 0.1)), 10_000_000
    number = pl.int_range(3_000_000_000 // every_ns, eager=True)

    def many(frame: pl.DataFrame, **columns: Any) -> pl.DataFrame:
        return (
            pl.DataFrame({"n": number}).join(frame, how="cross").with_columns(**columns).select(frame.columns)
        )

    step = pl.col("n") * every_ns + begin
    seq = (pl.col("n") * 100 + base).cast(pl.UInt64)
    fills = many(
        pattern, seq=seq + 50, time_ns=step + 2_000, end_seq=seq + 90, end_ns=step + every_ns - 1_000
    )
    queue = obs.queueings.filter((pl.col("intid") == intid) & pl.col("pending")).tail(1)
    msi = obs.injections.filter((pl.col("intid") == intid) & pl.col("from_command").is_null()).tail(1)
    queueings, injections = [obs.queueings], [obs.injections]
    for one in range(per_fill):
        queueings.append(
            many(queue, seq=seq + 10 * one + 2, time_ns=step + one, target_vcpu=pl.lit(0, pl.Int32))
        )
        injections.append(
            many(
                msi,
                seq=seq + 10 * one + 1,
                end_seq=seq + 10 * one + 3,
                queue_seq=seq + 10 * one + 2,
                time_ns=step + one,
            )
        )
    return replace(
        obs,
        fills=pl.concat([obs.fills, fills]).sort("seq"),
        queueings=pl.concat(queueings).sort("seq"),
        injections=pl.concat(injections).sort("seq"),
    )


def test_msis_that_come_faster_than_they_are_taken_are_a_storm() -> None:
    analysis = sample("6.12-clean.dat")
    storm = stormy(analysis, 2)
    (finding,) = found(storm, analysis, "ITS309")

    assert finding.severity == Severity.WARNING
    assert finding.vcpus == (0,)
    assert 240 <= finding.measure <= 260
    # As fast as they are taken, on a vCPU that computes all the while: it keeps up.
    assert not found(stormy(analysis, 1), analysis, "ITS309")
    # It waits in WFI in between: it has nothing else to do.
    idle = runs_with(storm.runs, lambda _: True, why=WAITING)
    assert not found(replace(storm, runs=idle), analysis, "ITS309")
    # Too few a second.
    assert not found(storm, analysis, "ITS309", storm_rate=1000)
    assert not found(stormy(analysis, 2, every_ns=40_000_000), analysis, "ITS309")


def test_a_storm_that_no_msi_makes_is_one_too() -> None:
    """ITS303 at its worst: nothing was injected."""
    (finding,) = found(stormy(sample("6.12-clean.dat"), 0), sample("6.12-clean.dat"), "ITS309")

    assert finding.count > 600
