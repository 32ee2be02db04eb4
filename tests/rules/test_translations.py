"""ITS201 to ITS203 and ITS206: what the tables and the cache translate. Each fault is put into real captures."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.undone import (
    SAMPLE,
    blame,
    commands_of,
    host_findings,
    within,
    without_effect,
)

from itstrace import Severity

# --- ITS202


@pytest.mark.parametrize("kernel", sorted(SAMPLE))
@pytest.mark.parametrize("opcode", ["MOVI", "MAPD"])
def test_a_cache_that_was_not_dropped_is_found(kernel: str, opcode: str) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE[kernel])
    obs = analysis.observations
    row = commands_of(analysis, opcode, valid=False if opcode == "MAPD" else None)[0]
    kept = replace(obs, invalidations=obs.invalidations.filter(~within(row)))

    assert blame(host_findings(analysis, kept), row["seq"]) == [
        ("ITS202", f"{opcode} did not drop the translation cache")
    ]


def test_a_discard_that_only_kept_the_cache_is_told_from_one_that_was_ignored() -> None:
    """By what the event's next MAPTI or MSI shows; ignored, it leaves the event mapped."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    expected = analysis.history.expected.filter((pl.col("what") == "alloc_event") & pl.col("certain"))
    pairs = [
        (row, again)
        for row in commands_of(analysis, "DISCARD")
        for again in expected.filter(
            (pl.col("device_id") == row["dw0"] >> 32)
            & (pl.col("event_id") == row["dw1"] & 0xFFFFFFFF)
            & (pl.col("seq") > row["seq"])
        )["seq"].head(1)
    ]
    row, again = pairs[0]
    mapti = obs.commands.filter(pl.col("seq") == again).row(0, named=True)
    silent = pl.col("seq").is_between(row["seq"], again) & ~pl.col("cached")
    unheard = replace(obs, injections=obs.injections.filter(~silent))
    kept, ignored = (
        host_findings(analysis, without_effect(unheard, row)),
        host_findings(analysis, without_effect(unheard, row, mapti)),
    )

    assert blame(kept, row["seq"]) == [("ITS202", "DISCARD did not drop the translation cache")]
    assert blame(ignored, row["seq"]) == [("ITS207", "DISCARD left no trace of its effect")]
    assert not blame(ignored, mapti["seq"])


def test_registers_that_must_drop_the_cache_and_do_not_are_found() -> None:
    analysis = analysis_of(SAMPLES / "6.12-double-delivery.dat")
    obs = analysis.observations
    wanted = analysis.history.expected.filter(
        pl.col("command_seq").is_null() & pl.col("certain") & (pl.col("what") == "invalidate")
    )
    writes = obs.redistributor_writes.filter(pl.col("seq").is_in(wanted["seq"].implode()))
    kept = obs.invalidations
    for write in writes.to_dicts():
        later = obs.commands.filter((pl.col("pid") == write["pid"]) & (pl.col("seq") > write["seq"]))
        kept = kept.filter(~within(write | {"end_seq": later["seq"].min() or 2**63}))
    found = host_findings(analysis, replace(obs, invalidations=kept))

    assert {(one.code, one.mechanism) for one in found} == {
        ("ITS202", "GICR_CTLR did not drop the translation cache")
    }
    assert found[0].count == writes.height > 0


# --- ITS201, ITS203


def test_a_stale_translation_says_what_became_of_the_cache() -> None:
    analysis = analysis_of(SAMPLES / "6.12-stale-translation.dat")
    obs = analysis.observations
    stale = next(one for one in analysis.findings if one.code == "ITS201")
    discard = obs.commands.filter(pl.col("seq") == stale.blames[0]).row(0, named=True)
    undropped = replace(obs, invalidations=obs.invalidations.filter(pl.col("seq") < discard["seq"]))
    fed = {name: event for name, event in obs.fed_by.items() if name != "invalidate"}
    unknown = replace(obs, fed_by=fed, invalidations=obs.invalidations.clear())

    assert stale.mechanism == "the cache was dropped and still gave the translation"
    assert stale.suspect[0] == "vgic_its_invalidate_cache"
    assert [one.mechanism for one in host_findings(analysis, undropped) if one.code == "ITS201"] == [
        "the cache was not dropped"
    ]
    assert [one.mechanism for one in host_findings(analysis, unknown) if one.code == "ITS201"] == [
        "the cache gave a translation that is gone"
    ]


def test_a_missing_invalidation_leads_to_the_stale_translation() -> None:
    analysis = analysis_of(SAMPLES / "6.12-stale-translation.dat")
    obs = analysis.observations
    stale = next(one for one in analysis.findings if one.code == "ITS201")
    discard = obs.commands.filter(pl.col("seq") == stale.blames[0]).row(0, named=True)
    undropped = replace(obs, invalidations=obs.invalidations.filter(~within(discard)))
    found = {one.code: one for one in host_findings(analysis, undropped)}
    cause = found.get("ITS202") or found["ITS207"]

    assert found["ITS201"].id in cause.leads_to


