"""ITS302: an MSI came back with an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.findings import Confidence, Finding, Harm, Kind, Severity
from itstrace.gic.faults import Fault
from itstrace.gic.registers import GICR_CTLR, GITS_CTLR
from itstrace.observe.joins import after, before
from itstrace.rules.case import EVENT, NEVER, Case, first_some
from itstrace.rules.registry import Setting, rule
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator

_EBUSY = -16
_ENODEV, _EINVAL = -19, -22


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why an MSI is refused: `mechanism` of the finding, `said` in its message after "was dropped"."""

    mechanism: str
    said: str
    severity: Severity
    confidence: Confidence = Confidence.CERTAIN
    suspect: tuple[str, ...] = ()
    doubt: str = ""


_RESOLVE = ("vgic_its_resolve_lpi", "vgic_its_trigger_msi")
_UNSEEN = "What came before the capture, or was lost of it, is not known."
_REASONS: Final[dict[str, _Reason]] = {
    "going down": _Reason(
        "fired once while its event was being taken down",
        "its event had just been taken down (INT_UNMAPPED_INTERRUPT, 0x010307)",
        Severity.NOTE,
    ),
    "taken down": _Reason(
        "its event had been taken down",
        "its event had been taken down before (INT_UNMAPPED_INTERRUPT, 0x010307)",
        Severity.WARNING,
    ),
    "no collection": _Reason(
        "its event's collection is not mapped",
        "its event is mapped, but the collection that it goes by is not (INT_UNMAPPED_INTERRUPT, 0x010307)",
        Severity.ERROR,
    ),
    "although mapped": _Reason(
        "refused although its event is mapped",
        "by the commands, its event is mapped, and still it was not found (INT_UNMAPPED_INTERRUPT, 0x010307)",
        Severity.ERROR,
        suspect=_RESOLVE,
    ),
    "too early": _Reason(
        "its event was not mapped yet",
        "its event was mapped only later (INT_UNMAPPED_INTERRUPT, 0x010307)",
        Severity.ERROR,
    ),
    "unmapped": _Reason(
        "no event maps it", "no event maps it (INT_UNMAPPED_INTERRUPT, 0x010307)", Severity.ERROR
    ),
    "unknown": _Reason(
        "no event maps it, as far as the capture tells",
        "its event, or the collection that it goes by, is not mapped (INT_UNMAPPED_INTERRUPT, 0x010307)",
        Severity.WARNING,
        Confidence.LIKELY,
        doubt=_UNSEEN,
    ),
    "ITS not on yet": _Reason(
        "the ITS was not enabled yet", "the ITS was not enabled yet (EBUSY)", Severity.NOTE
    ),
    "ITS off": _Reason(
        "the ITS was switched off, and its event mapped",
        "the ITS was switched off, while its event was mapped (EBUSY)",
        Severity.WARNING,
    ),
    "ITS down": _Reason(
        "the ITS was switched off, and its tables gone",
        "the ITS was switched off, and nothing mapped its event (EBUSY)",
        Severity.NOTE,
    ),
    "LPIs not on yet": _Reason(
        "its vCPU's EnableLPIs was not set yet",
        "EnableLPIs of vCPU {vcpu} was not set yet (EBUSY)",
        Severity.NOTE,
    ),
    "LPIs off": _Reason(
        "its vCPU's EnableLPIs was cleared",
        "EnableLPIs of vCPU {vcpu} had been cleared (EBUSY)",
        Severity.WARNING,
    ),
    "although on": _Reason(
        "refused as switched off although all is on",
        "by the registers, the ITS is enabled and so is EnableLPIs of vCPU {vcpu}, and still it came back with EBUSY",
        Severity.ERROR,
        Confidence.LIKELY,
        suspect=_RESOLVE,
        doubt="A write of GITS_CTLR or GICR_CTLR that was not recorded explains it, too.",
    ),
    "busy": _Reason(
        "the ITS, or its vCPU's EnableLPIs, was off",
        "the ITS is disabled, or the target vCPU's EnableLPIs is 0 (EBUSY)",
        Severity.WARNING,
        Confidence.LIKELY,
        doubt=_UNSEEN,
    ),
    "no ITS": _Reason("no ITS is at its address", "no ITS takes its address (errno {errno})", Severity.ERROR),
    "other": _Reason("refused for another reason", "{reason}", Severity.ERROR),
}


