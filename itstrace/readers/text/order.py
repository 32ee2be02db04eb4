"""Chunks into order of time.

Tracers print in order, or nearly: readers of several CPUs' pipes overtake each other by a little. One chunk is held
back to be sorted with the next; what is older than what was given already gets the time of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from itstrace.readers.base import Block
    from itstrace.readers.text.numbers import Places
    from itstrace.readers.text.tally import Tally


@dataclass(slots=True)
class Piece:
    """The records of a chunk: the times of all, and frames of those asked for, whose `seq` is the rank among all."""

    times: Places
    frames: Block


def in_order(pieces: Iterable[Piece], tally: Tally) -> Iterator[Block]:
    """Give the pieces' frames in order of time, `seq` counted through; ties keep the order of the lines."""
    held: Piece | None = None
    given = 0
    latest = np.iinfo(np.int64).min
    for fresh in pieces:
        piece = _sorted(_not_before(fresh, latest, tally))
        if held is None:
            held = piece
            continue
        if len(piece.times) and len(held.times) and piece.times[0] < held.times[-1]:
            count = len(held.times)
            held, piece = _split(_sorted(_joined(held, piece)), count)
        yield _numbered(held, given)
        given += len(held.times)
        latest = max(latest, int(held.times[-1])) if len(held.times) else latest
        held = piece
    if held is not None:
        yield _numbered(held, given)


def _numbered(piece: Piece, first: int) -> Block:
    return {name: frame.with_columns(pl.col("seq") + first) for name, frame in piece.frames.items()}


def _not_before(piece: Piece, latest: int, tally: Tally) -> Piece:
    """Records older than what was given already get its time."""
    early = piece.times < latest
    if not early.any():
        return piece
    tally.disorder += int(early.sum())
    frames = {
        name: frame.with_columns(pl.col("time_ns").clip(latest)) for name, frame in piece.frames.items()
    }
    return Piece(np.maximum(piece.times, latest), frames)


def _sorted(piece: Piece) -> Piece:
    if not len(piece.times) or (piece.times[1:] >= piece.times[:-1]).all():
        return piece
    order = np.argsort(piece.times, kind="stable")
    rank = np.empty(len(order), np.uint64)
    rank[order] = np.arange(len(order), dtype=np.uint64)
    return Piece(
        piece.times[order],
        {
            name: frame.with_columns(seq=pl.Series(rank[frame["seq"].to_numpy()])).sort("seq")
            for name, frame in piece.frames.items()
        },
    )


def _joined(first: Piece, second: Piece) -> Piece:
    frames = dict(first.frames)
    for name, frame in second.frames.items():
        later = frame.with_columns(pl.col("seq") + len(first.times))
        frames[name] = pl.concat([frames[name], later]) if name in frames else later
    return Piece(np.concatenate([first.times, second.times]), frames)


def _split(piece: Piece, count: int) -> tuple[Piece, Piece]:
    """The first `count` records, and the others."""
    before = {name: frame.filter(pl.col("seq") < count) for name, frame in piece.frames.items()}
    after = {
        name: frame.filter(pl.col("seq") >= count).with_columns(pl.col("seq") - count)
        for name, frame in piece.frames.items()
    }
    return Piece(piece.times[:count], before), Piece(piece.times[count:], after)
