"""Commands that the model refused, sorted by what is to blame: shared by ITS101 to ITS104."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from itstrace.findings import Confidence, Subject
from itstrace.gic.commands import Command, describe
from itstrace.model import effects as fx
from itstrace.rules._reasons import MAPPING, Reasons, Refused, Why
from itstrace.rules.case import Case, first_some, once
from itstrace.rules.causes import name
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.findings import Finding
    from itstrace.gic.faults import Fault
    from itstrace.replay import Note

#: What the guest sees of a command that was refused.
SKIPPED = (
    "Nothing at once: the command is skipped silently, and what it should have brought about never comes."
)
#: How much of what one mistake hit a message names.
_NAMED = 5
#: So many devices may make the same mistake each for itself; of more, it is one mistake of who serves them all.
_DEVICES = 3
#: Refused commands that a finding is linked by.
_BLAMED = 64


@once
def refused(case: Case) -> list[Refused]:
    """Refused commands of guests. KVM's own codes are coarse, so the tables of that moment say what was missing."""
    found = []
    for note in case.history.notes:
        effect = note.effect
        if note.user or note.command is None:
            continue
        if isinstance(effect, (fx.CommandFaulted, fx.InjectionRefused)) and effect.fault is not None:
            code = _blame(note, note.command, effect.fault)
            found.append(Refused(note, effect.its, note.command, effect.fault, code))
    return found


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
    return "ITS103" if command.opcode in MAPPING or note.event_mapped else "ITS102"


def report(case: Case) -> Iterator[Finding]:
    """One finding per mistake, of those that are this rule's."""
    mine = [one for one in refused(case) if one.code == case.rule.code]
    if not mine:
        return
    reasons = Reasons(case, mine)
    told = [(one, reasons.why(one)) for one in mine]
    devices: dict[tuple[int, int, str], set[int | None]] = {}
    for one, why in told:
        devices.setdefault((one.note.vm, one.its, why.mechanism), set()).add(one.command.device_id)
    groups: dict[tuple[int, int, str], list[tuple[Refused, Why]]] = {}
    for one, why in told:
        key = one.note.vm, one.its, why.mechanism
        if why.by_device and 1 < len(devices[key]) <= _DEVICES:
            key = one.note.vm, one.its, f"{why.mechanism} (device 0x{one.command.device_id:x})"
        groups.setdefault(key, []).append((one, why))
    for (_, _, mechanism), members in groups.items():
        yield _finding(case, mechanism, [one for one, _ in members], [why for _, why in members])


def _finding(case: Case, mechanism: str, members: Sequence[Refused], reasons: Sequence[Why]) -> Finding:
    first, why, last = members[0], reasons[0], members[-1]
    same = Counter(one.command.dw for one in members)[first.command.dw]
    subjects = _subjects(members)
    # What is missing from the beginning may have been there before what was lost.
    since = [each.since_ns for each in reasons if each.since_ns is not None]
    lost = case.lost(min(since) if len(since) == len(reasons) else None, last.note.time_ns)
    blamed = [
        seq
        for one, each in zip(members[:_BLAMED], reasons, strict=False)
        for seq in (each.blamed, one.note.command_seq)
    ]
    return case.finding(
        f"{describe(first.command)} was refused {times(same)}: {why.missing} ({first.fault.name}, "
        f"0x{first.fault:06x}). {case.host} skips such a command silently; the guest is not told.{_likewise(members)}",
        mechanism=mechanism,
        vm=first.note.vm,
        its=first.its,
        device_id=subjects[0].device_id,
        event_id=subjects[0].event_id,
        intid=subjects[0].intid,
        subjects=subjects,
        time_ns=first.note.time_ns,
        end_ns=last.note.time_ns,
        count=len(members),
        seqs=first_some([why.blamed, *_some_of_each(members)]),
        blames=tuple(dict.fromkeys(seq for seq in blamed if seq is not None)),
        confidence=Confidence.LIKELY if lost else Confidence.CERTAIN,
        doubt="Records were lost before, though the queue's own offsets show no command missing."
        if lost
        else "",
        capture_next="the same with larger buffers (trace-cmd record -b), so that none is lost"
        if lost
        else "",
    )


def _subjects(members: Sequence[Refused]) -> tuple[Subject, ...]:
    """What the commands were about, each thing once."""
    found: dict[tuple[int | None, int | None, int | None], list[Note]] = {}
    for one in members:
        found.setdefault(_subject(one.command).key, []).append(one.note)
    return tuple(
        Subject(*key, count=len(notes), time_ns=notes[0].time_ns, end_ns=notes[-1].time_ns)
        for key, notes in found.items()
    )


def _subject(command: Command) -> Subject:
    return Subject(command.device_id, command.event_id, command.intid if command.opcode in MAPPING else None)


def _some_of_each(members: Sequence[Refused]) -> list[int | None]:
    """The first of each kind of command and operands, and a few more of the first."""
    first = {one.command.dw: one.note.command_seq for one in reversed(members)}
    same = [one.note.command_seq for one in members if one.command.dw == members[0].command.dw]
    return [*list(reversed(first.values()))[:_NAMED], *same[1:4]]


def _likewise(members: Sequence[Refused]) -> str:
    """The other commands that the same mistake hit."""
    others = list(dict.fromkeys(_called(one) for one in members if one.command.dw != members[0].command.dw))
    if not others:
        return ""
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f" Likewise {', '.join(others[:_NAMED])}{more}; {times(len(members))} in all."


def _called(one: Refused) -> str:
    """`INT of 0x123/3`: a command among others."""
    command = one.command
    if command.device_id is not None:
        return f"{one.opcode} of {name(_subject(command))}"
    return f"{one.opcode} of " + (
        f"vCPU {command.rdbase}" if command.icid is None else f"collection {command.icid}"
    )
