"""ITS309: interrupts of one device that leave their vCPU no time for anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from itstrace.findings import Confidence, Finding, Harm, Kind, Severity
from itstrace.observe.runs import WAITING
from itstrace.rules.case import VCPU, Case, first_some
from itstrace.rules.registry import Setting, rule
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The windows that must follow one another for it to be sustained.
_SUSTAINED = 2
#: Of the MSIs in a window, the share that found the one before still pending: they come faster than they are taken.
_COALESCED = 0.25
#: Deliveries a second at which a vCPU is given up, whether MSIs are coalesced or not.
_FLOOD: Final = 20_000
#: So many times the median of what other devices do in a window.
_AGAINST_OTHERS = 5
#: Windows of other devices that such a median needs.
_ENOUGH = 10
_GROUP = [*VCPU, "its", "device_id", "alone"]


@rule(
    "ITS309",
    kind=Kind.LIFE,
    severity=Severity.WARNING,
    claim="interrupts come faster than their vCPU can take them",
    harm=Harm.LATE,
    needs=("QUEUEINGS", "LIST_REGISTERS", "RUNS"),
    guest_sees="a vCPU that does nothing but handle one device's interrupts: stalls, soft lockups",
    settings=(
        Setting(
            "storm-window-ms",
            500,
            "milliseconds in which deliveries are counted; two windows in a row must be over",
        ),
        Setting("storm-rate", 100, "deliveries a second from which one device's interrupts may be a storm"),
        Setting(
            "storm-share",
            0.9,
            "share of a window in which one of the device's interrupts was pending on the vCPU, or in its list registers",
        ),
    ),
)
def interrupt_storm(case: Case) -> Iterator[Finding]:
    """One device's interrupts come faster than their vCPU can take them, and it does nothing else any more.

    ## What it finds
    Windows in a row in which nearly always an interrupt of one and the same device was pending on a vCPU, or in its
    list registers, the vCPU never waited in WFI, and the device's MSIs came faster than they were taken: many found
    the one before still pending. The rate must also be far beyond what other devices in the capture do.

    ## Why it matters
    The guest makes no progress on that vCPU; its scheduler, its timers and its other devices starve.

    ## Where it comes from
    A device that raises its interrupt again and again because its driver does not acknowledge it, or does not mask
    it while it polls; a handler that makes its device fire; a fault of KVM that delivers an LPI again without an
    injection (ITS303).

    ## When it is wrong
    A test may do so on purpose. A vCPU that is slow because its host is emulated or short of CPUs takes few
    interrupts a second and is behind just as well; the rate and the other devices guard against that, and the
    numbers can be set.

    ## What to do
    Find out which driver owns the device, and whether its handler acknowledges the interrupt at the device. Move the
    LPI to another vCPU to see whether it follows.
    """
    window = int(case.setting("storm-window-ms") * 1e6)
    counts = _counts(case, window)
    if counts.is_empty():
        return
    fast = counts.filter(_fast(case, window))
    if fast.is_empty():
        return
    over = _covered(case, _never_idle(case, fast, window), window)
    over = over.filter(pl.col("covered") >= case.setting("storm-share")).sort([*_GROUP, "window"])
    over = over.with_columns(
        stretch=(pl.col("window").diff().over(_GROUP) != 1).fill_null(value=True).cum_sum().over(_GROUP)
    )
    for _, rows in over.group_by([*_GROUP, "stretch"], maintain_order=True):
        if rows.height >= _SUSTAINED:
            yield _finding(case, rows, window)


def _fast(case: Case, window: int) -> pl.Expr:
    """Many, faster than they are taken, and far more than other devices'."""
    rate = pl.col("deliveries") * 1e9 / window
    faster = (pl.col("coalesced") >= _COALESCED * pl.col("injected")) & (pl.col("coalesced") > 0)
    # Or KVM delivers them without any MSI (ITS303).
    faster |= pl.col("injected") * 2 < pl.col("deliveries")
    return (
        (rate >= case.setting("storm-rate"))
        & (faster | (rate >= _FLOOD))
        & (pl.col("deliveries") >= _AGAINST_OTHERS * pl.col("others"))
    )


