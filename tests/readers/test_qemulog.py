"""QEMU's log of its own ITS: what the reader makes of it, and whether the model does what QEMU's ITS did.

The comparison is exact: for every command, the table entries that QEMU wrote are those that the model with
profile `qemu` writes, each with every value, none more and none fewer; and every entry that QEMU read is what
the model holds.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zstandard

from itstrace.errors import CaptureError, NothingToAnalyzeError
from itstrace.gic import commands as build
from itstrace.gic.commands import Command, Opcode
from itstrace.gic.faults import Fault
from itstrace.model import PROFILES, Gic
from itstrace.model.effects import CommandFaulted, InjectionRefused, Resolved, TableWrite
from itstrace.readers.qemulog import FORMATS, QemuLog, QemuRecord

#: The first 18 phases of captures/qemu-torture: all commands, errors, remaps. Acknowledges are left out.
EXCERPT = Path(__file__).parents[1] / "data" / "qemu-torture-excerpt.log.zst"
SYNC = b"gicv3_its_cmd_sync GICv3 ITS: command SYNC\n"
CORPUS = os.environ.get("ITSTRACE_CORPUS")
NEEDS_CORPUS = (
    pytest.mark.corpus,
    pytest.mark.skipif(CORPUS is None, reason="ITSTRACE_CORPUS is not set"),
)
CORPUS_LOGS = [pytest.param(name, marks=NEEDS_CORPUS) for name in ("qemu-linux", "qemu-torture")]


def command_of(record: QemuRecord) -> Command:
    """The command that a `cmd_*` record tells. INVALL has no ICID there, and SYNC no RDbase: they are 0."""
    opcode = Opcode[record.event.removeprefix("cmd_").upper()]
    values = dict(record.operands)
    if opcode is Opcode.MAPD:
        values["event_bits"] = values.pop("size") + 1
        values["itt_gpa"] = values.pop("itt_addr") << 8
    return build.build(opcode, **values)


def write_of(record: QemuRecord) -> TableWrite:
    """The effect that a table write of QEMU's stands for."""
    one = record.operands
    valid = bool(one["valid"])
    if record.event == "dte_write":
        fields = (("size", one["size"]), ("itt_gpa", one["itt_addr"] << 8))
        return TableWrite(0, "dte", (one["device_id"],), valid, fields)
    if record.event == "cte_write":
        return TableWrite(0, "cte", (one["icid"],), valid, (("rdbase", one["rdbase"]),))
    names = ("inttype", "intid", "icid", "vpe_id", "doorbell")
    index = (one["itt_addr"], one["event_id"])
    return TableWrite(0, "ite", index, valid, tuple((name, one[name]) for name in names))


@dataclass
class Replay:
    """A log replayed: per command, what QEMU wrote and what the model wrote."""

    gic: Gic
    commands: list[tuple[int, Command]] = field(default_factory=list)
    written: list[list[TableWrite]] = field(default_factory=list)
    predicted: list[list[TableWrite]] = field(default_factory=list)
    faults: list[CommandFaulted] = field(default_factory=list)
    msis: int = 0
    reads: int = 0

    def take(self, line: int, command: Command, written: list[TableWrite]) -> None:
        """One command through the model, beside what QEMU wrote for it."""
        effects = self.gic.step(0, command)
        self.commands.append((line, command))
        self.written.append(written)
        self.predicted.append([effect for effect in effects if isinstance(effect, TableWrite)])
        self.faults += [effect for effect in effects if isinstance(effect, CommandFaulted)]

    def check_read(self, record: QemuRecord) -> None:
        """What QEMU read is what the model holds. Memory that the guest itself cleared reads as invalid."""
        one = record.operands
        its = self.gic.its[0]
        self.reads += 1
        where = f"line {record.line}: {record.event} {dict(one)}"
        if record.event == "dte_read":
            device = its.devices.get(one["device_id"])
            assert (device is not None) == bool(one["valid"]), where
            if device is not None:
                assert (device.event_bits, device.itt_gpa) == (one["size"] + 1, one["itt_addr"]), where
        elif record.event == "cte_read":
            collection = its.collections.get(one["icid"])
            assert (collection is not None) == bool(one["valid"]), where
            assert collection is None or collection.target_vcpu == one["rdbase"], where
        else:
            itts = [device.events for device in its.devices.values() if device.itt_gpa == one["itt_addr"]]
            entries = [itt[one["event_id"]] for itt in itts if one["event_id"] in itt]
            assert bool(entries) == bool(one["valid"]), where
            assert not entries or (entries[0].intid, entries[0].icid) == (one["intid"], one["icid"]), where


def replay(path: Path) -> Replay:
    """Every record of a log through the model; a command is done at its end: it reads before it writes."""
    gic = Gic(PROFILES["qemu"], vcpus=[0, 1])
    gic.add_its(0, complete=True)
    result = Replay(gic)
    opened: tuple[int, Command] | None = None
    writes: list[TableWrite] = []
    for record in QemuLog(path).records():
        ends = record.event in {"process_command", "write", "translation_write"}
        if opened is not None and ends:
            result.take(*opened, writes)
            opened, writes = None, []
        if record.event == "process_command":
            assert gic.its[0].creadr == record.operands["slot"] * 32
            # Opcodes that this QEMU does not have print no operands, some nothing at all.
            opened = record.line, Command((record.operands["opcode"], 0, 0, 0))
        elif record.is_command and record.event != "cmd_unknown":
            assert opened is not None
            command = command_of(record)
            assert command.opcode == opened[1].opcode
            opened = record.line, command
        elif record.event == "write":
            gic.write_its(0, record.operands["offset"], record.operands["data"], record.operands["size"])
        elif record.event == "translation_write":
            effects = gic.inject(0, record.operands["device_id"], record.operands["data"])
            assert isinstance(effects[0], Resolved | InjectionRefused)
            result.msis += 1
        elif record.is_table_write:
            assert opened is not None
            writes.append(write_of(record))
        elif record.event in {"dte_read", "cte_read", "ite_read"}:
            result.check_read(record)
    if opened is not None:
        result.take(*opened, writes)
    return result


