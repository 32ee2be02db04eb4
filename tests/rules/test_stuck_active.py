"""ITS312: LPIs that stay active and never come again. Mechanisms put in, and taken out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.again import again, changed, more, of

from itstrace import Confidence, Severity

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Analysis

CLEAN = SAMPLES / "6.12-clean.dat"
MISTAKES = SAMPLES / "7.3-guest-mistakes.dat"


def _handled(analysis: Analysis) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last fill of an LPI that was folded active, and the fill that took it back as active: legal."""
    fills = analysis.observations.fills
    row = fills.filter(pl.col("state") == 2).row(-1, named=True)
    back = fills.filter((pl.col("intid") == row["intid"]) & (pl.col("seq") > row["seq"])).row(0, named=True)
    assert back["active"]
    return row, back


def _without_later(analysis: Analysis, back: dict[str, Any]) -> dict[str, pl.DataFrame]:
    """Nothing of the LPI any more from the fill on that took it back."""
    obs = analysis.observations
    keep = (pl.col("intid") != back["intid"]) | (pl.col("seq") < back["seq"])
    return {"fills": obs.fills.filter(keep), "queueings": obs.queueings.filter(keep)}


def test_an_lpi_flushed_while_the_guest_handles_it_is_stuck() -> None:
    """As in a real capture (below): folded active, flushed, and the vCPU enters without it; then an MSI finds it active."""
    analysis = analysis_of(CLEAN)
    obs = analysis.observations
    row, back = _handled(analysis)
    frames = _without_later(analysis, back)
    flush = {"vm": row["vm"], "cpu": 0, "pid": 9, "seq": row["end_seq"] + 1, "time_ns": row["end_ns"] + 1}
    flush |= {"what": "flush_lpis", "vcpu": row["vcpu"]}
    msi = obs.queueings.filter(pl.col("intid") == row["intid"]).row(0, named=True)
    msi |= {"seq": back["seq"] + 200, "time_ns": back["time_ns"] + 10**6, "pending": True, "active": True}
    msi |= {"owner_vcpu": None, "target_vcpu": row["vcpu"], "cause": "msi"}
    frames["queueings"] = more(frames["queueings"], msi)
    frames["vm_events"] = more(obs.vm_events, flush)
    (found,) = of(again(analysis, replace(obs, **frames)), "ITS312")  # type: ignore[arg-type]

    assert (found.severity, found.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert (found.intid, found.vcpus) == (row["intid"], (row["vcpu"],))
    assert found.mechanism == "taken off the list by EnableLPIs=0 while active"
    assert {row["seq"], row["end_seq"], flush["seq"], msi["seq"]} <= set(found.seqs)


def test_an_lpi_left_out_of_the_list_registers_is_stuck_though_nothing_flushed_it() -> None:
    """No MSI comes any more: then it is likely only, and says what would make it certain."""
    analysis = analysis_of(CLEAN)
    _, back = _handled(analysis)
    frames = _without_later(analysis, back)
    (found,) = of(again(analysis, replace(analysis.observations, **frames)), "ITS312")  # type: ignore[arg-type]

    assert found.confidence is Confidence.LIKELY
    assert found.mechanism == "left out of the list registers while active"
    assert found.doubt
    assert found.capture_next


def test_an_lpi_that_was_unmapped_since_is_nothing_to_be_sure_of() -> None:
    """As above, but its device is unmapped afterwards, as by a guest that boots again."""
    analysis = analysis_of(CLEAN)
    obs = analysis.observations
    _, back = _handled(analysis)
    frames = _without_later(analysis, back)
    mapping = analysis.history.mappings.filter(pl.col("intid") == back["intid"]).row(-1, named=True)
    old = obs.commands.row(-1, named=True)
    mapd = old | {"seq": old["end_seq"] + 1, "end_seq": old["end_seq"] + 2, "dw1": 0, "dw2": 0, "dw3": 0}
    mapd["dw0"] = mapping["device_id"] << 32 | 0x08
    frames["commands"] = more(obs.commands, mapd)

    assert not of(again(analysis, replace(obs, **frames)), "ITS312")  # type: ignore[arg-type]


def test_an_lpi_that_was_read_back_inactive_must_not_be_active() -> None:
    """A fold that does not take: the register was 0, and KVM fills the LPI as active all the same."""
    analysis = analysis_of(CLEAN)
    fills = analysis.observations.fills
    later = fills.with_columns(last=pl.col("state").shift(1).over("vm", "intid")).filter(
        (pl.col("last") == 0) & ~pl.col("active")
    )
    seq = later["seq"][-1]
    obs = replace(analysis.observations, fills=changed(fills, seq, active=True))
    (found,) = of(again(analysis, obs), "ITS312")

    assert found.mechanism == "active after it was read back inactive"
    assert found.intid == later["intid"][-1]


def test_a_kernel_that_keeps_no_active_state_has_nothing_stuck() -> None:
    """7.3 folds LPIs as active, and fills them no more: its guests end them without a list register."""
    analysis = analysis_of(MISTAKES)

    assert analysis.observations.fills.filter(pl.col("state") == 2).height
    assert not of(analysis.findings, "ITS312")


def test_with_all_list_registers_in_use_an_active_lpi_may_wait() -> None:
    analysis = analysis_of(CLEAN)
    _, back = _handled(analysis)
    frames = _without_later(analysis, back)
    frames["folds"] = analysis.observations.folds.with_columns(used=pl.lit(4, dtype=pl.UInt32))

    assert not of(again(analysis, replace(analysis.observations, **frames)), "ITS312")  # type: ignore[arg-type]


@pytest.mark.corpus
def test_the_real_stuck_lpi_is_found(corpus: Path) -> None:
    """torture-6.1: LPI 8201, stuck active for good from 386.4546 on, by EnableLPIs=0 within its handler."""
    found = of(analysis_of(corpus / "torture-6.1" / "trace.dat").findings, "ITS312")

    assert [(one.intid, one.vcpus) for one in found] == [(8201, (1,))]
    assert "386.454558" in found[0].message
    assert "never delivered again" in found[0].message
    assert found[0].mechanism == "taken off the list by EnableLPIs=0 while active"


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name", ["boot-6.12", "migrate-7.3", "torture-6.12", "torture-7.3", "faults/L-F6-612"]
)
def test_guests_that_are_in_a_handler_are_not_stuck(corpus: Path, name: str) -> None:
    found = analysis_of(corpus / name / "trace.dat").findings

    assert not {"ITS305", "ITS310", "ITS312"} & {one.code for one in found}
