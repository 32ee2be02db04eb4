"""The replay against the kernel's own word: real captures entry for entry, and what differences look like."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
import zstandard

from itstrace import analyze
from itstrace.compare import COMPARISONS, Pair
from itstrace.errors import ExitCode, UsageError
from itstrace.instants import parse_instant
from itstrace.readers.images import read_guest_ram
from itstrace.saved_tables import guest_properties, table_registers, tables_in_memory
from itstrace.seed import combine_seeds, load_seed, split_seed
from itstrace.tables import EVENT_ROWS
from itstrace.verify import verify

if TYPE_CHECKING:
    from itstrace.analysis import Analysis
    from itstrace.seed import Seed
    from itstrace.verify import Comparison

_SAMPLES = Path(__file__).parents[1] / "sample-traces"
_SNAPSHOTS = _SAMPLES / "7.3-migrate.snapshots"
_RESTORED = _SNAPSHOTS / "restored"
_ITS = "vgic-its-state@8080000.stopped"
_DUMPS = ("vgic-state.stopped", _ITS, "guest-tables")


@cache
def sample(name: str) -> Analysis:
    return analyze(_SAMPLES / name)


def at(analysis: Analysis, marker: str) -> int:
    return parse_instant(marker, analysis.start_ns, analysis.end_ns, analysis.observations.markers)


def restored(*dumps: Path, vm: int | None = None) -> Comparison:
    """A comparison with the state of the migrated guest, just after it was restored."""
    analysis = sample("7.3-migrate.dat")
    return verify(analysis, dumps, at(analysis, "SNAP restored stopped"), vm=vm)


def told(comparison: Comparison) -> list[tuple[str, ...]]:
    """Differences, as (what, key, field, replay, kernel)."""
    return comparison.differences.select("what", "key", "field", "replay", "kernel").rows()


def changed(folder: Path, name: str, old: str, new: str) -> Path:
    """A dump of the restored guest in which one thing is different."""
    text = (_RESTORED / name).read_text()
    assert text.count(old) == 1
    path = folder / name
    path.write_text(text.replace(old, new))
    return path


# --- sample captures


@pytest.mark.parametrize("name", ["restored", "postchurn"])
@pytest.mark.parametrize("dump", _DUMPS)
def test_a_migrated_guest_is_as_the_kernel_says(name: str, dump: str) -> None:
    """Its tables were restored from memory, and never appear as commands."""
    analysis = sample("7.3-migrate.dat")
    comparison = verify(analysis, [_SNAPSHOTS / name / dump], at(analysis, f"SNAP {name} stopped"))
    assert told(comparison) == []
    assert comparison.count("unknown") == 0
    assert comparison.count("equal") >= 39
    assert comparison.exit_code is ExitCode.DONE


@pytest.mark.parametrize("name", ["6.12-clean", "6.12-double-delivery"])
def test_the_end_is_just_before_the_teardown(name: str) -> None:
    comparison = verify(sample(f"{name}.dat"), [_SAMPLES / f"{name}.vgic-state"])
    assert told(comparison) == []
    assert comparison.count("equal") >= 24


def test_a_dump_of_another_time_differs() -> None:
    """Later, drivers were bound anew: other ITTs, other targets."""
    analysis = sample("7.3-migrate.dat")
    comparison = verify(
        analysis, [_RESTORED / name for name in _DUMPS], at(analysis, "SNAP postrebind stopped")
    )
    assert {(what, field) for what, _, field, _, _ in told(comparison)} == {
        ("lpi", "target_vcpu"),
        ("event", "icid"),
    }
    assert comparison.rows["verdict"].to_list()[0] == "different"
    assert comparison.exit_code is ExitCode.DIFFERENCE


# --- one thing is different


def test_every_field_of_an_lpi_is_compared(tmp_path: Path) -> None:
    row = "       LPI 8202      1 0001001        0        0   0 192      -1 "
    dump = changed(
        tmp_path, _DUMPS[0], row, "       LPI 8202      0 1000001        0        0   0 160       0 "
    )
    assert told(restored(dump)) == [
        ("lpi", "8202", "target_vcpu", "1", "0"),
        ("lpi", "8202", "enabled", "yes", "no"),
        ("lpi", "8202", "priority", "192", "160"),
        ("lpi", "8202", "pending", "no", "yes"),
    ]


def test_an_lpi_that_only_one_side_has_is_a_difference(tmp_path: Path) -> None:
    dump = changed(tmp_path, _DUMPS[0], "LPI 8202 ", "LPI 8300 ")
    assert told(restored(dump)) == [
        ("lpi", "8202", "mapped", "yes", "no"),
        ("lpi", "8300", "mapped", "no", "yes"),
    ]


def test_every_field_of_a_device_and_an_event_is_compared(tmp_path: Path) -> None:
    old = "       1     8202        0        1        1  0"
    moved = changed(tmp_path, _ITS, old, "       1     8300        0        0        0  0")
    assert told(restored(moved)) == [
        ("event", "0x28:1", "intid", "8202", "8300"),
        ("event", "0x28:1", "icid", "1", "0"),
    ]
    gone = changed(tmp_path, _ITS, old + "\n", "")
    assert told(restored(gone)) == [("event", "0x28:1", "mapped", "yes", "no")]
    larger = changed(tmp_path, _ITS, "0x28, Event ID Range: [0 - 3]", "0x28, Event ID Range: [0 - 7]")
    assert told(restored(larger)) == [("device", "0x28", "event_bits", "2", "3")]
    other = changed(tmp_path, _ITS, "Device ID: 0x28,", "Device ID: 0x29,")
    assert ("device", "0x28", "mapped", "yes", "no") in told(restored(other))
    assert ("device", "0x29", "mapped", "no", "yes") in told(restored(other))


def test_every_collection_of_the_images_is_compared(tmp_path: Path) -> None:
    folder = tmp_path / "guest-tables"
    shutil.copytree(_RESTORED / "guest-tables", folder)
    table = folder / "collections-43a20000.bin"
    table.write_bytes(table.read_bytes()[:8])
    assert told(restored(folder)) == [("collection", "1", "mapped", "yes", "no")]


def test_a_property_byte_that_kvm_has_not_read_is_a_note(tmp_path: Path) -> None:
    """The guest's memory is no word of KVM's: it may change at any time, and counts from the next INV on."""
    folder = tmp_path / "guest-tables"
    shutil.copytree(_RESTORED / "guest-tables", folder)
    table = folder / "lpi-config-43a30000.bin"
    content = bytearray(table.read_bytes())
    content[8202 - 8192] ^= 1
    table.write_bytes(content)
    comparison = restored(folder)
    assert told(comparison) == []
    assert [note for note in comparison.notes if "LPI 8202 is disabled in the guest's memory" in note]


# --- whose dump it is


def test_what_the_capture_does_not_show_is_unknown() -> None:
    """Before the guest was moved no command was seen: nothing of its tables is known but by use."""
    analysis = sample("7.3-migrate.dat")
    comparison = verify(analysis, [_RESTORED / _ITS], at(analysis, "SNAP pre stopped"))
    assert told(comparison) == []
    assert comparison.count("unknown") >= 24
    assert "the capture does not show all that was mapped" in set(comparison.rows["reason"])


def test_nothing_to_compare_is_not_equal(tmp_path: Path) -> None:
    """No ITS of the capture has that base."""
    other = tmp_path / "vgic-its-state@9000000"
    shutil.copyfile(_RESTORED / _ITS, other)
    comparison = restored(other)
    assert comparison.rows.schema == COMPARISONS
    assert comparison.rows.is_empty()
    assert comparison.exit_code is ExitCode.UNREADABLE
    assert comparison.notes == (f"{other}: the capture shows no VM that it could be of",)


def test_a_dump_that_fits_two_vms_asks_which(tmp_path: Path) -> None:
    """Both VMs of the migration are known at the end, and a dump without an LPI fits both."""
    text = (_RESTORED / _DUMPS[0]).read_text().replace("nr_lpis:\t15", "nr_lpis:\t0")
    path = tmp_path / "vgic-state"
    path.write_text("\n".join(line for line in text.splitlines() if "LPI" not in line))
    analysis = sample("7.3-migrate.dat")
    with pytest.raises(UsageError, match="could be of VM 0, VM 1\n  try: say which with --vm N"):
        verify(analysis, [path])
    assert verify(analysis, [path], vm=1).count("different") == 15
    with pytest.raises(UsageError, match="the capture has no VM 7"):
        verify(analysis, [path], vm=7)
    with pytest.raises(UsageError, match="no ITS 3"):
        verify(analysis, [_RESTORED / _ITS], vm=1, its=3)


# --- pairs of entries


def pair(replay: list[tuple[int | None, bool]], kernel: list[int | None], *, complete: bool = True) -> Pair:
    """Collections 0, 1, ... with their targets on both sides."""
    ours = pl.DataFrame(
        {
            "icid": range(len(replay)),
            "target_vcpu": [target for target, _ in replay],
            "assumed": [assumed for _, assumed in replay],
        },
        schema_overrides={"target_vcpu": pl.Int32, "icid": pl.UInt32, "assumed": pl.Boolean},
    )
    theirs = pl.DataFrame(
        {"icid": range(len(kernel)), "target_vcpu": kernel},
        schema_overrides={"target_vcpu": pl.Int32, "icid": pl.UInt32},
    )
    return Pair("collection", ours, theirs, ["icid"], ["target_vcpu"], complete)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((1, False), 1, "equal"),
        ((1, False), 0, "different"),
        ((1, True), 1, "equal"),
        ((1, True), 0, "unknown"),  # it may have been set anew unseen
        ((None, True), 0, "unknown"),
        ((None, False), 0, "different"),  # a placeholder: known to have none
        ((None, False), None, "equal"),
        ((1, False), None, "different"),
    ],
)
def test_a_verdict_needs_both_sides_to_know(
    ours: tuple[int | None, bool], theirs: int | None, verdict: str
) -> None:
    rows = pair([ours], [theirs]).compare(pl.lit(None, pl.String))
    assert rows["verdict"].to_list() == [verdict]
    assert rows["reason"].is_null().to_list() == [verdict != "unknown"]


def test_an_entry_of_one_side_is_a_difference_only_if_the_other_must_have_it() -> None:
    none = pl.lit(None, pl.String)
    assert pair([(1, False)], []).compare(none)["verdict"].to_list() == ["different"]
    assert pair([(1, True)], []).compare(none)["verdict"].to_list() == ["unknown"]
    assert pair([(1, False)], []).compare(pl.lit("left out"))["reason"].to_list() == ["left out"]
    assert pair([], [1]).compare(none)["verdict"].to_list() == ["different"]
    assert pair([], [1], complete=False).compare(none)["verdict"].to_list() == ["unknown"]


def test_lost_records_take_the_word_of_single_records() -> None:
    ours = pl.DataFrame({"intid": [8192], "enabled": [True], "target_vcpu": [1], "assumed": [False]})
    theirs = pl.DataFrame({"intid": [8192], "enabled": [False], "target_vcpu": [0]})
    both = Pair("lpi", ours, theirs, ["intid"], ["enabled", "target_vcpu"], complete=True)
    rows = both.compare(pl.lit(None, pl.String), "records were lost before")
    assert rows.select("field", "verdict").rows() == [("enabled", "unknown"), ("target_vcpu", "different")]


# --- seeds


def test_a_seed_may_have_an_instant_and_its_name_an_at(tmp_path: Path) -> None:
    path = tmp_path / "vgic-its-state@8080000.stopped"
    path.write_text("")
    assert split_seed(str(path)) == (path, None)
    assert split_seed(f"{path}@SNAP a@b") == (path, "SNAP a@b")
    with pytest.raises(UsageError, match="no such file or folder"):
        split_seed(str(tmp_path / "vgic-state@5"))
    assert load_seed(f"{path}@+1", len).at_ns == 2
    assert load_seed(str(path)).base_gpa == 0x8080000


def test_seeds_of_one_instant_are_one_seed() -> None:
    """Where the memory's property byte and KVM's own word differ, KVM's counts."""
    folder = _SNAPSHOTS / "restored"
    vgic, its, images = (load_seed(str(folder / name)) for name in _DUMPS)
    seed = combine_seeds([its, images, vgic])
    assert seed is not None
    assert seed.base_gpa == 0x8080000
    assert seed.whole
    assert not its.whole
    assert seed.tables.devices is not None
    assert seed.tables.devices["itt_gpa"].null_count() == 0
    assert seed.tables.lpis is not None
    assert seed.tables.lpis["target_vcpu"].null_count() == 0
    assert seed.tables.lpis["mapped"].all()
    assert seed.tables.events is not None
    assert seed.tables.events.schema == EVENT_ROWS
    assert combine_seeds([]) is None


