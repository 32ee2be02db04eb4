"""Command error codes."""

from __future__ import annotations

import pytest

from itstrace.gic.commands import Opcode
from itstrace.gic.faults import Fault


@pytest.mark.parametrize("fault", Fault)
def test_code_names_its_command(fault: Fault) -> None:
    assert fault >> 16 == 1
    assert Opcode(fault.opcode_number).name == fault.name.partition("_")[0]
    assert fault.reason == fault.name.partition("_")[2]
