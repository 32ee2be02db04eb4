"""What a report on two captures is made of: lines and a page are two renderings of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from itstrace.findings import Severity

#: What B says where it says what A does.
SAME: Final = "same"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a grid; `counts`: it is a difference that counts; `shares`: A's and B's, from 0 to 1, to be drawn."""

    cells: tuple[str, ...]
    counts: bool = False
    shares: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A table under its own title; `left` columns hold words, the rest numbers."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    left: frozenset[int] = frozenset({0})
    give: int | None = None  # the column that is cut first on a narrow terminal
    folded: bool = False  # on a page it is opened by who wants it


@dataclass(frozen=True, slots=True)
class Told:
    """A paragraph. `tone`: error, warning, note, good, counts, dim, shell (a call to be typed), or nothing in particular."""

    text: str
    tone: str = ""
    head: str = ""


@dataclass(frozen=True, slots=True)
class Side:
    """One cause in one capture: how bad, what was hit, how often and when, and the message of the worst.

    `confidence`: where it is not certain.
    """

    severity: Severity
    confidence: str
    about: str
    when: str
    message: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A cause that is not in both captures as bad. A side without it is None."""

    change: str
    severity: Severity
    title: str  # code and name
    kind: str  # whose doing it is
    meaning: str
    a: Side | None
    b: Side | None


@dataclass(frozen=True, slots=True)
class Spread:
    """How long a stage took in one capture; `bins`: (from, to, how many), by length."""

    count: int
    p50_ns: int | None
    p99_ns: int | None
    max_ns: int | None
    bins: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of delivered MSIs in both captures; `said`: how B stands to A."""

    name: str
    a: Spread
    b: Spread
    said: str
    counts: bool


@dataclass(frozen=True, slots=True)
class Stages:
    """A table of latencies."""

    title: str
    stages: tuple[Stage, ...]


Part = Grid | Told | Pair | Stages


@dataclass(frozen=True, slots=True)
class Section:
    """One aspect of both captures."""

    title: str
    note: str
    parts: tuple[Part, ...] = field(default=())
    rule: str = ""  # what of it counts, and when
