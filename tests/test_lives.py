"""Lives against a second, plain reading of the same capture: trace-cmd's text, one record at a time."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import CORPUS, SAMPLES, analysis_of
from helpers.trace_cmd import needs_trace_cmd, report

if TYPE_CHECKING:
    from pathlib import Path

FIRST_LPI = 8192
CAPTURES = [
    SAMPLES / name
    for name in ("6.12-clean.dat", "6.1-clean.dat", "6.12-double-delivery.dat", "7.3-guest-mistakes.dat")
]
if CORPUS:
    CAPTURES += [
        CORPUS / name / "trace.dat"
        for name in ("boot-6.12", "torture-6.1", "torture-6.12", "faults/clean-73-b")
    ]


@dataclass
class Plain:
    """What one LPI went through, counted record by record."""

    latched: bool = False
    #: MSIs and INTs that are waiting for the guest to take the LPI.
    waiting: int = 0
    delivered: int = 0
    coalesced: int = 0
    #: vCPU -> MSIs that its list register carries.
    held: dict[int, int] = field(default_factory=dict)


def _plain(path: Path) -> dict[int, Plain]:
    """A plain machine per LPI: queue latches, fill takes the latch, fold gives it back or delivers."""
    lpis: dict[int, Plain] = defaultdict(Plain)
    open_msi: dict[int, bool] = defaultdict(bool)
    for pid, event, text in report(path, "-R", "-t").records.select("pid", "event", "text").iter_rows():
        values = dict(re.findall(r"(\w+)=(\S+)", text))
        if event in ("its_inject_msi", "its_trigger"):
            open_msi[pid] = True
        elif event in ("its_inject_msi_ret", "its_trigger_ret"):
            open_msi[pid] = False
        intid = int(values.get("intid", "0"), 0)
        if event == "queue_irq" and intid >= FIRST_LPI and values["pend"] == "1":
            lpi = lpis[intid]
            if open_msi[pid]:
                lpi.waiting += 1
            lpi.latched = True
        elif event == "populate_lr" and intid >= FIRST_LPI and values["pend"] == "1":
            lpi = lpis[intid]
            vcpu = int(values["vcpu"])
            # A register filled again without a fold: nobody knows what became of what it held.
            lpi.held[vcpu] = lpi.waiting
            lpi.waiting, lpi.latched = 0, False
        elif event == "fold_lr":
            vcpu = int(values["vcpu"])
            for index in range(min(int(values["used"]), 4)):
                value = int(values[f"lr{index}"], 0)
                if value & 0xFFFFFFFF not in lpis or vcpu not in lpis[value & 0xFFFFFFFF].held:
                    continue
                lpi = lpis[value & 0xFFFFFFFF]
                carried = lpi.held.pop(vcpu)
                if value >> 62 in (1, 3):
                    lpi.latched, lpi.waiting = True, lpi.waiting + carried
                elif carried:
                    lpi.delivered += 1
                    lpi.coalesced += carried - 1
    return lpis


@needs_trace_cmd
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_deliveries_and_coalesced_msis_are_those_of_a_plain_reading(path: Path) -> None:
    plain = _plain(path)
    lives = analysis_of(path).lives.lives
    # The plain reading knows neither VMs nor CLEAR: captures with one VM, and LPIs that no CLEAR touched.
    cleared = set(lives.filter(pl.col("outcome") == "cleared")["intid"])
    ours = {
        intid: (
            mine.filter(pl.col("outcome") == "delivered").height,
            mine.filter(pl.col("outcome") == "coalesced").height,
        )
        for (intid,), mine in lives.drop_nulls("intid").group_by("intid")
        if intid not in cleared
    }
    theirs = {intid: (one.delivered, one.coalesced) for intid, one in plain.items() if intid in ours}

    assert ours == theirs
    assert sum(delivered for delivered, _ in ours.values()) > 10


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_injection_has_one_end(path: Path) -> None:
    analysis = analysis_of(path)
    lives = analysis.lives.lives

    assert lives.height == analysis.observations.injections.height
    assert lives["outcome"].null_count() == 0
    assert set(lives["outcome"]) <= {"delivered", "coalesced", "refused", "cleared", "pending", "unknown"}


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_life_goes_forward_in_time(path: Path) -> None:
    delivered = analysis_of(path).lives.lives.filter(pl.col("outcome") == "delivered")
    steps = ["injected_ns", "queued_ns", "filled_ns", "retired_ns"]

    for earlier, later in itertools.pairwise(steps):
        assert delivered.filter(pl.col(later) < pl.col(earlier)).is_empty()


def test_the_double_delivery_is_pending_on_two_vcpus_at_once() -> None:
    """PENDING holds an LPI per vCPU: two rows of LPI 8193 that overlap, on vCPU 0 and on vCPU 1."""
    pending = analysis_of(SAMPLES / "6.12-double-delivery.dat").lives.pending.filter(
        (pl.col("intid") == 8193) & (pl.col("where") == "list_register")
    )
    pairs = pending.join(pending, on=["vm", "intid"], suffix="_other").filter(
        (pl.col("vcpu") == 1)
        & (pl.col("vcpu_other") == 0)
        & (pl.col("from_ns") < pl.col("from_ns_other"))
        & (pl.col("from_ns_other") < pl.col("to_ns"))
    )

    assert pairs["from_seq"].n_unique() == 5


def test_no_lpi_is_pending_on_two_vcpus_in_a_clean_capture() -> None:
    for name in ("6.12-clean.dat", "6.1-clean.dat", "7.3-migrate.dat"):
        pending = (
            analysis_of(SAMPLES / name)
            .lives.pending.filter(pl.col("where") == "list_register")
            .sort("vm", "intid", "from_seq")
        )
        next_one = pending.with_columns(
            next_seq=pl.col("from_seq").shift(-1).over("vm", "intid"),
            next_vcpu=pl.col("vcpu").shift(-1).over("vm", "intid"),
        )
        overlapping = next_one.filter(
            (pl.col("next_seq") < pl.col("to_seq")) & (pl.col("next_vcpu") != pl.col("vcpu"))
        )

        assert overlapping.is_empty(), name
