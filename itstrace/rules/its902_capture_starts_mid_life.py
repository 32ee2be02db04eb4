"""ITS902: the tables were in use when the capture began."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.rules.case import Case


@rule(
    "ITS902",
    kind=Kind.EVIDENCE,
    severity=Severity.NOTE,
    claim="the capture begins when tables were already in use",
)
def capture_starts_mid_life(case: Case) -> Iterator[Finding]:
    """The capture begins when an ITS's tables were already in use.

    ## What it finds
    An ITS whose queue was not seen being set up, nor its tables being restored.

    ## Why it matters
    What was mapped before is known only as far as its use tells: an event by its first MSI, a collection by
    the command that names it. Such entries are marked as assumed, and rules do not rest on them.

    ## Where it comes from
    A capture that was started on a running guest, which is how most captures come about.

    ## When it is wrong
    Never; but the capture may still be enough.

    ## What to do
    Give a dump of that moment: `--seed DIR` with vgic-state and the table images, or vgic-its-state@... (6.15
    or newer). Or start recording before the guest.
    """
    used = case.observations.commands.select("vm", "its").unique()
    injected = case.observations.injections.drop_nulls("its").select("vm", "its").unique()
    rows = case.observations.itss.filter(~pl.col("complete")).join(
        pl.concat([used, injected]).unique(), on=["vm", "its"], how="semi"
    )
    for vm, its, base in rows.select("vm", "its", "base_gpa").iter_rows():
        at = f" at 0x{base:x}" if base is not None else ""
        yield case.finding(
            f"The ITS{at} of VM {vm} was already in use when the capture began: what was mapped before is known "
            "only from its use.",
            vm=vm,
            its=its,
            time_ns=case.start_ns,
        )
