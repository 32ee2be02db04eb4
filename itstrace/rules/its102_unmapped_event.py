"""ITS102: a command on an event that nothing maps."""

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
    "ITS102",
    kind=Kind.GUEST,
    severity=Severity.ERROR,
    claim="the guest uses an event that is not mapped",
    needs=("COMMANDS",),
    guest_sees=SKIPPED,
)
def unmapped_event(case: Case) -> Iterator[Finding]:
    """A command works on an event that nothing maps.

    ## What it finds
    MOVI, INT, CLEAR, INV or DISCARD of an (DeviceID, EventID) whose device is mapped, but which no MAPTI or
    MAPI mapped since, or which was discarded.

    ## Why it matters
    The command has no effect, and KVM does not tell the guest. An INT of such an event is an interrupt that
    nobody gets.

    ## Where it comes from
    A driver that frees a vector and still moves or fires it, a vector number that is off by one, or an MAPTI
    that was itself refused (see ITS103, ITS104, ITS106).

    ## When it is wrong
    Where the capture begins after the MAPTI, or commands were lost: then the event is assumed to be mapped,
    and the rule is silent. Where other records were lost meanwhile, it is likely only.
    A test guest may fire a discarded event on purpose.

    ## What to do
    Look in `itstrace commands` for the last MAPTI and DISCARD of this event, and in the guest's driver for
    who still uses the vector.
    """
    yield from _faults.report(case)
