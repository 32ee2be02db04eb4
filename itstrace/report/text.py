"""Values as people read them: times, sizes, addresses, and text that a capture may have made hostile.

Every string that comes out of a capture passes `plain` before it reaches a terminal.
"""

from __future__ import annotations

from itstrace.units import duration

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def plain(text: str) -> str:
    """The text with everything that a terminal could obey, hide or reorder spelled out in escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _SHORT.get(char) or _escaped(ord(char)) for char in text)


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def delta(span_ns: int | None) -> str:
    """A signed step from one record to the next: `+12.3 us`."""
    return "" if span_ns is None else duration(span_ns) if span_ns < 0 else f"+{duration(span_ns)}"


def hexa(value: int | None) -> str:
    """An address, pointer, register or device id. Unknown is `?`."""
    return "?" if value is None else f"0x{value:x}"


def number(value: int | None) -> str:
    """A count with thousands marked. Unknown is `?`."""
    return "?" if value is None else f"{value:,}"


def known(value: object) -> str:
    """Any plain value; unknown is `?`, a truth is yes or no."""
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def size(bytes_: int) -> str:
    """A file size: `812 B`, `5.5 MiB`."""
    value = float(bytes_)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 error`, `2 errors`, `0 errors`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"
