"""Small drawings for the page of a difference: distributions and shares, as SVG without a style of its own.

A lies above the line and B below it, one filled and one outlined: which is which shows without colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Final

from itstrace.units import duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from itstrace.report.difference.parts import Spread, Stages

_WIDTH: Final = 280
_HALF: Final = 21
_EDGE: Final = 20
_SHARES: Final = 120
#: A label of a decade takes so much room.
_LABEL: Final = 46


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic axis, in whole decades, that all drawings of a table share."""

    low: int
    high: int

    def at(self, span_ns: float) -> float:
        """Where a span lies; what took no time lies at the beginning."""
        part = (log10(max(span_ns, 1)) - self.low) / (self.high - self.low)
        return round(_EDGE + min(max(part, 0), 1) * (_WIDTH - 2 * _EDGE), 1)

    @property
    def decades(self) -> range:
        """Powers of ten, the ends with them."""
        return range(self.low, self.high + 1)


def scale(stages: Stages) -> Scale:
    """From the shortest wait of a table to the longest."""
    ends = [end for stage in stages.stages for side in (stage.a, stage.b) for end in _ends(side)]
    low = floor(log10(max(min(ends, default=1), 1)))
    high = ceil(log10(max(*ends, 10))) if ends else 1
    return Scale(low, max(high, low + 1))


def _ends(spread: Spread) -> Iterator[int]:
    if spread.bins:
        yield spread.bins[0][0]
        yield spread.bins[-1][1]


def axis(along: Scale) -> str:
    """The decades, named."""
    step = max(ceil(_LABEL * (along.high - along.low) / (_WIDTH - 2 * _EDGE)), 1)
    shown = [at for at in along.decades if (at - along.low) % step == 0]
    texts = [f'<text x="{along.at(10**at)}" y="12" text-anchor="middle">{_decade(at)}</text>' for at in shown]
    return f'<svg width="{_WIDTH}" height="16" viewBox="0 0 {_WIDTH} 16" aria-hidden="true">{"".join(texts)}</svg>'


def _decade(at: int) -> str:
    """`100 us`."""
    unit, power = (("ns", 0), ("us", 3), ("ms", 6), ("s", 9))[min(at // 3, 3)]
    return f"{10 ** (at - power)} {unit}"


def distribution(a: Spread, b: Spread, along: Scale) -> str:
    """How long a stage took: A's waits above, B's below, each as shares of its own."""
    most = max((count / side.count for side in (a, b) for _, _, count in side.bins), default=1)
    parts = [
        f'<line class="decade" x1="{along.at(10**at)}" x2="{along.at(10**at)}" y1="0" y2="{2 * _HALF}"/>'
        for at in along.decades
    ]
    for side, name, up in ((a, "ofa", True), (b, "ofb", False)):
        for low, high, count in side.bins:
            left, right = along.at(low), along.at(high)
            height = round(max(count / side.count / most * (_HALF - 2), 1.2), 1)
            top = round(_HALF - height, 1) if up else _HALF
            parts.append(
                f'<rect class="{name}" x="{left}" y="{top}" width="{round(right - left, 1)}" height="{height}"/>'
            )
    parts.append(f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HALF}" y2="{_HALF}"/>')
    for side, up in ((a, True), (b, False)):
        y1, y2 = (1, _HALF) if up else (_HALF, 2 * _HALF - 1)
        for span_ns, name in ((side.p50_ns, "middle"), (side.p99_ns, "late")):
            if side.bins and span_ns is not None:
                x = along.at(span_ns)
                parts.append(f'<line class="{name}" x1="{x}" x2="{x}" y1="{y1}" y2="{y2}"/>')
    said = "; ".join(_said(name, side) for name, side in (("A", a), ("B", b)))
    return _svg(_WIDTH, 2 * _HALF, f"distribution: {said}", parts)


def _said(name: str, side: Spread) -> str:
    if not side.count:
        return f"{name}: none"
    return f"{name}: half within {duration(side.p50_ns)}, 99 % within {duration(side.p99_ns)}"


def shares(a: float, b: float) -> str:
    """Two bars, A's above B's, of the whole."""
    parts = []
    for share, name, y in ((a, "ofa", 2), (b, "ofb", 11)):
        if share > 0:
            width = round(max(share * (_SHARES - 2), 1), 1)
            parts.append(f'<rect class="{name}" x="1" y="{y}" width="{width}" height="6"/>')
    parts.append('<line class="axis" x1="0.5" x2="0.5" y1="0" y2="20"/>')
    return _svg(_SHARES, 20, f"A {100 * a:.1f} %, B {100 * b:.1f} %", parts)


def _svg(width: int, height: int, said: str, parts: Iterable[str]) -> str:
    return (
        f'<svg role="img" aria-label="{escape(said)}" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f"{''.join(parts)}</svg>"
    )


def swatch(name: str) -> str:
    """What stands for a side in a drawing."""
    return (
        '<svg width="22" height="12" viewBox="0 0 22 12" aria-hidden="true">'
        f'<rect class="{name}" x="1" y="2" width="20" height="8"/></svg>'
    )
