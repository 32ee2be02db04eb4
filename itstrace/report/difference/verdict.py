"""What two captures differ in, at a glance: whether they show one guest, what is new in B, and what could explain it."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.difference import Change
from itstrace.findings import Kind, Severity
from itstrace.report.difference.findings import about, meaning, worth_telling
from itstrace.report.difference.parts import Told
from itstrace.report.difference.tables import entries
from itstrace.report.difference.traffic import share, shifted_rate, stage_name
from itstrace.report.finding import claim_of
from itstrace.report.text import listed, number, plural
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.difference import Difference, Fact, Kept
    from itstrace.findings import Finding

#: How many of a kind are named; the rest are counted.
_NAMED: Final = 4
#: In this order what is new is told. What a capture cannot tell never counts.
_KINDS: Final = (Kind.HOST, Kind.LIFE, Kind.GUEST)
_FRESH: Final = {Change.NEW, Change.WORSE}


def verdict(different: Difference) -> tuple[Told, ...]:
    """What differs and counts, sentence by sentence, what matters most first."""
    guests = (Told(_guests(different), "warning"),) if different.guests.different else ()
    doubt = _doubt(different)
    doubts = (Told(doubt, "warning"),) if doubt else ()
    fresh = _of(different, _FRESH)
    if not different.differs:
        said = [Told("No difference was found.", "good"), Told(_compared(different))]
    elif not fresh:
        said = [Told(_nothing_new(different), "counts")]
    else:
        worst = min((one.severity for one in fresh), key=lambda severity: severity.rank)
        chosen = [one for one in fresh if one.severity is worst]
        said = [Told(text, str(worst)) for text in _claims(different, chosen)]
    return (*guests, *said, *doubts)


def _doubt(different: Difference) -> str:
    """What keeps the captures from being compared in whole, if anything does."""
    recorded, lost = different.recorded, _fact(different, "lost records")
    reasons = [
        f"{plural(len(codes), 'rule')} could not run in {side}"
        for side, codes in (("A", recorded.skipped_a), ("B", recorded.skipped_b))
        if codes
    ]
    reasons += [f"{side} lost records" for side, value in (("A", lost.a), ("B", lost.b)) if value]
    return f"Not all of it can be compared: {listed(reasons)}." if reasons else ""


def _nothing_new(different: Difference) -> str:
    gone = [f"{one.told.name} ({one.code})" for one in _of(different, {Change.GONE, Change.MILDER})]
    if not gone:
        return f"No finding is new in B, and none is gone. What differs: {_counted(different)}."
    more = [plural(len(gone) - _NAMED, "other")] if len(gone) > _NAMED else []
    return f"No finding is new in B. Gone or milder in B: {listed([*gone[:_NAMED], *more])}."


def _counted(different: Difference) -> str:
    """What counts besides findings, in numbers alone."""
    counts = (
        (len(entries(different)), "table entry", "table entries"),
        (different.counted["outcomes"], "share of outcomes", "shares of outcomes"),
        (different.counted["latencies"], "latency", "latencies"),
    )
    return listed([plural(*each) for each in counts if each[0]])


def _of(different: Difference, changes: set[Change]) -> list[Kept]:
    return [one for one in different.findings if one.differs and one.change in changes]


def _claims(different: Difference, chosen: Sequence[Kept]) -> Iterator[str]:
    """A sentence for each kind of what is new."""
    for kind in _KINDS:
        mine = [(one, effects) for one, effects in _causes(chosen) if one.told.kind is kind]
        if not mine:
            continue
        new = "Worse" if all(one.change is Change.WORSE for one, _ in mine) else "New"
        first, effects = mine[0][0].told, mine[0][1]
        subject = about(first, different)
        said = f"{claim_of(first, _model(different))} ({first.code}){f': {subject}' if subject else ''}"
        said += f"; it {_leads(effects)}" if effects else ""
        rest = list(
            dict.fromkeys(f"{one.told.name} ({one.code})" for one, _ in mine[1:] if one.code != first.code)
        )
        names = [said, *rest[: _NAMED - 1], *(["others"] if len(rest) >= _NAMED else [])]
        yield f"{new} in B: {'; '.join(names)}."


def _model(different: Difference) -> str:
    fact = _fact(different, "replayed as")
    return "QEMU" if fact.b == "qemu" else "KVM"


def _guests(different: Difference) -> str:
    """How many devices, or at least events, they do not have in common."""
    devices, events = different.guests.devices, different.guests.events
    apart = devices.only_a or devices.only_b
    mine, what = (devices, "device") if apart else (events, "event")
    said = f"{plural(mine.only_a, what)} only in A, {mine.only_b or 'none'} only in B, {mine.both or 'none'} in both"
    said = said if apart else f"of the same devices, {said}"
    return f"A and B show different guests: {said}."


def _why_different(different: Difference) -> tuple[str, ...]:
    events = different.guests.events
    apart = events.only_a + events.only_b
    of = f"of the {apart + events.both:,} events (a DeviceID and an EventID) that they map"
    said = f"{of}, {apart:,} are mapped in only one of them"
    return (f"{said}: most of what differs may come from that",)


def _compared(different: Difference) -> str:
    equal = int((different.entries["verdict"] == "equal").sum())
    both = sum(one.change is Change.BOTH for one in different.findings)
    return (
        f"{plural(equal, 'field of table entries', 'fields of table entries')} and {plural(both, 'finding')} are the same in "
        "both; outcomes and latencies are within the limits."
    )


# --- the rest of it, in short


def overview(different: Difference) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What is new, gone and otherwise different, what could explain it, and what was not compared: labels and lines."""
    by_change = (
        ("new in B", _of(different, {Change.NEW})),
        ("worse in B", _of(different, {Change.WORSE})),
        ("milder in B", _of(different, {Change.MILDER})),
        ("gone in B", _of(different, {Change.GONE})),
        ("B alone can tell", _untold(different, Change.UNTOLD_A)),
        ("A alone can tell", _untold(different, Change.UNTOLD_B)),
    )
    rows = [("not compared", tuple(shortened(remark) for remark in different.recorded.remarks))]
    rows += [("guests", _why_different(different))] if different.guests.different else []
    rows += [(label, _listed(different, kept)) for label, kept in by_change]
    differing = also(different)
    rows.append(("also different", (differing,) if differing else ()))
    rows.append(("may explain it", tuple(_clues(different)) if different.differs else ()))
    return tuple((label, lines) for label, lines in rows if lines)


