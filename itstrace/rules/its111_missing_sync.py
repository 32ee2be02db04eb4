"""ITS111: what a command does is relied on before any SYNC."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.findings import Finding, Kind, Severity, Subject
from itstrace.gic.commands import Command, Opcode, decode, describe
from itstrace.gic.registers import GITS_CWRITER
from itstrace.observe.joins import after, before
from itstrace.rules.case import EVENT, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Commands whose effect shows in the next interrupt of their event or collection.
_AIMING = (Opcode.MAPTI, Opcode.MAPI, Opcode.MOVI, Opcode.MAPC, Opcode.INV, Opcode.INVALL)
#: Commands after which the guest takes something for done as soon as it goes on. MAPD is none of them: Linux sends no
#: SYNC after it. Source: irq-gic-v3-its.c:its_build_mapd_cmd (v6.12)
_ENDING = (Opcode.DISCARD, Opcode.CLEAR, Opcode.MOVALL, Opcode.INV, Opcode.INVALL)
#: Commands that a finding is linked by.
_BLAMED = 64
#: No vCPU in particular.
_ANY: Final[frozenset[int]] = frozenset()


@dataclass(slots=True)
class _Step:
    """One command in its place in the queue, and what came after it there (places; None: nothing more)."""

    seq: int
    time_ns: int
    end_seq: int
    command: Command
    #: vCPUs whose SYNC covers it; empty: not known, so that any does.
    vcpus: frozenset[int]
    #: Nothing was carried out, or it needs no SYNC.
    idle: bool
    #: The first SYNC that covers it, the first other command of a later write to CWRITER, the next INT that shows its
    #: effect, and the first command before which others may be missing.
    sync: int | None = None
    went_on: int | None = None
    int_: int | None = None
    broken: int | None = None


@dataclass(frozen=True, slots=True)
class _Relied:
    """A command, and the record that relied on it before any SYNC."""

    step: _Step
    how: str
    on: int | None
    intid: int | None = None

    @property
    def known_intid(self) -> int | None:
        """The LPI that the command names, or the MSI showed."""
        return self.intid if self.step.command.intid is None else self.step.command.intid


@rule(
    "ITS111",
    kind=Kind.GUEST,
    severity=Severity.NOTE,
    claim="the guest relies on a command before any SYNC",
    needs=("COMMANDS",),
    guest_sees="Nothing on KVM, whose commands are complete when CREADR has passed them.",
)
def missing_sync(case: Case) -> Iterator[Finding]:
    """The effect of a command is relied on before any SYNC.

    ## What it finds
    MAPTI, MAPI, MOVI, MAPC, INV or INVALL whose event (or an event of whose collection) is fired by INT, or fires as MSI,
    before a SYNC to the vCPU that the event goes to, or came from. And DISCARD, CLEAR, MOVALL, INV, INVALL or MAPC V=0
    with no such SYNC when the guest goes on with other commands.

    ## Why it matters
    That CREADR has passed a command says that the ITS has taken it, not that redistributors have seen its effect: only SYNC
    says so. On KVM every command is complete at once; on hardware such a guest now and then gets an interrupt on the old
    CPU, or after it has freed its handler.

    ## Where it comes from
    A driver written and tested on KVM. kvm-unit-tests and the kernel's selftests do so on purpose.

    ## When it is wrong
    A device's own MSI may come between a command and the SYNC that is already on its way: where SYNC is the next command
    of the queue, it counts as in time. Nothing is said where commands were lost in between. For MOVI the SYNC may be that
    of either vCPU: Linux sends it to the old one.

    ## What to do
    Send SYNC to the target's RDbase (for MOVI the old one's) after each command or batch, and wait for CREADR to pass it.
    """
    for (vm, its), steps in _queues(case).items():
        members = sorted([*_relied(steps), *_fired(case, vm, its, steps)], key=lambda one: one.step.seq)
        if not members:
            continue
        first = members[0]
        same = sum(one.step.command.dw == first.step.command.dw for one in members)
        opcodes = Counter(one.step.command.name for one in members)
        total = ", ".join(f"{opcode} {times(count)}" for opcode, count in opcodes.most_common())
        whose = " or ".join(f"vCPU {vcpu}" for vcpu in sorted(first.step.vcpus)) or "any vCPU"
        never = not any(step.command.opcode is Opcode.SYNC for step in steps)
        yield case.finding(
            f"After {describe(first.step.command)} at {seconds(first.step.time_ns)} {first.how} before any SYNC to {whose} "
            f"({times(same)}). In all: {total}.{' The guest sends no SYNC at all.' if never else ''}",
            mechanism="the effect of a command relied on before SYNC",
            vm=vm,
            its=its,
            device_id=first.step.command.device_id,
            event_id=first.step.command.event_id,
            intid=first.known_intid,
            subjects=_subjects(members),
            time_ns=first.step.time_ns,
            end_ns=members[-1].step.time_ns,
            count=len(members),
            blames=tuple(one.step.seq for one in members[:_BLAMED]),
            seqs=first_some([first.step.seq, first.on, *_one_of_each(members)]),
        )


def _relied(steps: Sequence[_Step]) -> Iterator[_Relied]:
    """Commands that a later command of the queue relies on."""
    for step in steps:
        if step.idle:
            continue
        sync, broken = step.sync or NEVER, step.broken or NEVER
        if step.int_ is not None and step.int_ < min(sync, broken):
            yield _Relied(step, "INT fired the event", steps[step.int_].seq)
        elif step.went_on is not None and step.went_on < min(sync, broken) and _ends(step.command):
            yield _Relied(step, "the guest went on", steps[step.went_on].seq)


def _ends(command: Command) -> bool:
    return command.opcode in _ENDING or (command.opcode is Opcode.MAPC and not command.valid)


def _fired(case: Case, vm: int, its: int, steps: Sequence[_Step]) -> Iterator[_Relied]:
    """Commands on an event that fired as MSI, without a SYNC in the same or as the next command of the queue."""
    rows = [
        (
            place,
            one.end_seq,
            NEVER if one.sync is None else steps[one.sync].seq,
            one.command.device_id,
            one.command.event_id,
        )
        for place, one in enumerate(steps)
        if not one.idle
        and one.command.opcode in _AIMING
        and one.command.event_id is not None
        and (one.int_ or NEVER) >= (one.sync or NEVER)
        and (one.went_on or NEVER) < (one.sync or NEVER)
        and (one.broken or NEVER) > (one.sync or NEVER)
    ]
    if not rows:
        return
    keys = ["device_id", "event_id"]
    schema = {
        "place": pl.UInt32,
        "seq": pl.UInt64,
        "sync": pl.UInt64,
        "device_id": pl.UInt32,
        "event_id": pl.UInt32,
    }
    waiting = pl.DataFrame(rows, schema=schema, orient="row")
    msis = case.observations.injections.filter(
        (pl.col("vm") == vm)
        & (pl.col("its") == its)
        & pl.col("from_command").is_null()
        & (pl.col("result") == 0)
    )
    found = after(waiting, msis, keys, msi="seq", msi_ns="time_ns", intid="intid").filter(
        pl.col("msi") < pl.col("sync")
    )
    for place, msi, msi_ns, intid in (
        found.sort("place").select("place", "msi", "msi_ns", "intid").iter_rows()
    ):
        if not case.lost(steps[place].time_ns, msi_ns):
            yield _Relied(steps[place], "the event fired", msi, intid)


def _queues(case: Case) -> dict[tuple[int, int], list[_Step]]:
    """The commands of every ITS in order, each with what came after it."""
    commands, decoded = _placed(case)
    writes = case.observations.register_writes.filter(pl.col("offset") == GITS_CWRITER)
    commands = commands.with_columns(broken=pl.col("lost_before") | ~pl.col("readable"))
    queues: dict[tuple[int, int], list[_Step]] = {}
    tells = case.host == "KVM"
    # QEMU's log does not tell whom SYNC and INVALL name.
    needs = {*_AIMING, *_ENDING} - (set() if tells else {Opcode.INVALL})
    told = ["place", "seq", "time_ns", "end_seq", "verdict", "broken", "old_icid", "old_vcpu", "new_vcpu"]
    for (vm, its), rows in commands.group_by("vm", "its", maintain_order=True):
        mine = writes.filter((pl.col("vm") == vm) & (pl.col("its") == its))["seq"].sort().to_list()
        steps: list[_Step] = []
        batches, breaks, icids = [], [], []
        # A tuple per command, and no more than is needed: there may be many.
        for place, seq, time_ns, end_seq, verdict, broken, icid, old, new in rows.select(told).iter_rows():
            command = decoded[place]
            idle = command.opcode not in needs or verdict not in ("ok", "assumed")
            vcpus = _covering(command, old, new) if tells and not idle else _ANY
            steps.append(_Step(seq, time_ns, seq if end_seq is None else end_seq, command, vcpus, idle))
            batches.append(bisect_left(mine, seq))
            breaks.append(broken)
            icids.append(icid)
        _look_ahead(steps, batches, breaks, icids)
        queues[vm, its] = steps
    return queues


def _covering(command: Command, old: int | None, new: int | None) -> frozenset[int]:
    """The vCPUs whose SYNC covers a command; none where they are not all known, so that any does."""
    match command.opcode:
        case Opcode.MAPC:
            vcpus = [command.rdbase, new if new is not None else command.rdbase]
        case Opcode.MOVALL:
            vcpus = [command.rdbase, command.rdbase2]
        case Opcode.MOVI:
            vcpus = [old, new]
        case Opcode.MAPTI | Opcode.MAPI | Opcode.INVALL:
            vcpus = [new]
        case _:
            vcpus = [old]
    return frozenset(vcpu for vcpu in vcpus if vcpu is not None) if None not in vcpus else _ANY


def _look_ahead(
    steps: Sequence[_Step], batches: Sequence[int], breaks: Sequence[bool], icids: Sequence[int | None]
) -> None:
    """Fill in what came after each command that is not idle, from the last one back."""
    syncs: dict[int | None, int] = {}  # by vCPU; None: of any
    ints: dict[tuple[int | None, ...], int] = {}  # by event, and by collection
    broken: int | None = None
    others: list[int] = []  # the first command but SYNC of each batch that follows, the nearest last
    for place in range(len(steps) - 1, -1, -1):
        step, opcode = steps[place], steps[place].command.opcode
        fields = step.command.fields
        event = fields.get("device_id"), fields.get("event_id")
        if not step.idle:
            step.sync = min((syncs[v] for v in step.vcpus or (None,) if v in syncs), default=None)
            step.went_on = next((o for o in reversed(others) if batches[o] > batches[place]), None)
            step.int_ = ints.get(event if event[1] is not None else (fields.get("icid"),))
            step.broken = broken
        if breaks[place]:
            broken = place
        if opcode is Opcode.SYNC:
            syncs[fields.get("rdbase")] = syncs[None] = place
            continue
        if others and batches[others[-1]] == batches[place]:
            others.pop()
        others.append(place)
        if opcode is Opcode.INT:
            ints[event] = ints[icids[place],] = place


def _placed(case: Case) -> tuple[pl.DataFrame, list[Command]]:
    """Commands with their verdict, and the vCPUs that their event went to and that their collection goes to; and decoded.

    Shape: columns of COMMANDS, and place (in the list), verdict, old_icid, old_vcpu, new_vcpu.
    """
    rows = case.observations.commands.drop_nulls(["vm", "its"]).with_row_index("place")
    decoded = [decode(words) for words in rows.select("dw0", "dw1", "dw2", "dw3").iter_rows()]
    rows = rows.with_columns(
        pl.Series(column, [one.fields.get(column) for one in decoded], dtype=pl.UInt32, strict=False)
        for column in ("device_id", "event_id", "icid")
    )
    rows = rows.join(
        case.history.verdicts.select("seq", "verdict"), on="seq", how="left", maintain_order="left"
    )
    opening = pl.col("from_seq").fill_null(0)
    events = case.history.mappings.with_columns(seq=opening)
    targets = case.history.collections.with_columns(seq=opening)
    aims = ["vm", "its", "icid"]
    rows = before(rows, events, EVENT, old_icid="icid")
    rows = before(rows, targets, aims, new_vcpu="target_vcpu")
    named = rows.rename({"icid": "own"}).with_columns(icid="old_icid")
    return before(named, targets, aims, old_vcpu="target_vcpu").drop("icid").sort("place"), decoded


def _one_of_each(members: Sequence[_Relied]) -> Iterator[int | None]:
    """The first command of each kind, and what relied on it."""
    first = {one.step.command.opcode: one for one in reversed(members)}
    for one in list(reversed(first.values()))[1:]:
        yield one.step.seq
        yield one.on


def _subjects(members: Sequence[_Relied]) -> tuple[Subject, ...]:
    """What the commands were about, each thing once."""
    found: dict[tuple[int | None, int | None, int | None], list[_Step]] = {}
    for one in members:
        command = one.step.command
        found.setdefault((command.device_id, command.event_id, one.known_intid), []).append(one.step)
    return tuple(
        Subject(*key, count=len(steps), time_ns=steps[0].time_ns, end_ns=steps[-1].time_ns)
        for key, steps in found.items()
    )
