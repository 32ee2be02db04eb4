"""How ITS207 tells a command's effect: what was done or not, by which function, to what, and what the guest sees of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from itstrace.observe.catalogue import PROBES as PLACES
from itstrace.rules._effects import PROBES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from itstrace.rules.case import Case

#: What a command did not do, of one of which something else was seen: the end of the sentence.
UNDONE: Final = {
    "alloc_device": "did not map its device",
    "free_device": "did not unmap its device",
    "alloc_event": "did not map its event",
    "free_event": "did not unmap its event",
    "alloc_collection": "did not map its collection",
    "free_collection": "did not unmap its collection",
    "retarget": "did not retarget its LPI",
    "trigger": "triggered nothing",
    "invall": "read no configuration",
    "config_read": "did not read its LPI's configuration",
    "invalidate": "did not drop the translation cache",
}
#: What was done to something that was not meant.
DONE: Final = {
    "alloc_device": "mapped another device",
    "free_device": "unmapped another device",
    "alloc_event": "mapped another event",
    "free_event": "unmapped another event",
    "alloc_collection": "mapped another collection",
    "free_collection": "unmapped another collection",
    "retarget": "retargeted another LPI",
    "trigger": "triggered another event",
    "invall": "read another vCPU's configuration",
    "config_read": "read another LPI's configuration",
    "invalidate": "dropped another translation cache",
}
#: What the guest sees of a command that was ignored.
SEES: Final = {
    "MAPD": "The device's events cannot be mapped, or those that it took down still fire.",
    "MAPC": "Interrupts of the collection do not come, or come to the vCPU that it had before.",
    "MAPTI": "The device's interrupt never comes: its MSIs are dropped.",
    "MAPI": "The device's interrupt never comes: its MSIs are dropped.",
    "MOVI": "The interrupt keeps coming to the vCPU that it was moved away from.",
    "MOVALL": "Interrupts keep coming to the vCPU that they were moved away from.",
    "DISCARD": "An interrupt that was taken down still comes.",
    "CLEAR": "An interrupt that was cleared still comes.",
    "INT": "The interrupt never comes.",
    "INV": "An interrupt that was enabled does not come, or one that was disabled still does.",
    "INVALL": "Interrupts that were enabled do not come, or some that were disabled still do.",
}


def subject(case: Case, row: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What a finding about a command is about."""
    device, event, intid = about["device_id"], about["event_id"], about["intid"]
    if intid is None and event is not None:
        keys = {"vm": row["vm"], "its": row["its"], "device_id": device, "event_id": event}
        held = case.live_rows(case.history.mappings, keys, row["seq"] - 1)
        intid = held[0]["intid"] if held else None
    elif intid is not None and device is None:
        _, device, event = case.event_of(row["vm"], intid, row["seq"])
    return {
        "vm": row["vm"],
        "its": row["its"],
        "device_id": device,
        "event_id": event,
        "intid": intid,
        "vcpus": () if about.get("vcpu") is None else (about["vcpu"],),
        "time_ns": row["time_ns"],
        "end_ns": row["end_ns"] if row["end_ns"] is not None else row["time_ns"],
        "blames": (row["seq"],),
    }


def calls(rows: Iterable[dict[str, Any]]) -> str:
    """The calls that make these effects, as far as a sentence holds them."""
    named = list(dict.fromkeys(call(row) for row in rows))
    more = f" and {len(named) - 4} more" if len(named) > 4 else ""
    return ", ".join(named[:4]) + more


def call(row: dict[str, Any]) -> str:
    """`update_affinity of LPI 8193`: the function that an effect is known by, and what for."""
    of = ""
    if row["intid"] is not None:
        of = f" of LPI {row['intid']}"
    elif row["device_id"] is not None:
        event = f"event {row['event_id']} of " if row["event_id"] is not None else ""
        of = f" of {event}device 0x{row['device_id']:x}"
    elif row["event_id"] is not None:
        of = f" of event {row['event_id']}"
    elif row["icid"] is not None:
        of = f" of collection {row['icid']}"
    elif row["what"] == "invall" and row["vcpu"] is not None:
        of = f" of vCPU {row['vcpu']}"
    return f"{PLACES[PROBES[row['what']][0]].function}{of}"
