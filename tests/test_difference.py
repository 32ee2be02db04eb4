"""Two captures side by side: what counts as a difference, what is only told, and what cannot be compared."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import DOUBLE, LOST

from itstrace import Analysis, Finding, Severity
from itstrace.difference import (
    DISTRIBUTIONS,
    ENTRIES,
    LATENCIES,
    OUTCOMES,
    RATES,
    Change,
    Difference,
    Guests,
    Limits,
    Shared,
    difference,
)
from itstrace.difference.found import found
from itstrace.difference.traffic import latencies
from itstrace.findings import Kind, Subject

if TYPE_CHECKING:
    from pathlib import Path

CLEAN = SAMPLES / "6.12-clean.dat"
NONE = {"findings": 0, "tables": 0, "outcomes": 0, "latencies": 0}


def clean() -> Analysis:
    """An analysis that a test may change."""
    return copy(analysis_of(CLEAN))


def with_lives(analysis: Analysis, **columns: pl.Expr) -> Analysis:
    """The analysis with lives in which these columns are other."""
    analysis.lives = replace(analysis.lives, lives=analysis.lives.lives.with_columns(**columns))
    return analysis


def with_loss(analysis: Analysis) -> Analysis:
    """The analysis of a capture that lost records."""
    gap = {"cpu": [0], "from_ns": [1], "to_ns": [2], "lost": [7]}
    analysis.gaps = pl.DataFrame(gap, schema=analysis.gaps.schema)
    return analysis


def differing(different: Difference) -> list[tuple[Any, ...]]:
    """What differs in the tables: what, field, A, B."""
    rows = different.entries.filter(pl.col("verdict") == "different")
    return rows.select("what", "field", "a", "b").rows()


# --- one capture twice, in one form or in two


@pytest.mark.parametrize(
    "name", ["6.12-clean.dat", "7.3-guest-mistakes.dat", "7.3-migrate.dat", "6.12-lost-records.dat", "qemu-linux.log.zst"]
)  # fmt: skip
def test_a_capture_does_not_differ_from_itself(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    different = difference(analysis, analysis)

    assert different.counted == NONE
    assert not different.differs
    assert all(fact.same for fact in different.recorded.facts)
    assert {one.change for one in different.findings} == {Change.BOTH}
    assert set(different.entries["verdict"]) <= {"equal"}
    assert set(different.rates["verdict"]) <= {"same", "unknown"}
    assert {*different.latencies["verdict"]} <= {"same", "few", "none"}


def test_frames_have_their_schemas() -> None:
    different = difference(analysis_of(CLEAN), analysis_of(SAMPLES / "6.12-lost-lpi.dat"))

    for frame, schema in (
        (different.entries, ENTRIES),
        (different.rates, RATES),
        (different.outcomes, OUTCOMES),
        (different.latencies, LATENCIES),
        (different.distributions, DISTRIBUTIONS),
    ):
        assert frame.schema == schema
        assert frame.height > 0


def test_another_form_differs_in_what_it_cannot_carry_alone() -> None:
    binary, text = (
        analysis_of(SAMPLES / name) for name in ("6.12-perf.data.zst", "6.12-perf-script.txt.zst")
    )
    different = difference(binary, text)

    assert different.counted == NONE
    assert different.recorded.only_b == ()
    assert set(different.recorded.only_a) == {"REDISTRIBUTOR_WRITES", "CONFIGS", "ALLOCATIONS"}
    assert {fact.name for fact in different.recorded.facts if not fact.same} == {
        "file", "format", "kernel", "architecture", "replayed as", "clock", "length", "of it with VMs", "lost records",
    }  # fmt: skip
    # Text that tells no kernel is replayed as the newest: that is said.
    assert any("A is replayed as kvm-6.12, B as kvm-7.3" in remark for remark in different.recorded.remarks)
    assert "B does not tell whether records were lost." in different.recorded.remarks


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("local-none.dat.zst", "conv-zstd.dat"),
        ("local-none.dat.zst", "local-none.report.txt.zst"),
        ("lost2.dat", "lost2.report.txt.zst"),
        ("perf-mono.data", "perf-mono-script--guest-code.txt.zst"),
    ],
)
def test_forms_of_one_recording_do_not_differ(corpus: Path, one: str, other: str) -> None:
    folder = corpus / "forms-6.12"
    different = difference(analysis_of(folder / one), analysis_of(folder / other))

    assert different.counted == NONE
    assert different.entries.filter(pl.col("verdict") == "equal").height > 0


# --- clean against faulty


@pytest.mark.parametrize(
    ("good", "bad", "codes"),
    [
        ("6.12-clean.dat", "6.12-stale-translation.dat", {"ITS201", "ITS305"}),
        ("6.12-clean.dat", "6.12-lost-lpi.dat", {"ITS301"}),
        ("6.12-clean.dat", "6.12-late-delivery.dat", {"ITS304"}),
        ("6.12-clean.dat", "6.12-duplicate-delivery.dat", {"ITS303"}),
        ("6.12-clean.dat", "6.12-wrong-translation.dat", {"ITS203", "ITS302"}),
        ("6.1-clean.dat", "6.1-stale-target.dat", {"ITS207", "ITS402"}),
    ],
)
def test_the_fault_is_what_is_new(good: str, bad: str, codes: set[str]) -> None:
    before, after = (analysis_of(SAMPLES / name) for name in (good, bad))
    there, back = difference(before, after), difference(after, before)

    assert {one.code for one in there.findings if one.differs and one.change is Change.NEW} >= codes
    assert {one.code for one in there.findings if one.differs} - {"ITS404"} == codes
    # What the guest does wrong on purpose is in both.
    assert any(one.code == "ITS102" and one.change is Change.BOTH for one in there.findings)
    assert {one.code for one in back.findings if one.change is Change.GONE and one.differs} >= codes
    assert there.counted == back.counted


@pytest.mark.corpus
@pytest.mark.parametrize(("one", "other"), [("clean-612-a", "clean-612-b"), ("clean-73-a", "clean-73-b")])
def test_two_healthy_runs_differ_in_what_their_guests_did_alone(corpus: Path, one: str, other: str) -> None:
    a, b = (analysis_of(corpus / "faults" / name / "trace.dat") for name in (one, other))
    counted = difference(a, b).counted

    assert (counted["findings"], counted["outcomes"], counted["latencies"]) == (0, 0, 0)


# --- findings


def _found(
    a: list[Finding], b: list[Finding], *, skipped_a: tuple[str, ...] = (), skipped_b: tuple[str, ...] = ()
) -> list[tuple[Change, bool]]:
    return [(one.change, one.differs) for one in found(a, b, skipped_a=skipped_a, skipped_b=skipped_b)]


MILD = replace(DOUBLE, severity=Severity.WARNING)
NOTED = replace(DOUBLE, severity=Severity.NOTE)


@pytest.mark.parametrize(
    ("a", "b", "change", "differs"),
    [
        ([], [DOUBLE], Change.NEW, True),
        ([DOUBLE], [], Change.GONE, True),
        ([DOUBLE], [DOUBLE], Change.BOTH, False),
        ([MILD], [DOUBLE], Change.WORSE, True),
        ([DOUBLE], [MILD], Change.MILDER, True),
        ([NOTED], [DOUBLE], Change.WORSE, True),
        ([], [NOTED], Change.NEW, False),
        ([], [LOST], Change.NEW, False),  # a warning, but about the capture
    ],
)
def test_what_counts_of_findings(
    a: list[Finding], b: list[Finding], change: Change, *, differs: bool
) -> None:
    assert _found(a, b) == [(change, differs)]


def test_what_one_side_could_not_look_for_is_no_difference() -> None:
    assert _found([], [DOUBLE], skipped_a=("ITS401",)) == [(Change.UNTOLD_A, False)]
    assert _found([DOUBLE], [], skipped_b=("ITS401",)) == [(Change.UNTOLD_B, False)]


def test_a_cause_is_the_same_whatever_it_hit() -> None:
    other = replace(DOUBLE, intid=8200, count=9, vm=3, subjects=(Subject(8, 0, 8192), Subject(8, 1, 8200)))
    (kept,) = found([DOUBLE], [other], skipped_a=(), skipped_b=())

    assert (kept.change, kept.counts) == (Change.BOTH, (5, 9))
    assert [one.intid for one in kept.only("b")] == [8200]
    assert kept.only("a") == ()


def test_another_mechanism_is_another_cause() -> None:
    other = replace(DOUBLE, mechanism="a retarget that was not carried out")

    assert _found([DOUBLE], [other]) == [(Change.NEW, True), (Change.GONE, True)]


def test_what_differs_comes_first_and_the_worst_of_it() -> None:
    warned = replace(MILD, code="ITS304", kind=Kind.LIFE)
    kept = found([DOUBLE], [DOUBLE, warned, replace(DOUBLE, code="ITS402")], skipped_a=(), skipped_b=())

    assert [one.code for one in kept] == ["ITS402", "ITS304", "ITS401"]


# --- tables


def test_an_event_of_another_collection_is_one_difference() -> None:
    moved = clean()
    events = moved.history.at(None).events
    assert events is not None
    event = events.row(0, named=True)
    here = (pl.col("device_id") == event["device_id"]) & (pl.col("event_id") == event["event_id"])
    icid = pl.when(here).then(pl.lit(7, pl.UInt32)).otherwise("icid")
    moved.history = replace(moved.history, mappings=moved.history.mappings.with_columns(icid=icid))

    assert differing(difference(clean(), moved)) == [("event", "icid", str(event["icid"]), "7")]


def test_an_lpi_that_goes_where_its_event_went_is_told_with_the_event() -> None:
    different = difference(analysis_of(CLEAN), analysis_of(SAMPLES / "6.12-lost-lpi.dat"))
    rows = different.entries
    events = rows.filter((pl.col("field") == "icid") & (pl.col("verdict") == "different"))["intid"]
    follows = rows.filter((pl.col("what") == "lpi") & (pl.col("verdict") == "aside"))

    assert set(events) == set(follows["intid"]) == {8193, 8194, 8195, 8196, 8198}
    assert set(follows["reason"]) == {"its event is in another collection"}


def test_an_lpi_that_goes_elsewhere_by_itself_is_a_difference() -> None:
    other = clean()
    target = pl.when(pl.col("intid") == 8195).then(5).otherwise("target_vcpu").cast(pl.Int32)
    other.history = replace(other.history, targets=other.history.targets.with_columns(target_vcpu=target))

    assert differing(difference(clean(), other)) == [("lpi", "target_vcpu", "0", "5")]


def test_entries_after_lost_commands_are_unknown() -> None:
    other = clean()
    moved = other.history.mappings.with_columns(icid=pl.lit(7, pl.UInt32))
    other.history = replace(other.history, mappings=moved)
    assert differing(difference(clean(), other))

    commands = other.observations.commands.with_columns(lost_before=pl.lit(value=True))
    other.observations = replace(other.observations, commands=commands)
    different = difference(clean(), other)
    unknown = different.entries.filter(pl.col("verdict") == "unknown")

    assert differing(different) == []
    assert set(unknown.filter(pl.col("what") == "event")["reason"]) == {"B lost ITS commands"}


def test_an_entry_of_one_side_tells_what_it_holds() -> None:
    fewer = clean()
    collections = fewer.history.collections.filter(pl.col("icid") != 1)
    fewer.history = replace(fewer.history, collections=collections)

    assert differing(difference(clean(), fewer)) == [("collection", "mapped", "vCPU 1", "not mapped")]
    assert differing(difference(fewer, clean())) == [("collection", "mapped", "not mapped", "vCPU 1")]


def test_a_collection_without_a_target_is_no_unknown_one() -> None:
    """A null target means none where the entry was seen made, and unknown where it was only seen used."""
    other = clean()
    second = pl.col("icid") == 1
    target = pl.when(second).then(None).otherwise("target_vcpu")
    none = other.history.collections.with_columns(target_vcpu=target)
    other.history = replace(other.history, collections=none)
    assert differing(difference(clean(), other)) == [("collection", "target_vcpu", "1", "none")]

    used = none.with_columns(assumed=pl.when(second).then(pl.lit(value=True)).otherwise("assumed"))
    other.history = replace(other.history, collections=used)
    different = difference(clean(), other)
    unknown = different.entries.filter(pl.col("verdict") == "unknown")

    assert differing(different) == []
    assert unknown.select("what", "field", "a", "b", "reason").rows() == [
        ("collection", "target_vcpu", "1", None, "B does not tell")
    ]


def test_the_instant_decides() -> None:
    analysis = analysis_of(CLEAN)
    start_ns, end_ns = analysis.start_ns, analysis.end_ns
    assert start_ns is not None
    assert end_ns is not None
    middle_ns = (start_ns + end_ns) // 2
    different = difference(analysis, analysis, at_a_ns=start_ns, at_b_ns=middle_ns)

    assert differing(different)
    assert set(different.entries.filter(pl.col("verdict") == "different")["a"]) == {"not mapped"}
    assert difference(analysis, analysis, at_a_ns=middle_ns, at_b_ns=middle_ns).counted == NONE


def test_where_the_guest_put_an_itt_is_told_and_does_not_count() -> None:
    other = clean()
    devices = other.history.devices.with_columns(itt_gpa=pl.col("itt_gpa") + 0x1000)
    other.history = replace(other.history, devices=devices)
    different = difference(clean(), other)
    aside = different.entries.filter(pl.col("verdict") == "aside")

    assert different.counted == NONE
    assert set(aside["field"]) == {"itt_gpa"}
    assert aside.height == other.history.at(None).devices.height  # type: ignore[union-attr]


def test_what_a_capture_from_mid_life_lacks_is_unknown() -> None:
    part = clean()
    part.history = replace(part.history, mappings=part.history.mappings.clear())
    assert difference(clean(), part).counted["tables"] > 0

    itss = part.observations.itss.with_columns(complete=pl.lit(value=False))
    part.observations = replace(part.observations, itss=itss)
    different = difference(clean(), part)
    unknown = different.entries.filter((pl.col("what") == "event") & (pl.col("field") == "mapped"))

    assert different.counted == NONE
    assert set(unknown["verdict"]) == {"unknown"}
    assert set(unknown["reason"]) == {"B does not show all that was mapped"}
    assert any("B begins with ITS tables already in use" in remark for remark in different.recorded.remarks)


def test_a_configuration_after_a_loss_is_unknown() -> None:
    other = clean()
    flipped = other.history.configurations.with_columns(enabled=~pl.col("enabled"))
    other.history = replace(other.history, configurations=flipped)
    before = difference(clean(), other)
    after = difference(clean(), with_loss(other))

    assert {(what, field) for what, field, _, _ in differing(before)} == {("lpi", "enabled")}
    assert differing(after) == []
    assert set(after.entries.filter(pl.col("verdict") == "unknown")["reason"]) == {"B lost records"}


def test_an_its_is_found_by_its_base() -> None:
    other = clean()
    itss = other.observations.itss.with_columns(base_gpa=pl.lit(0x9000000, pl.UInt64))
    other.observations = replace(other.observations, itss=itss)
    different = difference(clean(), other)

    assert set(different.entries["what"]) == {"lpi"}
    assert (
        "ITS 0 of VM 0 at 0x8080000 is only in A; its tables are not compared." in different.recorded.remarks
    )
    assert (
        "ITS 0 of VM 0 at 0x9000000 is only in B; its tables are not compared." in different.recorded.remarks
    )


def test_an_its_without_a_known_base_is_found_by_its_number() -> None:
    different = difference(analysis_of(CLEAN), analysis_of(SAMPLES / "qemu-linux.log.zst"))

    assert {"device", "event"} <= set(different.entries["what"])
    assert not any("; its tables" in remark for remark in different.recorded.remarks)


def test_a_vm_without_a_counterpart_is_said() -> None:
    different = difference(analysis_of(SAMPLES / "7.3-migrate.dat"), analysis_of(CLEAN))

    assert different.vms == {0: 0}
    assert "VM 1 of A has no counterpart in B; its tables are not compared." in different.recorded.remarks


@pytest.mark.corpus
def test_a_guest_is_found_whatever_its_number(corpus: Path) -> None:
    """The torture guest is the only VM of one capture, and the second of the other."""
    a, b = (analysis_of(corpus / name / "trace.dat") for name in ("torture-6.12", "torture-7.3"))
    different = difference(a, b)

    assert different.vms == {0: 1}
    assert {"device", "event", "collection"} <= set(different.entries["what"])
    assert different.guests.verdict == "same"


def test_guests_that_map_nothing_alike_are_matched_by_order() -> None:
    """The first VM with an ITS, though one without comes before it."""
    other = clean()
    numbers = {"vm": [0, 1]}
    vms = other.observations.vms
    two = pl.concat([vms, vms]).with_columns(vm=pl.Series(numbers["vm"], dtype=vms.schema["vm"]))
    itss = other.observations.itss.with_columns(vm=pl.lit(1, other.observations.itss.schema["vm"]))
    other.observations = replace(other.observations, vms=two, itss=itss)
    other.history = replace(other.history, mappings=other.history.mappings.clear())

    assert difference(clean(), other).vms == {0: 1}


# --- guests


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("6.12-clean.dat", "6.12-double-delivery.dat", "different"),
        ("6.12-clean.dat", "qemu-linux.log.zst", "different"),
        ("6.12-clean.dat", "6.12-stale-translation.dat", "same"),
        ("6.12-clean.dat", "6.1-clean.dat", "same"),
        ("7.3-migrate.dat", "6.12-lost-records.dat", "unknown"),
    ],
)
def test_whether_captures_show_one_guest(good: str, bad: str, said: str) -> None:
    a, b = (analysis_of(SAMPLES / name) for name in (good, bad))

    assert difference(a, b).guests.verdict == said
    assert difference(b, a).guests.verdict == said


@pytest.mark.parametrize(
    ("events", "whole_a", "whole_b", "said"),
    [
        (Shared(6, 5, 10), True, True, "different"),
        (Shared(5, 5, 10), True, True, "same"),
        (Shared(15, 0, 1), True, True, "same"),  # a guest that maps less is no other one
        (Shared(6, 5, 10), True, False, "unknown"),  # A's may be mapped in B, too
        (Shared(1, 11, 10), True, False, "different"),
        (Shared(2, 2, 10), False, False, "same"),
        (Shared(4, 0, 0), True, True, "unknown"),
    ],
)
def test_what_makes_guests_different(events: Shared, said: str, *, whole_a: bool, whole_b: bool) -> None:
    assert Guests(Shared(0, 0, 0), events, whole_a, whole_b).verdict == said


def test_guests_are_told_by_what_was_ever_mapped() -> None:
    different = difference(analysis_of(CLEAN), analysis_of(SAMPLES / "6.12-double-delivery.dat"))

    assert different.guests.devices == Shared(4, 1, 1)
    assert different.guests.events == Shared(4, 2, 4)
    assert (different.guests.whole_a, different.guests.whole_b) == (True, True)


# --- distributions


def test_every_wait_is_in_one_bin() -> None:
    different = difference(clean(), _slower(8))
    counted = different.distributions.group_by("vm", "intid", "begin", "end").agg(
        pl.col("count_a", "count_b").sum()
    )
    both = different.latencies.join(
        counted, on=["vm", "intid", "begin", "end"], nulls_equal=True, suffix="_drawn"
    )

    assert both.filter(pl.col("intid").is_null()).height == 4
    assert both.select("count_a", "count_b").rows() == both.select("count_a_drawn", "count_b_drawn").rows()
    # Of LPIs by themselves only what has shifted.
    lpis = different.latencies.filter(pl.col("intid").is_not_null() & pl.col("measure").is_not_null())
    assert set(both["intid"].drop_nulls()) == set(lpis["intid"])
    waits = (
        clean()
        .lives.lives.filter(_delivered())
        .select(span=pl.col("filled_ns") - pl.col("queued_ns"))["span"]
    )
    stage = (pl.col("begin") == "queued_ns") & (pl.col("end") == "filled_ns") & pl.col("intid").is_null()
    for low, high, count in (
        different.distributions.filter(stage).select("low_ns", "high_ns", "count_a").iter_rows()
    ):
        assert waits.is_between(low, high, closed="left").sum() == count


@pytest.mark.parametrize("waited_ns", [0, 1, 3, 10, 99, 1000, 1_000_000, 999_999_999, 10**9])
def test_a_wait_is_within_its_bin(waited_ns: int) -> None:
    other = with_lives(
        clean(), filled_ns=pl.when(_delivered()).then(pl.col("queued_ns") + waited_ns).otherwise("filled_ns")
    )
    stage = (pl.col("begin") == "queued_ns") & (pl.col("end") == "filled_ns") & pl.col("intid").is_null()
    rows = difference(clean(), other).distributions.filter(stage & (pl.col("count_b") > 0))
    ((low, high, count),) = rows.select("low_ns", "high_ns", "count_b").rows()

    assert low <= max(waited_ns, 1) < high
    assert count == 103


# --- latencies


def _delivered() -> pl.Expr:
    return pl.col("outcome") == "delivered"


def _slower(factor: float) -> Analysis:
    waited = ((pl.col("filled_ns") - pl.col("queued_ns")) * factor).cast(pl.Int64)
    filled = pl.when(_delivered()).then(pl.col("queued_ns") + waited).otherwise("filled_ns")
    return with_lives(clean(), filled_ns=filled)


def _shifted(different: Difference) -> set[tuple[str, str, str, str]]:
    rows = different.latencies.filter(pl.col("counts"))
    return set(rows.select("begin", "end", "verdict", "measure").rows())


def test_a_median_that_has_shifted_is_a_difference() -> None:
    there, back = difference(clean(), _slower(8)), difference(_slower(8), clean())

    assert ("queued_ns", "filled_ns", "slower", "p50") in _shifted(there)
    assert ("queued_ns", "filled_ns", "faster", "p50") in _shifted(back)
    assert there.differs


def test_the_factor_can_be_set() -> None:
    assert _shifted(difference(clean(), _slower(8), limits=Limits(latency_factor=9))) == set()
    assert _shifted(difference(clean(), _slower(1.2))) == set()


def test_few_samples_say_nothing() -> None:
    different = difference(clean(), _slower(50), limits=Limits(samples=104))

    assert {*different.latencies["verdict"]} == {"few"}
    assert not different.differs


def _tail(count: int) -> Analysis:
    last = pl.int_range(pl.len()).over("outcome") < count
    filled = pl.when(_delivered() & last).then(pl.col("filled_ns") + 1_000_000_000).otherwise("filled_ns")
    return with_lives(clean(), filled_ns=filled)


def test_a_tail_beyond_chance_is_a_difference() -> None:
    # Of two captures alike, the longest ten of all are in one with a chance of 1 in 2^10.
    assert ("queued_ns", "filled_ns", "slower", "tail") in _shifted(difference(clean(), _tail(10)))
    assert _shifted(difference(clean(), _tail(9))) == set()


def test_the_tail_of_a_capture_with_losses_is_no_difference() -> None:
    assert _shifted(difference(clean(), with_loss(_tail(20)))) == set()


def test_how_long_the_guest_runs_on_does_not_count() -> None:
    later = with_lives(clean(), retired_ns=pl.col("retired_ns") + 1_000_000_000)
    different = difference(clean(), later)
    slower = different.latencies.filter(pl.col("verdict") == "slower")

    assert set(slower["begin"]) == {"filled_ns"}
    assert not different.differs


def test_chance_is_rarely_taken_for_a_difference() -> None:
    """Halves of one distribution, with no factor asked for: what remains is the tests' own error."""
    base = clean()
    whole = pl.concat([base.lives.lives.filter(_delivered())] * 4)
    wrong = 0
    for seed in range(100):
        halves = []
        for part in (0, 1):
            drawn = whole.sample(200, with_replacement=True, seed=2 * seed + part)
            half = clean()
            half.lives = replace(half.lives, lives=drawn)
            halves.append(half)
        measured = latencies(halves[0], halves[1], {0: 0}, Limits(latency_factor=1.0))
        wrong += measured.filter(
            pl.col("intid").is_null() & (pl.col("begin") == "queued_ns"), pl.col("counts")
        ).height
    assert wrong <= 2


