"""The life of one LPI, told in order: every observation and table change about it, as steps.

Theory of operation. Each frame gives its rows about the LPI as steps (`_steps`); steps are sorted by the
seq of the record that they come from, so ties in time stay in the order of the records. Findings about the
LPI stand at the record that they begin with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from rich.text import Text

from itstrace.findings import Severity
from itstrace.observe import joins
from itstrace.report.commands import events_named
from itstrace.report.figures import latency
from itstrace.report.finding import STYLES
from itstrace.report.layout import Sheet, clean, wrap
from itstrace.report.text import delta, hexa, known, listed, plural
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from itstrace.analysis import Analysis
    from itstrace.findings import Finding

Row = dict[str, Any]

#: From this width on a step's CPU and kind have columns of their own.
_WIDE: Final = 100
#: What became of the content of a list register. Kernel: the fold's reading of ICH_LR<n>_EL2.State.
_FOUND: Final = {
    0: "empty: the guest took it and is done",
    1: "still pending: not taken",
    2: "active: the guest is at it",
    3: "active and pending again",
}
_SWITCHES: Final = {
    "flush_lpis": "EnableLPIs of vCPU {} goes to 0: what is on its list is taken off",
    "enable_lpis": "EnableLPIs of vCPU {} goes to 1",
    "save_tables": "KVM saves the ITS's tables",
    "restore_tables": "KVM restores the ITS's tables",
}
_ENABLED: Final = {True: "enabled", False: "disabled", None: "enabled or not is unknown"}
_STYLES: Final = {
    "msi": "bold",
    "finding": "bold red",
    "table": "dim",
    "command": "cyan",
    "config": "magenta",
    "vcpu": "yellow",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened.

    `kind`: command, table, config, msi, queue, fill, fold, retarget, vcpu, finding.
    """

    seq: int
    time_ns: int | None
    cpu: int | None
    kind: str
    text: str
    severity: str | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """All steps of one LPI of one VM, in order."""

    vm: int
    intid: int
    steps: tuple[Step, ...]


def known_lpis(analysis: Analysis) -> pl.DataFrame:
    """Every LPI that the capture mentions. Shape: vm, intid."""
    observations, history = analysis.observations, analysis.history
    frames = (
        history.mappings,
        history.targets,
        history.configurations,
        observations.injections,
        observations.queueings,
        observations.fills,
        observations.retargets,
        observations.configs,
    )
    return (
        pl.concat([frame.select("vm", "intid") for frame in frames]).drop_nulls().unique().sort("vm", "intid")
    )


def story(analysis: Analysis, vm: int, intid: int) -> Story:
    """Everything that the capture tells of one LPI."""
    steps = sorted(_steps(analysis, vm, intid), key=lambda step: step.seq)
    steps = sorted([*steps, *_findings(analysis, vm, intid, steps)], key=lambda step: step.seq)
    # What its vCPUs went through before there was anything to know of the LPI is not its story.
    begin = next((at for at, step in enumerate(steps) if step.kind != "vcpu"), len(steps))
    steps = steps[begin:]
    return Story(vm, intid, tuple(steps))


def _steps(analysis: Analysis, vm: int, intid: int) -> Iterator[Step]:
    observations, history = analysis.observations, analysis.history
    mine = (pl.col("vm") == vm) & (pl.col("intid") == intid)
    mappings = history.mappings.filter(mine)
    targets = _intervals(
        history.targets.filter(mine), "table", lambda row: f"to be queued to vCPU {known(row['target_vcpu'])}"
    )
    yield from _commands(analysis, vm, mappings)
    yield from _together([*_mappings(mappings), *targets])
    configs = observations.configs.filter(mine)
    yield from _rows(configs, "config", _config)
    yield from _intervals(
        # What KVM was seen to read stands there already.
        history.configurations.filter(mine).filter(~pl.col("from_seq").is_in(configs["seq"].implode())),
        "config",
        lambda row: f"{_ENABLED[row['enabled']]}, priority {_priority(row['priority'])}",
    )
    switches = pl.col("what").is_in(list(_SWITCHES)) & (pl.col("vm") == vm)
    yield from _rows(
        observations.vm_events.filter(switches),
        "vcpu",
        lambda row: _SWITCHES[row["what"]].format(known(row["vcpu"])),
    )
    yield from _rows(
        observations.vm_events.filter(mine & (pl.col("what") == "invlpir")),
        "config",
        lambda _: "the guest writes GICR_INVLPIR: its configuration is to be read again",
    )
    yield from _rows(
        history.pending_bits.filter(mine).with_columns(cpu=pl.lit(None, dtype=pl.UInt16)),
        "table",
        lambda row: f"KVM reads the pending table: {'pending' if row['latched'] else 'not pending'}",
    )
    yield from _rows(_injections(observations.injections, mappings, vm, intid), "msi", _msi)
    yield from _rows(observations.queueings.filter(mine), "queue", _queueing)
    for row in observations.fills.filter(mine).iter_rows(named=True):
        yield Step(row["seq"], row["time_ns"], row["cpu"], "fill", _fill(row))
        if row["end_seq"] is not None:
            yield Step(row["end_seq"], row["end_ns"], row["cpu"], "fold", _fold(row))
    yield from _rows(_retargets(observations.retargets.filter(mine), history.targets), "retarget", _retarget)


