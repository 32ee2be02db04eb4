"""What happened to interrupts: MSIs offered, LPIs queued, list registers filled and folded.

All of it vectorised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace import schemas
from itstrace.observe.collect import FIRST_LPI, Raw
from itstrace.observe.identity import TRANSLATER_OFFSET
from itstrace.observe.joins import after, before
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from itstrace.observe.identity import Identity
    from itstrace.observe.runs import Runs

#: How many list registers the probes show, at most.
_SHOWN_LRS = 4


def _only_within(rows: pl.DataFrame, seq: str, end: str, columns: list[str]) -> pl.DataFrame:
    """Null the columns where `seq` lies beyond `end` (a null end is beyond everything)."""
    inside = pl.col(seq).is_not_null() & (pl.col(seq) <= pl.col(end).fill_null(NEVER))
    return rows.with_columns(pl.when(inside).then(pl.col(c)).alias(c) for c in columns)


def injections(raw: Raw, identity: Identity, commands: pl.DataFrame) -> pl.DataFrame:
    """MSIs and INT commands offered to an ITS, with what KVM made of each.

    Shape: rows of INJECTIONS.
    Kernel: vgic-its.c:vgic_its_inject_msi tries the translation cache first, and on a miss takes its_lock and
        goes through vgic_its_trigger_msi; kvm_arch_set_irq_inatomic (irqfd) tries the cache alone.
    """
    msis = _msis(raw, identity)
    ints = _ints(raw, identity, commands)
    direct = _cached_only(raw, identity)
    frames = [f.select(schemas.INJECTIONS.names()).cast(schemas.INJECTIONS) for f in (msis, ints, direct)]
    return pl.concat(frames).sort("seq")


def _msis(raw: Raw, identity: Identity) -> pl.DataFrame:
    rows = raw["msi"].select("seq", "time_ns", "cpu", "pid", "lo", "hi", "event_id", "device_id")
    rows = after(rows, raw["msi_end"], end_seq="seq", end_ns="time_ns", msi_ret="ret")
    rows = after(rows, raw["cached"], cached_seq="seq", cached_ret="ret")
    rows = _only_within(rows, "cached_seq", "end_seq", ["cached_ret", "cached_seq"])
    rows = after(rows, raw["trigger_end"], trigger_seq="seq", trigger_ret="ret")
    rows = _only_within(rows, "trigger_seq", "end_seq", ["trigger_ret", "trigger_seq"])
    rows = after(rows, raw["resolve_end"], resolve_seq="seq", resolve_ret="ret", resolved="intid")
    rows = _only_within(rows, "resolve_seq", "end_seq", ["resolve_ret", "resolve_seq", "resolved"])
    rows = after(rows, raw["queue"], queue_seq="seq", queued="intid")
    rows = _only_within(rows, "queue_seq", "end_seq", ["queue_seq", "queued"])
    hit = pl.col("cached_ret") == 0
    # The MSI's own return: 1 taken, 0 an error of the ITS, below 0 an errno. Kernel:
    # vgic-its.c:vgic_its_inject_msi
    from_end = pl.when(pl.col("msi_ret") > 0).then(0).when(pl.col("msi_ret") < 0).then(pl.col("msi_ret"))
    rows = rows.with_columns(
        cached=hit,
        result=pl.when(hit).then(0).otherwise(pl.coalesce("trigger_ret", "resolve_ret", from_end)),
        intid=pl.when(hit)
        .then("queued")
        .when(pl.col("resolve_ret") == 0)
        .then("resolved")
        .otherwise("queued"),
        base_gpa=pl.col("lo").cast(pl.UInt64) + pl.col("hi").cast(pl.UInt64) * 2**32 - TRANSLATER_OFFSET,
        from_command=pl.lit(None, dtype=pl.UInt64),
    )
    names = identity.itss.select("vm", "base_gpa", "its")
    return identity.with_vm(rows).join(names, on=["vm", "base_gpa"], how="left", maintain_order="left")


def _outside_msi(rows: pl.DataFrame, raw: Raw) -> pl.DataFrame:
    """Rows whose task has no vgic_its_inject_msi open."""
    rows = before(rows, raw["msi"], opened="seq")
    rows = before(rows, raw["msi_end"], closed="seq")
    return rows.filter(pl.col("opened").is_null() | (pl.col("closed").fill_null(0) > pl.col("opened")))


def _ints(raw: Raw, identity: Identity, commands: pl.DataFrame) -> pl.DataFrame:
    """INT commands: a trigger with no MSI open on its task."""
    rows = raw["trigger"].select(
        "seq", "time_ns", "cpu", "pid", pointer="its", device_id="device_id", event_id="event_id"
    )
    rows = _outside_msi(rows, raw)
    rows = after(rows, raw["trigger_end"], end_seq="seq", end_ns="time_ns", trigger_ret="ret")
    rows = after(rows, raw["resolve_end"], resolve_seq="seq", resolve_ret="ret", resolved="intid")
    rows = _only_within(rows, "resolve_seq", "end_seq", ["resolve_ret", "resolve_seq", "resolved"])
    rows = after(rows, raw["queue"], queue_seq="seq", queued="intid")
    rows = _only_within(rows, "queue_seq", "end_seq", ["queue_seq", "queued"])
    rows = before(rows, commands, from_command="seq")
    rows = rows.with_columns(
        cached=pl.lit(value=False),
        result=pl.coalesce("trigger_ret", "resolve_ret"),
        intid=pl.when(pl.col("resolve_ret") == 0).then("resolved").otherwise("queued"),
    )
    return identity.with_its(identity.with_vm(rows), "pointer")


def _cached_only(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Hits of the translation cache outside vgic_its_inject_msi: irqfd's own way.

    A miss comes again through a worker.
    """
    rows = raw["cached"].filter(pl.col("ret") == 0)
    rows = _outside_msi(rows, raw)
    rows = before(rows, raw["queue"], queue_seq="seq", queued="intid")
    only_its = (
        identity.itss.group_by("vm").agg(pl.col("its").first(), n=pl.len()).filter(pl.col("n") == 1).drop("n")
    )
    rows = identity.with_vm(rows).join(only_its, on="vm", how="left", maintain_order="left")
    return rows.with_columns(
        end_seq=pl.col("seq"),
        end_ns=pl.col("time_ns"),
        cached=pl.lit(value=True),
        result=pl.lit(0),
        intid=pl.col("queued"),
        from_command=pl.lit(None, dtype=pl.UInt64),
        # The span begins where the LPI was queued: nothing marks the call itself.
        seq=pl.coalesce("queue_seq", "seq"),
    )


