"""What KVM must do because of each command, register write and invalidation: rows of EXPECTED.

What the commands make of the tables stands in the interval frames; this is the other half, what KVM is to be seen
doing for it. A row is `certain` only where everything that the command depends on is known from the capture:
entries that are only assumed, or that may have changed among lost commands, make it something that may be.

Source: vgic-its.c of v6.1, v6.12 and v7.3; where they differ, the row says what all of them do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from itstrace.gic.commands import Opcode
from itstrace.model import effects as fx
from itstrace.model.profiles import CacheScope
from itstrace.replay import known

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from itstrace.gic.commands import Command
    from itstrace.replay.vm import VmReplay

#: (ITS, what, device, event, LPI, ICID, vCPU, certain)
Row = tuple[int | None, str, int | None, int | None, int | None, int | None, int | None, bool]

#: MAPTI that ends so has allocated, and freed again. Kernel: vgic-its.c:vgic_its_cmd_handle_mapi (v7.3)
_UNDONE = "errno 17"
#: Commands for which nothing needs to be known.
_ASK_NOTHING = frozenset({Opcode.SYNC, Opcode.INT})
#: Commands that change no table.
_CHANGE_NOTHING = frozenset({Opcode.SYNC, Opcode.INT, Opcode.CLEAR, Opcode.INV, Opcode.INVALL})


def _row(
    what: str,
    its: int | None = None,
    *,
    device: int | None = None,
    event: int | None = None,
    intid: int | None = None,
    icid: int | None = None,
    vcpu: int | None = None,
    certain: bool = False,
) -> Row:
    # An RDbase that is no vCPU's, of a guest whose vCPUs are not known, may be too large for one.
    return its, what, device, event, intid, icid, None if vcpu is None or vcpu >> 31 else vcpu, certain


@dataclass(slots=True)
class Before:
    """A command, and what was known of its operands when it came. None: whether it was mapped is not known."""

    its: int
    command: Command
    device: bool | None = None
    event: bool | None = None
    collection: bool | None = None
    #: The collection that the event goes by surely is mapped.
    route: bool = False
    #: There is room for the device, the collection, the LPI, as far as the tables or what else is mapped tell.
    fits: bool = True
    #: Of MAPD: the device's events (event, LPI, surely mapped), and whether there are no others.
    events: list[tuple[int, int | None, bool]] = field(default_factory=list)
    whole: bool = True
    #: Of MOVALL: the LPIs of the vCPU that it names first, and whether each surely is.
    lpis: list[tuple[int, bool]] = field(default_factory=list)
    #: The vCPUs that the command names exist.
    vcpus: bool = True


def before(vm: VmReplay, key: int, command: Command) -> Before:
    """Look at a command's operands before the model takes it."""
    its = vm.gic.its[key]
    found = Before(key, command)
    if command.opcode in _ASK_NOTHING:
        return found
    device_id, event_id = command.device_id, command.event_id
    if device_id is not None:
        device = its.devices.get(device_id)
        found.device = known.device_mapped(vm, its, device, device_id)
        if event_id is not None:
            found.event = known.event_mapped(vm, its, found.device, (device_id, event_id))
            ite = None if device is None else device.events.get(event_id)
            # One that was learnt by its use goes by some collection, or it could not have been used.
            found.route = ite is not None and ite.collection_valid
            if ite is not None and ite.icid is not None:
                found.route &= known.collection_mapped(vm, its, ite.icid) is True
        elif device is not None:
            found.whole = device.complete
            found.events = [
                (event, ite.intid, known.sure_of(vm, "mappings", (key, device.device_id, event)))
                for event, ite in sorted(device.events.items())
            ]
    if command.icid is not None:
        found.collection = known.collection_mapped(vm, its, command.icid)
    found.fits = known.fits(vm, its, command)
    found.vcpus = all(known.exists(vm, rdbase) for rdbase in (command.rdbase, command.rdbase2))
    if command.opcode == Opcode.MOVALL and command.rdbase is not None:
        source = vm.gic.vcpu_of(command.rdbase)
        found.lpis = [
            (
                intid,
                bool(lpi.mapped_by)
                and known.sure_of(vm, "targets", (intid,))
                and known.mapped_by_any(vm, intid),
            )
            for intid, lpi in sorted(vm.gic.lpis.items())
            if source is not None and lpi.target_vcpu == source
        ]
    return found


