"""What an ITS, a vCPU or an LPI holds from one record to the next: it changes only by what changes it.

A register that is another without having been written, a list register that is folded and was never filled, an LPI that
goes to another vCPU and back without being moved: one of the records is wrong, or one is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.gic.commands import Opcode
from itstrace.gic.registers import FRAME_MASK, GITS_BASER
from itstrace.observe.collect import FIRST_LPI
from itstrace.observe.joins import after, before
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.observe.calls import Found
    from itstrace.observe.collect import Raw
    from itstrace.observe.identity import Identity
    from itstrace.observe.runs import Runs

#: An LPI that is latched and enabled goes into a list register before the next stay, if one is free.
_STAYS: Final = 4
#: How many list registers the probes show, at most.
_SHOWN_LRS: Final = 4


def held(raw: Raw, commands: pl.DataFrame, identity: Identity, runs: Runs) -> Iterator[Found]:
    """What does not follow from what was recorded before it, kind by kind."""
    yield from _states(raw)
    yield from _set_up(raw)
    yield from _enabled(raw, identity, runs)
    yield from _freed(raw, commands, identity)
    yield from _targets(raw, commands)
    yield from _folds(raw, runs)
    yield from _latched(raw, runs)


def _states(raw: Raw) -> Iterator[Found]:
    """What an ITS holds from one call of vgic_its_process_commands to the next changes only by a write."""
    if not raw.fired("process"):
        return
    calls = before(
        raw["process"], raw["process"], "its", _last="seq", _base="base", _enabled="enabled", _cbaser="cbaser"
    )
    calls = calls.drop_nulls("_last")
    yield calls.filter(pl.col("base") != pl.col("_base")), "process", "process", "at odds", "base"
    ends = before(calls, raw["process_end"], "its", _end="seq", _creadr="creadr", from_ns="time_ns")
    ends = before(ends, raw["write_cbaser"], "its", _set="seq")
    held = (pl.col("enabled") == 1) & (pl.col("_enabled") == 1) & (pl.col("_end") > pl.col("_last"))
    held &= pl.col("_set").is_null() | (pl.col("_set") < pl.col("_end"))
    moved = held & (pl.col("creadr") != pl.col("_creadr"))
    yield ends.filter(moved), "process", "process_end", "another value", "creadr"
    for column, probe in (("enabled", "write_ctlr"), ("cbaser", "write_cbaser")):
        if not raw.has(probe):
            continue
        rows = before(calls, raw[probe], "its", _write="seq", _val="val", _len="len")
        changed = pl.col(column) != pl.col(f"_{column}")
        unasked = pl.col("_write").fill_null(0) < pl.col("_last")
        yield rows.filter(changed & unasked), "process", probe, "at odds", column


def _set_up(raw: Raw) -> Iterator[Found]:
    """An ITS that is enabled has its queue and its tables: where one of them was seen to be set, all were.

    Kernel: vgic-its.c:vgic_mmio_write_its_ctlr refuses to enable it otherwise (v6.12)
    """
    if not raw.has("write_cbaser") or not raw.has("write_baser") or not raw["write_ctlr"].height:
        return
    # The first write of GITS_CTLR after which the queue was gone through with the ITS enabled.
    rows = after(raw["write_ctlr"], raw["process"], _its="its", _enabled="enabled")
    rows = rows.filter((pl.col("_its") == pl.col("its")) & (pl.col("_enabled") == 1))
    rows = rows.unique("its", keep="first", maintain_order=True)
    bases = raw["write_baser"].with_columns(_which=(pl.col("addr") & FRAME_MASK & ~7) - GITS_BASER)
    set_up = {
        ("write_cbaser", "cbaser"): raw["write_cbaser"],
        ("write_baser", "baser0"): bases.filter(pl.col("_which") == 0),
        ("write_baser", "baser1"): bases.filter(pl.col("_which") == 8),
    }
    for number, frame in enumerate(set_up.values()):
        rows = before(rows, frame, "its", **{f"_set{number}": "seq"})
    marks = [pl.col(f"_set{number}") for number in range(len(set_up))]
    # Redistributors that the VMM reset before show that the capture began before all of it.
    resets = pl.concat([raw[name].select("seq", "addr") for name in ("write_rctlr", "write_pendbaser")])
    since = resets.filter(pl.col("addr") <= FRAME_MASK)["seq"].min()
    rows = rows.filter(pl.min_horizontal(marks) > since) if since is not None else rows.clear()
    for number, (probe, name) in enumerate(set_up):
        lacking = rows.filter(pl.col(f"_set{number}").is_null())
        # What is missing may lie anywhere before.
        yield lacking.with_columns(from_ns=pl.lit(0, dtype=pl.Int64)), "write_ctlr", probe, "no entry", name


def _enabled(raw: Raw, identity: Identity, runs: Runs) -> Iterator[Found]:
    """A vCPU's LPIs are enabled and flushed by writes to its GICR_CTLR, each of which does so once at the most.

    They are also flushed where a vCPU is destroyed: it does not run afterwards.
    Kernel: vgic-mmio-v3.c:vgic_mmio_write_v3r_ctlr, vgic-init.c:kvm_vgic_vcpu_destroy (v6.12)
    """
    writes = raw["write_rctlr"]
    if writes.is_empty():
        return
    for probe, on in (("enable_lpis", 1), ("flush_lpis", 0)):
        rows = before(raw[probe], writes, _write="seq", _vcpu="vcpu", _val="val")
        rows = before(rows, raw[probe], _prior="seq")
        if probe == "flush_lpis":
            rows = identity.with_vm(rows)
            rows = rows.hstack(runs.next_entry(rows).select("entry_seq"))
            rows = rows.filter(pl.col("pid").is_in(identity.vcpus["pid"].implode()))
            rows = rows.drop_nulls("entry_seq")
        asked = (pl.col("_write") > pl.col("_prior").fill_null(0)) & (pl.col("_val") & 1 == on)
        yield rows.filter(~asked.fill_null(value=False)), probe, "write_rctlr", "no entry", None
        yield (
            rows.filter(asked & (pl.col("vcpu") != pl.col("_vcpu"))),
            probe,
            "write_rctlr",
            "another value",
            "vcpu",
        )


def _freed(raw: Raw, commands: pl.DataFrame, identity: Identity) -> Iterator[Found]:
    """What was freed, other than by a command, is freed again only after it was allocated again."""
    spans = commands.select("pid", "seq", "end_seq")
    if identity.itss.height != identity.vms.height:
        return  # most of these records do not say of which ITS
    for free, key in (("free_device", "device_id"), ("free_collection", "icid")):
        rows = raw[free]
        if rows.height < 2:
            continue
        rows = before(identity.with_vm(rows), spans, _end="end_seq")
        rows = rows.filter(pl.col("_end").is_null() | (pl.col("seq") > pl.col("_end")))
        rows = before(rows, rows, ["vm", key], _last="seq", from_ns="time_ns").drop_nulls("_last")
        # 7.3 does not tell of devices allocated; what names them anew then is a command.
        rows = before(rows, commands, "vm", _command="seq")
        again = pl.col("_command").is_null() | (pl.col("_command") < pl.col("_last"))
        yield rows.filter(again), free, free, "twice", None


def _targets(raw: Raw, commands: pl.DataFrame) -> Iterator[Found]:
    """An LPI keeps its target until update_affinity, or a new MAPTI, gives it another."""
    if not raw.fired("affinity", "queue"):
        return
    rows = (
        raw["queue"].select("seq", "time_ns", "cpu", "pid", "irq", "intid", "target_vcpu").drop_nulls("irq")
    )
    rows = rows.sort("seq").with_columns(
        _last=pl.col("target_vcpu").shift(1).over("irq", "intid"),
        _next=pl.col("target_vcpu").shift(-1).over("irq", "intid"),
        _from=pl.col("seq").shift(1).over("irq", "intid"),
        _to=pl.col("seq").shift(-1).over("irq", "intid"),
    )
    rows = rows.filter((pl.col("_last") == pl.col("_next")) & (pl.col("target_vcpu") != pl.col("_last")))
    if rows.is_empty():
        return
    mapti = commands.filter(pl.col("dw0") & 0xFF == int(Opcode.MAPTI))
    mapti = mapti.select("seq", intid=(pl.col("dw1") // 2**32).cast(pl.UInt32))
    given = pl.concat([raw["affinity"].select("seq", "intid"), mapti])
    rows = after(rows.with_columns(_own="seq", seq="_from"), given, "intid", _given="seq")
    rows = rows.filter(pl.col("_given").is_null() | (pl.col("_given") > pl.col("_to")))
    yield rows.with_columns(seq="_own"), "queue", "affinity", "at odds", "target_vcpu"


def _folds(raw: Raw, runs: Runs) -> Iterator[Found]:
    """What is folded was filled since the last fold, and all of it is folded.

    Kernel: vgic-v3.c:vgic_v3_fold_lr_state goes through used_lrs list registers, and sets it to 0 (v6.12)
    """
    if not raw.fired("fold", "fill"):
        return
    folds = before(raw["fold"], raw["fold"], _last="seq", from_ns="time_ns").drop_nulls("_last")
    for index in range(_SHOWN_LRS):
        value = pl.col(f"lr{index}")
        if not raw.gives("fold", f"lr{index}"):
            continue
        held = folds.filter((pl.col("used") > index) & ((value & 0xFFFF_FFFF) >= FIRST_LPI))
        held = held.with_columns(lr=pl.lit(index, dtype=pl.Int32))
        held = before(held, raw["fill"], ["pid", "lr"], _fill="seq", _intid="intid")
        there = (pl.col("_fill") > pl.col("_last")).fill_null(value=False)
        yield held.filter(~there), "fold", "fill", "missing", f"lr{index}"
    fills = after(raw["fill"], raw["fold"], _fold="seq", _used="used")
    yield fills.filter(pl.col("lr") >= pl.col("_used")), "fold", "fill", "another value", "used"
    # A list register in use is folded before the guest is entered again.
    fills = fills.hstack(runs.next_entry_of_task(fills).select(_entry="entry_seq"))
    entered = fills.drop_nulls("_entry").rename({"seq": "_fill"}).with_columns(seq="_entry")
    entered = entered.hstack(runs.next_entry_of_task(entered).select(_again="entry_seq", to_ns="entry_ns"))
    # With its ap_list flushed it leaves without a fold. Kernel: vgic.c:kvm_vgic_sync_hwstate (v6.12)
    entered = after(entered.with_columns(seq="_fill"), raw["flush_lpis"], "vcpu", _flush="seq")
    unfolded = entered.filter(pl.col("_again") < pl.min_horizontal("_fold", "_flush").fill_null(NEVER))
    # One fold tells of all list registers.
    yield unfolded.unique(["pid", "_entry"], keep="first"), "fold", "fill", "missing", None
    if raw.fired("fill_end") and raw.gives("fill_end", "value"):
        rows = before(raw["fill_end"].drop("lr"), raw["fill"], lr="lr")
        for index in range(_SHOWN_LRS):
            if raw.gives("fill_end", f"lr{index}"):
                wrong = (pl.col("lr") == index) & (pl.col("value") != pl.col(f"lr{index}"))
                yield rows.filter(wrong), "fill_end", "fill", "another value", f"lr{index}"


def _latched(raw: Raw, runs: Runs) -> Iterator[Found]:
    """An LPI that was still latched when its fill was over is filled again, and not left alone stay after stay."""
    if not raw["fill_end"].height:
        return
    rows = raw["fill_end"].filter(pl.col("pending") != 0).select("seq", "time_ns", "cpu", "pid", "intid")
    touched = ["fill", "queue", "affinity", "config_end"]
    rows = after(
        rows, pl.concat([raw[name].select("intid", "seq") for name in touched]), "intid", _touched="seq"
    )
    own = rows.rename({"seq": "_own"}).with_columns(seq="_own")
    for _ in range(_STAYS):
        entries = runs.next_entry_of_task(own)
        own = own.with_columns(seq=entries["entry_seq"], to_ns=entries["entry_ns"]).drop_nulls("seq")
    left = own.filter(pl.col("seq") < pl.col("_touched").fill_null(NEVER)).with_columns(seq="_own")
    yield left, "fill_end", "fill", "at odds", "pending"
