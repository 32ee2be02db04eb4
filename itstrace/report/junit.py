"""Findings as JUnit XML, as CI systems show test results: one suite a capture, one case a rule.

A rule fails where it has findings as bad as the caller fails on; milder ones, and those that a baseline has, are its
output. One that could not run is skipped, with the reason. Every text is `plain`: XML 1.0 has no way to write most
control characters, and a lone surrogate is no character at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET  # written, never read

from itstrace.findings import Finding, Severity
from itstrace.report.finding import Naming, known_bug, named, when
from itstrace.report.tales import names
from itstrace.report.text import listed, plain, plural
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from itstrace.analysis import Analysis
    from itstrace.baseline import Compared
    from itstrace.report.catalogue import Entry

#: Things that were hit, and records, that the text of one finding lists.
_SUBJECTS_SHOWN = 20
_EVIDENCE_SHOWN = 20


def junit_text(
    analysis: Analysis,
    rules: Sequence[Entry],
    *,
    fail_on: Severity = Severity.ERROR,
    against: Compared | None = None,
) -> str:
    """The document. `rules`: those that were asked for; `fail_on`: how bad a finding makes its rule fail."""
    naming = Naming(analysis)
    failed = {plugin.package: plugin.problem for plugin in analysis.plugins if plugin.problem}
    suite = ET.Element(
        "testsuite", name=plain(", ".join(map(str, analysis.info.paths or [analysis.info.path])))
    )
    _properties(suite, analysis, against)
    reasons = {rule.code: rule for rule in analysis.skipped}
    counts = dict.fromkeys(("failures", "errors", "skipped"), 0)
    for rule in rules:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=f"itstrace.{rule.kind}",
            name=plain(f"{rule.code} {rule.name}"),
            time="0",
        )
        mine = [finding for finding in analysis.findings if finding.code == rule.code]
        fails = [one for one in mine if one.severity.rank <= fail_on.rank and not _known(one, against)]
        others = [one for one in mine if one not in fails]
        skipped = reasons.get(rule.code)
        if skipped is not None and skipped.missing:
            counts["skipped"] += 1
            ET.SubElement(case, "skipped", message=plain(skipped.reason))
        elif skipped is not None:
            counts["errors"] += 1
            ET.SubElement(case, "error", message=plain(skipped.reason), type="plug-in")
        if fails:
            counts["failures"] += 1
            more = f" (and {plural(len(fails) - 1, 'more finding')})" if len(fails) > 1 else ""
            failure = ET.SubElement(
                case,
                "failure",
                message=plain(f"{fails[0].message}{more}"),
                type=f"{rule.code} {fails[0].severity}",
            )
            failure.text = _told(fails, naming, against)
        if others:
            ET.SubElement(case, "system-out").text = _told(others, naming, against)
    for package, problem in failed.items():
        counts["errors"] += 1
        case = ET.SubElement(suite, "testcase", classname="itstrace.plugin", name=plain(package), time="0")
        ET.SubElement(case, "error", message=plain(f"its rules are left out: {problem}"), type="plug-in")
    root = ET.Element("testsuites", name="itstrace")
    for element in (root, suite):
        element.set("tests", str(len(rules) + len(failed)))
        for name, count in counts.items():
            element.set(name, str(count))
        element.set("time", "0")
    root.append(suite)
    ET.indent(root)
    # In ASCII nothing depends on what a reader takes the encoding for.
    text: bytes = ET.tostring(root, encoding="us-ascii", xml_declaration=True)
    return text.decode("ascii") + "\n"


def _known(finding: Finding, against: Compared | None) -> bool:
    return against is not None and against.is_known(finding)


def _properties(suite: ET.Element, analysis: Analysis, against: Compared | None) -> None:
    info = analysis.info
    values = {
        "format": info.format,
        "kernel": info.kernel,
        "arch": info.arch,
        "profile": ", ".join(sorted(set(analysis.history.profiles.values()))),
        "baseline": None if against is None else against.source,
        "baseline.gone": None if against is None else ", ".join(past.id for past in against.gone),
        **{f"set.{name}": f"{value:g}" for name, value in analysis.settings.items()},
    }
    properties = ET.SubElement(suite, "properties")
    for name, value in values.items():
        if value:
            ET.SubElement(properties, "property", name=plain(name), value=plain(value))


def _told(findings: Sequence[Finding], naming: Naming, against: Compared | None) -> str:
    """Findings in lines, each whole; ids first, so that they can be found in the other reports."""
    return "\n\n".join("\n".join(map(plain, _lines(one, naming, against))) for one in findings)


def _lines(finding: Finding, naming: Naming, against: Compared | None) -> list[str]:
    head = f"{names([finding])[0]} {finding.name}: {finding.severity}, {finding.confidence}"
    if against is not None:
        head += ", as in the baseline" if against.is_known(finding) else ", new"
    about = ", ".join(part for part in (naming.subject(finding), when(finding)) if part)
    lines = [head, finding.message, *([about] if about else [])]
    labelled = {
        "worst": finding.worst,
        "guest saw": finding.guest_saw,
        "suspect": ", ".join(finding.suspect),
        "known": "; ".join(map(known_bug, finding.known_bugs)),
        "doubt": finding.doubt,
        "record": finding.capture_next,
        "because of": listed(list(finding.caused_by)),
        "leads to": listed(list(finding.leads_to)),
        "next": finding.advice,
    }
    lines += [f"{label}: {text.replace(chr(10), ' ')}" for label, text in labelled.items() if text]
    if len(finding.subjects) > 1:
        things = [named(one) or "the ITS" for one in finding.subjects]
        rest = len(things) - _SUBJECTS_SHOWN
        lines.append(
            f"hit: {'; '.join(things[:_SUBJECTS_SHOWN])}{f'; and {rest:,} more' if rest > 0 else ''}"
        )
    for item in finding.evidence[:_EVIDENCE_SHOWN]:
        lines.append(f"  {seconds(item.time_ns, 9)} [{item.cpu:03d}] {item.event}  {item.text}".rstrip())
    return lines
