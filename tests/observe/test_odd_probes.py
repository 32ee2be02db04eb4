"""Probes defined otherwise, half recorded, or full of garbage: whatever they say, nothing breaks.

A capture comes from a kernel that somebody else instrumented, or that was falling apart at the time.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl
import pytest
from conftest import SAMPLES

from itstrace.lives import live
from itstrace.observe import PROBES, from_raw
from itstrace.observe.collect import Raw, _kept, collect
from itstrace.observe.identity import identify
from itstrace.readers import open_capture
from itstrace.replay import replay
from itstrace.rules import check

_LARGEST: dict[type[pl.DataType], int] = {pl.UInt64: 2**64 - 1, pl.UInt32: 2**32 - 1, pl.Int32: 2**31 - 1}


@cache
def _raw(name: str) -> tuple[Raw, pl.DataFrame]:
    with open_capture(SAMPLES / name) as capture:
        return collect(capture), capture.gaps()


def _altered(values: pl.Series, how: str) -> pl.Series:
    if how == "unknown":
        return pl.Series(values.name, [None] * len(values), dtype=values.dtype)
    largest = _LARGEST[type(values.dtype)]
    if how == "largest":
        return pl.Series(values.name, [largest] * len(values), dtype=values.dtype)
    random = np.random.default_rng(7)
    odd = [int(random.integers(0, 2**63)) % largest if random.random() < 0.3 else value for value in values]
    return pl.Series(values.name, odd, dtype=values.dtype)


@pytest.mark.parametrize("probe", sorted(PROBES))
@pytest.mark.parametrize(
    ("name", "ways"),
    [("6.12-double-delivery.dat", ("unknown", "largest", "random")), ("7.3-migrate.dat", ("random",))],
)
def test_any_value_of_any_probe_may_be_unknown_or_garbage(
    name: str, ways: tuple[str, ...], probe: str
) -> None:
    raw, gaps = _raw(name)
    if raw[probe].is_empty():
        return  # nothing to alter; the other sample may have some
    for column in PROBES[probe].columns:
        for how in ("unknown",) if column.dtype == pl.String() else ways:
            frame = (
                raw[probe].with_columns(_altered(raw[probe][column.name], how)).filter(_kept(PROBES[probe]))
            )
            odd = Raw({**raw.frames, probe: frame}, raw.events, raw.absent, raw.fields)
            observations = from_raw(odd, identify(odd))
            history = replay(observations, kernel="6.12")
            findings, _ = check(observations, history, live(observations, history), gaps=gaps, damage=[])

            assert history.verdicts.height == observations.commands.height
            assert all(finding.message for finding in findings)


@pytest.mark.parametrize("probe", sorted(PROBES))
def test_any_probe_may_be_missing(probe: str) -> None:
    raw, gaps = _raw("6.12-double-delivery.dat")
    events = {name: event for name, event in raw.events.items() if name != probe}
    bare = Raw({**raw.frames, probe: raw[probe].clear()}, events, raw.absent, raw.fields)
    observations = from_raw(bare, identify(bare))
    history = replay(observations, kernel="6.12")
    findings, skipped = check(observations, history, live(observations, history), gaps=gaps, damage=[])

    assert {one.code for one in skipped}.isdisjoint({finding.code for finding in findings})
