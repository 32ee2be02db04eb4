"""ITS601 to ITS603: tables through guest memory and back. The restore is put in behind a real save, entry by entry."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.again import again, changed, more, of, whole_gap
from helpers.restored import PID, Image, last_save, saved, with_restore

from itstrace import Analysis, Confidence, Finding, Severity
from itstrace.gic.commands import Opcode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from itstrace.observe import Observations

#: Each saves its tables at its end, and is torn down.
SAVED = ("6.12-clean.dat", "6.1-clean.dat", "7.3-guest-mistakes.dat")
CLEAN = SAMPLES / "6.12-clean.dat"


def _image(analysis: Analysis) -> Image:
    return saved(analysis.history, 0, last_save(analysis.observations)["seq"])


def _restored(analysis: Analysis, image: Image, obs: Observations | None = None) -> Observations:
    obs = obs or analysis.observations
    assert analysis.end_ns is not None
    return with_restore(obs, 0, image, at_seq=10**7, at_ns=analysis.end_ns + 10**9)


def _found(analysis: Analysis, image: Image, code: str = "ITS601") -> list[Finding]:
    return of(again(analysis, _restored(analysis, image)), code)


@pytest.mark.parametrize("name", SAVED)
def test_what_comes_back_as_it_was_is_clean(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    image = _image(analysis)
    codes = {one.code for one in again(analysis, _restored(analysis, image))}

    assert image.events
    assert not codes & {"ITS601", "ITS602"}


def test_a_mapping_that_did_not_come_back() -> None:
    analysis = analysis_of(CLEAN)
    image = _image(analysis)
    (device, event), (intid, _) = next(iter(image.events.items()))
    del image.events[device, event]
    (found,) = _found(analysis, image)
    mapping = analysis.history.mappings.filter(
        (pl.col("device_id") == device) & (pl.col("event_id") == event)
    ).row(-1, named=True)

    assert (found.severity, found.confidence, found.vm) == (Severity.ERROR, Confidence.CERTAIN, 1)
    assert (found.device_id, found.event_id, found.intid) == (device, event, intid)
    assert found.mechanism == "a mapping did not come back"
    assert found.blames == (mapping["set_by"],)
    assert found.evidence


def test_a_device_that_did_not_come_back_takes_its_events_along() -> None:
    analysis = analysis_of(CLEAN)
    image = _image(analysis)
    device = next(iter(image.devices))
    events = {key for key in image.events if key[0] == device}
    del image.devices[device]
    (found,) = _found(analysis, image)

    assert found.mechanism == "a device did not come back"
    assert {(one.device_id, one.event_id) for one in found.subjects} == events


def _other_collection(image: Image) -> None:
    key, (intid, icid) = next(iter(image.events.items()))
    image.events[key] = (intid, next(one for one in image.collections if one != icid))


def _other_lpi(image: Image) -> None:
    key, (_, icid) = next(iter(image.events.items()))
    image.events[key] = (8300, icid)


def _other_target(image: Image) -> None:
    image.collections[1] = 0


def _no_collection(image: Image) -> None:
    del image.collections[1]


def _other_itt(image: Image) -> None:
    device, (bits, itt) = next(iter(image.devices.items()))
    image.devices[device] = (bits - 1, itt)


def _new_collection(image: Image) -> None:
    image.collections[7] = 0


@pytest.mark.parametrize(
    ("change", "mechanism"),
    [
        (_other_collection, "a mapping came back changed"),
        (_other_lpi, "a mapping came back changed"),
        (_other_target, "a collection came back with another target"),
        (_no_collection, "a collection did not come back"),
        (_other_itt, "a device came back with another ITT"),
        (_new_collection, "a collection came back that was not mapped"),
    ],
)
def test_entries_that_came_back_otherwise(change: Callable[[Image], None], mechanism: str) -> None:
    analysis = analysis_of(CLEAN)
    image = _image(analysis)
    change(image)

    assert [one.mechanism for one in _found(analysis, image)] == [mechanism]


def test_what_a_discard_left_in_memory_comes_back() -> None:
    """Kernels before 6.13 do not clear an entry in guest memory: the restore consumes it."""
    analysis = analysis_of(CLEAN)
    obs = analysis.observations
    image = _image(analysis)
    key, entry = next(iter(image.events.items()))
    last = obs.commands.row(-1, named=True)
    discard = last | {"seq": last["end_seq"] + 1, "end_seq": last["end_seq"] + 2, "dw2": 0, "dw3": 0}
    discard |= {"dw0": key[0] << 32 | Opcode.DISCARD, "dw1": key[1]}
    obs = replace(obs, commands=more(obs.commands, discard))
    (found,) = of(again(analysis, _restored(analysis, image, obs)), "ITS601")

    assert found.mechanism == "what had been unmapped came back"
    assert found.blames == (discard["seq"],)
    assert (found.device_id, found.event_id, found.intid) == (*key, entry[0])


def test_an_lpi_that_kvm_gives_another_target_than_its_restored_collection() -> None:
    analysis = analysis_of(CLEAN)
    obs = _restored(analysis, _image(analysis))
    row = obs.queueings.filter(pl.col("pid") == PID).row(0, named=True)
    queueings = changed(obs.queueings, row["seq"], target_vcpu=1 - row["target_vcpu"])
    (found,) = of(again(analysis, replace(obs, queueings=queueings)), "ITS601")

    assert found.mechanism == "a restored LPI has another target than its collection"
    assert (found.intid, found.vcpus) == (row["intid"], (0, 1))


def test_a_kernel_that_shows_no_entries_shows_which_configurations_it_read() -> None:
    """6.1 records no 8-byte reads: an LPI that is not set up again is missed all the same."""
    analysis = analysis_of(SAMPLES / "6.1-clean.dat")
    image = _image(analysis)
    whole = _restored(analysis, image)
    key = next(iter(image.events))
    del image.events[key]
    partly = _restored(analysis, image)
    for obs, missing in ((whole, []), (partly, [key])):
        silent = replace(obs, guest_reads=obs.guest_reads.clear())
        found = of(again(analysis, silent), "ITS601")

        assert [(one.device_id, one.event_id) for one in found] == missing


def test_another_its_and_lost_records_are_not_compared() -> None:
    analysis = analysis_of(CLEAN)
    image = _image(analysis)
    del image.events[next(iter(image.events))]
    obs = _restored(analysis, image)
    elsewhere = replace(
        obs,
        itss=obs.itss.with_columns(
            base_gpa=pl.when(pl.col("vm") == 1).then(0x900_0000).otherwise("base_gpa")
        ),
    )

    assert of(again(analysis, obs), "ITS601")
    assert not of(again(analysis, elsewhere), "ITS601")
    assert not of(again(analysis, obs, gaps=whole_gap(analysis)), "ITS601")


def test_another_guests_queue_is_not_compared() -> None:
    """Two VMs have their ITS at one address; a queue somewhere else is another guest's."""
    analysis = analysis_of(CLEAN)
    image = _image(analysis)
    del image.events[next(iter(image.events))]
    obs = _restored(analysis, image)
    cbaser = obs.register_writes.filter((pl.col("vm") == 1) & (pl.col("offset") == 0x80)).row(0, named=True)
    moved = changed(obs.register_writes, cbaser["seq"], value=cbaser["value"] + (1 << 20))

    assert not of(again(analysis, replace(obs, register_writes=moved)), "ITS601")


