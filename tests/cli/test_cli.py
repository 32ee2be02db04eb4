"""The program as its callers see it: what goes where, exit codes, and what no capture can make it do."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import SAMPLES
from helpers import tiny_capture
from rich.cells import cell_len
from typer.testing import CliRunner

from itstrace._version import __version__
from itstrace.cli import app, main
from itstrace.cli.help import GROUPS
from itstrace.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping

DOUBLE = SAMPLES / "6.12-double-delivery.dat"
CLEAN = SAMPLES / "7.3-migrate.dat"
MISTAKES = SAMPLES / "7.3-guest-mistakes.dat"
COMMANDS = [name for _, names in GROUPS for name in names]
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Result:
    """How a call ended."""

    code: int
    out: str
    err: str


def itstrace(*arguments: object, env: Mapping[str, str] | None = None) -> Result:
    """Run the program in a process of its own, with pipes for its output."""
    done = subprocess.run(
        [sys.executable, "-m", "itstrace.cli", *map(str, arguments)],
        capture_output=True, check=False, text=True, encoding="utf-8", env=_environment(env),
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def on_a_terminal(width: int, *arguments: object, env: Mapping[str, str] | None = None) -> Result:
    """Run the program on a terminal of some width; `out` is all that the terminal got."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(_environment({"TERM": "xterm-256color", **(env or {})}))
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        os.execv(sys.executable, [sys.executable, "-m", "itstrace.cli", *map(str, arguments)])  # noqa: S606
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    got = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        got += part
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Result(code, got.decode().replace("\r\n", "\n"), "")


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    dropped = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "LC_ALL": "C.UTF-8", **(more or {})}


