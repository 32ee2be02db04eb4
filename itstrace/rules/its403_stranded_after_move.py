"""ITS403: moved while it was pending on the old vCPU's list, and left there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from itstrace.findings import Confidence, Finding, Harm, Kind, Severity
from itstrace.observe.joins import after
from itstrace.rules._moves import pruned, usual_wait_ns
from itstrace.rules._waits import waits
from itstrace.rules.case import LPI, NEVER, VCPU, Case, first_some
from itstrace.rules.registry import Setting, rule
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Fewer list registers than any GIC has that KVM runs on; with that many in use an LPI may have to wait its turn.
_LIST_REGISTERS = 4
#: Waits that tell what is usual.
_COMPARABLE = 20

#: What became of a move, in the words of `mechanism`.
_LEFT = "the old vCPU's exit did not hand the LPI over"
_NOWHERE = "the LPI was on no vCPU's list after the move"
_KEPT = "the new vCPU had the LPI on its list and did not take it along"
_AWAY = "the old vCPU did not run, and nothing kicked it"
_INSIDE = "the old vCPU did not leave the guest, and nothing kicked it"


@rule(
    "ITS403",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM left an LPI behind on the old vCPU when it was moved",
    harm=Harm.GONE,
    needs=("QUEUEINGS", "LIST_REGISTERS", "RUNS"),
    suspect=("kvm_vgic_sync_hwstate", "vgic_prune_ap_list", "update_affinity"),
    guest_sees="The interrupt did not come, on the old vCPU or on the new one.",
    leads_to=("ITS304",),
    settings=(
        Setting(
            "stranded-factor",
            10,
            "how many times the capture's usual wait for a list register (99 of 100 are shorter) an LPI may wait for "
            "its old vCPU to hand it over",
        ),
        Setting(
            "stranded-least",
            200,
            "ms that such a wait lasts at least; five times as long where the capture has too few waits to compare with",
        ),
    ),
)
def stranded_after_move(case: Case) -> Iterator[Finding]:
    """An LPI was moved while it was pending on the old vCPU's list, and was left there.

    ## What it finds
    MOVI, MOVALL or MAPC give an LPI another target, and touch nothing else: a pending LPI stays on the list
    (ap_list) of its old vCPU until that vCPU leaves the guest, goes through its list, hands the LPI over and kicks
    the new vCPU. Two ways to stay stranded are found. The old vCPU left the guest after the move, and still the new
    one entered the guest without the LPI, or a new MSI found it on the old list. Or the old vCPU did not run (or did
    not leave the guest) for far longer than LPIs of this capture usually wait, while other vCPUs of the VM ran.

    ## Why it matters
    The old vCPU passes the LPI over, since it is not its target; the new one cannot see it. A new MSI kicks only the
    new vCPU, in vain. The device waits until something moves the LPI back.

    ## Where it comes from
    vgic_prune_ap_list (in kvm_vgic_sync_hwstate where it is inlined) that does not move the LPI. Or KVM's design:
    update_affinity kicks nobody, so that the LPI waits for the old vCPU's next exit, which is far away if that vCPU
    is off, paused, asleep with the LPI's priority masked, or runs without exits.

    ## When it is wrong
    Where the old vCPU does not run, the guest may have wanted it (a priority mask, a vCPU that is off), or its host
    was short of CPUs: that is called likely at best. An LPI that was lost before it was moved looks the same until
    a record shows on which list it is. An active LPI stays on its vCPU, and is left out, as are waits near lost
    records, and LPIs that the guest disabled, cleared or moved again before anything could be seen.

    ## What to do
    Look at the old vCPU's first exit after the move: was the LPI taken off its list (owner, vcpup, of the next
    queue_irq)? If the old vCPU did not run at all, record kvm_vcpu_wakeup, kvm_wfx_arm64 and sched_switch with it.
    """
    found = waits(case)
    for row in _passed_over(case, found).iter_rows(named=True):
        yield _not_handed_over(case, row)
    for row in _not_running(case, found).iter_rows(named=True):
        yield _not_reached(case, row)


# --- the old vCPU went through its list, and the LPI did not come over


def _passed_over(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Waits in which every list that may have held the LPI was gone through, and the target does not have it.

    Shape: rows of `waits` with `pruned_seq`, `pruned_ns`, `entry_seq`, `entry_ns` (of the target, without the LPI;
        null: not seen), `found_seq`, `found_ns`, `found_on` (a call found it on that vCPU's list; null: on none).
    """
    rows = _not_lost_before(case, rows).with_row_index("_row")
    lists = rows.select("_row", "vm", vcpu="lists", seq="from_seq").explode("vcpu")
    through = (
        lists.hstack(pruned(case, lists))
        .group_by("_row")
        .agg(
            pl.col("pruned_seq", "pruned_ns").max(),
            _all=pl.col("pruned_seq").is_not_null().all(),
        )
    )
    rows = rows.join(through, on="_row", how="left", maintain_order="left")
    rows = rows.filter("_all", pl.col("pruned_seq") < pl.col("end_seq"))
    at = rows.select("vm", "vcpu", seq="pruned_seq")
    at = at.with_columns(seq=case.observations.runs.next_exit(at)["exit_seq"])
    rows = rows.hstack(case.observations.runs.next_entry(at))
    rows = after(rows.with_columns(seq="entry_seq"), case.observations.folds, VCPU, _used="used")
    # With every list register in use the LPI waits its turn.
    passed = (pl.col("entry_seq") < pl.col("end_seq")) & (pl.col("_used").fill_null(0) < _LIST_REGISTERS)
    rows = rows.with_columns(pl.when(passed).then(pl.col(c)).alias(c) for c in ("entry_seq", "entry_ns"))
    rows = rows.with_columns(seq="pruned_seq")
    found = {"found_seq": "seq", "found_ns": "time_ns", "found_on": "owner_vcpu"}
    rows = after(rows, case.observations.queueings, LPI, _queue_seq="seq", **found)
    within = pl.col("found_seq") < pl.col("end_seq")
    rows = rows.with_columns(pl.when(within).then(pl.col(name)).alias(name) for name in found)
    elsewhere = pl.col("found_on").is_not_null() & (pl.col("found_on") != pl.col("vcpu"))
    rows = rows.filter(pl.col("entry_seq").is_not_null() | elsewhere)
    # Of several places of one move the first tells it.
    rows = rows.sort("from_seq").unique([*LPI, "move_seq"], keep="first", maintain_order=True)
    rows = rows.with_columns(_until=pl.max_horizontal("entry_ns", "pruned_ns"))
    return case.without_lost(rows, "placed_ns", "_until")


