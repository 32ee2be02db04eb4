"""Where results and notes go: standard output for the result alone, standard error for all else."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.text import Text

from itstrace.report.layout import Sheet, clean, wrap
from itstrace.report.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(slots=True)
class Settings:
    """What the options before the command say; set anew by every call."""

    color: bool = True


SETTINGS = Settings()


def _console(file: TextIO) -> Console:
    """A console that takes nothing in its input for markup, an emoji or something to highlight.

    `NO_COLOR` and `--no-color` take every escape sequence away, bold included.
    """
    colorless = not SETTINGS.color or bool(os.environ.get("NO_COLOR"))
    return Console(
        file=file,
        markup=False,
        emoji=False,
        highlight=False,
        color_system=None if colorless else "auto",
        soft_wrap=True,
    )


def _sheet(console: Console) -> Sheet:
    if not console.is_terminal:
        return Sheet()
    return Sheet(console.width, fine=console.encoding.lower().startswith("utf"))


class Output:
    """Standard output. A reader that went away is no error: `gone` says so, and no more is written."""

    def __init__(self) -> None:
        self._console = _console(sys.stdout)
        self.sheet = _sheet(self._console)
        self.gone = False

    def lines(self, lines: Iterable[Text]) -> None:
        """Print lines of a report."""
        for line in map(clean, lines):
            if self.gone:
                return
            if self.sheet.width is None:
                self.write(f"{line.plain}\n")
            else:
                self._guarded(line)

    def json(self, document: Any) -> None:
        """Print a document as JSON, in ASCII: whatever the capture holds, no terminal obeys it."""
        self.write(json_text(document))

    def write(self, text: str) -> None:
        """Write text that is already safe."""
        if self.gone:
            return
        try:
            sys.stdout.write(text)
        except BrokenPipeError:
            self._leave()

    def close(self) -> None:
        """Write out what is still held back."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            self._leave()

    def _guarded(self, line: Text) -> None:
        try:
            sys.stdout.write(self._rendered(line))
        except BrokenPipeError:
            self._leave()

    def _rendered(self, line: Text) -> str:
        with self._console.capture() as capture:
            self._console.print(line, no_wrap=True, overflow="ignore", crop=False)
        return capture.get()

    def _leave(self) -> None:
        self.gone = True
        silence(sys.stdout)


def silence(stream: TextIO) -> None:
    """Point a stream whose reader is gone at nothing, so that the interpreter can close it in peace."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        return


def json_text(document: Any) -> str:
    """A document as JSON, indented by one, with a line break at its end."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def note(text: str) -> None:
    """Say something on standard error, wrapped there where it is a terminal."""
    console = _console(sys.stderr)
    width = console.width if console.is_terminal else None
    for line in text.splitlines():
        if width is None:
            print(plain(line), file=sys.stderr)
        else:
            indent = line[: len(line) - len(line.lstrip())]
            for part in wrap(line.lstrip(), width, first=indent, rest=indent + "  "):
                print(part.plain, file=sys.stderr)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on standard error what is being done, where that is a terminal."""
    console = _console(sys.stderr)
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    spinner = "dots" if console.encoding.lower().startswith("utf") else "line"
    with console.status(Text(plain(what)), spinner=spinner):
        yield
