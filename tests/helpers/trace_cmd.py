"""The reference tool: what `trace-cmd report -R` says of a file, as frames to compare ours with."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from itstrace.readers.base import EventField, EventFormat

needs_trace_cmd = pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="trace-cmd is not installed")

_LINE = (
    r"^\s*(?P<comm>.*)-(?P<pid>\d+)\s+\[(?P<cpu>\d+)\]\s+(?:(?P<seconds>\d+)\.)?(?P<rest>\d+):"
    r"\s+(?:(?P<buffer>\S+): )?(?P<event>\S+):\s+(?P<text>.*)$"
)
_LOST = r"CPU:(?P<cpu>\d+) \[(?:(?P<lost>\d+) )?EVENTS DROPPED\]"


@dataclass(frozen=True, slots=True)
class Report:
    """What trace-cmd read.

    Shape: `records` has time_ns, cpu, pid, comm, event, text; `lost` has cpu, lost
    """

    records: pl.DataFrame
    lost: pl.DataFrame
    stderr: str


def report(path: Path, *options: str) -> Report:
    """Run `trace-cmd report -R -t` (raw fields, whole nanoseconds, no plugins) on a file."""
    command = ["trace-cmd", "report", "-N", "-R", "-t", *options, "-i", str(path)]
    run = subprocess.run(command, capture_output=True, check=False)
    lines = pl.read_csv(
        io.BytesIO(run.stdout),
        has_header=False,
        separator="\x01",
        quote_char=None,
        new_columns=["line"],
        schema={"line": pl.String},
        encoding="utf8-lossy",
    )["line"]
    records = (
        lines.to_frame()
        .select(pl.col("line").str.extract_groups(_LINE).alias("group"))
        .unnest("group")
        .filter(pl.col("event").is_not_null())
        .select(
            (
                pl.col("seconds").cast(pl.Int64).fill_null(0) * 1_000_000_000 + pl.col("rest").cast(pl.Int64)
            ).alias("time_ns"),
            pl.col("cpu").cast(pl.UInt16),
            pl.col("pid").cast(pl.Int32),
            "comm",
            "event",
            "text",
        )
    )
    lost = (
        lines.to_frame()
        .filter(pl.col("line").str.contains("EVENTS DROPPED", literal=True))
        .select(pl.col("line").str.extract_groups(_LOST).alias("group"))
        .unnest("group")
        .select(pl.col("cpu").cast(pl.UInt16), pl.col("lost").cast(pl.UInt64))
    )
    return Report(records, lost, run.stderr.decode("utf-8", "replace"))


def differences(
    event: EventFormat,
    ours: pl.DataFrame,
    texts: pl.Series,
    known: Mapping[str, str],
    *,
    big_endian: bool = False,
) -> list[str]:
    """Compare one event's rows with the reference's texts; `known` names the fields left out."""
    names = [field.name for field in event.fields]
    if not names:
        return []
    pattern = "^" + r"\s+".join(f"{re.escape(name)}=(?<f{i}>.*)" for i, name in enumerate(names)) + "$"
    parts = (
        texts.to_frame("text")
        .select(pl.col("text").str.extract_groups(pattern).alias("group"))
        .unnest("group")
    )
    found: list[str] = []
    for field, column, theirs in zip(event.fields, ours.iter_columns(), parts.iter_columns(), strict=True):
        if f"{event.name}.{field.name}" in known:
            continue
        if not _equal(field, column, theirs.str.strip_chars(), "big" if big_endian else "little"):
            found.append(
                f"{event.full_name}.{field.name} ({field.c_type}): ours {column.head(3).to_list()}, "
                f"theirs {theirs.head(3).to_list()}"
            )
    return found


def _equal(field: EventField, ours: pl.Series, theirs: pl.Series, order: Literal["big", "little"]) -> bool:
    """Say whether a column equals the reference's text in the one notation that it uses for that field."""
    if theirs.null_count():
        return False
    if ours.dtype == pl.String:
        return bool((ours.str.strip_chars() == theirs).all()) or _bytes_equal(ours, theirs, order)
    if ours.dtype.is_nested() or ours.dtype == pl.Binary:
        return _bytes_equal(ours, theirs, order)
    if ours.dtype == pl.Boolean:
        ours = ours.cast(pl.UInt8)
    bits = (
        ours.cast(pl.Int64).to_numpy().view(np.uint64)
        if ours.dtype.is_signed_integer()
        else ours.cast(pl.UInt64).to_numpy()
    )
    negative = theirs.str.starts_with("-").any()
    decimal = theirs.cast(pl.Int64 if negative else pl.UInt64, strict=False)
    hexadecimal = theirs.str.strip_prefix("0x").str.to_integer(base=16, dtype=pl.UInt64, strict=False)
    for shown in (decimal, hexadecimal):
        if shown.null_count():
            continue
        value = shown.to_numpy().view(np.uint64)
        # What is negative may be shown without a sign, in its own width or in that of an int or long.
        for size in {8 * field.size_bytes, 32, 64}:
            mask = np.uint64((1 << size) - 1)
            if size >= 8 * field.size_bytes and np.array_equal(
                bits & mask, value & (mask if negative else ~np.uint64(0))
            ):
                return True
    return False


def _bytes_equal(ours: pl.Series, theirs: pl.Series, order: Literal["big", "little"]) -> bool:
    """Compare arrays, which the reference prints as bytes, or as text where they can be printed."""
    width = {pl.UInt16: 2, pl.Int16: 2, pl.UInt32: 4, pl.Int32: 4, pl.UInt64: 8, pl.Int64: 8}
    inner = getattr(ours.dtype, "inner", None)
    each = 1 if inner is None else width.get(inner.base_type(), 1)
    for value, text in zip(ours.to_list(), theirs.to_list(), strict=True):
        if isinstance(value, str):
            raw = value.encode()
        elif isinstance(value, bytes):
            raw = value
        else:
            raw = b"".join((int(v) & ((1 << 8 * each) - 1)).to_bytes(each, order) for v in value)
        shown = re.fullmatch(r"ARRAY\[(.*)\]", text)
        if shown is None:
            if raw.split(b"\0", 1)[0].decode("utf-8", "replace").strip() != text:
                return False
        elif bytes.fromhex(shown[1].replace(", ", "")).rstrip(b"\0") != raw.rstrip(b"\0"):
            return False
    return True
