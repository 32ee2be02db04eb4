"""Several captures of one stretch of time as one `Capture`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import polars as pl

from itstrace.readers.base import Capture, CaptureInfo, selection
from itstrace.readers.merged.agree import agree
from itstrace.readers.merged.doubles import Doubles, find_doubles
from itstrace.readers.merged.events import Chooser, combine
from itstrace.readers.merged.holes import Stretch, holes
from itstrace.readers.merged.weave import weave
from itstrace.schemas import COUNTS, GAPS
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from itstrace.errors import Damage
    from itstrace.readers.base import Block, EventFormat, Wanted

_T = TypeVar("_T")
_STATISTICS = "cpu stats"
#: Events named one by one where records are left out.
_SHOWN = 6


class MergedCapture(Capture):
    """The records of several captures in one order of time, each record once.

    `seq` ranks the rows of one reading: it counts only the events that were asked for. A stretch in which no part
    recorded what another part shows elsewhere is among the `gaps`.
    """

    def __init__(self, parts: Sequence[Capture], path: Path | None = None) -> None:
        """Take over the parts. `path` is what to call the whole, else the names of the parts.

        Raises: UsageError where they are no parts of one capture.
        """
        assert len(parts) > 1
        self._parts = list(parts)
        self._path = Path(", ".join(str(part.info.path) for part in parts)) if path is None else path
        notes = agree(self._parts)
        self._events = combine([part.formats for part in self._parts])
        self._comms = {pid: comm for part in reversed(self._parts) for pid, comm in part.comms.items()}
        self._doubles: Doubles = find_doubles(self._parts, self._events)
        #: Systems whose events were asked for by the last reading.
        self._systems: set[str] = set()
        self._info = self._describe(notes + self._told_doubles())

    @property
    def info(self) -> CaptureInfo:
        """What the parts say about themselves, together."""
        return self._info

    @property
    def formats(self) -> Mapping[str, EventFormat]:
        """Every event that any part describes, with the fields that any part gives it."""
        return self._events.formats

    @property
    def comms(self) -> Mapping[int, str]:
        """Task names by pid; where parts differ, the first one's."""
        return self._comms

    def close(self) -> None:
        """Let go of all parts."""
        with ExitStack() as stack:
            for part in self._parts:
                stack.callback(part.close)

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Stream the events asked for, of all parts, in order of time.

        Raises: UsageError where an event has no field of a name asked for.
        """
        chooser = Chooser(self._events, selection(wanted, self._path))
        self._systems = {self._events.formats[name].system for name in chooser.chosen}
        return weave([self._of_part(i, part, chooser) for i, part in enumerate(self._parts)])

    def _of_part(self, index: int, part: Capture, chooser: Chooser) -> Iterator[Block]:
        """One part's blocks, in the words of the whole."""
        for own in part.blocks(chooser.of_part(index)):
            block: Block = {}
            for own_name, frame in own.items():
                name = chooser.rename(index, own_name)
                kept = chooser.conform(name, self._doubles.drop(index, name, frame))
                # One part may have two events that are one to the others: the same name, with a system and without.
                block[name] = pl.concat([block[name], kept]).sort("seq") if name in block else kept
            yield block

    def counts(self) -> pl.DataFrame:
        """Records per event and CPU, each once. Shape: rows of COUNTS."""
        frames = []
        for i, (part, names) in enumerate(zip(self._parts, self._events.names, strict=True)):
            out = self._doubles.left_out().filter(part=i).select("event", "cpu", out="records")
            frames.append(
                part.counts()
                .with_columns(pl.col("event").replace(names))
                .join(out, on=["event", "cpu"], how="left")
                .with_columns(pl.col("records") - pl.col("out").fill_null(0))
                .select(COUNTS.names())
            )
        whole = pl.concat(frames).group_by("event", "cpu").agg(pl.col("records").sum())
        return whole.filter(pl.col("records") > 0).select(COUNTS.names()).cast(COUNTS).sort("event", "cpu")

    def span(self) -> tuple[int | None, int | None]:
        """Times of the first and the last record of all parts, in ns."""
        spans = [part.span() for part in self._parts]
        return (
            min((start for start, _ in spans if start is not None), default=None),
            max((end for _, end in spans if end is not None), default=None),
        )

    def gaps(self) -> pl.DataFrame:
        """What each part lost, and stretches in which no part recorded what the last reading asked for.

        Shape: rows of GAPS
        """
        found = [pl.DataFrame(schema=GAPS)]
        for i, part in enumerate(self._parts):
            if self._kept(i):
                found.append(part.gaps())
        rows = {
            (cpu, from_ns, to_ns, None)
            for system in sorted(self._systems)
            for cpu, from_ns, to_ns in holes(self._stretches(system), self.span())
        }
        found.append(pl.DataFrame(sorted(rows), schema=GAPS, orient="row"))
        return pl.concat(found).sort("to_ns", "cpu")

    def damage(self) -> list[Damage]:
        """Where the files are cut short or damaged; each place names its file."""
        return [
            replace(place, problem=f"{part.info.path.name}: {place.problem}")
            for part in self._parts
            for place in part.damage()
        ]

    def _kept(self, index: int) -> bool:
        """Whether any record of a part counts."""
        out = int(self._doubles.groups.filter(part=index)["records"].sum())
        return int(self._parts[index].counts()["records"].sum()) > out

    def _stretches(self, system: str) -> list[Stretch]:
        """When which part recorded events of a system."""
        found = []
        for part, names in zip(self._parts, self._events.names, strict=True):
            counts = part.counts()
            events = {own for own, name in names.items() if self._events.formats[name].system == system}
            start_ns, end_ns = part.span()
            if start_ns is None or end_ns is None or not counts["event"].is_in(list(events)).any():
                continue
            cpus = counts["cpu"].unique().to_list()
            found.append(Stretch(start_ns, end_ns, int(counts["records"].sum()), cpus))
        return found

    # -- what the whole is -----------------------------------------------------------------------------------

    def _told_doubles(self) -> list[str]:
        """How many records are left out because another part has them too."""
        notes = []
        out = self._doubles.groups.group_by("part", "event").agg(pl.col("records").sum())
        for part, rows in sorted(out.partition_by("part", as_dict=True).items()):
            ordered = rows.sort("records", "event", descending=[True, False])
            named = [f"{count:,} of {event}" for _, event, count in ordered.head(_SHOWN).iter_rows()]
            more = [] if rows.height <= _SHOWN else [f"and of {rows.height - _SHOWN} more"]
            path = self._parts[int(str(part[0]))].info.path
            notes.append(
                f"{path.name}: {int(rows['records'].sum()):,} records left out that another capture has too "
                f"({', '.join(named + more)})"
            )
        return notes

    def _describe(self, notes: list[str]) -> CaptureInfo:
        infos = [part.info for part in self._parts]
        first = infos[0]
        options: dict[str, str] = {}
        for i, part in enumerate(self._parts):
            start_ns, end_ns = part.span()
            when = (
                "no records"
                if start_ns is None or end_ns is None
                else f"{seconds(start_ns)} to {seconds(end_ns)}"
            )
            options[f"capture {i + 1}"] = f"{part.info.path.name} ({part.info.format}), {when}"
        statistics = 0
        for i, info in enumerate(infos):
            for name, text in info.options.items():
                if name.startswith(_STATISTICS):
                    options[f"{_STATISTICS} {statistics}"] = text
                    statistics += 1
                else:
                    options[f"{name} of capture {i + 1}"] = text
        return CaptureInfo(
            path=self._path,
            format=f"{len(infos)} captures: " + " + ".join(info.format for info in infos),
            size_bytes=sum(info.size_bytes for info in infos),
            kernel=_first(info.kernel for info in infos),
            uname=_first(info.uname for info in infos),
            arch=_first(info.arch for info in infos),
            clock=_first(info.clock for info in infos),
            cpus=max(info.cpus for info in infos),
            little_endian=first.little_endian,
            long_size_bytes=first.long_size_bytes,
            page_size_bytes=first.page_size_bytes,
            buffers=[name for info in infos for name in info.buffers],
            trace_id=_first(info.trace_id for info in infos),
            options=options,
            paths=[path for info in infos for path in info.paths or [info.path]],
            seeds=[seed for info in infos for seed in info.seeds],
            notes=notes + [note for info in infos for note in info.notes],
            # What one part describes, all might have recorded: only where none does, nothing is known.
            describes_events=any(info.describes_events for info in infos),
            tells_losses=all(info.tells_losses for info in infos),
            tells_tasks=all(info.tells_tasks for info in infos),
        )


def _first(values: Iterator[_T | None]) -> _T | None:
    return next((value for value in values if value is not None), None)
