"""The report of `analyze` for a person: verdict, capture, findings, tables, times, coverage."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import polars as pl
from rich.text import Text

from itstrace.findings import Confidence, Finding, Severity
from itstrace.report import figures
from itstrace.report.coverage import coverage
from itstrace.report.finding import STYLES, Naming, Teller, claim_of, host
from itstrace.report.layout import Cell, Column, Sheet, facts, table
from itstrace.report.state import State, its_name, right
from itstrace.report.tales import Tale, by_kind, tales
from itstrace.report.text import hexa, listed, number, plain, plural, size
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from itstrace.analysis import Analysis
    from itstrace.baseline import Compared
    from itstrace.errors import Damage
    from itstrace.readers.base import CaptureInfo

#: Rows of each table, and LPIs by latency, that a report shows.
ROWS_SHOWN: Final = 12
SLOWEST_SHOWN: Final = 8
_DAMAGE_SHOWN: Final = 3
_MARKER_SHOWN: Final = 60

#: The codes that a headline names besides the first.
_CODES_NAMED: Final = 4

#: Where so large a share of the rules could not run, "nothing wrong" has to say so in the same breath.
_MUCH_UNSEEN: Final = 0.15


def report(
    sheet: Sheet,
    analysis: Analysis,
    why: Callable[[str], str],
    rules: int,
    against: Compared | None = None,
) -> Iterator[Text]:
    """The whole report.

    `why` tells why a rule of some code matters; `rules` is how many rules there are. `against`: how the findings
    compare with a baseline; those that it has are counted, and not told.
    """
    naming = Naming(analysis)
    told = [one for one in analysis.findings if against is None or not against.is_known(one)]
    yield Text()
    yield from verdict(sheet, analysis, naming, rules, against)
    yield Text()
    yield sheet.rule("Capture")
    yield from captured(sheet, analysis)
    yield Text()
    if told:
        yield sheet.rule("Findings" if against is None else "New findings", tally(told))
        yield Text()
        yield from Teller(sheet, naming, why, against).findings(told)
    yield sheet.rule("Tables", _as_of(analysis))
    tables, itss, counted = analysis.at(), analysis.observations.itss, figures.traffic(analysis)
    yield from State(sheet, tables, itss, counted, ROWS_SHOWN, "`itstrace tables` has all").lines()
    yield from latencies(sheet, analysis)
    yield sheet.rule("Coverage")
    seen = figures.observed(analysis.observations)
    observations = analysis.observations
    yield from coverage(
        sheet,
        seen,
        analysis.skipped,
        observations.fed_by,
        observations.found_by,
        host=host(analysis.info),
        plugins=analysis.plugins,
    )


def tally(found: Sequence[Finding]) -> str:
    """`3 errors, 1 warning and 2 notes`; where some follow from others, `of 2 causes`."""
    counts = Counter(finding.severity for finding in found)
    counted = listed([plural(counts[severity], str(severity)) for severity in Severity if counts[severity]])
    causes = tales(found)
    return counted if len(causes) == len(found) else f"{counted}, of {plural(len(causes), 'cause')}"


# --- the verdict


def verdict(
    sheet: Sheet, analysis: Analysis, naming: Naming, rules: int, against: Compared | None = None
) -> Iterator[Text]:
    """What is wrong, a sentence for each kind of cause, or that nothing is; and how sure that is."""
    for text, style in sentences(analysis, naming, rules, against):
        yield from sheet.wrap(Text(plain(text), style))


def sentences(
    analysis: Analysis, naming: Naming, rules: int, against: Compared | None = None
) -> Iterator[tuple[str, str]]:
    """The verdict, sentence by sentence, each with the style that it is set in."""
    fresh = [one for one in analysis.findings if against is None or not against.is_known(one)]
    loud = by_kind(fresh)
    for mine in loud:
        yield _headline(mine, analysis, naming), STYLES[mine[0].severity]
    partly = len(analysis.skipped) >= _MUCH_UNSEEN * rules
    if not loud:
        style = "bold" if analysis.skipped else "bold green"
        if against is not None and len(fresh) < len(analysis.findings):
            yield "Nothing new is wrong.", style
        else:
            unseen = f" in what was recorded; {_not_run(analysis, rules)}" if partly else ""
            yield f"Nothing wrong was found{unseen}.", style
            yield _went_through(analysis, partly=partly), ""
    if against is not None:
        yield _against(analysis, against), ""
    yield (
        _sureness(analysis, [tale.cause for mine in loud for tale in mine], rules, told=partly and not loud),
        "",
    )


def _not_run(analysis: Analysis, rules: int) -> str:
    return f"{len(analysis.skipped)} of {rules} rules could not run (not recorded)"


def _against(analysis: Analysis, against: Compared) -> str:
    """How the findings compare with a baseline: `7 findings as in the baseline (ITS401); 1 of it is gone (ITS102).`."""
    known = [finding for finding in analysis.findings if against.is_known(finding)]
    codes = f" ({_codes([finding.code for finding in known])})" if known else ""
    parts = [f"{plural(len(known), 'finding')} as in the baseline{codes}"]
    if against.gone:
        are = "is" if len(against.gone) == 1 else "are"
        parts.append(f"{len(against.gone):,} of it {are} gone ({_codes([one.code for one in against.gone])})")
    if against.untold:
        named = _codes([one.code for one in against.untold])
        parts.append(f"{len(against.untold):,} of it could not be looked for ({named})")
    return f"{'; '.join(parts)}."


def _codes(codes: Sequence[str]) -> str:
    """Each code once, with how often, the first few."""
    return _some([f"{code} {count} times" if count > 1 else code for code, count in Counter(codes).items()])


def _headline(mine: Sequence[Tale], analysis: Analysis, naming: Naming) -> str:
    """The first cause of a kind and what follows from it, and how many more causes there are, by code."""
    first, effects = mine[0].cause, mine[0].effects
    claim = claim_of(first, naming.host)
    if not analysis.info.tells_losses:
        claim = f"if no records were lost, {claim}"
    parts = [naming.brief(first)]
    parts += [f"{first.count:,} times"] if first.count > 1 else []
    if first.time_ns is not None:
        parts += [f"{'first ' if first.count > 1 else ''}at {seconds(first.time_ns)}"]
    about = ", ".join(part for part in parts if part)
    said = f"{claim[0].upper()}{claim[1:]} ({first.code}){': ' if about else ''}{about}"
    if effects:
        follow = list(dict.fromkeys(f"{effect.name} ({effect.code})" for effect in effects))
        said += f"; from it {'follow' if len(follow) > 1 else 'follows'} {_some(follow)}"
    others = [tale.cause.code for tale in mine[1:]]
    if others:
        what = "more cause" if any(tale.effects for tale in mine) else "more finding"
        said += f"; and {plural(len(others), what)} ({_some(list(dict.fromkeys(others)))})"
    return f"{said}."


def _some(words: list[str]) -> str:
    return listed(words) if len(words) <= _CODES_NAMED else f"{', '.join(words[:_CODES_NAMED])} and others"


def _went_through(analysis: Analysis, *, partly: bool) -> str:
    total = figures.traffic(analysis).total
    parts = []
    if figures.observed(analysis.observations)["COMMANDS"].rows is not None:
        parts.append(plural(analysis.observations.commands.height, "ITS command"))
    if total.injections is not None:
        parts.append(plural(total.injections, "MSI"))
    if total.deliveries is not None:
        parts.append(plural(total.deliveries, "delivery", "deliveries"))
    extra = f"; {tally(analysis.findings)} below" if analysis.findings else ""
    if not parts:
        return f"But neither ITS commands nor MSIs were recorded{extra}."
    how = "were gone through" if partly else "agree with the model"
    return f"{listed(parts)} {how}{extra}."


def _sureness(analysis: Analysis, wrong: Sequence[Finding], rules: int, *, told: bool) -> str:
    """How sure the verdict is; `told`: how many rules could not run was said before."""
    parts = []
    if wrong:
        sure = Counter(finding.confidence for finding in wrong)
        if len(wrong) == 1:
            parts.append(f"This is {wrong[0].confidence}")
        elif len(sure) == 1:
            both = "Both" if len(wrong) == 2 else f"All {len(wrong)}"
            parts.append(f"{both} causes are {wrong[0].confidence}")
        else:
            levels = [(level, sure[level]) for level in Confidence if sure[level]]
            are = [f"{count} {'is' if count == 1 else 'are'} {level}" for level, count in levels]
            parts.append(f"Of these {len(wrong)} causes {listed(are)}")
    if analysis.gaps.height:
        parts.append(f"records were lost in {plural(analysis.gaps.height, 'place')}")
    if analysis.damage:
        parts.append("the file is damaged")
    if not analysis.observations.itss["complete"].all():
        parts.append("the capture begins with tables already in use")
    if analysis.skipped and not told:
        parts.append(_not_run(analysis, rules))
    if not analysis.info.tells_losses:
        parts.append("whether records were lost is not told")
    elif not analysis.gaps.height and not analysis.skipped and not analysis.damage:
        parts.append(f"all {rules} rules ran and no records were lost")
    if not parts:
        return "No records were lost."
    text = f"{'; '.join(parts)}."
    return text[0].upper() + text[1:]


# --- what was captured


def captured(sheet: Sheet, analysis: Analysis) -> Iterator[Text]:
    """The file, the host, the span, the guests and their traffic."""
    yield from facts(sheet, capture_facts(analysis))


def capture_facts(analysis: Analysis) -> list[tuple[str, Cell]]:
    """What was captured, by label; empty where there is nothing to say."""
    observations, counts = analysis.observations, analysis.counts
    types = counts["event"].n_unique()
    records = int(counts["records"].sum())
    profiles = sorted(set(analysis.history.profiles.values()))
    recorded = f"{plural(records, 'event')} of {plural(types, 'type')}"
    if analysis.info.model is None:
        recorded += f" on {plural(analysis.info.cpus, 'CPU')}"
    return [
        *about_file(analysis.info, modelled=listed(profiles)),
        ("time", span(analysis.start_ns, analysis.end_ns, analysis.info.clock)),
        ("recorded", f"{recorded}, {lost(analysis.gaps, told=analysis.info.tells_losses)}"),
        ("damage", damage_words(analysis.damage)),
        *(("guest", line) for line in _guests(analysis)),
        ("commands", _commands(analysis)),
        ("MSIs", _msis(analysis)),
        ("markers", _markers(observations.markers)),
    ]


def about_file(info: CaptureInfo, *, modelled: str = "") -> list[tuple[str, Cell]]:
    """The file and the host that it comes from."""
    kernel = [info.kernel or "unknown", *([info.arch] if info.arch else [])]
    modelled = f"; replayed as {modelled}" if modelled else ""
    return [
        ("file", f"{info.path} ({size(info.size_bytes)}, {info.format})"),
        *(("note", note) for note in info.notes),
        ("kernel", f"{', '.join(kernel)}{modelled}")
        if info.model is None
        else ("ITS", f"{host(info)}'s own{modelled}"),
    ]


def span(start_ns: int | None, end_ns: int | None, clock: str | None) -> str:
    """`1343.1 to 1353.0 (9.9 s), clock mono`."""
    named = f", clock {clock}" if clock else ""
    if start_ns is None or end_ns is None:
        return f"no records{named}"
    return f"{seconds(start_ns)} to {seconds(end_ns)} ({duration(end_ns - start_ns)}){named}"


def lost(gaps: pl.DataFrame, *, told: bool = True) -> str:
    """How much the kernel could not record; `told`: the capture says so where it did not."""
    if gaps.is_empty():
        return "none lost" if told else "losses not told"
    counted = gaps["lost"].drop_nulls()
    amount = f"{int(counted.sum()):,} lost" if counted.len() == gaps.height else "some lost"
    if 0 < counted.len() < gaps.height:
        amount = f"{int(counted.sum()):,} or more lost"
    cpus = listed([str(cpu) for cpu in sorted(gaps["cpu"].unique())])
    return f"{amount} in {plural(gaps.height, 'place')} (CPU {cpus})"


def damage_words(damage: Sequence[Damage]) -> str:
    """The first few damaged places."""
    words = []
    for place in damage[:_DAMAGE_SHOWN]:
        at = "" if place.offset_bytes is None else f" at byte {place.offset_bytes}"
        words.append(f"{place.problem}{at}{'' if place.cpu is None else f' (CPU {place.cpu})'}")
    rest = len(damage) - len(words)
    return "; ".join(words) + (f"; and {plural(rest, 'more place')}" if rest > 0 else "")


def _guests(analysis: Analysis) -> Iterator[str]:
    vms, itss, vcpus = analysis.observations.vms, analysis.observations.itss, analysis.observations.vcpus
    for vm in vms.iter_rows(named=True):
        mine = itss.filter(pl.col("vm") == vm["vm"]).sort("its")
        count = vcpus.filter(pl.col("vm") == vm["vm"])["vcpu"].n_unique()
        begun = "from its start" if vm["complete"] else "already running"
        ended = "" if vm["end_ns"] is None else f", torn down at {seconds(vm['end_ns'])}"
        bases = (
            listed(
                [
                    f"ITS {its}" if base is None and not count else f"ITS {its} at {hexa(base)}"
                    for its, base in mine.select("its", "base_gpa").iter_rows()
                ]
            )
            or "no ITS seen"
        )
        yield f"{its_name(vm['vm'], None)}: {plural(count, 'vCPU') if count else 'vCPUs unknown'}, {bases}, {begun}{ended}"


def _commands(analysis: Analysis) -> str:
    opcodes = Counter(name or "?" for name in analysis.history.verdicts["opcode"].to_list())
    if not opcodes:
        return "none seen"
    faults = int((analysis.history.verdicts["verdict"] == "fault").sum())
    names = ", ".join(f"{name} {count:,}" for name, count in opcodes.most_common())
    return f"{opcodes.total():,} ({names}){f'; {faults:,} faulted' if faults else ''}"


def _msis(analysis: Analysis) -> str:
    outcomes = Counter(analysis.lives.lives["outcome"].to_list())
    total = figures.traffic(analysis).total
    if total.injections is None:
        return "not recorded"
    parts = ", ".join(f"{count:,} {outcome or 'unknown'}" for outcome, count in outcomes.most_common())
    return f"{total.injections:,}{f' ({parts})' if parts else ''}"


def _markers(markers: pl.DataFrame) -> str:
    if markers.is_empty():
        return ""
    first = markers.row(0, named=True)
    text = plain((first["text"] or "")[:_MARKER_SHOWN])
    return f"{plural(markers.height, 'note')}, the first at {seconds(first['time_ns'])}: {text}"


def _as_of(analysis: Analysis) -> str:
    ends = analysis.observations.vms["end_ns"].drop_nulls()
    if ends.is_empty():
        return "as of the end"
    return (
        "just before the teardown"
        if ends.len() == analysis.observations.vms.height
        else "as of the end, or before the teardown"
    )


# --- how long it took


def latencies(sheet: Sheet, analysis: Analysis) -> Iterator[Text]:
    """Stages of the delivered MSIs, and the LPIs that waited longest."""
    lives = analysis.lives.lives
    whole = figures.latency(lives)
    if whole is None:
        return
    yield sheet.rule("Latency", f"of {plural(whole.count, 'delivered MSI')}")
    columns = [Column("stage"), *right("p50", "p99", "max")]
    rows = []
    for title, begin, end in figures.STAGES:
        stage = figures.latency(lives, begin, end)
        if stage is not None:
            rows.append([title, duration(stage.p50), duration(stage.p99), duration(stage.max)])
    yield from table(sheet, columns, rows)
    yield Text()
    many_vms = analysis.observations.vms.height > 1
    columns = right("LPI", "delivered", "p50", "p99", "max")
    lines = [
        [
            f"{intid} (VM {vm})" if many_vms else str(intid),
            number(stage.count),
            duration(stage.p50),
            duration(stage.p99),
            duration(stage.max),
        ]
        for (vm, intid), stage in figures.slowest(lives)
    ]
    yield Text("  slowest LPIs, MSI to list register")
    yield from table(sheet, columns, lines, show=SLOWEST_SHOWN, more="--json has all of them")
    yield Text()
