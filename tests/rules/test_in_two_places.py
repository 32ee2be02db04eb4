"""ITS401 and ITS406: one LPI on two vCPUs, or two objects for it; put into real captures, and what is allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import analysis_of
from helpers.again import again, of, sample

from itstrace import Confidence, Severity

if TYPE_CHECKING:
    from pathlib import Path


#: Captures in which pending LPIs are moved, and nothing of this goes wrong.
MOVED = ["6.1-clean.dat", "6.12-clean.dat", "7.3-guest-mistakes.dat"]


# --- ITS406


@pytest.mark.parametrize("name", MOVED)
def test_another_object_while_the_first_is_in_a_list_register_is_one_too_many(name: str) -> None:
    """ITS406: an LPI queued and filled; before the fill is read back, a call for it comes with another irq pointer."""
    obs = sample(name).observations
    fill = obs.fills.filter(pl.col("pending") & (pl.col("state") == 0)).row(5, named=True)
    first = obs.queueings.filter(
        (pl.col("intid") == fill["intid"]) & (pl.col("seq") < fill["seq"]) & pl.col("pending")
    ).tail(1)
    call = first.with_columns(
        seq=pl.lit(fill["seq"] + 1, dtype=pl.UInt64),
        time_ns=pl.lit(fill["time_ns"] + 1, dtype=pl.Int64),
        owner_vcpu=pl.lit(fill["vcpu"], dtype=pl.Int32),
    )
    other = call.with_columns(pl.col("irq") + 256)
    same, two = (
        again(sample(name), replace(obs, queueings=pl.concat([obs.queueings, extra]).sort("seq")))
        for extra in (call, other)
    )
    (found,) = of(two, "ITS406")

    assert not of(same, "ITS406")
    assert found.intid == fill["intid"]
    assert found.severity is Severity.ERROR
    assert f"{first['irq'][0]:#x}" in found.message
    assert {first["seq"][0], fill["seq"] + 1} <= set(found.seqs)


@pytest.mark.parametrize("name", ["6.1-clean.dat", "6.12-clean.dat", "7.3-guest-mistakes.dat"])
def test_pointers_change_where_objects_are_freed(name: str) -> None:
    """ITS406: an LPI that was taken, discarded and mapped again has a new object; that is no second one."""
    analysis = sample(name)
    pointers = analysis.observations.queueings.group_by("vm", "intid").agg(pl.col("irq").n_unique())

    assert (pointers["irq"] > 1).any()
    assert not of(analysis.findings, "ITS406")


@pytest.mark.parametrize("name", ["6.1-clean.dat", "6.12-clean.dat"])
def test_an_object_made_after_the_delivery_is_no_second_one(name: str) -> None:
    """ITS406: from a call on that finds the LPI on no list, everything of it has another pointer."""
    obs = sample(name).observations
    free = obs.queueings.filter("pending", "enabled", pl.col("owner_vcpu").is_null())
    since = free.group_by("vm", "intid").agg(since=pl.col("seq").max())

    def renewed(frame: pl.DataFrame) -> pl.DataFrame:
        late = pl.col("seq") >= pl.col("since")
        rows = frame.join(since, on=["vm", "intid"], how="left", maintain_order="left")
        return rows.with_columns(irq=pl.col("irq") + 256 * late.fill_null(value=False).cast(pl.UInt64)).drop(
            "since"
        )

    changed = replace(obs, queueings=renewed(obs.queueings), retargets=renewed(obs.retargets))

    assert not of(again(sample(name), changed), "ITS406")


def test_one_lpi_in_two_list_registers_of_one_vcpu_is_two_objects() -> None:
    """ITS406: no pointers are needed where one entry's list registers hold the LPI twice."""
    name = "6.12-clean.dat"
    obs = sample(name).observations
    fill = obs.fills.filter(pl.col("pending") & (pl.col("state") == 0))[10]
    twin = fill.with_columns(pl.col("seq") + 1, pl.col("lr") + 1)
    findings = again(sample(name), replace(obs, fills=pl.concat([obs.fills, twin]).sort("seq")))

    assert [(f.intid, f.confidence) for f in of(findings, "ITS406")] == [
        (fill["intid"][0], Confidence.CERTAIN)
    ]


