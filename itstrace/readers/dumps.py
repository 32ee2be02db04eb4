"""The kernel's own word about its state: `vgic-state`, `vgic-its-state@BASE`, and folders of saved tables.

The two texts are debugfs files of KVM; the folder holds what KVM wrote into guest memory when its tables were
saved (`itstrace.readers.images`). A dump does not know of which VM it is: `vm` and `its` are null.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import polars as pl

from itstrace.errors import DumpError
from itstrace.readers.images import SavedImages, read_saved_images
from itstrace.tables import COLLECTION_ROWS, DEVICE_ROWS, EVENT_ROWS, LPI_ROWS, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: Most bytes of a text dump; one of 512 vCPUs and 57,344 LPIs has 5 MiB.
_TEXT_LIMIT_BYTES = 64 << 20
_LINE_LIMIT = 512

#: One row per LPI as `vgic-state` prints it. Null: no such vCPU.
#: Kernel: vgic-debug.c:print_irq_state (v6.12)
DUMPED_LPIS = pl.Schema(
    {
        "intid": pl.UInt32,
        "target_vcpu": pl.Int32,
        "pending": pl.Boolean,  # pending_latch; what a list register holds is not shown
        "active": pl.Boolean,
        "enabled": pl.Boolean,
        "hw": pl.Boolean,  # injected directly (GICv4)
        "priority": pl.UInt8,
        "owner_vcpu": pl.Int32,  # whose ap_list it is on
    }
)


class DumpKind(StrEnum):
    """What a dump is, by the name that the user knows it by."""

    VGIC_STATE = "vgic-state"
    ITS_STATE = "vgic-its-state"


@dataclass(frozen=True, slots=True)
class VgicState:
    """One `vgic-state`: every LPI that KVM holds an object for, mapped or not."""

    path: Path
    enabled: bool | None  # the distributor
    lpis: pl.DataFrame

    @property
    def tables(self) -> Tables:
        """What it says about the tables; `mapped` is null, for it does not say that. Shape: `lpis` alone."""
        rows = self.lpis.select(
            pl.lit(None, pl.UInt16).alias("vm"),
            "intid",
            "enabled",
            "priority",
            "target_vcpu",
            # Of one that is injected directly it is the hardware's. Kernel: vgic-debug.c:print_irq_state (v6.12)
            pl.when(~pl.col("hw")).then("pending").alias("pending"),
            pl.lit(None, pl.Boolean).alias("mapped"),
        )
        return Tables(lpis=rows.select(LPI_ROWS.names()).cast(LPI_ROWS))


@dataclass(frozen=True, slots=True)
class ItsState:
    """One `vgic-its-state`: events that have an LPI and a collection, and devices that have such an event."""

    path: Path
    base_gpa: int | None  # of the ITS, out of the file's name
    tables: Tables


Dump = VgicState | ItsState | SavedImages


def read_dump(path: Path) -> Dump:
    """Read a dump of any kind: a folder with `tables.json`, or one of the two texts, told by the content.

    Raises: DumpError where it is none of these, or damaged.
    """
    if path.is_dir() or path.suffix == ".json":
        return read_saved_images(path)
    lines = _Lines(path)
    kind = _kind(lines)
    if kind is DumpKind.ITS_STATE:
        return ItsState(path, its_base(path), _its_state(lines))
    return _vgic_state(lines)


def its_base(path: Path) -> int | None:
    """The base of the ITS in a dump's name (`vgic-its-state@8080000.stopped`); None where it gives none."""
    named = re.match(r"vgic-its-state@([0-9a-fA-F]{1,16})(?![0-9a-zA-Z])", path.name)
    return None if named is None else int(named[1], 16)


