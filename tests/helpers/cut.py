"""A part of a capture: its records from one on, or up to one, as if nothing else had been recorded."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.observe.runs import NEVER, Runs, Stamps

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from itstrace.observe import Observations

    Keep = Callable[[npt.NDArray[np.uint64]], npt.NDArray[np.bool_]]


def between(obs: Observations, since: int = 0, until: int = NEVER) -> Observations:
    """The records of these seqs, both included, of every kind."""
    frames: dict[str, Any] = {
        name: frame.filter(pl.col("seq").is_between(since, until))
        for name, frame in obs.frames().items()
        if "seq" in frame.columns
    }
    return replace(obs, **frames, runs=runs_where(obs.runs, lambda seq: (seq >= since) & (seq <= until)))


def from_the_middle(obs: Observations, since: int, until: int = NEVER) -> Observations:
    """The records of these seqs, of a recording that began in the middle of every VM's life."""
    unknown = pl.lit(value=False)
    cut = between(obs, since, until)
    return replace(
        cut, itss=obs.itss.with_columns(complete=unknown), vms=obs.vms.with_columns(complete=unknown)
    )


def runs_where(runs: Runs, keep: Keep, *, vcpu: int | None = None) -> Runs:
    """Runs with only those entries and exits of a vCPU (None: of all) whose seq is kept."""
    other = copy.copy(runs)
    for name in ("entries", "exits"):
        stamps = {
            key: stamps_where(one, keep) if vcpu in (None, key[1]) else one
            for key, one in getattr(runs, name).items()
        }
        setattr(other, name, stamps)
    return other


def stamps_where(stamps: Stamps, keep: Keep) -> Stamps:
    """The records whose seq is kept."""
    kept = keep(stamps.seq)
    return Stamps(stamps.seq[kept], stamps.time_ns[kept], stamps.why[kept] if len(stamps.why) else stamps.why)
