"""ITS208: a list register does not hold the LPI that was filled into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules.case import LPI, NEVER, VCPU, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN_LRS = 4
_STATES = {0: "inactive", 1: "pending", 2: "active", 3: "pending and active"}


@rule(
    "ITS208",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM wrote another LPI into a list register than it meant to",
    needs=("LIST_REGISTERS", "FILL_RETURNS"),
    suspect=("vgic_v3_populate_lr",),
    guest_sees="Another interrupt than the one that was raised, or none.",
    leads_to=("ITS301", "ITS303", "ITS308", "ITS312", "ITS401"),
)
def wrong_list_register(case: Case) -> Iterator[Finding]:
    """What was written into a list register is not the LPI that was to be filled.

    ## What it finds
    A list register which, when vgic_v3_populate_lr returned, held another INTID than that of the LPI it was called for,
    another state than pending and active of that LPI, Group 0, the HW bit, or another priority than was read of its
    configuration; and one that at the next fold held another INTID than had been filled into it.

    ## Why it matters
    The list register is what the guest gets: with another INTID the wrong handler runs and the right one never does;
    without its pending bit the interrupt is lost; in Group 0, or with the wrong priority, the guest may mask it.

    ## Where it comes from
    vgic_v3_populate_lr or vgic_v3_compute_lr, or something that writes to vgic_lr between the fill and the entry.

    ## When it is wrong
    A CLEAR on another vCPU, which takes no lock, may take the pending bit away within the fill; it is left out. So are
    fills whose return was not recorded, list registers beyond the fourth, and what lies near lost records.

    ## What to do
    Decode the value in the evidence (ICH_LR<n>_EL2: INTID [31:0], Priority [55:48], Group [60], HW [61], State [63:62])
    and compare it with populate_lr before it.
    """
    rows = _written(case)
    yield from _differing(case, rows)
    yield from _folded(case)


def _written(case: Case) -> pl.DataFrame:
    """Fills with the value that was in their list register when the fill returned, and its fields."""
    obs = case.observations
    fills = obs.fills.select("seq", "time_ns", "pid", *VCPU, "intid", "lr", "pending", "active", "enabled")
    rows = after(
        fills, obs.fill_returns, returned="seq", returned_ns="time_ns", value="value", latch="pending"
    )
    again = pl.col("seq").shift(-1).over("pid").fill_null(NEVER)
    rows = rows.filter((pl.col("returned") < again) & pl.col("value").is_not_null())
    return _decoded(rows)


def _decoded(rows: pl.DataFrame) -> pl.DataFrame:
    """Spec: IHI 0069H, ICH_LR<n>_EL2: vINTID [31:0], Priority [55:48], Group [60], HW [61], State [63:62]."""
    value = pl.col("value")
    return rows.with_columns(
        held=(value & 0xFFFF_FFFF).cast(pl.UInt32),
        priority=((value // 2**48) & 0xFF).cast(pl.UInt8),
        group=(value // 2**60) & 1,
        hw=(value // 2**61) & 1,
        state=(value // 2**62).cast(pl.UInt8),
    )


def _differing(case: Case, rows: pl.DataFrame) -> Iterator[Finding]:
    """List registers that do not hold what was filled."""
    state = pl.col("pending").cast(pl.UInt8) + 2 * pl.col("active").cast(pl.UInt8)
    configured = case.history.configurations.with_columns(seq=pl.col("from_seq").fill_null(0))
    rows = before(rows, configured, LPI, read_priority="priority", read_at="seq", _until="to_seq")
    # A reading under way while it was filled may or may not have been taken over.
    calls = case.observations.config_calls
    rows = before(rows, calls, LPI, _call_over="over_seq")
    rows = after(rows, calls, LPI, _call="seq")
    settled = (pl.col("_call_over").is_null() | (pl.col("_call_over") < pl.col("seq"))) & (
        pl.col("_call").is_null() | (pl.col("_call") > pl.col("returned"))
    )
    known = settled & (pl.col("_until").is_null() | (pl.col("_until") > pl.col("returned")))
    wrong_intid = pl.col("held") != pl.col("intid")
    priority = known & (pl.col("read_priority") & 0xFC != pl.col("priority") & 0xFC).fill_null(value=False)
    what = (
        pl.when(wrong_intid)
        .then(pl.lit("intid"))
        .when(pl.col("state") != state)
        .then(pl.lit("state"))
        .when(pl.col("hw") == 1)
        .then(pl.lit("hw"))
        .when(pl.col("group") == 0)
        .then(pl.lit("group"))
        .when(priority)
        .then(pl.lit("priority"))
    )
    rows = rows.with_columns(what=what, due=state).drop_nulls("what")
    rows = case.without_lost(_without_clears(case, rows), "time_ns", "returned_ns")
    for row in rows.sort("seq").iter_rows(named=True):
        said, mechanism = _words(row)
        yield _finding(
            case,
            row,
            f"LPI {row['intid']} was filled into list register {row['lr']} of vCPU {row['vcpu']} at {seconds(row['time_ns'])}, "
            f"{said} (0x{row['value']:016x}).",
            mechanism,
            [row["seq"], row["returned"]],
        )


def _without_clears(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Fills that lack the pending bit only, while a CLEAR of their LPI was under way, are left out."""
    clears = case.history.expected.filter(pl.col("what") == "clear_pending").drop_nulls("intid")
    if clears.is_empty() or rows.is_empty():
        return rows
    clears = clears.with_columns(_end=case.ends_of(clears["seq"]))
    rows = before(rows.rename({"seq": "_own"}).with_columns(seq="returned"), clears, LPI, _cleared="_end")
    near = (pl.col("what") == "state") & (pl.col("_cleared") > pl.col("_own")).fill_null(value=False)
    return rows.filter(~near).drop("seq", "_cleared").rename({"_own": "seq"})


