"""Table entries of two captures side by side, at an instant of each.

Entries are matched by what they are called: a VM and an ITS as in `matching`, then DeviceID, EventID, ICID, INTID.
Four verdicts: equal; different; aside (it differs, and may between two healthy runs: where the guest put an ITT, what
is pending just then); unknown, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.difference.recorded import observed

if TYPE_CHECKING:
    from itstrace.analysis import Analysis
    from itstrace.difference.recorded import Matched
    from itstrace.tables import Tables

#: One row per compared field of an entry; VMs and ITSs are A's numbers. `field` is `mapped` where only one has the entry:
#: then the other side says what it holds. An event's `intid` is that of both. Values are as shown; null is unknown.
ENTRIES = pl.Schema(
    {
        "what": pl.String,  # device, collection, event, lpi
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "device_id": pl.UInt32,
        "event_id": pl.UInt32,
        "icid": pl.UInt32,
        "intid": pl.UInt32,
        "field": pl.String,
        "a": pl.String,
        "b": pl.String,
        "verdict": pl.String,  # different, aside, unknown, equal
        "reason": pl.String,
    }
)
_IDS: Final = ("device_id", "event_id", "icid", "intid")
#: What two healthy runs of one guest need not have in common, and why.
_ASIDE: Final = {
    "itt_gpa": "where the guest put the table",
    "pending": "what is pending just then",
}


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of entry: its keys within an ITS (an LPI: within a VM) and the fields that are compared.

    `none`: a field in which null means none, not unknown, where the entry is not assumed.
    """

    what: str
    keys: tuple[str, ...]
    fields: tuple[str, ...]
    none: str = ""

    def frame(self, tables: Tables) -> pl.DataFrame | None:
        found: pl.DataFrame | None = getattr(tables, f"{self.what}s")
        return found


_KINDS: Final = (
    _Kind("device", ("device_id",), ("event_bits", "itt_gpa")),
    _Kind("collection", ("icid",), ("target_vcpu",), none="target_vcpu"),
    _Kind("event", ("device_id", "event_id"), ("intid", "icid"), none="icid"),
    _Kind("lpi", ("intid",), ("enabled", "priority", "target_vcpu", "pending")),
)
_TITLES: Final = {
    "event_bits": "event bits",
    "itt_gpa": "ITT",
    "target_vcpu": "vCPU",
    "intid": "LPI",
    "icid": "collection",
}


def entries(
    a: Analysis,
    b: Analysis,
    vms: dict[int, int],
    itss: Matched,
    at: tuple[int | None, int | None],
) -> pl.DataFrame:
    """Compare the tables of A and of B, each at its time of `at` (None: the end, or just before a VM's).

    Shape: ENTRIES, what differs first.
    """
    ours, theirs = a.at(at[0]), b.at(at[1])
    lost = next((f"{side} lost records" for side, one in (("A", a), ("B", b)) if one.gaps.height), None)
    parts = []
    for kind in _KINDS:
        mine, other = kind.frame(ours), kind.frame(theirs)
        if mine is None or other is None:
            continue
        if kind.what == "lpi":
            mine = mine.with_columns(its=pl.lit(None, pl.UInt16), assumed=pl.lit(value=False))
            other = _renamed(other, {(o, 0): (v, 0) for v, o in vms.items()}, by_its=False)
            other = other.with_columns(its=pl.lit(None, pl.UInt16), assumed=pl.lit(value=False))
            mine = mine.filter(pl.col("vm").is_in(list(vms)))
        else:
            other = _renamed(other, {there: here for here, there in itss.items()}, by_its=True)
            mine = mine.join(_pairs(list(itss)), on=["vm", "its"], how="semi", maintain_order="left")
        parts.append(_compared(kind, mine, other, _unseen(a, b, itss), lost if kind.what == "lpi" else None))
    order = pl.Enum(["different", "aside", "unknown", "equal"])
    rows = _followed(pl.concat([pl.DataFrame(schema=ENTRIES), *parts]))
    return rows.sort(pl.col("verdict").cast(order), maintain_order=True)


