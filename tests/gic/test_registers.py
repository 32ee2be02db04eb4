"""Registers: the values that real captures hold, and what they say."""

from __future__ import annotations

from itstrace.gic import registers as reg


def test_typer_of_kvm() -> None:
    """Source: kvm-its-facts C, and captures."""
    typer = reg.decode_gits_typer(reg.KVM_GITS_TYPER)
    assert (typer.device_bits, typer.event_bits, typer.collection_bits) == (16, 16, 16)
    assert (typer.itt_entry_size_bytes, typer.pta, typer.hardware_collections) == (8, False, 0)
    assert (typer.physical, typer.virtual, typer.vmovp) == (True, False, False)


def test_typer_of_qemu() -> None:
    """As captures/qemu-linux has it: 12-byte ITEs, CIL with 16 bits."""
    typer = reg.decode_gits_typer(0x1F0001EFB1)
    assert (typer.itt_entry_size_bytes, typer.device_bits, typer.collection_bits) == (12, 16, 16)


def test_baser_of_an_indirect_device_table() -> None:
    """As captures/qemu-linux has it: 64 KiB pages, one page of level-1 entries."""
    baser = reg.decode_gits_baser(0xF9070000429D0600)
    assert (baser.valid, baser.indirect, baser.table_type) == (True, True, reg.BASER_TYPE_DEVICE)
    assert (baser.entry_size_bytes, baser.table_gpa, baser.size_bytes) == (8, 0x429D0000, 65536)
    assert baser.id_limit == 8192 * 8192
    assert baser.level1_index(8192) == 1


def test_baser_of_a_flat_collection_table() -> None:
    baser = reg.decode_gits_baser(0xBC070000429E0600)
    assert (baser.indirect, baser.table_type, baser.id_limit) == (False, reg.BASER_TYPE_COLLECTION, 8192)
    assert baser.level1_index(3) is None


def test_baser_page_sizes() -> None:
    value = 1 << 63 | 7 << 48 | 0x12345000 | 0x2
    assert reg.decode_gits_baser(value).size_bytes == 3 * 4096
    assert reg.decode_gits_baser(value).table_gpa == 0x12345000
    assert reg.decode_gits_baser(value | 1 << 8).size_bytes == 3 * 16384
    assert reg.decode_gits_baser(value, page_size_bytes=65536).table_gpa == 0x5_0000_1234_0000


def test_cbaser() -> None:
    cbaser = reg.decode_gits_cbaser(0xB8000000429C040F)
    assert (cbaser.valid, cbaser.queue_gpa, cbaser.size_bytes) == (True, 0x429C0000, 65536)
    assert cbaser.slots == 2048


def test_queue_offset_leaves_out_retry_and_stalled() -> None:
    assert reg.decode_queue_offset(0xFFE1) == 0xFFE0
    assert reg.decode_queue_offset(0x1F_FFFF) == 0xF_FFE0


def test_ctlr() -> None:
    ctlr = reg.decode_gits_ctlr(0x80000021)
    assert (ctlr.enabled, ctlr.quiescent, ctlr.its_number) == (True, True, 2)
    assert reg.decode_gicr_ctlr(0x9) == reg.GicrCtlr(enable_lpis=True, ces=False, ir=False, rwp=True)


def test_propbaser_and_pendbaser() -> None:
    assert reg.decode_gicr_propbaser(0x4100_078F) == reg.GicrPropbaser(16, 0x4100_0000)
    assert reg.decode_gicr_pendbaser(1 << 62 | 0x4201_0780) == reg.GicrPendbaser(True, 0x4201_0000)


def test_invlpir_without_its_virtual_part() -> None:
    assert reg.decode_gicr_invlpir(1 << 63 | 5 << 32 | 8192) == 8192


def test_names() -> None:
    assert reg.its_register_name(0x108) == "GITS_BASER1"
    assert reg.its_register_name(0x8C) == "GITS_CWRITER+4"
    assert reg.its_register_name(0x50) is None
    assert reg.redistributor_register_name(0xA0) == "GICR_INVLPIR"