@rule(
    "ITS302",
    kind=Kind.LIFE,
    severity=Severity.ERROR,
    claim="an MSI was refused, and is gone",
    harm=Harm.REFUSED,
    needs=("INJECTIONS",),
    guest_sees="nothing: the interrupt never comes, and its device waits",
    settings=(
        Setting("teardown-ms", 1000, "how long after its event was taken down one MSI is expected, ms"),
    ),
)
def dropped_injection(case: Case) -> Iterator[Finding]:
    """An MSI came back with an error, and is gone.

    ## What it finds
    An MSI that KVM refused: no event maps it, its collection is not mapped, the ITS is disabled, the target
    vCPU's EnableLPIs is 0, or no ITS is at its address. By the tables and registers of that moment the finding
    says which, and whether KVM had a reason at all. INT commands that are refused because the ITS or the
    redistributor is off are counted too; INT of unmapped events is ITS102.

    ## Why it matters
    The device has raised its interrupt; nothing is latched, and nothing will come.

    ## Where it comes from
    A device that fires before its driver has mapped the event, or after it took it down; MSI data or address
    that the guest wrote wrong; interrupts during the guest's reset, kexec or the bring-up of a CPU.

    ## When it is wrong
    A refusal while a driver unloads is expected: the device is still running. One MSI within `teardown-ms` after
    its event was taken down is a note; more, or later ones, are a warning. At boot and at reset, while the ITS is
    off and nothing mapped the event, or EnableLPIs was not set yet, it is a note. In a capture that began later
    than its guest, what was mapped before is not known; that is a warning, too.

    ## What to do
    Compare device and event with `itstrace tables --at` that moment: was the event not mapped yet, or no
    longer? For EBUSY, look for who wrote EnableLPIs or GITS_CTLR.
    """
    rows = case.observations.injections.filter(pl.col("result").is_not_null() & (pl.col("result") != 0))
    rows = rows.filter(pl.col("from_command").is_null() | (pl.col("result") < 0))
    if rows.is_empty():
        return
    rows = _reasons(case, rows)
    for _, mine in rows.group_by([*EVENT, "reason", "result"], maintain_order=True):
        yield _finding(case, mine)


def _finding(case: Case, rows: pl.DataFrame) -> Finding:
    first = rows.row(0, named=True)
    reason = _REASONS[first["reason"]]
    device = first["device_id"]
    what = "An INT" if rows["from_command"].null_count() == 0 else "An MSI"
    of = "an unknown device" if device is None else f"event {first['event_id']} of device 0x{device:x}"
    said = reason.said.format(vcpu=first["vcpu"], errno=-first["result"], reason=_words(int(first["result"])))
    mechanism = reason.mechanism
    if first["reason"] == "other":
        mechanism = f"{mechanism}: {_words(int(first['result']))}"
    details: dict[str, Any] = {}
    if reason.confidence is not Confidence.CERTAIN:
        capture_next = "" if reason.doubt == _UNSEEN else "its:its_wr_ctlr, vgic:wr_rctlr"
        details = {"confidence": reason.confidence, "doubt": reason.doubt, "capture_next": capture_next}
    return case.finding(
        f"{what} of {of} was dropped ({times(rows.height)}): {said}.",
        **case.about(rows),
        severity=reason.severity,
        seqs=first_some(
            [
                first["from_command"],
                first["blamed"],
                first["seq"],
                first["end_seq"],
                *rows["seq"].slice(1, 3).to_list(),
            ]
        ),
        mechanism=mechanism,
        suspect=reason.suspect,
        blames=tuple(rows["blamed"].drop_nulls().unique(maintain_order=True)),
        **details,
    )


def _words(result: int) -> str:
    if result > 0:
        name = Fault(result).name if result in set(Fault) else "unknown command error"
        return f"{name}, 0x{result:06x}"
    return f"errno {-result}"


# --- why


