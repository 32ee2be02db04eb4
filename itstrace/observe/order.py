"""Records whose time stamps tell an order in which they cannot have happened: the clocks of two buffers disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from itstrace import schemas
from itstrace.observe.runs import NEVER, in_step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.observe.collect import Raw
    from itstrace.observe.runs import Runs

#: What a vCPU's task does for the guest only while it is out of it: what it emulates, and list registers that it fills.
#: Kernel: arm.c:kvm_arch_vcpu_ioctl_run (v6.12). Folds are not among them: they come before the tracepoint of the exit.
_OUTSIDE = (
    "process",
    "write_ctlr",
    "write_cbaser",
    "write_cwriter",
    "write_baser",
    "write_rctlr",
    "write_propbaser",
    "write_pendbaser",
    "fill",
)

_Row = tuple[Any, ...]


def disorder(raw: Raw, ran: Runs, commands: pl.DataFrame) -> pl.DataFrame:
    """Every order in time that cannot be. Shape: rows of DISORDER."""
    rows = [*_runs(raw, ran), *_commands(commands)]
    frame = pl.DataFrame(rows, schema=schemas.DISORDER, orient="row")
    return frame.filter(pl.col("by_ns") > 0).sort("seq")


def _runs(raw: Raw, ran: Runs) -> Iterator[_Row]:
    """Runs of one task that overlap, and work for its guest within them.

    A task does not leave its CPU between kvm_entry and kvm_exit (preemption is off), and cannot enter twice. Lost records
    look otherwise: they leave two entries, or two exits, without their counterparts.
    """
    outside = [raw[name] for name in _OUTSIDE if raw[name].height]
    for pid in raw["enter"]["pid"].unique().sort().to_list():
        entries, exits = ran.entries_of_task.get(pid), ran.exits_of_task.get(pid)
        if not len(exits.seq):
            continue
        if not in_step(entries, exits):
            yield from _overlaps(pid, ran)
        for frame in outside:
            yield from _inside(pid, ran, frame.filter(pl.col("pid") == pid))


def _overlaps(pid: int, ran: Runs) -> Iterator[_Row]:
    """Two entries of a task on different CPUs, then the exits of both."""
    entries, exits = ran.entries_of_task.get(pid), ran.exits_of_task.get(pid)
    following = np.searchsorted(exits.seq, entries.seq, side="right")
    twice = np.flatnonzero(following[1:] == following[:-1]) + 1
    ones, others = (ran.entries_of_task.cpus(entries.seq[places]) for places in (twice - 1, twice))
    moved = np.flatnonzero((ones != others) & (following[twice] + 2 <= len(exits.seq)))
    for second, one, other in zip(
        twice[moved].tolist(), ones[moved].tolist(), others[moved].tolist(), strict=True
    ):
        first, at = second - 1, int(following[second])
        if second + 1 < len(entries.seq) and entries.seq[second + 1] < exits.seq[at + 1]:
            continue
        if first and following[first - 1] == at:
            continue
        ends = ran.exits_of_task.cpus(exits.seq[at : at + 2]).tolist()
        if sorted(ends) != sorted((one, other)):
            continue
        # The first entry's run was over before the second entry, whatever the stamps say.
        end = at + ends.index(one)
        yield (
            "run",
            *(int(entries.seq[second]), int(entries.time_ns[second]), other, pid),
            *(int(exits.seq[end]), int(exits.time_ns[end]), one),
            int(exits.time_ns[end] - entries.time_ns[second]),
        )


def _inside(pid: int, ran: Runs, work: pl.DataFrame) -> Iterator[_Row]:
    """Work for the guest between a task's entry and its exit, with nothing of either missing."""
    if work.is_empty():
        return
    entries, exits = ran.entries_of_task.get(pid), ran.exits_of_task.get(pid)
    seqs = work["seq"].to_numpy()
    entered = np.searchsorted(entries.seq, seqs, side="right") - 1
    following = np.searchsorted(exits.seq, seqs, side="right")
    place = np.flatnonzero((entered >= 0) & (following > 0) & (following < len(exits.seq)))
    entry, end = entered[place], following[place]
    # Entry, work, exit, with no other entry or exit between.
    next_entry = np.where(
        entry + 1 < len(entries.seq), entries.seq[np.minimum(entry + 1, len(entries.seq) - 1)], NEVER
    )
    inside = np.flatnonzero((exits.seq[end - 1] < entries.seq[entry]) & (next_entry > exits.seq[end]))
    begun, over = entries.seq[entry[inside]], exits.seq[end[inside]]
    cpus = ran.entries_of_task.cpus(begun)
    inside = inside[cpus == ran.exits_of_task.cpus(over)]
    for at in inside.tolist():
        row = work.row(int(place[at]), named=True)
        begin, leave = int(entry[at]), int(end[at])
        first = entries.seq[begin : begin + 1]
        yield (
            "guest",
            *(row["seq"], row["time_ns"], row["cpu"], pid),
            *(int(first[0]), int(entries.time_ns[begin]), int(ran.entries_of_task.cpus(first)[0])),
            int(min(row["time_ns"] - entries.time_ns[begin], exits.time_ns[leave] - row["time_ns"])),
        )


def _commands(commands: pl.DataFrame) -> Iterator[_Row]:
    """Commands stamped before one that their ITS took earlier: the order of a queue is not that of the stamps."""
    for _, mine in commands.group_by("vm", "its", maintain_order=True):
        rows = mine.with_columns(
            reached=pl.col("seq").cum_max(), part=pl.col("lost_before").cast(pl.UInt32).cum_sum()
        )
        rows = rows.with_columns(reached=pl.col("seq").cum_max().over("part"))
        late = rows.filter(pl.col("seq") < pl.col("reached"))
        ahead = mine.select(reached="seq", other_ns="time_ns", other_cpu="cpu")
        late = late.join(ahead, on="reached", how="left", maintain_order="left")
        for row in late.iter_rows(named=True):
            yield (
                "command",
                *(row["seq"], row["time_ns"], row["cpu"], row["pid"]),
                *(row["reached"], row["other_ns"], row["other_cpu"]),
                row["other_ns"] - row["time_ns"],
            )