def test_seeds_of_different_instants_or_itss_are_wrong_usage(tmp_path: Path) -> None:
    other = tmp_path / "vgic-its-state@9000000"
    other.write_text("")
    spec = str(_RESTORED / _ITS)
    with pytest.raises(UsageError, match="different instants"):
        combine_seeds([load_seed(spec), load_seed(f"{spec}@5", lambda _: 5)])
    with pytest.raises(UsageError, match="different ITSs: 0x8080000, 0x9000000"):
        combine_seeds([load_seed(spec), load_seed(str(other))])


# --- the corpus: every capture that has a dump


def snapshots(folder: Path, analysis: Analysis, seed: Seed | None = None) -> dict[str, list[tuple[str, ...]]]:
    """Differences at every stopped snapshot that the capture marks."""
    found = {}
    for each in sorted(folder.glob("snap-*")):
        name = each.name.removeprefix("snap-")
        dumps = [*sorted(each.glob("*.stopped")), each / "guest-tables"]
        comparison = verify(analysis, dumps, at(analysis, f"SNAP {name} stopped"), seed=seed)
        assert comparison.exit_code is not ExitCode.UNREADABLE
        if comparison.count("different"):
            found[name] = told(comparison)
    return found


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["boot-6.12", "torture-6.1", "torture-6.12", "torture-7.3", "migrate-7.3"])
def test_every_snapshot_is_as_the_kernel_says(corpus: Path, name: str) -> None:
    assert snapshots(corpus / name, analyze(corpus / name / "trace.dat")) == {}


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["mono-v6", "local-none"])
@pytest.mark.parametrize(
    "seeds", [(), ("vgic-state.stopped",), ("guest-tables",), ("vgic-state.stopped", "guest-tables")]
)
def test_a_capture_that_begins_mid_life_ends_as_the_kernel_says(
    corpus: Path, tmp_path: Path, name: str, seeds: tuple[str, ...]
) -> None:
    folder = corpus / "forms-6.12"
    capture = tmp_path / f"{name}.dat"
    with (folder / f"{name}.dat.zst").open("rb") as packed, capture.open("wb") as unpacked:
        zstandard.ZstdDecompressor().copy_stream(packed, unpacked)
    seed = combine_seeds([load_seed(str(folder / f"snap-{name}-start" / one)) for one in seeds])
    analysis = analyze(capture, seed=seed)
    end = folder / f"snap-{name}-end"
    comparison = verify(analysis, [end / "vgic-state.stopped", end / "guest-tables"], seed=seed)
    assert told(comparison) == []
    assert comparison.count("equal") >= 90
    assert (comparison.count("unknown") == 0) == ("guest-tables" in seeds)


