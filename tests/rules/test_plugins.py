"""Rules of other packages: found, used and told like ours; and whatever is wrong with them, an analysis is made."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import SAMPLES
from helpers import tiny_capture

import itstrace
from itstrace import Kind, Severity, UsageError
from itstrace.rules import RULES, RuleError, Setting, all_rules, all_settings, plugins, rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from itstrace.rules import Case, Finding, Plugin

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "own-rules.md").read_text(encoding="utf-8")
CAPTURE = SAMPLES / "6.12-double-delivery.dat"
_HEAD = "from itstrace.rules import *\n"
_RULE = '@rule("{code}", kind=Kind.GUEST, severity=Severity.NOTE)\ndef {name}(case):\n    "Finds."\n    {body}\n\n'


def _source(
    code: str = "ABC101", name: str = "own_rule", body: str = 'yield case.finding("Found.", vm=0)'
) -> str:
    return _HEAD + _RULE.format(code=code, name=name, body=body)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs packages, each of one module `name` with a source and an entry point; afterwards all is as it was."""
    before, modules = dict(RULES), set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.cache_clear()

    def put(name: str, source: str, point: str | None = None) -> None:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n", encoding="utf-8"
        )
        (info / "entry_points.txt").write_text(
            f"[itstrace.rules]\n{name} = {point or name}\n", encoding="utf-8"
        )
        importlib.invalidate_caches()

    yield put
    plugins.cache_clear()
    RULES.clear()
    RULES.update(before)
    for module in set(sys.modules) - modules:
        del sys.modules[module]


def _plugin(name: str) -> Plugin:
    (found,) = [one for one in plugins() if one.name == name]
    return found


def _analyzed() -> itstrace.Analysis:
    return itstrace.analyze(CAPTURE)


# --- what works


def test_rules_of_a_package_run_with_ours(install: Callable[..., None]) -> None:
    install("acme_one", _source())
    analysis = _analyzed()
    mine = next(one for one in analysis.findings if one.code == "ABC101")

    assert _plugin("acme_one").codes == ("ABC101",)
    assert _plugin("acme_one").package == "acme_one 1.5"
    assert (mine.message, mine.severity, mine.id) == ("Found.", Severity.NOTE, "ABC101")
    assert "ITS401" in {one.code for one in analysis.findings}
    assert RULES["ABC101"].origin == "acme_one"
    assert {one.origin for code, one in RULES.items() if code.startswith("ITS")} == {""}


def test_they_are_loaded_when_asked_for_and_once(install: Callable[..., None], tmp_path: Path) -> None:
    count = f'with open({str(tmp_path / "loads")!r}, "a") as file:\n    file.write("x")\n'
    install("acme_once", count + _source())

    assert "ABC101" not in RULES
    assert "ABC101" in all_rules()
    _analyzed()
    _analyzed()
    assert (tmp_path / "loads").read_text() == "x"


def test_an_entry_point_may_name_a_function_or_the_rule_itself(install: Callable[..., None]) -> None:
    function = textwrap.indent(_source().removeprefix(_HEAD), "    ")
    install("acme_call", f"{_HEAD}def register():\n{function}", "acme_call:register")
    install("acme_itself", _source("ABD101", "other_rule"), "acme_itself:other_rule")

    assert {"ABC101", "ABD101"} <= {one.code for one in _analyzed().findings}
    assert (_plugin("acme_call").problem, _plugin("acme_itself").problem) == ("", "")


def test_settings_of_a_package_can_be_set_like_ours(install: Callable[..., None]) -> None:
    source = _source(body="yield case.finding(f\"{case.setting('abc-much'):g}\")").replace(
        "severity=Severity.NOTE", 'severity=Severity.NOTE, settings=(Setting("abc-much", 3, "apples"),)'
    )
    install("acme_set", source)

    assert all_settings()["abc-much"][0].default == 3
    said = [
        next(
            one.message for one in itstrace.analyze(CAPTURE, settings=chosen).findings if one.code == "ABC101"
        )
        for chosen in ({}, {"abc-much": 7.5})
    ]
    assert said == ["3", "7.5"]
    with pytest.raises(UsageError, match="no rule has a setting abc-mush") as refused:
        itstrace.analyze(CAPTURE, settings={"abc-mush": 1})
    assert "abc-much" in (refused.value.advice or "")


