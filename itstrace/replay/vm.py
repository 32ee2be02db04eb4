"""One VM's observations, in order, through one model."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.gic.commands import Opcode, decode, describe
from itstrace.gic.lpi import pending_bit
from itstrace.gic.registers import decode_gicr_pendbaser
from itstrace.model import effects as fx
from itstrace.model.machine import Gic
from itstrace.replay import expected
from itstrace.replay.history import Note
from itstrace.replay.intervals import Now, Open, Recorder
from itstrace.replay.saved import image_seq, look, restore, seed_seq, sow
from itstrace.replay.unseen import carried_out, learn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from itstrace.model.profiles import Profile
    from itstrace.observe import Observations
    from itstrace.seed import GuestMemory, Seed


class VmReplay:
    """One VM's observations, in order, through one model."""

    def __init__(
        self,
        obs: Observations,
        vm_row: dict[str, Any],
        profile: Profile,
        recorder: Recorder,
        seed: Seed | None,
        *,
        images: Sequence[GuestMemory] = (),
    ) -> None:
        self.vm: int = vm_row["vm"]
        self.end_seq: int | None = vm_row["to_seq"]
        self.obs = obs
        self.rec = recorder
        #: What a note says of the command that is being stepped.
        self._context: dict[str, Any] = {}
        self.seed = seed
        self.images = images
        self.complete: bool = vm_row["complete"]
        #: Numbers that a record gives to a vCPU.
        self.known_vcpus: frozenset[int] = frozenset(
            obs.vcpus.filter(pl.col("vm") == self.vm)["vcpu"].to_list()
        )
        self.itss = obs.itss.filter(pl.col("vm") == self.vm)
        #: The largest LPI that KVM queued, and device that it knew: the tables have room for them.
        self.proven_intid: int = self.mine(obs.queueings)["intid"].max() or -1  # type: ignore[assignment]
        known = self.mine(obs.injections).filter(pl.col("result") == 0)["device_id"].max()
        self.proven_device: int = -1 if known is None else known  # type: ignore[assignment]
        #: Collections (ITS, ICID) to which a MOVI was seen to move an event, and that no MAPC touched since.
        self.proven_collections: set[tuple[int, int]] = set()
        #: Devices (ITS, id) of which an event was seen to be mapped since the capture began, or commands were lost.
        self.proven_devices: set[tuple[int, int]] = set()
        #: Where tables are not known: MOVIs that KVM was seen to carry out, and the LPI of each.
        self.carried_out: dict[int, int] = {}
        #: Entries (table, key) of which it is not known whether a command changed them: it may have failed.
        self.doubtful: set[tuple[str, tuple[int, ...]]] = set()
        self.gic = Gic(profile, vcpus=self._vcpus(complete=vm_row["complete"]))
        for its, base, complete in self.itss.select("its", "base_gpa", "complete").iter_rows():
            self.gic.add_its(its, base, complete=complete)

    def mine(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows of this VM, up to its teardown."""
        frame = frame.filter(pl.col("vm") == self.vm)
        return frame if self.end_seq is None else frame.filter(pl.col("seq") < self.end_seq)

    def _vcpus(self, *, complete: bool) -> list[int] | None:
        """All vCPUs, where the VMM was seen to set up their redistributors, or a limit of them is known."""
        limit = self.obs.vcpu_limits.get(self.vm)
        if limit is not None:
            return list(range(limit))
        if not complete:
            return None
        rows = self.mine(self.obs.redistributor_writes).filter("user")
        return sorted(rows["vcpu"].unique().drop_nulls().to_list()) or None

    def run(self) -> None:
        """Replay, the commands in the order in which their ITS took them, everything else by its place in the capture."""
        learn(self)
        if not self.itss["complete"].all() or self.obs.commands["lost_before"].any():
            self.carried_out = carried_out(self)
        inputs = sorted(self._inputs(), key=itemgetter(0))
        for _, handler, row in inputs:
            handler(row)
        if self.end_seq is None:
            return
        # The teardown frees everything; "at the end" means just before.
        end = self.obs.vms.filter(pl.col("vm") == self.vm).row(0, named=True)
        now = Now(self.end_seq, end["end_ns"], 0, 0)
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
        for place, row in enumerate(self.mine(self.obs.commands).iter_rows(named=True)):
            # Along the queue's chain a command never comes before the one ahead of it, whatever its stamp
            # says.
            seq = latest[row["its"]] = max(row["seq"], latest.get(row["its"], 0))
            yield (seq, place), self._command, row
        for frame, handler in (
            (self.obs.register_writes, self._register),
            (self.obs.redistributor_writes, self._redistributor),
            (self.obs.configs, self._config),
            (self._resets(), self._reset),
            (self.obs.vm_events.filter(pl.col("what") == "restore_tables"), partial(restore, self)),
            (self.obs.vm_events.filter(pl.col("what").is_in(["enable_lpis", "flush_lpis"])), self._lpis),
            (self.obs.vm_events.filter(pl.col("what").is_in(["invlpir", "invallr"])), self._invalidate),
            (self._pending_reads(), self._pending_read),
        ):
            for row in self.mine(frame).iter_rows(named=True):
                yield (row["seq"], 0), handler, row
        if self.seed is not None:
            at = seed_seq(self, self.seed.at_ns)
            yield (at, -1), partial(sow, self, self.seed), {"seq": at}
        for image in self.images:
            at = image_seq(self, image)
            yield (at, -1), partial(look, self, image), {"seq": at}

    def now(self, row: dict[str, Any], *, command: bool = False) -> Now:
        """Where and when a record stands, and whether it is a command."""
        return Now(
            row["seq"],
            row["time_ns"],
            row["cpu"],
            row["pid"],
            row["seq"] if command else None,
            bool(row.get("user")),
        )

    def _command(self, row: dict[str, Any]) -> None:
        now = self.now(row, command=True)
        its = row["its"]
        command = decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))
        if row["lost_before"]:
            self._forget(its, now)
        # The record says where the queue stands; the model counts on from there.
        if row["slot"] is not None:
            self.gic.its[its].creadr = row["slot"]
        if not row["readable"]:
            self.gic.skip(its)
            self.rec.verdicts.append(
                (row["seq"], self.vm, its, "", "slot could not be read", "unreadable", None, None)
            )
            return
        device = None if command.device_id is None else self.gic.its[its].devices.get(command.device_id)
        event = None if device is None or command.event_id is None else device.events.get(command.event_id)
        was = expected.before(self, its, command)
        effects = self.gic.step(its, command)
        self._context = {
            "command": command,
            "device_mapped": device is not None,
            "event_mapped": event is not None,
            "event_bits": None if device is None else device.event_bits,
        }
        self.record(effects, now)
        self._context = {}
        verdict, fault, detail = _verdict(effects)
        self._expect(expected.of_command(self, was, effects, (verdict, fault, detail)), now)
        expected.settle(self, was, effects, verdict)
        if row["seq"] in self.carried_out:
            expected.prove(self, was, self.carried_out[row["seq"]])
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

    def _register(self, row: dict[str, Any]) -> None:
        if row["its"] is not None:
            effects = self.gic.write_its(row["its"], row["offset"], row["value"], row["size_bytes"])
            self.record(effects, self.now(row))
            self._expect(expected.of_others(self, effects), self.now(row))

    def _redistributor(self, row: dict[str, Any]) -> None:
        if row["vcpu"] is not None:
            effects = self.gic.write_redistributor(
                row["vcpu"], row["offset"], row["value"], row["size_bytes"]
            )
            self.record(effects, self.now(row))
            self._expect(expected.of_others(self, effects), self.now(row))

    def _lpis(self, row: dict[str, Any]) -> None:
        """KVM enabled or flushed a vCPU's LPIs: what GICR_CTLR said, where its write was not recorded."""
        if row["vcpu"] is not None:
            self.gic.redistributor(row["vcpu"]).enable_lpis = row["what"] == "enable_lpis"

    def _invalidate(self, row: dict[str, Any]) -> None:
        """GICR_INVLPIR or INVALLR: the property bytes of one LPI, or of all of a vCPU, must be read now."""
        effects: list[fx.Effect] = []
        if row["what"] == "invallr":
            effects = self.gic.read_configurations(row["vcpu"])
        elif row["intid"] is not None:
            effects = [fx.ConfigRead(row["intid"])]
        self.record(effects, self.now(row))
        self._expect(expected.of_invalidation(self, row["what"], row["intid"], effects), self.now(row))

    def _config(self, row: dict[str, Any]) -> None:
        if row["result"] not in (0, None):
            return
        self.gic.configure(row["intid"], enabled=row["enabled"], priority=row["priority"])
        self.rec.configurations.put((self.vm, row["intid"]), (row["enabled"], row["priority"]), self.now(row))

    def record(self, effects: Iterable[fx.Effect], now: Now, *, assumed: bool = False) -> None:
        """Put the model's effects into the interval frames, and keep the others as notes."""
        rec, vm = self.rec, self.vm
        for effect in effects:
            match effect:
                case fx.DeviceMapped(its, device, bits, itt):
                    rec.devices.put((vm, its, device), (bits, itt), now, assumed=assumed)
                case fx.DeviceUnmapped(its, device):
                    rec.devices.end((vm, its, device), now)
                    self.proven_devices.discard((its, device))
                case fx.CollectionMapped(its, icid, vcpu) | fx.CollectionRetargeted(its, icid, _, vcpu):
                    rec.collections.put((vm, its, icid), (vcpu,), now, assumed=assumed)
                case fx.CollectionNamed(its, icid):
                    rec.collections.put((vm, its, icid), (None,), now, assumed=assumed)
                case fx.CollectionUnmapped(its, icid):
                    rec.collections.end((vm, its, icid), now)
                case fx.EventMapped(its, device, event, intid, icid):
                    rec.mappings.put((vm, its, device, event), (intid, icid), now, assumed=assumed)
                    target = self.gic.target_of(self.gic.lpis[intid])
                    if target is not None:
                        rec.targets.put((vm, intid), (target,), now, assumed=assumed)
                    else:
                        # Its collection's vCPU is not known (mapped before the capture, or not yet).
                        rec.targets.end((vm, intid), now)
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

    def _expect(self, rows: Iterable[expected.Row], now: Now) -> None:
        """Keep what KVM must be seen to do because of a record."""
        self.rec.expected += [(now.seq, now.command, self.vm, *row) for row in rows]

    def _note(self, effect: fx.Effect, now: Now) -> Note:
        return Note(
            self.vm, now.seq, now.time_ns, now.cpu, now.pid, now.command, now.user, effect, **self._context
        )

    def _assume(self, effect: fx.Assumed, now: Now) -> None:
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

    def _forget(self, its_key: int, now: Now) -> None:
        """Commands before this one were lost: what the tables hold may have changed unseen, and is assumed from here on."""
        its = self.gic.its[its_key]
        its.complete = False
        its.gone_devices.clear()
        its.gone_collections.clear()
        expected.forget(self, its_key)
        for device in its.devices.values():
            device.complete = False
            device.gone.clear()
        for table in (self.rec.devices, self.rec.collections, self.rec.mappings):
            for key, held in list(table.open.items()):
                if key[:2] == (self.vm, its_key):
                    table.end(key, now)
                    table.open[key] = Open(key, held.values, now.seq, now.time_ns, None, assumed=True)
        for key, held in list(self.rec.targets.open.items()):
            if key[0] == self.vm:
                self.rec.targets.end(key, now)
                self.rec.targets.open[key] = Open(key, held.values, now.seq, now.time_ns, None, assumed=True)

    def _resets(self) -> pl.DataFrame:
        """Tables freed by the VMM: KVM_DEV_ARM_ITS_CTRL_RESET.

        Frees of a command or a BASER write are not among them.
        """
        frees = self.mine(self.obs.allocations).filter(pl.col("op").is_in(["free_device", "free_collection"]))
        outside = frees.filter(~pl.col("pid").is_in(self.obs.vcpus["pid"].implode()))
        writes = self.mine(self.obs.register_writes).select("pid", "seq", write_seq="seq").sort("seq")
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
            self.record(self.gic.reset_its(its), self.now(row))
            expected.forget(self, its)

    # --- restore and seeds

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
            now = self.now(row)
            for intid in range(offset * 8, offset * 8 + 8):
                lpi = self.gic.lpis.get(intid)
                if lpi is not None and lpi.target_vcpu == vcpu and row["value"] >> pending_bit(intid)[1] & 1:
                    self.rec.latch("table", self.vm, intid, now, latched=True)


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
