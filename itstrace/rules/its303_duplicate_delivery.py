"""ITS303: delivered more often than injected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.findings import Confidence, Finding, Harm, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules.case import LPI, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator


#: By whether the fill before left the latch set.
_KEPT: Final = ("a fill left pending_latch set", ("vgic_v3_populate_lr", "vgic_v3_compute_lr"))
_SILENT: Final = (
    "nothing that was seen made it pending again",
    ("vgic_v3_fold_lr_state", "vgic_v3_populate_lr", "vgic_its_cmd_handle_clear"),
)


@rule(
    "ITS303",
    kind=Kind.LIFE,
    severity=Severity.ERROR,
    claim="one MSI was delivered twice",
    harm=Harm.TWICE,
    needs=("QUEUEINGS", "LIST_REGISTERS"),
    suspect=("vgic_v3_populate_lr",),
    guest_sees="an interrupt that its device did not raise",
    leads_to=("ITS309",),
)
def duplicate_delivery(case: Case) -> Iterator[Finding]:
    """An LPI was put into a list register as pending although nothing had made it pending again.

    ## What it finds
    A fill with pending state that no MSI, INT, re-reading of its configuration, fold of a still pending list
    register or pending table accounts for: the LPI is delivered more often than it was injected. Where the return
    of the fill before shows pending_latch still set, that is the cause, and certain.

    ## Why it matters
    The driver's handler runs for an interrupt that its device did not raise; at best it costs time, at worst
    the device is not ready for it.

    ## Where it comes from
    vgic_v3_populate_lr that leaves pending_latch set when it fills the list register (then the fill's own
    return shows it); a latch set without vgic_queue_irq_unlock; a list register that was not cleared.

    ## When it is wrong
    A pending table read at EnableLPIs or MAPTI makes LPIs pending; on 6.1 its bytes are not recorded, and
    fills after such a read are left out. So are the first fill in the capture, fills near lost records, and those
    after a fill whose end was not seen: its list register may have been folded still pending. That is so for
    list registers beyond those that the probe of the fold shows.

    ## What to do
    Look at populate_lr_ret in the evidence: pend must be 0 there. If it is, look for who set the latch since.
    """
    for (_, intid, _), rows in _extra(case).group_by([*LPI, "kept"], maintain_order=True):
        yield _finding(case, int(str(intid)), rows)


def _finding(case: Case, intid: int, rows: pl.DataFrame) -> Finding:
    first = rows.row(0, named=True)
    delivered = int(rows["taken"].sum())
    mechanism, suspect = _KEPT if first["kept"] else _SILENT
    cause = " The fill before it left pending_latch set (vgic_v3_populate_lr must clear it)." * first["kept"]
    details: dict[str, Any] = {}
    if not first["kept"]:
        unseen = first["last_kept"] is None
        details = {
            "confidence": Confidence.LIKELY,
            "doubt": "What the fill before left of the latch was not recorded."
            if unseen
            else "What set the latch was not recorded.",
            "capture_next": "r:vgic/populate_lr_ret vgic_v3_populate_lr pend=irq->pending_latch"
            if unseen
            else "p:vgic/queue_irq vgic_queue_irq_unlock, p:vgic/lpi_sync_pending vgic_v3_lpi_sync_pending_status",
        }
    return case.finding(
        f"LPI {intid} was filled into a list register of vCPU {first['vcpu']} as pending {times(rows.height)} without a new "
        f"injection, first at {seconds(first['time_ns'])}; the guest took {delivered} of them.{cause}",
        vcpus=tuple(sorted(rows["vcpu"].unique().to_list())),
        **case.about(rows),
        seqs=_evidence(case, first),
        mechanism=mechanism,
        suspect=suspect,
        guest_saw=case.rule.guest_sees if delivered else "",
        **details,
    )


def _extra(case: Case) -> pl.DataFrame:
    """Fills as pending that nothing accounts for.

    Shape: rows of `Lives.fills` with last_fill, last_ns, last_kept (of the LPI's fill before), kept (the latch was left set).
    """
    fills = case.lives.fills
    extra = fills.filter(
        (pl.col("latched_by") == "fill")
        | (pl.col("latched_by").is_null() & pl.col("was_latched").is_not_null())
    )
    if extra.is_empty():
        return extra.with_columns(kept=None)
    extra = before(
        extra,
        case.observations.fills,
        LPI,
        last_fill="seq",
        last_ns="time_ns",
        last_kept="latch_kept",
        last_state="state",
    )
    extra = before(extra, _quiet_sources(case), ["vm"], sourced="seq")
    extra = extra.filter(pl.col("sourced").is_null() | (pl.col("sourced") < pl.col("last_fill").fill_null(0)))
    # A flush takes what is on that vCPU's list by then; what had moved on to another one unseen is not.
    latches = case.lives.latches.select(*LPI, latched_seq="seq", _by="by", _on="vcpu")
    extra = extra.join(latches, on=[*LPI, "latched_seq"], how="left", maintain_order="left")
    flushed = (pl.col("_by") == "flush") & pl.col("_on").ne_missing(pl.col("vcpu"))
    extra = extra.filter(~flushed.fill_null(value=False)).drop("_by", "_on").sort("seq")
    extra = extra.with_columns(kept=pl.col("last_kept").fill_null(value=False))
    extra = extra.filter(pl.col("kept") | pl.col("last_state").is_in([0, 2]) | pl.col("last_fill").is_null())
    return case.without_lost(extra, "last_ns", "time_ns")


def _quiet_sources(case: Case) -> pl.DataFrame:
    """Records that may set latches without showing which: the pending table read, where its bytes were not recorded."""
    events = case.observations.vm_events
    what = ["restore_tables"] if case.observations.guest_reads.height else ["restore_tables", "enable_lpis"]
    return events.filter(pl.col("what").is_in(what)).select("vm", "seq")


def _evidence(case: Case, first: dict[str, object]) -> tuple[int, ...]:
    """The last injection, the fill that took it, what its return and its fold showed, and the fill too many."""
    at = pl.DataFrame(
        {"vm": [first["vm"]], "intid": [first["intid"]], "seq": [first["last_fill"]], "pid": [first["pid"]]}
    ).cast({"vm": pl.UInt16, "intid": pl.UInt32, "seq": pl.UInt64, "pid": pl.Int32})
    queued = before(at, case.observations.queueings, LPI, found="seq")["found"].to_list()
    fill = case.observations.fills.join(at, on="seq", how="semi")["end_seq"].to_list()
    returns = after(at, case.observations.fill_returns, ["pid"], found="seq")["found"].to_list()
    return first_some([*queued, first["last_fill"], *returns, *fill, first["seq"], first["end_seq"]])  # type: ignore[list-item]
