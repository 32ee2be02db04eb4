"""JUnit XML: a case a rule, which fails, is skipped or passes as the findings say; well-formed whatever is in them."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import CAUSE, DOUBLE, LOST, hostile, story, tiny

from itstrace import Severity
from itstrace.baseline import compare
from itstrace.cli.rules import entries
from itstrace.findings import SkippedRule, Subject
from itstrace.report.catalogue import Entry
from itstrace.report.junit import junit_text
from itstrace.rules import Plugin

if TYPE_CHECKING:
    from itstrace import Analysis

#: A rule that no package has, for a finding of the story; the rest are ours.
_ITS202 = Entry("ITS202", "missing-invalidation", CAUSE.kind, CAUSE.severity, (), "", "")
RULES = [*(entry for entry in entries() if entry.code not in ("ITS202", "ITS305")), _ITS202]


def _suite(analysis: Analysis, **options: Any) -> ET.Element:
    root = ET.fromstring(junit_text(analysis, RULES, **options))  # noqa: S314  # our own document
    assert (root.tag, [suite.tag for suite in root]) == ("testsuites", ["testsuite"])
    suite = root[0]
    cases = suite.findall("testcase")
    # What a CI system believes are the counts; what it shows are the cases.
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert root.get(name) == suite.get(name) == str(sum(case.find(tag) is not None for case in cases))
    assert root.get("tests") == suite.get("tests") == str(len(cases))
    return suite


def _case(suite: ET.Element, code: str) -> ET.Element:
    (case,) = [case for case in suite.findall("testcase") if (case.get("name") or "").startswith(code)]
    return case


def _outcomes(suite: ET.Element) -> dict[str, list[str]]:
    """Of every rule that has anything to tell, what."""
    cases = {(case.get("name") or "")[:6]: [part.tag for part in case] for case in suite.findall("testcase")}
    return {code: parts for code, parts in cases.items() if parts}


def test_a_suite_is_a_capture_and_a_case_is_a_rule() -> None:
    suite = _suite(tiny())
    case = _case(suite, "ITS401")
    properties = {one.get("name"): one.get("value") for one in suite.findall("properties/property")}

    assert suite.get("name") == "tiny.dat"
    assert len(suite.findall("testcase")) == len(RULES)
    assert (case.get("classname"), case.get("name")) == ("itstrace.host", "ITS401 double-pending")
    assert (properties["kernel"], properties["profile"]) == ("6.12.0", "kvm-6.12")


@pytest.mark.parametrize(
    ("level", "failing"),
    [
        (Severity.ERROR, {"ITS401"}),
        (Severity.WARNING, {"ITS401", "ITS901"}),
        (Severity.NOTE, {"ITS401", "ITS901"}),
    ],
)
def test_what_is_as_bad_as_is_asked_fails_and_milder_is_output(level: Severity, failing: set[str]) -> None:
    outcomes = _outcomes(_suite(tiny(), fail_on=level))

    assert {code for code, parts in outcomes.items() if parts == ["failure"]} == failing
    assert {code for code, parts in outcomes.items() if parts == ["system-out"]} == {
        "ITS401",
        "ITS901",
    } - failing


def test_a_rule_that_could_not_run_is_skipped_with_the_reason() -> None:
    partial = copy(tiny())
    partial.skipped = [*tiny().skipped, SkippedRule("ITS105", "unknown-command", (), why="KeyError: 'x'")]
    partial.plugins = (Plugin("acme", "acme-rules 1", problem="ImportError: no"),)
    suite = _suite(partial)
    skipped, broken, plugin = (_case(suite, code)[0] for code in ("ITS113", "ITS105", "acme-rules 1"))

    assert (skipped.tag, skipped.get("message")) == ("skipped", "REGISTER_WRITES was not recorded")
    assert (broken.tag, broken.get("message")) == ("error", "it failed: KeyError: 'x'")
    assert (plugin.tag, plugin.get("message")) == ("error", "its rules are left out: ImportError: no")


def test_a_failure_tells_all_findings_of_its_rule() -> None:
    two = copy(story())
    second = replace(
        CAUSE, id="ITS202-2", message="Another one.", subjects=tuple(Subject(8, event) for event in range(30))
    )
    two.findings = [*story().findings, second]
    (failure,) = _case(_suite(two), "ITS202")
    text = failure.text or ""

    assert failure.get("message") == f"{CAUSE.message} (and 1 more finding)"
    assert failure.get("type") == "ITS202 error"
    for part in (
        "ITS202 missing-invalidation: error, likely", CAUSE.message, "ITS202-2 missing-invalidation", "Another one.",
        f"worst: {CAUSE.worst}", f"guest saw: {CAUSE.guest_saw}", "suspect: vgic_its_cmd_handle_discard",
        "known: the cache is filled while it is dropped", f"doubt: {CAUSE.doubt}", "leads to: ITS201 and ITS305",
        "hit: LPI 8192 (device 0x8, event 0); device 0x9, event 1", "device 0x8, event 19; and 10 more",
        "100.001700499 [000] populate_lr  vcpu=0",
    ):  # fmt: skip
        assert part in text


def test_errors_and_milder_findings_of_one_rule_stand_apart() -> None:
    both = copy(tiny())
    both.findings = [DOUBLE, replace(DOUBLE, id="ITS401-2", severity=Severity.NOTE, message="A milder one.")]
    failure, output = _case(_suite(both), "ITS401")

    assert (failure.tag, output.tag) == ("failure", "system-out")
    assert "A milder one." not in (failure.text or "")
    assert "A milder one." in (output.text or "")


def test_what_a_baseline_has_is_output() -> None:
    past = replace(compare(tiny().findings, (), "old.json"), known=frozenset({"ITS401"}))
    suite = _suite(tiny(), against=past, fail_on=Severity.NOTE)

    assert _outcomes(suite) == {"ITS113": ["skipped"], "ITS401": ["system-out"], "ITS901": ["failure"]}
    assert "certain, new" in (_case(suite, "ITS901")[0].text or "")
    assert "likely, as in the baseline" in (_case(suite, "ITS401")[0].text or "")


def test_hostile_words_make_no_markup_and_are_spelled_out() -> None:
    bad = copy(hostile())
    bad.findings = [
        replace(one, mechanism="", worst="\x00\x0b\ufffe\udcff ]]> &lt;", suspect=("<b>",))
        for one in hostile().findings
    ]
    text = junit_text(bad, RULES)
    failure = _case(_suite(bad), "ITS401")[0]

    assert text.isascii()
    assert not re.search(r"[^\n\x20-\x7e]", text)
    assert "\\x1b[2J" in (failure.get("message") or "")
    assert "worst: \\x00\\x0b\\ufffe\\udcff ]]> &lt;" in (failure.text or "")
    assert "suspect: <b>" in (failure.text or "")


@pytest.mark.parametrize("name", ["6.12-double-delivery.dat", "7.3-migrate.dat", "6.12-lost-records.dat"])
def test_samples_fail_by_their_errors_alone(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    failing = {code for code, parts in _outcomes(_suite(analysis)).items() if "failure" in parts}

    assert failing == {one.code for one in analysis.findings if one.severity is Severity.ERROR}


def test_several_parts_are_one_suite() -> None:
    parts = copy(tiny())
    parts.findings = [LOST]
    parts.info = replace(tiny().info, paths=[tiny().info.path, tiny().info.path.with_name("b.dat")])

    assert _suite(parts).get("name") == "tiny.dat, b.dat"
