"""Findings as lines: what, to which LPI, when, why it matters, the records, and what to do next."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from rich.text import Text

from itstrace.findings import Confidence, Evidence, Finding, Kind, Severity
from itstrace.report.layout import Cell, Sheet, clean, cut, join, wrap
from itstrace.report.text import hexa, listed, plain, plural
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from itstrace.analysis import Analysis
    from itstrace.readers.base import CaptureInfo

#: How many findings of one rule are told in full; the rest get a line each.
IN_FULL: Final = 3
#: How many records of one finding are shown.
EVIDENCE_SHOWN: Final = 10
#: How many lines of a terminal one record may take.
_EVIDENCE_LINES: Final = 4
#: How many lines of a terminal a finding that is told in short may take.
_SHORT_LINES: Final = 2

STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}
KINDS: Final = {
    Kind.GUEST: "the guest's doing",
    Kind.HOST: "KVM's doing",
    Kind.LIFE: "life of an LPI",
    Kind.EVIDENCE: "the capture",
}
_SURENESS: Final = {Confidence.CERTAIN: "", Confidence.LIKELY: ", likely", Confidence.UNPROVEN: ", unproven"}

_LABEL: Final = 6


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
        """`LPI 8193, vCPUs 0 and 1`: no more than a headline needs."""
        parts = []
        if finding.intid is not None:
            parts.append(f"LPI {finding.intid}")
        elif finding.device_id is not None:
            event = "" if finding.event_id is None else f" event {finding.event_id}"
            parts.append(f"device {hexa(finding.device_id)}{event}")
        if finding.vcpus:
            parts.append(_vcpus(finding))
        if self.many_vms and finding.vm is not None:
            parts.append(f"VM {finding.vm}")
        return ", ".join(parts)

    def subject(self, finding: Finding) -> str:
        """`LPI 8193 (device 0x10, event 1), vCPUs 1 and 0, VM 1`."""
        event = [f"device {hexa(finding.device_id)}"] if finding.device_id is not None else []
        event += [f"event {finding.event_id}"] if finding.event_id is not None else []
        parts = []
        if finding.intid is not None:
            parts.append(f"LPI {finding.intid} ({', '.join(event)})" if event else f"LPI {finding.intid}")
        else:
            parts += event
        if finding.vcpus:
            parts.append(_vcpus(finding))
        if self.many_vms and finding.vm is not None:
            parts.append(f"VM {finding.vm}")
        if self.many_itss and finding.its is not None:
            parts.append(f"ITS {finding.its}")
        return ", ".join(parts)


def _vcpus(finding: Finding) -> str:
    return f"{'vCPU' if len(finding.vcpus) == 1 else 'vCPUs'} {listed([str(vcpu) for vcpu in finding.vcpus])}"


def when(finding: Finding) -> str:
    """`at 1350.325229`, `5 times from 1350.325229 to 1351.317204 (992 ms)`."""
    times = f"{finding.count:,} times" if finding.count > 1 else ""
    if finding.time_ns is None:
        return times
    if finding.end_ns is None or finding.end_ns == finding.time_ns:
        return f"{times + ', first ' if times else ''}at {seconds(finding.time_ns)}"
    took = duration(finding.end_ns - finding.time_ns)
    span = f"from {seconds(finding.time_ns)} to {seconds(finding.end_ns)} ({took})"
    return f"{times} {span}".strip()


def findings(
    sheet: Sheet, found: Sequence[Finding], naming: Naming, why: Callable[[str], str]
) -> Iterator[Text]:
    """All findings in order; of one rule and severity only the first few in full, the rest in short."""
    groups = Counter((finding.code, finding.severity) for finding in found)
    told: Counter[tuple[str, Severity]] = Counter()
    explained: dict[str, str] = {}  # code -> advice
    for finding in found:
        key = (finding.code, finding.severity)
        told[key] += 1
        if told[key] <= IN_FULL or groups[key] == IN_FULL + 1:
            yield from in_full(sheet, finding, naming, why(finding.code), before=explained.get(finding.code))
            explained.setdefault(finding.code, finding.advice)
        elif told[key] == IN_FULL + 1:
            rest = [other for other in found if (other.code, other.severity) == key][IN_FULL:]
            yield from _in_short(sheet, rest)


def in_full(
    sheet: Sheet, finding: Finding, naming: Naming, why: str, before: str | None = None
) -> Iterator[Text]:
    """One finding, whole. `before`: the advice of a finding of the same rule that stands above."""
    yield from _head(sheet, finding, naming)
    yield from sheet.wrap(finding.message, first="  ")
    about = ", ".join(part for part in (naming.subject(finding), when(finding)) if part)
    if about:
        yield from sheet.wrap(Text(about, "bold"), first="  ")
    same = f"as for the {finding.code} above"
    if before != finding.advice:
        yield from _labelled(sheet, "why", same if before is not None else why)
    for at, line in enumerate(evidence(sheet, finding.evidence)):
        if at == 0:
            yield join(Text("  " + "seen".ljust(_LABEL), "dim"), line)
        else:
            yield join(" " * (2 + _LABEL), line)
    if before == finding.advice:
        yield from sheet.wrap(Text(f"why it matters and what to do next: {same}", "dim"), first="  ")
    else:
        yield from _labelled(sheet, "next", finding.advice)
    yield Text()


def _head(sheet: Sheet, finding: Finding, naming: Naming) -> Iterator[Text]:
    badge = Text(finding.severity.upper(), STYLES[finding.severity])
    title = join(badge, "  ", Text(plain(f"{finding.code} {finding.name}"), "bold"))
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


def _labelled(sheet: Sheet, label: str, text: Cell) -> Iterator[Text]:
    if not str(text):
        return
    head = "  " + label.ljust(_LABEL)
    for at, line in enumerate(sheet.wrap(text, first=head)):
        if at == 0:
            line.stylize("dim", 0, len(head))
        yield line


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
        parts = list(wrap(clean(item.text), room, first="    "))
        if len(parts) > _EVIDENCE_LINES - 1:
            parts = [
                *parts[: _EVIDENCE_LINES - 2],
                cut(join(parts[_EVIDENCE_LINES - 2], " " * room), room, sheet.dots),
            ]
        yield from parts
    if len(items) > EVIDENCE_SHOWN:
        yield Text(f"and {plural(len(items) - EVIDENCE_SHOWN, 'more record')}; --json has all", "dim italic")


def _in_short(sheet: Sheet, rest: Sequence[Finding]) -> Iterator[Text]:
    first = rest[0]
    badge = Text(first.severity.upper(), STYLES[first.severity])
    yield join(badge, "  ", Text(f"{first.code} {first.name}", "bold"), f": {len(rest):,} more, as above")
    width = max(len(seconds(finding.time_ns)) for finding in rest)
    for finding in rest:
        head = f"  {seconds(finding.time_ns):>{width}}  "
        text = finding.message + _SURENESS[finding.confidence]
        if sheet.width is None:
            yield clean(head + text)
            continue
        lines = list(sheet.wrap(text, first=head))
        if len(lines) > _SHORT_LINES:
            last = cut(join(lines[_SHORT_LINES - 1], " " * sheet.prose), sheet.prose, sheet.dots)
            lines = [*lines[: _SHORT_LINES - 1], last]
        yield from lines
    yield Text()
