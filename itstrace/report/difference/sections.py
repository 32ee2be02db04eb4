"""Everything that is told of two captures, in the order in which it is to be read."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from itstrace.report.difference.findings import found
from itstrace.report.difference.parts import Grid, Line, Part, Section, Told
from itstrace.report.difference.tables import tables
from itstrace.report.difference.traffic import latencies, outcomes, rates
from itstrace.report.difference.verdict import shortened
from itstrace.report.text import number, plural
from itstrace.units import duration

if TYPE_CHECKING:
    from itstrace.difference import Difference, Fact


def sections(different: Difference) -> tuple[Section, ...]:
    """What went wrong first; what was recorded last."""
    return (
        found(different),
        outcomes(different),
        latencies(different),
        rates(different),
        tables(different),
        _recorded(different),
    )


def _recorded(different: Difference) -> Section:
    recorded = different.recorded
    told = [fact for fact in recorded.facts if fact.a is not None or fact.b is not None]
    lines = tuple(
        Line((fact.name, _value(fact, fact.a), _value(fact, fact.b))) for fact in told if not fact.same
    )
    same = [f"{fact.name} {_value(fact, fact.a)}" for fact in told if fact.same and fact.name != "file"]
    parts: list[Part] = []
    if lines:
        parts.append(Grid("", ("what", "A", "B"), lines, left=frozenset({0, 1, 2}), give=1))
    if same:
        parts.append(Told(f"The same in both: {', '.join(same)}.", "dim"))
    # What stands at the top in full needs no second place.
    parts += [Told(remark, head="- ") for remark in recorded.remarks if shortened(remark) != remark]
    apart = sum(fact.name != "file" and not fact.same for fact in told)
    return Section("Recorded", f"{plural(apart, 'fact')} not the same" if apart else "alike", tuple(parts))


def _value(fact: Fact, value: str | int | None) -> str:
    if fact.name == "file":
        return PurePath(str(value)).name
    if value is None:
        return "?"
    if isinstance(value, str):
        return value
    return duration(value) if fact.unit == "ns" else number(value)
