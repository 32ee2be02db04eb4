"""The sequences of kvm-unit-tests' ITS tests, as vectors: which LPI comes, and on which vCPU.

Source: kvm-unit-tests 1da1819e, arm/gic.c: its_setup1, test_its_trigger, test_its_migration,
test_migrate_unmapped_collection, test_its_pending_migration.
"""

from __future__ import annotations

import pytest

from itstrace.gic import commands as build
from itstrace.gic import registers as reg
from itstrace.model import PROFILES, Gic
from itstrace.model import effects as fx

PROFILE_NAMES = sorted(PROFILES)


class Guest:
    """The guest: its property bytes, commands posted one by one, LPIs taken as they become pending."""

    def __init__(self, profile: str) -> None:
        self.gic = Gic(PROFILES[profile], vcpus=range(4))
        self.gic.add_its(0, complete=True)
        self.properties: dict[int, int] = {}
        for vcpu in range(4):
            self.gic.write_redistributor(vcpu, reg.GICR_CTLR, 1, 4)
        self.gic.write_its(0, reg.GITS_CTLR, 1, 4)

    def post(self, *commands: build.Command) -> list[tuple[int, int]]:
        """Post commands; give the (LPI, vCPU) that are delivered. Nothing may fault."""
        for command in commands:
            for effect in self.gic.step(0, command):
                assert not isinstance(effect, fx.CommandFaulted), effect
                if isinstance(effect, fx.ConfigRead):
                    self.gic.configure(effect.intid, self.properties.get(effect.intid, 0))
        return self.deliver()

    def deliver(self) -> list[tuple[int, int]]:
        """Every vCPU takes what is pending and enabled."""
        taken = [
            (intid, vcpu)
            for vcpu, one in sorted(self.gic.redistributors.items())
            for intid in sorted(one.pending)
            if self.gic.lpis[intid].enabled
        ]
        for intid, vcpu in taken:
            self.gic.take(vcpu, intid)
        return taken


def setup1(profile: str) -> Guest:
    guest = Guest(profile)
    guest.properties |= {8195: 0xA3, 8196: 0xA3}
    delivered = guest.post(
        build.mapd(2, 0x4300_0000, 8),
        build.mapd(7, 0x4301_0000, 8),
        build.mapc(3, 3),
        build.mapc(2, 2),
        build.invall(2),
        build.invall(3),
        build.mapti(2, 20, 8195, 3),
        build.mapti(7, 255, 8196, 2),
    )
    assert not delivered
    # Profiles without objects for LPIs read the configuration when an invalidation tells them to.
    for vcpu in (2, 3):
        guest.post(build.invall(vcpu))
    return guest


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_its_trigger(profile: str) -> None:
    guest = setup1(profile)
    assert guest.post(build.int_(2, 20)) == [(8195, 3)]
    assert guest.post(build.int_(7, 255)) == [(8196, 2)]

    guest.properties[8195] &= ~1
    guest.post(build.inv(2, 20))
    assert guest.post(build.int_(2, 20)) == []  # disabled: stays pending

    guest.properties[8195] |= 1
    assert guest.post(build.int_(2, 20)) == []  # enabled in memory, which nobody has read
    assert guest.post(build.invall(3)) == [(8195, 3)]  # exactly one
    assert guest.post(build.int_(2, 20)) == [(8195, 3)]

    guest.post(build.mapd(2, 0, 8, valid=False))
    effects = guest.gic.step(0, build.int_(2, 20))
    assert isinstance(effects[0], fx.CommandFaulted)
    assert guest.deliver() == []


def migrated(guest: Guest) -> Guest:
    """The guest on a new host: tables and property bytes read back, collections first, as KVM does."""
    other = Guest(guest.gic.profile.name)
    other.properties = guest.properties
    source = guest.gic.its[0]
    for collection in source.collections.values():
        # One that nothing has mapped yet is saved as well. Kernel: vgic-its.c:vgic_its_save_collection_table
        other.gic.restore_collection(
            0, collection.icid, collection.target_vcpu, placeholder=collection.placeholder
        )
    for device in source.devices.values():
        other.gic.restore_device(0, device.device_id, device.itt_gpa, device.event_bits)
        for ite in device.events.values():
            assert ite.intid is not None
            other.gic.restore_event(0, device.device_id, ite.event_id, ite.intid, ite.icid)
            other.gic.configure(ite.intid, other.properties.get(ite.intid, 0))
    return other


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_its_migration(profile: str) -> None:
    guest = migrated(setup1(profile))
    assert guest.post(build.int_(2, 20)) == [(8195, 3)]
    assert guest.post(build.int_(7, 255)) == [(8196, 2)]


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_its_migrate_unmapped_collection(profile: str) -> None:
    guest = setup1(profile)
    guest.properties[8192] = 0xA3
    guest.post(build.mapti(2, 0, 8192, 0))
    guest = migrated(guest)
    guest.post(build.mapc(0, 0), build.invall(0))
    assert guest.post(build.int_(7, 255)) == [(8196, 2)]
    assert guest.post(build.int_(2, 0)) == [(8192, 0)]


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_its_pending_migration(profile: str) -> None:
    """256 LPIs set pending in the tables of two vCPUs by turns: 128 come on each."""
    guest = Guest(profile)
    guest.post(build.mapd(2, 0x4300_0000, 16), build.mapc(3, 3), build.mapc(2, 2))
    for vcpu in (2, 3):
        guest.gic.write_redistributor(vcpu, reg.GICR_CTLR, 0, 4)
    for at in range(256):
        guest.properties[8192 + at] = 0xA3
        guest.post(build.mapti(2, at, 8192 + at, 3 if at % 2 else 2))
    guest.post(build.invall(2), build.invall(3))
    for vcpu in (2, 3):
        guest.gic.write_redistributor(vcpu, reg.GICR_PENDBASER, 0x4401_0000, 8)
        effects = guest.gic.write_redistributor(vcpu, reg.GICR_CTLR, 1, 4)
        assert effects == [fx.LpisEnabled(vcpu, True), fx.PendingTableRead(vcpu, None)]
        for at in range(256):
            if at % 2 == vcpu % 2:
                guest.gic.set_pending(vcpu, 8192 + at)
    delivered = guest.deliver()
    assert [sum(vcpu == which for _, vcpu in delivered) for which in (2, 3)] == [128, 128]