class _Lines:
    """The lines of a text dump, and where each stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        try:
            with path.open("rb") as stream:
                content = stream.read(_TEXT_LIMIT_BYTES + 1)
        except OSError as error:
            raise DumpError(path, f"cannot be read: {error.strerror}") from error
        if len(content) > _TEXT_LIMIT_BYTES:
            raise DumpError(path, "too large", expected=f"at most {_TEXT_LIMIT_BYTES >> 20} MiB")
        # Any byte is a character of Latin-1: what is no dump is told by its lines, not by its encoding.
        self.lines = content.decode("latin-1").split("\n")

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.number += 1
            yield line.rstrip()

    def error(self, problem: str, *, expected: str, advice: str | None = None) -> DumpError:
        """The error for the line that was given out last."""
        line = self.lines[self.number - 1]
        shown = f": {line[:60]!r}" if line else ""
        return DumpError(self.path, f"line {self.number}: {problem}{shown}", expected=expected, advice=advice)


def _kind(lines: _Lines) -> DumpKind:
    """Which of the two texts it is. A `vgic-its-state` without a line is an ITS without an event."""
    first = next((line for line in lines.lines if line.strip()), None)
    if first is None:
        if lines.path.name.startswith("vgic-its-state"):
            return DumpKind.ITS_STATE
        raise DumpError(
            lines.path,
            "empty",
            expected="vgic-state or vgic-its-state",
            advice="read the file again, as root",
        )
    if first.startswith("Device ID:"):
        return DumpKind.ITS_STATE
    if first.startswith("Distributor"):
        return DumpKind.VGIC_STATE
    raise DumpError(
        lines.path,
        f"no dump of KVM's: it begins with {first[:60]!r}",
        expected="vgic-state ('Distributor'), vgic-its-state ('Device ID:'), or a folder with tables.json",
        advice="dumps stand in /sys/kernel/debug/kvm/PID-FD/ on the host",
    )


#: Kernel: vgic-debug.c:print_header, print_irq_state (v6.1, v6.12, v7.3 alike)
_VGIC_COLUMNS = ["TYP", "ID", "TGT_ID", "PLAEHCG", "HWID", "TARGET", "SRC", "PRI", "VCPU_ID"]
_TYPES = {"SGI", "PPI", "SPI", "LPI"}
_AGAIN = "copy the dump again: it looks cut short or changed"


#: As DUMPED_LPIS.
_LpiRow = tuple[int, int | None, bool, bool, bool, bool, int, int | None]


def _vgic_state(lines: _Lines) -> VgicState:
    header: dict[str, int] = {}
    rows: list[_LpiRow] = []
    freed, in_table = 0, False
    for line in lines:
        words = line.split()
        if not words or len(line) > _LINE_LIMIT:
            if words:
                raise lines.error("a line too long", expected=f"at most {_LINE_LIMIT} characters")
            continue
        if words[0] in _TYPES and in_table:
            if words[0] != "LPI":
                continue
            # Gone between the opening of the file and its turn. Kernel: vgic-debug.c:vgic_debug_show (v6.12)
            if words[2:] == ["freed"]:
                freed += 1
            else:
                rows.append(_lpi_row(lines, words))
        elif "TYP" in words:
            # "VCPU 0 TYP …", "SPI  0 TYP …"
            if words[words.index("TYP") :] != _VGIC_COLUMNS:
                raise lines.error("columns of another kernel", expected=" ".join(_VGIC_COLUMNS))
            in_table = True
        elif not in_table and (told := re.fullmatch(r"(\w+):\s*(\d{1,9})", line)):
            header[told[1]] = int(told[2])
        elif in_table and not set(line) <= {"-"}:
            wanted_row = "SGI, PPI, SPI or LPI and eight columns"
            raise lines.error("not a row of the dump", expected=wanted_row, advice=_AGAIN)
    wanted = header.get("nr_lpis", 0)
    if wanted != len(rows) + freed:
        problem = f"line {lines.number}: it ends after {len(rows) + freed} LPIs"
        raise DumpError(lines.path, problem, expected=f"{wanted}, as nr_lpis says", advice=_AGAIN)
    lpis = pl.DataFrame(rows, DUMPED_LPIS, orient="row").sort("intid")
    twice = lpis.filter(lpis["intid"].is_duplicated())
    if twice.height:
        raise DumpError(lines.path, f"LPI {twice['intid'][0]} stands there twice", expected="each LPI once")
    enabled = header.get("enabled")
    return VgicState(lines.path, None if enabled is None else bool(enabled), lpis)


def _lpi_row(lines: _Lines, words: list[str]) -> _LpiRow:
    """One LPI. The flags are pending_latch, line, active, enabled, hw, config, group."""
    problem = "not the row of an LPI"
    expected = " ".join(_VGIC_COLUMNS)
    if len(words) != len(_VGIC_COLUMNS) or not re.fullmatch(r"[01]{7}", words[3]):
        raise lines.error(problem, expected=expected, advice=_AGAIN)
    try:
        intid, target, priority, owner = (_decimal(words[at]) for at in (1, 2, 7, 8))
    except ValueError as error:
        raise lines.error(problem, expected=expected, advice=_AGAIN) from error
    vcpus = range(-1, 1 << 31)
    if not (8192 <= intid < 1 << 32 and 0 <= priority < 256 and target in vcpus and owner in vcpus):
        raise lines.error(
            "a number out of range", expected="LPI 8192 or more, priority below 256, vCPU or -1"
        )
    pending, active, enabled, hw = (words[3][at] == "1" for at in (0, 2, 3, 4))
    vcpu, owner_vcpu = (None if number < 0 else number for number in (target, owner))
    return intid, vcpu, pending, active, enabled, hw, priority, owner_vcpu


#: Kernel: vgic-its-debug.c:vgic_its_debug_show (v7.3)
_ITS_COLUMNS = ["EVENT_ID", "INTID", "HWINTID", "TARGET", "COL_ID", "HW"]
_DEVICE_LINE = re.compile(r"Device ID: 0x([0-9a-fA-F]{1,8}), Event ID Range: \[0 - (\d{1,20})\]")
#: A collection that no MAPC has mapped. Kernel: vgic.h:COLLECTION_NOT_MAPPED (v7.3)
_NOT_MAPPED = 0xFFFF_FFFF


def _its_state(lines: _Lines) -> Tables:
    devices: dict[int, int] = {}
    events: dict[tuple[int, int], tuple[int, int]] = {}
    targets: dict[int, int | None] = {}
    device_id: int | None = None
    for line in lines:
        words = line.split()
        if not words or (device_id is not None and (words == _ITS_COLUMNS or set(line) <= {"-"})):
            continue
        if words[0] == "Device":
            told = _DEVICE_LINE.fullmatch(line)
            if told is None:
                wanted = "'Device ID: 0x8, Event ID Range: [0 - 31]'"
                raise lines.error("not a device", expected=wanted, advice=_AGAIN)
            device_id, last_event = int(told[1], 16), int(told[2])
            event_bits = (last_event + 1).bit_length() - 1
            if last_event + 1 != 1 << event_bits or event_bits > 32 or device_id in devices:
                wanted = "each device once, with 2^n events"
                raise lines.error("a device twice, or with an odd range", expected=wanted, advice=_AGAIN)
            devices[device_id] = event_bits
            continue
        if device_id is None:
            raise lines.error("a row before any device", expected="'Device ID: …'", advice=_AGAIN)
        try:
            event_id, intid, _, target, icid, hw = (_decimal(word) for word in words)
        except ValueError as error:
            raise lines.error("not an event", expected=" ".join(_ITS_COLUMNS), advice=_AGAIN) from error
        if not (
            0 <= event_id < 1 << devices[device_id]
            and 8192 <= intid < 1 << 32
            and 0 <= target < 1 << 32
            and 0 <= icid < 1 << 16
            and hw in (0, 1)
        ):
            wanted = "an event of the device's range, an LPI, a collection below 65536"
            raise lines.error("a number out of range", expected=wanted)
        if (device_id, event_id) in events:
            raise lines.error("an event twice", expected="each event of a device once")
        vcpu = None if target == _NOT_MAPPED else _vcpu(lines, target)
        if targets.setdefault(icid, vcpu) != vcpu:
            raise lines.error(
                f"collection {icid} with another target than before", expected="one target each"
            )
        events[device_id, event_id] = intid, icid
    return Tables(
        devices=dumped_rows(DEVICE_ROWS, [(device, bits, None) for device, bits in devices.items()]),
        collections=dumped_rows(COLLECTION_ROWS, list(targets.items())),
        events=dumped_rows(
            EVENT_ROWS,
            [(*event, intid, icid, targets[icid]) for event, (intid, icid) in events.items()],
        ),
    )


def _vcpu(lines: _Lines, target: int) -> int:
    if target >= 1 << 31:
        raise lines.error("no vCPU", expected="a target below 2^31, or 4294967295 for none")
    return target


def _decimal(word: str) -> int:
    """A number in decimal, of at most ten digits. Raises: ValueError."""
    if not re.fullmatch(r"-?[0-9]{1,10}", word):
        raise ValueError(word)
    return int(word)


def dumped_rows(schema: pl.Schema, rows: Sequence[tuple[int | None, ...]]) -> pl.DataFrame:
    """Rows of a table by their ids, the VM and ITS unknown and nothing assumed. Shape: `schema`."""
    whole = [(None, None, *row, False) for row in rows]
    return pl.DataFrame(whole, schema, orient="row").sort(schema.names()[2:4])
