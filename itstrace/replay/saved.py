"""Tables that are told as a whole: what KVM restored from guest memory, and what a seed says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.errors import UsageError
from itstrace.gic import tables as layout
from itstrace.gic.registers import decode_gits_baser
from itstrace.replay.intervals import Now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.observe import Observations
    from itstrace.replay.vm import VmReplay
    from itstrace.seed import Seed
    from itstrace.tables import Tables

_ENTRY_BYTES = 8
#: A VM's first record may come a little after its birth.
_EARLY_NS = 60_000_000_000
_PAGE_ENTRIES = 65536 // _ENTRY_BYTES  # of one 64 KiB page of a two-level table


def restore(vm: VmReplay, row: dict[str, Any]) -> None:
    """Tables read back from guest memory after `restore_tables`, entry by entry, as KVM reads them.

    Kernel: vgic-its.c:vgic_its_restore_tables_v0 reads the collection table first, then the device table
        (through its first level where there is one), and each device's ITT.
    """
    if row["its"] is None:
        return
    its = vm.gic.its[row["its"]]
    now = vm.now(row)
    reads = vm.obs.guest_reads.filter(
        (pl.col("pid") == row["pid"])
        & (pl.col("seq") > row["seq"])
        & (pl.col("seq") < _restore_end(vm, row))
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
                target = cte.target_vcpu
                effects = vm.gic.restore_collection(row["its"], cte.icid, target, placeholder=target is None)
                vm.record(effects, now)
            continue
        if devices.table_gpa <= gpa < devices.table_gpa + devices.size_bytes:
            index = (gpa - devices.table_gpa) // _ENTRY_BYTES
            if devices.indirect:
                entry = layout.decode_level1(value)
                its.l1_valid[index] = entry.valid
                if entry.valid:
                    level2[entry.table_gpa] = index
            else:
                _restore_device(vm, row["its"], index, value, now)
            continue
        page = gpa & ~0xFFFF
        if page in level2:
            _restore_device(
                vm, row["its"], level2[page] * _PAGE_ENTRIES + (gpa - page) // _ENTRY_BYTES, value, now
            )
            continue
        for device in its.devices.values():
            if device.itt_gpa is not None and device.event_bits is not None:
                offset = gpa - device.itt_gpa
                if 0 <= offset < _ENTRY_BYTES << device.event_bits:
                    ite = layout.decode_ite(value)
                    if ite.valid:
                        event = offset // _ENTRY_BYTES
                        vm.record(
                            vm.gic.restore_event(row["its"], device.device_id, event, ite.intid, ite.icid),
                            now,
                        )
                        lpi = vm.gic.lpis[ite.intid]
                        vm.rec.targets.put((vm.vm, ite.intid), (lpi.target_vcpu,), now)
                    break
    its.complete = True


def _restore_device(vm: VmReplay, its: int, device_id: int, value: int, now: Now) -> None:
    dte = layout.decode_dte(value)
    if dte.valid:
        vm.record(vm.gic.restore_device(its, device_id, dte.itt_gpa, dte.event_bits), now)


def _restore_end(vm: VmReplay, row: dict[str, Any]) -> int:
    """The first record after a restore at which its task does something else."""
    ends = [
        frame.filter((pl.col("pid") == row["pid"]) & (pl.col("seq") > row["seq"]))["seq"].min()
        for frame in (
            vm.obs.register_writes,
            vm.obs.commands,
            vm.obs.injections,
            vm.obs.vm_events.filter(pl.col("what") != "restore_tables"),
        )
    ]
    return min((int(end) for end in ends if end is not None), default=2**63)  # type: ignore[arg-type]


def seed_seq(vm: VmReplay, seed: Seed) -> int:
    """The place of a seed among the records: before everything, or before the first record at or after its time."""
    if seed.at_ns is None:
        return 0
    frames = (
        vm.obs.commands,
        vm.obs.register_writes,
        vm.obs.configs,
        vm.obs.vm_events,
        vm.obs.queueings,
    )
    later = [frame.filter(pl.col("time_ns") >= seed.at_ns)["seq"].min() for frame in frames]
    return min((int(seq) for seq in later if seq is not None), default=2**63)  # type: ignore[arg-type]


def sow(vm: VmReplay, seed: Seed, row: dict[str, Any]) -> None:
    """Take over a seed's tables: they are the kernel's own word as of that moment."""
    given = seed.tables
    now = Now(row["seq"], seed.at_ns or 0, 0, 0)
    for its, base_gpa in vm.itss.select("its", "base_gpa").iter_rows():
        if seed.base_gpa is None or base_gpa in (None, seed.base_gpa):
            _sow_its(vm, its, given, now)
            # A dump that leaves out what has no event cannot say what is not mapped.
            vm.gic.its[its].complete |= seed.whole
    for lpi in _rows(given.lpis, vm.vm, None):
        target = None if lpi["target_vcpu"] is None or lpi["target_vcpu"] < 0 else lpi["target_vcpu"]
        vm.gic.restore_lpi(lpi["intid"], enabled=lpi["enabled"], priority=lpi["priority"], target_vcpu=target)
        key = (vm.vm, lpi["intid"])
        if target is not None:
            vm.rec.targets.put(key, (target,), now)
        if lpi["enabled"] is not None:
            vm.rec.configurations.put(key, (lpi["enabled"], lpi["priority"]), now)
        if lpi["pending"] is not None:
            vm.rec.latch("table", vm.vm, lpi["intid"], now, latched=lpi["pending"])


def _sow_its(vm: VmReplay, key: int, given: Tables, now: Now) -> None:
    for row in _rows(given.collections, vm.vm, key):
        target = row["target_vcpu"]  # null: MAPTI named it and no MAPC has mapped it
        effects = vm.gic.restore_collection(key, row["icid"], target, placeholder=target is None)
        vm.record(effects, now)
    for row in _rows(given.devices, vm.vm, key):
        vm.record(vm.gic.restore_device(key, row["device_id"], row["itt_gpa"], row["event_bits"]), now)
    for row in _rows(given.events, vm.vm, key):
        valid = row["icid"] is not None
        effects = vm.gic.restore_event(
            key, row["device_id"], row["event_id"], row["intid"], row["icid"], collection_valid=valid
        )
        vm.record(effects, now)


def seeded_vm(obs: Observations, seed: Seed) -> int | None:
    """The VM that a seed is of: by its ITS's address and its lifetime, then by whose LPIs and targets it names.

    Raises: UsageError where several fit equally well.
    """
    fits: list[int] = []
    for vm, start_ns, end_ns in obs.vms.select("vm", "start_ns", "end_ns").iter_rows():
        bases = obs.itss.filter(pl.col("vm") == vm)["base_gpa"].to_list()
        placed = seed.base_gpa is None or seed.base_gpa in bases or None in bases
        alive = seed.at_ns is None or (
            (end_ns is None or seed.at_ns < end_ns) and (start_ns or 0) - _EARLY_NS <= seed.at_ns
        )
        if bases and placed and alive:
            fits.append(vm)
    if len(fits) <= 1:
        return fits[0] if fits else None
    lpis = seed.tables.lpis if seed.tables.lpis is not None else seed.tables.events
    assert lpis is not None
    used = obs.queueings.select("vm", "intid", "target_vcpu").unique()
    scores = {
        vm: used.filter(pl.col("vm") == vm).join(lpis, on=["intid", "target_vcpu"]).height for vm in fits
    }
    best = [vm for vm in fits if scores[vm] == max(scores.values())]
    if len(best) > 1:
        raise UsageError(
            f"the seed {seed.sources[0]} fits VMs {', '.join(str(vm) for vm in best)} alike",
            advice="give a vgic-its-state of another address, or an instant (DUMP@T) at which only one of them lived",
        )
    return best[0]


def _rows(frame: pl.DataFrame | None, vm: int, its: int | None) -> Iterator[dict[str, Any]]:
    """Rows of a seed that are of this VM and ITS; null in the seed means the only one."""
    if frame is None:
        return iter(())
    frame = frame.filter(pl.col("vm").fill_null(vm) == vm)
    if its is not None:
        frame = frame.filter(pl.col("its").fill_null(its) == its)
    return frame.iter_rows(named=True)
