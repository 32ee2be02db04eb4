"""Tables that were saved and then restored, in the same VM or in another: shared by ITS601 and ITS602."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.gic.registers import decode_gits_baser, decode_gits_cbaser
from itstrace.rules.case import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.replay import History, Restored
    from itstrace.rules.case import Case

Event = tuple[int, int]
_CBASER, _BASER = 0x80, 0x100
#: A restore is compared with so many saves before it.
_SAVES = 16


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that was not restored as it was saved. `event` None: the entry of a device (`device`) or collection.

    `how`: the mechanism. `saved` and `restored` in words (None: nothing). `set_by`: the command that made the saved
    state. `sure`: the saved entry is known, not only from its use.
    """

    how: str
    saved: str | None
    restored: str | None
    device: int | None = None
    event: int | None = None
    intid: int | None = None
    vcpus: tuple[int, ...] = ()
    set_by: int | None = None
    sure: bool = True


@dataclass(slots=True)
class Trip:
    """One way of an ITS's tables through guest memory: from a save (rows of VM_EVENTS) to a restore.

    `certain`: the VM that was saved did not run in between, so that this is the save that was restored. `like`: most of
    the tables are the same, so that they are one guest's. `older`: what came back is what an older save had.
    """

    save: dict[str, Any]
    pending: dict[str, Any] | None
    restored: Restored
    certain: bool
    differences: list[Difference] = field(default_factory=list)
    older: bool = False

    @property
    def like(self) -> bool:
        """Whether the better part of what was restored is what was saved."""
        return len(self.differences) <= len(self.restored.events) // 2

    @property
    def doubt(self) -> str:
        """Why what differs may mean nothing, in words; empty where it is certain."""
        if not self.certain:
            return "The VM ran on after the save: another one may have been restored."
        if self.older:
            return "What was restored is what an older save had: the tables were not written, or that one was meant."
        return "" if self.like else "So much differs that another guest may have been restored."


@dataclass(slots=True)
class Tables:
    """An ITS's tables at a save. `complete`: all that is not in them was not mapped. Values: see `Restored`."""

    complete: bool
    collections: dict[int, dict[str, Any]]
    devices: dict[int, dict[str, Any]]
    events: dict[Event, dict[str, Any]]


def trips(case: Case) -> Iterator[Trip]:
    """Every restore for which a save in this capture is the one that was restored, near no lost records.

    If the VM ran no more after its last save, it is that one; else of several one whose tables are what was restored.
    """
    events = case.observations.vm_events
    saves = events.filter((pl.col("what") == "save_tables") & pl.col("its").is_not_null())
    for restored in case.history.restored:
        found = list(_candidates(case, saves, restored))
        if not found:
            continue
        equal = [trip for trip in found if not trip.differences]
        stopped = [trip for trip in found if trip.certain]
        if stopped and stopped[0].save["vm"] == found[0].save["vm"]:
            # The VM went no further than this save: an older one is not what should come back.
            stopped[0].older = bool(equal) and equal[0] is not stopped[0]
            yield stopped[0]
        elif equal or stopped:
            yield (equal or stopped)[0]
        elif (best := min(found, key=lambda trip: len(trip.differences))).like:
            # A snapshot of a VM that went on: the one most like it, if it is like it at all.
            yield best


def _candidates(case: Case, saves: pl.DataFrame, restored: Restored) -> Iterator[Trip]:
    """Saves that a restore may be of, the last one first; none before one that is equal."""
    rows = saves.filter(pl.col("seq") < restored.seq).tail(_SAVES).reverse()
    for save in rows.iter_rows(named=True):
        if not _same_its(case, save, restored) or case.lost(save["time_ns"], _end_ns(case, restored)):
            continue
        trip = Trip(save, _pending_save(case, save), restored, certain=_stopped(case, save, restored.seq))
        trip.differences = list(_differences(case, trip))
        yield trip
        if not trip.differences:
            return


def tables_at(case: Case, vm: int, its: int, seq: int) -> Tables:
    """What an ITS's tables held at a record, by the commands."""

    def live(frame: pl.DataFrame) -> list[dict[str, Any]]:
        return case.live_rows(frame, {"vm": vm, "its": its}, seq)

    history = case.history
    whole = case.observations.itss.filter((pl.col("vm") == vm) & (pl.col("its") == its))["complete"].item()
    lost = case.observations.commands.filter(
        (pl.col("vm") == vm) & (pl.col("its") == its) & pl.col("lost_before") & (pl.col("seq") < seq)
    )
    return Tables(
        bool(whole) and lost.is_empty(),
        {row["icid"]: row for row in live(history.collections)},
        {row["device_id"]: row for row in live(history.devices)},
        {(row["device_id"], row["event_id"]): row for row in live(history.mappings)},
    )


