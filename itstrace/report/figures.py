"""Figures that several reports show: what was observed, how many, how long. Counts, never judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from itstrace.observe.catalogue import OBSERVATIONS, PROBES
from itstrace.observe.matching import How

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from itstrace.analysis import Analysis
    from itstrace.observe import Observations

#: The frame of `Observations` that holds an observation, where it is not the name in lower case.
_FRAMES: Final = {"LIST_REGISTERS": "fills"}


@dataclass(frozen=True, slots=True)
class Seen:
    """One observation: its rows (None: not recorded), the events that feed it, whether they suffice."""

    rows: int | None
    events: tuple[str, ...]
    whole: bool


def feeding(observation: str, fed_by: Mapping[str, str]) -> tuple[str, ...]:
    """The capture's events that feed an observation, by probe order."""
    return tuple(dict.fromkeys(fed_by[probe] for probe in feeding_probes(observation) if probe in fed_by))


def sources(probes: Iterable[str], fed_by: Mapping[str, str], found_by: Mapping[str, How]) -> str:
    """The events that feed these probes; and for which, and how they were found, where their names do not say so.

    `its:its_process; kprobes:r_kvm_read_guest_0 as its_cmd (by function name)`.
    """
    by_how: dict[How, list[str]] = {how: [] for how in (How.NAME, How.FILE, How.FUNCTION)}
    for probe in dict.fromkeys(probes):
        if probe in fed_by:
            how = found_by.get(probe, How.NAME)
            stands_for = "" if how is How.NAME else f" as {PROBES[probe].events[0]}"
            by_how[how].append(fed_by[probe] + stands_for)
    return "; ".join(
        ", ".join(dict.fromkeys(events)) + ("" if how is How.NAME else f" ({how.words})")
        for how, events in by_how.items()
        if events
    )


def feeding_probes(observation: str) -> list[str]:
    """The probes of an observation."""
    groups = next(entry.fed_by for entry in OBSERVATIONS if entry.name == observation)
    return list(dict.fromkeys(probe for group in groups for probe in group))


def observed(observations: Observations) -> dict[str, Seen]:
    """Every observation by its name."""
    found = {}
    for entry in OBSERVATIONS:
        frame: pl.DataFrame = getattr(observations, _FRAMES.get(entry.name, entry.name.lower()))
        whole = observations.covers(entry)
        rows = frame.height if frame.height or whole else None
        found[entry.name] = Seen(rows, feeding(entry.name, observations.fed_by), whole)
    return found


class ToRecord(NamedTuple):
    """A probe that is missing: the event to record, the kernel's function, and how (`Probe.recording`)."""

    event: str
    function: str
    how: str


def to_record(
    observation: str, have: Collection[str], source: str, kernel: str | None = None
) -> list[ToRecord]:
    """What to record for an observation: the probes still missing.

    Of several groups that would do, the one that misses least; none where the source, KVM or QEMU, cannot tell it.
    """
    groups = next((entry.ways(source) for entry in OBSERVATIONS if entry.name == observation), ())
    missing = min(([probe for probe in group if probe not in have] for group in groups), key=len, default=[])
    return [
        ToRecord(probe.events[0], probe.kernel, probe.recording(kernel) if probe.source == "KVM" else "")
        for probe in (PROBES[name] for name in missing)
    ]


@dataclass(frozen=True, slots=True)
class Counts:
    """MSIs: offered, delivered, merged into one already pending. None: the capture cannot tell."""

    injections: int | None
    deliveries: int | None
    coalesced: int | None


@dataclass(frozen=True)
class Traffic:
    """MSIs by LPI. An LPI without any has zeros where MSIs were recorded, and None where not."""

    by_lpi: Mapping[tuple[int, int], Counts]
    none: Counts
    total: Counts

    def get(self, key: tuple[int, int]) -> Counts:
        """The counts of (vm, intid)."""
        return self.by_lpi.get(key, self.none)


def traffic(analysis: Analysis) -> Traffic:
    """Count the lives of an analysis."""
    seen = observed(analysis.observations)
    injected, filled = seen["INJECTIONS"].rows is not None, seen["LIST_REGISTERS"].rows is not None

    def counts(injections: int, deliveries: int, coalesced: int) -> Counts:
        both = injected and filled
        return Counts(
            injections if injected else None, deliveries if both else None, coalesced if both else None
        )

    lives = analysis.lives.lives
    grouped = (
        lives.drop_nulls("intid")
        .group_by("vm", "intid")
        .agg(
            pl.len().alias("injections"),
            (pl.col("outcome") == "delivered").sum().alias("deliveries"),
            (pl.col("outcome") == "coalesced").sum().alias("coalesced"),
        )
    )
    by_lpi = {(vm, intid): counts(*rest) for vm, intid, *rest in grouped.iter_rows()}
    outcomes = lives["outcome"]
    total = counts(lives.height, int((outcomes == "delivered").sum()), int((outcomes == "coalesced").sum()))
    return Traffic(by_lpi, counts(0, 0, 0), total)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took, in ns: observed values, not interpolated ones."""

    count: int
    p50: int
    p99: int
    max: int


def spread(spans_ns: pl.Series) -> Latency | None:
    """Median, 99th percentile and maximum; None of nothing."""
    spans = spans_ns.drop_nulls().sort()
    if spans.is_empty():
        return None

    def at(share: float) -> int:
        return int(spans[min(int(share * spans.len()), spans.len() - 1)])

    return Latency(spans.len(), at(0.50), at(0.99), int(spans[-1]))


#: The stages of a delivered MSI: its title and the columns of LIVES between which it lies.
STAGES: Final = (
    ("MSI to ap_list", "injected_ns", "queued_ns"),
    ("ap_list to list register", "queued_ns", "filled_ns"),
    ("list register to read-back", "filled_ns", "retired_ns"),
    ("MSI to list register", "injected_ns", "filled_ns"),
)


def latency(lives: pl.DataFrame, begin: str = "injected_ns", end: str = "filled_ns") -> Latency | None:
    """How long the delivered lives took from `begin` to `end`."""
    delivered = lives.filter(pl.col("outcome") == "delivered")
    return spread(delivered[end] - delivered[begin])


def slowest(
    lives: pl.DataFrame, keys: Iterable[str] = ("vm", "intid")
) -> list[tuple[tuple[int, ...], Latency]]:
    """Latency of each LPI, the largest maximum first."""
    names = list(keys)
    delivered = lives.filter(pl.col("outcome") == "delivered").with_columns(
        span=pl.col("filled_ns") - pl.col("injected_ns")
    )
    found = []
    for key, group in delivered.drop_nulls("span").group_by(names, maintain_order=True):
        measured = spread(group["span"])
        assert measured is not None
        found.append((tuple(int(str(part)) for part in key), measured))
    return sorted(found, key=lambda item: (-item[1].max, item[0]))