def of_command(
    vm: VmReplay, was: Before, effects: list[fx.Effect], verdict: tuple[str, str | None, str | None]
) -> Iterator[Row]:
    """What a command must be seen to do, after the model has taken it."""
    key, command = was.its, was.command
    ok = verdict[0] == "ok"
    opcode = command.opcode
    device, event, icid = command.device_id, command.event_id, command.icid
    intid = next((e.intid for e in effects if isinstance(e, fx.EventMoved | fx.EventUnmapped)), None)
    if opcode == Opcode.INT:
        # Called for every INT; what may be wrong with it is found out within.
        # Kernel: vgic-its.c:vgic_its_cmd_handle_int (v6.12)
        yield _row("trigger", key, device=device, event=event, certain=True)
        return
    if verdict[0] in ("fault", "ignored"):
        unsure = verdict[0] == "ignored" and opcode in (Opcode.MAPTI, Opcode.MAPI) and was.event is not True
        if unsure or verdict[1] == _UNDONE:
            yield from (_row(what, key) for what in ("alloc_event", "free_event", "config_read"))
            yield from (_row(what, key, icid=icid) for what in ("alloc_collection", "free_collection"))
        return
    match opcode:
        case Opcode.MAPD:
            sure = ok and was.fits
            yield from _mapd(vm, was, sure=sure)
            yield from _invalidations(vm, effects, certain=sure and was.device is True)
        case Opcode.MAPC:
            yield from _mapc(vm, was, ok=ok)
            yield from _invalidations(vm, effects, certain=ok)
        case Opcode.MAPTI | Opcode.MAPI:
            sure = ok and was.device is True and was.event is False and was.fits
            yield from _mapti(was, effects, sure=sure)
        case Opcode.MOVI:
            sure = ok and was.event is True and was.route and was.collection is True
            assert icid is not None
            vcpu = vm.gic.collection(vm.gic.its[key], icid)[1]
            # Also where it has that target already. Kernel: vgic-its.c:vgic_its_cmd_handle_movi (v6.12)
            surely = sure and intid is not None
            yield _row("retarget", key, device=device, event=event, intid=intid, vcpu=vcpu, certain=surely)
            yield from _invalidations(vm, effects, certain=sure)
        case Opcode.MOVALL:
            sure = ok and was.vcpus
            assert command.rdbase2 is not None
            target = vm.gic.vcpu_of(command.rdbase2)
            for lpi, live in was.lpis:
                yield _row("retarget", key, intid=lpi, vcpu=target, certain=sure and live)
            yield from _invalidations(vm, effects, certain=sure)
        case Opcode.DISCARD:
            sure = ok and was.event is True and was.route
            yield _row("free_event", key, device=device, event=event, intid=intid, certain=sure)
            yield from _invalidations(vm, effects, certain=sure)
        case Opcode.CLEAR:
            ite = _event_of(vm, key, device, event)
            yield _row(
                "clear_pending", key, device=device, event=event, intid=ite, certain=ok and was.event is True
            )
        case Opcode.INV:
            ite = _event_of(vm, key, device, event)
            yield _row(
                "config_read", key, device=device, event=event, intid=ite, certain=ok and was.event is True
            )
        case Opcode.INVALL:
            assert icid is not None
            vcpu = vm.gic.collection(vm.gic.its[key], icid)[1]
            sure = ok and was.collection is True and vcpu is not None
            yield _row("invall", key, icid=icid, vcpu=vcpu, certain=sure)
            yield from _reads(vm, key, effects, certain=sure)
            # From v6.10 on it reads them all, and filters afterwards. Kernel: vgic-its.c:vgic_its_invall
            yield _row("config_read", key)


