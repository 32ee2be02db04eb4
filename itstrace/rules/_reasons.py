"""Why a command was refused: what was missing, and what took it away or kept it from being there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from itstrace.gic.commands import Command, Opcode
from itstrace.model import effects as fx
from itstrace.rules._past import Entries, Key
from itstrace.rules.case import once
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from itstrace.gic.faults import Fault
    from itstrace.replay import Note
    from itstrace.rules.case import Case

MAPPING = (Opcode.MAPTI, Opcode.MAPI)
_EVENT = ("vm", "its", "device_id", "event_id")
_COLLECTION = ("vm", "its", "icid")


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that the ITS refused, and the code of the rule that is about it."""

    note: Note
    its: int
    command: Command
    fault: Fault
    code: str

    @property
    def opcode(self) -> str:
        """The command's name."""
        return self.command.name or f"opcode 0x{self.command.opcode_number:02x}"

    @property
    def device(self) -> Key:
        """The device that it names."""
        return self.note.vm, self.its, self.command.device_id

    @property
    def event(self) -> Key:
        """The event that it names."""
        return *self.device, self.command.event_id

    def collection(self, icid: int | None) -> Key:
        """A collection of its ITS."""
        return self.note.vm, self.its, icid


@dataclass(frozen=True, slots=True)
class Why:
    """What was missing for a refused command, and how it went missing."""

    missing: str
    mechanism: str
    #: The command that took it away, or that should have put it there and could not.
    blamed: int | None = None
    #: Since when it is known to be missing; None: from the beginning.
    since_ns: int | None = None
    #: Two devices that lack this are two mistakes.
    by_device: bool = False


class Reasons:
    """How what refused commands needed went missing."""

    def __init__(self, case: Case, mine: Sequence[Refused]) -> None:
        self._case = case
        mappings = case.history.mappings
        self._mappings = Entries(mappings, _EVENT, {one.event for one in mine if None not in one.event})
        self._devices = Entries(
            case.history.devices, _EVENT[:3], {o.device for o in mine if None not in o.device}
        )
        wanted = {*mappings.select(_COLLECTION).drop_nulls().unique().iter_rows()}
        wanted |= {one.collection(one.command.icid) for one in mine if one.command.icid is not None}
        self._collections = Entries(case.history.collections, _COLLECTION, wanted)
        self._failed = _failed(case)
        unread = case.observations.commands.filter(~pl.col("readable")).sort("seq")
        self._unread = list(unread.select("vm", "its", "seq").iter_rows())

    def why(self, one: Refused) -> Why:
        """What was missing, and how it went missing."""
        if one.code == "ITS101":
            what = f"device 0x{one.command.device_id:x}"
            return self._unmapped(one, what, "a device", one.device, self._devices)
        if one.code == "ITS102":
            what = f"event {one.command.event_id} of device 0x{one.command.device_id:x}"
            return self._unmapped(one, what, "an event", one.event, self._mappings)
        return self._no_collection(one) if one.code == "ITS103" else _out_of_range(one)

    def _unmapped(self, one: Refused, what: str, kind: str, key: Key, entries: Entries) -> Why:
        """A device or an event that is not mapped: its mapping was refused, or undone, or never asked for."""
        gone = entries.gone(key, one.note.seq)
        ended = 0 if gone is None else gone["to_seq"]
        tried = [seq for seq in self._failed.get(key, ()) if ended < seq < one.note.seq]
        maker = "MAPD" if kind == "a device" else "MAPTI"
        if tried:
            return Why(
                f"{what} is not mapped, for its {maker}{self._when(tried[-1])} was itself refused",
                f"use of {kind} whose {maker} was refused",
                tried[-1],
                self._case.command_time(tried[-1]),
            )
        unread = [seq for vm, its, seq in self._unread if (vm, its) == key[:2] and ended < seq < one.note.seq]
        if unread:
            when = seconds(self._case.command_time(unread[-1]))
            return Why(
                f"{what} is not mapped; its {maker} may have been in the slot that could not be read at {when}",
                f"use of {kind} whose {maker} may not have been read",
                unread[-1],
                None if gone is None else gone["to_ns"],
            )
        if gone is None:
            return Why(
                f"{what} is not mapped, and never was",
                f"{one.opcode} of {kind} that nothing mapped",
                by_device=True,
            )
        by, since_ns = gone["ended_by"], gone["to_ns"]
        opcode = self._case.command_text(by).partition(" ")[0]
        how = f"it went with all others at {seconds(since_ns)}"
        if by is not None:
            how = f"{'MAPD V=0' if opcode == 'MAPD' else opcode}{self._when(by)} unmapped it"
        if kind == "an event" and opcode == "MAPD":
            return Why(
                f"{what} is not mapped any more: MAPD of its device{self._when(by)} freed it",
                "use of events that MAPD of their device freed",
                by,
                since_ns,
            )
        return Why(
            f"{what} is not mapped any more: {how}",
            f"{one.opcode} of {kind} that was unmapped",
            by,
            since_ns,
            by_device=True,
        )

    def _no_collection(self, one: Refused) -> Why:
        """The event's own collection, or the one that the command names, has no target."""
        own = self._mappings.before(one.event, one.note.seq)
        if own is not None and own["icid"] is None and not own["assumed"]:
            return Why(
                f"MAPC{self._when(own['set_by'])} unmapped the collection that event {one.command.event_id} of device "
                f"0x{one.command.device_id:x} used, and {self._case.host} does not give it back",
                "use of events that lost their collection",
                own["set_by"],
                own["from_ns"],
            )
        if own is not None and (
            one.command.opcode is not Opcode.MOVI or not self._has_target(one, own["icid"])
        ):
            mechanism = f"{one.opcode} of an event whose collection is not mapped"
            return self._unmapped_collection(one, own["icid"], mechanism, own["set_by"])
        to = "to" if one.command.opcode is Opcode.MOVI else "of"
        return self._unmapped_collection(
            one, one.command.icid, f"{one.opcode} {to} a collection that is not mapped", None
        )

    def _unmapped_collection(
        self, one: Refused, icid: int | None, mechanism: str, mapped_by: int | None
    ) -> Why:
        key, what = one.collection(icid), f"collection {icid} is not mapped"
        gone = self._collections.gone(key, one.note.seq)
        tried = [seq for seq in self._failed.get(("icid", *key), ()) if seq < one.note.seq]
        if gone is not None and gone["target_vcpu"] is not None:
            by = gone["ended_by"]
            return Why(f"{what} any more: MAPC{self._when(by)} unmapped it", mechanism, by, gone["to_ns"])
        if tried:
            return Why(
                f"{what}, for its MAPC{self._when(tried[-1])} was itself refused", mechanism, tried[-1]
            )
        return Why(f"{what}, and never was", mechanism, mapped_by)

    def _has_target(self, one: Refused, icid: int | None) -> bool:
        row = self._collections.before(one.collection(icid), one.note.seq)
        return row is not None and (row["target_vcpu"] is not None or row["assumed"])

    def _when(self, seq: int | None) -> str:
        when = self._case.command_time(seq)
        return "" if when is None else f" at {seconds(when)}"


