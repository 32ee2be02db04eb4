"""ITS401: one LPI, two vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Finding, Harm, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules.case import LPI, NEVER, VCPU, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLUSHED = "EnableLPIs=0 took the LPI off the vCPU's list and left it in the list register"
_TWO_IRQS = "two kernel objects stand for the LPI"
_NOT_FOLDED = "the vCPU's exit did not read the list register back"
_OVERWRITTEN = "the list register was written again without being read back"
_GIVEN_AWAY = "the LPI went to another vCPU out of a list register that was not read back"

_SUSPECT = {
    _FLUSHED: ("vgic_flush_pending_lpis", "kvm_vgic_sync_hwstate"),
    _TWO_IRQS: ("vgic_add_lpi", "vgic_put_irq"),
    _NOT_FOLDED: ("kvm_vgic_sync_hwstate", "vgic_v3_fold_lr_state"),
    _OVERWRITTEN: ("kvm_vgic_flush_hwstate", "vgic_v3_populate_lr"),
    _GIVEN_AWAY: ("vgic_queue_irq_unlock", "vgic_prune_ap_list"),
}
#: States of a list register that was read back: what the guest had taken.
_TAKEN = [0, 2]


@rule(
    "ITS401",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM had one LPI live on two vCPUs at once",
    harm=Harm.TWICE,
    needs=("QUEUEINGS", "LIST_REGISTERS"),
    suspect=("kvm_vgic_sync_hwstate", "vgic_v3_fold_lr_state"),
    guest_sees="It can take one LPI on two vCPUs at once.",
    leads_to=("ITS404", "ITS301"),
)
def double_pending(case: Case) -> Iterator[Finding]:
    """One LPI is live on two vCPUs at once.

    ## What it finds
    An LPI that sits in a list register of one vCPU, not read back, while it is queued for, or filled into a
    list register of, another. KVM gives an LPI one owner (irq->vcpu): it must leave the first vCPU's list
    registers before it can go to the second's. The message says how often the guest took it on both (a list
    register that was read back tells), and whether each time had an MSI of its own.

    ## Why it matters
    Both vCPUs can acknowledge it: one interrupt, two deliveries, on two CPUs of the guest, at the same time. This
    is what was feared in 2015, that moving an interrupt and its pending state is not atomic with its
    delivery.

    ## Where it comes from
    GICR_CTLR.EnableLPIs written to 0 on a vCPU that runs with the LPI in a list register:
    vgic_flush_pending_lpis takes it off the ap_list, and the next MSI goes to wherever MOVI sent the LPI. On 6.1
    and 6.12 kvm_vgic_sync_hwstate then returns early (the list is empty), and the register is not read back until
    the vCPU has another interrupt; on 7.3 it is read back at the next exit. Or a fold that is skipped; or two
    kernel objects for one LPI (ITS406).

    ## When it is wrong
    The window that the architecture allows is not this: after MOVI the old vCPU may take the LPI until its
    next exit, but KVM does not fill it on the new vCPU before. A fold that was not recorded looks the same,
    so spans with lost records are left out. A nested guest's own list registers hold its own LPIs: the capture
    cannot tell them apart.

    ## What to do
    Keep EnableLPIs at 1 on vCPUs that run, or move their LPIs away and wait (SYNC) first. In KVM: fold list
    registers before flushing, and do not leave kvm_vgic_sync_hwstate early while used_lrs is not 0.
    """
    rows = _explained(case, _overlaps(case))
    saw = {key: _guest_saw(mine) for key, mine in rows.group_by("vm", "mechanism")}
    for (vm, intid, mechanism), mine in rows.group_by([*LPI, "mechanism"], maintain_order=True):
        filled = mine.filter(pl.col("other_kind") == "fill")
        both = (filled if filled.height else mine).row(0, named=True)
        how = "filled into a list register of" if both["other_kind"] == "fill" else "queued for"
        longest = mine.sort("overlap_ns", descending=True, nulls_last=True).row(0, named=True)
        yield case.finding(
            f"LPI {intid} was in a list register of vCPU {both['vcpu']} since {seconds(both['time_ns'])} and {how} vCPU "
            f"{both['other_vcpu']} at {seconds(both['other_ns'])}, {_end(both)}: live on two vCPUs {times(mine.height)}, "
            f"{_deliveries(mine)}.{_cause(both)}",
            mechanism=mechanism,
            suspect=_SUSPECT[str(mechanism)],
            guest_saw=saw[vm, mechanism],
            worst=f"LPI {intid} was live on vCPUs {longest['vcpu']} and {longest['other_vcpu']} for "
            f"{duration(longest['overlap_ns'])} from {seconds(longest['other_ns'])} on",
            measure=float(longest["overlap_ns"] or 0),
            vcpus=tuple(sorted({both["vcpu"], both["other_vcpu"]})),
            blames=tuple(dict.fromkeys(mine["moved_by"].drop_nulls().to_list())),
            **case.about(mine, end_ns=mine["other_ns"].max()),
            seqs=first_some(
                [
                    both["seq"],
                    both["flush_seq"],
                    both["moved_by"],
                    both["queue_seq"],
                    both["other_seq"],
                    both["end_seq"],
                    both["other_end_seq"],
                ]
            ),
        )


def _overlaps(case: Case) -> pl.DataFrame:
    """Fills not yet folded when their LPI was filled, or newly queued, on another vCPU; one row per fill.

    For each fill the next record of its LPI on another vCPU is the one that may overlap it: the first of the
    next run of one vCPU.
    """
    obs = case.observations
    fills = obs.fills.select(
        "vm", "intid", "seq", "time_ns", "vcpu", "end_seq", "end_ns", "ended_by", "state", kind=pl.lit("fill")
    )
    # With an owner the LPI is on that vCPU's list already, and stays there.
    queued = obs.queueings.filter(
        pl.col("pending") & pl.col("enabled") & pl.col("owner_vcpu").is_null()
    ).select("vm", "intid", "seq", "time_ns", vcpu="target_vcpu", kind=pl.lit("queue"))
    both = pl.concat([fills, queued], how="diagonal").sort("vm", "intid", "seq")
    both = both.with_columns(
        run=(pl.col("vcpu") != pl.col("vcpu").shift(1).over(LPI)).fill_null(value=True).cum_sum().over(LPI)
    )
    heads = (
        both.group_by("vm", "intid", "run", maintain_order=True)
        .first()
        .select(
            "vm",
            "intid",
            run=pl.col("run") - 1,
            other_seq="seq",
            other_ns="time_ns",
            other_vcpu="vcpu",
            other_kind="kind",
        )
    )
    # The first fill of that run, if it is a fill that shows it best.
    first_fill = (
        both.filter(pl.col("kind") == "fill")
        .group_by("vm", "intid", "run", maintain_order=True)
        .first()
        .select("vm", "intid", run=pl.col("run") - 1, fill_seq="seq", fill_ns="time_ns")
    )
    rows = both.filter(pl.col("kind") == "fill").join(heads, on=["vm", "intid", "run"], how="inner")
    rows = rows.join(first_fill, on=["vm", "intid", "run"], how="left")
    until = pl.col("end_seq").fill_null(NEVER)
    rows = rows.filter((pl.col("other_seq") < until) & pl.col("other_vcpu").is_not_null())
    seen = pl.col("fill_seq").is_not_null() & (pl.col("fill_seq") < until)
    rows = rows.with_columns(
        other_kind=pl.when(seen).then(pl.lit("fill")).otherwise("other_kind"),
        other_seq=pl.when(seen).then("fill_seq").otherwise("other_seq"),
        other_ns=pl.when(seen).then("fill_ns").otherwise("other_ns"),
    )
    # A VM that ended between the two took its list registers along.
    ends = obs.vms.select("vm", _gone=pl.col("to_seq").fill_null(NEVER))
    rows = rows.join(ends, on="vm").filter(pl.col("other_seq") < pl.col("_gone")).drop("_gone")
    return case.without_lost(rows.sort("seq"), "time_ns", "other_ns")


def _explained(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Add what made each overlap, and what the guest took of it.

    Shape: `rows` with `mechanism`; `flush_seq`, `flush_ns` (EnableLPIs=0 between the two); `moved_by` (the last command
        that moved it between them); `queue_seq` (what put it on the second vCPU's list); `own_msi` (that was an MSI
        after the first fill); `other_end_seq`, `other_state`, `other_taken` (the second's list register, and whether
        it was taken out of it or out of a later one); `overlap_ns`.
    """
    obs = case.observations
    at = rows.rename({"seq": "first_seq"}).with_columns(seq="other_seq")
    flushes = obs.vm_events.filter(pl.col("what") == "flush_lpis")
    at = before(at, flushes, VCPU, flush_seq="seq", flush_ns="time_ns")
    targets = case.history.targets.filter(pl.col("from_seq").is_not_null())
    moved = targets.select(*LPI, seq="from_seq", by="set_by")
    at = before(at, moved, LPI, moved_seq="seq", moved_by="by")
    queued = obs.queueings.filter(pl.col("pending"))
    # A queueing that is itself the second place is its own.
    at = before(
        at.with_columns(pl.col("seq") + 1),
        queued,
        LPI,
        queue_seq="seq",
        queue_cause="cause",
        second_irq="irq",
    )
    at = before(at.with_columns(seq="first_seq"), obs.queueings, LPI, first_irq="irq")
    after_it = pl.col("first_seq")
    at = at.with_columns(
        pl.when(pl.col(f"{of}_seq") > after_it).then(pl.col(f"{of}_{column}")).alias(f"{of}_{column}")
        for of, column in (("flush", "seq"), ("flush", "ns"), ("moved", "by"), ("queue", "cause"))
    )
    at = at.with_columns(
        own_msi=pl.col("queue_cause").is_in(["msi", "int"]).fill_null(value=False), seq="first_seq"
    )
    at = at.hstack([_skipped_fold(case, at)])
    at = at.with_columns(
        mechanism=pl.when(pl.col("first_irq") != pl.col("second_irq"))
        .then(pl.lit(_TWO_IRQS))
        .when(pl.col("flush_seq").is_not_null())
        .then(pl.lit(_FLUSHED))
        .when("skipped")
        .then(pl.lit(_NOT_FOLDED))
        .when(pl.col("ended_by") == "refill")
        .then(pl.lit(_OVERWRITTEN))
        .otherwise(pl.lit(_GIVEN_AWAY))
    )
    # What came of the second place: that fill, or the first one there after it was queued.
    second = after(
        at.with_columns(vcpu="other_vcpu", seq=pl.col("other_seq") - 1).drop("end_seq", "state"),
        obs.fills,
        [*LPI, "vcpu"],
        other_end_seq="end_seq",
        other_end_ns="end_ns",
        _fill="seq",
    ).select("first_seq", "other_end_seq", "other_end_ns", seq="_fill")
    ends = case.lives.fills.group_by(*LPI, "chain").agg(
        pl.col("taken").last(), known=pl.col("state").last().is_not_null()
    )
    chains = case.lives.fills.select("seq", *LPI, "chain").join(ends, on=[*LPI, "chain"], how="left")
    chains = chains.select("seq", other_taken=pl.col("taken") & pl.col("known"))
    second = second.join(chains, on="seq", how="left").select(
        "other_end_seq", "other_end_ns", "other_taken", seq="first_seq"
    )
    at = at.join(second, on="seq", how="left", maintain_order="left")
    until = pl.min_horizontal("end_ns", "other_end_ns").fill_null(pl.lit(case.end_ns, dtype=pl.Int64))
    return at.with_columns(overlap_ns=until - pl.col("other_ns"), taken=pl.col("state").is_in(_TAKEN)).sort(
        "seq"
    )


