"""What the kernel's and kvm-unit-tests' own tests do to a vITS, with the outcomes that they expect.

Both the model and the plain ITS go through them, with queues, tables and LPI bytes in the guest's memory; where a test
migrates, KVM's saved bytes are all that comes along.

Source: tools/testing/selftests/kvm/arm64/vgic_lpi_stress.c (v6.10 on) and vgic_its_save.c (v7.3); kvm-unit-tests
1da1819e, arm/gic.c.
"""

from __future__ import annotations

from collections import Counter

import pytest
from helpers.its_pair import (
    BASER,
    CBASER,
    COLLECTIONS,
    CTLR,
    DEVICES,
    GICR_CTLR,
    ITTS,
    LEVEL2,
    PENDBASER,
    PENDING,
    PROPERTIES,
    QUEUE,
    Pair,
)
from helpers.plain_its import EINVAL, KERNELS, VALID

from itstrace.gic import commands as build
from itstrace.gic.registers import decode_gits_baser
from itstrace.gic.tables import decode_dte

POISON = 0xDEADBEEF_DEADBEEF
EVERY_RELEASE = pytest.mark.parametrize("release", KERNELS)
#: Releases that have what vgic_its_save tests.
SAVING = [release for release, kernel in KERNELS.items() if kernel.changed_baser_frees]
PAGE = 65536


def its_init(pair: Pair, *, collection_pages: int = 1) -> None:
    """The selftests' its_init: a queue of 64 KiB, tables, and the ITS on; before it LPIs on at every vCPU."""
    pair.set_up()
    pair.write_its(0, CTLR, 0, 4)
    pair.write_its(0, CBASER, VALID | QUEUE | 15)
    pair.write_its(0, BASER, VALID | DEVICES)
    pair.write_its(0, BASER + 8, VALID | COLLECTIONS | collection_pages - 1)
    pair.write_its(0, CTLR, 1, 4)


# --- vgic_lpi_stress


@EVERY_RELEASE
@pytest.mark.parametrize(("vcpus", "devices", "events"), [(1, 1, 16), (4, 3, 16)])
def test_vgic_lpi_stress(release: str, vcpus: int, devices: int, events: int) -> None:
    """Every KVM_SIGNAL_MSI finds its translation, and every LPI comes on the vCPU whose turn it was."""
    pair = Pair(release, vcpus)
    its_init(pair)
    pair.post(*(build.mapc(icid, icid) for icid in range(vcpus)))
    at = 0
    homes: dict[int, int] = {}
    for device in range(devices):
        pair.post(build.mapd(device, ITTS + device * PAGE, 16))
        for event in range(events):
            homes[8192 + at] = at % vcpus
            pair.post(build.mapti(device, event, 8192 + at, at % vcpus))
            at += 1
    for icid in range(vcpus):
        assert pair.post(build.invall(icid), build.sync(icid)) == [0, 0]
    for _ in range(3):
        for device in range(devices):
            assert [pair.msi(0, device, event) for event in range(events)] == [0] * events
        came = {intid: vcpu for vcpu in range(vcpus) for intid in pair.run(vcpu)}
        assert came == homes


# --- vgic_its_save


@pytest.mark.parametrize("release", SAVING)
def test_vgic_its_save_a_baser_change_drops_the_collections(release: str) -> None:
    """One collection more than the table will hold, and then the table is made smaller."""
    pair = Pair(release, 1)
    its_init(pair, collection_pages=2)
    for start in range(0, 8193, 2000):
        pair.post(*(build.mapc(icid, 0) for icid in range(start, min(start + 2000, 8193))))
    assert len(pair.gic.its[0].collections) == 8193
    pair.write_its(0, CTLR, 0, 4)
    pair.write_its(0, BASER + 8, VALID | COLLECTIONS)
    assert decode_gits_baser(pair.gic.its[0].baser[1] or 0).pages == 1
    assert not pair.gic.its[0].collections
    memory = pair.plain.memory
    for page in range(2):
        memory.write(COLLECTIONS + page * PAGE, POISON.to_bytes(8, "little") * 8192)
    assert pair.plain.save() == 0
    saved = [memory.read_u64(COLLECTIONS + 8 * at) for at in range(2 * 8192)]
    assert saved == [0, *[POISON] * (2 * 8192 - 1)]
    assert not pair.migrated().gic.its[0].collections


def unreachable_device(release: str) -> tuple[Pair, int, int]:
    """Two devices under two level-1 entries, the second of which is then not valid any more."""
    first, second = 0, 8192
    pair = Pair(release, 1)
    pair.set_up(indirect=True)
    assert pair.post(build.mapd(first, ITTS, 13), build.mapd(second, ITTS + PAGE, 13)) == [0, 0]
    for page in range(2):
        pair.plain.memory.write(LEVEL2 + page * PAGE, POISON.to_bytes(8, "little") * 8192)
    pair.plain.memory.write_u64(DEVICES + 8, 0)
    return pair, first, second


@pytest.mark.parametrize("release", SAVING)
def test_vgic_its_save_leaves_out_a_device_that_cannot_be_reached(release: str) -> None:
    pair, first, _ = unreachable_device(release)
    assert pair.plain.save() == 0
    dte = decode_dte(pair.plain.memory.read_u64(LEVEL2))
    assert (dte.valid, dte.next_offset, dte.event_bits, dte.itt_gpa) == (True, 0, 13, ITTS)
    assert pair.plain.memory.read_u64(LEVEL2 + PAGE) == POISON
    assert list(pair.migrated().gic.its[0].devices) == [first]


