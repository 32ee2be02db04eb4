"""Two captures side by side: sections of grids and prose, which become lines here and a page in `difference_html`.

`itstrace.difference` decides what differs and what of it counts; here is only how it is said.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from rich.text import Text

from itstrace._version import __version__
from itstrace.difference import Change
from itstrace.findings import Kind
from itstrace.report.figures import STAGES
from itstrace.report.finding import KINDS, named
from itstrace.report.json import Document, finding_document, subject_documents
from itstrace.report.layout import Column, facts, table
from itstrace.report.text import hexa, listed, number, plain, plural
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.difference import Difference, Fact, Kept
    from itstrace.findings import Subject
    from itstrace.report.layout import Sheet

SCHEMA: Final = "itstrace.diff/1"
#: Rows of each table that a report on a terminal shows.
ROWS_SHOWN: Final = 20
#: What B says where it says what A does.
SAME: Final = "same"
_SUBJECTS_NAMED: Final = 4
#: Rates by device and by LPI that have changed: so many are told.
_BUSIEST: Final = 8

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a grid; `counts`: it is a difference that counts."""

    cells: tuple[str, ...]
    counts: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table under its own title; `left` columns hold words, the rest numbers."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    left: frozenset[int] = frozenset({0})
    give: int | None = None  # the column that is cut first on a narrow terminal


