"""Stretches in which nobody recorded what is recorded elsewhere: before a part begins, after it ends, between two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: A hole is longer than so many records of that part take on average: a quiet moment is none.
_RECORDS: Final = 1000
_FOREVER: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Stretch:
    """When one part was recording, as far as its records show it, and on which CPUs."""

    from_ns: int
    to_ns: int
    records: int
    cpus: list[int]

    @property
    def quiet_ns(self) -> int:
        """How long nothing may be heard of it while it is recording; for ever, where its records are few."""
        return _RECORDS * (self.to_ns - self.from_ns) // self.records if self.records > _RECORDS else _FOREVER


def holes(
    stretches: Sequence[Stretch], whole: tuple[int | None, int | None]
) -> Iterator[tuple[int, int, int]]:
    """CPU, beginning and end of each stretch of the whole span in which none of these parts was recording.

    That they had come to an end, or not begun, and were not merely quiet is an estimate: a stretch counts where
    both neighbours would have written a thousand records in it.
    """
    start_ns, end_ns = whole
    if not stretches or start_ns is None or end_ns is None:
        return
    cpus = sorted({cpu for stretch in stretches for cpu in stretch.cpus})
    ordered = sorted(stretches, key=lambda stretch: (stretch.from_ns, stretch.to_ns))
    empty: list[tuple[int, int, int]] = [(start_ns, ordered[0].from_ns, ordered[0].quiet_ns)]
    before = ordered[0]
    for stretch in ordered[1:]:
        empty.append((before.to_ns, stretch.from_ns, max(before.quiet_ns, stretch.quiet_ns)))
        if stretch.to_ns > before.to_ns:
            before = stretch
    empty.append((before.to_ns, end_ns, before.quiet_ns))
    for from_ns, to_ns, quiet_ns in empty:
        if to_ns - from_ns > quiet_ns:
            yield from ((cpu, from_ns, to_ns) for cpu in cpus)