def _findings(analysis: Analysis, vm: int, intid: int, steps: list[Step]) -> Iterator[Step]:
    """Findings about the LPI, alone or among others, each where it was first hit; `steps`: all others, in order."""
    for finding in analysis.findings:
        mine = [one for one in finding.subjects or (finding,) if one.intid == intid]
        if not mine or finding.vm not in (vm, None) or mine[0].time_ns is None:
            continue
        first = mine[0].time_ns
        place = _place(finding) if finding.intid == intid else _step_at(steps, first)
        because = f" (because of {listed(list(finding.caused_by))})" if finding.caused_by else ""
        text = f"{finding.id or finding.code} {finding.name}: {finding.message}{because}"
        yield Step(place, first, None, "finding", text, str(finding.severity))


def _step_at(steps: list[Step], time_ns: int) -> int:
    """The last step that is not after a time."""
    return max(
        (step.seq for step in steps if step.time_ns is not None and step.time_ns <= time_ns), default=0
    )


def _together(steps: list[Step]) -> Iterator[Step]:
    """Table changes of one record as one step."""
    by_seq: dict[int, list[Step]] = {}
    for step in steps:
        by_seq.setdefault(step.seq, []).append(step)
    for seq, same in by_seq.items():
        yield Step(seq, same[0].time_ns, None, "table", "; ".join(step.text for step in same))


def _place(finding: Finding) -> int:
    """The record at which the finding begins: the first of its evidence that is not before its time."""
    begun = [
        item.seq
        for item in finding.evidence
        if item.seq is not None and item.time_ns >= (finding.time_ns or 0)
    ]
    return min(begun, default=max(finding.seqs, default=0))


def _rows(frame: pl.DataFrame, kind: str, say: Callable[[Row], str]) -> Iterator[Step]:
    for row in frame.iter_rows(named=True):
        yield Step(row["seq"], row["time_ns"], row["cpu"], kind, say(row))


def _commands(analysis: Analysis, vm: int, mappings: pl.DataFrame) -> Iterator[Step]:
    """Commands that name an event while it meant this LPI, and those that ended or began its mapping."""
    commands = analysis.observations.commands.filter(pl.col("vm") == vm)
    named = events_named(commands).join(
        mappings.select("its", "device_id", "event_id", "from_seq", "to_seq"),
        on=["its", "device_id", "event_id"],
    )
    live = (pl.col("seq") >= pl.col("from_seq").fill_null(0)) & (
        pl.col("to_seq").is_null() | (pl.col("seq") <= pl.col("to_seq"))
    )
    chosen = set(named.filter(live)["seq"].to_list())
    for column in ("set_by", "ended_by"):
        chosen |= set(mappings[column].drop_nulls().to_list())
    targets = analysis.history.targets.filter(
        (pl.col("vm") == vm) & pl.col("intid").is_in(mappings["intid"].unique().to_list())
    )
    chosen |= set(targets["set_by"].drop_nulls().to_list())
    verdicts = analysis.history.verdicts.filter((pl.col("vm") == vm) & pl.col("seq").is_in(sorted(chosen)))
    for row in verdicts.join(commands.select("seq", "time_ns", "cpu"), on="seq").iter_rows(named=True):
        yield Step(row["seq"], row["time_ns"], row["cpu"], "command", row["text"] + verdict_words(row))


def verdict_words(row: Row) -> str:
    """What the model makes of a command, where that is anything but ok."""
    if row["verdict"] in ("ok", None):
        return ""
    extra = ", ".join(part for part in (row["fault"], row["detail"]) if part)
    return f" [{row['verdict']}{': ' + extra if extra else ''}]"


