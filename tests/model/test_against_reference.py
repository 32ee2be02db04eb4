"""The model beside a second, plain ITS, in random streams: after every action tables, LPIs and faults are the same.

A stream is what a guest, its devices and its VMM may do: commands of every opcode with ids that collide and ids at
their limits, writes of all registers, whole or by halves, MSIs, vCPUs that run, property and pending bytes that change
unseen, resets. `helpers/plain_its.py` says what the plain ITS is and what it leaves out, `helpers/its_pair.py` what is
compared.

In CI the streams are always the same. A longer search, with new ones each time:

    ITSTRACE_STREAMS=2000 pytest tests/model/test_against_reference.py
"""

from __future__ import annotations

import os
from functools import reduce
from operator import or_
from random import Random
from typing import TYPE_CHECKING

import pytest
from helpers.its_pair import (
    BASER,
    CBASER,
    COLLECTIONS,
    CTLR,
    CWRITER,
    DEVICES,
    GICR_CTLR,
    INVALLR,
    INVLPIR,
    ITTS,
    LEVEL2,
    PENDBASER,
    PENDING,
    PROPBASER,
    PROPERTIES,
    QUEUE,
    Pair,
)
from helpers.plain_its import KERNELS, VALID
from helpers.streams import (
    LPIS_FEW,
    LPIS_ODD,
    NUMBER,
    SEEDS,
    VCPUS,
    drawn,
    mapped_events,
    pick,
    sketch_of,
    sketches_of,
)
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from itstrace.gic import commands as build

if TYPE_CHECKING:
    from itstrace.gic.commands import Command

