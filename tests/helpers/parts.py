"""A part of a real capture as a capture of its own: what another recorder beside it would have written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from itstrace.readers import open_capture
from itstrace.readers.base import read_event
from itstrace.schemas import COUNTS, GAPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from itstrace.errors import Damage
    from itstrace.readers.base import Block, CaptureInfo, EventFormat, Wanted


class Part:
    """The records of a capture for which `keep` holds (an expression over event, time_ns, cpu, pid)."""

    def __init__(self, path: Path, keep: pl.Expr, name: str = "part", **info: Any) -> None:
        self._whole = open_capture(path)
        self._keep = keep
        self.info: CaptureInfo = replace(self._whole.info, path=path.with_name(name), **info)
        self.comms: Mapping[int, str] = self._whole.comms
        self.formats: Mapping[str, EventFormat] = self._whole.formats
        self._heads: pl.DataFrame | None = None

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """The blocks of the whole, without the rows of others."""
        for block in self._whole.blocks(wanted):
            yield {
                name: frame.with_columns(event=pl.lit(name)).filter(self._keep).drop("event")
                for name, frame in block.items()
            }

    def read(self, name: str, limit: int | None = None) -> pl.DataFrame:
        """All records of one event."""
        return read_event(self, name, limit)

    def heads(self) -> pl.DataFrame:
        """Event, time, CPU and task of every record."""
        if self._heads is None:
            frames = [
                frame.select(pl.lit(name).alias("event"), "time_ns", "cpu", "pid")
                for block in self.blocks(lambda _: ())
                for name, frame in block.items()
            ]
            self._heads = pl.concat(frames)
        return self._heads

    def counts(self) -> pl.DataFrame:
        """Records per event and CPU."""
        return self.heads().group_by("event", "cpu").len("records").select(COUNTS.names()).cast(COUNTS)

    def span(self) -> tuple[int | None, int | None]:
        """Times of the first and the last record."""
        low, high = self.heads().select(low=pl.col("time_ns").min(), high=pl.col("time_ns").max()).row(0)
        return low, high

    def gaps(self) -> pl.DataFrame:
        """None."""
        return pl.DataFrame(schema=GAPS)

    def damage(self) -> list[Damage]:
        """None."""
        return []

    def close(self) -> None:
        """Let go of the whole."""
        self._whole.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()
