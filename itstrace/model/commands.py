"""What each ITS command does: its checks in the order in which they are made, then its effects.

Every handler checks first and changes after: a command that faults leaves everything as it was. `HANDLERS` is
the dispatch table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.gic.commands import Opcode
from itstrace.gic.faults import Fault
from itstrace.gic.lpi import SPURIOUS_INTID
from itstrace.model import effects as fx
from itstrace.model.state import Collection, Device, Ite

if TYPE_CHECKING:
    from collections.abc import Callable

    from itstrace.gic.commands import Command
    from itstrace.model.effects import Effect
    from itstrace.model.machine import Gic
    from itstrace.model.state import Its

    Handler = Callable[[Gic, Its, Command], list[Effect]]

#: -EEXIST, positive. Kernel: vgic-its.c:vgic_its_map_lpi (v7.3)
EEXIST = 17

HANDLERS: dict[Opcode, Handler] = {}


def _handles(*opcodes: Opcode) -> Callable[[Handler], Handler]:
    """Register the handler of these commands; a second handler for one would be our bug."""

    def register(handler: Handler) -> Handler:
        for opcode in opcodes:
            assert opcode not in HANDLERS, f"{opcode.name} already has a handler"
            HANDLERS[opcode] = handler
        return handler

    return register


def _fault(its: Its, command: Command, fault: Fault) -> list[Effect]:
    return [fx.CommandFaulted(its.key, command, fault)]


def _operand(value: int | None) -> int:
    """An operand that this opcode is known to have."""
    assert value is not None
    return value


def _event_operands(command: Command) -> tuple[int, int, Opcode]:
    opcode = command.opcode
    assert isinstance(opcode, Opcode)
    return _operand(command.device_id), _operand(command.event_id), opcode


@_handles(Opcode.MAPD)
def mapd(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Map a device to an ITT, or unmap it; a device that exists is freed first, either way.

    Spec:   IHI 0069H, MAPD
    Kernel: vgic-its.c:vgic_its_cmd_handle_mapd (v6.12)
    Differs: on profiles whose tables live in guest memory (QEMU) the ITT of an unmapped device stays what it
    was.
    """
    device_id, event_bits = _operand(command.device_id), _operand(command.event_bits)
    itt_gpa, valid = _operand(command.itt_gpa), bool(command.valid)
    profile = gic.profile
    if not gic.device_fits(its, device_id):
        return _fault(its, command, Fault.MAPD_DEVICE_OOR)
    too_large = profile.event_bits is not None and event_bits > profile.event_bits
    if too_large and (valid or profile.mapd_always_checks_size):
        return _fault(its, command, Fault.MAPD_ITTSIZE_OOR)

    effects: list[Effect] = []
    old = its.devices.get(device_id)
    if old is not None:
        events = tuple((ite.event_id, ite.intid) for ite in old.reached())
        if valid and events:
            kept = profile.tables_in_memory and old.itt_gpa == itt_gpa
            effects.append(fx.LiveDeviceRemapped(its.key, device_id, events, kept))
        effects += gic.unmap_device(its, old)
        effects += gic.invalidate_cache(its)
    elif not its.complete and device_id not in its.gone_devices:
        effects += gic.invalidate_cache(its, certain=False)
    if valid:
        device = Device(device_id, event_bits, itt_gpa)
        its.devices[device_id] = device
        its.gone_devices.discard(device_id)
        effects.append(fx.DeviceMapped(its.key, device_id, event_bits, itt_gpa))
        for event_id, ite in its.left_itts.pop(itt_gpa, {}).items():
            if event_id >= 1 << event_bits:
                device.events[event_id] = ite
            elif ite.intid is None:  # one that was seen in use, whose LPI is not known
                effects += gic.adopt(its, device, ite)
                if ite.icid is not None:
                    effects.append(fx.EventMoved(its.key, device_id, event_id, None, None, ite.icid))
            else:
                device.events[event_id] = ite
                gic.lpi(ite.intid).mapped_by.add((its.key, device_id, event_id))
                vcpu = gic.collection_of(its, ite)[1]
                effects.append(fx.EventMapped(its.key, device_id, event_id, ite.intid, ite.icid, vcpu))
    elif not its.complete:
        its.gone_devices.add(device_id)
    if profile.tables_in_memory:
        fields = (("size", event_bits - 1), ("itt_gpa", itt_gpa))
        effects.append(fx.TableWrite(its.key, "dte", (device_id,), valid, fields))
    return effects


