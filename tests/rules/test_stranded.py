"""ITS403: pending LPIs that a move leaves behind, put into real captures, and what looks like it and is allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import analysis_of
from helpers.again import again, of, sample, whole_gap
from helpers.cut import runs_where

from itstrace import Confidence, Severity
from itstrace.rules import RULES
from itstrace.rules._waits import waits
from itstrace.rules.case import Case

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Analysis, Finding
    from itstrace.observe import Observations


#: Captures in which pending LPIs are moved, and nothing of this goes wrong.
MOVED = ["6.1-clean.dat", "6.12-clean.dat", "7.3-guest-mistakes.dat"]


def _case(analysis: Analysis, code: str = "ITS403") -> Case:
    return Case(
        analysis.observations,
        analysis.history,
        analysis.lives,
        analysis.gaps,
        analysis.damage,
        analysis.start_ns,
        analysis.end_ns,
        RULES[code],
        {},
    )


def _about(finding: Finding, intid: int) -> bool:
    return any(subject.intid == intid for subject in finding.subjects)


def _handed_over(name: str) -> dict[str, Any]:
    """A pending LPI of a sample that was moved, handed over and filled on the new vCPU; what comes of it next is later."""
    analysis = sample(name)
    for row in waits(_case(analysis)).iter_rows(named=True):
        if row["fill_seq"] is None or row["fill_seq"] != row["end_seq"] or row["fill_vcpu"] != row["vcpu"]:
            continue
        later = analysis.observations.queueings.filter(
            (pl.col("intid") == row["intid"]) & (pl.col("seq") > row["from_seq"])
        )
        ends = pl.Series([row["to_seq"], *later["seq"].head(1)], dtype=pl.UInt64).drop_nulls().sort()
        if ends.len() and ends[0] > row["fill_seq"] + 10:
            return {**row, "again_seq": ends[0] - 1}
    raise AssertionError(name)


def _stranded(name: str, owner: int | None) -> tuple[dict[str, Any], Observations]:
    """That LPI not filled until just before, when an MSI finds it on the list of `owner`."""
    row = _handed_over(name)
    obs = sample(name).observations
    waiting = (pl.col("intid") == row["intid"]) & pl.col("seq").is_between(row["from_seq"], row["again_seq"])
    like = obs.queueings.filter((pl.col("intid") == row["intid"]) & (pl.col("seq") < row["from_seq"]))
    after_ns = obs.folds.filter(pl.col("seq") < row["again_seq"])["time_ns"].max()
    found = like.tail(1).with_columns(
        seq=pl.lit(row["again_seq"], dtype=pl.UInt64),
        time_ns=pl.lit(after_ns, dtype=pl.Int64),
        target_vcpu=pl.lit(row["vcpu"], dtype=pl.Int32),
        owner_vcpu=pl.lit(owner, dtype=pl.Int32),
        pending=pl.lit(value=True),
        enabled=pl.lit(value=True),
        active=pl.lit(value=False),
    )
    return row, replace(
        obs, fills=obs.fills.filter(~waiting), queueings=pl.concat([obs.queueings, found]).sort("seq")
    )


@pytest.mark.parametrize("name", MOVED)
def test_an_lpi_that_stays_on_the_old_list_is_stranded(name: str) -> None:
    """ITS403: on every kernel; the next MSI finds it on the old vCPU's list, which is proof."""
    row = _handed_over(name)
    row, obs = _stranded(name, row["lists"][0])
    found = [f for f in of(again(sample(name), obs), "ITS403") if _about(f, row["intid"])]

    assert not of(sample(name).findings, "ITS403")
    assert [f.mechanism for f in found] == ["the old vCPU's exit did not hand the LPI over"]
    assert found[0].confidence is Confidence.CERTAIN
    assert found[0].severity is Severity.ERROR
    assert found[0].vcpus == tuple(sorted((row["lists"][0], row["vcpu"])))
    assert row["by"] in found[0].blames
    assert {row["by"], row["again_seq"]} <= set(found[0].seqs)


@pytest.mark.parametrize("name", MOVED)
def test_an_lpi_lost_in_the_move_is_told_as_such(name: str) -> None:
    """ITS403: the next MSI finds it on no list: it may have been lost before, and that is said."""
    row, obs = _stranded(name, None)
    others = obs.queueings.filter(pl.col("owner_vcpu") == row["lists"][0])
    found = [f for f in of(again(sample(name), obs), "ITS403") if _about(f, row["intid"])]

    assert len(found) == 1
    assert found[0].confidence is Confidence.LIKELY
    assert found[0].doubt
    assert found[0].capture_next
    assert (found[0].mechanism == "the LPI was on no vCPU's list after the move") == bool(others.height)


