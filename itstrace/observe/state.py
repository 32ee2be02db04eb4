"""Everything else that KVM was seen to do: registers, configuration, targets, caches, allocations, whole-VM events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace import schemas
from itstrace.gic.registers import FRAME_MASK
from itstrace.observe.commands import boundaries
from itstrace.observe.joins import after, before
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from itstrace.observe.collect import Raw
    from itstrace.observe.identity import Identity
    from itstrace.observe.runs import Runs


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
        offset=pl.col("addr") & FRAME_MASK,
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
        offset=pl.col("addr") & FRAME_MASK,
        value=_low("val", "len"),
        size_bytes=pl.col("len").fill_null(8).clip(0, 8),
        user=pl.col("addr") <= FRAME_MASK,
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


def config_calls(raw: Raw, identity: Identity, ran: Runs) -> pl.DataFrame:
    """Calls of update_lpi_config, and what each did. Shape: rows of CONFIG_CALLS.

    Kernel: vgic-its.c:update_lpi_config (v6.12) reads the property byte, takes it over under irq_lock (INVALL only
        for the LPIs of its vCPU), and queues the LPI again. Where its return was not recorded (6.1, where it
        leaves early) it is over at the next thing that its task does otherwise.
    """
    rows = raw["config"].select(
        "seq", "time_ns", "cpu", "pid", "intid", was_enabled="enabled", was_priority="priority"
    )
    rows = after(
        rows,
        raw["config_end"],
        ["pid", "intid"],
        end_seq="seq",
        end_ns="time_ns",
        enabled="enabled",
        priority="priority",
        result="ret",
    )
    others = [raw["config"], raw["sync_pending"], boundaries(raw)]
    rows = after(rows, pl.concat([each.select("pid", "seq") for each in others]), over="seq")
    rows = rows.hstack(ran.next_entry_of_task(rows).select("entry_seq"))
    # Without a return, or only with one that belongs to a later call, whatever comes next ends it.
    rows = rows.with_columns(over=pl.min_horizontal("over", "entry_seq"))
    mine = pl.col("end_seq") < pl.col("over").fill_null(NEVER)
    ends = ("end_seq", "end_ns", "enabled", "priority", "result")
    rows = rows.with_columns(pl.when(mine).then(pl.col(c)).alias(c) for c in ends)
    rows = rows.with_columns(over_seq=pl.coalesce("end_seq", "over"))
    rows = rows.with_columns(over=pl.col("over_seq").fill_null(NEVER))
    rows = after(
        rows,
        raw["guest_read"].filter(pl.col("len") == 1),
        read_seq="seq",
        read_gpa="gpa",
        value="dw0",
        read_result="ret",
    )
    rows = after(rows, raw["guest_read_begin"], _begin="seq", _gpa="gpa")
    rows = after(rows, raw["queue"], ["pid", "intid"], queue_seq="seq")
    inside = pl.col("read_seq") < pl.col("over")
    rows = rows.with_columns(
        pl.when(inside).then(pl.col(c)).alias(c) for c in ("read_seq", "read_gpa", "value", "read_result")
    )
    begun = pl.when(pl.col("_begin") < pl.col("over"))
    rows = rows.with_columns(
        read_seq=pl.coalesce("read_seq", begun.then("_begin")),
        read_gpa=pl.coalesce("read_gpa", begun.then("_gpa")),
        value=pl.col("value") & 0xFF,
        applied=(pl.col("queue_seq") < pl.col("over")).fill_null(value=False),
        was_enabled=pl.col("was_enabled") != 0,
        was_priority=pl.col("was_priority") & 0xFF,
        enabled=pl.col("enabled") != 0,
        priority=pl.col("priority") & 0xFF,
    )
    return _finish(identity.with_vm(rows), schemas.CONFIG_CALLS)


def invalls(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Calls of vgic_its_invall. Shape: rows of INVALLS."""
    return _finish(identity.with_vm(raw["invall"]), schemas.INVALLS)


def invalidations(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Translation caches dropped; `its` is null where the cache is the VM's. Shape: rows of INVALIDATIONS."""
    calls = after(
        raw["invalidate"].select("seq", "time_ns", "cpu", "pid", "its"),
        raw["invalidate_end"],
        end_seq="seq",
        end_ns="time_ns",
    )
    # A return that was lost does not make the next call's its own.
    again = pl.col("seq").shift(-1).over("pid").fill_null(NEVER)
    calls = calls.with_columns(
        pl.when(pl.col("end_seq") < again).then(pl.col(c)).alias(c) for c in ("end_seq", "end_ns")
    )
    rows = pl.concat(
        [
            calls,
            raw["invalidate_all"].select(
                "seq",
                "time_ns",
                "cpu",
                "pid",
                its=pl.lit(None, dtype=pl.UInt64),
                end_seq=pl.lit(None, dtype=pl.UInt64),
                end_ns=pl.lit(None, dtype=pl.Int64),
            ),
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
        made = op == "alloc_device"
        columns.append(
            (pl.col("bits") if made else pl.lit(None)).cast(pl.UInt8, strict=False).alias("event_bits")
        )
        columns.append((pl.col("itt") if made else pl.lit(None)).cast(pl.UInt64).alias("itt_gpa"))
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
