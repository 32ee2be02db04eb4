"""Records as they stand in the capture: what a finding shows for evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from itstrace.observe.catalogue import PROBES
from itstrace.readers.base import HEAD
from itstrace.readers.print_fmt import render

if TYPE_CHECKING:
    from collections.abc import Iterable

    from itstrace.observe.collect import Raw

#: Columns that are pointers, addresses or raw words; they are shown in hex.
_HEX = {
    "kvm",
    "its",
    "irq",
    "gpa",
    "addr",
    "val",
    "value",
    "base",
    "cbaser",
    "creadr",
    "cwriter",
    "itt",
    "dw0",
    "dw1",
    "dw2",
    "dw3",
    "lr0",
    "lr1",
    "lr2",
    "lr3",
    "owner_ptr",
    "vcpu_ptr",
    "from_ptr",
    "lo",
    "hi",
    "device_id",
}


def lines(raw: Raw, seqs: Iterable[int]) -> pl.DataFrame:
    """The records of these seqs.

    Shape: seq, time_ns, cpu, event, text; one row per record that a probe gave, in order of seq. `text` has
        the event's own field names, as far as a probe reads them; of QEMU's log it is what the line says.
    """
    wanted = pl.Series("seq", sorted(set(seqs)), dtype=pl.UInt64)
    rows: list[tuple[int, int, int, str, str]] = []
    if wanted.len():
        for name, event in raw.events.items():
            hits = _found(raw[name], wanted)
            rows.extend(_line(raw, name, event, row) for row in hits.iter_rows(named=True))
    schema = {"seq": pl.UInt64, "time_ns": pl.Int64, "cpu": pl.UInt16, "event": pl.String, "text": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row").sort("seq")


def _found(frame: pl.DataFrame, wanted: pl.Series) -> pl.DataFrame:
    """Rows of a frame in order of seq with these seqs, which are in order too: there may be millions of rows."""
    seqs, asked = frame["seq"].to_numpy(), wanted.to_numpy()
    places = np.searchsorted(seqs, asked)
    places = places[places < len(seqs)]
    places = places[seqs[places] == asked[: len(places)]]
    return frame.select(pl.all().gather(places)) if len(places) else frame.clear()


def _line(raw: Raw, probe: str, event: str, row: dict[str, object]) -> tuple[int, int, int, str, str]:
    seq, time_ns, cpu = (row[name] for name in list(HEAD)[:3])
    assert isinstance(seq, int)
    assert isinstance(time_ns, int)
    assert isinstance(cpu, int)
    name = event.rpartition(":")[2]
    if PROBES[probe].source == "QEMU":
        return seq, time_ns, cpu, name, render(raw.formats[event], row)
    words = []
    for column in PROBES[probe].columns:
        value = row[column.name]
        field = raw.fields.get((probe, column.name))
        if field is None or value is None:
            continue
        # The owner of an LPI that is on no list is read through a null pointer: garbage, and not worth a
        # reader's time.
        if column.name == "owner_vcpu" and row.get("owner_ptr") == 0:
            continue
        shown = f"0x{value:x}" if column.name in _HEX and isinstance(value, int) else str(value)
        words.append(shown if column.name == "text" else f"{field}={shown}")
    return seq, time_ns, cpu, name, " ".join(words)