def test_a_vm_that_ran_on_after_its_save_may_have_been_saved_again() -> None:
    analysis = analysis_of(CLEAN)
    obs = analysis.observations
    image = _image(analysis)
    del image.events[next(iter(image.events))]
    save = last_save(obs)
    last_run = max(int(stamps.seq[-1]) for stamps in obs.runs.entries.values())
    early = obs.vm_events.with_columns(
        seq=pl.when(pl.col("seq") == save["seq"]).then(last_run - 1).otherwise("seq")
    ).sort("seq")
    (found,) = of(again(analysis, _restored(analysis, image, replace(obs, vm_events=early))), "ITS601")

    assert found.confidence is Confidence.LIKELY
    assert "ran on after the save" in found.doubt


def _snapshot(obs: Observations, vm_seq: int) -> dict[str, Any]:
    """An earlier save, with the VM running on after it."""
    save = last_save(obs)
    return save | {"seq": vm_seq, "time_ns": obs.commands.filter(pl.col("seq") < vm_seq)["time_ns"][-1] + 1}


def test_an_older_save_came_back_although_the_vm_was_saved_at_its_end() -> None:
    """As where the last save did not write the tables: what stood in memory from a snapshot is restored."""
    analysis = analysis_of(CLEAN)
    obs = analysis.observations
    moved = analysis.history.mappings.filter(pl.col("set_by").is_not_null())["set_by"].max()
    early = int(obs.commands.filter(pl.col("seq") < moved)["seq"][-1]) - 1
    obs = replace(obs, vm_events=more(obs.vm_events, _snapshot(obs, early)))
    found = of(again(analysis, _restored(analysis, saved(analysis.history, 0, early), obs)), "ITS601")

    assert found
    assert all(one.confidence is Confidence.LIKELY and "an older save" in one.doubt for one in found)


