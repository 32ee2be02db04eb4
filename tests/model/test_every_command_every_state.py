"""Every command in every state: it never raises, a fault changes nothing, and its effects say all that changed.

A state is a choice of what is known of each thing that a command may ask for: the ITS and its registers, the device,
the event, the collection that the event has, the one that the command names, the LPI and where it is pending. States
are products of such choices, and every command is given to each on every profile: with operands that are in use, free
and out of range, one at a time.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pytest
from helpers.told_by_effects import told_by

from itstrace.gic import commands as build
from itstrace.gic import registers as reg
from itstrace.gic.commands import Command, Opcode
from itstrace.gic.faults import Fault
from itstrace.model import PROFILES, Gic, Ite
from itstrace.model import effects as fx

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the states speak of, and what a command names if nothing else is said.
DEVICE, EVENT, LPI, ICID, NEW_ICID, RDBASE = 0, 0, 8192, 0, 1, 1
OTHER_DEVICE, OTHER_EVENT, OTHER_LPI = 1, 1, 8193
ITT, OTHER_ITT = 0x4300_0000, 0x4301_0000
VALID = 1 << 63

ITS = ("on", "off", "reset", "small tables", "level 1", "mid-life", "mid-life, small tables")
DEVICES = ("mapped", "unmapped", "gone", "in use", "restored in part")
EVENTS = ("mapped", "unmapped", "shared", "orphan", "unnamed", "gone", "beyond the ITT")
COLLECTIONS = ("mapped", "unmapped", "placeholder", "unknown target", "gone")
LPIS = ("quiet", "pending", "pending elsewhere", "pending twice", "disabled", "LPIs off", "target unknown")


class State(NamedTuple):
    """One choice of each."""

    its: str = "on"
    device: str = "mapped"
    event: str = "mapped"
    collection: str = "mapped"
    new_collection: str = "mapped"
    lpi: str = "pending"


#: All of what decides where an event is found; all of what decides where it goes; and all that may be pending.
STATES = [
    *(State(*some) for some in product(ITS, DEVICES, EVENTS)),
    *(State(*some) for some in product(["on", "mid-life"], ["mapped"], EVENTS[:5], COLLECTIONS, COLLECTIONS)),
    *(
        State(its, "mapped", event, collection, "mapped", lpi)
        for its, event, collection, lpi in product(["on", "mid-life"], EVENTS[:4], COLLECTIONS[:3], LPIS)
    ),
]

#: Operands: the one that the states speak of, then others.
OPERANDS: dict[str, tuple[int, ...]] = {
    "device_id": (DEVICE, 7, 8192, 0x1_0000, 0xFFFF_FFFF),
    "event_id": (EVENT, 3, 4, 0x1_0000, 0xFFFF_FFFF),
    "event_bits": (2, 1, 16, 17, 32),
    "itt_gpa": (ITT, OTHER_ITT),
    "intid": (LPI, OTHER_LPI, 8191, 16384, 0x1_0000),
    "icid": (NEW_ICID, ICID, 9, 8192, 0xFFFF),
    "rdbase": (RDBASE, 0, 2, 3, 0xFFFF_FFFF, 1 << 32 | 1),
    "rdbase2": (0, RDBASE, 3),
    "valid": (1, 0),
}

#: Commands that may have no effect, and why. Nothing has changed then.
NOTHING = {
    Opcode.SYNC: "every command is complete when it returns",
    Opcode.MAPD: "what is not mapped is unmapped, and no cache can hold anything of it",
    Opcode.MAPC: "a collection goes where it went; or what is not mapped is unmapped, and there is no cache",
    Opcode.CLEAR: "the LPI is not pending, or not known",
    Opcode.INV: "the LPI is not known",
    Opcode.INVALL: "no LPI is known to target the vCPU",
    Opcode.MOVALL: "nothing is pending there, and LPIs have no target, and there is no cache",
}


def every_command() -> Iterator[Command]:
    """Each opcode with each operand from each class; GICv4's; and numbers that are no command."""
    for opcode, fields in build.FIELDS.items():
        if opcode.is_gicv4:
            yield build.build(opcode)
            continue
        usual = {name: OPERANDS[name][0] for name in fields if name in OPERANDS}
        if opcode is Opcode.MAPI:
            del usual["intid"]  # it is the EventID
        yield build.build(opcode, **usual)
        for name in usual:
            for other in OPERANDS[name][1:]:
                yield build.build(opcode, **(usual | {name: other}))
    yield build.mapd(DEVICE, ITT, 16)
    yield build.mapi(DEVICE, LPI, NEW_ICID)
    yield build.mapd(DEVICE, ITT, 17, valid=False)
    for rdbase in (0, 2, 3):
        yield build.mapc(ICID, rdbase)
        yield build.mapc(ICID, rdbase, valid=False)
    for number in (0x00, 0x02, 0x06, 0x10, 0x77, 0xFF):
        yield Command((number | DEVICE << 32, EVENT, NEW_ICID, 0))


