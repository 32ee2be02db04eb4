"""Records of one call that belie each other: what a missed kretprobe or a wrong probe definition leaves behind.

A kprobe that is missed, and a kretprobe whose instances are used up, are counted by the kernel where no capture shows it.
But calls come in pairs: a task that enters a function twice without returning, or returns without having entered, has lost
a record; and where both ends of a call say the same thing, they must say the same.

Kernel: kernel/kprobes.c:pre_handler_kretprobe (v6.12) counts rp->nmissed and records nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from itstrace import schemas
from itstrace.gic.commands import COMMAND_SIZE_BYTES
from itstrace.observe.held import held
from itstrace.observe.joins import after, before
from itstrace.observe.outliers import outliers
from itstrace.observe.runs import NEVER, in_step
from itstrace.observe.within import within

if TYPE_CHECKING:
    from itstrace.observe.collect import Raw
    from itstrace.observe.identity import Identity
    from itstrace.observe.runs import Runs

#: One kind of contradiction: rows of records, and probe, partner, what, field.
Found = tuple[pl.DataFrame, str, str, str, str | None]
_KEEP: Final = ("seq", "time_ns", "cpu", "pid")


@dataclass(frozen=True, slots=True)
class Call:
    """Entry and return of one function that is not recursive; `same` are columns that both give."""

    entry: str
    end: str
    same: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inner:
    """A record that each call makes just once between its entry and its return."""

    entry: str
    end: str
    inner: str
    same: tuple[str, ...] = ()


CALLS: Final = (
    Call("process", "process_end", ("its", "cwriter")),
    Call("msi", "msi_end"),
    Call("trigger", "trigger_end", ("device_id", "event_id")),
    Call("config", "config_end", ("intid",)),
    Call("fill", "fill_end", ("intid", "lr")),
)
#: Kernel: vgic-its.c:vgic_its_inject_msi tries the cache first, vgic_its_trigger_msi resolves the event (v6.12)
INNERS: Final = (
    Inner("msi", "msi_end", "cached", ("device_id", "event_id")),
    Inner("trigger", "trigger_end", "resolve_end", ("device_id", "event_id")),
)


def contradictions(raw: Raw, runs: Runs, identity: Identity, commands: pl.DataFrame) -> pl.DataFrame:
    """Every record that its own call belies. Shape: rows of CONTRADICTIONS, in order of seq."""
    parts = [pl.DataFrame(schema=schemas.CONTRADICTIONS)]
    for call in CALLS:
        if raw[call.entry].height and raw[call.end].height:
            parts += _unpaired(raw, call)
    for inner in INNERS:
        if raw[inner.inner].height and raw[inner.end].height:
            parts += _within(raw, inner)
    if raw["command"].height and raw["guest_read"].height:
        parts += _words(raw)
    parts += _alternating(runs)
    inferred = chain(
        within(raw, commands, identity), held(raw, commands, identity, runs), outliers(raw, identity)
    )
    parts += [_rows(*found) for found in inferred if found[0].height]
    return pl.concat(parts).unique(["seq", "probe", "partner", "what", "field"]).sort("seq")


def _rows(rows: pl.DataFrame, probe: str, partner: str, what: str, field: str | None = None) -> pl.DataFrame:
    span = [c if c in rows.columns else pl.lit(None, dtype=pl.Int64).alias(c) for c in ("from_ns", "to_ns")]
    said = rows.select(
        *_KEEP,
        *span,
        probe=pl.lit(probe),
        partner=pl.lit(partner),
        what=pl.lit(what),
        field=pl.lit(field),
    ).select(schemas.CONTRADICTIONS.names())
    return said.cast(schemas.CONTRADICTIONS)


def _unpaired(raw: Raw, call: Call) -> list[pl.DataFrame]:
    """Entries that no return follows before the next entry, returns without one; and what the two say otherwise."""
    entry, end = raw[call.entry], raw[call.end]
    same = [c for c in call.same if raw.gives(call.entry, c) and raw.gives(call.end, c)]
    opened = after(entry, end, _end="seq", **{f"_{c}": c for c in same})
    opened = after(opened, entry, _next="seq", to_ns="time_ns")
    lost = pl.col("_next").is_not_null() & (pl.col("_next") < pl.col("_end").fill_null(NEVER))
    closed = before(before(end, entry, _begun="seq"), end, _last="seq", from_ns="time_ns")
    alone = pl.col("_last").is_not_null() & (pl.col("_last") > pl.col("_begun").fill_null(0))
    parts = [
        _rows(opened.filter(lost), call.entry, call.end, "no return"),
        _rows(closed.filter(alone), call.end, call.entry, "no entry"),
    ]
    whole = opened.filter(~lost & pl.col("_end").is_not_null())
    return parts + [
        _rows(whole.filter(pl.col(c) != pl.col(f"_{c}")), call.entry, call.end, "another value", c)
        for c in same
    ]


def _within(raw: Raw, call: Inner) -> list[pl.DataFrame]:
    """Calls without the record that each makes, or with two of them, or with one that says something else."""
    entry, end, inner = raw[call.entry], raw[call.end], raw[call.inner]
    same = [c for c in call.same if raw.gives(call.entry, c) and raw.gives(call.inner, c)]
    rows = after(after(entry, end, _end="seq"), entry, _next="seq")
    rows = after(rows, inner, _inner="seq", **{f"_{c}": c for c in same})
    whole = rows.filter(pl.col("_end").is_not_null() & (pl.col("_end") < pl.col("_next").fill_null(NEVER)))
    there = pl.col("_inner").is_not_null() & (pl.col("_inner") < pl.col("_end"))
    twice = before(before(inner, entry, _begun="seq"), inner, _last="seq")
    return [
        _rows(whole.filter(~there), call.inner, call.entry, "missing"),
        _rows(twice.filter(pl.col("_last") > pl.col("_begun")), call.inner, call.entry, "twice"),
        *(
            _rows(
                whole.filter(there & (pl.col(c) != pl.col(f"_{c}"))),
                call.entry,
                call.inner,
                "another value",
                c,
            )
            for c in same
        ),
    ]


def _words(raw: Raw) -> list[pl.DataFrame]:
    """Commands seen inside the loop against what was read for them just before, on the same task."""
    words = ("dw0", "dw1", "dw2", "dw3")
    reads = raw["guest_read"].filter(
        (pl.col("len") == COMMAND_SIZE_BYTES) & (pl.col("ret").fill_null(0) == 0)
    )
    reads = reads.filter(pl.all_horizontal(pl.col(word).is_not_null() for word in words))
    if reads.is_empty():
        return []
    rows = before(raw["command"], reads, _read="seq", **{f"_{word}": word for word in words})
    rows = before(rows, raw["command"], _last="seq")
    own = pl.col("_read").is_not_null() & (pl.col("_read") > pl.col("_last").fill_null(0))
    begun = before(reads, raw["process"], _begun="seq")
    begun = before(begun, raw["process_end"], _ended="seq")
    begun = after(after(begun, raw["command"], _taken="seq"), reads, _next="seq")
    inside = pl.col("_begun").is_not_null() & (pl.col("_begun") > pl.col("_ended").fill_null(0))
    untaken = inside & (pl.col("_taken") > pl.col("_next").fill_null(NEVER))
    parts = [
        _rows(rows.filter(~own & pl.col("_last").is_not_null()), "command", "guest_read", "no entry"),
        _rows(begun.filter(untaken), "guest_read", "command", "no return"),
    ]
    return parts + [
        _rows(
            rows.filter(own & (pl.col(word) != pl.col(f"_{word}"))),
            "command",
            "guest_read",
            "another value",
            word,
        )
        for word in words
    ]


def _alternating(runs: Runs) -> list[pl.DataFrame]:
    """Entries to the guest without an exit before the next, and the other way round."""
    parts = []
    for (vm, vcpu), entries in runs.entries.items():
        exits = runs.exits[vm, vcpu]
        pid = runs.task_of(vm, vcpu)
        if not len(entries.seq) or not len(exits.seq) or pid is None or in_step(entries, exits):
            continue
        for one, other, probe, partner, what in (
            (entries, exits, "enter", "exit", "no return"),
            (exits, entries, "exit", "enter", "no entry"),
        ):
            follows = other.after(one.seq[:-1]) < one.seq[1:]
            at = np.flatnonzero(~follows) + (probe == "exit")
            rows = pl.DataFrame({"seq": one.seq[at], "time_ns": one.time_ns[at]})
            if probe == "exit":
                rows = rows.with_columns(from_ns=pl.Series(one.time_ns[at - 1], dtype=pl.Int64))
            else:
                rows = rows.with_columns(to_ns=pl.Series(one.time_ns[at + 1], dtype=pl.Int64))
            rows = rows.with_columns(cpu=pl.lit(None, dtype=pl.UInt16), pid=pl.lit(pid, dtype=pl.Int32))
            parts.append(_rows(rows, probe, partner, what))
    return parts
