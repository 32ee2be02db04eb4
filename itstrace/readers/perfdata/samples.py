"""From records to samples: whose each is, when and where it was taken, and where its trace record lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from itstrace.readers.payloads import Payloads
from itstrace.readers.perfdata.contents import Record

if TYPE_CHECKING:
    from itstrace.readers.formats import CommonLayout
    from itstrace.readers.payloads import Bytes, Offsets
    from itstrace.readers.perfdata.attributes import Attribute, Layout
    from itstrace.readers.perfdata.walk import Chain
    from itstrace.readers.tally import Tally

#: Samples of what is no tracepoint are counted as this and the place of their attribute.
NO_TRACEPOINT: Final = 1 << 16
#: The CPU column is 16 bits wide.
_MAX_CPU: Final = (1 << 16) - 1
MAX_TIME: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Samples:
    """Some samples in the order of the file; `starts` and `sizes` are of their trace records within `raw`."""

    raw: Bytes
    starts: Offsets
    sizes: npt.NDArray[np.uint32]
    times: npt.NDArray[np.int64]
    cpus: npt.NDArray[np.uint16]
    tids: npt.NDArray[np.int32]
    codes: npt.NDArray[np.uint32]
    #: where their records begin
    records: Offsets

    def __len__(self) -> int:
        return len(self.times)

    def part(self, index: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Samples:
        """Give some of them."""
        return Samples(
            self.raw,
            self.starts[index],
            self.sizes[index],
            self.times[index],
            self.cpus[index],
            self.tids[index],
            self.codes[index],
            self.records[index],
        )


class SampleDecoder:
    """Decodes the samples among records, by the attributes of the file."""

    def __init__(
        self, attributes: list[Attribute], common: CommonLayout, tally: Tally, *, big_endian: bool
    ) -> None:
        self._attributes = attributes
        self._common = common
        self._tally = tally
        self._big_endian = big_endian
        sampled = [i for i, each in enumerate(attributes) if not each.is_dummy] or [0]
        self._first = sampled[0]
        first = attributes[self._first]
        #: every sample is laid out alike and is a trace record, which says itself of which event it is
        self._alike = first.layout.raw and all(
            attributes[i].is_tracepoint and attributes[i].layout == first.layout for i in sampled
        )
        #: of each attribute the first one whose samples are decoded as its own are: all tracepoints of one layout alike
        kinds: dict[tuple[Layout, int | None], int] = {}
        self._like = np.array(
            [
                kinds.setdefault((each.layout, None if each.is_tracepoint else i), i)
                for i, each in enumerate(attributes)
            ]
        )
        ids = [(id_, i) for i, each in enumerate(attributes) for id_ in each.ids]
        ids.sort()
        self._ids = np.array([id_ for id_, _ in ids], np.uint64)
        self._owners = np.array([i for _, i in ids], np.int64)
        self._strangers = self._broken = self._unread = 0

    def decode(self, chain: Chain) -> Samples:
        """Give the samples among some records; broken ones are left out, and counted."""
        chosen = np.flatnonzero(chain.types == Record.SAMPLE)
        starts, sizes = chain.starts[chosen], chain.sizes[chosen]
        if self._alike or len(self._attributes) == 1:
            return self._of_layout(self._first, chain.raw, starts, sizes)
        owners = self._owners_of(chain.raw, starts, sizes)
        parts = [
            self._of_layout(i, chain.raw, starts[owners == i], sizes[owners == i])
            for i in np.unique(owners[owners >= 0]).tolist()
        ]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return self._of_layout(0, chain.raw, starts[:0], sizes[:0])
        order = np.argsort(np.concatenate([part.records for part in parts]), kind="stable")
        return Samples(
            chain.raw,
            np.concatenate([part.starts for part in parts])[order],
            np.concatenate([part.sizes for part in parts])[order],
            np.concatenate([part.times for part in parts])[order],
            np.concatenate([part.cpus for part in parts])[order],
            np.concatenate([part.tids for part in parts])[order],
            np.concatenate([part.codes for part in parts])[order],
            np.concatenate([part.records for part in parts])[order],
        )

    def finish(self) -> None:
        """Tell what was left out."""
        for count, what in (
            (
                self._broken,
                "samples are shorter than what they should hold, or have an impossible time or CPU",
            ),
            (self._strangers, "samples have an id that no event of the file has"),
            (self._unread, "samples of events recorded without a time (perf record -T adds it)"),
        ):
            if count:
                self._tally.bad(None, None, f"{count} {what}; they are left out")

    def _owners_of(self, raw: Bytes, starts: Offsets, sizes: Offsets) -> npt.NDArray[np.int64]:
        """Give the attribute of every sample; -1 where its id is unknown."""
        places = {each.layout.id_at for each in self._attributes}
        place = next(iter(places))
        if len(places) > 1 or place is None or not len(self._ids):
            # Source: tools/perf/util/evlist.c:evlist__event2evsel: without ids all are the first event's
            return np.zeros(len(starts), np.int64)
        able = sizes >= place + 8
        self._broken += int(np.count_nonzero(~able))
        ids = np.zeros(len(starts), np.uint64)
        ids[able] = Payloads(raw, starts[able], sizes[able], self._big_endian).numbers(place, "u8")
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        known = able & (self._ids[at] == ids)
        self._strangers += int(np.count_nonzero(able & ~known))
        return np.where(known, self._like[self._owners[at]], -1)

    def _of_layout(self, owner: int, raw: Bytes, starts: Offsets, sizes: Offsets) -> Samples:
        """Decode samples of one attribute."""
        attribute = self._attributes[owner]
        layout = attribute.layout
        if layout.time_at is None:
            self._unread += len(starts)
            starts, sizes = starts[:0], sizes[:0]
        needed = layout.fixed_end + (4 if layout.raw else 0)
        if len(sizes) and int(sizes.min()) < needed:
            starts, sizes = self._whole(starts, sizes, sizes >= needed)
        records = Payloads(raw, starts, sizes, self._big_endian)
        times = np.zeros(len(starts), np.uint64)
        if layout.time_at is not None:
            times = records.numbers(layout.time_at, "u8").view(np.uint64)
        cpus = np.zeros(len(starts), np.uint32)
        if layout.cpu_at is not None:
            cpus = records.numbers(layout.cpu_at, "u4").view(np.uint32)
        tids = np.full(len(starts), -1, np.int32)
        if layout.tid_at is not None:
            tids = records.numbers(layout.tid_at + 4, "i4").view(np.int32)
        begins, lengths, good = self._raw_data(layout, records)
        good &= (times <= MAX_TIME) & (cpus <= _MAX_CPU)
        codes = np.full(len(starts), NO_TRACEPOINT + owner, np.uint32)
        if attribute.is_tracepoint and layout.raw:
            good &= lengths >= self._common.end
            able = begins if good.all() else np.where(good, begins, 0)
            payloads = Payloads(raw, able, lengths, self._big_endian)
            if len(able):
                codes = payloads.numbers(self._common.type_offset, f"u{self._common.type_bytes}").astype(
                    np.uint32
                )
                if layout.tid_at is None:
                    tids = payloads.numbers(self._common.pid_offset, "i4").view(np.int32)
        samples = Samples(
            raw,
            begins,
            lengths.astype(np.uint32),
            times.view(np.int64),
            cpus.astype(np.uint16),
            tids,
            codes,
            starts,
        )
        if good.all():
            return samples
        self._broken += int(np.count_nonzero(~good))
        return samples.part(good)

    def _whole(self, starts: Offsets, sizes: Offsets, good: npt.NDArray[np.bool_]) -> tuple[Offsets, Offsets]:
        self._broken += int(np.count_nonzero(~good))
        return starts[good], sizes[good]

    def _raw_data(self, layout: Layout, records: Payloads) -> tuple[Offsets, Offsets, npt.NDArray[np.bool_]]:
        """Find the raw data behind what varies in size: where it begins, how long it is, and whether it is whole."""
        good = np.ones(len(records), np.bool_)
        if not layout.raw:
            return records.starts, np.zeros(len(records), np.int64), good
        if not (layout.read_head_words or layout.callchain):
            lengths = records.numbers(layout.fixed_end, "u4").astype(np.int64)
            begins = records.starts + (layout.fixed_end + 4)
            good = lengths <= records.sizes - (layout.fixed_end + 4)
            return begins, lengths, good
        ends = records.starts + records.sizes
        at = records.starts + layout.fixed_end
        if layout.read_group:
            count = self._count_at(records, at, ends, good)
            at = at + 8 * layout.read_head_words + 8 * layout.read_entry_words * count
        else:
            at = at + 8 * layout.read_head_words
        if layout.callchain:
            count = self._count_at(records, at, ends, good)
            at = at + 8 + 8 * count
        good &= at + 4 <= ends
        safe = np.where(good, at, records.starts)
        lengths = records.numbers(0, "u4", safe).astype(np.int64)
        good &= at + 4 + lengths <= ends
        return at + 4, lengths, good

    @staticmethod
    def _count_at(records: Payloads, at: Offsets, ends: Offsets, good: npt.NDArray[np.bool_]) -> Offsets:
        """Give the number of entries that follow, at most as many as the record has room for."""
        good &= at + 8 <= ends
        count = records.numbers(0, "u8", np.where(good, at, records.starts)).view(np.uint64)
        good &= count <= 1 << 13  # 64 KiB of words
        return np.where(good, count, 0).astype(np.int64)
