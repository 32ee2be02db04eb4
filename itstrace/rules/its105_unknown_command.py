"""ITS105: an opcode that does not exist here."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.model import effects as fx
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.replay import Note

#: How many opcodes a message names, and how many commands a finding is linked by.
_NAMED, _BLAMED = 6, 64
#: What QEMU says of GICv4 commands, and only where it has virtual LPIs.
#: Source: hw/intc/arm_gicv3_its.c:process_vmapti, its_feature_virtual (QEMU 10.0)
_GICV4 = {f"qemu_cmd_{name}" for name in ("vmapi", "vmapti", "vmapp", "vmovp", "vmovi", "vinvall")}


@rule(
    "ITS105",
    kind=Kind.GUEST,
    severity=Severity.WARNING,
    claim="the guest queued a command that does not exist here",
    needs=("COMMANDS",),
    guest_sees="Nothing: the command is skipped silently.",
)
def unknown_command(case: Case) -> Iterator[Finding]:
    """The guest's queue holds a reserved opcode, or a GICv4 command where there is no GICv4.

    ## What it finds
    A command whose opcode the specification does not define, or one of the virtual LPI commands (0x20 and
    above), which KVM's ITS does not have.

    ## Why it matters
    KVM skips it silently. A reserved opcode is seldom a typing mistake: it says that the queue's memory was
    overwritten, or that CWRITER ran ahead of what the guest had written.

    ## Where it comes from
    A guest that takes the ITS for a GICv4 one without asking GITS_TYPER.Virtual, memory corruption, or a
    missing barrier between writing commands and writing GITS_CWRITER.

    ## When it is wrong
    Never on KVM: it has no GICv4 towards its guests. QEMU may have one (gic-version=4): where its log shows that
    it carried out any such command, none is reported.

    ## What to do
    Look at the four words of the command in the evidence: do they look like a command at all? If not, look
    for what else the guest has at that address.
    """
    groups: dict[tuple[int, int, bool], list[tuple[Note, fx.UnknownCommand]]] = {}
    gicv4 = not case.observations.records.keys().isdisjoint(_GICV4)
    for note in case.history.notes:
        if isinstance(note.effect, fx.UnknownCommand) and not (note.effect.gicv4 and gicv4):
            key = note.vm, note.effect.its, note.effect.gicv4
            groups.setdefault(key, []).append((note, note.effect))
    for (vm, its, virtual), members in groups.items():
        first = members[0][0]
        what = "GICv4 commands" if virtual else "reserved opcodes"
        opcodes = Counter(
            effect.command.name or f"0x{effect.command.opcode_number:02x}" for _, effect in members
        )
        listed = ", ".join(f"{opcode} {times(count)}" for opcode, count in opcodes.most_common(_NAMED))
        more = f" and {len(opcodes) - _NAMED} more" if len(opcodes) > _NAMED else ""
        yield case.finding(
            f"The guest's queue held {what}: {listed}{more}. {case.host}'s ITS has no such command and skips it.",
            mechanism=f"{what} in the queue",
            vm=vm,
            its=its,
            time_ns=first.time_ns,
            end_ns=members[-1][0].time_ns,
            count=len(members),
            seqs=first_some((note.command_seq for note, _ in members), 6),
            blames=tuple(note.command_seq for note, _ in members[:_BLAMED] if note.command_seq is not None),
        )
