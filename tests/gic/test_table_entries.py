"""Table entries of KVM's ABI revision 0."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from itstrace.gic import tables

VALUE = st.integers(0, (1 << 64) - 1)


@given(VALUE)
def test_dte_round_trip(value: int) -> None:
    assert tables.encode_dte(tables.decode_dte(value)) == value


@given(VALUE)
def test_ite_round_trip(value: int) -> None:
    assert tables.encode_ite(tables.decode_ite(value)) == value


@given(VALUE)
def test_cte_round_trip_without_reserved_bits(value: int) -> None:
    assert tables.encode_cte(tables.decode_cte(value)) == value & (1 << 63 | (1 << 52) - 1)


def test_dte() -> None:
    """arm-vgic-its.rst: V[63] next[62:49] ITT_addr[48:5] Size[4:0]."""
    entry = tables.decode_dte(1 << 63 | 8 << 49 | 0x430504 << 5 | 4)
    assert entry == tables.Dte(valid=True, next_offset=8, itt_gpa=0x43050400, event_bits=5)


def test_a_cte_without_a_vcpu() -> None:
    assert tables.decode_cte(1 << 63 | 0xFFFF_FFFF << 16 | 3).target_vcpu is None
    assert tables.decode_cte(1 << 63 | 2 << 16 | 3).target_vcpu == 2


def test_cte() -> None:
    assert tables.decode_cte(1 << 63 | 2 << 16 | 3) == tables.Cte(valid=True, rdbase=2, icid=3)


def test_ite() -> None:
    entry = tables.decode_ite(1 << 48 | 8193 << 16 | 1)
    assert entry == tables.Ite(next_offset=1, intid=8193, icid=1)
    assert entry.valid
    assert not tables.decode_ite(0).valid


def test_level1() -> None:
    assert tables.decode_level1(1 << 63 | 0x4301_0000) == tables.Level1Entry(True, 0x4301_0000)


def test_entries_of_an_image_that_was_cut() -> None:
    assert tables.entries((7).to_bytes(8, "little") + b"\x05") == [7, 5]
    assert tables.entries(b"") == []
