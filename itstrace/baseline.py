"""What an earlier analysis had found already: findings against a baseline.

A finding is known if the baseline has, by the same code and mechanism and no milder, everything that it is about;
else it is new. Which VM it is does not matter: they are numbered as they appear. Pure: text in, verdicts out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from itstrace.errors import UsageError
from itstrace.findings import Finding, Severity, Subject

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

#: What `itstrace analyze --json` writes; another major version may mean other things by the same names.
_SCHEMA: Final = "itstrace.analysis/1"

Key = tuple[int | None, int | None, int | None]


@dataclass(frozen=True, slots=True)
class Past:
    """One finding of a baseline: what was wrong, and with what."""

    id: str
    code: str
    name: str
    severity: Severity
    mechanism: str
    message: str
    subjects: frozenset[Key]

    @property
    def what(self) -> tuple[str, str]:
        """By what it is compared, whatever it is about."""
        return self.code, self.mechanism


@dataclass(frozen=True, slots=True)
class Compared:
    """Findings against a baseline. Findings are named by their ids."""

    #: the baseline, as the user named it
    source: str
    known: frozenset[str]
    #: of findings that are new only in part: what they are about besides what the baseline has
    added: Mapping[str, tuple[Subject, ...]]
    #: of findings that are new because they are worse: how bad they were
    milder: Mapping[str, Severity]
    #: what the baseline has, and this analysis has not
    gone: tuple[Past, ...]
    #: what the baseline has, and this analysis could not look for
    untold: tuple[Past, ...]

    def is_known(self, finding: Finding) -> bool:
        """Whether the baseline has a finding already."""
        return finding.id in self.known

    def state(self, finding: Finding) -> str:
        """`known` or `new`."""
        return "known" if self.is_known(finding) else "new"


def read_baseline(text: str, source: str) -> tuple[Past, ...]:
    """The findings of an earlier analysis, from its JSON.

    Raises: UsageError for a text that is no such JSON; `source` names it there.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _none(source, "it is no JSON") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != _SCHEMA:
        raise _none(source, f"its schema is {schema!r}, not {_SCHEMA!r}" if schema else "it names no schema")
    try:
        return tuple(_past(finding) for finding in document["findings"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _none(source, f"its findings cannot be read ({type(error).__name__}: {error})") from error


def _none(source: str, why: str) -> UsageError:
    return UsageError(
        f"{source} is no baseline: {why}", advice=f"itstrace analyze CAPTURE --json {source}, to make one"
    )


def _past(finding: dict[str, Any]) -> Past:
    """One finding of a document; those of before there were subjects are about one thing."""
    subjects = finding.get("subjects") or [finding]
    for name in ("code", "message"):
        if not isinstance(finding[name], str):
            raise TypeError(f"{name} is {finding[name]!r}")
    return Past(
        str(finding.get("id") or finding["code"]),
        finding["code"],
        str(finding.get("name", "")),
        Severity(finding["severity"]),
        str(finding.get("mechanism") or ""),
        finding["message"],
        frozenset((each["device_id"], each["event_id"], each["intid"]) for each in subjects),
    )


def compare(
    findings: Sequence[Finding], baseline: Iterable[Past], source: str, *, skipped: Collection[str] = ()
) -> Compared:
    """Which findings the baseline has, and which of the baseline are gone. `skipped`: codes that were not looked for."""
    baseline = tuple(baseline)
    known: set[str] = set()
    added: dict[str, tuple[Subject, ...]] = {}
    milder: dict[str, Severity] = {}
    for finding in findings:
        alike = [past for past in baseline if past.what == (finding.code, finding.mechanism)]
        as_bad = [past for past in alike if past.severity.rank <= finding.severity.rank]
        had: frozenset[Key] = frozenset().union(*(past.subjects for past in as_bad))
        fresh = tuple(one for one in _subjects(finding) if one.key not in had)
        if not fresh:
            known.add(finding.id)
        elif len(fresh) < len(_subjects(finding)):
            added[finding.id] = fresh
        elif alike and not as_bad:
            milder[finding.id] = min((past.severity for past in alike), key=lambda severity: severity.rank)
    still: dict[tuple[str, str], set[Key]] = {}
    for finding in findings:
        mine = still.setdefault((finding.code, finding.mechanism), set())
        mine |= {one.key for one in _subjects(finding)}
    missing = [past for past in baseline if not past.subjects & still.get(past.what, set())]
    return Compared(
        source,
        frozenset(known),
        added,
        milder,
        tuple(past for past in missing if past.code not in skipped),
        tuple(past for past in missing if past.code in skipped),
    )


def _subjects(finding: Finding) -> tuple[Subject, ...]:
    return finding.subjects or (Subject(finding.device_id, finding.event_id, finding.intid),)
