"""How much came, what became of it and how long it took, in two captures side by side.

Numbers of two runs always differ. A difference is one that both is large (`Limits`) and is none of chance:

- a share of MSIs: the difference of two proportions, in its standard errors;
- a median or 99th percentile: intervals out of order statistics, which hold whatever the distribution, do not overlap;
- a tail: so many waits are longer than the other capture's longest that chance would not put them all into one.

Waits that follow one another are not independent, which is why being beyond chance alone is not enough.
"""

from __future__ import annotations

from math import ceil, floor, log, sqrt
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.difference.limits import CHANCE, SURE
from itstrace.difference.recorded import guests_ns, observed

if TYPE_CHECKING:
    from itstrace.analysis import Analysis
    from itstrace.difference.limits import Limits

#: One row per rate. `what`: MSIs, deliveries, commands; of one opcode, device or LPI where that is not null; VMs are A's
#: numbers. Per second of the time with VMs. `verdict`: changed; with all (as the rate of all MSIs or commands, or nearly);
#: same; few (chance may have made it); unknown where one side did not record it.
RATES = pl.Schema(
    {
        "what": pl.String,
        "opcode": pl.String,
        "vm": pl.UInt16,
        "device_id": pl.UInt32,
        "intid": pl.UInt32,
        "count_a": pl.UInt64,
        "count_b": pl.UInt64,
        "per_second_a": pl.Float64,
        "per_second_b": pl.Float64,
        "verdict": pl.String,
    }
)
#: One row per outcome of the MSIs of all VMs, or of one LPI. Shares are of `of_a` and `of_b` MSIs. `verdict`: different,
#: same, few (of MSIs), unknown, with the reason.
OUTCOMES = pl.Schema(
    {
        "vm": pl.UInt16,
        "intid": pl.UInt32,
        "outcome": pl.String,
        "count_a": pl.UInt64,
        "of_a": pl.UInt64,
        "count_b": pl.UInt64,
        "of_b": pl.UInt64,
        "share_a": pl.Float64,
        "share_b": pl.Float64,
        "verdict": pl.String,
        "reason": pl.String,
    }
)
_SIDE: Final = {
    "count_{}": pl.UInt64,
    "p50_{}_ns": pl.Int64,
    "p50_low_{}_ns": pl.Int64,
    "p50_high_{}_ns": pl.Int64,
    "p99_{}_ns": pl.Int64,
    "p99_low_{}_ns": pl.Int64,
    "p99_high_{}_ns": pl.Int64,
    "max_{}_ns": pl.Int64,
    "beyond_{}": pl.UInt64,  # longer than `latency_factor` times the other's longest
}
#: One row per stage of the delivered MSIs of all VMs, or of one LPI; a stage is from one column of LIVES to another. `low`
#: and `high` enclose the true value (null: too few to say). `verdict`: slower or faster (B than A), same, few, none (one
#: side has nothing to compare); `measure`: what shifted, p50, p99 or tail; `counts`: and is a difference.
LATENCIES = pl.Schema(
    {
        "vm": pl.UInt16,
        "intid": pl.UInt32,
        "begin": pl.String,
        "end": pl.String,
        **{name.format(side): dtype for side in "ab" for name, dtype in _SIDE.items()},
        "verdict": pl.String,
        "measure": pl.String,
        "counts": pl.Boolean,
    }
)
#: The stages of a delivered MSI, the whole last.
STAGES: Final = (
    ("injected_ns", "queued_ns"),
    ("queued_ns", "filled_ns"),
    ("filled_ns", "retired_ns"),
    ("injected_ns", "filled_ns"),
)
#: How long a list register waits to be read back is how long the guest runs on: told, and no difference.
_GUESTS_OWN: Final = ("filled_ns", "retired_ns")
_NO_SPANS: Final = pl.Series("span", [], pl.Int64)
_SECOND_NS: Final = 1_000_000_000
#: What must have been recorded to say what became of MSIs.
_FATES: Final = ("INJECTIONS", "QUEUEINGS", "LIST_REGISTERS")