def _untold(different: Difference, change: Change) -> list[Kept]:
    return [one for one in different.findings if one.change is change and worth_telling(one)]


def _listed(different: Difference, kept: Sequence[Kept]) -> tuple[str, ...]:
    """A line for each of the first few causes, with what follows from it, and how many more there are."""
    causes = _causes(kept)
    codes = Counter(one.code for one in different.findings)
    lines = [
        _brief(different, cause.told, effects, cause.mechanism if codes[cause.code] > 1 else "")
        for cause, effects in causes[:_NAMED]
    ]
    rest = list(dict.fromkeys(f"{cause.code} {cause.told.name}" for cause, _ in causes[_NAMED:]))
    return (*lines, f"and {listed(rest)}") if rest else tuple(lines)


def _causes(kept: Sequence[Kept]) -> list[tuple[Kept, list[Kept]]]:
    """Those that follow from none of the others, each with those that follow from it: what stands first is the cause."""
    by_id = {finding.id: one for one in kept for finding in (one.b or one.a) if finding.id}
    led: dict[int, list[Kept]] = {}
    followers = set()
    for one in kept:
        for name in one.told.caused_by:
            cause = by_id.get(name)
            if cause is not None and cause is not one and id(cause) not in followers:
                led.setdefault(id(cause), []).append(one)
                followers.add(id(one))
                break
    return [(one, led.get(id(one), [])) for one in kept if id(one) not in followers]


def _brief(different: Difference, finding: Finding, effects: Sequence[Kept], mechanism: str) -> str:
    """One cause in a line; `mechanism` tells it from others of its rule, in this capture and in the other."""
    said = meaning(finding).rstrip(".")
    if said[1:2].islower() or said[1:2] == " ":  # a name in capitals stays one
        said = said[0].lower() + said[1:]
    often = [times(finding.count)] if finding.count > 1 else []
    often += (
        [f"{'first ' if often else ''}at {seconds(finding.time_ns)}"] if finding.time_ns is not None else []
    )
    head = f"{str(finding.severity).upper()} {finding.code} {finding.name}"
    parts = [said, mechanism, about(finding, different), ", ".join(often), _leads(effects)]
    return f"{head}: {'; '.join(filter(None, parts))}"


