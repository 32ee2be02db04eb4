"""LPIs moved from vCPU to vCPU, and when a vCPU has surely gone through its list since: shared by the rules of affinity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.observe.joins import after, before
from itstrace.rules.case import LPI, VCPU, once

if TYPE_CHECKING:
    from itstrace.rules.case import Case

#: What a guest moves LPIs with. MAPTI gives an LPI its first target.
MOVERS = ("MOVI", "MOVALL", "MAPC")
#: Share of the capture's own waits that counts as usual: rare ones are an emulated host's, or the trouble itself.
_USUAL = 0.99

_NOTHING = pl.Schema(
    {
        "vm": pl.UInt16,
        "intid": pl.UInt32,
        "seq": pl.UInt64,
        "time_ns": pl.Int64,
        "settled_seq": pl.UInt64,
        "vcpu": pl.Int32,
        "by": pl.UInt64,
        "opcode": pl.String,
    }
)


@once
def retargets(case: Case) -> pl.DataFrame:
    """Calls of update_affinity, each with the command that made it (null: none was under way on its task).

    Shape: rows of RETARGETS with `by` (the command), `opcode` and `settled_seq` (the command is surely over).
    """
    commands = case.observations.commands
    rows = before(case.observations.retargets, commands, _by="seq", _end="end_seq").rename({"_by": "by"})
    inside = pl.col("by").is_not_null() & (pl.col("_end").is_null() | (pl.col("_end") > pl.col("seq")))
    rows = rows.with_columns(
        by=pl.when(inside).then("by"),
        settled_seq=pl.when(inside).then(pl.coalesce("_end", "seq")).otherwise("seq"),
    )
    names = case.history.verdicts.select(by="seq", opcode="opcode")
    return rows.join(names, on="by", how="left", maintain_order="left").drop("_end").sort("seq")


@once
def moves(case: Case) -> pl.DataFrame:
    """Every time that KVM gave an LPI to a vCPU by MOVI, MOVALL or MAPC, in order.

    KVM's own word goes first (update_affinity); where its probe does not tell the new vCPU (7.3), or was not
    recorded, the tables tell it. A command that was to move an LPI and never called update_affinity moved nothing:
    that is another rule's.
    Shape: vm, intid, seq, time_ns, settled_seq (it surely holds), vcpu (the new one), by (the command), opcode, and
    to_seq, to_ns (the LPI got another target; null: never).
    """
    said = retargets(case)
    told = said.filter(pl.col("vcpu").is_not_null()).select(_NOTHING.names())
    targets = case.history.targets.filter(
        pl.col("set_by").is_not_null() & pl.col("target_vcpu").is_not_null()
    )
    made = targets.select(
        "vm", "intid", vcpu="target_vcpu", by="set_by", time_ns="from_ns", seq="from_seq"
    ).with_columns(settled_seq=case.ends_of(targets["set_by"]))
    names = case.history.verdicts.select(by="seq", opcode="opcode")
    made = made.join(names, on="by", how="left", maintain_order="left").filter(pl.col("opcode").is_in(MOVERS))
    if case.recorded("affinity"):
        ran = said.select("vm", "intid", "by", _ran="seq").drop_nulls("by").unique(["vm", "intid", "by"])
        made = made.join(ran, on=["vm", "intid", "by"], how="inner", maintain_order="left").with_columns(
            seq="_ran"
        )
        made = made.join(told, on=["vm", "intid", "by"], how="anti", maintain_order="left")
    rows = pl.concat([told, made.select(_NOTHING.names()).cast(_NOTHING)]).sort("seq")
    # What ends it: the next move, or a MAPTI that gives it a target anew.
    later = pl.concat(
        [
            rows.select(*LPI, "seq", "time_ns"),
            case.history.targets.select(*LPI, seq="from_seq", time_ns="from_ns").drop_nulls("seq"),
        ]
    )
    ends = after(rows.with_columns(_seq="seq", seq="settled_seq"), later, LPI, to_seq="seq", to_ns="time_ns")
    return ends.with_columns(seq="_seq").drop("_seq").sort("seq")


def pruned(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """For each row (vm, vcpu, seq): when the vCPU has surely left the guest and gone through its list since `seq`.

    KVM folds list registers and prunes the list before it traces the exit, so that an exit right after `seq` may
    tell of a prune before it. Sure is the exit after an entry, or after a fold, that comes after `seq`.
    Kernel: arm.c:kvm_arch_vcpu_ioctl_run, vgic.c:kvm_vgic_sync_hwstate
    Shape: pruned_seq, pruned_ns, in the rows' order; null where it never did.
    """
    runs = case.observations.runs
    at = rows.select("vm", "vcpu", "seq").with_row_index("_row")
    folded = after(at, case.observations.folds, VCPU, fold_seq="seq").sort("_row")["fold_seq"]
    entered = runs.next_entry(at)["entry_seq"]
    ways = [runs.next_exit(at.with_columns(seq=start)) for start in (folded, entered)]
    both = pl.DataFrame(
        {
            "_a": ways[0]["exit_seq"],
            "_a_ns": ways[0]["exit_ns"],
            "_b": ways[1]["exit_seq"],
            "_b_ns": ways[1]["exit_ns"],
        }
    )
    first = pl.col("_b").is_null() | (pl.col("_a") < pl.col("_b"))
    return both.select(
        pruned_seq=pl.when(first).then("_a").otherwise("_b"),
        pruned_ns=pl.when(first).then("_a_ns").otherwise("_b_ns"),
    )


def commands_named(case: Case, seqs: pl.Series) -> dict[int, tuple[str, int]]:
    """Text and time (ns) of these commands, by seq."""
    asked = pl.DataFrame({"seq": seqs.cast(pl.UInt64)}).drop_nulls().unique()
    rows = asked.join(case.history.verdicts.select("seq", "text"), on="seq", how="left")
    rows = rows.join(case.observations.commands.select("seq", "time_ns"), on="seq", how="inner")
    return {seq: (text or "a command", time_ns) for seq, text, time_ns in rows.iter_rows()}


@once
def usual_wait_ns(case: Case) -> tuple[float, int]:
    """How long LPIs of this capture wait for a list register, in all but one case of a hundred, and of how many waits.

    Of LPIs queued anew, to the fill that followed; without those that were moved on their way.
    """
    rows = case.observations.queueings.filter(
        pl.col("pending") & pl.col("enabled") & pl.col("owner_vcpu").is_null()
    ).select(*LPI, "seq", "time_ns")
    rows = after(rows, case.observations.fills, LPI, filled_seq="seq", filled_ns="time_ns")
    moved = pl.concat(
        [
            case.observations.retargets.select(*LPI, "seq"),
            case.history.targets.select(*LPI, seq="from_seq").drop_nulls("seq"),
        ]
    )
    rows = after(rows, moved, LPI, moved="seq")
    rows = rows.filter(pl.col("moved").is_null() | (pl.col("moved") > pl.col("filled_seq")))
    waits = (rows["filled_ns"] - rows["time_ns"]).drop_nulls()
    return float(waits.quantile(_USUAL, "higher") or 0), waits.len()


def synced(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows (by: a command; vcpu: the redistributor that it took LPIs from) with the SYNC of that redistributor after it.

    Shape: `rows` with `sync_seq`, `sync_end_seq`, `sync_ns`, in order of `by`; null where none was seen.
    Spec: IHI 0069H, SYNC: the effects of earlier commands on RDbase are complete when SYNC is. KVM has GITS_TYPER.PTA
        0: RDbase is the vCPU's number.
    """
    names = case.history.verdicts.filter(pl.col("opcode") == "SYNC").select("seq")
    syncs = case.observations.commands.join(names, on="seq", how="semi")
    rdbase = (pl.col("dw2") // 2**16 % 2**36).cast(pl.Int64).cast(pl.Int32, strict=False)
    syncs = syncs.with_columns(vcpu=rdbase)
    its = case.observations.commands.select("its", by="seq").rename({"its": "_its"})
    at = rows.join(its, on="by", how="left", maintain_order="left").rename({"seq": "_seq"})
    at = after(
        at.with_columns(seq="by"),
        syncs.rename({"its": "_its"}),
        ["vm", "_its", "vcpu"],
        sync_seq="seq",
        sync_end_seq="end_seq",
        sync_ns="time_ns",
    )
    return at.drop("seq", "_its").rename({"_seq": "seq"})
