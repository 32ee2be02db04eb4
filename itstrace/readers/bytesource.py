"""Bounded reading of numbers, strings and compressed blocks out of a file that may lie about all of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard

from itstrace.errors import CaptureError

if TYPE_CHECKING:
    import mmap
    from pathlib import Path

#: No section of meta data is this big; one that claims to be is a lie (kallsyms of a large kernel is 20 MiB).
MAX_SECTION_BYTES = 256 << 20


@dataclass(slots=True)
class Cursor:
    """A place in a run of bytes that moves on as numbers are read, in the byte order of the file.

    Raises: CaptureError where the bytes end before the number does.
    """

    path: Path
    data: bytes | mmap.mmap
    position: int
    end: int
    big_endian: bool = False
    #: what the bytes are, for the error; and where they begin in the file (None: they were compressed)
    what: str = "the file"
    file_offset_bytes: int | None = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self.end - self.position

    def error(self, problem: str, *, expected: str | None = None) -> CaptureError:
        """Make the error that says where in the file reading stopped."""
        where = None if self.file_offset_bytes is None else self.file_offset_bytes + self.position
        return CaptureError(
            self.path,
            problem,
            offset_bytes=where,
            expected=expected,
            advice="copy the file again, or record again; the file is cut short or damaged here",
        )

    def take(self, size_bytes: int) -> bytes:
        """Read the next bytes."""
        if size_bytes > self.left:
            raise self.error(
                f"{self.what} ends early", expected=f"{size_bytes} more bytes, found {max(self.left, 0)}"
            )
        start = self.position
        self.position = start + size_bytes
        return bytes(self.data[start : self.position])

    def number(self, size_bytes: int) -> int:
        """Read an unsigned integer."""
        return int.from_bytes(self.take(size_bytes), "big" if self.big_endian else "little")

    def text(self) -> str:
        """Read a string that ends with a NUL."""
        stop = self.data.find(b"\0", self.position, self.end)
        if stop < 0:
            raise self.error(f"{self.what} ends within a string", expected="a NUL")
        raw = self.take(stop - self.position)
        self.position = stop + 1
        return raw.decode("utf-8", "replace")

    def part(self, size_bytes: int, what: str) -> Cursor:
        """Give a cursor over the next bytes, and step over them."""
        if size_bytes > self.left:
            raise self.error(f"{what} of {size_bytes} bytes is longer than what holds it")
        start = self.position
        self.position = start + size_bytes
        return Cursor(
            self.path, self.data, start, self.position, self.big_endian, what, self.file_offset_bytes
        )


class Decompressor:
    """Unpacks blocks of the one compression that a file uses, and never more than a block says it holds.

    Raises: ValueError (from `unpack`) where the block is damaged or its size is not what was said.
    """

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._zstd = zstandard.ZstdDecompressor() if algorithm == "zstd" else None

    def unpack(self, packed: bytes | memoryview, size_bytes: int) -> bytes:
        """Give the `size_bytes` bytes that the block holds."""
        if self._zstd is not None:
            try:
                stated = zstandard.frame_content_size(packed)
                if stated not in (-1, size_bytes):
                    raise ValueError(f"the frame holds {stated} bytes, {size_bytes} were announced")
                # A frame that states no size is unpacked into a buffer of the announced one.
                plain = self._zstd.decompress(packed, max_output_size=size_bytes)
            except zstandard.ZstdError as error:
                raise ValueError(f"zstd: {error}") from error
        else:
            try:
                unpacker = zlib.decompressobj()
                plain = unpacker.decompress(packed, size_bytes)
            except zlib.error as error:
                raise ValueError(f"zlib: {error}") from error
        if len(plain) != size_bytes:
            raise ValueError(f"{len(plain)} bytes came out, {size_bytes} were announced")
        return plain