#: What the end of a faulty capture differs in: LPIs of which the analysis itself says that they went astray.
_FAULTY = {
    # 6.12's own bug: MOVALL 0->1 moved the LPIs of vCPU 2 as well.
    "F11-movall-612": [("lpi", str(intid), "target_vcpu", "2", "0") for intid in range(8198, 8202)],
    # KVM was made to ignore MOVIs; the one before the last of 8192 was the last in that time.
    "F9a-612": [("lpi", "8192", "target_vcpu", "1", "0")],
}


def _faults(corpus: Path) -> list[Path]:
    return sorted(path.parent for path in corpus.glob("faults/*/vgic-state"))


@pytest.mark.corpus
def test_every_fault_capture_ends_as_the_kernel_says_or_as_its_findings_do(corpus: Path) -> None:
    seen = {}
    for folder in _faults(corpus):
        start = folder / "vgic-state.start"
        seed = combine_seeds([load_seed(str(start))] if start.exists() else [])
        analysis = analyze(folder / "trace.dat", seed=seed)
        # The dump was read between these two times; the guest waits.
        taken_ns = int(json.loads((folder / "truth.json").read_text())["oracle_between"][0] * 1e9)
        dumps = [folder / "vgic-state", *sorted(folder.glob("vgic-its-state@*"))]
        comparison = verify(analysis, dumps, taken_ns, seed=seed)
        assert comparison.exit_code is not ExitCode.UNREADABLE, folder.name
        if comparison.count("different"):
            seen[folder.name] = told(comparison)
        host = [finding for finding in analysis.findings if finding.kind == "host"]
        named = {subject.intid for finding in host for subject in finding.subjects}
        assert {int(key) for _, key, *_ in told(comparison)} <= named, folder.name
    assert seen == _FAULTY


@pytest.mark.corpus
def test_the_configuration_in_guest_memory_is_found_by_the_capture_s_register_writes(corpus: Path) -> None:
    """The images were taken before KVM saved its tables, so of those they hold nothing."""
    for path in sorted(corpus.glob("faults/clean-*/guest-ram-*")):
        analysis = analyze(path.with_name("trace.dat"))
        vm, its = analysis.observations.itss.select("vm", "its").row(0)
        registers = table_registers(analysis.observations, vm, its)
        assert len(registers.pendbasers) == 2
        memory = read_guest_ram(path)
        saved = tables_in_memory(memory, registers)
        assert saved.problems == []
        assert saved.tables.devices is not None
        assert saved.tables.devices.is_empty()
        lpis = analysis.at(None, vm).lpis
        assert lpis is not None
        lpis = lpis.filter("mapped")
        read = {
            intid: (on, priority)
            for intid, on, priority in lpis.select("intid", "enabled", "priority").rows()
        }
        assert guest_properties(memory, registers.propbaser, read) == read
