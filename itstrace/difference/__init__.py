"""What differs between two captures, and what of it counts.

Not every number that differs is a difference. These are, and `Difference.differs` says whether there is one:

- a finding of severity error or warning that only one has, or that is an error in one and a warning in the other;
- a field of a table entry, or an entry, that both captures make known;
- the share of an outcome of MSIs, and the latency of a stage, that has shifted beyond chance and beyond `Limits`.

How the captures were recorded, rates, notes and findings about a capture itself are told and do not count. Pure: two
analyses in, frames out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from itstrace.difference.distributions import DISTRIBUTIONS, distributions
from itstrace.difference.entries import ENTRIES, entries
from itstrace.difference.found import Change, Kept, found
from itstrace.difference.guests import Guests, Shared, guests
from itstrace.difference.limits import CHANCE, Limits
from itstrace.difference.matching import matched_itss, matched_vms
from itstrace.difference.recorded import Fact, Recorded, recorded
from itstrace.difference.traffic import LATENCIES, OUTCOMES, RATES, latencies, outcomes, rates

if TYPE_CHECKING:
    import polars as pl

    from itstrace.analysis import Analysis

__all__ = [
    "CHANCE",
    "DISTRIBUTIONS",
    "ENTRIES",
    "LATENCIES",
    "OUTCOMES",
    "RATES",
    "Change",
    "Difference",
    "Fact",
    "Guests",
    "Kept",
    "Limits",
    "Recorded",
    "Shared",
    "difference",
]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two captures side by side. Frames have the schemas of their names; VMs and ITSs in them are A's numbers."""

    limits: Limits
    #: B's VM for each of A's
    vms: dict[int, int]
    #: the instants of the tables; None: the end, or just before a VM's teardown
    at_a_ns: int | None
    at_b_ns: int | None
    recorded: Recorded
    guests: Guests
    findings: tuple[Kept, ...]
    entries: pl.DataFrame
    rates: pl.DataFrame
    outcomes: pl.DataFrame
    latencies: pl.DataFrame
    distributions: pl.DataFrame

    @property
    def counted(self) -> dict[str, int]:
        """How many differences there are, of each kind that counts."""
        return {
            "findings": sum(one.differs for one in self.findings),
            "tables": int((self.entries["verdict"] == "different").sum()),
            "outcomes": int((self.outcomes["verdict"] == "different").sum()),
            "latencies": int(self.latencies["counts"].sum()),
        }

    @property
    def differs(self) -> bool:
        """Whether there is a difference that counts."""
        return any(self.counted.values())


def difference(
    a: Analysis,
    b: Analysis,
    *,
    at_a_ns: int | None = None,
    at_b_ns: int | None = None,
    limits: Limits | None = None,
) -> Difference:
    """Compare two analyses; their tables at `at_a_ns` and `at_b_ns` (None: the end, or just before a VM's teardown)."""
    limits = limits or Limits()
    vms = matched_vms(a, b)
    itss = matched_itss(a, b, vms)
    waits = latencies(a, b, vms, limits)
    return Difference(
        limits,
        vms,
        at_a_ns,
        at_b_ns,
        recorded(a, b, vms, itss),
        guests(a, b, itss),
        found(
            a.findings,
            b.findings,
            skipped_a={rule.code for rule in a.skipped},
            skipped_b={rule.code for rule in b.skipped},
        ),
        entries(a, b, vms, itss, (at_a_ns, at_b_ns)),
        rates(a, b, vms, limits),
        outcomes(a, b, vms, limits),
        waits,
        distributions(a, b, vms, waits),
    )
