"""ITS304: queued in time, delivered late, though its vCPU could run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from itstrace.findings import Confidence, Finding, Harm, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.observe.runs import INTERRUPTED, WAITING
from itstrace.rules._waiting import queued, stops
from itstrace.rules.case import LPI, NEVER, VCPU, Case, first_some
from itstrace.rules.registry import Setting, rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Interrupted stays that a yardstick needs.
_ENOUGH = 50
#: The scheduling delay of a slow host, where the capture does not show its own.
_ASSUMED_NS = 50e6
#: Late deliveries that make a series; fewer may be a stall of the machine, unless they are very late.
_SERIES = 3
#: So much later than what counts as late, and at least this, is very late: one such delivery is enough, if the
#: machine did not stall meanwhile: no silence of all vCPUs takes up this share of it.
_VERY, _VERY_NS, _SILENT = 4, 400e6, 0.5
#: vCPUs that enter the guest again within this share of the wait of each other were stopped together.
_TOGETHER = 0.1


@dataclass(frozen=True, slots=True)
class _Where:
    """What the vCPU was doing when the LPI was queued for it, and what KVM must have done."""

    mechanism: str
    did: str
    then: str
    suspect: tuple[str, ...]


_WHERE: Final[dict[str, _Where]] = {
    "waiting": _Where(
        "a vCPU that waited in WFI was not woken",
        "waited in WFI",
        "entered the guest",
        ("vgic_queue_irq_unlock", "kvm_vcpu_kick", "kvm_vcpu_wake_up", "kvm_arch_vcpu_runnable"),
    ),
    "out": _Where(
        "a vCPU that was out of the guest did not come back",
        "was out of the guest",
        "entered it",
        ("vgic_queue_irq_unlock", "kvm_vcpu_kick", "kvm_vcpu_wake_up"),
    ),
    "running": _Where(
        "a vCPU that ran in the guest was not kicked",
        "was in the guest",
        "left it",
        ("vgic_queue_irq_unlock", "kvm_vcpu_kick"),
    ),
}


@rule(
    "ITS304",
    kind=Kind.LIFE,
    severity=Severity.WARNING,
    claim="an interrupt came late",
    harm=Harm.LATE,
    needs=("QUEUEINGS", "LIST_REGISTERS", "RUNS"),
    suspect=("vgic_queue_irq_unlock", "kvm_vcpu_kick"),
    guest_sees="an interrupt that comes late: a slow device, or a timeout",
    settings=(
        Setting(
            "late-factor",
            5,
            "how many times the scheduling delay of the capture (99 of 100 interrupted vCPUs are back in the guest by then) "
            "a delivery must take to be late",
        ),
        Setting("late-floor-ms", 50, "milliseconds that a delivery must take at least to be late"),
    ),
)
def late_delivery(case: Case) -> Iterator[Finding]:
    """An LPI was queued for a vCPU that could run, and far too much time passed until the vCPU took it along.

    ## What it finds
    An LPI that was queued, pending and enabled, by another task than its vCPU's, and the vCPU was then either
    in the guest without leaving it, or waiting in WFI without entering it, far longer than the scheduling of the
    capture's own host explains. KVM kicks a vCPU that runs and wakes one that waits as soon as it queues an
    LPI for it. The yardstick is how soon vCPUs that were only interrupted by the host came back into the guest;
    a delivery is late beyond `late-factor` times what 99 of 100 of those took, and beyond `late-floor-ms`.

    ## Why it matters
    The device's interrupt waits for the vCPU's next timer, or for whatever else wakes it: I/O takes milliseconds
    to seconds longer than the hardware does, and drivers time out.

    ## Where it comes from
    A kick or a wake-up that is not sent after queueing (vgic_queue_irq_unlock, kvm_vcpu_kick), or is sent to
    another vCPU; a vCPU that is taken for not runnable although an interrupt is pending
    (kvm_arch_vcpu_runnable).

    ## When it is wrong
    A machine that stalls, a VM that is paused or a host that is short of CPUs makes everything late. Therefore
    vCPUs that were out of the guest for another reason than WFI are not counted, nor are spans in which the whole
    VM was out and came back together, or was saved. One or two late deliveries are a note only, unless they are
    very late; so are those in a VM of which nothing else ran meanwhile. A guest that masks its interrupts
    (ICC_PMR_EL1) while it waits in WFI is not woken by them: an LPI that it then leaves pending as long again is
    not counted. An LPI that the vCPU entered without is lost (ITS301), one that was moved is stranded (ITS403).

    ## What to do
    Record `kvm:kvm_vcpu_wakeup` and `sched:sched_waking` beside the rest: was the vCPU's task woken when the
    LPI was queued? If not, look at what vgic_queue_irq_unlock does after list_add_tail. If so, look for what had the
    CPU (`sched:sched_switch`).
    """
    floor = case.setting("late-floor-ms") * 1e6
    slow = _slow(case, floor)
    if slow.is_empty():
        return
    norm = _scheduling_ns(case)
    limit = max(floor, case.setting("late-factor") * (_ASSUMED_NS if norm is None else norm))
    late = _late(case, slow.filter(pl.col("delay_ns") > limit))
    if late.is_empty():
        return
    series = _series(case, late.filter("others"), limit)
    norms = _Norms(norm, limit, _typical(case))
    for (_, intid, _), rows in late.group_by([*LPI, "where"], maintain_order=True):
        yield _finding(case, int(str(intid)), rows, norms, series=series)


@dataclass(frozen=True, slots=True)
class _Norms:
    """What the capture shows of its own: the scheduling delay, what counts as late, and the usual delivery."""

    scheduling_ns: float | None
    limit_ns: float
    usual_ns: float | None


def _finding(case: Case, intid: int, rows: pl.DataFrame, norms: _Norms, *, series: bool) -> Finding:
    worst = rows.sort("delay_ns").row(-1, named=True)
    where = _WHERE[worst["where"]]
    proven = series and norms.scheduling_ns is not None and bool(rows["others"].any())
    known = worst["where"] != "out"
    details: dict[str, Any] = {}
    if not (proven and known):
        details = {
            "confidence": Confidence.LIKELY if proven else Confidence.UNPROVEN,
            "doubt": _doubt(norms, rows, series=series, known=known),
            "capture_next": "kvm:kvm_vcpu_wakeup, sched:sched_waking, sched:sched_switch",
        }
    waited = duration(worst["delay_ns"])
    then = (
        f"had not {where.then} when the capture or the VM ended {waited} later"
        if worst["open"]
        else f"{where.then} only {waited} later"
    )
    meanwhile = (
        f", while the other vCPUs of its VM had {worst['stays']} stays in the guest" if worst["stays"] else ""
    )
    return case.finding(
        f"LPI {intid} was queued at {seconds(worst['time_ns'])} for vCPU {worst['vcpu']}, which {where.did}, and {then}"
        f"{meanwhile} ({times(rows.height)}). {_yardstick(norms)}",
        severity=Severity.WARNING if proven else Severity.NOTE,
        vcpus=tuple(sorted(rows["vcpu"].unique())),
        **case.about(rows, end_ns=rows["ended_ns"].max()),
        seqs=first_some([worst["left_seq"], worst["seq"], worst["ended"], worst["next_fill"]]),
        mechanism=where.mechanism,
        suspect=where.suspect,
        worst=f"LPI {intid} on vCPU {worst['vcpu']} waited {duration(worst['delay_ns'])} from {seconds(worst['time_ns'])}",
        measure=float(worst["delay_ns"]),
        **details,
    )


def _yardstick(norms: _Norms) -> str:
    usual = f"; half of the deliveries took less than {duration(norms.usual_ns)}" if norms.usual_ns else ""
    if norms.scheduling_ns is None:
        return f"More than {duration(norms.limit_ns)} counts as late here{usual}."
    return (
        f"In this capture 99 of 100 vCPUs that the host interrupted were back within {duration(norms.scheduling_ns)}, so "
        f"that more than {duration(norms.limit_ns)} counts as late{usual}."
    )


def _doubt(norms: _Norms, rows: pl.DataFrame, *, series: bool, known: bool) -> str:
    if norms.scheduling_ns is None:
        return "The capture does not show how long its host's scheduling takes."
    if not rows["others"].any():
        return "Nothing else of the VM ran meanwhile: it may have been paused, or the machine stalled."
    if not series:
        return "It happened too seldom to tell it from a stall of the machine."
    return "Why the vCPU had left the guest was not recorded." if not known else ""


# --- yardsticks


def _series(case: Case, late: pl.DataFrame, limit: float) -> bool:
    """Whether these are too many, or one of them too late, for a stall of the machine.

    Those that overlap may have one stall for a cause, and count once.
    """
    spans = late.select("seq", "time_ns", "ended", "ended_ns", "delay_ns").sort("time_ns")
    apart = spans.filter(pl.col("time_ns") > pl.col("ended_ns").cum_max().shift(1).fill_null(-1))
    if apart.height >= _SERIES:
        return True
    very = spans.filter(pl.col("delay_ns") > max(_VERY * limit, _VERY_NS))
    runs = case.observations.runs
    return any(
        runs.longest_silence_ns(row["seq"], row["ended"], row["time_ns"], row["ended_ns"])
        < _SILENT * row["delay_ns"]
        for row in very.iter_rows(named=True)
    )


def _scheduling_ns(case: Case) -> float | None:
    """How long the host's scheduling keeps a vCPU out of the guest: 99 of 100 interrupted vCPUs are back by then."""
    away = case.observations.runs.away_ns(INTERRUPTED)
    return float(np.quantile(away, 0.99)) if len(away) >= _ENOUGH else None


