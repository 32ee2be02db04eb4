"""Text that a tracer printed: tracefs `trace` and `trace_pipe`, `trace-cmd report`, `perf script`; quoted, prefixed or cut."""

from itstrace.readers.text.reader import TextCapture
from itstrace.readers.text.tally import looks_like_graph

__all__ = ["TextCapture", "looks_like_graph"]
