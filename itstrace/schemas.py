"""Every polars schema in the program: columns, dtypes, units.

Times are integer nanoseconds of the capture's clock (`_ns`), sizes are bytes (`_bytes`), kernel pointers are
UInt64 and are printed in hex. `seq` is the rank of a record among all records of the capture: it orders
records where time stamps tie. Unknown is null, never 0.
"""

from __future__ import annotations

import polars as pl

#: Columns with dtypes of any form.
_Columns = dict[str, pl.DataType | type[pl.DataType]]

#: One row per stretch of one CPU's buffer in which records were lost; `lost` is null where the kernel did not
#: count.
GAPS = pl.Schema({"cpu": pl.UInt16, "from_ns": pl.Int64, "to_ns": pl.Int64, "lost": pl.UInt64})

#: One row per place at which the file is cut short or damaged, and what was done about it; see `itstrace.errors.Damage`.
DAMAGE = pl.Schema(
    {"offset_bytes": pl.UInt64, "cpu": pl.UInt16, "problem": pl.String, "disorder": pl.Boolean}
)

#: One row per event type and CPU: how many records were recorded.
COUNTS = pl.Schema({"event": pl.String, "cpu": pl.UInt16, "records": pl.UInt64})

_WHEN = {"seq": pl.UInt64, "time_ns": pl.Int64, "cpu": pl.UInt16, "pid": pl.Int32}

#: One row per VM: a kernel `struct kvm` and its lifetime. `complete`: its beginning lies within the capture.
VMS = pl.Schema(
    {
        "vm": pl.UInt16,
        "kvm": pl.UInt64,
        "from_seq": pl.UInt64,
        "to_seq": pl.UInt64,  # null: still there at the end of the capture
        "start_ns": pl.Int64,
        "end_ns": pl.Int64,  # of the teardown; null: still there
        "complete": pl.Boolean,
    }
)

#: One row per ITS of a VM. `its` counts from 0 within the VM, in order of base address.
ITSS = pl.Schema(
    {
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "pointer": pl.UInt64,
        "base_gpa": pl.UInt64,
        "from_seq": pl.UInt64,
        "complete": pl.Boolean,
    }
)

#: One row per host task that ran a vCPU.
VCPUS = pl.Schema({"vm": pl.UInt16, "vcpu": pl.Int32, "pid": pl.Int32})

#: One row per ITS command, in the order in which its ITS took it. The command takes effect after `seq` and
#: before `end_seq`, the next thing that its task was seen to do with the ITS. `lost_before`: commands before
#: it were not recorded.
COMMANDS = pl.Schema(
    {
        **_WHEN,
        "end_seq": pl.UInt64,
        "end_ns": pl.Int64,
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "slot": pl.UInt32,  # offset in the queue, as in GITS_CREADR
        "dw0": pl.UInt64,
        "dw1": pl.UInt64,
        "dw2": pl.UInt64,
        "dw3": pl.UInt64,
        "readable": pl.Boolean,  # the kernel could read the slot
        "lost_before": pl.Boolean,
    }
)

#: One row per slot of a command queue that KVM went past without a command being recorded, in the call that began at
#: `seq` and was over at `end_ns` (null: not known): a read that failed, or lost records.
SKIPPED_SLOTS = pl.Schema({**_WHEN, "end_ns": pl.Int64, "vm": pl.UInt16, "its": pl.UInt16, "slot": pl.UInt32})

#: One row per write to a register of an ITS; `offset` within its frame. `user`: by the VMM, not the guest.
REGISTER_WRITES = pl.Schema(
    {
        **_WHEN,
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "offset": pl.UInt32,
        "value": pl.UInt64,
        "size_bytes": pl.UInt8,
        "user": pl.Boolean,
    }
)

#: One row per write to a redistributor's register; `offset` within its RD frame.
REDISTRIBUTOR_WRITES = pl.Schema(
    {
        **_WHEN,
        "vm": pl.UInt16,
        "vcpu": pl.Int32,
        "offset": pl.UInt32,
        "value": pl.UInt64,
        "size_bytes": pl.UInt8,
        "user": pl.Boolean,
    }
)

