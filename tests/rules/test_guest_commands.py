"""ITS101 to ITS109 and ITS114, the guest's commands: one mistake is one finding, and what follows from it is linked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.again import of
from helpers.guest import (
    CLEAN,
    MISTAKES,
    commands_of,
    findings_of,
    lost_between,
    marked,
    only,
    rewritten,
    with_fields,
)

from itstrace import Confidence, Severity
from itstrace.gic.commands import Opcode, decode
from itstrace.observe import from_raw
from itstrace.observe.identity import identify

if TYPE_CHECKING:
    from itstrace import Analysis
    from itstrace.observe import Observations


def _between(obs: Observations, after: int, before: int) -> int:
    """A command between two records."""
    return int(obs.commands.filter(pl.col("seq").is_between(after + 1, before - 1))["seq"][-1])


# --- ITS101 to ITS104: refused commands


def test_one_mistake_is_one_finding_and_is_linked_with_what_it_led_to() -> None:
    """MAPC V=0 orphaned three events, and eleven commands of three kinds were refused for it; likewise MAPD and MAPTI."""
    analysis = analysis_of(MISTAKES)
    by_id = {finding.id: finding for finding in analysis.findings}

    orphaned = only(of(analysis.findings, "ITS109"))
    refused = by_id[orphaned.leads_to[0]]
    assert (refused.code, refused.count, len(refused.subjects)) == ("ITS103", 11, 3)
    assert (
        "Likewise INT of 0x123/3, INT of 0x200/1, MOVI of 0x123/1, DISCARD of 0x123/3; 11 times in all."
        in refused.message
    )
    assert "MAPC at 41.036977 unmapped the collection" in refused.message

    freed = by_id[only(of(analysis.findings, "ITS108")).leads_to[0]]
    assert (freed.code, freed.count) == ("ITS102", 4)
    assert "MAPD of its device at 45.717772 freed it" in freed.message

    duplicate = by_id[only(of(analysis.findings, "ITS106")).leads_to[0]]
    assert (duplicate.code, duplicate.count) == ("ITS102", 4)
    assert "its MAPTI at 35.277243 was itself refused" in duplicate.message
    assert len(of(analysis.findings, "ITS102")) == 4


@pytest.mark.parametrize(("devices", "findings"), [(2, 2), (3, 3), (5, 1)])
def test_a_few_devices_make_each_their_own_mistake_and_many_make_one(devices: int, findings: int) -> None:
    """ITS101: INT of devices that nothing mapped."""
    obs = analysis_of(CLEAN).observations
    for number, seq in enumerate(commands_of(obs, Opcode.INT)["seq"].head(devices)):
        obs = with_fields(obs, seq, device_id=0x700 + number, event_id=0)

    found = findings_of(obs, "ITS101")
    assert len(found) == findings
    assert sum(finding.count for finding in found) == devices
    assert {one.device_id for finding in found for one in finding.subjects} == {
        0x700 + n for n in range(devices)
    }


def test_a_refused_mapd_is_what_its_device_lacks() -> None:
    """ITS104 leads to ITS101: a device that MAPD could not map, for its id lies beyond the table."""
    obs = analysis_of(CLEAN).observations
    mapd = commands_of(obs, Opcode.MAPD)["seq"][-1]
    mapti = obs.commands.filter((pl.col("seq") > mapd) & (pl.col("dw0") & 0xFF == int(Opcode.MAPTI)))["seq"][
        0
    ]
    obs = with_fields(with_fields(obs, mapd, device_id=0x70000), mapti, device_id=0x70000)
    out_of_range, unmapped = only(findings_of(obs, "ITS104")), findings_of(obs, "ITS101")

    assert "device 0x70000 lies beyond the device table" in out_of_range.message
    named = next(one for one in unmapped if one.device_id == 0x70000)
    assert "for its MAPD at" in named.message
    assert named.caused_by == (out_of_range.id,)


def test_an_unmapped_event_is_not_claimed_where_commands_were_lost() -> None:
    """ITS102: a DISCARD and an INT of the event; with a command lost between them it may be mapped again."""
    obs = analysis_of(CLEAN).observations
    finding = only(findings_of(obs, "ITS102"))
    discard, used = finding.blames[:2]
    lost = marked(obs, _between(obs, discard, used), lost_before=True)

    assert finding.confidence is Confidence.CERTAIN
    assert finding.count - sum(one.count for one in findings_of(lost, "ITS102")) == 1


def test_records_lost_without_a_command_make_a_refusal_likely() -> None:
    """ITS102: the queue's offsets show no command missing; but they cannot show all."""
    obs = analysis_of(CLEAN).observations
    whole = only(findings_of(obs, "ITS102"))
    assert whole.time_ns is not None
    finding = only(findings_of(obs, "ITS102", gaps=lost_between(whole.time_ns - 1000, whole.time_ns - 500)))

    assert (finding.confidence, finding.count) == (Confidence.LIKELY, whole.count)
    assert "no command missing" not in whole.doubt
    assert "no command missing" in finding.doubt
    assert finding.capture_next


