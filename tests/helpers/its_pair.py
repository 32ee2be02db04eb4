"""The model and the plain ITS side by side: one guest writes registers, queues commands, and both must agree.

The guest talks to the plain ITS, which takes commands out of memory as KVM does; the model is given each command
that was taken, and what KVM reads on the way. After every action all tables, registers and LPIs are compared, and
what the model's effects told with what became of its state.
"""

from __future__ import annotations

import struct
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.plain_its import (
    ENABLED,
    ENODEV,
    IDS,
    KERNELS,
    NOBODY,
    ORPHAN,
    UNMAPPED_RDBASE,
    VALID,
    PlainVm,
)
from helpers.told_by_effects import told_by
from itstrace.gic.commands import decode_bytes
from itstrace.model import Gic, profile_for_kernel
from itstrace.model import effects as fx
from itstrace.readers.images import MemoryImage
from itstrace.saved_tables import TableRegisters, tables_in_memory

if TYPE_CHECKING:
    from helpers.plain_its import Done, Memory
    from itstrace.gic.commands import Command
    from itstrace.model import Its

CTLR, CBASER, CWRITER, BASER = 0x0, 0x80, 0x88, 0x100
GICR_CTLR, PROPBASER, PENDBASER, INVLPIR, INVALLR = 0x0, 0x70, 0x78, 0xA0, 0xB0

#: The guest's memory, 64 KiB apart: tables of an ITS (of two pages, if need be), its queue, and the LPI tables.
QUEUE, DEVICES, COLLECTIONS, LEVEL2, ITTS = 0x4100_0000, 0x4110_0000, 0x4120_0000, 0x4130_0000, 0x4200_0000
PROPERTIES, PENDING = 0x4800_0000, 0x4810_0000
QUEUE_BYTES = 4096