# --- ITS401


def _moved_in_a_register(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A fill that came back untaken, and the next fill of that LPI, on another vCPU."""
    fills = sample(name).observations.fills
    for first in fills.filter(pl.col("state") == 1).iter_rows(named=True):
        later = fills.filter((pl.col("intid") == first["intid"]) & (pl.col("seq") > first["seq"]))
        if later.height and later["vcpu"][0] != first["vcpu"]:
            return first, later.row(0, named=True)
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["6.1-clean.dat", "6.12-clean.dat"])
def test_a_fold_that_is_skipped_leaves_the_lpi_on_two_vcpus(name: str) -> None:
    """ITS401: moved and handed over, but the first list register is read back only after the second was filled."""
    first, second = _moved_in_a_register(name)
    obs = sample(name).observations
    this = pl.col("seq") == first["seq"]
    late = obs.fills.with_columns(
        end_seq=pl.when(this).then(second["seq"] + 1).otherwise("end_seq").cast(pl.UInt64),
        end_ns=pl.when(this).then(second["time_ns"] + 1).otherwise("end_ns").cast(pl.Int64),
        state=pl.when(this).then(0).otherwise("state").cast(pl.UInt8),
    )
    (found,) = of(again(sample(name), replace(obs, fills=late)), "ITS401")

    assert (found.intid, found.count) == (first["intid"], 1)
    assert found.vcpus == (0, 1)
    assert found.mechanism == "the vCPU's exit did not read the list register back"
    assert "kvm_vgic_sync_hwstate" in found.suspect
    assert "One MSI was taken on both vCPUs" in found.guest_saw


def test_queued_elsewhere_out_of_a_list_register_is_enough() -> None:
    """ITS401: a call that finds no owner, and queues the LPI for the other vCPU while it sits in a list register."""
    name = "6.12-clean.dat"
    obs = sample(name).observations
    fill = obs.fills.filter(pl.col("pending") & (pl.col("state") == 0)).row(10, named=True)
    call = obs.queueings.filter(pl.col("intid") == fill["intid"]).head(1)
    extra = call.with_columns(
        seq=pl.lit(fill["seq"] + 1, dtype=pl.UInt64),
        time_ns=pl.lit(fill["time_ns"] + 1, dtype=pl.Int64),
        target_vcpu=pl.lit(1 - fill["vcpu"], dtype=pl.Int32),
        owner_vcpu=pl.lit(None, dtype=pl.Int32),
        pending=pl.lit(value=True),
        enabled=pl.lit(value=True),
    )
    findings = again(sample(name), replace(obs, queueings=pl.concat([obs.queueings, extra]).sort("seq")))
    (found,) = of(findings, "ITS401")
    owned = extra.with_columns(owner_vcpu=pl.lit(fill["vcpu"], dtype=pl.Int32))
    allowed = again(sample(name), replace(obs, queueings=pl.concat([obs.queueings, owned]).sort("seq")))

    assert found.intid == fill["intid"]
    assert "queued for" in found.message
    assert not of(allowed, "ITS401")


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("folder", "both", "back"),
    [("F12-bug17-61", 10, 0), ("F12-bug17-612", 4, 0), ("F12-all-73", 0, 10)],
)
def test_what_the_guest_took_is_told_from_the_folds(corpus: Path, folder: str, both: int, back: int) -> None:
    """ITS401: the guest's own log says 1+1 in ten rounds on 6.1, 1+0 in all rounds on 7.3, which folds at the next exit."""
    (found,) = of(analysis_of(corpus / "faults" / folder / "trace.dat").findings, "ITS401")

    assert found.mechanism.startswith("EnableLPIs=0 took the LPI off")
    assert "vgic_flush_pending_lpis" in found.suspect
    assert (f"taken on both {both} times" in found.message) == bool(both)
    assert (f"not taken it when its list register was read back, {back} times" in found.guest_saw) == bool(
        back
    )
