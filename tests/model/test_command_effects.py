"""Commands, one by one: what they do, what they refuse, and that a refusal changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itstrace.gic import commands as build
from itstrace.gic.commands import Command, Opcode
from itstrace.gic.faults import Fault
from itstrace.model import PROFILES, Gic
from itstrace.model import effects as fx

ITT = 0x4300_0000
KVM = ("kvm-6.1", "kvm-6.12", "kvm-7.3")


def gic_with(profile: str = "kvm-6.12", *, complete: bool = True, vcpus: int = 4) -> Gic:
    """A GIC with one ITS, key 0, and nothing mapped."""
    gic = Gic(PROFILES[profile], vcpus=range(vcpus))
    gic.add_its(0, 0x0808_0000, complete=complete)
    return gic


def mapped(profile: str = "kvm-6.12") -> Gic:
    """Collections 0 and 1 to vCPUs 0 and 1; device 8, event 0 to LPI 8192 by way of collection 0."""
    gic = gic_with(profile)
    run(gic, build.mapc(0, 0), build.mapc(1, 1), build.mapd(8, ITT, 5), build.mapti(8, 0, 8192, 0))
    return gic


def run(gic: Gic, *commands: Command) -> list[fx.Effect]:
    """The effects of commands."""
    return [effect for command in commands for effect in gic.step(0, command)]


def only(effects: list[fx.Effect], kind: type[fx.Effect]) -> list[fx.Effect]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def fault_of(effects: list[fx.Effect]) -> Fault | None:
    """The fault of a command that did nothing but fault."""
    (effect,) = effects
    assert isinstance(effect, fx.CommandFaulted)
    return effect.fault


# --- MAPD


def test_mapd_maps_and_unmaps() -> None:
    gic = gic_with()
    assert run(gic, build.mapd(8, ITT, 5)) == [fx.DeviceMapped(0, 8, 5, ITT)]
    assert run(gic, build.mapd(8, 0, 1, valid=False)) == [
        fx.DeviceUnmapped(0, 8, 5, ITT),
        fx.CacheInvalidated((0,)),
    ]
    assert not gic.its[0].devices


@pytest.mark.parametrize("profile", PROFILES)
def test_mapd_v0_forgets_all_events(profile: str) -> None:
    gic = mapped(profile)
    run(gic, build.mapti(8, 1, 8193, 1))
    effects = run(gic, build.mapd(8, 0, 1, valid=False))
    assert only(effects, fx.EventUnmapped) == [
        fx.EventUnmapped(0, 8, 0, 8192, 0),
        fx.EventUnmapped(0, 8, 1, 8193, 1),
    ]
    assert not gic.lpis[8192].mapped_by
    assert isinstance(run(gic, build.int_(8, 0))[0], fx.CommandFaulted)


def test_mapd_of_an_unmapped_device_is_no_error() -> None:
    assert run(gic_with(), build.mapd(8, 0, 1, valid=False)) == []


def test_mapd_v1_over_a_live_device_frees_it_first() -> None:
    gic = mapped()
    effects = run(gic, build.mapd(8, ITT + 0x1000, 4))
    assert effects == [
        fx.LiveDeviceRemapped(0, 8, ((0, 8192),)),
        fx.DeviceUnmapped(0, 8, 5, ITT),
        fx.EventUnmapped(0, 8, 0, 8192, 0),
        fx.CacheInvalidated((0,)),
        fx.DeviceMapped(0, 8, 4, ITT + 0x1000),
    ]
    assert not gic.its[0].devices[8].events


def test_mapd_finds_in_memory_what_its_itt_held_on_qemu() -> None:
    """As far as the new size reaches; another ITT is another table."""
    gic = mapped("qemu")
    run(gic, build.mapti(8, 3, 8193, 1))
    again = run(gic, build.mapd(8, ITT, 1))
    assert only(again, fx.LiveDeviceRemapped) == [
        fx.LiveDeviceRemapped(0, 8, ((0, 8192), (3, 8193)), kept=True)
    ]
    assert only(again, fx.EventMapped) == [fx.EventMapped(0, 8, 0, 8192, 0, 0)]
    other = run(gic, build.mapd(8, ITT + 0x1000, 5))
    assert only(other, fx.LiveDeviceRemapped) == [fx.LiveDeviceRemapped(0, 8, ((0, 8192),), kept=False)]
    assert only(other, fx.EventMapped) == []


def test_mapd_leaves_what_is_pending() -> None:
    gic = mapped()
    run(gic, build.int_(8, 0), build.mapd(8, 0, 1, valid=False))
    assert gic.pending_on(8192) == [0]


@pytest.mark.parametrize("profile", KVM)
def test_mapd_device_beyond_16_bits(profile: str) -> None:
    assert fault_of(run(gic_with(profile), build.mapd(0x10000, ITT, 5))) is Fault.MAPD_DEVICE_OOR


def test_mapd_device_beyond_the_table() -> None:
    gic = gic_with()
    gic.write_its(0, 0x100, 1 << 63 | 0x4200_0000, 8)  # flat, one page of 64 KiB: 8192 entries
    assert run(gic, build.mapd(8191, ITT, 5)) == [fx.DeviceMapped(0, 8191, 5, ITT)]
    assert fault_of(run(gic, build.mapd(8192, ITT, 5))) is Fault.MAPD_DEVICE_OOR


def test_mapd_device_under_an_invalid_level1_entry() -> None:
    gic = gic_with()
    gic.write_its(0, 0x100, 3 << 62 | 0x4200_0000, 8)
    gic.its[0].l1_valid[1] = False
    assert run(gic, build.mapd(8191, ITT, 5))
    assert fault_of(run(gic, build.mapd(8192, ITT, 5))) is Fault.MAPD_DEVICE_OOR
    assert run(gic, build.mapd(16384, ITT, 5)) == [fx.DeviceMapped(0, 16384, 5, ITT)]


def test_mapd_itt_too_large_only_if_valid() -> None:
    assert fault_of(run(gic_with(), build.mapd(8, ITT, 17))) is Fault.MAPD_ITTSIZE_OOR
    assert run(gic_with(), build.mapd(8, ITT, 17, valid=False)) == []
    qemu = gic_with("qemu")
    assert fault_of(run(qemu, build.mapd(8, ITT, 17, valid=False))) is Fault.MAPD_ITTSIZE_OOR


# --- MAPC


def test_mapc_new_and_retarget() -> None:
    gic = mapped()
    assert run(gic, build.mapc(2, 3)) == [fx.CollectionMapped(0, 2, 3)]
    run(gic, build.int_(8, 0))
    assert run(gic, build.mapc(0, 2)) == [
        fx.CollectionRetargeted(0, 0, 0, 2),
        fx.LpiRetargeted(8192, 0, 2),
        fx.PendingMoved(8192, 0, 2),
    ]


def test_mapc_retarget_keeps_the_cache() -> None:
    """Kernel: the cache holds the LPI, not its vCPU (kvm-its-facts B)."""
    assert not only(run(mapped(), build.mapc(0, 2)), fx.CacheInvalidated)


def test_mapc_retarget_moves_nothing_on_the_architecture() -> None:
    gic = mapped("architecture")
    run(gic, build.int_(8, 0))
    assert run(gic, build.mapc(0, 2)) == [fx.CollectionRetargeted(0, 0, 0, 2)]
    assert gic.pending_on(8192) == [0]


@pytest.mark.parametrize("profile", KVM)
def test_mapc_v0_orphans_events_for_good(profile: str) -> None:
    gic = mapped(profile)
    effects = run(gic, build.mapc(0, 0, valid=False))
    assert effects == [
        fx.OrphanedCollection(0, 0, ((8, 0, 8192),), permanent=True),
        fx.CollectionUnmapped(0, 0, 0),
        fx.EventOrphaned(0, 8, 0, 8192, 0),
        fx.CacheInvalidated((0,)),
    ]
    run(gic, build.mapc(0, 0))
    assert fault_of(run(gic, build.int_(8, 0))) is Fault.INT_UNMAPPED_INTERRUPT
    assert fault_of(run(gic, build.movi(8, 0, 1))) is Fault.MOVI_UNMAPPED_COLLECTION
    assert fault_of(run(gic, build.discard(8, 0))) is Fault.DISCARD_UNMAPPED_INTERRUPT
    assert run(gic, build.inv(8, 0)) == [fx.ConfigRead(8192)]
    assert run(gic, build.mapti(8, 0, 8192, 1))[-1] == fx.CommandIgnored(
        0, build.mapti(8, 0, 8192, 1), fx.IgnoredReason.ALREADY_MAPPED
    )


@pytest.mark.parametrize("profile", ["architecture", "qemu"])
def test_mapc_v0_elsewhere_is_undone_by_mapping_again(profile: str) -> None:
    gic = mapped(profile)
    effects = run(gic, build.mapc(0, 0, valid=False))
    assert only(effects, fx.OrphanedCollection) == [
        fx.OrphanedCollection(0, 0, ((8, 0, 8192),), permanent=False)
    ]
    assert fault_of(run(gic, build.int_(8, 0))) is Fault.INT_ITE_INVALID
    run(gic, build.mapc(0, 3))
    assert fx.PendingSet(8192, 3) in run(gic, build.int_(8, 0))


def test_mapc_v0_checks_the_vcpu_only_on_6_1() -> None:
    unmap = build.mapc(0, 9, valid=False)
    assert fault_of(run(mapped("kvm-6.1"), unmap)) is Fault.MAPC_PROCNUM_OOR
    for profile in ("kvm-6.12", "kvm-7.3", "qemu", "architecture"):
        assert only(run(mapped(profile), unmap), fx.CollectionUnmapped)


def test_mapc_vcpu_that_does_not_exist() -> None:
    assert fault_of(run(gic_with(), build.mapc(0, 4))) is Fault.MAPC_PROCNUM_OOR
    anything = Gic(PROFILES["kvm-6.12"], vcpus=None)
    anything.add_its(0, complete=True)
    assert run(anything, build.mapc(0, 400)) == [fx.CollectionMapped(0, 0, 400)]


def test_mapc_collection_beyond_the_table() -> None:
    gic = gic_with()
    gic.write_its(0, 0x108, 1 << 63 | 0x4200_0000, 8)
    assert fault_of(run(gic, build.mapc(8192, 0))) is Fault.MAPC_COLLECTION_OOR
    assert run(gic, build.mapc(8191, 0)) == [fx.CollectionMapped(0, 8191, 0)]


def test_rdbase_is_32_bits_on_kvm() -> None:
    """Kernel: its_cmd_get_target_addr takes DW2[47:16]."""
    assert run(gic_with(), build.mapc(0, 1 << 32 | 2)) == [fx.CollectionMapped(0, 0, 2)]
    assert fault_of(run(gic_with("qemu"), build.mapc(0, 1 << 32 | 2))) is Fault.MAPC_PROCNUM_OOR


# --- MAPTI, MAPI


def test_mapti_maps_and_reads_the_configuration() -> None:
    gic = gic_with()
    run(gic, build.mapc(1, 1), build.mapd(8, ITT, 5))
    assert run(gic, build.mapti(8, 3, 8200, 1)) == [
        fx.EventMapped(0, 8, 3, 8200, 1, 1),
        fx.ConfigRead(8200),
        fx.PendingTableRead(1, 8200),
    ]
    assert gic.lpis[8200].target_vcpu == 1


def test_mapi_maps_the_lpi_of_the_event() -> None:
    gic = gic_with()
    run(gic, build.mapc(0, 0), build.mapd(8, ITT, 16))
    assert fx.EventMapped(0, 8, 8202, 8202, 0, 0) in run(gic, build.mapi(8, 8202, 0))


@pytest.mark.parametrize("profile", KVM)
def test_first_mapping_wins_on_kvm(profile: str) -> None:
    gic = mapped(profile)
    again = build.mapti(8, 0, 8300, 1)
    assert run(gic, again) == [
        fx.EventRemapped(0, 8, 0, 8192, 0, 8300, 1, kept=True),
        fx.CommandIgnored(0, again, fx.IgnoredReason.ALREADY_MAPPED),
    ]
    same = build.mapti(8, 0, 8192, 0)
    assert run(gic, same) == [fx.CommandIgnored(0, same, fx.IgnoredReason.ALREADY_MAPPED)]
    assert gic.its[0].devices[8].events[0].intid == 8192


@pytest.mark.parametrize("profile", ["architecture", "qemu"])
def test_last_mapping_wins_elsewhere(profile: str) -> None:
    gic = mapped(profile)
    effects = run(gic, build.mapti(8, 0, 8300, 1))
    assert effects[:3] == [
        fx.EventRemapped(0, 8, 0, 8192, 0, 8300, 1, kept=False),
        fx.EventUnmapped(0, 8, 0, 8192, 0),
        fx.EventMapped(0, 8, 0, 8300, 1, 1),
    ]


@pytest.mark.parametrize("profile", ["kvm-6.1", "kvm-6.12", "qemu", "architecture"])
def test_two_events_may_share_an_lpi(profile: str) -> None:
    gic = mapped(profile)
    effects = run(gic, build.mapti(8, 1, 8192, 1))
    assert effects[0] == fx.DuplicateLpi(0, 8192, 8, 1, 0, 8, 0, refused=False)
    assert gic.lpis[8192].mapped_by == {(0, 8, 0), (0, 8, 1)}


@pytest.mark.parametrize("profile", ["kvm-6.1", "kvm-6.12"])
def test_a_second_event_leaves_the_target_of_its_lpi(profile: str) -> None:
    """Kernel: vgic_add_lpi gives the LPI that there is; only MOVI, MOVALL and MAPC retarget it."""
    gic = mapped(profile)
    effects = run(gic, build.int_(8, 0), build.mapti(8, 1, 8192, 1))
    assert not only(effects, fx.LpiRetargeted)
    assert not only(effects, fx.ConfigRead)
    assert gic.lpis[8192].target_vcpu == 0
    assert run(gic, build.int_(8, 1))[-1] == fx.PendingSet(8192, 0, coalesced=True)


def test_two_events_may_not_share_an_lpi_on_7_3() -> None:
    gic = mapped("kvm-7.3")
    before = gic.clone()
    command = build.mapti(8, 1, 8192, 5)
    assert run(gic, command) == [
        fx.DuplicateLpi(0, 8192, 8, 1, 0, 8, 0, refused=True),
        fx.CommandFaulted(0, command, None, 17),
    ]
    assert gic == before


@pytest.mark.parametrize("profile", KVM)
def test_a_new_mapping_of_a_living_lpi_takes_the_collections_vcpu(profile: str) -> None:
    """What v6.12 and older forget (kvm-its-facts B3, R4): the profile says what is meant."""
    gic = mapped(profile)
    effects = run(gic, build.int_(8, 0), build.discard(8, 0), build.mapti(8, 0, 8192, 1))
    assert effects[-3:] == [
        fx.EventMapped(0, 8, 0, 8192, 1, 1),
        fx.LpiRetargeted(8192, 0, 1),
        fx.PendingMoved(8192, 0, 1),
    ]


def test_a_new_mapping_of_a_dead_lpi_may_read_its_configuration() -> None:
    """It must, unless a list register still holds the LPI, which the model cannot know."""
    effects = run(mapped(), build.discard(8, 0), build.mapti(8, 0, 8192, 1))
    assert effects[-2:] == [fx.ConfigRead(8192, certain=False), fx.PendingTableRead(1, 8192)]


def test_a_living_lpi_that_is_mapped_to_an_unmapped_collection_has_no_target() -> None:
    gic = mapped()
    run(gic, build.int_(8, 0), build.discard(8, 0), build.mapti(8, 0, 8192, 5))
    assert (gic.lpis[8192].target_vcpu, gic.lpis[8192].assumed) == (None, False)
    assert run(gic, build.mapc(5, 1))[-1] == fx.PendingMoved(8192, 0, 1)


def test_mapti_to_an_unmapped_collection_makes_a_placeholder() -> None:
    gic = mapped()
    assert run(gic, build.mapti(8, 9, 8203, 5)) == [
        fx.CollectionNamed(0, 5),
        fx.EventMapped(0, 8, 9, 8203, 5, None),
        fx.ConfigRead(8203),
    ]
    assert gic.its[0].collections[5].placeholder
    assert fault_of(run(gic, build.int_(8, 9))) is Fault.INT_UNMAPPED_INTERRUPT
    assert fault_of(run(gic, build.discard(8, 9))) is Fault.DISCARD_UNMAPPED_INTERRUPT
    assert run(gic, build.mapc(5, 1)) == [
        fx.CollectionMapped(0, 5, 1),
        fx.LpiRetargeted(8203, None, 1),
    ]
    assert fx.PendingSet(8203, 1) in run(gic, build.int_(8, 9))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("command", "kvm", "other"),
    [
        (build.mapti(0x77, 0, 8200, 0), Fault.MAPTI_UNMAPPED_DEVICE, Fault.MAPTI_UNMAPPED_DEVICE),
        (build.mapti(8, 32, 8200, 0), Fault.MAPTI_ID_OOR, Fault.MAPTI_ID_OOR),
        (build.mapti(8, 5, 8191, 0), Fault.MAPTI_PHYSICALID_OOR, Fault.MAPTI_PHYSICALID_OOR),
        (build.mapti(8, 5, 1 << 16, 0), Fault.MAPTI_PHYSICALID_OOR, Fault.MAPTI_PHYSICALID_OOR),
        (build.mapti(8, 5, 8200, 8192), Fault.MAPC_COLLECTION_OOR, Fault.MAPTI_COLLECTION_OOR),
        (build.mapi(8, 5, 0), Fault.MAPTI_PHYSICALID_OOR, Fault.MAPI_PHYSICALID_OOR),
    ],
    ids=str,
)
def test_mapti_faults(profile: str, command: Command, kvm: Fault, other: Fault) -> None:
    gic = mapped(profile)
    gic.its[0].enabled = False
    gic.write_its(0, 0x108, 1 << 63 | 4 << 56 | 7 << 48 | 2 << 8 | 0x4200_0000, 8)
    gic.write_redistributor(0, 0x70, 0x4100_0000 | 15, 8)
    expected = kvm if profile in KVM else other
    assert fault_of(only(run(gic, command), fx.CommandFaulted)) is expected


def test_mapti_lpi_beyond_propbaser() -> None:
    gic = mapped()
    gic.write_redistributor(0, 0x70, 13, 8)  # 14 ID bits
    assert fault_of(run(gic, build.mapti(8, 1, 16384, 0))) is Fault.MAPTI_PHYSICALID_OOR
    assert only(run(gic, build.mapti(8, 1, 16383, 0)), fx.EventMapped)


# --- MOVI, MOVALL


@pytest.mark.parametrize("profile", PROFILES)
def test_movi_moves_event_and_pending(profile: str) -> None:
    gic = mapped(profile)
    run(gic, build.int_(8, 0))
    effects = run(gic, build.movi(8, 0, 1))
    assert effects[0] == fx.EventMoved(0, 8, 0, 8192, 0, 1)
    assert fx.LpiRetargeted(8192, 0, 1) in effects
    assert fx.PendingMoved(8192, 0, 1) in effects
    assert gic.pending_on(8192) == [1]


@pytest.mark.parametrize("profile", PROFILES)
def test_movi_leaves_what_a_vcpu_has_taken(profile: str) -> None:
    gic = mapped(profile)
    run(gic, build.int_(8, 0))
    gic.take(0, 8192)
    assert not only(run(gic, build.movi(8, 0, 1)), fx.PendingMoved)
    run(gic, build.int_(8, 0))
    assert gic.pending_on(8192) == [1]


def test_an_lpi_can_be_pending_on_two_vcpus() -> None:
    gic = mapped()
    gic.set_pending(0, 8192)
    gic.set_pending(1, 8192)
    assert gic.pending_on(8192) == [0, 1]
    assert run(gic, build.movi(8, 0, 1))[-1] == fx.PendingMoved(8192, 0, 1)
    assert gic.pending_on(8192) == [1]


@pytest.mark.parametrize("profile", KVM)
def test_movi_faults_on_kvm(profile: str) -> None:
    gic = mapped(profile)
    assert fault_of(run(gic, build.movi(0x77, 0, 0))) is Fault.MOVI_UNMAPPED_INTERRUPT
    assert fault_of(run(gic, build.movi(8, 30, 0))) is Fault.MOVI_UNMAPPED_INTERRUPT
    assert fault_of(run(gic, build.movi(8, 99, 0))) is Fault.MOVI_UNMAPPED_INTERRUPT
    assert fault_of(run(gic, build.movi(8, 0, 9))) is Fault.MOVI_UNMAPPED_COLLECTION


def test_movi_faults_on_the_architecture() -> None:
    gic = mapped("architecture")
    assert fault_of(run(gic, build.movi(0x77, 0, 0))) is Fault.MOVI_UNMAPPED_DEVICE
    assert fault_of(run(gic, build.movi(8, 30, 0))) is Fault.MOVI_UNMAPPED_INTERRUPT
    assert fault_of(run(gic, build.movi(8, 99, 0))) is Fault.MOVI_ID_OOR
    assert fault_of(run(gic, build.movi(8, 0, 9))) is Fault.MOVI_UNMAPPED_COLLECTION


@pytest.mark.parametrize("profile", KVM)
def test_movall_moves_only_lpis_of_its_source(profile: str) -> None:
    gic = mapped(profile)
    run(gic, build.mapc(3, 3), build.mapti(8, 1, 8193, 1), build.mapti(8, 3, 8195, 3), build.int_(8, 1))
    effects = run(gic, build.movall(1, 2))
    assert effects == [
        fx.LpiRetargeted(8193, 1, 2),
        fx.PendingMoved(8193, 1, 2),
        fx.CacheInvalidated((0,)),
    ]
    assert gic.its[0].devices[8].events[1].icid == 1  # collections and events stay


def test_after_movall_the_collection_still_decides_whether_lpis_are_on() -> None:
    """Kvm-its-facts B3, R9: INT asks the EnableLPIs of the collection's vCPU."""
    gic = mapped()
    run(gic, build.movall(0, 2))
    assert run(gic, build.int_(8, 0)) == [fx.Resolved(0, 8, 0, 8192, 2, 0), fx.PendingSet(8192, 2)]
    gic.redistributor(0).enable_lpis = False
    (refused,) = run(gic, build.int_(8, 0))
    assert isinstance(refused, fx.InjectionRefused)
    assert (refused.reason, refused.vcpu, refused.errno) == (fx.RefusalReason.LPIS_DISABLED, 0, 16)


