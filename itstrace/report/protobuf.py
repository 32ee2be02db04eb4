"""Protocol buffers, as much of them as a trace needs: one message at a time, or the same message for every row of a frame.

Source: protobuf.dev, Encoding (base 128 varints, wire types, length prefixes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[Any]
    Mask = npt.NDArray[np.bool_]

VARINT, FIXED64, BYTES = 0, 1, 2
_64_BITS: Final = 2**64 - 1


def varint(value: int) -> bytes:
    """A number, seven bits a byte, the lowest first; a negative one as its 64-bit complement."""
    value &= _64_BITS
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def key(field: int, wire_type: int) -> bytes:
    """What stands before each field."""
    return varint(field << 3 | wire_type)


def number(field: int, value: int) -> bytes:
    """A field that holds an integer, a truth or an enumerator."""
    return key(field, VARINT) + varint(value)


def block(field: int, content: bytes | str) -> bytes:
    """A field that holds a message, a string or bytes."""
    if isinstance(content, str):
        content = content.encode("utf-8")
    return key(field, BYTES) + varint(len(content)) + content


class Rows:
    """One message per row, built byte column by byte column.

    A column is what stands at one place of the message in all rows, with those rows in which it stands there: numbers
    are as long as they need to be, and a field that a row does not have is not written.
    """

    def __init__(self, height: int) -> None:
        self.height = height
        self._columns: list[tuple[npt.NDArray[np.uint8] | int, Mask | None]] = []

    def number(self, field: int, values: Numbers | int, where: Mask | None = None) -> None:
        """A field that holds an integer, a truth or an enumerator; in the rows of `where`."""
        self._constant(key(field, VARINT), where)
        self._varint(values, where)

    def fixed64(self, field: int, values: Numbers, where: Mask | None = None) -> None:
        """A field that holds 64 bits, in the rows of `where`."""
        self._constant(key(field, FIXED64), where)
        eight = values.astype("<u8").view(np.uint8).reshape(self.height, 8)
        self._columns += [(eight[:, place], where) for place in range(8)]

    def message(self, field: int, content: Rows, where: Mask | None = None) -> None:
        """A field that holds a message, in the rows of `where`."""
        self._constant(key(field, BYTES), where)
        self._varint(content.lengths(), where)
        self._columns += [(data, _both(kept, where)) for data, kept in content._columns]

    def then(self, other: Rows) -> None:
        """What follows this message in each row."""
        self._columns += other._columns

    def lengths(self) -> Numbers:
        """How many bytes each row has."""
        found = np.full(self.height, sum(kept is None for _, kept in self._columns), np.uint64)
        for _, kept in self._columns:
            if kept is not None:
                found += kept
        return found

    def encode(self) -> bytes:
        """All rows, one after the other."""
        data = np.empty((self.height, len(self._columns)), np.uint8)
        shown = np.ones((self.height, len(self._columns)), np.bool_)
        for place, (column, kept) in enumerate(self._columns):
            data[:, place] = column
            if kept is not None:
                shown[:, place] = kept
        return data[shown].tobytes()

    def _constant(self, content: bytes, where: Mask | None) -> None:
        self._columns += [(byte, where) for byte in content]

    def _varint(self, values: Numbers | int, where: Mask | None) -> None:
        if isinstance(values, int):
            self._constant(varint(values), where)
            return
        # numpy wraps a negative number into its complement, as the encoding wants it.
        rest = values.astype(np.uint64) if values.dtype != np.int64 else values.view(np.uint64)
        kept = where
        while True:
            low = (rest & np.uint64(0x7F)).astype(np.uint8)
            rest = rest >> np.uint64(7)
            more = rest != 0
            self._columns.append((low | more.astype(np.uint8) << np.uint8(7), kept))
            if not more.any():
                return
            kept = _both(more, where)


def _both(one: Mask | None, other: Mask | None) -> Mask | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other
