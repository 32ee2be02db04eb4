"""The analysis as one JSON document, `itstrace.analysis/1`: the shape that scripts rely on.

Rule 1: what is unknown is null, never 0. A count of something that the capture did not record is unknown.
Rule 2: ids are numbers; pointers and guest addresses, which do not fit a double, are hex strings. Rule 3:
names are only ever added; the schema is `analysis.schema.json` beside this file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace._version import __version__
from itstrace.findings import Severity
from itstrace.report.figures import Latency, latency, observed, slowest, traffic
from itstrace.report.text import hexa

if TYPE_CHECKING:
    from collections.abc import Iterable

    from itstrace.analysis import Analysis
    from itstrace.baseline import Compared, Past
    from itstrace.findings import Finding, Subject
    from itstrace.tables import Tables

ANALYSIS_SCHEMA: Final = "itstrace.analysis/1"

Document = dict[str, Any]


def pointer(value: int | None) -> str | None:
    """A pointer or guest address as JSON has it."""
    return None if value is None else hexa(value)


def analysis_document(analysis: Analysis, against: Compared | None = None) -> Document:
    """Everything of an analysis that others may rely on; `against`: how its findings compare with a baseline."""
    info = analysis.info
    return {
        "schema": ANALYSIS_SCHEMA,
        "version": __version__,
        "capture": {
            "path": str(info.path),
            "paths": [str(path) for path in info.paths or [info.path]],
            "format": info.format,
            "kernel": info.kernel,
            "arch": info.arch,
            "clock": info.clock,
            "start_ns": analysis.start_ns,
            "end_ns": analysis.end_ns,
            "events": int(analysis.counts["records"].sum()),
            "cpus": info.cpus,
            "lost": [
                {"cpu": gap["cpu"], "from_ns": gap["from_ns"], "to_ns": gap["to_ns"], "records": gap["lost"]}
                for gap in analysis.gaps.iter_rows(named=True)
            ],
            "damage": [asdict(damage) for damage in analysis.damage],
            "notes": list(info.notes),
        },
        "coverage": {
            "observations": {
                name: {"rows": seen.rows, "events": list(seen.events), "whole": seen.whole}
                for name, seen in observed(analysis.observations).items()
            },
            "skipped_rules": [
                {
                    "code": rule.code,
                    "name": rule.name,
                    "missing": list(rule.missing),
                    "why": rule.reason,
                }
                for rule in analysis.skipped
            ],
            "plugins": [
                {
                    "name": plugin.name,
                    "package": plugin.package,
                    "codes": list(plugin.codes),
                    "problem": plugin.problem,
                }
                for plugin in analysis.plugins
            ],
        },
        "vms": [_vm(analysis, row) for row in analysis.observations.vms.iter_rows(named=True)],
        "settings": dict(analysis.settings),
        "findings": [finding_document(finding, against) for finding in analysis.findings],
        "summary": _summary(analysis),
        **({} if against is None else {"baseline": _baseline(analysis, against)}),
    }


def finding_document(finding: Finding, against: Compared | None = None) -> Document:
    """One finding."""
    compared: Document = {}
    if against is not None:
        added = against.added.get(finding.id, ())
        compared = {"baseline": against.state(finding), "new_subjects": subject_documents(added)}
    return {
        "id": finding.id,
        "code": finding.code,
        "name": finding.name,
        "claim": finding.claim,
        "kind": str(finding.kind),
        "severity": str(finding.severity),
        "confidence": str(finding.confidence),
        "vm": finding.vm,
        "its": finding.its,
        "device_id": finding.device_id,
        "event_id": finding.event_id,
        "intid": finding.intid,
        "vcpus": list(finding.vcpus),
        "time_ns": finding.time_ns,
        "end_ns": finding.end_ns,
        "count": finding.count,
        "message": finding.message,
        "advice": finding.advice,
        "evidence": [
            {"time_ns": item.time_ns, "cpu": item.cpu, "event": item.event, "text": item.text}
            for item in finding.evidence
        ],
        "mechanism": finding.mechanism,
        "subjects": subject_documents(finding.subjects),
        "worst": finding.worst,
        "guest_saw": finding.guest_saw,
        "suspect": list(finding.suspect),
        "known_bugs": [asdict(bug) for bug in finding.known_bugs],
        "doubt": finding.doubt,
        "capture_next": finding.capture_next,
        "caused_by": list(finding.caused_by),
        "leads_to": list(finding.leads_to),
        **compared,
    }


def subject_documents(subjects: Iterable[Subject]) -> list[Document]:
    """The things that a finding is about."""
    return [{**asdict(one), "vcpus": list(one.vcpus)} for one in subjects]


def _baseline(analysis: Analysis, against: Compared) -> Document:
    known = sum(map(against.is_known, analysis.findings))
    return {
        "path": against.source,
        "known": known,
        "new": len(analysis.findings) - known,
        "gone": [_past(past) for past in against.gone],
        "untold": [_past(past) for past in against.untold],
    }


def _past(past: Past) -> Document:
    return {
        "id": past.id,
        "code": past.code,
        "name": past.name,
        "severity": str(past.severity),
        "message": past.message,
    }


def _vm(analysis: Analysis, vm: dict[str, Any]) -> Document:
    tables = analysis.at(vm=vm["vm"])
    itss = analysis.observations.itss.filter(pl.col("vm") == vm["vm"]).sort("its")
    return {
        "vm": vm["vm"],
        "start_ns": vm["start_ns"],
        "end_ns": vm["end_ns"],
        "profile": analysis.history.profiles.get(vm["vm"]),
        "its": [_its(analysis, tables, row) for row in itss.iter_rows(named=True)],
        "lpis": _lpis(analysis, tables, vm["vm"]),
    }


def _its(analysis: Analysis, tables: Tables, its: dict[str, Any]) -> Document:
    here = (pl.col("vm") == its["vm"]) & (pl.col("its") == its["its"])
    recorded = observed(analysis.observations)["COMMANDS"].rows is not None
    return {
        "its": its["its"],
        "base_gpa": pointer(its["base_gpa"]),
        "commands": analysis.observations.commands.filter(here).height if recorded else None,
        **table_documents(tables, here),
    }


def table_documents(tables: Tables, here: pl.Expr | None = None) -> Document:
    """Devices, collections and events of one state; a table that its source does not know is null."""

    def rows(frame: pl.DataFrame | None, *keys: str) -> list[dict[str, Any]] | None:
        if frame is None:
            return None
        chosen = frame if here is None else frame.filter(here).drop("vm", "its")
        return chosen.sort(keys if here is not None else ("vm", "its", *keys)).to_dicts()

    devices = rows(tables.devices, "device_id")
    for device in devices or ():
        device["itt_gpa"] = pointer(device["itt_gpa"])
    return {
        "devices": devices,
        "collections": rows(tables.collections, "icid"),
        "events": rows(tables.events, "device_id", "event_id"),
    }


def _lpis(analysis: Analysis, tables: Tables, vm: int) -> list[Document]:
    if tables.lpis is None:
        return []
    counted, slow = traffic(analysis), dict(slowest(analysis.lives.lives))
    found: list[Document] = []
    for row in tables.lpis.filter(pl.col("vm") == vm).drop("vm").sort("intid").iter_rows(named=True):
        counts = counted.get((vm, row["intid"]))
        found.append(
            {
                **row,
                "injections": counts.injections,
                "deliveries": counts.deliveries,
                "coalesced": counts.coalesced,
                "latency_ns": _latency_document(slow.get((vm, row["intid"]))),
            }
        )
    return found


def _latency_document(measured: Latency | None) -> Document | None:
    return None if measured is None else {"p50": measured.p50, "p99": measured.p99, "max": measured.max}


def _summary(analysis: Analysis) -> Document:
    seen = observed(analysis.observations)
    opcodes = Counter(analysis.history.verdicts["opcode"].to_list())
    total = traffic(analysis).total
    measured = latency(analysis.lives.lives)
    return {
        "commands": {name or "unknown": opcodes[name] for name in sorted(opcodes, key=str)}
        if seen["COMMANDS"].rows is not None
        else None,
        "injections": total.injections,
        "deliveries": total.deliveries,
        "coalesced": total.coalesced,
        "latency_ns": _latency_document(measured),
        "by_severity": {
            str(severity): sum(finding.severity is severity for finding in analysis.findings)
            for severity in Severity
        },
    }
