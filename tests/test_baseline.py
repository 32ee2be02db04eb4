"""A baseline: what is known, what is new and why, and what is gone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import CAUSE, DOUBLE, LOST, story

from itstrace import Finding, Severity, UsageError
from itstrace.baseline import Compared, Past, compare, read_baseline
from itstrace.findings import Subject
from itstrace.report.json import analysis_document


def _past(*findings: Finding) -> tuple[Past, ...]:
    """The baseline that an analysis with these findings leaves."""
    analysis = story()
    analysis.findings = list(findings)
    return read_baseline(json.dumps(analysis_document(analysis)), "old.json")


def _compared(now: Finding, *then: Finding) -> Compared:
    return compare([now], _past(*then), "old.json")


def test_an_analysis_is_all_known_to_its_own_baseline() -> None:
    for name in ("7.3-guest-mistakes.dat", "6.12-double-delivery.dat", "6.12-lost-records.dat"):
        analysis = analysis_of(SAMPLES / name)
        past = read_baseline(json.dumps(analysis_document(analysis)), "old.json")
        compared = compare(analysis.findings, past, "old.json")

        assert analysis.findings
        assert all(map(compared.is_known, analysis.findings))
        assert (compared.gone, compared.untold, compared.added, compared.milder) == ((), (), {}, {})


def test_times_counts_words_and_vms_make_nothing_new() -> None:
    now = replace(CAUSE, time_ns=5, count=99, message="other words", vm=3, its=2, id="ITS202-4", vcpus=(7,))

    assert _compared(now, CAUSE).is_known(now)


@pytest.mark.parametrize(
    "now", [replace(CAUSE, mechanism="in another way"), replace(CAUSE, code="ITS205"), DOUBLE, LOST]
)
def test_another_code_or_mechanism_is_new(now: Finding) -> None:
    compared = _compared(now, CAUSE)

    assert compared.state(now) == "new"
    assert not compared.added
    assert [past.id for past in compared.gone] == ["ITS202"]


def test_what_is_hit_besides_makes_it_new_and_is_named() -> None:
    fresh = Subject(9, 2, 8199)
    now = replace(CAUSE, subjects=(*CAUSE.subjects, fresh))
    compared = _compared(now, CAUSE)

    assert compared.state(now) == "new"
    assert compared.added == {"ITS202": (fresh,)}
    assert compared.gone == ()  # some of it is still there


def test_what_is_hit_no_more_makes_nothing_new() -> None:
    now = replace(CAUSE, subjects=CAUSE.subjects[:1])

    assert _compared(now, CAUSE).is_known(now)


def test_findings_of_one_mechanism_are_known_together() -> None:
    """As where one of two VMs is not there this time, or was told apart by its severity."""
    one, other = (replace(CAUSE, subjects=(subject,), vm=vm) for vm, subject in enumerate(CAUSE.subjects))

    assert _compared(CAUSE, one, other).is_known(CAUSE)
    assert not _compared(CAUSE, one).is_known(CAUSE)


def test_what_is_worse_now_is_new_and_what_is_milder_is_not() -> None:
    mild = replace(CAUSE, severity=Severity.NOTE)
    compared = _compared(CAUSE, mild)

    assert compared.state(CAUSE) == "new"
    assert compared.milder == {"ITS202": Severity.NOTE}
    assert _compared(mild, CAUSE).is_known(mild)


def test_what_is_gone_is_told_apart_from_what_was_not_looked_for() -> None:
    past = _past(CAUSE, DOUBLE, LOST)
    compared = compare([LOST], past, "old.json", skipped={"ITS401"})

    assert [one.id for one in compared.gone] == ["ITS202"]
    assert [one.id for one in compared.untold] == ["ITS401"]
    assert compared.gone[0].message == CAUSE.message


def test_a_document_of_before_there_were_subjects_is_a_baseline() -> None:
    document = analysis_document(story())
    ours = (
        "id",
        "mechanism",
        "subjects",
        "worst",
        "guest_saw",
        "suspect",
        "known_bugs",
        "doubt",
        "capture_next",
    )
    document["findings"] = [
        {name: value for name, value in finding.items() if name not in (*ours, "caused_by", "leads_to")}
        for finding in document["findings"]
    ]
    past = read_baseline(json.dumps(document), "old.json")
    compared = compare([DOUBLE, replace(DOUBLE, intid=8193)], past, "old.json")

    assert [one.subjects for one in past if one.code == "ITS202"] == [{(8, 0, 8192)}]
    assert {one.code for one in compared.gone} == {"ITS201", "ITS202", "ITS303", "ITS305", "ITS901"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is no JSON"),
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[]", "it names no schema"),
        ("{}", "it names no schema"),
        ('{"schema": "itstrace.analysis/2", "findings": []}', "its schema is 'itstrace.analysis/2'"),
        ('{"version": "2.1.0", "runs": []}', "it names no schema"),
        ('{"schema": "itstrace.analysis/1"}', "its findings cannot be read"),
        ('{"schema": "itstrace.analysis/1", "findings": 3}', "its findings cannot be read"),
        ('{"schema": "itstrace.analysis/1", "findings": [3]}', "its findings cannot be read"),
        (
            '{"schema": "itstrace.analysis/1", "findings": [{"code": "ITS401"}]}',
            "its findings cannot be read",
        ),
        (
            '{"schema": "itstrace.analysis/1", "findings": [{"code": 4, "message": "x", "severity": "error"}]}',
            "its findings cannot be read",
        ),
    ],
    ids=range(12),
)
def test_what_is_no_analysis_is_no_baseline(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_baseline(text, "old.json")

    assert refused.value.message.startswith("old.json is no baseline: ")
    assert why in refused.value.message
