"""What is surely in the tables, of all that the model holds or lacks: on this rests what KVM must do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.gic.commands import Opcode

if TYPE_CHECKING:
    from itstrace.gic.commands import Command
    from itstrace.model.state import Device, Its
    from itstrace.replay.vm import VmReplay


def sure_of(vm: VmReplay, table: str, key: tuple[int, ...]) -> bool:
    """An entry that surely holds: it was seen set, or something that was seen is possible only with it.

    What `unseen.learn` found by its use holds from before the capture, and has a value; what a command itself made
    the model assume has none, and what was held when commands were lost has a begin.
    """
    held = getattr(vm.rec, table).open.get((vm.vm, *key))
    if held is None or (table, key) in vm.doubtful:
        return False
    return not held.assumed or (held.from_seq is None and held.values[0] is not None)


def device_sure(vm: VmReplay, its: Its, device_id: int) -> bool:
    """A device that surely is mapped, if only because one of its events is, or was before its DISCARD."""
    if sure_of(vm, "devices", (its.key, device_id)) or (its.key, device_id) in vm.proven_devices:
        return True
    device = its.devices.get(device_id)
    events = () if device is None else device.events
    if any(sure_of(vm, "mappings", (its.key, device_id, event)) for event in events):
        vm.proven_devices.add((its.key, device_id))
        return True
    return False


def mapped_by_any(vm: VmReplay, intid: int) -> bool:
    """An event that surely is mapped maps this LPI."""
    lpi = vm.gic.lpis.get(intid)
    return lpi is not None and any(sure_of(vm, "mappings", event) for event in lpi.mapped_by)


def device_mapped(vm: VmReplay, its: Its, device: Device | None, device_id: int) -> bool | None:
    """Whether a device is mapped; None where that is not known."""
    if ("devices", (its.key, device_id)) in vm.doubtful:
        return None
    if device is not None:
        return True if device_sure(vm, its, device_id) else None
    return False if its.complete or device_id in its.gone_devices else None


def event_mapped(vm: VmReplay, its: Its, mapped: bool | None, key: tuple[int, int]) -> bool | None:
    """Whether an event of a device that is `mapped` is; None where that is not known."""
    device_id, event_id = key
    device = its.devices.get(device_id)
    if ("mappings", (its.key, *key)) in vm.doubtful:
        return None
    if device is None or mapped is not True:
        return mapped
    if event_id in device.events:
        return True if sure_of(vm, "mappings", (its.key, device_id, event_id)) else None
    return False if device.complete or event_id in device.gone else None


def collection_mapped(vm: VmReplay, its: Its, icid: int) -> bool | None:
    """Whether KVM has a collection, be it one without target; None where that is not known."""
    found = its.collections.get(icid)
    if ("collections", (its.key, icid)) in vm.doubtful:
        return None
    if found is None:
        if (its.key, icid) in vm.proven_collections:
            return True
        return False if its.complete or icid in its.gone_collections else None
    known = found.placeholder or (its.key, icid) in vm.proven_collections
    return True if known or sure_of(vm, "collections", (its.key, icid)) else None


def fits(vm: VmReplay, its: Its, command: Command) -> bool:
    """Whether there surely is room: the table's size is known, or something with a larger id has its place."""
    device, icid, intid = command.device_id, command.icid, command.intid
    if command.opcode == Opcode.MAPD:
        assert device is not None
        return its.baser.get(0) is not None or device <= vm.proven_device
    if icid is not None and its.baser.get(1) is None and collection_mapped(vm, its, icid) is not True:
        known = (one for one in its.collections if sure_of(vm, "collections", (its.key, one)))
        if icid > max(known, default=-1):
            return False
    return intid is None or vm.gic.propbaser is not None or intid <= vm.proven_intid


def exists(vm: VmReplay, rdbase: int | None) -> bool:
    """The vCPU is known to exist, or none is named."""
    return rdbase is None or vm.gic.vcpus is not None or rdbase in vm.known_vcpus
