#!/usr/bin/env python3
"""Build a capture of any size out of a real one: `make_capture.py --events 20_000_000 -o big.dat`.

The sections of the real file (formats, task names, options) are taken as they are. Its ring buffer pages are
repeated, each copy with its time stamps moved on by the length of the capture, so that copies follow each
other and all CPUs keep in step. The last copy ends at the record with which the number asked for is reached:
the count is exact. The base is held in memory, the copies never are.

The pages are walked by this script's own code, and not by the reader that is measured with the result.

Source: trace-cmd 3.1, trace-cmd.dat.v6(5), trace-cmd.dat.v7(5);
include/linux/ring_buffer.h:enum ring_buffer_type (v6.12)
"""

from __future__ import annotations

import argparse
import mmap
import os
import struct
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]

MAGIC: Final = b"\x17\x08\x44tracing"
#: Option ids, which are also those of the sections of version 7. Source: trace-cmd.dat.v7(5), OPTIONS SECTION
DONE, BUFFER, TRACECLOCK, CPUCOUNT, TIME_SHIFT = 0, 3, 4, 8, 12
HEADER_INFO, FTRACE_EVENTS, EVENT_FORMATS, KALLSYMS, PRINTK, CMDLINES = 16, 17, 18, 19, 20, 21
SECTIONS: Final = (HEADER_INFO, FTRACE_EVENTS, EVENT_FORMATS, KALLSYMS, PRINTK, CMDLINES)
#: Options that say where something stands in the old file: left out.
PLACES: Final = frozenset({DONE, BUFFER, CPUCOUNT, 15, *SECTIONS, 22, 23, 25})
#: What version 6 has in the place of a section that the base lacks: a count or a length of nothing.
NOTHING: Final = {FTRACE_EVENTS: 4, EVENT_FORMATS: 4, KALLSYMS: 4, PRINTK: 4, CMDLINES: 8}

#: A page: u64 stamp, u64 commit, records.
PAGE_HEAD: Final = 16
COMMIT_MASK, MISSED_STORED = (1 << 27) - 1, 1 << 30
#: A record's head has 27 bits of time, an absolute stamp 59.
DELTA_MASK: Final = np.uint64((1 << 27) - 1)
STAMP_MASK: Final = np.uint64((1 << 59) - 1)
#: Between the last record of one copy and the first of the next.
PAUSE_NS: Final = 1_000_000
CHUNK_PAGES: Final = 10  # as trace-cmd has it
WRITE_PAGES: Final = 1000
WALK_PAGES: Final = 4096

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
Stamps = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Cpu:
    """One CPU's pages. Shape: `pages` is (pages, page size)."""

    cpu: int
    pages: Bytes


@dataclass(frozen=True, slots=True)
class Base:
    """The real capture: its sections as bytes, its options, and its pages."""

    page_bytes: int
    sections: dict[int, bytes]
    options: list[tuple[int, bytes]]
    clock: bytes
    cpus: list[Cpu]
    left_out: list[str]


@dataclass(frozen=True, slots=True)
class Walk:
    """What the pages of one CPU hold.

    Shape: `times`, `ends` (byte in its page behind the record), `pages`: one per record, in order;
    `stamps`: (page, byte) of each absolute stamp.
    """

    times: Stamps
    ends: Numbers
    pages: Numbers
    stamps: Numbers
    first_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class Made:
    """What was written."""

    path: Path
    base: Path
    base_events: int
    events: int
    cpus: int
    first_ns: int
    last_ns: int
    size_bytes: int
    left_out: list[str]


# -- reading the base ------------------------------------------------------------------------------------