COMMANDS = list(every_command())


def gic_in(profile: str, state: State) -> Gic | None:
    """A VM in a state; None where its parts contradict one another, or the profile knows no such thing."""
    gic = Gic(PROFILES[profile], vcpus=range(3))
    for what, there in (
        ("orphan", gic.profile.unmapped_collection_orphans),
        ("placeholder", gic.profile.placeholder_collections),
        ("beyond the ITT", gic.profile.tables_in_memory),
    ):
        if what in state and not there:
            return None
    _put_its(gic, state.its)
    _put_device(gic, state.device)
    device = gic.its[0].devices.get(DEVICE)
    if device is None and state.event != "unmapped":
        return None
    for icid, what in ((ICID, state.collection), (NEW_ICID, state.new_collection)):
        _put_collection(gic, icid, what)
    if device is not None:
        _put_event(gic, state.event)
    _put_lpi(gic, state.lpi)
    return gic


def _put_its(gic: Gic, state: str) -> None:
    its = gic.add_its(0, complete=not state.startswith("mid-life"))
    gic.add_its(1, complete=True)
    if "small tables" in state or state == "level 1":
        gic.write_redistributor(0, reg.GICR_PROPBASER, 0x4100_0000 | 13, 8)  # 14 bits of INTID
        device_table = VALID | (state == "level 1") << 62 | 1 << 56 | 7 << 48 | 2 << 8 | 0x4200_0000
        gic.write_its(0, reg.GITS_BASER, device_table, 8)
        gic.write_its(0, reg.GITS_BASER + 8, VALID | 4 << 56 | 7 << 48 | 2 << 8 | 0x4202_0000, 8)
        its.l1_valid = {0: True, 1: False} if state == "level 1" else {}
    if state != "reset":
        gic.write_its(0, reg.GITS_CBASER, VALID | 0x4203_0000, 8)
        its.enabled = state != "off"


def _put_device(gic: Gic, state: str) -> None:
    gic.restore_device(0, OTHER_DEVICE, OTHER_ITT, 2)
    match state:
        case "mapped":
            gic.restore_device(0, DEVICE, ITT, 2)
        case "gone":
            if not gic.its[0].complete:
                gic.its[0].gone_devices.add(DEVICE)
        case "in use":
            gic.restore_event(0, DEVICE, OTHER_EVENT, OTHER_LPI, None)
        case "restored in part":
            gic.restore_device(0, DEVICE, ITT, 2, complete=False)


def _put_collection(gic: Gic, icid: int, state: str) -> None:
    match state:
        case "mapped":
            gic.restore_collection(0, icid, icid)
        case "placeholder":
            gic.restore_collection(0, icid, None, placeholder=True)
        case "unknown target":
            gic.restore_collection(0, icid, None)
        case "gone":
            if not gic.its[0].complete:
                gic.its[0].gone_collections.add(icid)


def _put_event(gic: Gic, state: str) -> None:
    its = gic.its[0]
    device, enabled = its.devices[DEVICE], its.enabled
    match state:
        case "mapped":
            gic.restore_event(0, DEVICE, EVENT, LPI, ICID)
        case "shared":
            gic.restore_event(0, OTHER_DEVICE, EVENT, LPI, ICID)
            gic.restore_event(0, DEVICE, EVENT, LPI, ICID)
        case "orphan":
            gic.restore_event(0, DEVICE, EVENT, LPI, ICID, collection_valid=False)
        case "unnamed":  # it was seen to be moved, which does not tell its LPI
            gic.adopt(its, device, Ite(EVENT, None, None, assumed=True))
        case "gone":
            device.complete = False
            device.gone.add(EVENT)
        case "beyond the ITT":  # where tables are in memory, and the ITT was made smaller
            for command in (build.mapd(0, ITT, 3), build.mapti(0, 7, LPI, ICID), build.mapd(0, ITT, 2)):
                gic.step(0, command)
            its.enabled = enabled


def _put_lpi(gic: Gic, state: str) -> None:
    gic.configure(LPI, 0xA2 if state == "disabled" else 0xA3)
    lpi = gic.lpis[LPI]
    if state == "target unknown":
        lpi.target_vcpu, lpi.assumed = None, True
    home = lpi.target_vcpu or 0
    pending_on = {
        "quiet": (),
        "pending elsewhere": (home + 1,),
        "pending twice": (home, home + 1),
    }.get(state, (home,))
    for vcpu in pending_on:
        gic.set_pending(vcpu, LPI)
    for vcpu in range(3):
        gic.redistributor(vcpu).enable_lpis = None if state == "target unknown" else state != "LPIs off"


def run(profile: str) -> dict[Opcode | int, set[Fault | str]]:
    """All commands in all states; what each opcode came to."""
    outcomes: dict[Opcode | int, set[Fault | str]] = {}
    for state in STATES:
        gic = gic_in(profile, state)
        if gic is None:
            continue
        for command in COMMANDS:
            try:
                outcome = step(gic.clone(), gic, command)
            except Exception as error:
                error.add_note(f"{profile}, {state}: {command}")
                raise
            outcomes.setdefault(command.opcode, set()).add(outcome)
    return outcomes


