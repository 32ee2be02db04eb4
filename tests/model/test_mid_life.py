"""A capture that begins when the tables are in use: what is assumed, what is known, what a seed says."""

from __future__ import annotations

import pytest

from itstrace.gic import commands as build
from itstrace.gic.faults import Fault
from itstrace.model import PROFILES, Gic
from itstrace.model import effects as fx

ITT = 0x4300_0000


def running(profile: str = "kvm-6.12") -> Gic:
    """A GIC of which nothing is known."""
    gic = Gic(PROFILES[profile])
    gic.add_its(0, complete=False)
    return gic


def test_a_command_on_unknown_objects_assumes_them() -> None:
    gic = running()
    assert gic.step(0, build.movi(8, 3, 1)) == [
        fx.Assumed(0, fx.Assumption.DEVICE, 8),
        fx.Assumed(0, fx.Assumption.EVENT, 8, 3),
        fx.Assumed(0, fx.Assumption.COLLECTION, icid=1),
        fx.EventMoved(0, 8, 3, None, None, 1),
        fx.CacheInvalidated((0,)),
    ]
    device = gic.its[0].devices[8]
    assert (device.assumed, device.complete, device.event_bits) == (True, False, None)
    assert device.events[3].assumed
    assert (device.events[3].intid, device.events[3].icid) == (None, 1)
    assert gic.its[0].collections[1].target_vcpu is None
    assert gic.step(0, build.inv(8, 3)) == []  # known now, its LPI is not


def test_an_msi_on_unknown_objects() -> None:
    gic = running()
    assert gic.inject(0, 8, 3)[-1] == fx.Resolved(0, 8, 3, None, None, None)


def test_what_was_learned_is_used() -> None:
    gic = running()
    gic.step(0, build.movi(8, 3, 1))
    gic.restore_event(0, 8, 3, 8200, 1)
    assert gic.step(0, build.inv(8, 3)) == [fx.ConfigRead(8200)]
    gic.step(0, build.mapc(1, 1))
    assert gic.inject(0, 8, 3)[-1] == fx.PendingSet(8200, 1)


def test_a_device_whose_mapd_was_seen_is_complete() -> None:
    gic = running()
    gic.step(0, build.mapd(8, ITT, 5))
    (effect,) = gic.step(0, build.movi(8, 3, 1))
    assert isinstance(effect, fx.CommandFaulted)
    assert effect.fault is Fault.MOVI_UNMAPPED_INTERRUPT


def test_what_was_seen_to_go_is_gone() -> None:
    gic = running()
    gic.step(0, build.discard(8, 3))
    assert isinstance(gic.step(0, build.int_(8, 3))[0], fx.CommandFaulted)
    gic.step(0, build.mapd(9, 0, 1, valid=False))
    assert isinstance(gic.step(0, build.int_(9, 0))[0], fx.CommandFaulted)
    gic.step(0, build.mapc(1, 0, valid=False))
    (effect,) = gic.step(0, build.movi(8, 4, 1))
    assert isinstance(effect, fx.CommandFaulted)
    assert effect.fault is Fault.MOVI_UNMAPPED_COLLECTION
    gic.step(0, build.mapc(1, 0))
    assert fx.EventMoved(0, 8, 4, None, None, 1) in gic.step(0, build.movi(8, 4, 1))


def test_what_a_register_write_freed_is_gone() -> None:
    gic = running()
    gic.step(0, build.mapd(8, ITT, 5))
    gic.step(0, build.mapd(9, 0, 1, valid=False))
    gic.step(0, build.mapc(1, 0))
    gic.write_its(0, 0, 0, 4)
    for offset in (0x100, 0x108):
        gic.write_its(0, offset, 0, 8)
    for command in (build.int_(8, 0), build.int_(9, 0), build.invall(1)):
        assert isinstance(gic.step(0, command)[-1], fx.CommandFaulted)


def test_mapti_on_an_unknown_device_takes_the_event_for_new() -> None:
    effects = running().step(0, build.mapti(8, 3, 8200, 1))
    assert fx.Assumed(0, fx.Assumption.EVENT_NEW, 8, 3) in effects
    assert fx.EventMapped(0, 8, 3, 8200, 1, None) in effects
    assert fx.ConfigRead(8200, certain=False) in effects


def test_ranges_hold_for_unknown_objects_too() -> None:
    gic = running()
    for command in (build.movi(0x10000, 0, 0), build.movi(8, 0x10000, 0)):
        (effect,) = gic.step(0, command)
        assert isinstance(effect, fx.CommandFaulted)
    assert not gic.its[0].devices


def test_mapd_that_may_free_a_device_may_drop_the_cache() -> None:
    effects = running().step(0, build.mapd(8, ITT, 5))
    assert effects == [fx.CacheInvalidated((0,), certain=False), fx.DeviceMapped(0, 8, 5, ITT)]


