"""Tables that are told as a whole: what KVM restored from guest memory, and what a seed says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.errors import UsageError
from itstrace.gic import tables as layout
from itstrace.gic.registers import GICR_PROPBASER, decode_gits_baser
from itstrace.replay.history import Restored
from itstrace.replay.intervals import Now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.observe import Observations
    from itstrace.replay.vm import VmReplay
    from itstrace.seed import GuestMemory, Seed
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
    end = _restore_end(vm, row)
    found = Restored(vm.vm, row["its"], row["seq"], row["time_ns"], row["pid"], end)
    vm.rec.restored.append(found)
    reads = vm.obs.guest_reads.filter(
        (pl.col("pid") == row["pid"])
        & (pl.col("seq") > row["seq"])
        & (pl.col("seq") < end)
        & (pl.col("size_bytes") == _ENTRY_BYTES)
    )
    if reads.is_empty():
        return
    device_table, collection_table = (its.baser.get(n) for n in (0, 1))
    if device_table is None or collection_table is None:
        return
    devices, collections = decode_gits_baser(device_table), decode_gits_baser(collection_table)
    found.told = True
    level2: dict[int, int] = {}
    for gpa, value in reads.select("gpa", "value").iter_rows():
        if collections.table_gpa <= gpa < collections.table_gpa + collections.size_bytes:
            cte = layout.decode_cte(value)
            if cte.valid:
                # Without a target: a collection that nothing has mapped yet.
                target = found.collections[cte.icid] = cte.target_vcpu
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
                _restore_device(vm, found, index, value, now)
            continue
        page = gpa & ~0xFFFF
        if page in level2:
            index = level2[page] * _PAGE_ENTRIES + (gpa - page) // _ENTRY_BYTES
            _restore_device(vm, found, index, value, now)
            continue
        for device in its.devices.values():
            if device.itt_gpa is not None and device.event_bits is not None:
                offset = gpa - device.itt_gpa
                if 0 <= offset < _ENTRY_BYTES << device.event_bits:
                    ite = layout.decode_ite(value)
                    if ite.valid:
                        event = offset // _ENTRY_BYTES
                        found.events[device.device_id, event] = (ite.intid, ite.icid)
                        vm.record(
                            vm.gic.restore_event(row["its"], device.device_id, event, ite.intid, ite.icid),
                            now,
                        )
                        lpi = vm.gic.lpis[ite.intid]
                        vm.rec.targets.put((vm.vm, ite.intid), (lpi.target_vcpu,), now)
                    break
    its.complete = True


def _restore_device(vm: VmReplay, found: Restored, device_id: int, value: int, now: Now) -> None:
    dte = layout.decode_dte(value)
    if dte.valid:
        found.devices[device_id] = (dte.event_bits, dte.itt_gpa)
        vm.record(vm.gic.restore_device(found.its, device_id, dte.itt_gpa, dte.event_bits), now)


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


def seed_seq(vm: VmReplay, at_ns: int | None) -> int:
    """The place of an instant among the records: before everything, or before the first record at or after it."""
    if at_ns is None:
        return 0
    frames = (
        vm.obs.commands,
        vm.obs.register_writes,
        vm.obs.configs,
        vm.obs.vm_events,
        vm.obs.queueings,
    )
    later = [frame.filter(pl.col("time_ns") >= at_ns)["seq"].min() for frame in frames]
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
    queued = set(vm.mine(vm.obs.queueings).filter(pl.col("seq") < row["seq"])["intid"])
    for lpi in _rows(given.lpis, vm.vm, None):
        target = None if lpi["target_vcpu"] is None or lpi["target_vcpu"] < 0 else lpi["target_vcpu"]
        vm.gic.restore_lpi(lpi["intid"], enabled=lpi["enabled"], priority=lpi["priority"], target_vcpu=target)
        key = (vm.vm, lpi["intid"])
        if target is not None:
            vm.rec.targets.put(key, (target,), now)
        # Of what KVM had read the guest's memory says nothing, but where nothing else does.
        held = vm.rec.configurations.open.get(key)
        if lpi["enabled"] is not None and (seed.kernel_lpis or held is None or held.assumed):
            vm.rec.configurations.put(key, (lpi["enabled"], lpi["priority"]), now)
        # The latch of an LPI that was queued before is known by that; a dump may be a little older than its time.
        if lpi["pending"] is not None and lpi["intid"] not in queued:
            vm.rec.latch("table", vm.vm, lpi["intid"], now, latched=lpi["pending"])


def image_seq(vm: VmReplay, image: GuestMemory) -> int:
    """The place of an image of guest memory: before the teardown, at the latest.

    Raw memory of which no time is told, of a VM that begins within the capture, is of its end.
    """
    end = 2**63 if vm.end_seq is None else vm.end_seq
    last = image.at_ns is None and image.propbaser is None and vm.complete
    return end if last else min(seed_seq(vm, image.at_ns), end)


def look(vm: VmReplay, image: GuestMemory, row: dict[str, Any]) -> None:
    """What the guest has written into its LPI configuration table, of the LPIs that KVM knows."""
    told = image.properties(vm.gic.propbaser, sorted(vm.gic.lpis))
    vm.rec.written += [(vm.vm, row["seq"], image.at_ns, intid, *values) for intid, values in told.items()]


def imaged_vm(obs: Observations, image: GuestMemory) -> int | None:
    """The VM that raw memory is of: the one that lived then, or of several the one whose LPIs it configures as KVM read.

    Raises: UsageError where several fit equally well.
    """
    at_ns = image.at_ns
    fits = [
        vm
        for vm, start_ns, end_ns in obs.vms.select("vm", "start_ns", "end_ns").iter_rows()
        if at_ns is None or ((start_ns or 0) <= at_ns and (end_ns is None or at_ns <= end_ns + _EARLY_NS))
    ]
    if len(fits) > 1:
        alike = {vm: _agreeing(obs, vm, image) for vm in fits}
        fits = [vm for vm in fits if alike[vm] == max(alike.values())]
    if len(fits) > 1:
        raise UsageError(
            f"the memory {image.memory.path} fits VMs {', '.join(map(str, fits))} alike",
            advice="give an instant (IMAGE@T) at which only one of them lived",
        )
    return fits[0] if fits else None


def _agreeing(obs: Observations, vm: int, image: GuestMemory) -> int:
    """How many LPIs of a VM memory configures as KVM read them last."""
    until = pl.lit(value=True) if image.at_ns is None else pl.col("time_ns") <= image.at_ns
    mine = (pl.col("vm") == vm) & until
    writes = obs.redistributor_writes.filter(
        mine & pl.col("offset").is_between(GICR_PROPBASER, GICR_PROPBASER + 7)
    )
    base: int | None = None
    for offset, value, size_bytes in writes.select("offset", "value", "size_bytes").iter_rows():
        at = 8 * (offset - GICR_PROPBASER)
        mask = (1 << 8 * size_bytes) - 1 << at
        base = (base or 0) & ~mask | value << at & mask
    read = obs.configs.filter(mine).unique("intid", keep="last", maintain_order=True)
    known = {
        intid: (on, priority)
        for intid, on, priority in read.select("intid", "enabled", "priority").iter_rows()
    }
    told = image.properties(base, known)
    return sum(known[intid] == values for intid, values in told.items())


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
    assert lpis is not None, seed.sources
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
