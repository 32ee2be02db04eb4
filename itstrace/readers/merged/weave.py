"""Putting the blocks of several captures into one order of time, with no more at hand than a block of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.readers.base import Block

_FOREVER: Final = (1 << 63) - 1
_DAWN: Final = -(1 << 63)
#: So many rows at hand are worth giving out; and so many are too many to wait for the end of one instant.
_ENOUGH_ROWS, _TOO_MANY_ROWS = 1 << 18, 1 << 23


class _Stream:
    """One capture's blocks, and what of them has not been given out."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._held: dict[str, list[pl.DataFrame]] = {}
        self.rows = 0
        #: No record earlier than this is still to come.
        self.reach_ns = _DAWN
        self.done = False

    def pull(self) -> None:
        """Bring in the next block, or find that there is none."""
        block = next(self._blocks, None)
        if block is None:
            self.done, self.reach_ns = True, _FOREVER
            return
        for name, frame in block.items():
            if frame.height:
                self._held.setdefault(name, []).append(frame)
                self.rows += frame.height
                self.reach_ns = max(self.reach_ns, frame.item(-1, "time_ns"))

    def take(self, until_ns: int, side: str) -> Block:
        """Give out what is earlier than `until_ns` (side left), or at that time too (side right)."""
        taken: Block = {}
        for name, frames in self._held.items():
            early: list[pl.DataFrame] = []
            while frames:
                times = frames[0]["time_ns"].to_numpy()
                count = int(np.searchsorted(times, until_ns, side="left" if side == "left" else "right"))
                if not count:
                    break
                early.append(frames[0].head(count))
                if count < len(times):
                    frames[0] = frames[0].tail(len(times) - count)
                    break
                frames.pop(0)
            if early:
                taken[name] = pl.concat(early)
                self.rows -= taken[name].height
        return taken


def weave(captures: Sequence[Iterator[Block]]) -> Iterator[Block]:
    """Merge blocks by time; ties by CPU, then by capture, then as each capture has them.

    Frames of one event have the same columns in all captures. `seq` is numbered anew over the rows given.
    """
    streams = [_Stream(blocks) for blocks in captures]
    rank = 0
    while True:
        waiting = [stream for stream in streams if not stream.done]
        if waiting:
            min(waiting, key=lambda stream: stream.reach_ns).pull()
        rows = sum(stream.rows for stream in streams)
        over = all(stream.done for stream in streams)
        if rows < _ENOUGH_ROWS and not over:
            continue
        safe_ns = min(stream.reach_ns for stream in streams)
        # Where one instant has more records than memory should hold, the order within it is left to the captures.
        side = "right" if over or rows > _TOO_MANY_ROWS else "left"
        taken = [stream.take(safe_ns, side) for stream in streams]
        block, rank = _ranked(taken, rank)
        if block:
            yield block
        if over:
            return


def _ranked(taken: list[Block], first: int) -> tuple[Block, int]:
    """Put the rows of one span of time in order; give the rank that comes next."""
    pieces = [(name, part, frame) for part, block in enumerate(taken) for name, frame in block.items()]
    if not pieces:
        return {}, first
    sizes = [frame.height for _, _, frame in pieces]
    order = np.lexsort(
        (
            np.concatenate([frame["seq"].to_numpy() for _, _, frame in pieces]),
            np.repeat([part for _, part, _ in pieces], sizes),
            np.concatenate([frame["cpu"].to_numpy() for _, _, frame in pieces]),
            np.concatenate([frame["time_ns"].to_numpy() for _, _, frame in pieces]),
        )
    )
    rank = np.empty(len(order), np.uint64)
    rank[order] = np.arange(first, first + len(order), dtype=np.uint64)
    by_name: dict[str, list[pl.DataFrame]] = {}
    at = 0
    for (name, _, frame), size in zip(pieces, sizes, strict=True):
        by_name.setdefault(name, []).append(frame.with_columns(pl.Series("seq", rank[at : at + size])))
        at += size
    block = {name: pl.concat(frames).sort("seq") for name, frames in by_name.items()}
    return block, first + len(order)
