"""Every frame of an analysis as a file of its own, Parquet or CSV, with a manifest that says what is in them.

A frame has the schema of its name, in upper case, in `itstrace.schemas` (docs/frames.md). Parquet gives back exactly the
frame that was written; CSV has no lists: there their items stand in one cell, with blanks between numbers and bars between
texts.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace import schemas
from itstrace._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace.analysis import Analysis

FRAMES_SCHEMA: Final = "itstrace.frames/1"
MANIFEST: Final = "frames.json"
#: What the end of a column's name says of its unit.
_UNITS: Final = {"_ns": "ns", "_bytes": "bytes"}


def frames(analysis: Analysis) -> dict[str, pl.DataFrame]:
    """All frames of an analysis by name. Shape: each rows of the schema of its name."""
    obs, history, lives = analysis.observations, analysis.history, analysis.lives
    found: dict[str, Any] = {"counts": analysis.counts, "gaps": analysis.gaps, "damage": _damage(analysis)}
    found |= {field.name: getattr(obs, field.name) for field in fields(obs)}
    found["runs"] = obs.runs.frame()
    found |= {field.name: getattr(history, field.name) for field in fields(history)}
    found |= {"lives": lives.lives, "pending": lives.pending, "chains": lives.fills, "latches": lives.latches}
    found |= {
        "findings": _findings(analysis),
        "evidence": _evidence(analysis),
        "subjects": _subjects(analysis),
    }
    return {name: _shaped(name, each) for name, each in found.items() if isinstance(each, pl.DataFrame)}


def files(kind: str) -> list[str]:
    """The names of all files that an export as `parquet` or `csv` has."""
    names = [name.lower() for name, value in vars(schemas).items() if isinstance(value, pl.Schema)]
    return [MANIFEST, *(f"{name}.{kind}" for name in names)]


def write_frames(analysis: Analysis, folder: Path, kind: str) -> dict[str, Any]:
    """Write every frame into a folder, as `parquet` or `csv`. The manifest's content."""
    written = {}
    for name, frame in frames(analysis).items():
        file = f"{name}.{kind}"
        if kind == "parquet":
            frame.write_parquet(folder / file, compression="zstd")
        else:
            flat(frame).write_csv(folder / file)
        written[name] = {
            "file": file,
            "rows": frame.height,
            "columns": [
                {"name": column, "dtype": str(dtype), "unit": _unit(column)}
                for column, dtype in frame.schema.items()
            ],
        }
    return {
        "schema": FRAMES_SCHEMA,
        "version": __version__,
        "capture": _capture(analysis),
        "units": {
            "ns": "nanoseconds: a time of the capture's clock, or a span",
            "bytes": "bytes",
            "null": "unknown, never 0",
            "seq": "columns named seq or ending in _seq: the rank of a record among all of the capture",
        },
        "frames": written,
    }


def flat(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame without lists, as CSV has it."""
    lists = {name: dtype for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)}
    return frame.with_columns(
        pl.col(name).cast(pl.List(pl.String)).list.join(" | " if dtype.inner == pl.String else " ")
        for name, dtype in lists.items()
    )


def _shaped(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """With the columns and dtypes that the name says; a frame that nothing fed may have others."""
    schema: pl.Schema = getattr(schemas, name.upper())
    if frame.is_empty():
        return pl.DataFrame(schema=schema)
    return frame.select(schema.names()).cast(schema)


def _unit(column: str) -> str | None:
    return next((unit for end, unit in _UNITS.items() if column.endswith(end)), None)


def _capture(analysis: Analysis) -> dict[str, Any]:
    info = analysis.info
    return {
        "path": str(info.path),
        "paths": [str(path) for path in info.paths or [info.path]],
        "format": info.format,
        "kernel": info.kernel,
        "arch": info.arch,
        "clock": info.clock,
        "cpus": info.cpus,
        "start_ns": analysis.start_ns,
        "end_ns": analysis.end_ns,
        "profiles": {str(vm): profile for vm, profile in analysis.history.profiles.items()},
        "notes": list(info.notes),
    }


def _damage(analysis: Analysis) -> pl.DataFrame:
    return pl.DataFrame([asdict(one) for one in analysis.damage], schema=schemas.DAMAGE)


def _findings(analysis: Analysis) -> pl.DataFrame:
    rows = []
    for finding in analysis.findings:
        row = {name: getattr(finding, name, None) for name in schemas.FINDINGS.names()}
        row |= {name: str(row[name]) for name in ("kind", "severity", "confidence")}
        row["known_bugs"] = [f"{bug.title} ({bug.source}; {bug.fixed})" for bug in finding.known_bugs]
        rows.append({name: list(value) if isinstance(value, tuple) else value for name, value in row.items()})
    return pl.DataFrame(rows, schema=schemas.FINDINGS)


def _evidence(analysis: Analysis) -> pl.DataFrame:
    rows = [
        {"finding": finding.id, **asdict(item)} for finding in analysis.findings for item in finding.evidence
    ]
    return pl.DataFrame(rows, schema=schemas.EVIDENCE)


def _subjects(analysis: Analysis) -> pl.DataFrame:
    rows = [
        {"finding": finding.id, **asdict(one), "vcpus": list(one.vcpus)}
        for finding in analysis.findings
        for one in finding.subjects
    ]
    return pl.DataFrame(rows, schema=schemas.SUBJECTS)
