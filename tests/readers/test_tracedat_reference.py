"""Every record of real captures, compared with what trace-cmd makes of it."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest
import zstandard
from helpers.trace_cmd import differences, needs_trace_cmd, report

from itstrace.readers.tracedat import TraceDat

_SAMPLES = Path(__file__).parents[2] / "sample-traces"
_CORPUS = os.environ.get("ITSTRACE_CORPUS")

#: trace-cmd 3.1.6 cannot unpack this file ("cannot uncompress the file"): the same capture, converted to
#: zstd.
STAND_INS = {"conv-zlib.dat": "conv-zstd.dat"}

#: Fields that the reference does not print as they stand in the record.
KNOWN_DIFFERENCES = {
    "print.ip": "printed as the symbol's name",
}


def _captures(root: Path) -> list[Path]:
    found = {*root.rglob("*.dat"), *root.rglob("*.dat.zst")}
    return sorted(path for path in found if path.is_file())


def _identify(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _plain(path: Path, folder: Path) -> Path:
    """Give the file itself, or an unpacked copy of it."""
    if path.suffix != ".zst":
        return path
    copy = folder / path.stem
    with path.open("rb") as packed, copy.open("wb") as plain:
        zstandard.ZstdDecompressor().copy_stream(packed, plain)
    return copy


def _compare(path: Path, reference: Path) -> None:
    with TraceDat.open(path) as capture:
        theirs = report(reference)
        parts: dict[str, list[pl.DataFrame]] = {}
        for block in capture.blocks(dict.fromkeys(capture.formats)):
            for name, frame in block.items():
                if len(frame):
                    parts.setdefault(name, []).append(frame)

        assert capture.damage() == []
        assert capture.disorder() == 0

        expected = dict(
            theirs.records.group_by("event", "cpu").len().sort("event", "cpu").rows_by_key("event")
        )
        counts = capture.counts()
        names = {name.split(":", 1)[1]: name for name in parts}
        assert len(names) == len(parts), "two systems have an event of one name; compare them by hand"
        got = dict(
            counts.with_columns(pl.col("event").str.split(":").list.last())
            .sort("event", "cpu")
            .rows_by_key("event")
        )
        assert got == expected
        assert sum(int(rows) for rows in counts["records"]) == len(theirs.records)

        found: list[str] = []
        for (event,), rows in theirs.records.group_by("event"):
            name = names[str(event)]
            ours = pl.concat(parts.pop(name)).sort("cpu", maintain_order=True)
            rows_by_cpu = rows.sort("cpu", maintain_order=True)
            for column in ("time_ns", "cpu", "pid"):
                assert ours[column].to_list() == rows_by_cpu[column].to_list(), (name, column)
            comms = [
                "<idle>" if pid == 0 else capture.comms.get(pid, "<...>")
                for pid in rows_by_cpu["pid"].to_list()
            ]
            assert comms == rows_by_cpu["comm"].to_list()
            fields = ours.drop("seq", "time_ns", "cpu", "pid")
            found += differences(capture.formats[name], fields, rows_by_cpu["text"], KNOWN_DIFFERENCES)

        assert not parts
        assert found == []
        assert (
            theirs.lost.sort("cpu", "lost").rows()
            == capture.gaps().select("cpu", "lost").sort("cpu", "lost").rows()
        )


@needs_trace_cmd
@pytest.mark.parametrize("path", _captures(_SAMPLES), ids=_identify)
def test_sample_is_read_as_trace_cmd_reads_it(path: Path, tmp_path: Path) -> None:
    plain = _plain(path, tmp_path)
    _compare(plain, plain)


@pytest.mark.corpus
@pytest.mark.skipif(_CORPUS is None, reason="ITSTRACE_CORPUS names no folder of captures")
@needs_trace_cmd
@pytest.mark.parametrize("path", _captures(Path(_CORPUS)) if _CORPUS else [], ids=_identify)
def test_capture_is_read_as_trace_cmd_reads_it(path: Path, tmp_path: Path) -> None:
    plain = _plain(path, tmp_path)
    stand_in = STAND_INS.get(path.name)
    _compare(plain, plain if stand_in is None else path.with_name(stand_in))
