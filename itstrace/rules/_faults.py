"""Commands that the model refused, sorted by what is to blame: shared by ITS101 to ITS104."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from itstrace.gic.commands import Command, Opcode, describe
from itstrace.gic.faults import Fault
from itstrace.model import effects as fx
from itstrace.rules.case import Case, first_some
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.findings import Finding
    from itstrace.replay import Note


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that the ITS refused, and the code of the rule that is about it."""

    note: Note
    its: int
    command: Command
    fault: Fault
    code: str


def refused(case: Case) -> Iterator[Refused]:
    """Refused commands of guests. KVM's own codes are coarse, so the tables of that moment say what was missing."""
    for note in case.history.notes:
        effect = note.effect
        if note.user or note.command is None:
            continue
        if isinstance(effect, fx.CommandFaulted | fx.InjectionRefused) and effect.fault is not None:
            yield Refused(
                note, effect.its, note.command, effect.fault, _blame(note, note.command, effect.fault)
            )


def _blame(note: Note, command: Command, fault: Fault) -> str:
    """Which of ITS101 to ITS104 a refused command is."""
    if fault.name.endswith("_OOR"):
        return "ITS104"
    if command.device_id is None:
        return "ITS103"
    if not note.device_mapped:
        return "ITS101"
    if command.event_id is not None and note.event_bits is not None and command.event_id >> note.event_bits:
        return "ITS104"
    mapping = command.opcode in (Opcode.MAPTI, Opcode.MAPI)
    return "ITS103" if mapping or note.event_mapped else "ITS102"


def report(case: Case) -> Iterator[Finding]:
    """One finding per command and operands, of those that are this rule's."""
    groups: dict[tuple[object, ...], list[Refused]] = {}
    for one in refused(case):
        if one.code == case.rule.code:
            key = (
                one.note.vm,
                one.its,
                one.command.opcode,
                one.command.device_id,
                one.command.event_id,
                None if one.command.event_id is not None else one.command.icid,
                one.fault,
            )
            groups.setdefault(key, []).append(one)
    for members in groups.values():
        first, last = members[0], members[-1]
        why = f" ({first.fault.name}, 0x{first.fault:06x})"
        yield case.finding(
            f"{describe(first.command)} was refused {times(len(members))}: {_missing(first)}{why}. "
            f"{case.host} skips such a command silently; the guest is not told.",
            vm=first.note.vm,
            its=first.its,
            device_id=first.command.device_id,
            event_id=first.command.event_id,
            intid=first.command.intid if first.command.opcode == Opcode.MAPTI else None,
            time_ns=first.note.time_ns,
            end_ns=last.note.time_ns,
            count=len(members),
            seqs=first_some(one.note.command_seq for one in members[:4]),
        )


def _missing(one: Refused) -> str:
    command = one.command
    if one.code == "ITS101":
        return f"device 0x{command.device_id:x} is not mapped"
    if one.code == "ITS102":
        return f"event {command.event_id} of device 0x{command.device_id:x} is not mapped"
    if one.code == "ITS103":
        if command.icid is not None and one.fault is not Fault.MOVI_UNMAPPED_INTERRUPT:
            return f"collection {command.icid}, or the event's own, is not mapped"
        return "the collection that the event uses is not mapped"
    return {
        Fault.MAPD_DEVICE_OOR: f"device 0x{command.device_id or 0:x} lies beyond the device table",
        Fault.MAPD_ITTSIZE_OOR: f"{command.event_bits} event bits are more than the ITS has",
        Fault.MAPC_PROCNUM_OOR: f"there is no vCPU {command.rdbase}",
        Fault.MAPC_COLLECTION_OOR: f"collection {command.icid} lies beyond the collection table",
        Fault.MAPTI_ID_OOR: f"event {command.event_id} lies beyond the device's ITT",
        Fault.MAPTI_PHYSICALID_OOR: f"INTID {command.intid} is no LPI that PROPBASER allows",
        Fault.MOVALL_PROCNUM_OOR: f"there is no vCPU {command.rdbase} or {command.rdbase2}",
    }.get(one.fault, "an operand lies beyond its limit")
