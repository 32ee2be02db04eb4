"""Findings of two captures side by side.

A finding is the same by its code and mechanism, whatever it hit: LPIs and times differ between two runs, the cause
does not. What was hit in one capture alone is told, and is no difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity, Subject

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class Change(StrEnum):
    """How B stands to A."""

    NEW = "new"
    WORSE = "worse"
    MILDER = "milder"
    GONE = "gone"
    BOTH = "both"
    UNTOLD_A = "untold in A"  # in B, and A lacks the recordings that its rule needs
    UNTOLD_B = "untold in B"


@dataclass(frozen=True, slots=True)
class Kept:
    """One cause (a rule and a mechanism) in both captures: its findings there, the worst first."""

    code: str
    mechanism: str
    change: Change
    a: tuple[Finding, ...]
    b: tuple[Finding, ...]

    @property
    def told(self) -> Finding:
        """The one by which it is told: B's, or A's where it is gone."""
        return (self.b or self.a)[0]

    @property
    def severity(self) -> Severity:
        """How bad it is where it is worse."""
        return min((one.severity for one in (*self.a, *self.b)), key=lambda severity: severity.rank)

    @property
    def counts(self) -> tuple[int, int]:
        """How often it was hit in A and in B."""
        return sum(one.count for one in self.a), sum(one.count for one in self.b)

    @property
    def differs(self) -> bool:
        """Whether it is a difference: an error or a warning that is not in both as bad; never one about a capture."""
        changed = self.change in {Change.NEW, Change.WORSE, Change.MILDER, Change.GONE}
        return changed and self.severity is not Severity.NOTE and self.told.kind is not Kind.EVIDENCE

    def only(self, side: str) -> tuple[Subject, ...]:
        """What was hit in this capture (`a` or `b`) alone."""
        mine, others = (self.a, self.b) if side == "a" else (self.b, self.a)
        known = {one.key for finding in others for one in _subjects(finding)}
        return tuple(
            {one.key: one for finding in mine for one in _subjects(finding) if one.key not in known}.values()
        )


def found(
    a: Sequence[Finding], b: Sequence[Finding], *, skipped_a: Collection[str], skipped_b: Collection[str]
) -> tuple[Kept, ...]:
    """Every cause of both; `skipped_a` and `skipped_b` are the codes that were not looked for.

    What differs comes first, and of it what is new, the worst first.
    """
    sides: list[dict[tuple[str, str], list[Finding]]] = [{}, {}]
    for side, findings in zip(sides, (a, b), strict=True):
        for finding in findings:
            side.setdefault((finding.code, finding.mechanism), []).append(finding)
    kept = []
    for key in sides[0] | sides[1]:
        ours, theirs = (tuple(sorted(side.get(key, ()), key=lambda one: one.severity.rank)) for side in sides)
        change = _change(ours, theirs, unseen_a=key[0] in skipped_a, unseen_b=key[0] in skipped_b)
        kept.append(Kept(*key, change, ours, theirs))
    order = list(Change)
    return tuple(
        sorted(
            kept,
            key=lambda one: (
                not one.differs,
                order.index(one.change),
                one.severity.rank,
                one.told.kind.rank,
                one.code,
            ),
        )
    )


def _change(
    ours: tuple[Finding, ...], theirs: tuple[Finding, ...], *, unseen_a: bool, unseen_b: bool
) -> Change:
    if not ours:
        return Change.UNTOLD_A if unseen_a else Change.NEW
    if not theirs:
        return Change.UNTOLD_B if unseen_b else Change.GONE
    before, after = ours[0].severity.rank, theirs[0].severity.rank
    return Change.BOTH if before == after else Change.WORSE if after < before else Change.MILDER


def _subjects(finding: Finding) -> tuple[Subject, ...]:
    return finding.subjects or (Subject(finding.device_id, finding.event_id, finding.intid),)
