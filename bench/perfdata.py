#!/usr/bin/env python3
"""Measure the reading of a large perf.data, beside `perf script` where the machine's perf can read it; print Markdown.

The file is a real one whose samples are repeated, each time later than before. Reading means all headers, and the
fields that observations are made of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[1]
SAMPLE, FINISHED_ROUND = 9, 68
#: IDENTIFIER, IP, TID, TIME: where perf record -a with several events puts the time
TIME_AT: Final = 32
REAL_SAMPLE_TYPE: Final = 0x10000 | 1 | 2 | 4 | 0x80 | 0x100 | 0x400


def make(base: Path, out: Path, samples: int) -> int:
    """Write a file of at least so many samples, with the base's own rounds; give how many there are."""
    raw = base.read_bytes()
    data_at, data_size = struct.unpack_from("<QQ", raw, 40)
    attrs_at, _ = struct.unpack_from("<QQ", raw, 24)
    if raw[:8] != b"PERFILE2" or struct.unpack_from("<Q", raw, attrs_at + 24)[0] != REAL_SAMPLE_TYPE:
        raise SystemExit(f"{base}: give a little-endian file of `perf record -a` with several events")
    keep, starts, size, at = [], [], 0, data_at
    while at < data_at + data_size:
        kind, _, length = struct.unpack_from("<IHH", raw, at)
        if kind in (SAMPLE, FINISHED_ROUND):
            if kind == SAMPLE:
                starts.append(size)
            keep.append(raw[at : at + length])
            size += length
        at += length
    block = bytearray(b"".join(keep))
    # A view of the times, wherever in the block they stand: all records are whole words.
    words = np.frombuffer(block, "<u8")
    places = (np.array(starts) + TIME_AT) // 8
    span = int(words[places].max() - words[places].min()) + 1000
    count = -(-samples // len(places))
    features_at = data_at + data_size
    moved = (count - 1) * size + (size - data_size)
    head = bytearray(raw[:data_at])
    struct.pack_into("<Q", head, 48, count * size)
    index = bytearray(raw[features_at:])
    bits = int.from_bytes(raw[72:104], "little").bit_count()
    for i in range(bits):
        (place,) = struct.unpack_from("<Q", index, 16 * i)
        struct.pack_into("<Q", index, 16 * i, place + moved)
    with out.open("wb") as file:
        file.write(head)
        for _ in range(count):
            file.write(block)
            words[places] += np.uint64(span)
        file.write(index)
    return count * len(places)


def read(path: Path) -> None:
    """Read a file in this process; print seconds of CPU and what was kept, as JSON."""
    sys.path.insert(0, str(ROOT))
    from itstrace.observe.collect import collect  # noqa: PLC0415 - what importing costs is not reading
    from itstrace.readers import open_capture  # noqa: PLC0415

    begun = time.process_time()
    with open_capture(path) as capture:
        raw = collect(capture)
        wanted_s = time.process_time() - begun
        begun = time.process_time()
        for _ in capture.blocks({}):
            pass
        headers_s = time.process_time() - begun
        counted = int(capture.counts()["records"].sum())
        kept = sum(frame.height for frame in raw.frames.values())
        print(json.dumps([wanted_s, headers_s, counted, kept, len(capture.damage())]))


def script_seconds(path: Path) -> float | str:
    """Run `perf script` on a file; give its CPU time, or why it could not read it."""
    if shutil.which("perf") is None:
        return "perf is not installed"
    before = os.times()
    run = subprocess.run(
        ["perf", "script", "-f", "-i", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    after = os.times()
    if run.returncode:
        lines = run.stderr.decode("utf-8", "replace").strip().splitlines()
        return f"perf script cannot read it: {lines[-1] if lines else run.returncode}"
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description="Measure the reading of a large perf.data.")
    parser.add_argument(
        "base", type=Path, nargs="?", help="a perf.data of `perf record -a` with several events"
    )
    parser.add_argument(
        "--samples", type=int, default=3_000_000, help="how many samples at least (3,000,000)"
    )
    parser.add_argument("--runs", type=int, default=3, help="how often it is read (3)")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read is not None:
        read(args.read)
        return
    if args.base is None:
        parser.error("name the file to repeat")
    with tempfile.TemporaryDirectory(prefix="itstrace-bench-") as folder:
        big = Path(folder) / "big.data"
        samples = make(args.base, big, args.samples)
        runs = []
        for _ in range(args.runs):
            command = [sys.executable, __file__, "--read", str(big)]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        if {run[2] for run in runs} != {samples}:
            raise SystemExit(f"{samples} samples were written, {runs[0][2]} were read")
        theirs = script_seconds(big)
        size = big.stat().st_size
    print(
        f"{samples:,} samples, {size / 1e6:.0f} MB, repeated from {args.base.name}; best of {args.runs} runs\n"
    )
    print("| | CPU | samples per CPU second |\n| --- | --- | --- |")
    for i, what in enumerate(("headers and wanted fields", "headers alone")):
        best = min(run[i] for run in runs)
        print(f"| {what} | {best:.2f} s | {samples / best / 1e6:.2f} M |")
    if isinstance(theirs, str):
        print(f"\nNothing to compare with: {theirs}")
    else:
        print(f"| perf script | {theirs:.2f} s | {samples / theirs / 1e6:.2f} M |")


if __name__ == "__main__":
    main()