def settle(vm: VmReplay, was: Before, effects: Iterable[fx.Effect], verdict: str) -> None:
    """Remember of which entries it is not known whether a command, which may have failed, changed them."""
    key, command = was.its, was.command
    if command.opcode in _CHANGE_NOTHING:
        return
    device, event, icid = command.device_id, command.event_id, command.icid
    ok = verdict == "ok"
    if verdict == "fault" or (verdict == "ignored" and was.event is True):
        return
    touched: list[tuple[str, tuple[int, ...]]] = [
        ("targets", (effect.intid,)) for effect in effects if isinstance(effect, fx.LpiRetargeted)
    ]
    match command.opcode:
        case Opcode.MAPD:
            assert device is not None
            # That it is not mapped after V=0 is sure, whether it was or not.
            sure = was.fits or not command.valid
            touched.append(("devices", (key, device)))
            vm.doubtful -= {
                one for one in vm.doubtful if one[0] == "mappings" and one[1][:2] == (key, device)
            }
        case Opcode.MAPC:
            assert icid is not None
            sure = (ok and was.vcpus and (was.collection is True or was.fits)) or not command.valid
            touched.append(("collections", (key, icid)))
            vm.proven_collections.discard((key, icid))
            if not command.valid:
                # Events that were learnt by their use may have gone by it.
                vm.doubtful |= {
                    ("mappings", (key, device_id, event_id))
                    for device_id, one in vm.gic.its[key].devices.items()
                    for event_id, ite in one.events.items()
                    if ite.icid is None
                }
        case Opcode.MAPTI | Opcode.MAPI | Opcode.MOVI | Opcode.DISCARD:
            assert device is not None
            assert event is not None
            mapping = command.opcode in (Opcode.MAPTI, Opcode.MAPI)
            sure = ok and was.fits and was.event is not None
            sure &= was.device is True if mapping else was.route
            if command.opcode == Opcode.MOVI:
                sure &= was.collection is True
            touched.append(("mappings", (key, device, event)))
            if mapping and command.intid is not None:
                touched.append(("targets", (command.intid,)))
        case _:
            sure = ok and was.vcpus
    if sure:
        vm.doubtful -= set(touched)
    else:
        vm.doubtful |= set(touched)


def prove(vm: VmReplay, was: Before, intid: int) -> None:
    """A MOVI was seen to be carried out: its collection is mapped, and its event, to that LPI."""
    key, command = was.its, was.command
    if command.device_id is None or command.event_id is None or command.icid is None:
        return
    vm.proven_collections.add((key, command.icid))
    device = vm.gic.its[key].devices.get(command.device_id)
    ite = None if device is None else device.events.get(command.event_id)
    if ite is not None and ite.intid == intid:
        vm.doubtful.discard(("mappings", (key, command.device_id, command.event_id)))
        vm.doubtful.discard(("targets", (intid,)))


def forget(vm: VmReplay, its: int) -> None:
    """Nothing that was proven of an ITS's tables holds any more: they were set anew, or commands were lost."""
    vm.proven_devices = {one for one in vm.proven_devices if one[0] != its}
    vm.proven_collections = {one for one in vm.proven_collections if one[0] != its}


def of_others(vm: VmReplay, effects: Iterable[fx.Effect]) -> Iterator[Row]:
    """What a register write must be seen to do."""
    for effect in effects:
        match effect:
            case fx.TableSet(its):
                forget(vm, its)
            case fx.CacheInvalidated():
                yield from _invalidations(vm, [effect], certain=True)
            case fx.DeviceUnmapped(its, device):
                yield _row("free_device", its, device=device)
            case fx.EventUnmapped(its, device, event, intid):
                yield _row("free_event", its, device=device, event=event, intid=intid)
            case fx.CollectionUnmapped(its, icid):
                yield _row("free_collection", its, icid=icid)


def of_invalidation(
    vm: VmReplay, what: str, intid: int | None, effects: Iterable[fx.Effect]
) -> Iterator[Row]:
    """What GICR_INVLPIR (of an LPI) or GICR_INVALLR must be seen to do; KVM was seen to begin with it."""
    if what == "invallr":
        yield from _reads(vm, None, effects, certain=True)
    else:
        yield _row("config_read", intid=intid, certain=intid is not None)


def _reads(vm: VmReplay, its: int | None, effects: Iterable[fx.Effect], *, certain: bool) -> Iterator[Row]:
    """The property bytes that must be read."""
    for effect in effects:
        if isinstance(effect, fx.ConfigRead):
            sure = certain and effect.certain and known.mapped_by_any(vm, effect.intid)
            sure &= known.sure_of(vm, "targets", (effect.intid,))
            yield _row("config_read", its, intid=effect.intid, certain=sure)


