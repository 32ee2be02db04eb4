"""Findings of two captures side by side: what is new first, then what both have, and the notes."""

from __future__ import annotations

from collections import Counter
from shlex import quote
from typing import TYPE_CHECKING, Final

from itstrace.difference import Change
from itstrace.findings import Confidence, Kind, Severity
from itstrace.report.difference.parts import Grid, Line, Pair, Part, Section, Side, Told
from itstrace.report.finding import KINDS, named, others, vcpus, when
from itstrace.report.text import listed, number, plural
from itstrace.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.difference import Difference, Kept
    from itstrace.findings import Finding, Subject

CHANGES: Final = {
    Change.NEW: "new in B",
    Change.WORSE: "worse in B",
    Change.MILDER: "milder in B",
    Change.GONE: "gone in B",
    Change.BOTH: "in both",
    Change.UNTOLD_A: "in B; A could not tell",
    Change.UNTOLD_B: "in A; B could not tell",
}
_ONLY: Final = {Change.NEW: "only in B", Change.GONE: "only in A"}


def found(different: Difference) -> Section:
    """The section."""
    parts: list[Part] = [pair(one, different) for one in different.findings if one.differs]
    at = len(parts)
    alike = [one for one in different.findings if not one.differs]
    both = [one for one in alike if one.change is Change.BOTH]
    untold = [one for one in alike if one.change in {Change.UNTOLD_A, Change.UNTOLD_B}]
    notes = [one for one in alike if one not in both and one not in untold]
    for title, kept in (
        ("found in both captures (no difference)", both),
        ("found in one capture, where the other could not tell (not counted)", untold),
        ("notes, and findings about a capture itself, found in one capture (not counted)", notes),
    ):
        lines = tuple(_rows(kept))
        if lines:
            columns = ("rule", "severity", "A", "B", "found")
            parts.append(Grid(title, columns, lines, left=frozenset({0, 1, 4}), give=4))
    parts[at:at] = _to_see(different)
    changes = Counter(one.change for one in different.findings if one.differs)
    note = listed([f"{count:,} {CHANGES[change]}" for change, count in changes.items()])
    if not note:
        note = "none is new, and none is gone" if different.findings else "none in either capture"
    return Section("Findings", note, tuple(parts))


def _to_see(different: Difference) -> Iterator[Told]:
    """The calls that show the records behind what differs."""
    file = different.recorded.facts[0]
    for path, side in ((file.b, 1), (file.a, 0)):
        mine = [one for one in different.findings if one.differs and (one.a, one.b)[side]]
        codes = ",".join(dict.fromkeys(one.code for one in mine if one.told in (one.a, one.b)[side]))
        if codes and path != "-":
            yield Told(f"itstrace analyze {quote(str(path))} --select {codes}", "shell", head="$ ")


def pair(one: Kept, different: Difference) -> Pair:
    """One cause that differs, whole."""
    finding = one.told
    return Pair(
        CHANGES[one.change],
        one.severity,
        f"{finding.code} {finding.name}",
        KINDS[finding.kind].replace("KVM", _host(different, one)),
        meaning(finding),
        _side(one.a, different),
        _side(one.b, different),
    )


def meaning(finding: Finding) -> str:
    """What findings of its rule mean, in a sentence."""
    return RULES[finding.code].summary if finding.code in RULES else ""


def about(finding: Finding, different: Difference) -> str:
    """`LPI 8193 (device 0x10, event 1) and 2 others, vCPUs 1 and 0, VM 1`."""
    thing = named(finding)
    parts = [thing + others(finding)] if thing else []
    if finding.vcpus:
        parts.append(vcpus(finding))
    if finding.vm is not None and _many_vms(different):
        parts.append(f"VM {finding.vm}")
    return ", ".join(parts)


def _many_vms(different: Difference) -> bool:
    fact = next(fact for fact in different.recorded.facts if fact.name == "VMs")
    return max(int(fact.a or 0), int(fact.b or 0)) > 1


def _host(different: Difference, one: Kept) -> str:
    fact = next(fact for fact in different.recorded.facts if fact.name == "replayed as")
    return "QEMU" if (fact.b if one.b else fact.a) == "qemu" else "KVM"


def _side(findings: Sequence[Finding], different: Difference) -> Side | None:
    if not findings:
        return None
    worst = findings[0]
    more = f" (and {plural(len(findings) - 1, 'more finding')} of this cause)" if len(findings) > 1 else ""
    return Side(
        worst.severity,
        "" if worst.confidence is Confidence.CERTAIN else str(worst.confidence),
        about(worst, different),
        when(worst) + more,
        worst.message,
    )


def _rows(kept: Sequence[Kept]) -> Iterator[Line]:
    """A row for each cause; what a capture says of itself in several ways is one."""
    alike: dict[tuple[object, ...], list[Kept]] = {}
    for one in kept:
        apart = "" if one.told.kind is Kind.EVIDENCE else one.mechanism
        alike.setdefault((one.code, one.change, one.severity, apart), []).append(one)
    for (_, _, _, mechanism), ones in alike.items():
        first = ones[0]
        sums = (sum(one.counts[side] for one in ones) for side in (0, 1))
        where = "" if first.change is Change.BOTH else _ONLY.get(first.change, CHANGES[first.change])
        words = [where, str(mechanism), _hit_apart(first)]
        said = "; ".join(filter(None, [": ".join(filter(None, words[:2])), words[2]]))
        yield Line((f"{first.code} {first.told.name}", str(first.severity), *map(number, sums), said))


def _hit_apart(one: Kept) -> str:
    """What a cause that both have hit in one of them alone."""
    if one.change is not Change.BOTH or one.told.kind is Kind.EVIDENCE:
        return ""
    sides = [
        f"{_subjects(one.only(side))} only in {side.upper()}" for side in "ab" if _subjects(one.only(side))
    ]
    return ", ".join(sides)


def _subjects(subjects: Sequence[Subject]) -> str:
    names = [name for name in map(named, subjects) if name]
    if not names:
        return ""
    rest = len(names) - 1
    return names[0] + (f" and {plural(rest, 'other')}" if rest else "")


def worth_telling(one: Kept) -> bool:
    """An error or a warning, and not about a capture itself."""
    return one.severity is not Severity.NOTE and one.told.kind is not Kind.EVIDENCE
