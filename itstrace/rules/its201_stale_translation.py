"""ITS201: the translation cache gave what the tables no longer say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules._translation import KEY, mismatches
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule("ITS201", kind=Kind.HOST, severity=Severity.ERROR, needs=("COMMANDS", "INJECTIONS", "QUEUEINGS"))
def stale_translation(case: Case) -> Iterator[Finding]:
    """An MSI was resolved through the translation cache to what the tables no longer say.

    ## What it finds
    An MSI that hit KVM's translation cache and pended an LPI which the interrupt translation table does not
    hold for that (DeviceID, EventID): the event was discarded, its device unmapped, or it maps another LPI
    now.

    ## Why it matters
    The guest gets an interrupt that it has taken down, possibly on an LPI that belongs to another device by
    now.

    ## Where it comes from
    A command that must drop the cache and did not (vgic_its_invalidate_cache), or an entry that was put into
    the cache after it was dropped. The cache is dropped whole by DISCARD, MOVI, MOVALL, MAPD over a device,
    MAPC V=0 and by disabling the ITS.

    ## When it is wrong
    An MSI that was already being handled when the command took effect may still be delivered; such MSIs are
    left out. So are events that were mapped before the capture began.

    ## What to do
    See whether vgic_its_invalidate_cache follows the command that unmapped the event (its_inval_cache in
    `itstrace lpi`), and whether its body ran. Record with its_inval_cache if it is missing.
    """
    for (_, _, device, event), rows in mismatches(case, cached=True).group_by(KEY, maintain_order=True):
        first = rows.row(0, named=True)
        held = (
            "which was unmapped" if first["expected"] is None else f"although it maps LPI {first['expected']}"
        )
        when = ""
        if first["gone_by"] is not None:
            since = case.command_time(first["gone_by"])
            when = (
                f" by {case.command_text(first['gone_by'])} at {seconds(since)}" if since is not None else ""
            )
        yield case.finding(
            f"An MSI of event {event} of device 0x{device:x}, {held}{when}, hit the translation cache and pended LPI "
            f"{first['intid']} ({times(rows.height)}).",
            **case.about(rows),
            seqs=first_some(
                [
                    first["gone_by"],
                    first["set_by"],
                    first["seq"],
                    first["queue_seq"],
                    first["end_seq"],
                    *rows.filter(pl.col("seq") > first["seq"])["seq"].head(3).to_list(),
                ]
            ),
        )
