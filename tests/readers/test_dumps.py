"""The kernel's dumps: what they say, that three sources of one state agree, how a damaged one is told."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itstrace.errors import DumpError
from itstrace.gic.tables import Cte, Dte, Ite, encode_cte, encode_dte, encode_ite
from itstrace.readers.dumps import ItsState, VgicState, its_base, read_dump
from itstrace.readers.images import MemoryImage, Region, SavedImages, read_guest_ram, read_saved_images
from itstrace.saved_tables import TableRegisters, guest_properties, tables_in_memory, tables_of_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from itstrace.saved_tables import SavedTables
    from itstrace.tables import Tables

_DATA = Path(__file__).parents[2] / "sample-traces" / "7.3-migrate.snapshots" / "postchurn"
_CORPUS = os.environ.get("ITSTRACE_CORPUS")
_VGIC, _ITS, _IMAGES = "vgic-state.stopped", "vgic-its-state@8080000.stopped", "guest-tables"
_FLAT = 0xB800_0000_4101_0600  # GITS_BASER: valid, flat, one page of 64 KiB at 0x41010000
_COLLECTIONS = 0xB800_0000_4102_0600


def vgic_state(path: Path) -> VgicState:
    dump = read_dump(path)
    assert isinstance(dump, VgicState)
    return dump


def its_state(path: Path) -> ItsState:
    dump = read_dump(path)
    assert isinstance(dump, ItsState)
    return dump


def saved_tables(path: Path) -> SavedTables:
    dump = read_dump(path)
    assert isinstance(dump, SavedImages)
    return tables_of_images(dump)


def found(tables: Tables, name: str) -> pl.DataFrame:
    frame: pl.DataFrame | None = getattr(tables, name)
    assert frame is not None
    return frame


# --- what they say


def test_vgic_state_gives_every_lpi() -> None:
    dump = vgic_state(_DATA / _VGIC)
    assert dump.enabled is True
    assert dump.lpis["intid"].to_list() == [*range(8192, 8198), *range(8199, 8204), *range(8205, 8209)]
    assert dump.lpis.filter(pl.col("target_vcpu") == 0)["intid"].to_list() == [8196, 8200]
    assert set(dump.lpis["priority"]) == {192}
    assert dump.lpis["owner_vcpu"].null_count() == dump.lpis.height


def test_vgic_state_gives_flags_and_the_list_that_an_lpi_is_on(tmp_path: Path) -> None:
    """Kernel 6.1 lists LPIs in the order of their making; LPI 8201 is stuck active on vCPU 1."""
    text = (_DATA / _VGIC).read_text().replace("nr_lpis:\t15", "nr_lpis:\t2")
    rows = [
        "       LPI 8201      1 1011001        0        0   0 160       1 ",
        "       LPI 8192     -1 0000001        0        0   0 160      -1 ",
    ]
    path = tmp_path / "vgic-state"
    path.write_text("\n".join([line for line in text.splitlines() if "LPI" not in line] + rows) + "\n")
    lpis = vgic_state(path).lpis.to_dicts()
    assert [row["intid"] for row in lpis] == [8192, 8201]
    assert lpis[1] == {
        "intid": 8201, "target_vcpu": 1, "pending": True, "active": True, "enabled": True, "hw": False,
        "priority": 160, "owner_vcpu": 1,
    }  # fmt: skip
    assert lpis[0]["target_vcpu"] is None
    assert lpis[0]["enabled"] is False


def test_vgic_state_passes_over_an_lpi_that_went_while_it_was_printed(tmp_path: Path) -> None:
    """Kernel: vgic-debug.c:vgic_debug_show prints it as freed (v6.12)."""
    row = "       LPI 8192      1 0001001        0        0   0 192      -1 "
    path = tmp_path / "vgic-state"
    path.write_text((_DATA / _VGIC).read_text().replace(row, "       LPI 8192 freed"))
    assert 8192 not in vgic_state(path).lpis["intid"]


def test_its_state_gives_devices_events_and_the_collections_in_use() -> None:
    dump = its_state(_DATA / _ITS)
    assert dump.base_gpa == 0x8080000
    assert found(dump.tables, "devices").select("device_id", "event_bits").rows()[:2] == [(0x8, 1), (0x10, 2)]
    assert found(dump.tables, "collections").select("icid", "target_vcpu").rows() == [(0, 0), (1, 1)]
    events = found(dump.tables, "events").filter(pl.col("device_id") == 0x10)
    assert events.select("event_id", "intid", "icid", "target_vcpu").rows() == [
        (0, 8195, 1, 1),
        (1, 8196, 0, 0),
        (2, 8197, 1, 1),
    ]


def test_its_state_without_an_event_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "vgic-its-state@8080000"
    path.write_text("")
    tables = its_state(path).tables
    assert all(found(tables, name).is_empty() for name in ("devices", "collections", "events"))


def test_its_state_shows_a_collection_that_no_mapc_mapped_as_without_target(tmp_path: Path) -> None:
    path = tmp_path / _ITS
    path.write_text((_DATA / _ITS).read_text().replace("       0        0  0", "4294967295        0  0"))
    targets = found(its_state(path).tables, "collections")
    assert targets.select("icid", "target_vcpu").rows() == [(0, None), (1, 1)]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("vgic-its-state@8080000", 0x8080000),
        ("vgic-its-state@8080000.stopped", 0x8080000),
        ("vgic-its-state", None),
        ("notes@8080000", None),
    ],
)
def test_the_base_of_the_its_is_in_the_file_name(name: str, base: int | None) -> None:
    assert its_base(Path(name)) == base


# --- three sources of one state


def disagreements(vgic: VgicState, its: ItsState | None, images: SavedTables) -> dict[str, list[Any]]:
    """What `vgic-state`, `vgic-its-state` and the images of one stopped instant say differently.

    Exceptions: `vgic-its-state` leaves out devices and collections without an event.
    """
    events, lpis = found(images.tables, "events"), found(images.tables, "lpis")
    both = vgic.lpis.join(lpis, on="intid", suffix="_image").join(
        events.select("intid", aim="target_vcpu"), on="intid", how="left"
    )
    told: dict[str, list[Any]] = {"problems": list(images.problems)}
    for name in ("enabled", "priority", "pending"):
        told[name] = both.filter(pl.col(name).ne_missing(pl.col(f"{name}_image")))["intid"].to_list()
    told["target"] = both.filter(pl.col("target_vcpu").ne_missing(pl.col("aim")))["intid"].to_list()
    told["objects without event"] = vgic.lpis.join(events, on="intid", how="anti")["intid"].to_list()
    told["events without object"] = events.join(vgic.lpis, on="intid", how="anti")["intid"].to_list()
    if its is not None:
        told["events"] = _apart(found(its.tables, "events"), events)
        devices = found(images.tables, "devices").join(events, on="device_id", how="semi")
        told["devices"] = _apart(found(its.tables, "devices").drop("itt_gpa"), devices.drop("itt_gpa"))
        used = found(images.tables, "collections").join(events, on="icid", how="semi")
        told["collections"] = _apart(found(its.tables, "collections"), used)
    return {what: which for what, which in told.items() if which}


def _apart(one: pl.DataFrame, other: pl.DataFrame) -> list[Any]:
    return [*(set(one.rows()) - set(other.rows())), *(set(other.rows()) - set(one.rows()))]


def test_the_three_sources_agree() -> None:
    images = saved_tables(_DATA / _IMAGES)
    assert disagreements(vgic_state(_DATA / _VGIC), its_state(_DATA / _ITS), images) == {}
    assert found(images.tables, "devices")["itt_gpa"].to_list()[0] == 0x44D85100


#: LPI 8200 was moved by MOVALL, which moves LPIs and leaves collections; and its property byte was written
#: without an INV. 8203 is an orphan: its collection was unmapped. 8201 has no event, is stuck active (6.1).
_KNOWN = {
    "torture-6.1/snap-1a": {"target": [8200], "enabled": [8200]},
    "torture-6.1/snap-done": {"objects without event": [8201]},
    "torture-6.12/snap-1a": {"target": [8200], "enabled": [8200]},
    "torture-7.3/snap-1a": {"target": [8200], "enabled": [8200], "objects without event": [8203]},
}


@pytest.mark.corpus
@pytest.mark.skipif(_CORPUS is None, reason="ITSTRACE_CORPUS names no folder of captures")
def test_the_sources_of_every_snapshot_agree() -> None:
    """Of every stopped snapshot but for what is known of it; and no running one is unreadable."""
    assert _CORPUS is not None
    seen = {}
    for folder in sorted(Path(_CORPUS).glob("*/snap-*")):
        its = sorted(folder.glob("vgic-its-state@*.stopped"))
        one = disagreements(
            vgic_state(folder / _VGIC), its_state(its[0]) if its else None, saved_tables(folder / _IMAGES)
        )
        if one:
            seen[str(folder.relative_to(_CORPUS))] = one
        assert all(read_dump(path) for path in folder.glob("*.running"))
    assert seen == _KNOWN


@pytest.mark.corpus
@pytest.mark.skipif(_CORPUS is None, reason="ITSTRACE_CORPUS names no folder of captures")
def test_the_two_texts_of_every_fault_agree() -> None:
    assert _CORPUS is not None
    for path in sorted(Path(_CORPUS).glob("faults/*/vgic-its-state@*")):
        events = found(its_state(path).tables, "events")
        lpis = vgic_state(path.with_name("vgic-state")).lpis
        assert (
            events.select("intid", "target_vcpu").sort("intid").rows()
            == lpis.select("intid", "target_vcpu").rows()
        )


@pytest.mark.corpus
@pytest.mark.skipif(_CORPUS is None, reason="ITSTRACE_CORPUS names no folder of captures")
def test_guest_memory_holds_the_configuration_that_kvm_read() -> None:
    """The bare-metal guest's configuration table stands at 0x41030000; at the end every INV has been sent.

    Exceptions: F5 keeps KVM from reading it, the guests of F12-… leave out INVs.
    """
    assert _CORPUS is not None
    for path in sorted(Path(_CORPUS).glob("faults/*/guest-ram-*")):
        memory = read_guest_ram(path)
        lpis = vgic_state(path.with_name("vgic-state")).lpis
        told = guest_properties(memory, 0x4103_078F, lpis["intid"])
        read = {
            intid: (enabled, priority)
            for intid, enabled, priority in lpis.select("intid", "enabled", "priority").rows()
        }
        if not path.parent.name.startswith(("F5", "F12")):
            assert told == read, path.parent.name


# --- tables in memory


def words(values: dict[int, int]) -> bytes:
    """Table entries by index, zeros between them."""
    return b"".join(values.get(index, 0).to_bytes(8, "little") for index in range(max(values) + 1))


def in_memory(regions: dict[int, tuple[bytes, int]], *, device_baser: int = _FLAT) -> SavedTables:
    """Tables out of regions of (data, size) by address."""
    memory = MemoryImage(
        Path("image"), tuple(Region("", gpa, size, data) for gpa, (data, size) in regions.items())
    )
    return tables_in_memory(memory, TableRegisters(device_baser, _COLLECTIONS))


_NO_COLLECTIONS = {0x4102_0000: (b"", 65536)}


def test_a_chain_leaps_over_entries_of_earlier_saves() -> None:
    """Device 2 points past the stale device 3 to 5; device 5 is the last, so stale 6 is not there either."""
    devices = {
        2: Dte(valid=True, next_offset=3, itt_gpa=0x5000_0000, event_bits=1),
        3: Dte(valid=True, next_offset=0, itt_gpa=0x5000_0100, event_bits=1),
        5: Dte(valid=True, next_offset=0, itt_gpa=0x5000_0200, event_bits=2),
        6: Dte(valid=True, next_offset=0, itt_gpa=0x5000_0300, event_bits=1),
    }
    itt = words(
        {0: encode_ite(Ite(2, 8192, 0)), 1: encode_ite(Ite(0, 8193, 0)), 2: encode_ite(Ite(0, 8194, 7))}
    )
    saved = in_memory(
        {
            **_NO_COLLECTIONS,
            0x4101_0000: (words({at: encode_dte(dte) for at, dte in devices.items()}), 65536),
            0x5000_0000: (b"", 16),
            0x5000_0200: (itt, 32),
        }
    )
    assert found(saved.tables, "devices")["device_id"].to_list() == [2, 5]
    assert found(saved.tables, "events").select("device_id", "event_id", "intid", "icid").rows() == [
        (5, 0, 8192, 0),
        (5, 2, 8194, 7),
    ]
    assert saved.problems == ["the LPI configuration table cannot be found, so property bytes are not known"]


def test_a_chain_goes_on_in_the_next_page_of_an_indirect_table() -> None:
    """`next` has 14 bits: device 0x10 reaches to 0x400f, and the next valid entry from there on is meant."""
    far = Dte(valid=True, next_offset=0x3FFF, itt_gpa=0x5000_0000, event_bits=1)
    last = Dte(valid=True, next_offset=0, itt_gpa=0x5000_0000, event_bits=1)
    saved = in_memory(
        {
            **_NO_COLLECTIONS,
            0x4101_0000: (
                words({0: 1 << 63 | 0x6000_0000, 2: 1 << 63 | 0x6001_0000, 3: 1 << 63 | 0x6002_0000}),
                65536,
            ),
            0x6000_0000: (words({0x10: encode_dte(far)}), 65536),
            0x6001_0000: (words({0x1: encode_dte(last)}), 65536),  # device 0x4001: leapt over
            0x6002_0000: (words({0x5: encode_dte(last)}), 65536),  # device 0x6005
            0x5000_0000: (b"", 16),
        },
        device_baser=_FLAT | 1 << 62,
    )
    assert found(saved.tables, "devices")["device_id"].to_list() == [0x10, 0x6005]


def test_the_collection_table_ends_with_the_first_invalid_entry() -> None:
    entries = {0: Cte(True, 1, 4), 1: Cte(True, 0xFFFF_FFFF, 2), 2: Cte(False, 0, 9), 3: Cte(True, 0, 3)}
    saved = in_memory(
        {
            0x4101_0000: (b"", 65536),
            0x4102_0000: (words({at: encode_cte(cte) for at, cte in entries.items()}), 65536),
        }
    )
    assert found(saved.tables, "collections").select("icid", "target_vcpu").rows() == [(2, None), (4, 1)]


def test_a_missing_image_is_a_problem_and_not_an_empty_table() -> None:
    device = Dte(valid=True, next_offset=0, itt_gpa=0x5000_0000, event_bits=4)
    saved = in_memory({0x4101_0000: (words({1: encode_dte(device)}), 65536)})
    assert saved.tables.collections is None
    assert found(saved.tables, "events").is_empty()
    assert saved.problems[:2] == [
        "no image of the collection table at 0x41020000",
        "no image of the ITT of device 0x1 at 0x50000000",
    ]


def test_tables_that_map_more_than_an_its_can_are_refused() -> None:
    """Every device of a full table has the same full ITT."""
    devices = {at: encode_dte(Dte(True, 0 if at == 63 else 1, 0x5000_0000, 16)) for at in range(64)}
    itt = words({at: encode_ite(Ite(0 if at == 65535 else 1, 8192 + at % 50000, 0)) for at in range(65536)})
    with pytest.raises(DumpError, match="map too many events"):
        in_memory({**_NO_COLLECTIONS, 0x4101_0000: (words(devices), 65536), 0x5000_0000: (itt, 524288)})


# --- what cannot be read


def test_a_dump_that_is_cut_short_says_so(tmp_path: Path) -> None:
    path = tmp_path / "vgic-state"
    path.write_text("\n".join((_DATA / _VGIC).read_text().splitlines()[:-3]) + "\n")
    with pytest.raises(DumpError, match=r"line 352: it ends after 12 LPIs; expected 15, as nr_lpis says"):
        read_dump(path)
    path.write_text((_DATA / _VGIC).read_text()[:-30])
    with pytest.raises(DumpError, match=r"line 354: not the row of an LPI: '       LPI 8208"):
        read_dump(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; expected vgic-state or vgic-its-state"),
        (b"\x7fELF\x02\x01", "no dump of KVM's"),
        (b"Distributor\nVCPU 0 TYP ID\n", "line 2: columns of another kernel"),
        (b"\nDevice ID: 0x8, Event ID Range: [0 - 30]\n", "line 2: a device twice, or with an odd range"),
        (b"\nDevice ID: 0x8\n", "line 2: not a device"),
        (b"\nDevice ID: 0x8, Event ID Range: [0 - 31]\n 1 2 3\n", "line 3: not an event"),
        (b"\nDevice ID: 0x8, Event ID Range: [0 - 31]\n 32 8192 0 1 1 0\n", "line 3: a number out of range"),
    ],
)
def test_a_file_that_is_no_dump_says_where(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "dump"
    path.write_bytes(content)
    with pytest.raises(DumpError) as caught:
        read_dump(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def broken_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / "tables.json").read_text())
        change(index)
        (folder / "tables.json").write_text(json.dumps(index))

    return apply


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "tables.json").unlink(), "no tables.json in this folder"),
        (lambda folder: (folder / "tables.json").write_text('{"baser0":'), "line 1: no JSON"),
        (lambda folder: (folder / "tables.json").write_text("[" * 100_000), "no JSON that can be read"),
        (lambda folder: (folder / "collections-43a20000.bin").unlink(), "cannot be read"),
        (
            broken_index(lambda index: index.pop("baser0") and index.pop("baser1")),
            "gives no baser0 or baser1",
        ),
        (broken_index(lambda index: index.update(baser0="west")), "baser0 is 'west'"),
        (broken_index(lambda index: index.update(regions=3)), '"regions" is missing or no list'),
        (
            broken_index(lambda index: index["regions"][0].update(file="../vgic-state")),
            "a file in the same folder",
        ),
        (broken_index(lambda index: index["regions"][0].update(size_bytes=8)), "longer than its table"),
        (
            broken_index(lambda index: index["regions"][0].update(size_bytes=1 << 40)),
            '"size_bytes" is 1099511627776',
        ),
        (broken_index(lambda index: index["regions"][0].update(gpa=-1)), '"gpa" is -1'),
    ],
)
def test_a_folder_of_images_that_is_broken_says_how(
    tmp_path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / _IMAGES
    shutil.copytree(_DATA / _IMAGES, folder)
    break_it(folder)
    with pytest.raises(DumpError) as caught:
        read_saved_images(folder)
    assert message in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([_VGIC, _ITS]),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.binary(max_size=12), st.integers(0, 40)), min_size=1, max_size=4
    ),
)
def test_a_damaged_text_is_an_error_and_never_a_traceback(
    tmp_path: Path, name: str, edits: list[tuple[float, bytes, int]]
) -> None:
    content = (_DATA / name).read_bytes()
    for where, put, drop in edits:
        at = int(where * len(content))
        content = content[:at] + put + content[at + drop :]
    path = tmp_path / name
    path.write_bytes(content)
    try:
        read_dump(path)
    except DumpError as error:
        shown = str(error)
    else:
        return
    assert str(path) in shown


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, (1 << 64) - 1)), max_size=30), st.booleans())
def test_any_memory_gives_tables_or_an_error(entries: list[tuple[int, int]], indirect: bool) -> None:
    """Table entries are guest memory: anything may stand there."""
    data = words(dict(entries)) if entries else b""
    regions = dict.fromkeys((1090584576, 1090650112, 0), (data, 65536))
    saved = in_memory(regions, device_baser=_FLAT | indirect << 62)
    assert saved.tables.devices is not None


# --- raw memory


def test_guest_ram_is_read_by_address(tmp_path: Path) -> None:
    content = bytes(range(256)) + bytes(1000) + b"\x07"
    plain, packed = tmp_path / "guest-ram-40f00000.bin", tmp_path / "guest-ram-40f00000.bin.zst"
    plain.write_bytes(content)
    packed.write_bytes(zstandard.ZstdCompressor().compress(content))
    for path in (plain, packed):
        memory = read_guest_ram(path)
        assert memory.read(0x40F0_0004, 4) == b"\x04\x05\x06\x07"
        assert memory.read(0x40F0_0100, 1000) == b""
        assert memory.read(0x40F0_0100, 1002) is None
    assert read_guest_ram(plain, 0x8000).read(0x8001, 1) == b"\x01"


def test_guest_ram_that_is_damaged_or_without_address_says_so(tmp_path: Path) -> None:
    packed = zstandard.ZstdCompressor().compress(os.urandom(4000))
    for name, content, message in (
        ("guest-ram-40f00000.bin.zst", packed[:2000], "cut short"),
        ("guest-ram-40f00000.bin.zst", b"no zstd at all", "cannot be decompressed"),
        ("memory.bin", b"1234", "does not say at which guest address"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DumpError, match=message):
            read_guest_ram(path)
