"""The trace for Perfetto, read back with Perfetto's own definitions: everything is there, to the ns, and nothing overlaps."""

from __future__ import annotations

from collections import Counter
from copy import copy
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers import perfetto_trace, tiny_analysis
from helpers.traced import CAPTURES
from hypothesis import given
from hypothesis import strategies as st

from itstrace.report import packets, protobuf
from itstrace.report.perfetto import write_trace

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from helpers.perfetto_trace import Trace

    from itstrace import Analysis

every = pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.name)


@cache
def traced(path: Path) -> tuple[Analysis, Trace]:
    analysis = analysis_of(path)
    return analysis, trace_of(analysis)


def trace_of(analysis: Analysis, *, runs: bool = True) -> Trace:
    out = BytesIO()
    writer = write_trace(analysis, out, runs=runs)
    trace = perfetto_trace.read(out.getvalue())
    assert writer.tracks == len(trace.tracks)
    assert writer.events == len(trace.slices) + len(trace.instants) + len(trace.values)
    return trace


def on(events: Iterable[perfetto_trace.Event], track: str) -> list[perfetto_trace.Event]:
    """Events of tracks whose name begins so."""
    return [one for one in events if one.path[-1].startswith(track)]


def rows(frame: pl.DataFrame, *columns: str | pl.Expr) -> Counter[tuple[Any, ...]]:
    return Counter(frame.select(*columns).iter_rows())


@every
def test_no_slice_lies_within_another(capture: Path) -> None:
    _, trace = traced(capture)

    assert trace.slices
    assert all(one.depth == 0 for one in trace.slices)


@every
def test_commands(capture: Path) -> None:
    analysis, trace = traced(capture)
    shown = on(trace.slices, "commands")
    expected = analysis.observations.commands.join(analysis.history.verdicts, on="seq")

    assert Counter((one.args["seq"], one.begin_ns, one.args["verdict"]) for one in shown) == rows(
        expected, "seq", "time_ns", "verdict"
    )
    ends = dict(expected.select("seq", "end_ns").drop_nulls().iter_rows())
    assert {one.args["seq"]: one.end_ns for one in shown if one.args["seq"] in ends} == ends
    texts = dict(expected.select("seq", "text").iter_rows())
    assert all(one.name.startswith(texts[one.args["seq"]]) for one in shown)
    faults = dict(expected.filter(pl.col("fault").is_not_null()).select("seq", "fault").iter_rows())
    assert {one.args["seq"]: one.args["fault"] for one in shown if "fault" in one.args} == faults
    assert all(one.name.endswith(f"[{one.args['verdict']}]") for one in shown if one.args["verdict"] != "ok")


@every
def test_msis_and_queueings(capture: Path) -> None:
    analysis, trace = traced(capture)
    obs = analysis.observations
    msis = [one for one in trace.instants if one.name.startswith(("MSI ", "INT ")) and "outcome" in one.args]
    queueings = [one for one in trace.instants if one.name.startswith("queue for vCPU")]

    assert Counter((one.args["seq"], one.begin_ns, one.args["DeviceID"]) for one in msis) == rows(
        obs.injections, "seq", "time_ns", "device_id"
    )
    assert Counter((one.args["seq"], one.args["outcome"]) for one in msis) == rows(
        analysis.lives.lives, "injected_seq", "outcome"
    )
    results = dict(obs.injections.select("seq", "result").drop_nulls().iter_rows())
    assert {one.args["seq"]: one.args["result"] for one in msis if "result" in one.args} == results
    for one in msis:
        at_its = one.path[-1] == "MSIs of no LPI" and one.path[-2].startswith("ITS ")
        assert at_its if "LPI" not in one.args else one.path[-1] == f"LPI {one.args['LPI']}"
    assert Counter((one.args["seq"], one.begin_ns, one.path[-1]) for one in queueings) == rows(
        obs.queueings, "seq", "time_ns", pl.format("LPI {}", "intid")
    )


