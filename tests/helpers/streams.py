"""Random commands whose operands are mostly in use, often free, and now and then at a limit.

A sketch is a kind of command and a number for each operand. Which command it is depends on the tables: `drawn` picks
the operands among what is mapped, so that streams of sketches move, discard and map again what they mapped before.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from helpers.its_pair import ITTS
from itstrace.gic import commands as build
from itstrace.gic.commands import Command, Opcode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helpers.its_pair import Pair

#: vCPUs of the VMs that are sent these commands.
VCPUS = 3
#: A number that stands for an operand; see `pick`.
NUMBER = st.integers(0, 255)

#: Ids that collide, and ids at limits.
DEVICES_FEW, DEVICES_ODD = (0, 1, 2), (8191, 8192, 16383, 16384, 0xFFFF, 0x1_0000, 0xFFFF_FFFF)
EVENTS_FEW, EVENTS_ODD = (0, 1, 2, 3), (7, 8, 0xFFFF, 0x1_0000, 0xFFFF_FFFF)
LPIS_FEW, LPIS_ODD = (8192, 8193, 8194, 8195), (0, 8191, 16383, 16384, 0xFFFF, 0x1_0000, 0xFFFF_FFFF)
ICIDS_FEW, ICIDS_ODD = (0, 1, 2, 3), (8191, 8192, 0xFFFF)
RDBASES_FEW = tuple(range(VCPUS))
RDBASES_ODD = (VCPUS, 0xFFFF_FFFF, 1 << 32, 1 << 32 | 1, (1 << 36) - 1)
BITS_FEW, BITS_ODD = (2, 3), (1, 14, 14, 16, 17, 32)

#: How often each command is sent.
KINDS = [
    kind
    for kind, times in {
        Opcode.MAPTI: 7,
        Opcode.MAPI: 1,
        Opcode.MAPC: 3,
        Opcode.MAPD: 1,
        Opcode.MOVI: 5,
        Opcode.MOVALL: 2,
        Opcode.INT: 4,
        Opcode.DISCARD: 3,
        Opcode.CLEAR: 2,
        Opcode.INV: 2,
        Opcode.INVALL: 1,
        Opcode.SYNC: 1,
        None: 1,  # GICv4's, and what is no command
    }.items()
    for _ in range(times)
]
NO_COMMANDS = [int(opcode) for opcode in Opcode if opcode.is_gicv4] + [0, 2, 6, 7, 0x10, 0x77, 0xFF]
#: A command to be: its kind, a number for each operand, and whether bits that no field has are set.
Sketch = tuple[Opcode | None, int, int, int, int, bool]


def sketch_of(chance: Random) -> Sketch:
    """A random sketch."""
    first, second, third, fourth = chance.choices(range(256), k=4)
    return chance.choice(KINDS), first, second, third, fourth, chance.random() < 1 / 8


#: What a stream is made by: a number and a length. One number is cheaper to draw than many.
SEEDS = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([*range(30, 61), *range(1, 30)]))


def sketches_of(seed: tuple[int, int]) -> list[Sketch]:
    """The sketches of a stream."""
    number, length = seed
    chance = Random(number)  # noqa: S311  # the same stream each time is what is wanted
    return [sketch_of(chance) for _ in range(length)]


def mapped_events(pair: Pair, key: int) -> list[tuple[int, int]]:
    """The (device, event) that an ITS maps."""
    devices = pair.gic.its[key].devices.values()
    return sorted((device.device_id, event) for device in devices for event in device.events)


def pick(number: int, known: Sequence[int], few: Sequence[int], odd: Sequence[int]) -> int:
    """An operand: mostly one that is in use, often one that may be, now and then one at a limit."""
    if number < 144 and known:
        return known[number % len(known)]
    return few[number % len(few)] if number < 240 else odd[number % len(odd)]


def drawn(pair: Pair, key: int, sketch: Sketch) -> Command:
    """The command that a sketch stands for, where the tables are as they are."""
    kind, first, second, third, fourth, noisy = sketch
    if kind is None:
        dw0 = NO_COMMANDS[first % len(NO_COMMANDS)] | second << 32
        return Command((dw0, third, fourth << 56 | second, third << 16))
    its = pair.gic.its[key]
    mapped = mapped_events(pair, key)
    if mapped and second < 176 and kind not in {Opcode.MAPTI, Opcode.MAPI}:
        device, event = mapped[second % len(mapped)]
    else:
        device = pick(first, sorted(its.devices), DEVICES_FEW, DEVICES_ODD)
        event = pick(second, (), EVENTS_FEW, EVENTS_ODD)
    values = {
        "device_id": device,
        "event_id": pick(second, (), LPIS_FEW, LPIS_ODD) if kind is Opcode.MAPI else event,
        "event_bits": pick(second, (), BITS_FEW, BITS_ODD),
        "itt_gpa": ITTS + third % 8 * 0x1_0000,
        "intid": pick(third, (), LPIS_FEW, LPIS_ODD),
        "icid": pick(fourth, sorted(its.collections), ICIDS_FEW, ICIDS_ODD),
        "rdbase": pick(first, (), RDBASES_FEW, RDBASES_ODD),
        "rdbase2": pick(second, (), RDBASES_FEW, RDBASES_ODD),
        "valid": third % 5 != 0,
    }
    fields = build.FIELDS[kind]
    command = build.build(
        kind, **{name: values[name] for name in fields if name in values and name != "intid"}
    )
    if kind is Opcode.MAPTI:
        command = build.mapti(device, event, values["intid"], values["icid"])
    return with_noise(command) if noisy else command


def with_noise(command: Command) -> Command:
    """A command with all bits set that no field has."""
    used = [0xFF, 0, 0, 0]
    for place in build.FIELDS[Opcode(command.opcode_number)].values():
        used[place.dw] |= place.mask
    dw0, dw1, dw2, dw3 = (word | ~mask & (1 << 64) - 1 for word, mask in zip(command.dw, used, strict=True))
    return Command((dw0, dw1, dw2, dw3))