def _mappings(frame: pl.DataFrame) -> Iterator[Step]:
    for row in frame.iter_rows(named=True):
        name = f"device {hexa(row['device_id'])}, event {known(row['event_id'])}"
        if row["from_seq"] is not None:
            collection = "no collection" if row["icid"] is None else f"collection {row['icid']}"
            yield Step(row["from_seq"], row["from_ns"], None, "table", f"{name} means this LPI, {collection}")
        if row["to_seq"] is not None:
            followed = frame.filter(
                (pl.col("from_seq") == row["to_seq"]) & (pl.col("its") == row["its"])
            ).height
            if not followed:
                yield Step(row["to_seq"], row["to_ns"], None, "table", f"{name} means it no longer")


def _intervals(frame: pl.DataFrame, kind: str, say: Callable[[Row], str]) -> Iterator[Step]:
    for row in frame.iter_rows(named=True):
        if row["from_seq"] is not None:
            yield Step(row["from_seq"], row["from_ns"], None, kind, say(row))


def _priority(value: int | None) -> str:
    return "?" if value is None else f"0x{value:02x}"


def _injections(frame: pl.DataFrame, mappings: pl.DataFrame, vm: int, intid: int) -> pl.DataFrame:
    """MSIs that KVM resolved to this LPI, and refused ones of an event that meant it then."""
    rows = frame.filter(pl.col("vm") == vm)
    unresolved = rows.filter(pl.col("intid").is_null()).join(
        mappings.select("its", "device_id", "event_id", "from_seq", "to_seq"),
        on=["its", "device_id", "event_id"],
    )
    live = (pl.col("seq") >= pl.col("from_seq").fill_null(0)) & (
        pl.col("to_seq").is_null() | (pl.col("seq") <= pl.col("to_seq"))
    )
    return (
        pl.concat([rows.filter(pl.col("intid") == intid), unresolved.filter(live).select(rows.columns)])
        .unique("seq")
        .sort("seq")
    )


def _msi(row: Row) -> str:
    origin = "MSI" if row["from_command"] is None else "INT"
    how = "" if row["cached"] is None else " through the cache" if row["cached"] else " through the tables"
    event = f"device {hexa(row['device_id'])}, event {known(row['event_id'])}"
    result = row["result"]
    end = "" if result == 0 else ", result unknown" if result is None else f", refused ({result})"
    return f"{origin} from {event}{how}{end}"


def _queueing(row: Row) -> str:
    state = [word for word in ("pending", "active") if row[word]] + (
        [] if row["enabled"] is not False else ["disabled"]
    )
    holder = "" if row["owner_vcpu"] is None else f", on the list of vCPU {row['owner_vcpu']} already"
    why = {"inv": ", configuration read again", "other": ""}.get(row["cause"] or "other", "")
    return f"queued for vCPU {known(row['target_vcpu'])}{holder} ({', '.join(state) or 'not pending'}{why})"


def _fill(row: Row) -> str:
    kept = ", the latch stays set" if row["latch_kept"] else ""
    lr = "" if row["lr"] is None else f" {row['lr']}"
    what = "" if row["pending"] else " (nothing pending)"
    return f"into list register{lr} of vCPU {row['vcpu']}{what}{kept}"


def _fold(row: Row) -> str:
    if row["ended_by"] == "fold":
        return f"vCPU {row['vcpu']} reads it back: {_FOUND.get(row['state'], 'state unknown')}"
    words = {"refill": "written again without having been read back", "teardown": "the VM is torn down"}
    return f"list register of vCPU {row['vcpu']}: {words.get(row['ended_by'], known(row['ended_by']))}"


def _retargets(rows: pl.DataFrame, targets: pl.DataFrame) -> pl.DataFrame:
    """Moves, with the vCPU at which the LPI aims then by the model (`aim`), where that is known."""
    aims = targets.drop_nulls("target_vcpu").with_columns(seq=pl.col("from_seq").fill_null(0))
    rows = joins.before(rows, aims, by=["vm", "intid"], aim="target_vcpu", until="to_seq")
    return rows.with_columns(
        aim=pl.when(~(pl.col("until") <= pl.col("seq")).fill_null(value=False)).then("aim")
    )


def _retarget(row: Row) -> str:
    if row["vcpu"] is not None:
        return f"KVM gives it to vCPU {row['vcpu']}"
    model = f" (vCPU {row['aim']} by the model)" if row["aim"] is not None else ""
    return f"KVM moves it; to which vCPU this kernel's event does not say{model}"


def _config(row: Row) -> str:
    if row["result"] not in (0, None):
        return f"KVM could not read its configuration: {row['result']}"
    return f"KVM reads its configuration: {_ENABLED[row['enabled']]}, priority {_priority(row['priority'])}"


# --- telling it


