#!/usr/bin/env python3
"""Measure `itstrace analyze` against `trace-cmd report` on one large capture; print the result as Markdown.

Both read the same file in turns, their output goes nowhere, and every number is the median of the runs. The
analysis is also run stage by stage in a process of its own, to say where its time goes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Final

import make_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from itstrace.findings import Finding
    from itstrace.rules import Case, Rule
    from itstrace.rules.registry import Check

ROOT: Final = make_capture.ROOT

#: What was promised: so many times less CPU time than trace-cmd report, and less anonymous memory than this.
WANTED_RATIO, WANTED_BYTES = 8.0, 1_000_000_000
SAMPLE_SECONDS: Final = 0.005
#: How the stages name a rule, and how many rules the table has.
RULE: Final = re.compile(r"[A-Z]{3}\d{3}$")
SHOWN_RULES: Final = 12


# -- measuring a process ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Usage:
    """What one process used. Memory is sampled: [monotonic time, anonymous bytes]."""

    user_s: float = 0.0
    system_s: float = 0.0
    wall_s: float = 0.0
    anonymous_bytes: int = 0
    resident_bytes: int = 0
    samples: list[tuple[float, int]] = field(default_factory=list)
    output: str = ""

    @property
    def cpu_s(self) -> float:
        """CPU time of all its threads, in user and kernel."""
        return self.user_s + self.system_s


def measure(command: Sequence[str], *, keep_output: bool = False) -> Usage:
    """Run a command to its end. The parts of the file that it maps count as resident, not as anonymous."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    usage = Usage()
    with tempfile.TemporaryFile() as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=output if keep_output else subprocess.DEVNULL,
            stderr=None if keep_output else subprocess.DEVNULL,
            env=environment,
            cwd=ROOT,  # where `python -m` looks first
        )
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, usage, ended))
        sampler.start()
        _, status, resources = os.wait4(process.pid, 0)
        usage.wall_s = time.monotonic() - begun
        ended.set()
        sampler.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
        usage.user_s, usage.system_s = resources.ru_utime, resources.ru_stime
        if keep_output:
            output.seek(0)
            usage.output = output.read().decode()
    return usage


def _sample(pid: int, usage: Usage, ended: threading.Event) -> None:
    """Watch a process's memory: the kernel's own peak (VmHWM) counts mapped file pages too."""
    while not ended.wait(SAMPLE_SECONDS):
        anonymous, peak = memory(pid)
        usage.samples.append((time.monotonic(), anonymous))
        usage.anonymous_bytes = max(usage.anonymous_bytes, anonymous)
        usage.resident_bytes = max(usage.resident_bytes, peak)


def memory(pid: int) -> tuple[int, int]:
    """Give a process's anonymous memory and its peak of resident memory, in bytes; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    parts = (line.partition(":") for line in lines)
    found = {name: int(rest.split()[0]) << 10 for name, _, rest in parts if name in ("RssAnon", "VmHWM")}
    return found.get("RssAnon", 0), found.get("VmHWM", 0)


# -- the stages of our own analysis, in a process of its own ---------------------------------------------


def stages(path: Path) -> None:
    """Run the analysis stage by stage; print each one's name, CPU seconds, begin and end as JSON."""
    rows: list[tuple[str, float, float, float]] = []
    rows.append(("Python, numpy", time.process_time(), 0.0, time.monotonic()))

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begun, cpu = time.monotonic(), time.process_time()
        yield
        rows.append((name, time.process_time() - cpu, begun, time.monotonic()))

    with stage("imports of itstrace"):
        from itstrace.analysis import Analysis  # noqa: PLC0415 - what importing costs is one of the numbers
        from itstrace.cli import app  # noqa: PLC0415, F401
        from itstrace.lives import live  # noqa: PLC0415
        from itstrace.observe import from_raw  # noqa: PLC0415
        from itstrace.observe.collect import collect  # noqa: PLC0415
        from itstrace.observe.identity import identify  # noqa: PLC0415
        from itstrace.readers import open_capture  # noqa: PLC0415
        from itstrace.replay import replay  # noqa: PLC0415
        from itstrace.report.json import analysis_document  # noqa: PLC0415
        from itstrace.report.layout import Sheet  # noqa: PLC0415
        from itstrace.report.terminal import report  # noqa: PLC0415
        from itstrace.rules import RULES, check  # noqa: PLC0415
    with stage("open"):
        capture = open_capture(path)
    with stage("observe.collect"):
        raw = collect(capture)
    with stage("observe.identify"):
        identity = identify(raw)
    with stage("observe.from_raw"):
        seen = from_raw(raw, identity)
    with stage("counts, gaps, damage"):
        info, counts, gaps, damage = capture.info, capture.counts(), capture.gaps(), capture.damage()
        start_ns, end_ns = capture.span()
    with stage("replay"):
        history = replay(seen, kernel=info.kernel)
    with stage("lives"):
        lives = live(seen, history)
    per_rule = _timed(RULES)
    with stage("rules"):
        findings, skipped = check(
            seen, history, lives, gaps=gaps, damage=damage, start_ns=start_ns, end_ns=end_ns
        )
    with stage("report, JSON"):
        analysis = Analysis(
            info, start_ns, end_ns, counts, gaps, damage, seen, history, lives, findings, skipped
        )
        text = json.dumps(analysis_document(analysis), indent=1)
        lines = [line.plain for line in report(Sheet(), analysis, lambda _: "", len(RULES))]
    assert text
    assert lines
    with stage("(headers alone)"):
        for _ in capture.blocks({}):
            pass
    capture.close()
    rows.extend((code, seconds, 0.0, 0.0) for code, seconds in per_rule.items())
    rows.append(("plotly loaded" if "plotly" in sys.modules else "", 0.0, 0.0, 0.0))
    print(json.dumps(rows))


