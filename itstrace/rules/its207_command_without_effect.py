"""ITS207: a command that had to succeed was not carried out, or did something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.gic import registers as reg
from itstrace.observe.catalogue import PROBES as PLACES
from itstrace.rules._effects import PROBES
from itstrace.rules._enabling import not_enabled
from itstrace.rules._judged import Judged, judged, unless_lost
from itstrace.rules._otherwise import mapped_otherwise, misdirected, not_cleared, of_no_command, untaken
from itstrace.rules._told import DONE, SEES, UNDONE, calls, subject
from itstrace.rules.case import Case, first_some, once
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

#: GITS_BASER<n>.Indirect, bit 62. Spec: IHI 0069H, GITS_BASER<n>.
_INDIRECT: Final = 62
#: Where a handler is not called as its command is.
_HANDLERS: Final = {"MAPTI": "mapi", "MAPI": "mapi"}


@rule(
    "ITS207",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM did not do what a command said",
    needs=("COMMANDS",),
    suspect=("vgic_its_handle_command",),
    leads_to=(
        "ITS201",
        "ITS203",
        "ITS301",
        "ITS302",
        "ITS303",
        "ITS305",
        "ITS307",
        "ITS308",
        "ITS402",
        "ITS403",
        "ITS404",
    ),
)
def command_without_effect(case: Case) -> Iterator[Finding]:
    """A command that had to succeed left no trace of its effect, or had another effect.

    ## What it finds
    A command which, by the tables as they were, KVM had to carry out, and for which what KVM does for such a command
    was not seen before its task went on: a device, event or collection allocated or freed, an LPI given to another
    vCPU, an MSI triggered, a configuration read, a latch cleared. Also one that did that to something else, one that
    did it twice or although it must fail, what was done while no command was under way, and a call of update_affinity
    after which the LPI still has its old target. A command that failed only because an earlier one did is not reported
    again. A write to GICR_CTLR that changes EnableLPIs, after which KVM neither enabled nor flushed the vCPU's LPIs,
    counts as one.

    ## Why it matters
    KVM reports no command as failed, and the guest cannot ask: it goes on as if the interrupt were mapped, moved or
    taken down, and from here on its tables and KVM's differ.

    ## Where it comes from
    vgic_its_handle_command that does not know the command, or takes it for another; a handler that leaves too early
    or looks up the wrong device, event or collection; update_affinity that changes nothing.

    ## When it is wrong
    Where an effect's probe was never seen to fire, it may not have been switched on: then it is a note. A probe that was
    missed (ITS906) looks the same as an effect that was not there. So do mistakes of the guest that only its memory
    shows: an ITT or a device table that lies outside its memory, an entry of the device table's first level that is not
    valid on kernels whose reads of it are not recorded. Commands near lost records, and those that rest on entries that
    are only assumed, are left out.

    ## What to do
    Compare what the evidence shows between the command and the record after it with the handler of that command in
    vgic-its.c, and `itstrace tables --at` that moment with the kernel's vgic-its-state@....
    """
    failed = (
        _failed(case, one)
        for one in judged(case)
        if one.follows is None and not one.only_invalidation and not one.only_configuration
    )
    yield from unless_lost(case, failed)
    yield from misdirected(case)
    yield from unless_lost(case, of_no_command(case))
    yield from mapped_otherwise(case)
    yield from unless_lost(case, untaken(case))
    yield from not_cleared(case)
    yield from not_enabled(case)


def _failed(case: Case, one: Judged) -> Finding:
    """A command of which something is missing, or which did something that it had no reason to do."""
    lacks, other = sorted(one.lacks), sorted({row["what"] for row in one.extra})
    unseen = f" ({calls(one.missing)}) was not seen before its task went on" if one.missing else ""
    instead = f"; instead there was {calls(one.extra)}" if one.extra and one.missing else ""
    if one.missing and not one.trace:
        mechanism = f"{one.opcode} left no trace of its effect"
        said = f"left no trace of its effect: what it must do{unseen}"
    elif one.extra and one.missing:
        what = next((each for each in other if each in lacks), other[0])
        mechanism = f"{one.opcode} {DONE[what]}"
        said = f"{DONE[what]}: what it must do{unseen}{instead}"
    elif one.missing:
        mechanism = f"{one.opcode} {' and '.join(UNDONE[what] for what in lacks)}"
        said = f"{' and '.join(UNDONE[what] for what in lacks)}: that{unseen}"
    elif all(row["twice"] for row in one.extra):
        mechanism = f"{one.opcode} was carried out twice"
        said = f"was carried out twice: there was another {calls(one.extra)}"
    elif one.row["verdict"] == "fault":
        mechanism = f"{one.opcode} was carried out although it must fail"
        said = f"was carried out although it must fail: there was {calls(one.extra)}"
    else:
        mechanism = f"{one.opcode} also {DONE[other[0]]}"
        said = f"also {DONE[other[0]]}: there was {calls(one.extra)}"
    if one.mapped is not None and one.missing and not one.trace:
        still = "still " if one.opcode == "DISCARD" else ""
        said += f", and the event was {still if one.mapped else 'not '}mapped afterwards"
    about = next((row for row in one.missing if row["intid"] is not None), (one.missing or one.extra)[0])
    about = {**about, "device_id": one.command.device_id, "event_id": one.command.event_id}
    return case.finding(
        f"{one.row['text']} at {seconds(one.row['time_ns'])} {said}.",
        mechanism=mechanism,
        suspect=_suspect(one),
        guest_saw=SEES.get(one.opcode, ""),
        seqs=first_some([one.seq, *(row["seq"] for row in one.extra[:6]), one.row["end_seq"]]),
        **subject(case, one.row, about),
        **_confidence(case, one),
    )


def _confidence(case: Case, one: Judged) -> dict[str, Any]:
    """How sure it is that what was not seen did not happen."""
    if not one.shown:
        probes = [probe for row in one.missing for probe in PROBES[row["what"]][:1]]
        events = ", ".join(dict.fromkeys(PLACES[probe].events[0] for probe in probes))
        return {
            "severity": Severity.NOTE,
            "confidence": Confidence.UNPROVEN,
            "doubt": f"{events} never fired in this capture, and may not have been switched on.",
            "capture_next": events,
        }
    contradictions = case.observations.contradictions
    if not contradictions.filter(pl.col("what") != "another value").is_empty():
        return {
            "confidence": Confidence.LIKELY,
            "doubt": "Records are missing in this capture that no buffer lost (ITS906): this one's may be, too.",
            "capture_next": "kprobe_profile of tracefs, whose last column counts missed probes",
        }
    if one.opcode == "MAPD" and not case.recorded("guest_read") and _two_levels(case, one):
        return {
            "confidence": Confidence.LIKELY,
            "doubt": "The device table has two levels, and whether the first has an entry for the device is not recorded.",
            "capture_next": "kvm_read_guest at its return, with what was read",
        }
    if all(_complete(case).get((one.row["vm"], one.row["its"]), ())):
        return {}
    return {
        "confidence": Confidence.LIKELY,
        "doubt": "The capture begins while tables are in use; what they held is known from how it was used.",
        "capture_next": "the VM from its start, or a dump of its tables to begin with (--seed)",
    }


def _two_levels(case: Case, one: Judged) -> bool:
    """GITS_BASER0.Indirect of the ITS, as it was written last."""
    writes = case.observations.register_writes.filter(
        (pl.col("vm") == one.row["vm"])
        & (pl.col("its") == one.row["its"])
        & (pl.col("offset") == reg.GITS_BASER)
        & (pl.col("seq") < one.seq)
    )
    return not writes.is_empty() and bool(writes["value"][-1] >> _INDIRECT & 1)


@once
def _complete(case: Case) -> dict[tuple[int, int], list[bool]]:
    """Whether ITSs are known from their first command on."""
    found: dict[tuple[int, int], list[bool]] = {}
    for vm, its, complete in case.observations.itss.select("vm", "its", "complete").iter_rows():
        found.setdefault((vm, its), []).append(complete)
    return found


def _suspect(one: Judged) -> tuple[str, ...]:
    """The command's handler, and what it did not call or called for something else."""
    handler = f"cmd_handle_{_HANDLERS.get(one.opcode, one.opcode.lower())}"
    if one.opcode not in SEES:
        handler = "handle_command"
    what = [row["what"] for row in (*one.missing, *one.extra)]
    called = (PLACES[PROBES[each][0]].function for each in dict.fromkeys(what))
    return (f"vgic_its_{handler}", *called)
