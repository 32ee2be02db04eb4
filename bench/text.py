#!/usr/bin/env python3
"""Measure the reading of a large text, beside the `trace-cmd report` that printed it; print the result as Markdown.

`make_capture.py` repeats a real trace.dat, trace-cmd prints it, and both are measured: the printing, and our
reading of what was printed - all lines, the fields that observations are made of, and the whole analysis.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import analyze
import make_capture

_STEPS = ("all lines, nothing decoded", "with the fields of observations", "the whole analysis, as JSON")


def read(path: Path) -> None:
    """Read a text in this process; print records, seconds of CPU for each step, and the peak of memory, as JSON."""
    from itstrace.analysis import analyze as whole  # noqa: PLC0415 - what importing costs is not reading
    from itstrace.observe.collect import collect  # noqa: PLC0415
    from itstrace.readers import open_capture  # noqa: PLC0415
    from itstrace.report.json import analysis_document  # noqa: PLC0415

    seconds = []
    with open_capture(path) as capture:
        begun = time.process_time()
        for _ in capture.blocks({}):
            pass
        seconds.append(time.process_time() - begun)
        records = int(capture.counts()["records"].sum())
    lines_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_capture(path) as capture:
        begun = time.process_time()
        collect(capture)
        seconds.append(time.process_time() - begun)
    begun = time.process_time()
    json.dumps(analysis_document(whole(path)))
    seconds.append(time.process_time() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([records, *seconds, lines_peak * 1024, peak * 1024]))


def run(args: argparse.Namespace, folder: Path) -> None:
    """Build the text, measure and print."""
    base = (args.base or make_capture.default_base()).resolve()
    capture, text = folder / "big.dat", folder / "big.txt"
    made = make_capture.make(capture, args.events, base, args.format, make_capture.compression_of(args))
    command = ["trace-cmd", "report", *args.report.split(), "-i", str(capture)]
    with text.open("wb") as out:
        subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, check=True)
    ours, theirs = [], []
    for i in range(args.runs):
        print(f"run {i + 1} of {args.runs}", file=sys.stderr)
        ours.append(
            json.loads(
                analyze.measure([sys.executable, __file__, "--read", str(text)], keep_output=True).output
            )
        )
        theirs.append(analyze.measure(command).cpu_s)
    if {one[0] for one in ours} != {made.events}:
        raise SystemExit(f"{made.events} records were printed, {ours[0][0]} were read")
    printing = statistics.median(theirs)
    size = text.stat().st_size
    print(
        f"## {made.events:,} lines of `{' '.join(command[:-2])}`, repeated from `{base.parent.name}/{base.name}`\n"
    )
    print(
        f"{size / 1e6:.0f} MB, {size / made.events:.0f} bytes a line. Medians of {args.runs} runs, in turns; one core.\n"
    )
    rows = [
        ["trace-cmd report, printing it", f"{printing:.2f} s", f"{made.events / printing / 1e6:.2f} M", "1.0"]
    ]
    for number, what in enumerate(_STEPS, 1):
        took = statistics.median(one[number] for one in ours)
        rows.append(
            [what, f"{took:.2f} s", f"**{made.events / took / 1e6:.2f} M**", f"{printing / took:.1f}"]
        )
    print(analyze.table(["", "CPU time", "lines per CPU second", "times faster"], rows))
    peaks = [max(one[number] for one in ours) / 1e6 for number in (4, 5)]
    print(
        f"\nPeak resident memory: {peaks[0]:.0f} MB for the lines alone, {peaks[1]:.0f} MB in all; the mapped file counts.\n"
    )
    print(analyze.machine())


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description="Measure the reading of text against trace-cmd report.")
    make_capture.arguments(parser)
    parser.add_argument("--runs", type=int, default=3, help="how often each program runs (3)")
    parser.add_argument("--report", default="", help="options of trace-cmd report, as --report=-R")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read is not None:
        read(args.read)
        return
    if shutil.which("trace-cmd") is None:
        raise SystemExit("trace-cmd is not installed, there is nothing to compare with")
    with tempfile.TemporaryDirectory(prefix="itstrace-bench-") as folder:
        run(args, Path(folder))


if __name__ == "__main__":
    main()
