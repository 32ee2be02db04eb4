"""Frames of a page: single events, tables through time, commands, LPIs, and bins; caps say how much of each is kept.

What a cap leaves out is counted in `kept`, so that the page can say so and name the command that shows the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from itstrace.findings import Severity
from itstrace.observe.joins import before
from itstrace.report import figures
from itstrace.report.commands import command_rows
from itstrace.report.events import task
from itstrace.report.html import levels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from itstrace.analysis import Analysis


#: Moments, evenly spaced, around which single events are kept beside those of findings.
_ELSEWHERE = 16


@dataclass(frozen=True, slots=True)
class Caps:
    """How much a page keeps at most, in rows."""

    #: Single events, all kinds together.
    events: int = 200_000
    commands: int = 150_000
    #: Intervals of each table.
    intervals: int = 120_000
    lpis: int = 20_000
    markers: int = 2000
    findings: int = 400
    #: Records and subjects of one finding.
    evidence: int = 40
    subjects: int = 60


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames by name; of each (kept, all there are); and where single events are kept."""

    frames: dict[str, pl.DataFrame]
    kept: dict[str, list[int]]
    single: levels.Stretches


def frames(analysis: Analysis, comms: Mapping[int, str], caps: Caps) -> Frames:
    """All frames of a page. `comms`: tasks' names by pid."""
    single = _stretches(analysis, caps.events)
    events = dict(_events(analysis))
    found: dict[str, pl.DataFrame] = {}
    kept: dict[str, list[int]] = {}
    for name, (frame, begin, end) in events.items():
        found[name] = single.having(frame, begin, end)
        kept[name] = [found[name].height, frame.height]
    history = analysis.history
    tables = {name: getattr(history, name) for name in ("devices", "collections", "mappings", "targets")}
    tables["configurations"] = _configurations(analysis)
    for name, frame in tables.items():
        few = frame if frame.height <= caps.intervals else single.having(frame, "from_ns", "to_ns")
        found[name] = few.head(caps.intervals)
        kept[name] = [found[name].height, frame.height]
    commands = _commands(analysis, comms)
    found["commands"] = _some_commands(analysis, commands, found, single, caps.commands)
    kept["commands"] = [found["commands"].height, commands.height]
    lpis = _lpis(analysis)
    found["lpis"] = (
        lpis.sort("findings", "injections", descending=True, nulls_last=True)
        .head(caps.lpis)
        .sort("vm", "intid")
    )
    kept["lpis"] = [found["lpis"].height, lpis.height]
    markers = analysis.observations.markers.select("seq", "time_ns", "text")
    found["markers"] = markers.head(caps.markers)
    kept["markers"] = [found["markers"].height, markers.height]
    found["gaps"] = analysis.gaps
    found["latencies"] = levels.latencies(analysis.lives.lives)
    found["device_latencies"] = _device_latencies(analysis.lives.lives)
    for number, bins in enumerate(levels.BINS):
        found[f"bins{number}"], found[f"vcpu_bins{number}"] = levels.binned(analysis, bins)
    return Frames(found, kept, single)