def test_movall_moves_pending_state_on_the_architecture() -> None:
    gic = mapped("architecture")
    run(gic, build.int_(8, 0))
    assert run(gic, build.movall(0, 2)) == [fx.PendingMoved(8192, 0, 2)]
    assert run(gic, build.int_(8, 0))[-1] == fx.PendingSet(8192, 0)


@pytest.mark.parametrize("profile", KVM)
def test_movall_leaves_an_lpi_that_nobody_holds(profile: str) -> None:
    """What no event maps and no vCPU has pending is not there any more; what is pending goes along."""
    gic = mapped(profile)
    run(gic, build.mapti(8, 1, 8193, 0), build.int_(8, 1), build.discard(8, 0), build.discard(8, 1))
    assert only(run(gic, build.movall(0, 1)), fx.LpiRetargeted) == [fx.LpiRetargeted(8193, 0, 1)]


def test_movall_limits() -> None:
    gic = mapped()
    assert fault_of(run(gic, build.movall(0, 5))) is Fault.MOVALL_PROCNUM_OOR
    same = build.movall(1, 1)
    assert run(gic, same) == [fx.CommandIgnored(0, same, fx.IgnoredReason.SAME_TARGET)]


# --- DISCARD, CLEAR, INT


@pytest.mark.parametrize("profile", KVM)
def test_discard_leaves_pending_on_kvm(profile: str) -> None:
    gic = mapped(profile)
    effects = run(gic, build.int_(8, 0), build.discard(8, 0))
    assert effects[-1] == fx.EventUnmapped(0, 8, 0, 8192, 0)
    assert gic.pending_on(8192) == [0]