def _reasons(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Shape: `rows` with `reason` (a key of `_REASONS`), `vcpu` (the target, where it is known) and `blamed` (a command)."""
    rows = _mapped(case, rows)
    rows = _switched(case, rows)
    unmapped = pl.col("result") == int(Fault.INT_UNMAPPED_INTERRUPT)
    busy = pl.col("result") == _EBUSY
    gone = pl.col("taken_down").is_not_null() & ~pl.col("mapped")
    once = (unmapped & gone).sum().over([*EVENT, "taken_down"]) == 1
    soon = pl.col("time_ns") - pl.col("taken_ns") <= case.setting("teardown-ms") * 1e6
    reason = (
        pl.when(unmapped & pl.col("vcpu").is_not_null())
        .then(pl.lit("although mapped"))
        .when(unmapped & pl.col("mapped") & pl.col("no_collection"))
        .then(pl.lit("no collection"))
        .when(unmapped & gone & once & soon)
        .then(pl.lit("going down"))
        .when(unmapped & gone)
        .then(pl.lit("taken down"))
        .when(unmapped & pl.col("complete") & ~pl.col("mapped") & pl.col("later").is_not_null())
        .then(pl.lit("too early"))
        .when(unmapped & pl.col("complete") & ~pl.col("mapped"))
        .then(pl.lit("unmapped"))
        .when(unmapped)
        .then(pl.lit("unknown"))
        .when(busy & pl.col("its_on").is_null() & pl.col("its_never"))
        .then(pl.lit("ITS not on yet"))
        .when(busy & ~pl.col("its_on") & pl.col("mapped"))
        .then(pl.lit("ITS off"))
        .when(busy & ~pl.col("its_on"))
        .then(pl.lit("ITS down"))
        .when(busy & pl.col("lpis_on").is_null() & pl.col("lpis_never"))
        .then(pl.lit("LPIs not on yet"))
        .when(busy & ~pl.col("lpis_on"))
        .then(pl.lit("LPIs off"))
        .when(busy & pl.col("its_on") & pl.col("lpis_on"))
        .then(pl.lit("although on"))
        .when(busy)
        .then(pl.lit("busy"))
        .when(pl.col("its").is_null() & pl.col("result").is_in([_ENODEV, _EINVAL]))
        .then(pl.lit("no ITS"))
        .otherwise(pl.lit("other"))
    )
    blamed = (
        pl.when(pl.col("reason").is_in(["going down", "taken down"]))
        .then("taken_by")
        .when(pl.col("reason") == "no collection")
        .then(pl.coalesce("unmapped_by", "mapped_by"))
    )
    return rows.with_columns(reason=reason).with_columns(blamed=blamed).sort("seq")


def _mapped(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """What the tables held of each MSI's event.

    Shape: `rows` with mapped, mapped_by, no_collection, unmapped_by (the collection's MAPC), taken_down, taken_ns
        and taken_by (its last end), later (when it was mapped next), vcpu (its target, where the tables held it
        throughout), complete.
    """
    history = case.history
    entries = history.mappings.with_columns(seq=pl.col("from_seq").fill_null(0)).sort("seq")
    rows = before(
        rows, entries, EVENT, _to="to_seq", icid="icid", mapped_by="set_by", _assumed="assumed", _from="seq"
    )
    ended = history.mappings.drop_nulls("to_seq").with_columns(seq="to_seq").sort("seq")
    rows = before(rows, ended, EVENT, taken_down="to_seq", taken_ns="to_ns", taken_by="ended_by")
    rows = after(rows, entries, EVENT, later="seq")
    mapped = pl.col("_from").is_not_null() & (pl.col("_to").fill_null(NEVER) > pl.col("seq"))
    rows = rows.with_columns(mapped=mapped)
    collections = history.collections.with_columns(seq=pl.col("from_seq").fill_null(0)).sort("seq")
    aims = ["vm", "its", "icid"]
    rows = before(rows, collections, aims, _until="to_seq", _target="target_vcpu", unmapped_by="ended_by")
    lacks = pl.col("_target").is_null() | (pl.col("_until").fill_null(NEVER) <= pl.col("seq"))
    rows = rows.with_columns(no_collection=(pl.col("icid").is_null() | lacks) & ~pl.col("_assumed"))
    held = case.held(rows.drop("icid"), history.mappings, EVENT, icid="icid").drop_nulls("icid")
    held = case.held(held, history.collections, aims, vcpu="target_vcpu")
    held = case.without_lost_commands(case.without_lost(held, "time_ns", "end_ns"), "seq")
    rows = rows.join(held.select("seq", "vcpu"), on="seq", how="left", maintain_order="left")
    whole = case.observations.itss.select("vm", "its", "complete").unique(["vm", "its"])
    rows = rows.join(whole, on=["vm", "its"], how="left", maintain_order="left")
    lost = bool(case.observations.commands["lost_before"].any())
    return rows.with_columns(complete=pl.col("complete").fill_null(value=False) & (not lost)).drop(
        "_to", "_from", "_assumed", "_until", "_target"
    )


def _switched(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Whether ITS and redistributor were on. Shape: `rows` with its_on, its_never, lpis_on, lpis_never; null is unknown.

    `..._never`: nothing switched it on so far, and that would have been recorded.
    """
    obs = case.observations
    # Enabled is bit 0 of both. Spec: IHI 0069H, GITS_CTLR, GICR_CTLR.
    its = obs.register_writes.filter(pl.col("offset") == GITS_CTLR).with_columns(on=pl.col("value") & 1 == 1)
    rows = before(rows, its, ["vm", "its"], its_on="on")
    rows = before(rows, its.filter("on"), ["vm", "its"], _its_once="seq")
    written = obs.redistributor_writes.filter(pl.col("offset") == GICR_CTLR)
    seen = obs.vm_events.filter(pl.col("what").is_in(["enable_lpis", "flush_lpis"]))
    lpis = pl.concat(
        [
            written.select("vm", "vcpu", "seq", on=pl.col("value") & 1 == 1),
            seen.select("vm", "vcpu", "seq", on=pl.col("what") == "enable_lpis"),
        ]
    ).drop_nulls("vcpu")
    rows = before(rows, lpis.sort("seq"), ["vm", "vcpu"], lpis_on="on")
    rows = before(rows, lpis.filter("on").sort("seq"), ["vm", "vcpu"], _lpis_once="seq")
    its_told = case.recorded("write_ctlr")
    lpis_told = case.recorded("write_rctlr") or case.recorded("enable_lpis")
    never_its = pl.col("_its_once").is_null() & pl.col("complete") & its_told
    never_lpis = (
        pl.col("_lpis_once").is_null() & pl.col("vcpu").is_not_null() & pl.col("complete") & lpis_told
    )
    return rows.with_columns(
        its_never=never_its,
        lpis_never=never_lpis,
        its_on=pl.when(~never_its).then("its_on"),
        lpis_on=pl.when(~never_lpis).then("lpis_on"),
    ).drop("_its_once", "_lpis_once")
