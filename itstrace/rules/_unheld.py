"""LPIs that are pending and enabled and that nobody is going to deliver: what ITS301 finds, record by record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.observe.joins import after, before
from itstrace.rules._waiting import flushes, queued, stops
from itstrace.rules.case import LPI, NEVER, VCPU

if TYPE_CHECKING:
    from itstrace.rules.case import Case

#: Fewer list registers than any GIC has that KVM runs on; with that many in use an LPI may have to wait its
#: turn.
_LIST_REGISTERS = 4
#: Of MSIs that KVM took, at least this share is queued where the queueing's probe works.
_MOSTLY = 0.5


def lost(case: Case) -> pl.DataFrame:
    """LPIs that nobody was going to deliver, one row per stretch between two fills.

    Shape: vm, intid, vcpu, seq, time_ns, way, by_command, exit_seq, entry_seq, entry_ns, entered, next_queue,
        next_queue_ns, next_cause, next_fill, next_fill_ns, proof_ns, crowded; in order of seq.
    """
    obs = case.observations
    rows = pl.concat([_queued(case), _folded(case), _taken(case), _enabled(case)]).sort("seq")
    # Only vCPUs whose running is known show it by running.
    rows = rows.with_columns(stop=stops(case, rows))
    rows = after(rows, obs.fills, LPI, next_fill="seq", next_fill_ns="time_ns").rename({"seq": "began"})
    rows = after(
        rows.with_columns(seq="settled_seq").drop_nulls("seq"),
        obs.queueings,
        LPI,
        next_queue="seq",
        next_queue_ns="time_ns",
        next_cause="cause",
        next_owner="owner_vcpu",
        next_target="target_vcpu",
        next_irq="irq",
    )
    rows = _entries(case, rows).drop("seq").rename({"began": "seq"})
    by_queue = pl.when(pl.col("how").is_in(["taken", "enabled"])).then("next_queue").fill_null(NEVER)
    end = pl.min_horizontal(pl.col("next_fill").fill_null(NEVER), "stop", by_queue)
    entered = pl.col("entry_seq").is_not_null() & (pl.col("entry_seq") < end)
    ownerless = (
        pl.col("how").is_in(["queued", "folded"])
        & pl.col("next_owner").is_null()
        & (pl.col("next_target") == pl.col("vcpu"))
        # An LPI that was freed and mapped anew unseen is another one.
        & (pl.col("next_irq") == pl.col("irq")).fill_null(value=True)
        & (pl.col("next_queue") < pl.min_horizontal(pl.col("next_fill").fill_null(NEVER), "stop"))
    )
    tells_owner = obs.gives("queue", "owner_vcpu")
    rows = rows.with_columns(entered=entered, ownerless=ownerless.fill_null(value=False) & tells_owner)
    rows = rows.filter(pl.col("entered") | pl.col("ownerless"))
    rows = rows.with_columns(
        way=_way(tells_owner=tells_owner),
        proof_ns=pl.when("entered").then("entry_ns").otherwise("next_queue_ns"),
    )
    # One stretch of waiting is one: whatever set its latch between two fills.
    rows = before(rows, obs.fills, LPI, last_fill="seq")
    rows = rows.sort("seq").unique([*LPI, "last_fill"], keep="first", maintain_order=True)
    return case.without_lost(_whose(case, _crowded(case, rows)), "time_ns", "proof_ns")


def _way(*, tells_owner: bool) -> pl.Expr:
    """On no list: the next queueing found no owner, or there was none. Else it was on its list, and left out."""
    came_alone = pl.col("next_fill").is_not_null() & (
        pl.col("next_queue").is_null() | (pl.col("next_queue") > pl.col("next_fill"))
    )
    owned = pl.col("next_owner").is_not_null() & (pl.col("next_queue") < pl.col("next_fill").fill_null(NEVER))
    on_list = came_alone | (owned & tells_owner)
    return (
        pl.when(pl.col("how") != "queued")
        .then("how")
        .when(on_list.fill_null(value=False))
        .then(pl.lit("passed over"))
        .otherwise(pl.lit("dropped"))
    )


_BEGUN: Final = [*VCPU, "intid", "irq", "seq", "time_ns", "settled_seq", "since_seq", "by_command", "how"]


def _queued(case: Case) -> pl.DataFrame:
    """LPIs that a queueing must have put on their vCPU's list."""
    ints = case.observations.injections.drop_nulls("from_command").drop_nulls("queue_seq")
    ints = ints.select(seq="queue_seq", by_command="from_command").unique("seq")
    rows = queued(case).join(ints, on="seq", how="left", maintain_order="left")
    return rows.with_columns(how=pl.lit("queued")).select(_BEGUN)


