"""Every sample of real captures, compared with what perf script makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES
from helpers.perf_script import all_samples, read_script, words

from itstrace import analyze
from itstrace.readers import open_capture
from itstrace.readers.perfdata import PerfData

if TYPE_CHECKING:
    from pathlib import Path

#: libtraceevent cannot read this event's print format, and prints its fields one by one.
FIELD_BY_FIELD = frozenset({"kvm:kvm_sys_access"})
#: libtraceevent prints a pointer to a string that the capture does not hold without its 0x.
BARE_POINTERS = frozenset({"kvm:kvm_arm_set_dreg32"})

CAPTURES = {
    "perf.data.zst": "perf-script--guest-code.txt.zst",
    "perf-mono.data": "perf-mono-script--guest-code.txt.zst",
    "perf-lost.data": "perf-lost-script--guest-code.txt.zst",
}


def _plain(event: str, text: str) -> list[str]:
    found = words(text)
    if event in FIELD_BY_FIELD:
        pairs = (word.split("=") for word in found)
        return [f"{name}={int(value, 0)}" for name, value in pairs]
    if event in BARE_POINTERS:
        return [word.removeprefix("0x") for word in found]
    return found


@pytest.mark.corpus
@pytest.mark.parametrize("name", CAPTURES)
def test_every_sample_is_what_perf_script_prints(corpus: Path, name: str) -> None:
    folder = corpus / "forms-6.12"
    _compare(folder / name, folder / CAPTURES[name])


def test_the_sample_is_what_perf_script_prints() -> None:
    _compare(SAMPLES / "6.12-perf.data.zst", SAMPLES / "6.12-perf-script.txt.zst")


def _compare(data: Path, script: Path) -> None:
    theirs = read_script(script)
    with PerfData.open(data) as capture:
        ours = all_samples(capture, field_by_field=FIELD_BY_FIELD)

        assert capture.damage() == []
        assert capture.disorder() == 0
        assert ours.height == theirs.height > 6000
        assert ours["seq"].to_list() == list(range(theirs.height))
        assert ours["event"].to_list() == theirs["event"].to_list()
        assert ours["cpu"].to_list() == theirs["cpu"].to_list()
        assert ours["pid"].to_list() == theirs["tid"].to_list()
        assert (ours["time_ns"] // theirs["unit_ns"]).to_list() == theirs["time"].to_list()
        different = [
            (event, mine, text)
            for event, mine, text in zip(theirs["event"], ours["text"], theirs["text"], strict=True)
            if _plain(event, mine) != _plain(event, text)
        ]
        assert different == []
        # In a vCPU's thread perf script names the guest instead of the thread.
        named = theirs.filter(~pl.col("comm").str.starts_with("[guest/"))
        assert {(tid, comm) for tid, comm in named.select("tid", "comm").iter_rows()} <= set(
            capture.comms.items()
        )

        counts = capture.counts().select("event", "cpu", pl.col("records").cast(pl.Int64))
        expected = theirs.group_by("event", "cpu").len("records").cast({"records": pl.Int64})
        assert counts.rows() == expected.sort("event", "cpu").rows()


@pytest.mark.corpus
def test_times_are_whole_nanoseconds(corpus: Path) -> None:
    """The reference prints the samples outside of vCPU threads to the nanosecond."""
    folder = corpus / "forms-6.12"
    theirs = read_script(folder / "perf-mono-script-ns.txt")
    with PerfData.open(folder / "perf-mono.data") as capture:
        ours = all_samples(capture).select(
            pl.col("time_ns").alias("time"), "cpu", pl.col("pid").alias("tid"), "event"
        )

    assert theirs["unit_ns"].unique().to_list() == [1]
    assert theirs.join(ours, on=["time", "cpu", "tid", "event"], how="anti").rows() == []
    assert theirs.height == 357


@pytest.mark.corpus
def test_what_the_header_says(corpus: Path) -> None:
    """Compare with perf-header.txt, and with the options that the recordings were made with."""
    folder = corpus / "forms-6.12"
    header = dict(
        line[2:].split(" : ", 1)
        for line in (folder / "perf-header.txt").read_text().splitlines()
        if " : " in line and not line.startswith("# event")
    )
    with open_capture(folder / "perf.data.zst") as capture:
        info = capture.info
        assert isinstance(capture, PerfData)
    with open_capture(folder / "perf-mono.data") as mono:
        assert mono.info.clock == "mono"

    assert info.format == "perf.data"
    assert info.kernel == header["os release"]
    assert info.arch == header["arch"]
    assert info.cpus == int(header["nrcpus avail"])
    assert info.options["perf"] == header["perf version"]
    assert info.options["command line"] == header["cmdline"].strip()
    assert info.clock == "perf"


@pytest.mark.corpus
def test_losses_are_those_that_perf_script_tells(corpus: Path) -> None:
    """The reference lists them but for those told in vCPU threads; each lies between two samples of its CPU."""
    folder = corpus / "forms-6.12"
    told = [line.split() for line in (folder / "perf-lost.lost.txt").read_text().splitlines()]
    with PerfData.open(folder / "perf-lost.data") as capture:
        gaps = capture.gaps()
        ours = all_samples(capture)
    found = {(row["cpu"], row["to_ns"] // 1000, row["lost"]) for row in gaps.iter_rows(named=True)}

    for words_of_line in told:
        cpu, lost = int(words_of_line[-5].strip("[]")), int(words_of_line[-1])
        time_us = int(words_of_line[-4].rstrip(":").replace(".", ""))
        assert any(
            each_cpu == cpu and each_lost == lost and 0 <= time_us - to_us < 1000
            for each_cpu, to_us, each_lost in found
        ), words_of_line
    for row in gaps.iter_rows(named=True):
        within = ours.filter(
            (pl.col("cpu") == row["cpu"]) & pl.col("time_ns").is_between(row["from_ns"], row["to_ns"], "none")
        )
        assert within.is_empty(), row


@pytest.mark.corpus
def test_a_whole_analysis(corpus: Path) -> None:
    """The analysis counts what the reference's text counts."""
    folder = corpus / "forms-6.12"
    theirs = read_script(folder / "perf-mono-script--guest-code.txt.zst")
    analysis = analyze(folder / "perf-mono.data")
    commands = theirs.filter(pl.col("event") == "its:its_cmd", pl.col("text").str.contains(" len=32 "))
    lpis = theirs.filter(
        pl.col("event") == "vgic:queue_irq",
        pl.col("text").str.extract(r"intid=(\d+)").cast(pl.Int64) >= 8192,
    )
    injected = theirs.filter(pl.col("event") == "its:its_inject_msi")

    assert analysis.observations.commands.height == commands.height > 0
    assert analysis.observations.queueings.height == lpis.height > 0
    assert (
        analysis.observations.injections.filter(pl.col("from_command").is_null()).height
        == injected.height
        > 0
    )
    assert analysis.damage == []
