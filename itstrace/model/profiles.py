"""Profiles: how one implementation is meant to behave where implementations differ.

Rule 1: a profile says what an implementation is meant to do, never its known bugs; a departure of the kernel
from its profile is what the host rules look for. Rule 2: every difference is a field here, and every field is
tested.

Source of the KVM columns: arch/arm64/kvm/vgic/vgic-its.c of v6.1, v6.12 and v7.3. QEMU:
hw/intc/arm_gicv3_its.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from itstrace.gic.registers import BASER_TYPE_COLLECTION, BASER_TYPE_DEVICE

if TYPE_CHECKING:
    from collections.abc import Mapping


class CacheScope(StrEnum):
    """How much of the translation cache one command drops."""

    NONE = "none"
    VM = "vm"
    ITS = "its"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What an implementation does where they differ. The defaults are the architecture's."""

    name: str
    #: Errors name the operand that is wrong. KVM says *_UNMAPPED_INTERRUPT for a bad device or event id too.
    #: Kernel: vgic-its.c:vgic_its_cmd_handle_movi and its neighbours.
    fine_faults: bool = True
    #: Device and collection ids are limited by the table only if GITS_BASER<n>.Valid is 1; 0 means no table
    #: at all.
    #: Kernel: vgic-its.c:vgic_its_check_id does not look at Valid.
    baser_needs_valid: bool = True
    #: The only page size of GITS_BASER<n>. Kernel: vgic-its.c:vgic_sanitise_its_baser.
    page_size_bytes: int | None = None
    #: Memory attributes that are not offered are taken for others, so that two values may be one.
    #: Kernel: vgic-its.c:vgic_sanitise_its_baser, vgic_sanitise_its_cbaser.
    attributes_sanitised: bool = False
    #: GITS_BASER<n>: Type and bytes of an entry, which cannot be chosen; those beyond are not there. None: as
    #: written. Kernel: vgic-its.c:vgic_mmio_write_its_baser. QEMU: arm_gicv3_its_common.c and
    #: arm_gicv3_its.c:gicv3_its_reset_hold, without virtual LPIs.
    tables: tuple[tuple[int, int], ...] | None = None
    #: Bits of device, event, collection and interrupt ids. KVM: GITS_TYPER 0x1ef71,
    #: vgic.h:INTERRUPT_ID_BITS_ITS.
    #: None: whatever the tables allow.
    device_bits: int | None = None
    event_bits: int | None = None
    intid_bits: int | None = None
    #: RDbase bits that count. Kernel: vgic-its.c:its_cmd_get_target_addr takes DW2[47:16].
    rdbase_bits: int = 36
    #: INTID limit is PROPBASER's. QEMU goes by GICD_TYPER.IDbits: arm_gicv3_its.c:process_mapti.
    propbaser_limits_intid: bool = True
    #: MAPTI on a mapped event changes nothing. Architecture: UNPREDICTABLE; the model overwrites.
    #: Kernel: vgic-its.c:vgic_its_cmd_handle_mapi returns 0.
    first_mapping_wins: bool = False
    #: MAPTI to a collection that is not mapped makes one without target, and fails if the ICID does not fit.
    #: Kernel: vgic-its.c:vgic_its_cmd_handle_mapi, vgic_its_alloc_collection.
    placeholder_collections: bool = False
    #: MAPC V=0 takes the collection from its events for good. Kernel: vgic-its.c:vgic_its_free_collection.
    unmapped_collection_orphans: bool = False
    #: MAPC V=0 looks at RDbase too. Kernel: vgic-its.c:vgic_its_cmd_handle_mapc (v6.1).
    mapc_always_checks_target: bool = False
    #: MAPTI of an LPI that another event maps is refused with -EEXIST. Kernel: vgic-its.c:vgic_its_map_lpi
    #: (v7.3).
    duplicate_lpi_refused: bool = False
    #: MOVI needs the collection that the event leaves. Kernel: vgic-its.c:vgic_its_cmd_handle_movi.
    movi_needs_old_collection: bool = False
    #: CLEAR and INV need a mapped collection. QEMU: arm_gicv3_its.c:do_process_its_cmd, process_inv.
    clear_needs_collection: bool = True
    inv_needs_collection: bool = False
    #: INVALL needs a mapped collection, and reads the LPIs of its vCPU only. QEMU reads all, and looks at
    #: nothing.
    invall_by_collection: bool = True
    #: An LPI is an object with a target: MOVALL and MAPC on a mapped collection retarget it, and pending
    #: follows. On the architecture, the target is the collection's, MOVALL moves what is pending and MAPC
    #: moves nothing.
    #: Kernel: vgic-its.c:update_affinity.
    lpi_has_target: bool = False
    #: DISCARD drops the pending state. Kernel: vgic-its.c:vgic_its_cmd_handle_discard leaves it.
    discard_clears_pending: bool = True
    #: The size of an ITT is checked for MAPD V=0 too. QEMU: arm_gicv3_its.c:process_mapd.
    mapd_always_checks_size: bool = False
    #: What MOVI, MOVALL, DISCARD, MAPD over a device and MAPC V=0 drop of the translation cache.
    #: Kernel: vgic-its.c:vgic_its_invalidate_cache(kvm) in v6.1, (its) from v6.10 on.
    cache: CacheScope = CacheScope.NONE
    #: Enabling the ITS needs valid tables and a valid queue. Kernel: vgic-its.c:vgic_mmio_write_its_ctlr.
    enable_needs_tables: bool = False
    #: GITS_BASER<n> with Valid=0 frees what the table holds. Kernel: vgic-its.c:vgic_mmio_write_its_baser.
    invalid_baser_frees: bool = False
    #: Every change frees it, and drops the cache; a write that changes nothing does neither.
    #: Kernel: vgic-its.c:vgic_mmio_write_its_baser (v6.12.112, v7.3).
    changed_baser_frees: bool = False
    #: EnableLPIs going to 0 takes LPIs off their vCPU's list, but leaves their latch set, which the next
    #: INV or MSI finds. The model's pending state goes, for nothing is on its way any more.
    #: Kernel: vgic.c:vgic_flush_pending_lpis (before v6.12.114; v6.1.191 and v7.3 clear the latch).
    flush_keeps_latch: bool = False
    #: Tables live in guest memory only: an ITT outlives its MAPD, and every change is a write that can be
    #: seen. QEMU: arm_gicv3_its.c:update_dte, update_cte, update_ite.
    tables_in_memory: bool = False


