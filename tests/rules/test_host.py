"""ITS2xx: captures in which KVM departs from the commands by nothing, and by what was put into the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import SAMPLES, analysis_of
from helpers.undone import (
    HOST,
)

from itstrace import Severity

if TYPE_CHECKING:
    from pathlib import Path


CLEAN = [
    "6.1-clean.dat",
    "6.12-clean.dat",
    "7.3-guest-mistakes.dat",
    "7.3-migrate.dat",
    "6.12-double-delivery.dat",
]


@pytest.mark.parametrize(
    "name", [*CLEAN, "6.12-lost-records.dat", "6.12-tracefs-trace.txt.zst", "6.12-perf.data.zst"]
)
def test_a_capture_without_a_fault_of_the_host_s_has_none(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)

    assert not [one for one in analysis.findings if one.code in HOST]


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["torture-6.1", "torture-6.12", "torture-7.3", "boot-6.12", "migrate-7.3"])
def test_long_captures_without_a_fault_of_the_host_s_have_none(corpus: Path, name: str) -> None:
    analysis = analysis_of(corpus / name / "trace.dat")

    assert not [one for one in analysis.findings if one.code in HOST]


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "code", "mechanism"),
    [
        ("F1-61", "ITS207", "update_affinity was called and the LPI kept its target"),
        ("F1-612", "ITS207", "update_affinity was called and the LPI kept its target"),
        ("L-F1-612", "ITS207", "update_affinity was called and the LPI kept its target"),
        ("F2-612", "ITS201", "the cache was dropped and still gave the translation"),
        ("F5-73", "ITS205", "the property byte was not read"),
        ("F9a-612", "ITS207", "MOVI left no trace of its effect"),
        ("F9b-73", "ITS207", "DISCARD left no trace of its effect"),
        ("F9f-612", "ITS207", "INV read another LPI's configuration"),
        ("F11-movall-612", "ITS204", "MOVALL moved LPIs of other vCPUs"),
        ("F13-612", "ITS203", "an event was looked up as another"),
    ],
)
def test_known_faults_are_named_by_their_mechanism(
    corpus: Path, name: str, code: str, mechanism: str
) -> None:
    findings = analysis_of(corpus / "faults" / name / "trace.dat").findings
    found = next(one for one in findings if (one.code, one.mechanism) == (code, mechanism))

    assert found.severity is Severity.ERROR
    assert found.suspect
    assert found.guest_saw
    assert found.evidence
    assert found.blames or name == "F13-612"
