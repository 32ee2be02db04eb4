"""ITS906: records of one call that belie each other, made by taking records out of a real capture, or changing them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.again import again, of

from itstrace.findings import Kind, Severity
from itstrace.observe import from_raw
from itstrace.observe.collect import Raw, collect
from itstrace.observe.identity import identify
from itstrace.readers import open_capture

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Finding

SAMPLE = SAMPLES / "6.12-clean.dat"


@pytest.fixture(scope="module")
def raw() -> Raw:
    with open_capture(SAMPLE) as capture:
        return collect(capture)


def _findings(raw: Raw) -> list[Finding]:
    obs = from_raw(raw, identify(raw))
    return of(again(analysis_of(SAMPLE), obs), "ITS906")


def _with(raw: Raw, probe: str, frame: pl.DataFrame) -> Raw:
    return replace(raw, frames=raw.frames | {probe: frame})


def _without_one(raw: Raw, probe: str) -> Raw:
    middle = raw[probe].height // 2
    return _with(raw, probe, raw[probe].filter(pl.int_range(pl.len()) != middle))


@pytest.mark.parametrize(
    "name", ["6.1-clean.dat", "6.12-clean.dat", "7.3-migrate.dat", "7.3-guest-mistakes.dat"]
)
def test_whole_records_do_not_contradict_each_other(name: str) -> None:
    assert analysis_of(SAMPLES / name).observations.contradictions.is_empty()


@pytest.mark.parametrize(
    ("probe", "mechanism"),
    [
        ("process_end", "process against process_end: no return"),
        ("process", "process_end against process: no entry"),
        ("msi", "msi_end against msi: no entry"),
        ("fill_end", "fill against fill_end: no return"),
        ("config", "config_end against config: no entry"),
        ("cached", "cached against msi: missing"),
        ("resolve_end", "resolve_end against trigger: missing"),
        ("exit", "enter against exit: no return"),
        ("enter", "exit against enter: no entry"),
        ("command", "commands missing from the chain of the queue"),
    ],
)
def test_a_record_that_is_missing_is_missed(raw: Raw, probe: str, mechanism: str) -> None:
    found = _findings(_without_one(raw, probe))

    assert mechanism in {finding.mechanism for finding in found}
    assert {(finding.kind, finding.severity) for finding in found} == {(Kind.EVIDENCE, Severity.NOTE)}
    assert all(finding.evidence for finding in found)


@pytest.mark.parametrize(
    ("probe", "column", "partner"),
    [
        ("trigger", "device_id", "trigger_end"),
        ("fill", "intid", "fill_end"),
        ("command", "dw1", "guest_read"),
    ],
)
def test_values_that_cannot_both_be_right_are_told(raw: Raw, probe: str, column: str, partner: str) -> None:
    middle = raw[probe].height // 2
    other = pl.when(pl.int_range(pl.len()) == middle).then(pl.col(column) ^ 1).otherwise(column)
    found = _findings(_with(raw, probe, raw[probe].with_columns(other.alias(column))))

    assert f"{probe} against {partner}: another value {column}" in {one.mechanism for one in found}


def test_one_base_that_is_another_does_not_move_its_its(raw: Raw) -> None:
    """Nor does it depend on the run which of them is believed."""
    process = raw["process"]
    one = pl.int_range(pl.len()) == process.height // 2
    other = process.with_columns(base=pl.when(one).then(pl.col("base") ^ 1).otherwise("base"))

    assert identify(_with(raw, "process", other)).itss.equals(identify(raw).itss)


def test_what_buffers_lost_is_not_told_twice(corpus: Path) -> None:
    """An overrun leaves entries without returns as well; that is ITS901's to say."""
    analysis = analysis_of(corpus / "forms-6.12/lost2.dat")

    assert analysis.observations.contradictions.height
    assert {"ITS901"} <= {finding.code for finding in analysis.findings}
    assert "ITS906" not in {finding.code for finding in analysis.findings}
