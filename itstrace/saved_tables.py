"""Guest memory to tables: what KVM saved there (ABI revision 0), and the LPI tables that the guest keeps.

Two sources: a folder of table images, which also gives the registers (`tables_of_images`), or any image of
memory with registers known from elsewhere, as a capture's register writes (`tables_in_memory`). KVM writes
tables to memory only when they are saved: an image holds them as the last save left them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from itstrace.errors import DumpError
from itstrace.gic import lpi as lpi_layout
from itstrace.gic import registers as reg
from itstrace.gic import tables as layout
from itstrace.readers.dumps import dumped_rows
from itstrace.tables import COLLECTION_ROWS, DEVICE_ROWS, EVENT_ROWS, LPI_ROWS, Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from itstrace.observe import Observations
    from itstrace.readers.images import MemoryImage, SavedImages

#: Which GITS_BASER<n> of a vITS is whose; the type that a guest writes there does not matter.
#: Kernel: vgic-its.c:vgic_sanitise_its_baser, BASER_DEFAULT_VALUES (v6.12)
DEVICE_BASER, COLLECTION_BASER = 0, 1
#: Pages of the tables of a vITS. Kernel: vgic-its.c:vgic_sanitise_its_baser (v6.12)
PAGE_BYTES = 65536
_PAGE_ENTRIES = PAGE_BYTES // layout.ENTRY_SIZE_BYTES
#: Device ids of a vITS. Kernel: vgic-its.c:VITS_TYPER_DEVBITS (v6.12)
_DEVICE_LIMIT = 1 << 16
#: Event bits of a vITS. Kernel: vgic-its.c:VITS_TYPER_IDBITS (v6.12)
_EVENT_BITS_LIMIT = 16
#: Events that one set of tables may map in all; the INTIDs of a vITS are 57,344.
_EVENT_LIMIT = 1 << 20

_DTE_VALID = np.uint64(1 << 63)
_ITE_INTID = np.uint64(0xFFFF_FFFF << 16)


@dataclass(frozen=True, slots=True)
class TableRegisters:
    """Where tables stand in guest memory: register values, None where unknown.

    `device_baser` is GITS_BASER0, `collection_baser` GITS_BASER1; `pendbasers` are GICR_PENDBASER by vCPU.
    """

    device_baser: int | None = None
    collection_baser: int | None = None
    propbaser: int | None = None
    pendbasers: tuple[int, ...] = ()


@dataclass(slots=True)
class SavedTables:
    """Tables read out of guest memory. `problems`: what was missing or broken there, one sentence each.

    `lpis` are those that an event maps. `enabled` and `priority` are the guest's property byte, which KVM may
    have read before it changed; `pending` is the saved bit; `target_vcpu` is null, for it is not saved.
    """

    tables: Tables
    problems: list[str] = field(default_factory=list)


def tables_of_images(images: SavedImages) -> SavedTables:
    """The tables that a folder of images holds.

    Raises: DumpError where entries map more than an ITS can.
    """
    registers = TableRegisters(
        device_baser=images.basers.get(DEVICE_BASER),
        collection_baser=images.basers.get(COLLECTION_BASER),
        propbaser=images.propbaser,
        pendbasers=images.pendbasers,
    )
    return tables_in_memory(images.memory, registers)


def tables_in_memory(memory: MemoryImage, registers: TableRegisters) -> SavedTables:
    """The tables that guest memory holds, as a restore would find them. A table that cannot be found is None.

    Raises: DumpError where entries map more than an ITS can.
    Kernel: vgic-its.c:vgic_its_restore_tables_v0 (v6.12)
    """
    return _Decoder(memory, registers).decode()


def guest_properties(
    memory: MemoryImage, propbaser: int | None, intids: Iterable[int]
) -> dict[int, tuple[bool, int]] | None:
    """What the guest's configuration table says of LPIs: (enabled, priority) by INTID; None without a table.

    KVM acts on what it read last, not on this. Kernel: vgic-its.c:update_lpi_config (v6.12)
    """
    if propbaser is None:
        return None
    table = reg.decode_gicr_propbaser(propbaser)
    limit = lpi_layout.lpi_count_limit(table.id_bits)
    data = memory.read(table.config_table_gpa, max(limit - lpi_layout.FIRST_LPI, 0))
    if data is None:
        return None
    found: dict[int, tuple[bool, int]] = {}
    for intid in intids:
        if lpi_layout.FIRST_LPI <= intid < limit:
            at = intid - lpi_layout.FIRST_LPI
            one = lpi_layout.decode_properties(data[at] if at < len(data) else 0)
            found[intid] = one.enabled, one.priority
    return found


def table_registers(
    observations: Observations, vm: int, its: int, at_ns: int | None = None
) -> TableRegisters:
    """Where an ITS's tables stand as of `at_ns` (None: the end), by the register writes that were observed.

    Kernel: vgic-its.c:vgic_mmio_write_its_baser ignores a write while the ITS is enabled;
        vgic-mmio-v3.c:vgic_mmio_write_propbase and _pendbase, while the vCPU's LPIs are (v6.12)
    """
    until = pl.lit(value=True) if at_ns is None else pl.col("time_ns") <= at_ns
    mine = (pl.col("vm") == vm) & until
    basers: dict[int, int] = {}
    enabled = False
    columns = ["offset", "value", "size_bytes"]
    rows = observations.register_writes.filter(mine & (pl.col("its") == its)).select(columns)
    for offset, value, size_bytes in rows.iter_rows():
        if offset == reg.GITS_CTLR:
            enabled = reg.decode_gits_ctlr(value).enabled
        elif reg.GITS_BASER <= offset < reg.GITS_BASER + 8 * reg.GITS_BASER_COUNT and not enabled:
            number, at = divmod(offset - reg.GITS_BASER, 8)
            basers[number] = _written(basers.get(number), at, value, size_bytes)
    propbaser: int | None = None
    pendbasers: dict[int, int] = {}
    lpis_enabled: dict[int, bool] = {}
    writes = observations.redistributor_writes.filter(mine).drop_nulls("vcpu").select("vcpu", *columns)
    for vcpu, offset, value, size_bytes in writes.iter_rows():
        if offset == reg.GICR_CTLR:
            lpis_enabled[vcpu] = reg.decode_gicr_ctlr(value).enable_lpis
        elif lpis_enabled.get(vcpu, False):
            continue
        elif reg.GICR_PROPBASER <= offset < reg.GICR_PROPBASER + 8:
            propbaser = _written(propbaser, offset % 8, value, size_bytes)
        elif reg.GICR_PENDBASER <= offset < reg.GICR_PENDBASER + 8:
            pendbasers[vcpu] = _written(pendbasers.get(vcpu), offset % 8, value, size_bytes)
    found = tuple(pendbasers[vcpu] for vcpu in sorted(pendbasers))
    return TableRegisters(basers.get(DEVICE_BASER), basers.get(COLLECTION_BASER), propbaser, found)


def _written(old: int | None, at: int, value: int, size_bytes: int) -> int:
    """A 64-bit register after a write of `size_bytes` at byte `at`; what was never written is 0."""
    mask = (1 << 8 * size_bytes) - 1 << 8 * at
    return (old or 0) & ~mask | value << 8 * at & mask


class _Decoder:
    """One memory image on its way to tables."""

    def __init__(self, memory: MemoryImage, registers: TableRegisters) -> None:
        self.memory = memory
        self.registers = registers
        self.problems: list[str] = []

    def decode(self) -> SavedTables:
        targets = self._collections()
        devices = self._devices()
        tables = Tables()
        if targets is not None:
            tables.collections = dumped_rows(COLLECTION_ROWS, list(targets.items()))
        if devices is not None:
            sizes = [(device_id, dte.event_bits, dte.itt_gpa) for device_id, dte in devices]
            tables.devices = dumped_rows(DEVICE_ROWS, sizes)
            events = self._events(devices)
            aims = targets or {}
            mapped = [(*key, ite.intid, ite.icid, aims.get(ite.icid)) for *key, ite in events]
            tables.events = dumped_rows(EVENT_ROWS, mapped)
            tables.lpis = self._lpis({ite.intid for *_, ite in events})
        return SavedTables(tables, self.problems)

    def _table(self, what: str, value: int | None) -> tuple[reg.GitsBaser, bytes] | None:
        """A table that a GITS_BASER<n> describes, and its bytes."""
        if value is None:
            self.problems.append(f"GITS_BASER of the {what} table is not known")
            return None
        baser = reg.decode_gits_baser(value, page_size_bytes=PAGE_BYTES)
        data = self.memory.read(baser.table_gpa, baser.size_bytes) if baser.valid else b""
        if data is None:
            self.problems.append(f"no image of the {what} table at {baser.table_gpa:#x}")
            return None
        return baser, data

    def _collections(self) -> dict[int, int | None] | None:
        """Targets by ICID. The table ends with the first entry that is not valid.

        Kernel: vgic-its.c:vgic_its_restore_collection_table (v6.12)
        """
        table = self._table("collection", self.registers.collection_baser)
        if table is None:
            return None
        targets: dict[int, int | None] = {}
        for value in layout.entries(table[1]):
            entry = layout.decode_cte(value)
            if not entry.valid:
                break
            if entry.icid in targets:
                self.problems.append(
                    f"collection {entry.icid} stands in the table twice; the first one counts"
                )
            targets.setdefault(entry.icid, entry.target_vcpu)
        return targets

    def _devices(self) -> list[tuple[int, layout.Dte]] | None:
        """Valid device table entries along their `next` offsets.

        Kernel: vgic-its.c:vgic_its_restore_device_tables, handle_l1_dte, vgic_its_restore_dte (v6.12)
        Differs: a chain goes on into the next second-level page where its offset says; the kernel begins each
            page anew, so that a stale entry there comes back to life.
        """
        table = self._table("device", self.registers.device_baser)
        if table is None:
            return None
        found: list[tuple[int, layout.Dte]] = []
        at = 0
        for start, page in self._device_pages(*table):
            entries, follows = _chain(page, _DTE_VALID, _next_dte, max(at - start, 0))
            found += [(start + index, layout.decode_dte(value)) for index, value in entries]
            if follows is None:
                break
            at = start + follows
        return found

    def _device_pages(self, baser: reg.GitsBaser, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The pieces of the device table that hold DTEs, each with the device id of its first entry."""
        if not baser.indirect:
            yield 0, data[: _DEVICE_LIMIT * layout.ENTRY_SIZE_BYTES]
            return
        for index, value in enumerate(layout.entries(data)):
            entry = layout.decode_level1(value)
            start = index * _PAGE_ENTRIES
            if not entry.valid or start >= _DEVICE_LIMIT:
                continue
            page = self.memory.read(entry.table_gpa, PAGE_BYTES)
            if page is None:
                self.problems.append(f"no image of the device table's second level at {entry.table_gpa:#x}")
                continue
            yield start, page

    def _events(self, devices: list[tuple[int, layout.Dte]]) -> list[tuple[int, int, layout.Ite]]:
        """Entries of every device's ITT along their `next` offsets: device id, event id, entry.

        Kernel: vgic-its.c:vgic_its_restore_itt, vgic_its_restore_ite (v6.12)
        """
        found: list[tuple[int, int, layout.Ite]] = []
        for device_id, dte in devices:
            if dte.event_bits > _EVENT_BITS_LIMIT:
                self.problems.append(
                    f"device {device_id:#x} has {dte.event_bits} event bits; its ITT is left out"
                )
                continue
            itt = self.memory.read(dte.itt_gpa, layout.ENTRY_SIZE_BYTES << dte.event_bits)
            if itt is None:
                self.problems.append(f"no image of the ITT of device {device_id:#x} at {dte.itt_gpa:#x}")
                continue
            entries = [
                (at, layout.decode_ite(value)) for at, value in _chain(itt, _ITE_INTID, _next_ite, 0)[0]
            ]
            sound = [(device_id, at, entry) for at, entry in entries if entry.intid >= lpi_layout.FIRST_LPI]
            found += sound
            if len(sound) < len(entries):
                left_out = len(entries) - len(sound)
                self.problems.append(f"device {device_id:#x}: {left_out} entries that name no LPI; left out")
            if len(found) > _EVENT_LIMIT:
                raise DumpError(
                    self.memory.path, "the ITTs map too many events", expected=f"at most {_EVENT_LIMIT}"
                )
        return found

    def _lpis(self, mapped: set[int]) -> pl.DataFrame:
        """The LPIs that events map. Shape: LPI_ROWS.

        Bits of other LPIs in the pending tables say nothing: a save writes those of LPIs that there are.
        Kernel: vgic-v3.c:vgic_v3_save_pending_tables (v6.12)
        """
        pending = self._pending()
        told = guest_properties(self.memory, self.registers.propbaser, mapped)
        if told is None:
            self.problems.append(
                "the LPI configuration table cannot be found, so property bytes are not known"
            )
        rows = [
            (
                None,
                intid,
                *((told or {}).get(intid) or (None, None)),
                None,
                None if pending is None else intid in pending,
                True,
            )
            for intid in sorted(mapped)
        ]
        return pl.DataFrame(rows, LPI_ROWS, orient="row")

    def _pending(self) -> set[int] | None:
        """LPIs whose bit is set in any vCPU's pending table; None where not all of those are there.

        Kernel: vgic-v3.c:vgic_v3_save_pending_tables writes to that of the LPI's target (v6.12)
        """
        if not self.registers.pendbasers or self.registers.propbaser is None:
            return None
        id_bits = reg.decode_gicr_propbaser(self.registers.propbaser).id_bits
        found: set[int] = set()
        for vcpu, value in enumerate(self.registers.pendbasers):
            gpa = reg.decode_gicr_pendbaser(value).pending_table_gpa
            data = self.memory.read(gpa, lpi_layout.lpi_count_limit(id_bits) // 8)
            if data is None:
                self.problems.append(f"no image of vCPU {vcpu}'s pending table at {gpa:#x}")
                return None
            # The first KiB is of no LPI: KVM leaves it to the guest.
            found.update(lpi_layout.pending_intids(data[lpi_layout.FIRST_LPI // 8 :], lpi_layout.FIRST_LPI))
        return found


def _next_dte(value: int) -> int:
    return layout.decode_dte(value).next_offset


def _next_ite(value: int) -> int:
    return layout.decode_ite(value).next_offset


def _chain(
    table: bytes, valid: np.uint64, next_of: Callable[[int], int], start: int
) -> tuple[list[tuple[int, int]], int | None]:
    """The entries of a table from `start` on; each gives the distance to the next one, the last one 0.

    Where no entry stands at that place, the next one that does is meant: distances have few bits. What the
    chain leaps over is left from earlier saves. Returns the entries as (index, value), and the index at which
    the chain leaves the table (None: it ended).
    Kernel: vgic-its.c:scan_its_table (v6.12)
    """
    values = np.frombuffer(table + bytes(-len(table) % layout.ENTRY_SIZE_BYTES), dtype="<u8")
    places = np.flatnonzero(values & valid)
    found: list[tuple[int, int]] = []
    at = start
    while (rank := int(np.searchsorted(places, at))) < len(places):
        at = int(places[rank])
        value = int(values[at])
        found.append((at, value))
        distance = next_of(value)
        if distance == 0:
            return found, None
        at += distance
    return found, at
