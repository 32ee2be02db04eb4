"""ITS110: two ITTs in one place, or an ITT in the place of something else that the ITS or a redistributor uses."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.gic.lpi import FIRST_LPI, lpi_count_limit
from itstrace.gic.registers import (
    GICR_CTLR,
    GICR_PENDBASER,
    GICR_PROPBASER,
    decode_gicr_ctlr,
    decode_gicr_pendbaser,
    decode_gicr_propbaser,
    decode_gits_baser,
)
from itstrace.gic.tables import ENTRY_SIZE_BYTES
from itstrace.model import effects as fx
from itstrace.rules._past import past_of
from itstrace.rules.case import NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Bytes of an entry of an ITT, GITS_TYPER.ITT_entry_size. QEMU: hw/intc/gicv3_internal.h:ITS_ITT_ENTRY_SIZE (10.0)
_ENTRY_BYTES = {"qemu": 12}
#: An ITT has at most 2^16 entries on a vITS. Kernel: vgic-its.c:VITS_TYPER_IDBITS (v6.12)
_EVENT_BITS = 16


#: How many of the things that an ITT overlaps a message names.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Place:
    """A stretch of guest memory from `gpa` to before `end`, in use from one record to another; `row` of an ITT's device."""

    what: str
    gpa: int
    end: int
    from_seq: int
    to_seq: int = NEVER
    row: dict[str, Any] | None = None

    def overlaps(self, other: _Place) -> bool:
        """Whether both are in use at once, and share memory."""
        at_once = self.from_seq < other.to_seq and other.from_seq < self.to_seq
        return at_once and self.gpa < other.end and other.gpa < self.end

    def __str__(self) -> str:
        return f"{self.what} (0x{self.gpa:x} to 0x{self.end - 1:x})"


@rule(
    "ITS110",
    kind=Kind.GUEST,
    severity=Severity.ERROR,
    claim="the guest's ITTs lie over one another, or over another table",
    needs=("COMMANDS",),
    guest_sees="On KVM nothing, until tables are saved and restored (migration); on hardware wrong or no interrupts.",
    leads_to=("ITS601",),
)
def overlapping_itt(case: Case) -> Iterator[Finding]:
    """Two live ITTs overlap, or one overlaps the command queue or a table.

    ## What it finds
    MAPD that gives a device an Interrupt Translation Table which shares memory with that of another mapped device (of any
    ITS of the VM), with a command queue (GITS_CBASER), a device or collection table (GITS_BASER<n>), or the LPI
    configuration or pending table of a redistributor whose LPIs are enabled. The size of an ITT is 2 to the number of event
    bits, times the bytes of an entry (8 on KVM).

    ## Why it matters
    An ITS keeps its entries there: one device's mappings overwrite another's, and interrupts go astray. KVM keeps them in
    its own memory, so that nothing shows while the guest runs; it writes both tables to that memory when they are saved,
    and the restored guest has lost interrupts.

    ## Where it comes from
    An ITT that was allocated for fewer events than MAPD says, or was freed before MAPD V=0; a DeviceID that is used twice.

    ## When it is wrong
    Tables that are written before the capture are not known, nor are second-level pages of an indirect device table.
    A device whose MAPD V=0 was lost still seems to be mapped: devices since whose MAPD commands were lost are left out, and
    so are those from before the guest wrote the table registers anew (kexec, a reset).

    ## What to do
    Compare the address and size of both tables with what the guest allocated: its ITS driver must give each device its own
    zeroed memory of 2^(event bits) entries, and unmap the device before it frees that.
    """
    past = past_of(case)
    others = [*_queues_and_tables(case), *_lpi_tables(case)]
    for vm in case.history.devices["vm"].unique().sort():
        places = [place for owner, place in others if owner == vm]
        for itt, near in _itts(case, vm):
            assert itt.row is not None
            met = [one for one in near if itt.overlaps(one) and past.sure(one.row, itt.from_seq)]
            met += [one for one in places if itt.overlaps(one)]
            if met and itt.row["set_by"] is not None:
                yield _finding(case, itt, met)


def _finding(case: Case, itt: _Place, met: Sequence[_Place]) -> Finding:
    row = itt.row
    assert row is not None
    shown = ", ".join(str(one) for one in met[:_NAMED])
    more = f" and {len(met) - _NAMED} more" if len(met) > _NAMED else ""
    makers = [one.row["set_by"] if one.row is not None else one.from_seq for one in met]
    kinds = {one.what.partition(" of ")[0] for one in met}
    return case.finding(
        f"MAPD at {seconds(row['from_ns'])} gave device 0x{row['device_id']:x} an ITT of {1 << row['event_bits']} entries "
        f"from 0x{itt.gpa:x} to 0x{itt.end - 1:x}, in the place of {shown}{more}.",
        mechanism=f"an ITT overlaps {min(kinds).replace('the ITT', 'another ITT')}",
        vm=row["vm"],
        its=row["its"],
        device_id=row["device_id"],
        time_ns=row["from_ns"],
        end_ns=row["from_ns"],
        blames=(row["set_by"],),
        seqs=first_some([*makers, row["set_by"]], _NAMED + 1),
    )


