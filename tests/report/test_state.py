"""Tables of an ITS as lines."""

from __future__ import annotations

import polars as pl
from conftest import SAMPLES, analysis_of

from itstrace.report.figures import traffic
from itstrace.report.layout import Sheet
from itstrace.report.state import State
from itstrace.schemas import ITSS
from itstrace.tables import COLLECTION_ROWS, DEVICE_ROWS, EVENT_ROWS, LPI_ROWS, Tables

_ITSS = pl.DataFrame([(0, 0, 1, 0x8080000, 0, True)], schema=ITSS, orient="row")


def _lines(tables: Tables, sheet: Sheet | None = None) -> list[str]:
    return [line.plain for line in State(sheet or Sheet(), tables, _ITSS).lines()]


def test_what_a_source_does_not_know_is_not_empty() -> None:
    lines = _lines(Tables(devices=pl.DataFrame(schema=DEVICE_ROWS)))

    assert "  no devices" in lines
    assert "  collections are not known" in lines
    assert "  events are not known" in lines


def test_orphans_and_moved_lpis_are_told_apart() -> None:
    tables = Tables(
        collections=pl.DataFrame([(0, 0, 5, None, False), (0, 0, 6, None, True)], schema=COLLECTION_ROWS, orient="row"),
        events=pl.DataFrame(
            [
                (0, 0, 8, 0, 8192, None, None, False),  # an orphan
                (0, 0, 8, 1, 8193, 1, 1, False),  # moved by MOVALL: the LPI goes elsewhere
                (0, 0, 8, 2, 8194, 1, 1, False),
                (0, 0, 8, 3, None, None, None, True),  # seen in use only
            ],
            schema=EVENT_ROWS, orient="row",
        ),
        lpis=pl.DataFrame(
            [
                (0, 8192, None, None, None, None, True),
                (0, 8193, True, 0xA0, 0, True, True),
                (0, 8194, False, 0, 1, False, True),
                (0, 8300, True, 0xA0, 1, None, False),
            ],
            schema=LPI_ROWS, orient="row",
        ),
    )  # fmt: skip
    lines = [line.split() for line in _lines(tables)]

    assert ["5", "none", "command"] in lines
    assert ["6", "?", "use"] in lines
    assert ["0x8", "0", "8192", "none", "none", "?", "?", "?", "command"] in lines
    assert ["0x8", "1", "8193", "1", "1", "(LPI", "->", "0)", "yes", "0xa0", "yes", "command"] in lines
    assert ["0x8", "2", "8194", "1", "1", "no", "0x00", "no", "command"] in lines
    assert ["0x8", "3", "?", "?", "?", "?", "?", "?", "use"] in lines
    assert ["VM", "0:", "1", "LPI", "that", "no", "event", "maps", "any", "more"] in lines
    assert ["8300", "1", "yes", "0xa0", "?"] in lines


def test_a_restored_guest_has_all_its_entries_and_fits() -> None:
    analysis = analysis_of(SAMPLES / "7.3-migrate.dat")
    tables = analysis.at()
    lines = list(State(Sheet(80, fine=True), tables, analysis.observations.itss, traffic(analysis)).lines())
    assert tables.events is not None
    entries = [line.plain.split() for line in lines if line.plain.lstrip().startswith("0x")]

    assert max(line.cell_len for line in lines) <= 80
    for device_id, event_id, intid in tables.events.select("device_id", "event_id", "intid").iter_rows():
        assert any(entry[:3] == [hex(device_id), str(event_id), str(intid)] for entry in entries)
