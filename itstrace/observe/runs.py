"""When vCPUs were in the guest: the only observation with a row per entry, so it is kept as arrays and asked by search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from itstrace import schemas

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from itstrace.observe.collect import Raw
    from itstrace.observe.identity import Identity

#: Where there is no such record.
NEVER = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Stamps:
    """Records of one kind on one task. `seq` and `time_ns` are arrays of one length, in order of `seq`."""

    seq: npt.NDArray[np.uint64]
    time_ns: npt.NDArray[np.int64]

    def after(self, seqs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The first record after each seq; NEVER where there is none."""
        return _at(self.seq, np.searchsorted(self.seq, seqs, side="right"), NEVER)

    def time_of(self, seqs: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Times of records of this kind, given by their seqs; those of NEVER are meaningless."""
        return _at(self.time_ns, np.searchsorted(self.seq, seqs, side="left"), 0)


def _at(values: npt.NDArray[Any], places: npt.NDArray[np.intp], otherwise: int) -> npt.NDArray[Any]:
    """Values at some places; something else for the place behind the last."""
    found = np.full(len(places), otherwise, values.dtype)
    there = places < len(values)
    found[there] = values[places[there]]
    return found


NOTHING = Stamps(np.empty(0, np.uint64), np.empty(0, np.int64))


class Tasks:
    """Records of a raw frame, of whichever task is asked for."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._pids = frame["pid"].to_numpy()
        self._seq, self._time_ns = frame["seq"].to_numpy(), frame["time_ns"].to_numpy()
        self._found: dict[int, Stamps] = {}

    def get(self, pid: int) -> Stamps:
        """One task's records; none for a task that has none."""
        if pid not in self._found:
            mine = np.flatnonzero(self._pids == pid)
            self._found[pid] = Stamps(self._seq[mine], self._time_ns[mine])
        return self._found[pid]


class Runs:
    """Entries to and exits from the guest, of every vCPU whose task is known."""

    def __init__(self, raw: Raw, identity: Identity) -> None:
        self.entries_of_task = Tasks(raw["enter"])
        exits = Tasks(raw["exit"])
        tasks: dict[tuple[int, int], list[int]] = {}
        for vm, vcpu, pid in identity.vcpus.select("vm", "vcpu", "pid").iter_rows():
            tasks.setdefault((vm, vcpu), []).append(pid)
        self._tasks = tasks
        self.entries = {key: _joined(self.entries_of_task, pids) for key, pids in tasks.items()}
        self.exits = {key: _joined(exits, pids) for key, pids in tasks.items()}

    @property
    def height(self) -> int:
        """How many entries there are."""
        return sum(len(stamps.seq) for stamps in self.entries.values())

    def task_of(self, vm: int, vcpu: int) -> int | None:
        """The task that runs a vCPU; None where several did, one after the other."""
        pids = self._tasks.get((vm, vcpu), ())
        return pids[0] if len(pids) == 1 else None

    def next_entry_of_task(self, rows: pl.DataFrame) -> pl.DataFrame:
        """For each row (pid, seq), the task's next entry. Shape: entry_seq, entry_ns, in the rows' order."""
        return self._next(rows, lambda key: self.entries_of_task.get(key[0]), ["pid"], "entry")

    def next_entry(self, rows: pl.DataFrame) -> pl.DataFrame:
        """For each row (vm, vcpu, seq), the vCPU's next entry. Shape: entry_seq, entry_ns, in the rows' order."""
        return self._next(rows, lambda key: self.entries.get(key, NOTHING), ["vm", "vcpu"], "entry")

    def next_exit(self, rows: pl.DataFrame) -> pl.DataFrame:
        """For each row (vm, vcpu, seq), the vCPU's next exit. Shape: exit_seq, exit_ns, in the rows' order."""
        return self._next(rows, lambda key: self.exits.get(key, NOTHING), ["vm", "vcpu"], "exit")

    @staticmethod
    def _next(rows: pl.DataFrame, find: Callable[[Any], Stamps], keys: list[str], name: str) -> pl.DataFrame:
        seqs = rows["seq"].fill_null(NEVER).to_numpy()
        found = np.full(len(seqs), NEVER, np.uint64)
        times = np.zeros(len(seqs), np.int64)
        for key in rows.select(keys).unique().iter_rows():
            mine = np.ones(len(seqs), np.bool_)
            for column, value in zip(keys, key, strict=True):
                mine &= (rows[column] == value).fill_null(value=False).to_numpy()
            one = find(key)
            found[mine] = one.after(seqs[mine])
            times[mine] = one.time_of(found[mine])
        frame = pl.DataFrame({f"{name}_seq": found, f"{name}_ns": times})
        none = pl.col(f"{name}_seq") == NEVER
        return frame.with_columns(pl.when(~none).then(pl.col(c)).alias(c) for c in frame.columns)

    def frame(self) -> pl.DataFrame:
        """All of them as a frame. Shape: rows of RUNS, vCPU by vCPU, each in order of entry."""
        parts = []
        for (vm, vcpu), entries in self.entries.items():
            exits = self.exits[vm, vcpu]
            exit_seq = exits.after(entries.seq)
            # An exit that comes only after the next entry belongs to that one: this one's was lost.
            following = np.append(entries.seq[1:], np.uint64(NEVER))
            exit_seq = np.where(exit_seq < following, exit_seq, np.uint64(NEVER))
            rows = pl.DataFrame(
                {
                    "enter_seq": entries.seq,
                    "enter_ns": entries.time_ns,
                    "exit_seq": exit_seq,
                    "exit_ns": exits.time_of(exit_seq),
                }
            )
            known = pl.col("exit_seq") != NEVER
            parts.append(
                rows.with_columns(
                    pl.lit(vm).alias("vm"),
                    pl.lit(vcpu).alias("vcpu"),
                    pl.lit(self._tasks[vm, vcpu][0]).alias("pid"),
                    exit_ns=pl.when(known).then("exit_ns"),
                    exit_seq=pl.when(known).then("exit_seq"),
                )
                .select(schemas.RUNS.names())
                .cast(schemas.RUNS)
            )
        return pl.concat(parts) if parts else pl.DataFrame(schema=schemas.RUNS)


def _joined(stamps: Tasks, pids: list[int]) -> Stamps:
    """Records of all tasks that ran one vCPU, in order."""
    parts = [stamps.get(pid) for pid in pids]
    if len(parts) == 1:
        return parts[0]
    seq = np.concatenate([part.seq for part in parts])
    order = np.argsort(seq, kind="stable")
    return Stamps(seq[order], np.concatenate([part.time_ns for part in parts])[order])