class Reader:
    """A place in bytes that moves on; little-endian."""

    def __init__(self, data: bytes | mmap.mmap, position: int = 0) -> None:
        self.data, self.position = data, position

    def take(self, size: int) -> bytes:
        """Give the next bytes."""
        raw = bytes(self.data[self.position : self.position + size])
        if len(raw) < size:
            raise SystemExit("the base ends early; take a whole capture")
        self.position += size
        return raw

    def number(self, size: int) -> int:
        """Give the next number."""
        return int.from_bytes(self.take(size), "little")

    def text(self) -> bytes:
        """Give the bytes up to the next NUL, and step over it."""
        end = self.data.find(b"\0", self.position)
        if end < 0:
            raise SystemExit("the base ends early; take a whole capture")
        raw = self.take(end - self.position)
        self.position = end + 1
        return raw

    def since(self, start: int) -> bytes:
        """Give the bytes from `start` to here."""
        return bytes(self.data[start : self.position])

    def options(self) -> Iterator[tuple[int, bytes]]:
        """Give options up to the one that ends them, which is left to be read."""
        while (option := self.number(2)) != DONE:
            yield option, self.take(self.number(4))


def read_base(path: Path) -> Base:
    """Read a capture of version 6 or 7; only its top buffer counts."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = Reader(data)
    if reader.take(len(MAGIC)) != MAGIC:
        raise SystemExit(f"{path} is no trace.dat")
    version = reader.text()
    if reader.take(2) != b"\0\x08":
        raise SystemExit(f"{path}: only captures of little-endian 64-bit machines can be a base")
    page_bytes = reader.number(4)
    base = _read_6(reader, page_bytes) if version == b"6" else _read_7(reader, page_bytes)
    if any(option == TIME_SHIFT for option, _ in base.options):
        raise SystemExit(f"{path}: a guest's capture synchronised with its host's cannot be a base")
    return base


def _read_6(reader: Reader, page_bytes: int) -> Base:
    sections: dict[int, bytes] = {}
    for section in SECTIONS:
        start = reader.position
        if section == HEADER_INFO:
            for _ in range(2):
                reader.text()
                reader.take(reader.number(8))
        elif section == FTRACE_EVENTS:
            _skip_formats(reader)
        elif section == EVENT_FORMATS:
            for _ in range(reader.number(4)):
                reader.text()
                _skip_formats(reader)
        else:
            reader.take(reader.number(8 if section == CMDLINES else 4))
        sections[section] = reader.since(start)
    count = reader.number(4)
    options: list[tuple[int, bytes]] = []
    left_out: list[str] = []
    tag = reader.take(10)
    if tag == b"options  \0":
        for option, body in reader.options():
            if option == CPUCOUNT:
                count = int.from_bytes(body, "little")
            elif option == BUFFER:
                left_out.append(body[8:].split(b"\0")[0].decode())
            elif option not in PLACES:
                options.append((option, body))
        tag = reader.take(10)
    if tag != b"flyrecord\0":
        raise SystemExit(f"a capture of {tag!r} cannot be a base")
    cpus = []
    for cpu in range(count):
        offset, size = reader.number(8), reader.number(8)
        cpus.append(Cpu(cpu, _plain(Reader(reader.data, offset), size, page_bytes)))
    return Base(page_bytes, sections, options, _clock(options), cpus, left_out)


def _skip_formats(reader: Reader) -> None:
    for _ in range(reader.number(4)):
        reader.take(reader.number(8))


def _clock(options: list[tuple[int, bytes]]) -> bytes:
    for option, body in options:
        for word in body.split() if option == TRACECLOCK else ():
            if word.startswith(b"["):
                return word.strip(b"[]")
    return b"local"


def _read_7(reader: Reader, page_bytes: int) -> Base:
    algorithm = reader.text()
    reader.text()
    offset = reader.number(8)
    places: dict[int, int] = {}
    buffers: list[Reader] = []
    options: list[tuple[int, bytes]] = []
    while offset:
        at = Reader(_section(reader.data, offset, algorithm))
        for option, body in at.options():
            if option == BUFFER:
                buffers.append(Reader(body))
            elif option in SECTIONS:
                places[option] = int.from_bytes(body[:8], "little")
            elif option not in PLACES:
                options.append((option, body))
        at.number(4)
        offset = at.number(8)  # of the next options
    sections = {option: _section(reader.data, place, algorithm) for option, place in places.items()}
    cpus: list[Cpu] = []
    clock, left_out = b"local", []
    for buffer in buffers:
        place, name = buffer.number(8), buffer.text()
        if name:
            left_out.append(name.decode())
            continue
        clock, page_bytes = buffer.text(), buffer.number(4)
        packed = bool(Reader(reader.data, place + 2).number(2) & 1)
        for _ in range(buffer.number(4)):
            cpu, start, size = buffer.number(4), buffer.number(8), buffer.number(8)
            read = _packed if packed else _plain
            pages = read(Reader(reader.data, start), size, page_bytes, algorithm)
            cpus.append(Cpu(cpu, pages))
    return Base(page_bytes, sections, options, clock, cpus, left_out)


def _section(data: bytes | mmap.mmap, offset: int, algorithm: bytes) -> bytes:
    head = Reader(data, offset)
    head.number(2)
    packed = head.number(2) & 1
    head.number(4)
    size = head.number(8)
    if not packed:
        return head.take(size)
    packed_bytes, plain_bytes = head.number(4), head.number(4)
    return _unpack(head.take(packed_bytes), plain_bytes, algorithm)


def _unpack(raw: bytes, size: int, algorithm: bytes) -> bytes:
    if algorithm == b"zlib":
        return zlib.decompress(raw)
    return zstandard.ZstdDecompressor().decompress(raw, max_output_size=size)


def _plain(reader: Reader, size: int, page_bytes: int, _: bytes = b"") -> Bytes:
    raw = memoryview(reader.data)[reader.position : reader.position + size // page_bytes * page_bytes]
    return np.frombuffer(raw, np.uint8).reshape(-1, page_bytes)


def _packed(reader: Reader, size: int, page_bytes: int, algorithm: bytes) -> Bytes:
    plain = bytearray()
    for _ in range(reader.number(4) if size else 0):
        packed_bytes, plain_bytes = reader.number(4), reader.number(4)
        plain += _unpack(reader.take(packed_bytes), plain_bytes, algorithm)
    return np.frombuffer(plain, np.uint8).reshape(-1, page_bytes)


# -- walking pages ---------------------------------------------------------------------------------------


def walk(cpu: Cpu) -> Walk:
    """Find every record of a CPU, and every absolute stamp."""
    parts = [
        _walk_some(cpu.pages[i : i + WALK_PAGES], i) for i in range(0, max(len(cpu.pages), 1), WALK_PAGES)
    ]
    return Walk(
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.ends for part in parts]),
        np.concatenate([part.pages for part in parts]),
        np.concatenate([part.stamps for part in parts]),
        min(part.first_ns for part in parts),
        max(part.last_ns for part in parts),
    )


def _walk_some(pages: Bytes, first_page: int) -> Walk:
    """Walk pages in lockstep: each step takes one record of every page that has one left."""
    count, page_bytes = pages.shape
    words = np.append(pages.reshape(-1).view("<u4"), np.zeros(4, np.uint32))
    heads = pages[:, :PAGE_HEAD].copy().view("<u8").reshape(count, 2)
    page = np.arange(count)
    at = page * (page_bytes // 4) + PAGE_HEAD // 4
    end = at + (heads[:, 1] & np.uint64(COMMIT_MASK)).astype(np.int64) // 4
    clock = heads[:, 0].astype(np.uint64)
    filled = at < end
    first_ns = int(clock[filled].min()) if filled.any() else 1 << 63
    last_ns = 0
    found: list[tuple[Numbers, Numbers, Stamps]] = [
        (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64))
    ]
    absolute = [np.empty((0, 2), np.int64)]
    page, at, end, clock = page[filled], at[filled], end[filled], clock[filled]
    while page.size:
        head, extra = words[at], words[at + 1].astype(np.uint64)
        kind, delta = head & np.uint32(31), (head >> np.uint32(5)).astype(np.uint64)
        if np.any((kind == 0) & (extra < 4)):
            raise SystemExit("a page of the base is damaged; take another capture")
        stamped, extended, padding, long = kind == 31, kind == 30, kind == 29, kind == 0
        if stamped.any():
            absolute.append(np.stack([page, at * 4 - page * page_bytes], axis=1)[stamped])
        low = delta | extra << np.uint64(27)
        clock = np.where(stamped, (clock & ~STAMP_MASK) | low, clock + np.where(extended, low, delta))
        counted = (extra + np.uint64(3)) >> np.uint64(2)  # a length in bytes, rounded up to words
        length = np.where(long | padding, counted, kind).astype(np.int64)
        length[stamped | extended] = 1
        length += 1
        ended = padding & (delta == 0)
        length[ended] = (end - at)[ended]
        at = at + length
        if np.any(at > end):
            raise SystemExit("a page of the base is damaged; take another capture")
        record = kind < 29
        found.append((page[record], (at * 4 - page * page_bytes)[record], clock[record]))
        last_ns = max(last_ns, int(clock.max()))
        live = at < end
        page, at, end, clock = page[live], at[live], end[live], clock[live]
    owner = np.concatenate([each[0] for each in found])
    order = np.argsort(owner, kind="stable")
    stamps = np.concatenate(absolute)
    stamps = stamps[np.lexsort((stamps[:, 1], stamps[:, 0]))]
    stamps[:, 0] += first_page
    return Walk(
        np.concatenate([each[2] for each in found])[order],
        np.concatenate([each[1] for each in found])[order],
        owner[order] + first_page,
        stamps,
        first_ns,
        last_ns,
    )


# -- copies ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """How often a CPU's pages are repeated, and how much of them the last copy has."""

    cpu: Cpu
    walk: Walk
    copies: int
    period_ns: int
    #: records of the last copy
    rest: int

    @property
    def rest_pages(self) -> int:
        """Pages of the last copy; its last record may stand in the midst of one."""
        return int(self.walk.pages[self.rest - 1]) + 1 if self.rest else 0

    @property
    def pages(self) -> int:
        """All pages that will be written."""
        return self.copies * len(self.cpu.pages) + self.rest_pages

    def blocks(self, pages: int) -> Iterator[Bytes]:
        """Give the pages, so many at once; copies do not share a block."""
        for copy in range(self.copies):
            for first in range(0, len(self.cpu.pages), pages):
                yield self._moved(slice(first, first + pages), copy)
        for first in range(0, self.rest_pages, pages):
            last = min(first + pages, self.rest_pages)
            block = self._moved(slice(first, last), self.copies)
            if last == self.rest_pages:
                _cut(block[-1], int(self.walk.ends[self.rest - 1]))
            yield block

    def _moved(self, which: slice, copy: int) -> Bytes:
        """Copy pages and move them on in time: the stamps of their heads, and those among their records."""
        block = self.cpu.pages[which].copy()
        shift = np.uint64(copy * self.period_ns)
        block.view("<u8")[:, 0] += shift
        stamps = self.walk.stamps
        low, high = np.searchsorted(stamps[:, 0], [which.start, which.stop])
        if low < high:
            words = block.view("<u4")
            page, word = stamps[low:high, 0] - which.start, stamps[low:high, 1] // 4
            high_bits = words[page, word + 1].astype(np.uint64) << np.uint64(27)
            value = (high_bits | (words[page, word] >> np.uint32(5))) + shift & STAMP_MASK
            low_bits = (value & DELTA_MASK) << np.uint64(5)
            words[page, word] = (low_bits | np.uint64(31)).astype(np.uint32)
            words[page, word + 1] = (value >> np.uint64(27)).astype(np.uint32)
        return block


