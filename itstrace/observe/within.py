"""What is recorded inside a call against the call itself, and what one ITS, vCPU or task is said to be against the rest.

The kernel's functions call each other in a fixed way: a record that one of them must have made, made twice, or made with
another value than its caller had, belies them. Where it is KVM that departs from the commands, the rules say so; here
are only things that no kernel can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.gic.commands import Opcode
from itstrace.observe.collect import FIRST_LPI
from itstrace.observe.identity import TRANSLATER_OFFSET, strays
from itstrace.observe.joins import after, before
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from itstrace.observe.collect import Raw
    from itstrace.observe.identity import Identity
    from itstrace.observe.runs import Runs

#: One kind of contradiction: rows of records, and probe, partner, what, field.
Found = tuple[pl.DataFrame, str, str, str, str | None]

COMMAND_BYTES: Final = 32
#: Both kinds of register frames are 64 KiB. Spec: IHI 0069H, memory maps.
_FRAME_MASK: Final = 0xFFFF
#: GITS_CWRITER.Offset [19:5]. Spec: IHI 0069H, GITS_CWRITER.
_CWRITER_OFFSET: Final = 0xF_FFE0
#: What of GITS_CBASER KVM keeps as it was written: Valid, address but for [15:12], Size.
#: Kernel: vgic-its.c:vgic_sanitise_its_cbaser (v6.1)
_CBASER_KEPT: Final = 0x800F_FFFF_FFFF_00FF
#: GITS_CTLR.Enabled. Spec: IHI 0069H, GITS_CTLR.
_ENABLED: Final = 1
#: GITS_BASER<n>. Spec: IHI 0069H, ITS register map.
_GITS_BASER: Final = 0x100
#: Records inside vgic_its_process_commands, and what of the call they repeat.
_IN_PROCESS: Final = {
    "command": ("its", "kvm", "cwriter"),
    "guest_read": ("kvm",),
    "invalidate": ("its", "kvm"),
    "alloc_device": ("its",),
    "alloc_collection": ("its",),
    "free_collection": ("its",),
    "trigger": ("its",),
}
#: What a command does once at the most, and what tells two of them apart. Kernel: vgic-its.c:vgic_its_cmd_handle_*
_ONCE: Final = {
    "alloc_device": (),
    "alloc_event": (),
    "alloc_collection": (),
    "free_device": (),
    "free_event": ("event_id",),
    "free_collection": (),
    "invall": (),
    "inv_lpi": (),
    "trigger": (),
    "invalidate": (),
    "affinity": ("intid",),
}
#: Offset and size of the registers that each function writes. Spec: IHI 0069H, register maps.
_REGISTERS: Final = {
    "write_ctlr": (0x0000, 4),
    "write_cbaser": (0x0080, 8),
    "write_cwriter": (0x0088, 8),
    "write_baser": (0x0100, 64),
    "write_rctlr": (0x0000, 4),
    "write_propbaser": (0x0070, 8),
    "write_pendbaser": (0x0078, 8),
}
#: CBASER.Physical_Address [51:12]. Spec: IHI 0069H, GITS_CBASER.
_CBASER_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
#: GICR_PENDBASER.Physical_Address [51:16]. Spec: IHI 0069H, GICR_PENDBASER.
_PENDBASER_ADDRESS: Final = 0x000F_FFFF_FFFF_0000
#: What is missing may lie anywhere before.
_ALWAYS: Final = pl.lit(0, dtype=pl.Int64).alias("from_ns")
#: A task that has told so often which vCPU it runs, runs that.
_MANY: Final = 8
#: An LPI that is latched and enabled goes into a list register before the next stay, if one is free.
_STAYS: Final = 4
#: How many list registers the probes show, at most.
_SHOWN_LRS: Final = 4


def inside(raw: Raw, commands: pl.DataFrame, identity: Identity, runs: Runs) -> Iterator[Found]:
    """Everything recorded that cannot be so, kind by kind."""
    yield from _in_process(raw)
    yield from _in_msi(raw)
    yield from _queued(raw)
    yield from _hits(raw)
    yield from _registers(raw)
    yield from _places(raw)
    yield from _read(raw, identity)
    yield from _frames(raw, identity)
    yield from _states(raw)
    yield from _once(raw, commands)
    yield from _synced(raw, commands)
    yield from _tasks(raw, identity)
    yield from _folds(raw, runs)
    yield from _pointers(raw)
    yield from _addresses(raw, identity)
    yield from _set_up(raw)
    yield from _enabled(raw, identity, runs)
    yield from _freed(raw, commands, identity)
    yield from _vcpu_pointers(raw)
    yield from _irq_pointers(raw)
    yield from _targets(raw, commands)
    yield from _configured(raw, commands)
    yield from _latched(raw, runs)


def _present(raw: Raw, *probes: str) -> bool:
    return all(raw[probe].height for probe in probes)


def _shared(raw: Raw, one: str, other: str, columns: Iterable[str]) -> list[str]:
    return [c for c in columns if raw.gives(one, c) and raw.gives(other, c)]


def _within(
    rows: pl.DataFrame, entry: pl.DataFrame, end: pl.DataFrame, columns: Iterable[str] = ()
) -> pl.DataFrame:
    """Rows inside a call of their task whose two ends were recorded, with the call's `_begun`, `_close` and columns."""
    rows = before(rows, entry, _begun="seq", **{f"_{c}": c for c in columns})
    rows = after(before(rows, end, _ended="seq"), end, _close="seq")
    rows = after(rows, entry, _again="seq")
    return rows.filter(
        pl.col("_begun").is_not_null()
        & (pl.col("_begun") > pl.col("_ended").fill_null(0))
        & (pl.col("_close") < pl.col("_again").fill_null(NEVER))
    )


