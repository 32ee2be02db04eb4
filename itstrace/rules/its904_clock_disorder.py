"""ITS904: the time stamps contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import Setting, rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What cannot be, in words, by DISORDER's `what`.
_WORDS: Final = {
    "run": "two runs of one vCPU, on different CPUs, overlap",
    "guest": "KVM worked for a vCPU while that CPU had it in the guest",
    "command": "a command is stamped before one that the queue has ahead of it",
}


@rule(
    "ITS904",
    kind=Kind.EVIDENCE,
    severity=Severity.WARNING,
    claim="times in the capture contradict each other",
    settings=(
        Setting(
            "clock-tolerance",
            1000,
            "ns by which records may be stamped out of order before the clocks are said to disagree",
        ),
    ),
)
def clock_disorder(case: Case) -> Iterator[Finding]:
    """Time runs backwards in the capture, or the clocks of two buffers disagree.

    ## What it finds
    Records that are stamped in an order in which they cannot have happened: a vCPU that enters the guest on one CPU before
    it left it on another; an emulated register, or a list register filled, while that CPU had the vCPU in the guest;
    commands that their queue has in another order. And records that come behind later ones in their own buffer or text.

    ## Why it matters
    The order of records of different CPUs is made of their stamps alone. Where those lie, an MSI seems to be delivered
    before it came, a move to take effect too late, and an interrupt to be lost or doubled.

    ## Where it comes from
    ftrace's default clock (`local`) on machines whose CPUs do not share one counter; buffers, instances or files that
    were recorded on different clocks; a clock that was set (`realtime`), or a host that was suspended.

    ## When it is wrong
    Lost records can look alike; spans near them are left out. Disagreements below the tolerance, and those that no record
    happens to show, go unseen.

    ## What to do
    Record on one clock for all CPUs and buffers: trace-cmd record -C mono, perf record -k CLOCK_MONOTONIC.
    """
    yield from _backwards(case)
    rows = case.observations.disorder.filter(pl.col("by_ns") > case.setting("clock-tolerance"))
    rows = case.without_lost(
        rows.with_columns(
            begin=pl.min_horizontal("time_ns", "other_ns"), end=pl.max_horizontal("time_ns", "other_ns")
        ),
        "begin",
        "end",
    )
    if case.observations.commands["lost_before"].any():
        # A queue with holes has no order to contradict.
        rows = rows.filter(pl.col("what") != "command")
    if rows.is_empty():
        return
    rows = rows.sort("seq")
    measured = rows.filter(pl.col("what") != "command") if (rows["what"] != "command").any() else rows
    worst = measured.sort("by_ns").row(-1, named=True)
    said = [
        f"{_WORDS[what]} ({times(count)})"
        for what, count in rows.group_by("what", maintain_order=True).agg(pl.len()).iter_rows()
    ]
    cpus = sorted({*rows["cpu"].to_list(), *rows["other_cpu"].to_list()})
    whose = f"CPUs {' and '.join(str(cpu) for cpu in cpus)}" if len(cpus) > 1 else f"buffers of CPU {cpus[0]}"
    first = rows.row(0, named=True)
    yield case.finding(
        f"The clocks of {whose} disagree, by {duration(worst['by_ns'])} at least: {'; '.join(said)}.",
        mechanism="clocks disagree",
        time_ns=int(rows["begin"].min()),  # type: ignore[arg-type]
        end_ns=int(rows["end"].max()),  # type: ignore[arg-type]
        count=rows.height,
        worst=f"{duration(worst['by_ns'])} at {seconds(worst['time_ns'])}: {_WORDS[worst['what']]}",
        measure=float(worst["by_ns"]),
        seqs=first_some([first["seq"], first["other_seq"], worst["seq"], worst["other_seq"]]),
    )


def _backwards(case: Case) -> Iterator[Finding]:
    """What the readers found: records behind later ones in one buffer, or in the text."""
    places = [place for place in case.damage if place.disorder]
    for place in places:
        yield case.finding(
            f"Time runs backwards: {place.problem}.",
            mechanism="time runs backwards",
            time_ns=case.start_ns,
            end_ns=case.end_ns,
            advice="Record on a clock that is never set (trace-cmd record -C mono); sort a text by time before you cut or "
            "join it, or analyze what it was printed from.",
        )
