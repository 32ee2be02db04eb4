"""LPIs that were pending on one vCPU's list when a command gave them to another: what ITS403 judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.observe.joins import after, before
from itstrace.rules._moves import moves
from itstrace.rules.case import LPI, NEVER, once

if TYPE_CHECKING:
    from itstrace.rules.case import Case

#: Moves of one wait that are followed; beyond, nobody can tell with whom the LPI is.
_TOLD_APART = 64


def waits(case: Case) -> pl.DataFrame:
    """LPIs that were pending on a vCPU's list while another was their target, one row per move.

    Left out: moves that KVM did not follow, and waits that ended before the move surely held.
    Shape: a row of `moves`; `old` (on whose list it was last seen), `placed_seq`, `placed_ns`, `placed_by` (since
        when, and by which record), `from_seq`, `from_ns` (from when on both hold), `lists` (the vCPUs but the target on
        whose list it may be by now), `end_seq`, `end_ns` (filled, moved again, or excused; NEVER and the capture's end:
        not ended), `fill_seq`, `fill_ns`, `fill_vcpu` (its next fill). In order of from_seq.
    """
    moved, seen = moves(case), places(case)
    # What was known before the move held: the last place.
    earlier = before(
        moved.rename({"seq": "move_seq"}).with_columns(seq="settled_seq"),
        seen,
        LPI,
        placed_seq="seq",
        placed_ns="time_ns",
        placed_by="record",
        old="vcpu",
        lodged="lodged",
    ).drop("seq")
    # And what was seen while it held: on each other vCPU the first.
    later = before(
        seen.rename({"vcpu": "old", "time_ns": "placed_ns", "record": "placed_by"}),
        moved,
        LPI,
        move_seq="seq",
    ).drop_nulls("move_seq")
    later = moved.rename({"seq": "move_seq"}).join(
        later.rename({"seq": "placed_seq"}), on=[*LPI, "move_seq"], how="inner"
    )
    later = later.filter("lodged", pl.col("placed_seq") > pl.col("settled_seq"))
    later = later.sort("placed_seq").unique([*LPI, "move_seq", "old"], keep="first", maintain_order=True)
    rows = pl.concat([earlier, later.select(earlier.columns)])
    rows = rows.filter("lodged").with_columns(
        from_seq=pl.max_horizontal("settled_seq", "placed_seq"),
        from_ns=pl.max_horizontal("time_ns", "placed_ns"),
    )
    rows = _elsewhere(rows, moved)
    rows = _ended(case, rows)
    rows = rows.join(_not_followed(case, rows), on=[*LPI, "move_seq"], how="anti", maintain_order="left")
    return rows.filter(pl.col("end_seq") > pl.col("from_seq")).sort("from_seq")


@once
def places(case: Case) -> pl.DataFrame:
    """Records that tell on which vCPU's list an LPI is, pending (`lodged`), or that it is pending on none for now.

    Kernel: vgic.c:kvm_vgic_sync_hwstate folds list registers and then prunes the list, so that a fold's word counts
        from just before it: its own exit is the first that may hand the LPI over.
    Shape: vm, intid, seq, time_ns, vcpu, lodged, record; in order of seq.
    """
    obs = case.observations
    queued = obs.queueings.select(
        *LPI,
        "seq",
        "time_ns",
        vcpu=pl.coalesce("owner_vcpu", "target_vcpu"),
        lodged=pl.col("pending") & pl.col("enabled") & ~pl.col("active"),
        record="seq",
    )
    fills = obs.fills.with_columns(_back=(pl.col("state") == 1).fill_null(value=False))
    # One that the fold finds still pending was on the list all the while.
    filled = fills.select(*LPI, "seq", "time_ns", "vcpu", lodged="_back", record="seq")
    folded = fills.filter(pl.col("ended_by") == "fold").select(
        *LPI, "vcpu", "_back", "state", seq="end_seq", time_ns="end_ns"
    )
    # One that it finds empty is pending all the same if it was queued meanwhile.
    folded = before(folded, case.lives.latches, LPI, _latched="latched").select(
        *LPI,
        pl.col("seq") - 1,
        "time_ns",
        "vcpu",
        lodged=pl.col("_back") | ((pl.col("state") == 0) & pl.col("_latched")).fill_null(value=False),
        record="seq",
    )
    rows = pl.concat([queued, filled, folded])
    return rows.filter(pl.col("vcpu").is_not_null() | ~pl.col("lodged")).sort("seq")


def _ended(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Add when each wait ended: filled, moved again, or with an excuse; and its next fill."""
    obs = case.observations
    rows = rows.with_columns(seq="from_seq")
    rows = after(rows, obs.fills, LPI, fill_seq="seq", fill_ns="time_ns", fill_vcpu="vcpu")
    disabled = case.history.configurations.filter(~pl.col("enabled") & pl.col("from_seq").is_not_null())
    excuses = {
        "_disabled": (disabled.select(*LPI, seq="from_seq", time_ns="from_ns"), LPI),
        "_stopped": (case.lives.latches.filter(~pl.col("latched") & (pl.col("by") != "fill")), LPI),
        "_unlisted": (obs.queueings.filter(~pl.col("enabled") | pl.col("active")), LPI),
        # vgic_flush_pending_lpis takes LPIs off a list whatever their target.
        "_flushed": (obs.vm_events.filter(pl.col("what").is_in(["flush_lpis", "restore_tables"])), ["vm"]),
    }
    for name, (frame, keys) in excuses.items():
        rows = after(rows, frame, keys, **{f"{name}_seq": "seq", f"{name}_ns": "time_ns"})
    gone = obs.vms.select("vm", _gone_seq="to_seq", _gone_ns="end_ns")
    rows = rows.join(gone, on="vm", how="left", maintain_order="left")
    stops = ("to", "fill", "_gone", *excuses)
    rows = rows.with_columns(
        end_seq=pl.min_horizontal(pl.col(f"{name}_seq").fill_null(NEVER) for name in stops)
    )
    ends = [pl.when(pl.col(f"{name}_seq") == pl.col("end_seq")).then(f"{name}_ns") for name in stops]
    rows = rows.with_columns(end_ns=pl.coalesce(*ends, pl.lit(case.end_ns, dtype=pl.Int64)))
    return rows.drop(
        "seq", "_gone_seq", "_gone_ns", *(f"{name}_{unit}" for name in excuses for unit in ("seq", "ns"))
    )


