"""ITS901: the buffers overran."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.rules.case import Case


@rule("ITS901", kind=Kind.EVIDENCE, severity=Severity.WARNING, claim="records were lost")
def lost_records(case: Case) -> Iterator[Finding]:
    """The ring buffers overran: records are missing.

    ## What it finds
    Stretches of a CPU's buffer in which the kernel dropped or overwrote records.

    ## Why it matters
    What happened there cannot be told. Rules that need an unbroken run of records are silent where it lies
    within such a stretch; tables whose commands were lost are marked as assumed from then on.

    ## Where it comes from
    Buffers too small for the rate of events, a reader that was not scheduled, or a ring buffer in overwrite
    mode that was meant to keep only the last seconds.

    ## When it is wrong
    Never: the kernel itself counts what it drops.

    ## What to do
    Record with larger buffers (trace-cmd record -b 65536), fewer events (leave out kvm_arm_*, timers and
    guest faults), or on a quieter host.
    """
    gaps = case.gaps
    if not case.losses_told:
        yield case.finding(
            "This text does not tell whether records were lost; findings that rest on what is not in it are likely at best.",
            severity=Severity.NOTE,
            mechanism="losses are not told",
            advice="Analyze the perf.data itself, or print it with `perf script --show-lost-events`.",
        )
    if gaps.is_empty():
        return
    known = int(gaps["lost"].drop_nulls().sum())
    uncounted = int(gaps["lost"].is_null().sum())
    count = f"{known:,} records" if known else "an unknown number of records"
    more = f" (and {uncounted} stretches that the kernel did not count)" if known and uncounted else ""
    starts = gaps["from_ns"].drop_nulls()
    span = sum(
        (b - a) for a, b in gaps.select("from_ns", "to_ns").iter_rows() if a is not None and b is not None
    )
    longest = max(
        (row for row in gaps.iter_rows(named=True) if None not in (row["from_ns"], row["to_ns"])),
        key=lambda row: row["to_ns"] - row["from_ns"],
        default=None,
    )
    yield case.finding(
        f"{count}{more} were lost, {times(gaps.height)}, on CPU {', '.join(str(cpu) for cpu in gaps['cpu'].unique().sort())}; "
        f"{duration(span)} in all.",
        mechanism="the buffers overran",
        worst=""
        if longest is None
        else f"{duration(longest['to_ns'] - longest['from_ns'])} of CPU {longest['cpu']} from {seconds(longest['from_ns'])} on",
        time_ns=starts.min() if starts.len() else None,
        end_ns=gaps["to_ns"].max(),
        count=gaps.height,
    )
