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
from helpers.streams import LPIS_FEW, LPIS_ODD, NUMBER, SKETCH, VCPUS, drawn, mapped_events, pick
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from itstrace.gic import commands as build

if TYPE_CHECKING:
    from helpers.streams import Sketch

    from itstrace.gic.commands import Command

STREAMS = int(os.environ.get("ITSTRACE_STREAMS", "0"))
#: One search for each kernel.
SETTINGS = settings(
    max_examples=STREAMS or 60,
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
    lambda valid, pages, half: whole_or_half(CBASER, valid << 63 | QUEUE | pages, half),
    st.booleans(),
    st.integers(0, 2),
    HALF,
)
#: With attributes that KVM takes for others, and fields that cannot be written.
ATTRIBUTES = st.sampled_from([0, 7 << 59, 2 << 10, 1 << 10 | 1 << 59, 5 << 53, 0x1F << 48, 7 << 56, 1 << 62])
BASER_WRITES = st.builds(
    lambda number, valid, attributes, pages, half: whole_or_half(
        BASER + 8 * number, valid << 63 | attributes | (COLLECTIONS if number else DEVICES) | pages, half
    ),
    st.integers(0, 3),
    st.booleans(),
    ATTRIBUTES,
    st.integers(0, 1),
    HALF,
)


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

    # --- commands

    @rule(key=KEYS, sketches=st.lists(SKETCH, min_size=1, max_size=16))
    def commands(self, key: int, sketches: list[Sketch]) -> None:
        """Commands, one by one, to an ITS that is on."""
        if not self.pair.plain.itss[key].enabled:
            self.start_over(key)
        for sketch in sketches:
            self.post(key, [drawn(self.pair, key, sketch)])

    @rule(key=KEYS, sketches=st.lists(SKETCH, min_size=1, max_size=4))
    def commands_at_once(self, key: int, sketches: list[Sketch]) -> None:
        """Commands that are taken by one write of GITS_CWRITER, or wait for an ITS that is off."""
        self.post(key, [drawn(self.pair, key, sketch) for sketch in sketches])

    def post(self, key: int, commands: list[Command]) -> None:
        """Post commands, and say which."""
        for command in commands:
            note(f"ITS {key}: {command}")
        self.pair.post(*commands, key=key)

    # --- devices and vCPUs

    @rule(key=KEYS, numbers=st.lists(NUMBER, min_size=1, max_size=4), vcpu=VCPU)
    def msis(self, key: int, numbers: list[int], vcpu: int) -> None:
        """Devices signal, and a vCPU takes what is pending on it."""
        for number in numbers:
            mapped = mapped_events(self.pair, key)
            device, event = (
                mapped[number % len(mapped)] if mapped and number < 224 else (number % 3, number % 5)
            )
            self.pair.msi(key, device, event)
        self.pair.run(vcpu)

    # --- what the guest writes to memory, unseen

    @rule(byte=st.sampled_from([0xA2, 0xA3, 0xFF, 0]), vcpu=VCPU, bits=st.integers(0, 15), at=NUMBER)
    def memory(self, byte: int, vcpu: int, bits: int, at: int) -> None:
        """A property byte, pending bits of the first LPIs, or a level-1 entry (if that is what it is)."""
        memory = self.pair.plain.memory
        memory.write(PROPERTIES + at % 4, bytes([byte]))
        if at & 4:
            memory.write(PENDING + vcpu * 0x1_0000 + 1024, bytes([bits]))
        if at & 0x18 == 0x18:
            here = bits % ITSS * 0x4_0000
            entry = (bits >> 1 & 1) << 63 | LEVEL2 + here + (at >> 5 & 1) * 0x1_0000
            memory.write_u64(DEVICES + here + 8 * (at >> 5 & 1), entry)

    # --- registers

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

    @rule(key=KEYS, upset=st.one_of(CTLR_WRITES, CWRITER_WRITES, CBASER_WRITES, BASER_WRITES, st.none()))
    def its_register(self, key: int, upset: tuple[int, int, int] | None) -> None:
        """A register of the ITS as no driver writes it, or (None) a reset by the VMM."""
        if upset is None:
            self.pair.reset(key)
            return
        offset, value, size = upset
        its = self.pair.plain.itss[key]
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
