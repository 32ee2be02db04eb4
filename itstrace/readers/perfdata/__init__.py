"""The perf.data reader: header.py for the file, stream.py for its records, samples.py and blocks.py for what they hold."""

from itstrace.readers.perfdata.reader import PerfData

__all__ = ["PerfData"]
