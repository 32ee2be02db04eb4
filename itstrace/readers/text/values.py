"""What an event's line says behind its name: `name=value` pairs, or the words of one of the kernel's own events.

The first lines of an event tell its fields; a format made of them then serves for all of its lines. Lines of the
same shape are read together, eight digits at a time; what has another shape is read one by one.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from itstrace.readers.base import EventField, EventFormat, column_name
from itstrace.readers.text.kvm_events import NAMES, Form, form_of
from itstrace.readers.text.numbers import GUARD_BYTES, Flags, Places, Words, integers, keep_last

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from itstrace.readers.text.chunks import Chunk

_PAIR = re.compile(r"(?<![\w=<>!])([A-Za-z_]\w{0,63})=(?![=>])")
_HEX, _DECIMAL = re.compile(r"0[xX][0-9a-fA-F]{1,16}"), re.compile(r"-?\d{1,20}")
_LIST = re.compile(r"\{(.*)\}")
#: `(function+0x0/0x10)` of an entry probe, `(caller+0x10/0x20 <- function)` of a return probe; or their addresses.
#: Source: kernel/trace/trace_kprobe.c:print_kprobe_event, print_kretprobe_event (v6.12)
_PROBED = re.compile(r"\(([\w.+/]+)(?: <- ([\w.+/]+))?\)\s*")
_MAX_FIELDS = 64
#: Source: include/linux/trace_seq.h:TRACE_SEQ_BUFFER_SIZE (v6.12)
_MAX_TEXT_BYTES = 8192
_SAMPLE_LINES = 40
_SPACE = ord(" ")


class Shape(Enum):
    """How the fields of an event are printed."""

    PAIRS = "name=value"
    FORM = "words of the kernel's own event"
    NOTE = "a text written into trace_marker"
    TEXT = "something else"


@dataclass(slots=True)
class TextEvent:
    """One event as its lines print it. `names` are the fields in order, with those printed as pairs alone."""

    format: EventFormat
    shape: Shape
    names: tuple[str, ...] = ()
    form: Form | None = None


@dataclass(slots=True)
class Rows:
    """The lines of one event in a chunk: where what follows the name begins, and where the line ends."""

    chunk: Chunk
    start: Places
    end: Places
    #: Lines that ended before all of their fields, by their place among the rows.
    torn: set[int] = field(default_factory=set)

    def texts(self) -> list[str]:
        """What stands behind the event's name, line by line; of a line longer than any tracer's, its beginning."""
        chunk, ends = self.chunk, np.minimum(self.end, self.start + _MAX_TEXT_BYTES)
        return [chunk.text(a, b).strip() for a, b in zip(self.start.tolist(), ends.tolist(), strict=True)]

    def head(self, count: int) -> list[str]:
        """The same of the first lines."""
        return Rows(self.chunk, self.start[:count], self.end[:count]).texts()


#: Names under which a note into the trace is printed. Source: kernel/trace/trace_output.c:trace_print_print (v6.12)
NOTES = ("print", "tracing_mark_write", "bprint", "bputs")


def learn(event_id: int, name: str, rows: Rows) -> TextEvent:
    """Make an event's format of its first lines."""
    system, _, bare = name.rpartition(":")
    samples = rows.head(_SAMPLE_LINES)
    if bare in NOTES:
        note = EventField("buf", "char[]", 0, 0, False, pl.String())
        known = "print" if bare == "tracing_mark_write" else bare
        return TextEvent(EventFormat(event_id, "ftrace", known, (note,), ""), Shape.NOTE)
    form = form_of(bare)
    if form is not None:
        system = system or "kvm"
        if any(form.pattern.fullmatch(text) for text in samples):
            fields = [
                EventField(
                    each,
                    "char[]" if kind == "s" else "u64" if kind == "x" else "s64",
                    0,
                    8,
                    kind != "x",
                    _DTYPES[kind],
                )
                for each, kind in form.kinds.items()
            ]
            printed = _print_fmt(fields, form.kinds)
            return TextEvent(
                EventFormat(event_id, system, bare, tuple(fields), printed), Shape.FORM, form=form
            )
    shapes = Counter(tuple(_PAIR.findall(text))[:_MAX_FIELDS] for text in samples)
    # Most lines have all fields; those that are cut have fewer.
    names = max(shapes, key=lambda each: (shapes[each], len(each)), default=())
    names = names if len(set(names)) == len(names) else ()
    if not names:
        text = EventField("text", "char[]", 0, 0, False, pl.String())
        probed = _probe_fields(samples)
        return TextEvent(EventFormat(event_id, system, bare, (*probed, text), ""), Shape.TEXT)
    values = [dict(pairs(text)) for text in samples]
    fields = [_field(each, [row[each] for row in values if each in row]) for each in names]
    fields = [*_probe_fields(samples), *fields] if not names[0].startswith("__probe") else fields
    printed = _print_fmt([each for each in fields if each.name in names], {})
    return TextEvent(EventFormat(event_id, system, bare, tuple(fields), printed), Shape.PAIRS, names)


_DTYPES: dict[str, pl.DataType] = {"s": pl.String(), "x": pl.UInt64()}
_DTYPES |= dict.fromkeys(("d", *NAMES), pl.Int64())