def _itts(case: Case, vm: int) -> Iterator[tuple[_Place, list[_Place]]]:
    """Every ITT of a VM as it came, with those that were live then and lie near it."""
    entry_bytes = _ENTRY_BYTES.get(case.history.profiles.get(vm, ""), ENTRY_SIZE_BYTES)
    rows = case.history.devices.filter(pl.col("vm") == vm).drop_nulls(["itt_gpa", "event_bits"])
    alive: list[_Place] = []
    for row in rows.sort(pl.col("from_seq").fill_null(0)).iter_rows(named=True):
        gpa, bits = row["itt_gpa"], min(row["event_bits"], _EVENT_BITS)
        place = _Place(
            f"the ITT of device 0x{row['device_id']:x}",
            gpa,
            gpa + (entry_bytes << bits),
            row["from_seq"] or 0,
            NEVER if row["to_seq"] is None else row["to_seq"],
            row,
        )
        first = bisect_left(alive, gpa - (entry_bytes << _EVENT_BITS), key=_begin)
        last = bisect_left(alive, place.end, key=_begin)
        near = [one for one in alive[first:last] if one.to_seq > place.from_seq]
        alive[first:last] = near
        insort(alive, place, key=_begin)
        yield place, near


def _begin(place: _Place) -> int:
    return place.gpa


def _queues_and_tables(case: Case) -> Iterator[tuple[int, _Place]]:
    """Command queues and the tables of GITS_BASER<n>, each with its VM, until the register is written anew."""
    latest: dict[tuple[int, int, int], tuple[int, _Place]] = {}
    for note in case.history.notes:
        effect, place = note.effect, None
        if isinstance(effect, fx.QueueSet):
            key = note.vm, effect.its, -1
            if effect.valid:
                end = effect.queue_gpa + effect.size_bytes
                place = _Place(f"the command queue of ITS {effect.its}", effect.queue_gpa, end, note.seq)
        elif isinstance(effect, fx.TableSet):
            key = note.vm, effect.its, effect.number
            table = decode_gits_baser(effect.value or 0)
            if table.valid:
                what = f"the table of GITS_BASER{effect.number} of ITS {effect.its}"
                place = _Place(what, table.table_gpa, table.table_gpa + table.size_bytes, note.seq)
        else:
            continue
        if key in latest:
            vm, old = latest.pop(key)
            yield vm, replace(old, to_seq=note.seq)
        if place is not None:
            latest[key] = note.vm, place
    yield from latest.values()


def _lpi_tables(case: Case) -> Iterator[tuple[int, _Place]]:
    """LPI configuration and pending tables, each with its VM, while a redistributor that uses it has EnableLPIs."""
    obs = case.observations
    writes = obs.redistributor_writes.drop_nulls(["vm", "vcpu"])
    turned = obs.vm_events.filter(pl.col("what").is_in(["enable_lpis", "flush_lpis"])).drop_nulls(
        ["vm", "vcpu"]
    )
    events = [
        *writes.select("seq", "vm", "vcpu", "offset", "value", "size_bytes").iter_rows(),
        *(
            (*row, GICR_CTLR, int(what == "enable_lpis"), 4)
            for *row, what in turned.select("seq", "vm", "vcpu", "what").rows()
        ),
    ]
    registers: dict[tuple[int, int | None, int], int] = {}
    enabled: dict[tuple[int, int], tuple[_Place, ...]] = {}
    for seq, vm, vcpu, offset, value, size_bytes in sorted(events):
        on = enabled.get((vm, vcpu))
        if offset == GICR_CTLR and decode_gicr_ctlr(value).enable_lpis and on is None:
            enabled[vm, vcpu] = tuple(_used(registers, vm, vcpu, seq))
        elif offset == GICR_CTLR and not decode_gicr_ctlr(value).enable_lpis and on is not None:
            yield from ((vm, replace(place, to_seq=seq)) for place in enabled.pop((vm, vcpu)))
        elif on is None and offset & ~7 in (GICR_PROPBASER, GICR_PENDBASER):
            # KVM has one PROPBASER for all. Kernel: vgic-mmio-v3.c:vgic_mmio_write_propbase (v6.12)
            key = vm, None if offset & ~7 == GICR_PROPBASER else vcpu, offset & ~7
            mask = (1 << 8 * size_bytes) - 1 << 8 * (offset % 8)
            registers[key] = registers.get(key, 0) & ~mask | value << 8 * (offset % 8) & mask
    for (vm, _), places in enabled.items():
        yield from ((vm, place) for place in places)


def _used(
    registers: dict[tuple[int, int | None, int], int], vm: int, vcpu: int, seq: int
) -> Iterator[_Place]:
    """The tables that a redistributor begins to use."""
    told = registers.get((vm, None, GICR_PROPBASER))
    if told is None:
        return
    properties = decode_gicr_propbaser(told)
    lpis = lpi_count_limit(properties.id_bits)
    gpa = properties.config_table_gpa
    yield _Place("the LPI configuration table", gpa, gpa + max(lpis - FIRST_LPI, 0), seq)
    pending = registers.get((vm, vcpu, GICR_PENDBASER))
    if pending is not None:
        gpa = decode_gicr_pendbaser(pending).pending_table_gpa
        yield _Place(f"the LPI pending table of vCPU {vcpu}", gpa, gpa + lpis // 8, seq)
