"""gzip, xz and zstd, unpacked piece by piece: never more at hand than a piece, however small the file or large its window."""

from __future__ import annotations

import lzma
import zlib
from typing import IO, TYPE_CHECKING, Final, Protocol

import zstandard

from itstrace.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK_BYTES: Final = 1 << 20
#: How much comes out at once: what a piece holds is lost where it is damaged.
_PIECE_BYTES = 64 << 10
#: xz says itself how much memory it needs; more than this no capture does (xz -9 needs 65 MiB).
_XZ_MEMORY_BYTES = 256 << 20
#: zstd --ultra --long=31 would want 2 GiB.
_ZSTD_WINDOW_BYTES = 128 << 20
#: Spec: RFC 8878, 3.1.1.1: magic number, descriptor, window, dictionary, content size
_FRAME_HEADER_BYTES = 18

_MAGICS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    # A frame to be skipped, which pzstd puts before each of its own. Spec: RFC 8878, 3.1.2
    *((bytes((low,)) + b"\x2a\x4d\x18", "zstd") for low in range(0x50, 0x60)),
)
MAGIC_BYTES = max(len(magic) for magic, _ in _MAGICS)


def packing_of(head: bytes) -> str | None:
    """What a file is packed with, by its first bytes."""
    return next((name for magic, name in _MAGICS if head.startswith(magic)), None)


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
        # A piece that ends just where the member does may leave its tail unconsumed: only `eof` says that it is over.
        while packed and not self._inner.eof:
            yield self._inner.decompress(packed, _PIECE_BYTES)
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
        yield self._inner.decompress(packed, _PIECE_BYTES)
        while not self._inner.eof and not self._inner.needs_input:
            yield self._inner.decompress(b"", _PIECE_BYTES)


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


UNPACKERS: dict[str, type[_Gzip | _Xz | _Zstd]] = {"gzip": _Gzip, "xz": _Xz, "zstd": _Zstd}


#: What the libraries raise for damaged data.
UNPACK_ERRORS = (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, MemoryError)


class Members:
    """The members of a packed file, one after the other: together they are one stream, as for `gzip -d`."""

    def __init__(self, packed: IO[bytes], kind: str) -> None:
        self._packed = packed
        self._kind = kind
        self._rest = b""
        #: bytes read so far, and what is wrong with the end
        self.taken = 0
        self._members = 0
        self.problem: str | None = None

    def pieces(self, path: Path) -> Iterator[bytes]:
        """Everything that is in them.

        Raises: CaptureError where a member needs more memory than is given; what the packing's library raises.
        """
        while self._at_member():
            if not _fits(self._kind, self._rest):
                if not self._members:
                    raise _too_hungry(path, self._kind, _ZSTD_WINDOW_BYTES)
                self.problem = (
                    f"{self._kind} data damaged after {self.taken} bytes: a frame wants too large a window"
                )
                return
            self._members += 1
            unpacker: _Unpacker = UNPACKERS[self._kind]()
            while not unpacker.eof:
                chunk = self._rest or self._read()
                self._rest = b""
                if not chunk:
                    self.problem = f"the {self._kind} file is cut short"
                    return
                try:
                    yield from unpacker.pieces(chunk)
                except lzma.LZMAError as error:
                    if "limit" in str(error).lower():
                        raise _too_hungry(path, self._kind, _XZ_MEMORY_BYTES) from error
                    raise
            self._rest = unpacker.unused_data

    def _at_member(self) -> bool:
        """Whether another member begins here; zeros between and behind them are padding."""
        while True:
            self._rest = self._rest.lstrip(b"\0") if self.taken else self._rest
            if len(self._rest) >= MAGIC_BYTES:
                break
            more = self._read()
            if not more:
                break
            self._rest += more
        if not self._rest:
            return False
        if packing_of(self._rest) != self._kind:
            self.problem = f"something else than {self._kind} follows the packed data"
            return False
        return True

    def _read(self) -> bytes:
        chunk = self._packed.read(_CHUNK_BYTES)
        self.taken += len(chunk)
        return chunk


def _fits(kind: str, head: bytes) -> bool:
    """Whether a zstd frame wants no larger window than is given: the library would call it damaged."""
    if kind != "zstd":
        return True
    try:
        window_bytes: int = zstandard.get_frame_parameters(head[:_FRAME_HEADER_BYTES]).window_size
    except zstandard.ZstdError:  # a frame to be skipped, or one that is cut short
        return True
    return window_bytes <= _ZSTD_WINDOW_BYTES


def _too_hungry(path: Path, kind: str, given_bytes: int) -> CaptureError:
    return CaptureError(
        path,
        f"needs more than {given_bytes >> 20} MiB of memory to be unpacked",
        expected=f"{kind} as it packs without --long or a dictionary of its own",
        advice=f"unpack it by hand ({kind} -d{' --long=31' if kind == 'zstd' else ''}), and give what comes out",
    )
