"""The many ways in which a trace's text reaches somebody: whatever was done to its lines, the story stays the same."""

from __future__ import annotations

import gzip
import lzma
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import zstandard
from conftest import analysis_of
from helpers.same import differences

import itstrace
from itstrace.readers import open_capture
from itstrace.readers.text import TextCapture
from itstrace.report.events import Printer

if TYPE_CHECKING:
    from collections.abc import Callable

    from itstrace import Analysis

_SAMPLES = Path(__file__).parents[2] / "sample-traces"
_TRACE = _SAMPLES / "6.12-tracefs-trace.txt.zst"
_PIPE = _SAMPLES / "6.12-trace_pipe-lost.txt.zst"
_PERF = _SAMPLES / "6.12-perf-script-ns.txt.zst"
#: A line of tracefs: task, pid, CPU, flags, time, the rest.
_HEAD = re.compile(
    r"^ *(?P<comm>\S.*?)-(?P<pid>\d+) +\[(?P<cpu>\d+)\] (?P<flags>\S+) +(?P<time>\d+\.\d+): (?P<rest>.*)$"
)
_TASKS = {"qemu-system-aar": "a: 1.000000: b", "sh": "x-1 [001] d.."}


@cache
def _text(path: Path) -> str:
    with path.open("rb") as packed:
        return zstandard.ZstdDecompressor().stream_reader(packed).read().decode()


def _lines(change: Callable[[re.Match[str]], str]) -> str:
    """The trace with each event's line printed anew."""
    out = []
    for line in _text(_TRACE).splitlines():
        match = _HEAD.match(line)
        out.append(line if match is None else change(match))
    return "\n".join(out) + "\n"