def _finding(case: Case, rows: pl.DataFrame, window: int) -> Finding:
    first = rows.row(0, named=True)
    deliveries, injected, entries = (int(rows[name].sum()) for name in ("deliveries", "injected", "entries"))
    covered = float(rows["covered"].sum()) / rows.height
    span = rows.height * window
    rate = deliveries * 1e9 / span
    intids = sorted({intid for one in rows["intids"].to_list() for intid in one})
    who = f"LPI {intids[0]}" if len(intids) == 1 else f"{len(intids)} LPIs, {intids[0]} to {intids[-1]},"
    begin = first["first_ns"]
    known = case.observations.gives("exit", "esr_ec")
    details: dict[str, Any] = {}
    if not known:
        details = {
            "confidence": Confidence.LIKELY,
            "doubt": "Why the vCPU left the guest was not recorded: it may have waited in WFI in between.",
            "capture_next": "kvm:kvm_exit with esr_ec",
        }
    ids = {"intid": intids[0]} if len(intids) == 1 else {"intid": None}
    device = first["device_id"]
    return case.finding(
        f"{who} came {rate:,.0f} times a second on vCPU {first['vcpu']} for {duration(span)} from {seconds(begin)}: "
        f"{deliveries:,} deliveries of {injected:,} MSIs in {entries:,} stays in the guest. One was pending or "
        f"in a list register {covered:.0%} of the time, and the vCPU never waited.",
        vm=first["vm"],
        its=first["its"],
        device_id=device,
        event_id=None
        if device is None or len(intids) > 1
        else case.event_of(first["vm"], intids[0], first["seq"])[2],
        **ids,
        vcpus=(first["vcpu"],),
        time_ns=begin,
        end_ns=rows["last_ns"].max(),
        count=deliveries,
        seqs=first_some(rows["seq"].to_list()),
        mechanism="interrupts of one device leave their vCPU no time",
        worst=f"{rate:,.0f} a second on vCPU {first['vcpu']} from {seconds(begin)}",
        measure=float(rate),
        **details,
    )


# --- what happened in each window


