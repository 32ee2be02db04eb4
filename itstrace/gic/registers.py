"""Registers of the ITS (GITS_*) and of LPIs in the redistributor (GICR_*): offsets and what their fields say.

Source, where nothing else is said: include/linux/irqchip/arm-gic-v3.h (v6.12). Spec: IHI 0069H, "ITS register
descriptions" and "GICR_* registers".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

# --- offsets from the ITS's base
GITS_CTLR = 0x0000
GITS_IIDR = 0x0004
GITS_TYPER = 0x0008
GITS_CBASER = 0x0080
GITS_CWRITER = 0x0088
GITS_CREADR = 0x0090
GITS_BASER = 0x0100  # GITS_BASER<n> at GITS_BASER + 8n
GITS_TRANSLATER = 0x10040
GITS_SGIR = 0x20020  # GICv4.1
#: Number of GITS_BASER<n>. Source: GITS_BASER_NR_REGS
GITS_BASER_COUNT = 8

# --- offsets from the redistributor's RD_base
GICR_CTLR = 0x0000
GICR_PROPBASER = 0x0070
GICR_PENDBASER = 0x0078
GICR_INVLPIR = 0x00A0
GICR_INVALLR = 0x00B0
GICR_SYNCR = 0x00C0

#: Register frames of the ITS and of redistributors are 64 KiB: an address within its frame. Spec: IHI 0069H, memory maps.
FRAME_MASK = 0xFFFF

#: GITS_TYPER of every KVM vITS: 16 device bits, 16 event bits, 8-byte ITEs, PTA 0, CIL 0, HCC 0.
#: Kernel: vgic-its.c:vgic_mmio_read_its_typer (v6.12)
KVM_GITS_TYPER = 0x1EF71

_NAMES = {
    GITS_CTLR: "GITS_CTLR",
    GITS_IIDR: "GITS_IIDR",
    GITS_TYPER: "GITS_TYPER",
    GITS_CBASER: "GITS_CBASER",
    GITS_CWRITER: "GITS_CWRITER",
    GITS_CREADR: "GITS_CREADR",
    GITS_TRANSLATER: "GITS_TRANSLATER",
    GITS_SGIR: "GITS_SGIR",
} | {GITS_BASER + 8 * n: f"GITS_BASER{n}" for n in range(GITS_BASER_COUNT)}

_REDISTRIBUTOR_NAMES = {
    GICR_CTLR: "GICR_CTLR",
    GICR_PROPBASER: "GICR_PROPBASER",
    GICR_PENDBASER: "GICR_PENDBASER",
    GICR_INVLPIR: "GICR_INVLPIR",
    GICR_INVALLR: "GICR_INVALLR",
    GICR_SYNCR: "GICR_SYNCR",
}


def its_register_name(offset: int) -> str | None:
    """The name of the ITS register at `offset`, with `+4` for an upper half, if it has one here."""
    return _register_name(_NAMES, offset)


def redistributor_register_name(offset: int) -> str | None:
    """The name of the redistributor register at `offset`, if it has one here."""
    return _register_name(_REDISTRIBUTOR_NAMES, offset)


def _register_name(names: dict[int, str], offset: int) -> str | None:
    if offset in names:
        return names[offset]
    upper_half = names.get(offset - 4)
    return f"{upper_half}+4" if upper_half is not None else None


@dataclass(frozen=True, slots=True)
class GitsCtlr:
    """GITS_CTLR: Enabled[0], ImDe[1], ITS_Number[7:4], Quiescent[31]."""

    enabled: bool
    im_de: bool
    its_number: int
    quiescent: bool


def decode_gits_ctlr(value: int) -> GitsCtlr:
    """What a GITS_CTLR value says."""
    return GitsCtlr(bool(value & 1), bool(value & 2), value >> 4 & 0xF, bool(value >> 31 & 1))


@dataclass(frozen=True, slots=True)
class GitsTyper:
    """GITS_TYPER: what the ITS can do.

    Units: `event_bits`, `device_bits`, `collection_bits` are numbers of ID bits; `itt_entry_size_bytes` is
    bytes.
    """

    physical: bool
    virtual: bool
    itt_entry_size_bytes: int
    event_bits: int
    device_bits: int
    seis: bool
    pta: bool
    hardware_collections: int
    #: Where CIL is 0, collections have 16 bits.
    collection_bits: int
    vmovp: bool


def decode_gits_typer(value: int) -> GitsTyper:
    """What a GITS_TYPER value says: bits [0] [1] [7:4] [12:8] [17:13] [18] [19] [31:24] [35:32] [36] [37].

    Source: GITS_TYPER_*; CIDbits, CIL: hw/intc/gicv3_internal.h:GITS_TYPER (QEMU)
    """
    return GitsTyper(
        physical=bool(value & 1),
        virtual=bool(value & 2),
        itt_entry_size_bytes=(value >> 4 & 0xF) + 1,
        event_bits=(value >> 8 & 0x1F) + 1,
        device_bits=(value >> 13 & 0x1F) + 1,
        seis=bool(value >> 18 & 1),
        pta=bool(value >> 19 & 1),
        hardware_collections=value >> 24 & 0xFF,
        collection_bits=(value >> 32 & 0xF) + 1 if value >> 36 & 1 else 16,
        vmovp=bool(value >> 37 & 1),
    )


@dataclass(frozen=True, slots=True)
class GitsCbaser:
    """GITS_CBASER: V[63], queue address PA[51:12], Size[7:0] in 4 KiB pages minus one."""

    valid: bool
    queue_gpa: int
    size_bytes: int

    @property
    def slots(self) -> int:
        """How many commands the queue holds."""
        return self.size_bytes // 32


@lru_cache(maxsize=256)  # asked for by every command, and seldom another one
def decode_gits_cbaser(value: int) -> GitsCbaser:
    """What a GITS_CBASER value says."""
    return GitsCbaser(bool(value >> 63), value & 0x000F_FFFF_FFFF_F000, ((value & 0xFF) + 1) * 4096)


def decode_queue_offset(value: int) -> int:
    """Offset[19:5] of GITS_CWRITER or GITS_CREADR, in bytes; Retry and Stalled, bit 0, are not part of it.

    Source: vgic-its.c:ITS_CMD_OFFSET (v6.12)
    """
    return value & 0xF_FFE0


#: GITS_BASER<n>.Type. Source: GITS_BASER_TYPE_*
BASER_TYPE_NONE = 0
BASER_TYPE_DEVICE = 1
BASER_TYPE_VCPU = 2
BASER_TYPE_COLLECTION = 4


@dataclass(frozen=True, slots=True)
class GitsBaser:
    """GITS_BASER<n>: V[63] Indirect[62] Type[58:56] Entry_Size[52:48] PA Page_Size[9:8] Size[7:0].

    Entry_Size is bytes minus one, Size pages minus one.
    The address is PA[47:12]; with 64 KiB pages it is PA[47:16], and [15:12] are PA[51:48].
    """

    valid: bool
    indirect: bool
    table_type: int
    entry_size_bytes: int
    table_gpa: int
    page_size_bytes: int
    pages: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the table, or of its first level."""
        return self.pages * self.page_size_bytes

    @property
    def id_limit(self) -> int:
        """One past the last id that the table can hold, were every second-level page there.

        Kernel: vgic-its.c:vgic_its_check_id (v6.12)
        """
        if not self.indirect:
            return self.size_bytes // self.entry_size_bytes
        return self.size_bytes // 8 * (self.page_size_bytes // self.entry_size_bytes)

    def level1_index(self, object_id: int) -> int | None:
        """Which level-1 entry an id falls under; None for a flat table."""
        return object_id // (self.page_size_bytes // self.entry_size_bytes) if self.indirect else None