def _steps(raw: Raw) -> pl.DataFrame:
    """Records that a task makes only when a call of vgic_queue_irq_unlock is over. Shape: pid, seq."""
    names = (
        "cached",
        "trigger_end",
        "msi_end",
        "command",
        "guest_read",
        "process_end",
        "queue",
        "config",
        "fill",
    )
    return pl.concat([raw[name].select("pid", "seq") for name in names])


def queueings(raw: Raw, identity: Identity, injected: pl.DataFrame, ran: Runs) -> pl.DataFrame:
    """Calls of vgic_queue_irq_unlock for LPIs.

    Shape: rows of QUEUEINGS.
    Kernel: vgic.c:vgic_queue_irq_unlock; a field read through a null pointer is garbage, so the owner counts
        only where its pointer is not null.
    """
    rows = identity.with_vm(raw["queue"])
    causes = (
        injected.filter(pl.col("queue_seq").is_not_null())
        .select(
            seq="queue_seq",
            cause=pl.when(pl.col("from_command").is_null()).then(pl.lit("msi")).otherwise(pl.lit("int")),
        )
        .unique("seq")
    )
    rows = rows.join(causes, on="seq", how="left", maintain_order="left").sort("seq")
    # update_lpi_config queues the LPI again after reading its configuration: within the call, or right after it.
    read = pl.concat([raw[name].select("pid", "seq", "intid") for name in ("config", "config_end")])
    rows = before(rows, read, config_seq="seq", config_intid="intid")
    rows = before(rows, raw["queue"], prior="seq")
    inv = (pl.col("config_intid") == pl.col("intid")) & (pl.col("config_seq") > pl.col("prior").fill_null(0))
    rows = rows.with_columns(
        cause=pl.coalesce("cause", pl.when(inv).then(pl.lit("inv")).otherwise(pl.lit("other"))),
        owner_vcpu=pl.when(pl.col("owner_ptr") != 0).then("owner_vcpu"),
        pending=pl.col("pending") != 0,
        enabled=pl.col("enabled") != 0,
        active=pl.col("active") != 0,
    )
    # Where only the owner's pointer was recorded (7.3's split function), its vCPU is learnt from calls that
    # give both.
    known = (
        raw["affinity"]
        .filter(pl.col("vcpu_ptr") != 0)
        .select(owner_ptr="vcpu_ptr", known="vcpu")
        .unique("owner_ptr")
    )
    if not raw.gives("queue", "owner_vcpu"):
        rows = rows.drop("owner_vcpu").join(known.rename({"known": "owner_vcpu"}), on="owner_ptr", how="left")
    rows = after(rows, _steps(raw), settled_seq="seq")
    rows = rows.hstack(ran.next_entry_of_task(rows).select("entry_seq"))
    rows = rows.with_columns(settled_seq=pl.min_horizontal("settled_seq", "entry_seq"))
    return rows.sort("seq").select(schemas.QUEUEINGS.names()).cast(schemas.QUEUEINGS)


