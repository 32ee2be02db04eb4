"""What a replay gives: table history as intervals, and the state of every table at any time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from itstrace import tables
from itstrace.tables import Tables

if TYPE_CHECKING:
    from itstrace.gic.commands import Command
    from itstrace.model import effects as fx


@dataclass(frozen=True, slots=True)
class Note:
    """One effect of the model that a reader or a rule may want: what, when, in which VM, by which command.

    Of a command on a device or an event: `event_bits` of the device (None: not mapped, or not known), and whether
    each was mapped when the command came.
    """

    vm: int
    seq: int
    time_ns: int
    cpu: int
    pid: int
    command_seq: int | None
    user: bool
    effect: fx.Effect
    command: Command | None = None
    device_mapped: bool = False
    event_mapped: bool = False
    event_bits: int | None = None


@dataclass(slots=True)
class Restored:
    """What KVM read back of one ITS's tables (`restore_tables` at `seq`, over at `end_seq`), entry by entry.

    By ICID the target, by DeviceID (event bits, address of the ITT), by (DeviceID, EventID) (INTID, ICID). `told`: the
    entries were recorded.
    """

    vm: int
    its: int
    seq: int
    time_ns: int
    pid: int
    end_seq: int
    told: bool = False
    collections: dict[int, int | None] = field(default_factory=dict)
    devices: dict[int, tuple[int, int]] = field(default_factory=dict)
    events: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class History:
    """Table history. Frames have the schemas of their names.

    `notes`: the model's effects that are no table changes (faults, mistakes, ignored writes), in order.
    `written`: what images of guest memory say that the guest had configured.
    `cleared`, `pending_bits`: LPIs whose latch a command cleared, or the pending table set (vm, intid, seq,
    time_ns, vcpu, latched, by). By VM: `profiles`, the model's profile; `flush_keeps_latch`, whether that profile
    keeps an LPI's latch where a vCPU's LPIs are flushed; `vm_ends`, when its teardown begins (ns). `restored`: tables
    that KVM read back, in order.
    """

    verdicts: pl.DataFrame
    devices: pl.DataFrame
    collections: pl.DataFrame
    mappings: pl.DataFrame
    targets: pl.DataFrame
    configurations: pl.DataFrame
    written: pl.DataFrame
    #: What KVM must be seen to do because of each command and register write.
    expected: pl.DataFrame
    cleared: pl.DataFrame
    pending_bits: pl.DataFrame
    notes: list[Note]
    profiles: dict[int, str]
    flush_keeps_latch: dict[int, bool]
    vm_ends: dict[int, int | None]
    restored: list[Restored] = field(default_factory=list)

    def at(self, time_ns: int | None, vm: int | None = None) -> Tables:
        """Tables as of a time; None: the end, or just before each VM's teardown.

        `pending` of LPIs is left unknown.
        """
        devices, collections, mappings, targets, configs = (
            self._live(frame, time_ns, vm)
            for frame in (self.devices, self.collections, self.mappings, self.targets, self.configurations)
        )
        aims = collections.select("vm", "its", "icid", "target_vcpu")
        events = mappings.join(aims, on=["vm", "its", "icid"], how="left", maintain_order="left")
        lpis = (
            pl.concat([frame.select("vm", "intid") for frame in (mappings, targets, configs)])
            .drop_nulls()
            .unique()
        )
        mapped = mappings.select("vm", "intid", mapped=pl.lit(value=True)).unique()
        lpis = (
            lpis.join(configs.select("vm", "intid", "enabled", "priority"), on=["vm", "intid"], how="left")
            .join(targets.select("vm", "intid", "target_vcpu"), on=["vm", "intid"], how="left")
            .join(mapped, on=["vm", "intid"], how="left")
            .with_columns(pl.col("mapped").fill_null(value=False), pending=pl.lit(None, dtype=pl.Boolean))
        )
        return Tables(
            devices=_shape(devices, tables.DEVICE_ROWS, ["vm", "its", "device_id"]),
            collections=_shape(collections, tables.COLLECTION_ROWS, ["vm", "its", "icid"]),
            events=_shape(events, tables.EVENT_ROWS, ["vm", "its", "device_id", "event_id"]),
            lpis=_shape(lpis, tables.LPI_ROWS, ["vm", "intid"]),
        )

    def _live(self, frame: pl.DataFrame, time_ns: int | None, vm: int | None) -> pl.DataFrame:
        if vm is not None:
            frame = frame.filter(pl.col("vm") == vm)
        if time_ns is None:
            ends = {index: end - 1 for index, end in self.vm_ends.items() if end is not None}
            at = (
                pl.col("vm").replace_strict(ends, default=2**63 - 1, return_dtype=pl.Int64)
                if ends
                else pl.lit(2**63 - 1)
            )
        else:
            at = pl.lit(time_ns)
        begun = pl.col("from_ns").is_null() | (pl.col("from_ns") <= at)
        return frame.filter(begun & (pl.col("to_ns").is_null() | (pl.col("to_ns") > at)))


def _shape(frame: pl.DataFrame, schema: pl.Schema, order: list[str]) -> pl.DataFrame:
    return frame.select(schema.names()).cast(schema).sort(order)
