"""Observations and table history to lives: what became of every MSI, and where each LPI was pending when.

All of it is vectorised. Per LPI, records are put in order and read as a small machine (Kernel: vgic.c,
vgic-v3.c):

- queueing with pending_latch set: latched;
- a fill that takes the latch: no longer latched, but pending in a list register;
- a fold that finds the list register still pending: latched again; that finds it empty or active: taken by
the guest;
- CLEAR, EnableLPIs=0 and the reading of the pending table set the latch to what they say.

A *chain* is a run of fills of one LPI up to the one that the guest took. The first MSI queued before a
chain's end is the one delivered by it; those that came while it was still pending were coalesced into it, as
the architecture says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from itstrace import schemas
from itstrace.observe.joins import after, before
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from itstrace.observe import Observations
    from itstrace.replay import History

LPI = ["vm", "intid"]


@dataclass(slots=True)
class Lives:
    """Lives of LPIs. `lives`: rows of LIVES; `pending`: rows of PENDING.

    `fills`: FILLS that took a latched interrupt, with `chain` (its number within the LPI), `taken` (the guest
        took it), `latched_by` (what latched it last: queue, fold, table, or null: nothing that was seen).
        `latches`: what the latch of each LPI became, and by what (columns vm, intid, seq, time_ns, latched,
        by).
    """

    lives: pl.DataFrame
    pending: pl.DataFrame
    fills: pl.DataFrame
    latches: pl.DataFrame

    def latched_at(self, time_ns: int | None, vm_ends: Mapping[int, int | None]) -> pl.DataFrame:
        """Whether each LPI's pending_latch was set at that time (None: the end, or the VM's).

        Shape: vm, intid, pending; an LPI of which nothing was recorded has no row.
        """
        rows = self.latches
        if time_ns is not None:
            rows = rows.filter(pl.col("time_ns") <= time_ns)
        elif ends := {vm: end for vm, end in vm_ends.items() if end is not None}:
            end_ns = pl.col("vm").replace_strict(ends, default=2**63 - 1, return_dtype=pl.Int64)
            rows = rows.filter(pl.col("time_ns") < end_ns)
        return rows.group_by(LPI).agg(pending=pl.col("latched").last())


def live(observations: Observations, history: History) -> Lives:
    """Follow every MSI to its end.

    Shape: see `Lives`.
    """
    latches = _latches(observations, history)
    fills = _chains(observations.fills, latches)
    lives = _lives(observations, history, fills, latches)
    return Lives(lives, _pending(observations.fills, latches), fills, latches)


def _latches(obs: Observations, history: History) -> pl.DataFrame:
    """Every record after which the latch of an LPI is known.

    Shape: vm, intid, seq, time_ns, vcpu, latched, by.
    """
    keep = ["vm", "intid", "seq", "time_ns", "vcpu", "latched", "by"]
    queue = obs.queueings.with_columns(
        vcpu=pl.coalesce("owner_vcpu", "target_vcpu"), latched=pl.col("pending"), by=pl.lit("queue")
    ).select(keep)
    fill = obs.fills.with_columns(
        latched=pl.col("latch_kept").fill_null(value=False), by=pl.lit("fill")
    ).select(keep)
    fold = (
        obs.fills.filter((pl.col("ended_by") == "fold") & pl.col("state").is_in([1, 3]))
        .with_columns(
            seq=pl.col("end_seq"), time_ns=pl.col("end_ns"), latched=pl.lit(value=True), by=pl.lit("fold")
        )
        .select(keep)
    )
    known = [queue, fill, fold]
    known += [frame.select(keep) for frame in (history.cleared, history.pending_bits) if frame.height]
    rows = pl.concat([frame.cast({"vcpu": pl.Int32, "by": pl.String}) for frame in known])
    rows = pl.concat([rows, _flushed(rows, obs, history).select(keep)])
    return rows.sort("vm", "intid", "seq")


def _flushed(latches: pl.DataFrame, obs: Observations, history: History) -> pl.DataFrame:
    """LPIs whose latch a flush of their vCPU cleared.

    Kernel: vgic.c:vgic_flush_pending_lpis takes the LPIs off the vCPU's ap_list; 6.1.192 and 7.3 also clear
        pending_latch, 6.12.107 leaves it set.
    """
    flushes = obs.vm_events.filter(pl.col("what") == "flush_lpis").drop_nulls("vcpu")
    flushes = flushes.filter(
        pl.col("vm").is_in([vm for vm, keeps in history.flush_keeps_latch.items() if not keeps])
    )
    rows = flushes.select("vm", "seq", "time_ns", flushed="vcpu").join(latches.select(LPI).unique(), on="vm")
    rows = before(rows, latches, LPI, was="latched", vcpu="vcpu")
    # An LPI that was latched while disabled is on no list, and keeps its latch.
    rows = before(rows, obs.queueings, LPI, on_list="enabled")
    rows = rows.filter(
        pl.col("was") & (pl.col("vcpu") == pl.col("flushed")) & pl.col("on_list").fill_null(value=True)
    )
    return rows.with_columns(latched=pl.lit(value=False), by=pl.lit("flush"))


def _chains(fills: pl.DataFrame, latches: pl.DataFrame) -> pl.DataFrame:
    """Fills that took a latched interrupt, numbered into chains."""
    rows = fills.filter("pending").sort("vm", "intid", "seq")
    taken = pl.col("state").is_in([0, 2]) | pl.col("state").is_null()
    rows = rows.with_columns(taken=taken)
    rows = rows.with_columns(
        chain=pl.col("taken").cast(pl.UInt32).cum_sum().over(LPI) - pl.col("taken").cast(pl.UInt32)
    )
    return before(rows, latches, LPI, latched_by="by", latched_seq="seq", was_latched="latched").with_columns(
        latched_by=pl.when("was_latched").then("latched_by")
    )


def _lives(obs: Observations, history: History, fills: pl.DataFrame, latches: pl.DataFrame) -> pl.DataFrame:
    chains = fills.group_by("vm", "intid", "chain").agg(
        filled_seq=pl.col("seq").first(),
        filled_ns=pl.col("time_ns").first(),
        filled_vcpu=pl.col("vcpu").last(),
        retired_seq=pl.col("end_seq").last(),
        retired_ns=pl.col("end_ns").last(),
        refills=pl.len() - 1,
        taken=pl.col("taken").last(),
        state=pl.col("state").last(),
        vcpus=pl.col("vcpu").n_unique(),
    )
    rows = obs.injections.select(
        "vm",
        "its",
        "device_id",
        "event_id",
        "intid",
        "result",
        injected_seq="seq",
        injected_ns="time_ns",
        seq=pl.coalesce("queue_seq", "seq"),
        queued_seq="queue_seq",
    )
    queued = obs.queueings.select(
        queued_seq="seq", queued_ns="time_ns", queued_vcpu=pl.coalesce("owner_vcpu", "target_vcpu")
    )
    rows = rows.join(queued, on="queued_seq", how="left", maintain_order="left")
    rows = after(rows, fills, LPI, chain="chain", first_fill="seq")
    stops = latches.filter(~pl.col("latched") & pl.col("by").is_in(["clear", "flush", "table"]))
    rows = after(rows, stops, LPI, stopped="seq")
    stopped = pl.col("stopped").is_not_null() & (pl.col("stopped") < pl.col("first_fill").fill_null(NEVER))
    rows = rows.join(chains, on=["vm", "intid", "chain"], how="left", maintain_order="left")
    accepted = pl.col("queued_seq").is_not_null() & (pl.col("result") == 0)
    live_on = accepted & ~stopped & pl.col("chain").is_not_null()
    first = pl.col("injected_seq").rank("ordinal").over("vm", "intid", "chain") == 1
    # Of those that wait for the same chain, the first is the one delivered.
    carried = rows.filter(live_on).with_columns(first=first).select("injected_seq", "first")
    rows = rows.join(carried, on="injected_seq", how="left", maintain_order="left")
    waiting = accepted & ~stopped & pl.col("chain").is_null()
    outcome = (
        pl.when(pl.col("result") != 0)
        .then(pl.lit("refused"))
        .when(accepted & stopped)
        .then(pl.lit("cleared"))
        .when(~pl.col("first"))
        .then(pl.lit("coalesced"))
        .when(pl.col("first") & ~pl.col("taken"))
        .then(pl.lit("pending"))
        .when(pl.col("first") & pl.col("state").is_not_null())
        .then(pl.lit("delivered"))
        .when(waiting)
        .then(pl.lit("pending"))
        .otherwise(pl.lit("unknown"))
    )
    rows = rows.with_columns(outcome=outcome)
    shown = ["filled_seq", "filled_ns", "filled_vcpu", "retired_seq", "retired_ns", "refills"]
    rows = rows.with_columns(
        pl.when(pl.col("outcome").is_in(["delivered", "unknown"]) & live_on).then(pl.col(c)).alias(c)
        for c in shown
    )
    # A refill counts only where it lies after this MSI's own queueing, which the chain's first fill does by
    # construction.
    moves = (
        history.targets.filter(pl.col("set_by").is_not_null())
        .select("vm", "intid", seq="from_seq")
        .sort("seq")
    )
    moves = moves.with_columns(n=pl.int_range(pl.len(), dtype=pl.UInt32).over(LPI) + 1)
    rows = before(
        rows.drop("seq").with_columns(seq=pl.coalesce("queued_seq", "injected_seq")),
        moves,
        LPI,
        moved_before="n",
    )
    rows = before(
        rows.with_columns(seq=pl.coalesce("retired_seq", "filled_seq", "queued_seq", "injected_seq")),
        moves,
        LPI,
        moved_after="n",
    )
    rows = rows.with_columns(
        moves=(pl.col("moved_after").fill_null(0) - pl.col("moved_before").fill_null(0)).cast(
            pl.UInt32, strict=False
        )
    )
    return rows.select(schemas.LIVES.names()).cast(schemas.LIVES).sort("injected_seq")


def _pending(fills: pl.DataFrame, latches: pl.DataFrame) -> pl.DataFrame:
    """Where each LPI was pending, vCPU by vCPU. Shape: rows of PENDING."""
    rows = latches.with_columns(
        to_seq=pl.col("seq").shift(-1).over(LPI),
        to_ns=pl.col("time_ns").shift(-1).over(LPI),
        run=(
            pl.col("latched")
            & pl.col("latched").shift(1, fill_value=False).over(LPI)
            & (pl.col("vcpu") == pl.col("vcpu").shift(1).over(LPI))
        )
        .not_()
        .cum_sum()
        .over(LPI),
    )
    queued = (
        rows.filter("latched")
        .group_by("vm", "intid", "run", maintain_order=True)
        .agg(
            pl.col("vcpu").first(),
            from_seq=pl.col("seq").first(),
            from_ns=pl.col("time_ns").first(),
            to_seq=pl.col("to_seq").last(),
            to_ns=pl.col("to_ns").last(),
        )
        .with_columns(where=pl.lit("queued"))
    )
    held = fills.select(
        "vm",
        "vcpu",
        "intid",
        where=pl.lit("list_register"),
        from_seq="seq",
        from_ns="time_ns",
        to_seq="end_seq",
        to_ns="end_ns",
    )
    names = schemas.PENDING.names()
    return pl.concat(
        [queued.select(names).cast(schemas.PENDING), held.select(names).cast(schemas.PENDING)]
    ).sort("from_seq")
