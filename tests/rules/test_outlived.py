"""ITS305 to ITS307: what becomes of an LPI whose event is taken from it. Mechanisms put in, and taken out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.again import again, changed, more, of, whole_gap

from itstrace import Confidence, Severity

if TYPE_CHECKING:
    from itstrace import Analysis, Finding

CLEAN = SAMPLES / "6.12-clean.dat"
STALE = SAMPLES / "6.12-stale-translation.dat"
MISTAKES = SAMPLES / "7.3-guest-mistakes.dat"
CODES = ("ITS305", "ITS306", "ITS307", "ITS310", "ITS311", "ITS312")


@pytest.mark.parametrize("name", ["6.12-clean.dat", "6.1-clean.dat", "7.3-migrate.dat"])
def test_clean_captures_have_none_of_these(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)

    assert not {finding.code for finding in analysis.findings} & set(CODES)


def test_nothing_is_claimed_across_lost_records() -> None:
    for path, code in ((STALE, "ITS305"), (MISTAKES, "ITS306"), (MISTAKES, "ITS311")):
        analysis = analysis_of(path)

        assert of(again(analysis, analysis.observations), code)
        assert not of(again(analysis, analysis.observations, gaps=whole_gap(analysis)), code)


# --- ITS305


def _late_msi(analysis: Analysis) -> tuple[dict[str, Any], int]:
    """The MSI that hit the stale cache, and the DISCARD before it."""
    (finding,) = of(analysis.findings, "ITS305")
    (discard,) = finding.blames
    rows = analysis.observations.injections.filter(pl.col("seq").is_in(list(finding.seqs)))
    return rows.row(0, named=True), discard


def test_an_msi_that_came_after_discard_was_delivered() -> None:
    (finding,) = of(analysis_of(STALE).findings, "ITS305")

    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert (finding.device_id, finding.event_id, finding.intid, finding.vcpus) == (0x10, 2, 8193, (0,))
    assert finding.mechanism == "through the translation cache"
    assert "DISCARD DeviceID 0x10 EventID 2" in finding.message


def test_the_stale_translation_and_its_delivery_blame_one_command() -> None:
    """What a story between ITS201 (or ITS202) and ITS305 is linked by."""
    analysis = analysis_of(STALE)
    (delivered,) = of(analysis.findings, "ITS305")
    (stale,) = of(analysis.findings, "ITS201")

    assert delivered.blames[0] in stale.seqs


def test_an_int_command_counts_as_well() -> None:
    analysis = analysis_of(STALE)
    msi, discard = _late_msi(analysis)
    injections = changed(analysis.observations.injections, msi["seq"], from_command=discard, cached=False)
    (finding,) = of(again(analysis, replace(analysis.observations, injections=injections)), "ITS305")

    assert "an INT at" in finding.message
    assert finding.mechanism == "through the tables"


def test_an_msi_under_way_when_the_event_went_is_a_note() -> None:
    """Race R3: it was begun before the DISCARD was read, and queued behind it."""
    analysis = analysis_of(STALE)
    msi, discard = _late_msi(analysis)
    injections = changed(analysis.observations.injections, msi["seq"], seq=discard - 1)
    (finding,) = of(again(analysis, replace(analysis.observations, injections=injections)), "ITS305")

    assert (finding.severity, finding.confidence) == (Severity.NOTE, Confidence.LIKELY)
    assert finding.mechanism == "under way when the event was unmapped"
    assert finding.doubt


def test_an_event_that_was_mapped_again_may_come() -> None:
    """A MAPTI of the same event and LPI between the DISCARD and the MSI."""
    analysis = analysis_of(STALE)
    obs = analysis.observations
    msi, discard = _late_msi(analysis)
    old = obs.commands.filter(pl.col("seq") == discard).row(0, named=True)
    mapti = old | {
        "seq": msi["seq"] - 2,
        "end_seq": msi["seq"] - 1,
        "dw0": old["dw0"] & ~0xFF | 0x0A,
        "dw1": msi["event_id"] | msi["intid"] << 32,
        "dw2": 0,
    }

    assert not of(again(analysis, replace(obs, commands=more(obs.commands, mapti))), "ITS305")


def test_an_msi_that_was_refused_was_not_delivered() -> None:
    analysis = analysis_of(STALE)
    msi, _ = _late_msi(analysis)
    injections = changed(analysis.observations.injections, msi["seq"], result=0x010307, queue_seq=None)

    assert not of(again(analysis, replace(analysis.observations, injections=injections)), "ITS305")


# --- ITS306 and ITS307


def _survivor(analysis: Analysis) -> tuple[Finding, int, int]:
    """The LPI that outlived its DISCARD: the finding, the DISCARD and the fill after it."""
    (finding,) = of(analysis.findings, "ITS306")
    (discard,) = finding.blames
    return finding, discard, finding.seqs[-1]


def test_pending_state_outlives_its_event() -> None:
    finding, _, _ = _survivor(analysis_of(MISTAKES))

    assert (finding.severity, finding.intid) == (Severity.NOTE, 8192)
    assert finding.mechanism == "pending state outlived its event"


def test_a_new_msi_is_its_own_reason_to_come() -> None:
    analysis = analysis_of(MISTAKES)
    obs = analysis.observations
    finding, discard, fill = _survivor(analysis)
    msi = obs.queueings.filter(pl.col("cause") == "int").row(0, named=True)
    msi |= {"seq": fill - 1, "intid": finding.intid}
    assert discard < msi["seq"]

    assert not of(again(analysis, replace(obs, queueings=more(obs.queueings, msi))), "ITS306")


def test_a_new_mapping_brings_pending_state_back() -> None:
    """MAPTI of the LPI while it is still queued."""
    analysis = analysis_of(MISTAKES)
    obs = analysis.observations
    finding, discard, fill = _survivor(analysis)
    assert finding.intid is not None
    old = obs.commands.filter(pl.col("seq") == discard).row(0, named=True)
    mapti = old | {
        "seq": fill - 1,
        "end_seq": fill,
        "dw0": old["dw0"] & ~0xFF | 0x0A,
        "dw1": old["dw1"] | finding.intid << 32,
        "dw2": 0,
    }
    (found,) = of(again(analysis, replace(obs, commands=more(obs.commands, mapti))), "ITS306")

    assert found.mechanism == "brought back by a new mapping"
    assert "MAPTI" in found.message


def test_a_latch_that_survives_clear_was_not_cleared() -> None:
    """The same LPI, with CLEAR in the place of DISCARD: it was queued, in no list register, and came all the same."""
    analysis = analysis_of(MISTAKES)
    obs = analysis.observations
    finding, discard, fill = _survivor(analysis)
    dw0 = obs.commands.filter(pl.col("seq") == discard)["dw0"][0]
    commands = changed(obs.commands, discard, dw0=dw0 & ~0xFF | 0x04)
    (found,) = of(again(analysis, replace(obs, commands=commands)), "ITS307")

    assert (found.intid, found.severity) == (finding.intid, Severity.NOTE)
    assert found.mechanism == "pending_latch survived CLEAR"
    assert fill in found.seqs


def _refilled(analysis: Analysis) -> tuple[dict[str, Any], dict[str, Any]]:
    """A fill that was folded still pending, and the fill after it, with nothing queued between; of a mapped event."""
    obs = analysis.observations
    fills = obs.fills.filter("pending").with_columns(
        following=pl.col("seq").shift(-1).over("vm", "intid"), gap=pl.col("end_seq") - pl.col("seq")
    )
    for row in (
        fills.filter((pl.col("state") == 1) & (pl.col("gap") > 2))
        .drop_nulls("following")
        .iter_rows(named=True)
    ):
        mine = obs.queueings.filter((pl.col("intid") == row["intid"]) & (pl.col("vm") == row["vm"]))
        if mine.filter((pl.col("seq") > row["seq"]) & (pl.col("seq") < row["following"])).is_empty():
            return row, obs.fills.filter(pl.col("seq") == row["following"]).row(0, named=True)
    raise AssertionError


def test_clear_does_not_reach_into_a_list_register() -> None:
    """KVM's known limit: CLEAR while the LPI is in a list register, which is folded still pending."""
    analysis = analysis_of(CLEAN)
    obs = analysis.observations
    held, following = _refilled(analysis)
    mapping = analysis.history.mappings.filter(
        (pl.col("intid") == held["intid"]) & (pl.col("from_seq") < held["seq"])
    ).row(-1, named=True)
    old = obs.commands.filter(pl.col("seq") < held["seq"]).row(-1, named=True)
    clear = old | {
        "seq": held["seq"] + 1,
        "end_seq": held["seq"] + 2,
        "time_ns": held["time_ns"] + 1,
        "dw0": mapping["device_id"] << 32 | 0x04,
        "dw1": mapping["event_id"],
        "dw2": 0,
        "dw3": 0,
    }
    (found,) = of(again(analysis, replace(obs, commands=more(obs.commands, clear))), "ITS307")

    assert found.mechanism == "in a list register, which CLEAR does not look at"
    assert (found.intid, found.vcpus) == (held["intid"], (following["vcpu"],))
    assert "vgic_v3_fold_lr_state" in found.suspect
