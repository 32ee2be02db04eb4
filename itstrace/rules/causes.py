"""From symptoms to causes: findings of one mechanism become one, and each is linked with what follows from it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from itstrace.findings import Confidence, Finding, Subject
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from itstrace.rules.registry import Rule

#: How many of the things that were hit a message names; the finding has all of them.
_NAMED = 4
#: Evidence of a merged finding: records of the first occurrence, then of the worst one.
_RECORDS = 16


def subject_of(finding: Finding) -> Subject:
    """The one thing that an unmerged finding is about."""
    return Subject(
        finding.device_id,
        finding.event_id,
        finding.intid,
        finding.vcpus,
        finding.count,
        finding.time_ns,
        finding.end_ns,
    )


def one_per_cause(findings: Iterable[Finding]) -> list[Finding]:
    """Findings with the same rule, VM, ITS, severity and mechanism as one; those without a mechanism as they are."""
    groups: dict[tuple[object, ...], list[Finding]] = defaultdict(list)
    for number, finding in enumerate(findings):
        alone = number if not finding.mechanism else None
        key = (finding.code, finding.vm, finding.its, finding.severity, finding.mechanism, alone)
        groups[key].append(finding)
    return [_merged(members) for members in groups.values()]


def _merged(members: Sequence[Finding]) -> Finding:
    members = sorted(members, key=lambda one: (one.confidence.rank, one.time_ns or 0))
    first = members[0]
    subjects = _subjects(members)
    if len(members) == 1:
        return replace(first, subjects=subjects)
    worst = max(members, key=lambda one: one.measure)
    begins = [one.time_ns for one in members if one.time_ns is not None]
    ends = [one.end_ns for one in members if one.end_ns is not None]
    seqs = list(first.seqs)
    seqs += [seq for seq in worst.seqs if seq not in seqs]
    count = sum(one.count for one in members)
    return replace(
        first,
        message=f"{first.message}{_likewise(subjects, first, count)}",
        time_ns=min(begins, default=None),
        end_ns=max(ends, default=None),
        count=count,
        vcpus=tuple(sorted({vcpu for one in members for vcpu in one.vcpus})),
        seqs=tuple(seqs[:_RECORDS]),
        subjects=subjects,
        worst=worst.worst if worst.measure else first.worst,
        measure=worst.measure,
        blames=tuple(dict.fromkeys(seq for one in members for seq in one.blames)),
    )


def _subjects(members: Sequence[Finding]) -> tuple[Subject, ...]:
    """What was hit, each thing once, in order of first occurrence."""
    found: dict[tuple[int | None, int | None, int | None], Subject] = {}
    for one in members:
        for subject in one.subjects or (subject_of(one),):
            old = found.get(subject.key)
            if old is None:
                found[subject.key] = subject
                continue
            begins = [t for t in (old.time_ns, subject.time_ns) if t is not None]
            ends = [t for t in (old.end_ns, subject.end_ns) if t is not None]
            found[subject.key] = replace(
                old,
                vcpus=tuple(sorted({*old.vcpus, *subject.vcpus})),
                count=old.count + subject.count,
                time_ns=min(begins, default=None),
                end_ns=max(ends, default=None),
            )
    return tuple(sorted(found.values(), key=lambda one: one.time_ns or 0))


def _likewise(subjects: Sequence[Subject], first: Finding, count: int) -> str:
    others = [one for one in subjects if one.key != subject_of(first).key]
    if not others:
        return f" In all {times(count)}."
    shown = ", ".join(name(one) for one in others[:_NAMED])
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f" Likewise {shown}{more}; {times(count)} in all."


def name(subject: Subject) -> str:
    """`LPI 8193`, `0x10/3 (LPI 8193)`, `device 0x10`: a subject among others."""
    if subject.device_id is None:
        return f"LPI {subject.intid}" if subject.intid is not None else "the ITS"
    if subject.event_id is None:
        return f"device 0x{subject.device_id:x}"
    event = f"0x{subject.device_id:x}/{subject.event_id}"
    return event if subject.intid is None else f"{event} (LPI {subject.intid})"


def named(findings: Sequence[Finding]) -> list[Finding]:
    """Give every finding its id; the findings come in their final order."""
    seen: dict[str, int] = defaultdict(int)
    result = []
    for finding in findings:
        seen[finding.code] += 1
        number = seen[finding.code]
        result.append(replace(finding, id=finding.code if number == 1 else f"{finding.code}-{number}"))
    return result


def linked(findings: Sequence[Finding], rules: Mapping[str, Rule]) -> list[Finding]:
    """Link each finding with its consequences.

    One follows from another if its rule is named in the other's `leads_to`, and both blame one command; or, where
    either blames none, if they are about one LPI or event of one VM, and it did not begin before.
    """
    causes: dict[str, list[str]] = defaultdict(list)
    effects: dict[str, list[str]] = defaultdict(list)
    for cause in findings:
        reach = rules[cause.code].leads_to if cause.code in rules else ()
        for effect in findings:
            if effect.code in reach and effect.id != cause.id and _follows(cause, effect):
                causes[effect.id].append(cause.id)
                effects[cause.id].append(effect.id)
    return [
        replace(one, caused_by=tuple(causes[one.id]), leads_to=tuple(effects[one.id])) for one in findings
    ]


def _follows(cause: Finding, effect: Finding) -> bool:
    if cause.vm != effect.vm or Confidence.UNPROVEN in {cause.confidence, effect.confidence}:
        return False
    if cause.blames and effect.blames:
        return bool(set(cause.blames) & set(effect.blames))
    if cause.time_ns is not None and effect.end_ns is not None and effect.end_ns < cause.time_ns:
        return False
    ours, theirs = _keys(cause), _keys(effect)
    return bool(ours & theirs)


def _keys(finding: Finding) -> set[tuple[str, int | None, int | None]]:
    """LPIs and events that a finding is about, comparable with another's."""
    keys: set[tuple[str, int | None, int | None]] = set()
    for one in finding.subjects:
        if one.intid is not None:
            keys.add(("lpi", one.intid, None))
        if one.device_id is not None and one.event_id is not None:
            keys.add(("event", one.device_id, one.event_id))
    return keys
