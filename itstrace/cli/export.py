"""`itstrace export`: the analysis for other programs, as a trace for Perfetto or as frames."""

import gzip
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import typer

from itstrace.analysis import Analysis
from itstrace.cli.options import Captures, Events, Profile, Seeds, Settings
from itstrace.cli.output import Output, json_text, working
from itstrace.cli.running import analyzed, numbers
from itstrace.errors import UsageError
from itstrace.report.frames import MANIFEST, files, write_frames
from itstrace.report.perfetto import write_trace
from itstrace.report.text import plain, plural, size

#: Names that say Perfetto, packed or not.
_PERFETTO = (".pftrace", ".perfetto-trace", ".perfetto")
_PACKED = ".gz"
#: A trace is packed for its size, and quickly.
_EFFORT = 4


class Format(StrEnum):
    """What to write."""

    PARQUET = "parquet"
    PERFETTO = "perfetto"
    CSV = "csv"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="export",
        short_help="Write the analysis for other programs: Perfetto, Parquet, CSV.",
        epilog="""Examples:

        \b
          itstrace export trace.dat --to trace.pftrace
          itstrace export trace.dat --to trace.pftrace.gz --no-runs
          itstrace export trace.dat --to frames/
          itstrace export trace.dat --to frames/ --format csv""",
    )(_export)


def _export(
    captures: Captures,
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FILE|DIR",
            help="Where to write: a file for perfetto (packed, if its name ends in .gz), a folder for parquet and csv.",
            show_default=False,
        ),
    ],
    kind: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="perfetto, parquet or csv. Not said: perfetto for a name that ends in .pftrace, .perfetto-trace or "
            ".perfetto (and .gz); parquet for a folder.",
        ),
    ] = None,
    runs: Annotated[
        bool,
        typer.Option(
            "--runs/--no-runs",
            help="With or without every vCPU's stays in the guest; of a long capture they are most of a trace.",
        ),
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that are there already; never over the capture.")
    ] = False,
    settings: Settings = None,
    seed: Seeds = None,
    kernel: Profile = None,
    events: Events = None,
) -> None:
    """Write what the analysis knows for other programs.

    As a trace, ui.perfetto.dev draws it: tracks for every vCPU, LPI and ITS, the findings, and arrows from each MSI to its
    delivery. As Parquet or CSV, a folder gets every frame in a file of its own, and a manifest, frames.json.
    """
    chosen = kind or _format(to)
    target = Path(to)
    if chosen is Format.PERFETTO:
        _check_file(target, captures, force=force)
    else:
        _check_folder(target, captures, str(chosen), force=force)
    if not runs and chosen is not Format.PERFETTO:
        raise UsageError("--no-runs is for a trace of Perfetto", advice=f"{chosen} without it")
    analysis = analyzed(
        *captures, profile=kernel, seeds=seed or (), events=events, settings=numbers(settings)
    )
    try:
        with working(f"writing {target.name}"):
            done = (
                _trace(analysis, target, runs=runs)
                if chosen is Format.PERFETTO
                else _frames(analysis, target, str(chosen))
            )
    except OSError as error:
        raise UsageError(f"--to {to}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    out = Output()
    out.write("".join(f"{plain(line)}\n" for line in done))
    out.close()


def _format(to: str) -> Format:
    name = Path(to).name.lower().removesuffix(_PACKED)
    if name.endswith(_PERFETTO):
        return Format.PERFETTO
    if to.endswith(("/", os.sep)) or Path(to).is_dir() or not Path(to).suffix:
        return Format.PARQUET
    raise UsageError(
        f"--to {to}: the name does not say in which format to write",
        advice="--format perfetto, parquet or csv",
    )


def _check_file(path: Path, captures: Sequence[Path], *, force: bool) -> None:
    if path.is_dir():
        raise UsageError(
            f"--to {path} is a folder; a trace is a file", advice=f"--to {path / 'trace.pftrace'}"
        )
    if not path.exists():
        return
    if _is_capture(path, captures):
        raise UsageError(f"--to {path} would overwrite the capture", advice="name another file")
    if not force:
        raise UsageError(f"--to {path}: it is there already", advice="another name, or --force")


def _check_folder(path: Path, captures: Sequence[Path], kind: str, *, force: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"--to {path} is a file; frames need a folder", advice="name a folder")
    if not path.is_dir():
        return
    if _is_capture(path, captures):
        raise UsageError(f"--to {path} is the capture itself", advice="name another folder")
    for file in (path / name for name in files(kind)):
        if not file.exists():
            continue
        if _is_capture(file, captures):
            raise UsageError(f"--to {path} would overwrite the capture", advice="name another folder")
        if not force:
            raise UsageError(
                f"--to {path}: {file.name} is there already", advice="another folder, or --force"
            )


def _is_capture(path: Path, captures: Sequence[Path]) -> bool:
    return any(capture.exists() and path.samefile(capture) for capture in captures)


def _trace(analysis: Analysis, path: Path, *, runs: bool) -> Sequence[str]:
    with _whole(path) as file:
        packed = path.name.lower().endswith(_PACKED)
        if packed:
            with gzip.GzipFile(
                filename="", mode="wb", fileobj=file, compresslevel=_EFFORT, mtime=0
            ) as packing:
                trace = write_trace(analysis, cast("BinaryIO", packing), runs=runs)
        else:
            trace = write_trace(analysis, file, runs=runs)
    return (
        f"{path}: {plural(trace.events, 'event')} on {plural(trace.tracks, 'track')}, {size(path.stat().st_size)}",
        "Open it in https://ui.perfetto.dev; the page reads it where it is and sends it nowhere.",
    )


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that is there only once it is whole."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _frames(analysis: Analysis, folder: Path, kind: str) -> Sequence[str]:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = write_frames(analysis, folder, kind)
    (folder / MANIFEST).write_text(json_text(manifest), encoding="ascii")
    rows = sum(frame["rows"] for frame in manifest["frames"].values())
    return (
        f"{folder}: {plural(len(manifest['frames']), 'frame')}, {plural(rows, 'row')}; {MANIFEST} lists them",
    )
