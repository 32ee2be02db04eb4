"""ITS406: two kernel objects, one LPI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules._waits import places
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

_TWO_LIVE = "a second object was made while the first was on a list"
_TWO_REGISTERS = "one vCPU's list registers were filled with the LPI twice"


@rule(
    "ITS406",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM has two struct vgic_irq for one LPI",
    needs=("QUEUEINGS", "LIST_REGISTERS"),
    suspect=("vgic_add_lpi", "vgic_put_irq", "vgic_its_map_lpi"),
    guest_sees="It can take one LPI twice, or lose it: each object has a pending state and a vCPU of its own.",
    leads_to=("ITS401", "ITS402"),
)
def two_irqs_one_lpi(case: Case) -> Iterator[Finding]:
    """Two kernel objects (struct vgic_irq) for one LPI of one VM are live at once.

    ## What it finds
    A call for an LPI with another irq pointer than the one that is still pending on a list, or still in a list
    register. Or two list registers that one vCPU filled with the same LPI for the same entry.

    ## Why it matters
    KVM finds an LPI by its number, and counts on one object for it. Of two, only one is found: what a list register
    says when it is read back goes to the wrong one, or is dropped, and the LPI comes twice, or never again.

    ## Where it comes from
    DISCARD of an LPI that is on a list, and MAPTI of the same number at that moment: the last reference of the old
    object is dropped while vgic_add_lpi stores a new one, and the release erases the new one's entry
    (CVE-2026-74568; mended in 7.3.4).

    ## When it is wrong
    A pointer may change, and come back, whenever the LPI was on no list in between: objects are freed and made anew.
    That is left out, as far as what takes an LPI off a list is recorded; so are LPIs that their vCPU had passed over. A
    distributor that is switched off takes an LPI off unseen, so that one sighting alone is called likely.

    ## What to do
    Look at the DISCARD and MAPTI in the evidence, and record vgic_add_lpi and vgic_put_irq with the irq pointer.
    """
    rows = _two_live(case)
    for (_, intid), mine in rows.group_by(LPI, maintain_order=True):
        first = mine.row(0, named=True)
        again = bool(mine["again"].any())
        yield case.finding(
            f"LPI {intid} was pending on a list as irq {first['first_irq']:#x} ({seconds(first['first_ns'])}), and irq "
            f"{first['irq']:#x} stood for it at {seconds(first['time_ns'])} before that one was done ({times(mine.height)})."
            + (f" {_text(case, first['mapped_by'])} came between." if first["mapped_by"] is not None else ""),
            mechanism=_TWO_LIVE,
            confidence=Confidence.CERTAIN if again else Confidence.LIKELY,
            doubt=""
            if again
            else "The first object was not seen again: it may have been taken off its list unseen.",
            capture_next=""
            if again
            else "vgic_add_lpi and vgic_put_irq with the irq pointer, and GICD_CTLR writes",
            vcpus=_vcpus(mine),
            blames=tuple(mine["mapped_by"].drop_nulls().unique(maintain_order=True)),
            **case.about(mine),
            seqs=first_some([first["first_seq"], first["mapped_by"], first["seq"], first["again_seq"]]),
        )
    for (_, vcpu, intid), mine in _two_registers(case).group_by(["vm", "vcpu", "intid"], maintain_order=True):
        first = mine.row(0, named=True)
        yield case.finding(
            f"LPI {intid} was filled into list registers {first['lr']} and {first['other_lr']} of vCPU {vcpu} for one entry, at "
            f"{seconds(first['time_ns'])} ({times(mine.height)}): its list holds two objects for it.",
            mechanism=_TWO_REGISTERS,
            vcpus=(vcpu,),
            **case.about(mine),
            seqs=first_some([first["seq"], first["other_seq"], first["end_seq"]]),
        )


def _two_live(case: Case) -> pl.DataFrame:
    """Calls for an LPI by another pointer than the one last queued, which nothing had taken off its list.

    Shape: vm, intid, seq, time_ns, irq, vcpu; `first_irq`, `first_seq`, `first_ns`, `first_vcpu` (the other object's
        queueing); `mapped_by` (the last command between that mapped the LPI); `again`, `again_seq` (the first pointer
        was seen after that).
    """
    obs = case.observations
    named = (
        pl.concat(
            [
                obs.queueings.select(
                    *LPI,
                    "seq",
                    "time_ns",
                    "irq",
                    vcpu=pl.coalesce("owner_vcpu", "target_vcpu"),
                    live=pl.col("pending") & pl.col("enabled"),
                ),
                obs.retargets.select(*LPI, "seq", "time_ns", "irq", "vcpu", live=pl.lit(value=False)),
            ]
        )
        .filter(pl.col("irq").is_not_null() & (pl.col("irq") != 0))
        .sort("seq")
    )
    if named.is_empty() or named.select(*LPI, "irq").unique().height == named.select(LPI).unique().height:
        return named.clear()
    rows = before(
        named,
        named.filter("live"),
        LPI,
        first_irq="irq",
        first_seq="seq",
        first_ns="time_ns",
        first_vcpu="vcpu",
    ).filter(pl.col("first_irq") != pl.col("irq"))
    for number, (frame, keys) in enumerate(_off_list(case)):
        rows = before(rows, frame, keys, **{f"_off{number}": "seq"})
        rows = rows.filter(pl.col(f"_off{number}").fill_null(0) < pl.col("first_seq")).drop(f"_off{number}")
    rows = case.without_lost(_not_passed_over(case, rows), "first_ns", "time_ns")
    mapped = case.history.mappings.filter(pl.col("from_seq").is_not_null() & pl.col("set_by").is_not_null())
    rows = before(rows, mapped.select(*LPI, "set_by", seq="from_seq"), LPI, mapped_by="set_by")
    rows = rows.with_columns(mapped_by=pl.when(pl.col("mapped_by") > pl.col("first_seq")).then("mapped_by"))
    later = after(rows.drop("irq").rename({"first_irq": "irq"}), named, [*LPI, "irq"], again_seq="seq")[
        "again_seq"
    ]
    return (
        rows.sort("seq").with_columns(again_seq=later).with_columns(again=pl.col("again_seq").is_not_null())
    )


def _not_passed_over(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Without rows whose vCPU entered the guest without the LPI since it was last seen: it had been on no list then."""
    runs = case.observations.runs
    rows = before(rows, case.observations.fills, LPI, _filled="seq", _until="end_seq")
    seen = pl.max_horizontal("first_seq", "_filled", pl.col("_until").fill_null(NEVER))
    at = rows.select(
        "vm", vcpu="first_vcpu", seq=pl.when(pl.col("_filled").is_null()).then("first_seq").otherwise(seen)
    )
    back = runs.next_entry(at.with_columns(seq=runs.next_exit(at)["exit_seq"]))["entry_seq"]
    return rows.filter(back.fill_null(NEVER) > rows["seq"]).drop("_filled", "_until")