def test_discard_takes_along_a_pending_lpi_that_is_disabled() -> None:
    """No vCPU's list holds it, so it is gone; so is one that is disabled when no event maps it any more."""
    gic = mapped()
    gic.configure(8192, 0xA2)
    assert run(gic, build.int_(8, 0), build.discard(8, 0))[-1] == fx.PendingCleared(8192, 0)
    other = mapped()
    other.configure(8192, 0xA3)
    run(other, build.int_(8, 0), build.discard(8, 0))
    assert other.pending_on(8192) == [0]
    assert other.configure(8192, 0xA2) == [fx.PendingCleared(8192, 0)]


@pytest.mark.parametrize("profile", ["architecture", "qemu"])
def test_discard_clears_pending_elsewhere(profile: str) -> None:
    gic = mapped(profile)
    assert fx.PendingCleared(8192, 0) in run(gic, build.int_(8, 0), build.discard(8, 0))


def test_discard_faults() -> None:
    assert fault_of(run(mapped(), build.discard(8, 31))) is Fault.DISCARD_UNMAPPED_INTERRUPT
    assert fault_of(run(mapped(), build.discard(9, 0))) is Fault.DISCARD_UNMAPPED_INTERRUPT


@pytest.mark.parametrize("profile", PROFILES)
def test_clear(profile: str) -> None:
    gic = mapped(profile)
    run(gic, build.int_(8, 0))
    assert run(gic, build.clear(8, 0)) == [fx.PendingCleared(8192, 0)]
    assert run(gic, build.clear(8, 0)) == []


