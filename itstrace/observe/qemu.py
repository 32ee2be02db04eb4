"""What QEMU's own ITS logged, as observations: the same frames, as far as its lines tell them.

One QEMU has one ITS, which works under QEMU's big lock: what it does for a command or an MSI stands between that line and
the next command, MSI or access to its registers, whichever thread came. QEMU logs an access to a register after it has
done what that asks: the commands that a write of GITS_CWRITER set off stand before it.

There is no ap_list and no list register: what becomes of an LPI behind the ITS is not told.

Source: hw/intc/arm_gicv3_its.c:process_cmdq, gicv3_its_write, gicv3_its_translation_write, do_process_its_cmd (QEMU 10.0)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from itstrace import schemas
from itstrace.gic.commands import COMMAND_SIZE_BYTES, Command, Opcode, build
from itstrace.gic.faults import Fault
from itstrace.gic.registers import FRAME_MASK, GITS_CBASER, GITS_CTLR, decode_gits_cbaser, decode_gits_ctlr
from itstrace.observe.identity import Identity
from itstrace.observe.joins import after, before
from itstrace.observe.runs import NEVER
from itstrace.readers import qemulog

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from itstrace.observe.collect import Raw

_ITS = pl.lit(0, pl.UInt16)
_COMMANDS = {
    f"qemu_{event}": Opcode[event.removeprefix("cmd_").upper()]
    for event in qemulog.FORMATS
    if event.startswith("cmd_") and event != "cmd_unknown"
}
#: Records between which QEMU's ITS is busy with one thing.
_STEPS = (
    "qemu_process_command",
    *_COMMANDS,
    "qemu_cmd_unknown",
    "qemu_read",
    "qemu_write",
    "qemu_translation_write",
)
#: KVM's word for an MSI that a disabled ITS drops. Kernel: vgic-its.c:vgic_its_trigger_msi.
_EBUSY = 16
#: ITE.INTTYPE of a physical LPI. Source: hw/intc/gicv3_internal.h:ITE_INTTYPE_PHYSICAL
_PHYSICAL = 1


def command_of(opcode: Opcode, operands: Mapping[str, int]) -> Command:
    """The command that a `cmd_*` event tells. QEMU does not say SYNC's RDbase nor INVALL's ICID: they are 0.

    Raises: ValueError for operands that no command can have.
    """
    values = dict(operands)
    if opcode is Opcode.MAPD:
        values["event_bits"] = values.pop("size") + 1
        values["itt_gpa"] = values.pop("itt_addr") << 8
    elif opcode is Opcode.VMAPP:
        values["vpt_gpa"] = values.pop("vpt_addr") << 16
        values["vpt_bits"] = values.pop("vpt_size") + 1
    return build(opcode, **values)


def is_qemu(raw: Raw) -> bool:
    """Whether these probes are of QEMU's log."""
    return any(name.startswith("qemu_") for name in raw.events)


def by_life(raw: Raw) -> Raw:
    """Add to each record of QEMU's the column `vm`: the machine's lives, from reset to reset.

    A reset is not logged. A guest that boots reads GITS_CTLR first, and finds Enabled to be 0 though nobody cleared it.
    """
    access = pl.concat(
        [
            raw[name]
            .filter(pl.col("offset") == GITS_CTLR)
            .select("seq", "data", read=pl.lit(name == "qemu_read"))
            for name in ("qemu_read", "qemu_write")
        ]
    ).sort("seq")
    resets, enabled = [], False
    for seq, data, read in access.iter_rows():
        now = decode_gits_ctlr(data).enabled
        if read and enabled and not now:
            resets.append(seq)
        enabled = now
    starts = np.array(resets, np.uint64)
    frames = {
        name: frame.with_columns(
            vm=pl.Series(np.searchsorted(starts, frame["seq"].to_numpy(), side="right"), dtype=pl.UInt16)
        )
        if name.startswith("qemu_")
        else frame
        for name, frame in raw.frames.items()
    }
    return replace(raw, frames=frames)


