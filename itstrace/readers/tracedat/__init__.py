"""The trace.dat reader: container.py for the file, windows.py for the streaming, ring.py for the decoding."""

from itstrace.readers.tracedat.reader import TraceDat

__all__ = ["TraceDat"]
