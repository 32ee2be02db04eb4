"""Commands that were carried out otherwise than asked, and what was done without one: a part of ITS207."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Confidence
from itstrace.gic.commands import Opcode
from itstrace.observe.joins import after, before
from itstrace.rules._effects import compared, seen
from itstrace.rules._pending import with_latch
from itstrace.rules._told import DONE, SEES, call, subject
from itstrace.rules.case import LPI, NEVER, first_some
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.findings import Finding
    from itstrace.rules.case import Case


def misdirected(case: Case) -> Iterator[Finding]:
    """Commands that did what they must to what they must, but not as they must: another vCPU, another collection."""
    done = seen(case)
    wanted, _ = compared(case)
    for what, operand, name in (
        ("retarget", "vcpu", "vCPU"),
        ("alloc_event", "icid", "collection"),
        ("trigger", "its", "ITS"),
    ):
        keys = {"retarget": ["intid"], "alloc_event": ["event_id"], "trigger": ["event_id"]}[what]
        asked = wanted.filter((pl.col("what") == what) & pl.col("certain") & pl.col("met"))
        rows = asked.join(
            done.filter(pl.col("what") == what).select("command_seq", *keys, done_seq="seq", got=operand),
            on=["command_seq", *keys],
            how="inner",
            maintain_order="left",
        ).filter(pl.col("got") != pl.col(operand))
        rows = rows.join(
            case.observations.commands, on="seq", how="inner", suffix="_of", maintain_order="left"
        )
        for row in case.without_lost(rows, "time_ns", "end_ns").iter_rows(named=True):
            text = case.command_text(row["seq"])
            yield case.finding(
                f"{text} at {seconds(row['time_ns'])} was carried out with {name} {row['got']}, not {row[operand]}.",
                mechanism=f"{text.split()[0]} was carried out with another {name}",
                seqs=first_some([row["seq"], row["done_seq"], row["end_seq"]]),
                **subject(case, row, row),
            )


def of_no_command(case: Case) -> Iterator[Finding]:
    """LPIs retargeted, devices and events allocated by a vCPU's task that was carrying out no command.

    Only commands do that, and restoring saved tables, which is the VMM's task.
    """
    obs = case.observations
    rows = seen(case).filter(
        pl.col("command_seq").is_null() & pl.col("what").is_in(["retarget", "alloc_device", "alloc_event"])
    )
    rows = rows.filter(pl.col("pid").is_in(obs.vcpus["pid"].implode()))
    # A task that is first seen in the middle of its commands was carrying out one that came before the capture.
    rows = before(rows, obs.commands, last="seq", since_ns="time_ns").drop_nulls("last")
    rows = after(rows, obs.commands, _lost="lost_before").filter(~pl.col("_lost").fill_null(value=False))
    ends = obs.vms.select("vm", _gone=pl.col("to_seq").fill_null(NEVER))
    rows = rows.join(ends, on="vm", how="left", maintain_order="left").filter(pl.col("seq") < pl.col("_gone"))
    for row in case.without_lost(rows, "since_ns", "time_ns").iter_rows(named=True):
        done = (
            DONE[row["what"]]
            .replace("another", "a")
            .replace("a event", "an event")
            .replace("a LPI", "an LPI")
        )
        yield case.finding(
            f"{call(row)[0].upper()}{call(row)[1:]} at {seconds(row['time_ns'])}, though its task was carrying out no command.",
            mechanism=f"no command {done}",
            confidence=Confidence.LIKELY,
            doubt="The command that did it may not have been recorded.",
            capture_next="its_cmd_off (vgic_its_process_commands, inside its loop)",
            vm=row["vm"],
            its=row["its"],
            device_id=row["device_id"],
            event_id=row["event_id"],
            intid=row["intid"],
            time_ns=row["time_ns"],
            end_ns=row["time_ns"],
            seqs=first_some([row["last"], row["seq"]]),
        )


def mapped_otherwise(case: Case) -> Iterator[Finding]:
    """MAPDs that mapped their device with another ITT, or for another number of events."""
    obs = case.observations
    made = obs.allocations.filter((pl.col("op") == "alloc_device") & pl.col("itt_gpa").is_not_null())
    words = obs.commands.select(
        *("pid", "seq", "vm", "its", "dw0", "dw1", "dw2"),
        ends="end_seq",
        until_ns="end_ns",
        begun_ns="time_ns",
    )
    rows = before(
        made.drop("vm"),
        words,
        command="seq",
        vm="vm",
        its="its",
        dw0="dw0",
        size="dw1",
        itt="dw2",
        ends="ends",
        begun_ns="begun_ns",
        until_ns="until_ns",
    )
    rows = rows.filter((pl.col("seq") < pl.col("ends")) & (pl.col("dw0") & 0xFF == int(Opcode.MAPD)))
    # MAPD: Size [4:0] of the second word, ITT_addr [51:8] of the third. Spec: IHI 0069H, MAPD.
    rows = rows.with_columns(bits=(pl.col("size") & 0x1F) + 1, itt=pl.col("itt") & 0x000F_FFFF_FFFF_FF00)
    other_itt, other_size = pl.col("itt") != pl.col("itt_gpa"), pl.col("bits") != pl.col("event_bits")
    rows = rows.with_columns(other_itt=other_itt).filter(other_itt | other_size)
    for row in case.without_lost(rows, "begun_ns", "until_ns").iter_rows(named=True):
        got, asked, name = (
            (f"0x{row['itt_gpa']:x}", f"0x{row['itt']:x}", "ITT")
            if row["other_itt"]
            else (row["event_bits"], row["bits"], "number of EventID bits")
        )
        command = {"seq": row["command"], "end_ns": row["until_ns"], "time_ns": row["begun_ns"]}
        yield case.finding(
            f"{case.command_text(row['command'])} at {seconds(row['begun_ns'])} was carried out with {name} {got}, not {asked}.",
            mechanism=f"MAPD was carried out with another {name}",
            suspect=("vgic_its_cmd_handle_mapd", "vgic_its_alloc_device"),
            guest_saw=SEES["MAPD"],
            seqs=first_some([row["command"], row["seq"], row["ends"]]),
            **subject(case, row | command, row | {"event_id": None, "intid": None}),
        )


def untaken(case: Case) -> Iterator[Finding]:
    """Calls of update_affinity after which the LPI still does not have the target that it was given.

    What is seen next of the LPI shows its target, as long as nothing else has given it one since.
    """
    obs = case.observations
    wanted, _ = compared(case)
    rows = wanted.filter(
        (pl.col("what") == "retarget") & pl.col("certain") & pl.col("met") & pl.col("vcpu").is_not_null()
    )
    rows = rows.join(
        obs.commands.select("seq", "time_ns", "end_seq", "end_ns"),
        on="seq",
        how="inner",
        maintain_order="left",
    ).drop_nulls("end_seq")
    rows = after(rows, obs.retargets, LPI, called="seq", irq="irq")
    # From the command's end on: what was queued within it may have been so before its target changed.
    late = rows.with_columns(command_seq="seq", seq="end_seq")
    targets = [
        obs.queueings.select(*LPI, "seq", "time_ns", "target_vcpu", "irq"),
        obs.fills.select(*LPI, "seq", "time_ns", "target_vcpu", irq=pl.lit(None, dtype=pl.UInt64)),
    ]
    late = after(
        late,
        pl.concat(targets).drop_nulls("target_vcpu"),
        LPI,
        shown="seq",
        shown_ns="time_ns",
        target="target_vcpu",
        shown_irq="irq",
    )
    given = pl.concat(
        [
            obs.retargets.select(*LPI, "seq"),
            case.history.mappings.select(*LPI, seq="from_seq").drop_nulls(),
            case.history.targets.select(*LPI, seq="from_seq").drop_nulls(),
        ]
    )
    late = after(late, given, LPI, given="seq")
    same = pl.col("shown_irq").is_null() | pl.col("irq").is_null() | (pl.col("shown_irq") == pl.col("irq"))
    wrong = late.filter(
        (pl.col("target") != pl.col("vcpu")) & (pl.col("shown") < pl.col("given").fill_null(NEVER)) & same
    )
    # Of several events that share an LPI (up to v6.12) each moves it.
    shared = wanted.filter(pl.col("what") == "retarget").group_by("seq", "intid").agg(n=pl.len())
    wrong = wrong.join(
        shared.filter(pl.col("n") > 1).select(command_seq="seq", intid="intid"),
        on=["command_seq", "intid"],
        how="anti",
    )
    wrong = case.without_lost(wrong, "time_ns", "shown_ns").drop("seq").rename({"command_seq": "asked"})
    wrong = case.without_lost_commands(wrong.with_columns(seq="shown"), "asked").drop("seq")
    wrong = wrong.rename({"asked": "command_seq"})
    for row in wrong.sort("command_seq").iter_rows(named=True):
        text = case.command_text(row["command_seq"])
        yield case.finding(
            f"{text} at {seconds(row['time_ns'])} called update_affinity for LPI {row['intid']} to give it to vCPU "
            f"{row['vcpu']}, but at {seconds(row['shown_ns'])} its target was vCPU {row['target']}.",
            mechanism="update_affinity was called and the LPI kept its target",
            suspect=("update_affinity",),
            guest_saw=SEES["MOVI"],
            seqs=first_some([row["command_seq"], row["called"], row["shown"]]),
            **(
                subject(case, row | {"seq": row["command_seq"]}, row)
                | {"vcpus": tuple(sorted({row["vcpu"], row["target"]}))}
            ),
        )


def not_cleared(case: Case) -> Iterator[Finding]:
    """CLEARs of an LPI that was latched and in no list register, after which it was still latched.

    One that is in a list register is delivered whatever CLEAR does: ITS307.
    """
    obs = case.observations
    rows = case.history.expected.filter((pl.col("what") == "clear_pending") & pl.col("certain")).drop_nulls(
        "intid"
    )
    if rows.is_empty():
        return
    rows = rows.join(
        obs.commands.select("seq", "pid", "time_ns", "end_seq", "end_ns"),
        on="seq",
        how="inner",
        maintain_order="left",
    ).drop_nulls("end_seq")
    rows = with_latch(case, rows).filter(pl.col("latched").fill_null(value=False) & pl.col("held").is_null())
    # Anything else that touches the LPI while the command is under way may come before it or after.
    tables = obs.vm_events.filter(pl.col("what").is_in(["enable_lpis", "flush_lpis", "restore_tables"]))
    rows = after(
        rows, obs.queueings, LPI, queued="seq", pending="pending", cause="cause", queued_ns="time_ns"
    )
    rows = after(rows, obs.fills.filter("pending"), LPI, filled="seq", filled_ns="time_ns")
    rows = after(rows, obs.fills.filter(~pl.col("pending")), LPI, _dry="seq")
    rows = after(rows, tables, "vm", _table="seq")
    mapped = case.history.mappings.select(*LPI, seq="from_seq").drop_nulls()
    rows = after(rows, mapped, LPI, _mapped="seq")
    by_queue = pl.col("pending") & (pl.col("cause") == "inv")
    first = pl.min_horizontal("queued", "filled", "_dry", "_table", "_mapped")
    again = ((first == pl.col("filled")) | ((first == pl.col("queued")) & by_queue)).fill_null(value=False)
    rows = rows.filter(again & (first > pl.col("end_seq"))).with_columns(
        shown=first, shown_ns=pl.when(first == pl.col("filled")).then("filled_ns").otherwise("queued_ns")
    )
    for row in case.without_lost(rows, "time_ns", "shown_ns").iter_rows(named=True):
        yield case.finding(
            f"{case.command_text(row['seq'])} at {seconds(row['time_ns'])} left LPI {row['intid']} pending: it was latched, "
            f"in no list register, and without another MSI still latched at {seconds(row['shown_ns'])}.",
            mechanism="CLEAR left the LPI pending",
            suspect=("vgic_its_cmd_handle_clear",),
            guest_saw=SEES["CLEAR"],
            seqs=first_some([row["latched_seq"], row["seq"], row["end_seq"], row["shown"]]),
            **subject(case, row, row),
        )
