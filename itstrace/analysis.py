"""The map: bytes -> events -> observations -> replay -> lives -> findings. Read this first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from itstrace.lives import Lives, live
from itstrace.observe import Observations, observe
from itstrace.readers import open_capture
from itstrace.replay import History, replay
from itstrace.rules import check

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from itstrace.findings import Finding, SkippedRule
    from itstrace.readers.base import CaptureInfo, Damage
    from itstrace.seed import Seed


@dataclass(slots=True)
class Analysis:
    """Everything that a capture tells. Frames have the schemas of their names in `itstrace.schemas`."""

    info: CaptureInfo
    start_ns: int | None
    end_ns: int | None
    counts: pl.DataFrame
    gaps: pl.DataFrame
    damage: list[Damage]
    observations: Observations
    history: History
    lives: Lives
    findings: list[Finding]
    skipped: list[SkippedRule]


def analyze(path: Path | str, *, profile: str | None = None, seed: Seed | None = None) -> Analysis:
    """Analyze a capture: replay its ITS commands, rebuild tables and lives, and name what went wrong.

    `profile` overrides the model (`architecture`, `kvm-6.1`, `kvm-6.12`, `kvm-7.3`), else the capture's own
    kernel chooses.
    Raises: CaptureError where the file cannot be read at all, NothingToAnalyzeError where it holds nothing of
    an ITS or an LPI.
    """
    with open_capture(path) as capture:
        observations = observe(capture)
        info, counts, gaps, damage = capture.info, capture.counts(), capture.gaps(), capture.damage()
        start_ns, end_ns = capture.span()
    history = replay(observations, kernel=info.kernel, profile=profile, seed=seed)
    lives = live(observations, history)
    findings, skipped = check(
        observations, history, lives, gaps=gaps, damage=damage, start_ns=start_ns, end_ns=end_ns
    )
    return Analysis(
        info, start_ns, end_ns, counts, gaps, damage, observations, history, lives, findings, skipped
    )
