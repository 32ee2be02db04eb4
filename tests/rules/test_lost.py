"""ITS301: LPIs that are lost on their way. Where no capture shows a mechanism, it is put into a real one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import analysis_of
from helpers.again import found, sample
from helpers.lives import LPI, chains_of, enabled_while_pending, every, runs_with, without_chains

from itstrace import Confidence, Severity
from itstrace.observe.joins import after

if TYPE_CHECKING:
    from pathlib import Path


#: Clean, with each kernel's own probes.
CLEAN = ("6.1-clean.dat", "6.12-clean.dat")


@pytest.mark.parametrize("name", CLEAN)
def test_lpis_that_are_queued_and_never_filled_are_lost(name: str) -> None:
    analysis = sample(name)
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    lost = found(analysis, replace(analysis.observations, fills=gone), "ITS301")

    assert [finding.mechanism for finding in lost] == ["queued, and on no list"]
    assert lost[0].severity == Severity.ERROR
    assert lost[0].confidence == Confidence.CERTAIN
    assert lost[0].count > 5
    assert "waited" in lost[0].worst
    assert lost[0].measure > 0
    assert not found(analysis, analysis.observations, "ITS301")


@pytest.mark.corpus
@pytest.mark.parametrize("folder", ["faults/clean-73-b", "migrate-7.3"])
def test_lost_on_7_3_and_where_no_run_was_recorded(corpus: Path, folder: str) -> None:
    """In `migrate-7.3` no entry or exit was recorded: that the next queueing finds no owner shows it."""
    analysis = analysis_of(corpus / folder / "trace.dat")
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    lost = found(analysis, replace(analysis.observations, fills=gone), "ITS301")

    assert "queued, and on no list" in {finding.mechanism for finding in lost}
    assert not found(analysis, analysis.observations, "ITS301")


def test_the_next_queueing_shows_it_only_for_the_same_interrupt() -> None:
    """An LPI freed and mapped anew is another one: without runs, nothing shows then that the old one was lost."""
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    still = replace(obs, fills=gone, runs=runs_with(obs.runs, lambda _: False))
    others = still.queueings.with_columns(irq=pl.col("seq"))

    assert found(analysis, still, "ITS301")
    assert not found(analysis, replace(still, queueings=others), "ITS301")


def test_an_lpi_on_its_list_that_is_left_out_is_passed_over() -> None:
    analysis = sample("6.12-clean.dat")
    gone = without_chains(analysis, chains_of(analysis, 6), keep="last")
    lost = found(analysis, replace(analysis.observations, fills=gone), "ITS301")

    assert {finding.mechanism for finding in lost} == {"on its vCPU's list, and not put into a list register"}
    assert "vgic_flush_lr_state" in lost[0].suspect


@pytest.mark.parametrize("name", CLEAN)
def test_an_lpi_folded_back_pending_must_be_filled_again(name: str) -> None:
    analysis = sample(name)
    gone = without_chains(analysis, chains_of(analysis, 3), keep="first")
    lost = found(analysis, replace(analysis.observations, fills=gone), "ITS301")

    assert [finding.mechanism for finding in lost] == [
        "still pending when its list register was folded, and not put into one again"
    ]
    assert "was folded back still pending" in lost[0].message


def test_an_lpi_that_is_taken_and_never_queued_is_lost() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    firsts = analysis.lives.lives.filter((pl.col("outcome") == "delivered") & (pl.col("refills") == 0))
    some = every(5, firsts)
    fills = obs.fills.filter(~pl.col("seq").is_in(some["filled_seq"].implode()))
    queueings = obs.queueings.filter(~pl.col("seq").is_in(some["queued_seq"].implode()))
    gone = pl.col("queue_seq").is_in(some["queued_seq"].implode())
    injections = obs.injections.with_columns(queue_seq=pl.when(~gone).then("queue_seq"))
    changed = replace(obs, fills=fills, queueings=queueings, injections=injections)
    lost = found(analysis, changed, "ITS301")

    (taken,) = (f for f in lost if f.mechanism == "an injection was taken and never queued")
    assert taken.confidence == Confidence.LIKELY
    assert "GICv4" in taken.doubt
    assert taken.count > 2
    # Delivered all the same: the queueing was not recorded.
    assert not found(analysis, replace(changed, fills=obs.fills), "ITS301")
    # Nothing is ever queued: it is not recorded, or all of it is forwarded.
    nothing = replace(
        changed,
        queueings=obs.queueings.clear(),
        injections=obs.injections.with_columns(queue_seq=pl.lit(None, dtype=pl.UInt64)),
    )
    assert not found(analysis, nothing, "ITS301")


def test_an_lpi_enabled_while_pending_and_not_queued_is_lost() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    by_inv = enabled_while_pending(analysis).filter(~pl.col("cause").is_in(["msi", "int"]))
    first_fill = after(by_inv, analysis.lives.fills, LPI, chain="chain")
    gone = without_chains(analysis, first_fill.select("vm", "intid", "chain"))
    queueings = obs.queueings.join(by_inv, on="seq", how="anti")
    lost = found(analysis, replace(obs, fills=gone, queueings=queueings), "ITS301")

    assert by_inv.height > 2
    assert "enabled while pending, and never queued" in {finding.mechanism for finding in lost}
    one = next(f for f in lost if f.mechanism.startswith("enabled"))
    texts = analysis.history.verdicts.filter(pl.col("seq").is_in(list(one.blames)))["opcode"]
    assert set(texts) == {"INV"}


def test_a_flush_that_leaves_the_latch_set_is_told_apart() -> None:
    analysis = sample("6.12-double-delivery.dat")
    obs = analysis.observations
    (note,) = found(analysis, obs, "ITS301")

    assert (note.severity, note.intid) == (Severity.NOTE, 8193)
    assert note.mechanism == "EnableLPIs=0 took it off its list and left its latch set"
    # Nobody fires it again: the vCPU that MOVI gave it to enters the guest without it.
    silent = obs.queueings.filter(~pl.col("cause").is_in(["int", "msi"]) | (pl.col("target_vcpu") == 1))
    quiet = obs.fills.filter((pl.col("intid") != 8193) | (pl.col("vcpu") == 1))
    missed = found(analysis, replace(obs, queueings=silent, fills=quiet), "ITS301")

    assert Severity.WARNING in {f.severity for f in missed if f.mechanism == note.mechanism}
    # A kernel that clears the latch drops it for good, which is another rule's.
    assert not found(analysis, obs, "ITS301", kernel="6.1.0")


def test_an_lpi_moved_on_its_way_is_not_this_rules() -> None:
    analysis = sample("6.12-clean.dat")
    obs = analysis.observations
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    (lost,) = found(analysis, replace(obs, fills=gone), "ITS301")
    at = obs.queueings.filter("pending").select(
        "seq", "time_ns", "cpu", "pid", "vm", "irq", "intid", vcpu="target_vcpu"
    )
    moves = pl.concat([obs.retargets, at.with_columns(pl.col("seq") + 1).select(obs.retargets.columns)]).sort(
        "seq"
    )

    assert lost.count
    assert not found(analysis, replace(obs, fills=gone, retargets=moves), "ITS301")
    # On another vCPU's list still: it waits for its move.
    away = obs.queueings.with_columns(owner_vcpu=1 - pl.col("target_vcpu"))
    assert not found(analysis, replace(obs, fills=gone, queueings=away), "ITS301")


def test_one_loss_is_a_guess_where_losses_are_not_told() -> None:
    analysis = sample("6.12-clean.dat")
    gone = without_chains(analysis, every(4, chains_of(analysis, 1)))
    whole = replace(analysis.observations, fills=gone)
    (told,) = found(analysis, whole, "ITS301")
    last = without_chains(
        analysis, chains_of(analysis, 1).filter(pl.col("intid") == told.intid).tail(3).head(1)
    )
    (one,) = found(analysis, replace(whole, fills=last), "ITS301", losses_told=False)

    assert (one.count, one.severity, one.confidence) == (1, Severity.NOTE, Confidence.UNPROVEN)
    (many,) = found(analysis, whole, "ITS301", losses_told=False)
    assert (many.severity, many.confidence) == (Severity.WARNING, Confidence.LIKELY)


@pytest.mark.corpus
def test_a_stranded_lpi_is_neither_lost_nor_late(corpus: Path) -> None:
    analysis = analysis_of(corpus / "faults/L-F3b-612/trace.dat")

    assert not {"ITS301", "ITS304"} & {finding.code for finding in analysis.findings}


@pytest.mark.corpus
def test_lost_as_often_as_the_truth_has_it(corpus: Path) -> None:
    """The answer key names eight LPIs that a later queueing found pending and on no list; more were never found again."""
    analysis = analysis_of(corpus / "faults/F8-612/trace.dat")
    (lost,) = [finding for finding in analysis.findings if finding.code == "ITS301"]

    assert lost.count >= 8
    assert {8192, 8193, 8195, 8196, 8197, 8198} <= {subject.intid for subject in lost.subjects}
