"""Small analyses of our own: real frames of a written capture, findings made by hand."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import tiny_capture
from itstrace import Analysis, Confidence, Evidence, Finding, Kind, Severity, analyze
from itstrace.findings import SkippedRule

DOUBLE = Finding(
    code="ITS401",
    name="double-pending",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    confidence=Confidence.LIKELY,
    message="LPI 8192 was in a list register of vCPU 1 while it was filled into one of vCPU 0.",
    advice="Keep EnableLPIs at 1 on vCPUs that run.",
    vm=0,
    its=0,
    device_id=8,
    event_id=0,
    intid=8192,
    vcpus=(1, 0),
    time_ns=100_001_700_499,
    end_ns=100_002_000_500,
    count=5,
    seqs=(1, 2),
    evidence=(
        Evidence(100_001_700_499, 0, "populate_lr", "vcpu=0 intid=8192 lr=0 pend=1 act=0 en=1 tgt=0", 1),
        Evidence(
            100_002_000_500,
            1,
            "fold_lr",
            "vcpu=1 used=1 " + " ".join(f"lr{i}=0x{i:016x}" for i in range(12)),
            2,
        ),
    ),
)
LOST = replace(
    DOUBLE, code="ITS901", name="lost-records", kind=Kind.EVIDENCE, severity=Severity.WARNING,
    confidence=Confidence.CERTAIN, message="Records were lost.", advice="Record with larger buffers.", vm=None,
    its=None, device_id=None, event_id=None, intid=None, vcpus=(), end_ns=None, count=1, seqs=(), evidence=(),
)  # fmt: skip


@cache
def _analyzed() -> Analysis:
    with TemporaryDirectory() as folder:
        analysis = analyze(tiny_capture.write(Path(folder) / "tiny.dat"))
    analysis.info.path = Path("tiny.dat")  # no folder's name shall break a line
    return analysis


def tiny() -> Analysis:
    """The written capture, with findings that no rule will ever change."""
    analysis = copy(_analyzed())
    analysis.findings = [DOUBLE, LOST]
    analysis.skipped = [SkippedRule("ITS113", "queue-misuse", ("REGISTER_WRITES",))]
    return analysis


@cache
def hostile() -> Analysis:
    """A capture in which every text is hostile, and so is every text of its findings."""
    evil = tiny_capture.HOSTILE
    with TemporaryDirectory() as folder:
        path = tiny_capture.write(Path(folder) / f"{evil.replace('/', '')}.dat", note=evil, comm=evil)
        analysis = analyze(path)
    record = Evidence(1, 0, evil, f"buf={evil}\nnext line", 1)
    bad = replace(DOUBLE, message=evil, advice=f"{evil}\n\x1b]0;title\x07", name=evil, evidence=(record,))
    analysis.findings = [bad] * 6
    analysis.info.options = {evil: evil, "cpu stats 0": f"CPU: 0\nentries: {evil}"}
    analysis.info.kernel = analysis.info.uname = analysis.info.clock = analysis.info.arch = evil
    return analysis