def _lives(analysis: Analysis, vms: dict[int, int] | None = None) -> pl.DataFrame:
    """The lives; with `vms` only those of VMs that both have, under A's numbers."""
    lives = analysis.lives.lives
    if vms is None or (
        set(analysis.observations.vms["vm"]) == set(vms) and all(here == there for here, there in vms.items())
    ):
        return lives
    back = {there: here for here, there in vms.items()}
    names = pl.col("vm").replace_strict(back, default=None, return_dtype=pl.UInt16)
    return lives.with_columns(vm=names).drop_nulls("vm")


def _matched(a: Analysis, b: Analysis, vms: dict[int, int]) -> tuple[pl.DataFrame, pl.DataFrame]:
    return _lives(a, {vm: vm for vm in vms}), _lives(b, vms)


# --- rates


def rates(a: Analysis, b: Analysis, vms: dict[int, int], limits: Limits) -> pl.DataFrame:
    """MSIs, deliveries and commands a second: in all, by opcode, by device, by LPI. Shape: RATES."""
    seen = [observed(each.observations) for each in (a, b)]
    both = {name: all(name in one for one in seen) for name in (*_FATES, "COMMANDS")}
    totals: list[tuple[str, bool, list[int]]] = [
        ("MSIs", both["INJECTIONS"], [each.lives.lives.height for each in (a, b)]),
        (
            "deliveries",
            all(both[name] for name in _FATES),
            [int((each.lives.lives["outcome"] == "delivered").sum()) for each in (a, b)],
        ),
        ("commands", both["COMMANDS"], [each.observations.commands.height for each in (a, b)]),
    ]
    parts = [
        pl.DataFrame(
            {
                "what": [what],
                "count_a": [counts[0]],
                "count_b": [counts[1]],
                "known": [known],
            }
        )
        for what, known, counts in totals
    ]
    ours, theirs = _matched(a, b, vms)
    if both["COMMANDS"]:
        verdicts = [each.history.verdicts.drop_nulls("opcode") for each in (a, b)]
        parts.append(_counted(verdicts[0], verdicts[1], ["opcode"], "commands"))
    if both["INJECTIONS"]:
        parts += [
            _counted(ours.drop_nulls(key), theirs.drop_nulls(key), ["vm", key], "MSIs")
            for key in ("device_id", "intid")
        ]
    rows = pl.concat(parts, how="diagonal_relaxed")
    rows = rows.with_columns(
        pl.lit(None).alias(name)
        for name in ("opcode", "vm", "device_id", "intid")
        if name not in rows.columns
    )
    spans = [guests_ns(each) for each in (a, b)]
    seconds_a, seconds_b = (max(span or 0, 1) / _SECOND_NS for span in spans)
    rows = rows.with_columns(
        per_second_a=pl.col("count_a") / seconds_a, per_second_b=pl.col("count_b") / seconds_b
    )
    low, high = (getattr(pl, f"{end}_horizontal")("per_second_a", "per_second_b") for end in ("min", "max"))
    error = (pl.col("count_a") / seconds_a**2 + pl.col("count_b") / seconds_b**2).sqrt()
    whole = rows.filter(pl.col("known").is_not_null()).select(
        "what", shift=pl.col("per_second_b") / pl.col("per_second_a")
    )
    rows = rows.join(whole, on="what", how="left", maintain_order="left")
    # How an opcode, a device or an LPI has shifted against all of its kind; 0/0, as where there are none, is no number.
    against = pl.col("per_second_b") / pl.col("per_second_a") / pl.col("shift")
    part = pl.col("known").is_null() & against.is_between(
        1 / limits.rate_factor, limits.rate_factor, closed="none"
    )
    verdict = (
        pl.when(~pl.col("known").fill_null(value=True))
        .then(pl.lit("unknown"))
        .when(high < limits.rate_factor * low)
        .then(pl.lit("same"))
        .when(high - low <= SURE * error)
        .then(pl.lit("few"))
        .when(part)
        .then(pl.lit("with all"))
        .otherwise(pl.lit("changed"))
    )
    return rows.with_columns(verdict=verdict).select(RATES.names()).cast(RATES)