def called(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Result:
    """Run the program in this process."""
    monkeypatch.setattr(sys, "argv", ["itstrace", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    return Result(int(left.value.code or 0), out, err)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sound capture."""
    return tiny_capture.write(tmp_path_factory.mktemp("captures") / "tiny.dat")


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with hostile words in its markers, task names and file name."""
    name = tiny_capture.HOSTILE.replace("/", "")
    return tiny_capture.write(
        tmp_path_factory.mktemp("captures") / f"{name}.dat",
        note=tiny_capture.HOSTILE,
        comm=tiny_capture.HOSTILE,
    )


# --- help and version


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_is_readable_at_80_columns(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [*arguments, "--help"], prog_name="itstrace")
    lines = result.stdout.splitlines()

    assert result.exit_code == 0
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"Usage: itstrace {' '.join(arguments)}".rstrip())
    assert not re.search(r"[{}]|list\[|<bool>", result.stdout)
    assert not any(line.endswith("...") for line in lines[1:])  # a text that did not fit
    assert "--no-color" in result.stdout


def test_the_help_lists_every_command_in_its_group() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout

    assert [name for name in re.findall(r"^  (\w+)  ", text, re.MULTILINE) if name in COMMANDS] == COMMANDS
    assert {command.name for command in app.registered_commands} == set(COMMANDS)


def test_version() -> None:
    assert itstrace("--version") == Result(0, f"itstrace {__version__}\n", "")


# --- wrong usage is 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["analyze"],
        ["analyze", "--nonsense", DOUBLE],
        ["analyze", DOUBLE, CLEAN],
        ["analyze", DOUBLE, "--fail-on", "disaster"],
        ["analyze", DOUBLE, "--select", "ITS7"],
        ["analyze", DOUBLE, "--ignore", ","],
        ["analyze", DOUBLE, "--kernel", "kvm-2.6"],
        ["analyze", DOUBLE, "--seed", "no-such-dump"],
        ["analyze", DOUBLE, "--json", DOUBLE],
        ["analyze", DOUBLE, "--json", "/no/such/folder/out.json"],
        ["analyze", DOUBLE, "--sarif", DOUBLE],
        ["analyze", DOUBLE, "--junit", "/no/such/folder/out.xml"],
        ["analyze", DOUBLE, "--json", "-", "--sarif", "-"],
        ["analyze", DOUBLE, "--sarif", "-", "--junit", "-"],
        ["analyze", DOUBLE, "--junit", "out.xml", "--sarif", "./out.xml"],
        ["analyze", DOUBLE, "--baseline", "no-such-file"],
        ["analyze", DOUBLE, "--baseline", DOUBLE],
        ["analyze", DOUBLE, "--baseline", SAMPLES / "expected.json"],
        ["analyze", DOUBLE, "--set", "no-such-number=1"],
        ["analyze", DOUBLE, "--set", "late-factor"],
        ["analyze", DOUBLE, "--set", "late-factor=much"],
        ["analyze", DOUBLE, "--set", "late-factor=nan"],
        ["analyze", DOUBLE, "--set", "late-factor=inf"],
        ["events", DOUBLE, "no_such_event"],
        ["events", DOUBLE, "kvm_exit", "--limit", "-1"],
        ["lpi", DOUBLE],
        ["lpi", DOUBLE, "eight"],
        ["lpi", DOUBLE, "9999"],
        ["lpi", DOUBLE, "8193", "--vm", "7"],
        ["tables", DOUBLE, "--at", "9999"],
        ["tables", DOUBLE, "--at", "no such marker"],
        ["tables", DOUBLE, "--vm", "7"],
        ["rules", "ITS999"],
    ],
    ids=lambda arguments: " ".join(Path(str(each)).name for each in arguments) or "nothing",
)
def test_wrong_usage_is_2_and_says_why(
    arguments: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = called(capsys, monkeypatch, *arguments)

    assert (result.code, result.out if arguments else "") == (2, "")
    assert len(result.err.splitlines()) >= 2 or "itstrace: " in result.err or not arguments
    assert "Traceback" not in result.err


def test_captures_of_several_recordings_are_refused_clearly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = called(capsys, monkeypatch, "analyze", DOUBLE, CLEAN)

    assert refused.code == 2
    assert "are no parts of one capture: kernel 6.12.107+deb13-arm64 and 7.3.4+deb13-arm64" in refused.err


def test_captures_that_are_parts_of_one_are_analyzed_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(called(capsys, monkeypatch, "analyze", DOUBLE, DOUBLE, "--json", "-").out)

    assert document["capture"]["paths"] == [str(DOUBLE)] * 2
    assert document["capture"]["format"] == "2 captures: trace.dat v7 zstd + trace.dat v7 zstd"
    loud = {finding["code"] for finding in document["findings"] if finding["severity"] != "note"}
    assert loud == {"ITS401"}


@pytest.mark.parametrize("command", [("commands",), ("tables",), ("lpi", "8193")], ids=lambda each: each[0])
def test_parts_of_one_capture_are_told_as_the_whole(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *rest = command
    whole = called(capsys, monkeypatch, name, DOUBLE, *rest)
    parts = called(capsys, monkeypatch, name, DOUBLE, DOUBLE, *rest)

    assert (parts.code, parts.out) == (0, whole.out)
    assert len(whole.out.splitlines()) > 5


def test_a_capture_is_never_overwritten(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny.read_bytes()
    link = tiny.with_name("link.dat")
    link.symlink_to(tiny)

    assert called(capsys, monkeypatch, "analyze", tiny, "--json", link).code == 2
    assert tiny.read_bytes() == before


def test_an_unknown_lpi_says_which_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "8192-8197" in called(capsys, monkeypatch, "lpi", DOUBLE, "9999").err


# --- what cannot be read is 3


@pytest.mark.parametrize("command", ["analyze", "info", "events", "commands", "tables", "lpi"])
@pytest.mark.parametrize("what", ["missing", "folder", "empty", "picture", "x86"])
def test_what_cannot_be_used_is_3(
    command: str,
    what: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / what
    match what:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "picture":
            path.write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(range(256)) * 8)
        case "x86":
            tiny_capture.write_x86(path)
    more = ["8192"] if command == "lpi" else []

    result = called(capsys, monkeypatch, command, path, *more)

    if what == "x86" and command in ("info", "events"):  # these show any capture
        assert (result.code, result.err) == (0, "")
        assert "sched:sched_switch" in result.out
        return
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("itstrace: ")
    assert path.name in result.err
    assert "Traceback" not in result.err


def test_a_damaged_capture_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    """A v7 file has its index at the end, so it is no use cut short; holes are another matter."""
    cut, torn = tmp_path / "cut.dat", tmp_path / "torn.dat"
    whole = DOUBLE.read_bytes()
    cut.write_bytes(whole[:-1000])
    middle = len(whole) * 98 // 100  # within the records of CPU 0
    torn.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])

    unusable, used = itstrace("analyze", cut), itstrace("analyze", torn)

    assert (unusable.code, unusable.out) == (3, "")
    assert "cut.dat at byte" in unusable.err
    assert (used.code, used.err) == (0, "")
    assert "a chunk is damaged and left out" in used.out
    assert "the file is damaged" in used.out.lower()


# --- results and --fail-on


@pytest.mark.parametrize(
    ("capture", "level", "code"),
    [
        (DOUBLE, "error", 1), (DOUBLE, "warning", 1), (DOUBLE, "note", 1),
        (CLEAN, "error", 0), (CLEAN, "warning", 0),
    ],
)  # fmt: skip
def test_fail_on(
    capture: Path, level: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert called(capsys, monkeypatch, "analyze", capture, "--fail-on", level).code == code


def test_without_fail_on_findings_are_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = called(capsys, monkeypatch, "analyze", DOUBLE)

    assert (result.code, result.err) == (0, "")
    assert "ITS401 double-pending" in result.out


def test_select_and_ignore_go_by_beginnings_of_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def codes(*options: str) -> set[str]:
        document = json.loads(called(capsys, monkeypatch, "analyze", DOUBLE, "--json", "-", *options).out)
        return {finding["code"] for finding in document["findings"]}

    everything = codes()

    assert "ITS401" in everything
    assert codes("--select", "its4") == {code for code in everything if code.startswith("ITS4")}
    assert codes("--select", "ITS401,ITS1") == {
        code for code in everything if code.startswith(("ITS401", "ITS1"))
    }
    assert codes("--ignore", "ITS401") == everything - {"ITS401"}
    assert codes("--select", "ITS4", "--ignore", "ITS4") == set()


def test_one_of_several_findings_of_a_code_can_be_selected_and_ignored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def messages(*options: str) -> list[str]:
        document = json.loads(called(capsys, monkeypatch, "analyze", MISTAKES, "--json", "-", *options).out)
        return [finding["message"] for finding in document["findings"]]

    several = messages("--select", "ITS102")
    assert len(several) == 4
    assert messages("--select", "its102-3") == [several[2]]
    assert messages("--select", "ITS102-1,ITS102-4") == [several[0], several[3]]
    assert messages("--select", "ITS102", "--ignore", "ITS102-1") == several[1:]
    for wrong, said in (
        ("ITS102-9", "this capture shows 4 of ITS102"),
        ("ITS1-2", "no finding is called so"),
    ):
        result = called(capsys, monkeypatch, "analyze", MISTAKES, "--select", wrong)
        assert result.code == 2
        assert said in result.err


def test_what_is_ignored_does_not_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {
        f["code"] for f in _analysis(capsys, monkeypatch, DOUBLE)["findings"] if f["severity"] == "error"
    }
    result = called(
        capsys, monkeypatch, "analyze", DOUBLE, "--ignore", ",".join(errors), "--fail-on", "error"
    )

    assert errors
    assert result.code == 0


def _analysis(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: Path
) -> dict[str, list[dict[str, str]]]:
    document: dict[str, list[dict[str, str]]] = json.loads(
        called(capsys, monkeypatch, "analyze", path, "--json", "-").out
    )
    return document


def test_json_to_a_file_leaves_the_report_on_standard_output(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json"
    result = called(capsys, monkeypatch, "analyze", tiny, "--json", path)

    assert "Coverage" in result.out
    assert json.loads(path.read_text())["schema"] == "itstrace.analysis/1"


def test_the_kernel_can_be_chosen(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "replayed as kvm-6.1\n" in called(capsys, monkeypatch, "analyze", tiny, "--kernel", "kvm-6.1").out


def test_a_seed_fills_what_was_there_before() -> None:
    state = SAMPLES / "6.12-double-delivery.vgic-state"

    seeded = json.loads(itstrace("tables", DOUBLE, "--seed", state, "--at", "+0.1", "--json").out)
    plain = json.loads(itstrace("tables", DOUBLE, "--at", "+0.1", "--json").out)

    assert plain["lpis"] == []
    assert len(seeded["lpis"]) > 0


# --- every command that prints a table speaks JSON


@pytest.mark.parametrize(
    ("arguments", "schema", "rows"),
    [
        (["info", DOUBLE], "info", "events"),
        (["events", DOUBLE], "events", "events"),
        (["events", DOUBLE, "its:its_cmd_off"], "events", "records"),
        (["commands", DOUBLE], "commands", "commands"),
        (["tables", DOUBLE], "tables", "events"),
        (["tables", DOUBLE, "--at", "1350.5"], "tables", "lpis"),
        (["lpi", DOUBLE, "8193"], "lpi", "steps"),
        (["lpi", DOUBLE, "0x2001", "--vm", "0"], "lpi", "steps"),
        (["rules"], "rules", "rules"),
        (["rules", "its401"], "rules", "rules"),
        (["rules", "double-pending"], "rules", "rules"),
    ],
)
def test_json_of_every_command(
    arguments: list[object],
    schema: str,
    rows: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = called(capsys, monkeypatch, *arguments, "--json")
    document = json.loads(result.out)

    assert (result.code, result.err) == (0, "")
    assert document["schema"] == f"itstrace.{schema}/1"
    assert document["version"] == __version__
    assert len(document[rows]) > 0
    assert result.out.isascii()


def test_events_by_bare_and_full_name_and_limit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = called(capsys, monkeypatch, "events", DOUBLE, "kvm:kvm_exit").out.splitlines()
    some = called(capsys, monkeypatch, "events", DOUBLE, "kvm_exit", "--limit", "7").out.splitlines()
    every = called(capsys, monkeypatch, "events", DOUBLE, "kvm_exit", "--limit", "0").out.splitlines()

    assert len(whole) == 1 + 1983
    assert [line.split() for line in some] == [line.split() for line in whole[:8]]
    assert every == whole
    assert {"TRAP", "IABT_LOW"} <= {*whole[1].split()}


def test_an_event_without_records_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = json.loads(called(capsys, monkeypatch, "events", DOUBLE, "--json").out)["events"]
    name = next(event["event"] for event in listed if not event["records"])

    assert called(capsys, monkeypatch, "events", DOUBLE, name).out.split()[:3] == ["time", "cpu", "task"]
    assert json.loads(called(capsys, monkeypatch, "events", DOUBLE, name, "--json").out)["records"] == []
    assert f"no records of {name}" in on_a_terminal(80, "events", DOUBLE, name).out


def test_rules_list_and_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listing = called(capsys, monkeypatch, "rules").out
    page = called(capsys, monkeypatch, "rules", "its401").out

    assert all(code in listing for code in RULES)
    assert page.startswith("ITS401 double-pending")
    assert "Why it matters" in page


def test_tables_differ_with_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    early = called(capsys, monkeypatch, "tables", DOUBLE, "--at", "+0.1")
    late = called(capsys, monkeypatch, "tables", DOUBLE)

    assert (early.out, early.err) == ("", "tables as of 1345.386619088, when there was no ITS\n")
    assert "0x123" in late.out
    assert "no devices" in called(capsys, monkeypatch, "tables", DOUBLE, "--at", "1347.2").out


# --- pipes and terminals


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze", DOUBLE], ["info", DOUBLE], ["events", DOUBLE], ["events", DOUBLE, "queue_irq"],
        ["commands", DOUBLE], ["tables", DOUBLE], ["lpi", DOUBLE, "8193"], ["rules"], ["rules", "ITS401"],
        ["diff", DOUBLE, DOUBLE],
    ],
    ids=lambda arguments: " ".join(Path(str(each)).name for each in arguments),
)  # fmt: skip
def test_a_pipe_gets_plain_text_and_a_terminal_what_fits(arguments: list[object]) -> None:
    piped = itstrace(*arguments)

    assert (piped.code, piped.err) == (0, "")
    assert "\x1b" not in piped.out
    assert not set(piped.out) & set("\u2500\u2502\u256d\u2570\u2026")
    for width in (80, 160):
        shown = on_a_terminal(width, *arguments)
        # What the spinner draws is wiped again: a line's last words are what stays.
        lines = [line.rpartition("\r")[2] for line in _ANSI.sub("", shown.out).split("\n")]

        assert shown.code == 0
        assert "\x1b[" in shown.out
        assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize(
    ("before", "after", "env"),
    [
        (["--no-color"], [], {}),
        ([], ["--no-color"], {}),
        ([], [], {"NO_COLOR": "1"}),
        ([], [], {"TERM": "dumb"}),
    ],
)
def test_colour_can_be_refused(before: list[str], after: list[str], env: dict[str, str]) -> None:
    shown = on_a_terminal(80, *before, "rules", *after, env=env).out
    coloured = on_a_terminal(80, "rules").out

    assert "\x1b" not in shown
    assert "\x1b[1" in coloured


def test_an_empty_no_color_refuses_nothing() -> None:
    assert "\x1b[1" in on_a_terminal(80, "rules", env={"NO_COLOR": ""}).out


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze"],
        ["info"],
        ["events"],
        ["events", "print"],
        ["events", "its_cmd_off"],
        ["commands"],
        ["tables"],
        ["lpi", "8192"],
    ],
    ids=" ".join,
)
def test_a_hostile_capture_moves_no_terminal(evil: Path, arguments: list[str]) -> None:
    command, *more = arguments
    piped = itstrace(command, evil, *more)
    shown = on_a_terminal(80, command, evil, *more)
    stays = _ANSI.sub("", shown.out.replace("\x1b[2K", "").replace("\x1b[1A", ""))

    assert (piped.code, shown.code) == (0, 0)
    for text in (piped.out, piped.err):
        assert all(line.isprintable() for line in text.split("\n"))
    # Of escape sequences only colours, and what the spinner wipes its own line with.
    assert set(re.findall(r"\x1b\[[0-9;?]*([A-Za-z])", shown.out)) <= set("mKAhl")
    assert "\x1b[2J" not in shown.out
    assert not {"\x07", "\u202e"} & {*shown.out}
    assert "\x1b" not in stays


def test_hostile_words_in_errors_are_escaped(tmp_path: Path) -> None:
    result = itstrace("analyze", tmp_path / "\x1b[2Jx\u202e")

    assert result.code == 3
    assert "\\x1b[2Jx\\u202e" in result.err
    assert all(line.isprintable() for line in result.err.split("\n"))


def test_hostile_json_is_ascii_and_whole(evil: Path) -> None:
    result = itstrace("events", evil, "print", "--json")

    assert result.out.isascii()
    assert "\x1b" not in result.out
    assert tiny_capture.HOSTILE in json.loads(result.out)["records"][0]["buf"]


def test_an_ascii_only_output_gets_escapes_and_no_crash(evil: Path) -> None:
    result = itstrace("analyze", evil, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})

    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["events", DOUBLE, "kvm_exit"], 0), (["analyze", DOUBLE, "--fail-on", "error"], 1)],
)
def test_a_reader_that_goes_away_is_no_error(arguments: list[object], code: int) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "itstrace.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(None),
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()
    err = program.stderr.read()
    program.stderr.close()

    assert (program.wait(60), err) == (code, b"")


def test_a_full_disk_is_said(tiny: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "itstrace.cli", "analyze", str(tiny)],
            stdout=full, stderr=subprocess.PIPE, check=False, text=True, env=_environment(None),
        )  # fmt: skip

    assert done.returncode == 3
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("itstrace.cli.running.analyze", interrupted)
    result = called(capsys, monkeypatch, "analyze", DOUBLE)

    assert (result.code, result.out) == (130, "")


def test_a_closed_standard_output_is_no_mistake_of_ours() -> None:
    command = f'"{sys.executable}" -m itstrace.cli info "{SAMPLES / "6.12-clean.dat"}" >&-'
    run = subprocess.run(["sh", "-c", command], capture_output=True, check=False, text=True)

    assert run.returncode == 0
    assert run.stderr == ""
