"""ITS commands: 32 bytes as four little-endian doublewords, their fields, and the way back.

Theory of operation. A command is its four words and nothing else: `Command` keeps them as they came, reserved
bits and all, and every field is read out of them through one table, `FIELDS`. So decoding cannot fail and
loses nothing; a field that the opcode does not have is None.

Source: the fields are those of drivers/irqchip/irq-gic-v3-its.c:its_encode_*() and its_build_*_cmd() (v6.12;
the same in 6.1 and 7.3), the numbers those of include/linux/irqchip/arm-gic-v3.h:GITS_CMD_*. Spec: IHI 0069H,
"ITS commands".
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import IntEnum
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Bytes of one command. Source: irq-gic-v3-its.c:struct its_cmd_block (four 64-bit words).
COMMAND_SIZE_BYTES = 32

Words = tuple[int, int, int, int]


class Opcode(IntEnum):
    """Command numbers, DW0[7:0].

    Source: include/linux/irqchip/arm-gic-v3.h:GITS_CMD_* (v6.12; GICv4 numbers are those of GICv3 with bit 5
    set, GITS_CMD_GICv4()). VMAPI: hw/intc/gicv3_internal.h:GITS_CMD_VMAPI (QEMU).
    """

    MOVI = 0x01
    INT = 0x03
    CLEAR = 0x04
    SYNC = 0x05
    MAPD = 0x08
    MAPC = 0x09
    MAPTI = 0x0A
    MAPI = 0x0B
    INV = 0x0C
    INVALL = 0x0D
    MOVALL = 0x0E
    DISCARD = 0x0F
    VMOVI = 0x21
    VMOVP = 0x22
    VSGI = 0x23
    VSYNC = 0x25
    VMAPP = 0x29
    VMAPTI = 0x2A
    VMAPI = 0x2B
    VINVALL = 0x2D
    INVDB = 0x2E

    @property
    def is_gicv4(self) -> bool:
        """Whether the command exists only on an ITS with virtual LPIs (GICv4.0 or v4.1)."""
        return bool(self & 0x20)


#: Commands come again and again: the same events are moved, the same vCPUs synchronised.
_REMEMBERED = 1 << 14

_OPCODES: Mapping[int, Opcode] = MappingProxyType({int(opcode): opcode for opcode in Opcode})


@dataclass(frozen=True, slots=True)
class BitField:
    """Bits [high:low] of doubleword `dw`; the value is `(bits << shift) + bias`: sizes are stored less 1."""

    dw: int
    high: int
    low: int
    shift: int = 0
    bias: int = 0

    @property
    def mask(self) -> int:
        """The bits of the field, in place."""
        return ((1 << (self.high - self.low + 1)) - 1) << self.low

    def get(self, words: Words) -> int:
        """The field's value in `words`."""
        return ((words[self.dw] >> self.low & (1 << self.high - self.low + 1) - 1) << self.shift) + self.bias

    def put(self, value: int) -> int:
        """The bits to OR into doubleword `dw` for `value`.

        Raises: ValueError where the field cannot hold the value.
        """
        raw = value - self.bias
        bits = (raw >> self.shift) << self.low
        if raw < 0 or (raw >> self.shift) << self.shift != raw or bits & ~self.mask:
            raise ValueError(f"0x{value:x} does not fit DW{self.dw}[{self.high}:{self.low}]")
        return bits


_DEVICE_ID = BitField(0, 63, 32)
_EVENT_ID = BitField(1, 31, 0)
_PINTID = BitField(1, 63, 32)
_ICID = BitField(2, 15, 0)
_RDBASE = BitField(2, 51, 16)
_RDBASE2 = BitField(3, 51, 16)
_VALID = BitField(2, 63, 63)
_VPE_ID = BitField(1, 47, 32)
_EVENT = {"device_id": _DEVICE_ID, "event_id": _EVENT_ID}

