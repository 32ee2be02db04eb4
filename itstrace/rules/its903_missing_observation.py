"""ITS903: events that rules need were not recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.observe import OBSERVATIONS, PROBES
from itstrace.observe.catalogue import recipe
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.rules.case import Case


@rule("ITS903", kind=Kind.EVIDENCE, severity=Severity.NOTE, claim="events that rules need were not recorded")
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
    Record the functions named in the message: each is a kprobe or kretprobe on that function of KVM. The finding has the
    definitions, ready to be written into tracefs, for kernels that take names of arguments (6.9 and newer).
    """
    lacking = sorted({name for names in case.skipped.values() for name in names})
    for name in lacking:
        observation = next(o for o in OBSERVATIONS if o.name == name)
        codes = [code for code, names in case.skipped.items() if name in names]
        ways = observation.ways(case.host)
        if not ways:
            yield case.finding(
                f"A log of {case.host} does not tell {name} ({observation.what}), so {', '.join(codes)} could not run.",
                mechanism=f"{name} cannot be told",
                count=len(codes),
                advice=f"Nothing: {case.host}'s ITS hands an LPI straight to its redistributor. Record the guest on KVM to "
                "see these.",
            )
            continue
        # Of several ways the one that misses least, and can be told.
        missing = min(
            ([probe for probe in way if probe not in case.observations.fed_by] for way in ways),
            key=lambda probes: (
                sum(not PROBES[probe].recording(case.kernel) for probe in probes),
                len(probes),
            ),
        )
        wanted = ", ".join(f"{PROBES[probe].events[0]} ({PROBES[probe].kernel})" for probe in missing)
        # Text cannot tell an event that never fired from one that was not recorded.
        absent = "was not recorded" if case.observations.described else "never happened, or was not recorded"
        yield case.finding(
            f"{name} ({observation.what}) {absent}, so {', '.join(codes)} could not run. Missing: {wanted}.",
            count=len(codes),
            capture_next="\n".join(filter(None, (PROBES[probe].recording(case.kernel) for probe in missing))),
            advice='Record with -trace "gicv3_its_*".' if case.host == "QEMU" else _advice(case, missing),
        )


def _advice(case: Case, missing: Sequence[str]) -> str:
    """Commands that record the missing probes, as far as they can be told for the capture's kernel."""
    made = recipe([line for probe in missing if (line := PROBES[probe].recording(case.kernel))])
    said = []
    if made.defined:
        said.append(f"As root on the host: {'; '.join(made.defined)}")
        said += made.offsets
    if made.record:
        said.append(f"Record with {made.record}, besides what was recorded")
    unknown = [PROBES[probe] for probe in missing if not PROBES[probe].recording(case.kernel)]
    if unknown:
        functions = ", ".join(dict.fromkeys(one.kernel for one in unknown))
        said.append(
            f"Put a probe on {functions}: this kernel takes registers and offsets only, which differ by build"
            if case.kernel
            else f"Put a probe on {functions}"
        )
    return ". ".join(said) + ". docs/recording.md has a whole set."
