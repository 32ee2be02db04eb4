"""ITS402: LPIs that come where they were moved away from, put into real captures, and what looks like it and is allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import analysis_of
from helpers.again import again, of, sample
from helpers.cut import from_the_middle

from itstrace import Severity

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("folder", "mechanism", "blamed"),
    [
        ("F1-61", "MOVI did not change the target, though update_affinity ran", "MOVI"),
        ("F1-612", "MOVI did not change the target, though update_affinity ran", "MOVI"),
        ("L-F1-612", "MOVI did not change the target, though update_affinity ran", "MOVI"),
        ("F9a-612", "MOVI was not carried out: update_affinity never ran", "MOVI"),
        ("F11-movall-612", "MOVALL moved an LPI that the vCPU it moves from did not have", "MOVALL"),
        ("F12-bug15-612", "MAPTI kept the old target", "MAPTI"),
    ],
)
def test_a_stale_target_is_told_by_its_cause(corpus: Path, folder: str, mechanism: str, blamed: str) -> None:
    """ITS402: one finding per cause, which blames the commands that made the target wrong."""
    analysis = analysis_of(corpus / "faults" / folder / "trace.dat")
    (found,) = of(analysis.findings, "ITS402")
    opcodes = analysis.history.verdicts.filter(pl.col("seq").is_in(list(found.blames)))["opcode"]

    assert found.mechanism == mechanism
    assert set(opcodes) == {blamed}
    assert found.worst
    assert "on the vCPU that it had been moved away from" in found.guest_saw


@pytest.mark.corpus
def test_an_lpi_that_two_events_share_keeps_its_target(corpus: Path) -> None:
    """KVM gives a shared LPI no new target at the second MAPTI; the mistake is the guest's (ITS106), not a stale target."""
    codes = {one.code for one in analysis_of(corpus / "faults/F12-bug01-612/trace.dat").findings}

    assert "ITS106" in codes
    assert "ITS402" not in codes


def test_a_move_that_kvm_never_began_is_told_apart() -> None:
    """ITS402: the same capture without any call of update_affinity: MOVI was not carried out at all."""
    name = "6.1-stale-target.dat"
    obs = sample(name).observations
    (found,) = of(again(sample(name), replace(obs, retargets=obs.retargets.clear())), "ITS402")

    assert found.mechanism == "MOVI was not carried out: update_affinity never ran"


@pytest.mark.parametrize("name", ["6.1-clean.dat", "6.12-clean.dat", "7.3-guest-mistakes.dat"])
def test_a_fill_off_its_own_target_is_stale_unless_active(name: str) -> None:
    """ITS402: KVM's own target is another vCPU. An active LPI stays where it is, and may."""
    obs = sample(name).observations
    fill = obs.fills.filter(pl.col("pending") & ~pl.col("active") & (pl.col("state") == 0)).row(5, named=True)
    this = pl.col("seq") == fill["seq"]
    off = obs.fills.with_columns(
        target_vcpu=pl.when(this).then(1 - fill["vcpu"]).otherwise("target_vcpu").cast(pl.Int32)
    )
    active = off.with_columns(
        active=pl.when(this).then(pl.lit(value=True)).otherwise("active"),
        pending=pl.when(this).then(pl.lit(value=False)).otherwise("pending"),
    )
    (found,) = of(again(sample(name), replace(obs, fills=off)), "ITS402")

    assert found.mechanism == "filled on a vCPU that is not its target"
    assert found.intid == fill["intid"]
    assert "vgic_target_oracle" in found.suspect
    assert not of(again(sample(name), replace(obs, fills=active)), "ITS402")


# --- captures that begin late, and lost moves


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "since", "until"),
    [
        # An LPI mapped anew, to a collection whose vCPU nobody told since.
        ("faults/L-clean-a-612/trace.dat", 19811, 28534),
        # MOVI that waits for the lock of its ITS, from a collection whose vCPU is not known.
        ("torture-7.3/trace.dat", 27109, 2**62),
        # MOVALL to a vCPU that does not exist.
        ("torture-7.3/trace.dat", 4024, 133148),
    ],
)
def test_a_capture_that_begins_anywhere_has_no_stale_targets(
    corpus: Path, name: str, since: int, until: int
) -> None:
    """ITS402 and ITS404: what the tables held before is not known, and nothing is made of it."""
    analysis = analysis_of(corpus / name)
    obs = analysis.observations
    findings = again(analysis, from_the_middle(obs, since, until))

    assert not [f for f in findings if f.code.startswith("ITS4") and f.severity is not Severity.NOTE]


def test_a_move_that_was_lost_is_not_held_against_the_kernel() -> None:
    """ITS402: where a gap swallowed a MOVI, the target after it is unknown, however long ago the gap was."""
    name = "6.12-clean.dat"
    analysis = sample(name)
    obs = analysis.observations
    moved = analysis.history.targets.filter(pl.col("set_by").is_not_null() & pl.col("ended_by").is_not_null())
    used = obs.queueings.filter("pending")
    # A move after which the LPI was queued for its new vCPU before it was moved again.
    for row in moved.iter_rows(named=True):
        later = used.filter(
            (pl.col("intid") == row["intid"]) & pl.col("seq").is_between(row["from_seq"] + 50, row["to_seq"])
        )
        opcode = analysis.history.verdicts.filter(pl.col("seq") == row["set_by"])["opcode"][0]
        if opcode == "MOVI" and later.height:
            break
    end_seq = obs.commands.filter(pl.col("seq") == row["set_by"])["end_seq"][0]
    within = pl.col("seq").is_between(row["set_by"], end_seq)
    following = obs.commands.filter(pl.col("seq") > end_seq)["seq"][0]
    without = replace(
        obs,
        commands=obs.commands.filter(~within).with_columns(
            lost_before=pl.col("lost_before") | (pl.col("seq") == following)
        ),
        retargets=obs.retargets.filter(~within),
    )
    gap = pl.DataFrame(
        {"cpu": [0], "from_ns": [row["from_ns"] - 1], "to_ns": [row["from_ns"] + 1], "lost": [1]},
        schema=analysis.gaps.schema,
    )
    silently = replace(without, commands=obs.commands.filter(~within))

    assert of(again(sample(name), silently), "ITS402")
    assert not of(again(sample(name), without, gaps=gap), "ITS402")