@dataclass(frozen=True, slots=True)
class Told:
    """A paragraph. `tone`: error, warning, note (a finding's), counts, dim, or nothing in particular."""

    text: str
    tone: str = ""
    head: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One aspect of both captures."""

    title: str
    note: str
    parts: tuple[Grid | Told, ...] = field(default=())


_TONES: Final = {
    "error": "bold red",
    "warning": "bold yellow",
    "note": "bold cyan",
    "counts": "bold",
    "dim": "dim",
}


# --- what is said


def verdict(different: Difference) -> tuple[str, ...]:
    """What differs and counts, in a sentence or two."""
    counted = different.counted
    words = [
        _words(counted["findings"], "finding"),
        _words(len(_entries(different)), "table entry", "table entries"),
        _words(counted["outcomes"], "share of outcomes", "shares of outcomes"),
        _words(counted["latencies"], "latency", "latencies"),
    ]
    said = [one for one in words if one]
    doubt = (
        ("Not all of it can be compared; why is said under Recorded.",) if different.recorded.remarks else ()
    )
    if not said:
        return ("No difference was found.", _compared(different), *doubt)
    many = len(said) > 1 or not said[0].startswith("1 ")
    first = f"A and B differ: {listed(said)} {'are' if many else 'is'} not the same."
    fresh = [one for one in different.findings if one.differs and one.change in {Change.NEW, Change.WORSE}]
    if not fresh:
        return (first, *doubt)
    names = list(dict.fromkeys(f"{one.told.name} ({one.code})" for one in fresh))
    shown = names[:_SUBJECTS_NAMED] + (["others"] if len(names) > _SUBJECTS_NAMED else [])
    new = "New or worse" if any(one.change is Change.WORSE for one in fresh) else "New"
    return (first, f"{new} in B: {listed(shown)}.", *doubt)


def _words(count: int, one: str, many: str | None = None) -> str:
    return plural(count, one, many) if count else ""


def _compared(different: Difference) -> str:
    equal = int((different.entries["verdict"] == "equal").sum())
    both = sum(one.change is Change.BOTH for one in different.findings)
    return (
        f"{plural(equal, 'field of table entries', 'fields of table entries')} and {plural(both, 'finding')} are the same in "
        "both; outcomes and latencies are within the limits."
    )


def sections(different: Difference) -> tuple[Section, ...]:
    """Everything, in the order in which it is to be read: what was recorded comes first."""
    return (
        _recorded(different),
        _found(different),
        _tables(different),
        _outcomes(different),
        _latencies(different),
        _rates(different),
    )


# --- what was recorded


def _recorded(different: Difference) -> Section:
    recorded = different.recorded
    lines = [
        Line((fact.name, *_sides(fact)))
        for fact in recorded.facts
        if fact.a is not None or fact.b is not None
    ]
    remarks = [Told(remark, head="- ") for remark in recorded.remarks]
    grid = Grid("", ("what", "A", "B"), tuple(lines), left=frozenset({0, 1, 2}), give=1)
    apart = sum(not fact.same for fact in recorded.facts if fact.name != "file")
    return Section(
        "Recorded", f"{plural(apart, 'thing')} not the same" if apart else "alike", (grid, *remarks)
    )


def _sides(fact: Fact) -> tuple[str, str]:
    def shown(value: str | int | None) -> str:
        if fact.name == "file":
            return PurePath(str(value)).name
        if value is None:
            return "?"
        if isinstance(value, str):
            return value
        return duration(value) if fact.unit == "ns" else number(value)

    return shown(fact.a), SAME if fact.same else shown(fact.b)


# --- findings


_CHANGES: Final = {
    Change.NEW: "new in B",
    Change.WORSE: "worse in B",
    Change.MILDER: "milder in B",
    Change.GONE: "gone in B",
    Change.BOTH: "in both",
    Change.UNTOLD_A: "in B; A could not tell",
    Change.UNTOLD_B: "in A; B could not tell",
}


def _found(different: Difference) -> Section:
    parts: list[Grid | Told] = []
    for one in different.findings:
        if one.differs:
            finding, (count_a, count_b) = one.told, one.counts
            often = (
                f", {times(count_a or count_b)}"
                if not (count_a and count_b)
                else f", A {number(count_a)}, B {number(count_b)} times"
            )
            head = f"{_CHANGES[one.change]}: {str(finding.severity).upper()} {finding.code} {finding.name}"
            parts += [
                Told(f"{head} ({KINDS[finding.kind]}, {finding.confidence}{often})", str(one.severity)),
                Told(finding.message, head="  "),
            ]
            if one.a and one.b:
                parts.append(Told(f"In A: {one.a[0].message}", head="  "))
    lines = tuple(_no_difference([one for one in different.findings if not one.differs]))
    if lines:
        columns = ("rule", "severity", "A", "B", "is")
        parts.append(Grid("no difference", columns, lines, left=frozenset({0, 1, 4}), give=4))
    changes = Counter(one.change for one in different.findings if one.differs)
    note = listed([f"{count:,} {_CHANGES[change]}" for change, count in changes.items()])
    return Section("Findings", note or "the same", tuple(parts or [Told("None in either.", "dim")]))


def _no_difference(kept: Sequence[Kept]) -> Iterator[Line]:
    """A row for each cause; what a capture says of itself in several ways is one."""
    alike: dict[tuple[object, ...], list[Kept]] = {}
    for one in kept:
        apart = "" if one.told.kind is Kind.EVIDENCE else one.mechanism
        alike.setdefault((one.code, one.change, one.severity, apart), []).append(one)
    for (_, _, _, mechanism), ones in alike.items():
        first = ones[0]
        sums = (sum(one.counts[side] for one in ones) for side in (0, 1))
        said = _CHANGES[first.change] + (f": {mechanism}" if mechanism else "") + _hit_apart(first)
        yield Line((f"{first.code} {first.told.name}", str(first.severity), *map(number, sums), said))


def _hit_apart(one: Kept) -> str:
    """What a cause that both have hit in one of them alone."""
    if one.change is not Change.BOTH or one.told.kind is Kind.EVIDENCE:
        return ""
    sides = [
        f"{_subjects(one.only(side))} in {side.upper()} alone" for side in "ab" if _subjects(one.only(side))
    ]
    return f"; {', '.join(sides)}" if sides else ""


def _subjects(subjects: Sequence[Subject]) -> str:
    names = [name for name in map(named, subjects) if name]
    if not names:
        return ""
    rest = len(names) - 1
    return names[0] + (f" and {plural(rest, 'other')}" if rest else "")


# --- tables


_WHAT: Final = {"device": "device", "collection": "collection", "event": "event", "lpi": "LPI"}
_FIELDS: Final = {
    "mapped": "",
    "event_bits": "event bits",
    "itt_gpa": "ITT",
    "target_vcpu": "vCPU",
    "intid": "LPI",
    "icid": "collection",
}


def _entries(different: Difference) -> list[tuple[Row, list[Row]]]:
    """Entries that differ, each with the fields in which it does."""
    rows = different.entries.filter(pl.col("verdict") == "different")
    keys = ["what", "vm", "its", "device_id", "event_id", "icid", "intid"]
    return [
        (dict(zip(keys, key, strict=True)), group.to_dicts())
        for key, group in rows.group_by(keys, maintain_order=True)
    ]


def _tables(different: Difference) -> Section:
    differing = _entries(different)
    many_vms = different.entries["vm"].n_unique() > 1
    many_itss = (
        different.entries.drop_nulls("its").select("vm", "its").n_unique()
        > different.entries["vm"].n_unique()
    )
    lines = tuple(
        Line(
            (
                _entry(key, many_vms=many_vms, many_itss=many_itss),
                *(_held(rows, side) for side in "ab"),
            ),
            counts=True,
        )
        for key, rows in differing
    )
    parts: list[Grid | Told] = []
    if lines:
        parts.append(Grid("", ("entry", "A", "B"), lines, left=frozenset({0, 1, 2}), give=0))
    others = different.entries.filter(pl.col("verdict").is_in(["aside", "unknown"]))
    if others.height:
        grouped = others.group_by("verdict", "what", "field", "reason", maintain_order=True).len()
        rest = tuple(
            Line(
                (
                    f"{_WHAT[what]} {_FIELDS.get(name, name)}".rstrip(),
                    number(count),
                    f"{'differs' if kind == 'aside' else 'unknown'}: {reason}",
                )
            )
            for kind, what, name, reason, count in grouped.iter_rows()
        )
        parts.append(Grid("not counted", ("field", "entries", "why"), rest, left=frozenset({0, 2}), give=2))
    equal = int((different.entries["verdict"] == "equal").sum())
    compared = different.entries.filter(pl.col("verdict") != "unknown").height
    if not compared:
        parts.append(Told("Nothing of the tables is known in both.", "dim"))
    note = (
        f"{plural(len(differing), 'entry', 'entries')} differ" if len(differing) != 1 else "1 entry differs"
    )
    return Section("Tables", f"{_as_of(different)}: {note}, {plural(equal, 'field')} equal", tuple(parts))


def _as_of(different: Difference) -> str:
    at = [different.at_a_ns, different.at_b_ns]
    words = ["the end" if time_ns is None else seconds(time_ns) for time_ns in at]
    return f"at {words[0]}" if words[0] == words[1] else f"A at {words[0]}, B at {words[1]}"


def _entry(key: Row, *, many_vms: bool, many_itss: bool) -> str:
    name = {
        "device": f"device {hexa(key['device_id'])}",
        "collection": f"collection {key['icid']}",
        "event": f"device {hexa(key['device_id'])} event {key['event_id']}",
        "lpi": f"LPI {key['intid']}",
    }[key["what"]]
    if key["what"] == "event" and key["intid"] is not None:
        name += f" (LPI {key['intid']})"
    its = f", ITS {key['its']}" if many_itss and key["its"] is not None else ""
    return name + (f", VM {key['vm']}" if many_vms else "") + its


def _held(rows: Sequence[Row], side: str) -> str:
    return ", ".join(f"{_FIELDS.get(row['field'], row['field'])} {row[side]}".lstrip() for row in rows)


# --- outcomes


def _outcomes(different: Difference) -> Section:
    limits = different.limits
    rows = different.outcomes.filter(pl.col("intid").is_null()).sort("count_a", descending=True)
    apart = different.outcomes.filter(pl.col("intid").is_not_null() & (pl.col("verdict") == "different"))
    parts: list[Grid | Told] = []
    columns = ("outcome", "A", "share", "B", "share", "B has")
    if rows.height:
        parts.append(
            Grid("all MSIs", columns, tuple(_outcome(row, "") for row in rows.iter_rows(named=True)))
        )
    else:
        parts.append(Told("No MSIs in either.", "dim"))
    if apart.height:
        lines = tuple(
            _outcome(row, f"LPI {row['intid']} {_of_vm(different, row)}")
            for row in apart.iter_rows(named=True)
        )
        parts.append(Grid("LPIs that differ", columns, lines))
    reasons = different.outcomes["reason"].drop_nulls().unique().to_list()
    parts += [Told(f"Not judged: {reason}.") for reason in reasons]
    note = f"counts from {limits.share_points:g} points, {_beyond(limits.samples)}"
    return Section("Outcomes of MSIs", note, tuple(parts))


def _outcome(row: Row, whose: str) -> Line:
    cells = [
        text
        for side in "ab"
        for text in (
            number(row[f"count_{side}"]),
            "" if row[f"share_{side}"] is None else f"{100 * row[f'share_{side}']:.1f} %",
        )
    ]
    points = ""
    if row["share_a"] is not None and row["share_b"] is not None and row["verdict"] == "different":
        points = f"{100 * (row['share_b'] - row['share_a']):+.1f} points"
    said = {"different": points, "few": "too few to say"}.get(row["verdict"], "")
    return Line((f"{whose}{row['outcome']}", *cells, said), counts=row["verdict"] == "different")


def _of_vm(different: Difference, row: Row) -> str:
    return f"(VM {row['vm']}) " if len(different.vms) > 1 else ""


def _beyond(samples: int) -> str:
    return f"beyond chance, of {plural(samples, 'MSI')} or more"


# --- latencies


_STAGES: Final = {(begin, end): title for title, begin, end in STAGES}


def _latencies(different: Difference) -> Section:
    limits = different.limits
    rows = different.latencies.filter(
        pl.col("intid").is_null() & ((pl.col("count_a") > 0) | (pl.col("count_b") > 0))
    )
    shifted = different.latencies.filter(pl.col("verdict").is_in(["slower", "faster"]))
    of_lpis = shifted.filter(pl.col("intid").is_not_null())
    columns = ("stage", "in", "MSIs", "p50", "p99", "max", "B is")
    parts: list[Grid | Told] = []
    for title, chosen in (("all MSIs", rows), ("LPIs that differ", of_lpis)):
        lines = [line for row in chosen.iter_rows(named=True) for line in _latency(different, row)]
        if lines:
            parts.append(Grid(title, columns, tuple(lines), left=frozenset({0, 1, 6})))
    if not parts:
        parts.append(Told("No delivered MSIs in either.", "dim"))
    for row in shifted.iter_rows(named=True):
        stage = _STAGES[row["begin"], row["end"]]
        whose = "" if row["intid"] is None else f"LPI {row['intid']} {_of_vm(different, row)}".rstrip() + ", "
        aside = "" if row["counts"] else " It is the guest's time, and does not count."
        parts.append(
            Told(
                f"{whose}{stage}: {_shift(row, limits.latency_factor)}.{aside}",
                "counts" if row["counts"] else "",
            )
        )
    note = f"counts from {limits.latency_factor:g} times, {_beyond(limits.samples)}"
    return Section("Latency", note, tuple(parts))


def _latency(different: Difference, row: Row) -> Iterator[Line]:
    stage = _STAGES[row["begin"], row["end"]]
    whose = "" if row["intid"] is None else f"LPI {row['intid']} {_of_vm(different, row)}"
    said = {"few": "too few to say"}.get(row["verdict"], "")
    if row["measure"] is not None:
        said = f"{row['verdict']} ({row['measure']})"
    counts = bool(row["counts"])
    for side in "ab":
        spans = [
            duration(row[f"{name}_{side}_ns"]) if row[f"count_{side}"] else ""
            for name in ("p50", "p99", "max")
        ]
        head = whose + stage if side == "a" else ""
        yield Line(
            (head, side.upper(), number(row[f"count_{side}"]), *spans, said if side == "b" else ""), counts
        )


def _shift(row: Row, factor: float) -> str:
    """What shifted, in words: `slower, the median is 2.4 times A's`."""
    side, other = ("b", "a") if row["verdict"] == "slower" else ("a", "b")
    if row["measure"] == "tail":
        longest = duration(row[f"max_{other}_ns"])
        return (
            f"{row['verdict']} in B: {number(row[f'beyond_{side}'])} of {number(row[f'count_{side}'])} in {side.upper()} took "
            f"longer than {factor:g} times the longest of {other.upper()} ({longest})"
        )
    ours, theirs = (row[f"{row['measure']}_{one}_ns"] for one in (side, other))
    title = {"p50": "median", "p99": "99th percentile"}[row["measure"]]
    ratio = f"{ours / theirs:.3g} times that of {other.upper()}" if theirs else f"not 0 as in {other.upper()}"
    return f"{row['verdict']} in B: the {title} of {side.upper()} is {ratio}"


# --- rates


def _rates(different: Difference) -> Section:
    whole = different.rates.filter(pl.col("vm").is_null())
    columns = ("rate", "A", "per s", "B", "per s", "B is")
    parts: list[Grid | Told] = [
        Grid("", columns, tuple(_rate(row, different) for row in whole.iter_rows(named=True)))
    ]
    factor = pl.max_horizontal("per_second_a", "per_second_b")
    changed = different.rates.filter(pl.col("vm").is_not_null() & (pl.col("verdict") == "changed"))
    for key, title in (("device_id", "devices"), ("intid", "LPIs")):
        mine = changed.drop_nulls(key).sort(factor, descending=True)
        lines = tuple(_rate(row, different) for row in mine.head(_BUSIEST).iter_rows(named=True))
        if lines:
            shown = f"the busiest of the {mine.height:,} {title}" if mine.height > _BUSIEST else title
            parts.append(Grid(f"{shown} whose part of the MSIs has changed", columns, lines))
    note = f"told from {different.limits.rate_factor:g} times, and never counted"
    return Section("Rates", note, tuple(parts))


def _rate(row: Row, different: Difference) -> Line:
    name = row["what"]
    if row["opcode"] is not None:
        name = f"  {row['opcode']}"
    elif row["intid"] is not None:
        name = f"LPI {row['intid']} {_of_vm(different, row)}"
    elif row["device_id"] is not None:
        name = f"device {hexa(row['device_id'])} {_of_vm(different, row)}"
    if row["verdict"] == "unknown":
        return Line((name, "?", "", "?", "", "not recorded in both"))
    a, b = row["per_second_a"], row["per_second_b"]
    said = ""
    if row["verdict"] == "changed" and not min(a, b):
        said = f"in {'A' if a else 'B'} alone"
    elif row["verdict"] == "changed":
        said = f"{_ratio(b / a)} times A's" if b > a else f"A's / {_ratio(a / b)}"
    return Line(
        (name.rstrip(), number(row["count_a"]), _per_second(a), number(row["count_b"]), _per_second(b), said)
    )


def _ratio(factor: float) -> str:
    return f"{factor:,.0f}" if factor >= 9.95 else f"{factor:.1f}"


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 99.95 else f"{rate:.3g}"


# --- as lines


def difference_lines(sheet: Sheet, different: Difference, show: int | None = ROWS_SHOWN) -> Iterator[Text]:
    """The whole report; at most `show` rows of a table (None: all)."""
    first, *rest = verdict(different)
    yield from sheet.wrap(Text(first, "bold red" if different.differs else "bold green"))
    for sentence in rest:
        yield from sheet.wrap(sentence)
    yield Text()
    file = different.recorded.facts[0]
    yield from facts(sheet, [("A", str(file.a)), ("B", str(file.b))])
    for section in sections(different):
        yield Text()
        yield sheet.rule(section.title, section.note)
        for part in section.parts:
            yield from _part_lines(sheet, part, show)


def _part_lines(sheet: Sheet, part: Grid | Told, show: int | None) -> Iterator[Text]:
    if isinstance(part, Told):
        yield from sheet.wrap(Text(plain(part.text), _TONES.get(part.tone, "")), first=f"  {part.head}")
        return
    if part.title:
        yield Text(f"  {part.title}", "italic")
    last = len(part.columns) - 1
    columns = [
        Column(title, right=at not in part.left and at != last, give=1 if at == part.give else 0)
        for at, title in enumerate(part.columns)
    ]
    if last in part.left and last > 1:
        columns[last] = Column(part.columns[last], flow=True)
    rows = [
        [Text(plain(cell), "bold" if line.counts else "dim" if cell == SAME else "") for cell in line.cells]
        for line in part.lines
    ]
    yield from table(sheet, columns, rows, show=show, more="--limit 0 for all")


# --- as JSON


def difference_document(different: Difference) -> Document:
    """Everything that others may rely on; of the tables only what is not equal."""
    recorded = different.recorded
    entries = different.entries.filter(pl.col("verdict") != "equal").to_dicts()
    return {
        "schema": SCHEMA,
        "version": __version__,
        "differs": different.differs,
        "counted": different.counted,
        "limits": asdict(different.limits),
        "vms": [{"a": a, "b": b} for a, b in different.vms.items()],
        "at_ns": {"a": different.at_a_ns, "b": different.at_b_ns},
        "recorded": {
            "facts": [
                {"name": fact.name, "a": fact.a, "b": fact.b, "same": fact.same} for fact in recorded.facts
            ],
            "only_a": list(recorded.only_a),
            "only_b": list(recorded.only_b),
            "skipped_rules_a": list(recorded.skipped_a),
            "skipped_rules_b": list(recorded.skipped_b),
            "remarks": list(recorded.remarks),
        },
        "findings": [_kept_document(one) for one in different.findings],
        "entries": entries,
        "equal_fields": different.entries.height - len(entries),
        "outcomes": different.outcomes.to_dicts(),
        "latencies": different.latencies.to_dicts(),
        "rates": different.rates.to_dicts(),
    }


def _kept_document(one: Kept) -> Document:
    count_a, count_b = one.counts
    return {
        "code": one.code,
        "name": one.told.name,
        "mechanism": one.mechanism,
        "change": one.change.replace(" ", "_").lower(),
        "severity": str(one.severity),
        "differs": one.differs,
        "count_a": count_a,
        "count_b": count_b,
        "only_a": subject_documents(one.only("a")),
        "only_b": subject_documents(one.only("b")),
        "a": [finding_document(finding) for finding in one.a],
        "b": [finding_document(finding) for finding in one.b],
    }