def _unlike(rows: pl.DataFrame, probe: str, partner: str, columns: Iterable[str]) -> Iterator[Found]:
    for column in columns:
        wrong = rows.filter(pl.col(column) != pl.col(f"_{column}"))
        yield wrong, probe, partner, "another value", column


def _in_process(raw: Raw) -> Iterator[Found]:
    """Whose queue it is, and how far it goes, is the same for all that one call of vgic_its_process_commands does."""
    if not _present(raw, "process", "process_end"):
        return
    for probe, columns in _IN_PROCESS.items():
        same = _shared(raw, probe, "process", columns)
        rows = raw[probe]
        if probe == "guest_read":
            rows = rows.filter(pl.col("len") == COMMAND_BYTES)
        if same and rows.height:
            rows = _within(rows, raw["process"], raw["process_end"], same)
            yield from _unlike(rows, probe, "process", same)


def _in_msi(raw: Raw) -> Iterator[Found]:
    """An MSI goes through the cache, or else through the tables; each step says what became of it.

    Kernel: vgic-its.c:vgic_its_inject_msi returns 1 where vgic_its_trigger_msi returned 0, and 0 for its positive
        codes; vgic_its_trigger_msi returns what vgic_its_resolve_lpi did, if that failed (v6.1, v6.12).
    """
    if not _present(raw, "msi", "msi_end"):
        return
    own = ["device_id", "event_id"]
    msis = after(after(raw["msi"], raw["msi_end"], _end="seq", _ret="ret"), raw["msi"], _next="seq")
    msis = msis.filter(pl.col("_end") < pl.col("_next").fill_null(NEVER))
    if _present(raw, "cached"):
        msis = after(msis, raw["cached"], _cached="seq", _cached_ret="ret")
        tried = pl.col("_cached") < pl.col("_end")
        hit = tried & (pl.col("_cached_ret") == 0)
        said = (hit & (pl.col("_ret") != 1)).fill_null(value=False)
        yield msis.filter(said), "msi_end", "cached", "another value", "ret"
        if _present(raw, "trigger"):
            called = after(msis, raw["trigger"], _trigger="seq", **{f"_{c}": c for c in own})
            there = (pl.col("_trigger") < pl.col("_end")).fill_null(value=False)
            # An address that is no ITS's is refused before. Kernel: vgic-its.c:vgic_msi_to_its
            due = tried & (pl.col("_cached_ret") != 0) & (pl.col("_ret") >= 0)
            yield called.filter(due & ~there), "trigger", "msi", "missing", None
            yield called.filter(hit & there), "cached", "trigger", "another value", "ret"
            yield from _unlike(called.filter(there), "msi", "trigger", own)
    if _present(raw, "cached", "queue"):
        queues = _within(raw["queue"], raw["msi"], raw["cached"])
        queues = after(queues, raw["cached"], _hit="ret").filter(pl.col("_hit") == 0)
        again = queues.filter(~pl.col("_begun").is_first_distinct())
        yield again, "queue", "msi", "twice", None
    if _present(raw, "trigger_end"):
        rows = _within(raw["trigger_end"].with_columns(_got="ret"), raw["msi"], raw["msi_end"])
        rows = after(rows, raw["msi_end"], _ret="ret")
        due = pl.when(pl.col("_got") == 0).then(1).when(pl.col("_got") > 0).then(0).otherwise(pl.col("_got"))
        yield rows.filter(due != pl.col("_ret")), "msi_end", "trigger_end", "another value", "ret"
    if _present(raw, "trigger_end", "trigger", "resolve_end"):
        rows = _within(raw["resolve_end"], raw["trigger"], raw["trigger_end"])
        rows = after(rows, raw["trigger_end"], _ret="ret")
        wrong = (pl.col("ret") != 0) & (pl.col("ret") != pl.col("_ret"))
        yield rows.filter(wrong), "trigger_end", "resolve_end", "another value", "ret"