class Pair:
    """One VM twice. `release` is the kernel's `uname -r`."""

    def __init__(self, release: str, vcpus: int = 4, itss: int = 1) -> None:
        self.release = release
        self.plain = PlainVm(KERNELS[release], vcpus, itss)
        self.gic = Gic(profile_for_kernel(release), vcpus=range(vcpus))
        for key in range(itss):
            self.gic.add_its(key, complete=True)
        self.told = told_by(self.gic)

    # --- what the guest does

    def set_up(self, *, indirect: bool = False, id_bits: int = 16) -> None:
        """As a driver does: tables, queues, LPIs on at every vCPU, ITSs on. Every LPI is enabled, priority 0xa0."""
        self.plain.memory.write(PROPERTIES, b"\xa3" * 57344)
        for vcpu in range(self.plain.vcpus):
            self.write_redistributor(vcpu, GICR_CTLR, 0)
            self.write_redistributor(vcpu, PROPBASER, PROPERTIES | id_bits - 1)
            self.write_redistributor(vcpu, PENDBASER, PENDING + vcpu * 0x1_0000)
            self.write_redistributor(vcpu, GICR_CTLR, 1)
        for key in range(len(self.plain.itss)):
            here = key * 0x4_0000
            for page in range(2):
                level1 = VALID | LEVEL2 + here + page * 0x1_0000
                self.plain.memory.write_u64(DEVICES + here + 8 * page, level1 if indirect else 0)
            self.write_its(key, CTLR, 0, 4)
            self.write_its(key, BASER, VALID | indirect << 62 | DEVICES + here)
            self.write_its(key, BASER + 8, VALID | COLLECTIONS + here)
            self.write_its(key, CBASER, VALID | QUEUE + here)
            self.write_its(key, CTLR, 1, 4)

    def post(self, *commands: Command, key: int = 0) -> list[int]:
        """Put commands into the queue and move GITS_CWRITER past them; what each came to."""
        its = self.plain.itss[key]
        at = its.cwriter
        for command in commands:
            base = its.cbaser & 0x000F_FFFF_FFFF_F000
            self.plain.memory.write(base + at, struct.pack("<4Q", *command.dw))
            at = (at + 32) % its.queue_bytes()
        return self.write_its(key, CWRITER, at)

    def write_its(self, key: int, offset: int, value: int, size: int = 8) -> list[int]:
        """A register of an ITS; what the commands that it then took came to."""
        self._look_at_level1(key)
        self.plain.itss[key].write(offset, value, size)
        return self._follow(key, self.gic.write_its(key, offset, value, size))

    def write_redistributor(self, vcpu: int, offset: int, value: int, size: int = 8) -> None:
        """A register of a redistributor."""
        self.plain.write_redistributor(vcpu, offset, value, size)
        self._follow(0, self.gic.write_redistributor(vcpu, offset, value, size))

    def msi(self, key: int, device: int, event: int) -> int:
        """An MSI; what it came to."""
        cached = self.plain.msi(key, device, event)
        effects = self.gic.inject(key, device, event, cached=cached)
        code = self.plain.log[0].code
        assert code_of(effects) == code
        self._follow(key, effects)
        return code

    def run(self, vcpu: int) -> list[int]:
        """A vCPU runs; the LPIs that it takes."""
        taken = self.plain.take(vcpu)
        for intid in taken:
            assert intid in self.gic.redistributors[vcpu].pending
            self.gic.take(vcpu, intid)
            self.told.pending.discard((intid, vcpu))
        self.check()
        return taken

    def reset(self, key: int) -> None:
        """The VMM resets an ITS."""
        self.plain.itss[key].reset()
        self._follow(key, self.gic.reset_its(key))

    # --- the model follows

    def _look_at_level1(self, key: int) -> None:
        """The model is told which level-1 entries are valid, as a replay is by what KVM is seen to read."""
        its = self.plain.itss[key]
        if its.baser[0] >> 62 & 1:
            self.gic.its[key].l1_valid = {page: its.fits(0, 8192 * page) is not None for page in range(8)}

    def _follow(self, key: int, effects: list[fx.Effect]) -> list[int]:
        """Answer what the register write or MSI asks for, then step through the commands that were taken."""
        log, self.plain.log = self.plain.log, []
        self._answer(log[0], effects)
        for done in log[1:]:
            assert done.command is not None
            self._look_at_level1(key)
            effects = self.gic.step(key, decode_bytes(done.command))
            assert code_of(effects) == done.code, f"{decode_bytes(done.command)}: {effects}"
            self._answer(done, effects)
        self.check()
        return [done.code for done in log[1:]]

    def _answer(self, done: Done, effects: list[fx.Effect]) -> None:
        """What KVM read, told to a model that asked for it; it must ask for all that KVM reads."""
        assert not [effect for effect in effects if isinstance(effect, fx.Assumed)]
        self.told.apply(effects)
        asked: set[int] = set()
        bits: set[tuple[int, int]] = set()
        dropped: set[int] = set()
        perhaps: set[int] = set()
        for effect in effects:
            match effect:
                case fx.ConfigRead(intid, certain):
                    assert intid in done.properties or not certain
                    asked.add(intid)
                case fx.PendingTableRead(vcpu, None):
                    bits |= {one for one in done.pending_bits if one[0] == vcpu}
                case fx.PendingTableRead(vcpu, intid):
                    assert intid is not None
                    assert (vcpu, intid) in done.pending_bits
                    bits.add((vcpu, intid))
                case fx.CacheInvalidated(keys, certain):
                    dropped |= set(keys) if certain else set()
                    perhaps |= set(keys)
        assert set(done.properties) <= asked
        assert set(done.pending_bits) == bits
        assert dropped <= done.dropped <= perhaps, f"{effects}"
        for intid, byte in done.properties.items():
            self.told.apply(self.gic.configure(intid, byte))
        for (vcpu, intid), is_set in done.pending_bits.items():
            assert self.gic.lpis[intid].target_vcpu == vcpu
            answer = self.gic.set_pending if is_set else self.gic.clear_pending
            self.told.apply(answer(vcpu, intid))

    # --- what must be the same

    def check(self) -> None:
        """Registers, tables and LPIs of both, and what the effects told."""
        for plain in self.plain.itss:
            its = self.gic.its[plain.key]
            assert serialised(its) == (plain.dtes, plain.ctes, plain.itts)
            assert bool(its.enabled) == plain.enabled
            if its.cbaser is not None:
                queue = plain.cbaser, plain.creadr, plain.cwriter
                assert (its.cbaser, its.creadr, its.cwriter) == queue
            for number, value in its.baser.items():
                assert value == plain.baser[number]
        for vcpu, enabled in enumerate(self.plain.lpis_enabled):
            assert bool(self.gic.redistributor(vcpu).enable_lpis) == enabled
        self._check_lpis()
        assert self.told == told_by(self.gic)

    def _check_lpis(self) -> None:
        living = self.plain.living()
        for intid in living:
            flags, priority, target, where, events = self.plain.lpi(intid)
            lpi = self.gic.lpis[intid]
            assert len(lpi.mapped_by) == events
            assert lpi.target_vcpu == (None if target == NOBODY else target)
            assert not lpi.assumed
            assert (lpi.enabled, lpi.priority) == (bool(flags & ENABLED), priority)
            assert self.gic.pending_on(intid) == ([] if where == NOBODY else [where])
        for intid in self.gic.lpis.keys() - set(living):
            assert not self.gic.lpis[intid].mapped_by
            assert self.gic.pending_on(intid) == []

    # --- copies, and another host

    def copied(self) -> Pair:
        """Both once more; the model by its own `clone`."""
        other = Pair(self.release, self.plain.vcpus, len(self.plain.itss))
        other.plain = deepcopy(self.plain)
        other.gic = self.gic.clone()
        other.told = told_by(other.gic)
        other.check()
        return other

    def migrated(self) -> Pair:
        """Both on another host: KVM's tables restored from memory, the model's read from the same memory."""
        assert self.plain.save() == 0
        other = Pair(self.release, self.plain.vcpus, len(self.plain.itss))
        other.plain = self.plain.restored()
        gic = other.gic
        for vcpu, enabled in enumerate(self.plain.lpis_enabled):
            gic.write_redistributor(vcpu, PROPBASER, self.plain.propbaser, 8)
            gic.write_redistributor(vcpu, PENDBASER, self.plain.pendbaser[vcpu], 8)
            gic.write_redistributor(vcpu, GICR_CTLR, int(enabled), 4)
        for plain in self.plain.itss:
            its = gic.its[plain.key]
            for number, value in enumerate(plain.baser):
                gic.write_its(plain.key, BASER + 8 * number, value, 8)
            gic.write_its(plain.key, CBASER, plain.cbaser, 8)
            its.creadr, its.cwriter, its.enabled = plain.creadr, plain.cwriter, plain.enabled
            sow(gic, plain.key, self.plain)
        other.told = told_by(gic)
        other.check()
        return other


