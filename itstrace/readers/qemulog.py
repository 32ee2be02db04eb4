"""QEMU's own log of its emulated ITS, as `qemu-system-aarch64 -trace "gicv3_its_*"` prints it.

A line is `pid@seconds.microseconds:event text`, or `event text` alone. Each event's text is the format string
that QEMU has for it; `FORMATS` holds them with a name for each operand. Other lines, and other events, are
passed over: QEMU prints its monitor and its guest's console into the same file.

Source: hw/intc/trace-events of QEMU, section arm_gicv3_its.c, with GICv4.0; the prefix is that of the
captures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import zstandard

from itstrace.errors import CaptureError, Damage, NothingToAnalyzeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_EVENT = "DeviceID {device_id} EventID {event_id}"
_ITE = "ITTaddr {itt_addr} EventID {event_id}: "
_ITE_FIELDS = "valid {valid} inttype {inttype} intid {intid} ICID {icid} vPEID {vpe_id} doorbell {doorbell}"
_DTE_FIELDS = "valid {valid} size {size} ITTaddr {itt_addr}"
_VTE_FIELDS = "valid {valid} VPTsize {vpt_size} VPTaddr {vpt_addr} RDbase {rdbase}"

#: event, less `gicv3_its_` -> its text, less "GICv3 ITS", with the operand's name where its value stands.
#: Units: `size` of MAPD and DTEs is the encoded one (bits minus one), of register accesses it is bytes.
#: `itt_addr` of MAPD and of `dte_write` is the encoded one, PA[51:8]; of `dte_read` and ITEs it is the
#: address. QEMU prints VMAPTI as "VMAPI"; the event's name tells.
FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "read": " read: offset {offset} data {data} size {size}",
        "badread": " read: offset {offset} size {size}: error",
        "write": " write: offset {offset} data {data} size {size}",
        "badwrite": " write: offset {offset} data {data} size {size}: error",
        "translation_write": (
            " TRANSLATER write: offset {offset} data {data} size {size} requester_id {device_id}"
        ),
        "process_command": ": processing command at offset {slot}: {opcode}",
        "cmd_int": f": command INT {_EVENT}",
        "cmd_clear": f": command CLEAR {_EVENT}",
        "cmd_discard": f": command DISCARD {_EVENT}",
        "cmd_sync": ": command SYNC",
        "cmd_mapd": ": command MAPD DeviceID {device_id} Size {size} ITT_addr {itt_addr} V {valid}",
        "cmd_mapc": ": command MAPC ICID {icid} RDbase {rdbase} V {valid}",
        "cmd_mapi": f": command MAPI {_EVENT} ICID {{icid}}",
        "cmd_mapti": f": command MAPTI {_EVENT} ICID {{icid}} pINTID {{intid}}",
        "cmd_inv": f": command INV {_EVENT}",
        "cmd_invall": ": command INVALL",
        "cmd_movall": ": command MOVALL RDbase1 {rdbase} RDbase2 {rdbase2}",
        "cmd_movi": f": command MOVI {_EVENT} ICID {{icid}}",
        "cmd_vmapi": f": command VMAPI {_EVENT} vPEID {{vpe_id}} Dbell_pINTID {{doorbell}}",
        "cmd_vmapti": (
            f": command VMAPI {_EVENT} vPEID {{vpe_id}} vINTID {{vintid}} Dbell_pINTID {{doorbell}}"
        ),
        "cmd_vmapp": (
            ": command VMAPP vPEID {vpe_id} RDbase {rdbase} V {valid} VPT_addr {vpt_addr} VPT_size {vpt_size}"
        ),
        "cmd_vmovp": ": command VMOVP vPEID {vpe_id} RDbase {rdbase}",
        "cmd_vsync": ": command VSYNC",
        "cmd_vmovi": (
            f": command VMOVI {_EVENT} vPEID {{vpe_id}} D {{doorbell_valid}} Dbell_pINTID {{doorbell}}"
        ),
        "cmd_vinvall": ": command VINVALL vPEID {vpe_id}",
        "cmd_unknown": ": unknown command {opcode}",
        "cte_read": ": Collection Table read for ICID {icid}: valid {valid} RDBase {rdbase}",
        "cte_write": ": Collection Table write for ICID {icid}: valid {valid} RDBase {rdbase}",
        "cte_read_fault": ": Collection Table read for ICID {icid}: faulted",
        "ite_read": f": Interrupt Table read for {_ITE}{_ITE_FIELDS}",
        "ite_write": f": Interrupt Table write for {_ITE}{_ITE_FIELDS}",
        "ite_read_fault": f": Interrupt Table read for {_ITE}faulted",
        "dte_read": f": Device Table read for DeviceID {{device_id}}: {_DTE_FIELDS}",
        "dte_write": f": Device Table write for DeviceID {{device_id}}: {_DTE_FIELDS}",
        "dte_read_fault": ": Device Table read for DeviceID {device_id}: faulted",
        "vte_read": f": vPE Table read for vPEID {{vpe_id}}: {_VTE_FIELDS}",
        "vte_write": f": vPE Table write for vPEID {{vpe_id}}: {_VTE_FIELDS}",
        "vte_read_fault": ": vPE Table read for vPEID {vpe_id}: faulted",
    }
)

_PATTERNS = {
    event: re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0x[0-9a-f]+|\\d+)", re.escape("GICv3 ITS" + text)))
    for event, text in FORMATS.items()
}
_PREFIX = re.compile(r"(?:(?P<pid>\d+)@(?P<sec>\d+)\.(?P<usec>\d{6}):)?gicv3_its_(?P<event>\w+) ")

#: The first bytes of a zstd frame. Source: RFC 8878, 3.1.1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class QemuRecord:
    """One trace event of QEMU's ITS: event and operands, by the names that `FORMATS` has for them.

    Units: `time_ns` is the host's wall clock, exact to the microsecond; None, as `pid`, where lines have no
    prefix.
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
    """A QEMU log, plain or zstd-compressed; `damage` is complete after one full reading of `records`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.damage: list[Damage] = []

    def records(self) -> Iterator[QemuRecord]:
        """The ITS's trace events in order.

        Raises: CaptureError for a file that cannot be read or uncompressed, NothingToAnalyzeError for one
        with no event of an ITS.
        """
        self.damage = []
        found = False
        offset_bytes = 0
        try:
            for number, line in enumerate(self._lines(), 1):
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

    def _lines(self) -> Iterator[bytes]:
        """The log's lines, uncompressed; what is left at the end counts as one."""
        rest = b""
        for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line + b"\n" for line in lines)
        if rest:
            yield rest

    def _chunks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            chunk = file.read(_CHUNK_BYTES)
            if not chunk.startswith(_ZSTD_MAGIC):
                while chunk:
                    yield chunk
                    chunk = file.read(_CHUNK_BYTES)
                return
            frame = zstandard.ZstdDecompressor().decompressobj()
            while chunk:
                yield frame.decompress(chunk)
                chunk = frame.unused_data or file.read(_CHUNK_BYTES)
                if frame.eof and chunk:
                    frame = zstandard.ZstdDecompressor().decompressobj()
            if not frame.eof:
                self.damage.append(Damage(file.tell(), None, "the compressed log is cut short"))

    def _record(self, line: str, number: int, offset_bytes: int) -> QemuRecord | None:
        """The record of a line, None for any other line; a line that is torn goes to `damage`."""
        start = line.find("gicv3_its_")
        head = _PREFIX.search(line) if start >= 0 else None
        if head is None or head["event"] not in _PATTERNS:
            return None
        text = line[head.end() :]
        body = _PATTERNS[head["event"]].fullmatch(text.rstrip())
        if body is None:
            problem = f"line {number}: not the text of gicv3_its_{head['event']}: {text[:60]!r}"
            self.damage.append(Damage(offset_bytes, None, problem))
            return None
        time_ns = None
        if head["sec"] is not None:
            time_ns = int(head["sec"]) * 1_000_000_000 + int(head["usec"]) * 1_000
        return QemuRecord(
            line=number,
            time_ns=time_ns,
            pid=None if head["pid"] is None else int(head["pid"]),
            event=head["event"],
            operands={name: int(value, 0) for name, value in body.groupdict().items()},
        )