# --- ITS105 to ITS109


def test_unknown_opcodes_are_told_together_and_gicv4_apart() -> None:
    found = of(analysis_of(MISTAKES).findings, "ITS105")
    assert sorted(finding.mechanism for finding in found) == [
        "GICv4 commands in the queue",
        "reserved opcodes in the queue",
    ]
    assert any("0x77 once, 0x02 once" in finding.message for finding in found)
    assert any("VMAPTI once, VMOVI once" in finding.message for finding in found)


@pytest.mark.parametrize("code", ["ITS106", "ITS107", "ITS108", "ITS109"])
def test_what_was_mapped_is_not_claimed_where_commands_were_lost(code: str) -> None:
    obs = analysis_of(MISTAKES).observations
    finding = only(findings_of(obs, code, kernel="7.3"))

    assert findings_of(marked(obs, finding.blames[0], lost_before=True), code, kernel="7.3") == []


@pytest.mark.parametrize("code", ["ITS106", "ITS107", "ITS108", "ITS109"])
def test_a_guest_that_begins_anew_makes_no_mistake_by_what_kvm_kept(code: str) -> None:
    """As a kernel that kexec started: it turns the ITS off, gives it its tables and maps what it needs."""
    obs = analysis_of(MISTAKES).observations
    finding = only(findings_of(obs, code, kernel="7.3"))
    again = rewritten(obs, finding.blames[0])

    assert findings_of(again, code, kernel="7.3") == []
    assert len(findings_of(again, "ITS104", kernel="7.3")) == len(findings_of(obs, "ITS104", kernel="7.3"))


def test_a_mapping_whose_collection_is_not_known_is_not_remapped_by_the_same_lpi() -> None:
    """ITS107: a capture that begins mid-life shows by an MSI which LPI an event is, not which collection it goes by."""
    obs = analysis_of(CLEAN).observations
    mapti = commands_of(obs, Opcode.MAPTI).filter(pl.col("dw0") // 2**32 == 0x20)["seq"][-1]
    row = obs.commands.filter(pl.col("seq") == mapti).row(0, named=True)
    command = decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))
    later = obs.injections.filter(
        (pl.col("device_id") == command.device_id)
        & (pl.col("event_id") == command.event_id)
        & (pl.col("seq") > mapti)
    )
    seen = later.head(1).with_columns(seq=pl.lit(1, pl.UInt64), end_seq=pl.lit(2, pl.UInt64))
    incomplete = replace(
        obs,
        injections=pl.concat([seen, obs.injections]),
        commands=obs.commands.filter(pl.col("seq") >= mapti),
        register_writes=obs.register_writes.head(0),
        itss=obs.itss.with_columns(complete=pl.lit(value=False)),
        vms=obs.vms.with_columns(complete=pl.lit(value=False)),
    )

    assert later.height
    assert findings_of(incomplete, "ITS107") == []
    other = with_fields(incomplete, mapti, intid=(command.intid or 0) + 40)
    assert only(findings_of(other, "ITS107")).intid == command.intid