ARCHITECTURE = Profile(name="architecture")

KVM_6_12 = Profile(
    name="kvm-6.12",
    fine_faults=False,
    baser_needs_valid=False,
    page_size_bytes=65536,
    attributes_sanitised=True,
    tables=((BASER_TYPE_DEVICE, 8), (BASER_TYPE_COLLECTION, 8)),
    device_bits=16,
    event_bits=16,
    intid_bits=16,
    rdbase_bits=32,
    first_mapping_wins=True,
    placeholder_collections=True,
    unmapped_collection_orphans=True,
    movi_needs_old_collection=True,
    clear_needs_collection=False,
    lpi_has_target=True,
    discard_clears_pending=False,
    cache=CacheScope.ITS,
    enable_needs_tables=True,
    invalid_baser_frees=True,
    flush_keeps_latch=True,
)

KVM_6_1 = replace(
    KVM_6_12,
    name="kvm-6.1",
    cache=CacheScope.VM,
    mapc_always_checks_target=True,
    flush_keeps_latch=False,
)

KVM_7_3 = replace(
    KVM_6_12,
    name="kvm-7.3",
    duplicate_lpi_refused=True,
    changed_baser_frees=True,
    flush_keeps_latch=False,
)

QEMU = Profile(
    name="qemu",
    tables=((BASER_TYPE_DEVICE, 8), (BASER_TYPE_COLLECTION, 8)),
    device_bits=16,
    event_bits=16,
    intid_bits=16,
    propbaser_limits_intid=False,
    movi_needs_old_collection=True,
    inv_needs_collection=True,
    invall_by_collection=False,
    mapd_always_checks_size=True,
    tables_in_memory=True,
)

#: Every profile by its name.
PROFILES: Mapping[str, Profile] = MappingProxyType(
    {profile.name: profile for profile in (ARCHITECTURE, KVM_6_1, KVM_6_12, KVM_7_3, QEMU)}
)


def profile_for_kernel(release: str) -> Profile:
    """The KVM profile of a kernel release (`uname -r`); the newest one where the release cannot be read.

    The cache became one per ITS in v6.10, so 6.10 is where kvm-6.12 begins. Two events may share an LPI until after
    v7.1-rc6; v7.3 is the first release known to refuse it. Stable releases have some of what v7.3 does: 6.12.112
    "vgic-its: Free the caches when GITS_BASER changes"; 6.1.191 and 6.12.114 "vgic: Handle race between interrupt
    affinity change and LPI disabling". A release that says 0 there, such as Debian's 6.1.0-56, does not tell which
    stable release it is made of.
    Source: kernel.org, ChangeLog-6.1.191, ChangeLog-6.12.112 and -6.12.114
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if found is None:
        return KVM_7_3
    version, stable = (int(found[1]), int(found[2])), int(found[3] or 0)
    if version == (6, 1):
        return replace(KVM_6_1, flush_keeps_latch=0 < stable < 191)
    if version == (6, 12):
        return replace(KVM_6_12, changed_baser_frees=stable >= 112, flush_keeps_latch=stable < 114)
    if version < (6, 10):
        return KVM_6_1
    return KVM_6_12 if version < (7, 3) else KVM_7_3