def _events(analysis: Analysis) -> Iterator[tuple[str, tuple[pl.DataFrame, str, str | None]]]:
    """Single events: frames with the columns of their begin and end."""
    obs, history, lives = analysis.observations, analysis.history, analysis.lives
    when_ = ("seq", "time_ns", "cpu", "vm")
    ends = lives.lives.select(
        "outcome", "queued_seq", "queued_ns", "queued_vcpu", "filled_seq", "filled_ns", "filled_vcpu",
        "retired_ns", "refills", "moves", seq="injected_seq",
    )  # fmt: skip
    msis = obs.injections.select(
        *when_, "its", "device_id", "event_id", "intid", "cached", "result", "from_command"
    )
    yield "msis", (msis.join(ends, on="seq", how="left", maintain_order="left"), "time_ns", None)
    queueings = obs.queueings.select(
        *when_, "intid", "target_vcpu", "owner_vcpu", "pending", "enabled", "active", "cause"
    )
    yield "queueings", (queueings, "time_ns", None)
    fills = obs.fills.select(
        *when_, "vcpu", "intid", "lr", "pending", "latch_kept", "end_seq", "end_ns", "state", "ended_by"
    )
    yield "fills", (fills, "time_ns", "end_ns")
    yield "retargets", (obs.retargets.select(*when_, "intid", "vcpu"), "time_ns", None)
    yield "configs", (obs.configs.select(*when_, "intid", "enabled", "priority", "result"), "time_ns", None)
    yield "vm_events", (obs.vm_events.select(*when_, "what", "vcpu", "its", "intid"), "time_ns", None)
    yield (
        "pending_bits",
        (history.pending_bits.select("seq", "time_ns", "vm", "intid", "latched"), "time_ns", None),
    )
    latches = lives.latches.select("seq", "time_ns", "vm", "intid", "vcpu", "latched")
    changed = pl.col("latched") != pl.col("latched").shift(1).over("vm", "intid")
    yield "latches", (latches.filter(changed.fill_null(value=True)), "time_ns", None)
    queued = lives.pending.filter(pl.col("where") == "queued")
    yield "queued", (queued.select("vm", "vcpu", "intid", "from_ns", "to_ns"), "from_ns", "to_ns")
    runs = obs.runs.frame().select("vm", "vcpu", "enter_ns", "exit_ns")
    # Of one whose exit was not recorded, though the vCPU entered again, only the beginning is known.
    again = pl.col("enter_ns").shift(-1).over("vm", "vcpu").is_not_null()
    ended = pl.when(pl.col("exit_ns").is_null() & again).then("enter_ns").otherwise("exit_ns")
    yield "runs", (runs.with_columns(exit_ns=ended), "enter_ns", "exit_ns")


def _stretches(analysis: Analysis, budget: int) -> levels.Stretches:
    """Where single events are kept: everywhere, or around what the findings rest on."""
    obs = analysis.observations
    times = [
        frame["time_ns"].drop_nulls().to_numpy()
        for frame in (obs.injections, obs.queueings, obs.fills, obs.retargets, obs.configs)
    ]
    times += [stamps.time_ns for stamps in obs.runs.entries.values()]
    start = analysis.start_ns or 0
    moments = [one.time_ns for one in analysis.findings if one.time_ns is not None]
    moments += [start, analysis.end_ns or start]
    for one in analysis.findings:
        moments += [record.time_ns for record in one.evidence]
        moments += [subject.time_ns for subject in one.subjects if subject.time_ns is not None]
    # And some of what is nobody's fault, so that everywhere single events are not far.
    moments += np.linspace(start, analysis.end_ns or start, _ELSEWHERE, dtype=np.int64).tolist()
    # In this order, each once.
    moments = list(dict.fromkeys(moments))
    return levels.stretches(times, moments, (start, analysis.end_ns or start), budget)


def _configurations(analysis: Analysis) -> pl.DataFrame:
    """CONFIGURATIONS with `under`: the command that KVM was handling when it read one."""
    obs = analysis.observations
    spans = obs.commands.select("pid", "seq", "end_seq")
    reads = before(obs.configs.select("pid", "seq"), spans, _command="seq", _end="end_seq")
    reads = reads.filter(pl.col("_end").is_null() | (pl.col("_end") >= pl.col("seq")))
    under = reads.select(from_seq="seq", under="_command").unique("from_seq")
    return analysis.history.configurations.join(under, on="from_seq", how="left", maintain_order="left")


def _commands(analysis: Analysis, comms: Mapping[int, str]) -> pl.DataFrame:
    rows = command_rows(analysis).select(
        "seq", "time_ns", "cpu", "pid", "vm", "its", "slot", "dw0", "dw1", "dw2", "dw3", "lost_before",
        "opcode", "text", "intid", "verdict", "fault", "detail",
    )  # fmt: skip
    pids = rows["pid"].unique()
    tasks = pl.Series([task(comms, pid) for pid in pids], dtype=pl.String)
    return rows.with_columns(task=pl.col("pid").replace_strict(pids, tasks, return_dtype=pl.String)).drop(
        "pid"
    )


def _some_commands(
    analysis: Analysis,
    rows: pl.DataFrame,
    frames: Mapping[str, pl.DataFrame],
    single: levels.Stretches,
    cap: int,
) -> pl.DataFrame:
    """All commands, or those that something on the page speaks of, then the first of the rest."""
    if rows.height <= cap:
        return rows
    named = {seq for one in analysis.findings for seq in (*one.seqs, *one.blames)}
    near = single.having(rows, "time_ns")["seq"]
    first = pl.col("seq").is_in(sorted(named)) | pl.col("seq").is_in(near.implode())
    table = frames["mappings"].select("set_by").drop_nulls()["set_by"].unique()
    set_tables = pl.col("seq").is_in(table.implode())
    rank = (
        pl.when(first).then(0).when(pl.col("verdict") != "ok").then(1).when(set_tables).then(2).otherwise(3)
    )
    ranked = rows.with_columns(_rank=rank)
    return ranked.sort("_rank", "seq").head(cap).drop("_rank").sort("seq")


