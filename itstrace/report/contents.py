"""What a capture is and holds, without analyzing it: as data (`Contents`), lines and a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from rich.text import Text

from itstrace._version import __version__
from itstrace.findings import SkippedRule
from itstrace.observe.catalogue import OBSERVATIONS
from itstrace.observe.matching import BUILT_IN, Catalogue, Match
from itstrace.observe.strangers import UNKNOWN_FIELD, Stranger, events_file, strangers
from itstrace.report.coverage import coverage
from itstrace.report.events import shown_fields
from itstrace.report.figures import Seen, feeding
from itstrace.report.finding import host
from itstrace.report.layout import Cell, Column, Sheet, facts, join, table
from itstrace.report.state import right
from itstrace.report.terminal import about_file, damage_words, lost, span
from itstrace.report.text import listed, number, plural
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace.errors import Damage
    from itstrace.readers.base import Capture, CaptureInfo, EventFormat

#: Rules by code: their name and the observations that they need.
Needs = Mapping[str, tuple[str, tuple[str, ...]]]

INFO_SCHEMA: Final = "itstrace.info/1"
_GAPS_SHOWN: Final = 12
#: Under which names a reader gives the statistics of each CPU's buffer, and which of them say something
#: about loss.
_STATISTICS: Final = "cpu stats"
_SHOWN_STATISTICS: Final = ("CPU", "entries", "overrun", "commit overrun", "dropped events", "read events")
_STATISTICS_SHOWN: Final = 16
_STRANGERS_SHOWN: Final = 12
#: With more CPUs than these a table says of each event only how many CPUs recorded it.
_CPU_COLUMNS: Final = 8


@dataclass(frozen=True, slots=True)
class Contents:
    """What one capture holds."""

    info: CaptureInfo
    start_ns: int | None
    end_ns: int | None
    formats: Mapping[str, EventFormat]
    counts: pl.DataFrame
    gaps: pl.DataFrame
    damage: Sequence[Damage]
    #: The event that feeds each probe: the best one that was recorded, else the best one described.
    matches: Mapping[str, Match]
    #: Recorded events that look useful and are not understood, and what a file of events asks for in vain.
    strangers: Sequence[Stranger]
    events_file: Path | None
    remarks: Sequence[str]

    @property
    def fed_by(self) -> dict[str, str]:
        """The event that feeds each probe."""
        return {probe: match.event for probe, match in self.matches.items()}

    @property
    def records(self) -> dict[str, int]:
        """Records by event."""
        return dict(self.counts.group_by("event").agg(pl.col("records").sum()).iter_rows())

    @property
    def seen(self) -> dict[str, Seen]:
        """Records of the events that feed each observation; None where the events do not suffice."""
        records, found = self.records, {}
        for entry in OBSERVATIONS:
            whole = any(all(probe in self.fed_by for probe in group) for group in entry.fed_by)
            events = feeding(entry.name, self.fed_by)
            count = sum(records.get(event, 0) for event in events)
            found[entry.name] = Seen(count if count or whole else None, events, whole)
        return found

    def skipped(self, needs: Needs) -> list[SkippedRule]:
        """The rules that this capture cannot feed."""
        seen = self.seen
        missing = {
            code: tuple(each for each in wanted if each in seen and not seen[each].whole)
            for code, (_, wanted) in needs.items()
        }
        return [SkippedRule(code, needs[code][0], lacks) for code, lacks in missing.items() if lacks]


def contents(capture: Capture, catalogue: Catalogue = BUILT_IN) -> Contents:
    """Read a capture through once, without decoding its events."""
    counts = capture.counts()
    recorded = set(counts["event"].to_list())
    formats = capture.formats
    matches = {
        probe: next((match for match in able if match.event in recorded), able[0])
        for probe, able in catalogue.find(formats).items()
    }
    start_ns, end_ns = capture.span()
    return Contents(
        capture.info,
        start_ns,
        end_ns,
        formats,
        counts,
        capture.gaps(),
        capture.damage(),
        matches,
        [one for one in strangers(formats, catalogue) if one.event in recorded],
        catalogue.path,
        catalogue.remarks(formats),
    )


def contents_document(held: Contents, needs: Needs) -> dict[str, Any]:
    """The same for a program."""
    info = asdict(held.info)
    skipped = held.skipped(needs)
    cannot = {rule.code for rule in skipped}
    records = held.records
    return {
        "schema": INFO_SCHEMA,
        "version": __version__,
        "capture": {**info, **_named(held.info), "start_ns": held.start_ns, "end_ns": held.end_ns},
        "events": event_documents(held),
        "lost": held.gaps.rename({"lost": "records"}).to_dicts(),
        "damage": [asdict(place) for place in held.damage],
        "observations": {
            name: {"records": seen.rows, "events": list(seen.events), "whole": seen.whole}
            for name, seen in held.seen.items()
        },
        "probes": {
            probe: {
                "event": match.event,
                "found": match.how.words,
                "records": records.get(match.event, 0),
                "fields": {column: str(source) for column, source in match.sources.items()},
            }
            for probe, match in held.matches.items()
        },
        "not_understood": [
            {
                "event": one.event,
                "records": records.get(one.event, 0),
                "why": one.why,
                "probe": one.probe,
                "missing": list(one.missing),
                "toml": events_file([one]) or None,
            }
            for one in held.strangers
        ],
        "events_file": None
        if held.events_file is None
        else {"path": str(held.events_file), "remarks": list(held.remarks)},
        "rules": {
            "can_run": [code for code in needs if code not in cannot],
            "skipped": [
                {"code": rule.code, "name": rule.name, "missing": list(rule.missing)} for rule in skipped
            ],
        },
    }


def _named(info: CaptureInfo) -> dict[str, Any]:
    """The files by name."""
    return {
        "path": str(info.path),
        "paths": [str(path) for path in info.paths or [info.path]],
        "seeds": [{"file": seed.name, "at": seed.at} for seed in info.seeds],
    }


def event_documents(held: Contents) -> list[dict[str, Any]]:
    """Every event type that the capture recorded or describes, with its counts and fields."""
    by_cpu = _by_cpu(held.counts)
    return [
        {
            "event": name,
            "records": sum(by_cpu.get(name, {}).values()),
            "by_cpu": {str(cpu): count for cpu, count in sorted(by_cpu.get(name, {}).items())},
            "fields": [{"name": each.name, "type": each.c_type} for each in held.formats[name].fields]
            if name in held.formats
            else None,
        }
        for name in sorted({*by_cpu, *held.formats})
    ]


def _by_cpu(counts: pl.DataFrame) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for event, cpu, records in counts.iter_rows():
        found.setdefault(event, {})[cpu] = records
    return found


def overview(sheet: Sheet, held: Contents, needs: Needs) -> Iterator[Text]:
    """The file, what it holds, what is missing, and what could be found in it."""
    info = held.info
    described = len(held.formats)
    total = int(held.counts["records"].sum())
    types = plural(held.counts["event"].n_unique(), "type")
    losses = lost(held.gaps, told=info.tells_losses)
    yield sheet.rule("File")
    rows: list[tuple[str, Cell]] = [
        *about_file(info),
        ("host", info.uname or ""),
        ("machine", _machine(info)),
        ("buffers", ", ".join(name or "(top)" for name in info.buffers)),
        ("time", span(held.start_ns, held.end_ns, info.clock)),
        (
            "recorded",
            f"{plural(total, 'event')} of {types}, {losses}; {plural(described, 'type')} described",
        ),
        ("damage", damage_words(held.damage)),
        *(("seed", f"{seed.name}, at {seed.at or 'the start'}") for seed in info.seeds),
        *((name, value) for name, value in info.options.items() if not name.startswith(_STATISTICS)),
    ]
    yield from facts(sheet, rows)
    yield Text()
    yield from _statistics(sheet, info.options)
    yield sheet.rule("Events")
    yield from event_table(sheet, held)
    yield Text()
    if held.gaps.height:
        yield sheet.rule("Lost records")
        yield from _gaps(sheet, held.gaps)
        yield Text()
    yield sheet.rule("What it lets itstrace see")
    skipped = held.skipped(needs)
    found_by = {probe: match.how for probe, match in held.matches.items()}
    yield from coverage(sheet, held.seen, skipped, held.fed_by, found_by, unit="record", host=host(info))
    yield Text()
    yield Text(f"  {len(needs) - len(skipped)} of {len(needs)} rules can run on it.")
    if held.remarks or held.strangers:
        yield Text()
        yield from _not_understood(sheet, held)


def _not_understood(sheet: Sheet, held: Contents) -> Iterator[Text]:
    """Events that look useful and feed nothing: why, and the file of events that would make them feed something."""
    yield sheet.rule("Not understood", "events that look useful and feed nothing")
    for remark in held.remarks[:_STRANGERS_SHOWN]:
        yield from sheet.wrap(Text(f"{held.events_file}: {remark}", "yellow"), first="  - ", rest="    ")
    if len(held.remarks) > _STRANGERS_SHOWN:
        yield Text(f"  {_STRANGERS_SHOWN} of {len(held.remarks)} shown, --json has all", "dim italic")
    records = held.records
    shown = held.strangers[:_STRANGERS_SHOWN]
    by_why: dict[str, list[str]] = {}
    for one in shown:
        count = plural(records.get(one.event, 0), "record")
        by_why.setdefault(one.why, []).append(f"{one.event} ({count})")
    for why, events in by_why.items():
        yield from sheet.wrap(join(Text(listed(events), "bold"), f": {why}"), first="  - ", rest="    ")
    if len(shown) < len(held.strangers):
        yield Text(f"  {len(shown)} of {len(held.strangers)} shown, --json has all", "dim italic")
    file = events_file(shown)
    if not file:
        if shown:
            yield from sheet.wrap(
                "An event that is one of itstrace's probes under another name can be said to be so in a file: "
                "--events FILE, docs/events.md.",
                first="  ",
            )
        return
    yield Text()
    field = f", with a field of the event for each {UNKNOWN_FIELD}," if UNKNOWN_FIELD in file else ""
    yield from sheet.wrap(
        f"If they are what they look like, say so in a file{field} and give it with --events (docs/events.md):",
        first="  ",
    )
    for line in file.splitlines():
        if line:
            rest = "    # " if line.startswith("#") else "    "
            yield from sheet.wrap(Text(line, "cyan"), first="    ", rest=rest)
        else:
            yield Text()


def _machine(info: CaptureInfo) -> str:
    if info.model is not None:
        return ""
    if not info.describes_events:  # a text tells nothing of the machine but this
        return plural(info.cpus, "CPU")
    order = "little" if info.little_endian else "big"
    bits = info.long_size_bytes * 8
    return f"{plural(info.cpus, 'CPU')}, {bits} bit, {order} endian, pages of {info.page_size_bytes} bytes"


def _statistics(sheet: Sheet, options: Mapping[str, str]) -> Iterator[Text]:
    """What the kernel said of each CPU's buffer when the recording ended.

    Source: Documentation/trace/ftrace.rst, per_cpu/cpuN/stats
    """
    found = [dict(_pairs(text)) for name, text in options.items() if name.startswith(_STATISTICS)]
    names = list(dict.fromkeys(name for stats in found for name in stats))
    if not names:
        return
    yield sheet.rule("Buffers", "as the kernel left them")
    columns = [Column(name, right=True) for name in names if name in _SHOWN_STATISTICS]
    rows = [[stats.get(column.title, "?") for column in columns] for stats in found]
    yield from table(sheet, columns, rows, show=_STATISTICS_SHOWN, more="--json has all")
    yield Text()


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


def event_table(sheet: Sheet, held: Contents, *, with_fields: bool = False) -> Iterator[Text]:
    """The recorded event types and their counts, in all and by CPU (or their fields)."""
    by_cpu = _by_cpu(held.counts)
    cpus = sorted({cpu for counts in by_cpu.values() for cpu in counts})
    wide = len(cpus) <= _CPU_COLUMNS
    columns = [Column("event", give=1), Column("records", right=True)]
    if with_fields:
        columns.append(Column("fields", give=2))
    else:
        columns += (
            [Column(f"CPU {cpu}", right=True) for cpu in cpus] if wide else [Column("on CPUs", right=True)]
        )
    rows = []
    for event, counts in sorted(by_cpu.items(), key=lambda item: (-sum(item[1].values()), item[0])):
        row: list[Cell] = [event, number(sum(counts.values()))]
        if with_fields:
            known = held.formats.get(event)
            row.append("?" if known is None else ", ".join(each.name for each in shown_fields(known)))
        else:
            row += [number(counts.get(cpu, 0)) for cpu in cpus] if wide else [f"{len(counts)} of {len(cpus)}"]
        rows.append(row)
    yield from table(sheet, columns, rows)


def _gaps(sheet: Sheet, gaps: pl.DataFrame) -> Iterator[Text]:
    columns = right("CPU", "from", "to", "span", "records")
    rows = [
        [
            str(cpu),
            "the start" if begin is None else seconds(begin),
            seconds(end),
            duration(None if begin is None else end - begin),
            number(count),
        ]
        for cpu, begin, end, count in gaps.iter_rows()
    ]
    yield from table(sheet, columns, rows, show=_GAPS_SHOWN, more="--json has all")
