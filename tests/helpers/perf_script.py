"""The reference tool's text: what `perf script` says of a file, as a frame to compare ours with."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import polars as pl
import pytest
import zstandard

from itstrace.readers.base import HEAD
from itstrace.readers.print_fmt import render

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from itstrace.readers.base import Capture

needs_perf = pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")

_LINE = (
    r"^\s*(?<comm>.*?)\s+(?:-?\d+/)?(?<tid>-?\d+)\s+\[(?<cpu>\d+)\]\s+(?<seconds>\d+)\.(?<rest>\d+):"
    r"\s+(?<event>\S+:\S+):(?: (?<text>.*))?$"
)

#: libtraceevent's kvm plugin registers x86's handlers; these pieces of arm64's lines are its complaints.
#: Source: libtraceevent plugins/plugin_kvm.c:kvm_entry_handler, kvm_exit_handler
_COMPLAINTS = re.compile(r"CAN'T FIND FIELD \"vcpu_id\"|<CANT FIND FIELD \w+>")
_UNPARSED = "[FAILED TO PARSE] "


def read_script(path: Path) -> pl.DataFrame:
    """Read a file of perf script's lines, packed or not. Shape: as of `parse_script`."""
    raw = path.read_bytes()
    return parse_script(
        zstandard.ZstdDecompressor().decompressobj().decompress(raw) if path.suffix == ".zst" else raw
    )


def run_script(path: Path) -> pl.DataFrame:
    """Run `perf script --ns` on a file. Shape: as of `parse_script`."""
    command = ["perf", "script", "--ns", "-f", "-F", "comm,tid,cpu,time,event,trace", "-i", str(path)]
    run = subprocess.run(command, capture_output=True, check=True)
    return parse_script(run.stdout)


def parse_script(raw: bytes) -> pl.DataFrame:
    """Read perf script's lines. Shape: comm, tid, cpu, time (in units of `unit_ns`), unit_ns, event, text."""
    lines = pl.DataFrame({"line": raw.decode("utf-8", "replace").splitlines()})
    return (
        lines.select(pl.col("line").str.extract_groups(_LINE).alias("group"))
        .unnest("group")
        .filter(pl.col("event").is_not_null())
        .select(
            "comm",
            pl.col("tid").cast(pl.Int32),
            pl.col("cpu").cast(pl.UInt16),
            (
                pl.col("seconds").cast(pl.Int64) * 10 ** pl.col("rest").str.len_chars().cast(pl.Int64)
                + pl.col("rest").cast(pl.Int64)
            ).alias("time"),
            (10 ** (9 - pl.col("rest").str.len_chars().cast(pl.Int64))).cast(pl.Int64).alias("unit_ns"),
            "event",
            pl.col("text").fill_null(""),
        )
    )


def all_samples(capture: Capture, field_by_field: Collection[str] = ()) -> pl.DataFrame:
    """Every sample of a capture in order, as perf script would print it, or some events' (integer) fields one by one.

    Shape: seq, time_ns, cpu, pid, event, text
    """
    parts = [pl.DataFrame(schema=HEAD | {"event": pl.String(), "text": pl.String()})]
    for block in capture.blocks(dict.fromkeys(capture.formats)):
        for name, frame in block.items():
            event = capture.formats[name]
            rows = frame.iter_rows(named=True)
            if name in field_by_field:
                fields = frame.columns[len(HEAD) :]
                texts = [" ".join(f"{field}={int(row[field])}" for field in fields) for row in rows]
            else:
                texts = [render(event, row) for row in rows]
            parts.append(
                frame.select(*HEAD).with_columns(
                    pl.lit(name).alias("event"), pl.Series("text", texts, pl.String())
                )
            )
    return pl.concat(parts).sort("seq")


def words(text: str) -> list[str]:
    """Give the words of a line without the tool's own complaints and without padding."""
    return _COMPLAINTS.sub("", text).removeprefix(_UNPARSED).split()