def _timed(rules: dict[str, Rule]) -> dict[str, float]:
    """Make every rule note the CPU seconds that its check takes, and give them by code as they come in.

    What several rules share is made by the first of them that asks.
    """
    taken: dict[str, float] = {}

    def timed(code: str, check: Check) -> Check:
        @wraps(check)
        def measured(case: Case) -> Iterator[Finding]:
            begun = time.process_time()
            found = list(check(case))
            taken[code] = time.process_time() - begun
            return iter(found)

        return measured

    for code, rule in rules.items():
        rules[code] = replace(rule, check=timed(code, rule.check))
    return taken


# -- tables ----------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def comparison(ours: list[Usage], theirs: list[Usage], events: int) -> str:
    """Compare the two programs."""

    def median(runs: list[Usage], of: Callable[[Usage], float]) -> float:
        return statistics.median(of(run) for run in runs)

    def row(name: str, of: Callable[[Usage], float], show: Callable[[float], str]) -> list[str]:
        mine, other = median(ours, of), median(theirs, of)
        return [name, show(mine), show(other), f"{other / mine:.1f}"]

    def spread(of: Callable[[Usage], float]) -> list[str]:
        def span(runs: list[Usage]) -> str:
            values = sorted(of(run) for run in runs)
            return f"{values[0]:.2f} to {values[-1]:.2f} s"

        return ["  its smallest and largest", span(ours), span(theirs), ""]

    rows = [
        row("CPU time", lambda run: run.cpu_s, lambda s: f"**{s:.2f} s**"),
        spread(lambda run: run.cpu_s),
        row("  in user mode", lambda run: run.user_s, lambda s: f"{s:.2f} s"),
        row("  in the kernel", lambda run: run.system_s, lambda s: f"{s:.2f} s"),
        row("wall time", lambda run: run.wall_s, lambda s: f"{s:.2f} s"),
        row("CPU time per million events", lambda run: run.cpu_s / events * 1e6, lambda s: f"{s:.3f} s"),
        row("peak anonymous memory", lambda run: run.anonymous_bytes, lambda n: f"**{n / 1e6:.0f} MB**"),
        row(
            "peak resident (with mapped file)", lambda run: run.resident_bytes, lambda n: f"{n / 1e6:.0f} MB"
        ),
    ]
    mine, other = (events / median(runs, lambda run: run.cpu_s) / 1e6 for runs in (ours, theirs))
    rows.append(["events per CPU second", f"{mine:.2f} M", f"{other:.2f} M", f"{other / mine:.2f}"])
    ratio = median(theirs, lambda run: run.cpu_s) / median(ours, lambda run: run.cpu_s)
    peak = max(run.anonymous_bytes for run in ours)
    met = ratio >= WANTED_RATIO and peak < WANTED_BYTES
    return (
        table(["", "itstrace analyze", "trace-cmd report", "theirs / ours"], rows)
        + f"\n\nAsked for: {WANTED_RATIO:.0f}x less CPU time and less than {WANTED_BYTES / 1e6:.0f} MB: "
        + ("met." if met else "not met.")
    )


def stage_table(runs: list[Usage]) -> str:
    """Say where our time goes."""
    parsed = [json.loads(run.output) for run in runs]
    names = [name for name, *_ in parsed[0] if name and name != "plotly loaded" and not RULE.match(name)]
    cpu = [statistics.median(rows[i][1] for rows in parsed) for i in range(len(names))]
    wall = [
        statistics.median(rows[i][3] - rows[i][2] if rows[i][2] else 0.0 for rows in parsed)
        for i in range(len(names))
    ]
    total = sum(seconds for name, seconds in zip(names, cpu, strict=True) if not name.startswith("("))
    body = []
    for i, name in enumerate(names):
        inside = [
            [held for when, held in run.samples if rows[i][2] <= when <= rows[i][3]]
            for run, rows in zip(runs, parsed, strict=True)
        ]
        peaks = [max(held) for held in inside if held]
        peak = f"{statistics.median(peaks) / 1e6:.0f} MB" if peaks else ""
        share = "" if name.startswith("(") else f"{cpu[i] / total:.0%}"
        body.append([name, f"{cpu[i]:.3f} s", share, f"{wall[i]:.3f} s" if wall[i] else "", peak])
    body.append(["all", f"{total:.3f} s", "", "", ""])
    plotly = "plotly was imported!" if any(rows[-1][0] for rows in parsed) else "plotly is not imported."
    return table(["stage", "CPU", "share", "wall", "peak anonymous"], body) + f"\n\n{plotly}"


