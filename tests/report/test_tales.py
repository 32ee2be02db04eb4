"""Findings by cause: each is told once, and under its cause where it has one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.tiny_analysis import DOUBLE

from itstrace import Finding, Severity
from itstrace.report.tales import Tale, tales


def _finding(name: str, *, after: str = "", before: str = "", severity: Severity = Severity.ERROR) -> Finding:
    return replace(
        DOUBLE,
        id=name,
        severity=severity,
        caused_by=tuple(after.split()),
        leads_to=tuple(before.split()),
    )


def _told(found: list[Finding]) -> list[str]:
    """`A: B C / D` for a cause, what is told under it, and what is told elsewhere."""
    return [_words(tale) for tale in tales(found)]


def _words(tale: Tale) -> str:
    effects, elsewhere = (" ".join(one.id for one in group) for group in (tale.effects, tale.elsewhere))
    return tale.cause.id + (f": {effects}" if effects else "") + (f" / {elsewhere}" if elsewhere else "")


def test_what_follows_stands_under_its_cause_the_nearest_first() -> None:
    found = [
        _finding("C", after="B"),
        _finding("X"),
        _finding("B", after="A", before="C"),
        _finding("D", after="A"),
        _finding("A", before="B D"),
    ]

    assert _told(found) == ["A: B D C", "X"]


def test_a_tale_stands_where_its_worst_finding_would() -> None:
    found = [
        _finding("EFFECT", after="CAUSE"),
        _finding("OTHER"),
        _finding("CAUSE", before="EFFECT", severity=Severity.NOTE),
    ]
    told = tales(found)

    assert [tale.cause.id for tale in told] == ["CAUSE", "OTHER"]
    assert told[0].severity is Severity.ERROR


def test_what_follows_from_two_is_told_once_and_named_by_the_other() -> None:
    found = [_finding("A", before="C"), _finding("B", before="C"), _finding("C", after="A B")]

    assert _told(found) == ["A: C", "B / C"]


def test_a_ring_loses_nothing() -> None:
    found = [_finding("A", after="B", before="B"), _finding("B", after="A", before="A"), _finding("C")]

    assert _told(found) == ["A: B", "C"]


@pytest.mark.parametrize("left_out", ["A", "B"])
def test_a_link_to_what_is_not_shown_is_no_link(left_out: str) -> None:
    found = [_finding("A", before="B"), _finding("B", after="A")]
    rest = [finding for finding in found if finding.id != left_out]

    assert _told(rest) == [rest[0].id]


def test_findings_without_ids_stand_alone_and_none_is_lost() -> None:
    assert _told([_finding(""), _finding(""), _finding("")]) == ["", "", ""]
