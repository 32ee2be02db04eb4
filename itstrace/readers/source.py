"""The bytes of a capture, whatever they came in: a file, standard input, or either packed with gzip, xz or zstd.

Every reader works on a map of a regular file. What is packed, or comes through a pipe, is first written to an
unlinked temporary file, a chunk at a time; a file that unpacks beyond all measure stops there.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from itstrace.errors import CaptureError, Damage
from itstrace.readers.packing import MAGIC_BYTES, UNPACK_ERRORS, UNPACKERS, Members, packing_of

STDIN: Final = Path("-")
_CHUNK_BYTES = 1 << 20
_PEEKED_BYTES = 64 << 10
#: What a packed file may unpack to: this much in any case, and so many times its own size beyond it. Ring buffers
#: and their text pack to a tenth or a thirtieth; only what was made to fill disks packs to a thousandth.
FREE_BYTES, MAX_RATIO = 256 << 20, 400
#: Packed in packed in packed: two are a mistake somebody made, more are an attack.
_MAX_LAYERS = 2


@dataclass(slots=True)
class Source:
    """The bytes of one capture. `path` is what to call it; `packing` what it was packed with, outermost first."""

    path: Path
    data: mmap.mmap
    packing: tuple[str, ...] = ()
    damage: list[Damage] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """How many bytes there are, unpacked."""
        return len(self.data)

    def head(self, size_bytes: int = 4096) -> bytes:
        """The first bytes."""
        return self.data[:size_bytes]

    def close(self) -> None:
        """Let go of the file."""
        # Blocks still being read have views of the map: it goes with the last of them.
        with suppress(BufferError):
            self.data.close()


def open_source(path: Path | str) -> Source:
    """Open a file or standard input (`-`), and unpack what is packed.

    Raises: CaptureError where it cannot be read, is empty, or unpacks beyond all measure.
    """
    path = Path(path)
    packing: list[str] = []
    damage: list[Damage] = []
    file = _standard_input() if path == STDIN else _opened(path)
    packed_bytes = file.seek(0, os.SEEK_END)
    try:
        while (kind := _packing(file)) is not None:
            if len(packing) == _MAX_LAYERS:
                raise CaptureError(
                    path,
                    f"is packed {_MAX_LAYERS + 1} times over ({', '.join((*packing, kind))})",
                    advice="unpack it by hand",
                )
            plain = _spool(path)
            with file, ExitStack() as unpacked:
                unpacked.callback(plain.close)
                problem = _unpack(path, file, kind, plain, FREE_BYTES + MAX_RATIO * packed_bytes)
                if problem is not None:
                    damage.append(Damage(plain.tell(), None, problem))
                unpacked.pop_all()
            file = plain
            packing.append(kind)
        size = file.seek(0, os.SEEK_END)
        if not size:
            if damage:
                raise CaptureError(path, f"nothing could be unpacked: {damage[0].problem}", advice=_COPY)
            what = "nothing came on standard input" if path == STDIN else "is empty"
            raise CaptureError(
                path, what, advice="look at the disk space of the recording host, and record again"
            )
        return Source(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), tuple(packing), damage)
    finally:
        file.close()


def peek(path: Path, size_bytes: int = 4096) -> bytes:
    """The first bytes of a regular file, unpacked; fewer, or none, where they cannot be had."""
    try:
        with path.open("rb") as file:
            head = file.read(_PEEKED_BYTES)
    except OSError:
        return b""
    for _ in range(_MAX_LAYERS):
        kind = packing_of(head)
        if kind is None:
            break
        plain = b""
        with suppress(*UNPACK_ERRORS):
            for piece in UNPACKERS[kind]().pieces(head):
                plain += piece
                if len(plain) >= _PEEKED_BYTES:
                    break
        head = plain[:_PEEKED_BYTES]
    return head[:size_bytes]


_COPY = "copy the file again, or record again"


def _packing(file: IO[bytes]) -> str | None:
    file.seek(0)
    head = file.read(MAGIC_BYTES)
    file.seek(0)
    return packing_of(head)


def _opened(path: Path) -> IO[bytes]:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CaptureError(path, "is a folder", expected="a file", advice="name the file in it")
        if stat.S_ISFIFO(mode):
            # One that was read already may have no writer any more: to open it would wait for ever.
            descriptor = os.open(path, os.O_RDONLY | (os.O_NONBLOCK if path in _came else 0))
            os.set_blocking(descriptor, True)
            with os.fdopen(descriptor, "rb") as pipe:
                return _from_pipe(path, pipe)
        if not stat.S_ISREG(mode):
            raise CaptureError(
                path,
                "is a device or a socket",
                expected="a file or a pipe",
                advice="write it into a file first: cat IT > FILE",
            )
        return path.open("rb")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CaptureError(
            path,
            f"cannot be read: {reason}",
            advice="look at the path and its permissions (trace-cmd records as root)",
        ) from error


def _spool(path: Path) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(prefix="itstrace-")
    except OSError as error:
        raise CaptureError(
            path,
            f"cannot be unpacked: {error.strerror}",
            advice="TMPDIR=FOLDER names a folder with room for it",
        ) from error


def _standard_input() -> IO[bytes]:
    """Standard input, as a file that can be read from its beginning.

    Raises: CaptureError where there is none.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise CaptureError(STDIN, "standard input is closed", advice="itstrace analyze - < FILE")
    pipe = sys.stdin.buffer
    try:
        if stat.S_ISREG(os.fstat(pipe.fileno()).st_mode):
            return os.fdopen(os.dup(pipe.fileno()), "rb")
    except (OSError, ValueError):  # not a file of the system at all
        pass
    return _from_pipe(STDIN, pipe)


#: What came through pipes. They give it once only, and a command may open its capture twice.
_came: dict[Path, IO[bytes]] = {}


def _from_pipe(path: Path, pipe: IO[bytes]) -> IO[bytes]:
    """Everything that comes through a pipe, in a temporary file."""
    kept = _came.get(path)
    if kept is None or (first := pipe.read(_CHUNK_BYTES)):
        plain = _spool(path)
        chunk = pipe.read(_CHUNK_BYTES) if kept is None else first
        while chunk:
            _write(path, plain, chunk)
            chunk = pipe.read(_CHUNK_BYTES)
        plain.flush()
        kept = _came[path] = plain
    return os.fdopen(os.dup(kept.fileno()), "rb")


def _write(path: Path, plain: IO[bytes], chunk: bytes) -> None:
    try:
        plain.write(chunk)
    except OSError as error:
        raise CaptureError(
            path,
            f"cannot be unpacked: {(error.strerror or str(error)).lower()} after {plain.tell()} bytes",
            advice="TMPDIR=FOLDER names a folder with more room",
        ) from error


def _unpack(path: Path, packed: IO[bytes], kind: str, plain: IO[bytes], limit_bytes: int) -> str | None:
    """Unpack a file into another; give what is wrong with it, where only its beginning could be unpacked.

    Raises: CaptureError where more comes out than any capture holds, or unpacking takes more memory than is given.
    """
    given = 0
    members = Members(packed, kind)
    try:
        for piece in members.pieces(path):
            given += len(piece)
            if given > limit_bytes:
                raise CaptureError(
                    path,
                    f"unpacks to more than {limit_bytes >> 20} MiB, {MAX_RATIO} times its size: nothing that a tracer wrote does",
                    offset_bytes=members.taken,
                    advice=f"unpack it by hand ({kind} -d) if you trust it, and give what comes out",
                )
            _write(path, plain, piece)
    except UNPACK_ERRORS as error:
        return f"{kind} data damaged after {members.taken} bytes: {error}"
    return members.problem
