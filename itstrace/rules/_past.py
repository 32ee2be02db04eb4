"""What came before a command: which entry held, what took it away, and whether that is sure. Shared by the rules of ITS1xx."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.model import effects as fx
from itstrace.rules.case import once

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from itstrace.replay import Note
    from itstrace.rules.case import Case

Key = tuple[Any, ...]
Row = dict[str, Any]

#: GITS_BASER<n> of a vITS: devices and collections. Kernel: vgic-its.c:vgic_mmio_write_its_baser (v6.12)
_TABLES = (0, 1)


class Entries:
    """Intervals of one frame by key, for look-ups by record; `wanted` are the keys that will be asked for."""

    def __init__(self, frame: pl.DataFrame, keys: Sequence[str], wanted: Collection[Key]) -> None:
        self._rows: dict[Key, list[Row]] = defaultdict(list)
        schema = {name: frame.schema[name] for name in keys}
        mine = pl.DataFrame(list(wanted), schema=schema, orient="row")
        frame = frame.join(mine, on=list(keys), how="semi").sort(pl.col("from_seq").fill_null(0))
        for row in frame.iter_rows(named=True):
            self._rows[tuple(row[name] for name in keys)].append(row)
        self._begins = {key: [row["from_seq"] or 0 for row in rows] for key, rows in self._rows.items()}

    def before(self, key: Key, seq: int) -> Row | None:
        """What held just before a record, which may itself have ended it."""
        at = bisect_left(self._begins.get(key, ()), max(seq, 1)) - 1
        row = self._rows[key][at] if at >= 0 else None
        return row if row is not None and (row["to_seq"] is None or row["to_seq"] >= seq) else None

    def gone(self, key: Key, seq: int) -> Row | None:
        """What was the last to end before a record."""
        at = bisect_left(self._begins.get(key, ()), max(seq, 1))
        ended = (row for row in reversed(self._rows.get(key, [])[:at]) if row["to_seq"] is not None)
        return next((row for row in ended if row["to_seq"] < seq), None)


class Past:
    """What makes the time before a command uncertain."""

    def __init__(self, case: Case) -> None:
        lost = case.observations.commands.filter("lost_before").select("vm", "its", "seq")
        self._lost = _by_its(lost.sort("seq").iter_rows())
        self._replaced = _by_its(_replaced(case.history.notes))

    def sure(self, entry: Row | None, seq: int) -> bool:
        """Whether an entry that held before a record held by the guest's own doing, and was surely not taken away since.

        It may have been where commands of its ITS were lost. And it was, for the guest, where that has written the ITS's
        table registers meanwhile, as a kernel does that kexec started: up to 6.12 KVM keeps what the old tables held.
        Kernel: vgic-its.c:vgic_mmio_write_its_baser (v6.12)
        """
        if entry is None or (entry["assumed"] and entry["from_seq"] is not None):
            return False
        its, since = (entry["vm"], entry["its"]), entry["from_seq"] or 0
        return not any(_between(seqs.get(its, ()), since, seq) for seqs in (self._lost, self._replaced))


@once
def past_of(case: Case) -> Past:
    """What makes the time before the capture's commands uncertain."""
    return Past(case)


def _by_its(rows: Iterable[tuple[int, int, int]]) -> dict[Key, list[int]]:
    found: dict[Key, list[int]] = defaultdict(list)
    for vm, its, seq in rows:
        found[vm, its].append(seq)
    return found


def _replaced(notes: Sequence[Note]) -> Iterator[tuple[int, int, int]]:
    """(vm, its, seq) at which a table register was written, with whatever: a guest that was reset writes the same again."""
    for note in notes:
        if isinstance(note.effect, fx.TableSet) and note.effect.number in _TABLES:
            yield note.vm, note.effect.its, note.seq


def _between(seqs: Sequence[int], after: int, upto: int) -> bool:
    """Whether any of these, in order, lies behind `after` and not behind `upto`."""
    at = bisect_left(seqs, after + 1)
    return at < len(seqs) and seqs[at] <= upto
