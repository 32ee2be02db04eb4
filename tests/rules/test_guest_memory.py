"""ITS110 and ITS113: what the guest does with the memory and the registers of its ITS."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import analysis_of
from helpers.again import of
from helpers.guest import (
    CLEAN,
    MISTAKES,
    commands_of,
    findings_of,
    lost_between,
    marked,
    only,
    rewritten,
    with_fields,
)

from itstrace.gic.commands import Opcode
from itstrace.gic.registers import GITS_BASER, GITS_CBASER

if TYPE_CHECKING:
    from collections.abc import Callable

    from itstrace import Finding
    from itstrace.observe import Observations


# --- ITS110


def _mapd_of(obs: Observations, device: int) -> int:
    mapds = commands_of(obs, Opcode.MAPD).filter(
        (pl.col("dw0") // 2**32 == device) & (pl.col("dw2") // 2**63 == 1)
    )
    return int(mapds["seq"][0])


#: 6.12-clean.dat: device 0x10 has its ITT at 0x41081000 (32 entries of 8 bytes), device 0x8 at 0x41080000.
@pytest.mark.parametrize(
    ("itt_gpa", "event_bits", "what"),
    [
        (0x4108_0000, 5, "another ITT"),
        (0x4107_FF00, 6, "another ITT"),  # reaches into it from below
        (0x4107_FF00, 5, None),  # ends where the other begins
        (0x4108_0100, 5, None),  # begins where the other ends
        (0x4100_0F00, 5, "the command queue"),
        (0x4101_FF00, 5, "the table"),
        (0x4103_0000, 5, "the LPI configuration table"),
        (0x4105_0000, 5, "the LPI pending table"),
        (0x4110_0000, 5, None),
    ],
)
def test_an_itt_must_have_its_own_memory(itt_gpa: int, event_bits: int, what: str | None) -> None:
    obs = analysis_of(CLEAN).observations
    found = findings_of(
        with_fields(obs, _mapd_of(obs, 0x10), itt_gpa=itt_gpa, event_bits=event_bits), "ITS110"
    )

    assert findings_of(obs, "ITS110") == []
    assert [finding.mechanism for finding in found] == ([] if what is None else [f"an ITT overlaps {what}"])
    assert [finding.device_id for finding in found] == ([] if what is None else [0x10])


def test_an_itt_of_an_unmapped_device_may_be_used_again() -> None:
    """ITS110: 7.3-guest-mistakes maps, unmaps and remaps the same devices over the same ITTs, and one twice at once."""
    analysis = analysis_of(MISTAKES)
    finding = only(of(analysis.findings, "ITS110"))

    assert analysis.history.devices["itt_gpa"].n_unique() < analysis.history.devices.height
    assert (finding.device_id, finding.count) == (0x201, 1)
    assert "the ITT of device 0x123 (0x41080000 to 0x410800ff)" in finding.message


def test_an_itt_is_not_claimed_to_be_in_use_where_commands_were_lost() -> None:
    obs = analysis_of(MISTAKES).observations
    mapd = only(findings_of(obs, "ITS110", kernel="7.3")).blames[0]

    assert findings_of(marked(obs, mapd, lost_before=True), "ITS110", kernel="7.3") == []
    assert findings_of(rewritten(obs, mapd), "ITS110", kernel="7.3") == []


# --- ITS113


def _with_register(obs: Observations, offset: int, value: Callable[[int], int]) -> Observations:
    """The same, with a register of the ITS written once more at the end, while it is enabled."""
    writes = obs.register_writes
    row = writes.filter(pl.col("offset") == offset).tail(1)
    last = obs.commands.tail(1)
    again = row.with_columns(
        seq=last["end_seq"], time_ns=last["end_ns"], value=pl.lit(value(row["value"][0]), pl.UInt64)
    )
    return replace(obs, register_writes=pl.concat([writes, again]).sort("seq", maintain_order=True))


@pytest.mark.parametrize(
    ("offset", "value", "fires"),
    [
        (GITS_BASER, lambda value: value, False),  # as a driver does that comes back from suspend
        (GITS_BASER, lambda value: value + 0x1_0000, True),
        (GITS_CBASER, lambda value: value + 0x1_0000, True),
    ],
)
def test_a_table_register_may_be_written_with_what_it_holds(
    offset: int, value: Callable[[int], int], fires: bool
) -> None:
    found = findings_of(_with_register(analysis_of(CLEAN).observations, offset, value), "ITS113")

    assert [finding.mechanism for finding in found] == (
        ["a table or queue register written while the ITS is enabled"] if fires else []
    )


def test_commands_left_for_a_disabled_its_are_known_to_be_left() -> None:
    """ITS113: not where the queue's place is not known, nor where the writes that enabled the ITS may have been lost."""
    obs = analysis_of(MISTAKES).observations

    def waiting(changed: Observations, gaps: pl.DataFrame | None = None) -> list[Finding]:
        found = findings_of(changed, "ITS113", kernel="7.3", gaps=gaps)
        return [finding for finding in found if finding.mechanism == "commands left for a disabled ITS"]

    finding = only(waiting(obs))
    assert "from 0x1a0 to 0x1e0" in finding.message
    assert finding.count == 2
    assert finding.time_ns is not None
    assert finding.end_ns is not None
    assert waiting(obs, lost_between(finding.time_ns - 20, finding.time_ns - 10)) == []
    following = obs.commands.filter(pl.col("time_ns") > finding.end_ns)["seq"][0]
    assert waiting(marked(obs, following, lost_before=True)) == []
    midlife = replace(
        obs,
        commands=obs.commands.filter(pl.col("seq") >= following),
        register_writes=obs.register_writes.filter(pl.col("offset") != GITS_CBASER),
        itss=obs.itss.with_columns(complete=pl.lit(value=False)),
    )
    assert waiting(midlife) == []