def _written(folder: Path, text: str | bytes, name: str = "trace.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _analysis(folder: Path, text: str | bytes) -> Analysis:
    return itstrace.analyze(_written(folder, text))


_NOISE = (
    "              sh-4162    [001] .....  1473.960888: kvm_vcpu_load <-kvm_arch_vcpu_ioctl_run\n",
    " 1)   0.540 us    |  kvm_vcpu_load();\n",
    " 0)               |  /* kvm_entry: PC: 0x40000000 */\n",
    " => vgic_its_inject_msi\n => kvm_set_msi\n",
    "\n",
    "# a remark: 12 of 13\n",
    "Message from syslogd@host at Nov 23 00:02:24 ...\n",
)


def _noisy() -> str:
    lines = _text(_TRACE).splitlines(keepends=True)
    return "".join(
        line + (_NOISE[number % len(_NOISE)] if number % 7 == 0 else "") for number, line in enumerate(lines)
    )


FORMS: dict[str, Callable[[], str]] = {
    "quoted in a mail": lambda: re.sub("(?m)^", "> ", _text(_TRACE)),
    "quoted twice": lambda: re.sub("(?m)^", ">> > ", _text(_TRACE)),
    "on a console": lambda: re.sub("(?m)^", "[   12.345678] ", _text(_TRACE)),
    "on a console with the caller": lambda: re.sub("(?m)^", "<4>[   12.345678][ T1234] ", _text(_TRACE)),
    "in a syslog": lambda: re.sub("(?m)^", "Nov 23 00:02:24 host kernel: [   12.345678] ", _text(_TRACE)),
    "lines end as in DOS": lambda: _text(_TRACE).replace("\n", "\r\n"),
    "with thread groups": lambda: _lines(
        lambda m: f"{m['comm']:>16}-{m['pid']:<7} ({m['pid']:>7}) [{m['cpu']}] {m['flags']}  {m['time']}: {m['rest']}"
    ),
    "with unknown thread groups": lambda: _lines(
        lambda m: f"{m['comm']:>16}-{m['pid']:<7} (-------) [{m['cpu']}] {m['flags']}  {m['time']}: {m['rest']}"
    ),
    "without flags": lambda: _lines(
        lambda m: f"{m['comm']:>16}-{m['pid']:<7} [{m['cpu']}]  {m['time']}: {m['rest']}"
    ),
    "with four flags, as before 5.15": lambda: _lines(
        lambda m: f"{m['comm']:>16}-{m['pid']:<5} [{m['cpu']}] {m['flags'][:4]} {m['time']}: {m['rest']}"
    ),
    "with the flags of PREEMPT_RT": lambda: _lines(
        lambda m: f"{m['comm']:>16}-{m['pid']:<7} [{m['cpu']}] {m['flags'][:3]}1211 {m['time']}: {m['rest']}"
    ),
    "in latency format": lambda: _lines(
        lambda m: f"{m['comm'][:8]:>8}-{m['pid']:<7} {int(m['cpu']):>3}{m['flags']} {m['time']}: {m['rest']}"
    ),
    "in nanoseconds": lambda: _lines(lambda m: m[0].replace(m["time"], m["time"] + "000", 1)),
    "tasks named like heads": lambda: _lines(
        lambda m: f"{_TASKS[m['comm']]:>16}-{m['pid']:<7} [{m['cpu']}] {m['flags']}  {m['time']}: {m['rest']}"
    ),
    "names padded": lambda: _lines(lambda m: re.sub(r"(: \w+:) ", r"\1               ", m[0], count=1)),
    "as perf script prints": lambda: _lines(
        lambda m: f"{m['comm']:>16} {m['pid']:>7} [{m['cpu']}] {m['time']}: {'its:' + m['rest']:>40}"
    ),
    "as perf script prints pid, tid and period": lambda: _lines(
        lambda m: f"{m['comm']:>16} {m['pid']:>7}/{m['pid']:<7} [{m['cpu']}] {m['time']}:          1 {'x:' + m['rest']}"
    ),
    "addresses left out": lambda: re.sub(r"(: \w+:) \([^)]*\)", r"\1", _text(_TRACE)),
    "other lines between": _noisy,
}  # fmt: skip
#: What these forms cannot carry: a note is known by its name, which a group before it hides.
_HIDE_NOTES = ("as perf script",)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_the_trace_tells_its_story(form: str, tmp_path: Path) -> None:
    told = _analysis(tmp_path, FORMS[form]())

    assert differences(analysis_of(_TRACE), told) == []
    graphs = _NOISE[2] in FORMS[form]()
    assert told.damage == []
    assert [note.split(" stand in ")[0] for note in told.info.notes if " stand in " in note] == (
        ["81 events"] if graphs else []
    )
    assert int(told.counts["records"].sum()) == 3962
    assert told.observations.commands.height == 48


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith(_HIDE_NOTES)])
def test_a_form_of_the_trace_keeps_notes_and_tasks(form: str, tmp_path: Path) -> None:
    with open_capture(_written(tmp_path, FORMS[form]())) as capture:
        notes = capture.read("ftrace:print")["buf"].to_list()
        comms = dict(capture.comms)

    assert (
        notes == ["HMARK capture start tracefs", "HMARK cmd churn 1", "HMARK cmd churn 0"] or len(notes) == 3
    )
    expected = {"tasks named like heads": _TASKS["sh"], "in latency format": "sh"}.get(form, "sh")
    assert comms[4162] == expected


def _every_line(text: str) -> list[tuple[int, int, int, str, dict[str, int]]]:
    """A second, plain reading: time, CPU, pid, event and number fields of every line."""
    found = []
    for line in text.splitlines():
        match = _HEAD.match(line)
        if match is None:
            continue
        event, _, rest = match["rest"].partition(": ")
        fields = {
            name: int(value, 0) for name, value in re.findall(r"(\w+)=(-?\d+|0x[0-9a-f]+)(?= |$)", rest)
        }
        time_ns = int(match["time"].replace(".", "")) * 1000
        found.append((time_ns, int(match["cpu"]), int(match["pid"]), event, fields))
    return found


@pytest.mark.parametrize("path", [_TRACE, _PIPE], ids=lambda path: path.name)
def test_every_line_is_read_as_it_stands(path: Path) -> None:
    expected = _every_line(_text(path))
    text = TextCapture.open(path)
    assert text is not None
    rows: dict[int, tuple[int, int, int, str, dict[str, int]]] = {}
    with text:
        for block in text.blocks(lambda event: event.fields):
            for name, frame in block.items():
                event = name.rpartition(":")[2]
                numbers = [column for column in frame.columns[4:] if frame[column].dtype.is_integer()]
                for row in frame.iter_rows(named=True):
                    values = {column: row[column] for column in numbers if row[column] is not None}
                    rows[row["seq"]] = (row["time_ns"], row["cpu"], row["pid"], event, values)

    assert sorted(rows) == list(range(len(expected)))
    for seq, (time_ns, cpu, pid, event, fields) in enumerate(expected):
        known = "print" if event == "tracing_mark_write" else event
        assert rows[seq][:4] == (time_ns, cpu, pid, known)
        if fields:
            assert rows[seq][4] == fields, (seq, event)


