"""Which event and field of which kernel says what: one table, read by everything that has to know.

A *probe* is one place in KVM that a capture may have recorded, under the event name that our own definitions
give it. Its columns name what we want, and the field names under which a kernel's definition may give it, the
best first. An *observation* is a frame made out of one or several probes. `info`, coverage and the advice
about missing events read the same table.

Source: the probe definitions of the captures themselves (kernels 6.1, 6.12 and 7.3); `Kernel:` functions as
named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.readers import qemulog

if TYPE_CHECKING:
    from collections.abc import Iterable

U64, U32, S32 = pl.UInt64(), pl.UInt32(), pl.Int32()


@dataclass(frozen=True, slots=True)
class Column:
    """One value that a probe gives: our name and type, and the event fields that may hold it, the best first.

    `required`: a record without it says nothing, and an event that has no such field is not this probe.
    """

    name: str
    dtype: pl.DataType
    fields: tuple[str, ...]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """One place in KVM: our name, the events that record it (the best first), its columns, and where it stands.

    `source`: who says it; a capture has either KVM's probes or QEMU's own ITS.
    """

    name: str
    events: tuple[str, ...]
    kernel: str
    columns: tuple[Column, ...]
    source: str = "KVM"


def _c(name: str, dtype: pl.DataType, *fields: str) -> Column:
    return Column(name, dtype, fields or (name,))


def _r(name: str, dtype: pl.DataType, *fields: str) -> Column:
    return Column(name, dtype, fields or (name,), required=True)


def _probe(name: str, events: str | tuple[str, ...], kernel: str, *columns: Column) -> Probe:
    return Probe(name, (events,) if isinstance(events, str) else events, kernel, columns)


def _qemu(event: str) -> Probe:
    """What QEMU's own ITS logs: the event's operands as they stand."""
    columns = tuple(_r(name, U64) for name in qemulog.operands(event))
    full_name = f"{qemulog.SYSTEM}:{qemulog.ITS_EVENT}{event}"
    return Probe(f"qemu_{event}", (full_name,), 'QEMU, -trace "gicv3_its_*"', columns, source="QEMU")


#: Events of QEMU's ITS that say nothing of what a guest asked or got.
_QEMU_UNUSED = {"badread", "badwrite", "dte_write", "ite_write", "vte_read", "vte_write", "vte_read_fault"}

_DWORDS = (_c("dw0", U64), _c("dw1", U64), _c("dw2", U64), _c("dw3", U64))
_MMIO = (_r("its", U64), _r("addr", U64), _c("len", U32), _r("val", U64))
_LRS = (_r("lr0", U64), _c("lr1", U64), _c("lr2", U64), _c("lr3", U64))

#: Every probe that itstrace understands, by our name for it.
PROBES: Final[dict[str, Probe]] = {
    probe.name: probe
    for probe in (
        # -- the command stream
        _probe(
            "guest_read",
            "its_cmd",
            "kvm_read_guest, return",
            _c("kvm", U64),
            _r("gpa", U64),
            _r("len", U32),
            *_DWORDS,
            _c("ret", S32),
        ),
        _probe(
            "command",
            "its_cmd_off",
            "vgic_its_process_commands, inside its loop",
            _r("its", U64),
            _c("kvm", U64),
            _r("creadr", U32),
            _c("cwriter", U32),
            *(_r(word.name, word.dtype) for word in _DWORDS),
        ),
        _probe(
            "process",
            "its_process",
            "vgic_its_process_commands",
            _c("kvm", U64),
            _r("its", U64),
            _c("base", U64),
            _c("enabled", U32),
            _r("cbaser", U64),
            _r("creadr", U32),
            _r("cwriter", U32),
        ),
        _probe(
            "process_end",
            "its_process_ret",
            "vgic_its_process_commands, return",
            _c("its", U64),
            _c("creadr", U32),
            _c("cwriter", U32),
        ),
        _probe("write_cwriter", "its_wr_cwriter", "vgic_mmio_write_its_cwriter", *_MMIO),
        _probe("write_cbaser", "its_wr_cbaser", "vgic_mmio_write_its_cbaser", *_MMIO),
        _probe("write_baser", "its_wr_baser", "vgic_mmio_write_its_baser", *_MMIO),
        _probe("write_ctlr", "its_wr_ctlr", "vgic_mmio_write_its_ctlr", *_MMIO),
        # -- MSIs
        _probe(
            "msi",
            "its_inject_msi",
            "vgic_its_inject_msi",
            _c("kvm", U64),
            _r("lo", U32),
            _r("hi", U32),
            _r("event_id", U32, "data"),
            _r("device_id", U32, "devid"),
        ),
        _probe("msi_end", "its_inject_msi_ret", "vgic_its_inject_msi, return", _r("ret", S32)),
        _probe(
            "cached",
            "its_cached_ret",
            "vgic_its_inject_cached_translation, return",
            _c("event_id", U32, "data"),
            _c("device_id", U32, "devid"),
            _r("ret", S32),
        ),
        _probe(
            "trigger",
            "its_trigger",
            "vgic_its_trigger_msi",
            _r("its", U64),
            _r("device_id", U32, "devid"),
            _r("event_id", U32, "eventid"),
        ),
        _probe("trigger_end", "its_trigger_ret", "vgic_its_trigger_msi, return", _r("ret", S32)),
        _probe(
            "resolve_end",
            "its_resolve_ret",
            "vgic_its_resolve_lpi, return",
            _c("irq", U64),
            _c("intid", U32),
            _r("ret", S32),
        ),
        # -- effects of commands
        _probe("invalidate", "its_inval_cache", "vgic_its_invalidate_cache", _c("its", U64), _c("kvm", U64)),
        _probe("invalidate_all", "its_inval_all", "vgic_its_invalidate_all_caches", _c("kvm", U64)),
        _probe(
            "alloc_device",
            "its_alloc_dev",
            "vgic_its_alloc_device",
            _c("its", U64),
            _r("device_id", U32),
            _c("itt", U64),
            _c("bits", U32),
        ),
        _probe("free_device", "its_free_dev", "vgic_its_free_device", _r("device_id", U32)),
        _probe(
            "alloc_event",
            "its_alloc_ite",
            "vgic_its_alloc_ite",
            _c("device_id", U32),
            _c("icid", U32, "coll"),
            _r("event_id", U32),
        ),
        _probe("free_event", "its_free_ite", "its_free_ite", _r("event_id", U32), _c("irq", U64)),
        _probe(
            "alloc_collection",
            "its_alloc_coll",
            "vgic_its_alloc_collection",
            _c("its", U64),
            _r("icid", U32, "coll_id"),
        ),
        _probe(
            "free_collection",
            "its_free_coll",
            "vgic_its_free_collection",
            _c("its", U64),
            _r("icid", U32, "coll_id"),
        ),
        _probe(
            "affinity",
            "update_affinity",
            "update_affinity",
            # 7.3 passes (irq, from, new): a definition that has "from" gives the new vCPU as vcpu.
            _c("irq", U64),
            _r("intid", U32),
            _c("vcpu_ptr", U64, "vcpu"),
            _c("vcpu", S32, "vcpu_id"),
            _c("from_ptr", U64, "from"),
        ),
        # -- configuration
        _probe(
            "config",
            "lpi_config",
            "update_lpi_config",
            _r("intid", U32),
            _c("priority", U32, "prio"),
            _c("enabled", U32),
            _c("needs_inv", U32),
        ),
        _probe(
            "config_end",
            "lpi_config_ret",
            "update_lpi_config, return",
            _r("intid", U32),
            _c("priority", U32, "prio"),
            _r("enabled", U32),
            _c("ret", S32),
        ),
        _probe("inv_lpi", "inv_lpi", "vgic_its_inv_lpi", _r("intid", U32)),
        _probe("invall", "invall", "vgic_its_invall", _c("vcpu", S32)),
        # -- pending state and list registers
        # 7.3 fires both of these for one call (the compiler split the function in two): the first one serves.
        _probe(
            "queue",
            ("queue_irq", "queue_irq_part"),
            "vgic_queue_irq_unlock",
            _c("irq", U64),
            _r("intid", U32),
            _r("pending", U32, "pend"),
            _r("enabled", U32, "en"),
            _r("active", U32, "act"),
            _r("target_vcpu", S32, "tgt"),
            _c("owner_vcpu", S32, "vcpu"),
            _r("owner_ptr", U64, "vcpup"),
        ),
        _probe(
            "fill",
            "populate_lr",
            "vgic_v3_populate_lr",
            _r("vcpu", S32),
            _r("intid", U32),
            _r("lr", S32),
            _r("pending", U32, "pend"),
            _r("active", U32, "act"),
            _c("enabled", U32, "en"),
            _c("target_vcpu", S32, "tgt"),
        ),
        _probe(
            "fill_end",
            "populate_lr_ret",
            "vgic_v3_populate_lr, return",
            _c("vcpu", S32),
            _r("intid", U32),
            _c("lr", S32),
            _r("pending", U32, "pend"),
            _c("value", U64, "val"),
            *(_c(one.name, one.dtype) for one in _LRS),
        ),
        _probe("fold", "fold_lr", "vgic_v3_fold_lr_state", _r("vcpu", S32), _r("used", U32), *_LRS),
        _probe("flush_lpis", "flush_lpis", "vgic_flush_pending_lpis", _r("vcpu", S32)),
        _probe("enable_lpis", "enable_lpis", "vgic_enable_lpis", _r("vcpu", S32)),
        _probe("sync_pending", "lpi_sync_pending", "vgic_v3_lpi_sync_pending_status", _r("intid", U32)),
        # -- redistributors
        _probe(
            "write_rctlr",
            "wr_rctlr",
            "vgic_mmio_write_v3r_ctlr",
            _r("vcpu", S32),
            _r("addr", U64),
            _r("val", U64),
        ),
        _probe(
            "write_propbaser",
            "wr_propbase",
            "vgic_mmio_write_propbase",
            _r("vcpu", S32),
            _r("addr", U64),
            _c("len", U32),
            _r("val", U64),
        ),
        _probe(
            "write_pendbaser",
            "wr_pendbase",
            "vgic_mmio_write_pendbase",
            _r("vcpu", S32),
            _r("addr", U64),
            _c("len", U32),
            _r("val", U64),
        ),
        # -- save and restore
        _probe("save_tables", "save_tables", "vgic_its_save_tables_v0", _c("its", U64)),
        _probe("restore_tables", "restore_tables", "vgic_its_restore_tables_v0", _c("its", U64)),
        _probe("save_pending", "save_pending", "vgic_v3_save_pending_tables", _c("kvm", U64)),
        # -- stock tracepoints
        _probe("enter", "kvm:kvm_entry", "trace_kvm_entry"),
        _probe("exit", "kvm:kvm_exit", "trace_kvm_exit"),
        _probe("marker", "ftrace:print", "tracing_mark_write", _c("text", pl.String(), "buf")),
        # -- QEMU's own ITS
        *(_qemu(event) for event in qemulog.FORMATS if event not in _QEMU_UNUSED),
    )
}


@dataclass(frozen=True, slots=True)
class Observation:
    """One frame of what KVM did: the probes that feed it, which of them suffice, and why a reader would want it."""

    name: str
    #: Any of these groups of probes is enough.
    fed_by: tuple[tuple[str, ...], ...]
    what: str

    def ways(self, source: str) -> tuple[tuple[str, ...], ...]:
        """The groups of probes of one source, "KVM" or "QEMU"; none where it cannot tell."""
        return tuple(group for group in self.fed_by if PROBES[group[0]].source == source)


def source_of(probes: Iterable[str]) -> str:
    """Who recorded a capture that feeds these probes: "KVM" or "QEMU"."""
    return "QEMU" if any(PROBES[probe].source == "QEMU" for probe in probes) else "KVM"


#: The observations, in the order in which `info` prints them.
OBSERVATIONS: Final[tuple[Observation, ...]] = (
    Observation(
        "COMMANDS",
        (("process", "command"), ("process", "guest_read"), ("qemu_process_command",)),
        "ITS commands as the ITS took them",
    ),
    Observation(
        "REGISTER_WRITES",
        (("write_cwriter", "write_cbaser", "write_baser", "write_ctlr"), ("qemu_write",)),
        "writes to the ITS's registers",
    ),
    Observation(
        "REDISTRIBUTOR_WRITES",
        (("write_rctlr",), ("enable_lpis", "flush_lpis")),
        "EnableLPIs and the table bases",
    ),
    Observation(
        "INJECTIONS",
        (
            ("msi", "cached", "trigger_end", "resolve_end"),
            ("trigger", "trigger_end", "resolve_end"),
            ("qemu_translation_write",),
        ),
        "MSIs offered to the ITS",
    ),
    Observation("QUEUEINGS", (("queue",),), "LPIs put on a vCPU's ap_list"),
    Observation("LIST_REGISTERS", (("fill", "fold"),), "LPIs written into list registers and read back"),
    Observation("RETARGETS", (("affinity",),), "LPIs given to another vCPU"),
    Observation("CONFIGS", (("config_end",),), "LPI configuration as KVM read it"),
    Observation("INVALIDATIONS", (("invalidate",),), "translation caches dropped"),
    Observation(
        "ALLOCATIONS", (("alloc_device", "alloc_collection"),), "devices, events and collections allocated"
    ),
    Observation("RUNS", (("enter", "exit"),), "when a vCPU was in the guest"),
    Observation("MARKERS", (("marker",),), "notes written into the trace"),
)
