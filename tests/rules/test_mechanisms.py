"""Each rule goes by its mechanism: where the cause is taken out of a faulty capture, or put into a clean one, it follows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.again import again, of, whole_gap

from itstrace.rules import RULES, check

if TYPE_CHECKING:
    from itstrace import Finding

#: A capture in which the rule fires, and one with the same observations in which it does not.
SHOWN: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ["ITS101", "ITS103", "ITS104", "ITS105", "ITS106", "ITS107", "ITS108", "ITS109", "ITS110"],
        ("7.3-guest-mistakes.dat", "6.12-clean.dat"),
    ),
    **dict.fromkeys(
        ["ITS111", "ITS112", "ITS113", "ITS306"],
        ("7.3-guest-mistakes.dat", "6.12-clean.dat"),
    ),
    "ITS102": ("6.12-clean.dat", "6.12-double-delivery.dat"),
    "ITS201": ("6.12-stale-translation.dat", "6.12-clean.dat"),
    "ITS207": ("6.1-stale-target.dat", "6.1-clean.dat"),
    "ITS203": ("6.12-wrong-translation.dat", "6.12-clean.dat"),
    "ITS301": ("6.12-lost-lpi.dat", "6.12-clean.dat"),
    "ITS302": ("6.12-clean.dat", "7.3-migrate.dat"),
    "ITS303": ("6.12-duplicate-delivery.dat", "6.12-clean.dat"),
    "ITS304": ("6.12-late-delivery.dat", "6.12-clean.dat"),
    "ITS305": ("6.12-stale-translation.dat", "6.12-clean.dat"),
    "ITS311": ("6.12-double-delivery.dat", "6.12-clean.dat"),
    "ITS401": ("6.12-double-delivery.dat", "6.12-clean.dat"),
    "ITS402": ("6.1-stale-target.dat", "6.1-clean.dat"),
    "ITS403": ("6.12-stranded-lpi.dat", "6.12-clean.dat"),
    "ITS404": ("6.1-stale-target.dat", "6.12-clean.dat"),
    "ITS405": ("7.3-guest-mistakes.dat", "6.12-clean.dat"),
    "ITS901": ("6.12-lost-records.dat", "6.12-clean.dat"),
}


@pytest.mark.parametrize("code", sorted(SHOWN))
def test_a_rule_fires_where_it_must_and_not_where_it_must_not(code: str) -> None:
    faulty, clean = (analysis_of(SAMPLES / name) for name in SHOWN[code])
    found = [finding for finding in faulty.findings if finding.code == code]

    assert found
    assert all(finding.evidence for finding in found if code != "ITS901")
    assert code not in {finding.code for finding in clean.findings}
    assert code not in {skipped.code for skipped in clean.skipped}


def test_every_rule_is_shown_by_some_capture() -> None:
    # Made out of real captures, below and in the tests of their families.
    made = {
        *(
            "ITS114",
            "ITS202",
            "ITS204",
            "ITS205",
            "ITS206",
            "ITS208",
            "ITS307",
            "ITS308",
            "ITS309",
            "ITS310",
            "ITS312",
        ),
        *("ITS406", "ITS601", "ITS602", "ITS603"),
        *("ITS902", "ITS903", "ITS904", "ITS905", "ITS906"),
    }

    assert set(SHOWN) | made >= set(RULES)


def _codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def test_an_lpi_folded_before_it_goes_elsewhere_is_on_one_vcpu() -> None:
    """ITS401: with every list register folded right after its fill, nothing overlaps any more."""
    analysis = analysis_of(SAMPLES / "6.12-double-delivery.dat")
    obs = analysis.observations
    prompt = obs.fills.with_columns(end_seq=pl.col("seq") + 1, end_ns=pl.col("time_ns") + 1)

    assert "ITS401" in _codes(again(analysis, obs))
    assert "ITS401" not in _codes(again(analysis, replace(obs, fills=prompt)))


def test_an_lpi_injected_before_each_fill_is_no_duplicate() -> None:
    """ITS303: an MSI queued before each of the fills too many accounts for them."""
    analysis = analysis_of(SAMPLES / "6.12-duplicate-delivery.dat")
    obs = analysis.observations
    extra = analysis.lives.fills.filter(pl.col("latched_by") == "fill")
    msis = obs.queueings.filter(pl.col("cause") == "msi").head(1).drop("seq", "vm", "intid")
    caused = (
        extra.select(pl.col("seq") - 1, "vm", "intid").join(msis, how="cross").select(obs.queueings.columns)
    )

    assert extra.height
    assert "ITS303" not in _codes(again(analysis, replace(obs, queueings=pl.concat([obs.queueings, caused]))))


def test_a_fill_without_a_cause_in_a_clean_capture_is_a_duplicate() -> None:
    """ITS303: one MSI's queueing taken out of a clean capture leaves its delivery without a cause."""
    analysis = analysis_of(SAMPLES / "6.12-clean.dat")
    obs = analysis.observations
    last = analysis.lives.lives.filter((pl.col("outcome") == "delivered") & (pl.col("refills") == 0)).row(
        -1, named=True
    )
    without = obs.queueings.filter(pl.col("seq") != last["queued_seq"])
    found = of(again(analysis, replace(obs, queueings=without)), "ITS303")

    assert [finding.intid for finding in found] == [last["intid"]]