@every
def test_moves_configurations_and_dropped_caches(capture: Path) -> None:
    analysis, trace = traced(capture)
    obs = analysis.observations

    def shown(begin: str) -> Counter[tuple[Any, ...]]:
        found = [one for one in trace.instants if one.name.startswith(begin)]
        return Counter((one.args["seq"], one.begin_ns, one.path[-1], one.name) for one in found)

    lpi = pl.format("LPI {}", "intid")
    moves = pl.format("moved to vCPU {}", "vcpu").fill_null("moved, where to was not recorded")
    assert shown("moved") == rows(obs.retargets, "seq", "time_ns", lpi, moves)
    configs = pl.format(
        "configuration read: {}", pl.when("enabled").then(pl.lit("enabled")).otherwise(pl.lit("disabled"))
    )
    assert shown("configuration read") == rows(obs.configs, "seq", "time_ns", lpi, configs)
    priorities = dict(obs.configs.select("seq", "priority").drop_nulls().iter_rows())
    read = [one for one in trace.instants if one.name.startswith("configuration read")]
    assert {one.args["seq"]: one.args["priority"] for one in read if "priority" in one.args} == priorities
    drops = [one for one in trace.instants if one.name == "translation cache dropped"]
    assert Counter((one.args["seq"], one.begin_ns) for one in drops) == rows(
        obs.invalidations, "seq", "time_ns"
    )
    of_one = set(obs.invalidations.filter(pl.col("its").is_not_null())["seq"])
    assert all(one.path[-1].startswith("ITS " if one.args["seq"] in of_one else "VM ") for one in drops)


@every
def test_list_registers(capture: Path) -> None:
    analysis, trace = traced(capture)
    fills = analysis.observations.fills
    shown = on(trace.slices, "LR ")

    assert Counter((one.args["seq"], one.begin_ns, one.path[-1], one.name) for one in shown) == rows(
        fills, "seq", "time_ns", pl.format("LR {}", "lr"), pl.format("LPI {}", "intid")
    )
    vcpus = dict(fills.select("seq", "vcpu").iter_rows())
    assert all(one.path[-2].split()[1] == str(vcpus[one.args["seq"]]) for one in shown)
    ends = dict(fills.select("seq", "end_ns").drop_nulls().iter_rows())
    assert {one.args["seq"]: one.end_ns for one in shown if one.args["seq"] in ends} == ends
    assert all("note" in one.args for one in shown if one.args["seq"] not in ends)


@every
def test_pending(capture: Path) -> None:
    analysis, trace = traced(capture)
    ended = analysis.lives.pending.drop_nulls("to_ns")
    places = {"queued": "queued on vCPU {}", "list_register": "in a list register of vCPU {}"}
    shown = [
        (one.path[-1], one.name, one.begin_ns, one.end_ns)
        for one in on(trace.slices, "LPI ")
        if "note" not in one.args
    ]

    assert Counter(shown) == Counter(
        (f"LPI {intid}", places[where].format(vcpu), begin, end)
        for intid, where, vcpu, begin, end in ended.select(
            "intid", "where", "vcpu", "from_ns", "to_ns"
        ).iter_rows()
    )
    still = [one for one in on(trace.slices, "LPI ") if "note" in one.args]
    assert len(still) == analysis.lives.pending["to_ns"].null_count()


@every
def test_runs(capture: Path) -> None:
    analysis, trace = traced(capture)
    runs = analysis.observations.runs.frame()
    shown = [one for one in trace.slices if one.name == "in guest"]

    assert Counter((one.path[-1].split()[1], one.args["seq"], one.begin_ns) for one in shown) == rows(
        runs, pl.col("vcpu").cast(pl.String), "enter_seq", "enter_ns"
    )
    ends = dict(runs.select("enter_seq", "exit_ns").drop_nulls().iter_rows())
    assert {one.args["seq"]: one.end_ns for one in shown if one.args["seq"] in ends} == ends
    without = trace_of(analysis, runs=False)
    assert len(without.slices) == len(trace.slices) - runs.height


