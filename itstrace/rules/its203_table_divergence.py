"""ITS203: KVM resolved an MSI otherwise than its tables must."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.gic.faults import Fault
from itstrace.rules._teardown import Leftover, leftovers
from itstrace.rules._translation import mismatches
from itstrace.rules.case import EVENT, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOKUP: Final = ("vgic_its_resolve_lpi", "find_ite")
_STALE: Final = "the tables still hold what a command took down"
_ELSEWHERE: Final = "an event was looked up as another"
_FOREIGN: Final = "the tables hold what no command put there"
_REFUSED: Final = "the tables lack what a command put there"


@rule(
    "ITS203",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM's tables are not what the guest's commands make of them",
    needs=("COMMANDS", "INJECTIONS"),
    suspect=("vgic_its_handle_command", *_LOOKUP),
    guest_sees="The wrong interrupt, one that it has taken down, or none.",
    leads_to=("ITS201", "ITS301", "ITS302", "ITS303", "ITS305", "ITS308"),
)
def table_divergence(case: Case) -> Iterator[Finding]:
    """KVM's tables are not what the commands make of them.

    ## What it finds
    An MSI or INT that went through the tables (not the cache) and was resolved to another LPI than the
    commands say, was resolved although the commands say that nothing maps it, or was refused as unmapped
    although they say that it is mapped. Also where a VM ends: KVM frees its devices, events and collections then, and
    what it frees is what its tables held. `itstrace verify` finds the same by comparing with the kernel's own dump.

    ## Why it matters
    The kernel and its guest no longer agree on the tables: the wrong driver gets the interrupt, or nobody.

    ## Where it comes from
    A command that KVM did not carry out, carried out on another entry, or undid; a corrupted entry; a lookup
    that finds the wrong one (vgic_its_resolve_lpi, find_ite). The mechanism says which it looks like.

    ## When it is wrong
    While a command on the event is under way, both its old and its new state are right; such MSIs are left
    out. Lost commands make the entries assumed, and silence the rule.

    ## What to do
    Compare `itstrace tables --at` the moment with vgic-its-state@... (6.15 or newer), and look at what the
    command before it did in KVM (its_alloc_*, its_free_*).
    """
    wrong = mismatches(case, cached=False)
    for (_, _, device, event), rows in wrong.group_by(EVENT, maintain_order=True):
        first = rows.row(0, named=True)
        said = "nothing maps it" if first["expected"] is None else f"it maps LPI {first['expected']}"
        whose = ""
        mechanism = _FOREIGN
        if first["taken_down"] is not None:
            mechanism = _STALE
            whose = f", to which it was mapped until {case.command_text(first['taken_down'])}"
        elif first["whose"] is not None:
            mechanism = _ELSEWHERE
            whose = f", which is event {first['whose']}'s"
        yield case.finding(
            f"Event {event} of device 0x{device:x} was resolved to LPI {first['intid']}{whose} ({times(rows.height)}), but by "
            f"the commands {said}.",
            mechanism=mechanism,
            suspect=_LOOKUP if mechanism == _ELSEWHERE else case.rule.suspect,
            blames=tuple(rows["taken_down"].drop_nulls().unique(maintain_order=True)),
            **case.about(rows),
            seqs=first_some(
                [
                    first["taken_down"],
                    first["gone_by"],
                    first["set_by"],
                    first["seq"],
                    first["queue_seq"],
                    first["end_seq"],
                ]
            ),
        )
    yield from _torn_down(case)
    shifts = _shifts(wrong)
    for (_, _, device, event), rows in _refused(case).group_by(EVENT, maintain_order=True):
        first = rows.row(0, named=True)
        shifted = _as_another(case, rows, shifts)
        yield case.finding(
            f"Event {event} of device 0x{device:x} was refused as unmapped ({times(rows.height)}), but by the commands it maps "
            f"LPI {first['expected']}.",
            mechanism=_ELSEWHERE if shifted else _REFUSED,
            suspect=_LOOKUP if shifted else case.rule.suspect,
            guest_saw="The interrupt never comes.",
            blames=() if shifted else tuple(rows["set_by"].drop_nulls().unique(maintain_order=True)),
            **case.about(rows, intid=first["expected"]),
            seqs=first_some([first["set_by"], first["seq"], first["end_seq"]]),
        )


_CALLS: Final = {
    "free_device": "vgic_its_free_device",
    "free_event": "its_free_ite",
    "free_collection": "vgic_its_free_collection",
}


def _torn_down(case: Case) -> Iterator[Finding]:
    """Entries that were freed at a VM's end and should not have been there, or were not freed and should have been."""
    for one in leftovers(case):
        device, event = one.ids.get("device_id"), one.ids.get("event_id")
        of = _named(one)
        command = case.command_text(one.by)
        if one.freed:
            mechanism = _FOREIGN if one.by is None else _STALE
            held = f"which {command} took down" if command else "which by the commands was not there"
            said = f"{_CALLS[one.what]} freed {of} where the VM ended, {held}."
        else:
            mechanism = _REFUSED
            put = f", which {command} put there" if command else ""
            said = f"{_CALLS[one.what]} was not called for {of} where the VM ended{put}."
        yield case.finding(
            said,
            mechanism=mechanism,
            suspect=("vgic_its_handle_command", _CALLS[one.what]),
            guest_saw="",
            blames=() if one.by is None else (one.by,),
            vm=one.vm,
            its=0,
            device_id=device,
            event_id=event,
            intid=one.intid,
            time_ns=one.time_ns,
            end_ns=one.time_ns,
            seqs=first_some(one.seqs),
        )


def _named(one: Leftover) -> str:
    """`event 2 of device 0x8`: what was freed, or was not."""
    if one.what == "free_collection":
        return f"collection {one.ids['icid']}"
    device = one.ids["device_id"]
    of = "an unknown device" if device is None else f"device 0x{device:x}"
    return f"event {one.ids['event_id']} of {of}" if one.what == "free_event" else of


def _shifts(wrong: pl.DataFrame) -> set[int]:
    """By which bits the events differ from those as which they were looked up."""
    rows = wrong.filter(pl.col("whose").is_not_null() & pl.col("taken_down").is_null())
    return set((rows["event_id"] ^ rows["whose"]).to_list())


def _as_another(case: Case, rows: pl.DataFrame, shifts: set[int]) -> bool:
    """Whether a refused event is explained by being looked up as another, as others were, that is not mapped."""
    first = rows.row(0, named=True)
    keys = {name: first[name] for name in EVENT}
    others = [{**keys, "event_id": first["event_id"] ^ shift} for shift in shifts]
    return any(not case.live_rows(case.history.mappings, other, first["seq"]) for other in others)


def _refused(case: Case) -> pl.DataFrame:
    """MSIs refused as unmapped although their event was mapped, to a collection with a target, all the while."""
    rows = case.observations.injections.filter(
        (pl.col("result") == int(Fault.INT_UNMAPPED_INTERRUPT)) & pl.col("its").is_not_null()
    )
    rows = case.held(rows, case.history.mappings, EVENT, expected="intid", icid="icid", set_by="set_by")
    aims = ["vm", "its", "icid"]
    rows = rows.filter(pl.col("expected").is_not_null() & pl.col("icid").is_not_null())
    rows = case.held(rows, case.history.collections, aims, target="target_vcpu")
    rows = case.without_lost(rows.filter(pl.col("target").is_not_null()), "time_ns", "end_ns")
    return case.without_lost_commands(rows, "set_by")
