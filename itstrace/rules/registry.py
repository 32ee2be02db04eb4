"""What a rule is, and the table of them.

One rule is one file, one code, one function; the function's docstring is the rule's page. A rule declares
which observations it needs, and is reported as skipped, with what to record, where the capture lacks one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity

if TYPE_CHECKING:
    from itstrace.rules.case import Case

Check = Callable[["Case"], Iterator[Finding]]

#: Headings of a page, in their order.
HEADINGS = ("What it finds", "Why it matters", "Where it comes from", "When it is wrong", "What to do")


@dataclass(frozen=True, slots=True)
class Setting:
    """One number of a rule that a user may set: `--set late-factor=50`. `meaning` says its unit."""

    name: str
    default: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `needs` are names of observations; without one of them it is skipped.

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
    suspect: tuple[str, ...] = ()
    guest_sees: str = ""
    leads_to: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()

    @property
    def page(self) -> str:
        """The rule's documentation, as Markdown."""
        return inspect.getdoc(self.check) or ""

    @property
    def summary(self) -> str:
        """The first sentence of the page."""
        return self.page.split("\n\n", 1)[0].replace("\n", " ")

    def section(self, heading: str) -> str:
        """The text under one of `HEADINGS`, as one paragraph; empty where the page has none."""
        found = re.search(
            rf"^## {re.escape(heading)}\n+(.*?)(?=^## |\Z)", self.page, re.MULTILINE | re.DOTALL
        )
        return " ".join(found.group(1).split()) if found else ""


#: Every rule by its code, in the order of codes.
RULES: dict[str, Rule] = {}


def rule(
    code: str,
    *,
    kind: Kind,
    severity: Severity,
    needs: tuple[str, ...] = (),
    suspect: tuple[str, ...] = (),
    guest_sees: str = "",
    leads_to: tuple[str, ...] = (),
    settings: tuple[Setting, ...] = (),
) -> Callable[[Check], Check]:
    """Register a check; its name in dashes is the rule's name."""

    def register(check: Check) -> Check:
        name = check.__name__.replace("_", "-")
        assert re.fullmatch(r"[A-Z]{3}\d{3}", code), code
        assert code not in RULES, f"{code} is taken by {RULES[code].name}"
        assert not {one.name for one in settings} & {
            one.name for other in RULES.values() for one in other.settings
        }
        RULES[code] = Rule(code, name, kind, severity, needs, check, suspect, guest_sees, leads_to, settings)
        return check

    return register


def settings() -> dict[str, tuple[Setting, Rule]]:
    """Every number that a user may set, with the rule whose it is, by name."""
    return {one.name: (one, rule) for rule in RULES.values() for one in rule.settings}
