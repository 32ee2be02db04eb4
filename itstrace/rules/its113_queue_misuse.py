"""ITS113: the command queue used against its rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.gic.registers import decode_gits_baser
from itstrace.model import effects as fx
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.replay import Note


_LEFT = "commands left for a disabled ITS"
_WAITED = "GITS_CREADR stands still, and the commands have no effect until the ITS is enabled."


@rule(
    "ITS113",
    kind=Kind.GUEST,
    severity=Severity.WARNING,
    claim="the guest misuses the command queue or the tables",
    needs=("COMMANDS", "REGISTER_WRITES"),
)
def queue_misuse(case: Case) -> Iterator[Finding]:
    """The guest uses the command queue or the table registers against their rules.

    ## What it finds
    GITS_CWRITER written with an offset beyond the queue or not a multiple of 32; commands left for an ITS
    that is disabled (CWRITER differs from CREADR); GITS_CBASER or GITS_BASER written while the ITS is
    enabled; the ITS enabled without valid tables.

    ## Why it matters
    KVM ignores the write: commands that the guest believes done are not, or are done later, when the ITS is
    enabled and other tables are in place.

    ## Where it comes from
    An ITS driver that does not wait for GITS_CTLR.Quiescent, a reset path that forgets to disable the ITS, a
    queue size that driver and register disagree about.

    ## When it is wrong
    Writes of the VMM (set-up, restore) are left out by the task that makes them; a VMM that writes from a
    vCPU thread is not told apart. A table register that is written with what it holds (resume) is left out, and so is
    a CWRITER where it is not known how far the ITS had come: the capture begins later, or lost commands.

    ## What to do
    Look at the guest's order of writes in the evidence: disable, wait, write tables, enable, then write
    CWRITER.
    """
    groups: dict[tuple[int, int | None, str], list[tuple[Note, str]]] = {}
    held: dict[tuple[int, int | None, str], int | None] = {}
    for note in case.history.notes:
        effect = note.effect
        its = getattr(effect, "its", None)
        if isinstance(effect, fx.TableSet):
            held[note.vm, its, f"GITS_BASER{effect.number}"] = effect.value
            continue
        said = None if note.user else _misuse(effect, case.host)
        if said is None:
            continue
        # A driver that comes back from suspend may write what is there already.
        if isinstance(effect, fx.RegisterIgnored) and _same(
            held.get((note.vm, its, effect.register)), effect.value
        ):
            continue
        if isinstance(effect, fx.CommandsWaiting) and not _known(
            case, note.vm, effect.its, note.seq, note.time_ns
        ):
            continue
        groups.setdefault((note.vm, its, said[0]), []).append((note, said[1]))
    for (vm, its, mechanism), members in groups.items():
        first, text = members[0]
        yield case.finding(
            f"{text} ({times(len(members))}).",
            mechanism=mechanism,
            vm=vm,
            its=its,
            time_ns=first.time_ns,
            end_ns=members[-1][0].time_ns,
            count=len(members),
            guest_saw=_WAITED if mechanism == _LEFT else "Nothing, unless it reads the register back.",
            seqs=first_some((note.seq for note, _ in members), 4),
        )


def _misuse(effect: fx.Effect, host: str) -> tuple[str, str] | None:
    """What was done against the rules: the mechanism, and the text."""
    match effect:
        case fx.RegisterIgnored(register, _, fx.RegisterReason.ITS_ENABLED):
            return (
                "a table or queue register written while the ITS is enabled",
                f"{register} was written while the ITS is enabled; {host} ignores it",
            )
        case fx.RegisterIgnored("GITS_CWRITER", value, fx.RegisterReason.OUT_OF_RANGE):
            return (
                "CWRITER beyond the end of the queue",
                f"GITS_CWRITER was written with 0x{value:x}, beyond the end of the queue; {host} ignores it",
            )
        case fx.RegisterIgnored("GITS_CTLR", _, fx.RegisterReason.INVALID_TABLES):
            return (
                "ITS enabled without valid tables",
                f"GITS_CTLR.Enabled was written without valid tables and queue; {host} ignores it",
            )
        case fx.CwriterUnaligned(value=value):
            return (
                "CWRITER not a multiple of a command's size",
                f"GITS_CWRITER was written with 0x{value:x}, which is no multiple of 32; the ITS rounds it down",
            )
        case fx.CommandsWaiting(creadr=int(creadr), cwriter=cwriter):
            return (
                _LEFT,
                f"Commands were left in the queue of a disabled ITS, from 0x{creadr:x} to 0x{cwriter:x}: they have to wait",
            )
    return None


def _known(case: Case, vm: int, its: int, seq: int, time_ns: int) -> bool:
    """Whether it is sure how far an ITS had come in its queue, and that it was disabled."""
    mine = case.observations.commands.filter((pl.col("vm") == vm) & (pl.col("its") == its))
    last = mine.filter(pl.col("seq") < seq)["time_ns"].max()
    following = mine.filter(pl.col("seq") > seq).head(1)["lost_before"]
    return not case.lost(cast("int | None", last), time_ns) and not following.any()


def _same(held: int | None, value: int) -> bool:
    """Whether a write to GITS_BASER<n> says what the register holds: a valid table, and where it stands."""
    if held is None:
        return False
    old, new = decode_gits_baser(held), decode_gits_baser(value)
    return (old.valid, old.indirect, old.table_gpa, old.pages) == (
        new.valid,
        new.indirect,
        new.table_gpa,
        new.pages,
    )
