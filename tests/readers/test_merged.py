"""Several captures as one: taken apart and put together again they are what they were; what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
import pytest
from conftest import SAMPLES
from helpers.parts import Part

from itstrace import analyze
from itstrace.errors import UsageError
from itstrace.observe import observe
from itstrace.readers import open_capture, open_captures
from itstrace.readers.base import EventField
from itstrace.readers.merged import MergedCapture, weave
from itstrace.readers.tracedat import TraceDat
from itstrace.report.json import analysis_document

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from itstrace.readers.base import Block, EventFormat, Wanted

DOUBLE = SAMPLES / "6.12-double-delivery.dat"
LOST = SAMPLES / "6.12-lost-lpi.dat"
MID_NS = 1_349_000_000_000


def _parts(path: Path, *keeps: pl.Expr) -> list[Part]:
    return [Part(path, keep, f"part{i}") for i, keep in enumerate(keeps)]


HALVES = {
    "by CPU": (pl.col("cpu") == 0, pl.col("cpu") != 0),
    "by time": (pl.col("time_ns") < MID_NS, pl.col("time_ns") >= MID_NS),
    "by event": (pl.col("event").str.starts_with("its:"), ~pl.col("event").str.starts_with("its:")),
    "by task": (pl.col("pid") % 2 == 0, pl.col("pid") % 2 != 0),
    "in three": tuple(pl.col("time_ns") // 1_000_000 % 3 == i for i in range(3)),
    "overlapping": (pl.col("time_ns") < MID_NS + 10**9, pl.col("time_ns") >= MID_NS - 10**9),
}


def _rows(capture: Any) -> dict[str, pl.DataFrame]:
    """Every event of a capture without its ranks, and the order of all of them."""
    blocks = list(capture.blocks(dict.fromkeys(capture.formats)))
    rows = {
        name: pl.concat([block[name] for block in blocks if name in block])
        for name in sorted({name for block in blocks for name in block})
    }
    order = pl.concat(
        [frame.select("seq", "time_ns", "cpu", pl.lit(name).alias("event")) for name, frame in rows.items()]
    ).sort("seq")
    assert order["seq"].is_unique().all()
    assert order["time_ns"].is_sorted()
    found = {name: frame.drop("seq") for name, frame in rows.items() if frame.height}
    return found | {"order": order.drop("seq")}


@pytest.mark.parametrize("how", HALVES)
def test_parts_put_together_are_the_whole(how: str) -> None:
    with open_capture(DOUBLE) as whole, MergedCapture(_parts(DOUBLE, *HALVES[how])) as merged:
        expected, found = _rows(whole), _rows(merged)

        assert found.keys() == expected.keys()
        for name, frame in expected.items():
            if name == "order" and how in ("by event", "by task", "in three"):
                # At one instant of one CPU the parts are in no order that any clock could tell.
                assert found[name].drop("event").equals(frame.drop("event"))
            else:
                assert found[name].equals(frame), name
        assert merged.counts().equals(whole.counts())
        assert merged.span() == whole.span()
        assert merged.comms == whole.comms
        assert merged.gaps().equals(whole.gaps())


@pytest.mark.parametrize("path", [DOUBLE, LOST], ids=lambda path: path.stem)
@pytest.mark.parametrize("how", ["by CPU", "by event", "overlapping"])
def test_the_analysis_of_the_parts_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, path: Path, how: str
) -> None:
    expected = analysis_document(analyze(path))
    with open_capture(path) as whole:
        start_ns, end_ns = whole.span()
    assert start_ns is not None
    assert end_ns is not None
    moved = (start_ns + end_ns) // 2 - MID_NS
    keeps = HALVES[how]
    if how == "overlapping":
        keeps = (pl.col("time_ns") < MID_NS + moved + 10**9, pl.col("time_ns") >= MID_NS + moved - 10**9)
    merged = MergedCapture(_parts(path, *keeps))
    monkeypatch.setattr("itstrace.analysis.open_captures", lambda _: merged)
    found = analysis_document(analyze([path, path]))

    assert found["capture"].pop("format").startswith("2 captures")
    assert [place.endswith(("part0", "part1")) for place in found["capture"].pop("paths")] == [True, True]
    for key in ("path", "notes"):
        found["capture"].pop(key)
    for key in ("path", "paths", "format", "notes"):
        expected["capture"].pop(key)
    assert found == expected


def test_what_two_recorders_wrote_down_counts_once() -> None:
    """The second lacks some records of one event, and has some of its own: the fuller one is kept, task by task."""
    fuller = pl.lit(value=True)
    thinner = (pl.col("event") != "kvm:kvm_exit") | (pl.col("time_ns") % 3 == 0)
    with open_capture(DOUBLE) as whole, MergedCapture(_parts(DOUBLE, thinner, fuller)) as merged:
        lost = whole.counts().filter(event="kvm:kvm_exit")["records"].sum()

        assert merged.counts().equals(whole.counts())
        assert merged.read("kvm_exit").drop("seq").equals(whole.read("kvm_exit").drop("seq"))
        assert merged.read("its_cmd").drop("seq").equals(whole.read("its_cmd").drop("seq"))
        assert len(merged.info.notes) == 2
        assert "of kvm:kvm_exit" in merged.info.notes[0]
        assert f"{lost:,} of kvm:kvm_exit" not in merged.info.notes[0]
        assert "left out that another capture has too" in merged.info.notes[1]


def test_recorders_that_shared_one_pipe_have_each_its_own_records() -> None:
    """The same events, CPUs and tasks, page by page in turn: nothing of it may be left out."""
    turns = pl.col("time_ns") // 50_000_000 % 2
    with open_capture(DOUBLE) as whole, MergedCapture(_parts(DOUBLE, turns == 0, turns == 1)) as merged:
        assert merged.counts().equals(whole.counts())
        assert merged.info.notes == []


def test_stamps_of_two_recorders_lie_a_little_apart() -> None:
    """The second recorder's handler runs after the first one's."""
    later = Part(DOUBLE, pl.lit(value=True), "later")
    blocks = later.blocks

    def moved(wanted: Wanted) -> Iterator[Block]:
        for block in blocks(wanted):
            yield {
                name: frame.with_columns(time_ns=pl.col("time_ns") + 2000 + pl.col("time_ns") % 3000)
                for name, frame in block.items()
            }

    later.blocks = moved  # type: ignore[method-assign]
    with open_capture(DOUBLE) as whole, MergedCapture([Part(DOUBLE, pl.lit(value=True)), later]) as merged:
        kept, all_of_it = merged.counts()["records"].sum(), whole.counts()["records"].sum()

        assert all_of_it <= kept <= all_of_it + 5  # what lies behind the last record of the first


def test_the_same_file_twice_is_the_file(tmp_path: Path) -> None:
    copy = tmp_path / "copy.dat"
    copy.write_bytes(DOUBLE.read_bytes())
    once, twice = analyze(DOUBLE), analyze([DOUBLE, copy])

    assert [f.code for f in twice.findings] == [f.code for f in once.findings]
    assert twice.counts.equals(once.counts)
    assert twice.lives.lives.height == once.lives.lives.height
    assert f"{once.counts['records'].sum():,} records left out" in twice.info.notes[0]
    assert analysis_document(twice)["capture"]["paths"] == [str(DOUBLE), str(copy)]


def test_losses_of_a_part_that_another_makes_up_for_are_none() -> None:
    whole = SAMPLES / "6.12-lost-records.dat"
    with open_captures([whole, whole]) as merged, open_capture(whole) as once:
        assert merged.gaps().equals(once.gaps())
        assert merged.gaps().height > 0


def test_where_a_recorder_had_stopped_records_are_missing() -> None:
    """One part ends early: what it recorded is unknown from there on, and that is said as lost records are."""
    its = pl.col("event").str.starts_with("vgic:") & (pl.col("time_ns") < MID_NS)
    rest = pl.col("event").str.starts_with("kvm:")
    parts = _parts(DOUBLE, its | (rest & (pl.col("time_ns") < MID_NS)), rest & (pl.col("time_ns") >= MID_NS))
    with MergedCapture(parts) as merged:
        end_ns = merged.span()[1]
        merged.read("kvm:kvm_exit")
        assert merged.gaps().is_empty()
        merged.read("vgic:populate_lr")
        gaps = merged.gaps()

        assert gaps["to_ns"].to_list() == [end_ns, end_ns]
        assert gaps["cpu"].to_list() == [0, 1]
        assert gaps["lost"].to_list() == [None, None]
        assert all(MID_NS - 10**8 < at < MID_NS for at in gaps["from_ns"])


def test_damage_names_its_file(tmp_path: Path) -> None:
    cut = tmp_path / "cut.dat"
    content = bytearray(DOUBLE.read_bytes())
    with TraceDat.open(DOUBLE) as whole:
        pages = whole._container.buffers[0].cpus[0]
    content[pages.offset_bytes + 100 : pages.offset_bytes + 400] = bytes(300)
    cut.write_bytes(content)
    with open_captures([cut, DOUBLE]) as merged:
        assert merged.damage()
        assert all(place.problem.startswith("cut.dat: ") for place in merged.damage())


# -- what does not go together -------------------------------------------------------------------------------

EVEN, ODD = pl.col("time_ns") % 2 == 0, pl.col("time_ns") % 2 == 1


def _merge(**other: Any) -> MergedCapture:
    return MergedCapture([Part(DOUBLE, EVEN, "one.dat"), Part(DOUBLE, ODD, "other.dat", **other)])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"clock": "local"}, ["'mono'", "'local'", "one.dat", "other.dat", "-C mono", "-k CLOCK_MONOTONIC"]),
        ({"clock": "perf"}, ["'mono'", "'perf'"]),
        ({"clock": "boot"}, ["'mono'", "'boot'"]),
        ({"clock": "mono_raw"}, ["'mono'", "'mono_raw'"]),
        ({"kernel": "7.3.4"}, ["kernel 6.12.107", "7.3.4"]),
        ({"arch": "x86_64"}, ["architecture", "x86_64"]),
        ({"uname": "Linux elsewhere 6.12 x aarch64"}, ["host", "elsewhere"]),
        ({"options": {"synchronised with": "trace id 0x1"}}, ["inside a guest"]),
        ({"options": {"DATE": "17"}}, ["moved by different amounts"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_of_another_recording_is_refused(other: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        _merge(**other)

    assert [word for word in words if word not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("one", "other"), [("local", "perf"), ("global", "local"), ("mono", "CLOCK_MONOTONIC")]
)
def test_clocks_that_count_the_same_are_one(one: str, other: str) -> None:
    with MergedCapture([Part(DOUBLE, EVEN, clock=one), Part(DOUBLE, ODD, clock=other)]) as merged:
        assert merged.info.clock == one
        assert merged.info.notes == []


def test_a_clock_without_a_name_is_believed_where_the_times_fit() -> None:
    with _merge(clock=None) as merged:
        assert "other.dat does not name its clock" in merged.info.notes[0]
        assert merged.info.clock == "mono"


def test_a_clock_without_a_name_is_not_believed_across_a_gap() -> None:
    early, late = pl.col("time_ns") < MID_NS, pl.col("time_ns") >= MID_NS + 10**9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("itstrace.readers.merged.agree._CLOSE_NS", 10**9)
        with pytest.raises(UsageError, match=r"b\.dat begins 1\.\d+ s after the end of .*a\.dat"):
            MergedCapture([Part(DOUBLE, early, "a.dat", clock=None), Part(DOUBLE, late, "b.dat", clock=None)])


# -- as other readers tell it --------------------------------------------------------------------------------


class _AsText(Part):
    """The same as text tells it: no systems, numbers of 64 bits, one field under another type and one unknown."""

    _OTHER: ClassVar = {"kvm_exit": ("s64", pl.Int64()), "populate_lr": ("unsigned long", pl.UInt64())}

    def __init__(self, path: Path, keep: pl.Expr) -> None:
        super().__init__(path, keep, "text", clock=None, kernel=None, uname=None, arch=None)
        self._own = self.formats
        self.formats = {
            event.name: self._told(event) for event in self._own.values() if event.name in self._OTHER
        }

    def _told(self, event: EventFormat) -> EventFormat:
        c_type, dtype = self._OTHER[event.name]
        fields = tuple(replace(each, c_type=c_type, dtype=dtype) for each in event.fields[:-1])
        more = EventField("told", "s64", 0, 8, True, pl.Int64())
        return replace(event, system="", fields=(*fields, more), print_fmt="")

    def blocks(self, wanted: Any) -> Iterator[Block]:
        chosen = {event.full_name: (event, wanted(event)) for event in self.formats.values()}
        full = {event.name: event.full_name for event in self._own.values()}
        ask = {full[name]: None for name, (_, fields) in chosen.items() if fields is not None}
        for block in super().blocks(ask):
            told: Block = {}
            for name, (_, fields) in chosen.items():
                if fields is not None:
                    frame = block[full[name]].with_columns(told=pl.lit(5, pl.Int64))
                    columns = [pl.col(each.name).cast(each.dtype, wrap_numerical=True) for each in fields]
                    told[name] = frame.select("seq", "time_ns", "cpu", "pid", *columns)
            yield told


def test_events_that_text_tells_without_their_system_are_those_of_the_kernel() -> None:
    with (
        open_capture(DOUBLE) as whole,
        MergedCapture([_AsText(DOUBLE, pl.col("cpu") == 0), Part(DOUBLE, pl.col("cpu") == 1)]) as merged,
    ):
        expected, found = whole.read("populate_lr"), merged.read("vgic:populate_lr")
        known = [each.name for each in whole.formats["vgic:populate_lr"].fields]
        mixed = found.filter(cpu=0)

        assert "populate_lr" not in merged.formats
        assert found.columns == [*expected.columns, "told"]
        assert found.select(expected.columns).dtypes == expected.dtypes
        same = [name for name in expected.columns if name not in ("seq", known[-1])]
        assert found.select(same).equals(expected.select(same))
        assert mixed[known[-1]].is_null().all()
        assert set(mixed["told"]) == {5}
        assert found.filter(cpu=1)["told"].is_null().all()
        assert observe(merged).records["fill"] == observe(whole).records["fill"]


# -- bounded memory ------------------------------------------------------------------------------------------


def _stream(times: list[list[int]], cpu: int, live: list[int]) -> Iterator[Block]:
    for i, block in enumerate(times):
        live[cpu] = i
        frame = pl.DataFrame(
            {"seq": range(len(block)), "time_ns": block, "cpu": cpu, "pid": 1},
            schema={"seq": pl.UInt64, "time_ns": pl.Int64, "cpu": pl.UInt16, "pid": pl.Int32},
        )
        yield {"e": frame}


def test_no_stream_runs_ahead_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weave, "_ENOUGH_ROWS", 1)
    live = [0, 0]
    dense = [[i * 10 + j for j in range(10)] for i in range(100)]
    sparse = [[i * 500, i * 500 + 1] for i in range(2)]
    seen: list[int] = []
    for block in weave.weave([_stream(dense, 0, live), _stream(sparse, 1, live)]):
        seen += block["e"]["time_ns"].to_list()
        if seen[-1] < 480:
            assert live[0] * 10 <= seen[-1] + 20
            assert live[1] <= 1

    assert seen == sorted([t for block in dense + sparse for t in block])


def test_one_instant_without_end_is_given_out_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weave, "_ENOUGH_ROWS", 10)
    monkeypatch.setattr(weave, "_TOO_MANY_ROWS", 50)
    blocks = [
        block["e"]
        for block in weave.weave([_stream([[7] * 10] * 50, 0, [0]), _stream([[7] * 10] * 3, 1, [0, 0])])
    ]

    assert sum(block.height for block in blocks) == 530
    assert max(block.height for block in blocks) < 100
    assert pl.concat(blocks)["seq"].to_list() == list(range(530))


def test_parts_that_lie_far_apart_are_said_to() -> None:
    """Two recordings of one host on one clock: that they are of one boot is taken for granted, and said."""
    with open_captures([SAMPLES / "6.12-clean.dat", SAMPLES / "6.12-double-delivery.dat"]) as capture:
        assert any("after the end of" in note and "same boot" in note for note in capture.info.notes)
