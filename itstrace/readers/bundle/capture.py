"""A folder or a tar as one `Capture`: its captures merged, described by what lies beside them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Self

from itstrace.errors import CaptureError, UnknownFormatError, UsageError
from itstrace.readers.base import CaptureInfo, SeedFile
from itstrace.readers.bundle.manifest import NAME, Manifest, read_manifest
from itstrace.readers.bundle.scan import Holdings, scan
from itstrace.readers.bundle.tar import unpack_tar
from itstrace.readers.merged import MergedCapture
from itstrace.readers.source import open_source
from itstrace.readers.tracedat.raw import open_raw
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import polars as pl

    from itstrace.errors import Damage
    from itstrace.readers.base import Block, Capture, EventFormat, Wanted
    from itstrace.readers.source import Source

    #: Opens a file by its content; raises UnknownFormatError where it is no capture.
    Opener = Callable[[Source], Capture]

#: Files named one by one in a text.
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class _Folder:
    """Where the files are, what to call the folder, and how to open one of them."""

    root: Path
    shown: Path
    opener: Opener

    def open(self, path: Path) -> Capture:
        """Open a capture in it."""
        source = open_source(self.root / path)
        source.path = self.shown / path
        return self.opener(source)


def open_folder(path: Path, opener: Opener) -> Bundle:
    """Open what a folder holds.

    Raises: CaptureError where it holds no capture, or a damaged manifest; UsageError where it holds several that are no
    parts of one.
    """
    return _open(_Folder(path, path, opener), [])


def open_tar(source: Source, opener: Opener) -> Bundle:
    """Open what a tar holds, unpacked into a temporary folder that is gone when the bundle is closed.

    Raises: what `open_folder` does; CaptureError where the tar is beyond all measure.
    """
    with ExitStack() as stack:
        try:
            root = Path(stack.enter_context(TemporaryDirectory(prefix="itstrace-")))
        except OSError as error:
            raise CaptureError(
                source.path,
                f"cannot be unpacked: {(error.strerror or str(error)).lower()}",
                advice="TMPDIR=FOLDER names a folder with room for it",
            ) from error
        notes = unpack_tar(source, root)
        entries = list(root.iterdir())
        if len(entries) == 1 and entries[0].is_dir():  # a folder was packed, not what is in it
            root = entries[0]
        bundle = _open(_Folder(root, source.path, opener), notes, source.damage)
        # What was opened last is closed first: the captures before the folder that they lie in.
        bundle.below.push(stack.pop_all())
    return bundle


def _open(folder: _Folder, notes: Sequence[str], damage: Sequence[Damage] = ()) -> Bundle:
    with ExitStack() as stack:
        manifest = read_manifest(folder.root, folder.shown)
        held = scan(folder.root, folder.shown)
        parts = _open_parts(folder, manifest, held, stack)
        for part in parts:
            _tell(part.info, manifest, held)
        whole = parts[0] if len(parts) == 1 else _merged(folder.shown, parts)
        stack.pop_all()
    return Bundle(whole, partial(_describe, folder, manifest, held, notes), list(damage))


@dataclass(slots=True)
class Bundle:
    """The captures of a folder or a tar. What it gives is theirs; its `info` tells what else is there."""

    whole: Capture
    #: What the folder adds to what its captures say of themselves.
    described: Callable[[CaptureInfo], CaptureInfo]
    #: of the tar itself
    cut: list[Damage]
    #: what lies below the captures, to be closed after them
    below: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the captures, and of what was unpacked."""
        with self.below:
            self.whole.close()

    @property
    def info(self) -> CaptureInfo:
        """What the captures say about themselves, a text only once it was read, and what lies beside them."""
        return self.described(self.whole.info)

    @property
    def formats(self) -> Mapping[str, EventFormat]:
        """The event types that the captures describe, by full name."""
        return self.whole.formats

    @property
    def comms(self) -> Mapping[int, str]:
        """Task names by pid."""
        return self.whole.comms

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Stream the events asked for, in order of time."""
        return self.whole.blocks(wanted)

    def read(self, name: str, limit: int | None = None) -> pl.DataFrame:
        """All records (or the first `limit`) of one event."""
        return self.whole.read(name, limit)

    def counts(self) -> pl.DataFrame:
        """Records per event and CPU. Shape: rows of COUNTS."""
        return self.whole.counts()

    def span(self) -> tuple[int | None, int | None]:
        """Times of the first and the last record, in ns."""
        return self.whole.span()

    def gaps(self) -> pl.DataFrame:
        """Stretches in which records were lost. Shape: rows of GAPS."""
        return self.whole.gaps()

    def damage(self) -> list[Damage]:
        """Where the files are cut short or damaged."""
        return [*self.cut, *self.whole.damage()]


# -- which captures ------------------------------------------------------------------------------------------


def _open_parts(folder: _Folder, manifest: Manifest, held: Holdings, stack: ExitStack) -> list[Capture]:
    """Open the captures that the manifest names, else all that are found.

    Text is taken where there is nothing else: beside a trace.dat it is most likely what somebody printed of it.
    """
    if manifest.captures is not None:
        return [stack.enter_context(_named(folder, path, held)) for path in manifest.captures]
    parts = [stack.enter_context(folder.open(path)) for path in held.captures]
    if held.raws:
        parts.append(stack.enter_context(open_raw(folder.shown, held.raws, held.kernel)))
    if not parts:
        for path in held.texts:
            try:
                parts.append(stack.enter_context(folder.open(path)))
            except UnknownFormatError:
                held.others.append(path)
    if not parts:
        raise _nothing(folder.shown, held)
    return parts


def _named(folder: _Folder, path: Path, held: Holdings) -> Capture:
    """A capture that the manifest names: a file, or a folder of ring buffer pages."""
    if not (folder.root / path).is_dir():
        return folder.open(path)
    within = [file for file in held.raws if path in file.path.relative_to(folder.root).parents]
    if not within:
        raise CaptureError(
            folder.shown / path,
            f"is a folder, named by {NAME} as a capture",
            expected="dumps of per_cpu/cpuN/trace_pipe_raw in it",
        )
    return open_raw(folder.shown / path, within, held.kernel)


def _nothing(shown: Path, held: Holdings) -> UnknownFormatError:
    found = list(dict.fromkeys(str(path) for path in (*held.dumps, *held.texts, *held.others)))
    if held.kernel.formats:
        found.append(f"{len(held.kernel.formats)} event formats")
    return UnknownFormatError(
        shown,
        f"is a folder without a capture; it holds {_listed(found)}"
        if found
        else "is a folder without a file",
        expected="a capture in it: a trace.dat of trace-cmd, or dumps of per_cpu/cpuN/trace_pipe_raw",
        advice="put the capture beside them, or name it",
    )


def _merged(shown: Path, parts: Sequence[Capture]) -> Capture:
    try:
        return MergedCapture(parts, shown)
    except UsageError as error:
        lines = "".join(f"\n    {_told(part)}" for part in parts)
        raise UsageError(
            f"{shown} holds {len(parts)} captures, and not all are parts of one: {error.message}",
            advice=f'name one of them, or those that go together in {NAME} (captures = ["..."]):{lines}',
        ) from error


def _told(part: Capture) -> str:
    start_ns, end_ns = part.span()
    when = "no records" if start_ns is None or end_ns is None else f"{seconds(start_ns)} to {seconds(end_ns)}"
    return f"{part.info.path}  {part.info.format}, {when}, clock {part.info.clock or 'unknown'}"


# -- what is said of them ------------------------------------------------------------------------------------


def _tell(info: CaptureInfo, manifest: Manifest, held: Holdings) -> None:
    """Complete what a capture does not say of itself with what lies beside it."""
    uname, kernel, arch = read_uname(held.kernel.uname or "")
    if info.kernel is None:
        info.kernel = manifest.kernel or kernel
        info.uname = info.uname or uname
    info.arch = info.arch or manifest.arch or arch
    info.clock = info.clock or manifest.clock


def read_uname(text: str) -> tuple[str | None, str | None, str | None]:
    """`uname -a` or `uname -r`: the line, the release and the machine, as far as it says them."""
    words = text.split("\n", 1)[0].split()
    if len(words) == 1:
        return None, words[0], None
    if len(words) < 4 or words[0] != "Linux":
        return None, None, None
    if words[-1] == "GNU/Linux":
        words = words[:-1]
    return " ".join(words), words[2], words[-1]


def _describe(
    folder: _Folder, manifest: Manifest, held: Holdings, notes: Sequence[str], whole: CaptureInfo
) -> CaptureInfo:
    options = dict(whole.options)
    if held.dumps:
        options["dumps"] = _listed([str(path) for path in held.dumps])
    others = sorted([*held.others, *(held.texts if manifest.captures or held.captures or held.raws else [])])
    if others:
        options["other files"] = _listed([str(path) for path in others])
    if held.kernel.formats:
        options["event formats"] = str(len(held.kernel.formats))
    seeds = [SeedFile(folder.root / path, at, str(folder.shown / path)) for path, at in manifest.seeds]
    paths = whole.paths or [whole.path]
    return replace(
        whole,
        path=folder.shown,
        format=f"bundle of {whole.format}" if whole.path != folder.shown or whole.paths else whole.format,
        paths=[path for path in paths if path != folder.shown] or [folder.shown],
        options=options,
        notes=[*notes, *held.notes, *whole.notes],
        seeds=seeds,
    )


def _listed(names: Sequence[str]) -> str:
    more = [] if len(names) <= _SHOWN else [f"and {len(names) - _SHOWN} more"]
    return ", ".join([*names[:_SHOWN], *more])
