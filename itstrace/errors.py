"""Every error that itstrace raises on purpose, its exit code and its advice.

The guest's mistake is a finding, never an error. The file's or the user's mistake is one of these. Our own
mistake is an `assert`. `cli.main` is the only place that catches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """What the process tells its caller. Scripts rely on these numbers: they never change."""

    DONE = 0
    FINDINGS = 1
    USAGE = 2
    UNREADABLE = 3
    DIFFERENCE = 4
    BUG = 70  # our own mistake; EX_SOFTWARE of sysexits.h, so that no script takes it for a finding
    INTERRUPTED = 130


class ItsTraceError(Exception):
    """Base of all errors raised on purpose: one sentence that says what is wrong, and what to try."""

    exit_code = ExitCode.UNREADABLE

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return self.message if self.advice is None else f"{self.message}\n  try: {self.advice}"


class UsageError(ItsTraceError):
    """The call is wrong: an unknown event, a time outside the capture, an ambiguous marker."""

    exit_code = ExitCode.USAGE


class CaptureError(ItsTraceError):
    """A capture that cannot be read at all, with the place where reading stopped.

    Attributes: `path`; `offset_bytes` into the file (None where the whole file is meant); `cpu` whose data it
    was.
    """

    def __init__(
        self,
        path: Path | str,
        problem: str,
        *,
        offset_bytes: int | None = None,
        cpu: int | None = None,
        expected: str | None = None,
        advice: str | None = None,
    ) -> None:
        where = "" if offset_bytes is None else f" at byte {offset_bytes} (0x{offset_bytes:x})"
        whose = "" if cpu is None else f", CPU {cpu}"
        wanted = "" if expected is None else f"; expected {expected}"
        super().__init__(f"{path}{whose}{where}: {problem}{wanted}", advice=advice)
        self.path = Path(path)
        self.offset_bytes = offset_bytes
        self.cpu = cpu


class UnknownFormatError(CaptureError):
    """The file is no capture of a kind that itstrace reads."""


class NothingToAnalyzeError(CaptureError):
    """The capture is sound, but holds nothing of an ITS, an LPI or a KVM/arm64 guest."""


class DumpError(CaptureError):
    """A state dump (vgic-state, vgic-its-state, table images) that cannot be read."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One place at which a capture is cut short or damaged, and what was done about it.

    `disorder`: nothing is missing; records came with times that ran backwards.
    """

    offset_bytes: int | None
    cpu: int | None
    problem: str
    disorder: bool = False
