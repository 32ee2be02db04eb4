"""A capture whose CPUs' clocks disagree: one CPU's records as if its clock went before or after the others'."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from itstrace.observe import Observations, from_raw
from itstrace.observe.collect import Raw, collect
from itstrace.observe.identity import identify
from itstrace.readers import open_captures

if TYPE_CHECKING:
    from pathlib import Path


def shifted(path: Path, cpu: int, by_ns: int, *, only: tuple[str, ...] = ()) -> Observations:
    """Observations of a capture in which the clock of `cpu` goes `by_ns` ahead of what was recorded.

    `only`: of these probes alone, as where they were recorded into another buffer.
    """
    with open_captures([path]) as capture:
        raw = collect(capture)
    names = [name for name, frame in raw.frames.items() if frame.height]
    frames = []
    for name in names:
        frame = raw.frames[name]
        moved = (pl.col("cpu") == cpu) if not only or name in only else pl.lit(value=False)
        frames.append(frame.with_columns(time_ns=pl.col("time_ns") + pl.when(moved).then(by_ns).otherwise(0)))
    keys = [
        np.concatenate([frame[column].to_numpy() for frame in frames]) for column in ("seq", "cpu", "time_ns")
    ]
    rank = np.empty(len(keys[0]), np.uint64)
    rank[np.lexsort(keys)] = np.arange(len(rank), dtype=np.uint64)
    at = 0
    new = dict(raw.frames)
    for name, frame in zip(names, frames, strict=True):
        ranked = frame.with_columns(seq=pl.Series(rank[at : at + frame.height], dtype=pl.UInt64))
        new[name] = ranked.sort("seq")
        at += frame.height
    raw = replace(raw, frames=new)
    assert isinstance(raw, Raw)
    return from_raw(raw, identify(raw))