def _typical(case: Case) -> float | None:
    """The median time from queueing to list register."""
    lives = case.lives.lives
    spans = lives.select(pl.col("filled_ns") - pl.col("queued_ns")).drop_nulls().to_series()
    return float(spans.median()) if spans.len() else None  # type: ignore[arg-type]


# --- what is late


def _slow(case: Case, floor: float) -> pl.DataFrame:
    """Queueings whose vCPU did not do for longer than `floor` what it must do then.

    Shape: rows of QUEUEINGS with vcpu, running (it was in the guest), why and left_seq (of its last exit), ended (the exit or
        entry that ended it), ended_ns, delay_ns, open (nothing ended it), next_fill.
    """
    obs = case.observations
    rows = _others_queueings(case)
    rows = after(rows, obs.fills, LPI, next_fill="seq", next_fill_ns="time_ns")
    exits, entries = obs.runs.next_exit(rows), obs.runs.next_entry(rows)
    back = obs.runs.next_entry(rows.select(*VCPU, exits["exit_seq"].alias("seq")))["entry_seq"]
    left = obs.runs.last_exit(rows)
    running = exits["exit_seq"].fill_null(NEVER) < entries["entry_seq"].fill_null(NEVER)
    rows = rows.with_columns(
        running=running,
        why=left["why"],
        left_seq=left["exit_seq"],
        ended=pl.when(running).then(exits["exit_seq"]).otherwise(entries["entry_seq"]),
        ended_ns=pl.when(running).then(exits["exit_ns"]).otherwise(entries["entry_ns"]),
        # At this entry at the latest it must have been filled.
        due=pl.when(running).then(back).otherwise(entries["entry_seq"]),
    )
    rows = rows.with_columns(open=pl.col("ended").is_null())
    rows = rows.with_columns(ended_ns=pl.coalesce("ended_ns", _over_ns(case, rows)))
    rows = rows.with_columns(delay_ns=pl.col("ended_ns") - pl.col("time_ns"))
    return rows.filter(
        (pl.col("delay_ns") > floor)
        & (pl.col("next_fill").fill_null(NEVER) <= pl.col("due").fill_null(NEVER))
    )