def test_clear_needs_no_collection_on_kvm() -> None:
    gic = mapped()
    run(gic, build.int_(8, 0), build.mapc(0, 0, valid=False))
    assert run(gic, build.clear(8, 0)) == [fx.PendingCleared(8192, 0)]
    assert fault_of(run(gic, build.clear(8, 1))) is Fault.CLEAR_UNMAPPED_INTERRUPT


def test_int_coalesces() -> None:
    gic = mapped()
    assert run(gic, build.int_(8, 0))[-1] == fx.PendingSet(8192, 0, coalesced=False)
    assert run(gic, build.int_(8, 0))[-1] == fx.PendingSet(8192, 0, coalesced=True)


def test_msi_refused() -> None:
    gic = mapped()
    (refused,) = gic.inject(0, 8, 7)
    assert isinstance(refused, fx.InjectionRefused)
    assert (refused.fault, refused.errno) == (Fault.INT_UNMAPPED_INTERRUPT, None)
    gic.its[0].enabled = False
    (refused,) = gic.inject(0, 8, 0)
    assert isinstance(refused, fx.InjectionRefused)
    assert (refused.reason, refused.errno) == (fx.RefusalReason.ITS_DISABLED, 16)


def test_cached_msi_asks_neither_its_nor_vcpu() -> None:
    gic = mapped()
    gic.its[0].enabled = False
    gic.redistributor(0).enable_lpis = False
    assert gic.inject(0, 8, 0, cached=True)[-1] == fx.PendingSet(8192, 0)


