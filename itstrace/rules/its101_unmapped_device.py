"""ITS101: a command names a device that no MAPD mapped."""

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
    "ITS101",
    kind=Kind.GUEST,
    severity=Severity.ERROR,
    claim="the guest uses a device that is not mapped",
    needs=("COMMANDS",),
    guest_sees=SKIPPED,
    leads_to=("ITS102", "ITS302"),
)
def unmapped_device(case: Case) -> Iterator[Finding]:
    """A command names a device that no MAPD mapped.

    ## What it finds
    A command (MAPTI, MAPI, MOVI, INT, CLEAR, INV, DISCARD) whose DeviceID has no entry in the device table at
    that moment, by the commands that came before it.

    ## Why it matters
    The command has no effect, and KVM does not tell the guest: a driver that believes its interrupt is mapped
    waits for it forever.

    ## Where it comes from
    A driver that uses a device's MSIs before its MAPD or after its MAPD V=0, a wrong DeviceID (requester id),
    or a queue that was overwritten.

    ## When it is wrong
    Where the capture begins after the MAPD, or commands were lost: then the device is assumed to be mapped,
    and the rule is silent. Where other records were lost meanwhile, it is likely only.

    ## What to do
    Look in `itstrace commands` for the device's last MAPD; compare the DeviceID with the device's requester
    id in the guest (and the VMM's MSI map).
    """
    yield from _faults.report(case)
