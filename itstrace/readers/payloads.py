"""Columns out of payloads: one numpy gather per field, whatever the number of records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from itstrace.readers.base import EventField, EventFormat, column_name

if TYPE_CHECKING:
    from collections.abc import Callable

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

_INTEGER_CODES = {
    pl.Int8: "i1", pl.Int16: "i2", pl.Int32: "i4", pl.Int64: "i8",
    pl.UInt8: "u1", pl.UInt16: "u2", pl.UInt32: "u4", pl.UInt64: "u8",
    pl.Boolean: "u1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Payloads:
    """Some records of one event type: where in `raw` each payload begins, and how long it is."""

    raw: Bytes
    starts: Offsets
    sizes: Offsets
    big_endian: bool

    def __len__(self) -> int:
        return len(self.starts)

    def numbers(self, offset_bytes: int, code: str, which: Offsets | None = None) -> npt.NDArray[np.generic]:
        """Give the number at one offset of every payload, as `code` (`u4`, `i8`, ...)."""
        dtype = np.dtype((">" if self.big_endian else "<") + code)
        # Every byte of `raw` may begin a number: a view of overlapping ones needs no arithmetic per record.
        view = np.ndarray(max(len(self.raw) - dtype.itemsize + 1, 0), dtype, self.raw, 0, (1,))
        at = (self.starts if which is None else which) + offset_bytes
        return view[at].astype(dtype.newbyteorder("="), copy=False)


def columns(event: EventFormat, fields: tuple[EventField, ...], payloads: Payloads) -> list[pl.Series]:
    """Give one column per field. A field that the record is too short to hold is null."""
    return [_column(field, payloads, last=field is event.fields[-1]) for field in fields]


def _column(field: EventField, payloads: Payloads, *, last: bool) -> pl.Series:
    name = column_name(field.name)
    dynamic = field.c_type.startswith(("__data_loc", "__rel_loc"))
    short = payloads.sizes < field.offset_bytes + field.size_bytes
    if short.any():
        # A trailing array may be stored in part: what there is of it counts.
        if last and not dynamic and isinstance(field.dtype, (pl.String, pl.Binary)):
            return _variable(name, field, payloads, dynamic=False)
        present = np.flatnonzero(~short)
        part = Payloads(payloads.raw, payloads.starts[present], payloads.sizes[present], payloads.big_endian)
        values = _whole(name, field, part, dynamic=dynamic)
        index = np.full(len(payloads), len(present), np.int64)
        index[present] = np.arange(len(present))
        padded = pl.concat([values, pl.Series(name, [None], dtype=field.dtype)])
        return padded.gather(pl.Series(index))
    return _whole(name, field, payloads, dynamic=dynamic)


def _whole(name: str, field: EventField, payloads: Payloads, *, dynamic: bool) -> pl.Series:
    code = _INTEGER_CODES.get(type(field.dtype))
    if code is not None:
        values = pl.Series(name, payloads.numbers(field.offset_bytes, code))
        return values != 0 if isinstance(field.dtype, pl.Boolean) else values
    if isinstance(field.dtype, pl.Array):
        return _fixed_array(name, field, field.dtype, payloads)
    return _variable(name, field, payloads, dynamic=dynamic)


def _fixed_array(name: str, field: EventField, dtype: pl.Array, payloads: Payloads) -> pl.Series:
    code = _inner_code(dtype)
    width = field.size_bytes // dtype.size
    parts = [payloads.numbers(field.offset_bytes + i * width, code) for i in range(dtype.size)]
    return pl.Series(name, np.stack(parts, axis=1), dtype=dtype)


def _variable(name: str, field: EventField, payloads: Payloads, *, dynamic: bool) -> pl.Series:
    """Make a column of strings, bytes or lists: one Python object a row."""
    if dynamic:
        # Source: include/trace/stages/stage1_struct_define.h: the low half is the offset, the high half the
        # length
        if field.size_bytes >= 4:
            places = payloads.numbers(field.offset_bytes, "u4").astype(np.int64)
            starts, sizes = places & 0xFFFF, places >> 16
        else:
            starts = payloads.numbers(field.offset_bytes, "u2").astype(np.int64)
            sizes = np.full(len(payloads), 1 << 16, np.int64)
        if field.c_type.startswith("__rel_loc"):
            starts = starts + field.offset_bytes + field.size_bytes
    else:
        starts = np.full(len(payloads), field.offset_bytes, np.int64)
        sizes = np.full(len(payloads), field.size_bytes or 1 << 30, np.int64)
    ends = np.minimum(starts + sizes, payloads.sizes)
    begin = (payloads.starts + np.minimum(starts, payloads.sizes)).tolist()
    stop = (payloads.starts + ends).tolist()
    raw = payloads.raw.data
    read = _reader(field, big_endian=payloads.big_endian)
    return pl.Series(
        name, [read(bytes(raw[a:b])) for a, b in zip(begin, stop, strict=True)], dtype=field.dtype
    )


def _inner_code(dtype: pl.Array | pl.List) -> str:
    inner = dtype.inner
    assert isinstance(inner, pl.DataType)
    return _INTEGER_CODES[type(inner)]


def _reader(field: EventField, *, big_endian: bool) -> Callable[[bytes], object]:
    if isinstance(field.dtype, pl.String):
        return lambda value: value.split(b"\0", 1)[0].decode("utf-8", "replace")
    if isinstance(field.dtype, pl.List):
        dtype = np.dtype((">" if big_endian else "<") + _inner_code(field.dtype))
        return lambda value: np.frombuffer(
            value[: len(value) // dtype.itemsize * dtype.itemsize], dtype
        ).tolist()
    return lambda value: value
