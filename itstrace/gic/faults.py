"""Command error codes: what an ITS reports when a command's operands are wrong.

A code is 24 bits: 0x01, the command's opcode (CLEAR reports as 0x05), and a reason.
"""

from __future__ import annotations

from enum import IntEnum


class Fault(IntEnum):
    """Command error encodings.

    Spec: IHI 0069H, "ITS command error encodings". Source, where the line says nothing else:
    include/linux/irqchip/arm-gic-v3.h:E_ITS_* (v6.12). "TRM" is GIC-600AE TRM 101206, table 4-15. The lines
    marked "by pattern" follow the numbering of their neighbours and were not found in a document at hand.
    """

    MOVI_DEVICE_OOR = 0x010101  # TRM
    MOVI_COLLECTION_OOR = 0x010103  # TRM
    MOVI_UNMAPPED_DEVICE = 0x010104  # TRM
    MOVI_ID_OOR = 0x010105  # TRM
    MOVI_UNMAPPED_INTERRUPT = 0x010107
    MOVI_UNMAPPED_COLLECTION = 0x010109
    INT_DEVICE_OOR = 0x010301  # TRM
    INT_UNMAPPED_DEVICE = 0x010304  # TRM
    INT_ID_OOR = 0x010305  # TRM
    INT_UNMAPPED_INTERRUPT = 0x010307
    INT_ITE_INVALID = 0x010310  # TRM
    CLEAR_DEVICE_OOR = 0x010501  # TRM
    CLEAR_UNMAPPED_DEVICE = 0x010504  # TRM
    CLEAR_ID_OOR = 0x010505  # TRM
    CLEAR_UNMAPPED_INTERRUPT = 0x010507
    CLEAR_ITE_INVALID = 0x010510  # TRM
    MAPD_DEVICE_OOR = 0x010801
    MAPD_ITTSIZE_OOR = 0x010802
    MAPC_PROCNUM_OOR = 0x010902
    MAPC_COLLECTION_OOR = 0x010903
    MAPTI_DEVICE_OOR = 0x010A01  # by pattern
    MAPTI_COLLECTION_OOR = 0x010A03  # by pattern
    MAPTI_UNMAPPED_DEVICE = 0x010A04
    MAPTI_ID_OOR = 0x010A05
    MAPTI_PHYSICALID_OOR = 0x010A06
    MAPI_DEVICE_OOR = 0x010B01  # TRM
    MAPI_COLLECTION_OOR = 0x010B03  # TRM
    MAPI_UNMAPPED_DEVICE = 0x010B04  # TRM
    MAPI_ID_OOR = 0x010B05  # TRM
    MAPI_PHYSICALID_OOR = 0x010B06  # by pattern
    INV_DEVICE_OOR = 0x010C01  # TRM
    INV_UNMAPPED_DEVICE = 0x010C04  # TRM
    INV_ID_OOR = 0x010C05  # by pattern
    INV_UNMAPPED_INTERRUPT = 0x010C07
    INVALL_COLLECTION_OOR = 0x010D03  # TRM
    INVALL_UNMAPPED_COLLECTION = 0x010D09
    MOVALL_PROCNUM_OOR = 0x010E01
    DISCARD_DEVICE_OOR = 0x010F01  # by pattern
    DISCARD_UNMAPPED_DEVICE = 0x010F04  # by pattern
    DISCARD_ID_OOR = 0x010F05  # by pattern
    DISCARD_UNMAPPED_INTERRUPT = 0x010F07
    DISCARD_ITE_INVALID = 0x010F10  # TRM

    @property
    def opcode_number(self) -> int:
        """The opcode of the command that reports this (CLEAR's own number is 0x04, its errors say 0x05)."""
        number = (self >> 8) & 0xFF
        return 0x04 if number == 0x05 else number

    @property
    def reason(self) -> str:
        """The name without the command: `UNMAPPED_DEVICE`."""
        return self.name.partition("_")[2]
