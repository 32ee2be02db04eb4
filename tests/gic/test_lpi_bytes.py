"""LPIs: property byte and pending bit."""

from __future__ import annotations

import pytest

from itstrace.gic import lpi


@pytest.mark.parametrize("value", range(256))
def test_property_byte_round_trip(value: int) -> None:
    assert lpi.encode_properties(lpi.decode_properties(value)) == value


def test_property_byte_of_kvm_unit_tests() -> None:
    """0xa3 is LPI_PROP_DEFAULT_PRIO with enable; Linux writes 0xa2 and 0xa3."""
    assert lpi.decode_properties(0xA3) == lpi.LpiProperties(0xA0, enabled=True)
    assert lpi.decode_properties(0xA2) == lpi.LpiProperties(0xA0, enabled=False)


def test_places() -> None:
    assert lpi.property_gpa(0x4100_0000, 8195) == 0x4100_0003
    assert lpi.intid_of_property(0x4100_0000, 0x4100_0003) == 8195
    assert lpi.pending_bit(8195) == (1024, 3)


def test_pending_table() -> None:
    table = bytearray(1026)
    table[1024] = 0b1000_0001
    table[1025] = 0b10
    assert lpi.pending_intids(bytes(table)) == [8192, 8199, 8201]
    assert lpi.pending_intids(bytes(table[1024:]), 8192) == [8192, 8199, 8201]


def test_limit() -> None:
    assert lpi.lpi_count_limit(14) == 16384
    assert lpi.lpi_count_limit(24) == 65536
