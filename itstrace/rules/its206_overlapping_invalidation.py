"""ITS206: two invalidations of one translation cache at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.observe.versions import version_of
from itstrace.rules.case import Case, first_some
from itstrace.rules.known_bugs import known_bugs
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS206",
    kind=Kind.HOST,
    severity=Severity.WARNING,
    claim="KVM dropped one ITS's translations twice at once",
    needs=("INVALIDATIONS", "INVALIDATION_ENDS"),
    suspect=("vgic_its_invalidate_cache",),
)
def overlapping_invalidation(case: Case) -> Iterator[Finding]:
    """Two calls of vgic_its_invalidate_cache for one ITS were under way at once.

    ## What it finds
    A call that began, on another task, before the one before it for the same ITS (up to v6.9: the same VM) had returned.

    ## Why it matters
    Each goes through the cache and drops the reference of every entry that it finds. On a kernel without the fix for
    CVE-2026-46316 both drop the same reference, and an interrupt in use is freed: the host's memory is at stake, and a
    guest can bring it about. It is an error there, and only a note on kernels that are mended.

    ## Where it comes from
    A command on one vCPU while another writes EnableLPIs or GITS_CTLR: they hold different locks.

    ## When it is wrong
    On kernels with the fix (6.12.107, 7.3.4 and later) it is harmless. Times of two CPUs that disagree may make calls
    overlap that did not.

    ## What to do
    Take a kernel with the fix. Until then see who drops the cache in the evidence, and keep guests that are not trusted
    off this host.
    """
    # A cache that is the VM's has no ITS.
    rows = case.observations.invalidation_ends.sort("vm", "its", "seq")
    key = ["vm", "its"]
    # The longest of those before it may still be under way though the last one is over.
    rows = rows.with_columns(
        _end=pl.col("end_seq").cum_max().over(key).shift(1).over(key),
        _pid=pl.col("pid").shift(1).over(key),
    )
    latest = rows.select(
        *key, _end="end_seq", other="seq", other_pid="pid", other_ns="time_ns", other_end="end_ns"
    )
    both = rows.filter(pl.col("_end") > pl.col("seq")).join(
        latest, on=[*key, "_end"], how="inner", nulls_equal=True, maintain_order="left"
    )
    both = both.filter(pl.col("pid") != pl.col("other_pid"))
    for row in case.without_lost(both, "other_ns", "end_ns").iter_rows(named=True):
        span = min(row["end_ns"], row["other_end"]) - row["time_ns"]
        finding = case.finding(
            f"vgic_its_invalidate_cache was called at {seconds(row['time_ns'])} while a call that began at "
            f"{seconds(row['other_ns'])} on another task was under way; both were for {duration(span)}.",
            mechanism="two invalidations of one cache at once",
            vm=row["vm"],
            its=row["its"],
            time_ns=row["other_ns"],
            end_ns=row["end_ns"],
            worst=f"{duration(span)} at {seconds(row['time_ns'])}",
            measure=float(span),
            seqs=first_some([row["other"], row["seq"], row["_end"], row["end_seq"]]),
        )
        yield _judged(case, finding)


def _judged(case: Case, finding: Finding) -> Finding:
    """Error where the kernel is vulnerable, a note where it is not, a warning where that is not known."""
    version = version_of(case.kernel)
    if version is None:
        return finding
    if not known_bugs(finding, case.kernel):
        return replace(finding, severity=Severity.NOTE)
    # Debian's releases may hide which stable release they are.
    return finding if version[2] < 0 else replace(finding, severity=Severity.ERROR)
