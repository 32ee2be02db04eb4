"""What all tests share: the sample captures of the repository, and the whole corpus where its folder is named."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from itstrace import Analysis, analyze

# A deadline of hypothesis would be a timed assertion: it fails on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SAMPLES = Path(__file__).parents[1] / "sample-traces"
CORPUS = Path(os.environ["ITSTRACE_CORPUS"]) if os.environ.get("ITSTRACE_CORPUS") else None


@cache
def analysis_of(path: Path) -> Analysis:
    """One analysis of a file for all tests that look at it; none of them changes it."""
    return analyze(path)


@pytest.fixture
def corpus() -> Path:
    """The folder of all real captures; the test is skipped where ITSTRACE_CORPUS does not name it."""
    if CORPUS is None:
        pytest.skip("ITSTRACE_CORPUS does not name the folder of real captures")
    return CORPUS
