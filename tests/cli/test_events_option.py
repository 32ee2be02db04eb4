"""`--events FILE`: every command that reads observations takes it, and says what is wrong with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from conftest import SAMPLES
from helpers.renamed import rename, renames
from typer.testing import CliRunner

from itstrace.cli import app
from itstrace.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

_DUMP = SAMPLES / "6.12-double-delivery.vgic-state"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A capture that nothing of is understood without its file, and that file."""
    folder = tmp_path_factory.mktemp("mine")
    names = {"its_process": "a", "its_cmd_off": "b", "its_cmd": "c", "populate_lr": "d"}
    capture = rename(SAMPLES / "6.12-double-delivery.dat", folder / "mine.dat", renames(names))
    file = folder / "mine.toml"
    file.write_text(
        '[process]\nevents = ["its:a"]\n[command]\nevents = ["b"]\n'
        '[guest_read]\nevents = ["c", "elsewhere"]\n[fill]\nevents = ["vgic:d"]\n'
    )
    return capture, file


def _run(*arguments: object) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    return result.stdout, result.stderr


@pytest.mark.parametrize(
    ("command", "rest"),
    [("analyze", ()), ("commands", ()), ("tables", ()), ("lpi", ("8193",)), ("verify", (_DUMP,))],
)
def test_a_command_tells_the_same_with_the_file_as_of_the_original(
    command: str, rest: tuple[object, ...], mine: tuple[Path, Path]
) -> None:
    capture, file = mine
    wanted, _ = _run(
        command,
        SAMPLES / "6.12-double-delivery.dat",
        *rest,
        "--json",
        *(["-"] if command == "analyze" else []),
    )
    told, notes = _run(
        command, capture, *rest, "--events", file, "--json", *(["-"] if command == "analyze" else [])
    )
    own = json.loads(wanted.replace('"populate_lr"', '"d"').replace('"its_cmd_off"', '"b"'))
    found = json.loads(told)

    assert notes == f"{file}: [guest_read] elsewhere: the capture has no such event\n"
    for document in (own, found):
        for key in ("capture", "input", "coverage", "observations"):
            document.pop(key, None)
    assert found == own


def test_info_shows_what_the_file_leads_to(mine: tuple[Path, Path]) -> None:
    capture, file = mine
    without, _ = _run("info", capture)
    told, _ = _run("info", capture, "--events", file)

    assert "COMMANDS              not recorded" in without
    assert "its:a as its_process, its:b as its_cmd_off, its:c as its_cmd (by --events)" in " ".join(
        told.split()
    )


def test_a_mistake_in_the_file_is_wrong_usage(mine: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[guest_read]\nfields.lenght = 'n'\n")

    for command in ("analyze", "info"):
        with pytest.raises(UsageError) as caught:
            _run(command, mine[0], "--events", file)
        assert (
            caught.value.message
            == f"--events {file}: [guest_read] fields.lenght: guest_read has no such column"
        )
        assert caught.value.advice == "fields.len"


def test_a_file_for_other_captures_says_little_of_what_this_one_lacks(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[fold]\nevents = [" + ", ".join(f'"vgic:fold_lr_{n}"' for n in range(30)) + "]\n")
    _, notes = _run("tables", SAMPLES / "6.12-double-delivery.dat", "--events", file)
    told, _ = _run("info", SAMPLES / "6.12-double-delivery.dat", "--events", file)

    assert len(notes.splitlines()) == 9
    assert notes.splitlines()[-1] == f"{file}: and 22 more of the kind; itstrace info --json has all"
    assert "12 of 30 shown, --json has all" in told
