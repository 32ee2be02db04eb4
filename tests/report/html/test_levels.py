"""Levels of detail: bins hold what the capture holds, and single events are kept where they matter."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from conftest import SAMPLES, analysis_of

from itstrace.report.html.levels import BINS, BUCKETS_PER_DECADE, binned, latencies, stretches

NAMES = ("6.12-double-delivery.dat", "7.3-guest-mistakes.dat", "6.12-lost-records.dat")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bins", BINS)
def test_bins_hold_every_event_once(name: str, bins: int) -> None:
    analysis = analysis_of(SAMPLES / name)
    frame, vcpus = binned(analysis, bins)

    assert frame["msis"].sum() == analysis.observations.injections.height
    assert frame["commands"].sum() == analysis.observations.commands.height
    assert frame["faults"].sum() == (analysis.history.verdicts["verdict"] == "fault").sum()
    assert frame["fills"].sum() == analysis.observations.fills.height
    assert frame["bin"].is_unique().all()
    assert vcpus["running"].max() <= 1000  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_bins_cover_the_time_that_vcpus_ran(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    _, vcpus = binned(analysis, BINS[0])
    width = ((analysis.end_ns or 0) - (analysis.start_ns or 0)) / BINS[0]
    runs = analysis.observations.runs.frame()
    for vcpu in runs["vcpu"].unique():
        ran = runs.filter(pl.col("vcpu") == vcpu)
        expected = (ran["exit_ns"] - ran["enter_ns"]).sum()
        found = vcpus.filter(pl.col("vcpu") == vcpu)["running"].sum()
        assert float(found) / 1000 * width == pytest.approx(expected, rel=0.01)


def test_all_is_kept_where_it_fits() -> None:
    times = [np.arange(100, dtype=np.int64)]
    assert stretches(times, [], (0, 99), 100).whole


def test_what_lies_around_the_moments_is_kept_where_not_all_fits() -> None:
    times = [np.arange(0, 1_000_000, 10, dtype=np.int64)]
    kept = stretches(times, [500_000, 900_000, 500_100], (0, 1_000_000), 2000)
    frame = pl.DataFrame({"time_ns": times[0], "end_ns": times[0] + 15})

    assert not kept.whole
    rows = kept.having(frame, "time_ns")
    assert 1600 <= rows.height <= 2100
    assert 500_000 in rows["time_ns"]
    assert 900_000 in rows["time_ns"]
    assert 700_000 not in rows["time_ns"]
    assert kept.having(frame, "time_ns", "end_ns").height >= rows.height
    assert (np.diff(kept.from_ns) > 0).all()
    assert (kept.to_ns[:-1] < kept.from_ns[1:]).all()


def test_an_open_span_overlaps_every_later_stretch() -> None:
    times = [np.arange(0, 1_000_000, 10, dtype=np.int64)]
    kept = stretches(times, [900_000], (0, 1_000_000), 1000)
    schema = {"from_ns": pl.Int64, "to_ns": pl.Int64}
    frame = pl.DataFrame([(None, None), (5, None), (5, 10), (None, 899_999)], schema=schema, orient="row")

    assert kept.having(frame, "from_ns", "to_ns").rows() == [(None, None), (5, None), (None, 899_999)]


@pytest.mark.parametrize("name", NAMES)
def test_latencies_count_every_delivery_in_the_bucket_that_holds_it(name: str) -> None:
    lives = analysis_of(SAMPLES / name).lives.lives
    frame = latencies(lives)
    delivered = lives.filter(pl.col("outcome") == "delivered")
    spans = (delivered["filled_ns"] - delivered["injected_ns"]).drop_nulls()

    assert frame["count"].sum() == spans.len()
    slowest = 10 ** ((frame["bucket"].max() + 1) / BUCKETS_PER_DECADE)  # type: ignore[operator]
    assert slowest / 10 ** (1 / BUCKETS_PER_DECADE) <= spans.max() < slowest  # type: ignore[operator]