@every
def test_a_flow_leads_from_each_msi_over_its_queueing_to_its_list_registers(capture: Path) -> None:
    analysis, trace = traced(capture)
    flows: dict[int, list[perfetto_trace.Event]] = {}
    for one in sorted([*trace.instants, *trace.slices], key=lambda event: event.begin_ns):
        for flow in one.flows:
            flows.setdefault(flow, []).append(one)
    queued = analysis.lives.lives.drop_nulls("queued_seq")

    assert len(flows) == queued.height
    for life in queued.iter_rows(named=True):
        msi, queueing, *fills = flows[life["injected_seq"] + 1]
        assert (msi.args["seq"], queueing.args["seq"]) == (life["injected_seq"], life["queued_seq"])
        assert (msi.begin_ns, queueing.begin_ns) == (life["injected_ns"], life["queued_ns"])
        if life["filled_seq"] is None:
            assert not fills
            continue
        assert fills[0].args["seq"] == life["filled_seq"]
        assert fills[0].begin_ns == life["filled_ns"]
        assert len(fills) == life["refills"] + 1
        assert fills[-1].path[-2].startswith(f"vCPU {life['filled_vcpu']} ")
        assert all(fill.path[-1].startswith("LR ") for fill in fills)


@every
def test_findings(capture: Path) -> None:
    analysis, trace = traced(capture)
    shown = {one.args["id"]: one for one in trace.under("Findings", events=trace.instants)}

    assert set(shown) == {finding.id for finding in analysis.findings}
    for finding in analysis.findings:
        one = shown[finding.id]
        assert one.name == f"{finding.code} {finding.name}"
        assert one.begin_ns == (analysis.start_ns if finding.time_ns is None else finding.time_ns)
        assert one.args["message"] == finding.message
        assert one.args.get("advice", "") == finding.advice
        assert len(one.args.get("evidence", [])) == len(finding.evidence)
        own = ("Findings", f"{finding.id} {finding.name}")
        evidence = [(item.begin_ns, item.args["text"]) for item in trace.under(*own, events=trace.instants)]
        assert Counter(evidence) == Counter((item.time_ns, item.text) for item in finding.evidence)
        span = [(item.begin_ns, item.end_ns) for item in trace.under(*own, events=trace.slices)]
        spans = finding.end_ns is not None and finding.time_ns is not None
        assert span == ([(finding.time_ns, finding.end_ns)] if spans else [])


def test_lost_records_and_markers() -> None:
    analysis, trace = traced(SAMPLES / "6.12-lost-records.dat")
    lost = [one for one in trace.slices if one.path[0] == "Lost records"]

    assert Counter((one.path[-1], one.begin_ns, one.end_ns, one.args.get("lost")) for one in lost) == rows(
        analysis.gaps, pl.format("CPU {}", "cpu"), "from_ns", "to_ns", "lost"
    )
    analysis, trace = traced(SAMPLES / "7.3-migrate.dat")
    assert analysis.observations.markers.height
    markers = [(one.name, one.begin_ns) for one in trace.instants if one.path == ("Markers",)]
    assert Counter(markers) == rows(analysis.observations.markers, "text", "time_ns")


def test_vm_events_stand_with_whom_they_are_about() -> None:
    analysis, trace = traced(SAMPLES / "6.12-double-delivery.dat")
    events = analysis.observations.vm_events.filter(pl.col("what") == "flush_lpis")
    flushes = [one for one in trace.instants if one.name == "flush_lpis" and one.path[0] == "VM 0"]
    shown = [(one.path[-1].split()[1], one.begin_ns) for one in flushes]

    assert Counter(shown) == rows(events, pl.col("vcpu").cast(pl.String), "time_ns")


def test_an_lpi_on_two_vcpus_at_once_has_two_tracks_of_one_name() -> None:
    _, trace = traced(SAMPLES / "6.12-double-delivery.dat")
    tracks = Counter((track.name, track.parent) for track in trace.tracks.values())
    twice = [name for (name, _), count in tracks.items() if count > 1]

    assert twice == ["LPI 8193"]
    first, second = sorted({one.track for one in on(trace.slices, "LPI 8193")})
    assert any(
        one.begin_ns < other.end_ns and other.begin_ns < one.end_ns
        for one in trace.slices
        for other in trace.slices
        if one.track == first and other.track == second and one.end_ns and other.end_ns
    )


