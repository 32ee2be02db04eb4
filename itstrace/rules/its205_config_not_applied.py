"""ITS205: an LPI's property byte was not read, or what was read is not what the LPI has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.gic import registers as reg
from itstrace.gic.lpi import FIRST_LPI
from itstrace.observe.joins import after, before
from itstrace.rules._judged import judged, unless_lost
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Property byte: Priority [7:2], Enable [0]. Spec: IHI 0069H, LPI configuration tables.
_PRIORITY, _ENABLE = 0xFC, 1
#: GICR_PROPBASER.Physical_Address [51:12]. Spec: IHI 0069H, GICR_PROPBASER.
_PROPBASER_ADDRESS = 0x000F_FFFF_FFFF_F000
#: Of so many calls the byte's place in the table is what most of them say.
_ENOUGH = 4

_UNREAD: Final = "the property byte was not read"


@rule(
    "ITS205",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM did not take over an LPI's configuration",
    needs=("CONFIGS",),
    suspect=("update_lpi_config",),
    guest_sees="Enabling an interrupt, disabling it or changing its priority has no effect.",
    leads_to=("ITS208", "ITS301", "ITS308", "ITS309"),
)
def config_not_applied(case: Case) -> Iterator[Finding]:
    """KVM did not read an LPI's property byte when it had to, or does not hold what it read.

    ## What it finds
    An INV, INVALL, MAPTI or a write to GICR_INVLPIR or GICR_INVALLR for which update_lpi_config was not called, or
    returned without reading a byte of guest memory, or read the byte of another LPI; and an LPI whose enable bit or
    priority is not what was read last, at the return, when it was queued or when it was filled.

    ## Why it matters
    KVM keeps a copy of every LPI's configuration and looks at memory only then. With a wrong copy an enabled interrupt
    does not come, or a disabled one does.

    ## Where it comes from
    update_lpi_config that leaves early; a wrong GICR_PROPBASER; a store to the LPI's flags that undoes another (in v7.3
    CLEAR writes the byte in which the enable bit is without irq_lock).

    ## When it is wrong
    INVALL reads the bytes of all LPIs from v6.10 on and takes over only those of its vCPU: the others are not counted.
    Two readings of one LPI at a time may be taken over in either order, and are left out. Where no reading of one byte
    was recorded at all, they may have been filtered out: then it is a note.

    ## What to do
    Follow the LPI with `itstrace lpi`: lpi_config, the byte that was read, lpi_config_ret. Compare with the guest's
    configuration table.
    """
    calls = _named(case)
    yield from unless_lost(case, [*_unread(case, calls), *_uncalled(case)])
    yield from _misplaced(case, calls)
    yield from _not_taken(case, calls)
    yield from _changed(case, calls)


def _named(case: Case) -> pl.DataFrame:
    """Calls of update_lpi_config, with what asked for them: `by` (a record), `text`, `opcode`, `certain` (its LPI's)."""
    obs = case.observations
    calls = obs.config_calls
    calls = before(calls, obs.commands, _by="seq", _end="end_seq")
    within = pl.col("seq") < pl.col("_end").fill_null(NEVER)
    calls = calls.with_columns(command=pl.when(within).then("_by")).drop("_by", "_end")
    verdicts = case.history.verdicts.select(command="seq", opcode="opcode", text="text")
    calls = calls.join(verdicts, on="command", how="left", maintain_order="left")
    asked = obs.vm_events.filter(pl.col("what").is_in(["invlpir", "invallr", "restore_tables"]))
    calls = before(calls, asked, _event="seq", _what="what")
    names = {
        "invlpir": "GICR_INVLPIR",
        "invallr": "GICR_INVALLR",
        "restore_tables": "KVM_DEV_ARM_ITS_RESTORE_TABLES",
    }
    other = pl.col("_what").replace_strict(names, default=None, return_dtype=pl.String)
    calls = calls.with_columns(
        by=pl.coalesce("command", "_event"),
        opcode=pl.coalesce("opcode", pl.when(pl.col("command").is_null()).then(other)),
        text=pl.coalesce("text", pl.when(pl.col("command").is_null()).then(other), pl.lit("Something")),
    )
    sure = case.history.expected.filter((pl.col("what") == "config_read") & pl.col("certain"))
    sure = sure.select(by="seq", intid="intid", certain=pl.lit(value=True)).unique(["by", "intid"])
    calls = calls.join(sure, on=["by", "intid"], how="left", maintain_order="left").with_columns(
        pl.col("certain").fill_null(value=False)
    )
    return calls.drop("_event", "_what").sort("seq")


def _finding(case: Case, row: dict[str, Any], said: str, mechanism: str, **details: Any) -> Finding:
    its, device, event = case.event_of(row["vm"], row["intid"], row["seq"])
    given = {
        "vm": row["vm"],
        "its": its,
        "device_id": device,
        "event_id": event,
        "intid": row["intid"],
        "time_ns": row["time_ns"],
        "end_ns": row["time_ns"],
        "blames": () if row["by"] is None else (row["by"],),
        "seqs": first_some([row["by"], row["seq"], row["read_seq"], row["end_seq"]]),
        **details,
    }
    return case.finding(said, mechanism=mechanism, **given)


def _unread(case: Case, calls: pl.DataFrame) -> Iterator[Finding]:
    """Calls that returned without having read a byte."""
    if not case.recorded("guest_read") and not case.recorded("guest_read_begin"):
        return
    rows = calls.filter(pl.col("read_seq").is_null() & pl.col("over_seq").is_not_null())
    rows = case.without_lost(rows.with_columns(_until=pl.coalesce("end_ns", "time_ns")), "time_ns", "_until")
    bytes_read = calls["read_seq"].is_not_null().any() or bool(
        (case.observations.guest_reads["size_bytes"] == 1).any()
    )
    doubt: dict[str, Any] = (
        {}
        if bytes_read
        else {
            "severity": Severity.NOTE,
            "confidence": Confidence.UNPROVEN,
            "doubt": "No reading of one byte was recorded at all: they may have been filtered out.",
            "capture_next": "kvm_read_guest without a filter on its length",
        }
    )
    for row in rows.iter_rows(named=True):
        yield _finding(
            case,
            row,
            f"{row['text']} at {seconds(row['time_ns'])} called update_lpi_config for LPI {row['intid']}, which returned without "
            "reading its property byte.",
            _UNREAD,
            **doubt,
        )


def _uncalled(case: Case) -> Iterator[Finding]:
    """Commands, and writes to GICR_INVLPIR and GICR_INVALLR, for which update_lpi_config was not called."""
    for one in judged(case):
        if not one.only_configuration or one.follows is not None:
            continue
        for lacking in one.missing:
            row = one.row | {"intid": lacking["intid"], "by": one.seq, "read_seq": None}
            yield _finding(
                case,
                row,
                f"{row['text']} at {seconds(row['time_ns'])} did not call update_lpi_config for LPI {row['intid']}.",
                _UNREAD,
            )
    obs = case.observations
    if not obs.records.get("config"):
        return
    wanted = case.history.expected.filter(
        pl.col("command_seq").is_null() & (pl.col("what") == "config_read") & pl.col("certain")
    )
    events = obs.vm_events.select("seq", "time_ns", "pid", "cpu", "vcpu", what="what")
    rows = wanted.drop("what", "vcpu").join(events, on="seq", how="inner", maintain_order="left")
    rows = after(rows, obs.config_calls, ["pid", *LPI], called="seq")
    ends = pl.concat([each.select("pid", "seq") for each in (obs.vm_events, obs.commands)])
    rows = after(rows, ends, until="seq")
    rows = rows.hstack(obs.runs.next_entry_of_task(rows))
    rows = rows.with_columns(until=pl.min_horizontal("until", "entry_seq"))
    # GICR_INVALLR goes by the target that KVM has.
    rows = before(rows, obs.queueings, LPI, _target="target_vcpu")
    agrees = (pl.col("what") == "invlpir") | (pl.col("_target") == pl.col("vcpu")).fill_null(value=False)
    late = pl.col("called").is_null() | (pl.col("called") > pl.col("until"))
    rows = rows.filter(agrees & late & pl.col("until").is_not_null())
    for row in case.without_lost(rows, "time_ns", "entry_ns").iter_rows(named=True):
        name = "GICR_INVLPIR" if row["what"] == "invlpir" else "GICR_INVALLR"
        yield _finding(
            case,
            row | {"by": row["seq"], "read_seq": None, "end_seq": row["until"]},
            f"{name} at {seconds(row['time_ns'])} did not call update_lpi_config for LPI {row['intid']}.",
            _UNREAD,
        )


def _misplaced(case: Case, calls: pl.DataFrame) -> Iterator[Finding]:
    """Readings of a byte that is not the LPI's in the configuration table."""
    rows = calls.drop_nulls("read_gpa").with_columns(
        table=pl.col("read_gpa") - pl.col("intid").cast(pl.UInt64) + FIRST_LPI
    )
    writes = case.observations.redistributor_writes.filter(
        pl.col("offset").is_between(reg.GICR_PROPBASER, reg.GICR_PROPBASER + 7)
    )
    whole = writes.with_columns(
        base=pl.when((pl.col("size_bytes") == 8) & (pl.col("offset") == reg.GICR_PROPBASER)).then(
            pl.col("value") & _PROPBASER_ADDRESS
        )
    )
    rows = before(rows, whole, "vm", written="seq", base="base")
    epoch = ["vm", "written"]
    usual = (
        rows.group_by(*epoch, "table")
        .agg(n=pl.len())
        .sort("n", descending=True)
        .group_by(epoch, maintain_order=True)
    ).agg(
        pl.col("table").first().alias("most"),
        share=pl.col("n").first() / pl.col("n").sum(),
        of=pl.col("n").sum(),
    )
    rows = rows.join(usual, on=epoch, how="left", nulls_equal=True, maintain_order="left")
    agreed = (pl.col("share") > 0.5) & (pl.col("of") >= _ENOUGH)
    rows = rows.with_columns(right=pl.coalesce("base", pl.when(agreed).then("most")))
    # A register that says something else than all readings was not the one in use.
    believed = rows.group_by(epoch).agg(any=(pl.col("table") == pl.col("right")).any())
    rows = rows.join(believed, on=epoch, how="left", nulls_equal=True, maintain_order="left")
    for row in rows.filter(pl.col("any") & (pl.col("table") != pl.col("right"))).iter_rows(named=True):
        right = row["right"] + row["intid"] - FIRST_LPI
        yield _finding(
            case,
            row,
            f"{row['text']} at {seconds(row['time_ns'])} read the property byte of LPI {row['intid']} at 0x{row['read_gpa']:x}, "
            f"and not at 0x{right:x}.",
            "another property byte was read",
        )


def _not_taken(case: Case, calls: pl.DataFrame) -> Iterator[Finding]:
    """Calls that read a byte and left the LPI with something else, though it is theirs to change."""
    rows = calls.filter(
        pl.col("value").is_not_null() & (pl.col("read_result") == 0) & pl.col("enabled").is_not_null()
    )
    filtered = pl.col("opcode").is_in(["INVALL", "GICR_INVALLR"])
    rows = rows.filter(~filtered.fill_null(value=False) | pl.col("applied") | pl.col("certain"))
    # INVALL goes by the target that KVM has.
    rows = before(rows, case.observations.queueings, LPI, _target="target_vcpu")
    asked = case.observations.invalls.select("pid", "seq", _of="vcpu")
    rows = before(rows, asked, _of="_of")
    rows = rows.filter(
        ~filtered.fill_null(value=False)
        | pl.col("applied")
        | (pl.col("_target") == pl.col("_of")).fill_null(value=False)
    )
    enable = (pl.col("value") & _ENABLE) != pl.col("enabled").cast(pl.UInt8)
    priority = (pl.col("value") & _PRIORITY) != pl.col("priority")
    rows = rows.with_columns(_enable=enable, _priority=priority.fill_null(value=False))
    rows = _alone(case, rows.filter(pl.col("_enable") | pl.col("_priority")))
    for row in case.without_lost(rows, "time_ns", "end_ns").iter_rows(named=True):
        wrong = "enable bit" if row["_enable"] else "priority"
        read = bool(row["value"] & _ENABLE) if row["_enable"] else f"0x{row['value'] & _PRIORITY:02x}"
        has = row["enabled"] if row["_enable"] else f"0x{row['priority']:02x}"
        yield _finding(
            case,
            row,
            f"{row['text']} at {seconds(row['time_ns'])} read 0x{row['value']:02x} for LPI {row['intid']}, and left it with "
            f"{'enabled' if row['_enable'] else 'priority'} {has}, not {read}.",
            f"the {wrong} that was read was not taken over",
        )


def _alone(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Calls during which no other of their LPI was under way."""
    calls = case.observations.config_calls
    rows = before(rows, calls, LPI, _last="over_seq")
    rows = after(rows, calls, LPI, _next="seq")
    last = pl.col("_last").is_null() | (pl.col("_last") < pl.col("seq"))
    return rows.filter(last & (pl.col("_next").is_null() | (pl.col("_next") > pl.col("end_seq"))))


def _changed(case: Case, calls: pl.DataFrame) -> Iterator[Finding]:
    """LPIs queued or filled with another enable bit than they had when it was read last."""
    obs = case.observations
    ended = calls.with_columns(
        known=pl.when(pl.col("end_seq").is_not_null() & (pl.col("result").fill_null(0) == 0)).then("enabled"),
        known_priority="priority",
    )
    uses = [
        obs.queueings.select(*LPI, "seq", "time_ns", "enabled", how=pl.lit("queued")),
        obs.fills.select(*LPI, "seq", "time_ns", "enabled", how=pl.lit("filled")),
        obs.config_calls.select(
            *LPI, "seq", "time_ns", enabled="was_enabled", priority="was_priority", how=pl.lit("read again")
        ),
    ]
    rows = pl.concat(uses, how="diagonal").drop_nulls("enabled").sort("seq")
    rows = before(
        rows,
        ended,
        LPI,
        call="seq",
        over="end_seq",
        held="known",
        held_priority="known_priority",
        asked="by",
        call_ns="time_ns",
        text="text",
    )
    switched = pl.col("held") != pl.col("enabled")
    raised = (pl.col("held_priority") != pl.col("priority")).fill_null(value=False)
    rows = rows.with_columns(switched=switched)
    rows = rows.filter(
        (switched | (raised & pl.col("held").is_not_null())) & (pl.col("over") < pl.col("seq"))
    )
    if rows.is_empty():
        return
    # Where the call is not seen to be over, or the LPI is a new one, nothing is known.
    born = case.history.mappings.select(*LPI, seq="from_seq").drop_nulls("seq")
    rows = before(rows, born, LPI, _born="seq").filter(
        pl.col("_born").is_null() | (pl.col("_born") < pl.col("over"))
    )
    rows = case.without_lost(rows, "call_ns", "time_ns")
    # From one reading to the next it is one change.
    for row in rows.unique([*LPI, "call"], keep="first", maintain_order=True).iter_rows(named=True):
        state = "enabled" if row["enabled"] else "disabled"
        if not row["switched"]:
            state = f"with priority 0x{row['priority']:02x}"
        yield _finding(
            case,
            row | {"by": row["asked"], "read_seq": row["call"], "end_seq": row["over"]},
            f"LPI {row['intid']} was {row['how']} {state} at {seconds(row['time_ns'])}, but was not so when its property byte "
            f"was read last, by {row['text']} at {seconds(row['call_ns'])}.",
            f"the {'enable bit' if row['switched'] else 'priority'} changed without being read",
            suspect=("update_lpi_config", "vgic_its_cmd_handle_clear"),
            blames=(),
        )