def test_an_irqfd_that_hits_the_cache_right_after_the_command_may_have_been_under_way() -> None:
    analysis = analysis_of(SAMPLES / "6.12-stale-translation.dat")
    obs = analysis.observations
    stale = next(one for one in analysis.findings if one.code == "ITS201")
    discard = obs.commands.filter(pl.col("seq") == stale.blames[0]).row(0, named=True)
    hit = pl.col("time_ns") == stale.time_ns
    for wait_ns, severity in ((1_000_000, Severity.NOTE), (50_000_000, Severity.ERROR)):
        at = discard["end_ns"] + wait_ns
        soon = obs.injections.with_columns(
            seq=pl.when(hit).then("queue_seq").otherwise("seq"),
            time_ns=pl.when(hit).then(at).otherwise("time_ns"),
        )
        found = [
            one for one in host_findings(analysis, replace(obs, injections=soon)) if one.code == "ITS201"
        ]

        assert [one.severity for one in found] == [severity]


def test_a_wrong_lookup_is_one_finding_whatever_it_finds() -> None:
    """Some of the wrong events are mapped, and some are not."""
    analysis = analysis_of(SAMPLES / "6.12-wrong-translation.dat")
    found = [one for one in analysis.findings if one.code == "ITS203"]

    assert [one.mechanism for one in found] == ["an event was looked up as another"]
    assert len(found[0].subjects) == 8
    assert "vgic_its_resolve_lpi" in found[0].suspect


def test_an_msi_refused_although_its_event_is_mapped_blames_the_mapping() -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    taken = obs.injections.filter(
        ~pl.col("cached") & (pl.col("result") == 0) & pl.col("from_command").is_null()
    )
    hit = pl.col("seq") == taken["seq"][0]
    refused = obs.injections.with_columns(
        result=pl.when(hit).then(0x010307).otherwise("result").cast(pl.Int32),
        intid=pl.when(~hit).then("intid"),
    )
    found = [one for one in host_findings(analysis, replace(obs, injections=refused)) if one.code == "ITS203"]

    assert [one.mechanism for one in found] == ["the tables lack what a command put there"]
    assert found[0].intid == taken["intid"][0]
    assert len(found[0].blames) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_an_msi_of_an_event_that_was_never_mapped_must_not_be_taken(*, cached: bool) -> None:
    """Of an ITS that is known from its first command on; else nobody knows."""
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    taken = obs.injections.filter((pl.col("cached") == cached) & (pl.col("result") == 0))
    hit = pl.col("seq") == taken["seq"][0]
    strange = replace(
        obs,
        injections=obs.injections.with_columns(
            event_id=pl.when(hit).then(29).otherwise("event_id").cast(pl.UInt32)
        ),
    )
    late = replace(strange, itss=obs.itss.with_columns(complete=pl.lit(value=False)))
    code = "ITS201" if cached else "ITS203"

    assert [one.event_id for one in host_findings(analysis, strange) if one.code == code] == [29]
    assert code not in {one.code for one in host_findings(analysis, late)}


# --- ITS206


@pytest.mark.parametrize(
    ("kernel", "severity"),
    [
        ("6.12.90-arm64", Severity.ERROR),
        ("6.12.107+deb13-arm64", Severity.NOTE),
        ("7.1.0-rc6", Severity.ERROR),
        ("7.3.4+deb13-arm64", Severity.NOTE),
        ("7.3.3", Severity.ERROR),
        ("6.1.0-56-arm64", Severity.NOTE),
    ],
)
def test_two_invalidations_at_once_are_found(kernel: str, severity: Severity) -> None:
    analysis = analysis_of(SAMPLES / SAMPLE["6.12"])
    obs = analysis.observations
    drops = obs.invalidations.with_columns(end_seq=pl.col("seq") + 1, end_ns=pl.col("time_ns") + 1000)
    first = drops.row(5, named=True)
    other = drops.filter(pl.col("seq") == first["seq"]).with_columns(
        pl.col("seq", "end_seq") + 1, pl.col("time_ns", "end_ns") + 500, pid=pl.col("pid") + 1
    )
    longer = drops.with_columns(
        end_seq=pl.when(pl.col("seq") == first["seq"]).then(first["seq"] + 3).otherwise("end_seq")
    )
    fed = {**obs.fed_by, "invalidate_end": "its:its_inval_cache_ret"}
    apart = replace(obs, invalidations=drops, fed_by=fed)
    both = replace(
        obs,
        invalidations=pl.concat([longer, other.cast(longer.schema)]).sort("seq").cast(drops.schema),
        fed_by=fed,
    )
    found = [one for one in host_findings(analysis, both, kernel=kernel) if one.code == "ITS206"]

    assert "ITS206" not in {one.code for one in host_findings(analysis, apart, kernel=kernel)}
    assert [one.severity for one in found] == [severity]
