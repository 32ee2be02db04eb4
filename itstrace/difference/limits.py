"""From when on a number that differs is a difference. All can be set, and the reports say them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: How sure a difference of numbers must be: by chance alone it comes up once in a thousand times.
CHANCE: Final = 0.001
#: The same in standard errors of a normal distribution, on both sides.
SURE: Final = 3.29


@dataclass(frozen=True, slots=True)
class Limits:
    """What a difference of numbers must reach, besides being none of chance.

    `latency_factor`: a median, a 99th percentile or the longest waits are so many times the other's. `share_points`:
    the shares of an outcome lie so many percentage points apart. `rate_factor`: a rate is so many times the other's
    (told, and never a difference of its own). `samples`: so many MSIs at least on both sides.
    """

    latency_factor: float = 2.0
    share_points: float = 5.0
    rate_factor: float = 2.0
    samples: int = 30
