"""itstrace: what happened to my interrupt?

The whole of the public interface: `analyze` a capture, or `open` it to read any of its events. What they give are polars
DataFrames, whose columns and units are in `itstrace.schemas`.

    import itstrace

    analysis = itstrace.analyze("trace.dat")
    for finding in analysis.findings:
        print(finding.code, finding.message)
    analysis.lives.lives                     # one row per MSI, from injection to end
    analysis.history.mappings                # every translation entry, and from when to when it held
    analysis.at(572_870_490_000).events      # the event tables as of 572.870490

    with itstrace.open("trace.dat") as capture:
        capture.read("kvm:kvm_exit")         # any event of any subsystem, typed
"""

from __future__ import annotations

from itstrace._version import __version__
from itstrace.analysis import Analysis, analyze
from itstrace.errors import ItsTraceError, UsageError
from itstrace.findings import Confidence, Evidence, Finding, Kind, Severity
from itstrace.readers import open_capture as open  # noqa: A004  # itstrace.open(path) is what a notebook user types
from itstrace.readers.base import Capture
from itstrace.tables import Tables

__all__ = [
    "Analysis",
    "Capture",
    "Confidence",
    "Evidence",
    "Finding",
    "ItsTraceError",
    "Kind",
    "Severity",
    "Tables",
    "UsageError",
    "__version__",
    "analyze",
    "open",
]
