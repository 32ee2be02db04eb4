"""An analysis as the plain data of a page: small documents, and frames of which a cap says how much is kept.

Decides nothing: what is wrong is what the findings say. What a cap leaves out is counted in `kept`, so that the page
can say so and name the command that shows the rest.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace._version import __version__
from itstrace.findings import Kind, Severity
from itstrace.gic.commands import FIELDS, LABELS
from itstrace.observe.catalogue import OBSERVATIONS
from itstrace.observe.joins import before
from itstrace.report import figures
from itstrace.report.commands import command_rows
from itstrace.report.events import task
from itstrace.report.finding import KINDS, Naming, host, when
from itstrace.report.html import levels
from itstrace.report.json import analysis_document, finding_document
from itstrace.report.terminal import capture_facts, sentences
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from itstrace.analysis import Analysis
    from itstrace.findings import Finding

SCHEMA: Final = "itstrace.html/1"
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Caps:
    """How much a page keeps at most, in rows."""

    #: Single events, all kinds together.
    events: int = 120_000
    commands: int = 100_000
    #: Intervals of each table.
    intervals: int = 120_000
    lpis: int = 20_000
    findings: int = 400
    #: Records and subjects of one finding.
    evidence: int = 40
    subjects: int = 60


@dataclass(frozen=True, slots=True)
class Report:
    """What a page is made of: one document, and frames by name."""

    document: Document
    frames: dict[str, pl.DataFrame]
    origin_ns: int


def model(
    analysis: Analysis,
    *,
    pages: Callable[[str], str],
    rules: int,
    comms: Mapping[int, str],
    caps: Caps | None = None,
) -> Report:
    """Make the data of a page. `pages`: the documentation of a rule; `rules`: how many there are; `comms`: tasks' names."""
    caps = caps or Caps()
    origin = analysis.start_ns or 0
    frames, kept, single = _frames(analysis, comms, caps)
    whole = analysis_document(analysis)
    shown = analysis.findings[: caps.findings]
    naming = Naming(analysis)
    codes = {one.code for one in shown} | {one.code for one in analysis.skipped}
    document: Document = {
        "schema": SCHEMA,
        "version": __version__,
        "origin_ns": str(origin),
        "span_ns": (analysis.end_ns or origin) - origin,
        "file": _file(analysis),
        "host": host(analysis.info),
        "capture": _offsets(whole["capture"], origin),
        "summary": whole["summary"],
        "coverage": whole["coverage"],
        "missing": _missing(analysis),
        "vms": _offsets(_vms(analysis), origin),
        "facts": [[label, str(value)] for label, value in capture_facts(analysis) if str(value)],
        "verdict": [[text, style] for text, style in sentences(analysis, naming, rules)],
        "worst": _worst(analysis.findings, pages),
        "findings": [_offsets(_finding(analysis, one, naming, caps), origin) for one in shown],
        "pages": {code: pages(code) for code in sorted(codes)},
        "kinds": {str(kind): words.replace("KVM", naming.host) for kind, words in KINDS.items()},
        "stages": _stages(analysis.lives.lives),
        "commands": {
            "fields": {
                opcode.name: {
                    name: [each.dw, each.high, each.low, each.shift, each.bias]
                    for name, each in layout.items()
                }
                for opcode, layout in FIELDS.items()
            },
            "labels": {name: [label, hexa] for name, (label, hexa) in LABELS.items()},
        },
        "bins": list(levels.BINS),
        "buckets_per_decade": levels.BUCKETS_PER_DECADE,
        "single": {
            "whole": single.whole,
            "from_ns": (single.from_ns - origin).tolist(),
            "to_ns": (single.to_ns - origin).tolist(),
        },
        "kept": {**kept, "findings": [len(shown), len(analysis.findings)]},
    }
    return Report(document, frames, origin)


# --- documents