def test_a_rule_that_lacks_its_observations_is_skipped(install: Callable[..., None], tmp_path: Path) -> None:
    install("acme_needs", _source().replace("kind=", 'needs=("REGISTER_WRITES", "RUNS"), kind=', 1))
    analysis = itstrace.analyze(tiny_capture.write(tmp_path / "tiny.dat"))
    (skipped,) = [one for one in analysis.skipped if one.code == "ABC101"]
    (said,) = [one for one in analysis.findings if one.code == "ITS903" and "REGISTER_WRITES" in one.message]

    assert (skipped.missing, skipped.why) == (("REGISTER_WRITES",), "")
    assert "ABC101" in said.message


# --- what does not, and is told


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(5)", "SystemExit: 5 (acme_bad.py, line 1)"),
        ("\n\n1 / 0", "ZeroDivisionError: division by zero (acme_bad.py, line 3)"),
        (_source("ITS401"), "ITS401: codes that begin with ITS are for the rules of itstrace itself"),
        (_source("ITS999"), "ITS999: codes that begin with ITS are for the rules of itstrace itself"),
        (_source("abc101"), "'abc101' is no code: three capital letters and three digits"),
        (_source("ABCD101"), "'ABCD101' is no code"),
        (_source("ABC1\u0661\u0662"), "is no code"),
        (_source(name="double_pending"), "the name double-pending is taken by ITS401"),
        (_source() + _source("ABC102"), "ABC102: the name own-rule is taken by ABC101 of acme_bad"),
        (_source() + _source(name="again"), "ABC101 is taken by own-rule of acme_bad"),
        (
            _source().replace("kind=", 'needs=("GUESTS",), kind=', 1),
            "ABC101 needs GUESTS: no such observation",
        ),
        (_source().replace("Kind.GUEST", '"ghost"'), "'ghost' is not a valid Kind"),
        (_source().replace("Severity.NOTE", '"dire"'), "'dire' is not a valid Severity"),
        (
            _source().replace("kind=", 'settings=(Setting("Bad Name", 1, ""),), kind=', 1),
            "is no name of a setting",
        ),
    ],
    ids=range(16),
)
def test_a_package_that_cannot_be_used_is_left_out_and_told(
    source: str, why: str, install: Callable[..., None]
) -> None:
    install("acme_bad", source)
    install("acme_good", _source("ABG101", "good_rule"))
    analysis = _analyzed()

    assert why in _plugin("acme_bad").problem
    assert analysis.plugins == plugins()
    assert {one.code for one in analysis.findings} >= {"ITS401", "ABG101"}
    assert not {code for code in RULES if code.startswith("ABC")}  # not half of it either
    assert RULES["ITS401"].origin == ""


def test_of_two_packages_with_one_code_the_first_has_it(install: Callable[..., None]) -> None:
    install("acme_a", _source())
    install("acme_b", _source(name="other_rule"))

    assert _plugin("acme_a").codes == ("ABC101",)
    assert "ABC101 is taken by own-rule of acme_a" in _plugin("acme_b").problem