def told(sheet: Sheet, analysis: Analysis, tale: Story, *, show: int | None = None) -> Iterator[Text]:
    """The story for a person: a summary, then every step with the time since the one before."""
    yield from _summary(sheet, analysis, tale)
    yield Text()
    steps = tale.steps if show is None else tale.steps[:show]
    before: Step | None = None
    width = max((len(seconds(step.time_ns, 9)) for step in steps), default=0)
    for step in steps:
        yield from _line(sheet, step, before, width)
        before = step
    if len(steps) < len(tale.steps):
        yield Text(f"{len(steps):,} of {len(tale.steps):,} steps shown; --limit 0 shows all", "dim italic")


def _summary(sheet: Sheet, analysis: Analysis, tale: Story) -> Iterator[Text]:
    mine = (pl.col("vm") == tale.vm) & (pl.col("intid") == tale.intid)
    lives = analysis.lives.lives.filter(mine)
    counts = lives.group_by("outcome").len().sort("len", "outcome", descending=[True, False])
    parts = [
        f"{count:,} {outcome or 'unknown'}{_why_unknown(lives) if outcome in ('unknown', None) else ''}"
        for outcome, count in counts.iter_rows()
    ]
    yield sheet.rule(f"LPI {tale.intid}", f"VM {tale.vm}")
    yield from sheet.wrap(
        f"{plural(lives.height, 'MSI')}{': ' if parts else ''}{', '.join(parts)}", first="  "
    )
    before = analysis.history.mappings.filter(mine & pl.col("from_seq").is_null())
    for device_id, event_id in before.select("device_id", "event_id").iter_rows():
        text = f"device {hexa(device_id)}, event {known(event_id)} meant it before the capture began"
        yield from sheet.wrap(text, first="  ")
    delivered = lives.filter(pl.col("outcome") == "delivered")["filled_vcpu"].drop_nulls()
    vcpus = delivered.value_counts().sort("count", "filled_vcpu", descending=[True, False])
    if vcpus.height:
        taken = listed([f"vCPU {vcpu} ({count:,})" for vcpu, count in vcpus.iter_rows()])
        yield from sheet.wrap(f"delivered on {taken}", first="  ")
    measured = latency(lives)
    if measured is not None:
        half, most, longest = (duration(value) for value in (measured.p50, measured.p99, measured.max))
        text = f"MSI to list register: p50 {half}, p99 {most}, max {longest}"
        yield from sheet.wrap(text, first="  ")


def _why_unknown(lives: pl.DataFrame) -> str:
    """Why the outcome of some MSIs is not known."""
    lost = lives.filter(pl.col("outcome").is_null() | (pl.col("outcome") == "unknown"))
    filled = lost["filled_seq"].is_not_null().sum()
    why = ["in a list register that was not seen read back"] if filled else []
    why += ["its result or its queueing was not recorded"] if filled < lost.height else []
    return f" ({' or '.join(why)})"


def _line(sheet: Sheet, step: Step, before: Step | None, width: int) -> Iterator[Text]:
    """A step, with the time since the one before; no times where it is an effect of the same record.

    On a narrow sheet the text alone says what kind of step it is.
    """
    same = before is not None and before.seq == step.seq
    time = "" if same else seconds(step.time_ns, 9)
    since = ""
    if before is not None and not same and None not in (step.time_ns, before.time_ns):
        since = delta((step.time_ns or 0) - (before.time_ns or 0))
    head = f"{time:>{width}} {since:>9}  "
    if sheet.width is None or sheet.width >= _WIDE:
        cpu = "" if step.cpu is None or same else f"[{step.cpu:03d}]"
        head += f"{cpu:5} {step.kind:<8}  "
    if sheet.width is None:
        yield clean(head + step.text)
        return
    style = STYLES[Severity(step.severity)] if step.severity else _STYLES.get(step.kind, "")
    for at, line in enumerate(wrap(step.text, sheet.width, first=head)):
        if at == 0:
            line.stylize("dim", width, len(head))
        if style:
            line.stylize(style, len(head))
        yield line


def story_document(analysis: Analysis, tale: Story) -> dict[str, Any]:
    """The story for a program."""
    return {
        "vm": tale.vm,
        "intid": tale.intid,
        "steps": [
            {
                "seq": s.seq,
                "time_ns": s.time_ns,
                "cpu": s.cpu,
                "kind": s.kind,
                "text": s.text,
                "severity": s.severity,
            }
            for s in tale.steps
        ],
        "lives": analysis.lives.lives.filter((pl.col("vm") == tale.vm) & (pl.col("intid") == tale.intid))
        .drop("vm", "intid")
        .to_dicts(),
    }
