"""The records that are no samples: names of tasks, and what was lost."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from itstrace.readers.perfdata.contents import Record
from itstrace.readers.perfdata.samples import MAX_TIME
from itstrace.readers.tally import Gap

if TYPE_CHECKING:
    from itstrace.readers.perfdata.attributes import Trailer
    from itstrace.readers.perfdata.samples import Samples
    from itstrace.readers.perfdata.walk import Chain
    from itstrace.readers.tally import Tally

_TAKEN: Final = np.array(sorted({Record.COMM, Record.FORK, Record.ID_INDEX, Record.LOST_SAMPLES}), np.uint32)
_MAX_CPU: Final = (1 << 16) - 1
#: Source: include/linux/threads.h:PID_MAX_LIMIT (v6.12)
_PIDS_END: Final = 1 << 22


@dataclass(slots=True)
class _Loss:
    """Records lost on a CPU: after `from_ns` (None: unknown), before the CPU's next sample, at `told_ns` at the latest."""

    from_ns: int | None
    told_ns: int | None
    lost: int | None


class OtherRecords:
    """Takes in the records that are no samples, in the order of the file."""

    def __init__(self, trailer: Trailer, tally: Tally, *, big_endian: bool) -> None:
        self._trailer = trailer
        self._tally = tally
        self._order = "big" if big_endian else "little"
        #: The idle task has no record of its own. Source: tools/perf/util/machine.c:machine__create_kernel_maps
        self.comms: dict[int, str] = {0: "swapper"}
        #: of every CPU the last sample's time so far, -1 where there is none
        self._last_ns = np.full(_MAX_CPU + 1, -1, np.int64)
        self._open: dict[int, list[_Loss]] = defaultdict(list)
        #: id -> CPU
        self._cpus: dict[int, int] = {}
        self._told: dict[int, int] = defaultdict(int)
        #: lost by CPU, as the kernel counted it by event and perf wrote it down at the end
        self._summed: dict[int, int] = defaultdict(int)
        self._unplaced = 0
        self._holes = 0

    def add(self, chain: Chain, samples: Samples, holes: int) -> None:
        """Take in some records, whose samples are decoded already; `holes` counts the damaged places before them."""
        if holes > self._holes:
            self._note_hole()
            self._holes = holes
        types = chain.types
        for i in np.flatnonzero(np.isin(types, _TAKEN)).tolist():
            start, size = int(chain.starts[i]), int(chain.sizes[i])
            record = chain.raw[start : start + size].tobytes()
            match int(types[i]):
                case Record.COMM:
                    self._name(record)
                case Record.FORK:
                    self._fork(record)
                case Record.ID_INDEX:
                    self._learn_cpus(record)
                case Record.LOST_SAMPLES:
                    self._note_sum(record)
        self._losses(chain, samples)

    def finish(self, holes: int) -> None:
        """Tell what was lost behind the last samples, and what perf's own sums say was lost besides."""
        if holes > self._holes:
            self._note_hole()
        for cpu, losses in self._open.items():
            for loss in losses:
                self._gap(cpu, loss, None)
        self._open.clear()
        for cpu, total in self._summed.items():
            rest = total - self._told[cpu]
            if rest > 0:
                # No record tells of them: behind the last one of this CPU its buffer never had room again.
                self._tally.gaps.append(Gap(cpu, self._last_of(cpu), None, rest))

        rest = (
            self._unplaced
            + sum(self._summed.values())
            - max(sum(self._told.values()), sum(self._summed.values()))
        )
        if rest > 0:
            self._tally.bad(
                None, None, f"{rest} samples were lost, the file does not say on which CPU and when"
            )

    # -- names -------------------------------------------------------------------------------------------------

    def _number(self, record: bytes, at: int, size_bytes: int) -> int:
        return int.from_bytes(record[at : at + size_bytes], self._order)  # type: ignore[arg-type]

    def _name(self, record: bytes) -> None:
        # Source: perf_event.h:PERF_RECORD_COMM: pid, tid, comm
        if len(record) > 16:
            comm = record[16:32].split(b"\0", 1)[0].decode("utf-8", "replace")
            self._call(self._number(record, 12, 4), comm)

    def _fork(self, record: bytes) -> None:
        # Source: perf_event.h:PERF_RECORD_FORK: pid, ppid, tid, ptid; the child has its parent's name at first
        if len(record) >= 24:
            parent = self._number(record, 20, 4)
            if parent in self.comms:
                self._call(self._number(record, 16, 4), self.comms[parent])

    def _call(self, tid: int, comm: str) -> None:
        if tid < _PIDS_END:
            self.comms[tid] = comm

    # -- losses ------------------------------------------------------------------------------------------------

    def _learn_cpus(self, record: bytes) -> None:
        # Source: tools/lib/perf/include/perf/event.h:struct perf_record_id_index: nr, {id, idx, cpu, tid}[nr]
        for at in range(16, min(len(record) - 31, 16 + 32 * self._number(record, 8, 8)), 32):
            cpu = self._number(record, at + 16, 8)
            if cpu <= _MAX_CPU:
                self._cpus[self._number(record, at, 8)] = cpu

    def _note_sum(self, record: bytes) -> None:
        """Take one event's losses on one CPU: perf reads them off when it stops, with the id and without a time."""
        lost = self._number(record, 8, 8) if len(record) >= 16 else 0
        place = self._trailer.id_before_end
        cpu = None
        if place is not None and len(record) >= 16 + self._trailer.size_bytes:
            cpu = self._cpus.get(self._number(record, len(record) - place, 8))
        if cpu is None:
            self._unplaced += lost
        else:
            self._summed[cpu] += lost

    def _losses(self, chain: Chain, samples: Samples) -> None:
        """Tie every LOST record to the samples before and behind it on its CPU, in the order of the file.

        The record's own time is no bound: it is taken when the buffer has room again, after that of the sample which
        then follows it. Source: kernel/events/ring_buffer.c:__perf_output_begin (v6.12)
        """
        fresh: dict[int, list[tuple[int, _Loss]]] = defaultdict(list)
        for i in np.flatnonzero(chain.types == Record.LOST).tolist():
            start = int(chain.starts[i])
            record = chain.raw[start : start + int(chain.sizes[i])].tobytes()
            if len(record) >= 24:
                cpu, loss = self._lost(record)
                fresh[cpu].append((start, loss))
                self._told[cpu] += loss.lost or 0
        for cpu in {*fresh, *self._open}:
            mine = np.flatnonzero(samples.cpus == cpu)
            times, places = samples.times[mine], samples.records[mine]
            if len(mine):
                for loss in self._open.pop(cpu, []):
                    self._gap(cpu, loss, int(times[0]))
            for start, loss in fresh[cpu]:
                i = int(np.searchsorted(places, start))
                loss.from_ns = int(times[i - 1]) if i else self._last_of(cpu)
                if i < len(times):
                    self._gap(cpu, loss, int(times[i]))
                else:
                    self._open[cpu].append(loss)
        self._last_ns[samples.cpus] = samples.times

    def _lost(self, record: bytes) -> tuple[int, _Loss]:
        # Source: perf_event.h:PERF_RECORD_LOST: id, lost
        trailer = self._trailer
        cpu, told = self._cpus.get(self._number(record, 8, 8), 0), None
        if len(record) >= 24 + trailer.size_bytes:
            if trailer.cpu_before_end is not None:
                cpu = self._number(record, len(record) - trailer.cpu_before_end, 4)
            if trailer.time_before_end is not None:
                stamp = self._number(record, len(record) - trailer.time_before_end, 8)
                told = stamp if stamp <= MAX_TIME else None
        return min(cpu, _MAX_CPU), _Loss(None, told, self._number(record, 16, 8))

    def _note_hole(self) -> None:
        """Keep that the file itself lacks records here, of any CPU."""
        for cpu in {*np.flatnonzero(self._last_ns >= 0).tolist(), *self._cpus.values()}:
            if all(loss.lost is not None for loss in self._open[cpu]):
                self._open[cpu].append(_Loss(self._last_of(cpu), None, None))

    def _last_of(self, cpu: int) -> int | None:
        last = int(self._last_ns[cpu])
        return last if last >= 0 else None

    def _gap(self, cpu: int, loss: _Loss, next_ns: int | None) -> None:
        known = [time for time in (next_ns, loss.told_ns) if time is not None]
        to_ns = min(known) if known else None
        if to_ns is not None and loss.from_ns is not None:
            to_ns = max(to_ns, loss.from_ns)
        self._tally.gaps.append(Gap(cpu, loss.from_ns, to_ns, loss.lost))
