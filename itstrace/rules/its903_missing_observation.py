"""ITS903: events that rules need were not recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.observe import OBSERVATIONS, PROBES
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.rules.case import Case


@rule("ITS903", kind=Kind.EVIDENCE, severity=Severity.NOTE)
def missing_observation(case: Case) -> Iterator[Finding]:
    """Events that rules need were not recorded.

    ## What it finds
    Rules that could not run, because the capture has none of the events that one of their observations is
    made of.

    ## Why it matters
    That such a rule found nothing says nothing.

    ## Where it comes from
    Stock kernels have no tracepoint for ITS commands, LPIs or list registers: they must be recorded with
    dynamic events.

    ## When it is wrong
    Where the events have other names than ours; then they are not recognised (`--events FILE`). A text does not say
    which events were recorded: one that never fired looks the same there.

    ## What to do
    Record the functions named in the message: each is a kprobe or kretprobe on that function of KVM.
    """
    lacking = sorted({name for names in case.skipped.values() for name in names})
    for name in lacking:
        observation = next(o for o in OBSERVATIONS if o.name == name)
        codes = [code for code, names in case.skipped.items() if name in names]
        ways = observation.ways(case.host)
        if not ways:
            yield case.finding(
                f"{name} ({observation.what}) is nothing that a log of {case.host} tells, so {', '.join(codes)} could not run.",
                count=len(codes),
                advice=f"Nothing: {case.host}'s ITS hands an LPI straight to its redistributor. Record the guest on KVM to "
                "see these.",
            )
            continue
        missing = [probe for probe in ways[0] if probe not in case.observations.fed_by]
        wanted = ", ".join(f"{PROBES[probe].events[0]} ({PROBES[probe].kernel})" for probe in missing)
        # Text cannot tell an event that never fired from one that was not recorded.
        absent = "was not recorded" if case.observations.described else "never happened, or was not recorded"
        yield case.finding(
            f"{name} ({observation.what}) {absent}, so {', '.join(codes)} could not run. Missing: {wanted}.",
            count=len(codes),
            **({"advice": 'Record with -trace "gicv3_its_*".'} if case.host == "QEMU" else {}),
        )