@EVERY_RELEASE
def test_a_device_that_cannot_be_reached_stays_mapped(release: str) -> None:
    """Until a save: only MAPD looks at the table. Older kernels then fail the save."""
    pair, _, second = unreachable_device(release)
    assert pair.post(build.mapc(0, 0), build.mapti(second, 0, 8192, 0), build.int_(second, 0)) == [0, 0, 0]
    assert pair.post(build.mapd(second, ITTS + PAGE, 13)) == [0x010801]
    assert pair.post(build.mapd(second, ITTS + PAGE, 13, valid=False)) == [0x010801]
    assert second in pair.gic.its[0].devices
    assert pair.plain.save() == (0 if release in SAVING else EINVAL)


# --- kvm-unit-tests, arm/gic.c


def its_setup1(release: str) -> Pair:
    """Two devices, two collections, an event of each device."""
    pair = Pair(release)
    pair.set_up()
    commands = (
        build.mapd(2, ITTS, 8),
        build.mapd(7, ITTS + PAGE, 8),
        build.mapc(3, 3),
        build.mapc(2, 2),
        build.invall(2),
        build.invall(3),
        build.mapti(2, 20, 8195, 3),
        build.mapti(7, 255, 8196, 2),
    )
    for command in commands:
        assert pair.post(command) == [0]
    return pair


def delivered(pair: Pair, *commands: build.Command) -> list[tuple[int, int]]:
    """Commands, one by one; the (LPI, vCPU) that come of them."""
    for command in commands:
        assert pair.post(command) == [0]
    return [(intid, vcpu) for vcpu in range(pair.plain.vcpus) for intid in pair.run(vcpu)]


def write_property(pair: Pair, intid: int, byte: int) -> None:
    """The guest writes a property byte."""
    pair.plain.memory.write(PROPERTIES + intid - 8192, bytes([byte]))


@EVERY_RELEASE
def test_its_trigger(release: str) -> None:
    pair = its_setup1(release)
    assert delivered(pair, build.int_(2, 20)) == [(8195, 3)]
    assert delivered(pair, build.int_(7, 255)) == [(8196, 2)]
    write_property(pair, 8195, 0xA2)
    assert delivered(pair, build.inv(2, 20), build.int_(2, 20)) == []
    write_property(pair, 8195, 0xA3)
    assert delivered(pair, build.int_(2, 20)) == []
    assert delivered(pair, build.invall(3)) == [(8195, 3)]
    assert delivered(pair, build.int_(2, 20)) == [(8195, 3)]
    assert delivered(pair, build.mapd(2, ITTS, 8, valid=False)) == []
    assert pair.post(build.int_(2, 20)) == [0x010307]
    assert delivered(pair) == []


@EVERY_RELEASE
def test_its_migration(release: str) -> None:
    pair = its_setup1(release).migrated()
    assert delivered(pair, build.int_(2, 20)) == [(8195, 3)]
    assert delivered(pair, build.int_(7, 255)) == [(8196, 2)]


@EVERY_RELEASE
def test_its_migrate_unmapped_collection(release: str) -> None:
    """The collection is saved without a vCPU; and the guest's property byte is not touched."""
    pair = its_setup1(release)
    assert delivered(pair, build.mapti(2, 0, 8192, 0)) == []
    pair = pair.migrated()
    assert pair.gic.its[0].collections[0].placeholder
    assert pair.post(build.int_(2, 0)) == [0x010307]
    assert delivered(pair, build.mapc(0, 0), build.invall(0)) == []
    assert delivered(pair, build.int_(7, 255)) == [(8196, 2)]
    assert pair.plain.memory.read(PROPERTIES, 1) == b"\xa3"
    assert delivered(pair, build.int_(2, 0)) == [(8192, 0)]


@EVERY_RELEASE
def test_its_pending_migration(release: str) -> None:
    """256 LPIs, pending by turns in the tables of the last two vCPUs: 128 come on each, on the other host."""
    pair = Pair(release)
    pair.set_up()
    vcpus = pair.plain.vcpus - 1, pair.plain.vcpus - 2
    pair.post(build.mapd(2, ITTS, 8), *(build.mapc(vcpu, vcpu) for vcpu in vcpus))
    for vcpu in vcpus:
        pair.write_redistributor(vcpu, GICR_CTLR, 0)
    tables = {vcpu: bytearray(32) for vcpu in vcpus}
    for event in range(256):
        vcpu = vcpus[event % 2]
        assert pair.post(build.mapti(2, event, 8192 + event, vcpu)) == [0]
        tables[vcpu][event // 8] |= 1 << event % 8
    for vcpu in vcpus:
        pair.plain.memory.write(PENDING + vcpu * PAGE + 8192 // 8, tables[vcpu])
        pair.post(build.invall(vcpu))
    for vcpu in vcpus:
        pair.write_redistributor(vcpu, PENDBASER, PENDING + vcpu * PAGE)
        pair.write_redistributor(vcpu, GICR_CTLR, 1)
    came = delivered(pair.migrated())
    assert Counter(vcpu for _, vcpu in came) == dict.fromkeys(vcpus, 128)
    assert all(vcpu == vcpus[(intid - 8192) % 2] for intid, vcpu in came)
