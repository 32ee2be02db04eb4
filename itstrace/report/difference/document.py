"""Two captures side by side as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace._version import __version__
from itstrace.report.difference.verdict import overview, verdict
from itstrace.report.json import Document, finding_document, subject_documents

if TYPE_CHECKING:
    from itstrace.difference import Difference, Kept

SCHEMA: Final = "itstrace.diff/1"


def difference_document(different: Difference) -> Document:
    """Everything that others may rely on; of the tables only what is not equal."""
    recorded = different.recorded
    entries = different.entries.filter(pl.col("verdict") != "equal").to_dicts()
    return {
        "schema": SCHEMA,
        "version": __version__,
        "differs": different.differs,
        "counted": different.counted,
        "verdict": [told.text for told in verdict(different)],
        "overview": [{"label": label, "lines": list(lines)} for label, lines in overview(different)],
        "guests": {
            "verdict": different.guests.verdict,
            "devices": asdict(different.guests.devices),
            "events": asdict(different.guests.events),
            "whole_a": different.guests.whole_a,
            "whole_b": different.guests.whole_b,
        },
        "limits": asdict(different.limits),
        "vms": [{"a": a, "b": b} for a, b in different.vms.items()],
        "at_ns": {"a": different.at_a_ns, "b": different.at_b_ns},
        "recorded": {
            "facts": [
                {"name": fact.name, "a": fact.a, "b": fact.b, "same": fact.same} for fact in recorded.facts
            ],
            "only_a": list(recorded.only_a),
            "only_b": list(recorded.only_b),
            "skipped_rules_a": list(recorded.skipped_a),
            "skipped_rules_b": list(recorded.skipped_b),
            "remarks": list(recorded.remarks),
        },
        "findings": [_kept_document(one) for one in different.findings],
        "entries": entries,
        "equal_fields": different.entries.height - len(entries),
        "outcomes": different.outcomes.to_dicts(),
        "latencies": different.latencies.to_dicts(),
        "distributions": different.distributions.to_dicts(),
        "rates": different.rates.to_dicts(),
    }


def _kept_document(one: Kept) -> Document:
    count_a, count_b = one.counts
    return {
        "code": one.code,
        "name": one.told.name,
        "mechanism": one.mechanism,
        "change": one.change.replace(" ", "_").lower(),
        "severity": str(one.severity),
        "differs": one.differs,
        "count_a": count_a,
        "count_b": count_b,
        "only_a": subject_documents(one.only("a")),
        "only_b": subject_documents(one.only("b")),
        "a": [finding_document(finding) for finding in one.a],
        "b": [finding_document(finding) for finding in one.b],
    }
