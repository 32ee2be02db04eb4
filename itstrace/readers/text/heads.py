"""The head of an event's line: task, CPU, time and the event's name, in whichever of the tracers' forms it stands.

    comm-pid     [cpu] flags seconds.micros: name: text        tracefs trace and trace_pipe, trace-cmd report
    comm-pid   (tgid) [cpu] flags ...                           with record-tgid
    comm-pid    cpu+flags    seconds.micros: name: text         latency format: trace-cmd report -l
    comm-pid    cpu+flags    123us+: name: text                 latency format of tracefs, ftrace_dump_on_oops
    comm  tid or pid/tid  [cpu] seconds.micros: group:name: text   perf script

A task's name may hold anything, also what looks like a head. So a line is read backwards from its time stamp: names
have 15 characters at most, which is too short for a whole head; the first stamp that has one before it is the
line's own. What stands before the task - a mail's quote marks, a console's time stamp - never matters.

Source: kernel/trace/trace_output.c:trace_print_context, trace_print_lat_context (v6.12); trace-cmd
trace-read.c; tools/perf/builtin-script.c:perf_sample__fprintf_start
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from itstrace.readers.text.numbers import Flags, Places, Words, decimals, last_of

if TYPE_CHECKING:
    from itstrace.readers.text.chunks import Chunk

_SPACE, _COLON, _DOT, _DASH, _SLASH = (ord(each) for each in " :.-/")
_OPEN, _CLOSE, _ROUND_OPEN, _ROUND_CLOSE = (ord(each) for each in "[]()")
_ZERO = ord("0")
_LOW_7, _HIGH = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x8080808080808080)
_DIGITS = np.uint64(0x3030303030303030)
_ABOVE_9 = np.uint64(0x7676767676767676)
#: Nothing in a head is wider: task names, the gaps between columns, and an event's group and name, 64 bytes each.
#: Source: include/linux/trace_events.h:MAX_EVENT_NAME_LEN (v6.12)
_REACH_WORDS = 17
#: The marks behind a latency format's microseconds. Source: kernel/trace/trace_output.c:trace_print_lat_context
_MARKS = np.zeros(256, np.bool_)
_MARKS[list(b" !#*+@$")] = True
#: A CPU column of at most five digits, as "[00001]".
_MAX_CPU_DIGITS = 5
_UNKNOWN = -1
_MAX_SECONDS = np.uint64((1 << 63) // 10**9)


class Stamp(Enum):
    """How a line's time is printed."""

    SECONDS = "seconds"  # 1113.302939 or 1113.302939123
    MICROS = "microseconds of the latency format"  # 123us
    COUNT = "counts of a clock without a unit"  # 123456789


@dataclass(slots=True)
class Heads:
    """The event lines of a chunk. Shape: one value a line; places are those of the chunk's `raw`. Units: ns.

    `pid` and `cpu` are -1 where the line does not tell them; `name_end` is 0 for a line without a name (a
    function's).
    """

    line: Places
    time_ns: Places
    cpu: Places
    pid: Places
    #: Where the task's name ends (behind it stand `-` or spaces, and the pid), and whether it is cut to 8 bytes.
    comm_end: Places
    short: Flags
    name_start: Places
    name_end: Places
    #: How many digits the fractions of the seconds have at most.
    digits: int

    def __len__(self) -> int:
        return len(self.line)


def _last_but(words: Words, character: int) -> Places:
    """The place (0 to 7) of the last byte of each word that is another; -1 where all are it."""
    other = words ^ np.uint64(character * 0x0101010101010101)
    return _top((((other & _LOW_7) + _LOW_7) | other) & _HIGH)


def _top(marks: Words) -> Places:
    return (np.frexp(marks.astype(np.float64))[1].astype(np.int64) + 7) // 8 - 1


def _last_no_digit(words: Words, _: int) -> Places:
    other = words ^ _DIGITS
    return _top((((other & _LOW_7) + _ABOVE_9) | other) & _HIGH)


class _Back:
    """Searches backwards from a place in every line at once, eight bytes a step."""

    def __init__(self, chunk: Chunk) -> None:
        self._words = chunk.words

    def to(self, character: int, before: Places, reach: int = _REACH_WORDS) -> Places:
        """The last such character before each place; -1 where there is none within reach, or no place."""
        return self._search(last_of, character, before, reach)

    def over(self, character: int, before: Places, reach: int = _REACH_WORDS) -> Places:
        """The last other character before each place; -1 where there is none within reach."""
        return self._search(_last_but, character, before, reach)

    def over_digits(self, before: Places) -> Places:
        """The last character before each place that is no digit; -1 where there is none within reach."""
        return self._search(_last_no_digit, 0, before, 3)

    def _search(self, find: object, character: int, before: Places, reach: int) -> Places:
        assert callable(find)
        place: Places = find(self._words[np.maximum(before - 8, 0)], character)
        found = np.where(place >= 0, before - 8 + place, _UNKNOWN)
        open_ones = np.flatnonzero(place < 0)
        for step in range(2, reach + 1):
            if not len(open_ones):
                break
            at = before[open_ones] - 8 * step
            inside = at >= 0
            open_ones, at = open_ones[inside], at[inside]
            place = find(self._words[at], character)
            hit = place >= 0
            found[open_ones[hit]] = at[hit] + place[hit]
            open_ones = open_ones[~hit]
        return found


