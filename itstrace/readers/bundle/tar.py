"""Taking a tar apart: regular files under names of their own, into a temporary folder, and nothing else.

A tar of somebody else's is as hostile as any capture. Links, devices and names that lead out of the folder are left
out and said; what comes out are bytes of the tar itself, each at most once, so it is never more than went in.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from itstrace.errors import CaptureError

if TYPE_CHECKING:
    from itstrace.readers.source import Source

#: Where a header says that it is one, and what. Source: tar(5), POSIX ustar Archives
_MAGIC_AT, _MAGIC = 257, b"ustar"
#: A copy of tracefs's events has some fifteen thousand files.
_MAX_ENTRIES: Final = 200_000
_CHUNK_BYTES: Final = 1 << 20
_SHOWN: Final = 4


def is_tar(source: Source) -> bool:
    """Whether the bytes are a tar."""
    return source.head(512)[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def unpack_tar(source: Source, folder: Path) -> list[str]:
    """Unpack the regular files; give what the reader should know about the others.

    Raises: CaptureError where it holds more entries than any bundle, or there is no room for it.
    """
    left_out: list[str] = []
    notes: list[str] = []
    last, count = -1, 0
    try:
        with tarfile.open(fileobj=source.data, mode="r:", errorlevel=0) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it would remember them all
                count += 1
                if count > _MAX_ENTRIES:
                    raise CaptureError(
                        source.path,
                        f"holds more than {_MAX_ENTRIES:,} entries",
                        advice="unpack it by hand, and name the capture in it",
                    )
                if member.offset <= last or member.size < 0:
                    notes.append(f"{source.path} runs in a circle: read up to entry {count}")
                    break
                last = member.offset
                if member.isdir():
                    continue
                target = _place(folder, member.name)
                if target is None or not member.isreg() or member.issparse():
                    left_out.append(member.name)
                    continue
                end = member.offset_data + member.size
                if end > source.size_bytes:
                    notes.append(f"{source.path} is cut short within {_clean(member.name)}")
                if not _write(source, target, member.offset_data, end):
                    left_out.append(member.name)
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError, MemoryError) as error:
        notes.append(f"{source.path} is damaged after entry {count}: {error}")
    if left_out:
        named = ", ".join(_clean(name) for name in left_out[:_SHOWN])
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        notes.append(
            f"entries of {source.path} left out (links, devices, names that lead out of it): {named}{more}"
        )
    return notes


def _place(folder: Path, name: str) -> Path | None:
    """Where an entry goes; None where its name leads elsewhere."""
    pure = PurePosixPath(name)
    parts = [part for part in pure.parts if part != "."]
    if pure.is_absolute() or ".." in parts or not parts or "\0" in name:
        return None
    return folder.joinpath(*parts)


def _write(source: Source, target: Path, start: int, end: int) -> bool:
    """Copy bytes of the tar into a file; False where it can have no such name.

    Raises: CaptureError where there is no room.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    except (OSError, ValueError):  # a name too long, a file where a folder should be
        return False
    try:
        with file:
            for at in range(start, min(end, source.size_bytes), _CHUNK_BYTES):
                file.write(source.data[at : min(at + _CHUNK_BYTES, end)])
    except OSError as error:
        raise CaptureError(
            source.path,
            f"cannot be unpacked: {(error.strerror or str(error)).lower()}",
            advice="TMPDIR=FOLDER names a folder with more room",
        ) from error
    return True


def _clean(name: str) -> str:
    return ascii(name)[1:-1][:60]