def _not_lost_before(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Without LPIs that the old vCPU passed over before they were moved: those were lost where they were."""
    at = rows.select("vm", vcpu="old", seq="placed_seq")
    at = at.with_columns(seq=case.observations.runs.next_exit(at)["exit_seq"])
    back = case.observations.runs.next_entry(at)["entry_seq"]
    return rows.filter(back.fill_null(NEVER) > rows["move_seq"])


def _not_handed_over(case: Case, row: dict[str, Any]) -> Finding:
    old, proof, certain, mechanism = row["lists"][0], "", False, _LEFT
    if row["found_on"] == row["vcpu"]:
        mechanism = _KEPT
        proof = f", but at {seconds(row['found_ns'])} it was on that vCPU's list"
    elif row["found_on"] is not None:
        old, certain = row["found_on"], True
        proof = f", and at {seconds(row['found_ns'])} it was still on the list of vCPU {old}"
    elif row["found_seq"] is not None and _tells_owner(case, old):
        mechanism = _NOWHERE
        proof = f", and at {seconds(row['found_ns'])} it was on no list"
    elif _came_back(row, old):
        certain = True
        proof = (
            f"; moved back, it was filled there at {seconds(row['fill_ns'])}, and nothing had queued it again"
        )
    entered = f", and vCPU {row['vcpu']} entered it at {seconds(row['entry_ns'])} without the LPI"
    return case.finding(
        f"LPI {row['intid']} was pending on the list of vCPU {old} when {_command(case, row)} gave it to vCPU "
        f"{row['vcpu']}. By {seconds(row['pruned_ns'])} vCPU {old} had left the guest"
        f"{entered if row['entry_seq'] is not None else ''}{proof}. It was stranded for {_waited(row)}.",
        mechanism=mechanism,
        confidence=Confidence.CERTAIN if certain else Confidence.LIKELY,
        doubt=""
        if certain
        else "No record shows on which list the LPI was: it may have been lost before it was moved.",
        capture_next="" if certain else "vgic_queue_irq_unlock with irq->vcpu, and vgic_prune_ap_list",
        **_about(case, row, old, [row["pruned_seq"], row["entry_seq"], row["found_seq"], row["fill_seq"]]),
    )


def _tells_owner(case: Case, vcpu: int) -> bool:
    """Whether this capture's queueings name that vCPU where an LPI is on its list (7.3's split function may not)."""
    return bool((case.observations.queueings["owner_vcpu"] == vcpu).any())


def _came_back(row: dict[str, Any], old: int) -> bool:
    """Moved again and filled on the old vCPU, although nothing had queued it: it had been on its list all the while."""
    if row["fill_seq"] is None or row["to_seq"] is None or row["fill_vcpu"] != old:
        return False
    return bool(row["to_seq"] < row["fill_seq"] < (row["_queue_seq"] or NEVER))


# --- the old vCPU did not go through its list


def _not_running(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Waits for one vCPU that did not leave the guest for far longer than LPIs wait here, while others of its VM ran.

    Shape: rows of `waits` with `pruned_seq`, `pruned_ns` (null: never), `threshold_ns`, `other_seq` (another vCPU's
        entry after that time).
    """
    usual, count = usual_wait_ns(case)
    rows = rows.filter(pl.col("lists").list.len() == 1).with_columns(old=pl.col("lists").list.first())
    known = pl.DataFrame(
        [key for key, entries in case.observations.runs.entries.items() if len(entries.seq)],
        schema={"vm": pl.UInt16, "old": pl.Int32},
        orient="row",
    )
    rows = rows.join(known, on=["vm", "old"], how="semi", maintain_order="left")
    least = case.setting("stranded-least") * 1e6
    threshold_ns = max(usual * case.setting("stranded-factor"), least) if count >= _COMPARABLE else least * 5
    rows = rows.hstack(pruned(case, rows.select("vm", vcpu="old", seq="from_seq")))
    rows = rows.with_columns(threshold_ns=pl.lit(int(threshold_ns)))
    until_ns = pl.min_horizontal("pruned_ns", "end_ns")
    rows = rows.filter(until_ns - pl.col("from_ns") > pl.col("threshold_ns")).with_columns(_until=until_ns)
    rows = case.without_lost(rows, "placed_ns", "_until")
    others = [_ran_at(case, row) for row in rows.iter_rows(named=True)]
    rows = rows.with_columns(other_seq=pl.Series(others, dtype=pl.UInt64))
    rows = rows.filter(pl.col("other_seq").is_not_null())
    return rows.sort("from_seq").unique([*LPI, "move_seq"], keep="first", maintain_order=True)


