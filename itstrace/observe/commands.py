"""The command stream: which ITS took which command, in which order, and when it had taken effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace import schemas
from itstrace.gic.commands import COMMAND_SIZE_BYTES
from itstrace.observe.joins import after, before
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.observe.collect import Raw
    from itstrace.observe.identity import Identity
    from itstrace.observe.runs import Runs

#: CBASER.Physical_Address [51:12] and Size [7:0] in pages of 4 KiB, minus one. Spec: IHI 0069H, GITS_CBASER.
CBASER_ADDRESS = 0x000F_FFFF_FFFF_F000
#: How far a batch may be out of place, by its time stamp, among the batches of its ITS.
_REACH = 16


@dataclass(slots=True)
class _Batch:
    """One call of vgic_its_process_commands: the stretch of the queue that it took."""

    seq: int
    start: int  # creadr when it began
    size_bytes: int  # of the whole queue
    slots: list[int]
    end: int | None  # creadr when it ended, where that was recorded
    queue: int | None = None  # the last write of CBASER before it


def boundaries(raw: Raw) -> pl.DataFrame:
    """Records at which a task is surely done with the command before: the next read, or the return.

    Shape: pid, seq, time_ns in order of seq.
    """
    parts = [raw[name] for name in ("command", "process", "process_end")]
    parts.append(raw["guest_read"].filter(pl.col("len") == COMMAND_SIZE_BYTES))
    return pl.concat([part.select("pid", "seq", "time_ns") for part in parts]).sort("seq")


def commands(raw: Raw, identity: Identity, ran: Runs) -> pl.DataFrame:
    """Every ITS command, in the order in which its ITS took it.

    Shape: rows of COMMANDS.
    Kernel: vgic-its.c:vgic_its_process_commands holds its->cmd_lock, so that the calls for one ITS follow
        each other; each takes the queue up where the last one left it. That chain, and not the time stamps,
        is the order.
    """
    rows = _from_probe(raw) if raw["command"].height else _from_reads(raw)
    rows = before(rows, raw["process"], batch_seq="seq", batch_its="its", cbaser="cbaser")
    if "slot" not in rows.columns:
        rows = rows.with_columns(slot=_slot(pl.col("gpa"), pl.col("cbaser")))
    rows = rows.with_columns(its=pl.coalesce("its", "batch_its")).filter(pl.col("its").is_not_null())
    rows = identity.with_its(identity.with_vm(rows)).filter(pl.col("its").is_not_null())
    rows = after(rows, boundaries(raw), end_seq="seq", end_ns="time_ns")
    # On 6.1 the return is not always recorded; a task that enters the guest is done in any case.
    rows = rows.hstack(ran.next_entry_of_task(rows))
    sooner = pl.col("entry_seq") < pl.col("end_seq").fill_null(NEVER)
    rows = rows.with_columns(
        end_seq=pl.when(sooner).then("entry_seq").otherwise("end_seq"),
        end_ns=pl.when(sooner).then("entry_ns").otherwise("end_ns"),
    )
    rows = _in_order(rows, raw)
    return rows.select(schemas.COMMANDS.names()).cast(schemas.COMMANDS)


def _slot(gpa: pl.Expr, cbaser: pl.Expr) -> pl.Expr:
    return (gpa - (cbaser & CBASER_ADDRESS)).cast(pl.UInt32, strict=False)


def _from_probe(raw: Raw) -> pl.DataFrame:
    """Commands from the probe inside the loop, and the slots that could not be read, which that probe never sees."""
    frame = raw["command"]
    good = frame.select(
        "seq",
        "time_ns",
        "cpu",
        "pid",
        "its",
        slot="creadr",
        dw0="dw0",
        dw1="dw1",
        dw2="dw2",
        dw3="dw3",
        readable=pl.lit(value=True),
    )
    failed = _from_reads(raw).filter(~pl.col("readable"))
    if failed.is_empty():
        return good
    failed = before(failed.drop("its"), raw["process"], its="its", cbaser="cbaser")
    failed = failed.with_columns(slot=_slot(pl.col("gpa"), pl.col("cbaser")))
    return pl.concat([good, failed.select(good.columns)])


def _from_reads(raw: Raw) -> pl.DataFrame:
    """Commands from kvm_read_guest: 32 bytes, between entry and return of vgic_its_process_commands on the same task.

    A read that failed may have left no words to record; its slot counts all the same.
    """
    words = ("dw0", "dw1", "dw2", "dw3")
    failed = pl.col("ret").fill_null(0) != 0
    whole = pl.all_horizontal(pl.col(word).is_not_null() for word in words)
    reads = raw["guest_read"].filter((pl.col("len") == COMMAND_SIZE_BYTES) & (whole | failed)).sort("seq")
    reads = reads.with_columns(pl.col(word).fill_null(0) for word in words)
    reads = before(reads, raw["process"], begun="seq")
    reads = before(reads, raw["process_end"], ended="seq")
    reads = reads.filter(pl.col("begun").is_not_null() & (pl.col("begun") > pl.col("ended").fill_null(0)))
    return reads.select(
        "seq",
        "time_ns",
        "cpu",
        "pid",
        "gpa",
        pl.lit(None, dtype=pl.UInt64).alias("its"),
        "dw0",
        "dw1",
        "dw2",
        "dw3",
        readable=pl.col("ret").fill_null(0) == 0,
    )


def skipped_slots(raw: Raw, identity: Identity, taken: pl.DataFrame) -> pl.DataFrame:
    """Slots that a call of vgic_its_process_commands went past without a command.

    Only where the probe inside its loop, which a failed read never reaches, is all that tells of commands; a return
    probe of kvm_read_guest says itself that a read failed, and what it lacks was lost.
    Shape: rows of SKIPPED_SLOTS.
    """
    rows: list[tuple[Any, ...]] = []
    if raw["command"].height and not raw.gives("guest_read", "ret"):
        mine = before(taken.select("pid", "seq", "slot"), raw["process"], batch_seq="seq")
        slots: dict[int, list[int]] = dict(
            mine.group_by("batch_seq").agg(pl.col("slot").sort_by("seq")).iter_rows()
        )
        calls = identity.with_its(identity.with_vm(_calls(raw))).drop_nulls("its")
        for call in calls.iter_rows(named=True):
            size_bytes = ((call["cbaser"] & 0xFF) + 1) * 4096
            read = slots.get(call["seq"], [])
            end = call["batch_end"]
            if end is None:
                end = (read[-1] + COMMAND_SIZE_BYTES) % size_bytes if read else call["creadr"]
            length = (end - call["creadr"]) % size_bytes
            passed = {(call["creadr"] + at) % size_bytes for at in range(0, length, COMMAND_SIZE_BYTES)}
            head = (
                call["seq"],
                call["time_ns"],
                call["cpu"],
                call["pid"],
                call["end_ns"],
                call["vm"],
                call["its"],
            )
            rows += [(*head, slot) for slot in sorted(passed.difference(read))]
    return pl.DataFrame(rows, schema=schemas.SKIPPED_SLOTS, orient="row")


def _calls(raw: Raw) -> pl.DataFrame:
    """Calls of vgic_its_process_commands, with `batch_end` (creadr at the return) and `end_ns` where that was recorded."""
    calls = after(raw["process"], raw["process_end"], ended="seq", batch_end="creadr", end_ns="time_ns")
    calls = after(calls, raw["process"], following="seq")
    returned = pl.col("following").is_null() | (pl.col("ended") < pl.col("following"))
    return calls.with_columns(
        pl.when(returned).then(pl.col(name)).alias(name) for name in ("batch_end", "end_ns")
    )


def _in_order(rows: pl.DataFrame, raw: Raw) -> pl.DataFrame:
    """Sort the commands of each ITS along the chain of its queue, and mark where the chain is broken.

    ITSs keep their places relative to each other by time. Adds `lost_before`.
    """
    begun = _calls(raw)
    slots: dict[int, list[int]] = dict(
        rows.group_by("batch_seq").agg(pl.col("slot").sort_by("seq")).iter_rows()
    )
    place: dict[int, int] = {}
    lost: set[tuple[int, int]] = set()
    # Writing CBASER starts the queue anew: what comes after never belongs before.
    begun = before(begun, raw["write_cbaser"], "its", queue="seq")
    for _, mine in begun.sort("seq").group_by("its", maintain_order=True):
        batches = [
            _Batch(seq, creadr, ((cbaser & 0xFF) + 1) * 4096, slots.get(seq, []), end, queue)
            for seq, cbaser, creadr, end, queue in mine.select(
                "seq", "cbaser", "creadr", "batch_end", "queue"
            ).iter_rows()
        ]
        stamps = iter(sorted(b.seq for b in batches))
        for batch, broken in _chain(batches):
            place[batch.seq] = next(stamps)
            expected = batch.start
            for index, slot in enumerate(batch.slots):
                if slot != expected or (index == 0 and broken):
                    lost.add((batch.seq, slot))
                expected = (slot + COMMAND_SIZE_BYTES) % batch.size_bytes
    order = pl.DataFrame(
        {"batch_seq": list(place), "_place": list(place.values())},
        schema={"batch_seq": pl.UInt64, "_place": pl.UInt64},
    )
    marks = pl.DataFrame(
        sorted(lost), schema={"batch_seq": pl.UInt64, "slot": pl.UInt32}, orient="row"
    ).with_columns(lost_before=pl.lit(value=True))
    rows = rows.join(order, on="batch_seq", how="left").join(marks, on=["batch_seq", "slot"], how="left")
    return rows.with_columns(pl.col("lost_before").fill_null(value=False)).sort("_place", "seq")


def _chain(batches: list[_Batch]) -> Iterator[tuple[_Batch, bool]]:
    """Batches of one ITS in the order of its queue, and whether commands before each are missing.

    The queue restarts at 0 where CBASER was written, so that a batch that starts at 0 never says that
    something is missing.
    """
    waiting = list(batches)
    expected: int | None = None
    queue: int | None = None
    while waiting:
        near = [b for b in waiting[:_REACH] if b.queue == waiting[0].queue]
        if near[0].queue != queue and near[0].start != expected:
            expected = None  # CBASER was written: the queue is another, or was restored
        queue = near[0].queue
        chosen = next((b for b in near if expected is None or b.start == expected), None)
        broken = chosen is None and near[0].start != 0
        batch = chosen or near[0]
        waiting.remove(batch)
        if batch.end is not None:
            expected = batch.end
        elif batch.slots:
            expected = (batch.slots[-1] + COMMAND_SIZE_BYTES) % batch.size_bytes
        else:
            expected = None
        yield batch, broken
