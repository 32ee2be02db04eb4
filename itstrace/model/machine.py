"""One VM's GIC: redistributors, LPIs and ITSs, and what happens to them.

Rule 1: state changes only here, in `commands.py` and in `registers.py`; all return what they did as effects.
Rule 2: no clock, no file, no frame. Rule 3: what an implementation does differently is a field of its
`Profile`, never its name.

Theory of operation. KVM's LPI is one object with one target and one pending latch; the architecture's is a
number that is pending, or not, at each redistributor. The model keeps pending state at the redistributors, so
that an LPI that is live on two vCPUs can be told; where the profile's LPIs have a target, pending state
follows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.gic import lpi as lpi_layout
from itstrace.gic import registers as reg
from itstrace.gic.commands import Opcode
from itstrace.gic.faults import Fault
from itstrace.model import effects as fx
from itstrace.model.commands import HANDLERS
from itstrace.model.profiles import CacheScope
from itstrace.model.registers import write_its, write_redistributor
from itstrace.model.state import Collection, Device, Ite, Its, Lpi, Redistributor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from itstrace.gic.commands import Command
    from itstrace.model.effects import Effect
    from itstrace.model.profiles import Profile

#: What KVM returns for an MSI that finds the ITS or the redistributor off. Kernel:
#: vgic-its.c:vgic_its_resolve_lpi
EBUSY = 16


class Gic:
    """One VM's GIC. `vcpus` are the vCPU ids that exist; None where that is not known, and then all do."""

    def __init__(self, profile: Profile, *, vcpus: Iterable[int] | None = None) -> None:
        self.profile = profile
        self.vcpus = None if vcpus is None else frozenset(vcpus)
        self.its: dict[int, Its] = {}
        self.lpis: dict[int, Lpi] = {}
        self.redistributors: dict[int, Redistributor] = {
            vcpu: Redistributor(vcpu) for vcpu in sorted(self.vcpus or ())
        }
        #: KVM shares one among all redistributors. Kernel: vgic-mmio-v3.c:vgic_mmio_write_propbase
        self.propbaser: int | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gic):
            return NotImplemented
        return (
            self.profile == other.profile
            and self.vcpus == other.vcpus
            and self.its == other.its
            and self.lpis == other.lpis
            and self.redistributors == other.redistributors
            and self.propbaser == other.propbaser
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def clone(self) -> Gic:
        """A copy that shares nothing."""
        copy = Gic(self.profile, vcpus=self.vcpus)
        copy.its = {key: its.clone() for key, its in self.its.items()}
        copy.lpis = {intid: lpi.clone() for intid, lpi in self.lpis.items()}
        copy.redistributors = {vcpu: one.clone() for vcpu, one in self.redistributors.items()}
        copy.propbaser = self.propbaser
        return copy

    # --- building

    def add_its(self, key: int, base_gpa: int | None = None, *, complete: bool) -> Its:
        """Add an ITS; `complete` where everything that happens to it from its reset on will be told."""
        assert key not in self.its, f"ITS {key} exists already"
        its = self.its[key] = Its(key, base_gpa, complete)
        return its

    def redistributor(self, vcpu: int) -> Redistributor:
        """The redistributor of a vCPU, made when first named."""
        found = self.redistributors.get(vcpu)
        if found is None:
            found = self.redistributors[vcpu] = Redistributor(vcpu)
        return found

    def lpi(self, intid: int, *, assumed: bool = False) -> Lpi:
        """The record of an LPI, made when first named."""
        found = self.lpis.get(intid)
        if found is None:
            found = self.lpis[intid] = Lpi(intid, assumed=assumed)
        return found

    # --- commands and injections

    def step(self, key: int, command: Command) -> list[Effect]:
        """One command that the ITS took from its queue.

        Differs: an ITS that takes commands is enabled, whatever the register writes that were seen say.
        """
        its = self.its[key]
        effects: list[Effect] = []
        if its.enabled is False:
            effects.append(fx.Assumed(key, fx.Assumption.ITS_ENABLED))
        its.enabled = True
        self._advance(its)
        opcode = command.opcode
        handler = HANDLERS.get(opcode) if isinstance(opcode, Opcode) else None
        if handler is not None:
            effects += handler(self, its, command)
        else:
            effects.append(fx.UnknownCommand(key, command, gicv4=isinstance(opcode, Opcode)))
        return effects

    def skip(self, key: int) -> None:
        """A slot of the queue that could not be read: passed over.

        Kernel: vgic-its.c:vgic_its_process_commands (v6.12)
        """
        self._advance(self.its[key])

    def _advance(self, its: Its) -> None:
        """GITS_CREADR goes on by one command, and around at the end of the queue.

        Kernel: vgic-its.c:vgic_its_process_commands (v6.12)
        """
        if its.creadr is None:
            return
        its.creadr += 32
        if its.cbaser is not None and its.creadr >= reg.decode_gits_cbaser(its.cbaser).size_bytes:
            its.creadr = 0

    def inject(self, key: int, device_id: int, event_id: int, *, cached: bool = False) -> list[Effect]:
        """An MSI, or what INT does; `cached` where KVM had it in its cache, which asks neither ITS nor vCPU.

        Kernel: vgic-its.c:vgic_its_trigger_msi, vgic_its_resolve_lpi, vgic_its_inject_cached_translation
        (v6.12)
        """
        its = self.its[key]

        def refuse(
            reason: fx.RefusalReason,
            fault: Fault | None = None,
            intid: int | None = None,
            vcpu: int | None = None,
        ) -> list[Effect]:
            errno = None if fault is not None else EBUSY
            return [fx.InjectionRefused(key, device_id, event_id, intid, vcpu, reason, fault, errno)]

        if its.enabled is False and not cached:
            return refuse(fx.RefusalReason.ITS_DISABLED)
        found = self.find_event(its, device_id, event_id, Opcode.INT)
        if isinstance(found, Fault):
            return refuse(fx.RefusalReason.UNMAPPED, found)
        device, ite = found
        mapped, gate = self.collection_of(its, ite)
        if not mapped:
            fault = Fault.INT_ITE_INVALID if self.profile.fine_faults else Fault.INT_UNMAPPED_INTERRUPT
            return refuse(fx.RefusalReason.UNMAPPED, fault, ite.intid)
        if gate is not None and not cached and self.redistributor(gate).enable_lpis is False:
            return refuse(fx.RefusalReason.LPIS_DISABLED, None, ite.intid, gate)
        effects = self.adopt(its, device, ite)
        vcpu = gate
        if ite.intid is not None and self.profile.lpi_has_target:
            lpi = self.lpi(ite.intid, assumed=True)
            if lpi.target_vcpu is None and lpi.assumed:
                lpi.target_vcpu = gate
            vcpu = lpi.target_vcpu
        effects.append(fx.Resolved(key, device_id, event_id, ite.intid, vcpu, gate))
        if ite.intid is not None and vcpu is not None:
            effects += self.set_pending(vcpu, ite.intid)
        return effects

    # --- what was read, and what became of an LPI

    def configure(
        self,
        intid: int,
        property_byte: int | None = None,
        *,
        enabled: bool | None = None,
        priority: int | None = None,
    ) -> list[Effect]:
        """The property byte of an LPI as it was read, or its enable and priority as far as they are known."""
        lpi = self.lpi(intid, assumed=True)
        if property_byte is not None:
            properties = lpi_layout.decode_properties(property_byte)
            enabled, priority = properties.enabled, properties.priority
        if enabled is not None:
            lpi.enabled = enabled
        if priority is not None:
            lpi.priority = priority
        return self.release(intid)

    def take(self, vcpu: int, intid: int) -> list[Effect]:
        """A vCPU took an LPI (into a list register): it is pending there no more, and no command moves it."""
        self.redistributor(vcpu).pending.discard(intid)
        return []

    def set_pending(self, vcpu: int, intid: int) -> list[Effect]:
        """An LPI is pending on a vCPU, injected or seen to be so."""
        pending = self.redistributor(vcpu).pending
        coalesced = intid in pending
        pending.add(intid)
        return [fx.PendingSet(intid, vcpu, coalesced)]

    def clear_pending(self, vcpu: int, intid: int) -> list[Effect]:
        """An LPI is not pending on a vCPU."""
        pending = self.redistributor(vcpu).pending
        if intid not in pending:
            return []
        pending.discard(intid)
        return [fx.PendingCleared(intid, vcpu)]

    def pending_on(self, intid: int) -> list[int]:
        """The vCPUs on which an LPI is pending."""
        return [vcpu for vcpu, one in sorted(self.redistributors.items()) if intid in one.pending]

    # --- seeds

    def restore_device(
        self, key: int, device_id: int, itt_gpa: int | None, event_bits: int | None, *, complete: bool = True
    ) -> list[Effect]:
        """A device read from saved tables or a dump; not `complete` where its events will not all be told."""
        its = self.its[key]
        old = its.devices.get(device_id)
        events = {} if old is None else old.events
        its.devices[device_id] = Device(device_id, event_bits, itt_gpa, events, complete=complete)
        its.gone_devices.discard(device_id)
        return [fx.DeviceMapped(key, device_id, event_bits, itt_gpa)]

    def restore_collection(
        self, key: int, icid: int, target_vcpu: int | None, *, placeholder: bool = False
    ) -> list[Effect]:
        """A collection read from saved tables or a dump; a `placeholder` is known to have no target."""
        its = self.its[key]
        assumed = target_vcpu is None and not placeholder
        its.collections[icid] = Collection(icid, target_vcpu, placeholder, assumed)
        its.gone_collections.discard(icid)
        return [fx.CollectionNamed(key, icid) if placeholder else fx.CollectionMapped(key, icid, target_vcpu)]

    def restore_event(
        self,
        key: int,
        device_id: int,
        event_id: int,
        intid: int,
        icid: int | None,
        *,
        collection_valid: bool = True,
    ) -> list[Effect]:
        """An event read from saved tables or a dump, or learned from what an injection found."""
        its = self.its[key]
        device = its.devices.get(device_id)
        if device is None:
            device = its.devices[device_id] = Device(device_id, None, None, assumed=True, complete=False)
        old = device.events.get(event_id)
        if old is not None and old.intid is not None and old.intid in self.lpis:
            self.lpis[old.intid].mapped_by.discard((key, device_id, event_id))
        ite = Ite(event_id, intid, icid, collection_valid)
        device.events[event_id] = ite
        device.gone.discard(event_id)
        vcpu = self.collection_of(its, ite)[1]
        lpi = self.lpi(intid, assumed=True)
        lpi.mapped_by.add((key, device_id, event_id))
        # Of an event that lost its collection nothing tells where its LPI was aimed before.
        # One whose collection a seed lacks may have had any; a placeholder is known to have none.
        collection = its.collections.get(icid) if icid is not None and collection_valid else None
        told = vcpu is not None or (collection is not None and collection.placeholder)
        if told and lpi.assumed and lpi.target_vcpu is None:
            lpi.target_vcpu, lpi.assumed = vcpu, False
        return [fx.EventMapped(key, device_id, event_id, intid, icid, vcpu)]

    def restore_lpi(
        self,
        intid: int,
        *,
        enabled: bool | None = None,
        priority: int | None = None,
        target_vcpu: int | None = None,
    ) -> list[Effect]:
        """An LPI read from a dump. Its target overrides what its collection says, as it does in KVM."""
        self.configure(intid, enabled=enabled, priority=priority)
        lpi = self.lpis[intid]
        if target_vcpu is None or (lpi.target_vcpu == target_vcpu and not lpi.assumed):
            return []
        old, lpi.target_vcpu, lpi.assumed = lpi.target_vcpu, target_vcpu, False
        return [fx.LpiRetargeted(intid, old, target_vcpu)]

    def reset_its(self, key: int) -> list[Effect]:
        """All of an ITS forgotten: KVM_DEV_ARM_ITS_CTRL_RESET. Of GITS_BASER<n> only Valid goes.

        Kernel: vgic-its.c:vgic_its_reset (v6.12)
        """
        its = self.its[key]
        effects = self.free_devices(its) + self.free_collections(its)
        its.gone_devices.clear()
        its.gone_collections.clear()
        its.complete = True
        its.enabled = False
        its.cbaser = its.creadr = its.cwriter = 0
        if self.profile.tables is None:
            its.baser = {}
        for number, (table_type, entry_size_bytes) in enumerate(self.profile.tables or ()):
            unknown = table_type << 56 | (entry_size_bytes - 1) << 48
            its.baser[number] = (its.baser.get(number) or unknown) & ~(1 << 63)
        its.l1_valid = {}
        return effects

    # --- registers

    def write_its(self, key: int, offset: int, value: int, size_bytes: int) -> list[Effect]:
        """A write to a register of an ITS, `offset` from its base; see `registers.write_its`."""
        return write_its(self, self.its[key], offset, value, size_bytes)

    def write_redistributor(self, vcpu: int, offset: int, value: int, size_bytes: int) -> list[Effect]:
        """A write to a register of a vCPU's redistributor, `offset` from its RD_base."""
        return write_redistributor(self, self.redistributor(vcpu), offset, value, size_bytes)

    # --- parts of commands: what they ask, and what they change (used by `commands.py`)

    def find_device(self, its: Its, device_id: int) -> Device | None:
        """The device; where the capture began too late to know, an assumed one, not yet in the table."""
        found = its.devices.get(device_id)
        if found is not None:
            return found if self.device_fits(its, device_id) or not self.profile.tables_in_memory else None
        if its.complete or device_id in its.gone_devices or not self.device_fits(its, device_id):
            return None
        return Device(device_id, None, None, assumed=True, complete=False)

    def find_event(
        self, its: Its, device_id: int, event_id: int, opcode: Opcode
    ) -> tuple[Device, Ite] | Fault:
        """The event's entry and its device, both perhaps assumed; or the fault that `opcode` reports.

        Kernel: vgic-its.c:find_ite (v6.12), after which every command says *_UNMAPPED_INTERRUPT
        """
        device = self.find_device(its, device_id)
        if device is None:
            if not self.profile.fine_faults:
                reason = "UNMAPPED_INTERRUPT"
            else:
                reason = "UNMAPPED_DEVICE" if self.device_fits(its, device_id) else "DEVICE_OOR"
            return Fault[f"{opcode.name}_{reason}"]
        ite = device.events.get(event_id)
        if ite is not None and (device.event_bits is None or event_id < 1 << device.event_bits):
            return device, ite
        in_range = event_id < 1 << (device.event_bits or self.profile.event_bits or 32)
        if not in_range or device.complete or event_id in device.gone:
            reason = "ID_OOR" if self.profile.fine_faults and not in_range else "UNMAPPED_INTERRUPT"
            return Fault[f"{opcode.name}_{reason}"]
        return device, Ite(event_id, None, None, assumed=True)

    def collection_of(self, its: Its, ite: Ite) -> tuple[bool, int | None]:
        """Whether the event's collection is mapped, and its target, as `collection` has it."""
        if not ite.collection_valid:
            return False, None
        if ite.icid is None:
            return True, None
        return self.collection(its, ite.icid)

    def collection(self, its: Its, icid: int) -> tuple[bool, int | None]:
        """Whether a collection is mapped, and its target; unknown counts as mapped, with no target known."""
        found = its.collections.get(icid)
        if found is None:
            unknown = not its.complete and icid not in its.gone_collections
            return unknown and self.collection_fits(its, icid), None
        return not found.placeholder, found.target_vcpu

    def adopt(
        self, its: Its, device: Device, ite: Ite | None = None, icid: int | None = None
    ) -> list[Effect]:
        """Put what was assumed into the tables, once nothing can fault any more."""
        effects: list[Effect] = []
        if device.device_id not in its.devices:
            its.devices[device.device_id] = device
            effects.append(fx.Assumed(its.key, fx.Assumption.DEVICE, device.device_id))
        if ite is not None and ite.event_id not in device.events:
            device.events[ite.event_id] = ite
            effects.append(fx.Assumed(its.key, fx.Assumption.EVENT, device.device_id, ite.event_id))
        return effects + (self.adopt_collection(its, icid) if icid is not None else [])

    def adopt_collection(self, its: Its, icid: int) -> list[Effect]:
        """Put an assumed collection into the table."""
        if icid in its.collections:
            return []
        its.collections[icid] = Collection(icid, None, assumed=True)
        return [fx.Assumed(its.key, fx.Assumption.COLLECTION, icid=icid)]

    def device_fits(self, its: Its, device_id: int) -> bool:
        """Whether the device table, as far as it is known, has room for a device id.

        Kernel: vgic-its.c:vgic_its_check_id (v6.12)
        """
        if self.profile.device_bits is not None and device_id >= 1 << self.profile.device_bits:
            return False
        table = self._table(its, reg.BASER_TYPE_DEVICE)
        if table is None:
            return True
        if device_id >= self._id_limit(table):
            return False
        index = table.level1_index(device_id)
        return index is None or its.l1_valid.get(index, True)

    def collection_fits(self, its: Its, icid: int) -> bool:
        """Whether the collection table, as far as it is known, has room for an ICID.

        Kernel: vgic-its.c:vgic_its_check_id (v6.12)
        """
        table = self._table(its, reg.BASER_TYPE_COLLECTION)
        return table is None or icid < self._id_limit(table)

    def _id_limit(self, table: reg.GitsBaser) -> int:
        return 0 if self.profile.baser_needs_valid and not table.valid else table.id_limit

    def _table(self, its: Its, table_type: int) -> reg.GitsBaser | None:
        for value in its.baser.values():
            if value is not None:
                table = reg.decode_gits_baser(value, page_size_bytes=self.profile.page_size_bytes)
                if table.table_type == table_type:
                    return table
        return None

    def vcpu_of(self, rdbase: int) -> int | None:
        """The vCPU that an RDbase names; None where no such vCPU exists."""
        vcpu = rdbase & ((1 << self.profile.rdbase_bits) - 1)
        return vcpu if self.vcpus is None or vcpu in self.vcpus else None

    def intid_fits(self, intid: int) -> bool:
        """Whether an INTID is an LPI that PROPBASER, as far as it is known, has a property byte for.

        Kernel: vgic-its.c:vgic_its_cmd_handle_mapi, max_lpis_propbaser (v6.12)
        """
        limit = 1 << (self.profile.intid_bits or 32)
        if self.propbaser is not None and self.profile.propbaser_limits_intid:
            limit = min(limit, 1 << reg.decode_gicr_propbaser(self.propbaser).id_bits)
        return lpi_layout.FIRST_LPI <= intid < limit

    def retarget(self, intid: int, new_vcpu: int | None) -> list[Effect]:
        """Give an LPI another target; pending state follows it, save what a vCPU has taken.

        Kernel: vgic-its.c:update_affinity (v6.12)
        """
        lpi = self.lpi(intid, assumed=True)
        old, known = lpi.target_vcpu, not lpi.assumed
        lpi.target_vcpu, lpi.assumed = new_vcpu, new_vcpu is None
        if known and old == new_vcpu:
            return []
        effects: list[Effect] = [fx.LpiRetargeted(intid, old, new_vcpu)]
        if new_vcpu is None:
            return effects
        for vcpu in self.pending_on(intid) if old is None else [old]:
            effects += self.move_pending(intid, vcpu, new_vcpu)
        return effects

    def move_pending(self, intid: int, old_vcpu: int, new_vcpu: int) -> list[Effect]:
        """Move an LPI's pending state, if there is any."""
        if old_vcpu == new_vcpu or intid not in self.redistributor(old_vcpu).pending:
            return []
        self.redistributor(old_vcpu).pending.discard(intid)
        self.redistributor(new_vcpu).pending.add(intid)
        return [fx.PendingMoved(intid, old_vcpu, new_vcpu)]

    def unmap_event(self, its: Its, device: Device, event_id: int) -> list[Effect]:
        """Take an event out of its device; what is pending stays so."""
        ite = device.events.pop(event_id)
        if not device.complete:
            device.gone.add(event_id)
        effects: list[Effect] = [fx.EventUnmapped(its.key, device.device_id, event_id, ite.intid, ite.icid)]
        if ite.intid is not None and ite.intid in self.lpis:
            self.lpis[ite.intid].mapped_by.discard((its.key, device.device_id, event_id))
            effects += self.release(ite.intid)
        return effects

    def release(self, intid: int) -> list[Effect]:
        """An LPI that nothing holds is gone, and its pending state with it, where LPIs are objects.

        A vCPU's list holds an LPI that is pending there and enabled; a disabled one is on no list.
        Kernel: vgic.c:vgic_put_irq, vgic_target_oracle (v6.12)
        """
        lpi = self.lpis[intid]
        effects: list[Effect] = []
        if self.profile.lpi_has_target and not lpi.mapped_by and lpi.enabled is False:
            for vcpu in self.pending_on(intid):
                effects += self.clear_pending(vcpu, intid)
        return effects

    def unmap_device(self, its: Its, device: Device) -> list[Effect]:
        """Take a device out of the table, with all its events."""
        effects: list[Effect] = [
            fx.DeviceUnmapped(its.key, device.device_id, device.event_bits, device.itt_gpa)
        ]
        if self.profile.tables_in_memory and device.itt_gpa is not None:
            its.left_itts[device.itt_gpa] = dict(device.events)
        for ite in device.reached():
            effects += self.unmap_event(its, device, ite.event_id)
        del its.devices[device.device_id]
        return effects

    def unmap_collection(self, its: Its, icid: int) -> list[Effect]:
        """Take a collection out of the table; where the profile says so, its events lose it for good.

        Kernel: vgic-its.c:vgic_its_free_collection (v6.12)
        """
        effects: list[Effect] = []
        users = [
            (device, ite)
            for _, device in sorted(its.devices.items())
            for ite in device.reached()
            if ite.icid == icid and ite.collection_valid
        ]
        if users:
            events = tuple((device.device_id, ite.event_id, ite.intid) for device, ite in users)
            permanent = self.profile.unmapped_collection_orphans
            effects.append(fx.OrphanedCollection(its.key, icid, events, permanent))
        gone = its.collections.pop(icid, None)
        if not its.complete:
            its.gone_collections.add(icid)
        if gone is not None:
            effects.append(fx.CollectionUnmapped(its.key, icid, gone.target_vcpu))
        if self.profile.unmapped_collection_orphans:
            for device, ite in users:
                ite.collection_valid = False
                effects.append(fx.EventOrphaned(its.key, device.device_id, ite.event_id, ite.intid, icid))
        return effects

    def free_devices(self, its: Its) -> list[Effect]:
        """Every device gone. Kernel: vgic-its.c:vgic_its_free_device_list (v6.12)."""
        effects: list[Effect] = []
        if not its.complete:
            its.gone_devices |= its.devices.keys()
        for _, device in sorted(its.devices.items()):
            effects += self.unmap_device(its, device)
        if not effects and its.complete:
            return []
        return effects + self.invalidate_cache(its, certain=bool(effects))

    def free_collections(self, its: Its) -> list[Effect]:
        """Every collection gone; no cache is dropped. Kernel: vgic-its.c:vgic_its_free_collection_list (v6.12)."""
        effects: list[Effect] = []
        for icid in sorted(its.collections):
            effects += self.unmap_collection(its, icid)
        return effects

    def invalidate_cache(self, its: Its, *, certain: bool = True) -> list[Effect]:
        """The translation cache dropped, as far as the profile drops it."""
        if self.profile.cache is CacheScope.NONE:
            return []
        keys = tuple(sorted(self.its)) if self.profile.cache is CacheScope.VM else (its.key,)
        return [fx.CacheInvalidated(keys, certain)]

    def read_configurations(self, vcpu: int | None) -> list[Effect]:
        """The property bytes of all LPIs that target a vCPU (None: it is not known which vCPU) are read.

        Kernel: vgic-its.c:vgic_its_invall (v6.12)
        """
        effects: list[Effect] = []
        for intid, lpi in sorted(self.lpis.items()):
            target = self.target_of(lpi)
            if vcpu is None or target is None:
                if vcpu is None or lpi.assumed:
                    effects.append(fx.ConfigRead(intid, certain=False))
            elif target == vcpu:
                effects.append(fx.ConfigRead(intid, certain=bool(lpi.mapped_by)))
        return effects

    def target_of(self, lpi: Lpi) -> int | None:
        """An LPI's target: its own, or that of the collection of an event that maps it."""
        if self.profile.lpi_has_target:
            return lpi.target_vcpu
        for key, device_id, event_id in sorted(lpi.mapped_by):
            mapped, vcpu = self.collection_of(
                self.its[key], self.its[key].devices[device_id].events[event_id]
            )
            if mapped:
                return vcpu
        return None
