"""From ring buffer stamps to nanoseconds: guest synchronisation, TSC conversion and fixed offsets.

Source: trace-cmd.dat.v7(5), options OFFSET, TIME_SHIFT, TSC2NSEC; trace-cmd 3.1 trace-input.c:timestamp_calc
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from itstrace.readers.bytesource import Cursor

#: TIME_SHIFT flag: correct between two samples along a line.
INTERPOLATE = 1

Stamps = npt.NDArray[np.uint64]
Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tsc:
    """How TSC ticks become nanoseconds: `(ticks * multiplier) >> shift`."""

    multiplier: int
    shift: int
    offset: int


@dataclass(frozen=True, slots=True)
class Corrections:
    """One CPU's samples of the difference between its clock and its host's, in order of time."""

    times: Times
    offsets: Times
    scalings: Stamps
    fractions: Stamps


@dataclass(frozen=True, slots=True)
class TimeShift:
    """What takes a guest's stamps to its host's clock."""

    peer_trace_id: int
    flags: int
    cpus: tuple[Corrections, ...]


def parse_time_shift(data: Cursor) -> TimeShift:
    """Read option TIME_SHIFT.

    Raises: CaptureError where it is shorter than what it announces.
    """
    peer, flags, count = data.number(8), data.number(4), data.number(4)
    columns: list[list[npt.NDArray[np.uint64]]] = []
    if count * 4 > data.left:
        raise data.error(f"{count} CPUs are more than the option has room for")
    dtype = np.dtype(">u8" if data.big_endian else "<u8")
    for _ in range(count):
        samples = data.number(4)
        columns.append([np.frombuffer(data.take(8 * samples), dtype).astype(np.uint64) for _ in range(3)])
    with_fractions = data.left > 0  # written since trace-cmd 3.0
    cpus = []
    for times, offsets, scalings in columns:
        fractions = (
            np.frombuffer(data.take(8 * len(times)), dtype).astype(np.uint64)
            if with_fractions
            else np.zeros(len(times), np.uint64)
        )
        signed = times.view(np.int64)
        order = np.argsort(signed, kind="stable")
        fresh = np.concatenate(([True], np.diff(signed[order]) != 0))[: len(order)]
        keep = order[fresh]
        cpus.append(
            Corrections(
                signed[keep], offsets.view(np.int64)[keep], scalings[keep], fractions[keep] & np.uint64(63)
            )
        )
    return TimeShift(peer, flags, tuple(cpus))


@dataclass(frozen=True, slots=True)
class Clock:
    """Everything that is applied to a stamp of one buffer, in the order in which trace-cmd does it."""

    shift: TimeShift | None = None
    tsc: Tsc | None = None
    offset_ns: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether stamps are nanoseconds already."""
        return self.shift is None and self.tsc is None and self.offset_ns == 0

    def to_ns(self, stamps: Stamps, cpu: int) -> Times:
        """Give the times of one CPU's stamps. Units: nanoseconds."""
        if self.is_plain:
            return stamps.view(np.int64)
        if self.shift is not None and cpu < len(self.shift.cpus):
            stamps = _synchronise(
                stamps, self.shift.cpus[cpu], interpolate=bool(self.shift.flags & INTERPOLATE)
            )
        if self.tsc is not None and self.tsc.multiplier:
            stamps = _multiply_shift(stamps, self.tsc.multiplier, self.tsc.shift)
        moved: Stamps = stamps + np.uint64(self.offset_ns & ((1 << 64) - 1))
        return moved.view(np.int64)


def _synchronise(stamps: Stamps, cpu: Corrections, *, interpolate: bool) -> Stamps:
    samples = len(cpu.times)
    if samples == 0:
        return stamps
    if samples == 1:
        shifted: Stamps = stamps + cpu.offsets.view(np.uint64)[:1]
        return shifted
    times = stamps.view(np.int64)
    low = np.clip(np.searchsorted(cpu.times, times, side="right") - 1, 0, samples - 2)
    correction = cpu.offsets[low]
    if interpolate:
        span = cpu.times[low + 1] - cpu.times[low]
        rise = (times - cpu.times[low]) * (cpu.offsets[low + 1] - cpu.offsets[low])
        # C divides towards zero
        total = rise + span // 2
        with np.errstate(all="ignore"):  # of samples that lie
            correction = correction + np.where(total < 0, -(-total // span), total // span)
    scaled: Stamps = (stamps * cpu.scalings[low]) >> cpu.fractions[low]
    synchronised: Stamps = scaled + correction.view(np.uint64)
    return synchronised


def _multiply_shift(stamps: Stamps, multiplier: int, shift: int) -> Stamps:
    """Give `(stamp * multiplier) >> shift` in 96 bits, as the kernel's mul_u64_u32_shr."""
    factor, by = np.uint64(multiplier), np.uint64(shift & 31)
    low = (stamps & np.uint64(0xFFFFFFFF)) * factor
    high = (stamps >> np.uint64(32)) * factor
    if shift >= 32:
        return ((low >> np.uint64(32)) + high) >> np.uint64(min(shift - 32, 63))
    return (low >> by) + (high << (np.uint64(32) - by))