#: One row per MSI or INT command offered to an ITS. `seq`..`end_seq` is the span in which KVM handled it.
#: `cached`: resolved through the translation cache. `result`: 0 taken; >0 a command error code; <0 an errno;
#: null unknown. `intid`: what KVM resolved it to. `from_command`: seq of the INT command, null for an MSI.
INJECTIONS = pl.Schema(
    {
        **_WHEN,
        "end_seq": pl.UInt64,
        "end_ns": pl.Int64,
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "device_id": pl.UInt32,
        "event_id": pl.UInt32,
        "cached": pl.Boolean,
        "result": pl.Int32,
        "intid": pl.UInt32,
        "queue_seq": pl.UInt64,  # the queueing that it led to
        "from_command": pl.UInt64,
    }
)

#: One row per call that puts an LPI on an ap_list (or finds it there). `owner_vcpu`: whose list it is on
#: already. `cause`: msi, int, inv (the configuration was read again), other. The call is surely over at
#: `settled_seq`.
QUEUEINGS = pl.Schema(
    {
        **_WHEN,
        "vm": pl.UInt16,
        "irq": pl.UInt64,
        "intid": pl.UInt32,
        "target_vcpu": pl.Int32,
        "owner_vcpu": pl.Int32,
        "pending": pl.Boolean,
        "enabled": pl.Boolean,
        "active": pl.Boolean,
        "cause": pl.String,
        "settled_seq": pl.UInt64,
    }
)

#: One row per LPI written into a list register: from fill to the next fold of that vCPU, or to whatever else
#: ended it. `state`: what the fold found: 0 gone (delivered and ended), 1 still pending, 2 active, 3 both;
#: null: never folded. `ended_by`: fold, refill (the register was written again without a fold), teardown, or
#: null at the end of the capture.
FILLS = pl.Schema(
    {
        **_WHEN,
        "vm": pl.UInt16,
        "vcpu": pl.Int32,
        "intid": pl.UInt32,
        "lr": pl.Int32,
        "pending": pl.Boolean,  # pending_latch when it was filled
        "active": pl.Boolean,
        "enabled": pl.Boolean,
        "target_vcpu": pl.Int32,
        "latch_kept": pl.Boolean,  # pending_latch still set after the fill
        "end_seq": pl.UInt64,
        "end_ns": pl.Int64,
        "state": pl.UInt8,
        "ended_by": pl.String,
    }
)

#: One row per fold: KVM reads a vCPU's list registers back. `used` of them were in use; `lr0` to `lr3` are ICH_LR<n>_EL2,
#: stale beyond `used`; of more than four nothing is recorded.
FOLDS = pl.Schema(
    {
        "seq": pl.UInt64,
        "time_ns": pl.Int64,
        "vm": pl.UInt16,
        "vcpu": pl.Int32,
        "used": pl.UInt32,
        "lr0": pl.UInt64,
        "lr1": pl.UInt64,
        "lr2": pl.UInt64,
        "lr3": pl.UInt64,
    }
)

#: One row per LPI that KVM gave to another vCPU. `vcpu` is null where the kernel's probe gives only the old
#: one.
RETARGETS = pl.Schema({**_WHEN, "vm": pl.UInt16, "irq": pl.UInt64, "intid": pl.UInt32, "vcpu": pl.Int32})

#: One row per LPI configuration that KVM read out of guest memory; `result` is 0 where it could read it.
CONFIGS = pl.Schema(
    {
        **_WHEN,
        "vm": pl.UInt16,
        "intid": pl.UInt32,
        "enabled": pl.Boolean,
        "priority": pl.UInt8,
        "result": pl.Int32,
    }
)

#: One row per call of vgic_its_invalidate_cache; `its` null: all of the VM. `end_seq` is its return (null: not
#: recorded).
INVALIDATIONS = pl.Schema(
    {**_WHEN, "end_seq": pl.UInt64, "end_ns": pl.Int64, "vm": pl.UInt16, "its": pl.UInt16}
)

#: One row per call of update_lpi_config, which reads an LPI's property byte. `was_enabled` and `was_priority` are
#: what the LPI had before, `enabled` and `priority` what it has at the return, `end_seq` (null: no return was
#: recorded); at `over_seq` it surely is over (null: the capture ended before). `read_seq` is the reading of one byte
#: within it, at `read_gpa`, which gave `value` (null: only the call of kvm_read_guest is recorded) with
#: `read_result`. `applied`: the LPI was queued again, as KVM does when it takes the byte over.
CONFIG_CALLS = pl.Schema(
    {
        **_WHEN,
        "end_seq": pl.UInt64,
        "end_ns": pl.Int64,
        "vm": pl.UInt16,
        "intid": pl.UInt32,
        "was_enabled": pl.Boolean,
        "was_priority": pl.UInt8,
        "over_seq": pl.UInt64,
        "read_seq": pl.UInt64,
        "read_gpa": pl.UInt64,
        "value": pl.UInt8,
        "read_result": pl.Int32,
        "applied": pl.Boolean,
        "enabled": pl.Boolean,
        "priority": pl.UInt8,
        "result": pl.Int32,
    }
)

