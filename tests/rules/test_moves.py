"""ITS404 and ITS405: delivered after a move, and moved to and fro; put into real captures, and what is allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import analysis_of
from helpers.again import again, of, sample
from helpers.cut import runs_where

from itstrace import Confidence, Severity

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Finding
    from itstrace.observe import Observations


# --- ITS404


def _window(name: str = "6.1-clean.dat") -> tuple[Finding, Observations, dict[str, Any]]:
    """The note of a sample, its observations, and the fill that it is about."""
    analysis = sample(name)
    (note,) = of(analysis.findings, "ITS404")
    fill = analysis.observations.fills.filter(pl.col("seq") == note.seqs[0]).row(0, named=True)
    return note, analysis.observations, fill


def test_the_window_until_the_next_exit_is_a_note() -> None:
    """ITS404: the LPI was in its list register when it was moved; whether it was taken before cannot be told."""
    note, obs, fill = _window()
    texts = sample("6.1-clean.dat").history.verdicts.filter(pl.col("seq").is_in(list(note.blames)))

    assert note.severity is Severity.NOTE
    assert note.confidence is Confidence.UNPROVEN
    assert note.doubt
    assert texts["opcode"].to_list() == ["MOVI"]
    # Not taken, it is no delivery; it goes on to the new vCPU.
    back = obs.fills.with_columns(
        state=pl.when(pl.col("seq") == fill["seq"]).then(1).otherwise("state").cast(pl.UInt8)
    )
    assert not of(again(sample("6.1-clean.dat"), replace(obs, fills=back)), "ITS404")


def test_entering_the_guest_with_the_lpi_only_after_sync_is_certain() -> None:
    """ITS404: still a note, but the guest surely took it after the move."""
    _, obs, fill = _window()
    later = runs_where(
        obs.runs, lambda seq: (seq < fill["seq"]) | (seq > fill["end_seq"] - 1), vcpu=fill["vcpu"]
    )
    entries = later.entries[fill["vm"], fill["vcpu"]]
    place = int((entries.seq < fill["seq"]).sum())
    # The one entry with it, just before the fold.
    entries.seq[place], entries.time_ns[place] = fill["end_seq"] - 1, fill["end_ns"] - 1
    (note,) = of(again(sample("6.1-clean.dat"), replace(obs, runs=later)), "ITS404")

    assert note.severity is Severity.NOTE
    assert note.confidence is Confidence.CERTAIN


def test_a_list_register_left_past_the_exit_is_an_error() -> None:
    """ITS404: the same LPI, read back only long after the old vCPU's next exit."""
    _, obs, fill = _window()
    exits = obs.runs.exits[fill["vm"], fill["vcpu"]]
    place = int((exits.seq < fill["end_seq"]).sum()) + 3
    late = (int(exits.seq[place]) + 1, int(exits.time_ns[place]) + 1)
    this = pl.col("seq") == fill["seq"]
    kept = obs.fills.with_columns(
        end_seq=pl.when(this).then(pl.lit(late[0], dtype=pl.UInt64)).otherwise("end_seq"),
        end_ns=pl.when(this).then(pl.lit(late[1], dtype=pl.Int64)).otherwise("end_ns"),
    )
    found = [
        f
        for f in of(again(sample("6.1-clean.dat"), replace(obs, fills=kept)), "ITS404")
        if f.severity is Severity.ERROR
    ]

    assert [(f.intid, f.mechanism) for f in found] == [
        (fill["intid"], "left in the old vCPU's list register past its exit")
    ]


def test_a_delivery_after_a_move_that_did_not_take_follows_from_it() -> None:
    """ITS404: filled anew on the old vCPU is an error, and its cause is ITS402's finding about the same MOVI."""
    findings = sample("6.1-stale-target.dat").findings
    (cause,) = of(findings, "ITS402")
    (effect,) = [f for f in of(findings, "ITS404") if f.severity is Severity.ERROR]

    assert effect.mechanism == "filled anew on the old vCPU"
    assert effect.id in cause.leads_to
    assert cause.id in effect.caused_by
    assert set(effect.blames) <= set(cause.blames)


def test_a_move_without_sync_promises_nothing() -> None:
    """ITS404: without the SYNC of the old redistributor, taking it there is allowed."""
    name = "6.1-clean.dat"
    _, obs, _ = _window(name)
    # Opcode SYNC; Spec: IHI 0069H, ITS commands.
    unsynced = obs.commands.filter(pl.col("dw0") % 256 != 0x05)

    assert not of(again(sample(name), replace(obs, commands=unsynced)), "ITS404")


# --- ITS405


def test_moving_to_and_fro_is_a_note_from_a_number_on() -> None:
    """ITS405: MOVI ping-pong of a pending LPI, four times in this sample; never more than a note."""
    name = "7.3-guest-mistakes.dat"
    analysis = sample(name)
    (note,) = of(analysis.findings, "ITS405")
    more = again(sample(name), analysis.observations, settings={"thrash-moves": 5})

    assert note.severity is Severity.NOTE
    assert note.intid == 8192
    assert note.measure == 4
    assert len(note.blames) == 4
    assert not of(more, "ITS405")


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["boot-6.12/trace.dat", "faults/L-clean-a-612/trace.dat"])
def test_affinity_churn_under_io_is_no_thrashing(corpus: Path, name: str) -> None:
    """ITS405, and all of ITS4xx: interrupts moved on purpose while devices work."""
    found = [f for f in analysis_of(corpus / name).findings if f.code.startswith("ITS4")]

    assert not found


def test_moves_of_a_disabled_lpi_are_no_thrashing() -> None:
    """ITS405: it could not be delivered anyway."""
    name = "7.3-guest-mistakes.dat"
    analysis = sample(name)
    obs = analysis.observations
    (note,) = of(analysis.findings, "ITS405")
    first = analysis.lives.lives.filter((pl.col("intid") == note.intid) & (pl.col("moves") >= note.measure))[
        "queued_seq"
    ][0]
    masked = obs.queueings.with_columns(
        enabled=pl.when(pl.col("seq") == first).then(pl.lit(value=False)).otherwise("enabled")
    )

    assert not of(again(sample(name), replace(obs, queueings=masked)), "ITS405")
