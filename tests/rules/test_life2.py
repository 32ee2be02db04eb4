"""ITS305 to ITS312: what becomes of an LPI whose event, vCPU or state is taken from it. Mechanisms put in, and taken out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.again import again, changed, more, of, whole_gap

from itstrace import Confidence, Severity

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Analysis, Finding

CLEAN = SAMPLES / "6.12-clean.dat"
STALE = SAMPLES / "6.12-stale-translation.dat"
MISTAKES = SAMPLES / "7.3-guest-mistakes.dat"
FLUSHED = SAMPLES / "6.12-double-delivery.dat"
CODES = ("ITS305", "ITS306", "ITS307", "ITS310", "ITS311", "ITS312")


def _of(analysis: Analysis, code: str) -> list[Finding]:
    return of(analysis.findings, code)


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
    (finding,) = _of(analysis, "ITS305")
    (discard,) = finding.blames
    rows = analysis.observations.injections.filter(pl.col("seq").is_in(list(finding.seqs)))
    return rows.row(0, named=True), discard


def test_an_msi_that_came_after_discard_was_delivered() -> None:
    (finding,) = _of(analysis_of(STALE), "ITS305")

    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert (finding.device_id, finding.event_id, finding.intid, finding.vcpus) == (0x10, 2, 8193, (0,))
    assert finding.mechanism == "through the translation cache"
    assert "DISCARD DeviceID 0x10 EventID 2" in finding.message


def test_the_stale_translation_and_its_delivery_blame_one_command() -> None:
    """What a story between ITS201 (or ITS202) and ITS305 is linked by."""
    analysis = analysis_of(STALE)
    (delivered,) = _of(analysis, "ITS305")
    (stale,) = _of(analysis, "ITS201")

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
    (finding,) = _of(analysis, "ITS306")
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
    (finding,) = _of(analysis_of(FLUSHED), "ITS311")

    assert (finding.severity, finding.intid, finding.count) == (Severity.NOTE, 8193, 7)


def test_an_lpi_that_the_table_brings_back_was_kept() -> None:
    """For each LPI dropped, the next EnableLPIs=1 finds its bit set, and KVM queues it."""
    analysis = analysis_of(FLUSHED)
    obs = analysis.observations
    (finding,) = _of(analysis, "ITS311")
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


# --- ITS312


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
    assert not _of(analysis, "ITS312")


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