@once
def _failed(case: Case) -> dict[Key, list[int]]:
    """Commands that should have mapped a device, an event or a collection, and were refused, by what they name."""
    found: dict[Key, list[int]] = defaultdict(list)
    for note in case.history.notes:
        effect, command = note.effect, note.command
        if command is None or note.command_seq is None or not isinstance(effect, fx.CommandFaulted):
            continue
        its = note.vm, effect.its
        if command.opcode in MAPPING:
            found[*its, command.device_id, command.event_id].append(note.command_seq)
        elif command.opcode is Opcode.MAPD:
            found[*its, command.device_id].append(note.command_seq)
        elif command.opcode is Opcode.MAPC:
            found["icid", *its, command.icid].append(note.command_seq)
    return found


def _out_of_range(one: Refused) -> Why:
    """Which operand lies beyond which limit."""
    command, bits = one.command, one.note.event_bits
    cpus = command.rdbase if command.rdbase2 is None else f"{command.rdbase} or {command.rdbase2}"
    room = "" if bits is None else f", which has room for {1 << bits}"
    missing, what = {
        "DEVICE_OOR": (
            f"device 0x{command.device_id or 0:x} lies beyond the device table",
            "a device beyond its table",
        ),
        "ITTSIZE_OOR": (
            f"{command.event_bits} event bits are more than the ITS has",
            "more event bits than there are",
        ),
        "PROCNUM_OOR": (f"there is no vCPU {cpus}", "a vCPU that does not exist"),
        "COLLECTION_OOR": (
            f"collection {command.icid} lies beyond the collection table",
            "a collection beyond its table",
        ),
        "PHYSICALID_OOR": (
            f"INTID {command.intid} is no LPI that PROPBASER allows",
            "an INTID that is no LPI",
        ),
    }.get(
        one.fault.reason,
        (
            f"event {command.event_id} lies beyond the ITT of device 0x{command.device_id or 0:x}{room}",
            "an event beyond its ITT",
        ),
    )
    return Why(missing, f"{one.opcode} with {what}")
