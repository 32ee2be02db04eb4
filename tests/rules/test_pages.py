"""Every rule is one file with one page, and the catalogue is what RULES.md of the project settled."""

from __future__ import annotations

from pathlib import Path

import pytest

import itstrace.rules
from itstrace.findings import Kind
from itstrace.rules import HEADINGS, RULES, Rule

FOLDER = Path(itstrace.rules.__file__).parent


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code)
def test_a_rule_has_its_page(rule: Rule) -> None:
    for heading in HEADINGS:
        assert len(rule.section(heading)) > 30, heading
    assert rule.summary.endswith(".")
    assert rule.claim
    assert rule.claim[-1] not in ".:"
    assert len(rule.claim) <= 70  # with what it is about, two lines of a terminal


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code)
def test_a_rule_stands_in_the_file_of_its_name(rule: Rule) -> None:
    assert (FOLDER / f"{rule.code.lower()}_{rule.name.replace('-', '_')}.py").is_file()


def test_no_file_holds_two_rules() -> None:
    assert len(list(FOLDER.glob("its*.py"))) == len(RULES)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code)
def test_the_hundreds_are_the_kind(rule: Rule) -> None:
    kinds = {
        "1": Kind.GUEST,
        "2": Kind.HOST,
        "3": Kind.LIFE,
        "4": Kind.HOST,
        "6": Kind.HOST,
        "9": Kind.EVIDENCE,
    }

    assert rule.kind == kinds[rule.code[3]]


def test_the_rules_of_the_first_release_are_there() -> None:
    first = [*range(101, 110), 113, 201, 203, 301, 302, 303, 401, 402, 901, 902, 903, 905]

    assert {f"ITS{code}" for code in first} <= set(RULES)
