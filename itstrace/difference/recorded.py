"""What two captures are and what they recorded: without it, nothing that differs below can be judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from itstrace.observe import OBSERVATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from itstrace.analysis import Analysis
    from itstrace.observe import Observations

#: B's (VM, ITS) for each of A's.
Matched = dict[tuple[int, int], tuple[int, int]]

#: The frame of `Observations` that holds an observation, where it is not the name in lower case.
_FRAMES: Final = {"LIST_REGISTERS": "fills"}


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that both captures say of themselves; None: it does not say. `unit`: `ns`, or nothing."""

    name: str
    a: str | int | None
    b: str | int | None
    unit: str = ""

    @property
    def same(self) -> bool:
        """Whether both say the same."""
        return self.a == self.b


@dataclass(frozen=True, slots=True)
class Recorded:
    """Both captures side by side. `remarks`: why some of what follows cannot be compared, a sentence each."""

    facts: tuple[Fact, ...]
    only_a: tuple[str, ...]  # observations
    only_b: tuple[str, ...]
    skipped_a: tuple[str, ...]  # codes of rules that could run in B alone
    skipped_b: tuple[str, ...]
    remarks: tuple[str, ...]


def observed(observations: Observations) -> set[str]:
    """The observations that a capture holds, or would hold if there had been any."""
    return {
        entry.name
        for entry in OBSERVATIONS
        if observations.covers(entry)
        or getattr(observations, _FRAMES.get(entry.name, entry.name.lower())).height
    }


def recorded(a: Analysis, b: Analysis, vms: dict[int, int], itss: Matched) -> Recorded:
    """Compare what was recorded; `vms`: B's VM for each of A's, `itss` (VM, ITS) likewise."""
    has_a, has_b = observed(a.observations), observed(b.observations)
    names = [entry.name for entry in OBSERVATIONS]
    cannot_a, cannot_b = ({rule.code for rule in each.skipped} for each in (a, b))
    only_a = tuple(name for name in names if name in has_a - has_b)
    only_b = tuple(name for name in names if name in has_b - has_a)
    skipped_a, skipped_b = tuple(sorted(cannot_a - cannot_b)), tuple(sorted(cannot_b - cannot_a))
    remarks = [
        *(_one_sided("A", only_a)),
        *(_one_sided("B", only_b)),
        *(_not_run("A", skipped_a)),
        *(_not_run("B", skipped_b)),
        *_about("A", a),
        *_about("B", b),
        *_midlife(a, b),
        *_guests(a, b, vms, itss),
    ]
    return Recorded(tuple(_facts(a, b)), only_a, only_b, skipped_a, skipped_b, tuple(remarks))


def length_ns(analysis: Analysis) -> int | None:
    """From the first record to the last."""
    if analysis.start_ns is None or analysis.end_ns is None:
        return None
    return analysis.end_ns - analysis.start_ns


def guests_ns(analysis: Analysis) -> int | None:
    """From the start of the first VM to the end of the last, as far as the capture goes: what rates are by."""
    vms = analysis.observations.vms
    if vms.is_empty() or analysis.start_ns is None or analysis.end_ns is None:
        return length_ns(analysis)
    begun = vms["start_ns"].fill_null(analysis.start_ns).min()
    ended = vms["end_ns"].fill_null(analysis.end_ns).max()
    assert isinstance(begun, int)
    assert isinstance(ended, int)
    return ended - begun


