"""Reading a perf.data up to its records: the header of a file, or the first records of what came out of a pipe.

Source: tools/perf/Documentation/perf.data-file-format.txt, tools/perf/util/header.c (v6.12)
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from itstrace.errors import CaptureError, Damage
from itstrace.readers.bytesource import Cursor
from itstrace.readers.descriptions import MAGIC as TRACING_MAGIC
from itstrace.readers.descriptions import read_descriptions
from itstrace.readers.perfdata.attributes import (
    HEADER_BYTES,
    MIN_ATTRIBUTE_BYTES,
    Attribute,
    parse_attribute,
)
from itstrace.readers.perfdata.contents import Contents, Feature, Record

if TYPE_CHECKING:
    import mmap
    from pathlib import Path

#: The first eight bytes, as each byte order writes them. Source: header.c:__perf_magic2
MAGICS: Final = {b"PERFILE2": False, b"2ELIFREP": True}
#: struct perf_pipe_file_header; struct perf_file_header; offset and size of a section
_PIPE_HEADER_BYTES, _FILE_HEADER_BYTES, _SECTION_BYTES = 16, 104, 16
#: A kernel has some thousands of tracepoints; and each has an id for every CPU.
_MAX_ATTRIBUTES, _MAX_IDS = 1 << 14, 1 << 22
#: 256 bits say which features follow the data. Source: header.h:HEADER_FEAT_BITS
_FEATURE_BYTES = 32
#: The records with which a recording proper begins: what describes it stands before.
_FIRST_DATA = {Record.SAMPLE, Record.COMPRESSED, Record.COMPRESSED2, Record.FINISHED_ROUND}

_ADVICE = "copy the file again, or record again and let perf end by itself (Ctrl-C, not kill -9)"


def read_contents(path: Path, data: mmap.mmap) -> Contents:
    """Read everything but the records.

    Raises: CaptureError where the file is no perf.data, or too damaged to find any record.
    """
    big_endian = MAGICS.get(bytes(data[:8]))
    if big_endian is None:
        raise CaptureError(path, "no perf.data: its first eight bytes are others", offset_bytes=0)
    cursor = Cursor(path, data, 8, len(data), big_endian)
    size = cursor.number(8)
    if size == _PIPE_HEADER_BYTES:
        contents = Contents(True, big_endian, _PIPE_HEADER_BYTES, len(data))
        _read_first_records(contents, cursor)
    elif size == _FILE_HEADER_BYTES:
        contents = _read_file_header(cursor)
    else:
        raise cursor.error(
            f"a perf.data header of {size} bytes is unknown",
            expected=f"{_FILE_HEADER_BYTES}, or {_PIPE_HEADER_BYTES} where it came out of a pipe",
        )
    if not contents.attributes:
        raise CaptureError(
            path,
            "the file does not say which events were recorded",
            expected="a perf_event_attr",
            advice=_ADVICE,
        )
    return contents


# -- a file ----------------------------------------------------------------------------------------------------


def _read_file_header(cursor: Cursor) -> Contents:
    attribute_bytes = cursor.number(8)
    attributes, data, _event_types = (_section(cursor) for _ in range(3))
    bits = cursor.take(_FEATURE_BYTES)
    start, size = data
    end = start + size
    if start > cursor.end:
        raise cursor.error(f"the records begin at byte {start}, behind the end of the file")
    contents = Contents(False, cursor.big_endian, start, min(end, cursor.end))
    if size == 0:
        contents.data_end = cursor.end
        contents.damage.append(
            Damage(
                start,
                None,
                "perf was killed before it finished the file; its header says nothing of the records",
            )
        )
    elif end > cursor.end:
        contents.damage.append(
            Damage(cursor.end, None, f"the file ends {end - cursor.end} bytes before its records do")
        )
    _read_attributes(contents, cursor, attributes, attribute_bytes)
    if size and end <= cursor.end:
        _read_features(contents, Cursor(cursor.path, cursor.data, end, cursor.end, cursor.big_endian), bits)
    return contents


def _section(cursor: Cursor) -> tuple[int, int]:
    return cursor.number(8), cursor.number(8)


def _at(cursor: Cursor, section: tuple[int, int], what: str) -> Cursor:
    """Give a cursor over a section of the file."""
    start, size = section
    if start > cursor.end or size > cursor.end - start:
        raise cursor.error(f"{what} ({size} bytes at byte {start}) runs over the end of the file")
    return Cursor(cursor.path, cursor.data, start, start + size, cursor.big_endian, what)


def _read_attributes(contents: Contents, cursor: Cursor, section: tuple[int, int], each_bytes: int) -> None:
    body = _at(cursor, section, "the table of events")
    # Each is a perf_event_attr of the size that the recording kernel knew, and the section of its ids.
    if each_bytes < MIN_ATTRIBUTE_BYTES + _SECTION_BYTES:
        raise cursor.error(
            f"a description of {each_bytes} bytes for each event is impossible",
            expected=f"at least {MIN_ATTRIBUTE_BYTES + _SECTION_BYTES}",
        )
    if body.left // each_bytes > _MAX_ATTRIBUTES:
        raise cursor.error(
            f"{body.left // each_bytes} events are impossible", expected=f"at most {_MAX_ATTRIBUTES}"
        )
    while body.left >= each_bytes:
        place = body.position
        attribute = parse_attribute(body.take(each_bytes - _SECTION_BYTES), big_endian=cursor.big_endian)
        try:
            ids = _at(cursor, _section(body), "the ids of an event")
            attribute.ids = _ids(contents, ids)
        except CaptureError as error:
            contents.damage.append(Damage(place, None, error.message))
        contents.attributes.append(attribute)


def _ids(contents: Contents, cursor: Cursor) -> tuple[int, ...]:
    """Read the ids of one event, one for each CPU or task; sections that lie could name the same ones many times."""
    known = sum(len(each.ids) for each in contents.attributes)
    count = cursor.left // 8
    if known + count > _MAX_IDS:
        raise cursor.error(f"{known + count} ids of events are impossible", expected=f"at most {_MAX_IDS}")
    return struct.unpack(f"{'>' if cursor.big_endian else '<'}{count}Q", cursor.take(8 * count))


def _read_features(contents: Contents, table: Cursor, bits: bytes) -> None:
    """Read the features that we know; each has its place in a table behind the records, in the order of the bits."""
    # The bits are longs of the recording machine: bit n is in long n // 64.
    numbers = [
        64 * i + bit
        for i in range(_FEATURE_BYTES // 8)
        for bit in range(64)
        if int.from_bytes(bits[8 * i : 8 * i + 8], "big" if table.big_endian else "little") >> bit & 1
    ]
    for number in numbers:
        try:
            section = _section(table)
        except CaptureError as error:
            contents.damage.append(
                Damage(table.position, None, f"the header's features are lost: {error.message}")
            )
            return
        try:
            read_feature(contents, number, _at(table, section, "a part of the header"))
        except (CaptureError, ValueError) as error:
            contents.damage.append(
                Damage(section[0], None, f"part {_name(number)} of the header cannot be read: {error}")
            )


def _name(number: int) -> str:
    return Feature(number).name if number in Feature._value2member_map_ else str(number)


# -- a pipe ----------------------------------------------------------------------------------------------------


def _read_first_records(contents: Contents, cursor: Cursor) -> None:
    """Read the records that describe the recording, up to the first one of the recording itself."""
    while cursor.left >= HEADER_BYTES:
        start = cursor.position
        kind, _misc, size = cursor.number(4), cursor.number(2), cursor.number(2)
        if size < HEADER_BYTES or size - HEADER_BYTES > cursor.left or kind in _FIRST_DATA:
            return  # a damaged one is told when the records are read
        body = cursor.part(size - HEADER_BYTES, "a record")
        try:
            match kind:
                case Record.HEADER_ATTR if len(contents.attributes) < _MAX_ATTRIBUTES:
                    contents.attributes.append(_pipe_attribute(contents, body))
                case Record.HEADER_FEATURE:
                    read_feature(contents, body.number(8), body)
                case Record.HEADER_TRACING_DATA:
                    tracing = cursor.part(body.number(4), "the tracing data")
                    read_feature(contents, Feature.TRACING_DATA, tracing)
                case Record.AUXTRACE:
                    cursor.part(body.number(8), "AUX data")
        except (CaptureError, ValueError) as error:
            contents.damage.append(Damage(start, None, f"a record of the header cannot be read: {error}"))


def _pipe_attribute(contents: Contents, body: Cursor) -> Attribute:
    place = body.position
    body.number(4)
    size = body.number(4)
    body.position = place
    attribute = parse_attribute(body.take(size or MIN_ATTRIBUTE_BYTES), big_endian=body.big_endian)
    attribute.ids = _ids(contents, body)
    return attribute


# -- what both have: features ------------------------------------------------------------------------------------


def read_feature(contents: Contents, number: int, body: Cursor) -> None:
    """Take in one feature; one that says nothing to us is passed over.

    Raises: CaptureError, ValueError where it is damaged.
    """
    match number:
        case Feature.TRACING_DATA:
            _read_tracing_data(contents, body)
        case Feature.OSRELEASE:
            contents.kernel = _string(body)
        case Feature.ARCH:
            contents.arch = _string(body)
        case Feature.VERSION:
            contents.notes["perf"] = _string(body)
        case Feature.NRCPUS:
            available, online = body.number(4), body.number(4)
            contents.cpus = max(available, online) if max(available, online) <= 1 << 16 else 0
        case Feature.CMDLINE:
            words = [_string(body) for _ in range(min(body.number(4), body.left // 4))]
            contents.notes["command line"] = " ".join(words)
        case Feature.EVENT_DESC:
            _read_names(contents, body)
        case Feature.CLOCKID:
            contents.notes["clock resolution"] = f"{body.number(8)} ns"
        case Feature.CLOCK_DATA:
            body.number(4)
            body.number(4)
            wall_ns, clock_ns = body.number(8), body.number(8)
            contents.notes["wall clock"] = f"{wall_ns} ns since 1970 at {clock_ns} ns of the capture's clock"
        case Feature.COMPRESSED:
            body.number(4)
            algorithm, level = body.number(4), body.number(4)
            contents.compressed = True
            contents.notes["compression"] = f"{'zstd' if algorithm == 1 else algorithm}, level {level}"


def _string(body: Cursor) -> str:
    """Read a string: its length with padding, then it. Source: header.c:do_write_string."""
    return body.take(body.number(4)).split(b"\0", 1)[0].decode("utf-8", "replace")


def _read_tracing_data(contents: Contents, body: Cursor) -> None:
    """Read the tracing data: the first part of a trace.dat of version 6. Source: trace-event-read.c:trace_report."""
    if body.take(len(TRACING_MAGIC)) != TRACING_MAGIC:
        raise body.error("the tracing data begins with other bytes than it should")
    version = body.text()
    # Its own byte order stands behind the version, and is that of the recording machine.
    big_endian = body.number(1)
    if big_endian > 1 or bool(big_endian) != contents.big_endian:
        raise body.error(f"the tracing data has another byte order ({big_endian}) than the file")
    long_bytes = body.number(1)
    if long_bytes not in (4, 8):
        raise body.error(f"a word of {long_bytes} bytes is impossible", expected="4 or 8")
    contents.long_bytes, contents.page_bytes = long_bytes, body.number(4)
    # Source: trace-event-read.c:trace_report: 0.6 added the saved command lines
    read_descriptions(contents.descriptions, body, cmdlines=_version(version) >= (0, 6))


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)


def _read_names(contents: Contents, body: Cursor) -> None:
    """Read the names of events: of those that are no tracepoints nothing else has them."""
    count, attribute_bytes = body.number(4), body.number(4)
    for attribute in contents.attributes[:count]:
        body.part(attribute_bytes, "an attribute")
        ids = body.number(4)
        attribute.name = _string(body)
        body.part(8 * ids, "the ids of an event")