STREAMS = int(os.environ.get("ITSTRACE_STREAMS", "0"))
#: One search for each kernel.
SETTINGS = settings(
    max_examples=STREAMS or 50,
    stateful_step_count=60 if STREAMS else 30,
    derandomize=not STREAMS,
    report_multiple_bugs=False,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
ITSS = 2


KEYS = st.integers(0, ITSS - 1)
VCPU = st.integers(0, VCPUS - 1)


def whole_or_half(offset: int, value: int, half: int | None) -> tuple[int, int, int]:
    """A write of a register as one doubleword, or of one word of it: offset, value, bytes."""
    return (offset, value, 8) if half is None else (offset + half, value >> 8 * half & 0xFFFF_FFFF, 4)


HALF = st.sampled_from([None, None, 0, 4])
#: Writes of an ITS's registers: offset, value, bytes. Addresses are those of the first ITS.
CTLR_WRITES = st.sampled_from([(CTLR, value, 4) for value in (0, 1, 1, 0x8000_0001)])
CWRITER_WRITES = st.builds(
    lambda at, retry, size: (CWRITER, at * 32 | retry, size),
    st.integers(0, 2**15 - 1),
    st.integers(0, 31),
    st.sampled_from([4, 8]),
)
CBASER_WRITES = st.builds(
    lambda valid, low, half: whole_or_half(CBASER, valid << 63 | QUEUE | low, half),
    st.booleans(),
    st.sampled_from([0, 1, 2, 0x5001, 2 << 10]),  # pages, and what KVM makes of an address within 64 KiB
    HALF,
)
#: Memory attributes that KVM takes for others, fields that cannot be written, and Indirect.
ATTRIBUTES = st.sets(
    st.sampled_from([7 << 59, 1 << 59, 1 << 10, 2 << 10, 5 << 53, 0x1F << 48, 7 << 56, 1 << 62]), max_size=3
).map(lambda some: reduce(or_, some, 0))
BASER_WRITES = st.builds(
    lambda number, valid, attributes, pages, half: whole_or_half(
        BASER + 8 * number, valid << 63 | attributes | (COLLECTIONS if number else DEVICES) | pages, half
    ),
    st.sampled_from([0, 0, 1, 1, 2, 3]),
    st.booleans(),
    ATTRIBUTES,
    st.integers(0, 1),
    HALF,
)
ITS_WRITES = st.one_of(CTLR_WRITES, CWRITER_WRITES, CBASER_WRITES, BASER_WRITES, BASER_WRITES, st.none())


class Guest(RuleBasedStateMachine):
    """A guest on one kernel."""

    release: str

    @initialize(indirect=st.booleans(), id_bits=st.sampled_from([16, 16, 14, 20]))
    def boot(self, indirect: bool, id_bits: int) -> None:
        """What a driver does, and the first mappings."""
        self.pair = Pair(self.release, VCPUS, ITSS)
        self.pair.set_up(indirect=indirect, id_bits=id_bits)
        for key in range(ITSS):
            first = (build.mapc(0, 0), build.mapc(1, 1), build.mapd(key, ITTS + key * 0x1_0000, 3))
            self.pair.post(*first, build.mapti(key, 0, 8192 + key, key), key=key)

    # --- a guest at work

    @rule(seed=SEEDS)
    def much_work(self, seed: tuple[int, int]) -> None:
        """Rules are chosen evenly, and there is more work than all else."""
        self.work(seed)

    @rule(seed=SEEDS)
    def more_work(self, seed: tuple[int, int]) -> None:
        """And more."""
        self.work(seed)

    @rule(seed=SEEDS)
    def work(self, seed: tuple[int, int]) -> None:
        """Commands, MSIs, vCPUs that run, and bytes that the guest writes unseen: by one number, for there are many."""
        number, length = seed
        chance = Random(number)  # noqa: S311  # the same stream each time is what is wanted
        for _ in range(length):
            key = int(chance.random() < 1 / 4)  # one of the ITSs is the busier one
            match chance.choices(["command", "MSI", "run", "byte", "bits"], [20, 3, 2, 2, 1])[0]:
                case "command":
                    if not self.pair.plain.itss[key].enabled:
                        self.start_over(key)
                    self.post(key, drawn(self.pair, key, sketch_of(chance)))
                case "MSI":
                    device, event = chance.choice([*mapped_events(self.pair, key) * 4, (0, 3), (2, 0)])
                    note(f"ITS {key}: MSI {device}:{event}")
                    self.pair.msi(key, device, event)
                case "run":
                    self.pair.run(chance.randrange(VCPUS))
                case "byte":
                    byte = bytes([chance.choice([0xA2, 0xA3, 0xFF, 0])])
                    self.pair.plain.memory.write(PROPERTIES + chance.randrange(4), byte)
                case "bits":
                    gpa = PENDING + chance.randrange(VCPUS) * 0x1_0000 + 8192 // 8
                    self.pair.plain.memory.write(gpa, bytes([chance.randrange(16)]))

    @rule(key=KEYS, seed=SEEDS)
    def commands_at_once(self, key: int, seed: tuple[int, int]) -> None:
        """Commands that are taken by one write of GITS_CWRITER, or wait for an ITS that is off."""
        self.post(key, *[drawn(self.pair, key, sketch) for sketch in sketches_of(seed)[:8]])

    def post(self, key: int, *commands: Command) -> None:
        """Post commands, and say which."""
        for command in commands:
            note(f"ITS {key}: {command}")
        self.pair.post(*commands, key=key)

    # --- registers, and level-1 entries of a device table

    @rule(key=KEYS, page=st.integers(0, 1), valid=st.booleans())
    def level1(self, key: int, page: int, valid: bool) -> None:
        """The guest writes a level-1 entry, or what is one where the table is indirect."""
        entry = valid << 63 | LEVEL2 + key * 0x4_0000 + page * 0x1_0000
        self.pair.plain.memory.write_u64(DEVICES + key * 0x4_0000 + 8 * page, entry)

    @rule(vcpu=VCPU, on=st.booleans(), ptz=st.booleans(), id_bits=st.sampled_from([14, 16, 16, 32]))
    def enable_lpis(self, vcpu: int, on: bool, ptz: bool, id_bits: int) -> None:
        """EnableLPIs; before it PENDBASER and PROPBASER, which count only while it is 0."""
        self.pair.write_redistributor(vcpu, PROPBASER, PROPERTIES | id_bits - 1)
        self.pair.write_redistributor(vcpu, PENDBASER, ptz << 62 | PENDING + vcpu * 0x1_0000)
        self.pair.write_redistributor(vcpu, GICR_CTLR, int(on))

    @rule(vcpu=VCPU, number=NUMBER)
    def invalidate(self, vcpu: int, number: int) -> None:
        """GICR_INVLPIR or GICR_INVALLR."""
        self.pair.write_redistributor(
            vcpu, INVLPIR if number % 4 else INVALLR, pick(number, (), LPIS_FEW, LPIS_ODD)
        )

    @rule(key=KEYS, off=st.booleans(), writes=st.lists(ITS_WRITES, min_size=1, max_size=8))
    def its_registers(self, key: int, off: bool, writes: list[tuple[int, int, int] | None]) -> None:
        """Registers of the ITS as no driver writes them, and (None) resets by the VMM."""
        its = self.pair.plain.itss[key]
        if off:
            self.pair.write_its(key, CTLR, 0, 4)
        for write in writes:
            if write is None:
                self.pair.reset(key)
                continue
            offset, value, size = write
            if offset == CWRITER and value < its.queue_bytes():  # within a few commands
                value = (its.creadr + value % 0xA0 // 32 * 32) % its.queue_bytes()
            elif offset >= CBASER and (size == 8 or not offset & 4):
                value += key * 0x4_0000
            self.pair.write_its(key, offset, value, size)

    def start_over(self, key: int) -> None:
        """The driver starts over: ITS off, the registers as at first, ITS on."""
        self.pair.write_its(key, CTLR, 0, 4)
        self.pair.write_its(key, BASER, VALID | DEVICES + key * 0x4_0000)
        self.pair.write_its(key, BASER + 8, VALID | COLLECTIONS + key * 0x4_0000)
        self.pair.write_its(key, CBASER, VALID | QUEUE + key * 0x4_0000)
        self.pair.write_its(key, CTLR, 1, 4)


@pytest.mark.parametrize("release", KERNELS)
def test_the_model_and_the_plain_its_agree(release: str) -> None:
    machine = type("Guest", (Guest,), {"release": release})
    run_state_machine_as_test(machine, settings=SETTINGS)