def test_lost_events_of_trace_pipe_are_gaps() -> None:
    with open_capture(_PIPE) as capture:
        gaps = capture.gaps()
        first, _ = capture.span()

    assert gaps.select("cpu", "lost").sort("cpu").rows() == [(0, 1163), (1, 352)]
    assert gaps.filter(pl.col("cpu") == 1).select("from_ns", "to_ns").row(0) == (first, 1_476_982_850_000)


def test_a_cut_line_is_told_and_its_last_value_not_used(tmp_path: Path) -> None:
    lines = _text(_TRACE).splitlines(keepends=True)
    place = max(i for i, line in enumerate(lines) if ": queue_irq:" in line)
    cut = lines[place][: lines[place].index(" tgt=") + len(" tgt=")]
    with open_capture(_written(tmp_path, "".join(lines[:place]) + cut)) as capture:
        whole = capture.read("queue_irq")
        damage = capture.damage()

    assert whole["tgt"][-1] is None
    assert whole["vcpup"][-1] is None
    assert whole["intid"][-1] is not None
    assert [each.problem for each in damage] == [
        f"1 lines are cut short, the first is line {place + 1:,}: the value at the cut, and all behind it, are unknown"
    ]
    assert damage[0].offset_bytes == len("".join(lines[:place]))


