"""From the words of a call to an `Analysis`: what every command that analyzes does first."""

from __future__ import annotations

from functools import cache
from math import isfinite
from typing import TYPE_CHECKING

import polars as pl

from itstrace.analysis import Analysis, analyze
from itstrace.cli.output import note, working
from itstrace.errors import UsageError
from itstrace.instants import parse_instant
from itstrace.model.profiles import PROFILES
from itstrace.readers import open_captures
from itstrace.rules import plugins, settings_known
from itstrace.seed import combine_seeds, load_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: What a file of events asks for in vain: so much of it is told.
_REMARKS = 8
_MARKER = "ftrace:print"


def analyzed(
    *paths: Path,
    profile: str | None = None,
    seeds: Sequence[str] = (),
    events: Path | None = None,
    settings: Mapping[str, float] | None = None,
) -> Analysis:
    """Analyze one capture, or the parts of one, and show on a terminal that it is being done.

    Raises: UsageError for a profile, a seed, a setting or a file of events that is none; CaptureError for a capture
    that cannot be read.
    """
    if profile is not None and profile not in PROFILES:
        raise UsageError(
            f"--kernel {profile}: there is no such profile", advice=f"one of {', '.join(PROFILES)}"
        )
    with working(f"analyzing {', '.join(path.name for path in paths)}"):
        seed = combine_seeds([load_seed(spec, lambda text: _instant(paths, text)) for spec in seeds])
        analysis = analyze(paths, profile=profile, seed=seed, events=events, settings=settings)
    tell_plugins()
    for rule in analysis.skipped:
        if rule.why:
            note(f"rule {rule.code} {rule.name} failed and is left out: {rule.why}")
    remarks = analysis.observations.remarks
    for remark in remarks[:_REMARKS]:
        note(f"{events}: {remark}")
    if len(remarks) > _REMARKS:
        note(f"{events}: and {len(remarks) - _REMARKS} more of the kind; itstrace info --json has all")
    return analysis


def tell_plugins() -> None:
    """Say which packages wanted to bring rules and could not."""
    for plugin in plugins():
        if plugin.problem:
            note(f"rules of {plugin.package} ({plugin.name}) are left out: {plugin.problem}")


def numbers(given: Sequence[str] | None) -> dict[str, float]:
    """`--set NAME=VALUE`, each: numbers of rules by name; of one name the last.

    Raises: UsageError for what sets no number that a rule goes by.
    """
    found: dict[str, float] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not equals or not isfinite(number):
            raise UsageError(
                f"--set {text} sets no number", advice="--set NAME=VALUE, as --set late-factor=50"
            )
        found[name.strip()] = number
    return dict(settings_known(found))


def instant(analysis: Analysis, text: str) -> int:
    """The time that `text` names in an analyzed capture."""
    return parse_instant(text, analysis.start_ns, analysis.end_ns, analysis.observations.markers)


def _instant(paths: tuple[Path, ...], text: str) -> int:
    """The time that `text` names in a capture that is not analyzed yet."""
    start_ns, end_ns, markers = _times(paths)
    return parse_instant(text, start_ns, end_ns, markers)


@cache
def _times(paths: tuple[Path, ...]) -> tuple[int | None, int | None, pl.DataFrame]:
    with open_captures(paths) as capture:
        frames = [block[_MARKER] for block in capture.blocks({_MARKER: ("buf",)}) if _MARKER in block]
        notes = [frame.select("time_ns", pl.col("buf").str.strip_chars().alias("text")) for frame in frames]
        empty = pl.DataFrame(schema={"time_ns": pl.Int64, "text": pl.String})
        return *capture.span(), pl.concat([empty, *notes])
