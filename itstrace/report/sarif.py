"""Findings as SARIF 2.1.0, as code scanning services and editors show them.

Theory of operation. One run. `tool.driver.rules` holds every rule with its page, `results` the findings. A finding's
place is the capture file, and within it a *logical* location: VM, ITS, device, event, LPI. Its records are the steps
of a code flow. Times are those of the trace's clock, which is no wall clock, so they stand in texts and in properties,
never in `executionTimeUtc`. Cause and consequence name each other by `guid`. Texts are `plain`: what a capture holds
may be no text at all.

Spec: SARIF 2.1.0 (OASIS), with what GitHub code scanning asks for besides.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from uuid import UUID, uuid5

from itstrace._version import __version__
from itstrace.findings import Confidence, Finding, Kind, Severity, Subject
from itstrace.report.finding import known_bug, named, when
from itstrace.report.json import finding_document
from itstrace.report.text import hexa, listed, plain
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from itstrace.analysis import Analysis
    from itstrace.baseline import Compared
    from itstrace.report.catalogue import Entry

Document = dict[str, Any]

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
#: The name of a rule's page, for want of an address; `itstrace rules CODE` prints it.
_PAGE: Final = "urn:itstrace:rule:"
_LEVELS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}
#: What GitHub calls them, in the properties of a rule.
_PROBLEMS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "recommendation"}
#: In which name space the guids of findings are made: one of our own, drawn once.
_SPACE: Final = UUID("4c8b1f0a-6f0e-4a63-9d2f-3a7c54e0b9d1")
_WHOLE: Final = "the whole capture, which has no lines"
#: Other things that were hit, which are given as related locations.
_RELATED_SHOWN: Final = 100
_SKIPPED, _FAILED = "skipped-rule", "failed-plug-in"
#: What the run may say about itself: id, name, what it means, what to do.
_NOTIFICATIONS: Final[list[Document]] = [
    {
        "id": descriptor,
        "name": name,
        "shortDescription": {"text": what},
        "fullDescription": {"text": what},
        "help": {"text": todo},
        "helpUri": f"{_PAGE}{descriptor}",
    }
    for descriptor, name, what, todo in (
        (
            _SKIPPED,
            "SkippedRule",
            "A rule could not run: the capture lacks what it needs. That it found nothing says nothing.",
            "`itstrace info` says what to record for it.",
        ),
        (
            _FAILED,
            "FailedPlugIn",
            "Rules of another package failed and were left out.",
            "Tell those who make the package; `itstrace rules` lists what is left.",
        ),
    )
]


def sarif_document(
    analysis: Analysis, rules: Sequence[Entry], *, against: Compared | None = None, folder: Path | None = None
) -> Document:
    """The log. `rules`: all of them; `folder`: captures below it are named relative to it."""
    info = analysis.info
    run = _Run(analysis, rules, against, [_uri(path, folder) for path in info.paths or [info.path]])
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run.document()]}


@dataclass(slots=True)
class _Run:
    analysis: Analysis
    rules: Sequence[Entry]
    against: Compared | None
    uris: list[str]
    places: list[Document] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def document(self) -> Document:
        indexes = {rule.code: at for at, rule in enumerate(self.rules)}
        prints = _fingerprints(self.analysis.findings)
        guids = {
            finding.id: str(uuid5(_SPACE, one))
            for finding, one in zip(self.analysis.findings, prints, strict=True)
        }
        results = [
            self._result(finding, one, indexes, guids)
            for finding, one in zip(self.analysis.findings, prints, strict=True)
        ]
        return {
            "tool": {"driver": self._driver(indexes)},
            "invocations": [self._invocation(indexes)],
            "artifacts": self._artifacts(),
            "logicalLocations": self.places,
            "columnKind": "unicodeCodePoints",
            "results": results,
            "properties": self._properties(),
        }

    # --- the tool

    def _driver(self, indexes: dict[str, int]) -> Document:
        return {
            "name": "itstrace",
            "version": __version__,
            "semanticVersion": __version__,
            "informationUri": "urn:itstrace",
            "shortDescription": {"text": "Names what went wrong with the interrupts of a KVM/arm64 guest."},
            "rules": [_rule(rule, indexes) for rule in self.rules],
            "notifications": _NOTIFICATIONS,
        }

    def _invocation(self, indexes: dict[str, int]) -> Document:
        """What could not run, and what was set. None of it makes the run a failure, so none is an error."""
        configuration = []
        for rule in self.analysis.skipped:
            told = _notice(
                _FAILED if rule.why else _SKIPPED,
                "warning" if rule.why else "note",
                f"{rule.code} {rule.name} could not run: {rule.reason}",
            )
            if rule.code in indexes:
                told["associatedRule"] = {"id": rule.code, "index": indexes[rule.code]}
            configuration.append(told)
        for plugin in self.analysis.plugins:
            if plugin.problem:
                text = f"The rules of {plugin.package} ({plugin.name}) are left out: {plugin.problem}"
                configuration.append(_notice(_FAILED, "warning", text))
        found: Document = {"executionSuccessful": True, "toolConfigurationNotifications": configuration}
        overrides = [
            {
                "descriptor": {"id": rule.code, "index": indexes[rule.code]},
                "configuration": {"level": _LEVELS[rule.severity], "parameters": chosen},
            }
            for rule in self.rules
            if (
                chosen := {
                    one.name: self.analysis.settings[one.name]
                    for one in rule.settings
                    if one.name in self.analysis.settings
                }
            )
        ]
        return found | ({"ruleConfigurationOverrides": overrides} if overrides else {})

    def _artifacts(self) -> list[Document]:
        info = self.analysis.info
        artifacts: list[Document] = [
            {"location": {"uri": uri}, "roles": ["analysisTarget"]} for uri in self.uris
        ]
        if len(artifacts) == 1 and info.size_bytes:
            artifacts[0]["length"] = info.size_bytes
        return artifacts

    def _properties(self) -> Document:
        info = self.analysis.info
        found: Document = {
            "format": info.format,
            "kernel": info.kernel,
            "arch": info.arch,
            "clock": info.clock,
            "start_ns": self.analysis.start_ns,
            "end_ns": self.analysis.end_ns,
        }
        if self.against is not None:
            found["baseline"] = self.against.source
            found["baseline_gone"] = [past.id for past in self.against.gone]
        return {name: plain(value) if isinstance(value, str) else value for name, value in found.items()}

    # --- findings

    def _result(
        self, finding: Finding, fingerprint: str, indexes: dict[str, int], guids: dict[str, str]
    ) -> Document:
        kind, level = _judged(finding)
        links = {
            name: [{"id": each, "guid": guids[each]} if each in guids else {"id": each} for each in ids]
            for name, ids in (("caused_by", finding.caused_by), ("leads_to", finding.leads_to))
        }
        said = {
            name: value
            for name, value in finding_document(finding, self.against).items()
            if name not in ("message", "evidence", "code", "name", "baseline")
        }
        found: Document = {
            "ruleId": finding.code,
            "kind": kind,
            "level": level,
            "message": _message(_words(finding)),
            "guid": guids[finding.id],
            # GitHub knows a result again by this name only; all of a capture's stand at the same line.
            "partialFingerprints": {
                "itstraceFinding/v1": fingerprint,
                "primaryLocationLineHash": fingerprint,
            },
            "locations": [self._location(finding, finding)],
            "properties": _safe({**said, **links}),
        }
        if finding.code in indexes:
            found["ruleIndex"] = indexes[finding.code]
        others = [
            one for one in finding.subjects if one.key != (finding.device_id, finding.event_id, finding.intid)
        ]
        if others:
            found["relatedLocations"] = [
                {"id": at, **self._location(finding, one), "message": _message(_hit(one))}
                for at, one in enumerate(others[:_RELATED_SHOWN], 1)
            ]
        if finding.evidence:
            found["codeFlows"] = [self._flow(finding)]
        if self.against is not None:
            found["baselineState"] = "unchanged" if self.against.is_known(finding) else "new"
        return found

    def _location(self, finding: Finding, thing: Finding | Subject) -> Document:
        place = self._place(finding.vm, finding.its, thing)
        logical = {} if place is None else {"logicalLocations": [self._named(place)]}
        return {"physicalLocation": self._file(), **logical}

    def _file(self) -> Document:
        """The capture. GitHub asks for a line, and shows nothing without one; the first stands for the file."""
        return {
            "artifactLocation": {"uri": self.uris[0], "index": 0},
            "region": {"startLine": 1, "message": {"text": _WHOLE}},
        }

    def _named(self, index: int) -> Document:
        return {"index": index, "fullyQualifiedName": self.places[index]["fullyQualifiedName"]}

    def _place(self, vm: int | None, its: int | None, thing: Finding | Subject) -> int | None:
        """The logical location of a thing, made with all that it lies within; None for nothing in particular."""
        parts = [
            ("vm", None if vm is None else f"VM {vm}"),
            ("its", None if its is None else f"ITS {its}"),
            ("device", None if thing.device_id is None else f"device {hexa(thing.device_id)}"),
            ("event", None if thing.event_id is None else f"event {thing.event_id}"),
            ("lpi", None if thing.intid is None else f"LPI {thing.intid}"),
        ]
        index: int | None = None
        whole = ""
        for kind, name in parts:
            if name is None:
                continue
            whole = f"{whole}/{name}" if whole else name
            if whole not in self._places:
                inside = {} if index is None else {"parentIndex": index}
                self._places[whole] = len(self.places)
                self.places.append({"name": name, "fullyQualifiedName": whole, "kind": kind, **inside})
            index = self._places[whole]
        return index

    def _flow(self, finding: Finding) -> Document:
        """The records in their order, over all CPUs: the steps that lead to the finding."""
        steps = [
            {
                "executionOrder": at,
                "importance": "essential",
                "location": {
                    "physicalLocation": self._file(),
                    "message": _message(
                        f"{seconds(item.time_ns, 9)} [{item.cpu:03d}] {item.event}  {item.text}".rstrip()
                    ),
                },
                "properties": _safe({"time_ns": item.time_ns, "cpu": item.cpu, "event": item.event}),
            }
            for at, item in enumerate(finding.evidence, 1)
        ]
        return {
            "message": {"text": "The records that show it, as the capture has them."},
            "threadFlows": [{"id": "records", "locations": steps}],
        }


def _rule(rule: Entry, indexes: dict[str, int]) -> Document:
    """One rule, with its page. What it leads to is said as SARIF says it: a rule that can precede others."""
    found: Document = {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": _message(rule.summary or rule.name),
        "fullDescription": _message(rule.summary or rule.name),
        "help": {"text": plain_page(rule), "markdown": plain_page(rule)},
        "helpUri": f"{_PAGE}{rule.code}",
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        "properties": _safe(
            {
                "kind": str(rule.kind),
                "tags": ["kvm", "gic-its", str(rule.kind)],
                "problem.severity": _PROBLEMS[rule.severity],
                "needs": list(rule.needs),
                "suspect": list(rule.suspect),
                "guest_sees": rule.guest_sees,
                **({"origin": rule.origin} if rule.origin else {}),
            }
        ),
    }
    if rule.settings:
        found["defaultConfiguration"]["parameters"] = {one.name: one.default for one in rule.settings}
    follow = [code for code in rule.leads_to if code in indexes]
    if follow:
        found["relationships"] = [
            {"target": {"id": code, "index": indexes[code]}, "kinds": ["canPrecede"]} for code in follow
        ]
    return found


def plain_page(rule: Entry) -> str:
    """A rule's page, line by line safe; a rule without one has its name."""
    return "\n".join(map(plain, rule.page.split("\n"))) or rule.name