#: Times of the capture's clock. A reader of JSON may not hold them: it is given the distance from the origin.
_TIMES: Final = ("time_ns", "start_ns", "end_ns", "from_ns", "to_ns")


def _offsets(value: Any, origin_ns: int) -> Any:
    """The same document with every time as an offset from the origin."""
    if isinstance(value, dict):
        return {
            name: each - origin_ns if name in _TIMES and each is not None else _offsets(each, origin_ns)
            for name, each in value.items()
        }
    return [_offsets(each, origin_ns) for each in value] if isinstance(value, list | tuple) else value


def _file(analysis: Analysis) -> str:
    """The capture as a command line names it."""
    paths = analysis.info.paths or [analysis.info.path]
    return " ".join(_quoted(str(path)) for path in paths)


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word) else "'" + word.replace("'", "'\"'\"'") + "'"


def _vms(analysis: Analysis) -> list[Document]:
    """VMs with their ITSs and vCPUs."""
    obs = analysis.observations
    found = []
    for row in obs.vms.iter_rows(named=True):
        mine = pl.col("vm") == row["vm"]
        vcpus = set(obs.vcpus.filter(mine)["vcpu"].to_list()) | set(obs.fills.filter(mine)["vcpu"].to_list())
        # A guest may aim at vCPUs that do not exist: what commands say counts only where nothing else tells.
        if not vcpus:
            vcpus = set(obs.queueings.filter(mine)["target_vcpu"].to_list())
            vcpus |= set(analysis.history.targets.filter(mine)["target_vcpu"].to_list())
        its = obs.itss.filter(mine).sort("its").select("its", "base_gpa").to_dicts()
        found.append(
            {
                "vm": row["vm"],
                "vcpus": sorted(vcpu for vcpu in vcpus if vcpu is not None),
                "its": [{"its": one["its"], "base_gpa": _hex(one["base_gpa"])} for one in its],
                "start_ns": row["start_ns"],
                "end_ns": row["end_ns"],
                "complete": row["complete"],
                "profile": analysis.history.profiles.get(row["vm"]),
            }
        )
    return found


def _hex(value: int | None) -> str | None:
    return None if value is None else f"0x{value:x}"


_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def _worst(findings: Sequence[Finding], pages: Callable[[str], str]) -> Document | None:
    """The finding that matters most, told in two sentences: what happened, and what came of it or how bad it got."""
    real = [one for one in findings if one.kind is not Kind.EVIDENCE] or list(findings)
    if not real:
        return None
    worst = min(real, key=lambda one: one.severity.rank)
    told = _SENTENCE.split(worst.message)
    saw = f"The guest saw: {worst.guest_saw}" if worst.guest_saw else ""
    second = next((text for text in (saw, *told[1:], worst.worst, _why(pages(worst.code))) if text), "")
    return {
        "id": worst.id,
        "told": [text if text.endswith(".") else f"{text}." for text in (told[0], second) if text],
    }


