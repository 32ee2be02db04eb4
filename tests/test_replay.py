"""Table history: intervals that are true to the commands, known from the middle of a life, honest about what was lost."""

from __future__ import annotations

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.cut import from_the_middle

from itstrace import UsageError
from itstrace.replay import replay

KEYS = {
    "devices": ["vm", "its", "device_id"],
    "collections": ["vm", "its", "icid"],
    "mappings": ["vm", "its", "device_id", "event_id"],
    "targets": ["vm", "intid"],
    "configurations": ["vm", "intid"],
}
NAMES = ["7.3-guest-mistakes.dat", "7.3-migrate.dat", "6.1-stale-target.dat", "6.12-lost-records.dat"]


@pytest.mark.parametrize("table", sorted(KEYS))
@pytest.mark.parametrize("name", NAMES)
def test_an_entry_holds_one_value_at_a_time(name: str, table: str) -> None:
    frame = getattr(analysis_of(SAMPLES / name).history, table)
    begun = pl.col("from_seq").fill_null(0)
    rows = frame.sort([*KEYS[table], begun]).with_columns(following=begun.shift(-1).over(KEYS[table]))
    wrong = rows.filter(
        pl.col("following").is_not_null()
        & (pl.col("to_seq").is_null() | (pl.col("to_seq") > pl.col("following")))
    )

    assert frame.height
    assert wrong.is_empty()


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_verdict(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)

    assert analysis.history.verdicts["seq"].to_list() == analysis.observations.commands["seq"].to_list()
    assert set(analysis.history.verdicts["verdict"]) <= {"ok", "fault", "ignored", "assumed", "unreadable"}


def test_set_by_and_ended_by_are_commands_on_that_entry() -> None:
    analysis = analysis_of(SAMPLES / "7.3-guest-mistakes.dat")
    verdicts = analysis.history.verdicts.select("seq", "opcode")
    ended = analysis.history.mappings.drop_nulls("ended_by").join(
        verdicts, left_on="ended_by", right_on="seq"
    )
    begun = analysis.history.mappings.drop_nulls("set_by").join(verdicts, left_on="set_by", right_on="seq")

    assert set(ended["opcode"]) <= {"DISCARD", "MAPD", "MOVI", "MAPC"}
    assert set(begun["opcode"]) <= {"MAPTI", "MAPI", "MOVI", "MAPC"}


def test_from_the_middle_of_a_life_nothing_is_claimed_that_the_whole_denies() -> None:
    """The second half of a capture alone: what it knows of the tables is what the whole capture knows."""
    whole = analysis_of(SAMPLES / "6.12-double-delivery.dat")
    obs = whole.observations
    middle = int(obs.commands["seq"][60])
    half = replay(from_the_middle(obs, middle), kernel="6.12")
    at = int(obs.commands["time_ns"][90])
    ours, theirs = half.at(at), whole.history.at(at)
    assert ours.events is not None
    assert theirs.events is not None
    both = ours.events.join(theirs.events, on=["vm", "its", "device_id", "event_id"], suffix="_whole")

    assert ours.events.height == both.height > 0
    assert both.filter(pl.col("intid") != pl.col("intid_whole")).is_empty()
    assert both.filter(pl.col("target_vcpu") != pl.col("target_vcpu_whole")).is_empty()
    assert half.mappings["assumed"].any()
    assert {v for v in half.verdicts["verdict"] if v == "fault"} == set()


def test_lost_commands_make_what_the_tables_hold_an_assumption() -> None:
    analysis = analysis_of(SAMPLES / "6.12-lost-records.dat")
    lost = analysis.observations.commands.filter("lost_before")
    held = analysis.history.mappings.filter((pl.col("from_seq") == lost["seq"][0]) & pl.col("assumed"))

    assert lost.height == 2
    assert held.height > 5


def test_a_profile_may_be_chosen_and_must_exist() -> None:
    analysis = analysis_of(SAMPLES / "6.12-clean.dat")

    assert set(analysis.history.profiles.values()) == {"kvm-6.12"}
    assert set(replay(analysis.observations, profile="architecture").profiles.values()) == {"architecture"}
    with pytest.raises(UsageError, match="kvm-9"):
        replay(analysis.observations, profile="kvm-9")


def test_a_restored_vm_is_known_from_its_first_moment() -> None:
    """No command mapped anything in the second VM: its tables are what KVM read back."""
    analysis = analysis_of(SAMPLES / "7.3-migrate.dat")
    restored = analysis.observations.vm_events.filter(pl.col("what") == "restore_tables").row(0, named=True)
    tables = analysis.history.at(restored["time_ns"] + 20_000_000, restored["vm"])
    assert tables.devices is not None
    assert tables.events is not None

    assert tables.devices.height == 7
    assert tables.events.height == 15
    assert not tables.events["assumed"].any()
    assert tables.events["target_vcpu"].null_count() == 0