def find_heads(chunk: Chunk, stamp: Stamp) -> Heads:
    """Find the event lines of a chunk whose times are printed in one way."""
    raw = chunk.raw
    colons = np.flatnonzero(raw == _COLON)
    behind = raw[colons + 1]
    # Behind a name or a stamp comes a blank or the line's end.
    colons = colons[(behind == _SPACE) | (behind == ord("\n")) | (behind == ord("\r"))]
    which, stamp_start, time_ns, digits = _STAMPS[stamp](chunk, colons)
    back = _Back(chunk)
    line = np.searchsorted(chunk.ends, colons[which], side="left")
    context = _context(chunk, back, stamp_start, chunk.starts[np.minimum(line, len(chunk) - 1)])
    good = np.flatnonzero(context.good)
    good = good[np.diff(line[good], prepend=_UNKNOWN) != 0]
    which, line, time_ns, digits = which[good], line[good], time_ns[good], digits[good]

    following = np.minimum(which + 1, len(colons) - 1)
    name_end = colons[following] if len(colons) else following
    named = (following > which) & (name_end < chunk.ends[line]) if len(colons) else np.zeros(0, np.bool_)
    blank = back.to(_SPACE, name_end)
    name_start = np.maximum(blank, colons[which]) + 1
    named &= (name_start < name_end) & (blank >= colons[which])
    return Heads(
        line,
        time_ns,
        context.cpu[good],
        context.pid[good],
        context.comm_end[good],
        context.short[good],
        np.where(named, name_start, colons[which] + 1),
        np.where(named, name_end, 0),
        int(digits.max(initial=0)),
    )


# -- stamps: which colons end one, where it begins, and the time in ns -------------------------------------


_Stamped = tuple[Places, Places, Places, Places]


def _seconds(chunk: Chunk, colons: Places) -> _Stamped:
    raw, words = chunk.raw, chunk.words
    micros = raw[colons - 7] == _DOT
    nanos = raw[colons - 10] == _DOT
    which = np.flatnonzero((micros | nanos) & (raw[colons - 1] - np.uint8(_ZERO) < 10))
    end = colons[which]
    digits = np.where(micros[which], 6, 9)
    dot = end - digits - 1
    fraction, good = decimals(words, dot + 1, end)
    start = _Back(chunk).over_digits(dot) + 1
    whole, fine = decimals(words, start, dot)
    # 64 bits of nanoseconds last until the year 2262; more than that is no time.
    good &= fine & (dot - start <= 10) & (whole < _MAX_SECONDS)
    time_ns = whole.astype(np.int64) * 1_000_000_000 + (
        fraction * np.where(digits == 6, 1000, 1).astype(np.uint64)
    ).astype(np.int64)
    return which[good], start[good], time_ns[good], digits[good]


def _micros(chunk: Chunk, colons: Places) -> _Stamped:
    raw, words = chunk.raw, chunk.words
    which = np.flatnonzero(
        (raw[colons - 2] == ord("s")) & (raw[colons - 3] == ord("u")) & _MARKS[raw[colons - 1]]
    )
    end = colons[which] - 3
    start = _Back(chunk).over_digits(end) + 1
    value, good = decimals(words, start, end)
    good &= end - start <= 15
    return which[good], start[good], value[good].astype(np.int64) * 1000, np.full(int(good.sum()), 6)


def _counts(chunk: Chunk, colons: Places) -> _Stamped:
    raw, words = chunk.raw, chunk.words
    which = np.flatnonzero(raw[colons - 1] - np.uint8(_ZERO) < 10)
    end = colons[which]
    start = _Back(chunk).over_digits(end) + 1
    value, good = decimals(words, start, end)
    good &= (end - start <= 18) & (raw[start - 1] == _SPACE)
    return which[good], start[good], value[good].astype(np.int64), np.full(int(good.sum()), 9)


_STAMPS = {Stamp.SECONDS: _seconds, Stamp.MICROS: _micros, Stamp.COUNT: _counts}


# -- what stands before a stamp: flags, CPU, thread group, pid -----------------------------------------------