def identify(raw: Raw) -> Identity:
    """A VM for each life of the machine, each with one ITS, whose address no line tells.

    It is known from its first command on where its queue was seen being set up before.
    """
    steps = _steps(raw)
    queues = raw["qemu_write"].filter(pl.col("offset") == GITS_CBASER)
    uses = pl.concat(
        [raw[name].select("vm", "seq") for name in ("qemu_process_command", "qemu_translation_write")]
    )
    vms: list[tuple[Any, ...]] = []
    itss: list[tuple[Any, ...]] = []
    first_of = [dict(frame.group_by("vm").agg(pl.col("seq").min()).iter_rows()) for frame in (queues, uses)]
    starts = dict(steps.group_by("vm").agg(pl.struct(pl.col("seq", "time_ns").first())).iter_rows())
    lives = sorted(starts)
    for vm, following in zip(lives, [*lives, None][1:], strict=True):
        queue, used = (first.get(vm) for first in first_of)
        complete = queue is not None and (used is None or queue < used)
        end = starts.get(following, {"seq": None, "time_ns": None})
        first = starts[vm]["seq"] if vms else 0
        vms.append((vm, None, first, end["seq"], starts[vm]["time_ns"], end["time_ns"], complete))
        itss.append((vm, 0, None, None, first, complete))
    return Identity(
        vms=pl.DataFrame(vms, schema=schemas.VMS, orient="row"),
        itss=pl.DataFrame(itss, schema=schemas.ITSS, orient="row"),
        vcpus=pl.DataFrame(schema=schemas.VCPUS),
        tasks=pl.DataFrame(schema={"pid": pl.Int32, "seq": pl.UInt64, "vm": pl.UInt16}),
    )


def _steps(raw: Raw) -> pl.DataFrame:
    """Shape: seq, time_ns, vm, in order: see `_STEPS`."""
    return pl.concat([raw[name].select("seq", "time_ns", "vm") for name in _STEPS]).sort("seq")


# --- commands


@dataclass(slots=True)
class _Told:
    """A command as far as it is told: where its line stands, its place in the queue, its words."""

    row: dict[str, Any]
    slot: int | None
    opcode: int
    command: Command | None


def commands(raw: Raw) -> pl.DataFrame:
    """Every ITS command in the order of the queue.

    A command whose operands are not told, though QEMU prints them for its opcode, is not readable. Opcodes that this QEMU
    does not have are told by their number alone.

    Shape: rows of COMMANDS.
    """
    queues = _queues(raw)
    queue, size = next(queues, None), None
    expected: int | None = None
    vm: int | None = None
    rows: list[dict[str, Any]] = []
    for told in _told(raw):
        if vm != told.row["vm"]:
            expected, size, vm = None, None, told.row["vm"]
        while queue is not None and queue[0] < told.row["seq"]:
            expected, size = 0, queue[1]
            queue = next(queues, None)
        slot = told.slot if told.slot is not None else expected
        # Where the queue's size was not seen, it may wrap anywhere.
        broken = expected is not None and slot != expected and (size is not None or slot != 0)
        words = (0, 0, 0, 0) if told.command is None else told.command.dw
        dwords = dict(zip(("dw0", "dw1", "dw2", "dw3"), words, strict=True))
        readable = told.command is not None
        rows.append({**told.row, "slot": slot, **dwords, "readable": readable, "lost_before": broken})
        expected = None if slot is None else slot + COMMAND_SIZE_BYTES
        if expected is not None and size is not None and expected >= size:
            expected = 0
    late = {"end_seq", "end_ns", "its"}
    schema = {name: dtype for name, dtype in schemas.COMMANDS.items() if name not in late}
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(its=_ITS)
    frame = after(frame, _steps(raw), "vm", end_seq="seq", end_ns="time_ns")
    return frame.select(schemas.COMMANDS.names()).cast(schemas.COMMANDS)


def _queues(raw: Raw) -> Iterator[tuple[int, int | None]]:
    """Where GITS_CBASER was written, which takes the queue back to its beginning, and its size in bytes.

    Source: hw/intc/arm_gicv3_its.c:its_writell; while the ITS is enabled the register cannot be written.
    """
    writes = raw["qemu_write"].filter(pl.col("offset").is_in([GITS_CTLR, GITS_CBASER, GITS_CBASER + 4]))
    enabled, size, vm = False, None, None
    for seq, offset, data, now in writes.sort("seq").select("seq", "offset", "data", "vm").iter_rows():
        if now != vm:
            enabled, size, vm = False, None, now
        if offset == GITS_CTLR:
            enabled = decode_gits_ctlr(data).enabled
        elif not enabled:
            size = decode_gits_cbaser(data).size_bytes if offset == GITS_CBASER else size
            yield seq, size


