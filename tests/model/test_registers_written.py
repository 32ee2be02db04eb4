"""Register writes: what they change, and what they do not."""

from __future__ import annotations

import pytest

from itstrace.gic import commands as build
from itstrace.gic import registers as reg
from itstrace.model import PROFILES, Gic
from itstrace.model import effects as fx

VALID = 1 << 63
CBASER = VALID | 0x4200_0000 | 0  # one page: 128 commands
BASER0, BASER1 = reg.GITS_BASER, reg.GITS_BASER + 8


def gic_with(profile: str = "kvm-6.12") -> Gic:
    """A GIC with one ITS, set up as a driver does, not yet enabled."""
    gic = Gic(PROFILES[profile], vcpus=range(2))
    gic.add_its(0, complete=True)
    gic.write_its(0, BASER0, VALID | 0x4201_0000, 8)
    gic.write_its(0, BASER1, VALID | 0x4202_0000, 8)
    gic.write_its(0, reg.GITS_CBASER, CBASER, 8)
    return gic


def enabled(profile: str = "kvm-6.12") -> Gic:
    """The same, enabled, with an event of device 8 mapped to LPI 8192 and collection 0."""
    gic = gic_with(profile)
    gic.write_its(0, reg.GITS_CTLR, 1, 4)
    for command in (build.mapc(0, 0), build.mapd(8, 0x4300_0000, 5), build.mapti(8, 0, 8192, 0)):
        gic.step(0, command)
    return gic


def test_enable_and_disable() -> None:
    gic = gic_with()
    assert gic.write_its(0, reg.GITS_CTLR, 1, 4) == [fx.ItsEnabled(0)]
    assert gic.write_its(0, reg.GITS_CTLR, 1, 4) == []
    assert gic.write_its(0, reg.GITS_CTLR, 0, 4) == [fx.ItsDisabled(0), fx.CacheInvalidated((0,))]


def test_kvm_does_not_enable_without_tables() -> None:
    gic = gic_with()
    gic.write_its(0, BASER1, 0, 8)
    (ignored,) = gic.write_its(0, reg.GITS_CTLR, 1, 4)
    assert isinstance(ignored, fx.RegisterIgnored)
    assert ignored.reason is fx.RegisterReason.INVALID_TABLES
    assert not gic.its[0].enabled
    unknown = Gic(PROFILES["kvm-6.12"])
    unknown.add_its(0, complete=False)
    assert unknown.write_its(0, reg.GITS_CTLR, 1, 4) == [fx.ItsEnabled(0)]


def test_creadr_follows_and_wraps() -> None:
    gic = gic_with()
    gic.write_its(0, reg.GITS_CTLR, 1, 4)
    its = gic.its[0]
    assert (its.creadr, its.cwriter) == (0, 0)
    for _ in range(127):
        gic.step(0, build.sync(0))
    assert its.creadr == 127 * 32
    gic.skip(0)
    assert its.creadr == 0


def test_cwriter_out_of_range_is_ignored() -> None:
    gic = gic_with()
    (ignored,) = gic.write_its(0, reg.GITS_CWRITER, 4096, 8)
    assert isinstance(ignored, fx.RegisterIgnored)
    assert ignored.reason is fx.RegisterReason.OUT_OF_RANGE
    assert gic.its[0].cwriter == 0


def test_cwriter_unaligned() -> None:
    gic = enabled()
    assert gic.write_its(0, reg.GITS_CWRITER, 0x50, 8) == [fx.CwriterUnaligned(0, 0x50)]
    assert gic.its[0].cwriter == 0x40


def test_cwriter_of_a_disabled_its_leaves_commands_waiting() -> None:
    gic = gic_with()
    gic.write_its(0, reg.GITS_CTLR, 0, 4)
    assert gic.write_its(0, reg.GITS_CWRITER, 0x60, 8) == [fx.CommandsWaiting(0, 0, 0x60)]


@pytest.mark.parametrize("offset", [reg.GITS_CBASER, BASER0, BASER1])
def test_writes_to_an_enabled_its_are_ignored(offset: int) -> None:
    gic = enabled()
    before = gic.clone()
    (ignored,) = gic.write_its(0, offset, 0, 8)
    assert isinstance(ignored, fx.RegisterIgnored)
    assert ignored.reason is fx.RegisterReason.ITS_ENABLED
    assert ignored.register == reg.its_register_name(offset)
    assert gic == before


def test_baser_keeps_type_and_entry_size() -> None:
    gic = gic_with()
    device, collection = (reg.decode_gits_baser(gic.its[0].baser[n] or 0) for n in (0, 1))
    assert (device.table_type, device.entry_size_bytes) == (reg.BASER_TYPE_DEVICE, 8)
    assert (collection.table_type, collection.page_size_bytes) == (reg.BASER_TYPE_COLLECTION, 65536)
    gic.write_its(0, BASER1, VALID | 1 << 62, 8)
    assert not reg.decode_gits_baser(gic.its[0].baser[1] or 0).indirect
    assert gic.write_its(0, reg.GITS_BASER + 16, VALID, 8) == []