def _counts(case: Case, window: int) -> pl.DataFrame:
    """Deliveries of each device (LPI, where that is unknown) on each vCPU, window by window.

    Shape: vm, vcpu, its, device_id, alone (the LPI of an unknown device), window, deliveries, intids, seq, first_ns, last_ns,
        injected, coalesced, others.
    """
    # Lost records only make it fewer.
    taken = case.lives.fills.filter("taken")
    if taken.height < case.setting("storm-rate") * _SUSTAINED * window / 1e9:
        return taken.clear()
    device = (
        case.history.mappings.drop_nulls("intid")
        .unique(["vm", "intid"], keep="last", maintain_order=True)
        .select("vm", "intid", "its", "device_id")
    )
    at = pl.col("time_ns") // window
    rows = taken.join(device, on=["vm", "intid"], how="left", maintain_order="left").with_columns(window=at)
    rows = rows.with_columns(alone=pl.when(pl.col("device_id").is_null()).then("intid"))
    counts = rows.group_by([*_GROUP, "window"], maintain_order=True).agg(
        deliveries=pl.len(),
        intids=pl.col("intid").unique(),
        seq=pl.col("seq").first(),
        first_ns=pl.col("time_ns").first(),
        last_ns=pl.col("time_ns").last(),
    )
    lives = case.lives.lives.drop_nulls("queued_ns")
    msis = (
        lives.select("vm", "intid", "outcome", vcpu="queued_vcpu", window=pl.col("queued_ns") // window)
        .join(device, on=["vm", "intid"], how="left")
        .with_columns(alone=pl.when(pl.col("device_id").is_null()).then("intid"))
        .group_by([*_GROUP, "window"])
        .agg(injected=pl.len(), coalesced=(pl.col("outcome") == "coalesced").sum())
    )
    counts = counts.join(msis, on=[*_GROUP, "window"], how="left", nulls_equal=True, maintain_order="left")
    return _against_others(counts.with_columns(pl.col("injected", "coalesced").fill_null(0)))


def _never_idle(case: Case, rows: pl.DataFrame, window: int) -> pl.DataFrame:
    """Windows in which the vCPU ran and never waited. Shape: `rows` with `entries`.

    Asked for the few that are left: there are millions of entries.
    """
    stays = _stays(case, window)
    rows = rows.join(stays, on=[*VCPU, "window"], how="left", maintain_order="left")
    return rows.filter((pl.col("entries") > 0) & (pl.col("waits").fill_null(0) == 0)).drop("waits")


def _covered(case: Case, rows: pl.DataFrame, window: int) -> pl.DataFrame:
    """The share of each window in which an interrupt of the device was pending on the vCPU. Shape: `rows` with `covered`."""
    parts = [rows.clear().with_columns(covered=pl.lit(0.0))]
    for _, mine in rows.group_by(_GROUP, maintain_order=True):
        first = mine.row(0, named=True)
        intids = mine["intids"].explode().unique()
        spans = case.lives.pending.filter(
            (pl.col("vm") == first["vm"])
            & (pl.col("vcpu") == first["vcpu"])
            & pl.col("intid").is_in(intids.implode())
        ).select("from_ns", to_ns=pl.col("to_ns").fill_null(pl.col("from_ns")))
        spans = spans.sort("from_ns").with_columns(reached=pl.col("to_ns").cum_max().shift(1))
        # Of overlapping spans, what the ones before did not cover yet.
        spans = spans.with_columns(from_ns=pl.max_horizontal("from_ns", "reached")).filter(
            pl.col("to_ns") > pl.col("from_ns")
        )
        begin, end = spans["from_ns"].to_numpy(), spans["to_ns"].to_numpy()
        total = np.concatenate([[0], np.cumsum(end - begin)])
        edges = np.concatenate([mine["window"].to_numpy(), mine["window"].to_numpy() + 1]) * window
        # The time covered up to an edge: all spans before it, and the part of the one that it lies in.
        place = np.searchsorted(begin, edges, side="left")
        last = np.maximum(place - 1, 0)
        cut = np.where(place > 0, np.maximum(end[last] - edges, 0), 0) if len(end) else np.zeros(len(edges))
        reached = total[place] - cut
        share = (reached[mine.height :] - reached[: mine.height]) / window
        parts.append(mine.with_columns(covered=pl.Series(share, dtype=pl.Float64)))
    return pl.concat(parts)


def _stays(case: Case, window: int) -> pl.DataFrame:
    """Entries of each vCPU, and how often it waited in WFI, window by window. Shape: vm, vcpu, window, entries, waits."""
    schema = pl.Schema(
        {"vm": pl.UInt16, "vcpu": pl.Int32, "window": pl.Int64, "entries": pl.Int64, "waits": pl.Int64}
    )
    parts = [pl.DataFrame(schema=schema)]
    runs = case.observations.runs
    for (vm, vcpu), entries in runs.entries.items():
        exits = runs.exits[vm, vcpu]
        waits = exits.time_ns[exits.why == WAITING] if len(exits.why) else exits.time_ns[:0]
        windows, entered = np.unique(entries.time_ns // window, return_counts=True)
        waiting, waited = np.unique(waits // window, return_counts=True)
        one = pl.DataFrame({"window": windows, "entries": entered}).join(
            pl.DataFrame({"window": waiting, "waits": waited}), on="window", how="left"
        )
        part = one.with_columns(pl.lit(vm).alias("vm"), pl.lit(vcpu).alias("vcpu"))
        parts.append(part.select(list(schema)).cast(schema))
    return pl.concat(parts)


def _against_others(counts: pl.DataFrame) -> pl.DataFrame:
    """The median of deliveries in windows of the capture's other devices; 0 where there are too few."""
    groups = counts.select(_GROUP).unique(maintain_order=True).with_row_index("group")
    counts = counts.join(groups, on=_GROUP, how="left", nulls_equal=True, maintain_order="left")
    medians = []
    for (group,) in groups.select("group").iter_rows():
        others = counts.filter(pl.col("group") != group)["deliveries"]
        medians.append(float(others.median()) if others.len() >= _ENOUGH else 0.0)  # type: ignore[arg-type]
    found = groups.select("group").with_columns(others=pl.Series(medians, dtype=pl.Float64))
    return counts.join(found, on="group", how="left", maintain_order="left").drop("group")
