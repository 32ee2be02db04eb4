"""A trace.dat taken apart into what tracefs itself would have given: pages by CPU, formats, names of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.readers.bytesource import Decompressor
from itstrace.readers.tracedat import TraceDat

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace.readers.tracedat.contents import CpuData


def _pages(capture: TraceDat, data: CpuData, *, compressed: bool) -> bytes:
    file = capture._file[data.offset_bytes : data.offset_bytes + data.size_bytes]
    if not compressed:
        return file
    unpack = Decompressor(capture._container.compression).unpack
    plain, at = [], 4
    for _ in range(int.from_bytes(file[:4], "little")):
        packed_bytes, plain_bytes = (int.from_bytes(file[i : i + 4], "little") for i in (at, at + 4))
        plain.append(unpack(file[at + 8 : at + 8 + packed_bytes], plain_bytes))
        at += 8 + packed_bytes
    return b"".join(plain)


def write_raw(trace: Path, folder: Path, name: str = "per_cpu/cpu{}/trace_pipe_raw") -> Path:
    """Write the pages of every CPU, `events/`, saved_cmdlines, trace_clock and uname into a folder."""
    with TraceDat.open(trace) as capture:
        container = capture._container
        for data in container.buffers[0].cpus:
            path = folder / name.format(data.cpu)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_pages(capture, data, compressed=container.buffers[0].compressed))
        for system, text in container.format_texts:
            event = next(line.split()[1] for line in text.splitlines() if line.startswith("name:"))
            path = folder / "events" / system / event / "format"
            path.parent.mkdir(parents=True)
            path.write_text(text)
        (folder / "events" / "header_page").write_text(container.header_page)
        (folder / "saved_cmdlines").write_text(container.cmdlines)
        (folder / "trace_clock").write_text(container.clocks or f"local [{capture.info.clock}]")
        (folder / "uname.txt").write_text(f"{container.uname or ''}\n")
    return folder