@pytest.mark.parametrize("profile", ["kvm-6.1", "kvm-6.12", "kvm-7.3"])
def test_invalid_baser_frees_the_table(profile: str) -> None:
    gic = enabled(profile)
    gic.write_its(0, reg.GITS_CTLR, 0, 4)
    effects = gic.write_its(0, BASER0, 0, 8)
    assert fx.DeviceUnmapped(0, 8, 5, 0x4300_0000) in effects
    assert fx.EventUnmapped(0, 8, 0, 8192, 0) in effects
    assert fx.CollectionUnmapped(0, 0, 0) in gic.write_its(0, BASER1, 0, 8)
    assert not gic.its[0].devices
    assert not gic.its[0].collections


@pytest.mark.parametrize(("profile", "freed"), [("kvm-6.12", False), ("kvm-7.3", True), ("qemu", False)])
def test_changed_baser_frees_the_table_on_7_3(profile: str, freed: bool) -> None:
    gic = enabled(profile)
    gic.write_its(0, reg.GITS_CTLR, 0, 4)
    gic.write_its(0, BASER1, VALID | 0x4205_0000, 8)
    assert (not gic.its[0].collections) == freed


def test_on_7_3_what_changes_a_baser_drops_the_cache_and_what_does_not_does_nothing() -> None:
    """Memory attributes that KVM takes for the ones it had are no change: a driver that starts over keeps its tables."""
    gic = enabled("kvm-7.3")
    gic.write_its(0, reg.GITS_CTLR, 0, 4)
    kept = gic.its[0].baser[1]
    for attributes in (
        0,
        1 << 59,
        3 << 59,
        5 << 53,
    ):  # inner none, non-cacheable, write-back; outer write-back
        assert gic.write_its(0, BASER1, VALID | attributes | 0x4202_0000, 8) == [fx.TableSet(0, 1, kept)]
    assert gic.its[0].collections
    assert gic.write_its(0, BASER1, VALID | 1 << 10 | 0x4202_0000, 8)[1:] == [
        fx.OrphanedCollection(0, 0, ((8, 0, 8192),), permanent=True),
        fx.CollectionUnmapped(0, 0, 0),
        fx.EventOrphaned(0, 8, 0, 8192, 0),
        fx.CacheInvalidated((0,)),
    ]
    same = gic.its[0].baser[1]  # outer shareable counts as inner shareable
    assert gic.write_its(0, BASER1, VALID | 2 << 10 | 0x4202_0000, 8) == [fx.TableSet(0, 1, same)]


def test_an_invalid_collection_table_drops_no_cache_on_6_12() -> None:
    gic = enabled("kvm-6.12")
    gic.write_its(0, reg.GITS_CTLR, 0, 4)
    assert fx.CacheInvalidated((0,)) in gic.write_its(0, BASER0, 0, 8)
    assert not [
        effect for effect in gic.write_its(0, BASER1, 0, 8) if isinstance(effect, fx.CacheInvalidated)
    ]


def test_halves_of_a_register() -> None:
    gic = Gic(PROFILES["kvm-6.12"])
    gic.add_its(0, complete=False)
    gic.write_its(0, reg.GITS_CBASER, 0x4200_0000, 4)
    assert gic.its[0].cbaser is None  # its upper half is unknown
    gic.write_its(0, reg.GITS_CBASER, 0, 8)
    gic.write_its(0, reg.GITS_CBASER, 0x4200_0003, 4)
    (effect,) = gic.write_its(0, reg.GITS_CBASER + 4, 0x8000_0000, 4)
    assert effect == fx.QueueSet(0, 0x4200_0000, 0x4000, valid=True)


def test_halves_of_a_register_that_was_reset() -> None:
    gic = Gic(PROFILES["kvm-6.12"])
    gic.add_its(0, complete=True)
    gic.write_its(0, reg.GITS_CBASER, 0x4200_0003, 4)
    gic.write_its(0, reg.GITS_CBASER + 4, 0xB800_0000, 4)
    assert gic.its[0].cbaser == 0xB8 << 56 | 0x4200_0003


def test_creadr_is_read_only() -> None:
    (ignored,) = gic_with().write_its(0, reg.GITS_CREADR, 0x20, 8)
    assert isinstance(ignored, fx.RegisterIgnored)
    assert ignored.reason is fx.RegisterReason.READ_ONLY


