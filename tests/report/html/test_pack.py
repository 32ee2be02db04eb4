"""Frames as text in a page: every number comes back exactly."""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from itstrace.report.html.pack import EXACT, pack

if TYPE_CHECKING:
    from itstrace.report.html.pack import Packed

_KINDS = {
    "u8": np.uint8, "i8": np.int8, "u16": np.uint16, "i16": np.int16, "u32": np.uint32, "i32": np.int32,
    "f64": np.float64, "u64": np.uint64,
}  # fmt: skip


def _unpacked(packed: Packed) -> dict[str, list[Any]]:
    """What the page's script makes of it (assets/data.js)."""
    buffer = zlib.decompress(base64.b64decode(packed.base64))
    rows, found = packed.header["rows"], {}
    for spec in packed.header["columns"]:
        kind = np.dtype(_KINDS[spec["kind"]]).newbyteorder("<")
        assert spec["at"] % 8 == 0  # else a typed array cannot begin there
        values: list[Any] = np.frombuffer(buffer, kind, rows, spec["at"]).tolist()
        if "first" in spec:
            values = (
                np.cumsum([spec["first"] + values[0], *values[1:]], dtype=np.float64).tolist()
                if values
                else []
            )
        if spec["kind"] == "f64" or "first" in spec:
            values = [int(value) for value in values]
        if "words" in spec:
            values = [spec["words"][code] if spec["words"] else None for code in values]
        if "truth" in spec:
            values = [bool(value) for value in values]
        if "unknown" in spec:
            bits = np.frombuffer(buffer, np.uint8, (rows + 7) // 8, spec["unknown"])
            unknown = np.unpackbits(bits, bitorder="little")[:rows]
            values = [None if gone else value for gone, value in zip(unknown, values, strict=True)]
        found[spec["name"]] = values
    return found


_COLUMNS = {
    "seq": (pl.UInt64, st.integers(0, EXACT)),
    "small": (pl.UInt16, st.integers(0, 2**16 - 1)),
    "signed": (pl.Int32, st.integers(-(2**31), 2**31 - 1)),
    "text": (pl.String, st.text(max_size=8)),
    "flag": (pl.Boolean, st.booleans()),
    "dw0": (pl.UInt64, st.integers(0, 2**64 - 1)),
}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 40))
def test_every_value_comes_back(data: st.DataObject, rows: int) -> None:
    columns = {
        name: pl.Series(data.draw(st.lists(st.none() | values, min_size=rows, max_size=rows)), dtype=dtype)
        for name, (dtype, values) in _COLUMNS.items()
    }
    frame = pl.DataFrame(columns)

    assert _unpacked(pack(frame, 0)) == frame.to_dict(as_series=False)


def test_times_of_a_wall_clock_are_exact_as_offsets() -> None:
    origin = 1_764_080_000_123_456_789  # beyond what a double can hold
    times = [origin, origin + 1, None, origin + 3_600_000_000_000, origin + 3_600_000_000_001]
    frame = pl.DataFrame({"time_ns": pl.Series(times, dtype=pl.Int64)})

    found = _unpacked(pack(frame, origin))["time_ns"]

    assert [None if offset is None else origin + offset for offset in found] == times


def test_growing_numbers_are_kept_as_steps() -> None:
    seqs = pl.Series(range(2**40, 2**40 + 100_000, 3), dtype=pl.UInt64)
    packed = pack(pl.DataFrame({"seq": seqs}), 0)

    assert packed.header["columns"][0]["kind"] == "i32"
    assert len(packed.base64) < seqs.len() / 10
    assert _unpacked(packed)["seq"] == seqs.to_list()
