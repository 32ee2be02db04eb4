"""Pages of ring buffers as the kernel gives them: `per_cpu/cpuN/trace_pipe_raw`, one after the other, with no header.

What a trace.dat says beside its pages has to come from elsewhere: the events' formats, the size of a page, the clock.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from itstrace.errors import CaptureError
from itstrace.readers.formats import parse_page_layout
from itstrace.readers.source import open_source
from itstrace.readers.tracedat.contents import Buffer, Container, CpuData
from itstrace.readers.tracedat.reader import TraceDat
from itstrace.readers.tracedat.source import COMMIT_MASK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from itstrace.readers.formats import PageLayout
    from itstrace.readers.source import Source

#: What a 64-bit kernel prints as its `header_page`.
#: Source: kernel/trace/ring_buffer.c:ring_buffer_print_page_header (v6.12)
_HEADER_PAGE: Final = (
    "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    "\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
    "\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;\n"
)
#: Sizes of a page: 4, 16 or 64 KiB kernel pages, and sub-buffers of several of them.
_PAGE_BYTES: Final = tuple(4096 << order for order in range(8))
_DATA_SIZE = re.compile(r"field:\s*char data;\s*offset:(\d+);\s*size:(\d+);")
#: Pages that are looked at to tell their size.
_LOOKED_AT: Final = 256
#: Bits of a commit word that mean nothing: between the size and the two that say that records were missed.
_NO_BITS: Final = (1 << 30) - 1 & ~COMMIT_MASK

_ADVICE = (
    "put them in one folder with the descriptions of the events: "
    "cp -r /sys/kernel/tracing/events FOLDER/ (on the host that recorded, with the same dynamic events); "
    "then itstrace analyze FOLDER"
)


@dataclass(frozen=True, slots=True)
class RawFile:
    """One CPU's pages. `buffer` tells the instances of tracefs apart; `name` is what to call the file."""

    path: Path
    cpu: int
    buffer: str
    name: Path


@dataclass(slots=True)
class KernelTexts:
    """What tracefs says of a kernel and its events, as text; empty where nothing does."""

    header_page: str = ""
    #: (system, format text)
    formats: list[tuple[str, str]] = field(default_factory=list)
    cmdlines: str = ""
    clocks: str = ""
    uname: str | None = None
    cpu_stats: list[str] = field(default_factory=list)


def looks_raw(head: bytes) -> bool:
    """Whether bytes may be the beginning of a page: its stamp and its commit word are possible, in either byte order."""
    if len(head) < 32:
        return False
    for order in ("<", ">"):
        stamp, commit = (int(value) for value in np.frombuffer(head[:16], f"{order}u8"))
        size = commit & COMMIT_MASK
        if 0 < stamp < 1 << 62 and _possible(commit) and 8 <= size < _PAGE_BYTES[-1] and not size % 4:
            return True
    return False


def without_formats(path: Path) -> CaptureError:
    """The error for pages of which nobody says what is in them."""
    return CaptureError(
        path,
        "holds pages of a ring buffer (trace_pipe_raw), and nothing says which events are in them",
        expected="the format files of the events beside it",
        advice=_ADVICE,
    )


def open_raw(path: Path, files: Sequence[RawFile], texts: KernelTexts) -> TraceDat:
    """Open the pages of all CPUs as one capture, called `path`.

    Raises: CaptureError where no formats are at hand, two files are of one CPU, or the files hold no pages.
    """
    if not texts.formats:
        raise without_formats(path)
    seen: dict[tuple[str, int], RawFile] = {}
    for file in files:
        other = seen.setdefault((file.buffer, file.cpu), file)
        if other is not file:
            raise CaptureError(
                file.name,
                f"is of CPU {file.cpu}, and so is {other.name}",
                advice="keep one of them in the folder",
            )
    with ExitStack() as stack:
        sources: list[Source] = []
        for file in files:
            source = open_source(file.path)
            source.path = file.name
            stack.callback(source.close)
            sources.append(source)
        container = _container(path, files, sources, texts)
        capture = TraceDat(sources, container)
        stack.pop_all()
    return capture


def _container(
    path: Path, files: Sequence[RawFile], sources: Sequence[Source], texts: KernelTexts
) -> Container:
    """What a trace.dat of these pages would say."""
    header_page = texts.header_page or _HEADER_PAGE
    try:
        layout = parse_page_layout(header_page)
    except ValueError as error:
        raise CaptureError(path, f"its header_page is damaged: {error}") from error
    told = _DATA_SIZE.search(texts.header_page)
    sizes = _PAGE_BYTES if told is None else (int(told[1]) + int(told[2]), *_PAGE_BYTES)
    largest = max(sources, key=lambda source: source.size_bytes)
    form = next(
        (
            (size, order)
            for size in sizes
            for order in ("<", ">")
            if all(
                _are_pages(source, layout, size, order)
                for source in {id(s): s for s in (sources[0], largest)}.values()
            )
        ),
        None,
    )
    if form is None:
        raise CaptureError(
            largest.path,
            "holds no pages of a ring buffer of any size from 4 to 512 KiB",
            offset_bytes=0,
            expected="pages as per_cpu/cpuN/trace_pipe_raw gives them",
            advice="cat per_cpu/cpuN/trace_pipe_raw > cpuN.raw, and header_page beside them where the kernel has 32 bits",
        )
    page_bytes, order = form
    container = Container(
        path=path,
        size_bytes=sum(source.size_bytes for source in sources),
        big_endian=order == ">",
        long_bytes=layout.commit_bytes,
        page_bytes=page_bytes,
        header_page=header_page,
        format_texts=texts.formats,
        cmdlines=texts.cmdlines,
        clocks=texts.clocks,
        uname=texts.uname,
        cpu_stats=texts.cpu_stats,
    )
    names = sorted({file.buffer for file in files}, key=lambda name: (name.count("/"), name))
    for i, name in enumerate(names):
        cpus = [
            CpuData(file.cpu, 0, source.size_bytes, source.data)
            for file, source in zip(files, sources, strict=True)
            if file.buffer == name
        ]
        container.buffers.append(Buffer(name if i else "", container.clock, page_bytes, cpus))
    return container


def _are_pages(source: Source, layout: PageLayout, size: int, order: str) -> bool:
    """Whether the first pages of a file have possible sizes, and stamps that do not fall."""
    count = min(max(source.size_bytes // size, 1), _LOOKED_AT)
    stamps, commits = [], []
    for at in range(0, count * size, size):
        head = source.data[at : at + layout.data_offset]
        if len(head) < layout.data_offset:
            return False
        stamps.append(int(np.frombuffer(head, f"{order}u8", 1, layout.stamp_offset)[0]))
        commits.append(int(np.frombuffer(head, f"{order}u{layout.commit_bytes}", 1, layout.commit_offset)[0]))
    possible = all(
        _possible(commit) and commit & COMMIT_MASK <= size - layout.data_offset for commit in commits
    )
    rising = all(
        0 <= one <= other < 1 << 62 for one, other in zip(stamps, [*stamps[1:], stamps[-1]], strict=True)
    )
    return possible and rising and any(commit & COMMIT_MASK for commit in commits)


def _possible(commit: int) -> bool:
    """Whether a word can be that of a page. The upper half repeats bit 31: RB_MISSED_EVENTS is added as an int.

    Source: kernel/trace/ring_buffer.c:ring_buffer_read_page (v6.12)
    """
    return commit & _NO_BITS == 0 and commit >> 32 in (0, 0xFFFFFFFF if commit >> 31 & 1 else 0)
