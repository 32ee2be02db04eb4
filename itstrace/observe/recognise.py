"""Which function an event stands in, and where in it, by the event's name and what the kernel records beside its fields.

Whoever defines a probe without naming it gets a name of the kernel's or of perf's making:

    p_kvm_read_guest_0, r_kvm_read_guest_0    kprobe_events; the number is the offset into the function
    kvm_read_guest, kvm_read_guest__return    perf probe; a second one of the same function ends in _1
    kvm_read_guest__entry, ...__exit          fprobe events

Source: kernel/trace/trace_kprobe.c:trace_kprobe_create_internal, Documentation/trace/fprobetrace.rst (v6.12),
tools/perf/util/probe-event.c:get_new_event_name
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from itstrace.observe.catalogue import PROBES, Place

if TYPE_CHECKING:
    from itstrace.readers.base import EventFormat

#: Fields that the kernel itself puts into probe events. Source: kernel/trace/trace_probe.h:FIELD_STRING_IP,
#: FIELD_STRING_RETIP, FIELD_STRING_FUNC (v6.12)
ENTRY_FIELD: Final = "__probe_ip"
RETURN_FIELDS: Final = ("__probe_func", "__probe_ret_ip")
KERNEL_FIELDS: Final = frozenset({ENTRY_FIELD, *RETURN_FIELDS})

_FUNCTIONS = sorted({probe.function for probe in PROBES.values() if probe.place != Place.TRACEPOINT}, key=len)
_NAME = re.compile(
    r"(?:(?P<kind>[pr])_)?"
    rf"(?P<function>{'|'.join(reversed(_FUNCTIONS))})"
    # Copies that the compiler makes of a function: update_affinity.isra.0
    r"(?:[._](?:isra|part|constprop)(?:[._]\d+)?)*"
    r"(?:_L(?P<line>\d+))?"
    r"(?:_+(?P<when>ret|return|exit|entry|enter))?"
    r"(?:_(?P<number>\d+))?"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an event stands: in which function of KVM, and where in it (None: nothing tells)."""

    function: str
    place: Place | None


def direction(event: EventFormat) -> Place | None:
    """Whether a dynamic event fires where a function is entered (or within it) or where it returns; None: nothing tells."""
    names = {field.name for field in event.fields}
    if not names.isdisjoint(RETURN_FIELDS):
        return Place.RETURN
    return Place.ENTRY if ENTRY_FIELD in names else None


def standing(event: EventFormat) -> Standing | None:
    """Where an event stands that is named after one of the functions that we know; None for all others."""
    match = _NAME.fullmatch(event.name)
    if match is None:
        return None
    kind, when, fires = match["kind"], match["when"], direction(event)
    if fires is Place.RETURN:
        place: Place | None = Place.RETURN
    elif when is not None:
        # A probe at the end of a function serves where a return probe cannot; whoever named it knew.
        place = Place.ENTRY if when.startswith("ent") else Place.RETURN
    elif match["line"] is not None or (kind == "p" and int(match["number"] or 0)):
        place = Place.INSIDE
    elif kind is not None:
        place = Place.ENTRY if kind == "p" else Place.RETURN
    else:
        place = fires
    return Standing(match["function"], place)


def own_fields(event: EventFormat) -> tuple[str, ...]:
    """An event's fields but for those that the kernel puts into every probe event."""
    return tuple(field.name for field in event.fields if field.name not in KERNEL_FIELDS)


def unnamed(event: EventFormat) -> int:
    """How many values an event has, if all are without a name of their own: arg1, arg2, ...; else 0.

    Source: kernel/trace/trace_probe.c:traceprobe_parse_probe_arg (v6.12)
    """
    names = own_fields(event)
    return len(names) if names == tuple(f"arg{n}" for n in range(1, len(names) + 1)) else 0