@dataclass(slots=True)
class _Context:
    good: Flags
    cpu: Places
    pid: Places
    comm_end: Places
    short: Flags


def _context(chunk: Chunk, back: _Back, stamp_start: Places, line_start: Places) -> _Context:
    raw, words = chunk.raw, chunk.words
    # The last word before the stamp: the CPU's bracket, or flags, or CPU and flags in one, or a bare pid.
    last = back.over(_SPACE, stamp_start)
    token = back.to(_SPACE, last + 1) + 1
    bracket = np.where(raw[last] == _CLOSE, last, _UNKNOWN)
    within = np.flatnonzero(bracket < 0)
    if len(within):  # [001]-0x1, the flags of trace-cmd report -R
        inner = back.to(_CLOSE, last[within] + 1, 3)
        before = back.over(_SPACE, token[within])
        outer = np.where(raw[before] == _CLOSE, before, _UNKNOWN)
        bracket[within] = np.where(inner > token[within], inner, outer)
    opening = back.to(_OPEN, bracket, 2)
    value, fine = decimals(words, opening + 1, bracket)
    # What is no CPU belongs to the task's name, as in [guest/1770] of perf script.
    has_cpu = (opening >= line_start) & (stamp_start > line_start)
    has_cpu &= fine & (bracket - opening <= _MAX_CPU_DIGITS + 1)
    cpu = np.full(len(stamp_start), _UNKNOWN, np.int64)
    pid_end = np.zeros(len(stamp_start), np.int64)
    short = np.zeros(len(stamp_start), np.bool_)
    good = np.zeros(len(stamp_start), np.bool_)

    one = np.flatnonzero(has_cpu)
    if len(one):
        good[one] = True
        cpu[one] = value[one].astype(np.int64)
        end = back.over(_SPACE, opening[one])
        grouped = np.flatnonzero(raw[end] == _ROUND_CLOSE)
        if len(grouped):  # (tgid), or (-------) where the kernel does not know it
            end[grouped] = back.over(_SPACE, back.to(_ROUND_OPEN, end[grouped], 3))
        pid_end[one] = end + 1
    other = np.flatnonzero(~has_cpu & (token >= line_start) & (stamp_start > line_start))
    if len(other):
        _without_bracket(chunk, back, other, (token, last), (good, cpu, pid_end, short))

    pid_end = np.maximum(pid_end, line_start)
    comm_end = back.over_digits(pid_end)
    pid, fine = decimals(words, np.maximum(comm_end + 1, line_start), pid_end)
    inside = comm_end >= line_start
    mark = raw[np.maximum(comm_end, 0)]
    both = inside & (mark == _SLASH)  # pid/tid of perf script -F pid,tid
    if both.any():
        comm_end[both] = back.over_digits(comm_end[both])
        mark = raw[np.maximum(comm_end, 0)]
    known = (
        fine & (pid < 1 << 31) & (pid_end - comm_end <= 11) & (~inside | (mark == _DASH) | (mark == _SPACE))
    )
    # perf script -F cpu,time,...: a CPU and nothing else before it is a head too.
    bare = has_cpu & (pid_end <= line_start)
    good &= known | bare
    return _Context(
        good,
        np.where(cpu < 1 << 16, cpu, _UNKNOWN),
        np.where(known, pid.astype(np.int64), _UNKNOWN),
        np.maximum(comm_end, line_start),
        short,
    )


def _without_bracket(
    chunk: Chunk,
    back: _Back,
    which: Places,
    word_at: tuple[Places, Places],
    out: tuple[Flags, Places, Places, Flags],
) -> None:
    """Heads whose last word is CPU and flags in one (the latency format), or the pid itself (no CPU at all)."""
    good, cpu, pid_end, short = out
    start, end = word_at[0][which], word_at[1][which] + 1
    # The first byte of the word that is no digit: the lowest mark, which is what is left of marks & -marks.
    word = chunk.words[start]
    other = word ^ _DIGITS
    marks = (((other & _LOW_7) + _ABOVE_9) | other) & _HIGH
    digits = np.minimum(_top(marks & (~marks + np.uint64(1))), end - start)
    digits = np.where(digits < 0, end - start, digits)
    number, fine = decimals(chunk.words, start, start + digits)
    alone = (digits == end - start) | (chunk.raw[np.minimum(start + digits, end)] == _SLASH)
    cpu[which] = np.where(alone, _UNKNOWN, number.astype(np.int64))
    good[which] = alone | (fine & (digits <= _MAX_CPU_DIGITS) & (end - start <= 16))
    pid_end[which] = np.where(alone, end, back.over(_SPACE, start) + 1)
    short[which] = ~alone
