"""Text that a tracer printed: tracefs `trace` and `trace_pipe`, `trace-cmd report`, `perf script`; quoted, prefixed or cut."""

from itstrace.readers.text.reader import TextCapture

__all__ = ["TextCapture"]
