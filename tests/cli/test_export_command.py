"""`itstrace export`: which format it chooses, what it refuses to write over, and that a file is there only when it is whole."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
from helpers import perfetto_trace
from typer.testing import CliRunner

from itstrace.cli import export
from itstrace.errors import UsageError

_CAPTURE = Path(__file__).parents[2] / "sample-traces" / "6.12-double-delivery.dat"


def run(*arguments: str | Path) -> str:
    """Standard output of a call that succeeds."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    export.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", ["a.pftrace", "a.perfetto-trace", "A.PERFETTO", "a.pftrace.gz"])
def test_a_name_says_perfetto(name: str, tmp_path: Path) -> None:
    shown = run(_CAPTURE, "--to", tmp_path / name)
    content = (tmp_path / name).read_bytes()
    trace = perfetto_trace.read(gzip.decompress(content) if name.endswith(".gz") else content)

    assert f"{name}: {len(trace.slices) + len(trace.instants) + len(trace.values):,} events" in shown
    assert "https://ui.perfetto.dev" in shown
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_no_runs(tmp_path: Path) -> None:
    run(_CAPTURE, "--to", tmp_path / "a", "--format", "perfetto", "--no-runs")
    trace = perfetto_trace.read((tmp_path / "a").read_bytes())

    assert trace.slices
    assert not [one for one in trace.slices if one.name == "in guest"]


@pytest.mark.parametrize("to", ["frames", "frames/", "."])
def test_a_folder_says_parquet(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run(_CAPTURE, "--to", to)
    manifest = json.loads((tmp_path / to / "frames.json").read_text())

    rows = sum(entry["rows"] for entry in manifest["frames"].values())
    assert f"{len(manifest['frames'])} frames, {rows:,} rows" in shown
    assert (
        pl.read_parquet(tmp_path / to / "commands.parquet").height == manifest["frames"]["commands"]["rows"]
    )


def test_csv(tmp_path: Path) -> None:
    run(_CAPTURE, "--to", tmp_path / "a.d", "--format", "csv")

    assert (tmp_path / "a.d" / "commands.csv").read_text().startswith("seq,time_ns,cpu,pid,")


@pytest.mark.parametrize(
    ("to", "options", "problem"),
    [
        ("a.txt", (), "does not say in which format"),
        ("file", ("--format", "parquet"), "is a file"),
        ("folder", ("--format", "perfetto"), "is a folder"),
        ("file", ("--format", "perfetto"), "is there already"),
        ("capture.dat", ("--format", "perfetto", "--force"), "would overwrite the capture"),
        ("link.pftrace", ("--force",), "would overwrite the capture"),
        ("new/", ("--no-runs",), "is for a trace of Perfetto"),
        ("full", (), "gaps.parquet is there already"),
        ("none/a.pftrace", (), "cannot be written"),
    ],
)
def test_refused(to: str, options: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    capture = tmp_path / "capture.dat"
    shutil.copy(_CAPTURE, capture)
    (tmp_path / "link.pftrace").symlink_to(capture)
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    for file in ("file", "full/gaps.parquet"):
        (tmp_path / file).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    target = f"{tmp_path}/{to}"

    with pytest.raises(UsageError, match=problem):
        run(capture, "--to", target, *options)

    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "gaps.parquet").read_text() == "mine"
    assert capture.read_bytes() == _CAPTURE.read_bytes()


def test_a_capture_that_is_a_folder_gets_no_frames(tmp_path: Path) -> None:
    shutil.copy(_CAPTURE, tmp_path / "trace.dat")

    with pytest.raises(UsageError, match="is the capture itself"):
        run(tmp_path, "--to", tmp_path, "--force")


def test_force(tmp_path: Path) -> None:
    (tmp_path / "a.pftrace").write_text("old")
    run(_CAPTURE, "--to", tmp_path / "a.pftrace", "--force")
    (tmp_path / "gaps.parquet").write_text("old")
    run(_CAPTURE, "--to", tmp_path, "--force")

    assert perfetto_trace.read((tmp_path / "a.pftrace").read_bytes()).slices
    assert pl.read_parquet(tmp_path / "gaps.parquet").height == 0


def test_a_trace_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_analysis: object, out: Any, **_: object) -> None:
        out.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_trace", full)
    (tmp_path / "a.pftrace").write_text("old")
    with pytest.raises(UsageError, match="no space left"):
        run(_CAPTURE, "--to", tmp_path / "a.pftrace", "--force")

    assert (tmp_path / "a.pftrace").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_rules_go_by_the_numbers_that_are_set(tmp_path: Path) -> None:
    late = _CAPTURE.with_name("6.12-late-delivery.dat")
    for name, factor in (("as_it_is", "20"), ("patient", "1000000")):
        run(late, "--to", tmp_path / name, "--set", f"late-factor={factor}")

    found = {
        name: pl.read_parquet(tmp_path / name / "findings.parquet")["code"].to_list()
        for name in ("as_it_is", "patient")
    }
    assert "ITS304" in found["as_it_is"]
    assert "ITS304" not in found["patient"]
