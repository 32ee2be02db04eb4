"""The page: markup, style, scripts and data in one file, under a policy that forbids every request.

The parts are kept in `assets/`, in plain HTML, CSS and JavaScript, and are put together here without a build step.
plotly.js is the bundle that the installed plotly package carries; that package is never imported. It stands in the
page as text and is run when a plot is first asked for: the verdict does not wait for it.

Everything that comes out of the capture stands in data blocks, `<` escaped; scripts make text nodes of it, never
markup. The content security policy allows the page's own scripts and style by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from itstrace.errors import UsageError
from itstrace.report.html.model import model
from itstrace.report.html.pack import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from itstrace.analysis import Analysis
    from itstrace.report.html.frames import Caps

#: Scripts in the order in which they build on one another.
SCRIPTS: Final = (
    "data.js",
    "numbers.js",
    "dom.js",
    "route.js",
    "moments.js",
    "grid.js",
    "decode.js",
    "story.js",
    "scale.js",
    "stretch.js",
    "marks.js",
    "bars.js",
    "picture.js",
    "explorer.js",
    "verdict.js",
    "findings.js",
    "plot.js",
    "traces.js",
    "timeline.js",
    "latency.js",
    "tableboxes.js",
    "tables.js",
    "lpis.js",
    "commands.js",
    "coverage.js",
    "places.js",
    "main.js",
)
#: Where plotly.js can be had. Source: plotly.io._html (plotly 7), include_plotlyjs="cdn"
_CDN: Final = "https://cdn.plot.ly/plotly-{version}.min.js"
_PLOTLY: Final = "plotly.min.js"


class Assets(StrEnum):
    """Where a page has its style, scripts and plotly.js: within, in a folder beside it, or plotly.js on its CDN."""

    INLINE = "inline"
    DIRECTORY = "directory"
    CDN = "cdn"


@dataclass(frozen=True, slots=True)
class Page:
    """A page, and the files that it needs beside it, by path relative to its own folder."""

    html: str
    beside: dict[str, bytes] = field(default_factory=dict)


def page(
    analysis: Analysis,
    *,
    pages: Callable[[str], str],
    rules: int,
    comms: Mapping[int, str],
    assets: Assets = Assets.INLINE,
    stem: str = "report",
    caps: Caps | None = None,
) -> Page:
    """Write an analysis as a page. `stem`: what its file will be called; for the rest see `model`."""
    report = model(analysis, pages=pages, rules=rules, comms=comms, caps=caps)
    blocks = [f'<script type="application/json" id="report">{_json(report.document)}</script>']
    for name, frame in report.frames.items():
        packed = pack(frame, report.origin_ns)
        header = _json(packed.header)
        blocks.append(f'<script type="application/json" id="frame-{name}-header">{header}</script>')
        blocks.append(f'<script type="text/plain" id="frame-{name}">{packed.base64}</script>')
    style, script, plotly = asset("base.css") + asset("style.css"), _script(), plotly_js()
    known = f' data-styles="{" ".join(_own_styles(plotly))}"'
    beside: dict[str, bytes] = {}
    if assets is Assets.DIRECTORY:
        folder = f"{stem}.files"
        beside = {
            f"{folder}/style.css": style.encode(),
            f"{folder}/report.js": script.encode(),
            f"{folder}/{_PLOTLY}": plotly.encode(),
        }
        where = _attribute(quote(folder))
        styled = f'<link rel="stylesheet" href="{where}/style.css">'
        scripted = f'<script src="{where}/report.js"></script>'
        plotted = f'<script type="text/plain" id="plotly"{known} data-src="{where}/{_PLOTLY}"></script>'
        policy = _policy("'self' file:", "'self' file:")
    else:
        styled, scripted = f"<style>{style}</style>", f"<script>{script}</script>"
        if assets is Assets.INLINE:
            plotted = f'<script type="text/plain" id="plotly"{known}>{plotly}</script>'
            policy = _policy(f"{_hash(script)} {_hash(plotly)}", _hash(style))
        else:
            source = _CDN.format(version=plotly_version(plotly))
            integrity = _hash(plotly).strip("'")
            plotted = (
                f'<script type="text/plain" id="plotly"{known} data-src="{source}" '
                f'data-integrity="{integrity}"></script>'
            )
            policy = _policy(f"{_hash(script)} {source}", _hash(style))
    parts = {"POLICY": policy, "STYLE": styled, "DATA": "\n".join([*blocks, plotted]), "SCRIPT": scripted}
    html = re.sub(r"<!--\{(\w+)\}-->", lambda found: parts[found[1]], asset("page.html"))
    return Page(html, beside)


def asset(name: str) -> str:
    """One of our own files of a page."""
    return (files("itstrace.report.html") / "assets" / name).read_text(encoding="utf-8")


def _script() -> str:
    """All scripts as one, in a scope of their own."""
    parts = [f"// --- {name}\n{asset(name)}" for name in SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


@cache
def plotly_js() -> str:
    """The plotly.js that the installed plotly package carries; the package itself is not imported."""
    spec = importlib.util.find_spec("plotly")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    for place in places:
        path = Path(place) / "package_data" / _PLOTLY
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "</script" not in text.lower()
            return text
    raise UsageError(
        "plotly.js is not there: the plotly package is not installed", advice="pip install plotly"
    )


def plotly_version(script: str) -> str:
    """The version that plotly.js says it has."""
    found = re.search(r"plotly\.js v([\d.]+)", script[:200])
    assert found is not None
    return found[1]


def _own_styles(script: str) -> list[str]:
    """Ids of style sheets that plotly.js adds as it starts, if no element has them: those of maps, which no page shows.

    The policy forbids them; the page makes an empty element for each, so that they are not tried.
    """
    return sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', script)))


#: The hash of nothing: plotly.js makes an empty style element and adds its rules by script.
_NOTHING: Final = ""


def _policy(scripts: str, styles: str) -> str:
    """A content security policy that allows these scripts and styles, pictures made by the page itself, and no request."""
    rules = (
        "default-src 'none'",
        f"script-src {scripts}",
        f"style-src {styles} {_hash(_NOTHING)}",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return _attribute("; ".join(rules))


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _json(document: object) -> str:
    """JSON that can stand in a script element: ASCII, and nothing that could end or open an element."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
