"""Levels of detail: the whole capture in bins, finer bins, and stretches in which every single event is kept.

All of it is vectorised: a capture may hold millions of MSIs and entries of vCPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from itstrace.analysis import Analysis

    Times = npt.NDArray[np.int64]

#: Bins over the whole capture, level by level.
BINS: Final = (1024, 4096, 16384)
#: Bins of all vCPUs of one level, at most: with very many vCPUs the finer levels have none.
_VCPU_BINS: Final = 300_000
#: Where not all single events can be kept: so many on either side of a moment that matters, at least.
AROUND: Final = 400
#: Buckets of latencies: so many to a decade.
BUCKETS_PER_DECADE: Final = 8


@dataclass(frozen=True, slots=True)
class Stretches:
    """Stretches of time in which single events are kept; `whole`: that is all of the capture."""

    from_ns: Times
    to_ns: Times
    whole: bool

    def having(self, frame: pl.DataFrame, begin: str, end: str | None = None) -> pl.DataFrame:
        """Rows that lie in a stretch, or from `begin` to `end` overlap one (None at an end: open there)."""
        if self.whole or frame.is_empty():
            return frame
        first = frame[begin].fill_null(-(2**62)).to_numpy()
        last = first if end is None else frame[end].fill_null(2**62).to_numpy()
        place = np.searchsorted(self.to_ns, first, side="left")
        there = place < len(self.to_ns)
        keep = np.zeros(len(first), np.bool_)
        keep[there] = self.from_ns[place[there]] <= last[there]
        return frame.filter(pl.Series(keep, dtype=pl.Boolean))


def stretches(
    times: Sequence[Times], moments: Sequence[int], span_ns: tuple[int, int], budget: int
) -> Stretches:
    """All of the capture where its single events fit the budget; else what lies around the moments, the first first."""
    total = sum(len(one) for one in times)
    if total <= budget:
        return Stretches(np.array([span_ns[0]]), np.array([span_ns[1]]), whole=True)
    ordered = np.sort(np.concatenate(list(times)))
    chosen = moments[: max(budget // (2 * AROUND), 1)]
    around = max(budget // (2 * max(len(chosen), 1)), 1)
    kept: list[tuple[int, int]] = []
    for moment in chosen:
        at = int(np.searchsorted(ordered, moment))
        kept.append((int(ordered[max(at - around, 0)]), int(ordered[min(at + around, total - 1)])))
    merged: list[list[int]] = []
    for begin, end in sorted(kept):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    bounds = np.array(merged, np.int64).reshape(-1, 2)
    return Stretches(bounds[:, 0], bounds[:, 1], whole=False)


def binned(analysis: Analysis, bins: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The capture in so many bins of equal length.

    Shape: (bin, msis, refused, commands, faults, fills), only bins in which something is; and per vCPU (bin, vm,
        vcpu, running, held): the share of the time that it ran, and the list registers in use on average.
    """
    start, end = analysis.start_ns or 0, analysis.end_ns or 0
    width = max((end - start) / bins, 1.0)

    def count(times: pl.Series) -> npt.NDArray[np.int64]:
        at = ((times.drop_nulls().to_numpy() - start) / width).astype(np.int64).clip(0, bins - 1)
        return np.bincount(at, minlength=bins)

    obs, verdicts = analysis.observations, analysis.history.verdicts
    faulted = verdicts.filter(pl.col("verdict") == "fault").select("seq")
    frame = pl.DataFrame(
        {
            "bin": np.arange(bins),
            "msis": count(obs.injections["time_ns"]),
            "refused": count(obs.injections.filter(pl.col("result") != 0)["time_ns"]),
            "commands": count(obs.commands["time_ns"]),
            "faults": count(obs.commands.join(faulted, on="seq", how="semi")["time_ns"]),
            "fills": count(obs.fills["time_ns"]),
        }
    )
    busy = pl.any_horizontal(pl.col(name) > 0 for name in frame.columns if name != "bin")
    return frame.filter(busy), _vcpu_bins(analysis, bins, width)


def _vcpu_bins(analysis: Analysis, bins: int, width: float) -> pl.DataFrame:
    start = analysis.start_ns or 0
    edges = np.arange(bins + 1) * width
    obs, parts = analysis.observations, []
    runs = obs.runs.frame()
    vcpus = obs.vcpus.select("vm", "vcpu").unique().sort("vm", "vcpu")
    if bins > BINS[0] and bins * vcpus.height > _VCPU_BINS:
        vcpus = vcpus.clear()
    for vm, vcpu in vcpus.iter_rows():
        mine = (pl.col("vm") == vm) & (pl.col("vcpu") == vcpu)
        ran, held = runs.filter(mine), obs.fills.filter(mine)
        running = _covered(ran["enter_ns"], ran["exit_ns"].fill_null(ran["enter_ns"]), start, edges) / width
        in_use = _covered(held["time_ns"], held["end_ns"].fill_null(held["time_ns"]), start, edges) / width
        parts.append(
            pl.DataFrame(
                {
                    "bin": np.arange(bins),
                    "vm": np.full(bins, vm),
                    "vcpu": np.full(bins, vcpu),
                    "running": np.rint(running.clip(0, 1) * 1000).astype(np.int64),
                    "held": np.rint(in_use.clip(0, 60) * 1000).astype(np.int64),
                }
            )
        )
    schema = dict.fromkeys(("bin", "vm", "vcpu", "running", "held"), pl.Int64)
    return (
        pl.concat(parts).filter((pl.col("running") > 0) | (pl.col("held") > 0))
        if parts
        else pl.DataFrame(schema=schema)
    )


def _covered(
    begins: pl.Series, ends: pl.Series, start: int, edges: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float64]:
    """Time that spans cover between each edge and the next; where spans overlap, each counts."""

    def after(points: pl.Series) -> npt.NDArray[np.float64]:
        """At each edge, the sum of the distances to the points before it."""
        sorted_ = np.sort(points.to_numpy() - start).astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(sorted_)])
        place = np.searchsorted(sorted_, edges)
        return np.asarray(place * edges - sums[place])

    return np.diff(after(begins) - after(ends))


def latencies(lives: pl.DataFrame) -> pl.DataFrame:
    """How often a delivered MSI took how long to a list register, by LPI and event, in buckets of equal ratio.

    Shape: vm, its, device_id, event_id, intid, bucket, count. Bucket b is [10^(b/8), 10^((b+1)/8)) ns.
    """
    spans = lives.filter(pl.col("outcome") == "delivered").with_columns(
        span=pl.col("filled_ns") - pl.col("injected_ns")
    )
    spans = spans.drop_nulls("span")
    bucket: Any = (pl.col("span").clip(lower_bound=1).log10() * BUCKETS_PER_DECADE).floor().cast(pl.Int32)
    keys = ["vm", "its", "device_id", "event_id", "intid"]
    return spans.group_by(*keys, bucket.alias("bucket")).agg(count=pl.len()).sort(*keys, "bucket")
