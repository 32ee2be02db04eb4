"""How an event's own print format says its fields: which are hex, and which numbers have names.

Only what stands there plainly is used (`__print_symbolic`, `__print_flags`, `f ? "a" : "b"`, `%x`);
anything cleverer leaves the number as it is, which is never wrong.

Source: include/trace/stages/stage3_trace_output.h (__print_symbolic, __print_flags),
Documentation/trace/events.rst
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from itstrace.readers.base import EventFormat

#: Conversions of a print format. Source: Documentation/core-api/printk-formats.rst
_CONVERSION: Final = re.compile(
    r"%[-+ #0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh|h|ll|l|L|z|t|j)?([a-zA-Z%])([a-zA-Z]*)"
)
_FIELD: Final = re.compile(r"^\(*(?:\([a-z_0-9 *]+\))?\s*REC->(\w+)\)*$")
_TERNARY: Final = re.compile(r"""^\(*REC->(\w+)\)*\s*\?\s*(["'])(.*?)\2\s*:\s*(["'])(.*?)\4$""")
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]+|\d+")
_TABLE: Final = re.compile(r"^__print_(symbolic|flags)(?:_u64)?\((.*)\)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Naming:
    """What a print format says of one field. `names` of an enumeration, `flags` of single bits."""

    is_hex: bool = False
    names: Mapping[int, str] = field(default_factory=dict)
    flags: tuple[tuple[int, str], ...] = ()

    def text(self, value: int) -> str | None:
        """The value's name; None where the format gives none."""
        if value in self.names:
            return self.names[value]
        if not self.flags or value < 0:
            return None
        parts, rest = [], value
        for mask, name in self.flags:
            if mask and value & mask == mask:
                parts.append(name)
                rest &= ~mask
        return "|".join([*parts, *([f"0x{rest:x}"] if rest else [])]) or "0"


def namings(event: EventFormat) -> dict[str, Naming]:
    """How each field is printed, by the field's name; a field that the format does not mention is missing."""
    template, arguments = _split(event.print_fmt)
    found: dict[str, Naming] = {}
    for (conversion, _), argument in zip(_conversions(template), arguments, strict=False):
        name, naming = _read(argument, is_hex=conversion in "xXp")
        if name is not None:
            before = found.get(name, Naming())
            found[name] = Naming(
                before.is_hex or naming.is_hex, {**before.names, **naming.names}, before.flags or naming.flags
            )
    return found


def _conversions(template: str) -> list[tuple[str, str]]:
    return [(kind, rest) for kind, rest in _CONVERSION.findall(template) if kind != "%"]


def _read(argument: str, *, is_hex: bool) -> tuple[str | None, Naming]:
    direct = _FIELD.match(argument)
    if direct is not None:
        return direct[1], Naming(is_hex=is_hex)
    choice = _TERNARY.match(argument)
    if choice is not None:
        return choice[1], Naming(names={1: choice[3], 0: choice[5]})
    tabled = _TABLE.match(argument)
    if tabled is None:
        return None, Naming()
    first, *rest = _arguments(tabled[2])
    name = _FIELD.match(first)
    if name is None:
        return None, Naming()
    pairs = [pair for pair in map(_pair, rest) if pair is not None]
    return (
        (name[1], Naming(names=dict(pairs)))
        if tabled[1] == "symbolic"
        else (name[1], Naming(flags=tuple(pairs)))
    )


def _pair(text: str) -> tuple[int, str] | None:
    """`{ 0x24, "DABT_LOW" }`; None where the value is no plain number, or a delimiter stands there."""
    text = text.strip()
    if not text.startswith("{") or not text.endswith("}"):
        return None
    value, *strings = _arguments(text[1:-1])
    number = _value(value)
    words = re.findall(r'"((?:[^"\\]|\\.)*)"', ",".join(strings))
    return None if number is None or not words else (number, "".join(words))


def _value(text: str) -> int | None:
    """A number, perhaps in brackets, with C suffixes, shifted: `(((0x24UL)))`, `(1 << 3)`."""
    bare = re.sub(r"[()\s]", "", re.sub(r"(?<=[0-9a-fA-F])[uUlL]+", "", text))
    sign = -1 if bare.startswith("-") else 1
    terms = bare.removeprefix("-").split("<<")
    if len(terms) > 2 or not all(_NUMBER.fullmatch(term) for term in terms):
        return None
    numbers = [
        int(term, 16)
        if term[:2] in ("0x", "0X")
        else int(term, 8 if term[0] == "0" and set(term) <= set("01234567") else 10)
        for term in terms
    ]
    if len(numbers) == 2 and numbers[1] > 63:
        return None
    return sign * (numbers[0] << numbers[1] if len(numbers) == 2 else numbers[0])


def _split(print_fmt: str) -> tuple[str, list[str]]:
    """The template between the first quotes, and the arguments after it."""
    found = re.match(r'\s*"((?:[^"\\]|\\.)*)"\s*,?', print_fmt)
    if found is None:
        return "", []
    return found[1], _arguments(print_fmt[found.end() :])


def _arguments(text: str) -> list[str]:
    """Split at commas that stand in no brackets and no quotes."""
    parts, depth, start, quote, at = [], 0, 0, "", 0
    while at < len(text):
        char = text[at]
        if quote:
            if char == "\\":
                at += 1
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "({[":
            depth += 1
        elif char in ")}]":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
        at += 1
    last = text[start:].strip()
    return [*parts, last] if last or parts else []
