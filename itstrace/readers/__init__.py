"""Bytes to events: one folder or module per format, chosen by what the file holds and never by its name."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from itstrace.errors import CaptureError, UnknownFormatError
from itstrace.readers.bundle import is_tar, open_folder, open_tar
from itstrace.readers.descriptions import MAGIC as TRACE_DAT_MAGIC
from itstrace.readers.merged import MergedCapture
from itstrace.readers.perfdata import PerfData
from itstrace.readers.perfdata.header import MAGICS as PERF_MAGICS
from itstrace.readers.qemulog import QemuLog, first_event
from itstrace.readers.source import open_source
from itstrace.readers.text import TextCapture, looks_like_graph
from itstrace.readers.tracedat import TraceDat
from itstrace.readers.tracedat.raw import looks_raw, without_formats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from itstrace.readers.base import Capture
    from itstrace.readers.source import Source

__all__ = ["open_capture", "open_captures"]

_READABLE = "a trace.dat, a perf.data, text that ftrace, trace-cmd or perf printed, or a log of QEMU's ITS"


def open_capture(path: Path | str) -> Capture:
    """Open a capture of any format that itstrace reads, plain or packed; `-` is standard input.

    A folder or a tar is opened as what it holds: captures that are parts of one, and what describes them.

    Raises: CaptureError where the file cannot be read; UnknownFormatError where it is no capture.
    """
    if Path(path).is_dir():
        return open_folder(Path(path), _open_file)
    source = open_source(path)
    if not is_tar(source):
        return _open_file(source)
    with closing(source):
        return open_tar(source, _open_file)


def open_captures(paths: Sequence[Path | str]) -> Capture:
    """Open captures that are parts of one, merged by time; a single one is opened as it is.

    Raises: what `open_capture` does; UsageError where they are no parts of one capture.
    """
    assert paths
    with ExitStack() as stack:
        parts = [stack.enter_context(open_capture(path)) for path in paths]
        whole = parts[0] if len(parts) == 1 else MergedCapture(parts)
        stack.pop_all()
    return whole


def _open_file(source: Source) -> Capture:
    head = source.head()
    if head.startswith(TRACE_DAT_MAGIC):
        return TraceDat.open(source)
    if head.startswith(tuple(PERF_MAGICS)):
        return PerfData.open(source)
    if first_event(source.data) is not None:
        return QemuLog.open(source)
    text = TextCapture.open(source)
    if text is not None:
        return text
    graph = looks_like_graph(source.data)
    source.close()
    if graph:
        raise CaptureError(
            source.path,
            "is text of the function_graph tracer, which prints events as comments, without task and time",
            advice="echo nop > /sys/kernel/tracing/current_tracer, and record again",
        )
    if looks_raw(head) and not head.startswith(tuple(magic for magic, *_ in _OTHERS)):
        raise without_formats(source.path)
    raise UnknownFormatError(source.path, _what_it_is(head), expected=_READABLE, advice=_advice(head))


#: What people hand over by mistake, by its first bytes.
_OTHERS = (
    (b"\xff\xd8\xff", "is a JPEG picture"),
    (b"\x89PNG", "is a PNG picture"),
    (b"\x7fELF", "is an ELF program"),
    (b"%PDF", "is a PDF document"),
    (b"PK\x03\x04", "is a zip archive", "unzip FILE"),
)


def _what_it_is(head: bytes) -> str:
    return next(
        (other[1] for other in _OTHERS if head.startswith(other[0])), "is no capture of a known format"
    )


def _advice(head: bytes) -> str:
    command = next((other[2] for other in _OTHERS if head.startswith(other[0]) and len(other) > 2), None)
    if command is not None:
        return f"{command}, then read what comes out"
    return "record one with `trace-cmd record -e kvm -e its -e vgic -o trace.dat`"
