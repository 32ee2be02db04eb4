"""Rules: what can go wrong, one file each. A rule never reads a capture; it looks at what was made of it."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.errors import UsageError
from itstrace.findings import (
    Confidence,
    Evidence,
    Finding,
    Harm,
    Kind,
    KnownBug,
    Severity,
    SkippedRule,
    Subject,
)
from itstrace.observe import OBSERVATIONS, Observations
from itstrace.rules.case import Case, first_some
from itstrace.rules.causes import linked, named, one_per_cause
from itstrace.rules.known_bugs import known_bugs
from itstrace.rules.others import Plugin, checked, plugins
from itstrace.rules.registry import HEADINGS, RULES, Rule, RuleError, Setting, rule
from itstrace.rules.registry import settings as _settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from itstrace.errors import Damage
    from itstrace.lives import Lives
    from itstrace.replay import History

#: What a rule of one's own needs is `rule` to `first_some` (docs/own-rules.md); the rest is for who runs them.
__all__ = [
    "HEADINGS",
    "RULES",
    "Case",
    "Confidence",
    "Evidence",
    "Finding",
    "Harm",
    "Kind",
    "KnownBug",
    "Plugin",
    "Rule",
    "RuleError",
    "Setting",
    "Severity",
    "Subject",
    "all_rules",
    "all_settings",
    "check",
    "first_some",
    "plugins",
    "rule",
    "settings_known",
]

#: The rule that finds clocks which disagree; then nothing that rests on the order of CPUs is certain.
CLOCKS = "ITS904"
_CLOCKS_DOUBT = (
    f"The clocks of the capture disagree ({CLOCKS}), so that the order of what two CPUs did may be another."
)

for _module in sorted(
    module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("its")
):
    importlib.import_module(f"{__name__}.{_module}")


def all_rules() -> Mapping[str, Rule]:
    """Every rule by its code: ours, then those that other installed packages bring."""
    plugins()
    return RULES


def all_settings() -> dict[str, tuple[Setting, Rule]]:
    """Every number that a user may set, with the rule whose it is, by name."""
    plugins()
    return _settings()


def settings_known(given: Mapping[str, float]) -> Mapping[str, float]:
    """The same numbers. Raises: UsageError for one that no rule has."""
    names = all_settings()
    for name in given:
        if name not in names:
            valid = ", ".join(sorted(names)) or "there are none"
            raise UsageError(f"no rule has a setting {name}", advice=f"one of {valid}")
    return given


def check(
    observations: Observations,
    history: History,
    lives: Lives,
    *,
    gaps: pl.DataFrame,
    damage: Sequence[Damage],
    start_ns: int | None = None,
    end_ns: int | None = None,
    losses_told: bool = True,
    kernel: str | None = None,
    settings: Mapping[str, float] | None = None,
) -> tuple[list[Finding], list[SkippedRule]]:
    """Run every rule whose observations were made; one finding per cause, linked with what follows from it.

    Where the capture does not tell what it lost (`losses_told`), nothing about the guest or its host is certain.
    Shape: findings, the worst first, with their evidence spelled out; and the rules that could not run.
    """
    rules = all_rules()
    seen = {observation.name for observation in OBSERVATIONS if observations.covers(observation)}
    missing = {code: tuple(need for need in rule.needs if need not in seen) for code, rule in rules.items()}
    lacking = {code: lacks for code, lacks in missing.items() if lacks}
    skipped = [SkippedRule(code, rules[code].name, lacks) for code, lacks in lacking.items()]
    found: list[Finding] = []
    shared: dict[Callable[[Case], Any], Any] = {}
    for code, each in rules.items():
        if code in lacking:
            continue
        case = Case(
            observations,
            history,
            lives,
            gaps,
            damage,
            start_ns,
            end_ns,
            each,
            lacking,
            losses_told,
            kernel,
            settings or {},
        ).sharing(shared)
        if not each.origin:
            found += each.check(case)
            continue
        theirs, problem = checked(each, case)
        found += theirs
        if problem:
            skipped.append(SkippedRule(code, each.name, (), why=problem))
    found = one_per_cause(found)
    if not losses_told:
        found = [_at_best_likely(finding) for finding in found]
    if any(one.code == CLOCKS and one.severity is not Severity.NOTE for one in found):
        # What a guest put into its queue stays in that order.
        found = [one if one.kind is Kind.GUEST else _in_doubt(one, _CLOCKS_DOUBT) for one in found]
    found.sort(
        key=lambda f: (f.severity.rank, f.kind.rank, f.confidence.rank, f.harm, f.code, f.time_ns or 0)
    )
    found = linked(named(found), rules)
    found = [replace(one, known_bugs=known_bugs(one, kernel)) for one in found]
    return _with_evidence(found, observations, history), skipped


def _at_best_likely(finding: Finding) -> Finding:
    """What a finding is worth where records may be missing unsaid: a life that ends in silence is no error then."""
    if finding.kind is Kind.LIFE and finding.severity is Severity.ERROR:
        finding = replace(finding, severity=Severity.WARNING)
    return _in_doubt(finding, "This form of capture does not tell whether records were lost.")


def _in_doubt(finding: Finding, doubt: str) -> Finding:
    """A finding that is not certain, for a reason that holds for all; those about the evidence itself stay."""
    if finding.kind is Kind.EVIDENCE:
        return finding
    confidence = max(finding.confidence, Confidence.LIKELY, key=lambda each: each.rank)
    return replace(finding, confidence=confidence, doubt=finding.doubt or doubt)


def _with_evidence(
    findings: Iterable[Finding], observations: Observations, history: History
) -> list[Finding]:
    """Spell out the records that findings rest on; a command is decoded, before its words."""
    findings = list(findings)
    lines = observations.lines(seq for finding in findings for seq in finding.seqs)
    commands = history.verdicts.filter(pl.col("seq").is_in(lines["seq"].implode()))
    decoded = dict(commands.select("seq", "text").iter_rows())
    by_seq = {
        seq: Evidence(time_ns, cpu, event, f"{decoded[seq]}: {text}" if seq in decoded else text, seq)
        for seq, time_ns, cpu, event, text in lines.iter_rows()
    }
    return [
        replace(finding, evidence=tuple(by_seq[seq] for seq in finding.seqs if seq in by_seq))
        for finding in findings
    ]
