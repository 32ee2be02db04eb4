"""ITS312: active in the kernel, with no list register that the guest could end it through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Confidence, Finding, Harm, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules._pending import STILL_ACTIVE
from itstrace.rules.case import LPI, NEVER, VCPU, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Fewer list registers than any GIC has that KVM runs on; with that many in use an active LPI may have to wait.
_LIST_REGISTERS = 4


@rule(
    "ITS312",
    kind=Kind.LIFE,
    severity=Severity.ERROR,
    claim="an interrupt is stuck active, and never comes again",
    harm=Harm.GONE,
    needs=("QUEUEINGS", "LIST_REGISTERS"),
    suspect=("vgic_flush_pending_lpis", "vgic_v3_fold_lr_state", "vgic_prune_ap_list"),
    guest_sees="an interrupt that never comes again, until the VM is reset",
    leads_to=("ITS301",),
)
def stuck_active(case: Case) -> Iterator[Finding]:
    """An LPI stays active in KVM although the guest cannot end it: it is never delivered again.

    ## What it finds
    An LPI that KVM holds for active (irq->active) without a reason: it is on no vCPU's list, or its list register had
    been read back inactive. Most often the guest had taken it and not yet ended it when its vCPU left; then the vCPU
    entered the guest again without it in a list register, so that the guest's end of interrupt went nowhere.

    ## Why it matters
    An active interrupt cannot be taken. KVM puts the LPI into a list register as active, or active and pending, again and
    again; the guest, which has ended it long ago, never does so again. The LPI is dead until the VM is reset.

    ## Where it comes from
    vgic_flush_pending_lpis (EnableLPIs=0) takes LPIs off the vCPU's ap_list, also the active ones, and leaves irq->active
    set. 7.3 keeps no active state of LPIs.

    ## When it is wrong
    An LPI that the guest is handling is active for as long as that takes, in a list register at each entry: that is not
    reported, however long. A capture that begins in the middle may lack the fold that made it active; only LPIs that are
    active on no list are reported then.

    ## What to do
    In the guest: clear EnableLPIs only while no handler of an LPI runs. In KVM: clear irq->active when the LPI is taken
    off the list, or keep no active state of LPIs at all.
    """
    for row in _stuck(case).iter_rows(named=True):
        since = _since(case, row)
        known = row["wrong"] != "silent"
        ends = case.observations.vms.filter(pl.col("vm") == row["vm"])["end_ns"]
        until = since["ended_ns"] or ends.item() or case.end_ns or row["time_ns"]
        begin = row["fold_ns"] or row["time_ns"]
        yield case.finding(
            f"LPI {row['intid']} {_why(row)}{_then(since)}.",
            mechanism=_mechanism(row),
            confidence=Confidence.CERTAIN if known else Confidence.LIKELY,
            doubt=""
            if known
            else "No MSI came for it since, so that KVM was not seen to hold it for active.",
            capture_next="" if known else "vgic-state (debugfs) of the host: is the LPI's A flag 1?",
            vcpus=tuple(sorted({v for v in (row["vcpu"], row["fold_vcpu"]) if v is not None})),
            worst=f"LPI {row['intid']}, for {duration(until - begin)} from {seconds(begin)} on",
            measure=float(until - begin),
            **case.about(pl.DataFrame([row]), time_ns=begin, end_ns=until, count=max(1, len(since["seqs"]))),
            seqs=first_some(
                [row["fill"], row["fold"], row["flush"], row["entry"], row["seq"], *since["seqs"][:4]]
            ),
        )


def _mechanism(row: dict[str, Any]) -> str:
    if row["flush"] is not None:
        return "taken off the list by EnableLPIs=0 while active"
    if row["fold"] is not None:
        return "left out of the list registers while active"
    return "active on no list" if row["wrong"] == "no list" else "active after it was read back inactive"


def _why(row: dict[str, Any]) -> str:
    held = f"KVM held it for active at {seconds(row['time_ns'])}"
    if row["fold"] is None:
        if row["wrong"] == "no list":
            return f"was on no vCPU's list, but {held}"
        return f"was read back inactive from its list register at {seconds(row['last_ns'])}, but {held}"
    flushed = (
        f": EnableLPIs of the vCPU went to 0 at {seconds(row['flush_ns'])}, and vgic_flush_pending_lpis took it off the list"
        if row["flush"] is not None
        else ""
    )
    after_all = "" if row["wrong"] == "silent" else f"; {held}"
    return (
        f"was active when vCPU {row['fold_vcpu']} left the guest ({seconds(row['fold_ns'])}), and the vCPU entered it at "
        f"{seconds(row['entry_ns'])} without it{flushed}. The guest cannot end it any more{after_all}"
    )


def _since(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """Fills with the LPI active from a record on, and when it came free again (None: never)."""
    fills = case.observations.fills
    rows = fills.filter(
        (pl.col("vm") == row["vm"]) & (pl.col("intid") == row["intid"]) & (pl.col("seq") >= row["seq"])
    )
    free = rows.filter(~pl.col("active") | pl.col("state").is_in([0, 1]))
    if free.height:
        rows = rows.filter(pl.col("seq") <= free["seq"][0])
    ended = free.select(pl.coalesce("end_ns", "time_ns")).to_series()
    return {"seqs": rows.filter("active")["seq"].to_list(), "ended_ns": ended[0] if free.height else None}


def _then(since: dict[str, Any]) -> str:
    count = len(since["seqs"])
    filled = f", and put it into a list register as active {times(count)}" if count else ""
    ended = since["ended_ns"]
    return (
        f"{filled}; it came free at {seconds(ended)}"
        if ended is not None
        else f"{filled}; it was never delivered again"
    )


def _stuck(case: Case) -> pl.DataFrame:
    """The first record of each LPI that shows it active without a reason, and what it follows from.

    Shape: vm, intid, seq, time_ns, vcpu, wrong (how it shows: no list, idle, silent), last_ns (of the fold before); of the
        fold after which the vCPU left it behind: fold, fold_ns, fold_vcpu, fill, entry, entry_ns; flush, flush_ns.
    """
    obs = case.observations
    claims = _claims(case)
    if claims.is_empty():
        return (
            claims  # A kernel that keeps no active state of LPIs, or guests that never left within a handler.
        )
    behind = _left_behind(case)
    over = pl.col("last") < pl.col("seq")
    idle = (over & pl.col("last_state").is_in([0, 1])).fill_null(value=False)
    wrong = (
        pl.when(~pl.col("on_list")).then(pl.lit("no list")).when(idle).then(pl.lit("idle")).otherwise(None)
    )
    rows = claims.with_columns(wrong=wrong).drop_nulls("wrong")
    rows = before(
        rows,
        behind,
        LPI,
        fold="seq",
        fold_ns="time_ns",
        fold_vcpu="vcpu",
        fill="fill",
        entry="entry",
        entry_ns="entry_ns",
    )
    # What was left behind and then taken out of a list register again is another story.
    stale = pl.col("fold") < pl.col("last")
    of_fold = ("fold", "fold_ns", "fold_vcpu", "fill", "entry", "entry_ns")
    rows = rows.with_columns(pl.when(~stale.fill_null(value=True)).then(pl.col(c)).alias(c) for c in of_fold)
    rows = pl.concat([rows, _silent(case, behind)], how="diagonal_relaxed").sort("seq")
    rows = rows.unique(LPI, keep="first", maintain_order=True)
    flushes = obs.vm_events.filter(pl.col("what") == "flush_lpis").select(
        "vm", "seq", "time_ns", fold_vcpu="vcpu"
    )
    at_entry = rows.with_columns(_seq="seq", seq=pl.col("entry").fill_null(0))
    rows = before(at_entry, flushes, ["vm", "fold_vcpu"], flush="seq", flush_ns="time_ns").with_columns(
        seq="_seq"
    )
    meant = pl.col("flush") > pl.col("fill")
    rows = rows.with_columns(pl.when(meant).then(pl.col(c)).alias(c) for c in ("flush", "flush_ns"))
    rows = rows.with_columns(_from=pl.coalesce("fold_ns", "last_ns", "time_ns"))
    return case.without_lost(rows.sort("seq"), "_from", "time_ns")


def _claims(case: Case) -> pl.DataFrame:
    """Records in which KVM holds an LPI for active, and how the fill before each ended.

    Shape: vm, intid, seq, time_ns, vcpu, on_list; last, last_ns, last_state (null: not folded yet).
    """
    obs = case.observations
    queued = obs.queueings.filter("active").select(
        *LPI,
        "seq",
        "time_ns",
        vcpu=pl.coalesce("owner_vcpu", "target_vcpu"),
        on_list=pl.col("owner_vcpu").is_not_null(),
    )
    filled = obs.fills.filter("active").select(*LPI, "seq", "time_ns", "vcpu", on_list=pl.lit(value=True))
    rows = pl.concat([queued, filled]).sort("seq")
    return before(rows, obs.fills, LPI, last="end_seq", last_ns="end_ns", last_state="state")


def _left_behind(case: Case) -> pl.DataFrame:
    """Folds that found an LPI active, after which the vCPU entered the guest without it: the guest ends it in vain.

    Shape: vm, intid, vcpu, fill, seq and time_ns of the fold, entry, entry_ns, refilled; in order of seq.
    """
    obs = case.observations
    rows = obs.fills.filter(pl.col("state").is_in(STILL_ACTIVE) & (pl.col("ended_by") == "fold"))
    rows = rows.select(*LPI, "vcpu", fill="seq", seq="end_seq", time_ns="end_ns").sort("seq")
    # The fold comes before the exit of its run; the entry after that is the one that counts.
    exits = obs.runs.next_exit(rows)
    entries = obs.runs.next_entry(rows.with_columns(seq=exits["exit_seq"]))
    rows = rows.hstack(entries.rename({"entry_seq": "entry"})).drop_nulls("entry")
    rows = after(rows, obs.fills, LPI, refilled="seq")
    rows = rows.filter(pl.col("refilled").fill_null(NEVER) > pl.col("entry"))
    # With all list registers in use it may have to wait.
    rows = after(rows.with_columns(fold="seq", seq=pl.col("entry")), obs.folds, VCPU, used="used")
    rows = rows.with_columns(seq="fold").drop("fold").sort("seq")
    return rows.filter(pl.col("used").fill_null(0) < _LIST_REGISTERS)


def _silent(case: Case, behind: pl.DataFrame) -> pl.DataFrame:
    """LPIs left behind of which nothing was heard since, although they stayed mapped. Shape: as of `_stuck`."""
    obs = case.observations
    rows = behind.filter(pl.col("refilled").is_null())
    rows = after(rows, obs.queueings, LPI, heard="seq").filter(pl.col("heard").is_null())
    mapped = case.history.mappings.drop_nulls("intid")
    mapped = mapped.join(obs.vms.select("vm", gone="to_seq"), on="vm", how="left")
    still = pl.col("to_seq").is_null() | (pl.col("to_seq") == pl.col("gone"))
    rows = rows.join(mapped.filter(still).select(LPI).unique(), on=LPI, how="semi", maintain_order="left")
    return rows.select(
        *LPI,
        "seq",
        "time_ns",
        "vcpu",
        "fill",
        "entry",
        "entry_ns",
        fold="seq",
        fold_ns="time_ns",
        fold_vcpu="vcpu",
        wrong=pl.lit("silent"),
    )
