"""A capture whose events go by other names: the same records, other descriptions of them.

A new section of event formats is put behind the end of a trace.dat of version 7, and a new section of options that
names it; no byte of a record changes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DONE, _EVENT_FORMATS = 0, 18
_MAX_BYTES = 1 << 26

#: From an event's group and format text to others.
Edit = Callable[[str, str], tuple[str, str]]


def rename(source: Path, target: Path, edit: Edit) -> Path:
    """Write a copy of a capture whose event formats went through `edit`."""
    data = source.read_bytes()
    assert data.startswith(b"\x17\x08\x44tracing7\0"), "version 7, little-endian"
    pointer = data.index(b"\0", data.index(b"\0", 18) + 1) + 1
    options = list(_options(data, struct.unpack_from("<Q", data, pointer)[0]))
    (at,) = next(struct.unpack("<Q", body) for option, body in options if option == _EVENT_FORMATS)
    formats = _packed(_edited(_body(data, at)[0], edit))
    kept = [(option, body) for option, body in options if option not in (_EVENT_FORMATS, _DONE)]
    kept += [(_EVENT_FORMATS, struct.pack("<Q", len(data))), (_DONE, struct.pack("<Q", 0))]
    chain = b"".join(struct.pack("<HI", option, len(body)) + body for option, body in kept)
    first = struct.pack("<Q", len(data) + len(formats))
    options_section = struct.pack("<HHIQ", _DONE, 0, 0, len(chain)) + chain
    target.write_bytes(data[:pointer] + first + data[pointer + 8 :] + formats + options_section)
    return target


def renames(events: dict[str, str], fields: dict[str, dict[str, str]] | None = None) -> Edit:
    """Edit names: events by bare name (to `group:name`, or a bare name in the same group), fields by event."""

    def edit(system: str, text: str) -> tuple[str, str]:
        found = re.search(r"^name: (\S+)", text, re.MULTILINE)
        assert found is not None
        name = found[1]
        for old, new in (fields or {}).get(name, {}).items():
            text, count = re.subn(rf"(field:[^;]*\b){old};", rf"\g<1>{new};", text)
            assert count == 1, f"{name} has one field {old}"
            text = re.sub(rf"REC->{old}\b", f"REC->{new}", text)
        group, _, bare = events.get(name, name).rpartition(":")
        return group or system, text.replace(f"name: {name}", f"name: {bare}", 1)

    return edit


def _options(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """All options of the chain."""
    while offset:
        body, at = _body(data, offset)[0], 0
        offset = 0
        while at + 6 <= len(body):
            option, size = struct.unpack_from("<HI", body, at)
            value = body[at + 6 : at + 6 + size]
            at += 6 + size
            if option == _DONE:
                (offset,) = struct.unpack("<Q", value)
                break
            yield option, value


def _body(data: bytes, offset: int) -> tuple[bytes, int]:
    """The body of a section, and its number."""
    number, flags, _, size = struct.unpack_from("<HHIQ", data, offset)
    body = data[offset + 16 : offset + 16 + size]
    if flags & 1:
        packed, plain = struct.unpack_from("<II", body)
        body = zstandard.ZstdDecompressor().decompress(
            body[8 : 8 + packed], max_output_size=min(plain, _MAX_BYTES)
        )
    return body, number


def _packed(body: bytes) -> bytes:
    packed = zstandard.compress(body)
    return struct.pack("<HHIQII", _EVENT_FORMATS, 1, 0, len(packed) + 8, len(packed), len(body)) + packed


def _edited(body: bytes, edit: Edit) -> bytes:
    (systems,), at = struct.unpack_from("<I", body), 4
    made: dict[str, list[bytes]] = {}
    for _ in range(systems):
        end = body.index(b"\0", at)
        system = body[at:end].decode()
        (count,), at = struct.unpack_from("<I", body, end + 1), end + 5
        for _ in range(count):
            (size,), at = struct.unpack_from("<Q", body, at), at + 8
            group, text = edit(system, body[at : at + size].decode())
            made.setdefault(group, []).append(text.encode())
            at += size
    out = struct.pack("<I", len(made))
    for system, texts in made.items():
        out += system.encode() + b"\0" + struct.pack("<I", len(texts))
        out += b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    return out