def _notice(descriptor: str, level: str, text: str) -> Document:
    return {"descriptor": {"id": descriptor}, "level": level, "message": _message(text)}


def _judged(finding: Finding) -> tuple[str, str]:
    """Kind and level: only what fails has a level.

    What the capture cannot prove is for a person to review; a remark on the capture is no problem of anybody's.
    """
    if finding.kind is Kind.EVIDENCE and finding.severity is Severity.NOTE:
        return "informational", "none"
    if finding.confidence is Confidence.UNPROVEN:
        return "review", "none"
    return "fail", _LEVELS[finding.severity]


def _words(finding: Finding) -> str:
    """What a viewer shows of a finding: its message first, as some show no more than one sentence."""
    about = ", ".join(part for part in (named(finding), when(finding)) if part)
    parts = [
        finding.message,
        about,
        finding.worst and f"Worst: {finding.worst}",
        finding.guest_saw and f"What the guest sees: {finding.guest_saw}",
        finding.suspect and f"Suspect: {', '.join(finding.suspect)}",
        *(f"Known bug: {known_bug(bug)}" for bug in finding.known_bugs),
        finding.doubt and f"Doubt: {finding.doubt}",
        finding.capture_next and f"Record next time: {finding.capture_next}",
        finding.caused_by and f"It follows from {listed(list(finding.caused_by))}",
        finding.leads_to and f"It leads to {listed(list(finding.leads_to))}",
        finding.advice and f"What to do: {finding.advice}",
    ]
    return " ".join(text if text.endswith((".", "?", "!")) else f"{text}." for text in parts if text)


