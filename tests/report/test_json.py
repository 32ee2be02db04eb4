"""The JSON of `analyze` is what its schema says, and never says 0 for what is not known."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import CAUSE, DOUBLE, LOST, hostile, story, tiny
from jsonschema import Draft202012Validator

import itstrace.report
from itstrace.baseline import compare, read_baseline
from itstrace.findings import SkippedRule
from itstrace.report.json import analysis_document
from itstrace.rules import Plugin

if TYPE_CHECKING:
    from itstrace import Analysis
    from itstrace.baseline import Compared

SCHEMA = json.loads(Path(itstrace.report.__path__[0], "analysis.schema.json").read_text(encoding="utf-8"))
CAPTURES = sorted(path.name for path in SAMPLES.glob("*.dat"))


def _valid(analysis: Analysis, against: Compared | None = None) -> dict[str, Any]:
    """The document as a program reads it, which the schema accepts."""
    text = json.dumps(analysis_document(analysis, against), allow_nan=False)
    document: dict[str, Any] = json.loads(text)
    errors = [
        f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(document)
    ]
    assert errors == []
    return document


def test_the_schema_is_one_and_is_strict() -> None:
    Draft202012Validator.check_schema(SCHEMA)

    assert list(Draft202012Validator(SCHEMA).iter_errors({"schema": "itstrace.analysis/2"}))


@pytest.mark.parametrize("name", CAPTURES)
def test_every_sample_gives_a_valid_document(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    document = _valid(analysis)

    assert document["capture"]["events"] == analysis.counts["records"].sum()
    assert sum(document["summary"]["commands"].values()) == analysis.observations.commands.height
    assert document["summary"]["injections"] == analysis.lives.lives.height
    assert [f["code"] for f in document["findings"]] == [f.code for f in analysis.findings]
    assert sum(document["summary"]["by_severity"].values()) == len(analysis.findings)


def test_tables_are_those_before_the_teardown() -> None:
    document = _valid(analysis_of(SAMPLES / "6.12-double-delivery.dat"))
    (vm,) = document["vms"]

    assert vm["end_ns"] is not None
    assert [device["device_id"] for device in vm["its"][0]["devices"]] == [0x123, 0x200]
    assert [event["intid"] for event in vm["its"][0]["events"]] == list(range(8192, 8198))


def test_pointers_are_strings_and_ids_are_numbers() -> None:
    document = _valid(analysis_of(SAMPLES / "6.12-double-delivery.dat"))
    its = document["vms"][0]["its"][0]

    assert its["base_gpa"] == "0x8080000"
    assert its["devices"][0] == {
        "device_id": 0x123,
        "event_bits": 5,
        "itt_gpa": "0x41080000",
        "assumed": False,
    }


def test_lpis_sum_up_to_the_summary() -> None:
    document = _valid(analysis_of(SAMPLES / "6.12-double-delivery.dat"))
    (vm,) = document["vms"]

    for figure in ("deliveries", "coalesced"):
        assert sum(lpi[figure] for lpi in vm["lpis"]) == document["summary"][figure] > 0
    assert max(lpi["latency_ns"]["max"] for lpi in vm["lpis"]) == document["summary"]["latency_ns"]["max"]


def test_what_was_not_recorded_is_null() -> None:
    blind = copy(tiny())
    observations = copy(tiny().observations)
    lost = ("msi", "cached", "trigger", "trigger_end", "resolve_end", "fill", "fold", "process", "command")
    observations.fed_by = {probe: event for probe, event in observations.fed_by.items() if probe not in lost}
    for frame in ("commands", "injections", "fills"):
        setattr(observations, frame, getattr(observations, frame).clear())
    lives = copy(tiny().lives)
    lives.lives = tiny().lives.lives.clear()
    blind.observations, blind.lives = observations, lives

    document = _valid(blind)
    summary, lpi = document["summary"], document["vms"][0]["lpis"][0]

    assert (summary["commands"], summary["injections"], summary["deliveries"], summary["latency_ns"]) == (
        None,
    ) * 4
    assert (lpi["injections"], lpi["deliveries"], document["vms"][0]["its"][0]["commands"]) == (None,) * 3
    assert document["coverage"]["observations"]["COMMANDS"] == {"rows": None, "events": [], "whole": False}


def test_an_lpi_without_msis_has_none_and_not_unknown() -> None:
    quiet = copy(tiny())
    lives = copy(tiny().lives)
    lives.lives = tiny().lives.lives.filter(pl.col("intid") != 8192)
    quiet.lives = lives

    lpi = _valid(quiet)["vms"][0]["lpis"][0]

    assert (lpi["injections"], lpi["deliveries"], lpi["latency_ns"]) == (0, 0, None)


def test_a_whole_small_document() -> None:
    document = _valid(tiny())

    assert document["capture"] == {
        "path": "tiny.dat", "paths": ["tiny.dat"], "notes": [],
        "format": "trace.dat v7 none", "kernel": "6.12.0", "arch": "aarch64", "clock": "mono",
        "start_ns": 100_000_000_000, "end_ns": 100_002_100_000, "events": 22, "cpus": 2, "lost": [], "damage": [],
    }  # fmt: skip
    assert document["coverage"]["skipped_rules"] == [
        {
            "code": "ITS113", "name": "queue-misuse", "missing": ["REGISTER_WRITES"],
            "why": "REGISTER_WRITES was not recorded",
        }
    ]  # fmt: skip
    assert document["summary"] == {
        "commands": {"INT": 1, "MAPC": 1, "MAPD": 1, "MAPTI": 1}, "injections": 1, "deliveries": 1, "coalesced": 0,
        "latency_ns": {"p50": 800_000, "p99": 800_000, "max": 800_000},
        "by_severity": {"error": 1, "warning": 1, "note": 0},
    }  # fmt: skip
    assert document["findings"][0]["vcpus"] == [1, 0]
    assert document["findings"][0]["evidence"][0] == {
        "time_ns": 100_001_700_499, "cpu": 0, "event": "populate_lr",
        "text": "vcpu=0 intid=8192 lr=0 pend=1 act=0 en=1 tgt=0",
    }  # fmt: skip


def test_a_finding_has_all_its_parts_and_its_links() -> None:
    document = _valid(story())
    cause, effect = document["findings"][1], document["findings"][0]

    assert {name: cause[name] for name in _PARTS} == {
        "id": "ITS202", "mechanism": "DISCARD leaves the cache", "worst": "the cache of 0x8/0 stayed for 1.44 s",
        "guest_saw": "an interrupt that it had taken down",
        "suspect": ["vgic_its_cmd_handle_discard", "vgic_its_invalidate_cache"],
        "known_bugs": [
            {"title": "the cache is filled while it is dropped", "fixed": "v6.10, v6.6.33", "source": "CVE-2024-1"}
        ],
        "doubt": "Whether the function's body ran was not recorded.",
        "capture_next": "r:its_inval_cache_ret vgic_its_invalidate_cache", "caused_by": [],
        "leads_to": ["ITS201", "ITS305"],
    }  # fmt: skip
    assert cause["subjects"][0] == {
        "device_id": 8, "event_id": 0, "intid": 8192, "vcpus": [0], "count": 2,
        "time_ns": 100_001_700_499, "end_ns": 100_002_000_500,
    }  # fmt: skip
    assert [one["intid"] for one in cause["subjects"]] == [8192, None]
    assert effect["caused_by"] == ["ITS202"]
    assert not {"baseline", "new_subjects"} & set(cause)
    assert "baseline" not in document


_PARTS = (
    "id", "mechanism", "worst", "guest_saw", "suspect", "known_bugs", "doubt", "capture_next", "caused_by", "leads_to",
)  # fmt: skip


def test_a_baseline_is_told_to_each_finding_and_in_sum() -> None:
    old = copy(story())
    old.findings = [replace(CAUSE, subjects=CAUSE.subjects[:1]), DOUBLE, LOST]
    past = read_baseline(json.dumps(analysis_document(old)), "old.json")
    against = compare(story().findings, past, "old.json")
    document = _valid(story(), against)
    cause = document["findings"][1]

    assert {one["id"]: one["baseline"] for one in document["findings"]} == dict.fromkeys(
        ["ITS201", "ITS202", "ITS303", "ITS305"], "new"
    ) | {"ITS901": "known"}
    assert [one["device_id"] for one in cause["new_subjects"]] == [9]
    assert document["baseline"] == {
        "path": "old.json", "known": 1, "new": 4, "untold": [],
        "gone": [
            {
                "id": "ITS401", "code": "ITS401", "name": "double-pending", "severity": "error",
                "message": DOUBLE.message,
            }
        ],
    }  # fmt: skip


def test_what_was_set_and_what_other_packages_bring_is_told() -> None:
    more = copy(tiny())
    more.settings = {"patience": 50.0}
    more.skipped = [SkippedRule("ABC101", "own-rule", (), why="KeyError: 'x'")]
    more.plugins = (Plugin("acme", "acme-rules 1", ("ABC101",)),)
    document = _valid(more)

    assert document["settings"] == {"patience": 50}
    assert document["coverage"] == document["coverage"] | {
        "skipped_rules": [
            {"code": "ABC101", "name": "own-rule", "missing": [], "why": "it failed: KeyError: 'x'"}
        ],
        "plugins": [{"name": "acme", "package": "acme-rules 1", "codes": ["ABC101"], "problem": ""}],
    }


def test_hostile_words_come_back_as_they_were() -> None:
    document = _valid(hostile())

    assert document["findings"][0]["message"] == hostile().findings[0].message