def _told(raw: Raw) -> Iterator[_Told]:
    """Commands as the log tells each in two lines: that it is being processed, then what it says."""
    lines = [
        (row["seq"], name, row)
        for name in ("qemu_process_command", "qemu_cmd_unknown", *_COMMANDS)
        for row in raw[name].iter_rows(named=True)
    ]
    lines.sort(key=lambda line: line[0])
    begun: _Told | None = None
    for _, name, row in lines:
        head = {key: row.pop(key) for key in ("seq", "time_ns", "cpu", "pid", "vm")}
        if name == "qemu_process_command":
            if begun is not None:
                yield begun
            number = row["opcode"] & 0xFF
            silent = number not in _SAID
            command = Command((number, 0, 0, 0)) if silent else None
            begun = _Told(head, _slot(row["slot"]), number, command)
            continue
        opcode = _COMMANDS.get(name)
        number = row["opcode"] & 0xFF if opcode is None else int(opcode)
        if begun is not None and begun.opcode != number:
            yield begun
            begun = None
        slot = None if begun is None else begun.slot
        yield _Told(head, slot, number, _command(opcode, number, row))
        begun = None
    if begun is not None:
        yield begun


#: Opcodes whose operands QEMU prints always. Source: hw/intc/arm_gicv3_its.c: those of GICv4 only where it has virtual LPIs.
_SAID = {int(opcode) for opcode in _COMMANDS.values() if not opcode.is_gicv4}


def _slot(number: int) -> int | None:
    offset = number * COMMAND_SIZE_BYTES
    return offset if offset < 1 << 32 else None


def _command(opcode: Opcode | None, number: int, operands: dict[str, int]) -> Command | None:
    try:
        return Command((number, 0, 0, 0)) if opcode is None else command_of(opcode, operands)
    except ValueError:
        return None


# --- registers


def register_writes(raw: Raw) -> pl.DataFrame:
    """The guest's writes to registers of the ITS. Shape: rows of REGISTER_WRITES."""
    rows = raw["qemu_write"].filter((pl.col("offset") < 1 << 16) & pl.col("size").is_in([1, 2, 4, 8]))
    rows = rows.with_columns(its=_ITS, value="data", size_bytes="size", user=pl.lit(value=False))
    return rows.sort("seq").select(schemas.REGISTER_WRITES.names()).cast(schemas.REGISTER_WRITES)


# --- MSIs


def injections(raw: Raw, taken: pl.DataFrame) -> pl.DataFrame:
    """MSIs and INT commands, and how far QEMU's ITS came with each through its tables.

    Shape: rows of INJECTIONS; `end_seq` is the last table entry that was read for it.
    """
    msis = raw["qemu_translation_write"].filter((pl.col("offset") & FRAME_MASK) == _TRANSLATER)
    none = pl.lit(None, dtype=pl.UInt64)
    head = [pl.col(name) for name in ("seq", "time_ns", "cpu", "pid", "vm")]
    parts = [
        msis.select(*head, "device_id", pl.col("data").alias("event_id"), from_command=none),
        raw["qemu_cmd_int"].select(*head, "device_id", "event_id", from_command="seq"),
    ]
    rows = pl.concat(parts).with_columns(its=_ITS).sort("seq")
    rows = after(rows, _steps(raw), "vm", next_seq="seq")
    for name, values in _READS.items():
        rows = _with_read(raw, rows, name, values)
    rows = before(rows, _enables(raw), "vm", enabled="enabled")
    rows = rows.with_columns(
        result=_result(raw),
        end_seq=pl.coalesce(pl.max_horizontal("dte_seq", "ite_seq", "cte_seq"), "seq"),
        end_ns=pl.coalesce(pl.max_horizontal("dte_ns", "ite_ns", "cte_ns"), "time_ns"),
        intid=pl.when(pl.col("cte_valid") == 1).then("ite_intid"),
        cached=pl.lit(value=False),
        queue_seq=none,
    )
    # An INT's line is its command's own, unless that was told by its number alone.
    known = rows["from_command"].is_null() | rows["from_command"].is_in(taken["seq"].implode())
    rows = rows.filter(known & (pl.col("device_id") < 1 << 32) & (pl.col("event_id") < 1 << 32))
    return rows.select(schemas.INJECTIONS.names()).cast(schemas.INJECTIONS, strict=False)