def _skipped_fold(case: Case, rows: pl.DataFrame) -> pl.Series:
    """Whether the first vCPU entered and left the guest between the two, and its list register was not read back."""
    runs = case.observations.runs
    at = rows.select("vm", "vcpu", seq="first_seq")
    left = runs.next_exit(at.with_columns(seq=runs.next_entry(at)["entry_seq"]))["exit_seq"]
    return (left.fill_null(NEVER) < rows["other_seq"]).alias("skipped")


def _end(row: dict[str, Any]) -> str:
    if row["ended_by"] == "fold":
        return f"while the first was read back only at {seconds(row['end_ns'])}"
    return "while the first was never read back"


def _cause(row: dict[str, Any]) -> str:
    mechanism: str = row["mechanism"]
    if mechanism == _FLUSHED:
        return (
            f" Between the two, EnableLPIs of vCPU {row['vcpu']} went to 0 ({seconds(row['flush_ns'])}): "
            "vgic_flush_pending_lpis took the LPI off the list and left it in the list register."
        )
    return f" {mechanism[0].upper()}{mechanism[1:]}."


def _deliveries(rows: pl.DataFrame) -> str:
    both = rows.filter(pl.col("taken") & pl.col("other_taken")).height
    return "never seen taken on both" if not both else f"taken on both {times(both)}"


def _guest_saw(rows: pl.DataFrame) -> str:
    """What the list registers tell of deliveries, in sentences."""
    both = rows.filter(pl.col("taken") & pl.col("other_taken"))
    doubled, own = both.filter(~pl.col("own_msi")).height, both.filter("own_msi").height
    back = rows.filter(pl.col("state").is_in([1, 3])).height
    unread = rows.filter(pl.col("state").is_null()).height
    said = []
    if doubled:
        said.append(f"One MSI was taken on both vCPUs, {times(doubled)}.")
    if own:
        said.append(
            f"It took the LPI on both vCPUs, {times(own)}; the second delivery had an MSI of its own."
        )
    if back:
        said.append(
            f"The first vCPU had not taken it when its list register was read back, {times(back)}: KVM makes it pending again."
        )
    if unread:
        said.append(
            f"What the first vCPU did with it cannot be told, {times(unread)}: its list register was never read back."
        )
    return " ".join(said) or "It was taken on one of the two vCPUs only."
