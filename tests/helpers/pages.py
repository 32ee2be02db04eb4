"""Pages of captures, made once for all tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from conftest import SAMPLES, analysis_of

from itstrace.report.html import page
from itstrace.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from itstrace import Analysis

COMMS = {10538: "qemu-system-aar"}


@cache
def _folder() -> Path:
    return Path(mkdtemp(prefix="itstrace-pages-"))


def written(name: str, analysis: Analysis, comms: Mapping[int, str] | None = None) -> Path:
    """The page of an analysis, in a file."""
    path = _folder() / f"{name}.html"
    if not path.exists():
        made = page(analysis, pages=lambda code: RULES[code].page, rules=len(RULES), comms=comms or COMMS)
        path.write_text(made.html, encoding="utf-8")
    return path


@cache
def page_of(name: str) -> Path:
    """The page of a sample capture."""
    return written(name.replace(".", "-"), analysis_of(SAMPLES / name))