#: opcode -> name of a field -> where it stands. Source: see the head of this file; VMAPI's and MOVALL's
#: fields, which Linux never builds: hw/intc/gicv3_internal.h (QEMU) and vgic-its.c:its_cmd_get_target_addr.
#: Differs: KVM takes only RDbase[31:0], DW2[47:16] (vgic-its.c:its_cmd_get_target_addr); the model masks it.
FIELDS: Mapping[Opcode, Mapping[str, BitField]] = MappingProxyType(
    {
        Opcode.MOVI: {**_EVENT, "icid": _ICID},
        Opcode.INT: _EVENT,
        Opcode.CLEAR: _EVENT,
        Opcode.SYNC: {"rdbase": _RDBASE},
        Opcode.MAPD: {
            "device_id": _DEVICE_ID,
            "event_bits": BitField(1, 4, 0, bias=1),
            "itt_gpa": BitField(2, 51, 8, shift=8),
            "valid": _VALID,
        },
        Opcode.MAPC: {"icid": _ICID, "rdbase": _RDBASE, "valid": _VALID},
        Opcode.MAPTI: {**_EVENT, "intid": _PINTID, "icid": _ICID},
        # MAPI maps the event to the LPI of the same number: the INTID is the EventID.
        Opcode.MAPI: {**_EVENT, "intid": _EVENT_ID, "icid": _ICID},
        Opcode.INV: _EVENT,
        Opcode.INVALL: {"icid": _ICID},
        Opcode.MOVALL: {"rdbase": _RDBASE, "rdbase2": _RDBASE2},
        Opcode.DISCARD: _EVENT,
        Opcode.VMOVI: {
            **_EVENT,
            "vpe_id": _VPE_ID,
            "doorbell_valid": BitField(2, 0, 0),
            "doorbell": BitField(2, 63, 32),
        },
        Opcode.VMOVP: {
            "sequence_number": BitField(0, 47, 32),
            "its_list": BitField(1, 15, 0),
            "vpe_id": _VPE_ID,
            "rdbase": _RDBASE,
            "doorbell_valid": BitField(2, 63, 63),
            "default_doorbell": BitField(3, 31, 0),
        },
        Opcode.VSGI: {
            "vsgi_intid": BitField(0, 35, 32),
            "priority": BitField(0, 23, 20, shift=4),
            "group": BitField(0, 10, 10),
            "clear": BitField(0, 9, 9),
            "enable": BitField(0, 8, 8),
            "vpe_id": _VPE_ID,
        },
        Opcode.VSYNC: {"vpe_id": _VPE_ID},
        Opcode.VMAPP: {
            "vpe_id": _VPE_ID,
            "valid": _VALID,
            "rdbase": _RDBASE,
            "vpt_gpa": BitField(3, 51, 16, shift=16),
            "vpt_bits": BitField(3, 4, 0, bias=1),
            "alloc": BitField(0, 8, 8),
            "ptz": BitField(0, 9, 9),
            "vconf_gpa": BitField(0, 51, 16, shift=16),
            "default_doorbell": BitField(1, 31, 0),
        },
        Opcode.VMAPTI: {
            **_EVENT,
            "vpe_id": _VPE_ID,
            "vintid": BitField(2, 31, 0),
            "doorbell": BitField(2, 63, 32),
        },
        Opcode.VMAPI: {**_EVENT, "vpe_id": _VPE_ID, "vintid": _EVENT_ID, "doorbell": BitField(2, 63, 32)},
        Opcode.VINVALL: {"vpe_id": _VPE_ID},
        Opcode.INVDB: {"vpe_id": _VPE_ID},
    }
)

#: How `describe` calls a field, and whether it prints it in hex.
LABELS: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "device_id": ("DeviceID", True),
        "event_id": ("EventID", False),
        "event_bits": ("event_bits", False),
        "intid": ("pINTID", False),
        "icid": ("ICID", False),
        "rdbase": ("RDbase", False),
        "rdbase2": ("RDbase2", False),
        "valid": ("V", False),
        "itt_gpa": ("ITT_addr", True),
        "vpe_id": ("vPEID", False),
        "vintid": ("vINTID", False),
        "doorbell": ("Dbell_pINTID", False),
        "doorbell_valid": ("D", False),
        "default_doorbell": ("Default_Doorbell_pINTID", False),
        "sequence_number": ("SequenceNumber", False),
        "its_list": ("ITSList", True),
        "vpt_gpa": ("VPT_addr", True),
        "vpt_bits": ("vpt_bits", False),
        "vconf_gpa": ("VCONF_addr", True),
        "alloc": ("Alloc", False),
        "ptz": ("PTZ", False),
        "vsgi_intid": ("vINTID", False),
        "priority": ("Priority", True),
        "group": ("Group", False),
        "clear": ("Clear", False),
        "enable": ("Enable", False),
    }
)


