"""What a tracing file says of the kernel's events: trace.dat and perf.data carry it in the same form.

Source: trace-cmd.dat.v6(5); tools/perf/util/trace-event-read.c:trace_report (v6.12)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from itstrace.errors import Damage
from itstrace.readers.formats import CommonLayout, parse_format

if TYPE_CHECKING:
    from itstrace.readers.base import EventFormat
    from itstrace.readers.bytesource import Cursor

MAGIC = b"\x17\x08\x44tracing"
#: Event ids have 16 bits.
MAX_EVENTS = 1 << 16


@dataclass(slots=True)
class Descriptions:
    """The texts of the recorded kernel, as it printed them."""

    header_page: str = ""
    header_event: str = ""
    #: (system, format text) of every event type
    format_texts: list[tuple[str, str]] = field(default_factory=list)
    printk_formats: str = ""
    kallsyms_bytes: int = 0
    cmdlines: str = ""

    def comms(self) -> dict[int, str]:
        """Task names by pid: a pid and a name in each line of `saved_cmdlines`."""
        comms: dict[int, str] = {}
        for line in self.cmdlines.splitlines():
            pid, _, comm = line.strip().partition(" ")
            if pid.isdigit() and comm:
                comms[int(pid)] = comm
        return comms

    def events(self, long_bytes: int) -> tuple[dict[int, EventFormat], CommonLayout, list[Damage]]:
        """Give the event types by id, where every record keeps its id and task, and what cannot be read."""
        events: dict[int, EventFormat] = {}
        layout = CommonLayout()
        damage: list[Damage] = []
        for system, text in self.format_texts:
            try:
                event, common = parse_format(system, text, long_bytes)
            except ValueError as error:
                damage.append(Damage(None, None, str(error)))
                continue
            if event.event_id >= MAX_EVENTS:
                damage.append(Damage(None, None, f"{event.full_name} has the impossible id {event.event_id}"))
                continue
            if common is not None and not events:
                layout = common
            events[event.event_id] = event
        return events, layout, damage


def read_descriptions(into: Descriptions, cursor: Cursor, *, cmdlines: bool = True) -> None:
    """Read all of them, as they stand one after the other in version 6; perf's version 0.5 has no `cmdlines`.

    Raises: CaptureError where they end early or are damaged; what was read by then stays.
    """
    read_header_info(into, cursor)
    read_ftrace_formats(into, cursor)
    read_event_formats(into, cursor)
    into.kallsyms_bytes = cursor.part(cursor.number(4), "kallsyms").left
    read_printk(into, cursor)
    if cmdlines:
        read_cmdlines(into, cursor)


def read_header_info(into: Descriptions, cursor: Cursor) -> None:
    """Read how pages and records are laid out."""
    for name in ("header_page", "header_event"):
        found = cursor.text()
        if found != name:
            raise cursor.error(f"{found[:20]!r} stands where {name} should")
        setattr(into, name, cursor.take(cursor.number(8)).decode("utf-8", "replace"))


def read_ftrace_formats(into: Descriptions, cursor: Cursor) -> None:
    """Read the formats of ftrace's own events."""
    for _ in range(_event_count(cursor)):
        into.format_texts.append(("ftrace", cursor.take(cursor.number(8)).decode("utf-8", "replace")))


def read_event_formats(into: Descriptions, cursor: Cursor) -> None:
    """Read the formats of all other events, system by system."""
    for _ in range(_event_count(cursor)):
        system = cursor.text()
        for _ in range(_event_count(cursor)):
            text = cursor.take(cursor.number(8)).decode("utf-8", "replace")
            into.format_texts.append((system, text))


def read_printk(into: Descriptions, cursor: Cursor) -> None:
    """Read the formats of trace_printk."""
    into.printk_formats = cursor.take(cursor.number(4)).decode("utf-8", "replace")


def read_cmdlines(into: Descriptions, cursor: Cursor) -> None:
    """Read the names of tasks."""
    into.cmdlines = cursor.take(cursor.number(8)).decode("utf-8", "replace")


def _event_count(cursor: Cursor) -> int:
    count = cursor.number(4)
    if count > MAX_EVENTS:
        raise cursor.error(f"{count} event types are impossible", expected=f"at most {MAX_EVENTS}")
    return count