def _print_fmt(fields: Sequence[EventField], kinds: Mapping[str, str]) -> str:
    """A print format that says of the fields what the text said: which are hex, which are printed by name."""
    words, arguments = [], []
    for each in fields:
        table = NAMES.get(kinds.get(each.name, ""))
        value = f"REC->{each.name}"
        if table is not None:
            pairs_of = ", ".join(f'{{{number}, "{name}"}}' for name, number in table.items())
            value = f"__print_symbolic({value}, {pairs_of})"
        number = "0x%llx" if isinstance(each.dtype, pl.UInt64) else "%lld"
        words.append(f"{each.name}={'%s' if table is not None or not each.dtype.is_integer() else number}")
        arguments.append(value)
    return ", ".join([f'"{" ".join(words)}"', *arguments])


def _probe_fields(samples: Sequence[str]) -> list[EventField]:
    """Where a dynamic event's probe stands, under the names that its own format has for that."""
    found = next((match for text in samples if (match := _PROBED.match(text)) is not None), None)
    if found is None:
        return []
    names = ("__probe_ip",) if found[2] is None else ("__probe_func", "__probe_ret_ip")
    return [EventField(name, "char[]", 0, 0, False, pl.String()) for name in names]


def _field(name: str, values: Sequence[str]) -> EventField:
    """A field, of the kind that most of its first values are."""
    numbers = sum(1 for value in values if _HEX.fullmatch(value) or _DECIMAL.fullmatch(value))
    if numbers * 2 > len(values):
        is_hex = any(_HEX.fullmatch(value) for value in values)
        dtype: pl.DataType = pl.UInt64() if is_hex else pl.Int64()
        return EventField(name, "unsigned long" if is_hex else "s64", 0, 8, not is_hex, dtype)
    if values and all(_LIST.fullmatch(value) for value in values):
        return EventField(name, "u64[]", 0, 0, False, pl.List(pl.UInt64()))
    return EventField(name, "char[]", 0, 0, False, pl.String())


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """The `name=value` pairs of a line; a value reaches to the next name."""
    found = list(_PAIR.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    for match, end in zip(found, ends, strict=False):
        yield match[1], text[match.end() : end].strip()


def columns(event: TextEvent, fields: Sequence[EventField], rows: Rows) -> list[pl.Series]:
    """One column per field asked for. A field that a line does not have, or not as a value of its kind, is null."""
    if not fields:
        return []
    if event.shape is Shape.PAIRS:
        return _pair_columns(event, fields, rows)
    texts = rows.texts()
    if event.shape is Shape.FORM:
        assert event.form is not None
        return _form_columns(event.form, fields, texts)
    read = _note if event.shape is Shape.NOTE else _rest
    return [
        pl.Series(column_name(each.name), [read(each.name, text) for text in texts], dtype=pl.String)
        for each in fields
    ]


#: `function: text` is how a note's writer is printed; in raw form, `ip=function (address) buf=text`.
_WRITER = re.compile(r"tracing_mark(?:_raw)?_write(?:\+0x\S+)?: |0x[0-9a-f]{8,16}: |[0-9a-f]{16}: ")
_RAW_NOTE = re.compile(r"ip=.*? buf=")


def _note(_: str, text: str) -> str:
    raw = _RAW_NOTE.match(text)
    if raw is not None:
        return text[raw.end() :]
    # tracefs prints the writer as the event's name, all others before the text.
    writer = _WRITER.match(text)
    return text if writer is None else text[writer.end() :]


def _rest(name: str, text: str) -> str | None:
    return _probed(name, text) if name.startswith("__probe") else text


def _probed(name: str, text: str) -> str | None:
    match = _PROBED.match(text)
    if match is None:
        return None
    if match[2] is None:
        return match[1] if name == "__probe_ip" else None
    return match[2] if name == "__probe_func" else match[1] if name == "__probe_ret_ip" else None


def _form_columns(form: Form, fields: Sequence[EventField], texts: Sequence[str]) -> list[pl.Series]:
    found: list[dict[str, int | str | list[int] | None]] = []
    for text in texts:
        match = form.pattern.fullmatch(text)
        if match is not None:
            found.append({each.name: form.value(each.name, match[each.name]) for each in fields})
        else:  # the raw form, or one that libtraceevent could not parse: name=value
            given = dict(pairs(text))
            found.append({each.name: _value(each, given.get(each.name)) for each in fields})
    return [
        pl.Series(column_name(each.name), [_bits(each, row[each.name]) for row in found], dtype=each.dtype)
        for each in fields
    ]


def _value(each: EventField, text: str | None) -> int | str | list[int] | None:
    """One value out of its text; None where it is none of the field's kind."""
    if text is None or isinstance(each.dtype, pl.String):
        return text
    if isinstance(each.dtype, pl.List):
        match = _LIST.fullmatch(text)
        words = [] if match is None else match[1].split(",")
        values = [_number(word.strip()) for word in words]
        return None if match is None else [value & (2**64 - 1) for value in values if value is not None]
    return _number(text)


def _number(text: str) -> int | None:
    if _DECIMAL.fullmatch(text):
        return int(text)
    return int(text, 16) if _HEX.fullmatch(text) else None


def _bits(each: EventField, value: int | str | list[int] | None) -> int | str | list[int] | None:
    """An integer as its column holds it: the same 64 bits."""
    if not isinstance(value, int):
        return value
    value &= 2**64 - 1
    return value - 2**64 if isinstance(each.dtype, pl.Int64) and value >> 63 else value


# -- name=value, all lines of one shape at once ----------------------------------------------------------------


def _pair_columns(event: TextEvent, fields: Sequence[EventField], rows: Rows) -> list[pl.Series]:
    chunk, names = rows.chunk, event.names
    signs = chunk.signs
    lows = np.searchsorted(signs, rows.start)
    regular = np.searchsorted(signs, rows.end) - lows == len(names)
    if chunk.cut and len(rows.end) and rows.end[-1] == chunk.ends[-1]:
        regular[-1] = False  # nothing says that its last value is whole
    places = {each.name: names.index(each.name) for each in fields if each.name in names}
    for name, k in places.items():
        for each, at in {(name, k), *(((names[k + 1], k + 1),) if k + 1 < len(names) else ())}:
            regular &= _is_named(
                chunk, signs[np.minimum(lows + at, len(signs) - 1)] if len(signs) else lows, each
            )
    which = np.flatnonzero(regular)
    odd = np.flatnonzero(~regular)
    loose = _loose(event, fields, rows, odd) if len(odd) else []
    out = []
    for index, each in enumerate(fields):
        if each.name in places:
            k = places[each.name]
            start = signs[lows[which] + k] + 1
            end = rows.end[which] if k + 1 == len(names) else signs[lows[which] + k + 1] - len(names[k + 1])
            column = _column(each, chunk, *_trimmed(chunk, start, end))
        else:
            texts = Rows(chunk, rows.start[which], rows.end[which]).texts()
            column = pl.Series([_probed(each.name, text) for text in texts], dtype=pl.String)
        if len(odd):
            column = _interleaved(
                column, which, pl.Series([row[index] for row in loose], dtype=each.dtype), odd
            )
        out.append(column.alias(column_name(each.name)))
    return out


def _is_named(chunk: Chunk, signs: Places, name: str) -> Flags:
    """Whether this name, and before it a blank or a bracket, stands before each equals sign."""
    raw = name.encode()
    good = chunk.raw[signs - len(raw) - 1] == _SPACE
    for done in range(0, len(raw), 8):
        part = raw[max(len(raw) - done - 8, 0) : len(raw) - done]
        wanted = np.uint64(int.from_bytes(part.rjust(8, b"\0"), "little"))
        found = keep_last(
            chunk.words[np.maximum(signs - 8 - done, 0)], np.full(len(signs), len(part)), np.uint64(0)
        )
        good &= found == wanted
    inside: Flags = good & (signs > GUARD_BYTES)
    return inside


def _trimmed(chunk: Chunk, start: Places, end: Places) -> tuple[Places, Places]:
    """Values without the blanks around them (raw fields keep the width of their print format)."""
    start, end = start.copy(), end.copy()
    while (blank := (chunk.raw[end - 1] == _SPACE) & (end > start)).any():
        end -= blank
    while (blank := (chunk.raw[start] == _SPACE) & (start < end)).any():
        start += blank
    return start, end


def _column(each: EventField, chunk: Chunk, start: Places, end: Places) -> pl.Series:
    if not each.dtype.is_integer():
        texts = [chunk.text(a, b) for a, b in zip(start.tolist(), end.tolist(), strict=True)]
        return pl.Series([_value(each, text) for text in texts], dtype=each.dtype)
    values, good = integers(chunk.raw, chunk.words, start, end)
    bits: Words = values if isinstance(each.dtype, pl.UInt64) else values.view(np.int64)
    column = pl.Series(bits)
    return column if good.all() else column.set(pl.Series(~good), None)


def _loose(event: TextEvent, fields: Sequence[EventField], rows: Rows, odd: Places) -> list[list[object]]:
    """Lines of another shape, one by one: of a line with too few fields the last value may be cut, and is not used."""
    out: list[list[object]] = []
    texts = Rows(rows.chunk, rows.start[odd], rows.end[odd]).texts()
    for place, text in zip(odd.tolist(), texts, strict=True):
        given = dict(pairs(text))
        last_line = rows.chunk.cut and rows.end[place] == rows.chunk.ends[-1]
        if last_line or not set(event.names) <= set(given):
            rows.torn.add(place)
            if given:
                given.popitem()
        out.append(
            [
                _probed(each.name, text)
                if each.name not in event.names
                else _bits(each, _value(each, given.get(each.name)))
                for each in fields
            ]
        )
    return out


def _interleaved(first: pl.Series, places: Places, second: pl.Series, others: Places) -> pl.Series:
    """Two parts of a column, each at its own places."""
    order = np.empty(len(places) + len(others), np.int64)
    order[places] = np.arange(len(places))
    order[others] = np.arange(len(others)) + len(places)
    return pl.concat([first, second]).gather(order)