# --- INV, INVALL, others


@pytest.mark.parametrize("profile", KVM)
def test_inv_needs_no_collection_on_kvm(profile: str) -> None:
    gic = mapped(profile)
    assert run(gic, build.inv(8, 0)) == [fx.ConfigRead(8192)]
    assert fault_of(run(gic, build.inv(8, 31))) is Fault.INV_UNMAPPED_INTERRUPT


def test_inv_needs_a_collection_on_qemu() -> None:
    gic = mapped("qemu")
    run(gic, build.mapc(0, 0, valid=False))
    assert fault_of(run(gic, build.inv(8, 0))) is Fault.INV_UNMAPPED_INTERRUPT


@pytest.mark.parametrize("profile", [*KVM, "architecture"])
def test_invall_reads_the_lpis_of_the_vcpu_whatever_their_collection(profile: str) -> None:
    gic = mapped(profile)
    run(gic, build.mapc(2, 0), build.mapti(8, 1, 8193, 1), build.mapti(8, 2, 8194, 2))
    assert run(gic, build.invall(0)) == [fx.ConfigRead(8192), fx.ConfigRead(8194)]
    assert fault_of(run(gic, build.invall(99))) is Fault.INVALL_UNMAPPED_COLLECTION


def test_sync_does_nothing() -> None:
    gic = mapped()
    before = gic.clone()
    assert run(gic, build.sync(77)) == []
    assert gic == before