def _counted(ours: pl.DataFrame, theirs: pl.DataFrame, keys: list[str], what: str) -> pl.DataFrame:
    """Rows by key on both sides."""
    count_a, count_b = (
        frame.group_by(keys).agg(pl.len().cast(pl.Int64).alias(f"count_{side}"))
        for frame, side in ((ours, "a"), (theirs, "b"))
    )
    joined = count_a.join(count_b, on=keys, how="full", coalesce=True)
    return joined.with_columns(pl.col("count_a", "count_b").fill_null(0), what=pl.lit(what)).sort(keys)


# --- outcomes


def outcomes(a: Analysis, b: Analysis, vms: dict[int, int], limits: Limits) -> pl.DataFrame:
    """What became of the MSIs, in all and by LPI. Shape: OUTCOMES."""
    ours, theirs = _matched(a, b, vms)
    whole = _shares(a.lives.lives, b.lives.lives, [])
    by_lpi = _shares(ours.drop_nulls("intid"), theirs.drop_nulls("intid"), ["vm", "intid"])
    rows = pl.concat([whole, by_lpi], how="diagonal_relaxed")
    reason = _not_judged(a, b)
    few = pl.min_horizontal("of_a", "of_b") < max(limits.samples, 1)
    apart = (pl.col("share_a") - pl.col("share_b")).abs()
    pooled = (pl.col("count_a") + pl.col("count_b")) / (pl.col("of_a") + pl.col("of_b"))
    error = (pooled * (1 - pooled) * (1 / pl.col("of_a") + 1 / pl.col("of_b"))).sqrt()
    verdict = (
        pl.when(few)
        .then(pl.lit("few"))
        .when((apart * 100 < limits.share_points) | (apart <= SURE * error))
        .then(pl.lit("same"))
        .when(pl.lit(reason is not None))
        .then(pl.lit("unknown"))
        .otherwise(pl.lit("different"))
    )
    rows = rows.with_columns(verdict=verdict)
    if reason is not None and "lost" not in reason:
        rows = rows.with_columns(verdict=pl.lit("unknown"))
    rows = rows.with_columns(reason=pl.when(pl.col("verdict") == "unknown").then(pl.lit(reason, pl.String)))
    return rows.select(OUTCOMES.names()).cast(OUTCOMES)


def _not_judged(a: Analysis, b: Analysis) -> str | None:
    """Why outcomes say nothing, if they do not."""
    for side, each in (("A", a), ("B", b)):
        lacking = [name for name in _FATES if name not in observed(each.observations)]
        if lacking:
            return f"{side} did not record {', '.join(lacking)}"
    for side, each in (("A", a), ("B", b)):
        if each.gaps.height:
            return f"{side} lost records"
    return None


