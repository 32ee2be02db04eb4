"""The nearest record before or after, of the same task (or VM, vCPU, LPI): the one join that this program is made of."""

from __future__ import annotations

from typing import Literal

import polars as pl


def _nearest(
    rows: pl.DataFrame,
    frame: pl.DataFrame,
    by: str | list[str],
    strategy: Literal["backward", "forward"],
    columns: dict[str, str],
) -> pl.DataFrame:
    keys = [by] if isinstance(by, str) else by
    if rows.is_empty():
        # Most rules look for what is not there: preparing a frame of all folds for them would cost more than they do.
        found = [pl.lit(None, dtype=frame.schema[old]).alias(new) for new, old in columns.items()]
        return rows.with_columns(found)
    right = frame.select(*keys, "seq", **columns).sort("seq")
    # Both sides are sorted on the line above or below; polars cannot check that within groups.
    return rows.sort("seq").join_asof(
        right, on="seq", by=keys, strategy=strategy, allow_exact_matches=False, check_sortedness=False
    )


def before(
    rows: pl.DataFrame, frame: pl.DataFrame, by: str | list[str] = "pid", **columns: str
) -> pl.DataFrame:
    """For each row, values of the last record of `frame` before it (null where there is none).

    Shape: `rows` in order of seq, with the new columns `new_name="column of frame"`.
    """
    return _nearest(rows, frame, by, "backward", columns)


def after(
    rows: pl.DataFrame, frame: pl.DataFrame, by: str | list[str] = "pid", **columns: str
) -> pl.DataFrame:
    """For each row, values of the first record of `frame` after it (null where there is none).

    Shape: `rows` in order of seq, with the new columns `new_name="column of frame"`.
    """
    return _nearest(rows, frame, by, "forward", columns)
