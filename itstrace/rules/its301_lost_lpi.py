"""ITS301: pending and enabled, its vCPU runs, and it is not delivered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.findings import Confidence, Finding, Harm, Kind, Severity
from itstrace.rules._unheld import left_latched, lost
from itstrace.rules.case import LPI, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator


#: LPIs lost from which it is no longer one lost record of a capture that does not tell of losses.
_OFTEN = 3


@dataclass(frozen=True, slots=True)
class _Way:
    """How an LPI comes to wait without anybody who will deliver it."""

    mechanism: str
    #: What was seen at the begin, of an LPI and its vCPU.
    began: str
    suspect: tuple[str, ...]


_WAYS: Final[dict[str, _Way]] = {
    "dropped": _Way(
        "queued, and on no list",
        "was queued, pending and enabled, for vCPU {vcpu}",
        ("vgic_queue_irq_unlock", "vgic_prune_ap_list"),
    ),
    "passed over": _Way(
        "on its vCPU's list, and not put into a list register",
        "was queued, pending and enabled, for vCPU {vcpu}",
        ("vgic_flush_lr_state", "vgic_target_oracle", "kvm_vgic_flush_hwstate"),
    ),
    "folded": _Way(
        "still pending when its list register was folded, and not put into one again",
        "was folded back still pending on vCPU {vcpu}",
        ("vgic_v3_fold_lr_state", "vgic_prune_ap_list"),
    ),
    "taken": _Way(
        "an injection was taken and never queued",
        "was injected for vCPU {vcpu} with success, but never queued,",
        ("vgic_its_trigger_msi", "vgic_its_inject_cached_translation"),
    ),
    "enabled": _Way(
        "enabled while pending, and never queued",
        "was enabled while pending for vCPU {vcpu}, but never queued,",
        ("update_lpi_config", "vgic_its_inv_lpi", "vgic_its_invall"),
    ),
}
_FLUSHED: Final = "EnableLPIs=0 took it off its list and left its latch set"


@rule(
    "ITS301",
    kind=Kind.LIFE,
    severity=Severity.ERROR,
    claim="an interrupt was lost",
    harm=Harm.GONE,
    needs=("QUEUEINGS", "LIST_REGISTERS"),
    suspect=("vgic_queue_irq_unlock",),
    guest_sees="an interrupt that never comes, or comes only with the next one of its device",
)
def lost_lpi(case: Case) -> Iterator[Finding]:
    """An enabled LPI is pending, its vCPU leaves and enters the guest, and does not take it along.

    ## What it finds
    An LPI that was pending and enabled for a vCPU which then entered the guest without the LPI in a list
    register. KVM fills every pending LPI of a vCPU at every entry, so it is on no list, or was passed over: lost
    until something else (another MSI, INV, a move) sets it going, or for ever. It began to wait when it was
    queued, when a fold found its list register still pending, when an MSI was taken that was then never
    queued, or when it was enabled while pending and not queued then. A queueing that finds no owner for an LPI
    that must be on a list already shows the same, even where nobody ran. On 6.12, an LPI that EnableLPIs=0
    took off its list with its latch still set is told apart: as a note where the next queueing came before
    anybody could miss it, else as a warning.

    ## Why it matters
    The device has raised its interrupt and waits; the driver in the guest never hears of it. Disks time out,
    networks stall.

    ## Where it comes from
    vgic_queue_irq_unlock that does not put the LPI on the ap_list, or is not called; an ap_list emptied
    (vgic_flush_pending_lpis) while the latch stays set; a fold that drops a list register's state; a flush of
    the ap_list that leaves an LPI out.

    ## When it is wrong
    An LPI that is moved on its way is judged by other rules (ITS403), and so is one that was still on another
    vCPU's list. With all list registers in use an LPI waits its turn; it is then reported, as likely, only if it
    never came. An entry that was under way when the LPI was queued is not counted, nor is one near lost records.
    A vCPU that never enters again is not counted: it may have been halted. An LPI that is forwarded to hardware
    (GICv4) is not queued; those that were never queued are likely only.

    ## What to do
    Follow the LPI with `itstrace lpi`: what came between its queueing and the vCPU's next entry? Does a later
    MSI find it without an owner (vcpup=0) although its latch is set?
    """
    found = lost(case)
    # A fill that was lost unsaid looks the same; that one does so once or twice only.
    guess = not case.losses_told and found.height < _OFTEN
    for (_, intid, _), rows in found.group_by([*LPI, "way"], maintain_order=True):
        finding = _finding(case, int(str(intid)), rows)
        if guess:
            finding = replace(
                finding,
                severity=Severity.NOTE,
                confidence=Confidence.UNPROVEN,
                doubt="This form of capture does not tell whether records were lost, and one lost fill explains it.",
                capture_next="a trace.dat or a perf.data, which tell what was lost",
            )
        yield finding
    yield from _flushed(case)


def _finding(case: Case, intid: int, rows: pl.DataFrame) -> Finding:
    waits = rows.with_columns(wait=pl.col("next_fill_ns") - pl.col("time_ns"))
    first = waits.row(0, named=True)
    longest = waits.sort("wait", nulls_last=True, descending=True).row(0, named=True)
    way = _WAYS[first["way"]]
    never = int(rows["next_fill"].null_count())
    certain = first["way"] not in ("taken", "enabled") and not rows["crowded"].all()
    details: dict[str, Any] = {}
    if not certain:
        crowded = bool(rows["crowded"].all())
        details = {
            "confidence": Confidence.LIKELY,
            "doubt": "All list registers of the vCPU were in use, and it may have waited its turn."
            if crowded
            else "An LPI that is forwarded to hardware (GICv4) is not queued either.",
            "capture_next": "p:kvm_vgic_v4_set_forwarding kvm_vgic_v4_set_forwarding" if not crowded else "",
        }
    if longest["wait"] is not None:
        details |= {
            "worst": f"LPI {intid} waited {duration(longest['wait'])} from {seconds(longest['time_ns'])}",
            "measure": float(longest["wait"]),
        }
    return case.finding(
        f"LPI {intid} {way.began.format(vcpu=first['vcpu'])} at {seconds(first['time_ns'])}, but "
        f"{_missed(first)}. Lost {times(rows.height)}{_until(longest, never)}.",
        vcpus=(first["vcpu"],),
        **case.about(rows, end_ns=rows["proof_ns"].max()),
        seqs=first_some(
            [
                *[first[name] for name in ("by_command", "seq", "exit_seq", "entry_seq", "next_queue")],
                first["next_fill"],
            ]
        ),
        mechanism=way.mechanism,
        suspect=way.suspect,
        blames=tuple(rows["by_command"].drop_nulls()),
        **details,
    )


def _missed(row: dict[str, Any]) -> str:
    if row["entered"]:
        return f"vCPU {row['vcpu']} entered the guest at {seconds(row['entry_ns'])} without it"
    return f"the next queueing, at {seconds(row['next_queue_ns'])}, found it on no list"


def _until(longest: dict[str, Any], never: int) -> str:
    if longest["wait"] is None:
        return ", and it never came" if never == 1 else ", and it never came any more"
    after_all = f", for {duration(longest['wait'])} at the longest"
    if longest["next_queue"] is not None and longest["next_queue"] < longest["next_fill"]:
        what = {"msi": "another MSI", "int": "an INT"}.get(longest["next_cause"], "another queueing")
        after_all += f", until {what} set it going"
    return f"{after_all}; {times(never)} it never came" if never else after_all


def _flushed(case: Case) -> Iterator[Finding]:
    """LPIs that EnableLPIs=0 took off their vCPU's list with their latch still set."""
    for (_, intid, missed), rows in left_latched(case).group_by([*LPI, "missed"], maintain_order=True):
        first = rows.row(0, named=True)
        if missed:
            outcome = (
                f"{case.command_text(first['moved_by']) or 'A move'} gave it to vCPU {first['vcpu']}, which entered the guest at "
                f"{seconds(first['entry_ns'])} without it"
            )
        else:
            outcome = f"only the next queueing, at {seconds(first['next_queue_ns'])}, put it on one again"
        yield case.finding(
            f"LPI {intid} was pending on vCPU {first['flushed']} when EnableLPIs went to 0 at {seconds(first['time_ns'])}: "
            f"it was taken off the list, its latch stayed set, and {outcome} ({times(rows.height)}).",
            severity=Severity.WARNING if missed else Severity.NOTE,
            vcpus=tuple(sorted({first["flushed"], first["vcpu"]} - {None})),
            **case.about(rows),
            seqs=first_some(
                [
                    *[first[name] for name in ("latched_seq", "seq", "moved_by", "moved", "entry_seq")],
                    first["next_queue"],
                ]
            ),
            mechanism=_FLUSHED,
            suspect=("vgic_flush_pending_lpis",),
            blames=tuple(rows["moved_by"].drop_nulls()),
            guest_saw=case.rule.guest_sees if missed else "",
        )
