"""ITS104: an operand lies beyond its limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules import _faults
from itstrace.rules._faults import SKIPPED
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.rules.case import Case


@rule(
    "ITS104",
    kind=Kind.GUEST,
    severity=Severity.ERROR,
    claim="the guest names an id beyond its limit",
    needs=("COMMANDS",),
    guest_sees=SKIPPED,
    leads_to=("ITS101", "ITS102", "ITS103", "ITS302"),
)
def id_out_of_range(case: Case) -> Iterator[Finding]:
    """A device, event, LPI, collection, ITT size or target lies beyond its limit.

    ## What it finds
    A command with an operand that the tables cannot hold: a DeviceID beyond the device table, an EventID
    beyond the ITT that MAPD gave, an LPI below 8192 or beyond PROPBASER's ID bits, a collection beyond its
    table, a vCPU that does not exist, more event bits than the ITS has.

    ## Why it matters
    The command has no effect, and KVM does not tell the guest.

    ## Where it comes from
    A driver that takes more vectors than it asked for, tables that were sized for fewer devices, an RDbase
    that is an address where the ITS wants a processor number (GITS_TYPER.PTA).

    ## When it is wrong
    Limits come from GITS_BASER, GICR_PROPBASER and MAPD; where the capture does not show them, they are not
    checked. The vCPUs are known only where the capture shows the VM being made.

    ## What to do
    Compare the operand with the limit that the message names, and the limit with what the guest wrote to
    GITS_BASER, PROPBASER or MAPD.
    """
    yield from _faults.report(case)