def test_unknown_and_gicv4_commands() -> None:
    gic = mapped()
    reserved = Command((0x77, 1, 2, 3))
    assert run(gic, reserved) == [fx.UnknownCommand(0, reserved, gicv4=False)]
    virtual = build.build(Opcode.VMAPTI, device_id=8)
    assert run(gic, virtual) == [fx.UnknownCommand(0, virtual, gicv4=True)]


# --- the cache


@pytest.mark.parametrize(
    ("profile", "keys"), [("kvm-6.1", (0, 1)), ("kvm-6.12", (0,)), ("kvm-7.3", (0,)), ("architecture", None)]
)
@pytest.mark.parametrize(
    "command",
    [
        build.movi(8, 0, 1),
        build.movall(0, 1),
        build.discard(8, 0),
        build.mapd(8, 0, 1, valid=False),
        build.mapd(8, ITT, 5),
        build.mapc(0, 0, valid=False),
    ],
    ids=str,
)
def test_what_drops_the_cache(profile: str, keys: tuple[int, ...] | None, command: Command) -> None:
    gic = mapped(profile)
    gic.add_its(1, complete=True)
    expected = [] if keys is None else [fx.CacheInvalidated(keys)]
    assert only(run(gic, command), fx.CacheInvalidated) == expected


@pytest.mark.parametrize("command", [build.inv(8, 0), build.clear(8, 0), build.mapti(8, 1, 8193, 0)], ids=str)
def test_what_keeps_the_cache(command: Command) -> None:
    assert not only(run(mapped(), command), fx.CacheInvalidated)


