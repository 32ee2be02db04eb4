"""ITS603: tables were saved while an event had no collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.observe.versions import version_of
from itstrace.rules._migration import tables_at
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS603",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM saved its tables while an event had no collection",
    needs=("COMMANDS",),
    suspect=("vgic_its_save_ite", "vgic_its_save_itt"),
    guest_sees="an event that is not mapped any more once it is restored",
    leads_to=("ITS601",),
)
def save_with_orphan(case: Case) -> Iterator[Finding]:
    """The tables were saved while an event had lost its collection.

    ## What it finds
    A save of an ITS's tables (KVM_DEV_ARM_ITS_SAVE_TABLES) while an event is mapped to a collection that MAPC V=0 has
    taken away.

    ## Why it matters
    Such an event has a NULL collection in KVM. Kernels without a check read through it when they save the event: the
    host takes a fault in the task of the VMM, and the VM is gone. A guest can bring that about at will.

    ## Where it comes from
    vgic_its_save_ite reads collection->collection_id. 6.1.192 and 7.3 write an empty entry instead; 6.12.107 does not
    check.

    ## When it is wrong
    On a kernel with the check nothing happens but that the event is not mapped after a restore; then, and wherever the
    VMM's task was seen to go on after the save, it is a note. Events that are only assumed to be mapped are left out.

    ## What to do
    In the guest: MOVI or DISCARD the events before MAPC V=0 (ITS109). On the host: a kernel whose vgic_its_save_ite
    checks for a collection.
    """
    if case.history.mappings.filter(pl.col("icid").is_null() & ~pl.col("assumed")).is_empty():
        return
    events = case.observations.vm_events
    for save in events.filter((pl.col("what") == "save_tables") & pl.col("its").is_not_null()).iter_rows(
        named=True
    ):
        tables = tables_at(case, save["vm"], save["its"], save["seq"])
        orphans = [row for row in tables.events.values() if row["icid"] is None and not row["assumed"]]
        if not orphans or case.lost(save["time_ns"], save["time_ns"]):
            continue
        lived = _went_on(case, save)
        checked = _has_check(case.kernel)
        harmless = lived or checked is True
        certain = harmless or checked is False
        for row in orphans:
            by = case.command_text(row["set_by"])
            told = f"{by} had taken its collection away" if by else "it had no collection"
            yield case.finding(
                f"The tables of the ITS were saved at {seconds(save['time_ns'])} while event {row['event_id']} of device "
                f"0x{row['device_id']:x} (LPI {row['intid']}) was orphaned: {told}. {_end(lived=lived, checked=checked)}",
                severity=Severity.NOTE if harmless else Severity.ERROR,
                mechanism="saved as no entry" if harmless else "saved through a NULL collection",
                confidence=Confidence.CERTAIN if certain else Confidence.LIKELY,
                doubt="" if certain else "Whether this kernel checks for a collection is not known.",
                capture_next="" if certain else "the kernel's log: an oops in vgic_its_save_ite",
                guest_saw=case.rule.guest_sees if harmless else "its VM is gone",
                vm=save["vm"],
                its=save["its"],
                device_id=row["device_id"],
                event_id=row["event_id"],
                intid=row["intid"],
                time_ns=save["time_ns"],
                end_ns=save["time_ns"],
                blames=() if row["set_by"] is None else (row["set_by"],),
                seqs=first_some([row["set_by"], save["seq"]]),
            )


def _end(*, lived: bool, checked: bool | None) -> str:
    if lived:
        return "This kernel saved it as no entry: the event is not mapped after a restore."
    if checked:
        return "A kernel of this version saves it as no entry: the event is not mapped after a restore."
    return "vgic_its_save_ite reads through a NULL pointer then, and nothing was seen of the VM after it."


def _went_on(case: Case, save: dict[str, Any]) -> bool:
    """Whether the task that saved did anything for the VM after it, or a vCPU ran: a fault would have ended both."""
    obs = case.observations
    mine = (pl.col("pid") == save["pid"]) & (pl.col("seq") > save["seq"])
    # Tearing a VM down is what the kernel does for a task that died.
    done = obs.vm_events.filter(
        mine & pl.col("what").is_in(["save_pending", "save_tables", "restore_tables"])
    )
    if done.height or obs.register_writes.filter(mine).height or obs.injections.filter(mine).height:
        return True
    ends = [
        bool((entries.seq > save["seq"]).any())
        for (vm, _), entries in obs.runs.entries.items()
        if vm == save["vm"]
    ]
    return any(ends)


def _has_check(kernel: str | None) -> bool | None:
    """Whether a kernel's vgic_its_save_ite checks for a collection; None where that is not known.

    Kernel: vgic-its.c:vgic_its_save_ite of 6.1.192 and 7.3.4 (it does), 6.12.107 (it does not).
    """
    version = version_of(kernel)
    if version is None:
        return None
    if version >= (7, 3, 0) or (version[:2] == (6, 1) and version[2] >= 192):
        return True
    return False if version[:2] == (6, 12) and 0 <= version[2] <= 107 else None
