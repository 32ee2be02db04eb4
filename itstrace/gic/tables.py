"""Table entries as KVM saves them in guest memory: ABI revision 0, 8 bytes each, little endian.

Source: Documentation/virt/kvm/devices/arm-vgic-its.rst, "ITS Table ABI REV0" (v6.12);
arch/arm64/kvm/vgic/vgic.h: KVM_ITS_*_MASK. The architecture leaves level-2 and flat entries to the
implementation; only level-1 entries are its own.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Bytes of a DTE, a CTE and an ITE. Source: vgic-its.c:its_table_abi_versions (v6.12)
ENTRY_SIZE_BYTES = 8
#: Bytes of a level-1 entry. Source: vgic-its.c:GITS_LVL1_ENTRY_SIZE in arm-gic-v3.h (v6.12)
LEVEL1_ENTRY_SIZE_BYTES = 8

_VALID = 1 << 63


def _bits(value: int, high: int, low: int) -> int:
    return value >> low & (1 << (high - low + 1)) - 1


@dataclass(frozen=True, slots=True)
class Dte:
    """Device table entry; `next_offset` is the distance, in device ids, to the next valid entry (0: none)."""

    valid: bool
    next_offset: int
    itt_gpa: int
    event_bits: int


@dataclass(frozen=True, slots=True)
class Cte:
    """Collection table entry; the list ends with the first that is not valid. `rdbase` is a vCPU id."""

    valid: bool
    rdbase: int
    icid: int

    @property
    def target_vcpu(self) -> int | None:
        """The vCPU; None of a collection that MAPTI named and no MAPC has mapped.

        Kernel: vgic-its.c:vgic_its_save_cte, COLLECTION_NOT_MAPPED (v6.12)
        """
        vcpu = self.rdbase & 0xFFFF_FFFF
        return None if vcpu == 0xFFFF_FFFF else vcpu


@dataclass(frozen=True, slots=True)
class Ite:
    """Interrupt translation entry; INTID 0 is none. `next_offset` counts event ids to the next valid one."""

    next_offset: int
    intid: int
    icid: int

    @property
    def valid(self) -> bool:
        """Whether the entry maps anything."""
        return self.intid != 0


@dataclass(frozen=True, slots=True)
class Level1Entry:
    """Entry of the first level of an indirect table: where the page of the second level stands."""

    valid: bool
    table_gpa: int


def decode_dte(value: int) -> Dte:
    """DTE: V[63] next[62:49] ITT_addr[48:5] = PA[51:8], Size[4:0] = event bits - 1."""
    return Dte(bool(value & _VALID), _bits(value, 62, 49), _bits(value, 48, 5) << 8, _bits(value, 4, 0) + 1)


def encode_dte(entry: Dte) -> int:
    """The 8 bytes of a DTE as a number."""
    return entry.valid << 63 | entry.next_offset << 49 | (entry.itt_gpa >> 8) << 5 | (entry.event_bits - 1)


def decode_cte(value: int) -> Cte:
    """CTE: V[63] RDBase[51:16] ICID[15:0]."""
    return Cte(bool(value & _VALID), _bits(value, 51, 16), _bits(value, 15, 0))


def encode_cte(entry: Cte) -> int:
    """The 8 bytes of a CTE as a number."""
    return entry.valid << 63 | entry.rdbase << 16 | entry.icid


def decode_ite(value: int) -> Ite:
    """ITE: next[63:48] pINTID[47:16] ICID[15:0]."""
    return Ite(_bits(value, 63, 48), _bits(value, 47, 16), _bits(value, 15, 0))


def encode_ite(entry: Ite) -> int:
    """The 8 bytes of an ITE as a number."""
    return entry.next_offset << 48 | entry.intid << 16 | entry.icid


def decode_level1(value: int) -> Level1Entry:
    """Level-1 entry: V[63], second-level page PA[51:16].

    Kernel: vgic-its.c:vgic_its_check_id, KVM_ITS_L1E_ADDR_MASK (v6.12)
    """
    return Level1Entry(bool(value & _VALID), _bits(value, 51, 16) << 16)


def entries(table: bytes) -> list[int]:
    """The 8-byte values of a table image, in order; a last incomplete value is padded with zeros."""
    return [int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table), ENTRY_SIZE_BYTES)]