def _shares(ours: pl.DataFrame, theirs: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Counts of every outcome that one of both has, by key."""
    counted = _counted(ours, theirs, [*keys, "outcome"], "")
    sums = [pl.col(f"count_{side}").sum() for side in "ab"]
    of_a, of_b = (one.over(keys) if keys else one for one in sums)
    counted = counted.with_columns(of_a=of_a, of_b=of_b, vm=pl.col("vm") if keys else pl.lit(None, pl.UInt16))
    counted = counted.with_columns(intid=pl.col("intid") if keys else pl.lit(None, pl.UInt32))
    return counted.with_columns(
        share_a=pl.when(pl.col("of_a") > 0).then(pl.col("count_a") / pl.col("of_a")),
        share_b=pl.when(pl.col("of_b") > 0).then(pl.col("count_b") / pl.col("of_b")),
    )


# --- latencies


def latencies(a: Analysis, b: Analysis, vms: dict[int, int], limits: Limits) -> pl.DataFrame:
    """How long each stage of delivered MSIs took, in all and by LPI. Shape: LATENCIES."""
    lossy = bool(a.gaps.height or b.gaps.height)
    whole = [delivered(each) for each in (a, b)]
    matched = [delivered(a, {vm: vm for vm in vms}), delivered(b, vms)]
    rows = []
    for by_lpi, sides in ((False, whole), (True, matched)):
        for begin, end in STAGES:
            spans_a, spans_b = (_spans(lives, begin, end, by_lpi=by_lpi) for lives in sides)
            for lpi in sorted(spans_a.keys() | spans_b.keys()):
                row: dict[str, Any] = {"begin": begin, "end": end, "vm": lpi[0], "intid": lpi[1]}
                mine, other = spans_a.get(lpi, _NO_SPANS), spans_b.get(lpi, _NO_SPANS)
                row |= _measured(mine, other, "a", limits) | _measured(other, mine, "b", limits)
                row |= _judged(row, limits, lossy=lossy)
                row["counts"] = row["measure"] is not None and (begin, end) != _GUESTS_OWN
                rows.append(row)
    return pl.DataFrame(rows, schema=LATENCIES, orient="row")


def delivered(analysis: Analysis, vms: dict[int, int] | None = None) -> pl.DataFrame:
    """The delivered lives; with `vms` only those of VMs that both have, under A's numbers."""
    lives = _lives(analysis, vms).filter(pl.col("outcome") == "delivered")
    return lives.select("vm", "intid", "injected_ns", "queued_ns", "filled_ns", "retired_ns")


def _spans(
    lives: pl.DataFrame, begin: str, end: str, *, by_lpi: bool
) -> dict[tuple[int | None, int | None], pl.Series]:
    """How long a stage took, in order of length: of all (None, None), or by (VM, INTID)."""
    span = (pl.col(end) - pl.col(begin)).drop_nulls().sort().alias("span")
    if not by_lpi:
        return {(None, None): lives.select(span)["span"]}
    grouped = lives.drop_nulls(["vm", "intid"]).group_by("vm", "intid").agg(span)
    return {
        (vm, intid): spans
        for (vm, intid), spans in zip(grouped.select("vm", "intid").rows(), grouped["span"], strict=True)
    }


def _measured(spans: pl.Series, others: pl.Series, side: str, limits: Limits) -> dict[str, int | None]:
    """Order statistics: percentiles that were observed, with values that enclose the true ones.

    Of n values the rank of the q-quantile is binomial: n*q, with the standard error sqrt(n*q*(1-q)).
    """
    n = len(spans)

    def at(rank: float) -> int | None:
        return int(spans[int(rank)]) if 0 <= rank < n else None

    row: dict[str, int | None] = {f"count_{side}": n, f"max_{side}_ns": at(n - 1), f"beyond_{side}": None}
    if n and len(others):
        row[f"beyond_{side}"] = n - spans.search_sorted(int(others[-1] * limits.latency_factor), side="right")
    for name, q in (("p50", 0.50), ("p99", 0.99)):
        error = SURE * sqrt(n * q * (1 - q))
        row[f"{name}_{side}_ns"] = at(min(floor(n * q), n - 1))
        row[f"{name}_low_{side}_ns"] = at(floor(n * q - error))
        row[f"{name}_high_{side}_ns"] = at(ceil(n * q + error))
    return row


def _judged(row: dict[str, Any], limits: Limits, *, lossy: bool) -> dict[str, str | None]:
    """The verdict on one stage. Where records were lost, only the median is robust enough."""
    count_a, count_b = row["count_a"], row["count_b"]
    if not count_a or not count_b:
        return {"verdict": "none", "measure": None}
    if min(count_a, count_b) < limits.samples:
        return {"verdict": "few", "measure": None}
    for side, other, verdict in (("b", "a", "slower"), ("a", "b", "faster")):
        for name in ("p50",) if lossy else ("p50", "p99"):
            low, high = row[f"{name}_low_{side}_ns"], row[f"{name}_high_{other}_ns"]
            beyond_chance = low is not None and high is not None and low > high
            if (
                beyond_chance
                and row[f"{name}_{side}_ns"] >= limits.latency_factor * row[f"{name}_{other}_ns"]
            ):
                return {"verdict": verdict, "measure": name}
        if not lossy and (row[f"beyond_{side}"] or 0) >= _run(row[f"count_{side}"], row[f"count_{other}"]):
            return {"verdict": verdict, "measure": "tail"}
    return {"verdict": "same", "measure": None}


def _run(mine: int, others: int) -> int:
    """How many of the longest waits, both captures together, must be mine for it to be none of chance.

    If both were alike, each of them would be mine with the chance mine/(mine + others).
    """
    return max(ceil(log(CHANCE) / log(mine / (mine + others))), 1)
