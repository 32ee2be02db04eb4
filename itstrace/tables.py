"""The state of a GIC's tables at one instant: what the replay gives, what a kernel's dump gives, and what is compared."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

#: One row per mapped device.
DEVICE_ROWS = pl.Schema(
    {
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "device_id": pl.UInt32,
        "event_bits": pl.UInt8,
        "itt_gpa": pl.UInt64,
        "assumed": pl.Boolean,
    }
)

#: One row per collection; a null target of a collection that is not assumed is a placeholder that no MAPC has
#: mapped yet.
COLLECTION_ROWS = pl.Schema(
    {"vm": pl.UInt16, "its": pl.UInt16, "icid": pl.UInt32, "target_vcpu": pl.Int32, "assumed": pl.Boolean}
)

#: One row per mapped event; `target_vcpu` is its collection's. A null icid that is not assumed is an orphan.
EVENT_ROWS = pl.Schema(
    {
        "vm": pl.UInt16,
        "its": pl.UInt16,
        "device_id": pl.UInt32,
        "event_id": pl.UInt32,
        "intid": pl.UInt32,
        "icid": pl.UInt32,
        "target_vcpu": pl.Int32,
        "assumed": pl.Boolean,
    }
)

#: One row per LPI that is known. `target_vcpu` is the vCPU that KVM would queue it to. `pending` is latched
#: in software, not what a list register holds. Null is unknown.
LPI_ROWS = pl.Schema(
    {
        "vm": pl.UInt16,
        "intid": pl.UInt32,
        "enabled": pl.Boolean,
        "priority": pl.UInt8,
        "target_vcpu": pl.Int32,
        "pending": pl.Boolean,
        "mapped": pl.Boolean,  # an event maps it now; an LPI may outlive its mapping
    }
)


@dataclass(slots=True)
class Tables:
    """Tables of all VMs at one instant. A frame of None: its source says nothing about it."""

    devices: pl.DataFrame | None = None
    collections: pl.DataFrame | None = None
    events: pl.DataFrame | None = None
    lpis: pl.DataFrame | None = None