def _not_followed(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Moves after which KVM itself still names another target: other rules judge them. Shape: vm, intid, move_seq."""
    obs = case.observations
    seen = pl.concat(
        [
            frame.filter(pl.col("target_vcpu").is_not_null()).select(*LPI, "seq", "target_vcpu")
            for frame in (obs.queueings, obs.fills)
        ]
    )
    said = after(rows.with_columns(seq="settled_seq"), seen, LPI, _target="target_vcpu", _seen="seq").filter(
        (pl.col("_seen") < pl.col("to_seq").fill_null(NEVER)) & (pl.col("_target") != pl.col("vcpu"))
    )
    return said.select(*LPI, "move_seq").unique()


def _elsewhere(rows: pl.DataFrame, moved: pl.DataFrame) -> pl.DataFrame:
    """Add `lists`, the vCPUs but the target on whose list each LPI may be; without those that can only be with it.

    Where it was placed; or, as it may have been handed over since, with a target of the moves from then on.
    """
    numbered = moved.sort("seq").with_columns(n=pl.int_range(pl.len()).over(LPI))
    numbers = numbered.select(*LPI, move_seq="seq", _move="n")
    rows = rows.join(numbers, on=[*LPI, "move_seq"], how="left", maintain_order="left").with_row_index("_row")
    rows = before(rows.with_columns(seq=pl.col("placed_seq") + 1), numbered, LPI, _place="n").drop("seq")
    between = rows.select("_row", *LPI, _vcpu="vcpu", n=pl.int_ranges(pl.col("_place").fill_null(0), "_move"))
    between = between.filter(pl.col("n").list.len().is_between(1, _TOLD_APART)).explode("n")
    between = between.join(numbered.select(*LPI, "n", list="vcpu"), on=[*LPI, "n"], how="left")
    one = pl.concat(
        [rows.select("_row", list="old", _vcpu="vcpu"), between.select("_row", "list", "_vcpu")]
    ).filter(pl.col("list") != pl.col("_vcpu"))
    lists = one.group_by("_row", maintain_order=True).agg(lists=pl.col("list").unique(maintain_order=True))
    rows = rows.filter(pl.col("_move") - pl.col("_place").fill_null(0) <= _TOLD_APART)
    return rows.join(lists, on="_row", how="inner", maintain_order="left").drop("_row", "_move", "_place")
