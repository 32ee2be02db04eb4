"""`itstrace verify`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from itstrace.cli import verify
from itstrace.errors import UsageError

_SAMPLES = Path(__file__).parents[2] / "sample-traces"
_CAPTURE = _SAMPLES / "7.3-migrate.dat"
_RESTORED = _SAMPLES / "7.3-migrate.snapshots" / "restored"
_NOW = ("--at", "SNAP restored stopped")


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and standard output of a call."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    verify.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout


def test_equal_is_0() -> None:
    dumps = [
        _RESTORED / name for name in ("vgic-state.stopped", "vgic-its-state@8080000.stopped", "guest-tables")
    ]
    assert run(_CAPTURE, *dumps, *_NOW) == (0, "160 equal, 0 unknown, 0 different\n")


def test_different_is_4_and_comes_first(tmp_path: Path) -> None:
    dump = tmp_path / "vgic-state"
    text = (_RESTORED / "vgic-state.stopped").read_text()
    dump.write_text(text.replace("LPI 8202      1", "LPI 8202      0"))
    code, shown = run(_CAPTURE, dump, *_NOW)
    assert code == 4
    assert [line.split() for line in shown.splitlines()] == [
        ["different"],
        ["what", "which", "field", "replay", "kernel", "VM", "dump"],
        ["lpi", "8202", "target_vcpu", "1", "0", "1", "vgic-state"],
        [],
        ["59", "equal,", "0", "unknown,", "1", "different"],
    ]


def test_nothing_comparable_is_3(tmp_path: Path) -> None:
    dump = tmp_path / "vgic-its-state@9000000"
    dump.write_text("")
    code, shown = run(_CAPTURE, dump, *_NOW)
    assert code == 3
    assert shown == "nothing could be compared: 0 equal, 0 unknown, 0 different\n"


def test_unknown_is_counted_by_its_reason() -> None:
    code, shown = run(_CAPTURE, _RESTORED / "vgic-its-state@8080000.stopped", "--at", "SNAP pre stopped")
    assert code == 0
    assert "the capture does not show all that was mapped" in shown
    # What the VM was seen to use before it was saved: two events.
    assert shown.endswith("2 equal, 24 unknown, 0 different\n")


def test_json_holds_every_row() -> None:
    code, shown = run(_CAPTURE, _RESTORED / "vgic-state.stopped", *_NOW, "--json")
    document = json.loads(shown)
    assert code == 0
    assert document["schema"] == "itstrace.verify/1"
    assert document["summary"] == {"equal": 60, "unknown": 0, "different": 0}
    assert len(document["rows"]) == 60
    first = {
        "what": "lpi",
        "key": "8192",
        "field": "target_vcpu",
        "replay": "1",
        "kernel": "1",
        "verdict": "equal",
    }
    whose = {"dump": "vgic-state.stopped", "vm": 1, "its": None, "reason": None}
    assert document["rows"][0] == first | whose


def test_an_ambiguous_marker_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="markers hold 'SNAP restored'"):
        run(_CAPTURE, _RESTORED / "vgic-state.stopped", "--at", "SNAP restored")
