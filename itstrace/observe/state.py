"""Everything else that KVM was seen to do: registers, configuration, targets, caches, allocations, whole-VM events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace import schemas
from itstrace.observe.joins import before

if TYPE_CHECKING:
    from itstrace.observe.collect import Raw
    from itstrace.observe.identity import Identity

#: Both of the ITS's and the redistributor's register frames are 64 KiB. Spec: IHI 0069H, memory maps.
_FRAME_MASK = 0xFFFF


def _finish(rows: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    return rows.sort("seq").select(schema.names()).cast(schema)


def _low(value: str, size: str) -> pl.Expr:
    """The low `size` bytes of `value`: above them the probes show whatever the register held."""
    masks = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF}
    expr = pl.col(value)
    for size_bytes, mask in masks.items():
        expr = pl.when(pl.col(size) == size_bytes).then(pl.col(value) & mask).otherwise(expr)
    return expr


def _by_user(rows: pl.DataFrame, identity: Identity) -> pl.DataFrame:
    return rows.with_columns(user=~pl.col("pid").is_in(identity.vcpus["pid"].implode()))


def register_writes(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Writes to GITS_CTLR, CBASER, CWRITER and BASER<n>. Shape: rows of REGISTER_WRITES."""
    rows = pl.concat([raw[name] for name in ("write_ctlr", "write_cbaser", "write_cwriter", "write_baser")])
    rows = rows.with_columns(
        offset=pl.col("addr") & _FRAME_MASK,
        value=_low("val", "len"),
        size_bytes=pl.col("len").fill_null(8).clip(0, 8),
    )
    return _finish(_by_user(identity.with_its(identity.with_vm(rows)), identity), schemas.REGISTER_WRITES)


def redistributor_writes(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Writes to GICR_CTLR, PROPBASER and PENDBASER. Shape: rows of REDISTRIBUTOR_WRITES.

    Kernel: vgic-mmio-v3.c; a VMM's write comes with the offset alone and in halves, a guest's with the whole
    address.
    """
    rctlr = raw["write_rctlr"].with_columns(len=pl.lit(4, dtype=pl.UInt32))
    rows = pl.concat(
        [
            frame.select("seq", "time_ns", "cpu", "pid", "vcpu", "addr", "len", "val")
            for frame in (rctlr, raw["write_propbaser"], raw["write_pendbaser"])
        ]
    )
    rows = rows.with_columns(
        offset=pl.col("addr") & _FRAME_MASK,
        value=_low("val", "len"),
        size_bytes=pl.col("len").fill_null(8).clip(0, 8),
        user=pl.col("addr") <= _FRAME_MASK,
    )
    return _finish(identity.with_vm(rows), schemas.REDISTRIBUTOR_WRITES)


def configs(raw: Raw, identity: Identity) -> pl.DataFrame:
    """LPI configurations as KVM holds them after reading the property byte. Shape: rows of CONFIGS."""
    rows = raw["config_end"].with_columns(
        enabled=pl.col("enabled") != 0, priority=pl.col("priority") & 0xFF, result=pl.col("ret")
    )
    return _finish(identity.with_vm(rows), schemas.CONFIGS)


def retargets(raw: Raw, identity: Identity) -> pl.DataFrame:
    """LPIs given to another vCPU. Shape: rows of RETARGETS.

    7.3's update_affinity takes (irq, from, new): a definition made for older kernels names the old vCPU there
    (null but for MOVALL), one that also has `from` names the new one.
    """
    rows = identity.with_vm(raw["affinity"])
    fresh = pl.col("vcpu_ptr").is_not_null() & (pl.col("vcpu_ptr") != 0)
    if not raw.gives("affinity", "from_ptr") and raw["affinity"].height:
        fresh &= bool((raw["affinity"]["vcpu_ptr"] != 0).all())
    return _finish(rows.with_columns(vcpu=pl.when(fresh).then("vcpu")), schemas.RETARGETS)


def invalidations(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Translation caches dropped; `its` is null where the cache is the VM's. Shape: rows of INVALIDATIONS."""
    rows = pl.concat(
        [
            raw["invalidate"].select("seq", "time_ns", "cpu", "pid", "its"),
            raw["invalidate_all"].select("seq", "time_ns", "cpu", "pid", its=pl.lit(None, dtype=pl.UInt64)),
        ]
    )
    return _finish(identity.with_its(identity.with_vm(rows)), schemas.INVALIDATIONS)


def allocations(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Devices, events and collections that KVM made or freed. Shape: rows of ALLOCATIONS."""
    parts = []
    for op in (
        "alloc_device",
        "free_device",
        "alloc_event",
        "free_event",
        "alloc_collection",
        "free_collection",
    ):
        frame = raw[op]
        columns = [
            (pl.col(c) if c in frame.columns else pl.lit(None, dtype=pl.UInt32).alias(c))
            for c in ("device_id", "event_id", "icid")
        ]
        parts.append(frame.select("seq", "time_ns", "cpu", "pid", *columns, op=pl.lit(op)))
    return _finish(identity.with_vm(pl.concat(parts)), schemas.ALLOCATIONS)


def guest_reads(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Bytes that KVM read out of guest memory, masked to the size read. Shape: rows of GUEST_READS."""
    rows = (
        raw["guest_read"]
        .filter(pl.col("dw0").is_not_null())
        .with_columns(value=_low("dw0", "len"), size_bytes=pl.col("len"), result=pl.col("ret"))
    )
    return _finish(identity.with_vm(rows), schemas.GUEST_READS)


def vm_events(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Things that happen to a vCPU or a whole VM, and are no commands. Shape: rows of VM_EVENTS.

    Linux guests never send INV; they write GICR_INVLPIR, and KVM calls the same functions for both: outside of
    vgic_its_process_commands it was the register.
    """
    columns = {
        "flush_lpis": "flush_lpis",
        "enable_lpis": "enable_lpis",
        "invall": "invallr",
        "inv_lpi": "invlpir",
        "save_tables": "save_tables",
        "restore_tables": "restore_tables",
        "save_pending": "save_pending",
    }
    dtypes: dict[str, pl.DataType] = {"vcpu": pl.Int32(), "its": pl.UInt64(), "intid": pl.UInt32()}
    parts = []
    for probe, what in columns.items():
        frame = raw[probe]
        own = [
            pl.col(name) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name)
            for name, dtype in dtypes.items()
        ]
        if what in ("invallr", "invlpir"):
            frame = before(before(frame, raw["process"], _begun="seq"), raw["process_end"], _ended="seq")
            frame = frame.filter(
                pl.col("_begun").is_null() | (pl.col("_ended").fill_null(0) > pl.col("_begun"))
            )
        parts.append(frame.select("seq", "time_ns", "cpu", "pid", *own, pl.lit(what).alias("what")))
    return _finish(identity.with_its(identity.with_vm(pl.concat(parts))), schemas.VM_EVENTS)


def markers(raw: Raw) -> pl.DataFrame:
    """Notes written into the trace. Shape: rows of MARKERS."""
    rows = raw["marker"].with_columns(text=pl.col("text").str.strip_chars())
    return _finish(rows, schemas.MARKERS)
