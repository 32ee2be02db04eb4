"""A QEMU log as a list of records, for tests that look at it line by line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

from itstrace.readers import open_capture
from itstrace.readers.qemulog import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The first 18 phases of captures/qemu-torture: all commands, errors, remaps. Acknowledges are left out.
EXCERPT = Path(__file__).parents[1] / "data" / "qemu-torture-excerpt.log.zst"


@dataclass(frozen=True, slots=True)
class QemuRecord:
    """One trace event of QEMU's ITS: event and operands, by the names that `FORMATS` has for them."""

    seq: int
    event: str
    operands: Mapping[str, int]

    @property
    def is_command(self) -> bool:
        """Whether it tells a command and its operands."""
        return self.event.startswith("cmd_")

    @property
    def is_table_write(self) -> bool:
        """Whether it is a write of a table entry."""
        return self.event in {"cte_write", "dte_write", "ite_write", "vte_write"}


def records(path: Path) -> list[QemuRecord]:
    """The ITS's trace events in the order of the log."""
    found = []
    with open_capture(path) as capture:
        for block in capture.blocks(lambda event: event.fields):
            for name, frame in block.items():
                event = name.removeprefix("qemu:gicv3_its_")
                if event in FORMATS:
                    rows = frame.drop("time_ns", "cpu", "pid").iter_rows(named=True)
                    found += [QemuRecord(row.pop("seq"), event, row) for row in rows]
    return sorted(found, key=lambda record: record.seq)


def text_of(path: Path) -> str:
    """The text of a log that is packed with zstd."""
    with path.open("rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file).read().decode()
