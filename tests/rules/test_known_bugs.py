"""Known bugs are named where the shape and the kernel fit, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import SAMPLES, analysis_of

from itstrace.observe.versions import version_of
from itstrace.rules import RULES
from itstrace.rules.known_bugs import KNOWN, known_bugs


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.12.107+deb13-arm64", (6, 12, 107)),
        ("7.3.4", (7, 3, 4)),
        ("6.1.0-56-arm64", (6, 1, -1)),  # Debian's 6.1: whichever stable release it is made of
        ("Linux (none) 6.1.0-56-arm64 #1 SMP Debian 6.1.192-2 (2026-11-16) aarch64", (6, 1, 192)),
        ("6.13", (6, 13, -1)),
        ("7.0.0-rc3", (7, 0, 0)),
        ("mine", None),
        (None, None),
    ],
)
def test_the_version_is_the_stable_release(release: str | None, version: tuple[int, int, int] | None) -> None:
    assert version_of(release) == version


def test_every_shape_names_rules_that_exist() -> None:
    assert {code for shape in KNOWN for code in shape.codes} <= set(RULES)


def test_the_double_delivery_of_6_12_is_known() -> None:
    finding = next(
        f for f in analysis_of(SAMPLES / "6.12-double-delivery.dat").findings if f.code == "ITS401"
    )

    assert any("EnableLPIs=0" in bug.title and "nowhere yet" in bug.fixed for bug in finding.known_bugs)
    assert "CVE-2026-72288" in {bug.source for bug in finding.known_bugs}
    # 7.3.4 and 6.1.192 have the fix of the CVE; an unknown kernel may have any of them.
    for kernel, known in (("7.3.4", False), ("6.1.192", False), ("6.12.107", True), (None, True)):
        assert ("CVE-2026-72288" in {bug.source for bug in known_bugs(finding, kernel)}) is known


def test_another_mechanism_of_the_same_rule_is_not_the_bug() -> None:
    finding = next(
        f for f in analysis_of(SAMPLES / "6.12-double-delivery.dat").findings if f.code == "ITS401"
    )

    assert (
        known_bugs(
            replace(finding, mechanism="the vCPU's exit did not read the list register back"), "6.12.107"
        )
        == ()
    )