def step(gic: Gic, before: Gic, command: Command) -> Fault | str:
    """One command, with all that must hold of it; what it came to."""
    told = told_by(gic)
    effects = gic.step(0, command)
    told.apply(effects)
    assert told == told_by(gic), "the effects say something else than what happened"
    assert_sound(gic)
    first = gic.its[0]
    first.enabled, first.creadr = before.its[0].enabled, before.its[0].creadr
    faults = [effect for effect in effects if isinstance(effect, fx.CommandFaulted)]
    idle = [effect for effect in effects if isinstance(effect, fx.UnknownCommand | fx.InjectionRefused)]
    # An ITS that takes commands is on, whatever was seen of its registers.
    rest = [effect for effect in effects if effect != fx.Assumed(0, fx.Assumption.ITS_ENABLED)]
    if not rest:
        assert command.opcode in NOTHING, f"{command} has no effect"
        first.gone_devices, first.gone_collections = set(), set()  # that something is not mapped may be news
        before = before.clone()
        before.its[0].gone_devices, before.its[0].gone_collections = set(), set()
    if faults or idle or not rest:
        assert gic == before, "what did nothing has changed something"
    if not rest:
        return "nothing"
    if faults:
        (fault,) = faults
        assert effects[-1] is fault
        asked = (fx.CommandFaulted, fx.DuplicateLpi, fx.EventRemapped)
        assert all(isinstance(effect, asked) for effect in rest)
        return fault.fault or "EEXIST"
    if idle:
        assert rest == idle
        return "unknown" if isinstance(idle[0], fx.UnknownCommand) else "EBUSY"
    return "ok"


def assert_sound(gic: Gic) -> None:
    """Which LPI is mapped by what stands twice in a GIC, and must be the same; every object stands under its own id."""
    mapped: dict[int, set[tuple[int, int, int]]] = {}
    for key, its in gic.its.items():
        for device_id, device in its.devices.items():
            assert device.device_id == device_id
            for event_id, ite in device.events.items():
                assert ite.event_id == event_id
                assert event_id not in device.gone
                if ite.intid is not None and ite in device.reached():
                    mapped.setdefault(ite.intid, set()).add((key, device_id, event_id))
        assert not its.gone_devices & its.devices.keys()
        assert not its.gone_collections & its.collections.keys()
        assert all(one.icid == icid for icid, one in its.collections.items())
    assert {intid: lpi.mapped_by for intid, lpi in gic.lpis.items() if lpi.mapped_by} == mapped


#: The errors that KVM's vITS has. Kernel: include/linux/irqchip/arm-gic-v3.h:E_ITS_* (v6.12), less those of GICv4
KVM_FAULTS = {
    Fault.MOVI_UNMAPPED_INTERRUPT,
    Fault.MOVI_UNMAPPED_COLLECTION,
    Fault.INT_UNMAPPED_INTERRUPT,
    Fault.CLEAR_UNMAPPED_INTERRUPT,
    Fault.MAPD_DEVICE_OOR,
    Fault.MAPD_ITTSIZE_OOR,
    Fault.MAPC_PROCNUM_OOR,
    Fault.MAPC_COLLECTION_OOR,
    Fault.MAPTI_UNMAPPED_DEVICE,
    Fault.MAPTI_ID_OOR,
    Fault.MAPTI_PHYSICALID_OOR,
    Fault.INV_UNMAPPED_INTERRUPT,
    Fault.INVALL_UNMAPPED_COLLECTION,
    Fault.MOVALL_PROCNUM_OOR,
    Fault.DISCARD_UNMAPPED_INTERRUPT,
}
FAULTS = {
    "architecture": set(Fault) - {Fault.MAPD_ITTSIZE_OOR},  # no limit of event ids is known
    "kvm-6.1": KVM_FAULTS,
    "kvm-6.12": KVM_FAULTS,
    "kvm-7.3": KVM_FAULTS,
    "qemu": set(Fault)
    - {Fault.INVALL_COLLECTION_OOR, Fault.INVALL_UNMAPPED_COLLECTION},  # it looks at nothing
}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_command_in_every_state(profile: str) -> None:
    """And each comes to all that it can: success, and every fault that the profile has."""
    outcomes = run(profile)
    came_to = set().union(*outcomes.values())
    assert {outcome for outcome in came_to if isinstance(outcome, Fault)} == FAULTS[profile]
    assert ("EEXIST" in came_to) == PROFILES[profile].duplicate_lpi_refused
    assert outcomes[Opcode.INT] >= {"ok", "EBUSY"}
    for opcode, outcome in outcomes.items():
        handled = isinstance(opcode, Opcode) and not opcode.is_gicv4
        assert handled != ("unknown" in outcome)
        assert not handled or outcome & {"ok", "nothing"}