# --- ITS114


def test_a_slot_that_could_not_be_read_is_the_guest_s_mistake_and_leads_to_others() -> None:
    obs = analysis_of(CLEAN).observations
    int_ = commands_of(obs, Opcode.INT).row(0, named=True)
    event = (int_["dw0"] >> 32, int_["dw1"])
    maptis = commands_of(obs, Opcode.MAPTI).filter(
        (pl.col("dw0") // 2**32 == event[0])
        & (pl.col("dw1") & 0xFFFF_FFFF == event[1])
        & (pl.col("seq") < int_["seq"])
    )
    mapti = int(maptis["seq"][-1])
    unread = marked(obs, mapti, readable=False)
    finding = only(findings_of(unread, "ITS114"))

    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 1)
    assert finding.blames == (mapti,)
    assert f"Slot 0x{maptis['slot'][-1]:x} of the command queue could not be read" in finding.message
    unmapped = [one for one in findings_of(unread, "ITS102") if finding.id in one.caused_by]
    assert unmapped
    assert "in the slot that could not be read" in unmapped[0].message
    assert findings_of(obs, "ITS114") == []


def _without_record(analysis: Analysis, probe: str, place: int, **changed: Any) -> tuple[Observations, int]:
    """The observations anew, as if one record of a probe had not been made; and which record it was."""
    raw = analysis.observations._raw
    frame = raw[probe]
    seq = int(frame["seq"][place])
    frames = raw.frames | {probe: frame.filter(pl.col("seq") != seq)} | changed
    fewer = replace(raw, frames=frames)
    return from_raw(fewer, identify(fewer)), seq


@pytest.mark.parametrize("place", [12, -1])
def test_a_slot_without_a_command_was_passed_over(place: int) -> None:
    """ITS114 on 6.1, where nothing tells that a read failed: the probe inside the loop is not reached. Or it was lost."""
    analysis = analysis_of(SAMPLES / "6.1-clean.dat")
    obs, seq = _without_record(analysis, "command", place)
    command = analysis.observations.commands.filter(pl.col("seq") == seq).row(0, named=True)
    finding = only(findings_of(obs, "ITS114", kernel="6.1"))

    assert obs.skipped_slots["slot"].to_list() == [command["slot"]]
    assert finding.confidence is Confidence.LIKELY
    assert f"Slot 0x{command['slot']:x}" in finding.message
    lost = lost_between(command["time_ns"] - 10, command["time_ns"] + 10)
    assert findings_of(obs, "ITS114", kernel="6.1", gaps=lost) == []
    assert analysis.observations.skipped_slots.is_empty()


def test_a_failed_read_of_which_the_record_holds_no_words_is_a_slot_that_could_not_be_read() -> None:
    """ITS114 on 6.12: the return of kvm_read_guest says that it failed, and its buffer could not be fetched either."""
    analysis = analysis_of(CLEAN)
    raw = analysis.observations._raw
    gone = int(raw["command"]["seq"][12])
    read = raw["guest_read"].filter((pl.col("len") == 32) & (pl.col("seq") < gone))["seq"][-1]
    there = pl.col("seq") == read
    failed = raw["guest_read"].with_columns(
        pl.when(there).then(-14).otherwise("ret").cast(pl.Int32).alias("ret"),
        *(pl.when(~there).then(word).alias(word) for word in ("dw0", "dw1", "dw2", "dw3")),
    )
    obs, _ = _without_record(analysis, "command", 12, guest_read=failed)

    assert obs.commands.filter(~pl.col("readable"))["slot"].to_list() == [
        analysis.observations.commands.filter(pl.col("seq") == gone)["slot"][0]
    ]
    assert not obs.commands["lost_before"].any()
    assert only(findings_of(obs, "ITS114")).confidence is Confidence.CERTAIN
    # Where that return is recorded, a slot without either record was lost.
    assert _without_record(analysis, "command", 12)[0].skipped_slots.is_empty()
