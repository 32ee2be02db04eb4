"""`bundle.toml`: what in a bundle is what, where content cannot tell. `itstrace record` writes it.

    schema = "itstrace.bundle/1"
    captures = ["trace.dat", "perf.data"]        # files, or folders of trace_pipe_raw dumps; left out: found by content
    clock = "mono"                               # of captures that do not name theirs
    kernel = "6.12.107+deb13-arm64"              # the same; else the bundle's uname says it
    arch = "aarch64"

    [[seeds]]                                    # dumps of the tables, and when they were taken
    file = "vgic-state"
    at = "+0"

Every path is within the bundle, with `/`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from itstrace.errors import CaptureError

NAME: Final = "bundle.toml"
SCHEMA: Final = "itstrace.bundle/1"
_LIMIT_BYTES: Final = 1 << 20
_ADVICE = f"see docs/bundles.md; without {NAME} the captures are found by their content"


@dataclass(slots=True)
class Manifest:
    """What a manifest says; paths are relative to the bundle. `captures` None: by content."""

    captures: list[Path] | None = None
    #: path, and the text of T
    seeds: list[tuple[Path, str | None]] = field(default_factory=list)
    clock: str | None = None
    kernel: str | None = None
    arch: str | None = None


def read_manifest(root: Path, shown: Path) -> Manifest:
    """Read a bundle's manifest; an empty one where it has none. `shown` is what to call the bundle.

    Raises: CaptureError where it is damaged, of another schema, or names what the bundle does not hold.
    """
    path, name = root / NAME, shown / NAME
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT_BYTES + 1)
        if len(content) > _LIMIT_BYTES:
            raise CaptureError(
                name, "too large", expected=f"at most {_LIMIT_BYTES >> 20} MiB", advice=_ADVICE
            )
        document = tomllib.loads(content.decode("utf-8"))
    except FileNotFoundError:
        return Manifest()
    except OSError as error:
        raise CaptureError(name, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CaptureError(name, f"is no TOML: {error}", advice=_ADVICE) from error
    schema = document.pop("schema", None)
    if schema != SCHEMA:
        raise CaptureError(name, f"schema {schema!r} is unknown", expected=repr(SCHEMA), advice=_ADVICE)
    return _Reader(root, name, document).manifest()


class _Reader:
    """Takes a document apart; whatever is left over at the end is a mistake that somebody should know of."""

    def __init__(self, root: Path, name: Path, document: dict[str, Any]) -> None:
        self._root = root
        self._name = name
        self._document = document

    def manifest(self) -> Manifest:
        """What the document says."""
        captures = self._document.pop("captures", None)
        if captures is not None and not (isinstance(captures, list) and captures):
            raise self._error("captures names none", "a list of paths")
        found = Manifest(
            None if captures is None else [self._path("captures", text) for text in captures],
            self._seeds(),
            *(self._text(key) for key in ("clock", "kernel", "arch")),
        )
        if self._document:
            raise self._error(
                f"{', '.join(sorted(self._document))}: unknown", "captures, seeds, clock, kernel, arch"
            )
        return found

    def _seeds(self) -> list[tuple[Path, str | None]]:
        seeds = self._document.pop("seeds", [])
        if not isinstance(seeds, list) or not all(isinstance(seed, dict) for seed in seeds):
            raise self._error(
                "seeds is no list of tables", '[[seeds]] with file = "vgic-state" and at = "+0"'
            )
        found = []
        for seed in seeds:
            at = seed.get("at")
            if set(seed) - {"file", "at"} or not (at is None or isinstance(at, str)):
                raise self._error(f"the seed {seed} is none", 'file = "vgic-state" and at = "+0"')
            found.append((self._path("seeds", seed.get("file")), at))
        return found

    def _path(self, key: str, text: object) -> Path:
        if not isinstance(text, str) or not text or "\0" in text:
            raise self._error(f"{key}: {text!r} is no path", "a path within the bundle")
        pure = PurePosixPath(text)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise self._error(f"{key}: {text!r} leads out of the bundle", "a path within the bundle")
        try:
            exists = (self._root / pure).exists()
        except OSError:
            exists = False
        if not exists:
            raise self._error(f"{key}: {text!r} is not in the bundle", "a path within the bundle")
        return Path(pure)

    def _text(self, key: str) -> str | None:
        value = self._document.pop(key, None)
        if value is not None and not isinstance(value, str):
            raise self._error(f"{key} is no text", f'{key} = "..."')
        return value

    def _error(self, problem: str, expected: str) -> CaptureError:
        return CaptureError(self._name, problem, expected=expected, advice=_ADVICE)