class AllOfMemory(MemoryImage):
    """The guest's memory as an image of all of it."""

    def __init__(self, plain: PlainVm) -> None:
        super().__init__(Path("memory"), ())
        object.__setattr__(self, "memory", plain.memory)

    def read(self, gpa: int, size_bytes: int) -> bytes:
        """Guest memory, page by page."""
        memory: Memory = self.memory  # type: ignore[attr-defined]
        page = memory.PAGE
        end = gpa + size_bytes
        cuts = [gpa, *range(gpa // page * page + page, end, page), end]
        return b"".join(memory.read(start, stop - start) for start, stop in pairwise(cuts)).rstrip(b"\0")


def sow(gic: Gic, key: int, plain: PlainVm) -> None:
    """Give a model what the guest's memory holds of an ITS's tables, and of its LPIs."""
    registers = TableRegisters(
        plain.itss[key].baser[0], plain.itss[key].baser[1], plain.propbaser, tuple(plain.pendbaser)
    )
    saved = tables_in_memory(AllOfMemory(plain), registers)
    assert not saved.problems
    found = saved.tables
    assert found.collections is not None
    assert found.devices is not None
    assert found.events is not None
    assert found.lpis is not None
    for icid, target in found.collections.select("icid", "target_vcpu").rows():
        gic.restore_collection(key, icid, target, placeholder=target is None)
    for device, bits, itt in found.devices.select("device_id", "event_bits", "itt_gpa").rows():
        gic.restore_device(key, device, itt, bits)
    for device, event, intid, icid in found.events.select("device_id", "event_id", "intid", "icid").rows():
        gic.restore_event(key, device, event, intid, icid)
    for intid, enabled, priority in found.lpis.select("intid", "enabled", "priority").rows():
        gic.restore_lpi(intid, enabled=enabled, priority=priority)
        target = gic.lpis[intid].target_vcpu
        if target is not None:  # whose pending table counts, whichever had the bit before (MOVALL)
            gpa, bit = plain.pending_place(target, intid)
            if plain.memory.read(gpa, 1)[0] >> bit & 1:
                gic.set_pending(target, intid)


def serialised(its: Its) -> tuple[bytearray, bytearray, dict[int, bytearray]]:
    """The model's tables as the plain ITS's bytes: devices, collections, ITTs by device."""
    dtes, ctes = bytearray(8 * IDS), bytearray(8 * IDS)
    itts: dict[int, bytearray] = {}
    for device in its.devices.values():
        assert device.event_bits is not None
        assert device.itt_gpa is not None
        dte = VALID | device.itt_gpa >> 8 << 5 | device.event_bits - 1
        struct.pack_into("<Q", dtes, 8 * device.device_id, dte)
        itt = bytearray(8 << device.event_bits)
        for ite in device.events.values():
            assert ite.intid is not None
            assert ite.icid is not None
            orphan = 0 if ite.collection_valid else ORPHAN
            struct.pack_into("<Q", itt, 8 * ite.event_id, orphan | ite.intid << 16 | ite.icid)
        itts[device.device_id] = itt
    for one in its.collections.values():
        rdbase = UNMAPPED_RDBASE if one.placeholder else one.target_vcpu
        assert rdbase is not None
        struct.pack_into("<Q", ctes, 8 * one.icid, VALID | rdbase << 16 | one.icid)
    return dtes, ctes, itts


def code_of(effects: list[fx.Effect]) -> int:
    """What KVM's function returns for these effects."""
    for effect in effects:
        match effect:
            case fx.CommandFaulted(fault=None, errno=errno) | fx.InjectionRefused(fault=None, errno=errno):
                return -(errno or 0)
            case fx.CommandFaulted(fault=fault) | fx.InjectionRefused(fault=fault):
                return int(fault or 0)
            case fx.UnknownCommand():
                return ENODEV
    return 0