# --- outcomes


def _refused(count: int) -> Analysis:
    refused = _delivered() & (pl.int_range(pl.len()).over("outcome") < count)
    return with_lives(clean(), outcome=pl.when(refused).then(pl.lit("refused")).otherwise("outcome"))


def _outcomes(different: Difference, verdict: str) -> set[str]:
    rows = different.outcomes.filter(pl.col("intid").is_null() & (pl.col("verdict") == verdict))
    return set(rows["outcome"])


def test_a_share_beyond_the_limit_and_chance_is_a_difference() -> None:
    assert _outcomes(difference(clean(), _refused(40)), "different") == {"refused", "delivered"}
    assert _outcomes(difference(clean(), _refused(4)), "different") == set()  # 3.4 points
    assert _outcomes(difference(clean(), _refused(8)), "different") == set()  # 6.8 points, and may be chance
    assert _outcomes(difference(clean(), _refused(40), limits=Limits(share_points=50)), "different") == set()


def test_shares_of_a_capture_with_losses_are_unknown() -> None:
    different = difference(clean(), with_loss(_refused(40)))

    assert _outcomes(different, "unknown") == {"refused", "delivered"}
    assert set(different.outcomes["reason"].drop_nulls()) == {"B lost records"}
    assert not different.differs


def test_outcomes_that_one_side_cannot_tell_are_unknown() -> None:
    different = difference(analysis_of(CLEAN), analysis_of(SAMPLES / "qemu-linux.log.zst"))

    assert set(different.outcomes["verdict"]) == {"unknown"}
    assert set(different.outcomes["reason"]) == {"B did not record QUEUEINGS, LIST_REGISTERS"}


# --- rates


def test_rates_are_told_and_never_count() -> None:
    half = clean()
    half.lives = replace(half.lives, lives=half.lives.lives.gather_every(4))
    different = difference(clean(), half)
    whole = different.rates.filter(pl.col("what") == "MSIs", pl.col("vm").is_null()).row(0, named=True)

    assert (whole["count_a"], whole["count_b"], whole["verdict"]) == (117, 30, "changed")
    assert whole["per_second_a"] == pytest.approx(44.3, abs=0.1)
    assert different.counted["findings"] == different.counted["tables"] == 0


def test_what_follows_the_whole_has_not_changed_by_itself() -> None:
    doubled = clean()
    doubled.lives = replace(doubled.lives, lives=pl.concat([doubled.lives.lives] * 8))
    rates = difference(clean(), doubled).rates.filter(pl.col("what") == "MSIs")

    assert set(rates.filter(pl.col("vm").is_null())["verdict"]) == {"changed"}
    assert set(rates.filter(pl.col("vm").is_not_null())["verdict"]) == {"with all"}