def test_reset() -> None:
    gic = enabled()
    assert fx.DeviceUnmapped(0, 8, 5, 0x4300_0000) in gic.reset_its(0)
    its = gic.its[0]
    assert (its.devices, its.collections, its.enabled) == ({}, {}, False)
    assert [reg.decode_gits_baser(its.baser[n] or 0).valid for n in (0, 1)] == [False, False]
    assert reg.decode_gits_baser(its.baser[0] or 0).table_gpa == 0x4201_0000
    (ignored,) = gic.write_its(0, reg.GITS_CTLR, 1, 4)
    assert isinstance(ignored, fx.RegisterIgnored)
    assert ignored.reason is fx.RegisterReason.INVALID_TABLES


# --- redistributors


def test_enable_lpis_reads_the_pending_table_unless_ptz() -> None:
    gic = enabled()
    assert gic.write_redistributor(0, reg.GICR_CTLR, 1, 4) == [
        fx.LpisEnabled(0, None),
        fx.PendingTableRead(0, None),
    ]
    gic.write_redistributor(1, reg.GICR_PENDBASER, 1 << 62, 8)
    assert gic.write_redistributor(1, reg.GICR_CTLR, 1, 4) == [fx.LpisEnabled(1, False)]
    assert gic.write_redistributor(1, reg.GICR_CTLR, 1, 4) == []


def test_disable_lpis_drops_what_is_pending_and_every_cache() -> None:
    gic = enabled()
    gic.add_its(1, complete=True)
    gic.write_redistributor(0, reg.GICR_CTLR, 1, 4)
    gic.step(0, build.int_(8, 0))
    assert gic.write_redistributor(0, reg.GICR_CTLR, 0, 4) == [
        fx.LpisDisabled(0),
        fx.PendingCleared(8192, 0),
        fx.CacheInvalidated((0, 1)),
    ]


def test_a_disabled_lpi_is_on_no_list_that_disabling_could_empty() -> None:
    gic = enabled()
    gic.configure(8192, 0xA2)
    gic.write_redistributor(0, reg.GICR_CTLR, 1, 4)
    gic.step(0, build.int_(8, 0))
    assert fx.PendingCleared(8192, 0) not in gic.write_redistributor(0, reg.GICR_CTLR, 0, 4)
    assert gic.pending_on(8192) == [0]


def test_propbaser_and_pendbaser_are_fixed_while_lpis_are_on() -> None:
    gic = enabled()
    assert gic.write_redistributor(0, reg.GICR_PROPBASER, 0x4100_000F, 8) == []
    assert gic.write_redistributor(0, reg.GICR_PENDBASER, 0x4101_0000, 8) == []
    gic.write_redistributor(0, reg.GICR_CTLR, 1, 4)
    for offset in (reg.GICR_PROPBASER, reg.GICR_PENDBASER):
        (ignored,) = gic.write_redistributor(0, offset, 0, 8)
        assert isinstance(ignored, fx.RegisterIgnored)
        assert (ignored.reason, ignored.vcpu) == (fx.RegisterReason.LPIS_ENABLED, 0)
    assert gic.propbaser == 0x4100_000F
    assert gic.redistributors[0].pendbaser == 0x4101_0000


def test_invlpir_and_invallr() -> None:
    gic = enabled()
    gic.write_redistributor(0, reg.GICR_CTLR, 1, 4)
    assert gic.write_redistributor(0, reg.GICR_INVLPIR, 8192, 8) == [fx.ConfigRead(8192)]
    assert gic.write_redistributor(0, reg.GICR_INVALLR, 0, 8) == [fx.ConfigRead(8192)]
    (ignored,) = gic.write_redistributor(0, reg.GICR_INVLPIR, 9000, 8)
    assert isinstance(ignored, fx.RegisterIgnored)
    assert ignored.reason is fx.RegisterReason.UNKNOWN_LPI


def test_invlpir_of_what_is_no_lpi() -> None:
    gic = Gic(PROFILES["kvm-6.12"])
    gic.add_its(0, complete=False)
    gic.write_redistributor(0, reg.GICR_CTLR, 1, 4)
    assert gic.write_redistributor(0, reg.GICR_INVLPIR, 9000, 8) == [fx.ConfigRead(9000, certain=False)]
    (ignored,) = gic.write_redistributor(0, reg.GICR_INVLPIR, 27, 8)
    assert isinstance(ignored, fx.RegisterIgnored)


def test_invlpir_with_lpis_off_is_dropped() -> None:
    gic = enabled()
    gic.write_redistributor(0, reg.GICR_CTLR, 0, 4)
    (ignored,) = gic.write_redistributor(0, reg.GICR_INVLPIR, 8192, 8)
    assert isinstance(ignored, fx.RegisterIgnored)
    assert (ignored.reason, ignored.register) == (fx.RegisterReason.LPIS_DISABLED, "GICR_INVLPIR")


def test_registers_that_matter_to_nobody() -> None:
    gic = enabled()
    before = gic.clone()
    assert gic.write_its(0, 0x50, 1, 4) == []
    assert gic.write_redistributor(0, 0x14, 1, 4) == []
    assert gic == before
