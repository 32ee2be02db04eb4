"""ITS202: a command that must drop the translation cache did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.gic import registers as reg
from itstrace.observe.joins import after
from itstrace.rules._effects import told
from itstrace.rules._judged import judged, unless_lost
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

_SILENT = "vgic_its_invalidate_cache never fired in this capture, and may not have been switched on."


@rule(
    "ITS202",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM kept translations cached that it had to drop",
    needs=("COMMANDS", "INVALIDATIONS"),
    suspect=("vgic_its_invalidate_cache",),
    guest_sees="Interrupts that it took down or changed still come as they were.",
    leads_to=("ITS201", "ITS305"),
)
def missing_invalidation(case: Case) -> Iterator[Finding]:
    """A command or a register write that must drop the translation cache did not.

    ## What it finds
    MOVI, MOVALL, DISCARD, MAPD over a mapped device or MAPC V=0 that was carried out, and after which
    vgic_its_invalidate_cache was not called before its task went on. Also GITS_CTLR written with Enabled 0, and
    EnableLPIs of a vCPU going from 1 to 0.

    ## Why it matters
    MSIs that hit the cache go on as before: an event that was discarded is delivered, one that was mapped anew comes as
    the old LPI. What is not in the cache works, so that it fails only now and then.

    ## Where it comes from
    A path through the command's handler that leaves before vgic_its_invalidate_cache, or a change to when the cache is
    dropped.

    ## When it is wrong
    Where the call was compiled into its caller its probe does not fire there. A command of which nothing at all was
    seen is ITS207: it was not carried out. Of a DISCARD up to v7.3 nothing else is seen; whether the event was unmapped
    is judged by what came next.

    ## What to do
    Look at the handler of that command in vgic-its.c for a way around vgic_its_invalidate_cache, and for ITS201: the
    MSIs that got through since.
    """
    silent = not told(case, "invalidate")
    doubt: dict[str, Any] = (
        {
            "severity": Severity.NOTE,
            "confidence": Confidence.UNPROVEN,
            "doubt": _SILENT,
            "capture_next": "its_inval_cache (vgic_its_invalidate_cache)",
        }
        if silent
        else {}
    )
    yield from unless_lost(case, _commands(case, doubt))
    yield from unless_lost(case, _registers(case, doubt))


def _commands(case: Case, doubt: dict[str, Any]) -> Iterator[Finding]:
    """Commands that were carried out but for the cache."""
    for one in judged(case):
        if not one.only_invalidation or one.follows is not None:
            continue
        row, command = one.row, one.command
        yield case.finding(
            f"{row['text']} at {seconds(row['time_ns'])} was carried out, but vgic_its_invalidate_cache was not called before "
            "its task went on.",
            mechanism=f"{one.opcode} did not drop the translation cache",
            suspect=(f"vgic_its_cmd_handle_{one.opcode.lower()}", *case.rule.suspect),
            vm=row["vm"],
            its=row["its"],
            device_id=command.device_id,
            event_id=command.event_id,
            time_ns=row["time_ns"],
            end_ns=row["end_ns"],
            blames=(one.seq,),
            seqs=first_some([one.seq, row["end_seq"]]),
            **doubt,
        )


def _registers(case: Case, doubt: dict[str, Any]) -> Iterator[Finding]:
    """Writes that switch an ITS, or a vCPU's LPIs, off and after which the cache was not dropped."""
    obs = case.observations
    wanted = case.history.expected.filter(
        pl.col("command_seq").is_null() & (pl.col("what") == "invalidate") & pl.col("certain")
    )
    writes = {
        "GITS_CTLR": obs.register_writes.filter(pl.col("offset") == reg.GITS_CTLR),
        "GICR_CTLR": obs.redistributor_writes.filter(~pl.col("user")),
    }
    for name, frame in writes.items():
        rows = frame.join(
            wanted.select("seq", _its="its").unique("seq"), on="seq", how="inner", maintain_order="left"
        )
        if rows.is_empty() or (
            name == "GICR_CTLR" and not case.recorded("invalidate_all") and _per_its(case)
        ):
            continue
        # Within the write: before its task writes another register, takes commands, or enters the guest.
        ends = pl.concat(
            [
                each.select("pid", "seq")
                for each in (obs.register_writes, obs.redistributor_writes, obs.commands)
            ]
        )
        rows = after(rows, obs.invalidations, dropped="seq")
        rows = after(rows, ends, next_seq="seq")
        entries = obs.runs.next_entry_of_task(rows)
        rows = rows.hstack(entries).with_columns(until=pl.min_horizontal("next_seq", "entry_seq"))
        open_end = pl.col("dropped").is_null() | (pl.col("dropped") > pl.col("until"))
        rows = rows.filter(pl.col("until").is_not_null() & open_end)
        for row in case.without_lost(rows, "time_ns", "entry_ns").iter_rows(named=True):
            what = "GITS_CTLR.Enabled" if name == "GITS_CTLR" else f"EnableLPIs of vCPU {row['vcpu']}"
            yield case.finding(
                f"{what} went to 0 at {seconds(row['time_ns'])}, but vgic_its_invalidate_cache was not called before its task "
                "went on.",
                mechanism=f"{name} did not drop the translation cache",
                suspect=(
                    "vgic_mmio_write_its_ctlr" if name == "GITS_CTLR" else "vgic_mmio_write_v3r_ctlr",
                    *case.rule.suspect,
                ),
                vm=row["vm"],
                its=row.get("its"),
                time_ns=row["time_ns"],
                end_ns=row["time_ns"],
                seqs=first_some([row["seq"], row["until"]]),
                **doubt,
            )


def _per_its(case: Case) -> bool:
    """The kernel drops all caches of a VM by another function: vgic_its_invalidate_all_caches, from v6.10 on."""
    return any(profile != "kvm-6.1" for profile in case.history.profiles.values())
