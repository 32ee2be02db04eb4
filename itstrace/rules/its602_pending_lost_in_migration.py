"""ITS602: pending when the VM was saved, and not pending where it was restored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Confidence, Finding, Harm, Kind, Severity
from itstrace.gic.lpi import pending_bit
from itstrace.gic.registers import decode_gicr_pendbaser
from itstrace.observe.joins import before
from itstrace.rules._migration import Trip, only_used, tables_at, trips
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS602",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM lost a pending interrupt in a migration",
    harm=Harm.GONE,
    needs=("COMMANDS", "QUEUEINGS"),
    suspect=("vgic_v3_save_pending_tables", "vgic_v3_lpi_sync_pending_status", "its_sync_lpi_pending_table"),
    guest_sees="an interrupt that never comes, since it was migrated",
    leads_to=("ITS301",),
)
def pending_lost_in_migration(case: Case) -> Iterator[Finding]:
    """An LPI that was pending when its VM was saved is not pending where the VM was restored.

    ## What it finds
    An LPI of a mapped event that was pending in software when an ITS's tables were saved, and that KVM neither found in
    the pending table nor queued as pending when the VM was restored, up to the guest's first entry.

    ## Why it matters
    The MSI came before the migration, and its handler never runs. The device waits for it.

    ## Where it comes from
    KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES that the VMM did not call, or called before devices stopped; the bit of another
    vCPU's table written; a pending table in memory that was not transferred; a mapping that was not restored (ITS601).

    ## When it is wrong
    LPIs without a target vCPU, and those whose event is not mapped, are not saved by design and left out. An MSI that came
    after the save is the VMM's to keep. Where records were lost nothing is said.

    ## What to do
    Look for save_pending after save_tables, and compare the pending tables of both (PENDBASER, byte INTID / 8).
    """
    for trip in trips(case):
        missing = {
            one.intid: one for one in trip.differences if one.intid is not None and one.restored is None
        }
        back = _came_back(case, trip)
        for row in _pending(case, trip).iter_rows(named=True):
            intid = row["intid"]
            if intid in back:
                continue
            gone = missing.get(intid)
            how, seen = _how(case, trip, row) if gone is None else ("its mapping did not come back", None)
            doubt = trip.doubt or ("" if seen is not None else "KVM was not seen to read the pending bit.")
            yield case.finding(
                f"LPI {intid} was pending for vCPU {row['vcpu']} when its VM was saved at {seconds(trip.save['time_ns'])}, and "
                f"not where it was restored at {seconds(trip.restored.time_ns)}: {how}.",
                mechanism=how,
                confidence=Confidence.LIKELY if doubt else Confidence.CERTAIN,
                doubt=doubt,
                capture_next="its_cmd (kvm_read_guest, return) and queue_irq, until the guest runs again"
                if doubt
                else "",
                vm=trip.restored.vm,
                its=trip.restored.its,
                device_id=row["device_id"],
                event_id=row["event_id"],
                intid=intid,
                vcpus=() if row["vcpu"] is None else (row["vcpu"],),
                time_ns=trip.restored.time_ns,
                end_ns=trip.restored.time_ns,
                blames=() if gone is None or gone.set_by is None else (gone.set_by,),
                seqs=first_some(
                    [
                        row["latched_seq"],
                        trip.save["seq"],
                        trip.pending["seq"] if trip.pending else None,
                        trip.restored.seq,
                        seen,
                    ]
                ),
            )


def _pending(case: Case, trip: Trip) -> pl.DataFrame:
    """LPIs of mapped events that were pending when the pending tables were saved.

    Shape: vm, intid, seq, device_id, event_id, vcpu, latched_seq.
    """
    save = trip.save
    at = save["seq"] if trip.pending is None else trip.pending["seq"]
    tables = tables_at(case, save["vm"], save["its"], save["seq"])
    mapped = [
        (save["vm"], row["intid"], at, device, event)
        for (device, event), row in tables.events.items()
        if row["intid"] is not None and (row["icid"] is not None or only_used(row))
    ]
    schema = {
        "vm": pl.UInt16,
        "intid": pl.UInt32,
        "seq": pl.UInt64,
        "device_id": pl.UInt32,
        "event_id": pl.UInt32,
    }
    rows = pl.DataFrame(mapped, schema=schema, orient="row").unique(LPI, keep="first", maintain_order=True)
    rows = before(rows, case.lives.latches, LPI, latched="latched", latched_seq="seq", vcpu="vcpu")
    return rows.filter(pl.col("latched").fill_null(value=False)).sort("intid")


def _window(case: Case, trip: Trip) -> tuple[int, int]:
    """The records between which the restored VM is set up: after it last ran (or the save), up to where it first runs."""
    vm, seq = trip.restored.vm, trip.restored.seq
    obs = case.observations
    begin = int(obs.vms.filter(pl.col("vm") == vm)["from_seq"].item()) - 1
    if trip.save["vm"] == vm:
        begin = int(trip.save["seq"])
    end = NEVER
    ran = [stamps.seq for (whose, _), stamps in obs.runs.entries.items() if whose == vm]
    ran += [frame.filter(pl.col("vm") == vm)["seq"].to_numpy() for frame in (obs.fills, obs.folds)]
    for seqs in ran:
        if len(before_it := seqs[seqs < seq]):
            begin = max(begin, int(before_it.max()))
        if len(after_it := seqs[seqs > seq]):
            end = min(end, int(after_it.min()))
    return begin, end


def _came_back(case: Case, trip: Trip) -> set[int]:
    """LPIs that were found pending, or queued as pending, while the VM was set up."""
    begin, end = _window(case, trip)
    within = (pl.col("vm") == trip.restored.vm) & (pl.col("seq") > begin) & (pl.col("seq") < end)
    queued = case.observations.queueings.filter(within & pl.col("pending"))
    bits = case.history.pending_bits.filter(within & pl.col("latched"))
    return {*queued["intid"].to_list(), *bits["intid"].to_list()}


def _how(case: Case, trip: Trip, row: dict[str, Any]) -> tuple[str, int | None]:
    """What is to blame, and the record that shows it."""
    if trip.pending is None and case.recorded("save_pending"):
        return "the pending tables were not saved", trip.save["seq"]
    begin, end = _window(case, trip)
    within = (pl.col("vm") == trip.restored.vm) & (pl.col("seq") > begin) & (pl.col("seq") < end)
    bases = case.observations.redistributor_writes
    reads = case.observations.guest_reads.filter(within & (pl.col("size_bytes") == 1))
    offset, bit = pending_bit(row["intid"])
    for base in _pending_tables(bases.filter(pl.col("vm") == trip.restored.vm)):
        for seq, value in reads.filter(pl.col("gpa") == base + offset).select("seq", "value").iter_rows():
            if not value >> bit & 1:
                return "its bit in the pending table is 0", int(seq)
    queued = case.observations.queueings.filter(
        within & (pl.col("intid") == row["intid"]) & (pl.col("seq") > trip.restored.seq)
    )
    if queued.height:
        return "it was not queued as pending", int(queued["seq"][-1])
    return "nothing made it pending again", None


def _pending_tables(writes: pl.DataFrame) -> set[int]:
    """Addresses of a VM's pending tables: PENDBASER comes whole, or in halves from a VMM."""
    found = set()
    for _, mine in writes.group_by("vcpu"):
        low = mine.filter(pl.col("offset") == 0x78)["value"].to_list()
        high = mine.filter(pl.col("offset") == 0x7C)["value"].to_list()
        if low:
            value = low[-1] | ((high[-1] & 0xFFFF_FFFF) << 32 if high else 0)
            found.add(decode_gicr_pendbaser(value).pending_table_gpa)
    return found
