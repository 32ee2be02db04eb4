"""ITS405: moved to and fro faster than it is delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules._moves import moves, usual_wait_ns
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import Setting, rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS405",
    kind=Kind.HOST,
    severity=Severity.NOTE,
    claim="an LPI was moved faster than it could be delivered",
    needs=("COMMANDS", "QUEUEINGS", "LIST_REGISTERS"),
    suspect=("update_affinity",),
    guest_sees="The interrupt came late: each vCPU that it was meant for had lost it before it could take it.",
    leads_to=("ITS304",),
    settings=(
        Setting(
            "thrash-moves", 4, "moves of one pending LPI between the same vCPUs that are called thrashing"
        ),
    ),
)
def affinity_thrash(case: Case) -> Iterator[Finding]:
    """A pending LPI was moved again and again between the same vCPUs, faster than it was delivered.

    ## What it finds
    An interrupt that was moved at least `thrash-moves` times between its queueing and its delivery, to vCPUs where it
    had been before, with less time from move to move than LPIs of this capture usually wait for a list register (99 of
    100 wait less).

    ## Why it matters
    Every move takes the LPI from the vCPU that was about to take it: it waits for that vCPU's next exit, goes to
    the other list, and is taken from there too. The device waits all the while.

    ## Where it comes from
    A guest (irqbalance, a driver, a CPU going offline) that sets an affinity over and over; two of its parts that
    want different CPUs. KVM only does what it is told: update_affinity moves the target at once, the pending state
    when the old vCPU exits.

    ## When it is wrong
    A test that moves interrupts on purpose looks the same. An LPI that the guest had disabled could not be
    delivered anyway, and is left out.

    ## What to do
    Look at who writes smp_affinity in the guest. To find what else delays the LPI, see `itstrace lpi`.
    """
    usual, count = usual_wait_ns(case)
    least = case.setting("thrash-moves")
    lives = case.lives.lives.filter(
        (pl.col("moves") >= least) & pl.col("outcome").is_in(["delivered", "pending"])
    )
    if not count or lives.is_empty():
        return
    enabled = case.observations.queueings.filter("enabled").select("seq")
    lives = lives.join(enabled, left_on="queued_seq", right_on="seq", how="semi", maintain_order="left")
    mine = moves(case).join(lives.select(LPI).unique(), on=LPI, how="semi")
    of_lpi = mine.sort("seq").partition_by(LPI, as_dict=True)
    for row in lives.iter_rows(named=True):
        all_moves = of_lpi.get((row["vm"], row["intid"]))
        if all_moves is None:
            continue
        begin = all_moves["seq"].search_sorted(row["queued_seq"], side="left")
        end = all_moves["seq"].search_sorted(row["retired_seq"] or NEVER, side="right")
        if end - begin < least:
            continue
        moved = all_moves[begin:end]
        vcpus = moved["vcpu"].unique().sort().to_list()
        if 2 * len(vcpus) > moved.height or _disabled(case, row, moved):
            continue
        span = int(moved["time_ns"][-1]) - row["queued_ns"]
        if span / moved.height > usual or case.lost(row["queued_ns"], moved["time_ns"][-1]):
            continue
        yield _told(case, row, moved, vcpus, usual)


def _disabled(case: Case, row: dict[str, Any], moved: pl.DataFrame) -> bool:
    configs = case.history.configurations.filter(
        (pl.col("vm") == row["vm"]) & (pl.col("intid") == row["intid"]) & ~pl.col("enabled")
    )
    return not configs.filter(
        (pl.col("from_seq").fill_null(0) < int(moved["seq"][-1]))
        & (pl.col("to_seq").fill_null(NEVER) > row["queued_seq"])
    ).is_empty()


def _told(case: Case, row: dict[str, Any], moved: pl.DataFrame, vcpus: list[int], usual: float) -> Finding:
    waited = None if row["filled_ns"] is None else row["filled_ns"] - row["queued_ns"]
    came = (
        f"it came to its list register after {duration(waited)}"
        if waited is not None
        else "it never came, as far as the capture tells"
    )
    between = " and ".join(str(vcpu) for vcpu in vcpus)
    span = int(moved["time_ns"][-1]) - row["queued_ns"]
    pace = duration(span / moved.height)
    return case.finding(
        f"LPI {row['intid']}, pending since {seconds(row['queued_ns'])}, was moved {times(moved.height)} between vCPUs "
        f"{between} before the guest took it, once in {pace} (LPIs of this capture wait up to {duration(usual)} for a "
        f"list register); {came}.",
        mechanism="moved to and fro before it could be delivered",
        vm=row["vm"],
        its=row["its"],
        device_id=row["device_id"],
        event_id=row["event_id"],
        intid=row["intid"],
        vcpus=tuple(vcpus),
        time_ns=row["queued_ns"],
        end_ns=row["retired_ns"] or int(moved["time_ns"][-1]),
        worst=f"LPI {row['intid']} was moved {times(moved.height)} on its way, from {seconds(row['queued_ns'])} on",
        measure=float(moved.height),
        blames=tuple(moved["by"].drop_nulls().unique(maintain_order=True)),
        seqs=first_some(
            [row["queued_seq"], *moved["seq"].head(6).to_list(), row["filled_seq"], row["retired_seq"]]
        ),
    )
