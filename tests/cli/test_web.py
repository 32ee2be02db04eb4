"""`itstrace analyze --html`: the page is written beside the report, and never over a capture."""

from __future__ import annotations

from pathlib import Path

import pytest

from itstrace.analysis import analyze
from itstrace.cli.web import save_page
from itstrace.errors import UsageError
from itstrace.report.html import Assets

_SAMPLE = Path(__file__).parents[2] / "sample-traces" / "6.12-double-delivery.dat"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page in one file."""
    path = tmp_path_factory.mktemp("web") / "report.html"
    save_page(path, analyze(_SAMPLE), [_SAMPLE], Assets.INLINE)
    return path


def test_one_file_is_the_whole_page(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == ["report.html"]
    text = saved.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "qemu-system-aar" in text  # tasks' names come from the capture


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--html .*cannot be written"):
        save_page(tmp_path / "no" / "report.html", analyze(_SAMPLE), [_SAMPLE], Assets.INLINE)


def test_a_capture_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from itstrace.cli import app  # noqa: PLC0415  what it registers is wanted only here

    copy = tmp_path / "capture.dat"
    copy.write_bytes(_SAMPLE.read_bytes())
    with pytest.raises(UsageError, match="would overwrite the capture"):
        app(["analyze", str(copy), "--html", str(copy)], standalone_mode=False)
    assert copy.read_bytes() == _SAMPLE.read_bytes()
    assert capsys.readouterr().out == ""