def _folded(case: Case) -> pl.DataFrame:
    """LPIs whose list register was still pending when it was folded; the vCPU must take them along again."""
    rows = case.observations.fills.filter(
        (pl.col("ended_by") == "fold")
        & pl.col("state").is_in([1, 3])
        & pl.col("enabled").fill_null(value=True)
        & (pl.col("target_vcpu").is_null() | (pl.col("target_vcpu") == pl.col("vcpu")))
    )
    return rows.with_columns(
        since_seq="seq",
        seq=pl.col("end_seq"),
        time_ns=pl.col("end_ns"),
        settled_seq=pl.col("end_seq"),
        irq=pl.lit(None, dtype=pl.UInt64),
        by_command=pl.lit(None, dtype=pl.UInt64),
        how=pl.lit("folded"),
    ).select(_BEGUN)


def _taken(case: Case) -> pl.DataFrame:
    """LPIs whose injection succeeded and was not queued, where that is not how this capture shows all of them."""
    rows = case.observations.injections.filter(pl.col("result") == 0)
    # A direct hit of the cache is given the last queueing before it, whosever that is.
    unqueued = pl.col("queue_seq").is_null() | ~pl.col("queue_seq").is_first_distinct()
    rows = rows.with_columns(unqueued=unqueued)
    if rows.is_empty() or rows["unqueued"].mean() > 1 - _MOSTLY or not case.recorded("queue"):  # type: ignore[operator]
        return _none()
    rows = rows.filter("unqueued").drop("intid").drop_nulls(["its", "device_id", "event_id"])
    keys = ["vm", "its", "device_id", "event_id"]
    rows = rows.with_columns(seq=pl.col("end_seq"), time_ns=pl.col("end_ns")).drop_nulls("seq").sort("seq")
    rows = case.held(rows, case.history.mappings, keys, intid="intid").drop_nulls("intid")
    rows = case.held(rows, case.history.targets, LPI, vcpu="target_vcpu").drop_nulls("vcpu")
    # One that is never queued at all is forwarded to hardware.
    rows = rows.join(case.observations.queueings.select(LPI), on=LPI, how="semi", maintain_order="left")
    held = case.history.configurations
    rows = case.held(rows, held, LPI, enabled="enabled").filter(pl.col("enabled").fill_null(value=False))
    return rows.with_columns(
        irq=pl.lit(None, dtype=pl.UInt64),
        settled_seq=pl.col("seq"),
        since_seq="seq",
        by_command="from_command",
        how=pl.lit("taken"),
    ).select(_BEGUN)


def _enabled(case: Case) -> pl.DataFrame:
    """LPIs that a reading of their configuration enabled while they were latched, and that were not queued then.

    Kernel: vgic-its.c:update_lpi_config queues the LPI whatever it read, before it returns.
    """
    rows = case.observations.configs.filter(pl.col("enabled") & (pl.col("result").fill_null(0) == 0))
    rows = before(rows, case.lives.latches, LPI, latched="latched")
    rows = before(rows, case.observations.queueings, LPI, known="enabled", vcpu="target_vcpu")
    rows = rows.filter(pl.col("latched") & ~pl.col("known")).drop_nulls("vcpu")
    commands = case.observations.commands
    rows = before(rows, commands, "pid", command="seq", command_end="end_seq")
    by_command = pl.when(pl.col("seq") < pl.col("command_end").fill_null(NEVER)).then("command")
    return rows.with_columns(
        irq=pl.lit(None, dtype=pl.UInt64),
        settled_seq=pl.col("seq"),
        since_seq="seq",
        by_command=by_command,
        how=pl.lit("enabled"),
    ).select(_BEGUN)


def _none() -> pl.DataFrame:
    return pl.DataFrame(
        schema={
            "vm": pl.UInt16,
            "vcpu": pl.Int32,
            "intid": pl.UInt32,
            "irq": pl.UInt64,
            "seq": pl.UInt64,
            "time_ns": pl.Int64,
            "settled_seq": pl.UInt64,
            "since_seq": pl.UInt64,
            "by_command": pl.UInt64,
            "how": pl.String,
        }
    )


