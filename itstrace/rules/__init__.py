"""Rules: what can go wrong, one file each. A rule never reads a capture; it looks at what was made of it."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Confidence, Evidence, Finding, Kind, Severity, SkippedRule
from itstrace.observe import OBSERVATIONS, Observations
from itstrace.rules.case import Case
from itstrace.rules.causes import linked, named, one_per_cause
from itstrace.rules.known_bugs import known_bugs
from itstrace.rules.registry import HEADINGS, RULES, Rule, Setting
from itstrace.rules.registry import settings as all_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from itstrace.errors import Damage
    from itstrace.lives import Lives
    from itstrace.replay import History

__all__ = ["HEADINGS", "RULES", "Rule", "Setting", "all_settings", "check"]

#: The rule that finds clocks which disagree; then nothing that rests on the order of CPUs is certain.
CLOCKS = "ITS904"
_CLOCKS_DOUBT = (
    f"The clocks of the capture disagree ({CLOCKS}), so that the order of what two CPUs did may be another."
)

for _module in sorted(
    module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("its")
):
    importlib.import_module(f"{__name__}.{_module}")


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
    seen = {observation.name for observation in OBSERVATIONS if observations.covers(observation)}
    missing = {code: tuple(need for need in rule.needs if need not in seen) for code, rule in RULES.items()}
    skipped = {code: lacks for code, lacks in missing.items() if lacks}
    found: list[Finding] = []
    for code, rule in RULES.items():
        if code not in skipped:
            found += rule.check(
                Case(
                    observations,
                    history,
                    lives,
                    gaps,
                    damage,
                    start_ns,
                    end_ns,
                    rule,
                    skipped,
                    losses_told,
                    kernel,
                    settings or {},
                )
            )
    found = one_per_cause(found)
    if not losses_told:
        found = [_at_best_likely(finding) for finding in found]
    if any(one.code == CLOCKS and one.severity is not Severity.NOTE for one in found):
        # What a guest put into its queue stays in that order.
        found = [one if one.kind is Kind.GUEST else _in_doubt(one, _CLOCKS_DOUBT) for one in found]
    found.sort(key=lambda f: (f.severity.rank, f.kind.rank, f.confidence.rank, f.code, f.time_ns or 0))
    found = linked(named(found), RULES)
    found = [replace(one, known_bugs=known_bugs(one, kernel)) for one in found]
    return _with_evidence(found, observations, history), [
        SkippedRule(code, RULES[code].name, lacks) for code, lacks in skipped.items()
    ]


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