def _late(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Deliveries whose vCPU was not kicked or woken for too long.

    Shape: `rows` of `_slow` with where (running, waiting, out), stays (of other vCPUs in the guest meanwhile), others.
    """
    if rows.is_empty():
        return rows
    obs = case.observations
    rows = rows.with_columns(
        where=pl.when("running")
        .then(pl.lit("running"))
        .when(pl.col("why") == WAITING)
        .then(pl.lit("waiting"))
        .when(pl.col("why").is_null() & pl.col("left_seq").is_not_null())
        .then(pl.lit("out"))
    ).drop_nulls("where")
    # Where nothing ended it, whether it was in the guest is not known.
    rows = rows.filter(~pl.col("open") | (pl.col("where") == "waiting"))
    # Where nothing ended it, the VM's own end is no reason.
    gone = obs.vms.select("vm", _gone=pl.col("to_seq").fill_null(NEVER) - 1)
    rows = rows.with_columns(stop=stops(case, rows)).join(gone, on="vm", how="left", maintain_order="left")
    rows = rows.filter(pl.coalesce("ended", "_gone") < pl.col("stop")).drop("_gone")
    rows = before(rows, obs.fills, LPI, last_fill="seq")
    rows = rows.sort("seq").unique([*LPI, "last_fill"], keep="first", maintain_order=True)
    stays = obs.runs.others_stays(rows.select(*VCPU, "seq", until="ended"))
    rows = rows.with_columns(stays=stays, others=stays > 0)
    rows = case.without_lost(_not_masked(case, rows), "time_ns", "ended_ns")
    return _not_stopped(case, rows)


def _others_queueings(case: Case) -> pl.DataFrame:
    """Queueings by another task than the vCPU's own, which is out of the guest then and on its way back."""
    rows = queued(case)
    own = case.observations.vcpus.select(*VCPU, "pid").unique()
    return rows.join(own, on=[*VCPU, "pid"], how="anti", maintain_order="left").sort("seq")


def _over_ns(case: Case, rows: pl.DataFrame) -> pl.Series:
    """The end of each row's VM, or of the capture."""
    ends = {vm: end for vm, end in case.history.vm_ends.items() if end is not None}
    last = case.end_ns if case.end_ns is not None else rows["time_ns"].max()
    return rows["vm"].cast(pl.Int64).replace_strict(ends, default=last, return_dtype=pl.Int64)


def _not_masked(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows whose LPI the guest took soon: one that it leaves pending as long again was masked, and wakes nobody."""
    taken = case.lives.fills.filter("taken").select(*LPI, "seq", taken_ns="end_ns")
    at = rows.rename({"seq": "_seq"}).with_columns(seq=pl.col("next_fill").fill_null(NEVER) - 1)
    at = after(at, taken, LPI, taken_ns="taken_ns").with_columns(seq="_seq").drop("_seq").sort("seq")
    waited_on = (pl.col("taken_ns") - pl.col("next_fill_ns")).fill_null(0)
    return at.filter((pl.col("where") == "running") | (waited_on < pl.col("delay_ns")))


def _not_stopped(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows in which the VM was not stopped: saved, restored, or all of it out of the guest and back together."""
    obs = case.observations
    stopped = obs.vm_events.filter(pl.col("what").is_in(["save_tables", "save_pending", "restore_tables"]))
    rows = after(rows, stopped, ["vm"], saved="seq").sort("seq")
    rows = rows.filter(pl.col("saved").is_null() | (pl.col("saved") > pl.col("ended").fill_null(0)))
    together = _came_back_together(case, rows)
    return rows.filter(pl.col("others") | pl.col("open") | (pl.col("where") == "running") | ~together)


def _came_back_together(case: Case, rows: pl.DataFrame) -> pl.Series:
    """Whether all other vCPUs of a row's VM that ever entered the guest again did so soon after the row's own."""
    ended = rows["ended"].fill_null(NEVER).to_numpy()
    soon_ns = rows["ended_ns"].to_numpy() + _TOGETHER * rows["delay_ns"].to_numpy()
    back, late = np.zeros(len(ended), np.bool_), np.zeros(len(ended), np.bool_)
    for (vm, vcpu), entries in case.observations.runs.entries.items():
        mine = ((rows["vm"] == vm) & (rows["vcpu"] != vcpu)).to_numpy()
        following = entries.after(ended)
        # A vCPU that is powered off stays out.
        came = mine & (following != NEVER)
        in_time = entries.time_of(following) < soon_ns
        back |= came & in_time
        late |= came & ~in_time
    return pl.Series("together", back & ~late)