@every
def test_the_rate_adds_up_to_the_msis(capture: Path) -> None:
    analysis, trace = traced(capture)
    assert analysis.start_ns is not None
    assert analysis.end_ns is not None
    part = -(-(analysis.end_ns - analysis.start_ns) // 1000)
    total = sum((one.value or 0) * part / 1e9 for one in trace.values)

    assert total == pytest.approx(analysis.observations.injections.height, abs=len(trace.values) * part / 1e9)


def test_a_negative_number_of_any_width_is_its_64_bit_complement() -> None:
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        rows = protobuf.Rows(2)
        rows.number(4, np.array([-14, 3], dtype))
        assert rows.encode() == protobuf.number(4, -14) + protobuf.number(4, 3)


def test_times_are_of_the_captures_clock_where_the_format_knows_it() -> None:
    assert traced(SAMPLES / "6.12-double-delivery.dat")[1].clock == 3  # BUILTIN_CLOCK_MONOTONIC
    assert traced(SAMPLES / "6.12-tracefs-trace.txt.zst")[1].clock is None
    assert traced(SAMPLES / "qemu-linux.log.zst")[1].clock is None


def test_hostile_text_is_spelled_out() -> None:
    trace = trace_of(tiny_analysis.hostile())
    texts = [track.name for track in trace.tracks.values()]
    for one in [*trace.slices, *trace.instants]:
        texts.append(one.name)
        for value in one.args.values():
            texts += [value] if isinstance(value, str) else value if isinstance(value, list) else []

    assert len(texts) > 20
    assert all(text.isprintable() for text in texts)


def test_what_is_not_known_is_said_and_closed() -> None:
    analysis = copy(analysis_of(SAMPLES / "6.12-double-delivery.dat"))
    obs = analysis.observations = copy(analysis.observations)
    first, second = obs.fills["seq"][:2]
    gone = pl.col("seq").is_in([first])
    early = pl.col("seq") == second
    obs.fills = obs.fills.with_columns(
        end_ns=pl.when(early).then(pl.col("time_ns") - 5).when(~gone).then("end_ns"),
        lr=pl.when(~gone).then("lr"),
        vcpu=pl.when(~gone).then("vcpu"),
    )
    trace = trace_of(analysis)
    shown = {one.args["seq"]: one for one in trace.slices if one.path[-1].startswith("LR ")}

    assert shown[first].path[-2:] == ("vCPU ?", "LR ?")
    assert shown[first].end_ns == obs.vms["end_ns"][0]
    assert "no end was recorded" in shown[first].args["note"]
    assert shown[second].end_ns == shown[second].begin_ns
    assert "before it began" in shown[second].args["note"]


def test_a_lost_exit_is_no_stay_in_the_guest() -> None:
    analysis, trace = traced(SAMPLES / "6.12-lost-records.dat")
    runs = analysis.observations.runs.frame()
    lost = runs.filter(pl.col("exit_ns").is_null())
    last = runs.group_by("vm", "vcpu").agg(pl.col("enter_seq").last())
    assert lost.height
    for seq in lost["enter_seq"]:
        (one,) = [each for each in trace.slices if each.name == "in guest" and each.args["seq"] == seq]
        assert "note" in one.args
        assert one.end_ns == one.begin_ns or seq in last["enter_seq"]


def test_how_much_is_encoded_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = analysis_of(SAMPLES / "6.12-double-delivery.dat")
    whole, parts = BytesIO(), BytesIO()
    write_trace(analysis, whole)
    monkeypatch.setattr(packets, "_CHUNK", 7)
    write_trace(analysis, parts)

    assert parts.getvalue() == whole.getvalue()


@given(
    st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.booleans(), st.integers(0, 2**64 - 1), st.booleans()),
        min_size=1,
    )
)
def test_a_column_of_messages_is_each_message(values: list[tuple[int, bool, int, bool]]) -> None:
    signed, has, bits, inside = (list(each) for each in zip(*values, strict=True))
    inner = protobuf.Rows(len(values))
    inner.number(1, np.array(signed, np.int64), np.array(has))
    inner.number(2, 300)
    whole = protobuf.Rows(len(values))
    whole.message(11, inner, np.array(inside))
    whole.fixed64(47, np.array(bits, np.uint64), np.array(has))
    whole.number(3, np.array(bits, np.uint64))

    def one(number: int, there: bool, wide: int, within: bool) -> bytes:
        content = (protobuf.number(1, number) if there else b"") + protobuf.number(2, 300)
        found = protobuf.block(11, content) if within else b""
        if there:
            found += protobuf.key(47, protobuf.FIXED64) + wide.to_bytes(8, "little")
        return found + protobuf.number(3, wide)

    assert whole.encode() == b"".join(one(*value) for value in values)
