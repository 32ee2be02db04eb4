"""Whether the model does what QEMU's own ITS did, by its log.

The comparison is exact: for every command, the table entries that QEMU wrote are those that the model with
profile `qemu` writes, each with every value, none more and none fewer; and every entry that QEMU read is what
the model holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from helpers.qemu_log import EXCERPT, QemuRecord, records

from itstrace.gic.commands import Command, Opcode
from itstrace.gic.faults import Fault
from itstrace.model import PROFILES, Gic
from itstrace.model.effects import CommandFaulted, InjectionRefused, Resolved, TableWrite
from itstrace.observe.qemu import command_of

if TYPE_CHECKING:
    from pathlib import Path


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

    def take(self, seq: int, command: Command, written: list[TableWrite]) -> None:
        """One command through the model, beside what QEMU wrote for it."""
        effects = self.gic.step(0, command)
        self.commands.append((seq, command))
        self.written.append(written)
        self.predicted.append([effect for effect in effects if isinstance(effect, TableWrite)])
        self.faults += [effect for effect in effects if isinstance(effect, CommandFaulted)]

    def check_read(self, record: QemuRecord) -> None:
        """What QEMU read is what the model holds. Memory that the guest itself cleared reads as invalid."""
        one = record.operands
        its = self.gic.its[0]
        self.reads += 1
        where = f"record {record.seq}: {record.event} {dict(one)}"
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
    for record in records(path):
        ends = record.event in {"process_command", "write", "translation_write"}
        if opened is not None and ends:
            result.take(*opened, writes)
            opened, writes = None, []
        if record.event == "process_command":
            assert gic.its[0].creadr == record.operands["slot"] * 32
            # Opcodes that this QEMU does not have print no operands, some nothing at all.
            opened = record.seq, Command((record.operands["opcode"], 0, 0, 0))
        elif record.is_command and record.event != "cmd_unknown":
            assert opened is not None
            command = command_of(Opcode[record.event.removeprefix("cmd_").upper()], record.operands)
            assert command.opcode == opened[1].opcode
            opened = record.seq, command
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
    for (seq, command), written, predicted in zip(
        result.commands, result.written, result.predicted, strict=True
    ):
        assert written == predicted, f"record {seq}: {command}"
    assert sum(map(len, result.written))


def test_excerpt_is_replayed_exactly() -> None:
    result = replay(EXCERPT)
    assert_exact(result)
    faults = {effect.fault for effect in result.faults}
    assert {Fault.MAPD_DEVICE_OOR, Fault.MAPD_ITTSIZE_OOR, Fault.MAPC_PROCNUM_OOR} <= faults
    assert {Fault.MAPTI_ID_OOR, Fault.MAPTI_PHYSICALID_OOR, Fault.MAPTI_COLLECTION_OOR} <= faults


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["qemu-linux", "qemu-torture"])
def test_whole_log_is_replayed_exactly(corpus: Path, name: str) -> None:
    result = replay(corpus / name / "its.log.zst")
    assert_exact(result)
    assert len(result.commands) > 500
    assert result.msis > 200
    assert result.reads > 2000
