"""What a folder holds: captures, ring buffer pages, dumps of the tables, and what tracefs says of the kernel.

Captures are told by their content, dumps and the kernel's texts by the names that the kernel gives them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from itstrace.errors import CaptureError
from itstrace.readers.descriptions import MAGIC as TRACE_DAT_MAGIC
from itstrace.readers.descriptions import MAX_EVENTS
from itstrace.readers.source import peek
from itstrace.readers.tracedat.raw import KernelTexts, RawFile, looks_raw

if TYPE_CHECKING:
    from collections.abc import Iterator

#: First bytes of captures that are no text. Source: trace-cmd.dat.v7(5); tools/perf/util/header.c:__perf_magic2
_BINARY: Final = (TRACE_DAT_MAGIC, b"PERFILE2")
#: A copy of tracefs's events has some fifteen thousand files.
_MAX_FILES: Final = 200_000
_TEXT_BYTES: Final = 1 << 20
_CPU = re.compile(r"(?:^|[/._-])cpu(\d{1,5})(?![0-9a-z])")
_DUMPS: Final = ("vgic-state", "vgic-its-state")
_TABLES: Final = "tables.json"
#: Files of a kernel's description at the top of a folder, or in one within it.
_UNAMES: Final = ("uname", "uname.txt", "uname-a", "uname-a.txt")
_DEPTH: Final = 2


@dataclass(slots=True)
class Holdings:
    """What a folder holds; paths are relative to it."""

    captures: list[Path] = field(default_factory=list)
    raws: list[RawFile] = field(default_factory=list)
    #: may be captures too: only a reader of text can tell
    texts: list[Path] = field(default_factory=list)
    dumps: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    kernel: KernelTexts = field(default_factory=KernelTexts)
    #: what the reader should know
    notes: list[str] = field(default_factory=list)


def scan(root: Path, shown: Path) -> Holdings:
    """Look at every file of a folder. `shown` is what to call it.

    Raises: CaptureError where it cannot be read, or holds more than any bundle.
    """
    held = Holdings()
    images: list[Path] = []
    for path in _files(root, shown):
        if any(folder in path.parents for folder in images):
            continue
        if path.name == _TABLES:
            images.append(path.parent)
            held.dumps.append(path.parent)
        elif path.name.startswith(_DUMPS):
            held.dumps.append(path)
        elif not _kernel_text(root, path, held.kernel):
            _by_content(root, shown, path, held)
    held.kernel.cpu_stats.sort()
    held.raws.sort(key=lambda file: (file.buffer, file.cpu))
    return held


def _files(root: Path, shown: Path) -> Iterator[Path]:
    """Every regular file, relative to the folder, a folder's own files before those of the folders in it."""

    def refuse(error: OSError) -> None:
        raise CaptureError(
            shown, f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from error

    count = 0
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # The one that says that the rest are images of tables goes first.
        for name in sorted(names, key=lambda name: (name != _TABLES, name)):
            count += 1
            if count > _MAX_FILES:
                raise CaptureError(
                    shown, f"holds more than {_MAX_FILES:,} files", advice="name the capture file in it"
                )
            path = Path(folder, name)
            if path.is_file() and not name.startswith("."):
                yield path.relative_to(root)


def _kernel_text(root: Path, path: Path, texts: KernelTexts) -> bool:
    """Take in a text of tracefs or of the host; False where the file is none."""
    name, parts = path.name, path.parts
    in_events = "events" in parts[:-1]
    if name == "format" and len(parts) > 2:
        _add_format(texts, parts[-3], root / path)
    elif name.endswith(".format") and "." in name.removesuffix(".format"):
        _add_format(texts, name.split(".", 1)[0], root / path)
    elif name == "header_page":
        texts.header_page = texts.header_page or _text(root / path)
    elif in_events:
        pass  # enable, id, filter, trigger, header_event, ...
    elif name in _UNAMES and len(parts) <= _DEPTH:
        texts.uname = texts.uname or _text(root / path).strip()
    elif name == "saved_cmdlines":
        texts.cmdlines += _text(root / path)
    elif name == "trace_clock":
        texts.clocks = texts.clocks or _text(root / path)
    else:
        return False
    return True


def _add_format(texts: KernelTexts, system: str, path: Path) -> None:
    if len(texts.formats) < MAX_EVENTS:
        texts.formats.append((system, _text(path)))


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_TEXT_BYTES).decode("utf-8", "replace")


def _by_content(root: Path, shown: Path, path: Path, held: Holdings) -> None:
    head = peek(root / path)
    cpu = _CPU.search(path.as_posix())
    if not head:
        return
    if head.startswith(_BINARY):
        held.captures.append(path)
    elif cpu is not None and b"entries:" in head[:256] and "stats" in path.name:
        # trace-cmd puts the CPU before what the kernel says of it.
        held.kernel.cpu_stats.append(f"CPU: {int(cpu[1])}\n{_text(root / path)}")
    elif cpu is not None and looks_raw(head):
        held.raws.append(RawFile(root / path, int(cpu[1]), _buffer(path), shown / path))
    elif b"\0" not in head:
        held.texts.append(path)
    else:
        held.others.append(path)
        if cpu is not None:
            held.notes.append(f"{shown / path} is named as a CPU's pages, but does not hold any: left out")


def _buffer(path: Path) -> str:
    """What tells the pages of one ring buffer from those of another: the path without the CPU."""
    kept = [part for part in path.parts[:-1] if _CPU.fullmatch(part) is None and part != "per_cpu"]
    return "/".join(kept)
