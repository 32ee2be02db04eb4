"""Events that look as if they told of interrupts, and that feed no probe: why not, and what would make them.

Most events of a host have nothing to do with an ITS. These look as if they had: dynamic events of the kernel, and
whatever has the ITS, the vGIC or an LPI in its name. The tracepoints of a stock kernel are known, and so never here.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from itstrace.observe.catalogue import PROBES, Place, Probe
from itstrace.observe.matching import Catalogue, Definition, How, Source, looked_for
from itstrace.observe.recognise import direction, own_fields, standing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from itstrace.readers.base import EventFormat

_GROUPS: Final = frozenset({"its", "vgic"})
_WORDS: Final = frozenset({"its", "vgic", "lpi", "lpis", "gic"})
#: Probes of programs, not of the kernel: uprobe_events, and perf probe -x. Source: tools/perf/util/probe-event.c
_OF_PROGRAMS: Final = re.compile(r"uprobes|probe_.*")
#: Groups whose tracepoints are what they are on every host.
_STOCK_GROUPS: Final = frozenset({"kvm", "qemu"})
#: Stock tracepoints of these words that never fire for LPIs. Kernel: virt/kvm (v6.12), include/trace/events
_STOCK: Final = frozenset({"vgic_update_irq_pending"})
#: What stands in a file of events for a field that only its author can know.
UNKNOWN_FIELD: Final = "FIELD"
#: So many columns must be given before a likeness of fields says anything.
_TELLING: Final = 2
_ALIKE: Final = 0.85

_WHERE: Final = {
    Place.ENTRY: "at the entry of",
    Place.RETURN: "at the return of",
    Place.INSIDE: "inside",
    None: "in",
}


@dataclass(frozen=True, slots=True)
class Stranger:
    """One event that looks useful and feeds nothing."""

    event: str
    why: str
    #: The probe that it comes nearest to, if it comes near one, and the columns of it that nothing gives.
    probe: str | None
    missing: tuple[str, ...]
    #: The event's fields that no column takes.
    left: tuple[str, ...]

    @property
    def definable(self) -> bool:
        """Whether a file of events could make it the probe's."""
        return self.probe is not None and (bool(self.left) or not self.missing)


def strangers(formats: Mapping[str, EventFormat], catalogue: Catalogue) -> list[Stranger]:
    """Every event that looks useful and feeds no probe, those that come near one first."""
    found = [
        _stranger(event, catalogue)
        for event in formats.values()
        if _looks_useful(event, catalogue) and not catalogue.matches(event)
    ]
    return sorted(found, key=lambda one: (one.probe is None, not one.definable, one.event))


def _looks_useful(event: EventFormat, catalogue: Catalogue) -> bool:
    if any(how is How.FILE for _, how, _ in catalogue.claims(event)):
        return True
    if _OF_PROGRAMS.fullmatch(event.system) or event.name in _STOCK:
        return False
    words = set(re.split(r"[^a-z0-9]+", event.name.lower()))
    named = event.system in _GROUPS or not words.isdisjoint(_WORDS) or "kvm_read_guest" in event.name
    return direction(event) is not None or (named and event.system not in _STOCK_GROUPS)


def _stranger(event: EventFormat, catalogue: Catalogue) -> Stranger:
    claims = [(definition, how) for definition, how, _ in catalogue.claims(event)]
    if claims:
        definition, how = min(
            claims, key=lambda claim: len(claim[0].lacks(claim[0].sources(event, claim[1])))
        )
        sources = definition.sources(event, how)
        lacking = definition.lacks(sources)
        why = (
            f"{definition.probe.name} {how.words}, but no field gives "
            f"{', '.join(looked_for(column, event) for column in lacking)}"
        )
        return _near(event, definition.probe, sources, tuple(column.name for column in lacking), why)
    stands = standing(event)
    if stands is not None:
        why = f"it stands {_WHERE[stands.place]} {stands.function}, where itstrace reads nothing"
        return Stranger(event.full_name, why, None, (), own_fields(event))
    alike = _alike(event, catalogue.known.values())
    if alike is None:
        why = "nothing in the name or the fields says what was recorded"
        return Stranger(event.full_name, why, None, (), own_fields(event))
    definition, given, by = alike
    lacking = definition.lacks(given)
    why = f"its {by} like {definition.probe.name} ({definition.probe.kernel})"
    if lacking:
        why += f", but no field gives {', '.join(column.name for column in lacking)}"
    return _near(event, definition.probe, given, tuple(column.name for column in lacking), why)


def _near(
    event: EventFormat, probe: Probe, sources: Mapping[str, Source], missing: tuple[str, ...], why: str
) -> Stranger:
    taken = {source.field for source in sources.values()}
    left = tuple(name for name in own_fields(event) if name not in taken)
    if missing and not left:
        why += "; record it with that"
    return Stranger(event.full_name, why, probe.name, missing, left)


def _alike(
    event: EventFormat, definitions: Iterable[Definition]
) -> tuple[Definition, Mapping[str, Source], str] | None:
    """The definition that an event's fields, or else its name, come nearest to."""
    fires = direction(event)
    able = [
        definition
        for definition in definitions
        if definition.probe.place is not Place.TRACEPOINT
        and (fires is None or (fires is Place.RETURN) == (definition.probe.place is Place.RETURN))
    ]
    by_fields = [(definition, definition.sources(event, How.NAME)) for definition in able]
    whole = [
        (definition, sources)
        for definition, sources in by_fields
        if sum(column.needed for column in definition.probe.columns) >= _TELLING
        and not definition.lacks(sources)
    ]
    if whole:
        definition, sources = max(whole, key=lambda each: len(each[1]))
        return definition, sources, "fields are"
    names = {name.rpartition(":")[2]: each for each in able for name in (*each.events, each.probe.function)}
    near = get_close_matches(event.name, names, 1, _ALIKE)
    if not near:
        return None
    return names[near[0]], names[near[0]].sources(event, How.NAME), "name is"


def events_file(found: Iterable[Stranger]) -> str:
    """A file of events that names these, with `FIELD` where only its author knows which field it is."""
    definable = [one for one in found if one.definable]
    times = Counter(one.probe for one in definable)
    tables = []
    for one in sorted(definable, key=lambda each: list(PROBES).index(each.probe or "")):
        head = f"[[{one.probe}]]" if times[one.probe] > 1 else f"[{one.probe}]"
        lines = [f"{head}  # {PROBES[one.probe or ''].kernel}", f"events = [{_quoted(one.event)}]"]
        lines += [f'fields.{column} = "{UNKNOWN_FIELD}"' for column in one.missing]
        if one.missing:
            lines.append(f"# its other fields: {', '.join(filter(str.isidentifier, one.left))}")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _quoted(text: str) -> str:
    """A TOML string."""
    plain = "".join(
        char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08X}"
        for char in text.encode("utf-8", "replace").decode()
    )
    return f'"{plain}"'