#: One row per call of vgic_its_invall: INVALL, or a write to GICR_INVALLR.
INVALLS = pl.Schema({**_WHEN, "vm": pl.UInt16, "vcpu": pl.Int32})

#: One row per list register as vgic_v3_populate_lr left it: `value` is ICH_LR<n>_EL2 (null: it was none of those
#: that are recorded), `pending` the LPI's latch after it.
FILL_RETURNS = pl.Schema(
    {
        **_WHEN,
        "vm": pl.UInt16,
        "vcpu": pl.Int32,
        "intid": pl.UInt32,
        "lr": pl.Int32,
        "pending": pl.Boolean,
        "value": pl.UInt64,
    }
)

#: One row per device, event or collection that KVM allocated or freed (`op`); `event_bits` and `itt_gpa` of a device
#: that was allocated.
ALLOCATIONS = pl.Schema(
    {
        **_WHEN,
        "vm": pl.UInt16,
        "op": pl.String,  # alloc_device, free_device, alloc_event, free_event, alloc_collection, free_collection
        "device_id": pl.UInt32,
        "event_id": pl.UInt32,
        "icid": pl.UInt32,
        "event_bits": pl.UInt8,
        "itt_gpa": pl.UInt64,
    }
)

#: One row per 1, 8 or 32 bytes that KVM read out of guest memory: commands, saved table entries, property and
#: pending bytes.
GUEST_READS = pl.Schema(
    {
        **_WHEN,
        "vm": pl.UInt16,
        "gpa": pl.UInt64,
        "size_bytes": pl.UInt32,
        "value": pl.UInt64,
        "result": pl.Int32,
    }
)

#: One row per stretch that a vCPU's task spent in the guest.
RUNS = pl.Schema(
    {
        "vm": pl.UInt16,
        "vcpu": pl.Int32,
        "pid": pl.Int32,
        "enter_seq": pl.UInt64,
        "enter_ns": pl.Int64,
        "exit_seq": pl.UInt64,
        "exit_ns": pl.Int64,
    }
)

#: One row per thing that happens to a vCPU or VM and is no command: flush_lpis (EnableLPIs 1->0), enable_lpis,
#: invlpir (GICR_INVLPIR, of `intid`), invallr (GICR_INVALLR), save_tables, restore_tables, save_pending.
VM_EVENTS = pl.Schema(
    {
        **_WHEN,
        "vm": pl.UInt16,
        "what": pl.String,
        "vcpu": pl.Int32,
        "its": pl.UInt16,
        "intid": pl.UInt32,
    }
)

#: One row per record that its own call belies, or what else is recorded of its task, ITS or vCPU. `what`: no return (the
#: task called again), no entry (it returned twice, or nothing led to it), missing (a record that every such call makes),
#: another value (`field` is not what the call's other record says), twice (a record that a call makes once), at odds
#: (`field` is not what all other records say). What is missing would lie between `from_ns` and `to_ns` (null: `time_ns`).
#: X
CONTRADICTIONS = pl.Schema(
    {
        **_WHEN,
        "probe": pl.String,
        "partner": pl.String,
        "what": pl.String,
        "field": pl.String,
        "from_ns": pl.Int64,
        "to_ns": pl.Int64,
    }
)

#: One row per record that is stamped in an order in which it cannot have happened. `what`: run (two runs of one vCPU,
#: on different CPUs, overlap), guest (KVM worked for a vCPU while the same CPU had it in the guest), command (one that
#: its queue has behind another is stamped before it). `by_ns`: how far at least the two clocks disagree.
DISORDER = pl.Schema(
    {
        "what": pl.String,
        "seq": pl.UInt64,
        "time_ns": pl.Int64,
        "cpu": pl.UInt16,
        "pid": pl.Int32,
        "other_seq": pl.UInt64,
        "other_ns": pl.Int64,
        "other_cpu": pl.UInt16,
        "by_ns": pl.Int64,
    }
)

#: One row per note written into the trace.
MARKERS = pl.Schema({**_WHEN, "text": pl.String})

