"""Numbers as a reader of traces expects them."""

from __future__ import annotations


def seconds(time_ns: int | None, digits: int = 6) -> str:
    """A point in time as the trace prints it; rounded half up, as trace-cmd does. Unknown is `?`."""
    if time_ns is None:
        return "?"
    step = 10 ** (9 - digits)
    units = (abs(time_ns) + step // 2) // step
    whole, part = divmod(units, 10**digits)
    return f"{'-' if time_ns < 0 and units else ''}{whole}.{part:0{digits}d}"


def duration(span_ns: float | None) -> str:
    """A span to three significant figures: `830 ns`, `12.3 us`, `17.5 ms`, `1.42 s`, `95 s`."""
    if span_ns is None:
        return "?"
    size = abs(span_ns)
    for unit, scale in (("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)):
        value = size / scale
        if value < 999.5 or unit == "s":
            break
    digits = 0 if unit == "ns" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{'-' if span_ns < 0 else ''}{value:.{digits}f} {unit}"


def times(count: int) -> str:
    """`once`, `twice`, `5 times`."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")
