"""ITS204: MOVALL moved LPIs that did not target its source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.gic.commands import decode
from itstrace.observe.joins import after, before
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

_RDBASE = 0xFFFF_FFFF  # Kernel: vgic-its.c:its_cmd_get_target_addr takes 32 bits


@rule(
    "ITS204",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM's MOVALL moved LPIs that were not its source's",
    needs=("COMMANDS",),
    suspect=("vgic_its_cmd_handle_movall", "update_affinity"),
    guest_sees="Interrupts come to a vCPU to which it never moved them.",
    leads_to=("ITS402", "ITS403", "ITS404"),
)
def movall_overreach(case: Case) -> Iterator[Finding]:
    """MOVALL gave LPIs to another vCPU that were not its source's.

    ## What it finds
    A MOVALL from one vCPU to another after which an LPI that targeted neither has the second as its target: because
    update_affinity was called for it with that vCPU, or because its target is seen to be that when it is next queued or
    filled.

    ## Why it matters
    The guest evacuates one CPU; interrupts of all other CPUs go along. They come to a CPU whose driver does not expect
    them, and one CPU gets the load of all.

    ## Where it comes from
    vgic_its_cmd_handle_movall of v6.10 and later goes through all LPIs of the VM and forgot to ask which vCPU each
    targets. Mended by v7.3 (update_affinity looks at the vCPU that it is moved from).

    ## When it is wrong
    On v7.3 update_affinity is called for every LPI and itself looks at the target, so that its calls alone say nothing
    there. An LPI whose target was not known before, or which KVM was seen to have on the source, is left out.

    ## What to do
    Take a kernel in which it is mended, or move the LPIs one by one with MOVI: Linux guests never send MOVALL.
    """
    movalls = _movalls(case)
    if movalls.is_empty():
        return
    rows = _bystanders(case, movalls)
    rows = _moved(case, rows)
    rows = case.without_lost_commands(case.without_lost(rows, "time_ns", "shown_ns"), "held_since")
    for row in rows.sort("seq", "intid").iter_rows(named=True):
        _, device, event = case.event_of(row["vm"], row["intid"], row["seq"])
        how = (
            "called update_affinity for it"
            if row["called"]
            else f"it targets vCPU {row['goal']} at {seconds(row['shown_ns'])}"
        )
        yield case.finding(
            f"{case.command_text(row['seq'])} at {seconds(row['time_ns'])}, from vCPU {row['source']} to vCPU {row['goal']}, "
            f"moved LPI {row['intid']}, which targeted vCPU {row['held']}: {how}.",
            mechanism="MOVALL moved LPIs of other vCPUs",
            vm=row["vm"],
            its=row["its"],
            device_id=device,
            event_id=event,
            intid=row["intid"],
            vcpus=tuple(sorted({row["held"], row["goal"]})),
            time_ns=row["time_ns"],
            end_ns=row["shown_ns"],
            blames=(row["seq"],),
            seqs=first_some([row["held_by"], row["seq"], row["shown"]]),
        )


def _movalls(case: Case) -> pl.DataFrame:
    """MOVALLs that were not wrong, with `source` and `goal`."""
    done = case.history.verdicts.filter((pl.col("opcode") == "MOVALL") & (pl.col("verdict") == "ok"))
    rows = case.observations.commands.join(done.select("seq"), on="seq", how="semi").drop_nulls("end_seq")
    vcpus = []
    for words in rows.select("dw0", "dw1", "dw2", "dw3").iter_rows():
        command = decode(words)
        assert command.rdbase is not None
        assert command.rdbase2 is not None
        vcpus.append((command.rdbase & _RDBASE, command.rdbase2 & _RDBASE))
    named = pl.DataFrame(vcpus, schema={"source": pl.UInt32, "goal": pl.UInt32}, orient="row")
    return rows.hstack(named).select("seq", "end_seq", "pid", "time_ns", "vm", "its", "source", "goal")


def _bystanders(case: Case, movalls: pl.DataFrame) -> pl.DataFrame:
    """By MOVALL, the LPIs that targeted another vCPU than either of its two: `held`, as the tables and KVM had it."""
    lpis = case.history.targets.select(LPI).unique()
    rows = movalls.join(lpis, on="vm", how="inner")
    held = case.history.targets.with_columns(seq=pl.col("from_seq").fill_null(0))
    rows = before(
        rows,
        held,
        LPI,
        held="target_vcpu",
        held_by="set_by",
        held_since="seq",
        _until="to_seq",
        _assumed="assumed",
    )
    obs = case.observations
    said = pl.concat(
        [
            obs.queueings.select(*LPI, "seq", vcpu="target_vcpu"),
            obs.retargets.select(*LPI, "seq", "vcpu"),
        ]
    ).drop_nulls("vcpu")
    rows = before(rows, said, LPI, _seen="vcpu")
    # What was assumed counts where KVM was seen to have it so.
    known = ~pl.col("_assumed") | (pl.col("_seen") == pl.col("held")).fill_null(value=False)
    other = (pl.col("held") != pl.col("source")) & (pl.col("held") != pl.col("goal"))
    live = pl.col("_until").is_null() | (pl.col("_until") >= pl.col("seq"))
    elsewhere = pl.col("_seen").is_null() | (pl.col("_seen") != pl.col("source"))
    return rows.filter(known & other & live & elsewhere)


def _moved(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Those that MOVALL moved all the same: `shown` is the record that tells, `called` if it is update_affinity's."""
    obs = case.observations
    rows = after(rows, obs.retargets, ["pid", *LPI], _call="seq", _call_ns="time_ns", _to="vcpu")
    called = (pl.col("_call") < pl.col("end_seq")) & (pl.col("_to") == pl.col("goal"))
    targets = [
        frame.select(*LPI, "seq", "time_ns", "target_vcpu").drop_nulls("target_vcpu")
        for frame in (obs.queueings, obs.fills)
    ]
    late = rows.rename({"seq": "command_seq"}).with_columns(seq="end_seq")
    late = after(late, pl.concat(targets), LPI, _shown="seq", _shown_ns="time_ns", _target="target_vcpu")
    given = pl.concat(
        [
            obs.retargets.select(*LPI, "seq"),
            *(
                frame.select(*LPI, seq="from_seq").drop_nulls("seq")
                for frame in (case.history.mappings, case.history.targets)
            ),
        ]
    )
    late = after(late, given, LPI, _given="seq")
    late = late.drop("seq").rename({"command_seq": "seq"})
    seen = (pl.col("_target") == pl.col("goal")) & (pl.col("_shown") < pl.col("_given").fill_null(NEVER))
    late = late.with_columns(called=called.fill_null(value=False), seen=seen.fill_null(value=False))
    late = late.with_columns(
        shown=pl.when("called").then("_call").otherwise("_shown"),
        shown_ns=pl.when("called").then("_call_ns").otherwise("_shown_ns"),
    )
    return late.filter(pl.col("called") | pl.col("seen"))
