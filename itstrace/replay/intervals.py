"""Interval frames in the making: what an entry held, since when, set by which command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from itstrace import schemas
from itstrace.replay.history import History, Note, Restored

if TYPE_CHECKING:
    from itstrace.model.profiles import Profile


@dataclass(slots=True)
class Open:
    """An interval that still holds: the values of its row so far."""

    key: tuple[Any, ...]
    values: tuple[Any, ...]
    from_seq: int | None
    from_ns: int | None
    set_by: int | None
    assumed: bool


#: What the columns of interval frames can hold.
_LARGEST: dict[Any, int] = {
    pl.UInt8: 2**8 - 1,
    pl.UInt16: 2**16 - 1,
    pl.Int32: 2**31 - 1,
    pl.UInt32: 2**32 - 1,
}


@dataclass(slots=True)
class Table:
    """One kind of interval frame in the making."""

    schema: pl.Schema
    width: int  # columns of the key
    open: dict[tuple[Any, ...], Open] = field(default_factory=dict)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    _largest: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._largest = tuple(
            _LARGEST.get(dtype, 2**64 - 1) for dtype in list(self.schema.dtypes())[self.width :]
        )

    def put(self, key: tuple[Any, ...], values: tuple[Any, ...], now: Now, *, assumed: bool = False) -> None:
        """The entry holds these values from now on; one that cannot be (of a damaged table) is unknown."""
        values = tuple(
            None if value is not None and value > largest else value
            for value, largest in zip(values, self._largest, strict=False)
        )
        held = self.open.get(key)
        if held is not None and held.values == values and not held.assumed:
            return
        self.end(key, now)
        self.open[key] = Open(
            key,
            values,
            None if assumed else now.seq,
            None if assumed else now.time_ns,
            None if assumed else now.command,
            assumed,
        )

    def end(self, key: tuple[Any, ...], now: Now) -> None:
        """The entry is gone from now on."""
        held = self.open.pop(key, None)
        if held is not None and (held.from_seq is None or held.from_seq != now.seq):
            self._close(held, now.seq, now.time_ns, now.command)

    def _close(self, held: Open, to_seq: int | None, to_ns: int | None, by: int | None) -> None:
        self.rows.append(
            (
                *held.key,
                *held.values,
                held.from_seq,
                held.from_ns,
                to_seq,
                to_ns,
                held.set_by,
                by,
                held.assumed,
            )
        )

    def frame(self) -> pl.DataFrame:
        """All intervals, the ones still open included, in order of their begin."""
        for held in self.open.values():
            self._close(held, None, None, None)
        self.open = {}
        frame = pl.DataFrame(self.rows, schema=self.schema, orient="row")
        return frame.sort(
            pl.col("from_seq").fill_null(0), *self.schema.names()[: self.width], maintain_order=True
        )


class Now(NamedTuple):
    """Where and when something happened, and by which command."""

    seq: int
    time_ns: int
    cpu: int
    pid: int
    command: int | None = None
    user: bool = False


class Recorder:
    """Frames in the making, over all VMs."""

    def __init__(self) -> None:
        self.devices = Table(schemas.DEVICES, 3)
        self.collections = Table(schemas.COLLECTIONS, 3)
        self.mappings = Table(schemas.MAPPINGS, 4)
        self.targets = Table(schemas.TARGETS, 2)
        self.configurations = Table(schemas.CONFIGURATIONS, 2)
        self.verdicts: list[tuple[Any, ...]] = []
        self.expected: list[tuple[Any, ...]] = []
        self.notes: list[Note] = []
        self.restored: list[Restored] = []
        self.written: list[tuple[Any, ...]] = []
        self.latches: dict[str, list[tuple[Any, ...]]] = {"clear": [], "table": []}

    def latch(self, by: str, vm: int, intid: int, now: Now, *, latched: bool) -> None:
        """A command (`by` clear) or a pending table (`by` table) set an LPI's latch."""
        self.latches[by].append((vm, intid, now.seq, now.time_ns, None, latched, by))

    def history(self, profile: Profile, vms: pl.DataFrame) -> History:
        """Everything recorded, as frames."""
        latch_schema = {
            "vm": pl.UInt16,
            "intid": pl.UInt32,
            "seq": pl.UInt64,
            "time_ns": pl.Int64,
            "vcpu": pl.Int32,
            "latched": pl.Boolean,
            "by": pl.String,
        }
        cleared, bits = (
            pl.DataFrame(self.latches[k], schema=latch_schema, orient="row") for k in ("clear", "table")
        )
        ids = vms["vm"].to_list()
        return History(
            verdicts=pl.DataFrame(self.verdicts, schema=schemas.VERDICTS, orient="row"),
            devices=self.devices.frame(),
            collections=self.collections.frame(),
            mappings=self.mappings.frame(),
            targets=self.targets.frame(),
            configurations=self.configurations.frame(),
            written=pl.DataFrame(self.written, schema=schemas.WRITTEN, orient="row"),
            expected=pl.DataFrame(self.expected, schema=schemas.EXPECTED, orient="row").sort(
                "seq", maintain_order=True
            ),
            cleared=cleared,
            pending_bits=bits,
            notes=self.notes,
            profiles=dict.fromkeys(ids, profile.name),
            flush_keeps_latch=dict.fromkeys(ids, profile.flush_keeps_latch),
            vm_ends=dict(vms.select("vm", "end_ns").iter_rows()),
            restored=sorted(self.restored, key=lambda one: one.seq),
        )
