"""When vCPUs were in the guest: the only observation with a row per entry, so it is kept as arrays and asked by search."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
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
#: Why a vCPU left the guest: an interrupt of the host's, WFI or WFE, or not recorded; else ESR_EL2.EC of its trap.
#: Kernel: trace_arm.h:kvm_exit (0 where it was no trap), esr.h:ESR_ELx_EC_WFx.
INTERRUPTED, WAITING, UNKNOWN = 0x00, 0x01, 0xFF


@dataclass(frozen=True, slots=True)
class Stamps:
    """Records of one kind on one task, in order of `seq`; all arrays have one length. `why`: of an exit, else empty."""

    seq: npt.NDArray[np.uint64]
    time_ns: npt.NDArray[np.int64]
    why: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def after(self, seqs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The first record after each seq; NEVER where there is none."""
        return _at(self.seq, np.searchsorted(self.seq, seqs, side="right"), NEVER)

    def before(self, seqs: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        """The place of the last record before each seq; -1 where there is none."""
        return np.searchsorted(self.seq, seqs, side="left") - 1

    def time_of(self, seqs: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Times of records of this kind, given by their seqs; those of NEVER are meaningless."""
        return _at(self.time_ns, np.searchsorted(self.seq, seqs, side="left"), 0)


def _at(values: npt.NDArray[Any], places: npt.NDArray[np.intp], otherwise: int) -> npt.NDArray[Any]:
    """Values at some places; something else for the place behind the last."""
    found = np.full(len(places), otherwise, values.dtype)
    there = places < len(values)
    found[there] = values[places[there]]
    return found


def in_step(entries: Stamps, exits: Stamps) -> bool:
    """Whether the two alternate; asked first, for there are millions of them."""
    if not len(entries.seq) or not len(exits.seq):
        return len(entries.seq) + len(exits.seq) <= 1
    first, second = (entries.seq, exits.seq) if entries.seq[0] < exits.seq[0] else (exits.seq, entries.seq)
    if not 0 <= len(first) - len(second) <= 1:
        return False
    return bool((first[: len(second)] < second).all() and (second[: len(first) - 1] < first[1:]).all())


NOTHING = Stamps(np.empty(0, np.uint64), np.empty(0, np.int64))


class Tasks:
    """Records of a raw frame, of whichever task is asked for."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._pids = frame["pid"].to_numpy()
        self._seq, self._time_ns = frame["seq"].to_numpy(), frame["time_ns"].to_numpy()
        self._cpus = frame["cpu"]
        self._why = None
        if "esr_ec" in frame.columns:
            # ESR_EL2.EC has six bits. Spec: DDI 0487, ESR_EL2.
            ec = frame.select(pl.col("esr_ec").fill_null(UNKNOWN).clip(0, UNKNOWN).cast(pl.UInt8))
            self._why = ec["esr_ec"].to_numpy()
        self._found: dict[int, Stamps] = {}

    def get(self, pid: int) -> Stamps:
        """One task's records; none for a task that has none."""
        if pid not in self._found:
            mine = np.flatnonzero(self._pids == pid)
            why = [] if self._why is None else [self._why[mine]]
            self._found[pid] = Stamps(self._seq[mine], self._time_ns[mine], *why)
        return self._found[pid]

    def cpus(self, seqs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
        """The CPUs of records, given by their seqs."""
        return self._cpus.gather(np.searchsorted(self._seq, seqs)).to_numpy()


class Runs:
    """Entries to and exits from the guest, of every vCPU whose task is known."""

    def __init__(self, raw: Raw, identity: Identity) -> None:
        self.entries_of_task = Tasks(raw["enter"])
        exits = self.exits_of_task = Tasks(raw["exit"])
        tasks: dict[tuple[int, int], list[int]] = {}
        for vm, vcpu, pid in identity.vcpus.select("vm", "vcpu", "pid").iter_rows():
            tasks.setdefault((vm, vcpu), []).append(pid)
        # Two tasks that run one vCPU at the same time are vCPUs of two VMs, one of which the capture does not
        # show: nothing is known of either.
        tasks = {key: pids for key, pids in tasks.items() if not self._at_once(pids)}
        self._tasks = tasks
        self.entries = {key: _joined(self.entries_of_task, pids) for key, pids in tasks.items()}
        self.exits = {key: _joined(exits, pids) for key, pids in tasks.items()}

    def _at_once(self, pids: list[int]) -> bool:
        """Whether several tasks entered the guest by turns."""
        stamps = [one.seq for pid in pids if len((one := self.entries_of_task.get(pid)).seq)]
        spans = sorted((int(seq[0]), int(seq[-1])) for seq in stamps)
        return any(later[0] < earlier[1] for earlier, later in pairwise(spans))

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

    def last_exit(self, rows: pl.DataFrame) -> pl.DataFrame:
        """For each row (vm, vcpu, seq), the vCPU's last exit before. Shape: exit_seq, exit_ns, why, in the rows' order.

        `why` is null where it was not recorded.
        """
        seqs = rows["seq"].fill_null(0).to_numpy()
        found = np.full(len(seqs), NEVER, np.uint64)
        times, why = np.zeros(len(seqs), np.int64), np.full(len(seqs), UNKNOWN, np.uint8)
        for key, exits in self.exits.items():
            mine = np.flatnonzero(((rows["vm"] == key[0]) & (rows["vcpu"] == key[1])).fill_null(value=False))
            places = exits.before(seqs[mine])
            mine, places = mine[places >= 0], places[places >= 0]
            found[mine], times[mine] = exits.seq[places], exits.time_ns[places]
            if len(exits.why):
                why[mine] = exits.why[places]
        frame = pl.DataFrame({"exit_seq": found, "exit_ns": times, "why": why})
        none = pl.col("exit_seq") == NEVER
        return frame.with_columns(
            exit_seq=pl.when(~none).then("exit_seq"),
            exit_ns=pl.when(~none).then("exit_ns"),
            why=pl.when(~none & (pl.col("why") != UNKNOWN)).then("why"),
        )

    def away_ns(self, why: int) -> npt.NDArray[np.int64]:
        """How long vCPUs that left the guest for one reason stayed away each time, over all of them."""
        spans = [np.empty(0, np.int64)]
        for key, exits in self.exits.items():
            if not len(exits.why):
                continue
            left = np.flatnonzero(exits.why == why)
            back = self.entries[key].after(exits.seq[left])
            # Another exit before the next entry: the entry between them was not recorded.
            following = _at(exits.seq, left + 1, NEVER)
            whole = (back != NEVER) & (back < following)
            left, back = left[whole], back[whole]
            spans.append(self.entries[key].time_of(back) - exits.time_ns[left])
        return np.concatenate(spans)

    def others_stays(self, rows: pl.DataFrame) -> pl.Series:
        """For each row (vm, vcpu, seq, until), how many stays in the guest other vCPUs of its VM had in between."""
        begin, end = rows["seq"].to_numpy(), rows["until"].fill_null(NEVER).to_numpy()
        found = np.zeros(len(begin), np.int64)
        for key, entries in self.entries.items():
            mine = np.flatnonzero(((rows["vm"] == key[0]) & (rows["vcpu"] != key[1])).fill_null(value=False))
            first = np.searchsorted(entries.seq, begin[mine], side="right")
            entered = np.searchsorted(entries.seq, end[mine], side="left") - first
            exits = self.exits[key].seq
            entry, leave = first - 1, np.searchsorted(exits, begin[mine], side="right") - 1
            inside = (entry >= 0) & ((leave < 0) | (_at(entries.seq, entry, 0) > _at(exits, leave, 0)))
            found[mine] += entered + inside
        return pl.Series("stays", found)

    def longest_silence_ns(self, from_seq: int, to_seq: int | None, from_ns: int, to_ns: int) -> int:
        """The longest time within a span in which no vCPU of any VM entered or left the guest."""
        last = NEVER if to_seq is None else to_seq
        times = [np.array([from_ns, to_ns], np.int64)]
        for stamps in (*self.entries.values(), *self.exits.values()):
            begin, end = np.searchsorted(stamps.seq, np.array([from_seq, last], np.uint64))
            times.append(stamps.time_ns[begin:end])
        return int(np.diff(np.sort(np.concatenate(times))).max())

    @staticmethod
    def _next(rows: pl.DataFrame, find: Callable[[Any], Stamps], keys: list[str], name: str) -> pl.DataFrame:
        if rows.is_empty():
            return pl.DataFrame(schema={f"{name}_seq": pl.UInt64, f"{name}_ns": pl.Int64})
        seqs = rows["seq"].fill_null(NEVER).to_numpy()
        found = np.full(len(seqs), NEVER, np.uint64)
        times = np.zeros(len(seqs), np.int64)
        for key in rows.select(keys).drop_nulls().unique().iter_rows():
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
    why = np.concatenate([part.why for part in parts])
    times = np.concatenate([part.time_ns for part in parts])[order]
    return Stamps(seq[order], times, why[order] if len(why) else why)
