"""A capture in which a VM's saved tables are restored in a new VM, as KVM reads them back, entry by entry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.gic import tables as layout
from itstrace.gic.lpi import pending_bit
from itstrace.gic.registers import decode_gits_baser

if TYPE_CHECKING:
    from itstrace.observe import Observations
    from itstrace.replay import History

PID = 99_999
#: Where the second level of an indirect device table is put, and the pending tables.
LEVEL2_GPA, PENDING_GPA = 0x7000_0000, 0x7800_0000
Event = tuple[int, int]


@dataclass(slots=True)
class Image:
    """Tables as they stand in guest memory, to be changed before they are restored. Values as those of `Restored`."""

    collections: dict[int, int | None]
    devices: dict[int, tuple[int, int]]
    events: dict[Event, tuple[int, int]]
    pending: set[int] = field(default_factory=set)


def saved(history: History, vm: int, seq: int) -> Image:
    """What a VM's only ITS held at a record."""

    def live(frame: pl.DataFrame) -> list[dict[str, Any]]:
        begun = pl.col("from_seq").is_null() | (pl.col("from_seq") <= seq)
        holds = begun & (pl.col("to_seq").is_null() | (pl.col("to_seq") > seq))
        return frame.filter((pl.col("vm") == vm) & holds).to_dicts()

    return Image(
        {row["icid"]: row["target_vcpu"] for row in live(history.collections)},
        {row["device_id"]: (row["event_bits"], row["itt_gpa"]) for row in live(history.devices)},
        {
            (row["device_id"], row["event_id"]): (row["intid"], row["icid"])
            for row in live(history.mappings)
            if row["icid"] is not None
        },
    )


def last_save(obs: Observations) -> dict[str, Any]:
    """The last save of tables in a capture."""
    return obs.vm_events.filter(pl.col("what") == "save_tables").row(-1, named=True)


def with_restore(obs: Observations, vm: int, image: Image, *, at_seq: int, at_ns: int) -> Observations:
    """The capture with a new VM, in which an image of the tables of `vm` is restored from a record on that is free."""
    new = int(obs.vms["vm"].max()) + 1  # type: ignore[arg-type]
    rows = _Rows(new, at_seq, at_ns)
    writes = obs.register_writes.filter((pl.col("vm") == vm) & (pl.col("size_bytes") == 8))
    registers: dict[int, int] = dict(writes.select("offset", "value").iter_rows())
    for offset in (0x80, 0x100, 0x108):
        rows.put("register_writes", its=0, offset=offset, value=registers[offset], size_bytes=8, user=True)
    for vcpu in (0, 1):
        value = PENDING_GPA + vcpu * 0x10000
        rows.put("redistributor_writes", vcpu=vcpu, offset=0x78, value=value, size_bytes=4, user=True)
    rows.put("vm_events", what="restore_tables", its=0)
    devices, collections = decode_gits_baser(registers[0x100]), decode_gits_baser(registers[0x108])
    for number, (icid, target) in enumerate(image.collections.items()):
        value = layout.encode_cte(
            layout.Cte(valid=True, rdbase=0xFFFF_FFFF if target is None else target, icid=icid)
        )
        rows.read(collections.table_gpa + 8 * number, value)
    pages = sorted({device // 8192 for device in image.devices}) if devices.indirect else []
    for page in pages:
        rows.read(devices.table_gpa + 8 * page, 1 << 63 | LEVEL2_GPA + 0x10000 * page)
    for device, (bits, itt) in image.devices.items():
        table = LEVEL2_GPA if devices.indirect else devices.table_gpa
        rows.read(table + 8 * device, layout.encode_dte(layout.Dte(True, 0, itt, bits)))
        for (whose, event), (intid, icid) in image.events.items():
            if whose == device:
                rows.read(itt + 8 * event, layout.encode_ite(layout.Ite(0, intid, icid)))
                rows.put("configs", intid=intid, enabled=True, priority=0, result=0)
                target = image.collections.get(icid)
                offset, bit = pending_bit(intid)
                pending = intid in image.pending
                if target is not None:
                    rows.read(PENDING_GPA + target * 0x10000 + offset, pending << bit, size_bytes=1)
                rows.put(
                    "queueings",
                    intid=intid,
                    target_vcpu=target,
                    pending=pending,
                    enabled=True,
                    active=False,
                    cause="other",
                )
    rows.put("register_writes", its=0, offset=0, value=1, size_bytes=4, user=True)
    base = obs.itss.filter(pl.col("vm") == vm)["base_gpa"].item()
    frames = rows.frames(obs)
    frames["vms"] = _more(
        obs.vms, [{"vm": new, "kvm": 1, "from_seq": at_seq, "start_ns": at_ns, "complete": True}]
    )
    frames["itss"] = _more(
        obs.itss,
        [{"vm": new, "its": 0, "pointer": 1, "base_gpa": base, "from_seq": at_seq, "complete": True}],
    )
    return replace(obs, **frames)


class _Rows:
    def __init__(self, vm: int, seq: int, time_ns: int) -> None:
        self._vm, self._seq, self._time_ns = vm, seq, time_ns
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def put(self, frame: str, **values: Any) -> None:
        self._seq += 1
        self._time_ns += 1000
        head = {"seq": self._seq, "time_ns": self._time_ns, "cpu": 0, "pid": PID, "vm": self._vm}
        self._rows.setdefault(frame, []).append({**head, **values})

    def read(self, gpa: int, value: int, size_bytes: int = 8) -> None:
        self.put("guest_reads", gpa=gpa, size_bytes=size_bytes, value=value, result=0)

    def frames(self, obs: Observations) -> dict[str, Any]:
        return {name: _more(getattr(obs, name), rows) for name, rows in self._rows.items()}


def _more(frame: pl.DataFrame, rows: list[dict[str, Any]]) -> pl.DataFrame:
    full = [{name: row.get(name) for name in frame.columns} for row in rows]
    return pl.concat([frame, pl.DataFrame(full, schema=frame.schema, orient="row")])
