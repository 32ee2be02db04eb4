"""Observations to table history: every VM's commands through the model, and what it says kept as intervals.

Everything here runs per command or register write (thousands), never per interrupt. What the model must be
told and cannot work out - configuration bytes that KVM read, saved tables that it restored - comes from the
observations; what the commands make of it is the model's own word, never KVM's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace import schemas, tables
from itstrace.errors import UsageError
from itstrace.gic import tables as layout
from itstrace.gic.commands import Command, Opcode, decode, describe
from itstrace.gic.lpi import pending_bit
from itstrace.gic.registers import decode_gicr_pendbaser, decode_gits_baser
from itstrace.model import effects as fx
from itstrace.model.machine import Gic
from itstrace.model.profiles import PROFILES, Profile, profile_for_kernel
from itstrace.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from itstrace.observe import Observations
    from itstrace.seed import Seed

_ENTRY_BYTES = 8
_PAGE_ENTRIES = 65536 // _ENTRY_BYTES  # of one 64 KiB page of a two-level table


@dataclass(frozen=True, slots=True)
class Note:
    """One effect of the model that a reader or a rule may want: what, when, in which VM, by which command."""

    vm: int
    seq: int
    time_ns: int
    cpu: int
    pid: int
    command_seq: int | None
    user: bool
    effect: fx.Effect


@dataclass(slots=True)
class History:
    """Table history. Frames have the schemas of their names.

    `notes`: the model's effects that are no table changes (faults, mistakes, ignored writes), in order.
    `cleared`, `pending_bits`: LPIs whose latch a command cleared, or the pending table set (vm, intid, seq,
    time_ns, vcpu, latched, by). `profiles`: the model's profile by VM. `gics`: the model's state at the end,
    by VM.
    """

    verdicts: pl.DataFrame
    devices: pl.DataFrame
    collections: pl.DataFrame
    mappings: pl.DataFrame
    targets: pl.DataFrame
    configurations: pl.DataFrame
    cleared: pl.DataFrame
    pending_bits: pl.DataFrame
    notes: list[Note]
    profiles: dict[int, str]
    flush_keeps_latch: dict[int, bool]
    vm_ends: dict[int, int | None]

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


def replay(
    observations: Observations,
    *,
    kernel: str | None = None,
    profile: str | None = None,
    seed: Seed | None = None,
) -> History:
    """Step every VM's commands and register writes through the model.

    `kernel` is the capture's `uname -r`, from which the profile is chosen unless `profile` names one.
    Raises: UsageError for a profile that does not exist.
    """
    if profile is not None and profile not in PROFILES:
        raise UsageError(f"there is no model profile {profile!r}", advice=f"one of {', '.join(PROFILES)}")
    chosen = PROFILES[profile] if profile else profile_for_kernel(kernel or "")
    recorder = _Recorder()
    for row in observations.vms.iter_rows(named=True):
        _Replayer(observations, row, chosen, recorder, seed).run()
    return recorder.history(chosen, observations.vms)


# --- intervals


@dataclass(slots=True)
class _Open:
    """An interval that still holds: the values of its row so far."""

    key: tuple[Any, ...]
    values: tuple[Any, ...]
    from_seq: int | None
    from_ns: int | None
    set_by: int | None
    assumed: bool


@dataclass(slots=True)
class _Table:
    """One kind of interval frame in the making."""

    schema: pl.Schema
    width: int  # columns of the key
    open: dict[tuple[Any, ...], _Open] = field(default_factory=dict)
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def put(self, key: tuple[Any, ...], values: tuple[Any, ...], now: _Now, *, assumed: bool = False) -> None:
        """The entry holds these values from now on."""
        held = self.open.get(key)
        if held is not None and held.values == values and not held.assumed:
            return
        self.end(key, now)
        self.open[key] = _Open(
            key,
            values,
            None if assumed else now.seq,
            None if assumed else now.time_ns,
            None if assumed else now.command,
            assumed,
        )

    def end(self, key: tuple[Any, ...], now: _Now) -> None:
        """The entry is gone from now on."""
        held = self.open.pop(key, None)
        if held is not None and (held.from_seq is None or held.from_seq != now.seq):
            self._close(held, now.seq, now.time_ns, now.command)

    def _close(self, held: _Open, to_seq: int | None, to_ns: int | None, by: int | None) -> None:
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
        for held in self.open.values():
            self._close(held, None, None, None)
        self.open = {}
        frame = pl.DataFrame(self.rows, schema=self.schema, orient="row")
        return frame.sort(
            pl.col("from_seq").fill_null(0), *self.schema.names()[: self.width], maintain_order=True
        )


@dataclass(frozen=True, slots=True)
class _Now:
    seq: int
    time_ns: int
    cpu: int
    pid: int
    command: int | None = None
    user: bool = False


class _Recorder:
    """Frames in the making, over all VMs."""

    def __init__(self) -> None:
        self.devices = _Table(schemas.DEVICES, 3)
        self.collections = _Table(schemas.COLLECTIONS, 3)
        self.mappings = _Table(schemas.MAPPINGS, 4)
        self.targets = _Table(schemas.TARGETS, 2)
        self.configurations = _Table(schemas.CONFIGURATIONS, 2)
        self.verdicts: list[tuple[Any, ...]] = []
        self.notes: list[Note] = []
        self.latches: dict[str, list[tuple[Any, ...]]] = {"clear": [], "table": []}

    def latch(self, by: str, vm: int, intid: int, now: _Now, *, latched: bool) -> None:
        self.latches[by].append((vm, intid, now.seq, now.time_ns, None, latched, by))

    def history(self, profile: Profile, vms: pl.DataFrame) -> History:
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
            cleared=cleared,
            pending_bits=bits,
            notes=self.notes,
            profiles=dict.fromkeys(ids, profile.name),
            # Kernel: vgic.c:vgic_flush_pending_lpis clears pending_latch in 6.1.192 and 7.3.4, not in
            # 6.12.107.
            flush_keeps_latch=dict.fromkeys(ids, profile.name == "kvm-6.12"),
            vm_ends=dict(vms.select("vm", "end_ns").iter_rows()),
        )


# --- one VM


class _Replayer:
    """One VM's observations, in order, through one model."""

    def __init__(
        self,
        obs: Observations,
        vm_row: dict[str, Any],
        profile: Profile,
        recorder: _Recorder,
        seed: Seed | None,
    ) -> None:
        self.vm: int = vm_row["vm"]
        self.end_seq: int | None = vm_row["to_seq"]
        self.obs = obs
        self.rec = recorder
        self.seed = seed
        self.itss = obs.itss.filter(pl.col("vm") == self.vm)
        self.gic = Gic(profile, vcpus=self._vcpus() if vm_row["complete"] else None)
        for its, base, complete in self.itss.select("its", "base_gpa", "complete").iter_rows():
            self.gic.add_its(its, base, complete=complete)

    def _mine(self, frame: pl.DataFrame) -> pl.DataFrame:
        frame = frame.filter(pl.col("vm") == self.vm)
        return frame if self.end_seq is None else frame.filter(pl.col("seq") < self.end_seq)

    def _vcpus(self) -> list[int] | None:
        """All vCPUs, where the VMM was seen to set up their redistributors."""
        rows = self._mine(self.obs.redistributor_writes).filter("user")
        return sorted(rows["vcpu"].unique().drop_nulls().to_list()) or None

    def run(self) -> None:
        """Replay, the commands in the order in which their ITS took them, everything else by its place in the capture."""
        self._learn()
        inputs = sorted(self._inputs(), key=lambda item: item[0])
        for _, handler, row in inputs:
            handler(row)
        if self.end_seq is None:
            return
        # The teardown frees everything; "at the end" means just before.
        end = self.obs.vms.filter(pl.col("vm") == self.vm).row(0, named=True)
        now = _Now(self.end_seq, end["end_ns"], 0, 0)
        for table in (
            self.rec.devices,
            self.rec.collections,
            self.rec.mappings,
            self.rec.targets,
            self.rec.configurations,
        ):
            for key in [key for key in table.open if key[0] == self.vm]:
                table.end(key, now)

    def _inputs(self) -> Iterator[tuple[tuple[int, int], Any, dict[str, Any]]]:
        latest: dict[int, int] = {}
        for place, row in enumerate(self._mine(self.obs.commands).iter_rows(named=True)):
            # Along the queue's chain a command never comes before the one ahead of it, whatever its stamp
            # says.
            seq = latest[row["its"]] = max(row["seq"], latest.get(row["its"], 0))
            yield (seq, place), self._command, row
        for frame, handler in (
            (self.obs.register_writes, self._register),
            (self.obs.redistributor_writes, self._redistributor),
            (self.obs.configs, self._config),
            (self._resets(), self._reset),
            (self.obs.vm_events.filter(pl.col("what") == "restore_tables"), self._restore),
            (self.obs.vm_events.filter(pl.col("what").is_in(["enable_lpis", "flush_lpis"])), self._lpis),
            (self._pending_reads(), self._pending_read),
        ):
            for row in self._mine(frame).iter_rows(named=True):
                yield (row["seq"], 0), handler, row
        if self.seed is not None:
            at = self._seed_seq(self.seed)
            yield (at, -1), self._sow, {"seq": at}

    def _now(self, row: dict[str, Any], *, command: bool = False) -> _Now:
        return _Now(
            row["seq"],
            row["time_ns"],
            row["cpu"],
            row["pid"],
            row["seq"] if command else None,
            bool(row.get("user")),
        )

    # --- what each input does

    def _command(self, row: dict[str, Any]) -> None:
        now = self._now(row, command=True)
        its = row["its"]
        command = decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))
        if row["lost_before"]:
            self._forget(its, now)
        if not row["readable"]:
            self.gic.skip(its)
            self.rec.verdicts.append(
                (row["seq"], self.vm, its, "", "slot could not be read", "unreadable", None, None)
            )
            return
        event = self._event(its, command)
        effects = self.gic.step(its, command)
        self._record(effects, now)
        verdict, fault, detail = _verdict(effects)
        self.rec.verdicts.append(
            (
                row["seq"],
                self.vm,
                its,
                command.name or f"0x{command.opcode_number:02x}",
                describe(command),
                verdict,
                fault,
                detail,
            )
        )
        if (
            command.opcode == Opcode.CLEAR
            and verdict == "ok"
            and event is not None
            and event.intid is not None
        ):
            self.rec.latch("clear", self.vm, event.intid, now, latched=False)

    def _event(self, its: int, command: Command) -> Any:
        device = self.gic.its[its].devices.get(command.device_id if command.device_id is not None else -1)
        return None if device is None or command.event_id is None else device.events.get(command.event_id)

    def _register(self, row: dict[str, Any]) -> None:
        if row["its"] is not None:
            self._record(
                self.gic.write_its(row["its"], row["offset"], row["value"], row["size_bytes"]), self._now(row)
            )

    def _redistributor(self, row: dict[str, Any]) -> None:
        if row["vcpu"] is not None:
            effects = self.gic.write_redistributor(
                row["vcpu"], row["offset"], row["value"], row["size_bytes"]
            )
            self._record(effects, self._now(row))

    def _lpis(self, row: dict[str, Any]) -> None:
        """KVM enabled or flushed a vCPU's LPIs: what GICR_CTLR said, where its write was not recorded."""
        if row["vcpu"] is not None:
            self.gic.redistributor(row["vcpu"]).enable_lpis = row["what"] == "enable_lpis"

    def _config(self, row: dict[str, Any]) -> None:
        if row["result"] not in (0, None):
            return
        self.gic.configure(row["intid"], enabled=row["enabled"], priority=row["priority"])
        self.rec.configurations.put(
            (self.vm, row["intid"]), (row["enabled"], row["priority"]), self._now(row)
        )

    def _record(self, effects: Iterable[fx.Effect], now: _Now, *, assumed: bool = False) -> None:
        """Put the model's effects into the interval frames, and keep the others as notes."""
        rec, vm = self.rec, self.vm
        for effect in effects:
            match effect:
                case fx.DeviceMapped(its, device, bits, itt):
                    rec.devices.put((vm, its, device), (bits, itt), now, assumed=assumed)
                case fx.DeviceUnmapped(its, device):
                    rec.devices.end((vm, its, device), now)
                case fx.CollectionMapped(its, icid, vcpu) | fx.CollectionRetargeted(its, icid, _, vcpu):
                    rec.collections.put((vm, its, icid), (vcpu,), now, assumed=assumed)
                case fx.CollectionUnmapped(its, icid):
                    rec.collections.end((vm, its, icid), now)
                case fx.EventMapped(its, device, event, intid, icid):
                    rec.mappings.put((vm, its, device, event), (intid, icid), now, assumed=assumed)
                    target = self.gic.target_of(self.gic.lpis[intid])
                    if target is not None:
                        rec.targets.put((vm, intid), (target,), now, assumed=assumed)
                case fx.EventUnmapped(its, device, event):
                    rec.mappings.end((vm, its, device, event), now)
                case fx.EventMoved(its, device, event, intid, _, icid):
                    rec.mappings.put((vm, its, device, event), (intid, icid), now, assumed=assumed)
                case fx.EventOrphaned(its, device, event, intid):
                    rec.mappings.put((vm, its, device, event), (intid, None), now)
                    rec.notes.append(self._note(effect, now))
                case fx.LpiRetargeted(intid, _, vcpu):
                    rec.targets.put((vm, intid), (vcpu,), now, assumed=assumed)
                case fx.Assumed():
                    self._assume(effect, now)
                case fx.PendingSet() | fx.PendingCleared() | fx.PendingMoved() | fx.Resolved():
                    pass  # pending state is followed record by record, see lives.py
                case _:
                    rec.notes.append(self._note(effect, now))

    def _note(self, effect: fx.Effect, now: _Now) -> Note:
        return Note(self.vm, now.seq, now.time_ns, now.cpu, now.pid, now.command, now.user, effect)

    def _assume(self, effect: fx.Assumed, now: _Now) -> None:
        """An object first seen in use: it held before the capture began, with what the model now has of it."""
        its = self.gic.its[effect.its]
        if effect.what is fx.Assumption.DEVICE and effect.device_id is not None:
            device = its.devices.get(effect.device_id)
            values = (device.event_bits, device.itt_gpa) if device else (None, None)
            self.rec.devices.put((self.vm, effect.its, effect.device_id), values, now, assumed=True)
        elif effect.what is fx.Assumption.COLLECTION and effect.icid is not None:
            found = its.collections.get(effect.icid)
            self.rec.collections.put(
                (self.vm, effect.its, effect.icid), (found.target_vcpu if found else None,), now, assumed=True
            )
        elif (
            effect.what is fx.Assumption.EVENT
            and effect.device_id is not None
            and effect.event_id is not None
        ):
            self.rec.mappings.put(
                (self.vm, effect.its, effect.device_id, effect.event_id), (None, None), now, assumed=True
            )
        self.rec.notes.append(self._note(effect, now))

    def _forget(self, its_key: int, now: _Now) -> None:
        """Commands before this one were lost: what the tables hold may have changed unseen, and is assumed from here on."""
        its = self.gic.its[its_key]
        its.complete = False
        its.gone_devices.clear()
        its.gone_collections.clear()
        for device in its.devices.values():
            device.complete = False
            device.gone.clear()
        for table in (self.rec.devices, self.rec.collections, self.rec.mappings):
            for key, held in list(table.open.items()):
                if key[:2] == (self.vm, its_key):
                    table.end(key, now)
                    table.open[key] = _Open(key, held.values, now.seq, now.time_ns, None, assumed=True)
        for key, held in list(self.rec.targets.open.items()):
            if key[0] == self.vm:
                self.rec.targets.end(key, now)
                self.rec.targets.open[key] = _Open(key, held.values, now.seq, now.time_ns, None, assumed=True)

    # --- what the capture does not show being made

    def _learn(self) -> None:
        """Tables that were there before the capture, as far as their use tells: an event's first MSI names its LPI.

        Only of ITSs that are not known from their first command on, and only where no command touched the
        event before.
        """
        unknown = [key for key, its in self.gic.its.items() if not its.complete]
        if not unknown:
            return
        now = _Now(0, 0, 0, 0)
        touched = self._touched()
        self._learn_from_moves(unknown, touched, now)
        used = (
            self._mine(self.obs.injections)
            .filter((pl.col("result") == 0) & pl.col("its").is_in(unknown))
            .drop_nulls("intid")
        )
        first = used.sort("seq").unique(["its", "device_id", "event_id"], keep="first", maintain_order=True)
        for its, device, event, intid, seq in first.select(
            "its", "device_id", "event_id", "intid", "seq"
        ).iter_rows():
            if seq < touched.get((its, device, event), seq + 1) and seq < touched.get(
                (its, device, None), seq + 1
            ):
                self._assume_event(its, device, event, intid, now)
        moved = self._mine(self.obs.retargets).group_by("intid").agg(pl.col("seq").min())
        moved_at: dict[int, int] = dict(moved.iter_rows())
        queued = self._mine(self.obs.queueings).sort("seq").unique("intid", keep="first", maintain_order=True)
        for intid, vcpu, enabled, seq in queued.select("intid", "target_vcpu", "enabled", "seq").iter_rows():
            if seq < moved_at.get(intid, seq + 1):
                self._record(self.gic.restore_lpi(intid, target_vcpu=vcpu), now, assumed=True)
                self.gic.configure(intid, enabled=enabled)
                self.rec.configurations.put((self.vm, intid), (enabled, None), now, assumed=True)

    def _learn_from_moves(
        self, unknown: list[int], touched: dict[tuple[int, int, int | None], int], now: _Now
    ) -> None:
        """A MOVI that KVM carried out names the vCPU of its collection and the LPI of its event (update_affinity)."""
        moves = [
            (row, command)
            for row in self._mine(self.obs.commands)
            .filter(pl.col("its").is_in(unknown))
            .iter_rows(named=True)
            if (command := decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))).opcode
            in (Opcode.MOVI, Opcode.MAPC)
        ]
        seen = self._mine(self.obs.retargets)
        mapped: set[tuple[int, int | None]] = set()
        for row, command in moves:
            key = (row["its"], command.icid)
            if command.opcode == Opcode.MAPC:
                mapped.add(key)
                continue
            found = seen.filter(
                (pl.col("pid") == row["pid"])
                & (pl.col("seq") > row["seq"])
                & (pl.col("seq") < (row["end_seq"] or 2**63))
            )
            its, device, event = row["its"], command.device_id, command.event_id
            assert device is not None
            assert event is not None
            assert command.icid is not None
            if found.height != 1:
                continue
            vcpu, intid = found["vcpu"][0], found["intid"][0]
            if key not in mapped and vcpu is not None:
                mapped.add(key)
                self._record(self.gic.restore_collection(its, command.icid, vcpu), now, assumed=True)
            untouched = row["seq"] < min(touched.get((its, device, e), 2**63) for e in (event, None))
            if untouched and event not in getattr(self.gic.its[its].devices.get(device), "events", ()):
                self._assume_event(its, device, event, intid, now)

    def _assume_event(self, its: int, device: int, event: int, intid: int, now: _Now) -> None:
        known = device in self.gic.its[its].devices
        effects = self.gic.restore_event(its, device, event, intid, None)
        if not known:
            self.rec.devices.put((self.vm, its, device), (None, None), now, assumed=True)
        self._record(effects, now, assumed=True)

    def _touched(self) -> dict[tuple[int, int, int | None], int]:
        """When the first command mapped or unmapped each event, or (None) each whole device."""
        touched: dict[tuple[int, int, int | None], int] = {}
        for row in self._mine(self.obs.commands).iter_rows(named=True):
            command = decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))
            if (
                command.opcode in (Opcode.MAPTI, Opcode.MAPI, Opcode.DISCARD, Opcode.MAPD)
                and command.device_id is not None
            ):
                event = None if command.opcode == Opcode.MAPD else command.event_id
                touched.setdefault((row["its"], command.device_id, event), row["seq"])
        return touched

    def _resets(self) -> pl.DataFrame:
        """Tables freed by the VMM: KVM_DEV_ARM_ITS_CTRL_RESET.

        Frees of a command or a BASER write are not among them.
        """
        frees = self._mine(self.obs.allocations).filter(
            pl.col("op").is_in(["free_device", "free_collection"])
        )
        outside = frees.filter(~pl.col("pid").is_in(self.obs.vcpus["pid"].implode()))
        writes = self._mine(self.obs.register_writes).select("pid", "seq", write_seq="seq").sort("seq")
        outside = outside.sort("seq").join_asof(
            writes, on="seq", by="pid", strategy="backward", check_sortedness=False
        )
        # Within a BASER write the frees follow at once; a reset writes nothing before it frees.
        close = pl.col("write_seq").is_not_null() & (pl.col("seq") - pl.col("write_seq") < 64)
        first = outside.filter(~close).with_columns(
            gap=pl.col("seq").diff().over("pid").fill_null(2**62) > 1024
        )
        return first.filter("gap")

    def _reset(self, row: dict[str, Any]) -> None:
        for its in self.gic.its:
            self._record(self.gic.reset_its(its), self._now(row))

    # --- restore and seeds

    def _restore(self, row: dict[str, Any]) -> None:
        """Tables read back from guest memory after `restore_tables`, entry by entry, as KVM reads them.

        Kernel: vgic-its.c:vgic_its_restore_tables_v0 reads the collection table first, then the device table
            (through its first level where there is one), and each device's ITT.
        """
        if row["its"] is None:
            return
        its = self.gic.its[row["its"]]
        now = self._now(row)
        reads = self.obs.guest_reads.filter(
            (pl.col("pid") == row["pid"])
            & (pl.col("seq") > row["seq"])
            & (pl.col("seq") < self._restore_end(row))
            & (pl.col("size_bytes") == _ENTRY_BYTES)
        )
        if reads.is_empty():
            return
        device_table, collection_table = (its.baser.get(n) for n in (0, 1))
        if device_table is None or collection_table is None:
            return
        devices, collections = decode_gits_baser(device_table), decode_gits_baser(collection_table)
        level2: dict[int, int] = {}
        for gpa, value in reads.select("gpa", "value").iter_rows():
            if collections.table_gpa <= gpa < collections.table_gpa + collections.size_bytes:
                cte = layout.decode_cte(value)
                if cte.valid:
                    self._record(self.gic.restore_collection(row["its"], cte.icid, cte.rdbase), now)
                continue
            if devices.table_gpa <= gpa < devices.table_gpa + devices.size_bytes:
                index = (gpa - devices.table_gpa) // _ENTRY_BYTES
                if devices.indirect:
                    entry = layout.decode_level1(value)
                    its.l1_valid[index] = entry.valid
                    if entry.valid:
                        level2[entry.table_gpa] = index
                else:
                    self._restore_device(row["its"], index, value, now)
                continue
            page = gpa & ~0xFFFF
            if page in level2:
                self._restore_device(
                    row["its"], level2[page] * _PAGE_ENTRIES + (gpa - page) // _ENTRY_BYTES, value, now
                )
                continue
            for device in its.devices.values():
                if device.itt_gpa is not None and device.event_bits is not None:
                    offset = gpa - device.itt_gpa
                    if 0 <= offset < _ENTRY_BYTES << device.event_bits:
                        ite = layout.decode_ite(value)
                        if ite.valid:
                            event = offset // _ENTRY_BYTES
                            self._record(
                                self.gic.restore_event(
                                    row["its"], device.device_id, event, ite.intid, ite.icid
                                ),
                                now,
                            )
                            lpi = self.gic.lpis[ite.intid]
                            self.rec.targets.put((self.vm, ite.intid), (lpi.target_vcpu,), now)
                        break
        its.complete = True

    def _restore_device(self, its: int, device_id: int, value: int, now: _Now) -> None:
        dte = layout.decode_dte(value)
        if dte.valid:
            self._record(self.gic.restore_device(its, device_id, dte.itt_gpa, dte.event_bits), now)

    def _restore_end(self, row: dict[str, Any]) -> int:
        """The first record after a restore at which its task does something else."""
        ends = [
            frame.filter((pl.col("pid") == row["pid"]) & (pl.col("seq") > row["seq"]))["seq"].min()
            for frame in (
                self.obs.register_writes,
                self.obs.commands,
                self.obs.injections,
                self.obs.vm_events.filter(pl.col("what") != "restore_tables"),
            )
        ]
        return min((int(end) for end in ends if end is not None), default=2**63)  # type: ignore[arg-type]

    def _pending_reads(self) -> pl.DataFrame:
        """Bytes of pending tables that KVM read for an LPI just mapped, or for all LPIs of a vCPU just enabled."""
        return self.obs.guest_reads.filter((pl.col("size_bytes") == 1) & (pl.col("result") == 0))

    def _pending_read(self, row: dict[str, Any]) -> None:
        for vcpu, one in self.gic.redistributors.items():
            if one.pendbaser is None:
                continue
            offset = row["gpa"] - decode_gicr_pendbaser(one.pendbaser).pending_table_gpa
            if not 8192 // 8 <= offset < 65536 // 8:
                continue
            now = self._now(row)
            for intid in range(offset * 8, offset * 8 + 8):
                lpi = self.gic.lpis.get(intid)
                if lpi is not None and lpi.target_vcpu == vcpu and row["value"] >> pending_bit(intid)[1] & 1:
                    self.rec.latch("table", self.vm, intid, now, latched=True)

    def _seed_seq(self, seed: Seed) -> int:
        """The place of a seed among the records: before everything, or before the first record at or after its time."""
        if seed.at_ns is None:
            return 0
        frames = (
            self.obs.commands,
            self.obs.register_writes,
            self.obs.configs,
            self.obs.vm_events,
            self.obs.queueings,
        )
        later = [frame.filter(pl.col("time_ns") >= seed.at_ns)["seq"].min() for frame in frames]
        return min((int(seq) for seq in later if seq is not None), default=2**63)  # type: ignore[arg-type]

    def _sow(self, row: dict[str, Any]) -> None:
        """Take over a seed's tables: they are the kernel's own word as of that moment."""
        assert self.seed is not None
        seed, given = self.seed, self.seed.tables
        now = _Now(row["seq"], seed.at_ns or 0, 0, 0)
        for its in self.gic.its:
            self._sow_its(its, given, now)
        for lpi in _rows(given.lpis, self.vm, None):
            target = None if lpi["target_vcpu"] is None or lpi["target_vcpu"] < 0 else lpi["target_vcpu"]
            self.gic.restore_lpi(
                lpi["intid"], enabled=lpi["enabled"], priority=lpi["priority"], target_vcpu=target
            )
            self.rec.targets.put((self.vm, lpi["intid"]), (target,), now)
            self.rec.configurations.put((self.vm, lpi["intid"]), (lpi["enabled"], lpi["priority"]), now)
            if lpi["pending"] is not None:
                self.rec.latch("table", self.vm, lpi["intid"], now, latched=lpi["pending"])

    def _sow_its(self, key: int, given: Tables, now: _Now) -> None:
        for row in _rows(given.collections, self.vm, key):
            self._record(self.gic.restore_collection(key, row["icid"], row["target_vcpu"]), now)
        for row in _rows(given.devices, self.vm, key):
            self._record(
                self.gic.restore_device(key, row["device_id"], row["itt_gpa"], row["event_bits"]), now
            )
        for row in _rows(given.events, self.vm, key):
            valid = row["icid"] is not None
            effects = self.gic.restore_event(
                key, row["device_id"], row["event_id"], row["intid"], row["icid"], collection_valid=valid
            )
            self._record(effects, now)
        if given.devices is not None and given.collections is not None and given.events is not None:
            self.gic.its[key].complete = True


