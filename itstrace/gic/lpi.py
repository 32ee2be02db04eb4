"""LPIs: their numbers, the property byte and the place of the pending bit.

Spec: IHI 0069H, "LPI Configuration tables" and "LPI Pending tables".
Source: drivers/irqchip/irq-gic-v3-its.c (LPI_PROP_*), arch/arm64/kvm/vgic/vgic-its.c:update_lpi_config
(v6.12).
"""

from __future__ import annotations

from dataclasses import dataclass

#: The first LPI. Source: arch/arm64/kvm/vgic/vgic.h:GIC_LPI_OFFSET (v6.12)
FIRST_LPI = 8192

#: INTID for "none", as in a doorbell. Source: irq-gic-v3-its.c, its_build_vmapti_cmd's caller (1023)
SPURIOUS_INTID = 1023

#: ID bits that KVM offers at most. Source: vgic.h:INTERRUPT_ID_BITS_ITS (v6.12)
KVM_INTID_BITS = 16


@dataclass(frozen=True, slots=True)
class LpiProperties:
    """One byte of the LPI configuration table: priority in [7:2], RES1 in [1], enable in [0]."""

    priority: int
    enabled: bool
    res1: bool = True


def decode_properties(property_byte: int) -> LpiProperties:
    """What a property byte says.

    Source: include/linux/irqchip/arm-gic-v3.h:LPI_PROP_PRIORITY, LPI_PROP_ENABLED, LPI_PROP_GROUP1 (v6.12)
    """
    assert 0 <= property_byte <= 0xFF
    return LpiProperties(property_byte & 0xFC, bool(property_byte & 1), bool(property_byte & 2))


def encode_properties(properties: LpiProperties) -> int:
    """The property byte that says `properties`."""
    return properties.priority & 0xFC | properties.res1 << 1 | properties.enabled


def property_gpa(config_table_gpa: int, intid: int) -> int:
    """Where the property byte of an LPI stands: one byte per LPI from 8192 on.

    Kernel: vgic-its.c:update_lpi_config (v6.12)
    """
    return config_table_gpa + intid - FIRST_LPI


def intid_of_property(config_table_gpa: int, gpa: int) -> int:
    """The LPI whose property byte stands at `gpa`."""
    return gpa - config_table_gpa + FIRST_LPI


def pending_bit(intid: int) -> tuple[int, int]:
    """Byte offset in the pending table, and bit in that byte, of an LPI; the table counts from INTID 0.

    Kernel: vgic-v3.c:vgic_v3_lpi_sync_pending_status (v6.12)
    """
    return intid // 8, intid % 8


def pending_intids(table: bytes, base_intid: int = 0) -> list[int]:
    """The INTIDs whose bits are set in a pending table (or a piece of it that begins with `base_intid`)."""
    return [
        base_intid + 8 * at + bit
        for at, byte in enumerate(table)
        if byte
        for bit in range(8)
        if byte >> bit & 1
    ]


def lpi_count_limit(id_bits: int) -> int:
    """One past the last INTID that `id_bits` ID bits can name, as KVM limits it.

    Kernel: vgic-its.c:max_lpis_propbaser (v6.12)
    """
    return 1 << min(id_bits, KVM_INTID_BITS)
