"""ITS303, ITS308 and ITS309: LPIs that come twice, though disabled, or too often; put into real captures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from helpers.again import found, sample, whole_gap
from helpers.lives import LPI, enabled_while_pending, runs_with

from itstrace import Confidence, Severity
from itstrace.observe.runs import WAITING

if TYPE_CHECKING:
    from itstrace import Analysis
    from itstrace.observe import Observations


#: Clean, with each kernel's own probes.
CLEAN = ("6.1-clean.dat", "6.12-clean.dat")


# --- ITS303


def test_two_causes_of_duplicates_are_two_findings() -> None:
    analysis = sample("6.12-duplicate-delivery.dat")
    obs = analysis.observations
    (kept,) = found(analysis, obs, "ITS303")
    blind = obs.fills.with_columns(latch_kept=pl.lit(None, dtype=pl.Boolean))
    (unseen,) = found(analysis, replace(obs, fills=blind), "ITS303")

    assert kept.confidence == Confidence.CERTAIN
    assert kept.mechanism == "a fill left pending_latch set"
    assert unseen.confidence == Confidence.LIKELY
    assert unseen.mechanism == "nothing that was seen made it pending again"
    assert "populate_lr_ret" in unseen.capture_next


def test_a_list_register_that_the_fold_does_not_show_accounts_for_anything() -> None:
    """The probe of the fold shows the first four: what became of the others is not known."""
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    refills = analysis.lives.fills.filter(pl.col("latched_by") == "fold")
    unseen = obs.fills.with_columns(state=pl.lit(None, dtype=pl.UInt8))

    assert refills.height > 10
    assert not found(analysis, replace(obs, fills=unseen), "ITS303")


def test_a_flush_does_not_reach_what_has_moved_on() -> None:
    """6.1: moved to vCPU 0 unseen, the LPI is on no list of vCPU 1 any more when that is flushed, and is delivered."""
    analysis = sample("6.1-clean.dat")
    obs = analysis.observations
    rows = analysis.lives.fills.filter(
        (pl.col("latched_by") == "queue") & (pl.col("vcpu") == 0) & pl.col("taken")
    )
    one = rows.row(-1, named=True)
    moved = obs.queueings.with_columns(
        target_vcpu=pl.when(pl.col("seq") == one["latched_seq"])
        .then(1)
        .otherwise("target_vcpu")
        .cast(pl.Int32)
    )
    flush = obs.vm_events.filter(pl.col("what") == "flush_lpis").head(1)
    for vcpu, expected in ((1, 0), (0, 1)):
        late = flush.with_columns(
            seq=pl.lit(one["seq"] - 1, dtype=pl.UInt64),
            time_ns=pl.lit(one["time_ns"] - 1),
            vcpu=pl.lit(vcpu, dtype=pl.Int32),
        )
        events = pl.concat([obs.vm_events, late]).sort("seq")
        queueings = moved if vcpu == 1 else obs.queueings
        doubled = found(analysis, replace(obs, vm_events=events, queueings=queueings), "ITS303")
        assert len(doubled) == expected, vcpu


# --- ITS308


def test_a_fill_that_says_disabled_is_certain() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    seq = obs.fills.filter("pending")["seq"][20]
    one = pl.col("seq") == seq
    off = obs.fills.with_columns(enabled=pl.when(one).then(pl.lit(value=False)).otherwise("enabled"))
    (finding,) = found(analysis, replace(obs, fills=off), "ITS308")

    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 1)
    assert finding.mechanism == "filled though disabled"
    # Lost records do not change what the fill itself says.
    assert found(analysis, replace(obs, fills=off), "ITS308", gaps=whole_gap(analysis))
    # An active LPI is filled to let the guest end it.
    active = off.with_columns(active=pl.when(one).then(pl.lit(value=True)).otherwise("active"))
    assert not found(analysis, replace(obs, fills=active), "ITS308")
    assert not found(analysis, obs, "ITS308")


@pytest.mark.parametrize(
    ("says", "mechanism"),
    [
        (None, "filled after its configuration was read as disabled"),
        (True, "enabled again without its configuration being read"),
    ],
)
@pytest.mark.parametrize("name", CLEAN)
def test_what_kvm_read_counts_where_the_fill_does_not_say_it(name: str, mechanism: str, says: object) -> None:
    """An LPI is disabled while it is pending, and the reading that enables it again is taken out."""
    analysis = sample(name)
    obs = analysis.observations
    fills = obs.fills.with_columns(enabled=pl.lit(says, dtype=pl.Boolean))
    again = enabled_while_pending(analysis)
    near = again.join(obs.configs.select("vm", "intid", at="seq"), on=LPI).filter(
        (pl.col("at") > pl.col("seq")) & (pl.col("at") < pl.col("seq") + 4)
    )
    queueings = obs.queueings.join(again, on="seq", how="anti")
    configs = obs.configs.filter(~pl.col("seq").is_in(near["at"].implode()))
    found_off = found(analysis, replace(obs, fills=fills, queueings=queueings, configs=configs), "ITS308")

    assert [finding.mechanism for finding in found_off] == [mechanism]
    assert found_off[0].confidence == Confidence.LIKELY
    assert not found(analysis, replace(obs, fills=fills), "ITS308")


# --- ITS309


def stormy(analysis: Analysis, per_fill: int, every_ns: int = 4_000_000) -> Observations:
    """An LPI of vCPU 0 that is filled every 4 ms for three seconds, `per_fill` MSIs each time."""
    obs = analysis.observations
    pattern = obs.fills.filter((pl.col("vcpu") == 0) & pl.col("pending") & (pl.col("state") == 0)).tail(1)
    intid = pattern["intid"][0]
    begin, base = int(np.quantile(obs.runs.entries[0, 0].time_ns, 0.1)), 10_000_000
    number = pl.int_range(3_000_000_000 // every_ns, eager=True)

    def many(frame: pl.DataFrame, **columns: Any) -> pl.DataFrame:
        return (
            pl.DataFrame({"n": number}).join(frame, how="cross").with_columns(**columns).select(frame.columns)
        )

    step = pl.col("n") * every_ns + begin
    seq = (pl.col("n") * 100 + base).cast(pl.UInt64)
    fills = many(
        pattern, seq=seq + 50, time_ns=step + 2_000, end_seq=seq + 90, end_ns=step + every_ns - 1_000
    )
    queue = obs.queueings.filter((pl.col("intid") == intid) & pl.col("pending")).tail(1)
    msi = obs.injections.filter((pl.col("intid") == intid) & pl.col("from_command").is_null()).tail(1)
    queueings, injections = [obs.queueings], [obs.injections]
    for one in range(per_fill):
        queueings.append(
            many(queue, seq=seq + 10 * one + 2, time_ns=step + one, target_vcpu=pl.lit(0, pl.Int32))
        )
        injections.append(
            many(
                msi,
                seq=seq + 10 * one + 1,
                end_seq=seq + 10 * one + 3,
                queue_seq=seq + 10 * one + 2,
                time_ns=step + one,
            )
        )
    return replace(
        obs,
        fills=pl.concat([obs.fills, fills]).sort("seq"),
        queueings=pl.concat(queueings).sort("seq"),
        injections=pl.concat(injections).sort("seq"),
    )


def test_msis_that_come_faster_than_they_are_taken_are_a_storm() -> None:
    analysis = sample("6.12-clean.dat")
    storm = stormy(analysis, 2)
    (finding,) = found(analysis, storm, "ITS309")

    assert finding.severity == Severity.WARNING
    assert finding.vcpus == (0,)
    assert 240 <= finding.measure <= 260
    # As fast as they are taken, on a vCPU that computes all the while: it keeps up.
    assert not found(analysis, stormy(analysis, 1), "ITS309")
    # It waits in WFI in between: it has nothing else to do.
    idle = runs_with(storm.runs, lambda _: True, why=WAITING)
    assert not found(analysis, replace(storm, runs=idle), "ITS309")
    # Too few a second.
    assert not found(analysis, storm, "ITS309", settings={"storm-rate": 1000})
    assert not found(analysis, stormy(analysis, 2, every_ns=40_000_000), "ITS309")


def test_a_storm_that_no_msi_makes_is_one_too() -> None:
    """ITS303 at its worst: nothing was injected."""
    (finding,) = found(sample("6.12-clean.dat"), stormy(sample("6.12-clean.dat"), 0), "ITS309")

    assert finding.count > 600