#: From when to when a table entry held one value. `from_seq` is the record that set it (null: from before the
#: capture), `to_seq` the one that ended it (null: it still holds). `set_by` and `ended_by` are the commands
#: that did it (seq of COMMANDS; null: a restore, a register write, an assumption). `assumed`: not seen set,
#: only used.
_INTERVAL = {
    "from_seq": pl.UInt64,
    "from_ns": pl.Int64,
    "to_seq": pl.UInt64,
    "to_ns": pl.Int64,
    "set_by": pl.UInt64,
    "ended_by": pl.UInt64,
    "assumed": pl.Boolean,
}

#: One row per interval in which one device table entry held one value.
DEVICES = pl.Schema(
    {
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "device_id": pl.UInt32,
        "event_bits": pl.UInt8,
        "itt_gpa": pl.UInt64,
        **_INTERVAL,
    }
)

#: One row per interval in which one collection table entry held one value; a null target is a collection not
#: yet mapped.
COLLECTIONS = pl.Schema(
    {"vm": pl.UInt16, "its": pl.UInt16, "icid": pl.UInt32, "target_vcpu": pl.Int32, **_INTERVAL}
)

#: One row per interval in which one interrupt translation entry held one value; a null icid is an orphan
#: (MAPC V=0 on KVM).
MAPPINGS = pl.Schema(
    {
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "device_id": pl.UInt32,
        "event_id": pl.UInt32,
        "intid": pl.UInt32,
        "icid": pl.UInt32,
        **_INTERVAL,
    }
)

#: One row per interval in which an LPI was, by the commands, to be queued for one vCPU (KVM:
#: irq->target_vcpu).
TARGETS = pl.Schema({"vm": pl.UInt16, "intid": pl.UInt32, "target_vcpu": pl.Int32, **_INTERVAL})

#: One row per interval in which KVM held one configuration of an LPI.
CONFIGURATIONS = pl.Schema(
    {"vm": pl.UInt16, "intid": pl.UInt32, "enabled": pl.Boolean, "priority": pl.UInt8, **_INTERVAL}
)

#: One row per LPI configuration that an image of guest memory holds of an LPI that KVM knew then: what the guest had
#: written, whether or not KVM had read it. `seq` is the image's place among the records.
WRITTEN = pl.Schema(
    {
        "vm": pl.UInt16,
        "seq": pl.UInt64,
        "time_ns": pl.Int64,
        "intid": pl.UInt32,
        "enabled": pl.Boolean,
        "priority": pl.UInt8,
    }
)

#: One row per command: what it says and what the model makes of it. `verdict`: ok, fault, ignored,
#: unreadable, assumed.
VERDICTS = pl.Schema(
    {
        "seq": pl.UInt64,
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "opcode": pl.String,
        "text": pl.String,
        "verdict": pl.String,
        "fault": pl.String,  # name of the command error, as MOVI_UNMAPPED_INTERRUPT
        "detail": pl.String,
    }
)

#: One row per thing that KVM must do (or may, where not `certain`) because of a record `seq`: a command
#: (`command_seq` is the same), or else a register write or what KVM was seen to take for one. `what`: alloc_device,
#: free_device, alloc_event, free_event, alloc_collection, free_collection, retarget (of an LPI, to `vcpu`),
#: invalidate (the cache of `its`; null: those of the VM), trigger, invall (of `vcpu`), config_read, clear_pending.
#: A null operand is unknown, or any.
EXPECTED = pl.Schema(
    {
        "seq": pl.UInt64,
        "command_seq": pl.UInt64,
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "what": pl.String,
        "device_id": pl.UInt32,
        "event_id": pl.UInt32,
        "intid": pl.UInt32,
        "icid": pl.UInt32,
        "vcpu": pl.Int32,
        "certain": pl.Boolean,
    }
)

#: One row per stretch in which an LPI was pending on one vCPU: on its ap_list (`where` queued) or in a list
#: register (`where` list_register). Two overlapping rows with different vCPUs are an LPI live on two vCPUs.
PENDING = pl.Schema(
    {
        "vm": pl.UInt16,
        "vcpu": pl.Int32,
        "intid": pl.UInt32,
        "where": pl.String,
        "from_seq": pl.UInt64,
        "from_ns": pl.Int64,
        "to_seq": pl.UInt64,
        "to_ns": pl.Int64,
    }
)

