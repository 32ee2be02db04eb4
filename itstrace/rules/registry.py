"""What a rule is, and the table of them.

One rule is one file, one code, one function; the function's docstring is the rule's page. A rule declares
which observations it needs, and is reported as skipped, with what to record, where the capture lacks one.
Rules of other packages are registered the same way (`others.py`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from itstrace.findings import Finding, Harm, Kind, Severity
from itstrace.observe import OBSERVATIONS

if TYPE_CHECKING:
    from itstrace.rules.case import Case

Check = Callable[["Case"], Iterator[Finding]]

#: Our own rules: where they stand, and how their codes begin.
_OWN_MODULES: Final = "itstrace.rules."
_OWN_CODES: Final = "ITS"

#: Headings of a page, in their order.
HEADINGS = ("What it finds", "Why it matters", "Where it comes from", "When it is wrong", "What to do")


class RuleError(ValueError):
    """A rule that cannot be registered: its code is taken or malformed, or what it declares does not exist."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One number of a rule that a user may set: `--set late-factor=50`. `meaning` says its unit."""

    name: str
    default: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `needs` are names of observations; without one of them it is skipped.

    `claim`: what its findings say, as a clause that a verdict can begin with. `harm`: what it does to the guest.
    `suspect`: functions of KVM that its findings make one suspect, if they do not say otherwise. `guest_sees`:
    what the guest sees of it, likewise. `leads_to`: rules whose findings are consequences of this one's, where
    they blame the same command, or the same LPI later.
    """

    code: str
    name: str
    kind: Kind
    severity: Severity
    needs: tuple[str, ...]
    check: Check
    claim: str = ""
    harm: Harm = Harm.WRONG
    suspect: tuple[str, ...] = ()
    guest_sees: str = ""
    leads_to: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()

    @property
    def origin(self) -> str:
        """The module that brings the rule, where it is none of ours; else empty."""
        return "" if self.check.__module__.startswith(_OWN_MODULES) else self.check.__module__

    @property
    def page(self) -> str:
        """The rule's documentation, as Markdown."""
        return _page(self.check)

    @property
    def summary(self) -> str:
        """The first sentence of the page."""
        return self.page.split("\n\n", 1)[0].replace("\n", " ")

    def section(self, heading: str) -> str:
        """The text under one of `HEADINGS`, as one paragraph; empty where the page has none."""
        return _section(self.page, heading)


# Every finding asks for its rule's advice.


@cache
def _page(check: Check) -> str:
    return inspect.getdoc(check) or ""


@cache
def _section(page: str, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n+(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return " ".join(found.group(1).split()) if found else ""


#: Every rule by its code, in the order of codes.
RULES: dict[str, Rule] = {}


def rule(
    code: str,
    *,
    kind: Kind,
    severity: Severity,
    needs: tuple[str, ...] = (),
    claim: str = "",
    harm: Harm = Harm.WRONG,
    suspect: tuple[str, ...] = (),
    guest_sees: str = "",
    leads_to: tuple[str, ...] = (),
    settings: tuple[Setting, ...] = (),
) -> Callable[[Check], Check]:
    """Register a check; its name in dashes is the rule's name.

    Raises: RuleError where it cannot be: codes are three capital letters and three digits, ITS is for our own.
    """

    def register(check: Check) -> Check:
        name = check.__name__.replace("_", "-")
        made = Rule(
            code,
            name,
            Kind(kind),
            Severity(severity),
            tuple(needs),
            check,
            claim,
            harm,
            tuple(suspect),
            guest_sees,
            tuple(leads_to),
            tuple(settings),
        )
        problem = _problem(made)
        if problem:
            raise RuleError(problem)
        RULES[code] = made
        return check

    return register


def _problem(made: Rule) -> str:
    """Why a rule cannot be registered; empty where it can."""
    code = made.code
    if not re.fullmatch(r"[A-Z]{3}[0-9]{3}", code):
        return f"{code!r} is no code: three capital letters and three digits"
    if made.origin and code.startswith(_OWN_CODES):
        return f"{code}: codes that begin with {_OWN_CODES} are for the rules of itstrace itself"
    for other in RULES.values():
        if code == other.code:
            return f"{code} is taken by {other.name}{_of(other)}"
        if made.name == other.name:
            return f"{code}: the name {made.name} is taken by {other.code}{_of(other)}"
    observations = {observation.name for observation in OBSERVATIONS}
    unknown = [need for need in made.needs if need not in observations]
    if unknown:
        return f"{code} needs {', '.join(unknown)}: no such observation; there are {', '.join(sorted(observations))}"
    taken = {one.name: rule.code for rule in RULES.values() for one in rule.settings}
    for one in made.settings:
        if one.name in taken:
            return f"{code}: the setting {one.name} is taken by {taken[one.name]}"
        if not re.fullmatch(r"[a-z][a-z0-9-]*", one.name):
            return f"{code}: {one.name!r} is no name of a setting: small letters, digits and dashes"
    return ""


def _of(rule: Rule) -> str:
    return f" of {rule.origin}" if rule.origin else ""


def settings() -> dict[str, tuple[Setting, Rule]]:
    """Every number that a user may set, with the rule whose it is, by name."""
    return {one.name: (one, rule) for rule in RULES.values() for one in rule.settings}
