"""The guides show what happens: every example of three of them is run, and all that it shows is in its output."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
BUNDLES = (ROOT / "docs" / "bundles.md").read_text(encoding="utf-8")
EXPORT = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
_EXAMPLE = re.compile(r"^```console\n\$ (.*)\n((?:.*\n)*?)```$", re.MULTILINE)
EXAMPLES = _EXAMPLE.findall(GUIDE)


def test_every_command_has_an_example() -> None:
    shown = {command.split()[1] for command, _ in EXAMPLES}

    assert shown == set(re.findall(r"^## (\w+)$", GUIDE, re.MULTILINE))
    assert len(EXAMPLES) == GUIDE.count("```console")


@pytest.mark.parametrize(("command", "shown"), EXAMPLES + _EXAMPLE.findall(BUNDLES + EXPORT))
def test_an_example_does_what_the_guide_shows(command: str, shown: str, tmp_path: Path) -> None:
    if " | jq " in command and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    (tmp_path / "sample-traces").symlink_to(ROOT / "sample-traces")
    # Each call of a line, for the virtual environment need not be on the PATH.
    ours = f"PYTHONPATH={ROOT} {sys.executable} -m itstrace.cli "
    line = re.sub(r"(^|[;&|] )itstrace ", lambda found: found[1] + ours, command)
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False, encoding="utf-8"
    )

    assert done.returncode == 0, done.stderr
    at = 0
    for each in shown.splitlines():
        found = done.stdout.find(each, at)
        assert found >= 0, f"{each!r} is not in the output after {done.stdout[max(at - 80, 0) : at]!r}"
        at = found + len(each)