def _leads(effects: Sequence[Kept]) -> str:
    names = list(dict.fromkeys(f"{one.code} {one.told.name}" for one in effects))
    return f"leads to {listed(names)}" if names else ""


def also(different: Difference) -> str:
    """What counts besides findings: `18 table entries; coalesced MSIs 0.0 % in A, 19.4 % in B`."""
    words = []
    count = len(entries(different))
    if count:
        whose = " (of different guests)" if different.guests.different else ""
        words.append(plural(count, "table entry", "table entries") + whose)
    apart = different.outcomes.filter(pl.col("verdict") == "different")
    words += _few(
        [
            f"{row['outcome']} MSIs {share(row, 'a')} in A, {share(row, 'b')} in B"
            for row in apart.filter(pl.col("intid").is_null()).iter_rows(named=True)
        ],
        apart["intid"].drop_nulls().n_unique(),
        "outcomes",
    )
    shifted = different.latencies.filter(pl.col("counts"))
    lpis = shifted["intid"].drop_nulls().n_unique()
    words += _few(
        [
            f"{stage_name(row)} {row['verdict']} in B (p50 {duration(row['p50_a_ns'])} in A, {duration(row['p50_b_ns'])} in B; "
            f"p99 {duration(row['p99_a_ns'])}, {duration(row['p99_b_ns'])})"
            for row in shifted.filter(pl.col("intid").is_null()).iter_rows(named=True)
        ],
        lpis,
        "latencies",
    )
    return "; ".join(words)


def _few(whole: list[str], lpis: int, what: str) -> list[str]:
    """What is said of all MSIs, and how many LPIs differ by themselves."""
    return (
        [*whole, f"{what} of {plural(lpis, 'LPI')} by {'itself' if lpis == 1 else 'themselves'}"]
        if lpis
        else whole
    )


def _clues(different: Difference) -> Iterator[str]:
    """What is not the same besides, and is no difference of its own."""
    for name in ("kernel", "architecture", "CPUs", "vCPUs", "VMs", "ITSs"):
        fact = _fact(different, name)
        if not fact.same and fact.a is not None and fact.b is not None:
            yield f"{name}: {fact.a} in A, {fact.b} in B"
    for change, side in ((Change.NEW, "B"), (Change.GONE, "A")):
        notes = [
            one
            for one in different.findings
            if one.change is change and one.severity is Severity.NOTE and one.told.kind is not Kind.EVIDENCE
        ]
        if notes:
            shown = [f"{one.code} {one.told.name} ({one.mechanism or 'a note'})" for one in notes[:_NAMED]]
            more = [plural(len(notes) - _NAMED, "other")] if len(notes) > _NAMED else []
            yield f"noted only in {side}: {listed([*shown, *more])}"
    opcodes = different.rates.filter(pl.col("opcode").is_not_null())
    for side, other in (("a", "b"), ("b", "a")):
        only = opcodes.filter((pl.col(f"count_{side}") > 0) & (pl.col(f"count_{other}") == 0))
        if only.height:
            names = [
                f"{opcode} ({number(count)})"
                for opcode, count in only.select("opcode", f"count_{side}").iter_rows()
            ]
            yield f"commands only in {side.upper()}: {', '.join(names)}"
    whole = different.rates.filter(
        pl.col("vm").is_null() & pl.col("opcode").is_null() & (pl.col("verdict") == "changed")
    )
    said = [
        f"{row['what']} {shifted_rate(row['per_second_a'], row['per_second_b'])}"
        for row in whole.iter_rows(named=True)
        if row["what"] != "deliveries"
    ]
    if said:
        yield f"per second in B: {', '.join(said)}"


def _fact(different: Difference, name: str) -> Fact:
    return next(fact for fact in different.recorded.facts if fact.name == name)


def shortened(remark: str) -> str:
    """A remark without a long list of names: these stand under Recorded."""
    head, colon, rest = remark.rpartition(": ")
    names = rest.rstrip(".").split(", ")
    if colon and len(names) > 2 * _NAMED:
        return f"{head}: {', '.join(names[: 2 * _NAMED])} and {len(names) - 2 * _NAMED} others."
    return remark


def names(different: Difference) -> tuple[str, str]:
    """The names of both files."""
    file = different.recorded.facts[0]
    return PurePath(str(file.a)).name, PurePath(str(file.b)).name
