"""The guides show what happens: every example of three of them is run, and all that it shows is in its output."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from helpers.guide import examples, guide, run

if TYPE_CHECKING:
    from pathlib import Path

GUIDE = guide("cli.md")
EXAMPLES = examples(GUIDE)


def test_every_command_has_an_example() -> None:
    shown = {command.split()[1] for command, _ in EXAMPLES}

    assert shown == set(re.findall(r"^## (\w+)$", GUIDE, re.MULTILINE))
    assert len(EXAMPLES) == GUIDE.count("```console")


@pytest.mark.parametrize(("command", "shown"), EXAMPLES + examples(guide("bundles.md") + guide("export.md")))
def test_an_example_does_what_the_guide_shows(command: str, shown: str, tmp_path: Path) -> None:
    done = run(command, shown, tmp_path)

    assert done.returncode == 0, done.stderr