#: Fields that a command keeps as attributes; `valid` is one more.
_ASKED = ("device_id", "event_id", "intid", "icid", "rdbase", "rdbase2", "itt_gpa", "event_bits")


@dataclass(frozen=True, slots=True)
class Command:
    """One ITS command: its four doublewords as they stood in the queue.

    Units: `itt_gpa`, `vpt_gpa` and `vconf_gpa` are addresses; `event_bits` and `vpt_bits` are numbers of ID
    bits (the encoded Size plus one); `rdbase` and `rdbase2` are the raw field [51:16], a processor number
    where GITS_TYPER.PTA is 0.
    """

    dw: Words
    #: The command as an `Opcode`; the bare number where no such command exists.
    opcode: Opcode | int = dataclass_field(init=False, repr=False, compare=False)
    #: Every field that this opcode has, by the names of `FIELDS`; empty for an unknown opcode.
    fields: Mapping[str, int] = dataclass_field(init=False, repr=False, compare=False)
    #: DeviceID. This and the next ones are kept beside `fields`, for they are asked for again and again.
    device_id: int | None = dataclass_field(init=False, repr=False, compare=False)
    #: EventID.
    event_id: int | None = dataclass_field(init=False, repr=False, compare=False)
    #: The physical LPI that is mapped; for MAPI that is the EventID.
    intid: int | None = dataclass_field(init=False, repr=False, compare=False)
    #: Collection.
    icid: int | None = dataclass_field(init=False, repr=False, compare=False)
    #: RDbase (MOVALL: RDbase1, the source), as the raw field.
    rdbase: int | None = dataclass_field(init=False, repr=False, compare=False)
    #: MOVALL: RDbase2, the destination, as the raw field.
    rdbase2: int | None = dataclass_field(init=False, repr=False, compare=False)
    #: V of MAPD, MAPC and VMAPP.
    valid: bool | None = dataclass_field(init=False, repr=False, compare=False)
    #: MAPD: guest address of the Interrupt Translation Table.
    itt_gpa: int | None = dataclass_field(init=False, repr=False, compare=False)
    #: MAPD: number of EventID bits (the encoded Size plus one).
    event_bits: int | None = dataclass_field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert len(self.dw) == 4
        assert all(0 <= word < 1 << 64 for word in self.dw)
        # Worked out once: a command's operands are asked for many times.
        number = self.dw[0] & 0xFF
        opcode = _OPCODES.get(number)
        layout = FIELDS[opcode] if opcode is not None else {}
        object.__setattr__(self, "opcode", number if opcode is None else opcode)
        fields = {name: place.get(self.dw) for name, place in layout.items()}
        object.__setattr__(self, "fields", fields)
        for name in _ASKED:
            object.__setattr__(self, name, fields.get(name))
        object.__setattr__(self, "valid", bool(fields["valid"]) if "valid" in fields else None)

    @property
    def opcode_number(self) -> int:
        """DW0[7:0], whatever it is."""
        return self.dw[0] & 0xFF

    @property
    def name(self) -> str | None:
        """The command's name; None where no such command exists."""
        return self.opcode.name if isinstance(self.opcode, Opcode) else None

    def field(self, name: str) -> int | None:
        """One field by its name; None where this opcode has no such field."""
        return self.fields.get(name)

    @property
    def vpe_id(self) -> int | None:
        """Virtual processing element."""
        return self.field("vpe_id")

    @property
    def vintid(self) -> int | None:
        """Virtual LPI of VMAPTI and VMAPI."""
        return self.field("vintid")

    @property
    def doorbell(self) -> int | None:
        """Doorbell of one virtual LPI (VMAPTI, VMAPI, VMOVI); 1023 is none."""
        return self.field("doorbell")

    @property
    def default_doorbell(self) -> int | None:
        """Default doorbell of a vPE (VMAPP and VMOVP, GICv4.1)."""
        return self.field("default_doorbell")

    @property
    def its_list(self) -> int | None:
        """VMOVP: bit per ITS that must take the command."""
        return self.field("its_list")

    @property
    def sequence_number(self) -> int | None:
        """VMOVP: number that ties the copies of one command on several ITSs together."""
        return self.field("sequence_number")

    def __str__(self) -> str:
        return describe(self)


