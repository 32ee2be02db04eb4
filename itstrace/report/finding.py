"""Findings as lines: what, to what, when, how bad, why it matters, the records, what is suspected and known, what to do.

A cause is told in full, and what follows from it in short right under it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from rich.text import Text

from itstrace.findings import Confidence, Evidence, Finding, Kind, KnownBug, Severity, Subject
from itstrace.report.layout import Cell, Sheet, clean, cut, join, wrap
from itstrace.report.tales import Tale, names, tales
from itstrace.report.text import hexa, listed, plain, plural
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from itstrace.analysis import Analysis
    from itstrace.baseline import Compared
    from itstrace.readers.base import CaptureInfo

#: How many causes of one rule are told in full; the rest get a line each.
IN_FULL: Final = 3
#: How many findings that follow from one cause are told; the rest are counted.
EFFECTS_SHOWN: Final = 8
#: How many records of one finding are shown.
EVIDENCE_SHOWN: Final = 10
#: How many things that a baseline lacks are named.
_ADDED_SHOWN: Final = 6
#: How many lines of a terminal one record may take.
_EVIDENCE_LINES: Final = 4
#: How many lines of a terminal a finding that is told in short may take.
_SHORT_LINES: Final = 2
#: How many one that follows from another may take.
_EFFECT_LINES: Final = 3

STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}
KINDS: Final = {
    Kind.GUEST: "the guest's doing",
    Kind.HOST: "KVM's doing",
    Kind.LIFE: "life of an LPI",
    Kind.EVIDENCE: "the capture",
}
#: What a finding says whose rule has no words for it, as those of other packages may.
_CLAIMS: Final = {
    Kind.HOST: "KVM departs from the guest's commands",
    Kind.LIFE: "interrupts went astray",
    Kind.GUEST: "the guest's commands are wrong",
    Kind.EVIDENCE: "the capture cannot tell",
}
_SURENESS: Final = {Confidence.CERTAIN: "", Confidence.LIKELY: ", likely", Confidence.UNPROVEN: ", unproven"}

_LABEL: Final = 9


def claim_of(finding: Finding, model: str) -> str:
    """What a finding says, as a clause with which a verdict begins; `model`: "KVM" or "QEMU"."""
    return finding.claim or f"{_CLAIMS[finding.kind].replace('KVM', model)}, {finding.name}"


def host(info: CaptureInfo) -> str:
    """Whose ITS a capture shows, as the catalogue calls it: "KVM" or "QEMU"."""
    return "QEMU" if info.model == "qemu" else "KVM"


class Naming:
    """How much must be said to name a thing: the VM and the ITS only where there are several."""

    def __init__(self, analysis: Analysis) -> None:
        itss = analysis.observations.itss
        self.many_vms = analysis.observations.vms.height > 1
        self.host = host(analysis.info)
        self.many_itss = itss.height > itss["vm"].n_unique()

    def brief(self, finding: Finding) -> str:
        """`LPI 8193 and 2 others, vCPUs 0 and 1`: no more than a headline needs."""
        parts = []
        if finding.intid is not None:
            parts.append(f"LPI {finding.intid}")
        elif finding.device_id is not None:
            event = "" if finding.event_id is None else f" event {finding.event_id}"
            parts.append(f"device {hexa(finding.device_id)}{event}")
        if parts:
            parts[0] += others(finding)
        if finding.vcpus:
            parts.append(vcpus(finding))
        if self.many_vms and finding.vm is not None:
            parts.append(f"VM {finding.vm}")
        return ", ".join(parts)

    def subject(self, finding: Finding) -> str:
        """`LPI 8193 (device 0x10, event 1) and 2 others, vCPUs 1 and 0, VM 1`."""
        thing = named(finding)
        parts = [thing + others(finding)] if thing else []
        if finding.vcpus:
            parts.append(vcpus(finding))
        if self.many_vms and finding.vm is not None:
            parts.append(f"VM {finding.vm}")
        if self.many_itss and finding.its is not None:
            parts.append(f"ITS {finding.its}")
        return ", ".join(parts)


def named(thing: Finding | Subject) -> str:
    """`LPI 8193 (device 0x10, event 1)`, `device 0x10, event 1`; empty for nothing in particular."""
    event = [f"device {hexa(thing.device_id)}"] if thing.device_id is not None else []
    event += [f"event {thing.event_id}"] if thing.event_id is not None else []
    if thing.intid is None:
        return ", ".join(event)
    return f"LPI {thing.intid} ({', '.join(event)})" if event else f"LPI {thing.intid}"


def others(finding: Finding) -> str:
    """` and 2 others`: how much more a finding hit than the first."""
    more = len(finding.subjects) - 1
    return f" and {plural(more, 'other')}" if more > 0 else ""


def vcpus(finding: Finding) -> str:
    """`vCPU 0`, `vCPUs 0 and 1`."""
    return f"{'vCPU' if len(finding.vcpus) == 1 else 'vCPUs'} {listed([str(vcpu) for vcpu in finding.vcpus])}"


def when(finding: Finding) -> str:
    """`at 1350.325229`, `5 times from 1350.325229 to 1351.317204 (992 ms)`."""
    often = f"{finding.count:,} times" if finding.count > 1 else ""
    if finding.time_ns is None:
        return often
    if finding.end_ns is None or finding.end_ns == finding.time_ns:
        return f"{often + ', first ' if often else ''}at {seconds(finding.time_ns)}"
    took = duration(finding.end_ns - finding.time_ns)
    span = f"from {seconds(finding.time_ns)} to {seconds(finding.end_ns)} ({took})"
    return f"{often} {span}".strip()


@dataclass(slots=True)
class Teller:
    """Tells findings, each thing once: what a rule says of all its findings stands at the first of them."""

    sheet: Sheet
    naming: Naming
    why: Callable[[str], str]
    against: Compared | None = None
    #: the first finding of each rule that was told in full
    _told: dict[str, Finding] = field(default_factory=dict)

    def findings(self, found: Sequence[Finding]) -> Iterator[Text]:
        """All findings; of one rule and severity only the first few causes in full, the rest in short."""
        told: Counter[tuple[str, Severity]] = Counter()
        all_tales = tales(found)
        groups = Counter(_group(tale) for tale in all_tales)
        for tale in all_tales:
            group = _group(tale)
            told[group] += 1
            if told[group] <= IN_FULL or groups[group] == IN_FULL + 1:
                yield from self.tale(tale, found)
            elif told[group] == IN_FULL + 1:
                yield from self._in_short([one for one in all_tales if _group(one) == group][IN_FULL:])

    def tale(self, tale: Tale, shown: Sequence[Finding] = ()) -> Iterator[Text]:
        """One cause, whole, and what follows from it."""
        finding, sheet = tale.cause, self.sheet
        before = self._told.get(finding.code)
        self._told.setdefault(finding.code, finding)
        yield from _head(sheet, finding, self.naming)
        yield from sheet.wrap(finding.message, first="  ")
        about = ", ".join(part for part in (self.naming.subject(finding), when(finding)) if part)
        if about:
            yield from sheet.wrap(Text(about, "bold"), first="  ")
        yield from self._labelled("worst", finding.worst)
        if before is None or before.guest_saw != finding.guest_saw:
            yield from self._labelled("guest", finding.guest_saw)
        if before is None:
            yield from self._labelled("why", self.why(finding.code))
        if before is None or before.suspect != finding.suspect:
            yield from self._labelled("suspect", ", ".join(finding.suspect))
        for at, bug in enumerate(finding.known_bugs):
            yield from self._labelled("known" if at == 0 else "", known_bug(bug))
        for at, line in enumerate(evidence(sheet, finding.evidence)):
            yield join(Text(_label("seen" if at == 0 else ""), "dim"), line)
        yield from self._labelled("doubt", finding.doubt)
        yield from self._labelled("record", finding.capture_next)
        yield from self._labelled("new", self._newness(finding))
        if before is None or before.advice != finding.advice:
            yield from self._labelled("next", finding.advice)
        yield from self._labelled("cause", self._causes(tale, shown))
        yield from self._effects(tale)
        if before is not None:
            both = "" if before.advice != finding.advice else " and what to do next"
            yield from sheet.wrap(
                Text(f"why it matters{both}: as for {before.id or before.code} above", "dim"), first="  "
            )
        yield Text()

    def _effects(self, tale: Tale) -> Iterator[Text]:
        """What follows from a cause, in short."""
        if not tale.effects and not tale.elsewhere:
            return
        yield Text("  leads to", "dim")
        for effect in tale.effects[:EFFECTS_SHOWN]:
            yield from self._effect(effect, tale.cause)
        rest = tale.effects[EFFECTS_SHOWN:]
        if rest:
            codes = Counter(effect.code for effect in rest)
            counted = listed([f"{code} ({count})" if count > 1 else code for code, count in codes.items()])
            yield from self.sheet.wrap(
                Text(f"and {plural(len(rest), 'more finding')}, {counted}; --json has all", "dim italic"),
                first="    ",
            )
        if tale.elsewhere:
            yield from self.sheet.wrap(
                f"{listed(names(tale.elsewhere))}, told with another cause", first="    "
            )

    def _effect(self, effect: Finding, cause: Finding) -> Iterator[Text]:
        badge = Text(effect.severity.upper(), STYLES[effect.severity])
        about = self.naming.brief(effect)
        title = Text(plain(f"{effect.id or effect.code} {effect.name}"), "bold")
        rest = f"{f' on {about}' if about else ''}{', ' if when(effect) else ''}{_first_at(effect)}{_SURENESS[effect.confidence]}"
        through = [name for name in effect.caused_by if name != cause.id]
        if cause.id not in effect.caused_by:
            rest += f", because of {listed(through[:1])}"
        head = join(badge, "  ", title, rest)
        if self.sheet.width is None:
            yield join("    ", head)
        else:
            yield from self.sheet.wrap(head, first="    ", rest="      ")
        yield from _at_most(self.sheet, effect.message, _EFFECT_LINES, first="      ")

    def _causes(self, tale: Tale, shown: Iterable[Finding]) -> str:
        """The causes of a finding that are not shown, or stand elsewhere."""
        here = set(names(shown))
        absent = [name for name in tale.cause.caused_by if name not in here]
        ring = [name for name in tale.cause.caused_by if name in here]
        known = [name for name in absent if self.against is not None and name in self.against.known]
        parts = [f"{listed(known)}, as in the baseline"] if known else []
        left_out = [name for name in absent if name not in known]
        parts += [f"{listed(left_out)}, left out here"] if left_out else []
        parts += [f"{listed(ring)}, and the other way round"] if ring else []
        return "; ".join(parts)

    def _newness(self, finding: Finding) -> str:
        """What the baseline lacks of a finding that it has in part."""
        if self.against is None:
            return ""
        added = self.against.added.get(finding.id, ())
        if added:
            things = [named(each) or "the ITS" for each in added[:_ADDED_SHOWN]]
            more = [plural(len(added) - _ADDED_SHOWN, "other")] if len(added) > _ADDED_SHOWN else []
            return f"{listed([*things, *more])}; the baseline has the rest"
        milder = self.against.milder.get(finding.id)
        return f"the baseline has it as a {milder}" if milder is not None else ""

    def _in_short(self, rest: Sequence[Tale]) -> Iterator[Text]:
        first, sheet = rest[0].cause, self.sheet
        badge = Text(first.severity.upper(), STYLES[first.severity])
        yield join(badge, "  ", Text(f"{first.code} {first.name}", "bold"), f": {len(rest):,} more, as above")
        width = max(len(seconds(tale.cause.time_ns)) for tale in rest)
        for tale in rest:
            finding = tale.cause
            ends = f"{_SURENESS[finding.confidence]}{_leading(tale)}"
            head = f"  {seconds(finding.time_ns):>{width}}  "
            yield from _at_most(sheet, f"{finding.message}{ends}", _SHORT_LINES, first=head)
            for effect in tale.effects[:EFFECTS_SHOWN]:
                said = f"{effect.id} {effect.name}: {effect.message}{_SURENESS[effect.confidence]}"
                yield from _at_most(sheet, said, _SHORT_LINES, first=" " * len(head) + "- ")
        yield Text()

    def _labelled(self, label: str, text: Cell) -> Iterator[Text]:
        if not str(text):
            return
        head = _label(label)
        for at, line in enumerate(self.sheet.wrap(text, first=head, rest=" " * len(head))):
            if at == 0:
                line.stylize("dim", 0, len(head))
            yield line


def _group(tale: Tale) -> tuple[str, Severity]:
    return tale.cause.code, tale.cause.severity


def _label(label: str) -> str:
    return "  " + label.ljust(_LABEL)


def _first_at(finding: Finding) -> str:
    """`at 154.938573`, `3 times, first at 154.938573`."""
    at = "" if finding.time_ns is None else f"at {seconds(finding.time_ns)}"
    if finding.count == 1:
        return at
    return f"{times(finding.count)}{f', first {at}' if at else ''}"


def _leading(tale: Tale) -> str:
    follow = names((*tale.effects, *tale.elsewhere))
    return (
        f" (leads to {listed(follow[:EFFECTS_SHOWN])}{' and more' if len(follow) > EFFECTS_SHOWN else ''})"
        if follow
        else ""
    )


def _at_most(sheet: Sheet, text: str, lines: int, *, first: str) -> Iterator[Text]:
    """Running text in so many lines of a terminal; whole, and in one line, in a pipe."""
    if sheet.width is None:
        yield clean(first + text.rstrip())
        return
    parts = list(islice(sheet.wrap(text, first=first, rest=" " * len(first)), lines + 1))
    if len(parts) > lines:
        parts = [*parts[: lines - 1], _broken_off(parts[lines - 1], sheet.prose, sheet.dots)]
    yield from parts


def _broken_off(line: Text, width: int, dots: str) -> Text:
    """A line after which there would be more."""
    more = join(line, " ", dots)
    return more if more.cell_len <= width else cut(join(line, " " * width), width, dots)


def known_bug(bug: KnownBug) -> str:
    """A known bug in one line: what, where it was fixed, where that is from."""
    return f"{bug.title.rstrip('.')}; {fixed_words(bug)} ({bug.source})"


def fixed_words(bug: KnownBug) -> str:
    """`fixed: 6.12.113 and 7.3`, `not fixed yet; ...`, `by design`."""
    if bug.fixed.startswith("by design"):
        return bug.fixed
    return (
        f"not fixed yet{bug.fixed.removeprefix('nowhere yet')}"
        if bug.fixed.startswith("nowhere yet")
        else f"fixed: {bug.fixed}"
    )


def _head(sheet: Sheet, finding: Finding, naming: Naming) -> Iterator[Text]:
    badge = Text(finding.severity.upper(), STYLES[finding.severity])
    title = join(badge, "  ", Text(plain(f"{finding.id or finding.code} {finding.name}"), "bold"))
    aside = KINDS[finding.kind].replace("KVM", naming.host) + _SURENESS[finding.confidence]
    if sheet.width is None:
        yield join(title, f"  ({aside})")
        return
    room = sheet.prose - title.cell_len
    if len(aside) + 2 <= room:
        yield join(title, Text(aside.rjust(room), "dim"))
        return
    yield cut(title, sheet.prose, sheet.dots)
    yield Text(aside.rjust(sheet.prose), "dim")


def evidence(sheet: Sheet, items: Sequence[Evidence]) -> Iterator[Text]:
    """Records as the trace prints them: time, CPU, event, text; wrapped on a terminal, whole in a pipe."""
    room = None if sheet.width is None else sheet.width - 2 - _LABEL
    for item in items[:EVIDENCE_SHOWN]:
        head = join(seconds(item.time_ns, 9), Text(f" [{item.cpu:03d}] ", "dim"), item.event)
        line = join(head, "  ", item.text) if item.text else head
        if room is None or line.cell_len <= room:
            yield line
            continue
        yield cut(head, room, sheet.dots)
        parts = list(islice(wrap(clean(item.text), room, first="    "), _EVIDENCE_LINES))
        if len(parts) == _EVIDENCE_LINES:
            parts = [*parts[:-2], _broken_off(parts[-2], room, sheet.dots)]
        yield from parts
    if len(items) > EVIDENCE_SHOWN:
        yield Text(f"and {plural(len(items) - EVIDENCE_SHOWN, 'more record')}; --json has all", "dim italic")