#: GITS_TRANSLATER within its frame. Spec: IHI 0069H, GITS_TRANSLATER.
_TRANSLATER = 0x40
#: The entries that are read for an MSI, in that order, and what is wanted of each.
_READS = {"dte": ("valid",), "ite": ("valid", "inttype", "intid"), "cte": ("valid",)}


def _with_read(raw: Raw, rows: pl.DataFrame, name: str, values: tuple[str, ...]) -> pl.DataFrame:
    """Add what was read of a table for each row: `NAME_seq`, `NAME_ns` and the values; null where nothing was."""
    nothing = [pl.lit(0, dtype=pl.UInt64).alias(value) for value in values]
    read = pl.concat(
        [
            raw[f"qemu_{name}_read"].select("seq", "time_ns", "vm", *values),
            raw[f"qemu_{name}_read_fault"].select("seq", "time_ns", "vm", *nothing),
        ]
    )
    columns = {f"{name}_seq": "seq", f"{name}_ns": "time_ns"} | {f"{name}_{value}": value for value in values}
    rows = after(rows, read, "vm", **columns)
    within = pl.col(f"{name}_seq") < pl.col("next_seq").fill_null(NEVER)
    return rows.with_columns(pl.when(within).then(pl.col(column)).alias(column) for column in columns)


def _enables(raw: Raw) -> pl.DataFrame:
    """When the guest switched the ITS on or off. Shape: seq, vm, enabled."""
    writes = raw["qemu_write"].filter(pl.col("offset") == GITS_CTLR)
    enabled = [decode_gits_ctlr(data).enabled for data in writes["data"].to_list()]
    return writes.select("seq", "vm").with_columns(enabled=pl.Series(enabled, dtype=pl.Boolean))


def _result(raw: Raw) -> pl.Expr:
    """0, or the error that the first missing entry is; null where the log does not have such lines at all."""
    if not (raw.has("qemu_dte_read") and raw.has("qemu_ite_read") and raw.has("qemu_cte_read")):
        return pl.lit(None, dtype=pl.Int32)
    # No table was read at all; of a device whose entry is read at other times, the lines were cut out of the log.
    inside = pl.col("device_id").is_in(raw["qemu_dte_read"]["device_id"].unique().implode())
    off = pl.when(~pl.col("enabled")).then(-_EBUSY).when(~inside).then(int(Fault.INT_DEVICE_OOR))
    # Behind the last of a log's lines more may have stood.
    cut = pl.col("next_seq").is_null()
    return (
        pl.when(cut & pl.any_horizontal(pl.col(f"{name}_valid").is_null() for name in _READS))
        .then(None)
        .when(pl.col("dte_valid").is_null())
        .then(off)
        .when(pl.col("dte_valid") == 0)
        .then(int(Fault.INT_UNMAPPED_DEVICE))
        .when(pl.col("ite_valid").is_null())
        .then(int(Fault.INT_ID_OOR))
        .when(pl.col("ite_valid") == 0)
        .then(int(Fault.INT_UNMAPPED_INTERRUPT))
        .when(pl.col("ite_inttype") != _PHYSICAL)
        .then(None)
        .when(pl.col("cte_valid").fill_null(0) == 0)
        .then(int(Fault.INT_UNMAPPED_INTERRUPT))
        .otherwise(0)
    )


# --- vCPUs


def vcpu_limits(raw: Raw, taken: pl.DataFrame) -> dict[int, int]:
    """By VM: a number that no vCPU reaches, where QEMU's ITS refused a MAPC for its RDbase.

    No line says how many vCPUs there are; but a MAPC V=1 that writes no collection, to an ICID that was written before or
    after, can only have been refused for its target.
    """
    if not raw.has("qemu_cte_write"):
        return {}
    asked = raw["qemu_cmd_mapc"].filter(pl.col("valid") == 1).join(taken.select("seq", "end_seq"), on="seq")
    wrote = raw["qemu_cte_write"]
    asked = after(asked, wrote, "vm", wrote="seq")
    done = pl.col("wrote").is_not_null() & (pl.col("wrote") < pl.col("end_seq").fill_null(NEVER))
    asked = asked.join(wrote.group_by("vm").agg(largest=pl.col("icid").max()), on="vm")
    # The last line of a log may be cut off behind the command.
    refused = asked.filter(~done & pl.col("end_seq").is_not_null() & (pl.col("icid") <= pl.col("largest")))
    return dict(refused.group_by("vm").agg(pl.col("rdbase").min()).iter_rows())