# --- a fault changes nothing

IDS = st.sampled_from([0, 1, 2, 5, 31, 32, 77, 8191, 8192, 0x10000])
COMMANDS = st.one_of(
    st.builds(
        build.mapd, IDS, st.sampled_from([ITT, ITT + 0x1000]), st.sampled_from([1, 5, 16, 17]), st.booleans()
    ),
    st.builds(build.mapc, IDS.filter(lambda icid: icid < 0x10000), st.integers(0, 5), st.booleans()),
    st.builds(
        build.mapti, IDS, IDS, st.sampled_from([8191, 8192, 8193, 65536]), st.sampled_from([0, 1, 2, 8192])
    ),
    st.builds(build.mapi, IDS, st.sampled_from([0, 8192, 8193]), st.sampled_from([0, 1, 2])),
    st.builds(build.movi, IDS, IDS, st.sampled_from([0, 1, 2, 8192])),
    st.builds(build.movall, st.integers(0, 5), st.integers(0, 5)),
    st.builds(build.discard, IDS, IDS),
    st.builds(build.clear, IDS, IDS),
    st.builds(build.int_, IDS, IDS),
    st.builds(build.inv, IDS, IDS),
    st.builds(build.invall, st.sampled_from([0, 1, 2, 8192])),
    st.builds(lambda *words: Command(words), *[st.integers(0, (1 << 64) - 1)] * 4),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(PROFILES)), st.booleans(), st.booleans(), st.lists(COMMANDS, max_size=40))
