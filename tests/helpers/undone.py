"""Commands of a capture, and observations in which KVM did nothing for them, or something else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from helpers.again import again

if TYPE_CHECKING:
    from collections.abc import Iterable

    from itstrace import Analysis, Finding
    from itstrace.observe import Observations

HOST = ("ITS201", "ITS202", "ITS203", "ITS204", "ITS205", "ITS206", "ITS207", "ITS208")
SAMPLE = {"6.1": "6.1-clean.dat", "6.12": "6.12-clean.dat", "7.3": "7.3-guest-mistakes.dat"}
#: Frames whose records a command leaves behind.
_TRACES = (
    "allocations",
    "retargets",
    "invalidations",
    "config_calls",
    "configs",
    "invalls",
    "guest_reads",
    "queueings",
)

Row = dict[str, Any]


def host_findings(analysis: Analysis, obs: Observations, **given: Any) -> list[Finding]:
    """What the rules of the host say of changed observations."""
    return [one for one in again(analysis, obs, **given) if one.code in HOST]


def commands_of(analysis: Analysis, opcode: str, *, valid: bool | None = None) -> list[Row]:
    """Commands of one kind that KVM surely had to carry out."""
    history = analysis.history
    sure = history.expected.filter("certain")["command_seq"]
    names = history.verdicts.filter((pl.col("opcode") == opcode) & (pl.col("verdict") == "ok"))
    rows = analysis.observations.commands.filter(pl.col("seq").is_in(names["seq"].implode()))
    rows = rows.filter(pl.col("seq").is_in(sure.implode())).join(names.select("seq", "text"), on="seq")
    if valid is not None:
        rows = rows.filter(pl.col("dw2") // 2**63 == int(valid))
    return rows.to_dicts()


def within(row: Row) -> pl.Expr:
    """What the task of a command does while it is under way."""
    inside: pl.Expr = (
        (pl.col("pid") == row["pid"]) & (pl.col("seq") > row["seq"]) & (pl.col("seq") < row["end_seq"])
    )
    return inside


def without_effect(obs: Observations, *rows: Row) -> Observations:
    """These commands did nothing at all."""
    for row in rows:
        kept = {name: getattr(obs, name).filter(~within(row)) for name in _TRACES}
        ints = (pl.col("from_command") == row["seq"]).fill_null(value=False)
        obs = replace(obs, injections=obs.injections.filter(~ints), **kept)
    return obs


def with_operands(obs: Observations, frame: str, row: Row, **columns: pl.Expr) -> Observations:
    """What a command did, it did with other operands."""
    rows = getattr(obs, frame)
    changed = {
        name: pl.when(within(row)).then(value).otherwise(name).alias(name) for name, value in columns.items()
    }
    return replace(obs, **{frame: rows.with_columns(**changed).cast(rows.schema)})


def blame(findings: Iterable[Finding], seq: int) -> list[tuple[str, str]]:
    """Code and mechanism of the findings that blame a record."""
    return [(one.code, one.mechanism) for one in findings if seq in one.blames]