def _lpis(analysis: Analysis) -> pl.DataFrame:
    """Every LPI that the capture mentions. Shape: vm, intid, its event, its state at the end, and its figures."""
    lives, history, tables = analysis.lives.lives, analysis.history, analysis.at()
    assert tables.lpis is not None
    assert tables.events is not None
    keys = ["vm", "intid"]
    mentioned = pl.concat(
        [
            frame.select(keys)
            for frame in (
                history.mappings, history.targets, history.configurations, analysis.observations.injections,
                analysis.observations.queueings, analysis.observations.fills, analysis.observations.retargets,
                analysis.observations.configs,
            )
        ]
    ).drop_nulls().unique().sort(keys)  # fmt: skip
    counted = figures.traffic(analysis)
    slow = dict(figures.slowest(lives))
    rows = []
    for key in mentioned.iter_rows():
        counts, slowness = counted.get(key), slow.get(key)
        p50, p99, most = (slowness.p50, slowness.p99, slowness.max) if slowness else (None, None, None)
        rows.append((*key, counts.injections, counts.deliveries, counts.coalesced, p50, p99, most))
    names = [*keys, "injections", "deliveries", "coalesced", "p50", "p99", "max"]
    schema = {**dict.fromkeys(names, pl.Int64), "vm": pl.UInt16, "intid": pl.UInt32}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    last = history.mappings.group_by(keys, maintain_order=True).agg(
        pl.col("its", "device_id", "event_id").last()
    )
    moved = history.targets.sort("from_seq", nulls_last=False, maintain_order=True).with_columns(
        before=pl.col("target_vcpu").shift(1).over(keys)
    )
    moved = moved.filter(pl.col("set_by").is_not_null() & (pl.col("before") != pl.col("target_vcpu")))
    moves = moved.group_by(keys).agg(moves=pl.len())
    found = pl.DataFrame(
        sorted(
            (vm, one.intid, one.severity.rank)
            for one in analysis.findings
            for vm in ([one.vm] if one.vm is not None else analysis.observations.vms["vm"].to_list())
            if one.intid is not None
        ),
        schema={"vm": pl.UInt16, "intid": pl.UInt32, "rank": pl.Int64},
        orient="row",
    )
    found = found.group_by(keys).agg(findings=pl.len(), worst=pl.col("rank").min())
    severities = [str(severity) for severity in Severity]
    found = found.with_columns(
        worst=pl.col("worst").replace_strict(list(range(len(severities))), severities, return_dtype=pl.String)
    )
    for other in (last, tables.lpis, moves, found, _shares(lives)):
        frame = frame.join(other, on=keys, how="left", maintain_order="left")
    return frame.with_columns(pl.col("moves", "findings").fill_null(0))


def _device_latencies(lives: pl.DataFrame) -> pl.DataFrame:
    """How long delivered MSIs of each device took. Shape: vm, device_id, count, p50, p99, max, the slowest first."""
    known = lives.drop_nulls(["vm", "device_id"])
    rows = [
        (*key, one.count, one.p50, one.p99, one.max)
        for key, one in figures.slowest(known, ("vm", "device_id"))
    ]
    names = ("vm", "device_id", "count", "p50", "p99", "max")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Int64), orient="row")


def _shares(lives: pl.DataFrame) -> pl.DataFrame:
    """On which vCPUs each LPI was delivered, as text: `0:36 1:5`. Shape: vm, intid, shares."""
    by_vcpu = (
        lives.filter(pl.col("outcome") == "delivered")
        .drop_nulls(["intid", "filled_vcpu"])
        .group_by("vm", "intid", "filled_vcpu")
        .agg(count=pl.len())
        .sort("vm", "intid", "filled_vcpu")
    )
    return by_vcpu.group_by("vm", "intid").agg(
        shares=pl.format("{}:{}", "filled_vcpu", "count").str.join(" ")
    )
