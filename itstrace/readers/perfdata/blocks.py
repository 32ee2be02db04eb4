"""From a batch of samples to a block: all in order of time, and the fields of the events that were asked for."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from itstrace.readers import payloads as field_columns
from itstrace.readers.described import Choices
from itstrace.readers.payloads import Payloads
from itstrace.readers.perfdata.samples import NO_TRACEPOINT

if TYPE_CHECKING:
    from itstrace.readers.base import Block
    from itstrace.readers.described import Choice
    from itstrace.readers.perfdata.queue import Batch
    from itstrace.readers.perfdata.samples import Samples
    from itstrace.readers.tally import Tally


_CODES: Final = NO_TRACEPOINT << 1


class BlockDecoder:
    """Decodes batches one after the other; keeps the count of samples, which is the next one's rank."""

    def __init__(self, choices: list[Choice], tally: Tally, *, big_endian: bool) -> None:
        self._choices = Choices(choices, _CODES)
        self._tally = tally
        self._big_endian = big_endian
        self._floor = -1

    def decode(self, batch: Batch) -> Block:
        """Decode a batch; take what was found into the tally."""
        samples = _joined(batch.parts)
        by_cpu = np.argsort(samples.cpus, kind="stable")
        cpus = samples.cpus[by_cpu]
        times = samples.times[by_cpu]
        codes = samples.codes[by_cpu]
        if len(times) and int(times.min()) < self._floor:
            late = times < self._floor
            self._tally.disorder += int(np.count_nonzero(late))
            times = np.maximum(times, self._floor)
        rank_of_first = self._tally.records
        self._tally.note_span(times)
        bounds = [0, *(np.flatnonzero(np.diff(cpus)) + 1).tolist(), len(cpus)]
        for first, last in pairwise(bounds):
            if last > first:
                self._tally.count(codes[first:last], int(cpus[first]))
        if len(times):
            self._floor = int(times.max())
        if not self._choices:
            return {}
        order = np.argsort(times, kind="stable")  # as many nearly sorted runs as CPUs: a merge

        def decoded(choice: Choice, rank: npt.NDArray[np.int64]) -> pl.DataFrame:
            within = order[rank]
            index = by_cpu[within]
            payloads = Payloads(
                samples.raw, samples.starts[index], samples.sizes[index].astype(np.int64), self._big_endian
            )
            return pl.DataFrame(
                [
                    pl.Series("seq", (rank + rank_of_first).astype(np.uint64)),
                    pl.Series("time_ns", times[within]),
                    pl.Series("cpu", cpus[within]),
                    pl.Series("pid", samples.tids[index]),
                    *field_columns.columns(choice.event, choice.fields, payloads),
                ]
            )

        return self._choices.block(np.minimum(codes, _CODES - 1)[order], decoded)


def _joined(parts: list[Samples]) -> Samples:
    """Make one of many: those of one file share its bytes, those of unpacked pieces get theirs joined."""
    if len(parts) == 1:
        return parts[0]
    pieces: dict[int, npt.NDArray[np.uint8]] = {id(part.raw): part.raw for part in parts}
    raw, places = parts[0].raw, dict.fromkeys(pieces, 0)
    if len(pieces) > 1:
        raw = np.concatenate(list(pieces.values()))
        at = 0
        for key, piece in pieces.items():
            places[key] = at
            at += len(piece)
    first = parts[0]
    return type(first)(
        raw,
        np.concatenate([part.starts + places[id(part.raw)] for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.cpus for part in parts]),
        np.concatenate([part.tids for part in parts]),
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.records for part in parts]),
    )
