"""ITS205 and ITS208: what KVM reads of an LPI, and what it writes for one. Each fault is put into real captures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.undone import (
    SAMPLE,
    blame,
    commands_of,
    host_findings,
    with_operands,
)

from itstrace import Severity
from itstrace.findings import Confidence

if TYPE_CHECKING:
    from pathlib import Path


# --- ITS205


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
def test_a_call_that_reads_no_byte_is_found(kernel: str) -> None:
    """On 6.1 it also leaves without the return being recorded."""
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    row = commands_of(analysis, "INV")[0]
    none = pl.lit(None)
    empty = {"read_seq": none, "read_gpa": none, "value": none, "read_result": none}
    if kernel == "6.1":
        empty |= {"end_seq": none, "end_ns": none, "enabled": none, "priority": none, "result": none}
    found = host_findings(analysis, with_operands(obs, "config_calls", row, **empty))

    assert blame(found, row["seq"]) == [("ITS205", "the property byte was not read")]
    assert found[0].severity is Severity.ERROR


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
def test_where_no_byte_was_recorded_at_all_it_may_have_been_filtered_out(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    none = obs.config_calls.with_columns(
        pl.lit(None).alias(name) for name in ("read_seq", "read_gpa", "value", "read_result")
    ).cast(obs.config_calls.schema)
    bare = replace(obs, config_calls=none, guest_reads=obs.guest_reads.filter(pl.col("size_bytes") != 1))
    found = host_findings(analysis, bare)

    assert {(one.code, one.severity, one.confidence) for one in found} == {
        ("ITS205", Severity.NOTE, Confidence.UNPROVEN)
    }


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
@pytest.mark.parametrize(
    ("changed", "mechanism"),
    [
        ({"value": pl.col("value") ^ 1}, "the enable bit that was read was not taken over"),
        ({"value": pl.col("value") ^ 0x20}, "the priority that was read was not taken over"),
        ({"read_gpa": pl.col("read_gpa") + 1}, "another property byte was read"),
    ],
)
def test_a_byte_that_is_not_what_the_lpi_has_is_found(
    kernel: str, changed: dict[str, pl.Expr], mechanism: str
) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    row = commands_of(analysis, "INV")[0]
    found = host_findings(analysis, with_operands(analysis.observations, "config_calls", row, **changed))

    assert blame(found, row["seq"]) == [("ITS205", mechanism)]


def test_a_write_to_invlpir_that_reads_nothing_is_found() -> None:
    """Linux guests send no INV: they write the register."""
    analysis = analysis_of(SAMPLES / "7.3-migrate.dat")
    obs = analysis.observations
    asked = obs.vm_events.filter(pl.col("what") == "invlpir").row(3, named=True)
    mine = (
        (pl.col("pid") == asked["pid"]) & (pl.col("intid") == asked["intid"]) & (pl.col("seq") > asked["seq"])
    )
    call = obs.config_calls.filter(mine)["seq"][0]
    uncalled = obs.config_calls.filter(pl.col("seq") != call)
    empty = obs.config_calls.with_columns(
        pl.when(pl.col("seq") != call).then(name).alias(name) for name in ("read_seq", "read_gpa", "value")
    )
    for calls in (uncalled, empty):
        made = host_findings(analysis, replace(obs, config_calls=calls))
        found = [one for one in made if one.mechanism == "the property byte was not read"]

        assert [(one.code, one.intid, one.blames) for one in found] == [
            ("ITS205", asked["intid"], (asked["seq"],))
        ]
        assert "GICR_INVLPIR" in found[0].message


@pytest.mark.corpus
@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_invall_takes_over_only_the_bytes_of_its_vcpu(corpus: Path, kernel: str) -> None:
    """It reads them all: one that is not its vCPU's differs, and that is right; one of its vCPU's must not."""
    analysis = analysis_of(corpus / f"torture-{kernel}" / "trace.dat")
    calls = analysis.observations.config_calls
    differs = calls.filter(~pl.col("applied") & ((pl.col("value") & 1) != pl.col("enabled").cast(pl.UInt8)))

    assert differs.height == 1
    assert "ITS205" not in {one.code for one in analysis.findings}


def test_an_lpi_whose_enable_bit_changes_by_itself_is_found() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["7.3"])
    obs = analysis.observations
    row = obs.queueings.filter("enabled", "pending").filter(pl.col("cause") == "int").row(5, named=True)
    here = pl.col("seq") == row["seq"]
    off = obs.queueings.with_columns(enabled=pl.col("enabled") & ~here)
    found = [one for one in host_findings(analysis, replace(obs, queueings=off)) if one.code == "ITS205"]

    assert [(one.mechanism, one.intid) for one in found] == [
        ("the enable bit changed without being read", row["intid"])
    ]


# --- ITS208


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
@pytest.mark.parametrize(
    ("value", "mechanism"),
    [
        (pl.col("value") ^ 1, "the list register was given another INTID"),
        (pl.col("value") ^ 1 << 62, "the list register was given the wrong state (pending as inactive)"),
        (pl.col("value") | 1 << 61, "the list register was given the HW bit"),
        (pl.col("value") ^ 1 << 60, "the list register was given Group 0"),
        (pl.col("value") ^ 0x20 << 48, "the list register was given another priority"),
    ],
)
def test_a_list_register_that_is_not_the_lpi_is_found(kernel: str, value: pl.Expr, mechanism: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    fill = analysis.lives.fills.filter("pending").filter(~pl.col("active")).row(-1, named=True)
    returns = obs.fill_returns.filter((pl.col("pid") == fill["pid"]) & (pl.col("seq") > fill["seq"]))
    here = pl.col("seq") == returns["seq"][0]
    bent = obs.fill_returns.with_columns(value=pl.when(here).then(value).otherwise("value").cast(pl.UInt64))
    found = [one for one in host_findings(analysis, replace(obs, fill_returns=bent)) if one.code == "ITS208"]

    assert [(one.mechanism, one.intid, one.vcpus) for one in found] == [
        (mechanism, fill["intid"], (fill["vcpu"],))
    ]
    assert len(found[0].evidence) == 2


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
def test_a_fold_that_finds_another_intid_than_was_filled_is_found(kernel: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    fill = obs.fills.filter((pl.col("ended_by") == "fold") & (pl.col("lr") == 0)).row(3, named=True)
    here = pl.col("seq") == fill["end_seq"]
    folds = obs.folds.with_columns(lr0=pl.when(here).then(pl.col("lr0") ^ 2).otherwise("lr0").cast(pl.UInt64))
    found = [one for one in host_findings(analysis, replace(obs, folds=folds)) if one.code == "ITS208"]

    assert [(one.mechanism, one.intid) for one in found] == [
        ("the fold found another INTID than was filled", fill["intid"])
    ]