@_handles(Opcode.MAPC)
def mapc(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Map a collection to a vCPU, give it another one, or unmap it.

    Spec:   IHI 0069H, MAPC
    Kernel: vgic-its.c:vgic_its_cmd_handle_mapc (v6.12; v6.1 checks the vCPU for V=0 too)
    """
    icid, valid = _operand(command.icid), bool(command.valid)
    vcpu = gic.vcpu_of(_operand(command.rdbase))
    old = its.collections.get(icid)
    # KVM asks for the vCPU before the ICID and for the ICID only of a new collection; QEMU asks in the other
    # order.
    if vcpu is None and (valid or gic.profile.mapc_always_checks_target):
        return _fault(its, command, Fault.MAPC_PROCNUM_OOR)
    needs_room = (valid and old is None) or gic.profile.tables_in_memory
    if needs_room and not gic.collection_fits(its, icid):
        return _fault(its, command, Fault.MAPC_COLLECTION_OOR)

    effects: list[Effect] = []
    if not valid:
        effects += gic.unmap_collection(its, icid)
        effects += gic.invalidate_cache(its)
    else:
        assert vcpu is not None
        its.collections[icid] = Collection(icid, vcpu)
        its.gone_collections.discard(icid)
        if old is None:
            effects.append(fx.CollectionMapped(its.key, icid, vcpu))
        else:
            if old.placeholder:
                effects.append(fx.CollectionMapped(its.key, icid, vcpu))
            elif old.target_vcpu != vcpu:
                effects.append(fx.CollectionRetargeted(its.key, icid, old.target_vcpu, vcpu))
            if gic.profile.lpi_has_target:
                effects += _retarget_collection(gic, its, icid, vcpu)
    if gic.profile.tables_in_memory:
        rdbase = vcpu if valid and vcpu is not None else 0
        effects.append(fx.TableWrite(its.key, "cte", (icid,), valid, (("rdbase", rdbase),)))
    return effects


def _retarget_collection(gic: Gic, its: Its, icid: int, vcpu: int) -> list[Effect]:
    """Kernel: vgic-its.c:update_affinity_collection (v6.12)."""
    effects: list[Effect] = []
    for _, device in sorted(its.devices.items()):
        for ite in device.reached():
            if ite.icid == icid and ite.collection_valid and ite.intid is not None:
                effects += gic.retarget(ite.intid, vcpu)
    return effects


@_handles(Opcode.MAPTI, Opcode.MAPI)
def mapti(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Map an event to an LPI by way of a collection, which need not be mapped.

    Spec:   IHI 0069H, MAPTI and MAPI
    Kernel: vgic-its.c:vgic_its_cmd_handle_mapi (v6.12; v7.3 refuses an LPI that another event maps). For MAPI
    too it reports the codes of MAPTI.
    Differs: the target of an LPI that lives on from an earlier mapping becomes the collection's on every
    profile; up to v6.12 the kernel forgets that, which is what the host rules are to find.
    """
    device_id, event_id, opcode = _event_operands(command)
    intid, icid = _operand(command.intid), _operand(command.icid)
    profile = gic.profile
    code = opcode.name if profile.fine_faults else Opcode.MAPTI.name

    device = gic.find_device(its, device_id)
    if device is None:
        reason = "UNMAPPED_DEVICE"
        if profile.fine_faults and not gic.device_fits(its, device_id):
            reason = "DEVICE_OOR"
        return _fault(its, command, Fault[f"{code}_{reason}"])
    event_bits = device.event_bits or profile.event_bits or 32
    room_for_collection = gic.collection_fits(its, icid)
    if profile.fine_faults and not room_for_collection:
        return _fault(its, command, Fault[f"{code}_COLLECTION_OOR"])
    if event_id >= 1 << event_bits:
        return _fault(its, command, Fault[f"{code}_ID_OOR"])
    if not gic.intid_fits(intid):
        return _fault(its, command, Fault[f"{code}_PHYSICALID_OOR"])

    effects: list[Effect] = []
    old = device.events.get(event_id)
    if old is not None and (old.intid, old.icid) != (intid, icid):
        kept = profile.first_mapping_wins
        effects.append(fx.EventRemapped(its.key, device_id, event_id, old.intid, old.icid, intid, icid, kept))
    if old is not None and profile.first_mapping_wins:
        return [*effects, fx.CommandIgnored(its.key, command, fx.IgnoredReason.ALREADY_MAPPED)]

    has_collection = icid in its.collections
    if profile.placeholder_collections and not has_collection and not room_for_collection:
        return _fault(its, command, Fault.MAPC_COLLECTION_OOR)
    lpi = gic.lpis.get(intid)
    others = sorted((lpi.mapped_by if lpi is not None else set()) - {(its.key, device_id, event_id)})
    if others:
        refused = profile.duplicate_lpi_refused
        effects.append(fx.DuplicateLpi(its.key, intid, device_id, event_id, *others[0], refused))
        if refused:
            return [*effects, fx.CommandFaulted(its.key, command, None, EEXIST)]

    effects += gic.adopt(its, device)
    if old is not None:
        effects += gic.unmap_event(its, device, event_id)
    elif not device.complete and event_id not in device.gone:
        effects.append(fx.Assumed(its.key, fx.Assumption.EVENT_NEW, device_id, event_id))
    if profile.placeholder_collections and not has_collection:
        if its.complete or icid in its.gone_collections:
            its.collections[icid] = Collection(icid, None, placeholder=True)
            its.gone_collections.discard(icid)
            effects.append(fx.CollectionNamed(its.key, icid))
        else:
            effects += gic.adopt_collection(its, icid)
    ite = Ite(event_id, intid, icid)
    device.events[event_id] = ite
    device.gone.discard(event_id)
    mapped, vcpu = gic.collection_of(its, ite)
    effects.append(fx.EventMapped(its.key, device_id, event_id, intid, icid, vcpu))
    effects += _map_lpi(gic, its, (device_id, event_id), intid, vcpu, mapped=mapped)
    if profile.tables_in_memory:
        effects.append(_ite_write(its, device, ite))
    return effects


def _map_lpi(
    gic: Gic, its: Its, event: tuple[int, int], intid: int, vcpu: int | None, *, mapped: bool
) -> list[Effect]:
    """Bind an event to its LPI: a new one reads its property byte and, if it has a target, its pending bit.

    An LPI that was mapped before may live on, referred to by a vCPU's list; then KVM reads nothing. One that another
    event maps keeps its target, too.
    Kernel: vgic-its.c:vgic_add_lpi (v6.12)
    """
    effects: list[Effect] = []
    known = gic.lpis.get(intid)
    fresh = known is None
    shared = known is not None and bool(known.mapped_by)
    lpi = gic.lpi(intid)
    certain = fresh and all(one.complete for one in gic.its.values())
    if gic.profile.lpi_has_target and not shared:
        if gic.pending_on(intid):
            effects += gic.retarget(intid, vcpu)
            lpi.assumed = mapped and vcpu is None
        else:
            lpi.target_vcpu, lpi.assumed = vcpu, mapped and vcpu is None
            effects.append(fx.ConfigRead(intid, certain=certain))
            if vcpu is not None:
                effects.append(fx.PendingTableRead(vcpu, intid))
    lpi.mapped_by.add((its.key, *event))
    return effects


@_handles(Opcode.MOVI)
def movi(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Move an event to another collection, and what is pending of its LPI to that collection's vCPU.

    Spec:   IHI 0069H, MOVI
    Kernel: vgic-its.c:vgic_its_cmd_handle_movi (v6.12). What the old vCPU holds in a list register stays
    there; the caller has said `take`.
    """
    device_id, event_id, opcode = _event_operands(command)
    icid = _operand(command.icid)
    found = gic.find_event(its, device_id, event_id, opcode)
    if isinstance(found, Fault):
        return _fault(its, command, found)
    device, ite = found
    old_mapped, old_vcpu = gic.collection_of(its, ite)
    if gic.profile.movi_needs_old_collection and not old_mapped:
        return _fault(its, command, Fault.MOVI_UNMAPPED_COLLECTION)
    if gic.profile.fine_faults and not gic.collection_fits(its, icid):
        return _fault(its, command, Fault.MOVI_COLLECTION_OOR)
    new_mapped, new_vcpu = gic.collection(its, icid)
    if not new_mapped:
        return _fault(its, command, Fault.MOVI_UNMAPPED_COLLECTION)

    old_icid = ite.icid
    effects = gic.adopt(its, device, ite, icid)
    ite.icid, ite.collection_valid = icid, True
    effects.append(fx.EventMoved(its.key, device_id, event_id, ite.intid, old_icid, icid))
    effects += gic.invalidate_cache(its)
    if ite.intid is not None:
        if gic.profile.lpi_has_target:
            effects += gic.retarget(ite.intid, new_vcpu)
        elif old_vcpu is not None and new_vcpu is not None and old_vcpu != new_vcpu:
            effects.append(fx.LpiRetargeted(ite.intid, old_vcpu, new_vcpu))
            effects += gic.move_pending(ite.intid, old_vcpu, new_vcpu)
    if gic.profile.tables_in_memory:
        effects.append(_ite_write(its, device, ite))
    return effects


@_handles(Opcode.MOVALL)
def movall(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Move the LPIs of one vCPU to another. Collections and events stay as they are.

    Spec:   IHI 0069H, MOVALL
    Kernel: vgic-its.c:vgic_its_cmd_handle_movall (v6.1, v7.3). v6.12 moves every LPI of the VM: a known bug.
    """
    source, target = gic.vcpu_of(_operand(command.rdbase)), gic.vcpu_of(_operand(command.rdbase2))
    if source is None or target is None:
        return _fault(its, command, Fault.MOVALL_PROCNUM_OOR)
    if source == target:
        return [fx.CommandIgnored(its.key, command, fx.IgnoredReason.SAME_TARGET)]
    effects: list[Effect] = []
    pending = sorted(gic.redistributor(source).pending)
    if gic.profile.lpi_has_target:
        for intid, lpi in sorted(gic.lpis.items()):
            unknown = lpi.target_vcpu is None and lpi.assumed
            held = lpi.mapped_by or intid in pending
            if (lpi.target_vcpu == source and held) or (unknown and intid in pending):
                effects += gic.retarget(intid, target)
    else:
        for intid in pending:
            effects += gic.move_pending(intid, source, target)
    return effects + gic.invalidate_cache(its)


@_handles(Opcode.DISCARD)
def discard(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Unmap an event. KVM leaves its LPI pending where it is.

    Spec:   IHI 0069H, DISCARD
    Kernel: vgic-its.c:vgic_its_cmd_handle_discard (v6.12)
    """
    device_id, event_id, opcode = _event_operands(command)
    found = gic.find_event(its, device_id, event_id, opcode)
    if isinstance(found, Fault):
        return _fault(its, command, found)
    device, ite = found
    mapped, vcpu = gic.collection_of(its, ite)
    if not mapped:
        invalid = Fault.DISCARD_ITE_INVALID
        return _fault(its, command, invalid if gic.profile.fine_faults else Fault.DISCARD_UNMAPPED_INTERRUPT)

    effects = gic.adopt(its, device, ite)
    effects += gic.invalidate_cache(its)
    if gic.profile.discard_clears_pending and ite.intid is not None and vcpu is not None:
        effects += gic.clear_pending(vcpu, ite.intid)
    effects += gic.unmap_event(its, device, event_id)
    if gic.profile.tables_in_memory:
        effects.append(_ite_write(its, device, Ite(event_id, None, None)))
    return effects


@_handles(Opcode.CLEAR)
def clear(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Make an event's LPI not pending; what a vCPU has taken stays with it.

    Spec:   IHI 0069H, CLEAR
    Kernel: vgic-its.c:vgic_its_cmd_handle_clear (v6.12): the one pending latch of the LPI, wherever it is
    """
    device_id, event_id, opcode = _event_operands(command)
    found = gic.find_event(its, device_id, event_id, opcode)
    if isinstance(found, Fault):
        return _fault(its, command, found)
    device, ite = found
    mapped, vcpu = gic.collection_of(its, ite)
    if gic.profile.clear_needs_collection and not mapped:
        return _fault(its, command, Fault.CLEAR_ITE_INVALID)
    effects = gic.adopt(its, device, ite)
    if ite.intid is not None:
        everywhere = gic.profile.lpi_has_target or vcpu is None
        for where in gic.pending_on(ite.intid) if everywhere else [vcpu]:
            assert where is not None
            effects += gic.clear_pending(where, ite.intid)
    return effects


@_handles(Opcode.INT)
def int_(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Inject an event, as an MSI does; wrong operands are a `CommandFaulted`, else it is `Gic.inject`.

    Spec:   IHI 0069H, INT
    Kernel: vgic-its.c:vgic_its_cmd_handle_int (v6.12)
    """
    device_id, event_id, _ = _event_operands(command)
    effects = gic.inject(its.key, device_id, event_id)
    if isinstance(effects[0], fx.InjectionRefused) and effects[0].fault is not None:
        return _fault(its, command, effects[0].fault)
    return effects


@_handles(Opcode.INV)
def inv(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Read an event's LPI configuration again.

    Spec:   IHI 0069H, INV
    Kernel: vgic-its.c:vgic_its_cmd_handle_inv (v6.12)
    """
    device_id, event_id, opcode = _event_operands(command)
    found = gic.find_event(its, device_id, event_id, opcode)
    if isinstance(found, Fault):
        return _fault(its, command, found)
    device, ite = found
    if gic.profile.inv_needs_collection and not gic.collection_of(its, ite)[0]:
        return _fault(its, command, Fault.INV_UNMAPPED_INTERRUPT)
    effects = gic.adopt(its, device, ite)
    if ite.intid is not None:
        effects.append(fx.ConfigRead(ite.intid))
    return effects


@_handles(Opcode.INVALL)
def invall(gic: Gic, its: Its, command: Command) -> list[Effect]:
    """Read the configuration of every LPI of the collection's vCPU again, whichever collection it came by.

    Spec:   IHI 0069H, INVALL
    Kernel: vgic-its.c:vgic_its_cmd_handle_invall (v6.12)
    """
    if not gic.profile.invall_by_collection:
        return [fx.ConfigRead(intid, bool(lpi.mapped_by)) for intid, lpi in sorted(gic.lpis.items())]
    icid = _operand(command.icid)
    if gic.profile.fine_faults and not gic.collection_fits(its, icid):
        return _fault(its, command, Fault.INVALL_COLLECTION_OOR)
    mapped, vcpu = gic.collection(its, icid)
    if not mapped:
        return _fault(its, command, Fault.INVALL_UNMAPPED_COLLECTION)
    return gic.adopt_collection(its, icid) + gic.read_configurations(vcpu)


@_handles(Opcode.SYNC)
def sync(_gic: Gic, _its: Its, _command: Command) -> list[Effect]:
    """Nothing: here every command is complete when it returns.

    Kernel: vgic-its.c:vgic_its_handle_command (v6.12)
    """
    return []


def _ite_write(its: Its, device: Device, ite: Ite) -> Effect:
    """What QEMU writes into an ITT. Source: arm_gicv3_its.c:update_ite, ITE_INTTYPE_PHYSICAL is 1."""
    valid = ite.intid is not None
    fields = (
        ("inttype", 1 if valid else 0),
        ("intid", ite.intid or 0),
        ("icid", ite.icid or 0),
        ("vpe_id", 0),
        ("doorbell", SPURIOUS_INTID if valid else 0),
    )
    return fx.TableWrite(its.key, "ite", (device.itt_gpa or 0, ite.event_id), valid, fields)
