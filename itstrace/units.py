"""Numbers as a reader of traces expects them."""

from __future__ import annotations


def seconds(time_ns: int, digits: int = 6) -> str:
    """A time stamp in seconds, as the trace prints it: `572.870490`, cut, not rounded."""
    sign = "-" if time_ns < 0 else ""
    whole, rest = divmod(abs(time_ns), 1_000_000_000)
    return f"{sign}{whole}.{rest:09d}"[: len(sign) + len(str(whole)) + 1 + digits]


def duration(span_ns: int) -> str:
    """A length of time in the unit that suits it: `812 ns`, `4.30 us`, `17.5 ms`, `1.204 s`."""
    for limit, unit, name in ((1_000, 1, "ns"), (1_000_000, 1_000, "us"), (1_000_000_000, 1_000_000, "ms")):
        if abs(span_ns) < limit:
            return f"{span_ns} {name}" if unit == 1 else f"{span_ns / unit:.3g} {name}"
    return f"{span_ns / 1_000_000_000:.3f} s"


def times(count: int) -> str:
    """`once`, `twice`, `5 times`."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")