def test_a_fault_leaves_everything_as_it_was(
    profile: str, complete: bool, tables: bool, commands: list[Command]
) -> None:
    gic = gic_with(profile, complete=complete)
    if tables:
        gic.write_its(0, 0x100, 1 << 63 | 1 << 56 | 7 << 48 | 2 << 8 | 0x4200_0000, 8)
        gic.write_its(0, 0x108, 1 << 63 | 4 << 56 | 7 << 48 | 2 << 8 | 0x4201_0000, 8)
    for command in commands:
        before = gic.clone()
        before.its[0].enabled = True
        effects = gic.step(0, command)
        if any(isinstance(effect, fx.CommandFaulted | fx.UnknownCommand) for effect in effects):
            assert gic == before
            kinds = (fx.CommandFaulted, fx.UnknownCommand, fx.DuplicateLpi, fx.EventRemapped)
            assert all(isinstance(effect, kinds) for effect in effects)
        assert_sound(gic)


def assert_sound(gic: Gic) -> None:
    """Which LPI is mapped by what is told twice, and must be told alike."""
    told = {
        (ite.intid, (its.key, device.device_id, ite.event_id))
        for its in gic.its.values()
        for device in its.devices.values()
        for ite in device.events.values()
        if ite.intid is not None
    }
    assert told == {(intid, event) for intid, lpi in gic.lpis.items() for event in lpi.mapped_by}
