"""Writes to GICR_CTLR.EnableLPIs, and whether KVM enabled or flushed the vCPU's LPIs for them: a part of ITS207."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.gic import registers as reg
from itstrace.observe.joins import after
from itstrace.rules.case import NEVER, first_some
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.findings import Finding
    from itstrace.rules.case import Case

_ENABLE_LPIS = 1


def not_enabled(case: Case) -> Iterator[Finding]:
    """Writes to GICR_CTLR.EnableLPIs that KVM did not heed."""
    for row in _unheeded(case):
        written, called = (1, "vgic_enable_lpis") if row["on"] else (0, "vgic_flush_pending_lpis")
        yield case.finding(
            f"GICR_CTLR.EnableLPIs of vCPU {row['vcpu']} was written {written} at {seconds(row['time_ns'])}, and had not been so "
            f"since {seconds(row['was_ns'])}; {called} was not called before its task went on.",
            mechanism=f"EnableLPIs was written {written} and {called} was not called",
            suspect=("vgic_mmio_write_v3r_ctlr", called),
            guest_saw="Its LPIs do not come." if row["on"] else "LPIs that it had disabled still come.",
            vm=row["vm"],
            vcpus=(row["vcpu"],),
            time_ns=row["time_ns"],
            end_ns=row["over_ns"],
            seqs=first_some([row["seq"], row["over_seq"]]),
        )


def _unheeded(case: Case) -> Iterator[dict[str, Any]]:
    """Writes that changed EnableLPIs, as far as is known, and for which KVM did nothing.

    A write for which KVM did something tells what the bit is from then on, and so does every write: the bit is what
    was written last. Kernel: vgic-mmio-v3.c:vgic_mmio_write_v3r_ctlr (v6.12)
    Shape: rows of REDISTRIBUTOR_WRITES with `on` (what was written), `was_ns` (since when it was otherwise) and `over_ns`.
    """
    obs = case.observations
    if not obs.records.get("write_rctlr") or not case.recorded("enable_lpis", "flush_lpis"):
        return
    writes = obs.redistributor_writes.filter(
        (pl.col("offset") == reg.GICR_CTLR) & pl.col("vcpu").is_not_null()
    )
    writes = writes.with_columns(on=(pl.col("value") & _ENABLE_LPIS) == 1)
    done = obs.vm_events.filter(pl.col("what").is_in(["enable_lpis", "flush_lpis"]))
    rows = after(writes, done, ["pid", "vm", "vcpu"], done="seq", what="what")
    rows = after(rows, writes, "pid", again="seq")
    rows = rows.hstack(obs.runs.next_entry_of_task(rows))
    # Whoever writes for the VM (QEMU, restoring) does not enter the guest, and goes on with something else.
    others = [
        each.select("pid", "seq", "time_ns") for each in (obs.redistributor_writes, obs.register_writes)
    ]
    rows = after(rows, pl.concat(others), _next="seq", _next_ns="time_ns")
    rows = rows.with_columns(
        over_seq=pl.min_horizontal("entry_seq", "_next"), over_ns=pl.min_horizontal("entry_ns", "_next_ns")
    )
    heeded = (pl.col("done") < pl.min_horizontal(pl.col("again"), "over_seq").fill_null(NEVER)).fill_null(
        value=False
    )
    rows = rows.with_columns(heeded=heeded)
    held: dict[tuple[int, int], tuple[bool, int]] = {}
    for row in rows.sort("seq").iter_rows(named=True):
        key = (row["vm"], row["vcpu"])
        known = held.get(key)
        held[key] = (row["on"], row["time_ns"])
        if known is None or known[0] == row["on"] or row["heeded"] or row["over_seq"] is None:
            continue
        if case.lost(known[1], row["over_ns"]):
            continue
        yield row | {"was_ns": known[1]}