def _followed(rows: pl.DataFrame) -> pl.DataFrame:
    """An LPI that goes to another vCPU because its event is in another collection is told with the event.

    Shape: ENTRIES, as `rows`.
    """
    differs = pl.col("verdict") == "different"
    moved = (
        rows.filter(differs & (pl.col("field") == "icid")).drop_nulls("intid").select("vm", "intid").unique()
    )
    rows = rows.join(
        moved.with_columns(moved=pl.lit(value=True)), on=["vm", "intid"], how="left", maintain_order="left"
    )
    follows = differs & pl.col("moved") & (pl.col("what") == "lpi") & (pl.col("field") == "target_vcpu")
    return rows.with_columns(
        verdict=pl.when(follows).then(pl.lit("aside")).otherwise("verdict"),
        reason=pl.when(follows).then(pl.lit("its event is in another collection")).otherwise("reason"),
    ).drop("moved")


def _pairs(itss: list[tuple[int, int]]) -> pl.DataFrame:
    return pl.DataFrame(itss, schema={"vm": pl.UInt16, "its": pl.UInt16}, orient="row")


def _renamed(
    frame: pl.DataFrame, names: dict[tuple[int, int], tuple[int, int]], *, by_its: bool
) -> pl.DataFrame:
    """B's rows under A's numbers; those that A has no number for are left out."""
    keys = ["vm", "its"] if by_its else ["vm"]
    rows = [(*there[: len(keys)], *here[: len(keys)]) for there, here in names.items()]
    schema = dict.fromkeys([*keys, *(f"{key}_a" for key in keys)], pl.UInt16)
    renaming = pl.DataFrame(rows, schema=schema, orient="row")
    joined = frame.join(renaming, on=keys, how="inner", maintain_order="left").drop(keys)
    return joined.rename({f"{key}_a": key for key in keys})


