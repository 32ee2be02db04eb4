"""Records whose time stamps tell an order in which they cannot have happened: the clocks of two buffers disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from itstrace import schemas
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from itstrace.observe.collect import Raw

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


class _Stamped:
    """Records of one probe and task. Arrays of one length, in order of `seq`."""

    def __init__(self, frame: pl.DataFrame, mine: npt.NDArray[np.bool_] | slice) -> None:
        self.seq = frame["seq"].to_numpy()[mine]
        self.time_ns = frame["time_ns"].to_numpy()[mine]
        self.cpu = frame["cpu"].to_numpy()[mine]

    def __len__(self) -> int:
        return len(self.seq)


def disorder(raw: Raw, commands: pl.DataFrame) -> pl.DataFrame:
    """Every order in time that cannot be. Shape: rows of DISORDER."""
    rows = [*_runs(raw), *_commands(commands)]
    frame = pl.DataFrame(rows, schema=schemas.DISORDER, orient="row")
    return frame.filter(pl.col("by_ns") > 0).sort("seq")


def _runs(raw: Raw) -> Iterator[_Row]:
    """Runs of one task that overlap, and work for its guest within them.

    A task does not leave its CPU between kvm_entry and kvm_exit (preemption is off), and cannot enter twice. Lost records
    look otherwise: they leave two entries, or two exits, without their counterparts.
    """
    pids = raw["enter"]["pid"].to_numpy()
    exit_pids = raw["exit"]["pid"].to_numpy()
    outside = [(name, raw[name]["pid"].to_numpy()) for name in _OUTSIDE if raw[name].height]
    for pid in np.unique(pids).tolist():
        entries, exits = _Stamped(raw["enter"], pids == pid), _Stamped(raw["exit"], exit_pids == pid)
        if not len(exits):
            continue
        yield from _overlaps(pid, entries, exits)
        for name, whose in outside:
            yield from _inside(pid, entries, exits, _Stamped(raw[name], whose == pid))


def _overlaps(pid: int, entries: _Stamped, exits: _Stamped) -> Iterator[_Row]:
    """Two entries of a task on different CPUs, then the exits of both."""
    following = np.searchsorted(exits.seq, entries.seq, side="right")
    for second in (np.flatnonzero(following[1:] == following[:-1]) + 1).tolist():
        first, at = second - 1, int(following[second])
        one, other = int(entries.cpu[first]), int(entries.cpu[second])
        if at + 2 > len(exits) or one == other:
            continue
        if second + 1 < len(entries) and entries.seq[second + 1] < exits.seq[at + 1]:
            continue
        if first and following[first - 1] == at:
            continue
        ends = [int(exits.cpu[at]), int(exits.cpu[at + 1])]
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


def _inside(pid: int, entries: _Stamped, exits: _Stamped, work: _Stamped) -> Iterator[_Row]:
    """Work for the guest between a task's entry and its exit, with nothing of either missing."""
    if not len(work):
        return
    entered = np.searchsorted(entries.seq, work.seq, side="right") - 1
    following = np.searchsorted(exits.seq, work.seq, side="right")
    place = np.flatnonzero((entered >= 0) & (following > 0) & (following < len(exits)))
    entry, end = entered[place], following[place]
    # Entry, work, exit, with no other entry or exit between.
    next_entry = np.append(entries.seq, np.uint64(NEVER))[entry + 1]
    inside = (exits.seq[end - 1] < entries.seq[entry]) & (next_entry > exits.seq[end])
    inside &= entries.cpu[entry] == exits.cpu[end]
    for at, begun, over in zip(
        place[inside].tolist(), entry[inside].tolist(), end[inside].tolist(), strict=True
    ):
        early = work.time_ns[at] - entries.time_ns[begun]
        late = exits.time_ns[over] - work.time_ns[at]
        yield (
            "guest",
            *(int(work.seq[at]), int(work.time_ns[at]), int(work.cpu[at]), pid),
            *(int(entries.seq[begun]), int(entries.time_ns[begun]), int(entries.cpu[begun])),
            int(min(early, late)),
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
