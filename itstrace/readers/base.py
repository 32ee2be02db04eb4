"""What every reader gives: a capture that describes itself and streams its events in blocks.

A reader turns bytes into events and knows nothing about interrupts. Formats are found from the content, see
`open_capture`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Protocol, Self

import polars as pl

from itstrace.errors import Damage, UsageError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class EventField:
    """One field of an event, as the kernel's format file declares it.

    Source: kernel/trace/trace_events.c:f_show
    """

    name: str
    c_type: str  # as printed: "unsigned long", "char[16]", "__data_loc char[]"
    offset_bytes: int
    size_bytes: int
    signed: bool
    #: dtype of the column that `Capture.blocks` gives for it.
    dtype: pl.DataType


@dataclass(frozen=True, slots=True)
class EventFormat:
    """One event type: its numeric id in this capture, its names, fields (without common_*) and print format."""

    event_id: int
    system: str
    name: str
    fields: tuple[EventField, ...]
    print_fmt: str

    @property
    def full_name(self) -> str:
        """`system:name`, the name by which the program speaks of an event; `name` where text does not tell the system."""
        return f"{self.system}:{self.name}" if self.system else self.name


@dataclass(frozen=True, slots=True)
class SeedFile:
    """A dump that comes with a capture and says what the tables held at `at` (as `--seed DUMP@T`; None: at its start)."""

    path: Path
    at: str | None
    #: what to call it; `path` may be temporary
    name: str


@dataclass(slots=True)
class CaptureInfo:
    """What a capture says about itself. Unknown is None. Times are of the capture's clock, in ns."""

    path: Path
    format: str  # "trace.dat v7 zstd", ...
    size_bytes: int
    kernel: str | None = None  # uname -r where it is known
    uname: str | None = None
    arch: str | None = None
    clock: str | None = None
    cpus: int = 0
    little_endian: bool = True
    long_size_bytes: int = 8
    page_size_bytes: int = 4096
    buffers: list[str] = field(default_factory=list)
    trace_id: int | None = None
    #: The model's profile of whatever was recorded, where it was no kernel: "qemu".
    model: str | None = None
    options: dict[str, str] = field(default_factory=dict)  # any other thing the file says, for `info`
    paths: list[Path] = field(default_factory=list)  # the files, where `path` is not the one file
    #: What was decided in reading it that the reader should know.
    notes: list[str] = field(default_factory=list)
    seeds: list[SeedFile] = field(default_factory=list)
    #: The file describes all events that the host had. Text tells of those that fired, and of no others.
    describes_events: bool = True
    #: The file tells where records were lost. perf script prints that only when asked to.
    tells_losses: bool = True
    #: Records name their task, without which what belongs together cannot be found.
    tells_tasks: bool = True


#: One block of a capture: for each event asked for, the block's records in order of time over all CPUs.
#: Columns: seq (UInt64), time_ns (Int64), cpu (UInt16), pid (Int32), then the event's fields.
#: `seq` orders all records of the whole capture: by time; ties by CPU, then by place in that CPU's buffer.
Block = dict[str, pl.DataFrame]

#: Columns that every frame of a block has, and the one that tasks' names are joined as.
RESERVED_COLUMNS = ("seq", "time_ns", "cpu", "pid", "comm")


def column_name(field_name: str) -> str:
    """Give the column of a field: its own name, or `field_NAME` where a frame has another column of that name."""
    return f"field_{field_name}" if field_name in RESERVED_COLUMNS else field_name


#: Asked once for every event type that a reader knows or meets: which fields to decode. None passes it over.
Selection = Callable[[EventFormat], tuple[EventField, ...] | None]

#: Which events to decode: by full name, with the names of their fields (None: all of them); or a `Selection`, for
#: a reader of text learns only while reading which events there are.
Wanted = Mapping[str, tuple[str, ...] | None] | Selection


