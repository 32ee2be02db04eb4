"""LPIs that went to a vCPU which the commands did not give them to: shared by ITS402 and ITS404."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.observe.joins import after, before
from itstrace.rules._moves import MOVERS, retargets
from itstrace.rules.case import LPI, once

if TYPE_CHECKING:
    from itstrace.rules.case import Case

#: Mechanisms.
OFF_TARGET = "filled on a vCPU that is not its target"
SHARED = "two events share the LPI"
KEPT = "MAPTI kept the old target"
STRAY = "KVM gave the LPI another target without a command"


@once
def off_target(case: Case) -> pl.DataFrame:
    """Queueings and fills with a target that the commands did not give, and fills off their own target.

    Shape: vm, intid, seq, time_ns, vcpu (where it went), what ("queued for", "still bound for", "filled on"), off (KVM
        itself names another target), taken (out of that list register), fresh (not the same interrupt again), expected,
        set_by (the command that the target is from), mechanism, blamed (the command held responsible; null: none known),
        wanted (the name of set_by), all_taken (of the VM's rows of that mechanism), late_ns (since blamed).
    """
    obs = case.observations
    queued = obs.queueings.filter(pl.col("pending") & pl.col("target_vcpu").is_not_null()).select(
        *LPI,
        "seq",
        "time_ns",
        vcpu="target_vcpu",
        what=pl.when(pl.col("owner_vcpu").is_null())
        .then(pl.lit("queued for"))
        .otherwise(pl.lit("still bound for")),
        back=pl.lit(value=False),
    )
    filled = obs.fills.filter(pl.col("pending") & ~pl.col("active")).select(
        *LPI,
        "seq",
        "time_ns",
        "vcpu",
        "target_vcpu",
        what=pl.lit("filled on"),
        back=(pl.col("state") == 1).fill_null(value=False),
        off=(pl.col("vcpu") != pl.col("target_vcpu")).fill_null(value=False),
        taken=pl.col("state").is_in([0, 2]).fill_null(value=False),
    )
    # What follows a queueing, or a fill that came back untaken, is the same interrupt again.
    again = (pl.col("what") != "filled on") | pl.col("back")
    again = again.shift(1) & (pl.col("vcpu").shift(1) == pl.col("vcpu")) & (pl.col("what") == "filled on")
    rows = pl.concat([queued, filled], how="diagonal").sort("seq")
    rows = rows.with_columns(
        pl.col("off", "taken").fill_null(value=False),
        fresh=~again.over(LPI).fill_null(value=False),
        end_seq="seq",
    )
    off = rows.filter("off").rename({"target_vcpu": "expected"})
    off = before(
        off,
        case.history.targets.filter(pl.col("set_by").is_not_null()).select(*LPI, "set_by", seq="from_seq"),
        LPI,
        set_by="set_by",
    )
    rows = rows.filter(~pl.col("off")).drop("target_vcpu").sort("seq")
    wrong = case.compare(rows, case.history.targets, LPI, "target_vcpu", seen="vcpu", end="end_seq")
    wrong = wrong.filter(
        pl.col("expected").is_not_null()
        & pl.col("set_by").is_not_null()
        & ~pl.col("assumed").fill_null(value=True)
    )
    # Compared with what held before, where that is known; while its command is under way it proves nothing.
    wrong = wrong.filter(pl.col("seq") >= pl.Series(case.ends_of(wrong["set_by"])))
    wrong = _without_lost_moves(case, wrong)
    wrong = wrong.join(_unknown_vcpus(case, wrong), on=["vm", "expected"], how="anti", maintain_order="left")
    wrong = _sure_of_mapping(case, wrong)
    both = pl.concat([wrong.select(off.columns), off]).sort("seq")
    return _explained(case, case.without_lost(both, "time_ns", "time_ns"))


def _sure_of_mapping(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Without rows whose command names a collection or a vCPU, where it is only assumed that the LPI was among its own."""
    mapped = case.history.mappings.select(*LPI, "assumed", seq=pl.col("from_seq").fill_null(0))
    rows = before(
        rows.drop("assumed").with_columns(_seq="seq", seq="set_by"), mapped, LPI, _assumed="assumed"
    )
    names = case.history.verdicts.select(set_by="seq", _opcode="opcode")
    rows = rows.join(names, on="set_by", how="left", maintain_order="left")
    unsure = pl.col("_opcode").is_in(["MAPC", "MOVALL"]) & pl.col("_assumed").fill_null(value=True)
    return (
        rows.filter(~unsure.fill_null(value=False))
        .with_columns(seq="_seq")
        .drop("_seq", "_assumed", "_opcode")
    )


def _without_lost_moves(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows since whose `set_by` no command was lost that may have moved the LPI; after the last command nobody can tell."""
    if case.gaps.is_empty() or rows.is_empty():
        return rows
    mapped = case.history.mappings.select(*LPI, "its", seq=pl.col("from_seq").fill_null(0))
    rows = case.without_lost_commands(before(rows, mapped, LPI, its="its"), "set_by")
    rows = after(rows, case.observations.commands, ["vm", "its"], _next="seq")
    since = dict(case.observations.commands.select("seq", "time_ns").iter_rows())
    keep = [
        command is not None or not case.lost(since.get(set_by), time_ns)
        for command, set_by, time_ns in rows.select("_next", "set_by", "time_ns").iter_rows()
    ]
    return rows.filter(pl.Series(keep, dtype=pl.Boolean)).drop("its", "_next")


def _unknown_vcpus(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Targets that may not exist: in a VM whose beginning was not recorded, a number that no record gives to a vCPU.

    KVM refuses such a command; the model cannot know.
    """
    obs = case.observations
    seen = pl.concat(
        [
            obs.vcpus.select("vm", expected="vcpu"),
            obs.queueings.select("vm", expected="target_vcpu"),
            obs.retargets.select("vm", expected="vcpu"),
            obs.redistributor_writes.select("vm", expected="vcpu"),
        ]
    ).unique()
    partial = obs.vms.filter(~pl.col("complete")).select("vm")
    asked = rows.select("vm", "expected").unique().join(partial, on="vm", how="semi")
    return asked.join(seen, on=["vm", "expected"], how="anti")


def _explained(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Add `mechanism`, `blamed`, `wanted`, `all_taken` and `late_ns`.

    Blamed is the command by which KVM last called update_affinity for the LPI, if it came after the one that should
    have set the target; else the latter.
    """
    names = case.history.verdicts.select(set_by="seq", wanted="opcode")
    rows = rows.join(names, on="set_by", how="left", maintain_order="left")
    rows = before(rows, retargets(case), LPI, _ran="seq", _by="by", _ran_op="opcode")
    overridden = pl.col("_ran") > pl.Series(case.ends_of(rows["set_by"]))
    carried_out = pl.col("_by") == pl.col("set_by")
    said = pl.col("wanted").fill_null("the command")
    missed = (
        pl.when(carried_out.fill_null(value=False))
        .then(pl.format("{} did not change the target, though update_affinity ran", said))
        .when(pl.lit(case.recorded("affinity") and case.gaps.is_empty()))
        .then(pl.format("{} was not carried out: update_affinity never ran", said))
        .otherwise(pl.format("{} did not change the target", said))
    )
    mechanism = (
        pl.when("off")
        .then(pl.lit(OFF_TARGET))
        .when(overridden & (pl.col("_ran_op") == "MOVALL"))
        .then(pl.lit("MOVALL moved an LPI that the vCPU it moves from did not have"))
        .when(overridden & pl.col("_ran_op").is_not_null())
        .then(pl.format("{} moved an LPI that is not its own", pl.col("_ran_op")))
        .when(overridden)
        .then(pl.lit(STRAY))
        .when(pl.col("wanted").is_in(MOVERS))
        .then(missed)
        .otherwise(pl.lit(KEPT))
    )
    rows = rows.with_columns(
        mechanism=mechanism,
        blamed=pl.when(overridden & ~pl.col("off")).then("_by").otherwise("set_by"),
    )
    # Few commands set a target: ask the tables for each of them once.
    mapped = rows.filter(pl.col("mechanism") == KEPT).select(*LPI, "set_by").unique()
    shared = [row for row in mapped.iter_rows() if _shared(case, *row)]
    also = pl.DataFrame(shared, schema=mapped.schema, orient="row").with_columns(_shared=pl.lit(value=True))
    rows = rows.join(also, on=[*LPI, "set_by"], how="left", maintain_order="left")
    kept = (pl.col("mechanism") == KEPT) & pl.col("_shared").fill_null(value=False)
    rows = rows.with_columns(mechanism=pl.when(kept).then(pl.lit(SHARED)).otherwise("mechanism"))
    when = case.observations.commands.select(blamed="seq", _when="time_ns")
    rows = rows.join(when, on="blamed", how="left", maintain_order="left")
    return rows.with_columns(
        all_taken=pl.col("taken").sum().over("vm", "mechanism"), late_ns=pl.col("time_ns") - pl.col("_when")
    ).drop("_when")


def _shared(case: Case, vm: int, intid: int, seq: int) -> bool:
    """Whether another event mapped the LPI when a command came."""
    rows = case.live_rows(case.history.mappings, {"vm": vm, "intid": intid}, seq)
    return any(row["set_by"] != seq for row in rows)
