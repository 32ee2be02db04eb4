"""Known faults are found by name, and clean captures are clean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from conftest import CORPUS, SAMPLES, analysis_of

from itstrace import Analysis, Severity
from itstrace.rules import RULES

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED: dict[str, dict[str, Any]] = json.loads((SAMPLES / "expected.json").read_text(encoding="utf-8"))
FAULTS = sorted(path.parent for path in (CORPUS / "faults").glob("*/key.json")) if CORPUS else []
#: The first of the faults: found on every kernel that they are given for.
FIRST = ("F1-", "F2-", "F6-", "F8-", "F12-bug01", "F12-bug17")


def _codes(analysis: Analysis) -> set[str]:
    return {finding.code for finding in analysis.findings}


def _loud(analysis: Analysis) -> set[str]:
    return {finding.code for finding in analysis.findings if finding.severity != Severity.NOTE}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_samples_say_what_they_are_kept_for(name: str) -> None:
    key = EXPECTED[name]
    analysis = analysis_of(SAMPLES / name)

    assert set(key.get("require", [])) <= _codes(analysis)
    assert _loud(analysis) <= {*key.get("require", []), *key["accept"]}


def test_every_sample_is_expected_to_be_something() -> None:
    found = {path.name for pattern in ("*.dat", "*.zst") for path in SAMPLES.glob(pattern)}
    assert found == set(EXPECTED)


@pytest.mark.corpus
@pytest.mark.parametrize("folder", FAULTS or [None], ids=lambda f: f.name if f else "none")
def test_faults_are_found(corpus: Path, folder: Path | None) -> None:
    assert folder is not None, corpus
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    analysis = analysis_of(folder / "trace.dat")
    if key.get("clean"):
        assert _loud(analysis) <= set(key["accept"])
        return
    # Rules that later releases bring cannot fire yet; a key that only they can satisfy says nothing about these.
    possible = [code for code in key.get("accept", []) if code in RULES]
    if possible or folder.name.startswith(FIRST):
        assert _codes(analysis) & set(possible)
    assert {code for code in key.get("require", []) if code in RULES} <= _codes(analysis)


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["boot-6.12", "migrate-7.3"])
def test_clean_captures_are_clean(corpus: Path, name: str) -> None:
    assert _loud(analysis_of(corpus / name / "trace.dat")) == set()


@pytest.mark.corpus
def test_the_double_delivery_is_told_as_the_truth_has_it(corpus: Path) -> None:
    """The answer key counted the LPI in two vCPUs' list registers five times, first at 1350.325229."""
    truth = json.loads((corpus / "faults/F12-bug17-612/truth.json").read_text(encoding="utf-8"))
    said = next(one for one in truth["observed"] if "two vCPUs" in one["what"])
    finding = next(
        f for f in analysis_of(corpus / "faults/F12-bug17-612/trace.dat").findings if f.code == "ITS401"
    )

    assert finding.count == said["count"]
    assert finding.vcpus == (0, 1)
    assert finding.intid == 8193
    assert f"{said['examples'][0]['t']:.6f}" in finding.message
