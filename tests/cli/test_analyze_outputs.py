"""What `analyze` writes besides its report, and what it holds against a baseline."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from conftest import SAMPLES
from helpers import tiny_capture

from itstrace.cli import main
from itstrace.rules import RULES, Kind, Severity, rule
from itstrace.rules.registry import Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from itstrace.rules import Case, Finding

DOUBLE = SAMPLES / "6.12-double-delivery.dat"
MISTAKES = SAMPLES / "7.3-guest-mistakes.dat"


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs `itstrace analyze` in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["itstrace", "analyze", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def setting() -> Iterator[str]:
    """The name of a number of a rule that is there for this test: it says the number."""

    @rule("TST101", kind=Kind.EVIDENCE, severity=Severity.NOTE, settings=(Setting("tst-much", 3, "apples"),))
    def test_number(case: Case) -> Iterator[Finding]:
        yield case.finding(f"It is {case.setting('tst-much'):g}.")

    yield "tst-much"
    del RULES["TST101"]


def _codes(findings: list[dict[str, Any]]) -> set[str]:
    return {finding["code"] for finding in findings}


def test_every_format_to_its_file_and_the_report_to_standard_output(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    json_file, sarif_file, junit_file = (tmp_path / name for name in ("a.json", "a.sarif", "a.xml"))
    code, out, err = call(DOUBLE, "--json", json_file, "--sarif", sarif_file, "--junit", junit_file)
    document, log = json.loads(json_file.read_text()), json.loads(sarif_file.read_text())

    assert (code, err) == (0, "")
    assert "Coverage" in out
    assert log["version"] == "2.1.0"
    assert {one["ruleId"] for one in log["runs"][0]["results"]} == _codes(document["findings"]) >= {"ITS401"}
    assert ET.fromstring(junit_file.read_text()).get("failures") != "0"  # noqa: S314  # our own document
    assert all(path.read_bytes().isascii() for path in (json_file, sarif_file, junit_file))


@pytest.mark.parametrize("option", ["--json", "--sarif", "--junit"])
def test_standard_output_is_the_one_that_is_asked_for_and_nothing_else(
    option: str, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    others = [
        word
        for other in ("--json", "--sarif", "--junit")
        if other != option
        for word in (other, tmp_path / other[2:])
    ]
    code, out, err = call(DOUBLE, option, "-", *others)

    assert (code, err) == (0, "")
    if option == "--junit":
        assert ET.fromstring(out).tag == "testsuites"  # noqa: S314  # our own document
    else:
        assert {"--json": "schema", "--sarif": "runs"}[option] in json.loads(out)
    assert {path.name for path in tmp_path.iterdir()} == {"json", "sarif", "junit"} - {option[2:]}


def test_the_capture_is_named_as_seen_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    path = tiny_capture.write(tmp_path / "tiny.dat")
    monkeypatch.chdir(tmp_path)
    uris = [
        json.loads(call(given, "--sarif", "-")[1])["runs"][0]["artifacts"][0]["location"]["uri"]
        for given in ("tiny.dat", path)
    ]

    assert uris == ["tiny.dat", "tiny.dat"]


def test_junit_fails_as_the_exit_code_does_and_names_the_rules_that_were_asked_for(
    call: Callable[..., tuple[int, str, str]],
) -> None:
    def failing(*options: str) -> tuple[int, set[str], set[str]]:
        code, out, _ = call(MISTAKES, "--junit", "-", *options)
        cases = ET.fromstring(out).findall(".//testcase")  # noqa: S314  # our own document
        failed = {str(case.get("name"))[:6] for case in cases if case.find("failure") is not None}
        return code, failed, {str(case.get("name"))[:6] for case in cases}

    _, errors, every = failing()
    code, warnings, _ = failing("--fail-on", "warning")
    _, some, asked = failing("--select", "ITS10", "--ignore", "ITS101")

    assert every == set(RULES)
    assert code == 1
    assert errors < warnings
    assert asked == {one for one in RULES if one.startswith("ITS10")} - {"ITS101"}
    assert some == errors & asked


# --- a baseline


def test_what_the_baseline_has_fails_no_more(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    old = tmp_path / "old.json"
    assert call(MISTAKES, "--json", old, "--fail-on", "error")[0] == 1
    count = len(json.loads(old.read_text())["findings"])
    code, out, err = call(MISTAKES, "--baseline", old, "--fail-on", "note")
    document = json.loads(call(MISTAKES, "--baseline", old, "--json", "-")[1])
    log = json.loads(call(MISTAKES, "--baseline", old, "--sarif", "-")[1])

    assert (code, err) == (0, "")
    assert f"{count} findings as in the baseline" in out
    assert "ERROR" not in out
    assert {one["baseline"] for one in document["findings"]} == {"known"}
    assert document["baseline"] == {"path": str(old), "known": count, "new": 0, "gone": [], "untold": []}
    assert {one["baselineState"] for one in log["runs"][0]["results"]} == {"unchanged"}


def test_what_is_new_fails_and_stands(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    old = tmp_path / "old.json"
    document = json.loads(call(MISTAKES, "--json", "-")[1])
    fresh = next(one for one in document["findings"] if one["severity"] == "error")
    document["findings"] = [one for one in document["findings"] if one["code"] != fresh["code"]]
    old.write_text(json.dumps(document), encoding="utf-8")
    code, out, _ = call(MISTAKES, "--baseline", old, "--fail-on", "error")

    assert code == 1
    assert f"ERROR  {fresh['code']}" in out
    assert "New findings" in out
    assert call(MISTAKES, "--baseline", old, "--fail-on", "error", "--ignore", fresh["code"])[0] == 0


def test_only_what_was_asked_for_can_be_gone(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    old = tmp_path / "old.json"
    call(MISTAKES, "--json", old)
    gone = [
        {
            one["code"]
            for one in json.loads(call(DOUBLE, "--baseline", old, "--json", "-", *options)[1])["baseline"][
                "gone"
            ]
        }
        for options in ((), ("--select", "ITS101"), ("--ignore", "ITS10"))
    ]

    assert "ITS101" in gone[0]
    assert gone[1] == {"ITS101"}
    assert gone[2] == {code for code in gone[0] if not code.startswith("ITS10")}


def test_a_baseline_may_be_written_anew(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    file = tmp_path / "base.json"
    call(DOUBLE, "--json", file)

    assert call(MISTAKES, "--baseline", file, "--json", file, "--fail-on", "error")[0] == 1
    assert call(MISTAKES, "--baseline", file, "--fail-on", "error")[0] == 0


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{}", b"{}", b'\xef\xbb\xbf{"schema": "sarif"}', b"[1]"])
def test_a_file_that_is_no_baseline_is_refused_before_anything_is_read(
    content: bytes, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    old = tmp_path / "old.json"
    old.write_bytes(content)
    code, out, err = call(tmp_path / "no-such-capture", "--baseline", old)

    assert (code, out) == (2, "")
    assert f"{old} is no baseline: " in err


# --- numbers of rules


def test_a_number_can_be_set_and_the_last_counts(
    setting: str, call: Callable[..., tuple[int, str, str]]
) -> None:
    def said(*options: str) -> list[str]:
        document = json.loads(call(DOUBLE, "--select", "TST", "--json", "-", *options)[1])
        return [finding["message"] for finding in document["findings"]] + [str(document["settings"])]

    assert said() == ["It is 3.", "{}"]
    assert said("--set", f"{setting}=0.5") == ["It is 0.5.", "{'tst-much': 0.5}"]
    assert said("--set", f"{setting}=1", "--set", f"{setting}=1e3") == ["It is 1000.", "{'tst-much': 1000.0}"]


def test_a_number_that_there_is_not_names_those_that_there_are(
    setting: str, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = call(DOUBLE, "--set", "tst-mush=1")

    assert code == 2
    assert "no rule has a setting tst-mush" in err
    assert setting in err