def test_cut_lines_amid_others_do_not_hide_them(tmp_path: Path) -> None:
    """A console drops the ends of lines: those are told, the others are read as ever."""
    lines = _text(_TRACE).splitlines(keepends=True)
    damaged = [line if i % 50 else line[: len(line) // 2 + 20] + "\n" for i, line in enumerate(lines)]
    told = _analysis(tmp_path, "".join(damaged))
    whole = analysis_of(_TRACE)

    assert any("cut short" in each.problem for each in told.damage)
    assert 0.9 * whole.observations.queueings.height < told.observations.queueings.height


@pytest.mark.parametrize("column", [90, 110, 130])
def test_lines_cut_at_a_terminals_edge_are_said_to_be(column: int, tmp_path: Path) -> None:
    cut = "".join(line[:column] + "\n" for line in _text(_TRACE).splitlines())
    with open_capture(_written(tmp_path, cut)) as capture:
        capture.counts()
        assert any(f"lines are cut at column {column}" in note for note in capture.info.notes)


def test_whole_lines_are_not_taken_for_cut_ones() -> None:
    for path in (_TRACE, _PIPE, _PERF, _SAMPLES / "6.12-perf-script.txt.zst"):
        with open_capture(path) as capture:
            capture.counts()
            assert not any("lines are cut" in note for note in capture.info.notes)


def test_lines_out_of_order_are_sorted(tmp_path: Path) -> None:
    """Readers of several pipes overtake each other by a few lines."""
    lines = [line for line in _text(_TRACE).splitlines(keepends=True) if not line.startswith("#")]
    times = [float(_HEAD.match(line)["time"]) for line in lines]  # type: ignore[index]
    order = sorted(range(len(lines)), key=lambda i: (i // 8, lines[i].split("[")[1][:3], times[i], i))
    with open_capture(_written(tmp_path, "".join(lines[i] for i in order))) as capture:
        frames = [frame for block in capture.blocks(lambda _: ()) for frame in block.values()]
        damage = capture.damage()
    read = pl.concat(frames).sort("seq")

    assert read["time_ns"].is_sorted()
    assert damage == []
    assert read.height == len(lines)


@pytest.mark.parametrize("packing", ["gz", "xz", "zst"])
def test_packed_text_is_text(packing: str, tmp_path: Path) -> None:
    raw = _text(_TRACE).encode()
    pack: Any = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.compress}[packing]
    told = itstrace.analyze(_written(tmp_path, pack(raw), f"t.{packing}"))

    assert differences(analysis_of(_TRACE), told) == []


def test_a_dump_of_a_dying_kernel(tmp_path: Path) -> None:
    """ftrace_dump_on_oops: latency format, microseconds since the buffer's start, each line on the console."""
    start = float(_HEAD.search(_text(_TRACE).splitlines()[12])["time"])  # type: ignore[index]

    def dumped(m: re.Match[str]) -> str:
        micros = round((float(m["time"]) - start) * 1e6)
        return f"[   99.000001] {m['comm'][:8]:>8}-{m['pid']:<7} {int(m['cpu']):>3}{m['flags']} {micros:>7}us : {m['rest']}"

    console = "[   98.000000] Internal error: Oops: 96000004 [#1] SMP\n[   98.1] Dumping ftrace buffer:\n"
    with open_capture(_written(tmp_path, console + _lines(dumped))) as capture:
        assert capture.info.clock == "since the buffer's start"
        assert int(capture.counts()["records"].sum()) == 3962
        first, last = capture.span()
    with open_capture(_TRACE) as capture:
        begin, end = capture.span()

    assert None not in (first, last, begin, end)
    assert abs((last - first) - (end - begin)) <= 1000  # type: ignore[operator]
    told = _analysis(tmp_path, console + _lines(dumped))
    assert told.observations.commands.height == 48
    assert told.lives.lives["outcome"].to_list() == analysis_of(_TRACE).lives.lives["outcome"].to_list()


def test_a_clock_that_counts(tmp_path: Path) -> None:
    """trace_clock `counter` or `x86-tsc`: no point in the time, and no unit."""
    text = _lines(lambda m: m[0].replace(m["time"], m["time"].replace(".", ""), 1))
    with open_capture(_written(tmp_path, text)) as capture:
        assert capture.info.clock == "counts, of no known unit"
        assert int(capture.counts()["records"].sum()) == 3962
        assert capture.read("queue_irq")["time_ns"][0] == int(capture.read("queue_irq")["time_ns"][0])


def test_perf_script_keeps_nanoseconds_groups_and_tasks() -> None:
    with open_capture(_PERF) as capture:
        assert "vgic:queue_irq" in capture.formats
        frame = capture.read("vgic:queue_irq")
        assert capture.info.format == "text of perf script (zstd)"

    lines = [line for line in _text(_PERF).splitlines() if " vgic:queue_irq: " in line]
    times = [int(re.search(r"(\d+)\.(\d{9}):", line)[0][:-1].replace(".", "")) for line in lines]  # type: ignore[index]
    assert frame["time_ns"].to_list() == times
    assert set(frame["comm"]) == {"qemu-system-aar"}
    assert frame["intid"].to_list() == [int(re.search(r" intid=(\d+)", line)[1]) for line in lines]  # type: ignore[index]


@pytest.mark.parametrize(
    ("line", "cpu", "lost"),
    [
        (" qemu-system-aar    1790 [001]  1529.453361: PERF_RECORD_LOST lost 10\n", 1, 10),
        ("CPU:1 [LOST 17 EVENTS]\n", 1, 17),
        ("CPU:0 [LOST EVENTS]\n", 0, None),
        ("CPU:1 [EVENTS DROPPED]\n", 1, None),
        ("CPU:1 [23 EVENTS DROPPED]\n", 1, 23),
        ("> CPU:1 [23 EVENTS DROPPED]\r\n", 1, 23),
    ],
)
def test_every_way_of_saying_that_records_are_lost(
    line: str, cpu: int, lost: int | None, tmp_path: Path
) -> None:
    lines = _text(_TRACE).splitlines(keepends=True)
    with open_capture(_written(tmp_path, "".join([*lines[:900], line, *lines[900:]]))) as capture:
        gaps = capture.gaps()
        records = int(capture.counts()["records"].sum())

    assert gaps.select("cpu", "lost").rows() == [(cpu, lost)]
    before = [m for text in lines[:900] if (m := _HEAD.match(text)) and int(m["cpu"]) == cpu][-1]
    after = next(m for text in lines[900:] if (m := _HEAD.match(text)) and int(m["cpu"]) == cpu)
    if "PERF" not in line:
        assert gaps.select("from_ns", "to_ns").row(0) == tuple(
            int(m["time"].replace(".", "")) * 1000 for m in (before, after)
        )
    assert records == 3962


def test_a_note_that_talks_of_losses_is_none(tmp_path: Path) -> None:
    note = "              sh-4162    [001] .....  1475.000000: tracing_mark_write: CPU:1 [LOST 17 EVENTS]\n"
    lines = _text(_TRACE).splitlines(keepends=True)
    with open_capture(_written(tmp_path, "".join([*lines[:900], note, *lines[900:]]))) as capture:
        assert capture.gaps().is_empty()
        assert "CPU:1 [LOST 17 EVENTS]" in capture.read("ftrace:print")["buf"].to_list()


def test_fields_of_the_kernels_own_events() -> None:
    """What `print fmt` made words of is numbers again."""
    with open_capture(_PIPE) as capture:
        exits = capture.read("kvm:kvm_exit")
        updates = capture.read("kvm:vgic_update_irq_pending")

    lines = [line for line in _text(_PIPE).splitlines() if ": kvm_exit: " in line]
    codes = {"IRQ": 0, "TRAP": 2}
    assert exits["ret"].to_list() == [codes[re.search(r"kvm_exit: (\w+):", line)[1]] for line in lines]  # type: ignore[index]
    assert exits["esr_ec"].to_list() == [int(re.search(r"HSR_EC: (0x\w+)", line)[1], 16) for line in lines]  # type: ignore[index]
    assert exits["vcpu_pc"].to_list() == [int(re.search(r"PC: (0x\w+)", line)[1], 16) for line in lines]  # type: ignore[index]
    assert set(updates["level"].to_list()) == {0, 1}


def test_perf_script_without_cpus_is_read(tmp_path: Path) -> None:
    """`-F comm,tid,time,event,trace`; with --guest-code a task's name has brackets of its own."""
    with (_SAMPLES / "6.12-perf-script.txt.zst").open("rb") as packed:
        text = zstandard.ZstdDecompressor().stream_reader(packed).read().decode()
    without = re.sub(r"(?m)^( *\S+ +\d+) \[\d+\]", r"\1", text)
    with open_capture(_written(tmp_path, without)) as capture:
        assert int(capture.counts()["records"].sum()) == len(text.splitlines())
        assert any("perf script -F +cpu" in note for note in capture.info.notes)
        assert capture.read("vgic:queue_irq")["pid"].n_unique() > 1
        assert capture.damage() == []


def test_text_without_tasks_is_not_analyzed(tmp_path: Path) -> None:
    """`-F cpu,time,event,trace`: nothing tells which records belong together, and errors would be invented."""
    with (_SAMPLES / "6.12-perf-script.txt.zst").open("rb") as packed:
        text = zstandard.ZstdDecompressor().stream_reader(packed).read().decode()
    path = _written(tmp_path, re.sub(r"(?m)^.*?(\[00\d\])", r"\1", text))
    with open_capture(path) as capture:
        assert int(capture.counts()["records"].sum()) == len(text.splitlines())
    with pytest.raises(itstrace.ItsTraceError, match="name no task") as caught:
        itstrace.analyze(path)
    assert caught.value.advice is not None


def test_function_graph_alone_is_told_what_to_do(tmp_path: Path) -> None:
    text = "# tracer: function_graph\n#\n" + " 0)               |  /* its_process: (x) its=0x1 */\n" * 50
    with pytest.raises(itstrace.ItsTraceError, match="function_graph") as caught:
        open_capture(_written(tmp_path, text))
    assert "current_tracer" in str(caught.value.advice)


def test_records_are_printed_as_the_text_printed_them() -> None:
    """Hex stays hex, and what was printed by name has its name again."""
    with open_capture(_PIPE) as capture:
        printer = Printer.of(capture.formats["kvm:kvm_exit"], capture.comms)
        event = capture.formats["kvm:kvm_exit"]
        row = capture.read("kvm:kvm_exit", 1).row(0, named=True)
        shown = {each.name: printer.text(each, row[each.name]) for each in event.fields}
        queue = capture.formats["queue_irq"]
        row = capture.read("queue_irq", 1).row(0, named=True)
        printed = Printer.of(queue, capture.comms)
        fields = " ".join(
            f"{e.name}={printed.text(e, row[e.name])}" for e in queue.fields if not e.name.startswith("__")
        )

    line = next(line for line in _text(_PIPE).splitlines() if ": kvm_exit: " in line)
    assert f"{shown['ret']}: HSR_EC: 0x{int(shown['esr_ec'], 16):04x}" in line
    assert shown["vcpu_pc"] in line
    line = next(line for line in _text(_PIPE).splitlines() if ": queue_irq: " in line)
    assert line.endswith(fields)