def selection(wanted: Wanted, path: Path) -> Selection:
    """Make a `Selection` of either form; names that no event has are passed over.

    Raises: UsageError (from the selection) where an event has no field of a name asked for.
    """
    if callable(wanted):
        return wanted

    def choose(event: EventFormat) -> tuple[EventField, ...] | None:
        if event.full_name not in wanted:
            return None
        names = wanted[event.full_name]
        if names is None:
            return event.fields
        known = {field.name: field for field in event.fields}
        known |= {column_name(field.name): field for field in event.fields}
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{event.full_name} has no field {name!r} in {path}",
                    advice=f"its fields are {', '.join(known)}",
                )
        return tuple(known[name] for name in names)

    return choose


class Capture(Protocol):
    """An opened capture.

    Reading may be repeated; `gaps`, `damage` and `counts` are complete after one full reading.
    """

    @property
    def info(self) -> CaptureInfo:
        """What the capture says about itself."""
        ...

    @property
    def formats(self) -> Mapping[str, EventFormat]:
        """The event types that the capture describes, by full name (whether or not any was recorded).

        Text describes no event: there it is those that were met, and asking reads the capture through once.
        """
        ...

    @property
    def comms(self) -> Mapping[int, str]:
        """Task names by pid, as far as the capture holds them."""
        ...

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Stream the capture in blocks of bounded size, in order of time; every record falls in exactly one block."""
        ...

    def read(self, name: str, limit: int | None = None) -> pl.DataFrame:
        """All records of one event (`system:name`, or a bare name that only one system has), or the first `limit`.

        Shape: seq, time_ns, cpu, pid, comm, then the event's own fields, in order of time.
        Raises: UsageError where the capture has no such event, or several of that name.
        """
        return read_event(self, name, limit)

    def counts(self) -> pl.DataFrame:
        """Records per event and CPU. Shape: rows of COUNTS."""
        ...

    def span(self) -> tuple[int | None, int | None]:
        """Times of the first and the last record, in ns; None where there is none."""
        ...

    def gaps(self) -> pl.DataFrame:
        """Stretches in which records were lost. Shape: rows of GAPS."""
        ...

    def damage(self) -> list[Damage]:
        """Where the file is cut short or damaged."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...

    def __enter__(self) -> Self:
        """The capture itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Let go of the file."""
        self.close()


_SUGGESTED = 5


def find_event(formats: Mapping[str, EventFormat], name: str) -> str:
    """The full name of an event, given `system:name` or a bare name.

    Raises: UsageError where there is none, or several.
    """
    if name in formats:
        return name
    found = sorted(full for full in formats if full.rpartition(":")[2] == name)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name} is the name of several events", advice=" or ".join(found))
    near = get_close_matches(name, [*formats, *(full.rpartition(":")[2] for full in formats)], _SUGGESTED)
    raise UsageError(
        f"the capture describes no event {name}",
        advice=f"one like it: {', '.join(near)}" if near else "list them with `itstrace events CAPTURE`",
    )


def read_event(capture: Capture, name: str, limit: int | None = None) -> pl.DataFrame:
    """All records of one event of a capture, or the first `limit`. See `Capture.read`."""
    event = capture.formats[find_event(capture.formats, name)]
    frames: list[pl.DataFrame] = []
    rows = 0
    for block in capture.blocks({event.full_name: None}):
        frame = block.get(event.full_name)
        if frame is None:
            continue
        frames.append(frame)
        rows += frame.height
        if limit is not None and rows >= limit:
            break
    whole = pl.concat(frames) if frames else pl.DataFrame(schema=frame_schema(event))
    whole = whole if limit is None else whole.head(limit)
    comms = {pid: comm for pid, comm in capture.comms.items() if pid >= 0}
    comm = pl.col("pid").replace_strict(comms, default=None, return_dtype=pl.String)
    return whole.insert_column(whole.columns.index("pid") + 1, whole.select(comm.alias("comm"))["comm"])


#: The columns that every frame of a block begins with.
HEAD = {"seq": pl.UInt64(), "time_ns": pl.Int64(), "cpu": pl.UInt16(), "pid": pl.Int32()}


def frame_schema(event: EventFormat, fields: tuple[EventField, ...] | None = None) -> dict[str, pl.DataType]:
    """The columns of a block's frame of an event: the head, then its fields (all, or those chosen)."""
    chosen = event.fields if fields is None else fields
    return HEAD | {column_name(field.name): field.dtype for field in chosen}