def _cut(page: Bytes, end: int) -> None:
    """End a page behind a record; a count of lost records that stands behind the data moves with its end."""
    commit = page[8:16].view("<u8")
    old_end = PAGE_HEAD + (int(commit[0]) & COMMIT_MASK)
    lost = page[old_end : old_end + 8].copy() if int(commit[0]) & MISSED_STORED else page[:0]
    commit[0] = np.uint64((int(commit[0]) & ~COMMIT_MASK) | (end - PAGE_HEAD))
    page[end:] = 0
    page[end : end + len(lost)] = lost


def plan(base: Base, events: int) -> tuple[list[Plan], int, int, int]:
    """Say what each CPU has to repeat; give also the base's record count, and the first and last time."""
    walks = [walk(cpu) for cpu in base.cpus]
    each = sum(len(found.times) for found in walks)
    if not each:
        raise SystemExit("the base holds no records")
    times = np.concatenate([found.times for found in walks])
    owner = np.repeat(np.arange(len(walks)), [len(found.times) for found in walks])
    period = max(found.last_ns for found in walks) - min(found.first_ns for found in walks) + PAUSE_NS
    copies, rest = divmod(events, each)
    kept = np.bincount(owner[np.argsort(times, kind="stable")[:rest]], minlength=len(walks))
    plans = [
        Plan(cpu, found, copies, period, int(count))
        for cpu, found, count in zip(base.cpus, walks, kept, strict=True)
    ]
    if rest:
        newest = max(int(each.walk.times[: each.rest].max()) for each in plans if each.rest)
        last = newest + copies * period
    else:
        last = int(times.max()) + (copies - 1) * period
    return plans, each, int(times.min()), last