def _why(page: str) -> str:
    """The first sentence under "Why it matters" of a rule's page."""
    found = re.search(r"^## Why it matters\n+(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return "" if found is None else _SENTENCE.split(" ".join(found[1].split()))[0]


def _finding(analysis: Analysis, finding: Finding, naming: Naming, caps: Caps) -> Document:
    """A finding as the JSON has it, and what a page shows besides."""
    document = finding_document(finding)
    document["evidence"] = [
        {**item, "seq": record.seq}
        for item, record in zip(document["evidence"], finding.evidence, strict=True)
    ][: caps.evidence]
    return {
        **document,
        "id": finding.id or finding.code,
        "subject": naming.subject(finding),
        "brief": naming.brief(finding),
        "when": when(finding),
        "mechanism": finding.mechanism,
        "worst": finding.worst,
        "guest_saw": finding.guest_saw,
        "suspect": list(finding.suspect),
        "known_bugs": [asdict(bug) for bug in finding.known_bugs],
        "doubt": finding.doubt,
        "capture_next": finding.capture_next,
        "caused_by": list(finding.caused_by),
        "leads_to": list(finding.leads_to),
        "records": len(finding.evidence),
        "subjects": [asdict(one) for one in finding.subjects[: caps.subjects]],
        "subjects_total": len(finding.subjects),
        "command": _same_in_terminal(analysis, finding, naming),
    }


def _same_in_terminal(analysis: Analysis, finding: Finding, naming: Naming) -> list[str]:
    """Command lines that show the same."""
    file = _file(analysis)
    lines = [f"itstrace analyze {file} --select {finding.code}"]
    if finding.intid is not None:
        vm = f" --vm {finding.vm}" if naming.many_vms and finding.vm is not None else ""
        lines.append(f"itstrace lpi {file} {finding.intid}{vm}")
    if finding.time_ns is not None and finding.kind is not Kind.EVIDENCE:
        lines.append(f"itstrace tables {file} --at {seconds(finding.time_ns, 9)}")
    return lines


def _missing(analysis: Analysis) -> list[Document]:
    """What was not recorded, which rules that stops, and what to record next time."""
    what = {entry.name: entry.what for entry in OBSERVATIONS}
    obs, source = analysis.observations, host(analysis.info)
    seen = figures.observed(obs)
    lacking = [name for name, one in seen.items() if one.rows is None or not one.whole]
    stopped = dict.fromkeys(name for rule in analysis.skipped for name in rule.missing)
    return [
        {
            "observation": name,
            "what": what.get(name, ""),
            "record": [list(pair) for pair in figures.to_record(name, obs.fed_by, source)],
            "stops": [rule.code for rule in analysis.skipped if name in rule.missing],
        }
        for name in dict.fromkeys([*stopped, *lacking])
    ]


def _stages(lives: pl.DataFrame) -> list[Document]:
    found = []
    for title, begin, end in figures.STAGES:
        stage = figures.latency(lives, begin, end)
        if stage is not None:
            found.append({"title": title, **asdict(stage)})
    return found


# --- frames


def _frames(
    analysis: Analysis, comms: Mapping[int, str], caps: Caps
) -> tuple[dict[str, pl.DataFrame], Document, levels.Stretches]:
    single = _stretches(analysis, caps.events)
    events = dict(_events(analysis))
    frames: dict[str, pl.DataFrame] = {}
    kept: Document = {}
    for name, (frame, begin, end) in events.items():
        frames[name] = single.having(frame, begin, end)
        kept[name] = [frames[name].height, frame.height]
    history = analysis.history
    tables = {name: getattr(history, name) for name in ("devices", "collections", "mappings", "targets")}
    tables["configurations"] = _configurations(analysis)
    for name, frame in tables.items():
        few = frame if frame.height <= caps.intervals else single.having(frame, "from_ns", "to_ns")
        frames[name] = few.head(caps.intervals)
        kept[name] = [frames[name].height, frame.height]
    commands = _commands(analysis, comms)
    frames["commands"] = _some_commands(analysis, commands, frames, single, caps.commands)
    kept["commands"] = [frames["commands"].height, commands.height]
    lpis = _lpis(analysis)
    frames["lpis"] = (
        lpis.sort("findings", "injections", descending=True, nulls_last=True)
        .head(caps.lpis)
        .sort("vm", "intid")
    )
    kept["lpis"] = [frames["lpis"].height, lpis.height]
    frames["markers"] = analysis.observations.markers.select("seq", "time_ns", "text")
    frames["gaps"] = analysis.gaps
    frames["latencies"] = levels.latencies(analysis.lives.lives)
    frames["device_latencies"] = _device_latencies(analysis.lives.lives)
    for number, bins in enumerate(levels.BINS):
        frames[f"bins{number}"], frames[f"vcpu_bins{number}"] = levels.binned(analysis, bins)
    return frames, kept, single


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
        "opcode", "text", "verdict", "fault", "detail",
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