def _hit(thing: Subject) -> str:
    at = "" if thing.time_ns is None else f", first at {seconds(thing.time_ns)}"
    return f"{named(thing) or 'the ITS'}: {times(thing.count)}{at}"


def _message(text: str) -> Document:
    """A text as SARIF has it: braces doubled, and no words of a capture that a viewer would make a link.

    Spec: SARIF 2.1.0, 3.11.5 and 3.11.6.
    """
    return {"text": plain(text).replace("{", "{{").replace("}", "}}").replace("](", "] (")}


def _safe(value: Any) -> Any:
    """The same with every text plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_safe(each) for each in value]
    if isinstance(value, dict):
        return {name: _safe(each) for name, each in value.items()}
    return value


def _fingerprints(findings: Sequence[Finding]) -> list[str]:
    """A name for each finding that it has in every analysis of such a capture: of what is wrong, with what; no times.

    Shape: hexadecimal, and a number that tells those apart that are otherwise the same.
    """
    seen: Counter[str] = Counter()
    found = []
    for finding in findings:
        keys = {one.key for one in finding.subjects} or {(finding.device_id, finding.event_id, finding.intid)}
        things = sorted("/".join(map(str, key)) for key in keys)
        what = [finding.code, finding.mechanism, str(finding.vm), str(finding.its), *things]
        digest = sha256("\n".join(what).encode("utf-8", "backslashreplace")).hexdigest()[:32]
        seen[digest] += 1
        found.append(f"{digest}:{seen[digest]}")
    return found


def _uri(path: Path, folder: Path | None) -> str:
    """A path as a URI: relative as it was given, or to `folder`, where it lies below; else absolute."""
    if folder is not None and path.is_absolute() and path.is_relative_to(folder):
        path = path.relative_to(folder)
    if path.is_absolute():
        return path.as_uri()
    return quote(os.fsencode(path.as_posix()))
