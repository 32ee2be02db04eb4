"""Bytes to events: one folder or module per format, chosen by what the file holds and never by its name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from itstrace.errors import CaptureError, UnknownFormatError
from itstrace.readers.tracedat import TraceDat
from itstrace.readers.tracedat.container import MAGIC as TRACE_DAT_MAGIC

if TYPE_CHECKING:
    from itstrace.readers.base import Capture

__all__ = ["open_capture"]

_READABLE = "a trace.dat of trace-cmd"


def open_capture(path: Path | str) -> Capture:
    """Open a capture of any format that itstrace reads.

    Raises: CaptureError where the file cannot be read; UnknownFormatError where it is no capture.
    """
    path = Path(path)
    head = _head(path)
    if head.startswith(TRACE_DAT_MAGIC):
        return TraceDat.open(path)
    raise UnknownFormatError(path, _what_it_is(head), expected=_READABLE, advice=_advice(head))


def _head(path: Path) -> bytes:
    """Give the first bytes of a regular file; others could block for ever."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CaptureError(path, "is a folder", advice="name the capture file in it")
        if not stat.S_ISREG(mode):
            raise CaptureError(
                path,
                "is a pipe or device; a capture is read more than once",
                expected="a regular file",
                advice="write it into a file first: cat PIPE > FILE",
            )
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CaptureError(
            path,
            f"cannot be read: {reason}",
            advice="look at the path and its permissions (trace-cmd records as root)",
        ) from error
    if not head:
        raise CaptureError(
            path, "is empty", advice="look at the disk space of the recording host, and record again"
        )
    return head


#: What people hand over by mistake, by its first bytes.
_OTHERS = (
    (b"PERFILE2", "is a perf.data file"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "zstd -d FILE"),
    (b"\x1f\x8b", "is compressed with gzip", "gunzip FILE"),
    (b"\xfd7zXZ\0", "is compressed with xz", "unxz FILE"),
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