def _ran_at(case: Case, row: dict[str, Any]) -> int | None:
    """An entry of another vCPU of the VM after the wait had become too long, and before it ended: the VM was not stopped."""
    from_ns, until_ns = row["from_ns"] + row["threshold_ns"], row["_until"]
    for (vm, vcpu), entries in case.observations.runs.entries.items():
        if vm != row["vm"] or vcpu == row["old"]:
            continue
        place = int(np.searchsorted(entries.time_ns, from_ns, side="right"))
        if place < len(entries.time_ns) and entries.time_ns[place] < until_ns:
            return int(entries.seq[place])
    return None


def _not_reached(case: Case, row: dict[str, Any]) -> Finding:
    old, runs = row["old"], case.observations.runs
    key = (row["vm"], old)
    entered, left = (
        int(np.searchsorted(stamps.seq, row["from_seq"], side="right"))
        for stamps in (runs.entries[key], runs.exits[key])
    )
    last_entry = int(runs.entries[key].seq[entered - 1]) if entered else 0
    last_exit = int(runs.exits[key].seq[left - 1]) if left else 0
    inside = last_entry > last_exit
    did = "did not leave the guest" if inside else "did not run"
    until = f"until {seconds(row['pruned_ns'])}" if row["pruned_ns"] is not None else "any more"
    return case.finding(
        f"LPI {row['intid']} was pending on the list of vCPU {old} when {_command(case, row)} gave it to vCPU "
        f"{row['vcpu']}, and vCPU {old} {did} {until}, while others of its VM ran. KVM kicks no vCPU for a move: the LPI was "
        f"stranded for {_waited(row)} (no LPI of this capture should wait for {duration(row['threshold_ns'])}).",
        mechanism=_INSIDE if inside else _AWAY,
        confidence=Confidence.LIKELY,
        doubt=f"The guest may have stopped vCPU {old} or masked the LPI there itself, or its host was short of CPUs.",
        capture_next="kvm:kvm_vcpu_wakeup, kvm:kvm_wfx_arm64 and sched:sched_switch",
        **_about(
            case,
            row,
            old,
            [last_entry or None, last_exit or None, row["other_seq"], row["pruned_seq"], row["fill_seq"]],
        ),
    )


# --- what both say


def _command(case: Case, row: dict[str, Any]) -> str:
    text = case.command_text(row["by"]) or "a move"
    return f"{text} at {seconds(row['time_ns'])}"


def _span_ns(row: dict[str, Any]) -> int | None:
    """From the move to the next fill, wherever that was; or to whatever else ended the wait."""
    filled = row["fill_ns"] is not None and row["end_seq"] in (row["fill_seq"], row["to_seq"])
    until = row["fill_ns"] if filled else row["end_ns"]
    return None if until is None else int(until - row["from_ns"])


def _waited(row: dict[str, Any]) -> str:
    span = duration(_span_ns(row))
    return f"{span}, as far as the capture tells" if row["end_seq"] == NEVER else span


def _about(case: Case, row: dict[str, Any], old: int, seqs: list[int | None]) -> dict[str, Any]:
    its, device, event = case.event_of(row["vm"], row["intid"], row["move_seq"])
    span = _span_ns(row)
    return {
        "vm": row["vm"],
        "its": its,
        "device_id": device,
        "event_id": event,
        "intid": row["intid"],
        "vcpus": tuple(sorted({old, row["vcpu"]})),
        "time_ns": row["from_ns"],
        "end_ns": None if span is None else row["from_ns"] + span,
        "blames": (row["by"],) if row["by"] is not None else (),
        "measure": float(span or 0),
        "worst": f"LPI {row['intid']} was stranded on vCPU {old} for {_waited(row)} from {seconds(row['from_ns'])} on",
        "guest_saw": f"The interrupt came on neither vCPU for {_waited(row)}.",
        "seqs": first_some([row["placed_by"], row["by"], row["move_seq"], *seqs]),
    }
