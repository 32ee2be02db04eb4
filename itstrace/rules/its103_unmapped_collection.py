"""ITS103: a command needs a collection that is not mapped."""

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
    "ITS103",
    kind=Kind.GUEST,
    severity=Severity.ERROR,
    claim="the guest uses a collection that is not mapped",
    needs=("COMMANDS",),
    guest_sees=SKIPPED,
    leads_to=("ITS102", "ITS302"),
)
def unmapped_collection(case: Case) -> Iterator[Finding]:
    """A command needs a collection that is not mapped.

    ## What it finds
    MOVI to a collection that no MAPC mapped, MOVI, INT or DISCARD of an event whose own collection is not
    mapped (any more), INVALL of a collection that is not mapped.

    ## Why it matters
    The command has no effect, and KVM does not tell the guest: the interrupt stays where it was, or reaches
    nobody.

    ## Where it comes from
    A guest that brings up a CPU without mapping its collection, moves interrupts to a CPU that is going down,
    or unmapped a collection that events still use (ITS109): on KVM those events have lost it for good.

    ## When it is wrong
    Where the capture begins after the MAPC, or commands were lost: then the collection is assumed to be
    mapped, and the rule is silent. Where other records were lost meanwhile, it is likely only.

    ## What to do
    Look in `itstrace commands` for the MAPC of this collection, and at which time the guest's CPU came up or
    went down.
    """
    yield from _faults.report(case)
