"""ITS203: KVM resolved an MSI otherwise than its tables must."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.gic.faults import Fault
from itstrace.rules._translation import KEY, mismatches
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule("ITS203", kind=Kind.HOST, severity=Severity.ERROR, needs=("COMMANDS", "INJECTIONS"))
def table_divergence(case: Case) -> Iterator[Finding]:
    """KVM's tables are not what the commands make of them.

    ## What it finds
    An MSI or INT that went through the tables (not the cache) and was resolved to another LPI than the
    commands say, was resolved although the commands say that nothing maps it, or was refused as unmapped
    although they say that it is mapped. `itstrace verify` finds the same by comparing with the kernel's own
    dump.

    ## Why it matters
    The kernel and its guest no longer agree on the tables: the wrong driver gets the interrupt, or nobody.

    ## Where it comes from
    A command that KVM did not carry out, carried out on another entry, or undid; a corrupted entry; a lookup
    that finds the wrong one (vgic_its_resolve_lpi, find_ite).

    ## When it is wrong
    While a command on the event is under way, both its old and its new state are right; such MSIs are left
    out. Lost commands make the entries assumed, and silence the rule.

    ## What to do
    Compare `itstrace tables --at` the moment with vgic-its-state@... (6.15 or newer), and look at what the
    command before it did in KVM (its_alloc_*, its_free_*).
    """
    wrong = mismatches(case, cached=False)
    for (_, _, device, event), rows in wrong.group_by(KEY, maintain_order=True):
        first = rows.row(0, named=True)
        said = "nothing maps it" if first["expected"] is None else f"it maps LPI {first['expected']}"
        yield case.finding(
            f"Event {event} of device 0x{device:x} was resolved to LPI {first['intid']} ({times(rows.height)}), but by the "
            f"commands {said}.",
            **case.about(rows),
            seqs=first_some(
                [first["gone_by"], first["set_by"], first["seq"], first["queue_seq"], first["end_seq"]]
            ),
        )
    for (_, _, device, event), rows in _refused(case).group_by(KEY, maintain_order=True):
        first = rows.row(0, named=True)
        yield case.finding(
            f"Event {event} of device 0x{device:x} was refused as unmapped ({times(rows.height)}), but by the commands it maps "
            f"LPI {first['expected']}.",
            **case.about(rows, intid=first["expected"]),
            seqs=first_some([first["set_by"], first["seq"], first["end_seq"]]),
        )


def _refused(case: Case) -> pl.DataFrame:
    """MSIs refused as unmapped although their event was mapped, to a collection with a target, all the while."""
    rows = case.observations.injections.filter(
        (pl.col("result") == int(Fault.INT_UNMAPPED_INTERRUPT)) & pl.col("its").is_not_null()
    )
    rows = case.held(rows, case.history.mappings, KEY, expected="intid", icid="icid", set_by="set_by")
    aims = ["vm", "its", "icid"]
    rows = rows.filter(pl.col("expected").is_not_null() & pl.col("icid").is_not_null())
    rows = case.held(rows, case.history.collections, aims, target="target_vcpu")
    rows = case.without_lost(rows.filter(pl.col("target").is_not_null()), "time_ns", "end_ns")
    return case.without_lost_commands(rows, "set_by")
