"""What one reading of a text finds besides its records: counts, tasks, losses, damage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from itstrace.errors import Damage
from itstrace.readers.tally import Gap, Reading
from itstrace.readers.text.numbers import GUARD_BYTES

if TYPE_CHECKING:
    import mmap

    from itstrace.readers.text.chunks import Chunk
    from itstrace.readers.text.heads import Heads
    from itstrace.readers.text.numbers import Places

#: `CPU:1 [LOST 352 EVENTS]` of trace_pipe, `CPU:1 [352 EVENTS DROPPED]` of trace-cmd, either without a number.
#: Source: kernel/trace/trace.c:trace_print_lat_fmt, print_trace_line (v6.12); trace-cmd trace-read.c:show_data
_LOST = re.compile(rb"CPU:\s{0,4}(\d{1,5}) \[(?:LOST )?(?:(\d{1,18}) )?EVENTS(?: DROPPED)?\]")
#: perf script --show-lost-events. Source: tools/perf/util/event.c:perf_event__fprintf_lost
_PERF_LOST = re.compile(rb": PERF_RECORD_LOST(?:_SAMPLES)?.{0,80}? lost (\d{1,18})")
#: An event amid the calls of the function_graph tracer: a comment, without task and time.
#: Source: kernel/trace/trace_functions_graph.c:print_graph_comment (v6.12)
_COMMENT = re.compile(rb"\|\s*/\* \w+: ")
#: A function and who called it. Source: kernel/trace/trace_output.c:trace_fn_trace (v6.12)
_FUNCTION = re.compile(rb" <-+\s?\S")
#: Readers of several CPUs' pipes overtake each other by less. A line with a wrong time stands alone among its neighbours;
#: where these many before and behind agree, one recording ends and an older one begins.
_OVERTAKEN_NS, _NEIGHBOURS = 200_000_000, 3
#: Lines of so many events do not end at one column by chance, where so large a share of all lines does.
_CUT_EVENTS, _CUT_SHARE, _FEW_LINES = 5, 0.1, 200
_MAX_GAPS = 1 << 20
#: More pairs of event and CPU than any machine has: counting them in a table would cost more than sorting.
_MANY_KEYS = 1 << 17
#: How much of a text that has no event's line is looked at for such comments.
_LOOKED_AT_BYTES = 1 << 20
_COMM_BYTES, _SHORT_COMM_BYTES, _LOOK_BACK_BYTES = 16, 8, 40
#: A file of a machine with more tasks than this is not one.
_MAX_TASKS = 1 << 22


@dataclass(slots=True)
class Tally(Reading):
    """Grows with every chunk; complete once the last was read."""

    #: records by (number of the event's name, CPU)
    counts: dict[tuple[int, int], int] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    comms: dict[int, str] = field(default_factory=dict)
    records: int = 0
    #: Lines with a head but no event's name: those of the function tracer.
    nameless: int = 0
    torn: int = 0
    #: Where the first line that is cut short begins: its number, and its place in the file.
    torn_at: tuple[int, int] | None = None
    disorder: int = 0
    in_comments: int = 0
    #: The column at which lines of many events end.
    cut_at: int | None = None
    no_cpu: int = 0
    no_pid: int = 0
    more_names: int = 0
    digits: int = 0
    #: The line from which on lines are of an older recording.
    older_at: int | None = None
    _last_times: Places = field(default_factory=lambda: np.empty(0, np.int64))
    _last_of_cpu: dict[int, int] = field(default_factory=dict)
    #: Losses whose end is not seen yet: (from, how many).
    _open: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)

    def note_lines(self, heads: Heads, codes: Places) -> None:
        """Count the records of a chunk."""
        named = codes >= 0
        cpus = np.maximum(heads.cpu[named], 0)
        width = int(cpus.max(initial=0)) + 1
        keys = codes[named] * width + cpus
        if keys.max(initial=0) < _MANY_KEYS:
            counts = np.bincount(keys)
            found = np.flatnonzero(counts)
            counts = counts[found]
        else:
            found, counts = np.unique(keys, return_counts=True)
        for each, count in zip(found.tolist(), counts.tolist(), strict=True):
            key = divmod(each, width)
            self.counts[key] = self.counts.get(key, 0) + count
        self.records += int(named.sum())
        self.more_names += int(((heads.name_end > 0) & ~named).sum())
        self.no_cpu += int((heads.cpu < 0).sum())
        self.no_pid += int((heads.pid < 0).sum())
        self.digits = max(self.digits, heads.digits)
        if len(heads):
            first, last = int(heads.time_ns.min()), int(heads.time_ns.max())
            self.first_ns = first if self.first_ns is None else min(first, self.first_ns)
            self.last_ns = last if self.last_ns is None else max(last, self.last_ns)

    def note_width(self, chunk: Chunk, heads: Heads, codes: Places) -> None:
        """See whether lines of many events end at one same column: a terminal's or a mailer's edge."""
        if len(heads) < _FEW_LINES or self.cut_at is not None:
            return
        widths = (chunk.ends - chunk.starts)[heads.line]
        at_edge = widths == widths.max()
        if at_edge.mean() >= _CUT_SHARE and len(np.unique(codes[at_edge])) >= _CUT_EVENTS:
            self.cut_at = int(widths.max())

    def note_order(self, chunk: Chunk, heads: Heads) -> None:
        """Look for the place at which another recording begins: from there on lines are much older than those before."""
        named = np.flatnonzero(heads.name_end > 0)
        times = np.concatenate([self._last_times, heads.time_ns[named]])
        self._last_times = times[-2 * _NEIGHBOURS + 1 :]
        if self.older_at is not None or len(times) < 2 * _NEIGHBOURS:
            return
        windows = sliding_window_view(times, _NEIGHBOURS)
        before, behind = windows[:-_NEIGHBOURS].min(axis=1), windows[_NEIGHBOURS:].max(axis=1)
        older = np.flatnonzero(behind < before - _OVERTAKEN_NS)
        if len(older):
            # The first of the lines behind; it is in this chunk, or a few lines before it.
            at = int(older[0]) + _NEIGHBOURS - (len(times) - len(named))
            self.older_at = chunk.first_line + (int(heads.line[named[at]]) if at >= 0 else at) + 1

    def note_tasks(self, chunk: Chunk, heads: Heads) -> None:
        """Keep the names of tasks that were not met before."""
        # A task prints many lines in a row: only where it changes can there be a new one.
        changes = np.flatnonzero(np.diff(heads.pid, prepend=-2))
        pids, first = np.unique(heads.pid[changes], return_index=True)
        for pid, at in zip(pids.tolist(), changes[first].tolist(), strict=True):
            if pid < 0 or pid in self.comms or len(self.comms) >= _MAX_TASKS:
                continue
            end = int(heads.comm_end[at])
            begin = max(end - _LOOK_BACK_BYTES, int(chunk.starts[heads.line[at]]))
            text = chunk.text(begin, end).rstrip()
            comm = text[-(_SHORT_COMM_BYTES if heads.short[at] else _COMM_BYTES) :].strip()
            if comm and comm != "<...>":
                self.comms[pid] = comm

    def note_torn(self, chunk: Chunk, lines: list[int]) -> None:
        """Count lines of a chunk that end before all of their fields."""
        self.torn += len(lines)
        if lines and self.torn_at is None:
            first = min(lines)
            self.torn_at = (
                chunk.first_line + first + 1,
                chunk.offset_bytes + int(chunk.starts[first]) - GUARD_BYTES,
            )

    def note_losses(self, chunk: Chunk, heads: Heads) -> None:
        """Keep where records are missing: from the CPU's record before the line that says so to the one after."""
        marks: list[tuple[int, int, int | None]] = []  # line, CPU, how many
        cut: list[int] = []
        # Only lines without a head of their own: what a task's name or a note says is no loss.
        headless = np.ones(len(chunk), np.bool_)
        headless[heads.line] = False
        for line in np.flatnonzero(headless).tolist():
            text = chunk.line(line)
            self.in_comments += _COMMENT.search(text) is not None
            match = _LOST.search(text)
            if match is not None:
                marks.append((line, int(match[1]), None if match[2] is None else int(match[2])))
        for at in np.flatnonzero(heads.name_end == 0).tolist():
            line = int(heads.line[at])
            text = chunk.line(line)
            match = _PERF_LOST.search(text)
            if match is not None:
                marks.append((line, max(int(heads.cpu[at]), 0), int(match[1])))
            elif _FUNCTION.search(text) is not None:
                self.nameless += 1
            else:
                cut.append(line)
        self.note_torn(chunk, cut)
        for line, cpu, lost in sorted(marks):
            self._note_loss(heads, line, cpu, lost)
        for cpu in list(self._open):
            self._close(heads, -1, cpu)
        if len(heads):
            by_cpu = np.maximum(heads.cpu, 0)
            cpus, from_end = np.unique(by_cpu[::-1], return_index=True)
            last = heads.time_ns[::-1][from_end]
            self._last_of_cpu.update(zip(cpus.tolist(), last.tolist(), strict=True))

    def _note_loss(self, heads: Heads, line: int, cpu: int, lost: int | None) -> None:
        """A loss on one CPU before one line; one that is still open there ends at the record before it."""
        self._close(heads, -1, cpu, line)
        before = np.flatnonzero((heads.cpu == cpu) & (heads.line < line))
        from_ns = int(heads.time_ns[before[-1]]) if len(before) else self._last_of_cpu.get(cpu)
        if cpu in self._open:
            earlier, more = self._open[cpu]
            from_ns, lost = earlier, None if lost is None or more is None else lost + more
        self._open[cpu] = (from_ns, lost)
        self._close(heads, line, cpu)

    def _close(self, heads: Heads, after: int, cpu: int, until: int | None = None) -> None:
        if cpu not in self._open:
            return
        mine = (heads.cpu == cpu) & (heads.line > after)
        if until is not None:
            mine &= heads.line < until
        following = np.flatnonzero(mine)
        if len(following):
            from_ns, lost = self._open.pop(cpu)
            if len(self.gaps) < _MAX_GAPS:
                self.gaps.append(Gap(cpu, from_ns, int(heads.time_ns[following[0]]), lost))

    def finish(self) -> None:
        """Close what is still open, at the capture's bounds."""
        for cpu, (from_ns, lost) in self._open.items():
            self.gaps.append(Gap(cpu, from_ns, None, lost))
        self._open = {}

    def notes(self) -> list[str]:
        """What the text's form does not tell, and how it would."""
        said = {
            "events stand in comments of the function_graph tracer, which print neither task nor time, and are left "
            "out: echo nop > current_tracer": self.in_comments,
            "lines tell no CPU: perf script -F +cpu": self.no_cpu,
            "lines tell no task: perf script -F +pid,tid": self.no_pid,
        }
        found = [f"{count:,} {what}" for what, count in said.items() if count]
        if self.cut_at is not None:
            found.append(
                f"lines are cut at column {self.cut_at}: what stood behind it is missing, and a value at the cut may be wrong"
            )
        return found

    def all_damage(self) -> list[Damage]:
        """What of the text could not be used, or not trusted."""
        found = []
        if self.disorder:
            what = "lines are older than what was printed long before them, and are taken to be of that time"
            found.append(Damage(None, None, f"{self.disorder:,} {what}", disorder=True))
        if self.more_names:
            what = f"{self.more_names:,} lines have names beyond the 4,096 that a text may have"
            found.append(Damage(None, None, what))
        if self.torn_at is not None:
            line, offset = self.torn_at
            what = f"{self.torn:,} lines are cut short, the first is line {line:,}"
            found.append(
                Damage(offset, None, f"{what}: the value at the cut, and all behind it, are unknown")
            )
        return found


def looks_like_graph(data: mmap.mmap | bytes) -> bool:
    """Whether a text is the function_graph tracer's, with events in its comments."""
    return _COMMENT.search(data, 0, _LOOKED_AT_BYTES) is not None
