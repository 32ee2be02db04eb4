"""Several captures as one: agree.py says whether they go together, weave.py puts their records in order."""

from itstrace.readers.merged.capture import MergedCapture

__all__ = ["MergedCapture"]