def only_used(row: dict[str, Any]) -> bool:
    """Whether an entry is known from its use alone, from before the capture; False for one that is known."""
    return bool(row["assumed"]) and row["from_seq"] is None


# --- which save it was


def _same_its(case: Case, save: dict[str, Any], restored: Restored) -> bool:
    """Whether both are of ITSs at one address, with queue and tables at the same addresses, as far as that is known."""
    itss = case.observations.itss
    ours, theirs = (
        itss.filter((pl.col("vm") == vm) & (pl.col("its") == its))["base_gpa"].item()
        for vm, its in ((save["vm"], save["its"]), (restored.vm, restored.its))
    )
    if None not in (ours, theirs) and ours != theirs:
        return False
    for offset in (_CBASER, _BASER, _BASER + 8):
        one = _register(case, save["vm"], save["its"], offset, save["seq"])
        other = _register(case, restored.vm, restored.its, offset, restored.end_seq)
        if None not in (one, other) and one != other:
            return False
    return True


def _register(case: Case, vm: int, its: int, offset: int, until: int) -> int | None:
    """The address in CBASER or BASER<n> as last written whole before a record."""
    writes = case.observations.register_writes
    rows = writes.filter(
        (pl.col("vm") == vm)
        & (pl.col("its") == its)
        & (pl.col("offset") == offset)
        & (pl.col("size_bytes") == 8)
        & (pl.col("seq") < until)
    )
    if rows.is_empty():
        return None
    value = int(rows["value"][-1])
    return decode_gits_cbaser(value).queue_gpa if offset == _CBASER else decode_gits_baser(value).table_gpa


def _stopped(case: Case, save: dict[str, Any], until: int) -> bool:
    """Whether no vCPU of the VM ran between a save and a record.

    Where entries to the guest were not recorded, that is sure only if the VM was gone by then.
    """
    obs = case.observations
    vm, seq = save["vm"], save["seq"]
    ran = [
        frame.filter((pl.col("vm") == vm) & (pl.col("seq") > seq) & (pl.col("seq") < until)).height
        for frame in (obs.fills, obs.folds, obs.commands)
    ]
    entered = [stamps.seq for (whose, _), stamps in obs.runs.entries.items() if whose == vm]
    known = any(len(seqs) for seqs in entered)
    gone = obs.vms.filter(pl.col("vm") == vm)["to_seq"].fill_null(NEVER).item() <= until
    if any(ran) or any(bool(((seqs > seq) & (seqs < until)).any()) for seqs in entered):
        return False
    return known or gone


def _pending_save(case: Case, save: dict[str, Any]) -> dict[str, Any] | None:
    """The saving of the pending tables that goes with a save of the ITS's tables: before the VM runs again."""
    events = case.observations.vm_events
    rows = events.filter(
        (pl.col("vm") == save["vm"]) & (pl.col("seq") > save["seq"]) & (pl.col("what") == "save_pending")
    )
    for row in rows.head(1).iter_rows(named=True):
        if _stopped(case, save, row["seq"]):
            return row
    return None


def _end_ns(case: Case, restored: Restored) -> int:
    reads = case.observations.guest_reads.filter(
        (pl.col("pid") == restored.pid) & (pl.col("seq") > restored.seq) & (pl.col("seq") < restored.end_seq)
    )
    return int(reads["time_ns"].max() or restored.time_ns)  # type: ignore[arg-type]


# --- what differs


def _differences(case: Case, trip: Trip) -> Iterator[Difference]:
    save, restored = trip.save, trip.restored
    saved = tables_at(case, save["vm"], save["its"], save["seq"])
    if restored.told:
        yield from _collections(saved, restored)
        yield from _devices(case.history, saved, trip)
        yield from _events(case.history, saved, trip)
    else:
        yield from _lpis(case, saved, restored)


