"""What became of MSIs, how long they took, and rates, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.report.difference.parts import Grid, Line, Part, Row, Section, Spread, Stage, Stages, Told
from itstrace.report.figures import STAGES
from itstrace.report.text import hexa, number, plural
from itstrace.units import duration

if TYPE_CHECKING:
    from itstrace.difference import Difference

#: Rates by device and by LPI that have changed, and latencies of LPIs that have shifted: so many are told.
_BUSIEST: Final = 8
_STAGES: Final = {(begin, end): title for title, begin, end in STAGES}
_BINS: Final = ["vm", "intid", "begin", "end"]


def of_vm(different: Difference, row: Row) -> str:
    """` (VM 1)` where there are several."""
    return f" (VM {row['vm']})" if len(different.vms) > 1 else ""


# --- outcomes


def outcomes(different: Difference) -> Section:
    """What became of the MSIs."""
    limits = different.limits
    rows = different.outcomes.filter(pl.col("intid").is_null()).sort("count_a", descending=True)
    apart = different.outcomes.filter(pl.col("intid").is_not_null() & (pl.col("verdict") == "different"))
    parts: list[Part] = []
    columns = ("outcome", "A", "share", "B", "share", "B has")
    if rows.height:
        lines = tuple(_outcome(row, "") for row in rows.iter_rows(named=True))
        parts.append(Grid("all MSIs", columns, lines))
    else:
        parts.append(Told("There are no MSIs in either capture.", "dim"))
    if apart.height:
        lines = tuple(
            _outcome(row, f"LPI {row['intid']}{of_vm(different, row)} ")
            for row in apart.iter_rows(named=True)
        )
        parts.append(Grid("LPIs that differ", columns, lines))
    reasons = different.outcomes["reason"].drop_nulls().unique().sort().to_list()
    parts += [Told(f"Not judged: {reason}.") for reason in reasons]
    rule = f"A share counts as different from {limits.share_points:g} points on, {_beyond(limits.samples)}."
    differing = int((different.outcomes["verdict"] == "different").sum())
    return Section("Outcomes of MSIs", _differ(differing, "share"), tuple(parts), rule)


def share(row: Row, side: str) -> str:
    """A share of an outcome, in per cent."""
    return "" if row[f"share_{side}"] is None else f"{100 * row[f'share_{side}']:.1f} %"


def _outcome(row: Row, whose: str) -> Line:
    cells = [text for side in "ab" for text in (number(row[f"count_{side}"]), share(row, side))]
    known = row["share_a"] is not None and row["share_b"] is not None
    points = ""
    if known and row["verdict"] == "different":
        points = f"{100 * (row['share_b'] - row['share_a']):+.1f} points"
    said = {"different": points, "few": "too few to say"}.get(row["verdict"], "")
    shares = (row["share_a"] or 0.0, row["share_b"] or 0.0)
    return Line((f"{whose}{row['outcome']}", *cells, said), row["verdict"] == "different", shares)


def _differ(count: int, one: str, many: str | None = None) -> str:
    """`2 shares differ`, `no share differs`."""
    return (
        f"{plural(count, one, many)} {'differs' if count == 1 else 'differ'}"
        if count
        else f"no {one} differs"
    )


def _beyond(samples: int) -> str:
    return f"if that is beyond chance, with {plural(samples, 'MSI')} or more in both captures"


# --- latencies


def latencies(different: Difference) -> Section:
    """How long each stage took."""
    limits = different.limits
    rows = different.latencies.filter(
        pl.col("intid").is_null() & ((pl.col("count_a") > 0) | (pl.col("count_b") > 0))
    )
    shifted = different.latencies.filter(pl.col("verdict").is_in(["slower", "faster"]))
    of_lpis = shifted.filter(pl.col("intid").is_not_null())
    bins = different.distributions.partition_by(_BINS, as_dict=True)
    parts: list[Part] = []
    for title, chosen in (("all MSIs", rows), ("LPIs that differ", of_lpis)):
        stages = tuple(_stage(different, row, bins) for row in chosen.iter_rows(named=True))
        if stages:
            parts.append(Stages(title, stages))
    if not parts:
        parts.append(Told("There are no delivered MSIs in either capture.", "dim"))
    told = pl.concat([shifted.filter(pl.col("intid").is_null()), of_lpis.head(_BUSIEST)])
    parts += [_told_shift(different, row) for row in told.iter_rows(named=True)]
    if of_lpis.height > _BUSIEST:
        parts.append(
            Told(f"{of_lpis.height - _BUSIEST:,} more stages of LPIs have shifted: see the table.", "dim")
        )
    rule = (
        f"A latency counts as different from {limits.latency_factor:g} times the other's on, {_beyond(limits.samples)}: its "
        "median (p50), its p99, or the tail of its longest waits."
    )
    differing = int(different.latencies["counts"].sum())
    return Section("Latency", _differ(differing, "latency", "latencies"), tuple(parts), rule)


def _told_shift(different: Difference, row: Row) -> Told:
    whose = "" if row["intid"] is None else f"LPI {row['intid']}{of_vm(different, row)}, "
    aside = "" if row["counts"] else " How long that takes is up to the guest: it is not counted."
    said = f"{whose}{stage_name(row)} is {_shift(row, different.limits.latency_factor)}.{aside}"
    return Told(said, "counts" if row["counts"] else "")


def stage_name(row: Row) -> str:
    """The title of a stage."""
    return _STAGES[row["begin"], row["end"]]


def _stage(different: Difference, row: Row, bins: dict[tuple[object, ...], pl.DataFrame]) -> Stage:
    whose = "" if row["intid"] is None else f"LPI {row['intid']}{of_vm(different, row)} "
    said = {"few": "too few to say"}.get(row["verdict"], "")
    if row["measure"] is not None:
        said = f"{row['verdict']} ({row['measure']})"
    drawn = bins.get(tuple(row[name] for name in _BINS))
    return Stage(
        whose + stage_name(row), _spread(row, drawn, "a"), _spread(row, drawn, "b"), said, bool(row["counts"])
    )


def _spread(row: Row, bins: pl.DataFrame | None, side: str) -> Spread:
    drawn = () if bins is None else bins.select("low_ns", "high_ns", f"count_{side}").rows()
    p50_ns, p99_ns, max_ns = (row[f"{name}_{side}_ns"] for name in ("p50", "p99", "max"))
    return Spread(row[f"count_{side}"], p50_ns, p99_ns, max_ns, tuple(one for one in drawn if one[2]))


def _shift(row: Row, factor: float) -> str:
    """What shifted, in words: `slower in B: the median of B is 2.4 times that of A`."""
    side, other = ("b", "a") if row["verdict"] == "slower" else ("a", "b")
    if row["measure"] == "tail":
        longest = duration(row[f"max_{other}_ns"])
        return (
            f"{row['verdict']} in B: {number(row[f'beyond_{side}'])} of {number(row[f'count_{side}'])} in {side.upper()} took "
            f"longer than {factor:g} times the longest of {other.upper()} ({longest})"
        )
    ours, theirs = (row[f"{row['measure']}_{one}_ns"] for one in (side, other))
    title = {"p50": "median", "p99": "99th percentile"}[row["measure"]]
    ratio = f"{ours / theirs:.3g} times that of {other.upper()}" if theirs else f"not 0 as in {other.upper()}"
    return f"{row['verdict']} in B: the {title} of {side.upper()} is {ratio}"


# --- rates


def rates(different: Difference) -> Section:
    """MSIs, deliveries and commands a second."""
    whole = different.rates.filter(pl.col("vm").is_null())
    columns = ("rate", "A", "per s", "B", "per s", "in B")
    parts: list[Part] = [
        Grid("", columns, tuple(_rate(row, different) for row in whole.iter_rows(named=True)))
    ]
    factor = pl.max_horizontal("per_second_a", "per_second_b")
    changed = different.rates.filter(pl.col("vm").is_not_null() & (pl.col("verdict") == "changed"))
    for key, title in (("device_id", "devices"), ("intid", "LPIs")):
        mine = changed.drop_nulls(key).sort(factor, descending=True)
        lines = tuple(_rate(row, different) for row in mine.head(_BUSIEST).iter_rows(named=True))
        if lines:
            shown = f"the busiest {_BUSIEST} of {mine.height:,} {title}" if mine.height > _BUSIEST else title
            parts.append(Grid(f"{shown} that have another share of the MSIs", columns, lines))
    rule = (
        f"Per second of the time with VMs; told from {different.limits.rate_factor:g} times the other's on."
    )
    return Section("Rates", "never counted as a difference", tuple(parts), rule)


def _rate(row: Row, different: Difference) -> Line:
    name = row["what"]
    if row["opcode"] is not None:
        name = f"  {row['opcode']}"
    elif row["intid"] is not None:
        name = f"LPI {row['intid']}{of_vm(different, row)}"
    elif row["device_id"] is not None:
        name = f"device {hexa(row['device_id'])}{of_vm(different, row)}"
    if row["verdict"] == "unknown":
        return Line((name, "?", "", "?", "", "not recorded in both"))
    a, b = row["per_second_a"], row["per_second_b"]
    said = shifted_rate(a, b) if row["verdict"] == "changed" else ""
    return Line((name, number(row["count_a"]), _per_second(a), number(row["count_b"]), _per_second(b), said))


def shifted_rate(a: float, b: float) -> str:
    """`3.4 times more`, `8.3 times fewer`, `only in A`."""
    if not min(a, b):
        return f"only in {'A' if a else 'B'}"
    factor = b / a if b > a else a / b
    shown = f"{factor:,.0f}" if factor >= 9.95 else f"{factor:.1f}"
    return f"{shown} times {'more' if b > a else 'fewer'}"


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 99.95 else f"{rate:.3g}"
