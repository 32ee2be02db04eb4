"""Small analyses of our own: real frames of a written capture, findings made by hand."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import tiny_capture
from itstrace import Analysis, Confidence, Evidence, Finding, Kind, Severity, analyze
from itstrace.findings import KnownBug, SkippedRule, Subject

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
    claim="KVM had one LPI live on two vCPUs at once",
    id="ITS401",
)
LOST = replace(
    DOUBLE, id="ITS901", code="ITS901", name="lost-records", kind=Kind.EVIDENCE, severity=Severity.WARNING,
    confidence=Confidence.CERTAIN, message="Records were lost.", advice="Record with larger buffers.", vm=None,
    its=None, device_id=None, event_id=None, intid=None, vcpus=(), end_ns=None, count=1, seqs=(), evidence=(),
    claim="records were lost",
)  # fmt: skip


#: A cause that has all that a finding can have, two that follow from it, and one that follows from one of these.
CAUSE = replace(
    DOUBLE,
    code="ITS202",
    name="missing-invalidation",
    message="DISCARD of device 0x8, event 0 at 100.001500 left the translation cache as it was. Likewise 0x9/1; "
    "3 times in all.",
    advice="Look at what vgic_its_cmd_handle_discard does after it freed the entry.",
    vcpus=(0,),
    count=3,
    mechanism="DISCARD leaves the cache",
    subjects=(
        Subject(8, 0, 8192, (0,), 2, 100_001_700_499, 100_002_000_500),
        Subject(9, 1, None, (), 1, None),
    ),
    worst="the cache of 0x8/0 stayed for 1.44 s",
    guest_saw="an interrupt that it had taken down",
    suspect=("vgic_its_cmd_handle_discard", "vgic_its_invalidate_cache"),
    known_bugs=(KnownBug("the cache is filled while it is dropped", "v6.10, v6.6.33", "CVE-2024-1"),),
    doubt="Whether the function's body ran was not recorded.",
    capture_next="r:its_inval_cache_ret vgic_its_invalidate_cache",
    blames=(7,),
    claim="KVM kept translations cached that it had to drop",
    id="ITS202",
    leads_to=("ITS201", "ITS305"),
)
#: What a rule of another package brings: no words for a verdict.
_BARE = replace(DOUBLE, claim="", confidence=Confidence.CERTAIN, evidence=(), vcpus=(), count=1, end_ns=None)
STALE = replace(
    _BARE, code="ITS201", name="stale-translation", message="An MSI of device 0x8, event 0 was resolved by the cache.",
    advice="", id="ITS201", caused_by=("ITS202",), leads_to=("ITS303",),
)  # fmt: skip
DEAD = replace(
    _BARE, code="ITS305", name="delivered-after-unmap", kind=Kind.LIFE, severity=Severity.WARNING, advice="", vcpus=(0,),
    message="LPI 8192 was delivered to vCPU 0, 200 us after DISCARD. " * 4, id="ITS305", caused_by=("ITS202",),
)  # fmt: skip
TWICE = replace(
    _BARE, code="ITS303", name="duplicate-delivery", kind=Kind.LIFE, advice="", id="ITS303", caused_by=("ITS201",),
    message="LPI 8192 was delivered twice.", confidence=Confidence.LIKELY,
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


def story() -> Analysis:
    """The same with a cause and what follows from it, as `linked` would leave them."""
    analysis = tiny()
    analysis.findings = [STALE, CAUSE, TWICE, DEAD, LOST]
    return analysis


@cache
def hostile() -> Analysis:
    """A capture in which every text is hostile, and so is every text of its findings."""
    evil = tiny_capture.HOSTILE
    with TemporaryDirectory() as folder:
        path = tiny_capture.write(Path(folder) / f"{evil.replace('/', '')}.dat", note=evil, comm=evil)
        analysis = analyze(path)
    record = Evidence(1, 0, evil, f"buf={evil}\nnext line", 1)
    bad = replace(
        DOUBLE, message=evil, advice=f"{evil}\n\x1b]0;title\x07", name=evil, claim=evil, evidence=(record,)
    )
    analysis.findings = [replace(bad, id=f"ITS401-{number}") for number in range(1, 7)]
    analysis.info.options = {evil: evil, "cpu stats 0": f"CPU: 0\nentries: {evil}"}
    analysis.info.kernel = analysis.info.uname = analysis.info.clock = analysis.info.arch = evil
    return analysis
