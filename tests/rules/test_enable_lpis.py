"""ITS310 and ITS311: what becomes of pending LPIs when EnableLPIs changes. Mechanisms put in, and taken out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
from conftest import SAMPLES, analysis_of
from helpers.again import again, more, of

from itstrace import Severity

if TYPE_CHECKING:
    from itstrace import Analysis

CLEAN = SAMPLES / "6.12-clean.dat"
FLUSHED = SAMPLES / "6.12-double-delivery.dat"


# --- ITS310


def _waiting(analysis: Analysis) -> tuple[dict[str, Any], dict[str, Any]]:
    """An MSI queued for vCPU 1 anew, with room before its fill, and that fill."""
    obs = analysis.observations
    queued = obs.queueings.filter(
        pl.col("pending") & pl.col("enabled") & pl.col("owner_vcpu").is_null() & (pl.col("target_vcpu") == 1)
    )
    queued = queued.filter(pl.col("cause").is_in(["msi", "int"]))
    for row in queued.iter_rows(named=True):
        fill = obs.fills.filter((pl.col("intid") == row["intid"]) & (pl.col("seq") > row["seq"])).head(1)
        if fill.height and fill["seq"][0] > row["seq"] + 3:
            return row, fill.row(0, named=True)
    raise AssertionError


def _enabled_over(analysis: Analysis, *, pending: bool = False, msi: bool = True) -> dict[str, pl.DataFrame]:
    """The pending table of vCPU 1 read while an MSI for it waits; `pending`: its bit is 1; without the MSI: restored so."""
    obs = analysis.observations
    queued, fill = _waiting(analysis)
    at = queued["seq"]
    base = {"vm": queued["vm"], "cpu": 0, "pid": 77, "time_ns": queued["time_ns"] + 1}
    enable = base | {"seq": at + 1, "what": "enable_lpis", "vcpu": 1}
    read = queued | base | {"seq": at + 2, "pending": pending, "cause": "other"}
    queueings = more(obs.queueings, read)
    if not msi:
        queueings = queueings.filter(pl.col("seq") != at)
    gone = pl.col("seq").is_between(at, fill["seq"]) & (pl.col("intid") == queued["intid"])
    fills = obs.fills if pending else obs.fills.filter(~gone)
    return {"vm_events": more(obs.vm_events, enable), "queueings": queueings, "fills": fills}


def test_an_msi_between_enabling_and_the_read_of_the_table_is_wiped() -> None:
    """Race R7: latched, then overwritten by the table's bit."""
    analysis = analysis_of(CLEAN)
    queued, _ = _waiting(analysis)
    obs = replace(analysis.observations, **_enabled_over(analysis))  # type: ignore[arg-type]
    (found,) = of(again(analysis, obs), "ITS310")

    assert (found.severity, found.intid, found.vcpus) == (Severity.ERROR, queued["intid"], (1,))
    assert queued["seq"] in found.seqs


def test_a_bit_that_is_set_wipes_nothing_and_a_restore_loses_nothing() -> None:
    analysis = analysis_of(CLEAN)
    for given in ({"pending": True}, {"msi": False}):
        obs = replace(analysis.observations, **_enabled_over(analysis, **given))  # type: ignore[arg-type]
        assert not of(again(analysis, obs), "ITS310")


def test_what_enable_lpis_0_took_is_not_wiped_by_the_read() -> None:
    """EnableLPIs went to 0 in between: the architecture promises nothing, and ITS311 tells it."""
    analysis = analysis_of(CLEAN)
    queued, _ = _waiting(analysis)
    frames = _enabled_over(analysis)
    flush = {
        "vm": queued["vm"],
        "cpu": 0,
        "pid": 78,
        "time_ns": queued["time_ns"],
        "what": "flush_lpis",
        "vcpu": 1,
    }
    frames["vm_events"] = more(frames["vm_events"], flush | {"seq": queued["seq"] + 1})
    frames["vm_events"] = frames["vm_events"].with_columns(
        seq=pl.when((pl.col("what") == "enable_lpis") & (pl.col("pid") == 77))
        .then(queued["seq"] + 2)
        .otherwise("seq")
    )
    frames["queueings"] = frames["queueings"].with_columns(
        seq=pl.when(pl.col("pid") == 77).then(queued["seq"] + 3).otherwise("seq")
    )
    found = again(analysis, replace(analysis.observations, **frames))  # type: ignore[arg-type]

    assert not of(found, "ITS310")
    assert [(one.intid, one.severity) for one in of(found, "ITS311")] == [(queued["intid"], Severity.NOTE)]


# --- ITS311


def test_what_was_pending_when_lpis_went_off_is_dropped() -> None:
    (finding,) = of(analysis_of(FLUSHED).findings, "ITS311")

    assert (finding.severity, finding.intid, finding.count) == (Severity.NOTE, 8193, 7)


def test_an_lpi_that_the_table_brings_back_was_kept() -> None:
    """For each LPI dropped, the next EnableLPIs=1 finds its bit set, and KVM queues it."""
    analysis = analysis_of(FLUSHED)
    obs = analysis.observations
    (finding,) = of(analysis.findings, "ITS311")
    msi = obs.queueings.filter(pl.col("pending") & (pl.col("intid") == finding.intid)).row(0, named=True)
    on = obs.vm_events.filter((pl.col("what") == "enable_lpis") & (pl.col("vcpu") == 1))
    first = obs.vm_events.filter((pl.col("what") == "flush_lpis") & (pl.col("vcpu") == 1))["seq"][0]
    back = [
        msi | {"seq": row["seq"] + 1, "time_ns": row["time_ns"] + 1, "pid": row["pid"], "cause": "other"}
        for row in on.filter(pl.col("seq") > first).iter_rows(named=True)
    ]
    # Without the MSIs of the time in which LPIs were off for that vCPU.
    spans = obs.vm_events.filter(pl.col("what").is_in(["enable_lpis", "flush_lpis"]) & (pl.col("vcpu") == 1))
    last = (
        obs.queueings.select("seq")
        .sort("seq")
        .join_asof(spans.select("what", "seq").sort("seq"), on="seq", strategy="backward")
    )
    off = last.filter(pl.col("what") == "flush_lpis")["seq"]
    queueings = more(obs.queueings.filter(~pl.col("seq").is_in(off.implode())), *back)

    assert not of(again(analysis, replace(obs, queueings=queueings)), "ITS311")


def test_an_lpi_latched_while_disabled_is_on_no_list_to_be_dropped_from() -> None:
    analysis = analysis_of(FLUSHED)
    obs = analysis.observations
    off = obs.queueings.with_columns(enabled=pl.lit(value=False))

    assert not of(again(analysis, replace(obs, queueings=off)), "ITS311")
