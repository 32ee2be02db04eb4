"""A trace as Perfetto's own definitions of its messages (the package perfetto) read it, and as its importer puts it together.

Packets are sorted by time and keep their order where times are equal; texts are looked up among those told before; an
end closes the slice of its track that was begun last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

_PB: Any = import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


@dataclass(slots=True)
class Track:
    """A track as its descriptor has it; `unit`: of a counter."""

    name: str
    parent: int
    unit: str


@dataclass(slots=True)
class Event:
    """A slice (`end_ns`), an instant (None), or a counter's value."""

    path: tuple[str, ...]  # names of its track and those above, the uppermost first
    track: int
    begin_ns: int
    name: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    flows: tuple[int, ...] = ()
    end_ns: int | None = None
    value: int | None = None
    depth: int = 0


@dataclass(slots=True)
class Trace:
    """All of it, slices in order of their ends."""

    tracks: dict[int, Track]
    slices: list[Event]
    instants: list[Event]
    values: list[Event]
    #: Times are of this clock; None: of none that is told.
    clock: int | None
    packets: int

    def under(self, *path: str, events: list[Event]) -> list[Event]:
        """Those on the track of that path."""
        return [one for one in events if one.path == path]


def read(content: bytes) -> Trace:
    """Read a trace; whatever a reader would refuse or put right fails here."""
    trace = _PB.Trace()
    trace.ParseFromString(content)
    names: dict[int, str] = {}
    keys: dict[int, str] = {}
    texts: dict[int, str] = {}
    tracks: dict[int, Track] = {}
    clock, default_clock, cleared = None, None, False
    timed: list[tuple[int, Any, str, dict[str, Any]]] = []
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id == 1
        assert not packet.FindInitializationErrors()
        if packet.sequence_flags & _PB.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED:
            assert not cleared
            cleared = True
            default_clock = packet.trace_packet_defaults.timestamp_clock_id or None
        if packet.HasField("clock_snapshot"):
            clock = packet.clock_snapshot.primary_trace_clock
            assert [each.clock_id for each in packet.clock_snapshot.clocks] == [clock]
        for known, told in (
            (names, packet.interned_data.event_names),
            (keys, packet.interned_data.debug_annotation_names),
        ):
            assert not {one.iid for one in told} & set(known), "an id is told twice"
            known.update({one.iid: one.name for one in told})
        texts.update(
            {one.iid: one.str.decode() for one in packet.interned_data.debug_annotation_string_values}
        )
        if packet.HasField("track_descriptor"):
            about = packet.track_descriptor
            assert about.uuid not in tracks
            assert not about.HasField("parent_uuid") or about.parent_uuid in tracks
            tracks[about.uuid] = Track(about.name, about.parent_uuid, about.counter.unit_name)
        if packet.HasField("track_event"):
            event = packet.track_event
            assert event.track_uuid in tracks
            needs = event.HasField("name_iid") or len(event.debug_annotations)
            assert not needs or packet.sequence_flags & _PB.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
            args = {keys[one.name_iid]: _value(one, texts) for one in event.debug_annotations}
            assert len(args) == len(event.debug_annotations), "an argument is told twice"
            name = names[event.name_iid] if event.HasField("name_iid") else ""
            timed.append((packet.timestamp, event, name, args))
    assert cleared
    assert default_clock == clock
    timed.sort(key=lambda one: one[0])
    found = Trace(tracks, [], [], [], clock, len(trace.packet))
    _put_together(found, timed)
    return found


def _put_together(trace: Trace, timed: list[tuple[int, Any, str, dict[str, Any]]]) -> None:
    kinds = _PB.TrackEvent
    begun: dict[int, list[Event]] = {uuid: [] for uuid in trace.tracks}
    for time_ns, event, name, args in timed:
        track = event.track_uuid
        one = Event(_path(trace.tracks, track), track, time_ns, name, args, tuple(event.flow_ids))
        one.depth = len(begun[track])
        if event.type == kinds.TYPE_SLICE_BEGIN:
            begun[track].append(one)
        elif event.type == kinds.TYPE_SLICE_END:
            ended = begun[track].pop()
            ended.end_ns = time_ns
            trace.slices.append(ended)
        elif event.type == kinds.TYPE_INSTANT:
            trace.instants.append(one)
        else:
            assert event.type == kinds.TYPE_COUNTER
            assert trace.tracks[track].unit
            one.value = event.counter_value
            trace.values.append(one)
    assert not any(begun.values()), "a slice has no end"


def _path(tracks: dict[int, Track], track: int) -> tuple[str, ...]:
    names: list[str] = []
    while track:
        names.append(tracks[track].name)
        track = tracks[track].parent
    return tuple(reversed(names))


def _value(annotation: Any, texts: dict[int, str]) -> Any:
    if annotation.array_values:
        return [_value(each, texts) for each in annotation.array_values]
    kind = annotation.WhichOneof("value")
    return texts[annotation.string_value_iid] if kind == "string_value_iid" else getattr(annotation, kind)