def test_an_entry_point_that_leads_nowhere_is_told(install: Callable[..., None]) -> None:
    install("acme_lost", _source(), "acme_lost:nothing_here")
    install("acme_odd", _source("ABD101", "other_rule"), "acme odd !")

    assert "AttributeError" in _plugin("acme_lost").problem
    assert _plugin("acme_odd").problem
    assert "ITS401" in {one.code for one in _analyzed().findings}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("yield from [][3]", "IndexError: list index out of range (acme_bad.py, line 5)"),
        ("raise SystemExit", "SystemExit (acme_bad.py, line 5)"),
        ('case.observations.fills["no"]; yield', "ColumnNotFoundError"),
        ("return 5", "TypeError"),
        ("yield 5", "it yielded a int, which is no Finding"),
        ('yield case.finding("")', "its finding has no message"),
        ('yield case.finding("x", nonsense=1)', "nonsense"),
        ('yield case.finding("x", severity="error")', "'error' as severity, which is no Severity"),
        ('yield case.finding("x", vcpus=[0])', "[0] as vcpus, which is no tuple of int"),
        ('yield case.finding("x", seqs=(-1,))', "names a record that there cannot be"),
        ('yield case.finding("x", seqs=(2**64,))', "names a record that there cannot be"),
        ('yield case.finding("x", count=0)', "0 as count"),
        ('yield case.finding("x", intid="8192")', "'8192' as intid"),
        ('yield case.finding("x", time_ns=1.5)', "1.5 as time_ns"),
        ('yield case.finding("x", measure=None)', "None as measure"),
        ('yield case.finding("x", subjects=(Subject(intid=-4),))', "-4 as intid"),
        ('yield case.finding("x", known_bugs=("x",))', "as known_bugs, which is no tuple of KnownBug"),
        (
            'from dataclasses import replace; yield replace(case.finding("x"), code="ITS401")',
            "finding of 'ITS401'",
        ),
        ('yield case.finding("x"); raise KeyError("late")', "KeyError: 'late' (acme_bad.py, line 5)"),
    ],
    ids=range(19),
)
def test_a_rule_that_fails_is_told_and_nothing_of_it_is_used(
    body: str, why: str, install: Callable[..., None]
) -> None:
    install("acme_bad", _source(body=body))
    analysis = _analyzed()
    (skipped,) = [one for one in analysis.skipped if one.code == "ABC101"]

    assert why in skipped.why
    assert skipped.missing == ()
    assert "ABC101" not in {one.code for one in analysis.findings}
    assert "ITS401" in {one.code for one in analysis.findings}


def test_records_that_are_none_of_the_capture_are_no_evidence(install: Callable[..., None]) -> None:
    install("acme_far", _source(body='yield case.finding("x", seqs=(10**15,))'))

    assert next(one.evidence for one in _analyzed().findings if one.code == "ABC101") == ()


@pytest.mark.usefixtures("install")
def test_our_own_mistakes_are_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: Case) -> Iterator[Finding]:
        raise KeyError

    broken.__module__ = "itstrace.rules.its401_double_pending"
    monkeypatch.setitem(
        RULES, "ITS401", itstrace.rules.Rule("ITS401", "x", Kind.HOST, Severity.ERROR, (), broken)
    )

    with pytest.raises(KeyError):
        _analyzed()


@pytest.mark.usefixtures("install")
def test_metadata_of_whatever_is_installed_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(**_: object) -> None:
        raise ValueError("torn")

    monkeypatch.setattr("itstrace.rules.others.entry_points", broken)

    assert [one.problem.split(" (")[0] for one in plugins()] == ["ValueError: torn"]
    assert "ITS401" in {one.code for one in _analyzed().findings}


@pytest.mark.usefixtures("install")
def test_a_rule_may_be_registered_without_a_package() -> None:
    """As in a notebook, before the analysis."""

    @rule("NBK101", kind=Kind.EVIDENCE, severity=Severity.NOTE, settings=(Setting("nbk", 1, "one"),))
    def notebook_rule(case: Case) -> Iterator[Finding]:
        yield case.finding("From a notebook.")

    assert "From a notebook." in {one.message for one in _analyzed().findings}
    with pytest.raises(RuleError, match="the setting nbk is taken by NBK101"):
        rule("NBK102", kind=Kind.GUEST, severity=Severity.NOTE, settings=(Setting("nbk", 1, "one"),))(
            _other_rule
        )


