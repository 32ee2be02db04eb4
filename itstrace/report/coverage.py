"""What was observed, from which events; what was not, which rules that stops, and what to record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from itstrace.observe.catalogue import OBSERVATIONS
from itstrace.observe.matching import How
from itstrace.report.figures import Seen, feeding_probes, sources, to_record
from itstrace.report.layout import Cell, Sheet, facts, join
from itstrace.report.text import listed, plain, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from itstrace.findings import SkippedRule
    from itstrace.rules import Plugin


def coverage(
    sheet: Sheet,
    seen: Mapping[str, Seen],
    skipped: Sequence[SkippedRule],
    fed_by: Mapping[str, str],
    found_by: Mapping[str, How],
    *,
    unit: str = "row",
    host: str = "KVM",
    plugins: Sequence[Plugin] = (),
) -> Iterator[Text]:
    """Each observation and what feeds it, then what is missing.

    `fed_by`: the capture's event for each probe; `found_by`: by what it was found; `host`: whose they are, KVM's or
    QEMU's; `plugins`: packages that bring rules.
    """
    what = {entry.name: entry.what for entry in OBSERVATIONS}
    rows: list[tuple[str, Cell]] = []
    for name, found in seen.items():
        if found.rows is None:
            rows.append((name, join(Text("not recorded", "yellow"), f": {what[name]}")))
        else:
            words = sources(feeding_probes(name), fed_by, found_by)
            source = f" from {words}" if words else ""
            part = "" if found.whole else "; not all of it recorded"
            rows.append((name, join(plural(found.rows, unit), Text(source, "dim"), Text(part, "yellow"))))
    # What fills in details of several observations is worth a line where somebody may doubt that it was found.
    told = {probe for name in seen for probe in feeding_probes(name)}
    besides = [probe for probe, how in found_by.items() if how is not How.NAME and probe not in told]
    if besides:
        rows.append(("(besides)", Text(f"details from {sources(besides, fed_by, found_by)}", "dim")))
    yield from facts(sheet, rows)
    lacking = [rule for rule in skipped if rule.missing]
    yield from _lacking(sheet, lacking, fed_by, host)
    broken = [(rule.code, rule.why) for rule in skipped if not rule.missing]
    broken += [(f"{plugin.package} ({plugin.name})", plugin.problem) for plugin in plugins if plugin.problem]
    if broken:
        yield Text()
        yield Text("  Rules of other packages that failed, and are left out:", "yellow")
    for name, why in broken:
        yield from sheet.wrap(join(Text(plain(name), "bold"), f": {why}"), first="  - ", rest="    ")


def _lacking(
    sheet: Sheet, skipped: Sequence[SkippedRule], fed_by: Mapping[str, str], host: str
) -> Iterator[Text]:
    if not skipped:
        return
    yield Text()
    yield Text(f"  {plural(len(skipped), 'rule')} could not run. What is missing:", "yellow")
    for name in dict.fromkeys(name for rule in skipped for name in rule.missing):
        probes = [f"{event} ({kernel})" for event, kernel, _ in to_record(name, fed_by, host)]
        record = f": record {listed(probes)}" if probes else f": no log of {host} tells it"
        yield from sheet.wrap(join(Text(name, "bold"), record), first="  - ", rest="    ")
        codes = [rule.code for rule in skipped if name in rule.missing]
        yield from sheet.wrap(Text(f"for {listed(codes)}", "dim"), first="    ")
