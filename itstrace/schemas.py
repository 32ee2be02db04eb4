"""Every polars schema in the program: columns, dtypes, units.

Times are integer nanoseconds of the capture's clock (`_ns`), sizes are bytes (`_bytes`), kernel pointers are UInt64 and are
printed in hex. `seq` is the rank of a record among all records of the capture: it orders records where time stamps tie.
Unknown is null, never 0.
"""

from __future__ import annotations

import polars as pl

#: One row per stretch of one CPU's buffer in which records were lost; `lost` is null where the kernel did not count.
GAPS = pl.Schema({"cpu": pl.UInt16, "from_ns": pl.Int64, "to_ns": pl.Int64, "lost": pl.UInt64})

#: One row per event type and CPU: how many records were recorded.
COUNTS = pl.Schema({"event": pl.String, "cpu": pl.UInt16, "records": pl.UInt64})
