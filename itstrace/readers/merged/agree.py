"""Whether several captures are parts of one: of one machine, one kernel, and on one clock."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Final

from itstrace.errors import UsageError
from itstrace.units import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from itstrace.readers.base import Capture, CaptureInfo

_SCHED: Final = "the scheduler's clock"
#: Clocks by what they count: stamps of one family can be compared. ftrace's `local`, `global` and `perf` are all made
#: of sched_clock, which is one counter for all CPUs of an arm64 host, and so is perf's own.
#: Source: kernel/trace/trace_clock.c; kernel/events/core.c:perf_clock; kernel/trace/trace.c:trace_clocks (v6.12)
_FAMILIES: Final = {
    **dict.fromkeys(("local", "global", "perf", "sched_clock"), _SCHED),
    **dict.fromkeys(("mono", "monotonic"), "mono"),
    **dict.fromkeys(("mono_raw", "monotonic_raw"), "mono_raw"),
    **dict.fromkeys(("boot", "boottime"), "boot"),
    "tai": "tai",
    "realtime": "realtime",
    "uptime": "uptime",
    "counter": "counter",
    "x86-tsc": "x86-tsc",
}
#: Of captures that do not name their clock: their spans overlap, or one begins so soon after the other's end.
_CLOSE_NS: Final = 10_000_000_000
#: Options of a trace.dat by which its stamps are moved. Source: trace-cmd.dat.v7(5), DATE and OFFSET
_MOVED: Final = ("DATE", "OFFSET")

_ONE_CLOCK = (
    "record all on one clock: trace-cmd record -C mono ..., perf record -k CLOCK_MONOTONIC ..., "
    "echo mono > /sys/kernel/tracing/trace_clock; or analyze each alone"
)


def family(clock: str | None) -> str | None:
    """What a clock's stamps can be compared with; None where the capture does not name its clock."""
    if clock is None:
        return None
    name = clock.lower().removeprefix("clock_")
    return _FAMILIES.get(name, name)


def agree(parts: Sequence[Capture]) -> list[str]:
    """See to it that captures can be merged; give what the reader should know of how sure that is.

    Raises: UsageError where they are of several machines, kernels or clocks, or where clocks are not named and the
    spans lie apart.
    """
    for one, other in combinations([part.info for part in parts], 2):
        _of_one_host(one, other)
        _of_one_clock(one, other)
    return _unnamed_clocks(parts)


def _of_one_host(one: CaptureInfo, other: CaptureInfo) -> None:
    facts = (
        ("kernel", one.kernel, other.kernel),
        ("architecture", one.arch, other.arch),
        ("host", _host(one.uname), _host(other.uname)),
    )
    for what, here, there in facts:
        if here and there and here != there:
            raise UsageError(
                f"{one.path} and {other.path} are no parts of one capture: {what} {here} and {there}",
                advice="analyze each alone",
            )
    for info in (one, other):
        if "synchronised with" in info.options:
            raise UsageError(
                f"{info.path} was recorded inside a guest: its CPUs and tasks are not those of the host",
                advice="analyze the host's capture alone",
            )


def _host(uname: str | None) -> str | None:
    words = (uname or "").split()
    return words[1] if len(words) > 2 else None


def _of_one_clock(one: CaptureInfo, other: CaptureInfo) -> None:
    here, there = family(one.clock), family(other.clock)
    if here and there and here != there:
        raise UsageError(
            f"{one.path} is on the clock {one.clock!r} and {other.path} on {other.clock!r}: "
            "their times cannot be compared",
            advice=_ONE_CLOCK,
        )
    moved = [{name: info.options.get(name) for name in _MOVED} for info in (one, other)]
    if moved[0] != moved[1]:
        raise UsageError(
            f"the stamps of {one.path} and {other.path} were moved by different amounts (trace-cmd --date or --ts-offset)",
            advice="record without these options; or analyze each alone",
        )


def _apart(parts: Sequence[Capture]) -> list[str]:
    """Parts on one clock between which nothing was recorded: that they are of one boot, nothing says."""
    spans = ((part.span(), part.info) for part in parts)
    ordered = sorted(
        ((start, end, info) for (start, end), info in spans if start is not None and end is not None),
        key=lambda item: item[:2],
    )
    notes = []
    for (_, end, before), (start, _, info) in pairwise(ordered):
        if start > end + _CLOSE_NS:
            notes.append(
                f"{info.path} begins {duration(start - end)} after the end of {before.path}: taken to be of the same boot"
            )
    return notes


def _unnamed_clocks(parts: Sequence[Capture]) -> list[str]:
    """Captures without a clock's name are taken for parts of one where they lie close together."""
    unnamed = [part.info for part in parts if family(part.info.clock) is None]
    if not unnamed:
        return _apart(parts)
    spans = [(*part.span(), part.info) for part in parts]
    known = sorted(
        ((start, end, info) for start, end, info in spans if start is not None and end is not None),
        key=lambda item: item[:2],
    )
    reach_ns, before = (known[0][1], known[0][2]) if known else (0, None)
    for start, end, info in known[1:]:
        if start > reach_ns + _CLOSE_NS:
            assert before is not None
            apart = duration(start - reach_ns)
            raise UsageError(
                f"{info.path} begins {apart} after the end of {before.path}, and nothing says that they are on one clock",
                advice=_ONE_CLOCK,
            )
        if end > reach_ns:
            reach_ns, before = end, info
    names = ", ".join(str(info.path) for info in unnamed)
    return [f"{names} does not name its clock: taken to be on that of the others, because the times fit"]