def _collections(saved: Tables, restored: Restored) -> Iterator[Difference]:
    for icid, row in saved.collections.items():
        target = row["target_vcpu"]
        if row["assumed"] or (target is None and icid not in restored.collections):
            continue
        now = restored.collections.get(icid)
        if icid not in restored.collections or now != target:
            there = icid in restored.collections
            yield Difference(
                "a collection came back with another target" if there else "a collection did not come back",
                f"collection {icid} on vCPU {target}",
                f"collection {icid} on vCPU {now}" if there else None,
                vcpus=tuple(sorted(v for v in {target, now} if v is not None)),
                set_by=row["set_by"],
            )
    for icid, target in restored.collections.items():
        if saved.complete and icid not in saved.collections:
            yield Difference(
                "a collection came back that was not mapped", None, f"collection {icid} on vCPU {target}"
            )


def _devices(history: History, saved: Tables, trip: Trip) -> Iterator[Difference]:
    for device, row in saved.devices.items():
        now = trip.restored.devices.get(device)
        was = (row["event_bits"], row["itt_gpa"])
        if row["assumed"] or now == was:
            continue
        if now is not None:
            yield Difference(
                "a device came back with another ITT",
                f"{was[0]} event bits at 0x{was[1] or 0:x}",
                f"{now[0]} event bits at 0x{now[1]:x}",
                device=device,
                set_by=row["set_by"],
            )
        elif not any(key[0] == device for key in saved.events):
            yield Difference(_GONE_DEVICE, "mapped", None, device=device, set_by=row["set_by"])
    for device in trip.restored.devices:
        if saved.complete and device not in saved.devices:
            yield Difference(
                _STALE,
                None,
                "mapped",
                device=device,
                set_by=_unmapped_by(trip, history.devices, {"device_id": device}),
            )


_GONE_DEVICE = "a device did not come back"
_STALE = "what had been unmapped came back"


def _events(history: History, saved: Tables, trip: Trip) -> Iterator[Difference]:
    restored = trip.restored
    for (device, event), row in saved.events.items():
        if row["intid"] is None or (row["assumed"] and not only_used(row)):
            continue
        if row["icid"] is None and not row["assumed"]:
            continue  # an orphan is saved as nothing, see ITS603
        now = restored.events.get((device, event))
        common = {
            "device": device,
            "event": event,
            "intid": row["intid"],
            "set_by": row["set_by"],
            "sure": not row["assumed"],
        }
        was = f"LPI {row['intid']}" + ("" if row["icid"] is None else f" by collection {row['icid']}")
        if now is None:
            gone = device in restored.devices or row["assumed"]
            yield Difference("a mapping did not come back" if gone else _GONE_DEVICE, was, None, **common)
        elif now[0] != row["intid"] or row["icid"] not in (None, now[1]):
            yield Difference(
                "a mapping came back changed", was, f"LPI {now[0]} by collection {now[1]}", **common
            )
    for (device, event), (intid, icid) in restored.events.items():
        if saved.complete and (device, event) not in saved.events:
            by = _unmapped_by(trip, history.mappings, {"device_id": device, "event_id": event})
            words = f"LPI {intid} by collection {icid}"
            yield Difference(_STALE, None, words, device, event, intid, set_by=by)


def _lpis(case: Case, saved: Tables, restored: Restored) -> Iterator[Difference]:
    """Where the entries that were read back were not recorded (6.1): LPIs whose configuration was not read on the way.

    Kernel: vgic-its.c:vgic_its_restore_ite, vgic_add_lpi (v6.1)
    """
    configs = case.observations.configs
    if not case.recorded("config_end"):
        return
    read = configs.filter(
        (pl.col("pid") == restored.pid) & (pl.col("seq") > restored.seq) & (pl.col("seq") < restored.end_seq)
    )
    back = set(read["intid"].to_list())
    for (device, event), row in saved.events.items():
        if row["intid"] is None or row["assumed"] or row["icid"] is None or row["intid"] in back:
            continue
        yield Difference(
            "a mapping did not come back",
            f"LPI {row['intid']} by collection {row['icid']}",
            None,
            device,
            event,
            row["intid"],
            set_by=row["set_by"],
        )


def _unmapped_by(trip: Trip, frame: pl.DataFrame, key: dict[str, int]) -> int | None:
    """The command that took an entry out of the tables before the save."""
    save = trip.save
    rows = frame.filter(
        (pl.col("vm") == save["vm"]) & (pl.col("its") == save["its"]) & (pl.col("to_seq") < save["seq"])
    )
    for name, value in key.items():
        rows = rows.filter(pl.col(name) == value)
    return rows.sort("to_seq")["ended_by"][-1] if rows.height else None
