"""Rules of others: packages that bring some through the entry point group `itstrace.rules`.

Such a package is somebody else's program: whatever goes wrong in it is told, and never ends an analysis. It is
loaded when rules are first asked for, once in a process.
"""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final

from itstrace.findings import Confidence, Evidence, Finding, Harm, Kind, KnownBug, Severity, Subject
from itstrace.rules.registry import RULES, Rule

if TYPE_CHECKING:
    from itstrace.rules.case import Case

GROUP: Final = "itstrace.rules"
#: Numbers of records and times, and ids, that frames can hold.
_LARGEST: Final = 2**63
_PACKAGE: Final = str(Path(__file__).parents[1])
#: What a plug-in's own lines call, and what calls them.
_LIBRARY: Final = re.compile(r"[/\\](polars|importlib)[/\\]")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point: the package that has it, the rules that it brought, or why none of them is used."""

    name: str
    package: str
    codes: tuple[str, ...] = ()
    problem: str = ""


@cache
def plugins() -> tuple[Plugin, ...]:
    """Load the rules of all packages that bring some; each with what came of it."""
    try:
        found = sorted(entry_points(group=GROUP), key=lambda one: (one.name, one.value))
    except Exception as error:  # noqa: BLE001  # metadata of any installed package, in any state
        return (Plugin(GROUP, "a package's metadata", problem=words(error)),)
    return tuple(_load(each) for each in found)


def _load(entry: EntryPoint) -> Plugin:
    """One entry point: a module whose import registers rules, or something in it that does when it is called."""
    package = entry.value
    before = set(RULES)
    try:
        if entry.dist is not None:
            package = f"{entry.dist.name} {entry.dist.version}"
        brought = entry.load()
        if callable(brought) and all(rule.check is not brought for rule in RULES.values()):
            brought()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # somebody else's program
        for code in set(RULES) - before:  # half of a package would be a trap
            del RULES[code]
        return Plugin(entry.name, package, problem=words(error))
    return Plugin(entry.name, package, tuple(code for code in RULES if code not in before))


def checked(rule: Rule, case: Case) -> tuple[list[Finding], str]:
    """What somebody else's rule finds, or in words why it failed: then nothing of it is used."""
    found: list[Finding] = []
    try:
        for finding in rule.check(case):
            problem = _unsound(finding, rule)
            if problem:
                return [], problem
            found.append(finding)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # somebody else's program
        return [], words(error)
    return found, ""


def words(error: BaseException) -> str:
    """An error of somebody else's program: what, and the line of that program, as far as one can tell which it is."""
    text = " ".join(str(error).split())
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_PACKAGE, "<")) and not _LIBRARY.search(frame.filename)
    ]
    at = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{at}"


# --- what a finding must be, so that everything behind the rules can rely on it

_TEXT: Final = {
    "name": str, "message": str, "advice": str, "claim": str, "mechanism": str, "worst": str, "guest_saw": str, "doubt": str,
    "capture_next": str, "kind": Kind, "severity": Severity, "confidence": Confidence, "harm": Harm,
}  # fmt: skip
_IDS: Final = ("vm", "its", "device_id", "event_id", "intid")
_TIMES: Final = ("time_ns", "end_ns")
_LISTS: Final = {
    "vcpus": int, "seqs": int, "blames": int, "suspect": str, "subjects": Subject, "evidence": Evidence,
    "known_bugs": KnownBug,
}  # fmt: skip


def _unsound(finding: object, rule: Rule) -> str:
    """What is wrong with a finding of somebody else's rule; empty for nothing."""
    if not isinstance(finding, Finding):
        return f"it yielded a {type(finding).__name__}, which is no Finding"
    if finding.code != rule.code:
        return f"it yielded a finding of {finding.code!r}; its own are made by case.finding"
    for name, kind in _TEXT.items():
        if not isinstance(getattr(finding, name), kind):
            return f"its finding has {getattr(finding, name)!r} as {name}, which is no {kind.__name__}"
    for name, kind in _LISTS.items():
        values = getattr(finding, name)
        if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
            return f"its finding has {values!r} as {name}, which is no tuple of {kind.__name__}"
    if not finding.message:
        return "its finding has no message"
    if not isinstance(finding.measure, int | float):
        return f"its finding has {finding.measure!r} as measure, which is no number"
    things: tuple[Finding | Subject, ...] = (finding, *finding.subjects)
    for thing in things:
        numbers = {name: getattr(thing, name) for name in (*_IDS, *_TIMES) if hasattr(thing, name)}
        for name, value in numbers.items():
            if not (value is None or _number(value, at_least=-_LARGEST if name in _TIMES else 0)):
                return f"its finding has {value!r} as {name}, which is no number of that kind"
        if not _number(thing.count, at_least=1):
            return f"its finding has {thing.count!r} as count"
        if not all(map(_number, thing.vcpus)):
            return f"its finding has {thing.vcpus!r} as vcpus"
    if not all(map(_number, (*finding.seqs, *finding.blames))):
        return "its finding names a record that there cannot be"
    return ""


def _number(value: object, at_least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and at_least <= value < _LARGEST
