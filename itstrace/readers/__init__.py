"""Bytes to events: one folder or module per format, chosen by what the file holds and never by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.errors import UnknownFormatError
from itstrace.readers.descriptions import MAGIC as TRACE_DAT_MAGIC
from itstrace.readers.perfdata import PerfData
from itstrace.readers.perfdata.header import MAGICS as PERF_MAGICS
from itstrace.readers.qemulog import QemuLog, first_event
from itstrace.readers.source import open_source
from itstrace.readers.text import TextCapture
from itstrace.readers.tracedat import TraceDat

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace.readers.base import Capture

__all__ = ["open_capture"]

_READABLE = "a trace.dat, a perf.data, text that ftrace, trace-cmd or perf printed, or a log of QEMU's ITS"


def open_capture(path: Path | str) -> Capture:
    """Open a capture of any format that itstrace reads, plain or packed; `-` is standard input.

    Raises: CaptureError where the file cannot be read; UnknownFormatError where it is no capture.
    """
    source = open_source(path)
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
    source.close()
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