def test_an_lpi_that_was_passed_over_before_it_was_moved_is_not_stranded() -> None:
    """ITS403: what the old vCPU did not take along while it was still its own was lost there: ITS301's."""
    name = "6.1-clean.dat"
    row, obs = _stranded(name, None)
    queue = obs.queueings.filter(
        (pl.col("intid") == row["intid"]) & (pl.col("seq") <= row["placed_seq"]) & pl.col("pending")
    ).row(-1, named=True)
    # Queued, and never filled on the old vCPU either.
    fills = obs.fills.filter(
        ~((pl.col("intid") == row["intid"]) & pl.col("seq").is_between(queue["seq"], row["again_seq"]))
    )
    findings = again(sample(name), replace(obs, fills=fills))

    assert not [f for f in of(findings, "ITS403") if _about(f, row["intid"])]
    assert [f for f in of(findings, "ITS301") if _about(f, row["intid"])]


def test_nothing_is_stranded_across_lost_records_or_where_it_was_disabled() -> None:
    """ITS403: a gap, or the LPI's disabling right after the move, excuses the wait."""
    name = "6.1-clean.dat"
    analysis = sample(name)
    row = _handed_over(name)
    row, obs = _stranded(name, row["lists"][0])
    disabled = obs.configs.head(1).with_columns(
        seq=pl.lit(row["from_seq"] + 1, dtype=pl.UInt64),
        time_ns=pl.lit(row["from_ns"] + 1, dtype=pl.Int64),
        intid=pl.lit(row["intid"], dtype=pl.UInt32),
        enabled=pl.lit(value=False),
        result=pl.lit(0, dtype=pl.Int32),
    )
    masked = replace(obs, configs=pl.concat([obs.configs, disabled]).sort("seq"))

    assert of(again(sample(name), obs), "ITS403")
    assert not of(again(sample(name), obs, gaps=whole_gap(analysis)), "ITS403")
    assert not [f for f in of(again(sample(name), masked), "ITS403") if _about(f, row["intid"])]


def _asleep(name: str, vcpu: int | None) -> tuple[dict[str, Any], Observations]:
    """A moved LPI whose old vCPU (or, `vcpu` None, every vCPU) never ran again after the move."""
    row = _handed_over(name)
    obs = sample(name).observations
    waiting = (pl.col("intid") == row["intid"]) & (pl.col("seq") >= row["from_seq"])
    old = row["lists"][0] if vcpu is None else vcpu
    return row, replace(
        obs,
        fills=obs.fills.filter(~waiting),
        queueings=obs.queueings.filter(~waiting),
        folds=obs.folds.filter((pl.col("vcpu") != old) | (pl.col("seq") < row["from_seq"])),
        runs=runs_where(obs.runs, lambda seq: seq < row["from_seq"], vcpu=vcpu),
    )


@pytest.mark.parametrize("name", MOVED)
def test_an_lpi_whose_old_vcpu_never_runs_again_is_likely_stranded(name: str) -> None:
    """ITS403: nothing kicks the old vCPU for a move. The guest may have wanted it, so it is not certain."""
    row = _handed_over(name)
    row, obs = _asleep(name, row["lists"][0])
    found = [f for f in of(again(sample(name), obs), "ITS403") if _about(f, row["intid"])]

    assert len(found) == 1
    assert found[0].mechanism.startswith("the old vCPU did not")
    assert found[0].confidence is Confidence.LIKELY
    assert "sched_switch" in found[0].capture_next
    assert not [
        f
        for f in of(again(sample(name), obs, settings={"stranded-factor": 1e9}), "ITS403")
        if _about(f, row["intid"])
    ]


def test_a_vm_that_is_stopped_strands_nothing() -> None:
    """ITS403: where no vCPU runs any more, the old one is not to blame."""
    row, obs = _asleep("6.1-clean.dat", None)

    assert not [f for f in of(again(sample("6.1-clean.dat"), obs), "ITS403") if _about(f, row["intid"])]


@pytest.mark.corpus
def test_a_list_that_is_never_pruned_strands_moved_lpis(corpus: Path) -> None:
    """ITS403: L-F3b, a kernel whose prune leaves moved LPIs where they are; the truth has LPI 8202 stranded 1.44 s."""
    (found,) = of(analysis_of(corpus / "faults/L-F3b-612/trace.dat").findings, "ITS403")

    assert {subject.intid for subject in found.subjects} == {8202, 8203}
    assert found.confidence is Confidence.CERTAIN
    assert found.vcpus == (0, 1)
    assert "LPI 8202" in found.worst
    assert "1.44 s" in found.worst
    assert found.guest_saw


@pytest.mark.parametrize("name", MOVED)
def test_a_gap_over_all_of_it_silences_them(name: str) -> None:
    """Every rule of affinity needs an unbroken run of records."""
    row = _handed_over(name)
    _, obs = _stranded(name, row["lists"][0])
    findings = again(sample(name), obs, gaps=whole_gap(sample(name)))

    assert not [f for f in findings if f.code.startswith("ITS4")]
