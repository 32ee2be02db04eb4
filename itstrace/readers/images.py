"""Images of guest memory: the tables that KVM saved there, cut out by address, or one stretch of raw memory.

Bytes and addresses only; what the bytes mean is for `itstrace.saved_tables`. Everything is bounded: an image
that claims more than a vITS can use is refused, not read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from itstrace.errors import DumpError

#: Most bytes that one `tables.json` may have.
_INDEX_LIMIT_BYTES = 4 << 20
#: Most regions that one `tables.json` may name: one ITT per device id of a KVM vITS, and the tables.
_REGION_LIMIT = (1 << 16) + 64
#: Most bytes of one region: a table of 256 pages of 64 KiB is the largest that GITS_BASER can describe.
_REGION_LIMIT_BYTES = 16 << 20
#: Most bytes of all images of one dump together.
_TOTAL_LIMIT_BYTES = 512 << 20

_REGISTER = re.compile(r"0[xX][0-9a-fA-F]{1,16}")
_RAM_NAME = re.compile(r"guest-ram-([0-9a-fA-F]{1,16})\.")
_INDEX_NAME = "tables.json"


@dataclass(frozen=True, slots=True)
class Region:
    """One stretch of guest memory. `data` may be shorter than `size_bytes`: trailing zeros are cut off."""

    what: str
    gpa: int
    size_bytes: int
    data: bytes

    def covers(self, gpa: int, size_bytes: int) -> bool:
        """Whether all of the `size_bytes` from `gpa` on lie in this region."""
        return self.gpa <= gpa and gpa + size_bytes <= self.gpa + self.size_bytes


@dataclass(frozen=True, slots=True)
class MemoryImage:
    """Stretches of guest memory, and where they were read from."""

    path: Path
    regions: tuple[Region, ...]

    def read(self, gpa: int, size_bytes: int) -> bytes | None:
        """Guest memory from `gpa` on, less the zeros that it ends with; None where not all is known."""
        for region in self.regions:
            if region.covers(gpa, size_bytes):
                start = gpa - region.gpa
                return region.data[start : start + size_bytes].rstrip(b"\0")
        return None


@dataclass(frozen=True, slots=True)
class SavedImages:
    """A folder of table images: the registers that say where tables stand, and the memory they point to.

    `basers` are GITS_BASER<n> by n, `pendbasers` GICR_PENDBASER by vCPU. Unknown is None.
    """

    path: Path
    memory: MemoryImage
    basers: dict[int, int]
    cbaser: int | None
    propbaser: int | None
    pendbasers: tuple[int, ...]


def read_saved_images(path: Path) -> SavedImages:
    """Read a folder of table images by its `tables.json` (or that file itself).

    Raises: DumpError where the index or a file that it names is missing, broken or too large.
    """
    index_path = path / _INDEX_NAME if path.is_dir() else path
    index = _index(index_path)
    basers = {
        int(name.removeprefix("baser")): _number(index_path, name, value)
        for name, value in index.items()
        if re.fullmatch(r"baser[0-7]", name)
    }
    if not basers:
        raise DumpError(
            index_path,
            "it gives no baser0 or baser1, so where the tables stand is not known",
            expected='"baser0": "0x…"',
        )
    pendbasers = index.get("pendbaser", [])
    if not isinstance(pendbasers, list) or len(pendbasers) > _REGION_LIMIT:
        raise DumpError(index_path, '"pendbaser" is no list', expected="one value per vCPU")
    return SavedImages(
        path=path,
        memory=MemoryImage(path, _regions(index_path, index.get("regions"))),
        basers=basers,
        cbaser=_optional(index_path, index, "cbaser"),
        propbaser=_optional(index_path, index, "propbaser"),
        pendbasers=tuple(_number(index_path, "pendbaser", value) for value in pendbasers),
    )


def is_guest_ram(path: Path) -> bool:
    """Whether a file's name says that it is raw guest memory: `guest-ram-40f00000.bin.zst`."""
    return _RAM_NAME.match(path.name) is not None and not path.is_dir()


def read_guest_ram(path: Path, gpa: int | None = None) -> MemoryImage:
    """Read a stretch of raw guest memory, compressed (.zst) or not; `gpa` None: its name says where.

    Raises: DumpError where it is no such file, is damaged, or is larger than 512 MiB.
    """
    if gpa is None:
        named = _RAM_NAME.match(path.name)
        if named is None:
            raise DumpError(
                path,
                "its name does not say at which guest address it begins",
                expected="a name such as guest-ram-40f00000.bin.zst",
            )
        gpa = int(named[1], 16)
    try:
        with path.open("rb") as stream:
            data = _inflate(path, stream) if path.suffix == ".zst" else stream.read(_TOTAL_LIMIT_BYTES + 1)
    except zstandard.ZstdError as error:
        raise DumpError(path, f"cannot be decompressed: {error}", advice="copy the file again") from error
    except OSError as error:
        raise DumpError(path, f"cannot be read: {error.strerror}") from error
    if len(data) > _TOTAL_LIMIT_BYTES:
        raise DumpError(path, "too large", expected=f"at most {_TOTAL_LIMIT_BYTES >> 20} MiB of memory")
    return MemoryImage(path, (Region("guest-ram", gpa, len(data), data),))