def _mapd(vm: VmReplay, was: Before, *, sure: bool) -> Iterator[Row]:
    key, command = was.its, was.command
    device = command.device_id
    if was.device is not False:
        yield _row("free_device", key, device=device, certain=sure and was.device is True)
        for event, intid, mapped in was.events:
            surely = sure and was.device is True and mapped
            yield _row("free_event", key, device=device, event=event, intid=intid, certain=surely)
        if was.device is None or not was.whole:
            yield _row("free_event", key, device=device)
            yield from _invalidations(vm, [fx.CacheInvalidated((key,), certain=False)], certain=False)
    if command.valid:
        yield _row("alloc_device", key, device=device, certain=sure)


def _mapc(vm: VmReplay, was: Before, *, ok: bool) -> Iterator[Row]:
    key, command = was.its, was.command
    icid = command.icid
    assert icid is not None
    assert command.rdbase is not None
    if not command.valid:
        # Called whether it exists or not. Kernel: vgic-its.c:vgic_its_cmd_handle_mapc (v6.12)
        checked = was.vcpus or not vm.gic.profile.mapc_always_checks_target
        yield _row("free_collection", key, icid=icid, certain=ok and checked)
        return
    vcpu = vm.gic.vcpu_of(command.rdbase)
    sure = ok and was.vcpus
    if was.collection is not True:
        yield _row(
            "alloc_collection",
            key,
            icid=icid,
            vcpu=vcpu,
            certain=sure and was.collection is False and was.fits,
        )
    if was.collection is False:
        return
    # Every event of it, whatever the target was. Kernel: vgic-its.c:update_affinity_collection (v6.12)
    its = vm.gic.its[key]
    for device_id, device in sorted(its.devices.items()):
        for event_id, ite in sorted(device.events.items()):
            if ite.icid == icid and ite.collection_valid and ite.intid is not None:
                surely = sure and was.collection is True
                surely &= known.sure_of(vm, "mappings", (key, device_id, event_id))
                yield _row(
                    "retarget",
                    key,
                    device=device_id,
                    event=event_id,
                    intid=ite.intid,
                    icid=icid,
                    vcpu=vcpu,
                    certain=surely,
                )
    if not its.complete or not all(device.complete for device in its.devices.values()):
        yield _row("retarget", key, icid=icid, vcpu=vcpu)


def _mapti(was: Before, effects: list[fx.Effect], *, sure: bool) -> Iterator[Row]:
    key, command = was.its, was.command
    device, event, intid, icid = command.device_id, command.event_id, command.intid, command.icid
    yield _row("alloc_event", key, device=device, event=event, intid=intid, icid=icid, certain=sure)
    if was.collection is not True:
        yield _row("alloc_collection", key, icid=icid, certain=sure and was.collection is False)
    first = any(isinstance(effect, fx.ConfigRead) and effect.certain for effect in effects)
    # An LPI that is mapped elsewhere, or still on a vCPU's list, lives on, and nothing is read.
    # Kernel: vgic-its.c:vgic_add_lpi (v6.12)
    yield _row("config_read", key, device=device, event=event, intid=intid, certain=sure and first)


def _invalidations(vm: VmReplay, effects: Iterable[fx.Effect], *, certain: bool) -> Iterator[Row]:
    """Caches to be dropped: of one ITS, or the VM's (6.1 has but one)."""
    for effect in effects:
        if isinstance(effect, fx.CacheInvalidated):
            sure = certain and effect.certain
            if vm.gic.profile.cache is CacheScope.VM or len(effect.its_keys) != 1:
                yield _row("invalidate", certain=sure)
            else:
                yield _row("invalidate", effect.its_keys[0], certain=sure)


def _event_of(vm: VmReplay, key: int, device_id: int | None, event_id: int | None) -> int | None:
    """The LPI that an event maps."""
    device = None if device_id is None else vm.gic.its[key].devices.get(device_id)
    ite = None if device is None or event_id is None else device.events.get(event_id)
    return None if ite is None else ite.intid
