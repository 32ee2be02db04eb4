"""Commands: four words in, fields out, the same four words back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itstrace.gic import commands as build
from itstrace.gic.commands import FIELDS, Command, Opcode, decode, decode_bytes, describe, encode

WORD = st.integers(0, (1 << 64) - 1)
WORDS = st.tuples(WORD, WORD, WORD, WORD)


@given(WORDS)
def test_any_words_decode_and_come_back(words: tuple[int, int, int, int]) -> None:
    command = decode(words)
    assert encode(command) == words
    assert describe(command)
    assert (command.name is None) == (not isinstance(command.opcode, Opcode))


@given(st.binary(min_size=32, max_size=32))
def test_any_32_bytes_decode(data: bytes) -> None:
    command = decode_bytes(data)
    assert b"".join(word.to_bytes(8, "little") for word in command.dw) == data


@given(st.sampled_from(Opcode), WORDS)
def test_fields_are_built_back_to_the_same_fields(opcode: Opcode, words: tuple[int, int, int, int]) -> None:
    """Reserved bits are lost by building, fields never are."""
    command = decode((words[0] & ~0xFF | opcode, *words[1:]))
    fields = dict(command.fields)
    if opcode in {Opcode.MAPI, Opcode.VMAPI}:  # the (v)INTID is the EventID
        fields.pop("intid" if opcode is Opcode.MAPI else "vintid")
    assert build.build(opcode, **fields).fields == command.fields


@pytest.mark.parametrize("opcode", Opcode)
def test_layout_has_no_overlapping_fields(opcode: Opcode) -> None:
    taken = [0xFF, 0, 0, 0]
    for name, place in FIELDS[opcode].items():
        if (opcode, name) in {(Opcode.MAPI, "intid"), (Opcode.VMAPI, "vintid")}:
            continue
        assert not taken[place.dw] & place.mask, name
        taken[place.dw] |= place.mask


#: Encoded by hand from the field positions of irq-gic-v3-its.c:its_encode_*() (v6.12).
KNOWN = [
    (build.mapd(2, 0x4300_0000, 8), (0x2_0000_0008, 0x7, 0x8000_0000_4300_0000, 0)),
    (build.mapd(0x20, 0, 1, valid=False), (0x20_0000_0008, 0, 0, 0)),
    (build.mapc(3, 2), (0x9, 0, 0x8000_0000_0002_0003, 0)),
    (build.mapti(2, 20, 8195, 3), (0x2_0000_000A, 0x2003_0000_0014, 3, 0)),
    (build.mapi(0x123, 8202, 1), (0x123_0000_000B, 0x200A, 1, 0)),
    (build.movi(8, 31, 9), (0x8_0000_0001, 31, 9, 0)),
    (build.movall(1, 2), (0xE, 0, 0x1_0000, 0x2_0000)),
    (build.discard(8, 1), (0x8_0000_000F, 1, 0, 0)),
    (build.clear(8, 1), (0x8_0000_0004, 1, 0, 0)),
    (build.int_(8, 1), (0x8_0000_0003, 1, 0, 0)),
    (build.inv(8, 1), (0x8_0000_000C, 1, 0, 0)),
    (build.invall(3), (0xD, 0, 3, 0)),
    (build.sync(5), (0x5, 0, 0x5_0000, 0)),
]


@pytest.mark.parametrize(("command", "words"), KNOWN, ids=lambda value: getattr(value, "name", None))
def test_known_words(command: Command, words: tuple[int, int, int, int]) -> None:
    assert encode(command) == words


def test_fields_that_do_not_apply_are_none() -> None:
    command = build.sync(1)
    assert (command.device_id, command.event_id, command.intid, command.icid) == (None, None, None, None)
    assert (command.valid, command.itt_gpa, command.event_bits, command.rdbase) == (None, None, None, 1)


def test_mapi_maps_the_lpi_of_the_same_number() -> None:
    assert build.mapi(1, 8200, 0).intid == 8200


def test_v41_fields() -> None:
    command = build.build(
        Opcode.VMAPP,
        vpe_id=7,
        valid=1,
        rdbase=3,
        vpt_gpa=0x8001_0000,
        vpt_bits=16,
        alloc=1,
        vconf_gpa=0x9000_0000,
        default_doorbell=8300,
    )
    assert command.dw == (0x9000_0129, 7 << 32 | 8300, 1 << 63 | 3 << 16, 0x8001_000F)
    assert (command.vpe_id, command.default_doorbell, command.valid) == (7, 8300, True)


def test_vsgi_fields() -> None:
    words = (0x5 << 32 | 0xA << 20 | 1 << 10 | 1 << 8 | 0x23, 9 << 32, 0, 0)
    fields = decode(words).fields
    assert fields == {"vsgi_intid": 5, "priority": 0xA0, "group": 1, "clear": 0, "enable": 1, "vpe_id": 9}


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (build.mapti(8, 0, 8192, 1), "MAPTI DeviceID 0x8 EventID 0 pINTID 8192 ICID 1"),
        (build.mapi(8, 8192, 1), "MAPI DeviceID 0x8 EventID 8192 ICID 1"),
        (build.mapc(1, 2), "MAPC ICID 1 RDbase 2 V 1"),
        (build.mapd(0x10, 0x41061000, 3), "MAPD DeviceID 0x10 event_bits 3 ITT_addr 0x41061000 V 1"),
        (Command((0x77, 0, 0, 0)), "unknown opcode 0x77"),
    ],
)
def test_describe(command: Command, line: str) -> None:
    assert describe(command) == str(command) == line


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        build.movi(1, 2, 0x1_0000)
    with pytest.raises(ValueError, match="does not fit"):
        build.mapd(1, 0x80, 5)  # an ITT is aligned to 256 bytes
    with pytest.raises(ValueError, match="does not fit"):
        build.mapd(1, 0x100, 0)
    with pytest.raises(ValueError, match="SYNC has no field icid"):
        build.build(Opcode.SYNC, icid=1)


def test_gicv4_is_told() -> None:
    assert Opcode.VMOVP.is_gicv4
    assert not Opcode.MOVALL.is_gicv4
