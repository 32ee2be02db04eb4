"""The kernel's descriptions of its own pages and events, as the capture carries them.

Source: kernel/trace/ring_buffer.c:ring_buffer_print_page_header, kernel/trace/trace_events.c:f_show (v6.12)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl

from itstrace.readers.base import EventField, EventFormat, column_name

_FIELD = re.compile(
    r"^\s*field:(?P<declaration>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);(?:\s*signed:(?P<signed>\d+);)?",
    re.MULTILINE,
)
_NAME = re.compile(r"^name:\s*(\S+)", re.MULTILINE)
_ID = re.compile(r"^ID:\s*(\d+)", re.MULTILINE)
#: `type name[n]`; a dynamic array has its brackets before the name: `__data_loc char[] name`
_DECLARATION = re.compile(
    r"^(?P<type>.*?[\s*])(?P<name>\w+)\s*(?P<brackets>(?:\[[^\]]*\])*)$|^(?P<only>\w+)$", re.DOTALL
)
_DYNAMIC = re.compile(r"^__(?:data|rel)_loc\s+(?P<element>.*?)\s*\[[^\]]*\]\s*$", re.DOTALL)

_SIGNED_INTEGERS: dict[int, pl.DataType] = {1: pl.Int8(), 2: pl.Int16(), 4: pl.Int32(), 8: pl.Int64()}
_INTEGERS: dict[int, pl.DataType] = {1: pl.UInt8(), 2: pl.UInt16(), 4: pl.UInt32(), 8: pl.UInt64()}
_TYPE_BYTES = {
    "char": 1, "u8": 1, "s8": 1, "__u8": 1, "__s8": 1, "uint8_t": 1, "int8_t": 1, "bool": 1, "_Bool": 1,
    "short": 2, "u16": 2, "s16": 2, "__u16": 2, "__s16": 2, "uint16_t": 2, "int16_t": 2,
    "__le16": 2, "__be16": 2,
    "int": 4, "u32": 4, "s32": 4, "__u32": 4, "__s32": 4, "uint32_t": 4, "int32_t": 4, "unsigned": 4,
    "__le32": 4, "__be32": 4, "pid_t": 4, "gfp_t": 4, "enum": 4,
    "u64": 8, "s64": 8, "__u64": 8, "__s64": 8, "uint64_t": 8, "int64_t": 8, "__le64": 8, "__be64": 8,
    "dma_addr_t": 8, "sector_t": 8, "loff_t": 8,
}  # fmt: skip


#: Where the common fields must end, and all others: a record fits in a page, and offsets of arrays have 16
#: bits.
MAX_COMMON_BYTES, MAX_RECORD_BYTES = 16, 1 << 16


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Where a sub-buffer page keeps its stamp, its commit word and its data.

    Source: kernel/trace/ring_buffer.c:struct buffer_data_page (v6.12)
    """

    stamp_offset: int
    commit_offset: int
    commit_bytes: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class CommonLayout:
    """Where every record keeps its event id and its task.

    Source: include/linux/trace_events.h:struct trace_entry (v6.12)
    """

    type_offset: int = 0
    type_bytes: int = 2
    pid_offset: int = 4

    @property
    def end(self) -> int:
        """How many bytes a record has at least."""
        return max(self.type_offset + self.type_bytes, self.pid_offset + 4)


def parse_page_layout(text: str) -> PageLayout:
    """Read the file's `header_page`.

    Raises: ValueError where a field is missing or of an impossible size.
    """
    found = {
        _split_declaration(m["declaration"])[1]: (int(m["offset"]), int(m["size"]))
        for m in _FIELD.finditer(text)
    }
    missing = [name for name in ("timestamp", "commit", "data") if name not in found]
    if missing:
        raise ValueError(f"header_page has no field {missing[0]!r}")
    stamp, commit, data = found["timestamp"], found["commit"], found["data"]
    if stamp[1] != 8 or commit[1] not in (4, 8) or max(stamp[0], commit[0], data[0]) > 64 or data[0] % 4:
        raise ValueError("header_page describes an impossible page")
    if data[0] < max(stamp[0] + 8, commit[0] + commit[1]):
        raise ValueError("header_page puts the data over its own header")
    return PageLayout(stamp[0], commit[0], commit[1], data[0])


