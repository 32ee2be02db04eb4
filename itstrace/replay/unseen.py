"""Tables that were there before the capture began, as far as their use tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.gic.commands import Opcode, decode
from itstrace.observe.joins import after
from itstrace.replay.intervals import Now

if TYPE_CHECKING:
    from itstrace.replay.vm import VmReplay


def learn(
    vm: VmReplay,
) -> None:
    """Tables that were there before the capture, as far as their use tells: an event's first MSI names its LPI.

    Only of ITSs that are not known from their first command on, and only where no command touched the
    event before.
    """
    unknown = [key for key, its in vm.gic.its.items() if not its.complete]
    if not unknown:
        return
    now = Now(0, 0, 0, 0)
    touched = _touched(vm)
    _learn_from_moves(vm, unknown, touched, now)
    used = (
        vm.mine(vm.obs.injections)
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
            _assume_event(vm, (its, device, event), intid, now)
    moved = vm.mine(vm.obs.retargets).group_by("intid").agg(pl.col("seq").min())
    moved_at: dict[int, int] = dict(moved.iter_rows())
    queued = vm.mine(vm.obs.queueings).sort("seq").unique("intid", keep="first", maintain_order=True)
    for intid, vcpu, enabled, seq in queued.select("intid", "target_vcpu", "enabled", "seq").iter_rows():
        if seq < moved_at.get(intid, seq + 1):
            vm.record(vm.gic.restore_lpi(intid, target_vcpu=vcpu), now, assumed=True)
            vm.gic.configure(intid, enabled=enabled)
            vm.rec.configurations.put((vm.vm, intid), (enabled, None), now, assumed=True)


def carried_out(vm: VmReplay) -> dict[int, int]:
    """MOVIs that KVM was seen to carry out, by command, and the LPI of each: its collection is mapped, and its event."""
    commands = vm.mine(vm.obs.commands)
    movis = commands.filter((pl.col("dw0") & 0xFF) == int(Opcode.MOVI))
    return dict(_alone(vm, movis).filter("alone").select("seq", "intid").iter_rows())


def _alone(vm: VmReplay, commands: pl.DataFrame) -> pl.DataFrame:
    """Commands with the one call of update_affinity within each: `alone`, to `vcpu` if that is told, of `intid`.

    More than one call within a command is MOVALL or MAPC; none is a MOVI that failed.
    """
    seen = vm.mine(vm.obs.retargets)
    rows = after(commands, seen, named="seq", vcpu="vcpu", intid="intid")
    rows = rows.rename({"seq": "own"}).with_columns(seq=pl.col("named").fill_null(0))
    rows = after(rows, seen, again="seq").with_columns(seq=pl.col("own")).sort("own")
    end = pl.col("end_seq").fill_null(2**63)
    alone = (pl.col("named") < end) & (pl.col("again").is_null() | (pl.col("again") >= end))
    return rows.with_columns(alone=alone.fill_null(value=False))


def _learn_from_moves(
    vm: VmReplay, unknown: list[int], touched: dict[tuple[int, int, int | None], int], now: Now
) -> None:
    """A MOVI that KVM carried out names the vCPU of its collection and the LPI of its event (update_affinity)."""
    rows = _alone(vm, vm.mine(vm.obs.commands).filter(pl.col("its").is_in(unknown)))
    mapped: set[tuple[int, int | None]] = set()
    known: set[tuple[int, int, int]] = set()
    for row in rows.iter_rows(named=True):
        command = decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))
        its, device, event, icid = row["its"], command.device_id, command.event_id, command.icid
        if command.opcode == Opcode.MAPC:
            mapped.add((its, icid))
        if command.opcode != Opcode.MOVI or not row["alone"]:
            continue
        assert device is not None
        assert event is not None
        assert icid is not None
        if (its, icid) not in mapped:
            vm.proven_collections.add((its, icid))
        if (its, icid) not in mapped and row["vcpu"] is not None:
            mapped.add((its, icid))
            vm.record(vm.gic.restore_collection(its, icid, row["vcpu"]), now, assumed=True)
        untouched = row["seq"] < min(touched.get((its, device, e), 2**63) for e in (event, None))
        if untouched and (its, device, event) not in known:
            known.add((its, device, event))
            _assume_event(vm, (its, device, event), row["intid"], now)


def _assume_event(vm: VmReplay, key: tuple[int, int, int], intid: int, now: Now) -> None:
    """An event (ITS, device, event) translates to an LPI, and did so before the capture began."""
    its, device, event = key
    if event in getattr(vm.gic.its[its].devices.get(device), "events", ()):
        return
    known = device in vm.gic.its[its].devices
    effects = vm.gic.restore_event(its, device, event, intid, None)
    if not known:
        vm.rec.devices.put((vm.vm, its, device), (None, None), now, assumed=True)
    vm.record(effects, now, assumed=True)


def _touched(
    vm: VmReplay,
) -> dict[tuple[int, int, int | None], int]:
    """When the first command mapped or unmapped each event, or (None) each whole device."""
    touched: dict[tuple[int, int, int | None], int] = {}
    for row in vm.mine(vm.obs.commands).iter_rows(named=True):
        command = decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))
        if (
            command.opcode in (Opcode.MAPTI, Opcode.MAPI, Opcode.DISCARD, Opcode.MAPD)
            and command.device_id is not None
        ):
            event = None if command.opcode == Opcode.MAPD else command.event_id
            touched.setdefault((row["its"], command.device_id, event), row["seq"])
    return touched
