"""Reading the trace.dat file as a container: its sections and options, up to where each CPU's pages lie.

Source: trace-cmd 3.1, Documentation/trace-cmd/trace-cmd.dat.v6.5.txt and trace-cmd.dat.v7.5.txt
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.errors import CaptureError, Damage, ItsTraceError
from itstrace.readers.bytesource import MAX_SECTION_BYTES, Cursor, Decompressor
from itstrace.readers.descriptions import (
    MAGIC,
    read_cmdlines,
    read_descriptions,
    read_event_formats,
    read_ftrace_formats,
    read_header_info,
    read_printk,
)
from itstrace.readers.tracedat.clock import Tsc, parse_time_shift
from itstrace.readers.tracedat.contents import Buffer, Container, CpuData, Option

if TYPE_CHECKING:
    import mmap
    from pathlib import Path

#: Bit 0 of a section's flags: its body is one compressed block.
COMPRESSED = 1
#: The CPU column is 16 bits wide.
MAX_CPUS = 1 << 16
#: A sub-buffer has up to 128 kernel pages, of up to 64 KiB.
#: Source: kernel/trace/trace.c:buffer_subbuf_size_write (v6.12)
MIN_PAGE_BYTES, MAX_PAGE_BYTES = 1024, 128 * 65536

_CUT_ADVICE = (
    "copy it again if it was copied (unpack it again if it was packed), or record again; "
    "`trace-cmd record --file-version 6` writes files that can be read in part when they are cut"
)
_LATENCY_ADVICE = "record events into a flyrecord file: trace-cmd record -e ... without a latency tracer (-p)"


def read_container(path: Path, data: mmap.mmap) -> Container:
    """Read everything of the file but the records.

    Raises: CaptureError where the file is of another version, a latency file, or too damaged to find any
    record.
    """
    cursor = Cursor(path, data, 0, len(data))
    if cursor.take(len(MAGIC)) != MAGIC:
        raise cursor.error("no trace.dat: its first ten bytes are others")
    version = cursor.text()[:20]
    if version not in ("6", "7"):
        raise CaptureError(
            path,
            f"trace.dat version {version!r} is unknown",
            offset_bytes=len(MAGIC),
            expected="version 6 or 7",
            advice="trace-cmd convert --file-version 7 -i FILE -o NEW",
        )
    container = Container(path=path, size_bytes=len(data), version=int(version))
    endian, container.long_bytes = cursor.number(1), cursor.number(1)
    if endian > 1 or container.long_bytes not in (4, 8):
        raise cursor.error(
            f"byte order {endian} and word size {container.long_bytes} are impossible",
            expected="0 or 1, and 4 or 8",
        )
    container.big_endian = cursor.big_endian = endian == 1
    container.page_bytes = cursor.number(4)
    if version == "6":
        _read_version_6(container, cursor)
    else:
        _read_version_7(container, cursor)
    if container.header_page == "":
        raise CaptureError(path, "the file does not describe its pages", expected="a header_page section")
    if not container.buffers:
        why = f" ({container.damage[0].problem})" if container.damage else ""
        raise CaptureError(
            path,
            f"the file names no ring buffer{why}; a file of version 7 that is cut short has lost that table",
            advice=_CUT_ADVICE,
        )
    _drop_overlaps(container)
    return container


# -- version 6: one thing after the other -------------------------------------------------------------------


def _read_version_6(container: Container, cursor: Cursor) -> None:
    read_descriptions(container, cursor)
    header_cpus = cursor.number(4)
    instances: list[tuple[int, str]] = []
    tag = cursor.take(10)
    if tag == b"options  \0":
        while (option := cursor.number(2)) != Option.DONE:
            start = cursor.position
            body = cursor.part(cursor.number(4), "an option")
            if option == Option.BUFFER:
                instances.append((body.number(8), body.text()))
            else:
                _read_option(container, option, body, start)
        tag = cursor.take(10)
    cpus = header_cpus if container.cpu_count is None else container.cpu_count
    top = _flyrecord_table(container, cursor, tag, cpus, "")
    container.buffers.append(top)
    for offset, name in instances:
        place = Cursor(container.path, cursor.data, offset, cursor.end, container.big_endian)
        try:
            container.buffers.append(_flyrecord_table(container, place, place.take(10), cpus, name))
        except CaptureError as error:
            container.note_damage(offset, f"buffer {name!r} is lost: {error.message}")


def _flyrecord_table(container: Container, cursor: Cursor, tag: bytes, cpus: int, name: str) -> Buffer:
    if tag == b"latency  \0":
        raise _latency_error(container.path)
    if tag != b"flyrecord\0":
        raise cursor.error(f"unknown kind of data {tag!r}", expected="flyrecord")
    if cpus > MAX_CPUS or cpus * 16 > cursor.left:
        raise cursor.error(f"{cpus} CPUs are more than the file has room for")
    table = [CpuData(cpu, cursor.number(8), cursor.number(8)) for cpu in range(cpus)]
    buffer = Buffer(name, container.clock, container.page_bytes, table)
    _check_page_size(container, buffer)
    return buffer


# -- version 7: sections, found through a chain of option sections -------------------------------------------


def _read_version_7(container: Container, cursor: Cursor) -> None:
    container.compression = cursor.text()
    compression_version = cursor.text()
    if compression_version:
        container.notes["compression version"] = compression_version
    if container.compression not in ("none", "zstd", "zlib"):
        raise CaptureError(
            container.path,
            f"compression {container.compression!r} is unknown",
            expected="none, zlib or zstd",
            advice="trace-cmd convert --compression zstd -i FILE -o NEW",
        )
    unpacker = Decompressor(container.compression)
    offset = cursor.number(8)
    if offset >= cursor.end:
        raise CaptureError(
            container.path,
            f"is cut short: it has {cursor.end:,} bytes, and the table of its buffers stands at byte {offset:,}",
            advice=_CUT_ADVICE,
        )
    seen: set[int] = set()
    sections: dict[int, int] = {}
    while offset:
        if offset in seen:
            container.note_damage(offset, "the chain of option sections runs in a circle")
            break
        seen.add(offset)
        try:
            body, section = _section(container, cursor, offset, unpacker)
            if section != Option.DONE:
                raise body.error(f"section {section} stands where options should", expected="section 0")
            offset = _read_options(container, cursor, body, sections)
        except CaptureError as error:
            if len(seen) == 1:
                raise
            container.note_damage(offset, f"a section of options cannot be read: {error.message}")
            break
    for option, read in (
        (Option.HEADER_INFO, read_header_info),
        (Option.FTRACE_EVENTS, read_ftrace_formats),
        (Option.EVENT_FORMATS, read_event_formats),
        (Option.PRINTK, read_printk),
        (Option.CMDLINES, read_cmdlines),
    ):
        if option not in sections:
            continue
        try:
            body, section = _section(container, cursor, sections[option], unpacker)
            if section != option:
                raise body.error(f"section {section} stands where {option.name} should")
            read(container, body)
        except CaptureError as error:
            if option == Option.HEADER_INFO:
                raise
            container.note_damage(sections[option], f"{option.name} cannot be read: {error.message}")


def _section(container: Container, cursor: Cursor, offset: int, unpacker: Decompressor) -> tuple[Cursor, int]:
    head = Cursor(container.path, cursor.data, offset, cursor.end, container.big_endian, "a section")
    section, flags = head.number(2), head.number(2)
    head.number(4)  # the id of its description, for people
    size = head.number(8)
    if not flags & COMPRESSED:
        body = Cursor(container.path, cursor.data, head.position, min(head.position + size, cursor.end))
        body.what = "a section"
    else:
        packed_bytes, plain_bytes = head.number(4), head.number(4)
        packed = head.take(packed_bytes)
        if plain_bytes > MAX_SECTION_BYTES:
            raise head.error(f"a section claims {plain_bytes} bytes", expected=f"at most {MAX_SECTION_BYTES}")
        try:
            plain = unpacker.unpack(packed, plain_bytes)
        except ValueError as error:
            raise head.error(f"a compressed section is damaged ({error})") from error
        body = Cursor(container.path, plain, 0, len(plain), what="a section", file_offset_bytes=None)
    body.big_endian = container.big_endian
    return body, section


def _read_options(container: Container, cursor: Cursor, body: Cursor, sections: dict[int, int]) -> int:
    """Read one section of options; give the offset of the next (0: none)."""
    while body.left >= 6:
        start = body.position
        option = body.number(2)
        data = body.part(body.number(4), "an option")
        if option == Option.DONE:
            return data.number(8) if data.left >= 8 else 0
        if option == Option.BUFFER_TEXT:
            raise _latency_error(container.path)
        if option == Option.BUFFER:
            try:
                container.buffers.append(_read_buffer_option(container, cursor, data))
            except CaptureError as error:
                container.note_damage(body.file_offset_bytes and start, f"a buffer is lost: {error.message}")
        elif option in (
            Option.HEADER_INFO,
            Option.FTRACE_EVENTS,
            Option.EVENT_FORMATS,
            Option.PRINTK,
            Option.CMDLINES,
            Option.KALLSYMS,
            Option.BTF_FILE,
            Option.MODULES_FILE,
        ):
            sections[option] = data.number(8)
        else:
            _read_option(container, option, data, start)
    return 0


def _read_buffer_option(container: Container, cursor: Cursor, data: Cursor) -> Buffer:
    section_offset = data.number(8)
    name, clock = data.text(), data.text()
    page_bytes, count = data.number(4), data.number(4)
    if count * 20 > data.left:
        raise data.error(f"{count} CPUs are more than the option has room for")
    table = []
    for _ in range(count):
        cpu, offset, size = data.number(4), data.number(8), data.number(8)
        if cpu >= MAX_CPUS:
            container.note_damage(
                None, f"CPU number {cpu} of buffer {name!r} is absurd; its data is left out"
            )
        else:
            table.append(CpuData(cpu, offset, size))
    head = Cursor(container.path, cursor.data, section_offset, cursor.end, container.big_endian, "a buffer")
    section, flags = head.number(2), head.number(2)
    if section != Option.BUFFER:
        raise head.error(f"section {section} stands where buffer {name!r} should", expected="section 3")
    buffer = Buffer(name, clock or None, page_bytes, table, bool(flags & COMPRESSED))
    _check_page_size(container, buffer)
    return buffer


# -- what both versions share --------------------------------------------------------------------------------


def _read_option(container: Container, option: int, data: Cursor, start: int) -> None:
    """Take in one option that means the same in both versions; an unknown one is only noted."""
    known = option in Option._value2member_map_
    name = Option(option).name if known else f"option {option}"
    try:
        match option:
            case Option.CPUCOUNT:
                container.cpu_count = data.number(4)
            case Option.TRACEID:
                container.trace_id = data.number(8)
            case Option.TSC2NSEC:
                container.tsc = Tsc(data.number(4), data.number(4), data.number(8))
            case Option.TIME_SHIFT:
                container.time_shift = parse_time_shift(data)
            case Option.GUEST:
                guest, identity, count = data.text(), data.number(8), data.number(4)
                tasks = [f"{data.number(4)}:{data.number(4)}" for _ in range(min(count, data.left // 8))]
                container.guests.append(f"{guest} (id {identity:#x}; vCPU:task {' '.join(tasks)})")
            case Option.DATE | Option.OFFSET:
                amount = _strtoll(_option_text(data))
                # Source: trace-cmd.dat.v6(5): DATE is in microseconds, OFFSET in nanoseconds
                container.offset_ns += amount * 1000 if option == Option.DATE else amount
                container.notes[name] = str(amount)
            case Option.TRACECLOCK:
                container.clocks = _option_text(data)
            case Option.UNAME:
                container.uname = _option_text(data)
            case Option.VERSION:
                container.trace_cmd = _option_text(data)
            case Option.CPUSTAT:
                container.cpu_stats.append(_option_text(data))
            case Option.HOOK | Option.PROCMAPS | Option.LAST_BOOT_INFO:
                container.notes[name] = _option_text(data)
            case _:
                container.notes[name] = f"{data.left} bytes"
    except (ItsTraceError, ValueError) as error:
        container.note_damage(start, f"option {name} is damaged and left out: {error}")


def _option_text(data: Cursor) -> str:
    return data.take(data.left).split(b"\0", 1)[0].decode("utf-8", "replace").strip()


def _strtoll(text: str) -> int:
    """Read a C integer of any base.

    Raises: ValueError where there is none.
    """
    return int(text, 0) if not text.lstrip("+-").startswith("0") or "x" in text.lower() else int(text, 8)


def _latency_error(path: Path) -> CaptureError:
    return CaptureError(
        path,
        "a latency capture holds the kernel's text, not records",
        expected="a flyrecord capture",
        advice=_LATENCY_ADVICE,
    )


def _check_page_size(container: Container, buffer: Buffer) -> None:
    size = buffer.page_bytes
    if not MIN_PAGE_BYTES <= size <= MAX_PAGE_BYTES or size % 4:
        raise CaptureError(
            container.path, f"a page size of {size} bytes is impossible", expected="a power of two from 4096"
        )


def _drop_overlaps(container: Container) -> None:
    """Leave out data that lies about its place: the same bytes twice would be the same records twice."""
    claims = sorted(
        (
            (cpu.offset_bytes, cpu.size_bytes, b, c)
            for b, buffer in enumerate(container.buffers)
            for c, cpu in enumerate(buffer.cpus)
            if cpu.size_bytes
        )
    )
    free_from = 0
    dropped: set[tuple[int, int]] = set()
    for offset, size, b, c in claims:
        cpu = container.buffers[b].cpus[c].cpu
        if offset >= container.size_bytes:
            container.damage.append(Damage(offset, cpu, "the CPU's data begins behind the end of the file"))
        elif offset < free_from:
            container.damage.append(
                Damage(offset, cpu, "the CPU's data overlaps that of another; it is left out")
            )
            dropped.add((b, c))
        else:
            free_from = offset + size
            if free_from > container.size_bytes:
                missing = free_from - container.size_bytes
                container.damage.append(
                    Damage(container.size_bytes, cpu, f"the file ends {missing} bytes before the CPU's data")
                )
    for b, buffer in enumerate(container.buffers):
        buffer.cpus = [cpu for c, cpu in enumerate(buffer.cpus) if cpu.size_bytes and (b, c) not in dropped]