def test_a_snapshot_that_a_vm_is_taken_back_to_is_what_was_meant() -> None:
    """The same, but the VM was not saved at its end: it ran on, and was taken back."""
    analysis = analysis_of(CLEAN)
    obs = analysis.observations
    moved = analysis.history.mappings.filter(pl.col("set_by").is_not_null())["set_by"].max()
    early = int(obs.commands.filter(pl.col("seq") < moved)["seq"][-1]) - 1
    at_end = last_save(obs)["seq"]
    events = more(obs.vm_events.filter(pl.col("seq") != at_end), _snapshot(obs, early))
    obs = replace(obs, vm_events=events)

    assert not of(again(analysis, _restored(analysis, saved(analysis.history, 0, early), obs)), "ITS601")


# --- ITS602


def _with_pending(analysis: Analysis) -> tuple[Observations, int]:
    """An LPI of a mapped event queued right before the save, and not taken any more."""
    obs = analysis.observations
    save = last_save(obs)
    (intid, _) = next(iter(_image(analysis).events.values()))
    msi = obs.queueings.filter(pl.col("pending") & (pl.col("intid") == intid)).row(-1, named=True)
    msi |= {
        "seq": save["seq"] - 1,
        "time_ns": save["time_ns"] - 1,
        "cause": "msi",
        "settled_seq": save["seq"],
    }
    return replace(obs, queueings=more(obs.queueings, msi)), intid


def test_a_pending_lpi_that_is_not_pending_where_it_was_restored() -> None:
    analysis = analysis_of(CLEAN)
    obs, intid = _with_pending(analysis)
    (found,) = of(again(analysis, _restored(analysis, _image(analysis), obs)), "ITS602")

    assert (found.severity, found.confidence, found.intid) == (Severity.ERROR, Confidence.CERTAIN, intid)
    assert found.mechanism == "its bit in the pending table is 0"
    assert found.vm == 1


def test_a_pending_lpi_that_comes_back_pending_is_clean() -> None:
    analysis = analysis_of(CLEAN)
    obs, intid = _with_pending(analysis)
    image = _image(analysis)
    image.pending = {intid}
    found = again(analysis, _restored(analysis, image, obs))

    assert not {"ITS601", "ITS602"} & {one.code for one in found}


def test_pending_tables_that_nobody_saved() -> None:
    analysis = analysis_of(CLEAN)
    obs, _ = _with_pending(analysis)
    unsaved = replace(obs, vm_events=obs.vm_events.filter(pl.col("what") != "save_pending"))
    (found,) = of(again(analysis, _restored(analysis, _image(analysis), unsaved)), "ITS602")

    assert found.mechanism == "the pending tables were not saved"


def test_a_lost_mapping_and_its_lost_pending_state_are_one_story() -> None:
    """ITS602 follows from ITS601: both blame the command that made the mapping."""
    analysis = analysis_of(CLEAN)
    obs, intid = _with_pending(analysis)
    image = _image(analysis)
    image.events = {key: entry for key, entry in image.events.items() if entry[0] != intid}
    found = again(analysis, _restored(analysis, image, obs))
    (cause,), (effect,) = of(found, "ITS601"), of(found, "ITS602")

    assert effect.mechanism == "its mapping did not come back"
    assert effect.caused_by == (cause.id,)
    assert effect.id in cause.leads_to


# --- ITS603


def _orphaned(analysis: Analysis) -> Observations:
    """MAPC V=0 as the last command before the save, while events use the collection."""
    obs = analysis.observations
    last = obs.commands.row(-1, named=True)
    mapc = last | {"seq": last["end_seq"] + 1, "end_seq": last["end_seq"] + 2, "dw1": 0, "dw3": 0}
    mapc |= {"dw0": int(Opcode.MAPC), "dw2": 1}
    return replace(obs, commands=more(obs.commands, mapc))


