"""The bytes of a capture, whatever they came in: a file, standard input, or either packed with gzip, xz or zstd.

Every reader works on a map of a regular file. What is packed, or comes through a pipe, is first written to an
unlinked temporary file, a chunk at a time; a file that unpacks beyond all measure stops there.
"""

from __future__ import annotations

import lzma
import mmap
import os
import stat
import sys
import tempfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

import zstandard

from itstrace.errors import CaptureError, Damage

if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN: Final = Path("-")
_CHUNK_BYTES = 1 << 20
#: What a packed file may unpack to: this much in any case, and so many times its own size beyond it. Ring buffers
#: and their text pack to a tenth or a thirtieth; only what was made to fill disks packs to a thousandth.
FREE_BYTES, MAX_RATIO = 256 << 20, 400
#: xz says itself how much memory it needs; more than this no capture does (xz -9 needs 65 MiB).
_XZ_MEMORY_BYTES = 256 << 20
#: zstd --ultra --long=31 would want 2 GiB.
_ZSTD_WINDOW_BYTES = 128 << 20
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
    file = _from_pipe(sys.stdin.buffer) if path == STDIN else _opened(path)
    try:
        while (kind := _packing(file)) is not None:
            if len(packing) == _MAX_LAYERS:
                raise CaptureError(
                    path,
                    f"is packed {_MAX_LAYERS + 1} times over ({', '.join((*packing, kind))})",
                    advice="unpack it by hand",
                )
            with file:
                plain = _spool(path)
                problem = _unpack(path, file, kind, plain)
                if problem is not None:
                    damage.append(Damage(plain.tell(), None, problem))
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


_COPY = "copy the file again, or record again"
_MAGICS = ((b"\x1f\x8b\x08", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))


def _packing(file: IO[bytes]) -> str | None:
    file.seek(0)
    head = file.read(8)
    file.seek(0)
    return next((name for magic, name in _MAGICS if head.startswith(magic)), None)


def _opened(path: Path) -> IO[bytes]:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CaptureError(path, "is a folder", advice="name the capture file in it")
        if stat.S_ISFIFO(mode):
            with path.open("rb") as pipe:
                return _from_pipe(pipe)
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


def _from_pipe(pipe: IO[bytes]) -> IO[bytes]:
    """Everything that comes through a pipe, in a temporary file."""
    plain = _spool(STDIN)
    while chunk := pipe.read(_CHUNK_BYTES):
        _write(STDIN, plain, chunk)
    return plain


def _write(path: Path, plain: IO[bytes], chunk: bytes) -> None:
    try:
        plain.write(chunk)
    except OSError as error:
        raise CaptureError(
            path,
            f"cannot be unpacked: {(error.strerror or str(error)).lower()} after {plain.tell()} bytes",
            advice="TMPDIR=FOLDER names a folder with more room",
        ) from error


class _Unpacker(Protocol):
    """What the three packings have in common: bytes in, bytes out, never more of them than asked for."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def pieces(self, packed: bytes) -> Iterator[bytes]: ...


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def pieces(self, packed: bytes) -> Iterator[bytes]:
        while packed:
            yield self._inner.decompress(packed, _CHUNK_BYTES)
            packed = self._inner.unconsumed_tail


class _Xz:
    def __init__(self) -> None:
        self._inner = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def pieces(self, packed: bytes) -> Iterator[bytes]:
        yield self._inner.decompress(packed, _CHUNK_BYTES)
        while not self._inner.eof and not self._inner.needs_input:
            yield self._inner.decompress(b"", _CHUNK_BYTES)


class _Zstd:
    #: A block unpacks to 128 KiB at most and takes three bytes at least: fed so little, no more than 8 MiB come at once.
    _FED_BYTES = 256

    def __init__(self) -> None:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._inner = unpacker.decompressobj(write_size=_CHUNK_BYTES)
        self._unused = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._unused

    def pieces(self, packed: bytes) -> Iterator[bytes]:
        step = self._FED_BYTES
        for at in range(0, len(packed), step):
            yield self._inner.decompress(packed[at : at + step])
            if self._inner.eof:
                self._unused = self._inner.unused_data + packed[at + step :]
                return


_UNPACKERS: dict[str, type[_Gzip | _Xz | _Zstd]] = {"gzip": _Gzip, "xz": _Xz, "zstd": _Zstd}


def _unpack(path: Path, packed: IO[bytes], kind: str, plain: IO[bytes]) -> str | None:
    """Unpack a file into another; give what is wrong with it, where only its beginning could be unpacked.

    Raises: CaptureError where more comes out than any capture holds.
    """
    taken = given = 0
    unpacker: _Unpacker = _UNPACKERS[kind]()
    rest = b""
    try:
        while chunk := rest or packed.read(_CHUNK_BYTES):
            if not rest:
                taken += len(chunk)
            for piece in unpacker.pieces(chunk):
                given += len(piece)
                if given > FREE_BYTES + MAX_RATIO * taken:
                    raise CaptureError(
                        path,
                        f"unpacks to more than {given >> 20} MiB, {MAX_RATIO} times its size: nothing that a tracer wrote does",
                        offset_bytes=taken,
                        advice=f"unpack it by hand ({kind} -d) if you trust it, and give what comes out",
                    )
                _write(path, plain, piece)
            rest = b""
            if unpacker.eof:
                # Several members in one file are one stream, as for gzip -d; anything else behind the end is padding.
                rest = unpacker.unused_data.lstrip(b"\0") or packed.read(_CHUNK_BYTES)
                if not rest:
                    return None
                magic = next(magic for magic, name in _MAGICS if name == kind)
                if not rest.startswith(magic):
                    return f"something else than {kind} follows the packed data"
                unpacker = _UNPACKERS[kind]()
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, MemoryError) as error:
        return f"{kind} data damaged after {taken} bytes: {error}"
    return None if unpacker.eof else f"the {kind} file is cut short"