#: One row per injection, to its end. `outcome`: delivered, coalesced (into one already pending), refused,
#: lost, cleared (CLEAR, EnableLPIs=0), pending (at the end), unknown. `moves`: how often it changed vCPU on
#: its way.
LIVES = pl.Schema(
    {
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "device_id": pl.UInt32,
        "event_id": pl.UInt32,
        "intid": pl.UInt32,
        "injected_seq": pl.UInt64,
        "injected_ns": pl.Int64,
        "result": pl.Int32,
        "queued_seq": pl.UInt64,
        "queued_ns": pl.Int64,
        "queued_vcpu": pl.Int32,
        "filled_seq": pl.UInt64,
        "filled_ns": pl.Int64,
        "filled_vcpu": pl.Int32,
        "retired_seq": pl.UInt64,
        "retired_ns": pl.Int64,
        "refills": pl.UInt32,  # times it went back to the list register untaken
        "moves": pl.UInt32,
        "outcome": pl.String,
    }
)

#: One row per record after which the latch (pending_latch) of an LPI is known. `by`: queue, fill, fold, flush, or what
#: `cleared` and `pending_bits` say.
LATCHES = pl.Schema(
    {
        "vm": pl.UInt16,
        "intid": pl.UInt32,
        "seq": pl.UInt64,
        "time_ns": pl.Int64,
        "vcpu": pl.Int32,
        "latched": pl.Boolean,
        "by": pl.String,
    }
)

#: One row per LPI whose latch a command cleared (`by` clear) or EnableLPIs=0 flushed.
CLEARED = pl.Schema(LATCHES)

#: One row per LPI whose latch was set, or not, as a pending table in guest memory says.
PENDING_BITS = pl.Schema(LATCHES)

_CHAIN: _Columns = {
    **FILLS,
    "taken": pl.Boolean,
    "chain": pl.UInt32,
    "latched_by": pl.String,
    "latched_seq": pl.UInt64,
    "was_latched": pl.Boolean,
}

#: One row per fill that took a latched interrupt: FILLS, numbered within the LPI into chains, each up to the fill that
#: the guest took. `latched_by`: what latched it last (null: nothing that was seen), at `latched_seq`; `was_latched`:
#: whether it was, as far as seen.
CHAINS = pl.Schema(_CHAIN)

_FINDING: _Columns = {
    "id": pl.String,
    "code": pl.String,
    "name": pl.String,
    "kind": pl.String,
    "severity": pl.String,
    "confidence": pl.String,
    "vm": pl.UInt16,
    "its": pl.UInt16,
    "device_id": pl.UInt32,
    "event_id": pl.UInt32,
    "intid": pl.UInt32,
    "vcpus": pl.List(pl.Int32),
    "time_ns": pl.Int64,
    "end_ns": pl.Int64,
    "count": pl.UInt64,
    "message": pl.String,
    "advice": pl.String,
    "claim": pl.String,
    "mechanism": pl.String,
    "worst": pl.String,
    "measure": pl.Float64,
    "guest_saw": pl.String,
    "suspect": pl.List(pl.String),
    "known_bugs": pl.List(pl.String),
    "doubt": pl.String,
    "capture_next": pl.String,
    "blames": pl.List(pl.UInt64),
    "seqs": pl.List(pl.UInt64),
    "caused_by": pl.List(pl.String),
    "leads_to": pl.List(pl.String),
}

#: One row per finding, the worst first; see `itstrace.findings.Finding`. `seqs`: the records that it rests on, `blames`:
#: the commands that it holds responsible. `measure` is what its worst occurrence was chosen by.
FINDINGS = pl.Schema(_FINDING)

#: One row per record that a finding shows, in the finding's order; `finding` is its id.
EVIDENCE = pl.Schema(
    {
        "finding": pl.String,
        "seq": pl.UInt64,
        "time_ns": pl.Int64,
        "cpu": pl.UInt16,
        "event": pl.String,
        "text": pl.String,
    }
)

_SUBJECT: _Columns = {
    "finding": pl.String,
    "device_id": pl.UInt32,
    "event_id": pl.UInt32,
    "intid": pl.UInt32,
    "vcpus": pl.List(pl.Int32),
    "count": pl.UInt64,
    "time_ns": pl.Int64,
    "end_ns": pl.Int64,
}

#: One row per device, event or LPI that a finding is about, by first occurrence.
SUBJECTS = pl.Schema(_SUBJECT)
