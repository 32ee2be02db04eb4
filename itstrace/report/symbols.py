"""Which fields of an event its own print format says in hex."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from itstrace.readers.c_expressions import BeyondError, FieldReference, Parser

if TYPE_CHECKING:
    from itstrace.readers.base import EventFormat

#: A conversion that takes one argument. Source: Documentation/core-api/printk-formats.rst (v6.12)
_CONVERSION: Final = re.compile(r"%%|%[-+ #0]*\d*(?:\.\d*)?(?:hh|h|ll|l|L|q|j|z|t)?(p[A-Za-z]*|[a-zA-Z])")


def hex_fields(event: EventFormat) -> frozenset[str]:
    """The fields that the print format gives to `%x` or `%p`; none where it is beyond us."""
    try:
        template, *arguments = Parser(event.print_fmt).arguments()
        text = template({})
    except BeyondError:
        return frozenset()
    if not isinstance(text, str) or "*" in text:
        return frozenset()
    kinds = [found[1] for found in _CONVERSION.finditer(text) if found[1] is not None]
    return frozenset(
        argument.name
        for kind, argument in zip(kinds, arguments, strict=False)
        if isinstance(argument, FieldReference) and kind[0] in "xXp"
    )