def kvm_memory_attributes(value: int) -> int:
    """GITS_BASER<n> or GITS_CBASER with the memory attributes that KVM takes the written ones for.

    Shareability[11:10], InnerCache[61:59] and OuterCache[55:53]. Outer Shareable counts as Inner Shareable, no inner
    cache as read-allocate write-back, and an outer one only as the inner one or none.
    Kernel: vgic-its.c:vgic_sanitise_its_baser, vgic-mmio-v3.c:vgic_sanitise_shareability, _inner_cacheability,
        _outer_cacheability (v6.12)
    """
    if value >> 10 & 3 == 2:
        value = value & ~(3 << 10) | 1 << 10
    if value >> 59 & 7 <= 1:
        value = value & ~(7 << 59) | 3 << 59
    if value >> 53 & 7 > 1:
        value &= ~(7 << 53)
    return value


_PAGE_SIZES_BYTES = (4096, 16384, 65536, 65536)


@lru_cache(maxsize=256)  # asked for by every command, and seldom another one
def decode_gits_baser(value: int, *, page_size_bytes: int | None = None) -> GitsBaser:
    """What a GITS_BASER<n> value says; `page_size_bytes` overrides the field on an ITS with one page size.

    Kernel: vgic-its.c:vgic_sanitise_its_baser keeps only 64 KiB pages (v6.12)
    """
    page = page_size_bytes or _PAGE_SIZES_BYTES[value >> 8 & 3]
    gpa = value & 0x0000_FFFF_FFFF_F000
    if page == 65536:
        gpa = value & 0x0000_FFFF_FFFF_0000 | (value >> 12 & 0xF) << 48
    return GitsBaser(
        valid=bool(value >> 63),
        indirect=bool(value >> 62 & 1),
        table_type=value >> 56 & 7,
        entry_size_bytes=(value >> 48 & 0x1F) + 1,
        table_gpa=gpa,
        page_size_bytes=page,
        pages=(value & 0xFF) + 1,
    )


@dataclass(frozen=True, slots=True)
class GicrCtlr:
    """GICR_CTLR: EnableLPIs[0], CES[1], IR[2], RWP[3]."""

    enable_lpis: bool
    ces: bool
    ir: bool
    rwp: bool


def decode_gicr_ctlr(value: int) -> GicrCtlr:
    """What a GICR_CTLR value says."""
    return GicrCtlr(bool(value & 1), bool(value & 2), bool(value & 4), bool(value & 8))


@dataclass(frozen=True, slots=True)
class GicrPropbaser:
    """GICR_PROPBASER: IDbits[4:0]+1, configuration table PA[51:12]."""

    id_bits: int
    config_table_gpa: int


def decode_gicr_propbaser(value: int) -> GicrPropbaser:
    """What a GICR_PROPBASER value says."""
    return GicrPropbaser((value & 0x1F) + 1, value & 0x000F_FFFF_FFFF_F000)


@dataclass(frozen=True, slots=True)
class GicrPendbaser:
    """GICR_PENDBASER: PTZ[62], pending table PA[51:16]."""

    ptz: bool
    pending_table_gpa: int


def decode_gicr_pendbaser(value: int) -> GicrPendbaser:
    """What a GICR_PENDBASER value says."""
    return GicrPendbaser(bool(value >> 62 & 1), value & 0x000F_FFFF_FFFF_0000)


def decode_gicr_invlpir(value: int) -> int:
    """INTID of GICR_INVLPIR, [31:0] (GICv4.1 adds vPEID[47:32] and V[63])."""
    return value & 0xFFFF_FFFF
