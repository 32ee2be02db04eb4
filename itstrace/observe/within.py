"""What is recorded inside a call against the call itself.

The kernel's functions call each other in a fixed way: a record that one of them must have made, made twice, or made with
another value than its caller had, belies them. Where it is KVM that departs from the commands, the rules say so; here
are only things that no kernel can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.gic.commands import COMMAND_SIZE_BYTES, Opcode
from itstrace.observe.commands import CBASER_ADDRESS
from itstrace.observe.joins import after, before
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from itstrace.observe.calls import Found
    from itstrace.observe.collect import Raw
    from itstrace.observe.identity import Identity

#: GITS_CWRITER.Offset [19:5]. Spec: IHI 0069H, GITS_CWRITER.
_CWRITER_OFFSET: Final = 0xF_FFE0
#: GITS_CTLR.Enabled. Spec: IHI 0069H, GITS_CTLR.
_ENABLED: Final = 1
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
#: GICR_PENDBASER.Physical_Address [51:16]. Spec: IHI 0069H, GICR_PENDBASER.
_PENDBASER_ADDRESS: Final = 0x000F_FFFF_FFFF_0000


def within(raw: Raw, commands: pl.DataFrame, identity: Identity) -> Iterator[Found]:
    """What was recorded inside a call and belies it, kind by kind."""
    yield from _in_process(raw)
    yield from _in_msi(raw)
    yield from _queued(raw)
    yield from _hits(raw)
    yield from _registers(raw)
    yield from _read(raw, identity)
    yield from _once(raw, commands)
    yield from _synced(raw, commands)
    yield from _configured(raw, commands)


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
    if not raw.fired("process", "process_end"):
        return
    for probe, columns in _IN_PROCESS.items():
        same = _shared(raw, probe, "process", columns)
        rows = raw[probe]
        if probe == "guest_read":
            rows = rows.filter(pl.col("len") == COMMAND_SIZE_BYTES)
        if same and rows.height:
            rows = _within(rows, raw["process"], raw["process_end"], same)
            yield from _unlike(rows, probe, "process", same)


def _in_msi(raw: Raw) -> Iterator[Found]:
    """An MSI goes through the cache, or else through the tables; each step says what became of it.

    Kernel: vgic-its.c:vgic_its_inject_msi returns 1 where vgic_its_trigger_msi returned 0, and 0 for its positive
        codes; vgic_its_trigger_msi returns what vgic_its_resolve_lpi did, if that failed (v6.1, v6.12).
    """
    if not raw.fired("msi", "msi_end"):
        return
    own = ["device_id", "event_id"]
    msis = after(after(raw["msi"], raw["msi_end"], _end="seq", _ret="ret"), raw["msi"], _next="seq")
    msis = msis.filter(pl.col("_end") < pl.col("_next").fill_null(NEVER))
    if raw.fired("cached"):
        msis = after(msis, raw["cached"], _cached="seq", _cached_ret="ret")
        tried = pl.col("_cached") < pl.col("_end")
        hit = tried & (pl.col("_cached_ret") == 0)
        said = (hit & (pl.col("_ret") != 1)).fill_null(value=False)
        yield msis.filter(said), "msi_end", "cached", "another value", "ret"
        if raw.fired("trigger"):
            called = after(msis, raw["trigger"], _trigger="seq", **{f"_{c}": c for c in own})
            there = (pl.col("_trigger") < pl.col("_end")).fill_null(value=False)
            # An address that is no ITS's is refused before. Kernel: vgic-its.c:vgic_msi_to_its
            due = tried & (pl.col("_cached_ret") != 0) & (pl.col("_ret") >= 0)
            yield called.filter(due & ~there), "trigger", "msi", "missing", None
            yield called.filter(hit & there), "cached", "trigger", "another value", "ret"
            yield from _unlike(called.filter(there), "msi", "trigger", own)
    if raw.fired("cached", "queue"):
        queues = _within(raw["queue"], raw["msi"], raw["cached"])
        queues = after(queues, raw["cached"], _hit="ret").filter(pl.col("_hit") == 0)
        again = queues.filter(~pl.col("_begun").is_first_distinct())
        yield again, "queue", "msi", "twice", None
    if raw.fired("trigger_end"):
        rows = _within(raw["trigger_end"].with_columns(_got="ret"), raw["msi"], raw["msi_end"])
        rows = after(rows, raw["msi_end"], _ret="ret")
        due = pl.when(pl.col("_got") == 0).then(1).when(pl.col("_got") > 0).then(0).otherwise(pl.col("_got"))
        yield rows.filter(due != pl.col("_ret")), "msi_end", "trigger_end", "another value", "ret"
    if raw.fired("trigger_end", "trigger", "resolve_end"):
        rows = _within(raw["resolve_end"], raw["trigger"], raw["trigger_end"])
        rows = after(rows, raw["trigger_end"], _ret="ret")
        wrong = (pl.col("ret") != 0) & (pl.col("ret") != pl.col("_ret"))
        yield rows.filter(wrong), "trigger_end", "resolve_end", "another value", "ret"


def _queued(raw: Raw) -> Iterator[Found]:
    """The LPI that was resolved is the one that is queued, once."""
    if not raw.fired("queue", "trigger", "trigger_end"):
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
    if not raw.fired("resolve_end"):
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
    if not raw.fired("cached", "queue"):
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
    if not raw.fired("process"):
        return
    writes = [raw[name] for name in ("write_cwriter", "write_ctlr")]
    both = pl.concat([frame.select("pid", "seq") for frame in writes])
    if raw.fired("write_cwriter") and raw.has("write_ctlr"):
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


def _read(raw: Raw, identity: Identity) -> Iterator[Found]:
    """A command is read from its slot, and a pending bit from the byte of its LPI."""
    if raw.fired("guest_read", "command", "process") and raw.gives("guest_read", "gpa"):
        reads = raw["guest_read"].filter(
            (pl.col("len") == COMMAND_SIZE_BYTES) & (pl.col("ret").fill_null(0) == 0)
        )
        rows = before(raw["command"], reads, _at="seq", _gpa="gpa")
        rows = before(
            before(rows, raw["process"], _begun="seq", _cbaser="cbaser"), raw["command"], _last="seq"
        )
        own = pl.col("_at") > pl.max_horizontal(pl.col("_begun"), pl.col("_last").fill_null(0))
        slot = pl.col("_gpa") - (pl.col("_cbaser") & CBASER_ADDRESS)
        yield rows.filter(own & (slot != pl.col("creadr"))), "guest_read", "command", "another value", "gpa"
    bases = raw["write_pendbaser"].filter(pl.col("len").fill_null(8) == 8)
    if not raw.fired("sync_pending") or bases.is_empty() or not identity.vms["complete"].all():
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
        # What is missing may lie anywhere before.
        yield (
            wrong.with_columns(from_ns=pl.lit(0, dtype=pl.Int64)),
            probe,
            "sync_pending",
            "another value",
            "gpa",
        )


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
    if not raw.fired("sync_pending", "config"):
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
    if not raw.fired("config_end"):
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
    if raw.fired("inv_lpi"):
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
    if not raw.fired("config_end", "queue"):
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
