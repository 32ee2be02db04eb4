"""ITS201: the translation cache gave what the tables no longer say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.observe.joins import before
from itstrace.rules._translation import mismatches
from itstrace.rules.case import EVENT, Case, first_some
from itstrace.rules.registry import Setting, rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

_DROP: Final = ("vgic_its_invalidate_cache", "vgic_its_inject_cached_translation")
#: By what is known of the cache since the command: the mechanism, and whom to suspect.
_MECHANISMS: Final = {
    "kept": ("the cache was dropped and still gave the translation", _DROP),
    "not dropped": ("the cache was not dropped", ("vgic_its_handle_command", *_DROP)),
    "cached anew": (
        "the cache was filled again from tables that must not hold it",
        ("vgic_its_handle_command", "vgic_its_cache_translation"),
    ),
    "another": (
        "the cache gave another event's LPI",
        ("vgic_its_check_cache", "vgic_its_cache_translation", "vgic_its_resolve_lpi"),
    ),
    "unknown": ("the cache gave a translation that is gone", _DROP),
}


@rule(
    "ITS201",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM sent an MSI by a stale translation",
    needs=("COMMANDS", "INJECTIONS", "QUEUEINGS"),
    suspect=_DROP,
    guest_sees="An interrupt that it has taken down, or the wrong one.",
    leads_to=("ITS303", "ITS305", "ITS308"),
    settings=(
        Setting(
            "cache-race",
            10,
            "milliseconds after a command in which an irqfd that was under way may still hit the cache",
        ),
    ),
)
def stale_translation(case: Case) -> Iterator[Finding]:
    """An MSI was resolved through the translation cache to what the tables no longer say.

    ## What it finds
    An MSI that hit KVM's translation cache and pended an LPI which the interrupt translation table does not
    hold for that (DeviceID, EventID): the event was discarded, its device unmapped, or it maps another LPI
    now.

    ## Why it matters
    The guest gets an interrupt that it has taken down, possibly on an LPI that belongs to another device by
    now.

    ## Where it comes from
    A command that must drop the cache and did not (vgic_its_invalidate_cache), or an entry that was put into
    the cache after it was dropped. The cache is dropped whole by DISCARD, MOVI, MOVALL, MAPD over a device,
    MAPC V=0 and by disabling the ITS. The mechanism says whether vgic_its_invalidate_cache was called since.

    ## When it is wrong
    An MSI that was already being handled when the command took effect may still be delivered; such MSIs are
    left out. Of an irqfd that hits the cache only the end is recorded: hits of that kind only, and only shortly after the
    command (`cache-race`), are a note. Events that were mapped before the capture began are left out.

    ## What to do
    See whether vgic_its_invalidate_cache follows the command that unmapped the event (its_inval_cache in
    `itstrace lpi`), and whether its body ran. Record with its_inval_cache if it is missing.
    """
    wrong = _cache_since(case, mismatches(case, cached=True))
    for (_, _, device, event), rows in wrong.group_by(EVENT, maintain_order=True):
        first = rows.row(0, named=True)
        held = (
            "which was unmapped" if first["expected"] is None else f"although it maps LPI {first['expected']}"
        )
        if first["expected"] is None and first["gone_by"] is None:
            held = "which was never mapped"
        when = ""
        if first["gone_by"] is not None:
            since = case.command_time(first["gone_by"])
            when = (
                f" by {case.command_text(first['gone_by'])} at {seconds(since)}" if since is not None else ""
            )
        blamed = first["taken_down"]
        mechanism, suspect = _MECHANISMS[first["cache"]]
        yield case.finding(
            f"An MSI of event {event} of device 0x{device:x}, {held}{when}, hit the translation cache and pended LPI "
            f"{first['intid']} ({times(rows.height)}).{_told(first)}",
            mechanism=mechanism,
            suspect=suspect,
            blames=()
            if blamed is None
            else tuple(rows["taken_down"].drop_nulls().unique(maintain_order=True)),
            **case.about(rows),
            **_raced(case, rows),
            seqs=first_some(
                [
                    first["gone_by"],
                    first["set_by"],
                    first["dropped"],
                    first["seq"],
                    first["queue_seq"],
                    first["end_seq"],
                    *rows.filter(pl.col("seq") > first["seq"])["seq"].head(3).to_list(),
                ]
            ),
        )


def _cache_since(case: Case, wrong: pl.DataFrame) -> pl.DataFrame:
    """What is known of the cache between the command that took the mapping down and the MSI: columns cache, dropped."""
    obs = case.observations
    whole = obs.invalidations.filter(pl.col("its").is_null())
    rows = before(wrong, obs.invalidations.drop_nulls("its"), ["vm", "its"], _its="seq")
    rows = before(rows, whole, "vm", _vm="seq")
    rows = rows.with_columns(dropped=pl.max_horizontal("_its", "_vm")).drop("_its", "_vm")
    rows = rows.with_columns(dropped=pl.when(pl.col("dropped") > pl.col("taken_down")).then("dropped"))
    # An MSI that went through the tables and got the same put it into the cache.
    tables = mismatches(case, cached=False).select(*EVENT, "intid", "seq")
    rows = before(rows, tables, [*EVENT, "intid"], _anew="seq")
    told = case.recorded("invalidate") and bool(obs.records.get("invalidate"))
    anew = pl.col("_anew") > pl.col("taken_down").fill_null(0)
    cache = (
        pl.when(anew)
        .then(
            pl.when(pl.col("taken_down").is_null()).then(pl.lit("another")).otherwise(pl.lit("cached anew"))
        )
        .when(pl.col("taken_down").is_null())
        .then(pl.when(pl.col("whose").is_not_null()).then(pl.lit("another")).otherwise(pl.lit("unknown")))
        .when(pl.lit(not told))
        .then(pl.lit("unknown"))
        .when(pl.col("dropped").is_not_null())
        .then(pl.lit("kept"))
        .otherwise(pl.lit("not dropped"))
    )
    return rows.with_columns(cache=cache).drop("_anew")


def _told(row: dict[str, Any]) -> str:
    """What the mechanism rests on, as the end of the message."""
    if row["cache"] == "kept":
        return " vgic_its_invalidate_cache was called in between."
    if row["cache"] == "not dropped":
        return " vgic_its_invalidate_cache was not called in between."
    return ""


def _raced(case: Case, rows: pl.DataFrame) -> dict[str, Any]:
    """Hits by irqfd only, shortly after the command only: they may have been under way when it took effect."""
    ends = case.observations.commands.select(taken_down="seq", _command_end="end_ns")
    rows = rows.join(ends, on="taken_down", how="left")
    late_ns = pl.col("time_ns") - pl.col("_command_end")
    quick = (pl.col("seq") == pl.col("queue_seq")) & (late_ns < case.setting("cache-race") * 1e6)
    if not rows.select(quick.fill_null(value=False).all()).item():
        return {}
    longest = rows.select(late_ns.max()).item()
    return {
        "severity": Severity.NOTE,
        "confidence": Confidence.UNPROVEN,
        "doubt": f"All by irqfd, and at most {duration(longest)} after the command: they may have been under way before it.",
        "capture_next": "vgic_its_inject_cached_translation at its entry",
    }