def _off_list(case: Case) -> list[tuple[pl.DataFrame, list[str]]]:
    """Records after which an LPI is on no list, or not surely: (frame with seq, its keys) of each kind."""
    obs = case.observations
    disabled = case.history.configurations.filter(~pl.col("enabled") & pl.col("from_seq").is_not_null())
    gone = places(case).filter(~pl.col("lodged") & (pl.col("seq") != pl.col("record")))
    return [
        # Read back empty with nothing pending since, or written over.
        (gone.select(*LPI, "seq"), LPI),
        (obs.fills.filter(pl.col("ended_by") == "refill").select(*LPI, seq="end_seq"), LPI),
        (case.lives.latches.filter(~pl.col("latched") & (pl.col("by") != "fill")).select(*LPI, "seq"), LPI),
        (disabled.select(*LPI, seq="from_seq"), LPI),
        (obs.queueings.filter(~pl.col("enabled")).select(*LPI, "seq"), LPI),
        (
            obs.vm_events.filter(pl.col("what").is_in(["flush_lpis", "restore_tables"])).select("vm", "seq"),
            ["vm"],
        ),
    ]


def _two_registers(case: Case) -> pl.DataFrame:
    """Fills of an LPI that one vCPU made twice without an entry or a fold between. Adds `other_seq`, `other_lr`."""
    fills = case.observations.fills
    key = ["vm", "vcpu", "intid"]
    rows = fills.sort("seq").with_columns(
        pl.col("seq", "time_ns", "lr").shift(-1).over(key).name.prefix("other_")
    )
    rows = rows.filter(
        (pl.col("other_seq") < pl.col("end_seq").fill_null(NEVER)) & (pl.col("other_lr") != pl.col("lr"))
    )
    # Without entries nothing tells one flush from the next.
    entry = case.observations.runs.next_entry(rows)["entry_seq"]
    rows = rows.filter(entry > rows["other_seq"])
    return case.without_lost(rows, "time_ns", "other_time_ns")


def _vcpus(rows: pl.DataFrame) -> tuple[int, ...]:
    seen = {*rows["vcpu"].drop_nulls().to_list(), *rows["first_vcpu"].drop_nulls().to_list()}
    return tuple(sorted(seen))


def _text(case: Case, seq: int) -> str:
    return f"{case.command_text(seq)} at {seconds(case.command_time(seq))}"