def folds(raw: Raw, identity: Identity) -> pl.DataFrame:
    """LPIs read back from list registers at a vCPU's exit.

    Shape: seq, time_ns, vm, vcpu, intid, lr, state, in order of seq.
    """
    frame = identity.with_vm(raw["fold"].filter(pl.col("used") > 0))
    parts = []
    for index in range(_SHOWN_LRS):
        value = pl.col(f"lr{index}")
        # ICH_LR<n>_EL2: vINTID [31:0], State [63:62]. Spec: IHI 0069H, ICH_LR<n>_EL2.
        part = frame.filter((pl.col("used") > index) & ((value & 0xFFFF_FFFF) >= FIRST_LPI)).select(
            "seq",
            "time_ns",
            "vm",
            "vcpu",
            intid=(value & 0xFFFF_FFFF).cast(pl.UInt32),
            lr=pl.lit(index, dtype=pl.Int32),
            state=(value // 2**62).cast(pl.UInt8),
        )
        parts.append(part)
    return pl.concat(parts).sort("seq")


def fills(raw: Raw, identity: Identity, folded: pl.DataFrame) -> pl.DataFrame:
    """LPIs written into list registers, and what the vCPU's next fold found in them.

    Shape: rows of FILLS.
    Kernel: vgic-v3.c:vgic_v3_populate_lr, vgic_v3_fold_lr_state
    """
    rows = identity.with_vm(raw["fill"]).sort("seq")
    rows = after(rows, raw["fill_end"], ["pid", "intid"], latch="pending", ret_seq="seq")
    again = pl.col("seq").shift(-1).over("pid", "intid")
    rows = rows.with_columns(
        latch_kept=pl.when(again.is_null() | (pl.col("ret_seq") < again)).then(pl.col("latch") != 0)
    )
    rows = after(rows, identity.with_vm(raw["fold"]), ["vm", "vcpu"], fold_seq="seq", fold_ns="time_ns")
    rows = rows.with_columns(
        refill_seq=pl.col("seq").shift(-1).over("vm", "vcpu", "lr"),
        refill_ns=pl.col("time_ns").shift(-1).over("vm", "vcpu", "lr"),
    )
    found = folded.select("vm", "vcpu", "intid", "state", fold_seq="seq").unique(
        ["vm", "vcpu", "intid", "fold_seq"]
    )
    rows = rows.join(found, on=["vm", "vcpu", "intid", "fold_seq"], how="left", maintain_order="left")
    refilled = pl.col("refill_seq").is_not_null() & (
        pl.col("refill_seq") < pl.col("fold_seq").fill_null(NEVER)
    )
    rows = rows.with_columns(
        end_seq=pl.when(refilled).then("refill_seq").otherwise("fold_seq"),
        end_ns=pl.when(refilled).then("refill_ns").otherwise("fold_ns"),
        state=pl.when(~refilled).then("state"),
        ended_by=pl.when(refilled)
        .then(pl.lit("refill"))
        .when(pl.col("fold_seq").is_not_null())
        .then(pl.lit("fold")),
        pending=pl.col("pending") != 0,
        active=pl.col("active") != 0,
        enabled=pl.col("enabled") != 0,
    )
    return rows.sort("seq").select(schemas.FILLS.names()).cast(schemas.FILLS)


def fill_returns(raw: Raw, identity: Identity) -> pl.DataFrame:
    """What vgic_v3_populate_lr wrote. Shape: rows of FILL_RETURNS.

    On 6.1 the probe gives the value itself, elsewhere all list registers and which of them it was.
    """
    value = pl.col("value")
    for index in range(_SHOWN_LRS):
        value = (
            pl.when(pl.col("value").is_null() & (pl.col("lr") == index)).then(f"lr{index}").otherwise(value)
        )
    rows = raw["fill_end"].with_columns(value=value, pending=pl.col("pending") != 0)
    rows = identity.with_vm(rows).sort("seq")
    return rows.select(schemas.FILL_RETURNS.names()).cast(schemas.FILL_RETURNS)
