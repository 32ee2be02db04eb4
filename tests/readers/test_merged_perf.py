"""trace.dat and perf.data together: merged on one clock, refused on two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from itstrace.errors import UsageError
from itstrace.readers import open_capture, open_captures

if TYPE_CHECKING:
    from pathlib import Path


def test_a_trace_and_a_perf_data_of_other_clocks_are_refused(corpus: Path) -> None:
    forms = corpus / "forms-6.12"

    with pytest.raises(UsageError) as refused:
        open_captures([forms / "local-none.dat.zst", forms / "perf-mono.data"])

    said = str(refused.value)
    assert "'local'" in said
    assert "'mono'" in said
    assert "trace-cmd record -C mono" in said
    assert "perf record -k CLOCK_MONOTONIC" in said


def test_ftraces_clock_and_perfs_own_are_one(corpus: Path) -> None:
    forms = corpus / "forms-6.12"
    paths = [forms / "local-none.dat.zst", forms / "perf.data.zst"]
    with open_captures(paths) as merged, open_capture(paths[0]) as trace, open_capture(paths[1]) as perf:
        assert merged.span() == (trace.span()[0], perf.span()[1])
        assert merged.info.format == "2 captures: trace.dat v7 none + perf.data"
        name = "vgic:populate_lr"
        assert merged.read(name).height == trace.read(name).height + perf.read(name).height
        # Between the two nobody recorded anything, for four minutes.
        assert trace.span()[1] in merged.gaps()["from_ns"].to_list()


def test_a_folder_of_unlike_captures_is_refused_with_a_list(corpus: Path) -> None:
    with pytest.raises(UsageError, match="holds 8 captures, and not all are parts of one") as refused:
        open_capture(corpus / "forms-6.12")

    assert "perf-lost.data  perf.data, 1528.897318 to 1532.342642, clock perf" in str(refused.value)
