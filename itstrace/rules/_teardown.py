"""What KVM frees where a VM ends is what its tables held: a part of ITS203.

Kernel: vgic-its.c:vgic_its_destroy frees all devices of an ITS, each with its events, then all its collections, each list
    in the order in which it was made (v6.1, v6.12)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.observe.joins import before

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.rules.case import Case

#: How much longer than the longest step of a teardown the capture goes on after one that surely was over.
_QUIET: Final = 10
_TABLES: Final = (
    ("free_device", "devices", ("device_id",)),
    ("free_event", "mappings", ("device_id", "event_id")),
    ("free_collection", "collections", ("icid",)),
)


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that KVM freed and the tables did not hold at the end (`freed`), or the other way round."""

    vm: int
    what: str
    ids: dict[str, int | None]
    freed: bool
    #: The last command that put it there, or took it away; None: none that is known.
    by: int | None
    seqs: tuple[int | None, ...]
    time_ns: int
    intid: int | None = None


def leftovers(case: Case) -> Iterator[Leftover]:
    """Where a VM's end was recorded and its tables are known from its start: what was freed beside what they held."""
    obs = case.observations
    for vm in obs.vms.drop_nulls("to_seq").filter("complete").iter_rows(named=True):
        mine = obs.commands.filter(pl.col("vm") == vm["vm"])
        if mine["lost_before"].any() or obs.itss.filter(pl.col("vm") == vm["vm"]).height != 1:
            continue
        frees = obs.allocations.filter((pl.col("vm") == vm["vm"]) & (pl.col("seq") >= vm["to_seq"]))
        frees = frees.filter(pl.col("op").str.starts_with("free_"))
        if frees.is_empty():
            continue
        frees = frees.filter(pl.col("pid") == frees["pid"][0]).sort("seq")
        last_ns: int = frees["time_ns"].max()  # type: ignore[assignment]
        if case.lost(vm["start_ns"], last_ns):
            continue
        yield from _compared(case, vm, _with_devices(frees), over=_over(case, frees))


def _with_devices(frees: pl.DataFrame) -> pl.DataFrame:
    """An event is freed with the device that was freed last."""
    devices = frees.filter(pl.col("op") == "free_device")
    rows = before(frees, devices, _device="device_id")
    of_event = pl.col("op") == "free_event"
    return rows.with_columns(device_id=pl.when(of_event).then("_device").otherwise("device_id"))


def _over(case: Case, frees: pl.DataFrame) -> bool:
    """Whether the capture goes on long enough for the teardown to be all in it."""
    times: list[int] = frees["time_ns"].sort().to_list()
    steps = [later - earlier for earlier, later in pairwise(times)]
    return case.end_ns is not None and bool(steps) and case.end_ns - times[-1] > _QUIET * max(steps)


def _compared(case: Case, vm: dict[str, Any], frees: pl.DataFrame, *, over: bool) -> Iterator[Leftover]:
    for op, table, keys in _TABLES:
        freed = frees.filter(pl.col("op") == op)
        if not case.observations.records.get(op):
            continue
        history = getattr(case.history, table).filter(pl.col("vm") == vm["vm"])
        held = history.filter(pl.col("to_seq") == vm["to_seq"])
        if held["assumed"].any() or history["assumed"].any():
            continue
        got = {
            tuple(row[:-2]): (row[-2], row[-1]) for row in freed.select(*keys, "seq", "time_ns").iter_rows()
        }
        due = {tuple(row[:-1]): row[-1] for row in held.select(*keys, pl.struct(held.columns)).iter_rows()}
        for ids in got.keys() - due.keys():
            seq, time_ns = got[ids]
            past = history
            for key, value in zip(keys, ids, strict=True):
                past = past.filter(pl.col(key) == value)
            took = past.sort("to_seq")["ended_by"].to_list()[-1:] or [None]
            intid = past["intid"][-1] if past.height and "intid" in past.columns else None
            yield Leftover(
                vm["vm"], op, dict(zip(keys, ids, strict=True)), True, took[0], (*took, seq), time_ns, intid
            )
        # Later ones of its list, or of the lists that come after it, were freed.
        latest: int | None = freed["seq"].max()  # type: ignore[assignment]
        done = over or not frees.filter(pl.col("seq") > (latest or 0)).is_empty()
        first_freed: int = frees["seq"][0]
        for ids in due.keys() - got.keys():
            row = due[ids]
            later = any(
                row["from_seq"] is not None and due[one]["from_seq"] > row["from_seq"]
                for one in got.keys() & due.keys()
            )
            if not done and not later:
                continue
            yield Leftover(
                vm["vm"],
                op,
                dict(zip(keys, ids, strict=True)),
                False,
                row["set_by"],
                (row["set_by"], first_freed, latest),
                vm["end_ns"],
                row.get("intid"),
            )
