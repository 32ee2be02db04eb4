"""Whether two captures show one guest: by what it maps, over the whole of each capture.

An event (DeviceID and EventID) says which vector of which device a guest uses: two runs of one guest share most of them,
two guests few. A guest that maps less than the other, as when a driver fails, is no other guest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from itstrace.difference.entries import hidden

if TYPE_CHECKING:
    import polars as pl

    from itstrace.analysis import Analysis
    from itstrace.difference.recorded import Matched


@dataclass(frozen=True, slots=True)
class Shared:
    """How many things of one sort are mapped in A alone, in B alone, and in both."""

    only_a: int
    only_b: int
    both: int


@dataclass(frozen=True, slots=True)
class Guests:
    """What the guests of both captures mapped on ITSs that both have. `whole`: that side shows all that was mapped."""

    devices: Shared
    events: Shared
    whole_a: bool
    whole_b: bool

    @property
    def different(self) -> bool:
        """Each maps events of its own, and there are more of them than of those that both map.

        What one capture has and the other does not counts only where the other shows all that was mapped.
        """
        events = self.events
        own = (events.only_a if self.whole_b else 0) + (events.only_b if self.whole_a else 0)
        return min(events.only_a, events.only_b) > 0 and own > events.both

    @property
    def verdict(self) -> str:
        """`different`, `same`; `unknown` where one side maps nothing, or what it does not show decides."""
        if self.different:
            return "different"
        known = self.whole_a and self.whole_b and self.events.both > 0
        return "same" if known or self.events.both > self.events.only_a + self.events.only_b else "unknown"


def guests(a: Analysis, b: Analysis, itss: Matched) -> Guests:
    """Compare what was ever mapped; `itss`: B's (VM, ITS) for each of A's."""
    here, there = {each: each for each in itss}, {other: mine for mine, other in itss.items()}
    devices, events = (
        _shared(_mapped(a, frame, keys, here), _mapped(b, frame, keys, there))
        for frame, keys in (("devices", ["device_id"]), ("mappings", ["device_id", "event_id"]))
    )
    whole_a = all(hidden("A", a, *each) is None for each in itss)
    whole_b = all(hidden("B", b, *each) is None for each in itss.values())
    return Guests(devices, events, whole_a, whole_b)


def _mapped(
    analysis: Analysis, name: str, keys: list[str], names: Matched
) -> set[tuple[tuple[int, int], tuple[int, ...]]]:
    """What was ever mapped, with the VM and ITS under A's numbers."""
    frame: pl.DataFrame = getattr(analysis.history, name)
    rows = frame.select("vm", "its", *keys).drop_nulls().unique().iter_rows()
    return {(names[vm, its], tuple(rest)) for vm, its, *rest in rows if (vm, its) in names}


def _shared(
    mine: set[tuple[tuple[int, int], tuple[int, ...]]], other: set[tuple[tuple[int, int], tuple[int, ...]]]
) -> Shared:
    return Shared(len(mine - other), len(other - mine), len(mine & other))