def rule_table(runs: list[Usage]) -> str:
    """Say which rules the time goes to, and how much all of them take of the whole."""
    parsed = [json.loads(run.output) for run in runs]
    shares = [[seconds for name, seconds, *_ in rows if RULE.match(name)] for rows in parsed]
    whole = [
        sum(seconds for name, seconds, *_ in rows if not name.startswith("(") and not RULE.match(name))
        for rows in parsed
    ]
    by_rule: dict[str, list[float]] = {}
    for rows in parsed:
        for name, seconds, *_ in rows:
            if RULE.match(name):
                by_rule.setdefault(name, []).append(seconds)
    median = {name: statistics.median(seconds) for name, seconds in by_rule.items()}
    most = sorted(median, key=lambda name: -median[name])
    body = [[name, f"{median[name] * 1e3:.1f} ms"] for name in most[:SHOWN_RULES]]
    left = sum(median[name] for name in most[SHOWN_RULES:])
    body.append([f"{len(most[SHOWN_RULES:])} others", f"{left * 1e3:.1f} ms"])
    share = statistics.median(sum(one) / total for one, total in zip(shares, whole, strict=True))
    body.append([f"all {len(most)} that could run", f"{sum(median.values()) * 1e3:.1f} ms ({share:.1%})"])
    return table(["rule", "CPU"], body)


def machine() -> str:
    """Describe the machine and the versions measured."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    cpu = next(named, platform.machine())
    trace_cmd = _output("trace-cmd", "--version").split("(")[0].strip()
    commit = _output("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    names = ("polars", "numpy", "zstandard")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    what = f"{os.cpu_count()} CPUs, {cpu}, {memory_bytes / 1e9:.0f} GB, Linux {platform.release()}"
    rows = [
        ["machine", what],
        ["Python", f"{platform.python_version()}, {versions}"],
        ["compared with", trace_cmd],
        ["itstrace", f"commit {commit}"],
    ]
    return table(["", ""], rows)


def _output(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, check=False, text=True)
    return next(iter(run.stdout.strip().splitlines()), "unknown")


# -- the command -----------------------------------------------------------------------------------------


def _warm(path: Path) -> None:
    """Bring the file into the page cache, so that no run waits for the disk."""
    with path.open("rb", buffering=0) as file:
        while file.read(16 << 20):
            pass


def run(args: argparse.Namespace, folder: Path) -> None:
    """Build the capture, measure and print."""
    if shutil.which("trace-cmd") is None:
        raise SystemExit("trace-cmd is not installed, there is nothing to compare with")
    base = (args.base or make_capture.default_base()).resolve()
    capture, compression = folder / "big.dat", make_capture.compression_of(args)
    made = make_capture.make(capture, args.events, base, args.format, compression)
    result = str(folder / "result.json")
    itstrace = [sys.executable, "-m", "itstrace.cli", "analyze", str(capture), "--json", result]
    ours: list[Usage] = []
    theirs: list[Usage] = []
    staged: list[Usage] = []
    for i in range(args.runs):
        print(f"run {i + 1} of {args.runs}", file=sys.stderr)
        for command, runs, keep in (
            (itstrace, ours, False),
            ([sys.executable, __file__, "--stages", str(capture)], staged, True),
            (["trace-cmd", "report", "-i", str(capture)], theirs, False),
        ):
            _warm(capture)
            runs.append(measure(command, keep_output=keep))
    print(f"## {made.events:,} events, repeated from `{base.parent.name}/{base.name}`\n")
    print(f"{made.size_bytes / 1e6:.0f} MB, {args.format} {compression}; the base has {made.base_events:,}.")
    print(f"Medians of {args.runs} runs, in turns.\n")
    print(comparison(ours, theirs, made.events), end="\n\n")
    print("Where the time of `itstrace analyze` goes, in a process that runs it stage by stage:\n")
    print(stage_table(staged), end="\n\n")
    print("What each rule takes; what several share is counted with the first that asks for it:\n")
    print(rule_table(staged), end="\n\n")
    print(machine())


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description="Measure itstrace analyze against trace-cmd report.")
    make_capture.arguments(parser)
    parser.add_argument("--runs", type=int, default=3, help="how often each program runs (3)")
    parser.add_argument("--stages", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stages is not None:
        stages(args.stages)
        return
    with tempfile.TemporaryDirectory(prefix="itstrace-bench-") as folder:
        run(args, Path(folder))


if __name__ == "__main__":
    main()
