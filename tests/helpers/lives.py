"""Lives of LPIs that tests take out of a capture, and runs of vCPUs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from itstrace.observe.runs import Runs, Stamps

if TYPE_CHECKING:
    from collections.abc import Callable

    from itstrace import Analysis

LPI = ["vm", "intid"]


def without_chains(analysis: Analysis, chains: pl.DataFrame, keep: str = "none") -> pl.DataFrame:
    """FILLS without those of some chains (vm, intid, chain); `keep` first, last or none of each."""
    fills = analysis.lives.fills.join(chains, on=["vm", "intid", "chain"], how="semi")
    ends = fills.group_by("vm", "intid", "chain").agg(
        pl.col("seq").min() if keep == "first" else pl.col("seq").max()
    )
    gone = fills if keep == "none" else fills.join(ends, on="seq", how="anti")
    return analysis.observations.fills.join(gone, on="seq", how="anti")


def every(number: int, rows: pl.DataFrame) -> pl.DataFrame:
    """One row of so many."""
    return rows.with_row_index("_n").filter(pl.col("_n") % number == number - 1).drop("_n")


def chains_of(analysis: Analysis, fills: int) -> pl.DataFrame:
    """Chains of at least so many fills, taken in the end, on one vCPU."""
    grouped = analysis.lives.fills.group_by("vm", "intid", "chain", maintain_order=True).agg(
        n=pl.len(), taken=pl.col("taken").last(), vcpus=pl.col("vcpu").n_unique()
    )
    return grouped.filter((pl.col("n") >= fills) & pl.col("taken") & (pl.col("vcpus") == 1))


def enabled_while_pending(analysis: Analysis) -> pl.DataFrame:
    """Queueings that the reading of a configuration made of an LPI that was pending and disabled until then."""
    rows = analysis.observations.queueings.with_columns(
        before=pl.col("enabled").shift(1).over(LPI), was=pl.col("pending").shift(1).over(LPI)
    )
    return rows.filter(pl.col("pending") & pl.col("enabled") & ~pl.col("before") & pl.col("was"))


def runs_with(runs: Runs, keep: Callable[[tuple[int, int]], bool], **why: int) -> Runs:
    """Runs of some vCPUs only; `why=` they left the guest each time."""
    changed = copy.copy(runs)
    changed.entries = {key: stamps for key, stamps in runs.entries.items() if keep(key)}
    changed.exits = {
        key: Stamps(stamps.seq, stamps.time_ns, np.full_like(stamps.why, why["why"]) if why else stamps.why)
        for key, stamps in runs.exits.items()
        if keep(key)
    }
    return changed