@lru_cache(maxsize=_REMEMBERED)
def decode(words: Words) -> Command:
    """The command in four doublewords; never fails, and `encode` gives exactly these words back."""
    return Command((words[0], words[1], words[2], words[3]))


def decode_bytes(data: bytes) -> Command:
    """The command in 32 bytes of a queue."""
    assert len(data) == COMMAND_SIZE_BYTES
    dw0, dw1, dw2, dw3 = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8, 16, 24))
    return Command((dw0, dw1, dw2, dw3))


def encode(command: Command) -> Words:
    """The four doublewords of a command, reserved bits included."""
    return command.dw


def build(opcode: Opcode, /, **values: int) -> Command:
    """A command with the fields given and zero elsewhere.

    Raises: ValueError for a field that the opcode has not, or that cannot hold its value.
    """
    layout = FIELDS[opcode]
    words = [int(opcode), 0, 0, 0]
    for name, value in values.items():
        if name not in layout:
            raise ValueError(f"{opcode.name} has no field {name}")
        words[layout[name].dw] |= layout[name].put(int(value))
    return Command((words[0], words[1], words[2], words[3]))


@lru_cache(maxsize=_REMEMBERED)
def describe(command: Command) -> str:
    """One line, such as `MAPTI DeviceID 0x8 EventID 0 pINTID 8192 ICID 1`."""
    if command.name is None:
        return f"unknown opcode 0x{command.opcode_number:02x}"
    values = dict(command.fields)
    if command.opcode == Opcode.MAPI:
        del values["intid"]  # it is the EventID, which stands in the line already
    words = [command.name]
    for name, value in values.items():
        label, in_hex = LABELS[name]
        words.append(f"{label} 0x{value:x}" if in_hex else f"{label} {value}")
    return " ".join(words)


def mapd(device_id: int, itt_gpa: int, event_bits: int, valid: bool = True) -> Command:
    """MAPD; with `valid` False the ITT and its size are ignored by the ITS and may be 0 and 1."""
    return build(Opcode.MAPD, device_id=device_id, itt_gpa=itt_gpa, event_bits=event_bits, valid=valid)


def mapc(icid: int, rdbase: int, valid: bool = True) -> Command:
    """MAPC."""
    return build(Opcode.MAPC, icid=icid, rdbase=rdbase, valid=valid)


def mapti(device_id: int, event_id: int, intid: int, icid: int) -> Command:
    """MAPTI."""
    return build(Opcode.MAPTI, device_id=device_id, event_id=event_id, intid=intid, icid=icid)


def mapi(device_id: int, event_id: int, icid: int) -> Command:
    """MAPI."""
    return build(Opcode.MAPI, device_id=device_id, event_id=event_id, icid=icid)


def movi(device_id: int, event_id: int, icid: int) -> Command:
    """MOVI."""
    return build(Opcode.MOVI, device_id=device_id, event_id=event_id, icid=icid)


def movall(rdbase: int, rdbase2: int) -> Command:
    """MOVALL, from `rdbase` to `rdbase2`."""
    return build(Opcode.MOVALL, rdbase=rdbase, rdbase2=rdbase2)


def discard(device_id: int, event_id: int) -> Command:
    """DISCARD."""
    return build(Opcode.DISCARD, device_id=device_id, event_id=event_id)


def clear(device_id: int, event_id: int) -> Command:
    """CLEAR."""
    return build(Opcode.CLEAR, device_id=device_id, event_id=event_id)


def int_(device_id: int, event_id: int) -> Command:
    """INT."""
    return build(Opcode.INT, device_id=device_id, event_id=event_id)


def inv(device_id: int, event_id: int) -> Command:
    """INV."""
    return build(Opcode.INV, device_id=device_id, event_id=event_id)


def invall(icid: int) -> Command:
    """INVALL."""
    return build(Opcode.INVALL, icid=icid)


def sync(rdbase: int) -> Command:
    """SYNC."""
    return build(Opcode.SYNC, rdbase=rdbase)