def _queued(raw: Raw) -> Iterator[Found]:
    """The LPI that was resolved is the one that is queued, once."""
    if not _present(raw, "queue", "trigger", "trigger_end"):
        return
    calls = after(raw["trigger"], raw["trigger_end"], _end="seq", _ret="ret")
    calls = after(calls, raw["trigger"], _next="seq")
    calls = calls.filter(pl.col("_end") < pl.col("_next").fill_null(NEVER))
    calls = after(calls, raw["queue"], _queue="seq", intid="intid", irq="irq")
    there = (pl.col("_queue") < pl.col("_end")).fill_null(value=False)
    yield calls.filter(~there & (pl.col("_ret") == 0)), "queue", "trigger", "missing", None
    yield calls.filter(there & (pl.col("_ret") != 0)), "trigger_end", "queue", "another value", "ret"
    within = _within(raw["queue"], raw["trigger"], raw["trigger_end"])
    again = within.filter(pl.col("_begun").is_duplicated() & ~pl.col("_begun").is_first_distinct())
    yield again, "queue", "trigger", "twice", None
    if not _present(raw, "resolve_end"):
        return
    same = _shared(raw, "resolve_end", "queue", ("intid", "irq"))
    # Up to v6.1 what could not be resolved leaves garbage behind.
    rows = after(
        calls.drop("device_id", "event_id"),
        raw["resolve_end"],
        _resolved="seq",
        _got="ret",
        **{f"_{c}": c for c in same},
    )
    rows = rows.filter(there & (pl.col("_resolved") < pl.col("_queue")) & (pl.col("_got") == 0))
    yield from _unlike(rows, "queue", "resolve_end", same)


def _hits(raw: Raw) -> Iterator[Found]:
    """A hit of the translation cache has queued its LPI just before it returns, outside of vgic_its_inject_msi as well.

    Kernel: vgic-its.c:vgic_its_inject_cached_translation, which irqfd calls where it may not sleep (v6.12)
    """
    if not _present(raw, "cached", "queue"):
        return
    on = ["pid", "cpu"]
    rows = before(raw["cached"], raw["queue"], on, _queue="seq")
    rows = before(rows, raw["cached"], on, _last="seq", from_ns="time_ns").drop_nulls("_last")
    late = (pl.col("_queue").is_null() | (pl.col("_queue") < pl.col("_last"))) & (pl.col("ret") == 0)
    yield rows.filter(late), "queue", "cached", "missing", None