# -- writing ---------------------------------------------------------------------------------------------


def _option(option: int, body: bytes) -> bytes:
    return struct.pack("<HI", option, len(body)) + body


def _head(version: bytes, page_bytes: int) -> bytes:
    return MAGIC + version + b"\0" + b"\0\x08" + struct.pack("<I", page_bytes)


def _fill(out: BinaryIO, page_bytes: int) -> int:
    """Fill up to a multiple of the page size; give where that is."""
    out.write(bytes(-out.tell() % page_bytes))
    return out.tell()


def write_6(out: BinaryIO, base: Base, plans: list[Plan]) -> None:
    """Write version 6: pages as they are, one CPU after the other."""
    page_bytes = base.page_bytes
    out.write(_head(b"6", page_bytes))
    out.writelines(base.sections.get(section) or bytes(NOTHING[section]) for section in SECTIONS)
    cpus = 1 + max(each.cpu.cpu for each in plans)
    out.write(struct.pack("<I", cpus) + b"options  \0")
    out.writelines(_option(*each) for each in base.options)
    out.write(_option(CPUCOUNT, struct.pack("<I", cpus)) + struct.pack("<H", DONE) + b"flyrecord\0")
    clocks = next((body for option, body in base.options if option == TRACECLOCK), None)
    clock = b"" if clocks is None else struct.pack("<Q", len(clocks)) + clocks
    table_bytes = 16 * cpus + len(clock)
    at = -(-(out.tell() + table_bytes) // page_bytes) * page_bytes
    sizes = {each.cpu.cpu: each.pages * page_bytes for each in plans}
    for cpu in range(cpus):
        out.write(struct.pack("<QQ", at, sizes.get(cpu, 0)))
        at += sizes.get(cpu, 0)
    out.write(clock)
    _fill(out, page_bytes)
    for each in sorted(plans, key=lambda item: item.cpu.cpu):
        out.writelines(block.data for block in each.blocks(WRITE_PAGES))


def write_7(out: BinaryIO, base: Base, plans: list[Plan], compression: str) -> None:
    """Write version 7: sections, pages (in chunks where compressed), and the options with their places."""
    packed = compression == "zstd"
    out.write(_head(b"7", base.page_bytes) + (b"zstd\x001.5\0" if packed else b"none\0\0"))
    pointer = out.tell()
    out.write(bytes(8))
    options = [*base.options, (CPUCOUNT, struct.pack("<I", 1 + max(each.cpu.cpu for each in plans)))]
    packer = zstandard.ZstdCompressor()
    for section, body in base.sections.items():
        options.append((section, struct.pack("<Q", out.tell())))
        if packed:
            small = packer.compress(body)
            out.write(struct.pack("<HHIQ", section, 1, 0, len(small) + 8))
            out.write(struct.pack("<II", len(small), len(body)) + small)
        else:
            out.write(struct.pack("<HHIQ", section, 0, 0, len(body)) + body)
    start = out.tell()
    out.write(struct.pack("<HHIQ", BUFFER, packed, 0, 0))
    table = b""
    for each in plans:
        at = _fill(out, base.page_bytes)
        if packed:
            _write_chunks(out, each, packer)
        else:
            out.writelines(block.data for block in each.blocks(WRITE_PAGES))
        table += struct.pack("<IQQ", each.cpu.cpu, at, out.tell() - at)
    end = out.tell()
    buffer = struct.pack("<Q", start) + b"\0" + base.clock + b"\0"
    options.append((BUFFER, buffer + struct.pack("<II", base.page_bytes, len(plans)) + table))
    body = b"".join(_option(*each) for each in options) + _option(DONE, bytes(8))
    out.write(struct.pack("<HHIQ", 0, 0, 0, len(body)) + body)
    out.seek(start + 8)
    out.write(struct.pack("<Q", end - start - 16))
    out.seek(pointer)
    out.write(struct.pack("<Q", end))


def _write_chunks(out: BinaryIO, each: Plan, packer: zstandard.ZstdCompressor) -> None:
    start, chunks = out.tell(), 0
    out.write(bytes(4))
    for block in each.blocks(WRITE_PAGES):
        for first in range(0, len(block), CHUNK_PAGES):
            plain = block[first : first + CHUNK_PAGES]
            small = packer.compress(plain.data)
            out.write(struct.pack("<II", len(small), plain.nbytes) + small)
            chunks += 1
    end = out.tell()
    out.seek(start)
    out.write(struct.pack("<I", chunks))
    out.seek(end)


# -- the command -----------------------------------------------------------------------------------------


def default_base() -> Path:
    """Choose the largest capture of the folder ITSTRACE_CORPUS, else of sample-traces/."""
    corpus = os.environ.get("ITSTRACE_CORPUS")
    for folder in [Path(corpus)] if corpus else [], [ROOT / "sample-traces"]:
        found = [path for each in folder for path in each.rglob("*.dat") if path.is_file()]
        if found:
            return max(found, key=lambda path: path.stat().st_size)
    raise SystemExit("no capture to start from: name one with --from, or a folder of them in ITSTRACE_CORPUS")


def make(out: Path, events: int, base: Path, version: str = "v6", compression: str = "none") -> Made:
    """Write a capture of so many events."""
    if events < 1:
        raise SystemExit("--events: at least one")
    if out.exists() and out.samefile(base):
        raise SystemExit(f"{out} is the base itself")
    read = read_base(base)
    plans, each, first_ns, last_ns = plan(read, events)
    with out.open("wb") as file:
        if version == "v6":
            write_6(file, read, plans)
        else:
            write_7(file, read, plans, compression)
    return Made(out, base, each, events, len(plans), first_ns, last_ns, out.stat().st_size, read.left_out)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what capture to build."""
    option = parser.add_argument
    option("--events", type=int, default=20_000_000, help="how many records, exactly (20_000_000)")
    option(
        "--from",
        dest="base",
        type=Path,
        metavar="CAPTURE",
        help="the capture to repeat (the largest of the folder ITSTRACE_CORPUS, else of sample-traces/)",
    )
    option(
        "--format",
        choices=("v6", "v7"),
        default="v6",
        help="v6 (the default): plain pages, so that decoding is measured and not unpacking",
    )
    option("--compression", choices=("none", "zstd"), help="of v7 only (zstd)")


def compression_of(args: argparse.Namespace) -> str:
    """Give the compression asked for, or the usual one of the format."""
    if args.format == "v6" and args.compression == "zstd":
        raise SystemExit("version 6 knows no compression: --format v7")
    return str(args.compression or ("zstd" if args.format == "v7" else "none"))


def main() -> None:
    """Build one capture and say what is in it."""
    parser = argparse.ArgumentParser(description="Build a capture of any size out of a real one.")
    arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    begun = time.perf_counter()
    made = make(args.output, args.events, args.base or default_base(), args.format, compression_of(args))
    copies, rest = divmod(made.events, made.base_events)
    print(f"{made.path}: {args.format} {compression_of(args)}, {made.size_bytes:,} bytes")
    print(f"events  {made.events:,}: {copies} whole copies of {made.base_events:,}, and {rest:,} of one more")
    print(f"span    {made.first_ns} to {made.last_ns} ns, {made.cpus} CPUs")
    print(f"base    {made.base}" + (f"; left out: {', '.join(made.left_out)}" if made.left_out else ""))
    print(f"made in {time.perf_counter() - begun:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
