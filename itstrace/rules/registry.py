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
class Rule:
    """One rule. `needs` are names of observations; without one of them it is skipped."""

    code: str
    name: str
    kind: Kind
    severity: Severity
    needs: tuple[str, ...]
    check: Check

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
    code: str, *, kind: Kind, severity: Severity, needs: tuple[str, ...] = ()
) -> Callable[[Check], Check]:
    """Register a check; its name in dashes is the rule's name."""

    def register(check: Check) -> Check:
        assert re.fullmatch(r"ITS\d{3}", code), code
        assert code not in RULES, f"{code} is taken by {RULES[code].name}"
        RULES[code] = Rule(code, check.__name__.replace("_", "-"), kind, severity, needs, check)
        return check

    return register
