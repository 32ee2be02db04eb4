"""The map: bytes -> events -> observations -> replay -> lives -> findings. Read this first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from itstrace.errors import CaptureError, NothingToAnalyzeError
from itstrace.instants import parse_instant
from itstrace.lives import Lives, live
from itstrace.observe import Catalogue, Observations, load_events, observe
from itstrace.readers import open_captures
from itstrace.readers.qemulog import RECORD as QEMU_ADVICE
from itstrace.replay import History, replay
from itstrace.rules import Plugin, check, plugins, settings_known
from itstrace.seed import combine_seeds, read_seed
from itstrace.tables import LPI_ROWS, Tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from itstrace.errors import Damage
    from itstrace.findings import Finding, SkippedRule
    from itstrace.readers.base import CaptureInfo
    from itstrace.seed import Seed

_ADVICE = (
    "`itstrace info` lists what is in it, and events that look useful and are not understood; record the kvm "
    "events and the dynamic events of docs/observations.md on the arm64 host"
)
#: Remarks on a file of events that an error has room for.
_REMARKS = 3


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
    #: what the replay began with: the caller's, or those that came with the capture
    seed: Seed | None = None
    #: numbers of rules that the caller set, by name
    settings: Mapping[str, float] = field(default_factory=dict)
    #: packages that bring rules of their own, or tried to
    plugins: tuple[Plugin, ...] = ()

    def at(self, time_ns: int | None = None, vm: int | None = None) -> Tables:
        """Tables and LPIs as of a time (None: the end, or just before a VM's teardown), of one VM or of all.

        `pending` of an LPI is its software latch, where a record tells of it; else it is null.
        """
        tables = self.history.at(time_ns, vm)
        assert tables.lpis is not None
        latched = self.lives.latched_at(time_ns, self.history.vm_ends)
        tables.lpis = (
            tables.lpis.drop("pending")
            .join(latched, on=["vm", "intid"], how="left", maintain_order="left")
            .select(LPI_ROWS.names())
        )
        return tables


def analyze(
    path: Path | str | Sequence[Path | str],
    *,
    profile: str | None = None,
    seed: Seed | None = None,
    events: Path | str | None = None,
    settings: Mapping[str, float] | None = None,
) -> Analysis:
    """Analyze a capture: replay its ITS commands, rebuild tables and lives, and name what went wrong.

    Several paths are parts of one capture, merged by time.
    `profile` overrides the model (`architecture`, `kvm-6.1`, `kvm-6.12`, `kvm-7.3`, `qemu`), else the capture's
    own kernel chooses, or its kind: a log of QEMU is replayed as `qemu`. `seed` goes before what a bundle brings
    with it. `events` is a TOML file that says which of the capture's own events is what (docs/events.md).
    `settings` are numbers of rules, by name (`itstrace.rules.all_settings()`).
    Raises: CaptureError where the file cannot be read at all, NothingToAnalyzeError where it holds nothing of
    an ITS or an LPI; UsageError where the file of events says what cannot be, no rule has a number that is set,
    or several are no parts of one capture.
    """
    settings = settings_known(settings or {})
    catalogue = Catalogue() if events is None else load_events(events)
    with open_captures([path] if isinstance(path, str | Path) else path) as capture:
        observations = observe(capture, catalogue)
        info, counts, gaps, damage = capture.info, capture.counts(), capture.gaps(), capture.damage()
        start_ns, end_ns = capture.span()
        if seed is None:
            seed = _bundled_seed(info, start_ns, end_ns, observations)
    if not info.tells_tasks:
        raise CaptureError(
            info.path,
            "most lines name no task, and what belongs together is found by the task",
            advice="perf script -F +pid,tid, or the perf.data itself",
        )
    if not _anything(observations, info):
        raise NothingToAnalyzeError(
            info.path,
            "nothing of an ITS, an LPI or a KVM/arm64 guest was recorded",
            advice=QEMU_ADVICE
            if info.model == "qemu"
            else "; ".join([*(f"{events}: {one}" for one in observations.remarks[:_REMARKS]), _ADVICE]),
        )
    history = replay(observations, kernel=info.kernel, profile=profile or info.model, seed=seed)
    lives = live(observations, history)
    findings, skipped = check(
        observations,
        history,
        lives,
        gaps=gaps,
        damage=damage,
        start_ns=start_ns,
        end_ns=end_ns,
        losses_told=info.tells_losses,
        kernel=info.kernel,
        settings=settings,
    )
    return Analysis(
        info,
        start_ns,
        end_ns,
        counts,
        gaps,
        damage,
        observations,
        history,
        lives,
        findings,
        skipped,
        seed,
        settings,
        plugins(),
    )


def _bundled_seed(
    info: CaptureInfo, start_ns: int | None, end_ns: int | None, observations: Observations
) -> Seed | None:
    """The dumps that a bundle names as what the tables held at some instant."""
    seeds = []
    for each in info.seeds:
        at_ns = None
        if each.at is not None:
            at_ns = parse_instant(each.at, start_ns, end_ns, observations.markers)
        seeds.append(read_seed(each.path, at_ns))
    return combine_seeds(seeds)


def _anything(observations: Observations, info: CaptureInfo) -> bool:
    """Whether a capture holds a probe of ours, or at least the runs of an arm64 guest."""
    seen = set(observations.records) - {"marker"}
    return bool(seen - {"enter", "exit"}) or (bool(seen) and info.arch in (None, "aarch64"))