def assert_exact(result: Replay) -> None:
    for (line, command), written, predicted in zip(
        result.commands, result.written, result.predicted, strict=True
    ):
        assert written == predicted, f"line {line}: {command}"
    assert sum(map(len, result.written))


def test_excerpt_is_replayed_exactly() -> None:
    result = replay(EXCERPT)
    assert_exact(result)
    faults = {effect.fault for effect in result.faults}
    assert {Fault.MAPD_DEVICE_OOR, Fault.MAPD_ITTSIZE_OOR, Fault.MAPC_PROCNUM_OOR} <= faults
    assert {Fault.MAPTI_ID_OOR, Fault.MAPTI_PHYSICALID_OOR, Fault.MAPTI_COLLECTION_OOR} <= faults


def test_line_with_prefix() -> None:
    text = (
        "22832@1795390538.650005:gicv3_its_process_command GICv3 ITS: processing command at offset 0x2: 0x9"
    )
    assert records(text) == [
        QemuRecord(1, 1795390538650005000, 22832, "process_command", {"slot": 2, "opcode": 9})
    ]


def test_line_without_prefix() -> None:
    text = "gicv3_its_cmd_movi GICv3 ITS: command MOVI DeviceID 0x8 EventID 0x1f ICID 0x9"
    assert records(text) == [
        QemuRecord(1, None, None, "cmd_movi", {"device_id": 8, "event_id": 31, "icid": 9})
    ]


def test_vmapti_is_told_by_its_event_not_by_its_text() -> None:
    text = (
        "gicv3_its_cmd_vmapti GICv3 ITS: command VMAPI DeviceID 0x8 EventID 0x1 vPEID 0x2 vINTID 0x2000"
        " Dbell_pINTID 0x3ff"
    )
    (record,) = records(text)
    assert (record.event, record.operands["vintid"]) == ("cmd_vmapti", 8192)
    assert command_of(record) == build.build(
        Opcode.VMAPTI, device_id=8, event_id=1, vpe_id=2, vintid=8192, doorbell=1023
    )


def test_every_event_can_be_read() -> None:
    for event, text in FORMATS.items():
        names = re.findall(r"{(\w+)}", text)
        values = {name: 16 + at for at, name in enumerate(names)}
        line = f"gicv3_its_{event} GICv3 ITS{text.format(**{n: hex(v) for n, v in values.items()})}"
        assert records(line) == [QemuRecord(1, None, None, event, values)]


def test_other_lines_are_passed_over() -> None:
    lines = (
        "QEMU 9.2 monitor - type 'help' for more information",
        "1@2.000003:gicv3_redist_set_irq GICv3 redistributor 0x0 interrupt 27 level changed to 1",
        "gicv3_its_cmd_sync GICv3 ITS: command SYNC",
    )
    assert [record.event for record in records(*lines)] == ["cmd_sync"]


def test_torn_line_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "its.log"
    path.write_text(
        "gicv3_its_cmd_sync GICv3 ITS: command SYNC\ngicv3_its_cmd_inv GICv3 ITS: command INV Dev"
    )
    log = QemuLog(path)
    assert [record.event for record in log.records()] == ["cmd_sync"]
    (damage,) = log.damage
    assert damage.offset_bytes == 43
    assert damage.problem.startswith("line 2: not the text of gicv3_its_cmd_inv")


def test_log_without_an_its(tmp_path: Path) -> None:
    path = tmp_path / "other.log"
    path.write_text("nothing here\n")
    with pytest.raises(NothingToAnalyzeError, match="no trace event of an ITS"):
        list(QemuLog(path).records())


def test_compressed_log_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "its.log.zst"
    lines = SYNC * 9
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(lines)
    path.write_bytes(whole[:-3])
    log = QemuLog(path)
    assert len(list(log.records())) == 9
    assert [damage.problem for damage in log.damage] == ["the compressed log is cut short"]


def test_compressed_log_in_two_frames(tmp_path: Path) -> None:
    path = tmp_path / "its.log.zst"
    frame = zstandard.ZstdCompressor().compress(SYNC)
    path.write_bytes(frame + frame)
    log = QemuLog(path)
    assert len(list(log.records())) == 2
    assert not log.damage


def test_compressed_log_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "its.log.zst"
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(SYNC)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CaptureError, match="cannot be read"):
        list(QemuLog(path).records())


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot be read"):
        list(QemuLog(tmp_path / "none.log").records())


def records(*lines: str) -> list[QemuRecord]:
    """What the reader makes of these lines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "its.log"
        path.write_text("".join(line + "\n" for line in lines))
        return list(QemuLog(path).records())


@pytest.mark.parametrize("name", CORPUS_LOGS)
def test_whole_log_is_replayed_exactly(name: str) -> None:
    assert CORPUS is not None
    result = replay(Path(CORPUS) / name / "its.log.zst")
    assert_exact(result)
    assert len(result.commands) > 500
    assert result.msis > 200
    assert result.reads > 2000
