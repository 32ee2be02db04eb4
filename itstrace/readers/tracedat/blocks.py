"""From a batch of pages to a block: all headers, and the fields of the events that were asked for."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from itstrace.readers import payloads as field_columns
from itstrace.readers.described import Choices
from itstrace.readers.payloads import Payloads
from itstrace.readers.tracedat.pages import FOREVER
from itstrace.readers.tracedat.ring import Records, Words, decode

if TYPE_CHECKING:
    from itstrace.readers.base import Block
    from itstrace.readers.described import Choice
    from itstrace.readers.formats import CommonLayout
    from itstrace.readers.tracedat.tally import RingTally
    from itstrace.readers.tracedat.windows import Batch


_NO_SIZES = np.empty(0, np.int64)


class BlockDecoder:
    """Decodes batches one after the other; keeps the count of records, which is the next one's rank."""

    def __init__(
        self, choices: list[Choice], common: CommonLayout, tally: RingTally, *, big_endian: bool
    ) -> None:
        self._choices = Choices(choices, 1 << 16)
        self._common = common
        self._tally = tally
        self._big_endian = big_endian

    def decode(self, batch: Batch) -> Block:
        """Decode a batch; take what was found into the tally."""
        native = np.dtype(np.uint32)
        words: Words = batch.raw.view(">u4" if self._big_endian else "<u4").astype(native, copy=False)
        records = decode(
            words, batch.data_starts >> 2, batch.data_ends >> 2, batch.stamps, big_endian=self._big_endian
        )
        ends = np.cumsum(records.per_page)
        bounds = [0, *(int(ends[page - 1]) for page in batch.bounds[1:])]
        times = self._times(batch, records, bounds)
        self._tally.note_losses(batch, records, times, bounds)
        word, sizes, times, lengths = _within_span(batch, records, times, bounds)
        event_ids = self._event_ids(words, word, sizes)
        rank_of_first = self._tally.records
        self._tally.note_span(times)
        first = 0
        for stream, length in zip(batch.streams, lengths, strict=True):
            self._tally.count(event_ids[first : first + length], stream.cpu)
            first += length
        if not self._choices:
            return {}
        cpus = np.repeat(np.array([stream.cpu for stream in batch.streams], np.uint16), lengths)
        order = np.argsort(times, kind="stable")  # as many sorted runs as CPUs: a merge

        def decoded(choice: Choice, rank: npt.NDArray[np.int64]) -> pl.DataFrame:
            index = order[rank]
            # How long a record is matters to its fields alone; entries and exits, the most of all, have none.
            lengths_of = sizes[index].astype(np.int64) << 2 if choice.fields else _NO_SIZES
            payloads = Payloads(batch.raw, word[index] << 2, lengths_of, self._big_endian)
            return pl.DataFrame(
                [
                    pl.Series("seq", (rank + rank_of_first).astype(np.uint64)),
                    pl.Series("time_ns", times[index]),
                    pl.Series("cpu", cpus[index]),
                    pl.Series("pid", payloads.numbers(self._common.pid_offset, "i4")),
                    *field_columns.columns(choice.event, choice.fields, payloads),
                ]
            )

        return self._choices.block(event_ids[order], decoded)

    def _times(self, batch: Batch, records: Records, bounds: list[int]) -> npt.NDArray[np.int64]:
        """Convert stamps to times, and see to it that they never fall within a CPU."""
        parts = [slice(before, after) for before, after in pairwise(bounds)]
        times = records.stamp.view(np.int64)
        if not all(stream.clock.is_plain for stream in batch.streams):
            converted = [
                stream.clock.to_ns(records.stamp[part], stream.cpu)
                for stream, part in zip(batch.streams, parts, strict=True)
            ]
            times = np.concatenate(converted)
        if not len(times):
            return times
        falls = times[1:] < times[:-1]
        inner = np.array(bounds[1:-1], np.int64)
        falls[inner[(inner > 0) & (inner < len(times))] - 1] = False  # from one CPU to the next it may
        if not falls.any() and _in_bounds(batch, records, times):
            return times
        floor, ceiling = batch.floor_ns[records.page], batch.ceiling_ns[records.page]
        # Rare: a clock that was set back, or damage. The order in the buffer is the truth; the time follows
        # it.
        mended = np.clip(times, floor, ceiling)
        for part in parts:
            mended[part] = np.maximum.accumulate(mended[part])
        self._tally.disorder += int(np.count_nonzero((mended != times) & batch.fresh[records.page]))
        return mended

    def _event_ids(
        self, words: Words, word: npt.NDArray[np.int64], sizes: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.uint16]:
        """Give every record's event id; 0, which no event has, where the record is too short for one."""
        common = self._common
        at, within = divmod(common.type_offset, 4)
        shift = 32 - 8 * (within + common.type_bytes) if self._big_endian else 8 * within
        found = (words.take(word + at if at else word) >> np.uint32(shift)).astype(np.uint16)
        if common.type_bytes == 1:
            found &= np.uint16(0xFF)
        if len(sizes) and int(sizes.min()) * 4 < common.end:
            found[sizes < -(-common.end // 4)] = 0
        return found


def _in_bounds(batch: Batch, records: Records, times: npt.NDArray[np.int64]) -> bool:
    """Say whether every page's times lie within its bounds, given that they never fall: by its first and its last."""
    ends = np.cumsum(records.per_page)
    filled = np.flatnonzero(records.per_page)
    first, last = (ends - records.per_page)[filled], ends[filled] - 1
    return bool(
        np.all(times[first] >= batch.floor_ns[filled]) and np.all(times[last] <= batch.ceiling_ns[filled])
    )


def _within_span(
    batch: Batch, records: Records, times: npt.NDArray[np.int64], bounds: list[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.int64], list[int]]:
    """Give words, sizes and times of the records in the batch's span, and how many each stream has."""
    spans = []
    for i in range(len(batch.streams)):
        part = times[bounds[i] : bounds[i + 1]]
        first = int(np.searchsorted(part, batch.low_ns[i], side="left"))
        last = (
            len(part)
            if batch.high_ns[i] == FOREVER
            else int(np.searchsorted(part, batch.high_ns[i], side="left"))
        )
        spans.append(slice(bounds[i] + first, bounds[i] + max(first, last)))
    lengths = [span.stop - span.start for span in spans]
    if sum(lengths) == len(times):
        return records.word, records.words, times, lengths
    return (
        np.concatenate([records.word[span] for span in spans]),
        np.concatenate([records.words[span] for span in spans]),
        np.concatenate([times[span] for span in spans]),
        lengths,
    )
