"""Examples in guides: each is run as a reader would, and all that it shows must be in its output, in order."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_EXAMPLE = re.compile(r"^```console\n\$ (.*)\n((?:.*\n)*?)```$", re.MULTILINE)


def guide(name: str) -> str:
    """The text of a guide in docs/."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def examples(text: str) -> list[tuple[str, str]]:
    """The command lines of a guide, each with what is shown of its output."""
    return _EXAMPLE.findall(text)


def run(command: str, shown: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example in a folder, and compare what it prints; its exit code is for the caller."""
    if " | jq " in command and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    (folder / "sample-traces").symlink_to(ROOT / "sample-traces")
    # Each call of a line, for the virtual environment need not be on the PATH.
    ours = f"PYTHONPATH={ROOT} {sys.executable} -m itstrace.cli "
    line = re.sub(r"(^|[;&|] )itstrace ", lambda found: found[1] + ours, command)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    at = 0
    for each in shown.splitlines():
        found = done.stdout.find(each, at)
        said = f"{each!r} is not in the output after {done.stdout[max(at - 80, 0) : at]!r}; {done.stderr}"
        assert found >= 0, said
        at = found + len(each)
    return done
