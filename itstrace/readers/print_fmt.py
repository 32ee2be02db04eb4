"""One record as the kernel would print it: an event's `print fmt` applied to a row.

Meant for a handful of rows (evidence); columns are the way for many.

Source: lib/vsprintf.c:vsnprintf, Documentation/core-api/printk-formats.rst (v6.12)
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from itstrace.readers.base import column_name
from itstrace.readers.c_expressions import MASK_64, BeyondError, Evaluate, Parser, ValueTable, number, octets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from itstrace.readers.base import EventField, EventFormat

__all__ = ["ValueTable", "render", "value_tables"]

_CONVERSION = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    r"(?P<length>hh|h|ll|l|L|q|j|z|t)?(?P<kind>p[A-Za-z]*\d?[A-Za-z]*|[diuxXocs%])"
)
_LENGTH_BITS = {"hh": 8, "h": 16, None: 32}
#: No column of a table needs more; a damaged format might ask for gigabytes.
_MAX_WIDTH = 400


def render(event: EventFormat, row: Mapping[str, object]) -> str:
    """Give the text of one row of a block's frame.

    Where the print fmt is beyond us, that is `name=value` for each field.
    """
    try:
        text, arguments, _ = _parsed(event.print_fmt)
        return _format(text, iter(arguments), row).strip()
    except (BeyondError, TypeError, ValueError, OverflowError):
        tables = value_tables(event)
        return " ".join(
            f"{field.name}={_plain(field, row.get(column_name(field.name)), tables)}"
            for field in event.fields
        )


def value_tables(event: EventFormat) -> dict[str, ValueTable]:
    """Give the names of values, for those fields that the event prints by name."""
    try:
        return _parsed(event.print_fmt)[2]
    except BeyondError:
        return {}


@lru_cache(maxsize=4096)
def _parsed(print_fmt: str) -> tuple[str, list[Evaluate], dict[str, ValueTable]]:
    parser = Parser(print_fmt)
    text, *arguments = parser.arguments()
    value = text({})
    if not isinstance(value, str):
        raise BeyondError("there is no format string")
    return value, arguments, parser.tables


def _plain(field: EventField, value: object, tables: Mapping[str, ValueTable]) -> str:
    if value is None:
        return "?"
    if isinstance(value, int) and not isinstance(value, bool):
        if field.name in tables:
            return tables[field.name].text(value)
        if field.c_type.endswith("*") or "long" in field.c_type:
            return f"0x{value & MASK_64:x}"
    return str(value)


def _format(text: str, arguments: Iterator[Evaluate], row: Mapping[str, object]) -> str:
    out, end = [], 0
    for match in _CONVERSION.finditer(text):
        out.append(text[end : match.start()])
        end = match.end()
        if match["kind"] == "%":
            out.append("%")
            continue
        flags, width, precision = match["flags"], match["width"], match["precision"]
        columns = _measure(width, arguments, row)
        digits = None if precision is None else _measure(precision, arguments, row)
        if columns < 0:
            flags, columns = flags + "-", -columns
        value = _next(arguments)(row)
        out.append(_convert(match["kind"], match["length"], value, flags, columns, digits))
    out.append(text[end:])
    return "".join(out)


def _next(arguments: Iterator[Evaluate]) -> Evaluate:
    for argument in arguments:
        return argument
    raise BeyondError("the format asks for more arguments than there are")


def _measure(text: str | None, arguments: Iterator[Evaluate], row: Mapping[str, object]) -> int:
    size = number(_next(arguments)(row)) if text == "*" else int(text or 0)
    return max(-_MAX_WIDTH, min(size, _MAX_WIDTH))


def _convert(  # noqa: PLR0917 - the six parts of a printf conversion, in the order in which they stand
    kind: str, length: str | None, value: object, flags: str, width: int, digits: int | None
) -> str:
    if kind[0] == "p":
        return _pad(_pointer(kind, value), flags, width)
    if kind == "s":
        shown = _string(value)
        return _pad(shown if digits is None else shown[: max(digits, 0)], flags, width)
    plain = number(value)
    if kind == "c":
        return _pad(chr(plain & 0xFF), flags, width)
    bits = _LENGTH_BITS.get(length, 64)
    plain &= (1 << bits) - 1
    sign = ""
    if kind in "di":
        if plain >> (bits - 1):
            plain, sign = (1 << bits) - plain, "-"
        else:
            sign = "+" if "+" in flags else " " if " " in flags else ""
        shown = str(plain)
    else:
        shown = format(plain, {"u": "d"}.get(kind, kind))
        if "#" in flags and kind in "xX" and plain:
            sign = f"0{kind}"
        elif "#" in flags and kind == "o":
            shown = f"0{shown}"
    if digits is not None:
        shown = shown.rjust(digits, "0")
    elif "0" in flags and "-" not in flags:
        shown = shown.rjust(width - len(sign), "0")
    return _pad(sign + shown, flags, width)


def _pad(text: str, flags: str, width: int) -> str:
    return text.ljust(width) if "-" in flags else text.rjust(width)


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):  # a pointer to a string that the capture does not hold
        return f"0x{value & MASK_64:x}"
    return octets(value).split(b"\0", 1)[0].decode("utf-8", "replace")


def _pointer(kind: str, value: object) -> str:
    if not isinstance(value, int):
        raw = octets(value)
        if kind.startswith(("pM", "pm")) and len(raw) >= 6:
            return ("" if kind[1] == "m" else ":").join(f"{byte:02x}" for byte in raw[:6])
        if kind.startswith(("pI4", "pi4")) and len(raw) >= 4:
            return ".".join(str(byte) for byte in raw[:4])
        raise BeyondError(f"%{kind} of an array")
    return f"0x{value & MASK_64:x}"
