"""Observations that a test changed, through replay, lives and rules again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
from conftest import SAMPLES, analysis_of

from itstrace.lives import live
from itstrace.replay import replay
from itstrace.rules import check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from itstrace import Analysis, Finding
    from itstrace.errors import Damage
    from itstrace.observe import Observations
    from itstrace.seed import Seed


def again(
    analysis: Analysis,
    obs: Observations,
    *,
    gaps: pl.DataFrame | None = None,
    damage: Sequence[Damage] = (),
    losses_told: bool = True,
    kernel: str | None = None,
    seed: Seed | None = None,
    settings: Mapping[str, float] | None = None,
) -> list[Finding]:
    """All findings of changed observations; what was lost is the capture's own, if not given, and so is its kernel."""
    kernel = kernel or analysis.info.kernel
    history = replay(obs, kernel=kernel, seed=seed)
    findings, _ = check(
        obs,
        history,
        live(obs, history),
        gaps=analysis.gaps if gaps is None else gaps,
        damage=damage,
        start_ns=analysis.start_ns,
        end_ns=analysis.end_ns,
        losses_told=losses_told,
        kernel=kernel,
        settings=settings,
    )
    return findings


def sample(name: str) -> Analysis:
    """The analysis of a sample capture."""
    return analysis_of(SAMPLES / name)


def found(analysis: Analysis, obs: Observations, code: str, **given: Any) -> list[Finding]:
    """What one rule says of changed observations; `given` as for `again`."""
    return of(again(analysis, obs, **given), code)


def of(findings: Sequence[Finding], code: str) -> list[Finding]:
    """Those of one rule."""
    return [finding for finding in findings if finding.code == code]


def whole_gap(analysis: Analysis) -> pl.DataFrame:
    """Lost records all along."""
    rows = {"cpu": [0], "from_ns": [analysis.start_ns], "to_ns": [analysis.end_ns], "lost": [1]}
    return pl.DataFrame(rows, schema=analysis.gaps.schema)


def more(frame: pl.DataFrame, *rows: dict[str, Any]) -> pl.DataFrame:
    """A frame with more rows, in order; what a row does not say is null."""
    full = [{name: row.get(name) for name in frame.columns} for row in rows]
    return pl.concat([frame, pl.DataFrame(full, schema=frame.schema, orient="row")]).sort("seq")


def changed(frame: pl.DataFrame, at: int, /, **values: Any) -> pl.DataFrame:
    """A frame in which the row of one record has other values."""
    return frame.with_columns(
        pl.when(pl.col("seq") == at).then(pl.lit(value, dtype=frame.schema[name])).otherwise(name).alias(name)
        for name, value in values.items()
    ).sort("seq")
