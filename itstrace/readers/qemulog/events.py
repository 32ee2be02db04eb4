"""What QEMU prints of its own ITS: every trace event's text, its operands by name, and the way back to the text.

Source: hw/intc/trace-events of QEMU (10.0), section arm_gicv3_its.c, with GICv4.0.
"""

from __future__ import annotations

import re
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.readers.base import EventField, EventFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The system by which the program calls QEMU's events, and what every event of the ITS begins with.
SYSTEM: Final = "qemu"
ITS_EVENT: Final = "gicv3_its_"

_EVENT = "DeviceID {device_id} EventID {event_id}"
_ITE = "ITTaddr {itt_addr} EventID {event_id}: "
_ITE_FIELDS = (
    "valid {valid:d} inttype {inttype:d} intid {intid} ICID {icid} vPEID {vpe_id} doorbell {doorbell}"
)
_DTE_FIELDS = "valid {valid:d} size {size} ITTaddr {itt_addr}"
_VTE_FIELDS = "valid {valid:d} VPTsize {vpt_size} VPTaddr {vpt_addr} RDbase {rdbase}"

#: event, less `gicv3_its_` -> its text, less "GICv3 ITS", with the operand's name where its value stands; `:d`: QEMU
#: prints it in decimal, else in hex.
#: Units: `size` of MAPD and DTEs is the encoded one (bits minus one), of register accesses it is bytes; `slot` counts
#: commands. `itt_addr` of MAPD and of `dte_write` is the encoded one, PA[51:8]; of `dte_read` and ITEs it is the
#: address. QEMU prints VMAPTI as "VMAPI"; the event's name tells.
FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "read": " read: offset {offset} data {data} size {size:d}",
        "badread": " read: offset {offset} size {size:d}: error",
        "write": " write: offset {offset} data {data} size {size:d}",
        "badwrite": " write: offset {offset} data {data} size {size:d}: error",
        "translation_write": (
            " TRANSLATER write: offset {offset} data {data} size {size:d} requester_id {device_id}"
        ),
        "process_command": ": processing command at offset {slot}: {opcode}",
        "cmd_int": f": command INT {_EVENT}",
        "cmd_clear": f": command CLEAR {_EVENT}",
        "cmd_discard": f": command DISCARD {_EVENT}",
        "cmd_sync": ": command SYNC",
        "cmd_mapd": ": command MAPD DeviceID {device_id} Size {size} ITT_addr {itt_addr} V {valid:d}",
        "cmd_mapc": ": command MAPC ICID {icid} RDbase {rdbase} V {valid:d}",
        "cmd_mapi": f": command MAPI {_EVENT} ICID {{icid}}",
        "cmd_mapti": f": command MAPTI {_EVENT} ICID {{icid}} pINTID {{intid}}",
        "cmd_inv": f": command INV {_EVENT}",
        "cmd_invall": ": command INVALL",
        "cmd_movall": ": command MOVALL RDbase1 {rdbase} RDbase2 {rdbase2}",
        "cmd_movi": f": command MOVI {_EVENT} ICID {{icid}}",
        "cmd_vmapi": f": command VMAPI {_EVENT} vPEID {{vpe_id}} Dbell_pINTID {{doorbell}}",
        "cmd_vmapti": (
            f": command VMAPI {_EVENT} vPEID {{vpe_id}} vINTID {{vintid}} Dbell_pINTID {{doorbell}}"
        ),
        "cmd_vmapp": (
            ": command VMAPP vPEID {vpe_id} RDbase {rdbase} V {valid:d} VPT_addr {vpt_addr}"
            " VPT_size {vpt_size}"
        ),
        "cmd_vmovp": ": command VMOVP vPEID {vpe_id} RDbase {rdbase}",
        "cmd_vsync": ": command VSYNC",
        "cmd_vmovi": (
            f": command VMOVI {_EVENT} vPEID {{vpe_id}} D {{doorbell_valid:d}} Dbell_pINTID {{doorbell}}"
        ),
        "cmd_vinvall": ": command VINVALL vPEID {vpe_id}",
        "cmd_unknown": ": unknown command {opcode}",
        "cte_read": ": Collection Table read for ICID {icid}: valid {valid:d} RDBase {rdbase}",
        "cte_write": ": Collection Table write for ICID {icid}: valid {valid:d} RDBase {rdbase}",
        "cte_read_fault": ": Collection Table read for ICID {icid}: faulted",
        "ite_read": f": Interrupt Table read for {_ITE}{_ITE_FIELDS}",
        "ite_write": f": Interrupt Table write for {_ITE}{_ITE_FIELDS}",
        "ite_read_fault": f": Interrupt Table read for {_ITE}faulted",
        "dte_read": f": Device Table read for DeviceID {{device_id}}: {_DTE_FIELDS}",
        "dte_write": f": Device Table write for DeviceID {{device_id}}: {_DTE_FIELDS}",
        "dte_read_fault": ": Device Table read for DeviceID {device_id}: faulted",
        "vte_read": f": vPE Table read for vPEID {{vpe_id}}: {_VTE_FIELDS}",
        "vte_write": f": vPE Table write for vPEID {{vpe_id}}: {_VTE_FIELDS}",
        "vte_read_fault": ": vPE Table read for vPEID {vpe_id}: faulted",
    }
)

_OPERAND = re.compile(r"\{(\w+)(:d)?\}")


def operands(event: str) -> tuple[str, ...]:
    """The names of an ITS event's operands, in the order of its text. `event` is a key of `FORMATS`."""
    return tuple(found[1] for found in _OPERAND.finditer(FORMATS[event]))


@cache
def pattern(event: str) -> str:
    """A regular expression for the whole text of an ITS event.

    Hex or decimal is taken as it comes: QEMU's versions do not agree on all of them.
    """
    parts = _OPERAND.split("GICv3 ITS" + FORMATS[event])
    return "^" + "(?:0x[0-9a-f]{1,16}|[0-9]{1,19})".join(re.escape(part) for part in parts[::3]) + "$"


@cache
def word_places(event: str) -> Mapping[str, int]:
    """Which word of an ITS event's text each operand is; a colon may follow it."""
    words = ("GICv3 ITS" + FORMATS[event]).split(" ")
    return {found[1]: at for at, word in enumerate(words) if (found := _OPERAND.match(word))}


def event_format(number: int, name: str) -> EventFormat:
    """What is known of an event by its name: the operands of an ITS event; of any other one its `text`."""
    event = name.removeprefix(ITS_EVENT)
    if event == name or event not in FORMATS:
        text = EventField("text", "char[]", 0, 0, signed=False, dtype=pl.String())
        return EventFormat(number, SYSTEM, name, (text,), '"%s", REC->text')
    fields = tuple(
        EventField(operand, "u64", at * 8, 8, signed=False, dtype=pl.UInt64())
        for at, operand in enumerate(operands(event))
    )
    said = _OPERAND.sub(lambda found: "%llu" if found[2] else "0x%llx", "GICv3 ITS" + FORMATS[event])
    return EventFormat(
        number, SYSTEM, name, fields, ", ".join((f'"{said}"', *(f"REC->{field.name}" for field in fields)))
    )