def test_a_target_that_was_not_taken_over_is_stale() -> None:
    """ITS402: in a clean capture, an LPI moved to vCPU 1 and then queued for vCPU 0."""
    analysis = analysis_of(SAMPLES / "6.12-clean.dat")
    obs = analysis.observations
    moved = analysis.history.targets.filter(pl.col("set_by").is_not_null() & (pl.col("target_vcpu") == 1))
    late = (
        obs.queueings.filter("pending")
        .join(moved.select("intid", "from_seq", "to_seq"), on="intid")
        .filter(
            (pl.col("seq") > pl.col("from_seq") + 50)
            & (pl.col("seq") < pl.col("to_seq"))
            & pl.col("owner_vcpu").is_null()
        )
    )
    seq = late["seq"][0]
    changed = obs.queueings.with_columns(
        target_vcpu=pl.when(pl.col("seq") == seq).then(0).otherwise("target_vcpu").cast(pl.Int32)
    )
    found = of(again(analysis, replace(obs, queueings=changed)), "ITS402")

    assert [(f.intid, f.count) for f in found] == [(late["intid"][0], 1)]


def test_nothing_is_claimed_across_lost_records() -> None:
    """With one gap over all of it, rules that need an unbroken run of records are silent."""
    for name, code in (
        ("6.12-double-delivery.dat", "ITS401"),
        ("6.12-duplicate-delivery.dat", "ITS303"),
        ("6.12-lost-lpi.dat", "ITS301"),
        ("6.12-stale-translation.dat", "ITS201"),
        ("6.1-stale-target.dat", "ITS402"),
    ):
        analysis = analysis_of(SAMPLES / name)
        found = _codes(again(analysis, analysis.observations, gaps=whole_gap(analysis)))

        assert code not in found
        assert "ITS901" in found


def test_a_capture_without_list_registers_says_what_it_cannot_tell() -> None:
    """ITS903: and the rules that need them are skipped, not silent."""
    analysis = analysis_of(SAMPLES / "6.12-double-delivery.dat")
    fed = {
        probe: event for probe, event in analysis.observations.fed_by.items() if probe not in ("fill", "fold")
    }
    obs = replace(analysis.observations, fed_by=fed)
    findings, skipped = check(obs, analysis.history, analysis.lives, gaps=analysis.gaps, damage=[])
    said = [f for f in findings if f.code == "ITS903" and f.message.startswith("LIST_REGISTERS")]

    assert {"ITS301", "ITS303", "ITS401"} <= {one.code for one in skipped}
    assert "populate_lr" in said[0].message
    assert "ITS401" in said[0].message
