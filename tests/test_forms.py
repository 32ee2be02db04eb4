"""One recording in several forms: whatever form it comes in, the analysis is the same.

What a form truly does not carry is named here, beside it.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import polars as pl
import pytest
import zstandard
from conftest import SAMPLES, analysis_of
from helpers.same import differences

import itstrace
from itstrace import Analysis, Confidence, Kind
from itstrace.readers import open_capture

if TYPE_CHECKING:
    from pathlib import Path

#: A text cannot tell which events were recorded and never fired, perf script's not what was lost.
_APART = {"ITS901", "ITS903"}
#: Texts print microseconds: trace-cmd rounds, perf and tracefs cut off.
_MICRO_NS = 1000
_PROFILE = "kvm-6.12"

#: (the capture, another form of it, how far times may differ)
FORMS = [
    ("local-none.dat.zst", "conv-zstd.dat", 0),
    ("local-none.dat.zst", "conv-zlib.dat", 0),
    ("local-none.dat.zst", "local-none.report.txt.zst", _MICRO_NS),
    ("local-none.dat.zst", "local-none.report-l.txt.zst", _MICRO_NS),
    ("lost2.dat", "lost2.report.txt.zst", _MICRO_NS),
    ("perf.data.zst", "perf-script--guest-code.txt.zst", _MICRO_NS),
    ("perf-mono.data", "perf-mono-script--guest-code.txt.zst", _MICRO_NS),
]


def _told(path: Path) -> Analysis:
    """A text does not tell its kernel; everything else it must tell by itself."""
    return itstrace.analyze(path, profile=_PROFILE)


def _apart(form: str) -> set[str]:
    return _APART if "script" in form else {"ITS903"} if "report" in form else set()


@pytest.mark.corpus
@pytest.mark.parametrize(("capture", "form", "tolerance_ns"), FORMS)
def test_a_recording_tells_the_same_in_every_form(
    corpus: Path, capture: str, form: str, tolerance_ns: int
) -> None:
    folder = corpus / "forms-6.12"
    reference = analysis_of(folder / capture)

    assert reference.lives.lives.height > 70
    assert differences(reference, _told(folder / form), tolerance_ns=tolerance_ns, apart=_apart(form)) == []


def test_a_perf_data_and_its_script_tell_the_same() -> None:
    reference = analysis_of(SAMPLES / "6.12-perf.data.zst")

    told = _told(SAMPLES / "6.12-perf-script.txt.zst")
    assert differences(reference, told, tolerance_ns=_MICRO_NS, apart=_APART) == []


@pytest.mark.corpus
def test_a_report_cut_short_tells_what_it_holds(corpus: Path) -> None:
    """`local-none.report-R.txt` holds the first 20,000 lines: the same records as the capture's first 19,999."""
    folder = corpus / "forms-6.12"
    with open_capture(folder / "local-none.report-R.txt.zst") as text:
        ours = {name.rpartition(":")[2]: (text.read(name)) for name in text.formats}
    with open_capture(folder / "local-none.dat.zst") as capture:
        for name, frame in ours.items():
            full = next(each for each in capture.formats if each.rpartition(":")[2] == name)
            first = capture.read(full).filter(pl.col("seq") < 19_999)
            assert frame.select("seq", "cpu", "pid").rows() == first.select("seq", "cpu", "pid").rows(), name

    assert sum(frame.height for frame in ours.values()) == 19_999


def test_a_script_that_does_not_tell_its_losses_makes_nothing_certain() -> None:
    told = _told(SAMPLES / "6.12-perf-script.txt.zst")

    assert not told.info.tells_losses
    assert {finding.confidence for finding in told.findings if finding.kind is not Kind.EVIDENCE} <= {
        Confidence.LIKELY
    }
    assert any(
        f.code == "ITS901" and "does not tell whether records were lost" in f.message for f in told.findings
    )
    assert any("--show-lost-events" in note and "--guest-code" in note for note in told.info.notes)


@pytest.mark.corpus
def test_what_the_script_did_not_tell_the_perf_data_tells(corpus: Path) -> None:
    """Perf script without --show-lost-events: its reader would take 39 stretches of lost records for silence."""
    folder = corpus / "forms-6.12"
    silent = _told(folder / "perf-lost-script--guest-code.txt.zst")

    assert analysis_of(folder / "perf-lost.data").gaps.height == 39
    assert silent.gaps.is_empty()
    assert all(
        finding.confidence is not Confidence.CERTAIN
        for finding in silent.findings
        if finding.kind is not Kind.EVIDENCE
    )


@pytest.mark.corpus
def test_the_default_script_leaves_out_vcpu_threads_and_says_so(corpus: Path) -> None:
    """77 MSIs are there; what became of them was sampled in vCPU threads, and left out."""
    told = _told(corpus / "forms-6.12" / "perf-script.txt")

    assert told.lives.lives.height == 77
    assert "LIST_REGISTERS" in {name for rule in told.skipped for name in rule.missing}
    assert any("--guest-code" in note for note in told.info.notes)


def test_standard_input_is_a_capture() -> None:
    text = SAMPLES / "6.12-tracefs-trace.txt.zst"
    with text.open("rb") as packed:
        plain = zstandard.ZstdDecompressor().stream_reader(packed).read()
    for given in (plain, text.read_bytes()):
        run = subprocess.run(
            [sys.executable, "-m", "itstrace.cli", "commands", "-"],
            input=given,
            capture_output=True,
            check=True,
        )
        assert run.stdout.count(b"MOVI") == 24