def test_an_its_that_takes_commands_is_enabled() -> None:
    gic = running()
    gic.write_its(0, 0, 0, 4)
    assert gic.step(0, build.sync(0)) == [fx.Assumed(0, fx.Assumption.ITS_ENABLED)]
    assert gic.its[0].enabled


def test_an_unknown_target_stays_unknown() -> None:
    gic = running()
    gic.restore_device(0, 8, ITT, 5)
    gic.restore_collection(0, 0, None)
    gic.restore_event(0, 8, 0, 8192, 0)
    lpi = gic.lpis[8192]
    assert (lpi.target_vcpu, lpi.assumed) == (None, True)
    assert gic.step(0, build.invall(0)) == [fx.ConfigRead(8192, certain=False)]
    gic.set_pending(2, 8192)
    assert fx.PendingMoved(8192, 2, 1) in gic.step(0, build.mapc(0, 1))


def test_a_collection_that_was_saved_without_a_target_has_none() -> None:
    """And not one that is unknown: KVM saves what MAPTI named and no MAPC mapped."""
    gic = running()
    assert gic.restore_collection(0, 5, None, placeholder=True) == [fx.CollectionNamed(0, 5)]
    gic.restore_device(0, 8, ITT, 5)
    gic.restore_event(0, 8, 1, 8200, 5)
    assert isinstance(gic.step(0, build.int_(8, 1))[0], fx.CommandFaulted)
    assert gic.step(0, build.mapc(5, 1))[:2] == [
        fx.CollectionMapped(0, 5, 1),
        fx.LpiRetargeted(8200, None, 1),
    ]


def test_movall_takes_along_what_is_pending_with_unknown_target() -> None:
    gic = running()
    gic.restore_event(0, 8, 0, 8192, None)
    gic.set_pending(0, 8192)
    assert gic.step(0, build.movall(0, 1))[:2] == [
        fx.LpiRetargeted(8192, None, 1),
        fx.PendingMoved(8192, 0, 1),
    ]


@pytest.mark.parametrize("profile", ["kvm-6.12", "architecture"])
def test_a_full_seed_is_as_good_as_having_seen_it(profile: str) -> None:
    seen = Gic(PROFILES[profile])
    seen.add_its(0, complete=True)
    for command in (build.mapc(0, 2), build.mapd(8, ITT, 5), build.mapti(8, 1, 8200, 0)):
        seen.step(0, command)
    seeded = Gic(PROFILES[profile])
    its = seeded.add_its(0, complete=False)
    assert seeded.restore_collection(0, 0, 2) == [fx.CollectionMapped(0, 0, 2)]
    assert seeded.restore_device(0, 8, ITT, 5) == [fx.DeviceMapped(0, 8, 5, ITT)]
    assert seeded.restore_event(0, 8, 1, 8200, 0) == [fx.EventMapped(0, 8, 1, 8200, 0, 2)]
    its.complete = True
    its.enabled = True
    assert seeded.step(0, build.movi(8, 1, 0)) == seen.step(0, build.movi(8, 1, 0))
    assert seeded.its == seen.its
    assert seeded.inject(0, 8, 1) == seen.inject(0, 8, 1)


def test_a_dumps_target_overrides_the_collections() -> None:
    """After MOVALL the two differ (kvm-its-facts B3, R9)."""
    gic = running()
    gic.restore_collection(0, 0, 2)
    gic.restore_event(0, 8, 1, 8200, 0)
    assert gic.restore_lpi(8200, enabled=True, priority=0xA0, target_vcpu=3) == [fx.LpiRetargeted(8200, 2, 3)]
    assert gic.restore_lpi(8200, target_vcpu=3) == []
    assert (gic.lpis[8200].enabled, gic.lpis[8200].priority) == (True, 0xA0)


def test_configure() -> None:
    gic = running()
    gic.configure(8200, 0xA3)
    assert (gic.lpis[8200].enabled, gic.lpis[8200].priority) == (True, 0xA0)
    gic.configure(8200, enabled=False)
    assert (gic.lpis[8200].enabled, gic.lpis[8200].priority) == (False, 0xA0)


def test_a_clone_shares_nothing() -> None:
    gic = running()
    gic.step(0, build.mapti(8, 3, 8200, 1))
    gic.set_pending(0, 8200)
    copy = gic.clone()
    assert copy == gic
    for command in (build.mapti(8, 4, 8201, 1), build.movi(8, 3, 2), build.discard(8, 3), build.mapc(1, 1)):
        copy.step(0, command)
    copy.clear_pending(0, 8200)
    assert copy != gic
    assert set(gic.its[0].devices[8].events) == {3}
    assert set(gic.lpis) == {8200}
    assert gic.pending_on(8200) == [0]
    assert gic != object()
