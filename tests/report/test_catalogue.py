"""The list of rules, and a rule's page."""

from __future__ import annotations

from dataclasses import replace

from itstrace import Kind, Severity
from itstrace.report.catalogue import Entry, catalogue, page
from itstrace.report.layout import Sheet
from itstrace.rules import RULES, Setting

PAGE = """A thing is wrong.

## What it finds
A `thing` that is **very** wrong, told at a length that no line of forty columns holds.

- one item that is also too long for one line
- another
  that goes on

    code = stands
    as = it is
"""
ENTRY = Entry(
    "ITS401", "double-pending", Kind.HOST, Severity.ERROR, ("QUEUEINGS",), "A thing is wrong.", PAGE
)


def test_a_page_is_set_for_its_sheet() -> None:
    lines = [line.plain for line in page(Sheet(40), ENTRY)]

    assert lines == [
        "ITS401 double-pending  error, KVM's d...",
        "",
        "A thing is wrong.",
        "",
        "What it finds",
        "A thing that is very wrong, told at a",
        "length that no line of forty columns",
        "holds.",
        "",
        "  - one item that is also too long for",
        "    one line",
        "  - another that goes on",
        "",
        "    code = stands",
        "    as = it is",
        "",
        "needs  QUEUEINGS",
    ]


def test_a_page_ends_with_what_the_rule_declares() -> None:
    whole = replace(
        ENTRY,
        suspect=("vgic_flush_pending_lpis", "vgic_prune_ap_list"),
        guest_sees="one interrupt on two CPUs",
        leads_to=("ITS303", "ITS309"),
        settings=(
            Setting("patience", 20, "times the usual wait, before it is called long"),
            Setting("half", 0.5, "of it"),
        ),
        origin="acme_rules",
    )
    others = [
        whole,
        replace(ENTRY, code="ITS303", name="duplicate-delivery"),
        replace(ENTRY, code="ITS202", name="missing-invalidation", leads_to=("ITS401",)),
    ]
    lines = [line.plain for line in page(Sheet(80), whole, others)]

    assert lines[lines.index("needs         QUEUEINGS") :] == [
        "needs         QUEUEINGS",
        "guest sees    one interrupt on two CPUs",
        "suspect       vgic_flush_pending_lpis, vgic_prune_ap_list",
        "follows from  ITS202 missing-invalidation",
        "leads to      ITS303 duplicate-delivery, ITS309",
        "from          acme_rules",
        "",
        "Settings",
        "  name      default  meaning",
        "  patience       20  times the usual wait, before it is called long",
        "  half          0.5  of it",
        "  itstrace analyze --set patience=VALUE",
    ]


def test_rules_of_another_package_stand_under_its_name() -> None:
    lines = [
        line.plain for line in catalogue(Sheet(), [ENTRY, replace(ENTRY, code="ABC101", origin="acme_rules")])
    ]

    assert "ABC1xx  from acme_rules" in lines


def test_the_list_has_every_rule_and_fits() -> None:
    entries = [Entry(r.code, r.name, r.kind, r.severity, r.needs, r.summary, r.page) for r in RULES.values()]
    lines = [line.plain for line in catalogue(Sheet(80, fine=True), entries)]

    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("  ITS")] == list(RULES)
    assert sum(line.startswith("ITS") for line in lines) == len({code[:4] for code in RULES})


def test_every_page_fits_and_loses_no_word() -> None:
    for r in RULES.values():
        entry = Entry(r.code, r.name, r.kind, r.severity, r.needs, r.summary, r.page)
        lines = [line.plain for line in page(Sheet(80, fine=True), entry)]
        words = {word.strip("`*#.,:;()") for word in r.page.split()} - {""}

        assert max(map(len, lines)) <= 80
        assert words <= {word.strip("`*#.,:;()") for line in lines for word in line.split()} | {"-", "|"}, (
            r.code
        )
