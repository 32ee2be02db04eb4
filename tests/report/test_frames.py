"""Frames as files: what is read back is what the analysis holds, and the manifest says what each file is."""

from __future__ import annotations

import json
import sys
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers import tiny_analysis

from itstrace import schemas
from itstrace.errors import Damage
from itstrace.report.frames import MANIFEST, files, flat, frames, write_frames

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Analysis

CAPTURES = [SAMPLES / name for name in ("6.12-double-delivery.dat", "7.3-migrate.dat", "qemu-linux.log.zst")]
every = pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.name)


def _schemas() -> dict[str, pl.Schema]:
    return {name.lower(): value for name, value in vars(schemas).items() if isinstance(value, pl.Schema)}


@every
def test_parquet_gives_back_every_frame(capture: Path, tmp_path: Path) -> None:
    analysis = analysis_of(capture)
    write_frames(analysis, tmp_path, "parquet")

    for name, frame in frames(analysis).items():
        back = pl.read_parquet(tmp_path / f"{name}.parquet")
        assert back.schema == frame.schema == _schemas()[name]
        assert back.equals(frame), name


@every
def test_csv_gives_back_every_frame(capture: Path, tmp_path: Path) -> None:
    analysis = analysis_of(capture)
    write_frames(analysis, tmp_path, "csv")

    for name, frame in frames(analysis).items():
        expected = flat(frame)
        back = pl.read_csv(tmp_path / f"{name}.csv", schema=expected.schema)
        assert back.equals(expected), name


@every
def test_frames_are_the_analysis(capture: Path) -> None:
    analysis = analysis_of(capture)
    obs, history, lives = analysis.observations, analysis.history, analysis.lives
    got = frames(analysis)

    assert got["commands"].equals(obs.commands)
    assert got["runs"].equals(obs.runs.frame())
    assert got["mappings"].equals(history.mappings)
    assert got["lives"].equals(lives.lives)
    assert got["pending"].equals(lives.pending)
    assert got["counts"]["records"].sum() == analysis.counts["records"].sum()
    held = [one for part in (obs, history) for one in (getattr(part, name) for name in part.__slots__)]
    frames_held = [one for one in held if isinstance(one, pl.DataFrame)]
    assert len(frames_held) >= 30
    assert all(
        any(one.height == each.height and one.columns == each.columns for each in got.values())
        for one in frames_held
    )


@every
def test_every_schema_has_a_frame_and_every_frame_a_schema(capture: Path) -> None:
    assert set(frames(analysis_of(capture))) == set(_schemas())


def test_the_page_of_frames_has_each() -> None:
    sys.path.insert(0, str(SAMPLES.parent / "docs"))
    try:
        import make  # type: ignore[import-not-found]  # noqa: PLC0415  a script beside the pages
    finally:
        sys.path.pop(0)
    page = make.frames_page()

    assert [name for name in _schemas() if f"\n## {name.upper()}\n" not in page] == []


def test_findings_with_their_evidence_and_subjects() -> None:
    analysis = analysis_of(CAPTURES[0])
    got = frames(analysis)

    assert got["findings"]["id"].to_list() == [finding.id for finding in analysis.findings]
    assert got["findings"]["message"].to_list() == [finding.message for finding in analysis.findings]
    assert got["findings"]["seqs"].to_list() == [list(finding.seqs) for finding in analysis.findings]
    assert got["findings"]["vcpus"].to_list() == [list(finding.vcpus) for finding in analysis.findings]
    evidence = [
        (finding.id, item.seq, item.text) for finding in analysis.findings for item in finding.evidence
    ]
    assert list(got["evidence"].select("finding", "seq", "text").iter_rows()) == evidence
    subjects = [(finding.id, one.intid) for finding in analysis.findings for one in finding.subjects]
    assert list(got["subjects"].select("finding", "intid").iter_rows()) == subjects


def test_damage_and_unknown() -> None:
    analysis = copy(tiny_analysis.tiny())
    analysis.damage = [Damage(None, 1, "cut short"), Damage(77, None, "ran backwards", disorder=True)]
    got = frames(analysis)

    assert got["damage"].rows() == [(None, 1, "cut short", False), (77, None, "ran backwards", True)]
    assert got["findings"].row(1, named=True)["vm"] is None
    assert got["findings"].row(1, named=True)["vcpus"] == []


def _strange() -> Analysis:
    """Text that CSV could take for something else."""
    analysis = copy(tiny_analysis.story())
    texts = ("", 'a "quoted", word', "two\nlines", "=1+1", "\x1b[31m", "\u202e")
    first = analysis.findings[0]
    analysis.findings = [replace(first, id=f"ITS201-{n}", message=text) for n, text in enumerate(texts)]
    return analysis


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_text_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    analysis = _strange()
    write_frames(analysis, tmp_path, kind)
    expected = flat(frames(analysis)["findings"])
    file = tmp_path / f"findings.{kind}"
    back = pl.read_csv(file, schema=expected.schema) if kind == "csv" else flat(pl.read_parquet(file))

    assert back.equals(expected)
    assert back["message"].to_list() == [finding.message for finding in analysis.findings]


def test_the_manifest_says_what_each_file_is(tmp_path: Path) -> None:
    analysis = analysis_of(CAPTURES[0])
    manifest: dict[str, Any] = json.loads(json.dumps(write_frames(analysis, tmp_path, "parquet")))

    assert manifest["schema"] == "itstrace.frames/1"
    assert manifest["capture"]["kernel"] == analysis.info.kernel
    assert manifest["capture"]["start_ns"] == analysis.start_ns
    assert {entry["file"] for entry in manifest["frames"].values()} == {
        file.name for file in tmp_path.iterdir()
    }
    assert set(files("parquet")) == {file.name for file in tmp_path.iterdir()} | {MANIFEST}
    for name, frame in frames(analysis).items():
        entry = manifest["frames"][name]
        assert entry["rows"] == frame.height
        assert [column["name"] for column in entry["columns"]] == frame.columns
        assert [column["dtype"] for column in entry["columns"]] == [str(dtype) for dtype in frame.dtypes]
        assert all(
            column["unit"] == ("ns" if column["name"].endswith("_ns") else None)
            for column in entry["columns"]
            if not column["name"].endswith("_bytes")
        )
