"""Findings by cause: each cause with what follows from it, so that they can be told together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from itstrace.findings import Kind, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from itstrace.findings import Finding


@dataclass(frozen=True, slots=True)
class Tale:
    """A finding that follows from none that is shown, and all that follow from it, the nearest first.

    A finding that follows from several is told under one of them; the others have it among `elsewhere`.
    """

    cause: Finding
    effects: tuple[Finding, ...] = ()
    elsewhere: tuple[Finding, ...] = ()

    @property
    def severity(self) -> Severity:
        """That of its worst finding."""
        return min((one.severity for one in (self.cause, *self.effects)), key=lambda each: each.rank)


def tales(found: Sequence[Finding]) -> list[Tale]:
    """All findings, each in one tale; in their own order, that of the first of each tale."""
    places = {finding.id: at for at, finding in enumerate(found) if finding.id}
    followed = {at for at, one in enumerate(found) if any(cause in places for cause in one.caused_by)}
    # Where findings follow from each other in a ring, none of them comes first: then the first of the list does.
    causes = [*(at for at in range(len(found)) if at not in followed), *sorted(followed)]
    taken: set[int] = set()
    made: list[tuple[int, Tale]] = []
    for at in causes:
        if at in taken:
            continue
        taken.add(at)
        mine, elsewhere = _following(at, found, places, taken)
        tale = Tale(found[at], tuple(found[each] for each in mine), tuple(found[each] for each in elsewhere))
        made.append((min([at, *mine]), tale))
    return [tale for _, tale in sorted(made, key=lambda one: one[0])]


def by_kind(found: Sequence[Finding]) -> list[list[Tale]]:
    """What a verdict tells: the tales that are more than notes, by the kind of their cause, what matters most first.

    What findings say of the capture itself is not among them.
    """
    real = [one for one in found if one.kind is not Kind.EVIDENCE]
    loud = [tale for tale in tales(real) if tale.severity is not Severity.NOTE]
    groups = [mine for kind in Kind if (mine := [tale for tale in loud if tale.cause.kind is kind])]
    return sorted(groups, key=lambda each: (each[0].severity.rank, each[0].cause.kind.rank))


def _following(
    cause: int, found: Sequence[Finding], places: dict[str, int], taken: set[int]
) -> tuple[list[int], list[int]]:
    """What follows from a finding, at first or second hand: what no tale has yet, and what another one has."""
    mine: list[int] = []
    elsewhere: list[int] = []
    queue = [cause]
    for one in queue:
        for at in sorted(places[name] for name in found[one].leads_to if name in places):
            if at == cause or at in mine or at in elsewhere:
                continue
            if at in taken:
                elsewhere.append(at)
                continue
            taken.add(at)
            mine.append(at)
            queue.append(at)
    return mine, elsewhere


def names(findings: Iterable[Finding]) -> list[str]:
    """By what findings are named: their ids."""
    return [finding.id or finding.code for finding in findings]