def _entries(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """The vCPU's next exit after the LPI was surely on its list, and its next entry, at which it must be filled.

    What was folded must be filled at the next entry: a fold is an exit.
    """
    runs = case.observations.runs
    at = rows.select(*VCPU, seq="settled_seq")
    exits = runs.next_exit(at)
    left = pl.when(rows["how"] == "folded").then(rows["settled_seq"]).otherwise(exits["exit_seq"])
    entries = runs.next_entry(at.select(*VCPU, left.alias("seq")))
    return rows.hstack([exits["exit_seq"], entries["entry_seq"], entries["entry_ns"]])


def _crowded(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Whether all list registers were in use at the entry; such rows are left out if the LPI came in the end."""
    used = case.observations.folds.select(*VCPU, "used", seq="seq")
    rows = rows.rename({"seq": "began"}).with_columns(seq=pl.col("entry_seq").fill_null(NEVER))
    rows = after(rows, used, VCPU, used="used").drop("seq").rename({"began": "seq"}).sort("seq")
    rows = rows.with_columns(
        crowded=(pl.col("used").fill_null(0) >= _LIST_REGISTERS) & pl.col("entered") & ~pl.col("ownerless")
    )
    return rows.filter(~pl.col("crowded") | pl.col("next_fill").is_null())


def _whose(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows whose VM is sure: where the vCPU of that number of another VM was given the LPI, it may be the one that is meant.

    A capture that begins later than its VMs does not always tell whose vCPU a task is.
    """
    if case.observations.vms.height <= 1:
        return rows
    fills = case.observations.fills.select("vcpu", "intid", "seq", "vm")
    rows = after(rows, fills, ["vcpu", "intid"], _filled="seq", _whose="vm")
    proof = pl.when("entered").then("entry_seq").otherwise("next_queue")
    other = (pl.col("_whose") != pl.col("vm")) & (pl.col("_filled") < proof)
    return rows.filter(~other.fill_null(value=False)).drop("_filled", "_whose").sort("seq")


# --- flushed with the latch still set


def left_latched(case: Case) -> pl.DataFrame:
    """LPIs that a flush took off their vCPU's list with their latch still set, and that were moved or queued after it.

    Shape: vm, intid, seq and time_ns (of the flush), flushed (its vCPU), latched_seq, vcpu, moved, moved_by (where it was moved
        to, and by what), entry_seq, entry_ns, next_queue, next_queue_ns, missed (the new vCPU entered the guest without it).
    Kernel: vgic.c:vgic_flush_pending_lpis (v6.12) leaves pending_latch as it is.
    """
    obs, history = case.observations, case.history
    keeps = [vm for vm, keeps in history.flush_keeps_latch.items() if keeps]
    found = flushes(case).filter(pl.col("vm").is_in(keeps)).rename({"vcpu": "flushed"})
    if found.is_empty():
        return found.with_columns(intid=None, missed=None)
    latches = case.lives.latches
    rows = found.join(latches.select(LPI).unique(), on="vm")
    rows = before(rows, latches, LPI, latched="latched", latched_seq="seq", on="vcpu")
    rows = before(rows, obs.queueings, LPI, enabled="enabled")
    rows = rows.filter(pl.col("latched") & pl.col("enabled") & (pl.col("on") == pl.col("flushed")))
    # The write of the register and the flush that follows from it are one.
    rows = rows.unique([*LPI, "latched_seq"], keep="last", maintain_order=True).sort("seq")
    rows = after(
        rows,
        obs.queueings,
        LPI,
        next_queue="seq",
        next_queue_ns="time_ns",
        next_owner="owner_vcpu",
        next_pending="pending",
    )
    rows = after(rows, obs.fills, LPI, next_fill="seq")
    table = obs.vm_events.filter(pl.col("what") == "enable_lpis").select("vm", flushed="vcpu", seq="seq")
    rows = after(rows, table, ["vm", "flushed"], read="seq")
    moves = history.targets.drop_nulls("set_by").with_columns(seq="from_seq").sort("seq")
    rows = after(rows, moves, LPI, moved="from_seq", moved_by="set_by", vcpu="target_vcpu")
    rows = rows.rename({"seq": "at"}).with_columns(seq=case.ends_of(rows["moved_by"]))
    over = stops(case, rows.select("vm", "intid", "vcpu", since_seq=pl.col("seq").fill_null(NEVER - 1)))
    exits = obs.runs.next_exit(rows)
    entries = obs.runs.next_entry(rows.select(*VCPU, exits["exit_seq"].alias("seq")))
    rows = rows.with_columns(
        exits["exit_seq"], entries["entry_seq"], entries["entry_ns"], over.alias("stop")
    ).with_columns(seq="at")
    until = [pl.col(name).fill_null(NEVER) for name in ("next_queue", "next_fill", "read")]
    moved = pl.col("moved") < pl.min_horizontal(*until)
    missed = moved & (pl.col("entry_seq") < pl.min_horizontal(*until, "stop"))
    again = (
        pl.col("next_owner").is_null()
        & pl.col("next_pending")
        & (pl.col("next_queue") < pl.min_horizontal(*until[1:]))
    )
    rows = rows.with_columns(missed=missed.fill_null(value=False), again=again.fill_null(value=False))
    rows = rows.filter(pl.col("missed") | pl.col("again"))
    rows = rows.with_columns(
        end_ns=pl.coalesce("entry_ns", "next_queue_ns"),
        moved_by=pl.when(moved).then("moved_by"),
        moved=pl.when(moved).then("moved"),
        vcpu=pl.when(moved).then("vcpu"),
        entry_seq=pl.when("missed").then("entry_seq"),
    )
    return case.without_lost(rows, "time_ns", "end_ns")