def parse_format(system: str, text: str, long_bytes: int) -> tuple[EventFormat, CommonLayout | None]:
    """Read one event's format text; the second value is its own common layout (None: without type or pid).

    Raises: ValueError where it has no name or id.
    """
    name, number = _NAME.search(text), _ID.search(text)
    if name is None or number is None:
        raise ValueError(f"a format of {system!r} has no name or no ID")
    head, _, print_fmt = text.partition("print fmt:")
    fields = []
    common: dict[str, tuple[int, int]] = {}
    for match in _FIELD.finditer(head):
        c_type, field_name = _split_declaration(match["declaration"])
        offset, size = int(match["offset"]), int(match["size"])
        if offset + size > MAX_RECORD_BYTES:
            raise ValueError(f"field {field_name!r} of {system}:{name[1]} lies outside of any record")
        if field_name.startswith("common_"):
            common[field_name] = (offset, size)
            continue
        signed = match["signed"] not in (None, "0")
        fields.append(
            EventField(field_name, c_type, offset, size, signed, _dtype(c_type, size, signed, long_bytes))
        )
    columns = [column_name(each.name) for each in fields]
    if len(set(columns)) < len(columns):
        raise ValueError(f"{system}:{name[1]} has two fields of one name")
    layout = None
    if "common_type" in common and "common_pid" in common:
        (type_offset, type_bytes), (pid_offset, pid_bytes) = common["common_type"], common["common_pid"]
        if type_bytes in (1, 2) and type_offset % 4 + type_bytes <= 4 and pid_bytes == 4:
            layout = CommonLayout(type_offset, type_bytes, pid_offset)
        if layout is None or layout.end > MAX_COMMON_BYTES:
            raise ValueError(f"the format of {system}:{name[1]} has impossible common fields")
    event = EventFormat(int(number[1]), system, name[1], tuple(fields), print_fmt.strip())
    return event, layout


def element_type(c_type: str) -> str:
    """Give the type of an array's elements; the type itself for all others."""
    dynamic = _DYNAMIC.match(c_type)
    if dynamic is not None:
        return dynamic["element"]
    return c_type.split("[", 1)[0].strip()


def _split_declaration(declaration: str) -> tuple[str, str]:
    """Split `char comm[16]` into (`char[16]`, `comm`)."""
    match = _DECLARATION.match(declaration.strip())
    if match is None:
        return declaration.strip(), declaration.rsplit(maxsplit=1)[-1].strip(
            "[]();"
        ) if declaration.split() else ""
    if match["only"] is not None:
        return "", match["only"]
    return f"{match['type'].strip()}{match['brackets']}", match["name"]


def _type_bytes(c_type: str, long_bytes: int) -> int | None:
    """Give the size of a C integer type; None where only its declaration would tell."""
    if c_type.endswith("*"):
        return long_bytes
    words = [word for word in c_type.split() if word not in ("const", "volatile", "unsigned", "signed")]
    if not words:
        return 4
    if "long" in words:
        return 8 if words.count("long") == 2 else long_bytes
    if words[0] in ("uintptr_t", "size_t", "ssize_t"):
        return long_bytes
    return _TYPE_BYTES.get(words[0])


def _dtype(c_type: str, size_bytes: int, signed: bool, long_bytes: int) -> pl.DataType:
    """Choose the column's dtype from what the kernel says of the field."""
    integers = _SIGNED_INTEGERS if signed else _INTEGERS
    element = element_type(c_type)
    if c_type.startswith(("__data_loc", "__rel_loc")):
        if element in ("char", "const char"):
            return pl.String()
        each = _type_bytes(element, long_bytes)
        if each is None or each == 1:
            return pl.Binary()
        return pl.List(integers[each])
    if c_type.endswith("]"):
        if element in ("char", "const char"):
            return pl.String()
        each = _type_bytes(element, long_bytes)
        if size_bytes == 0:  # reaches to the end of the record
            return pl.Binary() if each in (None, 1) else pl.List(integers[each or 8])
        count = re.match(r"^\[(\d+)\]$", c_type[c_type.index("[") :])
        if each is None and count is not None and int(count[1]) and size_bytes % int(count[1]) == 0:
            each = size_bytes // int(count[1])
        if each not in integers or size_bytes % each:
            return pl.Binary()
        return pl.Array(integers[each], size_bytes // each)
    if element in ("bool", "_Bool") and size_bytes == 1:
        return pl.Boolean()
    if c_type.endswith("*"):
        integers = _INTEGERS
    return integers.get(size_bytes, pl.Binary())
