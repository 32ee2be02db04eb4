"""Frames as compact text: typed columns, one after the other, deflated, in base64.

Theory of operation. A page holds a frame as a header (JSON) and one buffer. Each column is an array of one machine
type, little-endian, aligned to 8 bytes. Times are offsets from the page's origin in ns: below 2^53 a double holds
them exactly, and the page adds the origin in integers of any size before it prints them. Integers that do not fit 32
bits, but grow in small steps (times, seqs), are kept as the first value and steps. Unknown is a bit apart.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

if TYPE_CHECKING:
    import numpy.typing as npt

_ALIGN: Final = 8
#: Doubles hold every integer up to here. Spec: ECMA-262, Number.MAX_SAFE_INTEGER
EXACT: Final = 2**53 - 1
_INTEGERS: Final = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)
_WORDS: Final = ("dw0", "dw1", "dw2", "dw3", "itt_gpa")
_LEVEL: Final = 6


@dataclass(frozen=True, slots=True)
class Packed:
    """A frame in a page: `header` says what stands where in `base64`."""

    header: dict[str, Any]
    base64: str


def pack(frame: pl.DataFrame, origin_ns: int) -> Packed:
    """Pack a frame; columns that end in `_ns` become offsets from the origin."""
    buffer = bytearray()
    columns = []
    for name in frame.columns:
        column: dict[str, Any] = {"name": name}
        values = frame[name]
        if values.dtype == pl.String:
            found = values.drop_nulls().unique(maintain_order=True)
            column["words"] = found.to_list()
            places = pl.Series(np.arange(found.len(), dtype=np.uint32))
            values = values.replace_strict(found, places, return_dtype=pl.UInt32) if found.len() else values
            values = values.cast(pl.UInt32)
        elif values.dtype == pl.Boolean:
            column["truth"] = True
            values = values.cast(pl.UInt8)
        elif name.endswith("_ns"):
            values = values.cast(pl.Int64) - origin_ns
        if values.null_count():
            column["unknown"] = _append(buffer, np.packbits(values.is_null().to_numpy(), bitorder="little"))
        array, kind, steps = _smallest(_filled(values).to_numpy(), word=name in _WORDS)
        column |= {"kind": kind, "at": _append(buffer, array)}
        if steps:
            column["first"] = steps[0]
        columns.append(column)
    header = {"rows": frame.height, "columns": columns}
    return Packed(header, base64.b64encode(zlib.compress(bytes(buffer), _LEVEL)).decode("ascii"))


def _filled(values: pl.Series) -> pl.Series:
    """Something in the place of nulls that costs little: the value before."""
    return values.fill_null(strategy="forward").fill_null(0) if values.null_count() else values


def _append(buffer: bytearray, array: npt.NDArray[Any]) -> int:
    buffer.extend(b"\0" * (-len(buffer) % _ALIGN))
    at = len(buffer)
    buffer.extend(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return at


def _smallest(array: npt.NDArray[Any], *, word: bool) -> tuple[npt.NDArray[Any], str, tuple[int, ...]]:
    """The array in the smallest type that holds it, the type's name, and the first value where steps are kept."""
    if array.dtype.kind == "f":
        return array.astype(np.float64), "f64", ()
    if word:
        return array.astype(np.uint64), "u64", ()
    if not len(array):
        return array.astype(np.uint8), "u8", ()
    least, most = int(array.min()), int(array.max())
    for kind in _INTEGERS:
        if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max:
            return array.astype(kind), f"{np.dtype(kind).kind}{np.dtype(kind).itemsize * 8}", ()
    assert least >= -EXACT
    assert most <= EXACT
    steps = np.diff(array.astype(np.int64), prepend=np.int64(array[0]))
    if np.iinfo(np.int32).min <= int(steps.min()) and int(steps.max()) <= np.iinfo(np.int32).max:
        return steps.astype(np.int32), "i32", (int(array[0]),)
    return array.astype(np.float64), "f64", ()
