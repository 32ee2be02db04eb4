"""ITS302: MSIs that KVM refused, and who is to blame. Where no capture shows a mechanism, it is put into a real one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import analysis_of
from helpers.again import found, sample

from itstrace import Confidence, Severity
from itstrace.gic.faults import Fault
from itstrace.gic.registers import GITS_CTLR

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Analysis, Finding
    from itstrace.observe import Observations


EBUSY = -16
#: Clean, with each kernel's own probes.
CLEAN = ("6.1-clean.dat", "6.12-clean.dat")


def refused(analysis: Analysis, result: int, rows: pl.Expr) -> Observations:
    obs = analysis.observations
    changed = pl.when(rows).then(pl.lit(result, dtype=pl.Int32)).otherwise("result")
    return replace(obs, injections=obs.injections.with_columns(result=changed))


def new_reasons(analysis: Analysis, obs: Observations) -> dict[str, Finding]:
    """ITS302 by mechanism, without what the capture had before."""
    old = {f.mechanism for f in found(analysis, analysis.observations, "ITS302")}
    return {f.mechanism: f for f in found(analysis, obs, "ITS302") if f.mechanism not in old}


@pytest.mark.parametrize(
    ("result", "mechanism", "confidence"),
    [
        (EBUSY, "refused as switched off although all is on", Confidence.LIKELY),
        (int(Fault.INT_UNMAPPED_INTERRUPT), "refused although its event is mapped", Confidence.CERTAIN),
    ],
)
@pytest.mark.parametrize("name", CLEAN)
def test_a_refusal_without_a_reason_is_kvms(
    name: str, result: int, mechanism: str, confidence: Confidence
) -> None:
    analysis = sample(name)
    live_msis = pl.col("from_command").is_null() & (pl.col("result") == 0)
    (finding,) = new_reasons(analysis, refused(analysis, result, live_msis)).values()

    assert (finding.mechanism, finding.severity, finding.confidence) == (
        mechanism,
        Severity.ERROR,
        confidence,
    )
    assert "vgic_its_resolve_lpi" in finding.suspect


def test_an_event_that_was_taken_down_is_expected_to_fire_once_and_blames_who_did_it() -> None:
    """Once, soon after, is a driver that unloads; again is a warning."""
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    (once,) = found(analysis, obs, "ITS302")
    texts = analysis.history.verdicts.filter(pl.col("seq").is_in(list(once.blames)))["opcode"]
    late = obs.injections.filter((pl.col("result") > 0) & pl.col("from_command").is_null())
    again = late.with_columns(pl.col("seq", "end_seq") + 1)
    (twice,) = found(
        analysis, replace(obs, injections=pl.concat([obs.injections, again]).sort("seq")), "ITS302"
    )

    assert (once.severity, once.mechanism) == (
        Severity.NOTE,
        "fired once while its event was being taken down",
    )
    assert set(texts) <= {"DISCARD", "MAPD"}
    assert texts.len()
    assert (twice.severity, twice.count) == (Severity.WARNING, 2 * once.count)


def test_what_was_mapped_before_the_capture_is_not_known() -> None:
    analysis = sample("6.12-clean.dat")
    obs = refused(analysis, int(Fault.INT_UNMAPPED_INTERRUPT), pl.col("device_id") == 0x77)
    one = obs.injections.filter(pl.col("from_command").is_null()).head(1)
    stranger = one.with_columns(
        device_id=pl.lit(0x77, dtype=pl.UInt32),
        result=pl.lit(int(Fault.INT_UNMAPPED_INTERRUPT), dtype=pl.Int32),
        queue_seq=pl.lit(None, dtype=pl.UInt64),
    )
    whole = replace(obs, injections=pl.concat([obs.injections, stranger]).sort("seq"))
    begun = replace(whole, itss=obs.itss.with_columns(complete=pl.lit(value=False)))

    (certain,) = new_reasons(analysis, whole).values()
    assert (certain.mechanism, certain.severity) == ("no event maps it", Severity.ERROR)
    (guess,) = new_reasons(analysis, begun).values()
    assert (guess.severity, guess.confidence) == (Severity.WARNING, Confidence.LIKELY)


def test_a_refusal_before_the_its_is_enabled_is_a_note() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    on = obs.register_writes.filter((pl.col("offset") == GITS_CTLR) & (pl.col("value") & 1 == 1)).row(
        0, named=True
    )
    early = obs.injections.head(1).with_columns(
        seq=pl.lit(on["seq"] - 1, dtype=pl.UInt64),
        end_seq=pl.lit(on["seq"], dtype=pl.UInt64),
        time_ns=pl.lit(on["time_ns"] - 1),
        result=pl.lit(EBUSY, dtype=pl.Int32),
        from_command=pl.lit(None, dtype=pl.UInt64),
    )
    (finding,) = new_reasons(
        analysis, replace(obs, injections=pl.concat([early, obs.injections]).sort("seq"))
    ).values()

    assert (finding.mechanism, finding.severity) == ("the ITS was not enabled yet", Severity.NOTE)


def test_an_msi_of_an_orphan_blames_the_mapc() -> None:
    analysis = sample("7.3-guest-mistakes.dat")
    obs = analysis.observations
    orphans = analysis.history.mappings.filter(pl.col("icid").is_null() & ~pl.col("assumed"))
    its = ["vm", "its", "device_id", "event_id"]
    as_msis = obs.injections.filter(pl.col("result") == int(Fault.INT_UNMAPPED_INTERRUPT)).with_columns(
        from_command=pl.lit(None, dtype=pl.UInt64)
    )
    as_msis = as_msis.join(orphans.select(its), on=its, how="semi")
    reasons = {f.mechanism: f for f in found(analysis, replace(obs, injections=as_msis), "ITS302")}
    finding = reasons["its event's collection is not mapped"]
    blamed = analysis.history.verdicts.filter(pl.col("seq").is_in(list(finding.blames)))

    assert set(blamed["opcode"]) == {"MAPC"}


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["torture-6.1", "torture-6.12", "torture-7.3"])
def test_who_switched_it_off_is_told(corpus: Path, name: str) -> None:
    analysis = analysis_of(corpus / name / "trace.dat")
    said = {f.mechanism: f.severity for f in analysis.findings if f.code == "ITS302"}

    assert said["its vCPU's EnableLPIs was cleared"] == Severity.WARNING
    assert said["the ITS was switched off, and its event mapped"] == Severity.WARNING