def _dies(obs: Observations) -> Observations:
    """The task that saves does nothing any more: what a NULL pointer makes of it."""
    seq = last_save(obs)["seq"]
    gone = (pl.col("seq") > seq) & (pl.col("what") == "save_pending")
    return replace(obs, vm_events=obs.vm_events.filter(~gone))


def test_a_save_with_an_orphan_on_a_kernel_without_the_check() -> None:
    analysis = analysis_of(CLEAN)
    obs = _orphaned(analysis)
    (found,) = of(again(analysis, _dies(obs), kernel="6.12.107+deb13-arm64"), "ITS603")
    commands = obs.commands.row(-1, named=True)

    assert (found.severity, found.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert found.mechanism == "saved through a NULL collection"
    assert found.blames == (commands["seq"],)
    assert all(one.intid is not None for one in found.subjects)


@pytest.mark.parametrize(
    ("kernel", "severity", "confidence"),
    [
        ("7.3.4+deb13-arm64", Severity.NOTE, Confidence.CERTAIN),
        ("6.1.192", Severity.NOTE, Confidence.CERTAIN),
        (
            "6.1.0-56-arm64",
            Severity.ERROR,
            Confidence.LIKELY,
        ),  # Debian's: which stable release it is cannot be told
        ("6.14.2", Severity.ERROR, Confidence.LIKELY),
    ],
)
def test_the_kernel_decides_what_an_orphan_does_to_a_save(
    kernel: str, severity: Severity, confidence: Confidence
) -> None:
    analysis = analysis_of(CLEAN)
    (found,) = of(again(analysis, _dies(_orphaned(analysis)), kernel=kernel), "ITS603")

    assert (found.severity, found.confidence) == (severity, confidence)
    assert bool(found.doubt) is (confidence is Confidence.LIKELY)


def test_a_task_that_lives_on_took_no_fault() -> None:
    """Whatever its version says: after the save it saved the pending tables."""
    analysis = analysis_of(CLEAN)
    (found,) = of(again(analysis, _orphaned(analysis), kernel="6.12.107+deb13-arm64"), "ITS603")

    assert (found.severity, found.mechanism) == (Severity.NOTE, "saved as no entry")


def test_an_orphan_that_was_taken_away_before_the_save_is_none() -> None:
    """F12-bug04's guest: its devices are unmapped before the end."""
    analysis = analysis_of(CLEAN)
    obs = _orphaned(analysis)
    last = obs.commands.row(-1, named=True)
    gone: list[dict[str, Any]] = [
        last
        | {"seq": last["end_seq"] + number, "end_seq": last["end_seq"] + number + 1}
        | {"dw0": device << 32 | Opcode.MAPD, "dw1": 0, "dw2": 0}
        for number, device in enumerate(_image(analysis).devices)
    ]
    obs = replace(obs, commands=more(obs.commands, *gone))

    assert not of(again(analysis, _dies(obs)), "ITS603")


@pytest.mark.corpus
def test_the_real_migration_is_clean(corpus: Path) -> None:
    """Saved in one VM, restored in another; mid-life, so that little of what was saved is known."""
    analysis = analysis_of(corpus / "migrate-7.3" / "trace.dat")
    (restored,) = analysis.history.restored

    assert (len(restored.devices), len(restored.events), restored.told) == (7, 15, True)
    assert not {"ITS601", "ITS602", "ITS603"} & {one.code for one in analysis.findings}


@pytest.mark.corpus
def test_a_mapping_of_the_real_migration_that_is_known_by_its_use(corpus: Path) -> None:
    """The source VM's device 0x28 raised MSIs: taken out of what was restored, its mapping is missed, as likely."""
    analysis = analysis_of(corpus / "migrate-7.3" / "trace.dat")
    obs = analysis.observations
    reads = obs.guest_reads.filter((pl.col("size_bytes") == 8) & (pl.col("gpa") == 0x44D85400))
    gone = changed(obs.guest_reads, reads["seq"][0], value=0)
    (found,) = of(again(analysis, replace(obs, guest_reads=gone)), "ITS601")

    assert (found.device_id, found.event_id, found.intid) == (0x28, 0, 8201)
    assert found.confidence is Confidence.LIKELY


@pytest.mark.corpus
def test_a_real_save_with_an_orphan_on_a_kernel_with_the_check(corpus: Path) -> None:
    found = of(analysis_of(corpus / "torture-7.3" / "trace.dat").findings, "ITS603")

    assert [(one.severity, one.device_id, one.event_id) for one in found] == [(Severity.NOTE, 8, 9)]
