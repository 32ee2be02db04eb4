"""ITS305: delivered from an injection that came after its event was unmapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Confidence, Finding, Harm, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules._pending import unmapped
from itstrace.rules.case import EVENT, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS305",
    kind=Kind.LIFE,
    severity=Severity.ERROR,
    claim="an MSI was delivered after its event was unmapped",
    harm=Harm.TWICE,
    needs=("COMMANDS", "INJECTIONS", "QUEUEINGS", "LIST_REGISTERS"),
    suspect=("vgic_its_inject_cached_translation", "vgic_its_invalidate_cache", "vgic_its_resolve_lpi"),
    guest_sees="an interrupt from an event that it had unmapped",
)
def delivered_after_unmap(case: Case) -> Iterator[Finding]:
    """An MSI that came after its event was unmapped was delivered to the guest.

    ## What it finds
    An MSI, or an INT command, of an event that DISCARD or MAPD had taken out of the tables, and that nothing had mapped
    again: KVM took it, and the LPI reached a list register. Only injections that began after the command had taken
    effect are errors.

    ## Why it matters
    The guest has freed what the interrupt's handler needs, or has given the LPI to another device. It now runs a handler
    for an interrupt that cannot come.

    ## Where it comes from
    A translation cache that was not dropped (ITS201, ITS202), or a DISCARD or MAPD that KVM did not carry out (ITS207,
    ITS203).

    ## When it is wrong
    An MSI that was under way when the command took effect may still be delivered: it holds a reference to the interrupt
    from before. Such MSIs are told as notes. Events that were mapped before the capture, and spans near lost records or
    commands, are left out.

    ## What to do
    See which way the MSI went (its_cached_ret ret=0: through the cache), and whether vgic_its_invalidate_cache ran within
    the command.
    """
    yield from _after(case)
    yield from _under_way(case)


def _taken(case: Case) -> pl.DataFrame:
    """Injections that KVM took, with the fill that delivered them (null: none)."""
    rows = case.observations.injections.filter(
        (pl.col("result") == 0) & pl.col("intid").is_not_null() & pl.col("its").is_not_null()
    )
    lives = case.lives.lives.select("injected_seq", "filled_seq", "filled_ns", "filled_vcpu", "retired_seq")
    lives = lives.unique("injected_seq", keep="first")
    return rows.join(lives, left_on="seq", right_on="injected_seq", how="left", maintain_order="left")


def _after(case: Case) -> Iterator[Finding]:
    wrong = case.compare(_taken(case), case.history.mappings, EVENT, "intid", seen="intid", end="end_seq")
    if wrong.is_empty():
        return
    wrong = wrong.filter(pl.col("known") & pl.col("expected").is_null() & pl.col("gone_by").is_not_null())
    gone = unmapped(case).filter(~pl.col("assumed"))
    # Another LPI than the event's own is a wrong translation, and not this.
    gone = gone.select(*EVENT, "intid", gone_by="seq", gone_ns="time_ns")
    wrong = wrong.join(gone, on=[*EVENT, "intid", "gone_by"], how="inner", maintain_order="left")
    wrong = case.without_lost_commands(case.without_lost(wrong, "time_ns", "end_ns"), "since_seq")
    wrong = wrong.filter(pl.col("filled_seq").is_not_null())
    for keys, mine in wrong.group_by(*EVENT, "gone_by", maintain_order=True):
        row = mine.row(0, named=True)
        cached = bool(row["cached"])
        waited = row["time_ns"] - row["gone_ns"]
        yield case.finding(
            f"{case.command_text(row['gone_by'])} at {seconds(row['gone_ns'])} unmapped event {keys[3]} of device "
            f"0x{keys[2]:x}, but {_what(row)} at {seconds(row['time_ns'])}"
            f"{' hit the translation cache, and' if cached else ' was resolved, and'} LPI {row['intid']} was filled into a "
            f"list register of vCPU {row['filled_vcpu']} at {seconds(row['filled_ns'])}.",
            mechanism="through the translation cache" if cached else "through the tables",
            vcpus=tuple(sorted(mine["filled_vcpu"].drop_nulls().unique().to_list())),
            blames=(row["gone_by"],),
            worst=f"{_what(row)} at {seconds(row['time_ns'])}, {duration(waited)} after the command",
            measure=float(waited),
            **case.about(mine),
            seqs=first_some(
                [row["gone_by"], row["seq"], row["queue_seq"], row["end_seq"], row["filled_seq"]]
            ),
        )


def _under_way(case: Case) -> Iterator[Finding]:
    """MSIs that were being handled when the command took effect, and were queued behind it: legal, and worth knowing."""
    gone = unmapped(case).filter(~pl.col("assumed"))
    rows = _taken(case).filter(pl.col("from_command").is_null() & pl.col("filled_seq").is_not_null())
    # The command may have been read before the MSI came, or while it was handled.
    read = {"gone_by": "seq", "gone_ns": "time_ns", "settled": "settled"}
    early = before(rows, gone, EVENT, **read).filter(pl.col("settled") > pl.col("seq"))
    late = after(rows, gone, EVENT, **read).filter(pl.col("gone_by") < pl.coalesce("queue_seq", "end_seq"))
    late = late.select(early.columns)
    rows = pl.concat([early, late]).filter(pl.col("filled_seq") > pl.col("settled")).sort("seq")
    # Not where the event came back before the LPI was filled.
    back = case.history.mappings.filter(pl.col("from_seq").is_not_null()).select(*EVENT, seq="from_seq")
    rows = after(rows.with_columns(_seq="seq", seq=pl.col("gone_by")), back, EVENT, back="seq").with_columns(
        seq="_seq"
    )
    rows = rows.filter(pl.col("back").fill_null(NEVER) > pl.col("filled_seq"))
    for row in case.without_lost(rows, "time_ns", "filled_ns").iter_rows(named=True):
        one = pl.DataFrame([row], schema=rows.schema)
        yield case.finding(
            f"{_what(row)} of event {row['event_id']} of device 0x{row['device_id']:x} at {seconds(row['time_ns'])} was being "
            f"handled while {case.command_text(row['gone_by'])} ({seconds(row['gone_ns'])}) took effect; LPI {row['intid']} "
            f"was delivered after it, at {seconds(row['filled_ns'])}.",
            severity=Severity.NOTE,
            confidence=Confidence.LIKELY,
            doubt="The MSI and the command overlap: which of the two KVM took first was not recorded.",
            mechanism="under way when the event was unmapped",
            suspect=(),
            advice="Nothing: KVM takes no lock on its fast path, and the architecture allows it.",
            vcpus=(row["filled_vcpu"],),
            blames=(row["gone_by"],),
            **case.about(one),
            seqs=first_some([row["gone_by"], row["seq"], row["queue_seq"], row["filled_seq"]]),
        )


def _what(row: dict[str, Any]) -> str:
    return "an MSI" if row["from_command"] is None else "an INT"
