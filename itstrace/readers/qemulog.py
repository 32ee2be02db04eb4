"""QEMU's own log of its ITS: `qemu-system-aarch64 -trace "gicv3_its_*"`, what its emulated ITS did, line by line.

A line is `pid@seconds.microseconds:event text` with QEMU's log backend, or `event text` alone. Each event's text is the
format string that QEMU has for it; `FORMATS` holds them with a name for each operand. Other lines, and other events, are
passed over: QEMU prints its monitor and its guest's console into the same file.

Source: hw/intc/trace-events (QEMU 9.2); util/log.c, scripts/tracetool/backend/log.py for the prefix.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING

import zstandard

from itstrace.errors import CaptureError, NothingToAnalyzeError
from itstrace.readers.base import Damage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ITS = "GICv3 ITS"
_EVENT = "DeviceID {device_id} EventID {event_id}"
_ITE = "valid {valid} inttype {inttype} intid {intid} ICID {icid} vPEID {vpe_id} doorbell {doorbell}"

#: event -> its text, with the operand's name where its value stands. Units: `size` is the encoded one (bits minus one) in
#: MAPD and DTEs, bytes in register accesses. `itt_addr` of MAPD and of `dte_write` is the encoded one, PA[51:8]; of
#: `dte_read` and ITEs it is the address. QEMU prints VMAPTI as "VMAPI": the event's name tells.
FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "gicv3_its_read": f"{_ITS} read: offset {{offset}} data {{data}} size {{size}}",
        "gicv3_its_badread": f"{_ITS} read: offset {{offset}} size {{size}}: error",
        "gicv3_its_write": f"{_ITS} write: offset {{offset}} data {{data}} size {{size}}",
        "gicv3_its_badwrite": f"{_ITS} write: offset {{offset}} data {{data}} size {{size}}: error",
        "gicv3_its_translation_write": (
            f"{_ITS} TRANSLATER write: offset {{offset}} data {{data}} size {{size}} requester_id {{device_id}}"
        ),
        "gicv3_its_process_command": f"{_ITS}: processing command at offset {{slot}}: {{opcode}}",
        "gicv3_its_cmd_int": f"{_ITS}: command INT {_EVENT}",
        "gicv3_its_cmd_clear": f"{_ITS}: command CLEAR {_EVENT}",
        "gicv3_its_cmd_discard": f"{_ITS}: command DISCARD {_EVENT}",
        "gicv3_its_cmd_sync": f"{_ITS}: command SYNC",
        "gicv3_its_cmd_mapd": (
            f"{_ITS}: command MAPD DeviceID {{device_id}} Size {{size}} ITT_addr {{itt_addr}} V {{valid}}"
        ),
        "gicv3_its_cmd_mapc": f"{_ITS}: command MAPC ICID {{icid}} RDbase {{rdbase}} V {{valid}}",
        "gicv3_its_cmd_mapi": f"{_ITS}: command MAPI {_EVENT} ICID {{icid}}",
        "gicv3_its_cmd_mapti": f"{_ITS}: command MAPTI {_EVENT} ICID {{icid}} pINTID {{intid}}",
        "gicv3_its_cmd_inv": f"{_ITS}: command INV {_EVENT}",
        "gicv3_its_cmd_invall": f"{_ITS}: command INVALL",
        "gicv3_its_cmd_movall": f"{_ITS}: command MOVALL RDbase1 {{rdbase}} RDbase2 {{rdbase2}}",
        "gicv3_its_cmd_movi": f"{_ITS}: command MOVI {_EVENT} ICID {{icid}}",
        "gicv3_its_cmd_vmapi": f"{_ITS}: command VMAPI {_EVENT} vPEID {{vpe_id}} Dbell_pINTID {{doorbell}}",
        "gicv3_its_cmd_vmapti": (
            f"{_ITS}: command VMAPI {_EVENT} vPEID {{vpe_id}} vINTID {{vintid}} Dbell_pINTID {{doorbell}}"
        ),
        "gicv3_its_cmd_vmapp": (
            f"{_ITS}: command VMAPP vPEID {{vpe_id}} RDbase {{rdbase}} V {{valid}} VPT_addr {{vpt_addr}}"
            " VPT_size {vpt_size}"
        ),
        "gicv3_its_cmd_vmovp": f"{_ITS}: command VMOVP vPEID {{vpe_id}} RDbase {{rdbase}}",
        "gicv3_its_cmd_vsync": f"{_ITS}: command VSYNC",
        "gicv3_its_cmd_vmovi": (
            f"{_ITS}: command VMOVI {_EVENT} vPEID {{vpe_id}} D {{doorbell_valid}} Dbell_pINTID {{doorbell}}"
        ),
        "gicv3_its_cmd_vinvall": f"{_ITS}: command VINVALL vPEID {{vpe_id}}",
        "gicv3_its_cmd_unknown": f"{_ITS}: unknown command {{opcode}}",
        "gicv3_its_cte_read": f"{_ITS}: Collection Table read for ICID {{icid}}: valid {{valid}} RDBase {{rdbase}}",
        "gicv3_its_cte_write": f"{_ITS}: Collection Table write for ICID {{icid}}: valid {{valid}} RDBase {{rdbase}}",
        "gicv3_its_cte_read_fault": f"{_ITS}: Collection Table read for ICID {{icid}}: faulted",
        "gicv3_its_ite_read": f"{_ITS}: Interrupt Table read for ITTaddr {{itt_addr}} EventID {{event_id}}: {_ITE}",
        "gicv3_its_ite_read_fault": (
            f"{_ITS}: Interrupt Table read for ITTaddr {{itt_addr}} EventID {{event_id}}: faulted"
        ),
        "gicv3_its_ite_write": f"{_ITS}: Interrupt Table write for ITTaddr {{itt_addr}} EventID {{event_id}}: {_ITE}",
        "gicv3_its_dte_read": (
            f"{_ITS}: Device Table read for DeviceID {{device_id}}: valid {{valid}} size {{size}} ITTaddr {{itt_addr}}"
        ),
        "gicv3_its_dte_write": (
            f"{_ITS}: Device Table write for DeviceID {{device_id}}: valid {{valid}} size {{size}} ITTaddr {{itt_addr}}"
        ),
        "gicv3_its_dte_read_fault": f"{_ITS}: Device Table read for DeviceID {{device_id}}: faulted",
        "gicv3_its_vte_read": (
            f"{_ITS}: vPE Table read for vPEID {{vpe_id}}: valid {{valid}} VPTsize {{vpt_size}} VPTaddr {{vpt_addr}}"
            " RDbase {rdbase}"
        ),
        "gicv3_its_vte_read_fault": f"{_ITS}: vPE Table read for vPEID {{vpe_id}}: faulted",
        "gicv3_its_vte_write": (
            f"{_ITS}: vPE Table write for vPEID {{vpe_id}}: valid {{valid}} VPTsize {{vpt_size}} VPTaddr {{vpt_addr}}"
            " RDbase {rdbase}"
        ),
    }
)

_PATTERNS = {
    event: re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0x[0-9a-f]+|\\d+)", re.escape(text)))
    for event, text in FORMATS.items()
}
_PREFIX = re.compile(r"(?:(?P<pid>\d+)@(?P<sec>\d+)\.(?P<usec>\d{6}):)?(?P<event>gicv3_its_\w+) ")

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class QemuRecord:
    """One trace event of QEMU's ITS: its name without `gicv3_its_`, and its operands by the names of `FORMATS`.

    Units: `time_ns` is the host's wall clock, exact to the microsecond; None, as `pid`, where lines have no prefix.
    """

    line: int
    time_ns: int | None
    pid: int | None
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


class QemuLog:
    """A QEMU log, plain or zstd-compressed. `damage` is complete after one full reading of `records`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.damage: list[Damage] = []

    def records(self) -> Iterator[QemuRecord]:
        """The ITS's trace events in order.

        Raises: CaptureError for a file that cannot be read or uncompressed, NothingToAnalyzeError for one with no event
                of an ITS.
        """
        self.damage = []
        found = False
        offset_bytes = 0
        try:
            with self._open() as stream:
                for number, line in enumerate(stream, 1):
                    record = self._record(line.decode(errors="replace").rstrip("\r\n"), number, offset_bytes)
                    offset_bytes += len(line)
                    if record is not None:
                        found = True
                        yield record
        except (OSError, zstandard.ZstdError) as error:
            raise CaptureError(
                self.path, f"cannot be read: {error}", offset_bytes=offset_bytes, expected="a QEMU trace log"
            ) from error
        if not found:
            raise NothingToAnalyzeError(
                self.path,
                "no trace event of an ITS",
                advice='record with: qemu-system-aarch64 ... -trace "gicv3_its_*" -D its.log',
            )

    def _open(self) -> IO[bytes]:
        file = self.path.open("rb")
        magic = file.read(len(_ZSTD_MAGIC))
        file.seek(0)
        if magic != _ZSTD_MAGIC:
            return file
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, closefd=True))

    def _record(self, line: str, number: int, offset_bytes: int) -> QemuRecord | None:
        """The record of a line, None for any other line; a line that is torn goes to `damage`."""
        start = line.find("gicv3_its_")
        head = _PREFIX.search(line) if start >= 0 else None
        if head is None or head["event"] not in _PATTERNS:
            return None
        text = line[head.end() :]
        body = _PATTERNS[head["event"]].fullmatch(text.rstrip())
        if body is None:
            problem = f"line {number}: not the text of {head['event']}: {text[:60]!r}"
            self.damage.append(Damage(offset_bytes, None, problem))
            return None
        time_ns = None
        if head["sec"] is not None:
            time_ns = int(head["sec"]) * 1_000_000_000 + int(head["usec"]) * 1_000
        return QemuRecord(
            line=number,
            time_ns=time_ns,
            pid=None if head["pid"] is None else int(head["pid"]),
            event=head["event"].removeprefix("gicv3_its_"),
            operands={name: int(value, 0) for name, value in body.groupdict().items()},
        )