def _inflate(path: Path, stream: BinaryIO) -> bytes:
    """All frames of a zstd stream, or a little more than the limit."""
    data, started = bytearray(), True
    frame = zstandard.ZstdDecompressor().decompressobj()
    # 4 KiB of zstd hold at most a thousand blocks of 128 KiB.
    while len(data) <= _TOTAL_LIMIT_BYTES and (piece := stream.read(4096)):
        while piece:
            data += frame.decompress(piece)
            piece = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
                started = bool(piece)
            else:
                started = True
    if started and len(data) <= _TOTAL_LIMIT_BYTES:
        raise DumpError(path, "cut short", expected="the end of a zstd frame", advice="copy the file again")
    return bytes(data)


def _index(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            text = stream.read(_INDEX_LIMIT_BYTES + 1)
    except FileNotFoundError as error:
        raise DumpError(
            path.parent,
            f"no {_INDEX_NAME} in this folder",
            advice="name the folder that holds it, or dump files (vgic-state, vgic-its-state@BASE)",
        ) from error
    except OSError as error:
        raise DumpError(path, f"cannot be read: {error.strerror}") from error
    if len(text) > _INDEX_LIMIT_BYTES:
        raise DumpError(path, "too large", expected=f"at most {_INDEX_LIMIT_BYTES >> 20} MiB")
    try:
        index = json.loads(text)
    except json.JSONDecodeError as error:
        raise DumpError(path, f"line {error.lineno}: no JSON: {error.msg}", offset_bytes=error.pos) from error
    except (ValueError, RecursionError) as error:
        raise DumpError(path, "no JSON that can be read", expected="UTF-8 text, one object") from error
    if not isinstance(index, dict):
        raise DumpError(path, "not an object", expected='{"baser0": …, "regions": […]}')
    return index


def _regions(index_path: Path, listed: Any) -> tuple[Region, ...]:
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise DumpError(
            index_path,
            '"regions" is missing or no list of objects',
            expected='{"what", "gpa", "size_bytes", "file"}',
        )
    if len(listed) > _REGION_LIMIT:
        raise DumpError(index_path, f"{len(listed)} regions", expected=f"at most {_REGION_LIMIT}")
    regions: list[Region] = []
    total_bytes = 0
    for number, entry in enumerate(listed):
        region = _region(index_path, number, entry)
        total_bytes += len(region.data)
        if total_bytes > _TOTAL_LIMIT_BYTES:
            limit = f"at most {_TOTAL_LIMIT_BYTES >> 20} MiB together"
            raise DumpError(index_path, "images too large", expected=limit)
        regions.append(region)
    return tuple(regions)


def _region(index_path: Path, number: int, entry: dict[str, Any]) -> Region:
    where = f"region {number}"
    name, size_bytes = entry.get("file"), entry.get("size_bytes")
    if not isinstance(name, str) or not name or Path(name).name != name or "\0" in name:
        raise DumpError(index_path, f'{where}: "file" is {name!r}', expected="a file in the same folder")
    if type(size_bytes) is not int or not 0 <= size_bytes <= _REGION_LIMIT_BYTES:
        limit = f"0 to {_REGION_LIMIT_BYTES}"
        raise DumpError(index_path, f'{where}: "size_bytes" is {size_bytes!r}', expected=limit)
    gpa = _number(index_path, f'{where}: "gpa"', entry.get("gpa"))
    path = index_path.parent / name
    try:
        with path.open("rb") as stream:
            data = stream.read(size_bytes + 1)
    except OSError as error:
        raise DumpError(
            path, f"cannot be read: {error.strerror}", expected=f"the file of {_INDEX_NAME}, {where}"
        ) from error
    if len(data) > size_bytes:
        limit = f"at most {size_bytes} bytes, as {_INDEX_NAME} says"
        raise DumpError(path, "longer than its table", offset_bytes=size_bytes, expected=limit)
    return Region(str(entry.get("what", "")), gpa, size_bytes, data)


def _optional(path: Path, index: dict[str, Any], name: str) -> int | None:
    return None if index.get(name) is None else _number(path, name, index[name])


def _number(path: Path, what: str, value: Any) -> int:
    if type(value) is int and 0 <= value < 1 << 64:
        return value
    if isinstance(value, str) and _REGISTER.fullmatch(value):
        return int(value, 16)
    raise DumpError(path, f"{what} is {value!r}", expected='a 64-bit number in hex, as "0x41010600"')
