"""ITS601: what was restored is not what was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.rules._migration import Difference, Trip, trips
from itstrace.rules.case import LPI, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS601",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM's tables are not the same after save and restore",
    needs=("COMMANDS", "QUEUEINGS"),
    suspect=("vgic_its_save_tables_v0", "vgic_its_restore_tables_v0", "vgic_its_restore_ite"),
    guest_sees="interrupts that do not come, or come where nobody asked for them, since it was migrated",
    leads_to=("ITS602", "ITS201", "ITS203", "ITS301", "ITS302", "ITS402"),
)
def round_trip_differs(case: Case) -> Iterator[Finding]:
    """After a save and a restore the ITS's tables are not what they were.

    ## What it finds
    A save of an ITS's tables (KVM_DEV_ARM_ITS_SAVE_TABLES) and their restore, in the same VM or in another of this
    capture, between which a device, a collection or a mapping got lost, changed, or came up that was not mapped. Also a
    restored LPI that KVM queues for another vCPU than the restored collection's.

    ## Why it matters
    A guest that was migrated, or brought back from a snapshot, works on with tables that it never made: its interrupts
    are lost or go to the wrong vCPU, and nothing in the guest tells.

    ## Where it comes from
    A chain of entries that is cut (each DTE and ITE says where the next one is); entries in guest memory that were not
    cleared when DISCARD or MAPD took them out of the tables (before 6.13, and stable releases of 2024); a table in memory
    that the VMM did not transfer, or that was written to in between.

    ## When it is wrong
    The save that was restored is the last one before, if the VM did not run in between; of a snapshot that was restored
    later, the one most like it is taken, and the finding is likely only. Saved tables from before the capture are known
    from their use alone. Saves and restores on two hosts are in two captures, and cannot be compared.

    ## What to do
    Compare `itstrace tables --at` the save with the same at the restore, and both with the table images in guest memory
    (`itstrace verify`).
    """
    for trip in trips(case):
        for one in trip.differences:
            yield _finding(case, trip, one)
    yield from _wrong_targets(case)


def _finding(case: Case, trip: Trip, one: Difference) -> Finding:
    save, restored = trip.save, trip.restored
    what = "" if one.device is None else f"device 0x{one.device:x}"
    if one.event is not None:
        what = f"event {one.event} of {what}"
    what = f"{what}: " if what else ""
    if one.saved is None:
        told = f"{what}{one.restored} was restored, but it was not mapped when the tables were saved"
        gone = case.command_text(one.set_by)
        told += f" ({gone} had unmapped it)" if gone else ""
    elif one.restored is None:
        told = f"{what}{one.saved} was saved and not restored"
    else:
        told = f"{what}{one.saved} was saved, {one.restored} restored"
    doubt = trip.doubt or ("" if one.sure else "The entry is known only from its use.")
    return case.finding(
        f"{told[0].upper()}{told[1:]} (saved at {seconds(save['time_ns'])}{_vm(trip)}, restored at {seconds(restored.time_ns)}).",
        mechanism=one.how,
        confidence=Confidence.LIKELY if doubt else Confidence.CERTAIN,
        doubt=doubt,
        capture_next="begin before the VM, and record until it is restored" if doubt else "",
        vm=restored.vm,
        its=restored.its,
        device_id=one.device,
        event_id=one.event,
        intid=one.intid,
        vcpus=one.vcpus,
        time_ns=restored.time_ns,
        end_ns=restored.time_ns,
        blames=() if one.set_by is None else (one.set_by,),
        seqs=first_some([one.set_by, save["seq"], restored.seq]),
    )


def _vm(trip: Trip) -> str:
    return f" in VM {trip.save['vm']}" if trip.save["vm"] != trip.restored.vm else ""


def _wrong_targets(case: Case) -> Iterator[Finding]:
    """Restored LPIs that KVM queues for another vCPU than their restored collection's, before any command moved them."""
    restores = pl.DataFrame(
        [(one.vm, one.seq) for one in case.history.restored],
        schema={"vm": pl.UInt16, "from_seq": pl.UInt64},
        orient="row",
    )
    targets = case.history.targets.join(restores, on=["vm", "from_seq"], how="semi", maintain_order="left")
    if targets.is_empty():
        return
    obs = case.observations
    rows = obs.queueings.filter(pl.col("owner_vcpu").is_null() & pl.col("target_vcpu").is_not_null())
    rows = rows.select(*LPI, "seq", "time_ns", vcpu="target_vcpu", end_seq="seq")
    wrong = case.compare(rows, targets, LPI, "target_vcpu", seen="vcpu", end="end_seq")
    wrong = case.without_lost(wrong.filter(pl.col("expected").is_not_null()), "time_ns", "time_ns")
    for (_, intid), mine in wrong.group_by(LPI, maintain_order=True):
        row = mine.row(0, named=True)
        yield case.finding(
            f"LPI {intid} was restored to a collection on vCPU {row['expected']}, but KVM queues it for vCPU {row['vcpu']} "
            f"({times(mine.height)}, first at {seconds(row['time_ns'])}).",
            mechanism="a restored LPI has another target than its collection",
            vcpus=tuple(sorted({row["vcpu"], row["expected"]})),
            **case.about(mine),
            seqs=first_some([row["since_seq"], *mine["seq"].head(3).to_list()]),
        )
