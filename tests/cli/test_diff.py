"""`itstrace diff`: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from conftest import SAMPLES
from helpers import tiny_capture
from helpers.guide import examples, guide, run
from typer.testing import CliRunner

from itstrace.cli import app
from itstrace.errors import CaptureError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

GUIDE = guide("diff.md")
EXAMPLES = examples(GUIDE)
GOOD = SAMPLES / "6.12-clean.dat"
BAD = SAMPLES / "6.12-lost-lpi.dat"


@dataclass(frozen=True)
class Result:
    """How a call ended."""

    exit_code: int
    stdout: str
    stderr: str


def diff(*arguments: str | Path) -> Result:
    """Call the command; what it raises on purpose comes through."""
    done = CliRunner().invoke(app, ["diff", *map(str, arguments)], catch_exceptions=False)
    return Result(done.exit_code, done.stdout, done.stderr)


def test_a_difference_is_4() -> None:
    result = diff(GOOD, BAD)

    assert result.exit_code == 4
    assert result.stdout.startswith("New in B: an interrupt was lost (ITS301): LPI 8196")
    assert result.stderr == ""


def test_none_is_0(tmp_path: Path) -> None:
    twin = shutil.copy(GOOD, tmp_path / "twin.dat")

    for other in (GOOD, twin):
        result = diff(GOOD, other)
        assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "No difference was found.")


def test_forms_need_not_be_the_same() -> None:
    assert diff(SAMPLES / "6.12-perf.data.zst", SAMPLES / "6.12-perf-script.txt.zst").exit_code == 0


def test_limits_decide() -> None:
    def counted(*options: str) -> dict[str, int]:
        found: dict[str, int] = json.loads(diff(GOOD, BAD, "--json", *options).stdout)["counted"]
        return found

    assert counted()["latencies"] > 0
    assert counted()["outcomes"] > 0
    assert counted("--latency-factor", "10000")["latencies"] == 0
    assert counted("--share-points", "90")["outcomes"] == 0
    few = counted("--min-samples", "5000")
    assert (few["latencies"], few["outcomes"]) == (0, 0)
    assert few["findings"] == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--latency-factor", "0.5"),
        ("--latency-factor", "nan"),
        ("--share-points", "-1"),
        ("--rate-factor", "0"),
    ],
)
def test_limits_that_are_none_are_wrong_usage(option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{option} .*: it must be"):
        diff(GOOD, BAD, option, value)


def test_json_is_the_document_alone() -> None:
    result = diff(GOOD, BAD, "--json")
    document = json.loads(result.stdout)

    assert result.exit_code == 4
    assert result.stdout.isascii()
    assert (document["schema"], document["differs"]) == ("itstrace.diff/1", True)
    assert [one["code"] for one in document["findings"] if one["differs"]] == ["ITS301"]


def test_tables_at_a_time_of_each() -> None:
    def tables(*options: str) -> int:
        return int(json.loads(diff(GOOD, GOOD, "--json", *options).stdout)["counted"]["tables"])

    assert tables("--at", "+1") == 0
    assert tables("--at-a", "+1.2", "--at-b", "-0.5") > 0
    assert tables("--at", "+1.2", "--at-b", "-0.5") == tables("--at-a", "+1.2", "--at-b", "-0.5")


def test_a_time_outside_one_capture_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="lies outside the capture"):
        diff(GOOD, BAD, "--at", "+10")


def test_a_page_is_written_besides(tmp_path: Path) -> None:
    page = tmp_path / "diff.html"
    result = diff(GOOD, BAD, "--html", page)

    assert result.exit_code == 4
    assert result.stdout.startswith("New in B: ")
    assert "<title>6.12-clean.dat and 6.12-lost-lpi.dat - itstrace diff</title>" in page.read_text(
        encoding="utf-8"
    )


def test_a_page_never_overwrites_a_capture(tmp_path: Path) -> None:
    capture = tiny_capture.write(tmp_path / "tiny.dat")
    before = capture.read_bytes()
    (tmp_path / "link.html").symlink_to(capture)

    with pytest.raises(UsageError, match="would overwrite the capture"):
        diff(GOOD, capture, "--html", tmp_path / "link.html")
    assert capture.read_bytes() == before


@pytest.mark.parametrize(
    ("file", "said"), [("-", "writes to a file"), ("none/diff.html", "cannot be written")]
)
def test_a_page_that_cannot_be_written_is_wrong_usage(tmp_path: Path, file: str, said: str) -> None:
    capture = tiny_capture.write(tmp_path / "tiny.dat")

    with pytest.raises(UsageError, match=said):
        diff(capture, capture, "--html", file if file == "-" else tmp_path / file)


def test_standard_input_serves_one_of_them() -> None:
    with pytest.raises(UsageError, match="cannot both be standard input"):
        diff("-", "-")


def test_a_capture_that_is_none_is_said() -> None:
    with pytest.raises(CaptureError, match="nowhere"):
        diff(GOOD, "nowhere.dat")


def test_a_seed_is_of_one_side() -> None:
    """What one side knows by its seed alone is unknown in the other, and no difference."""
    capture = SAMPLES / "7.3-migrate.dat"
    seed = f"{SAMPLES / '7.3-migrate.snapshots' / 'restored' / 'guest-tables'}@+0"

    def unknown(*options: str) -> set[str]:
        result = diff(capture, capture, "--json", "--at", "+0.1", *options)
        assert result.exit_code == 0
        entries = json.loads(result.stdout)["entries"]
        assert {one["verdict"] for one in entries} <= {"unknown"}
        return {one["reason"] for one in entries}

    assert unknown() == set()
    assert unknown("--seed-a", seed) == {"B does not tell", "B does not show all that was mapped"}
    assert unknown("--seed-b", seed) == {"A does not tell", "A does not show all that was mapped"}
    assert unknown("--seed-a", seed, "--seed-b", seed) == set()


def test_hostile_words_move_no_terminal(tmp_path: Path) -> None:
    name = tiny_capture.HOSTILE.replace("/", "")
    evil = tiny_capture.write(tmp_path / f"{name}.dat", note=tiny_capture.HOSTILE, comm=tiny_capture.HOSTILE)
    result = diff(evil, GOOD, "--html", tmp_path / "evil.html")
    page = (tmp_path / "evil.html").read_text(encoding="utf-8")

    assert result.exit_code == 4
    assert all(line.isprintable() for line in result.stdout.split("\n"))
    assert "<script" not in page
    assert "\x1b" not in page


def test_the_guide_has_examples() -> None:
    assert len(EXAMPLES) == GUIDE.count("```console") == 4


@pytest.mark.parametrize(("command", "shown"), EXAMPLES)
def test_the_guide_shows_what_happens(command: str, shown: str, tmp_path: Path) -> None:
    done = run(command, shown, tmp_path)

    assert done.returncode in {0, 4}, done.stderr