def _facts(a: Analysis, b: Analysis) -> Iterator[Fact]:
    def fact(name: str, tell: Callable[[Analysis], str | int | None], unit: str = "") -> Fact:
        return Fact(name, tell(a), tell(b), unit)

    yield fact("file", lambda one: str(one.info.path))
    yield fact("format", lambda one: one.info.format)
    yield fact("kernel", lambda one: one.info.kernel)
    yield fact("architecture", lambda one: one.info.arch)
    yield fact("replayed as", lambda one: ", ".join(_profiles(one)) or None)
    yield fact("clock", lambda one: one.info.clock)
    yield fact("length", length_ns, "ns")
    yield fact("of it with VMs", guests_ns, "ns")
    yield fact("events", lambda one: int(one.counts["records"].sum()))
    yield fact("types of events", lambda one: one.counts["event"].n_unique())
    yield fact("CPUs", lambda one: one.info.cpus or None)
    yield fact("VMs", lambda one: one.observations.vms.height)
    yield fact("vCPUs", lambda one: one.observations.vcpus.select("vm", "vcpu").n_unique() or None)
    yield fact("ITSs", lambda one: one.observations.itss.height)
    yield fact("lost records", _lost)
    yield fact("damaged places", lambda one: len(one.damage))


def _profiles(analysis: Analysis) -> list[str]:
    return sorted(set(analysis.history.profiles.values()))


def _lost(analysis: Analysis) -> str | int | None:
    """How many; in words where not all of them were counted; None where losses are not told."""
    if analysis.gaps.is_empty():
        return 0 if analysis.info.tells_losses else None
    counted = analysis.gaps["lost"].drop_nulls()
    if counted.len() == analysis.gaps.height:
        return int(counted.sum())
    return f"{int(counted.sum()):,} or more" if counted.len() else "some"


def _one_sided(side: str, names: tuple[str, ...]) -> Iterator[str]:
    if names:
        other = "B" if side == "A" else "A"
        yield (
            f"Only {side} recorded {', '.join(names)}: what depends on "
            f"{'them' if len(names) > 1 else 'it'} is not compared with {other}."
        )


def _not_run(side: str, codes: tuple[str, ...]) -> Iterator[str]:
    if codes:
        rules = "1 rule" if len(codes) == 1 else f"{len(codes)} rules"
        yield f"{rules} could not run in {side}, for lack of recorded events: {', '.join(codes)}."


def _about(side: str, analysis: Analysis) -> Iterator[str]:
    if analysis.gaps.height:
        yield (
            f"{side} lost records. States of LPIs, outcomes and tails of latencies that differ may come from that, and are "
            f"not counted; findings that {side} does not have may have been lost, too."
        )
    if analysis.damage:
        yield f"The file of {side} is damaged: a part of it could not be read."
    if not analysis.info.tells_losses:
        yield f"{side} does not tell whether records were lost."


def _midlife(a: Analysis, b: Analysis) -> Iterator[str]:
    sides = [side for side, each in (("A", a), ("B", b)) if not each.observations.itss["complete"].all()]
    if sides:
        both = len(sides) > 1
        yield (
            f"{' and '.join(sides)} {'begin' if both else 'begins'} with ITS tables already in use: an entry that "
            f"{'one of them' if both else 'it'} does not show may still be mapped there."
        )


def _guests(a: Analysis, b: Analysis, vms: dict[int, int], itss: Matched) -> Iterator[str]:
    profiles = [_profiles(each) for each in (a, b)]
    if profiles[0] != profiles[1] and all(profiles):
        yield (
            f"A is replayed as {' and '.join(profiles[0])}, B as {' and '.join(profiles[1])}: the same command may have "
            "another effect in them."
        )
    for side, other, analysis, known in (("A", "B", a, set(vms)), ("B", "A", b, set(vms.values()))):
        for vm in sorted(set(analysis.observations.vms["vm"]) - known):
            yield f"VM {vm} of {side} has no counterpart in {other}; its tables are not compared."
    for side, analysis, mine, whose in (
        ("A", a, set(itss), set(vms)),
        ("B", b, set(itss.values()), set(vms.values())),
    ):
        for vm, its, base in analysis.observations.itss.select("vm", "its", "base_gpa").iter_rows():
            if vm in whose and (vm, its) not in mine:
                at = "" if base is None else f" at {base:#x}"
                yield f"ITS {its} of VM {vm}{at} is only in {side}; its tables are not compared."