def _other_rule(case: Case) -> Iterator[Finding]:
    yield case.finding("Never.")


# --- the guide's package, in a process of its own


def _files() -> dict[str, str]:
    """The files that the guide shows, by the names in their first lines."""
    blocks = re.findall(r"^```(?:toml|python)\n# (\S+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return dict(blocks)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide's package as `pip install` would lay it: the module, and its metadata from its pyproject.toml."""
    import tomllib  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("site")
    for name, text in _files().items():
        (folder / name).write_text(text, encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(_files()["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    return folder


def _ran(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, capture_output=True, check=False, text=True, encoding="utf-8",
        env={"PYTHONPATH": f"{package}:{ROOT}", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip


def test_the_guides_package_does_what_the_guide_shows(package: Path) -> None:
    (block,) = re.findall(r"^```console\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    calls = re.findall(r"^\$ itstrace (.*)\n((?:(?!\$ ).*\n)+)", block, re.MULTILINE)

    assert len(calls) == 2
    for arguments, shown in calls:
        done = _ran(package, "-m", "itstrace.cli", *arguments.split())
        assert (done.returncode, done.stderr) == (0, "")
        at = 0
        for line in shown.splitlines():
            at = done.stdout.find(line, at)
            assert at >= 0, line


def test_the_guides_test_passes(package: Path) -> None:
    done = _ran(
        package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(package), str(package)
    )

    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_every_output_tells_its_findings(package: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("json", "sarif", "junit")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    done = _ran(package, "-m", "itstrace.cli", "analyze", str(CAPTURE), "--fail-on", "warning", *options)
    document, log = (json.loads(files[name].read_text()) for name in ("json", "sarif"))

    assert done.returncode == 1
    assert document["coverage"]["plugins"] == [
        {"name": "acme", "package": "acme-itstrace-rules 1.0", "codes": ["ACM101"], "problem": ""}
    ]
    assert "ACM101" in {finding["code"] for finding in document["findings"]}
    assert "ACM101" in {result["ruleId"] for result in log["runs"][0]["results"]}
    assert 'name="ACM101 over-budget"' in files["junit"].read_text()


def test_what_is_wrong_is_said_on_standard_error_and_in_the_report(package: Path, tmp_path: Path) -> None:
    for path in package.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    info = next(package.glob("*.dist-info"))
    (tmp_path / info.name).mkdir()
    for path in info.iterdir():
        (tmp_path / info.name / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    module = tmp_path / "acme_itstrace_rules.py"
    module.write_text(
        module.read_text(encoding="utf-8").replace('"took_ns")\n', '"tok_ns")\n'), encoding="utf-8"
    )
    module.write_text(
        module.read_text(encoding="utf-8").replace('sort("took_ns")', 'sort("tok_ns")'), encoding="utf-8"
    )
    broken = _ran(tmp_path, "-m", "itstrace.cli", "analyze", str(CAPTURE))
    module.write_text('raise ValueError("\\x1b[2J torn")\n', encoding="utf-8")
    torn = _ran(tmp_path, "-m", "itstrace.cli", "analyze", str(CAPTURE))
    listed = _ran(tmp_path, "-m", "itstrace.cli", "rules")

    assert (broken.returncode, torn.returncode, listed.returncode) == (0, 0, 0)
    assert broken.stderr.startswith("rule ACM101 over-budget failed and is left out: ColumnNotFoundError")
    assert "(acme_itstrace_rules.py, line " in broken.stderr
    assert torn.stderr == listed.stderr
    assert torn.stderr == (
        "rules of acme-itstrace-rules 1.0 (acme) are left out: ValueError: \\x1b[2J torn (acme_itstrace_rules.py, line 1)\n"
    )
    assert "Rules of other packages that failed, and are left out:" in broken.stdout
    assert "acme-itstrace-rules 1.0 (acme): ValueError" in torn.stdout
    assert "ITS401 double-pending" in broken.stdout
    assert "Traceback" not in broken.stderr + torn.stderr