def _registers(raw: Raw) -> Iterator[Found]:
    """Each write to GITS_CWRITER or GITS_CTLR goes through the queue, and the queue is gone through for nothing else.

    Kernel: vgic-its.c:vgic_mmio_write_its_cwriter, vgic_mmio_write_its_ctlr (v6.12)
    """
    if not _present(raw, "process"):
        return
    writes = [raw[name] for name in ("write_cwriter", "write_ctlr")]
    both = pl.concat([frame.select("pid", "seq") for frame in writes])
    if _present(raw, "write_cwriter") and raw.has("write_ctlr"):
        rows = before(before(raw["process"], both, _write="seq"), raw["process"], _last="seq")
        alone = pl.col("_write").is_null() | (pl.col("_write") < pl.col("_last").fill_null(0))
        # The first of a task may have been asked for before the capture began.
        yield rows.filter(alone & pl.col("_last").is_not_null()), "process", "write_cwriter", "no entry", None
    for probe in ("write_cwriter", "write_ctlr"):
        rows = after(
            raw[probe],
            raw["process"],
            _process="seq",
            _its="its",
            _cwriter="cwriter",
            _enabled="enabled",
            _cbaser="cbaser",
        )
        rows = before(after(rows, both, _next="seq"), raw["process"], "its", _queue="cbaser")
        called = pl.col("_process") < pl.col("_next").fill_null(NEVER)
        over = pl.col("_next").is_not_null() & ~called.fill_null(value=False)
        yield from _unlike(rows.filter(called), probe, "process", ["its"])
        if probe == "write_ctlr":
            on = pl.col("val") & _ENABLED
            # Kernel: vgic-its.c:vgic_mmio_write_its_ctlr refuses to enable an ITS without its tables
            yield rows.filter(over & (on == 0)), "process", probe, "missing", None
            yield rows.filter(called & (pl.col("_enabled") != on)), probe, "process", "another value", "val"
        else:
            low = (pl.col("addr") & 7) == 0
            offset = pl.col("val") & _CWRITER_OFFSET
            other = called & low & (pl.col("_cwriter") != offset)
            yield rows.filter(other), probe, "process", "another value", "val"
            # Beyond the queue's end it is ignored.
            short = offset < ((pl.col("_queue") & 0xFF) + 1) * 4096
            yield rows.filter(over & low & short), "process", probe, "missing", None


def _places(raw: Raw) -> Iterator[Found]:
    """Each of these functions writes one register of 4 or 8 bytes; which one it is, its address says.

    Kernel: vgic-its.c:its_registers, vgic-mmio-v3.c:vgic_v3_rd_registers (v6.12)
    """
    for probe, (first, size_bytes) in _REGISTERS.items():
        rows = raw[probe]
        offset = pl.col("addr") & _FRAME_MASK
        length = pl.col("len").fill_null(4) if "len" in rows.columns else pl.lit(4)
        inside = offset.is_between(first, first + size_bytes - 1) & (offset % length == 0)
        yield rows.filter(~inside), probe, probe, "at odds", "addr"
        if "len" in rows.columns:
            yield rows.filter(~pl.col("len").is_in([4, 8])), probe, probe, "at odds", "len"
        if "its" in rows.columns and _present(raw, "process"):
            base = pl.col("addr") - offset
            bases = raw["process"].drop_nulls("base").unique("its", keep="first")
            named = rows.join(bases.select("its", _base="base"), on="its", how="inner", maintain_order="left")
            yield (
                named.filter((base != 0) & (base != pl.col("_base"))),
                probe,
                "process",
                "another value",
                "addr",
            )


def _read(raw: Raw, identity: Identity) -> Iterator[Found]:
    """A command is read from its slot, and a pending bit from the byte of its LPI."""
    if _present(raw, "guest_read", "command", "process") and raw.gives("guest_read", "gpa"):
        reads = raw["guest_read"].filter((pl.col("len") == COMMAND_BYTES) & (pl.col("ret").fill_null(0) == 0))
        rows = before(raw["command"], reads, _at="seq", _gpa="gpa")
        rows = before(
            before(rows, raw["process"], _begun="seq", _cbaser="cbaser"), raw["command"], _last="seq"
        )
        own = pl.col("_at") > pl.max_horizontal(pl.col("_begun"), pl.col("_last").fill_null(0))
        slot = pl.col("_gpa") - (pl.col("_cbaser") & _CBASER_ADDRESS)
        yield rows.filter(own & (slot != pl.col("creadr"))), "guest_read", "command", "another value", "gpa"
    bases = raw["write_pendbaser"].filter(pl.col("len").fill_null(8) == 8)
    if not _present(raw, "sync_pending") or bases.is_empty() or not identity.vms["complete"].all():
        return
    known = (bases["val"] & _PENDBASER_ADDRESS).unique()
    halves = raw["write_pendbaser"].filter((pl.col("len") == 4) & (pl.col("val") & 0xFFFF_FFFF != 0))
    if halves.height:
        return  # a VMM restores the register by halves
    for probe in ("guest_read", "guest_read_begin"):
        frame = raw[probe].filter(pl.col("len") == 1)
        rows = after(raw["sync_pending"], frame, _read="seq", _gpa="gpa")
        rows = after(after(rows, raw["sync_pending"], _next="seq"), raw["config"], _config="seq")
        until = pl.min_horizontal("_next", "_config").fill_null(NEVER)
        table = pl.col("_gpa") - pl.col("intid").cast(pl.UInt64) // 8
        rows = rows.filter((pl.col("_read") < until) & ~table.is_in(known.implode()))
        wrong = frame.filter(pl.col("seq").is_in(rows["_read"].implode()))
        yield wrong.with_columns(_ALWAYS), probe, "sync_pending", "another value", "gpa"


