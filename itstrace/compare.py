"""Two sets of table entries side by side: what the replay has, and what the kernel says.

Three verdicts. Equal and different need both sides to know; everything else is unknown, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

#: In the order in which a person wants to see them.
_VERDICTS = ("different", "unknown", "equal")

#: One row per compared item. `what`: device, event, collection, lpi; `key` names it; `field` is `mapped`
#: where one side does not have it at all. `verdict`: different, unknown, equal; `reason`: why it is unknown.
#: Values are as shown.
COMPARISONS = pl.Schema(
    {
        "dump": pl.String,
        "what": pl.String,
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "key": pl.String,
        "field": pl.String,
        "replay": pl.String,
        "kernel": pl.String,
        "verdict": pl.String,
        "reason": pl.String,
    }
)

_ASSUMED = "assumed: the capture does not show it being made"
_BEFORE = "the capture does not show all that was mapped"
_SILENT = "the dump does not say"
_UNKNOWN = "not known from the capture"
#: The field in which null means none, not unknown, on the kernel's side.
_MAY_BE_NONE = "target_vcpu"
#: Fields that follow from single records, which no chain of commands vouches for.
_BY_RECORD = ("enabled", "priority", "pending")


@dataclass(frozen=True, slots=True)
class Pair:
    """One kind of entry on both sides: `replay` and `kernel`, with the columns of `keys` and `fields`.

    `replay` has a column `assumed` too. `complete`: what the replay does not have is not mapped.
    """

    what: str
    replay: pl.DataFrame
    kernel: pl.DataFrame
    keys: list[str]
    fields: list[str]
    complete: bool

    def compare(self, absent: pl.Expr, lost: str | None = None) -> pl.DataFrame:
        """Compare entry for entry, field for field.

        `absent`: why the dump may lack an entry that the replay has, out of its columns (null: it may not).
        `lost`: why fields that rest on single records may be wrong.
        Shape: COMPARISONS; dump, vm and its are null.
        """
        theirs = [pl.col(name).alias(_kernel(name)) for name in self.fields]
        joined = self.replay.with_columns(here=pl.lit(value=True)).join(
            self.kernel.select(*self.keys, *theirs, there=pl.lit(value=True)),
            on=self.keys,
            how="full",
            coalesce=True,
            maintain_order="left_right",
        )
        joined = joined.with_columns(key=_key_text(joined.select(self.keys)))
        here, there = pl.col("here").is_not_null(), pl.col("there").is_not_null()
        assumed = pl.when(pl.col("assumed")).then(pl.lit(_ASSUMED))
        before = pl.lit(None if self.complete else _BEFORE, pl.String)
        ours_only = joined.filter(here & ~there).with_columns(reason=pl.coalesce(assumed, absent))
        theirs_only = joined.filter(there & ~here).with_columns(reason=before)
        parts = [self._field(joined.filter(here & there), name, lost) for name in self.fields]
        parts += [
            one.with_columns(
                field=pl.lit("mapped"), replay=pl.lit(ours), kernel=pl.lit(theirs), same=pl.lit(value=False)
            )
            for one, ours, theirs in ((ours_only, "yes", "no"), (theirs_only, "no", "yes"))
        ]
        columns = ["key", "field", "replay", "kernel", "reason", "same"]
        rows = pl.concat([part.select(columns) for part in parts])
        verdict = (
            pl.when(pl.col("reason").is_not_null())
            .then(pl.lit("unknown"))
            .otherwise(pl.when("same").then(pl.lit("equal")).otherwise(pl.lit("different")))
        )
        none = pl.lit(None)
        rows = rows.with_columns(verdict=verdict, what=pl.lit(self.what), dump=none, vm=none, its=none)
        return rows.select(COMPARISONS.names()).cast(COMPARISONS)

    def _field(self, both: pl.DataFrame, name: str, lost: str | None) -> pl.DataFrame:
        """One field of the entries that both sides have."""
        ours, theirs = pl.col(name), pl.col(_kernel(name))
        same = ours.eq_missing(theirs)
        known = ours.is_not_null()
        if self.what == "collection":
            known |= ~pl.col("assumed")  # one that no MAPC has mapped yet has no target
        silent = theirs.is_null() & pl.lit(name != _MAY_BE_NONE)
        reason = (
            pl.when(silent)
            .then(pl.lit(_SILENT))
            .when(same)
            .then(None)
            .when(~known)
            .then(pl.lit(_UNKNOWN))
            .when("assumed")
            .then(pl.lit(_ASSUMED))
            .when(pl.lit(name in _BY_RECORD))
            .then(pl.lit(lost, pl.String))
        )
        return both.with_columns(
            field=pl.lit(name),
            replay=_shown(both[name]),
            kernel=_shown(both[_kernel(name)]),
            reason=reason,
            same=same,
        )


def in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Comparisons, differences first. Shape: as `rows`."""
    return rows.sort(pl.col("verdict").cast(pl.Enum(_VERDICTS)), maintain_order=True)


def _kernel(name: str) -> str:
    return f"{name}_kernel"


def _key_text(keys: pl.DataFrame) -> pl.Series:
    """What each entry is called: `0x8`, `0x8:3`, `8192`."""
    hexadecimal = keys.columns[0] == "device_id"
    names = [
        ":".join([f"{first:#x}" if hexadecimal else str(first), *map(str, rest)])
        for first, *rest in keys.rows()
    ]
    return pl.Series(names, dtype=pl.String)


def _shown(values: pl.Series) -> pl.Series:
    """Values as a person reads them."""
    if values.dtype == pl.UInt64:
        return pl.Series([None if one is None else f"{one:#x}" for one in values], dtype=pl.String)
    if values.dtype == pl.Boolean:
        return values.replace_strict({True: "yes", False: "no"}, return_dtype=pl.String)
    return values.cast(pl.String)