def _unseen(a: Analysis, b: Analysis, itss: Matched) -> pl.DataFrame:
    """By ITS (A's numbers) why an entry that a side does not have may be mapped there, and whether any may be other.

    Shape: vm, its, why_a, why_b, lost.
    """
    rows = []
    for here, there in itss.items():
        lost = [_lost("A", a, *here), _lost("B", b, *there)]
        rows.append((*here, hidden("A", a, *here), hidden("B", b, *there), lost[0] or lost[1]))
    schema = {"vm": pl.UInt16, "its": pl.UInt16, "why_a": pl.String, "why_b": pl.String, "lost": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def hidden(side: str, analysis: Analysis, vm: int, its: int) -> str | None:
    """Why something may be mapped on an ITS although the capture does not show it, if so."""
    here = (pl.col("vm") == vm) & (pl.col("its") == its)
    if "COMMANDS" not in observed(analysis.observations):
        return f"{side} did not record ITS commands"
    if not analysis.observations.itss.filter(here)["complete"].all():
        return f"{side} does not show all that was mapped"
    return _lost(side, analysis, vm, its)


def _lost(side: str, analysis: Analysis, vm: int, its: int) -> str | None:
    here = (pl.col("vm") == vm) & (pl.col("its") == its)
    lost = analysis.observations.commands.filter(here)["lost_before"].any()
    return f"{side} lost ITS commands" if lost else None


def _compared(
    kind: _Kind, mine: pl.DataFrame, other: pl.DataFrame, unseen: pl.DataFrame, lost: str | None
) -> pl.DataFrame:
    keys = ["vm", "its", *kind.keys]
    ours, theirs = _side(kind, mine, "_a"), _side(kind, other, "_b")
    joined = ours.join(
        theirs, on=keys, how="full", coalesce=True, nulls_equal=True, maintain_order="left_right"
    )
    joined = joined.join(unseen, on=["vm", "its"], how="left", maintain_order="left")
    in_a, in_b = pl.col("in_a").is_not_null(), pl.col("in_b").is_not_null()
    parts = [_field(joined.filter(in_a & in_b), name, lost) for name in kind.fields]
    if kind.what != "lpi":  # an LPI without an event is of no use to anybody; with one, the event tells of it
        for side, only in (("a", joined.filter(in_a & ~in_b)), ("b", joined.filter(in_b & ~in_a))):
            holds = pl.concat_str(
                [
                    pl.lit(f"{_TITLES[name]} ") + pl.col(f"{name}_{side}")
                    for name in kind.fields
                    if name not in _ASIDE
                ],
                separator=", ",
                ignore_nulls=True,
            )
            there = "b" if side == "a" else "a"
            parts.append(
                only.with_columns(
                    **{side: holds, there: pl.lit("not mapped")},
                    field=pl.lit("mapped"),
                    reason=pl.col(f"why_{there}"),
                    same=pl.lit(value=False),
                )
            )
    names = ["vm", "its", *_IDS, "field", "a", "b", "reason", "same"]
    rows = pl.concat([_told_by(kind, part).select(names) for part in parts])
    aside = pl.col("field").is_in(list(_ASIDE))
    rows = rows.with_columns(
        what=pl.lit(kind.what),
        verdict=pl.when("same")
        .then(pl.lit("equal"))
        .when(pl.col("reason").is_not_null())
        .then(pl.lit("unknown"))
        .when(aside)
        .then(pl.lit("aside"))
        .otherwise(pl.lit("different")),
    )
    rows = rows.with_columns(
        reason=pl.when("same")
        .then(None)
        .otherwise(
            pl.coalesce(
                "reason", pl.col("field").replace_strict(_ASIDE, default=None, return_dtype=pl.String)
            )
        )
    )
    return (
        rows.select(ENTRIES.names())
        .cast(ENTRIES)
        .sort(*(name for name in keys if name != "its"), "its", maintain_order=True)
    )


def _told_by(kind: _Kind, part: pl.DataFrame) -> pl.DataFrame:
    """The rows with all ids; an event has its LPI's, too, where both sides have the same."""
    part = part.with_columns(pl.lit(None, pl.UInt32).alias(name) for name in _IDS if name not in kind.keys)
    if kind.what != "event":
        return part
    same = pl.col("intid_a") == pl.col("intid_b")
    return part.with_columns(intid=pl.when(same).then(pl.col("intid_a").cast(pl.UInt32)))


def _side(kind: _Kind, frame: pl.DataFrame, end: str) -> pl.DataFrame:
    """One side's entries, as shown, its columns named apart from the other's."""
    fields = [pl.col(name).alias(name + end) for name in kind.fields]
    return _shown(kind, frame).select("vm", "its", *kind.keys, *fields, pl.lit(value=True).alias(f"in{end}"))


def _field(both: pl.DataFrame, name: str, lost: str | None) -> pl.DataFrame:
    """One field of the entries that both have."""
    ours, theirs = pl.col(f"{name}_a"), pl.col(f"{name}_b")
    both = both.filter(ours.is_not_null() | theirs.is_not_null())
    reason = (
        pl.when(ours.is_null())
        .then(pl.lit("A does not tell"))
        .when(theirs.is_null())
        .then(pl.lit("B does not tell"))
        .otherwise(pl.coalesce(pl.lit(lost, pl.String), "lost"))
    )
    same = (ours == theirs).fill_null(value=False)
    return both.with_columns(field=pl.lit(name), a=ours, b=theirs, reason=reason, same=same)


def _shown(kind: _Kind, frame: pl.DataFrame) -> pl.DataFrame:
    """Values as a person reads them; none is a word, unknown is null."""
    shown = []
    for name in kind.fields:
        values = frame[name]
        if name in {"itt_gpa", "priority"}:
            texts = pl.Series(name, [None if one is None else f"{one:#x}" for one in values], dtype=pl.String)
        elif values.dtype == pl.Boolean:
            texts = values.replace_strict({True: "yes", False: "no"}, return_dtype=pl.String)
        else:
            texts = values.cast(pl.String)
        shown.append(texts)
    frame = frame.with_columns(shown)
    if kind.none:
        none = pl.col(kind.none).is_null() & ~pl.col("assumed")
        frame = frame.with_columns(pl.when(none).then(pl.lit("none")).otherwise(kind.none).alias(kind.none))
    return frame