def _words(row: dict[str, Any]) -> tuple[str, str]:
    """What is wrong with a list register: for this one, and in general."""
    match row["what"]:
        case "intid":
            return f"which then held INTID {row['held']}", "the list register was given another INTID"
        case "state":
            due, got = _STATES[row["due"]], _STATES[row["state"]]
            return (
                f"{due}, but it was written as {got}",
                f"the list register was given the wrong state ({due} as {got})",
            )
        case "hw":
            return "which then had the HW bit", "the list register was given the HW bit"
        case "group":
            return "which then was in Group 0", "the list register was given Group 0"
        case _:
            read = row["read_priority"]
            return (
                f"with priority 0x{row['priority']:02x}, not 0x{read:02x} as was read",
                "the list register was given another priority",
            )


def _folded(case: Case) -> Iterator[Finding]:
    """List registers that held another INTID when they were read back than was filled into them."""
    obs = case.observations
    fills = obs.fills.filter((pl.col("ended_by") == "fold") & (pl.col("lr") < _SHOWN_LRS))
    registers = [f"lr{index}" for index in range(_SHOWN_LRS)]
    folds = obs.folds.select("used", *registers, end_seq="seq")
    rows = fills.join(folds, on="end_seq", how="inner", maintain_order="left")
    value = pl.lit(None, dtype=pl.UInt64)
    for index, register in enumerate(registers):
        value = pl.when(pl.col("lr") == index).then(register).otherwise(value)
    rows = _decoded(rows.drop("state").with_columns(value=value).drop_nulls("value"))
    rows = rows.filter((pl.col("held") != pl.col("intid")) & (pl.col("used") > pl.col("lr")))
    # What was wrong when it was written is told there.
    written = _written(case)
    wrong = written.filter(pl.col("held") != pl.col("intid"))["seq"]
    rows = rows.filter(~pl.col("seq").is_in(wrong.implode()))
    for row in case.without_lost(rows, "time_ns", "end_ns").sort("seq").iter_rows(named=True):
        yield _finding(
            case,
            row,
            f"LPI {row['intid']} was filled into list register {row['lr']} of vCPU {row['vcpu']} at {seconds(row['time_ns'])}, "
            f"and at {seconds(row['end_ns'])} the vCPU's fold found INTID {row['held']} there (0x{row['value']:016x}).",
            "the fold found another INTID than was filled",
            [row["seq"], row["end_seq"]],
            suspect=("vgic_v3_fold_lr_state", "vgic_v3_populate_lr"),
        )


def _finding(
    case: Case, row: dict[str, Any], said: str, mechanism: str, seqs: list[int], **details: Any
) -> Finding:
    its, device, event = case.event_of(row["vm"], row["intid"], row["seq"])
    return case.finding(
        said,
        mechanism=mechanism,
        vm=row["vm"],
        its=its,
        device_id=device,
        event_id=event,
        intid=row["intid"],
        vcpus=(row["vcpu"],),
        time_ns=row["time_ns"],
        end_ns=row["time_ns"],
        seqs=first_some(seqs),
        **details,
    )