def _rows(frame: pl.DataFrame | None, vm: int, its: int | None) -> Iterator[dict[str, Any]]:
    """Rows of a seed that are of this VM and ITS; null in the seed means the only one."""
    if frame is None:
        return iter(())
    frame = frame.filter(pl.col("vm").fill_null(vm) == vm)
    if its is not None:
        frame = frame.filter(pl.col("its").fill_null(its) == its)
    return frame.iter_rows(named=True)


def _verdict(effects: list[fx.Effect]) -> tuple[str, str | None, str | None]:
    """(verdict, fault, detail) of one command, out of its effects: the gravest wins."""
    verdict, fault, detail = "ok", None, None
    for effect in effects:
        match effect:
            case fx.CommandFaulted(_, _, code, errno):
                return "fault", code.name if code is not None else f"errno {errno}", None
            case fx.UnknownCommand(_, _, gicv4):
                return "fault", "GICV4_COMMAND" if gicv4 else "UNKNOWN_COMMAND", None
            case fx.InjectionRefused(reason=reason, fault=code, errno=errno):
                return "fault", code.name if code is not None else f"errno {errno}", str(reason)
            case fx.CommandIgnored(_, _, reason):
                verdict, detail = "ignored", str(reason)
            case fx.Assumed(_, what) if verdict == "ok":
                verdict, detail = "assumed", str(what)
    return verdict, fault, detail
