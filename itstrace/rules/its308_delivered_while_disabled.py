"""ITS308: put into a list register while its configuration says disabled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.observe.joins import before
from itstrace.rules.case import LPI, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

#: By what the fill itself says of irq->enabled (null: not recorded).
_MECHANISMS: Final[dict[bool | None, tuple[str, tuple[str, ...]]]] = {
    False: (
        "filled though disabled",
        ("vgic_target_oracle", "vgic_flush_lr_state", "vgic_queue_irq_unlock", "vgic_prune_ap_list"),
    ),
    True: (
        "enabled again without its configuration being read",
        ("update_lpi_config", "vgic_its_cmd_handle_clear"),
    ),
    None: (
        "filled after its configuration was read as disabled",
        ("vgic_target_oracle", "vgic_flush_lr_state"),
    ),
}


@rule(
    "ITS308",
    kind=Kind.LIFE,
    severity=Severity.ERROR,
    claim="a disabled interrupt was delivered",
    needs=("LIST_REGISTERS",),
    suspect=("vgic_target_oracle", "vgic_flush_lr_state"),
    guest_sees="an interrupt that it has disabled",
)
def delivered_while_disabled(case: Case) -> Iterator[Finding]:
    """A pending LPI was put into a list register while KVM held it for disabled.

    ## What it finds
    A fill with pending state of an LPI whose irq->enabled is 0 at that moment, as the fill itself says. Where
    the fill does not say it: of an LPI whose configuration KVM had last read as disabled. A fill that says
    enabled though KVM had last read the configuration as disabled is reported too, as likely: something set
    the flag without reading the byte.

    ## Why it matters
    The guest has masked the interrupt, and waited until INV took effect; its driver may have freed what the
    handler needs.

    ## Where it comes from
    A list that keeps a disabled LPI, or a fill that does not ask (vgic_target_oracle says who may have a pending
    and enabled LPI); a flag overwritten: on 7.3 irq->enabled shares a byte with pending_latch, which CLEAR
    writes without the lock.

    ## When it is wrong
    An LPI that is in a list register already when it is disabled may still be taken until the vCPU's next exit;
    that is no new fill, and allowed. An active LPI is filled to let the guest end it. What KVM read is what
    counts here, not the byte in the guest's memory: whether it read it in time is ITS205. Fills near lost records
    are left out where the fill does not say it itself.

    ## What to do
    Look at the fill in the evidence: en= is irq->enabled. If it is 0, look for what left the LPI on the list after
    the configuration was read; if it is 1, look for what set it since.
    """
    fills = case.observations.fills.filter(pl.col("pending") & ~pl.col("active").fill_null(value=False))
    rows = before(fills, _known(case), LPI, known="enabled", known_seq="seq", known_ns="time_ns")
    read_off = (~pl.col("known")).fill_null(value=False)
    certain = (~pl.col("enabled")).fill_null(value=False)
    rows = rows.filter(certain | read_off)
    sure = rows.filter(~pl.col("enabled"))
    rest = case.without_lost(rows.filter(pl.col("enabled").fill_null(value=True)), "known_ns", "time_ns")
    for (_, intid, _), mine in (
        pl.concat([sure, rest]).sort("seq").group_by([*LPI, "enabled"], maintain_order=True)
    ):
        yield _finding(case, int(str(intid)), mine)


def _finding(case: Case, intid: int, rows: pl.DataFrame) -> Finding:
    first = rows.row(0, named=True)
    mechanism, suspect = _MECHANISMS[first["enabled"]]
    since = "" if first["known_ns"] is None else f" (as KVM knew since {seconds(first['known_ns'])})"
    details: dict[str, Any] = {}
    if first["enabled"] is not False:
        details = {
            "confidence": Confidence.LIKELY,
            "doubt": "The fill says that the LPI is enabled; who enabled it was not recorded."
            if first["enabled"]
            else "The fill's probe does not say whether the LPI is enabled.",
            "capture_next": "vgic:populate_lr with en=irq->enabled, its:lpi_config_ret",
        }
    else:
        since = "" if first["known"] else since
    taken = int(rows["state"].is_in([0, 2]).sum())
    took = f"; the guest took it {times(taken)}" if taken else ""
    by = _by_command(case, first)
    return case.finding(
        f"LPI {intid} was disabled{since}, and put into a list register of vCPU {first['vcpu']} as pending at "
        f"{seconds(first['time_ns'])} ({times(rows.height)}){took}.",
        vcpus=tuple(sorted(rows["vcpu"].unique())),
        **case.about(rows),
        seqs=first_some(
            [by, first["known_seq"], *_queue_before(case, first), first["seq"], first["end_seq"]]
        ),
        mechanism=mechanism,
        suspect=suspect,
        blames=() if by is None else (by,),
        guest_saw=case.rule.guest_sees if taken else "",
        **details,
    )


def _known(case: Case) -> pl.DataFrame:
    """What KVM held of each LPI's enable bit, record by record: what it read, and what every queueing showed."""
    obs = case.observations
    read = obs.configs.filter(pl.col("result").fill_null(0) == 0)
    names = [*LPI, "seq", "time_ns", "pid", "enabled"]
    return pl.concat([read.select(names), obs.queueings.select(names)]).drop_nulls("enabled").sort("seq")


def _by_command(case: Case, first: dict[str, Any]) -> int | None:
    """The command by which the configuration was read, if it was one."""
    configs = case.history.configurations.filter(
        (pl.col("vm") == first["vm"])
        & (pl.col("intid") == first["intid"])
        & ~pl.col("enabled")
        & (pl.col("from_seq") <= first["seq"])
    )
    at = configs.tail(1).select(seq=pl.col("from_seq"))
    if at.is_empty():
        return None
    record = case.observations.configs.filter(pl.col("seq") == at["seq"][0]).select("pid", "seq")
    command = before(record, case.observations.commands, found="seq", end="end_seq")
    command = command.filter(pl.col("end").is_null() | (pl.col("end") > pl.col("seq")))
    return None if command.is_empty() else command["found"][0]


def _queue_before(case: Case, first: dict[str, Any]) -> list[int]:
    """The last pending queueing of the LPI before the fill."""
    at = pl.DataFrame(
        {name: [first[name]] for name in (*LPI, "seq")},
        schema={"vm": pl.UInt16, "intid": pl.UInt32, "seq": pl.UInt64},
    )
    queued = before(at, case.observations.queueings.filter("pending"), LPI, found="seq")
    return queued["found"].drop_nulls().to_list()