def _frames(raw: Raw, identity: Identity) -> Iterator[Found]:
    """The redistributor that a guest's write is to says of which vCPU it is.

    Spec: IHI 0069H, a redistributor's RD_base and SGI_base frames are 128 KiB together.
    """
    probes = ("write_rctlr", "write_propbaser", "write_pendbaser")
    parts = [
        raw[probe].select("seq", "time_ns", "cpu", "pid", "vcpu", "addr", probe=pl.lit(probe))
        for probe in probes
    ]
    rows = identity.with_vm(pl.concat(parts).filter(pl.col("addr") > _FRAME_MASK).sort("seq"))
    rows = rows.with_columns(_frame=pl.col("addr") // (2 * (_FRAME_MASK + 1)))
    frame = ["vm", "_frame"]
    each = rows.group_by(*frame, "vcpu").agg(_n=pl.len())
    rows = rows.join(each, on=[*frame, "vcpu"], how="left", maintain_order="left", nulls_equal=True)
    rows = rows.filter((pl.col("_n") == 1) & (pl.col("_n").max().over(frame) > 1))
    for (probe,), found in rows.group_by(["probe"], maintain_order=True):
        yield found, str(probe), str(probe), "at odds", "vcpu"


def _states(raw: Raw) -> Iterator[Found]:
    """What an ITS holds from one call of vgic_its_process_commands to the next changes only by a write."""
    if not _present(raw, "process"):
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


def _once(raw: Raw, commands: pl.DataFrame) -> Iterator[Found]:
    """What no command does twice. Kernel: vgic-its.c:vgic_its_cmd_handle_* (v6.1, v6.12)."""
    spans = commands.select("pid", "seq", "end_seq", opcode=pl.col("dw0") & 0xFF)
    for probe, keys in _ONCE.items():
        if raw[probe].height < 2:
            continue
        rows = before(raw[probe], spans, _command="seq", _end="end_seq", _opcode="opcode")
        rows = rows.filter(pl.col("seq") < pl.col("_end"))
        if probe == "affinity":
            # Events that share an LPI (up to v6.12) are each moved with their collection.
            rows = rows.filter(pl.col("_opcode") != int(Opcode.MAPC))
        same = ["_command", *keys]
        again = ~pl.struct(same).is_first_distinct()
        yield rows.filter(again), probe, "command", "twice", None


def _synced(raw: Raw, commands: pl.DataFrame) -> Iterator[Found]:
    """The pending bit of a new LPI is read right after its configuration.

    Kernel: vgic-its.c:vgic_add_lpi calls update_lpi_config, then vgic_v3_lpi_sync_pending_status (v6.12)
    """
    if not _present(raw, "sync_pending", "config"):
        return
    fresh = {f"_{c}": c for c in ("enabled", "priority") if raw.gives("config", c)}
    rows = before(raw["sync_pending"], raw["config"], _config="seq", _intid="intid", **fresh)
    rows = before(rows, raw["sync_pending"], _last="seq")
    known = pl.col("_config").is_not_null()
    again = pl.col("_last") > pl.col("_config")
    yield rows.filter(known & again), "sync_pending", "config", "twice", None
    yield from _unlike(rows.filter(known), "sync_pending", "config", ["intid"])
    for name, column in fresh.items():
        # It was just allocated, and all of it is zero.
        yield (
            rows.filter(known & ~again.fill_null(value=False) & (pl.col(name) != 0)),
            "config",
            "sync_pending",
            "at odds",
            column,
        )
    if not _present(raw, "config_end"):
        return
    spans = commands.select("pid", "seq", "end_seq", opcode=pl.col("dw0") & 0xFF)
    rows = before(raw["config"], spans, _command="seq", _over="end_seq", _opcode="opcode")
    rows = rows.filter(
        (pl.col("seq") < pl.col("_over")) & pl.col("_opcode").is_in([int(Opcode.MAPTI), int(Opcode.MAPI)])
    )
    rows = after(after(rows, raw["config_end"], _end="seq", _ret="ret"), raw["sync_pending"], _sync="seq")
    done = (pl.col("_end") < pl.col("_over")) & (pl.col("_ret") == 0)
    there = (pl.col("_sync") < pl.col("_over")).fill_null(value=False)
    yield rows.filter(done & ~there), "sync_pending", "config", "missing", None


def _tasks(raw: Raw, identity: Identity) -> Iterator[Found]:
    """A task runs one vCPU: one record of many that says another is wrong."""
    owns = identity.vcpus.select("pid", _owns="vcpu").unique("pid", keep="none")
    for probe in ("fill", "fill_end", "fold"):
        rows = raw[probe].drop_nulls("vcpu").join(owns, on="pid", how="inner", maintain_order="left")
        wrong = rows.filter(pl.col("vcpu") != pl.col("_owns"))
        if wrong.is_empty():
            continue
        counts = rows.group_by("pid", "vcpu").agg(_n=pl.len())
        total = rows.group_by("pid").agg(_of=pl.len())
        wrong = wrong.join(counts, on=["pid", "vcpu"], how="left", maintain_order="left")
        wrong = wrong.join(total, on="pid", how="left", maintain_order="left")
        yield wrong.filter((pl.col("_n") == 1) & (pl.col("_of") >= _MANY)), probe, "fill", "at odds", "vcpu"


def _folds(raw: Raw, runs: Runs) -> Iterator[Found]:
    """What is folded was filled since the last fold, and all of it is folded.

    Kernel: vgic-v3.c:vgic_v3_fold_lr_state goes through used_lrs list registers, and sets it to 0 (v6.12)
    """
    if not _present(raw, "fold", "fill"):
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
    if _present(raw, "fill_end") and raw.gives("fill_end", "value"):
        rows = before(raw["fill_end"].drop("lr"), raw["fill"], lr="lr")
        for index in range(_SHOWN_LRS):
            if raw.gives("fill_end", f"lr{index}"):
                wrong = (pl.col("lr") == index) & (pl.col("value") != pl.col(f"lr{index}"))
                yield rows.filter(wrong), "fill_end", "fill", "another value", f"lr{index}"


def _pointers(raw: Raw) -> Iterator[Found]:
    """Pointers that no other record names, of tasks that otherwise name others."""
    for probe, column, rows in strays(raw):
        yield rows, probe, "process", "at odds", column


def _addresses(raw: Raw, identity: Identity) -> Iterator[Found]:
    """An MSI that was taken was written to the doorbell of an ITS. Kernel: vgic-its.c:vgic_msi_to_its (v6.12)."""
    if not _present(raw, "msi", "msi_end") or identity.itss["base_gpa"].null_count():
        return
    rows = after(after(raw["msi"], raw["msi_end"], _ret="ret", _end="seq"), raw["msi"], _next="seq")
    rows = rows.filter((pl.col("_end") < pl.col("_next").fill_null(NEVER)) & (pl.col("_ret") >= 0))
    doorbell = pl.col("lo").cast(pl.UInt64) + pl.col("hi").cast(pl.UInt64) * 2**32
    known = (identity.itss["base_gpa"] + TRANSLATER_OFFSET).unique()
    yield rows.filter(~doorbell.is_in(known.implode())), "msi", "msi_end", "another value", "lo"


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
    bases = raw["write_baser"].with_columns(_which=(pl.col("addr") & _FRAME_MASK & ~7) - _GITS_BASER)
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
    since = resets.filter(pl.col("addr") <= _FRAME_MASK)["seq"].min()
    rows = rows.filter(pl.min_horizontal(marks) > since) if since is not None else rows.clear()
    for number, (probe, name) in enumerate(set_up):
        lacking = rows.filter(pl.col(f"_set{number}").is_null()).with_columns(_ALWAYS)
        yield lacking, "write_ctlr", probe, "no entry", name


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


def _vcpu_pointers(raw: Raw) -> Iterator[Found]:
    """A `struct kvm_vcpu` has one number: one record of many that says another is wrong."""
    for probe, pointer, vcpu in (("affinity", "vcpu_ptr", "vcpu"), ("queue", "owner_ptr", "owner_vcpu")):
        if not raw[probe].height or not raw.gives(probe, pointer) or not raw.gives(probe, vcpu):
            continue
        rows = raw[probe].filter((pl.col(pointer) != 0) & pl.col(vcpu).is_not_null())
        counts = rows.group_by(pointer, vcpu).agg(n=pl.len())
        often = counts.sort("n", descending=True).group_by(pointer, maintain_order=True)
        told = often.agg(_of=pl.col("n").sum(), _usual=pl.col(vcpu).first(), _kinds=pl.len())
        told = told.filter((pl.col("_kinds") > 1) & (pl.col("_of") >= _MANY))
        rows = rows.join(told, on=pointer, how="inner", maintain_order="left")
        rows = rows.filter(pl.col(vcpu) != pl.col("_usual"))
        rows = rows.join(counts, on=[pointer, vcpu], how="left", maintain_order="left")
        yield rows.filter(pl.col("n") == 1), probe, probe, "at odds", vcpu


def _irq_pointers(raw: Raw) -> Iterator[Found]:
    """A `struct vgic_irq` is one LPI's as long as it lives: not another's for one record in between."""
    parts = []
    for probe in ("queue", "affinity", "resolve_end"):
        frame = raw[probe]
        if frame.height and raw.gives(probe, "irq") and raw.gives(probe, "intid"):
            frame = frame.filter(pl.col("ret") == 0) if probe == "resolve_end" else frame
            parts.append(frame.select("seq", "time_ns", "cpu", "pid", "irq", "intid", probe=pl.lit(probe)))
    if not parts:
        return
    rows = pl.concat(parts).drop_nulls(["irq", "intid"]).sort("seq")
    rows = rows.with_columns(
        _last=pl.col("intid").shift(1).over("irq"),
        _next=pl.col("intid").shift(-1).over("irq"),
        _last_irq=pl.col("irq").shift(1).over("intid"),
        _next_irq=pl.col("irq").shift(-1).over("intid"),
    )
    other = (pl.col("_last") == pl.col("_next")) & (pl.col("intid") != pl.col("_last"))
    back = (pl.col("_last_irq") == pl.col("_next_irq")) & (pl.col("irq") != pl.col("_last_irq"))
    # Where this is all that is said of the pointer, it may be a second object for the LPI: ITS406.
    mine = (pl.col("_last") == pl.col("intid")) | (pl.col("_next") == pl.col("intid"))
    known = pl.col("_last").is_not_null() | pl.col("_next").is_not_null()
    rows = rows.filter(
        other.fill_null(value=False) | (back & known & ~mine.fill_null(value=False)).fill_null(value=False)
    )
    for (probe,), found in rows.group_by(["probe"], maintain_order=True):
        yield found, str(probe), str(probe), "at odds", "irq"


def _targets(raw: Raw, commands: pl.DataFrame) -> Iterator[Found]:
    """An LPI keeps its target until update_affinity, or a new MAPTI, gives it another."""
    if not _present(raw, "affinity", "queue"):
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


def _configured(raw: Raw, commands: pl.DataFrame) -> Iterator[Found]:
    """What update_lpi_config is called with, and what it can return.

    Kernel: vgic-its.c:update_lpi_config returns 0 or an errno and takes over the priority without its low two bits;
        vgic_its_inv_lpi alone asks it to tell the hardware (v6.12)
    """
    for probe in ("config", "config_end"):
        if raw.gives(probe, "priority"):
            yield raw[probe].filter(pl.col("priority") & 3 != 0), probe, probe, "at odds", "priority"
    if raw.gives("config_end", "ret"):
        yield raw["config_end"].filter(pl.col("ret") > 0), "config_end", "config", "another value", "ret"
    spans = commands.select("pid", "seq", "end_seq", opcode=pl.col("dw0") & 0xFF)
    rows = before(raw["config"], spans, _command="seq", _end="end_seq", _opcode="opcode")
    yield from _requeued(raw, rows)
    if not raw.gives("config", "needs_inv"):
        return
    within = (pl.col("seq") < pl.col("_end")).fill_null(value=False)
    due = pl.col("_opcode") == int(Opcode.INV)
    wrong = within & (due != (pl.col("needs_inv") != 0))
    yield rows.filter(wrong), "config", "command", "another value", "needs_inv"
    if _present(raw, "inv_lpi"):
        rows = after(raw["inv_lpi"], raw["config"], config="seq", _needs="needs_inv", _intid="intid")
        rows = after(rows, raw["inv_lpi"], _next="seq")
        rows = rows.filter(
            (pl.col("config") < pl.col("_next").fill_null(NEVER)) & (pl.col("_intid") == pl.col("intid"))
        )
        yield rows.filter(pl.col("_needs") == 0), "config", "inv_lpi", "another value", "needs_inv"
        rows = raw["config"].filter(pl.col("needs_inv") != 0)
        rows = before(rows, spans, _end="end_seq").filter(
            pl.col("_end").is_null() | (pl.col("seq") > pl.col("_end"))
        )
        rows = before(before(rows, raw["inv_lpi"], _inv="seq"), raw["config"], _last="seq")
        asked = (pl.col("_inv") > pl.col("_last").fill_null(0)).fill_null(value=False)
        yield rows.filter(~asked), "config", "inv_lpi", "no entry", None


def _requeued(raw: Raw, configs: pl.DataFrame) -> Iterator[Found]:
    """MAPTI, MAPI and INV queue their LPI again, once, when they have read its configuration.

    Kernel: vgic-its.c:update_lpi_config, but for an LPI that is forwarded to hardware (v6.12)
    """
    if not _present(raw, "config_end", "queue"):
        return
    known = raw["queue"]["intid"].unique()
    own = pl.col("_opcode").is_in([int(Opcode.MAPTI), int(Opcode.MAPI), int(Opcode.INV)])
    rows = configs.filter((pl.col("seq") < pl.col("_end")) & own & pl.col("intid").is_in(known.implode()))
    # The pending bit of a new LPI is read next, and it is queued for that as well.
    rows = after(after(rows, raw["sync_pending"], _sync="seq"), raw["config"], _next="seq")
    rows = rows.with_columns(_end=pl.min_horizontal("_end", "_sync", "_next"))
    rows = after(rows, raw["config_end"], _done="seq", _ret="ret")
    rows = after(rows, raw["guest_read"].filter(pl.col("len") == 1), _read="seq")
    rows = after(rows, raw["guest_read_begin"], _begin="seq")
    read = pl.min_horizontal("_read", "_begin") < pl.col("_end")
    rows = rows.filter((pl.col("_done") < pl.col("_end")) & (pl.col("_ret").fill_null(0) == 0) & read)
    rows = after(rows, raw["queue"], ["pid", "intid"], _queue="seq")
    there = (pl.col("_queue") < pl.col("_end")).fill_null(value=False)
    yield rows.filter(~there), "queue", "config", "missing", None
    given = after(rows.filter(there), raw["config_end"], _given="enabled")
    given = after(given, raw["queue"], ["pid", "intid"], _queued="enabled")
    wrong = (pl.col("_given") != 0) != (pl.col("_queued") != 0)
    yield given.filter(wrong), "queue", "config_end", "another value", "enabled"
    again = rows.filter(there).select("pid", "intid", "_end", seq="_queue")
    again = after(again, raw["queue"], ["pid", "intid"], _again="seq").filter(
        pl.col("_again") < pl.col("_end")
    )
    yield (
        raw["queue"].filter(pl.col("seq").is_in(again["_again"].implode())),
        "queue",
        "config",
        "twice",
        None,
    )


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
