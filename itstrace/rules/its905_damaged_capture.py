"""ITS905: the file is cut short or damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules.registry import rule
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.rules.case import Case


#: Other problems that a message names.
_SHOWN = 2


@rule("ITS905", kind=Kind.EVIDENCE, severity=Severity.WARNING, claim="the capture is damaged")
def damaged_capture(case: Case) -> Iterator[Finding]:
    """The capture file is cut short or damaged; what could be read was used.

    ## What it finds
    Places at which the file ends too early, or does not hold what its format says.

    ## Why it matters
    Records from there on are missing, without the kernel having counted them.

    ## Where it comes from
    A disk that ran full, a copy that was interrupted, a host that crashed while recording, a mail gateway.

    ## When it is wrong
    Never: the places at which the file breaks its own format are named.

    ## What to do
    Copy the file again and compare its size and checksum with the original.
    """
    places = [place for place in case.damage if not place.disorder]  # that is ITS904
    if not places:
        return
    first = places[0]
    whose = f"CPU {first.cpu}, " if first.cpu is not None else ""
    where = f"{whose}byte {first.offset_bytes}" if first.offset_bytes is not None else f"{whose}somewhere"
    others = list(dict.fromkeys(place.problem for place in places[1:]))
    shown = "; ".join(others[:_SHOWN])
    more = f" And {len(places) - 1} more: {shown}{'; ...' if len(others) > _SHOWN else ''}." if others else ""
    yield case.finding(
        f"The file is damaged ({times(len(places))}), first at {where}: {first.problem}.{more}",
        mechanism="damaged file",
        count=len(places),
    )
