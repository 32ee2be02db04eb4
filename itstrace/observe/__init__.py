"""Events to observations: what KVM was seen to do, in frames of one meaning, whatever the kernel and its probes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import polars as pl

from itstrace import schemas
from itstrace.observe import calls, interrupts, qemu, state
from itstrace.observe.catalogue import OBSERVATIONS, PROBES, Observation
from itstrace.observe.collect import Raw, collect
from itstrace.observe.commands import commands, skipped_slots
from itstrace.observe.events_file import load_events
from itstrace.observe.evidence import lines
from itstrace.observe.identity import Identity, identify
from itstrace.observe.matching import BUILT_IN, Catalogue, How
from itstrace.observe.order import disorder
from itstrace.observe.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from itstrace.readers.base import Capture

__all__ = [
    "OBSERVATIONS",
    "PROBES",
    "Catalogue",
    "How",
    "Observation",
    "Observations",
    "load_events",
    "observe",
]


@dataclass(slots=True)
class Observations:
    """All observations of one capture; each frame has the schema of its name in `schemas`, in upper case."""

    vms: pl.DataFrame
    itss: pl.DataFrame
    vcpus: pl.DataFrame
    commands: pl.DataFrame
    register_writes: pl.DataFrame
    redistributor_writes: pl.DataFrame
    injections: pl.DataFrame
    queueings: pl.DataFrame
    fills: pl.DataFrame
    retargets: pl.DataFrame
    configs: pl.DataFrame
    config_calls: pl.DataFrame
    invalls: pl.DataFrame
    invalidations: pl.DataFrame
    allocations: pl.DataFrame
    guest_reads: pl.DataFrame
    #: When vCPUs were in the guest; `runs.frame()` gives rows of RUNS.
    runs: Runs
    vm_events: pl.DataFrame
    markers: pl.DataFrame
    #: Records that their own call belies.
    contradictions: pl.DataFrame
    #: Every fold of list registers: seq, time_ns, vm, vcpu, used, lr0 to lr3 (stale ones beyond `used`, too).
    folds: pl.DataFrame
    fill_returns: pl.DataFrame
    #: Records stamped in an order in which they cannot have happened.
    disorder: pl.DataFrame
    #: The capture's event that feeds each probe.
    fed_by: dict[str, str]
    #: By what that event was found.
    found_by: dict[str, How]
    #: What the user's file of events asks for and the capture does not give, a sentence each.
    remarks: list[str]
    #: Records seen per probe.
    records: dict[str, int]
    _raw: Raw
    #: The capture describes all events that the host had; else an event that is not there may have been recorded.
    described: bool = True
    #: Slots of the queue without a command (rows of SKIPPED_SLOTS).
    skipped_slots: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=schemas.SKIPPED_SLOTS))
    #: By VM: a number that no vCPU of it reaches, where that is known.
    vcpu_limits: dict[int, int] = field(default_factory=dict)

    @property
    def invalidation_ends(self) -> pl.DataFrame:
        """The invalidations whose return was recorded. Shape: rows of INVALIDATIONS."""
        return self.invalidations.drop_nulls("end_seq")

    def frames(self) -> dict[str, pl.DataFrame]:
        """Every frame by its name. Shape: each rows of the schema of its name, `runs` of RUNS."""
        values = {each.name: getattr(self, each.name) for each in fields(self)} | {"runs": self.runs.frame()}
        return {name: value for name, value in values.items() if isinstance(value, pl.DataFrame)}

    def lines(self, seqs: Iterable[int]) -> pl.DataFrame:
        """The capture's own records of these seqs. Shape: seq, time_ns, cpu, event, text."""
        return lines(self._raw, seqs)

    def gives(self, probe: str, column: str) -> bool:
        """Whether the capture's definition of a probe gives this column of `events.toml`."""
        return self._raw.gives(probe, column)

    def covers(self, observation: Observation) -> bool:
        """Whether the capture's events suffice for an observation.

        A file describes every event that the host had, recorded or not. Most of ours may honestly never fire; a
        guest that runs enters and leaves, and an MSI that KVM took is queued.
        """
        if observation.name == "RUNS" and not {"enter", "exit"} <= set(self.records):
            return False
        if observation.name == "QUEUEINGS" and "queue" not in self.records:
            taken = self.injections.filter(pl.col("result") == 0)
            return taken.is_empty() and "queue" in self.fed_by
        return any(all(probe in self.fed_by for probe in group) for group in observation.fed_by)


def observe(capture: Capture, catalogue: Catalogue = BUILT_IN) -> Observations:
    """Read a capture once and make every observation of it; `catalogue` knows the events that feed them.

    Raises: whatever the reader raises for a file that cannot be read at all.
    """
    raw = collect(capture, catalogue)
    observations = from_qemu(raw) if qemu.is_qemu(raw) else from_raw(raw, identify(raw))
    observations.described = capture.info.describes_events
    return observations


def from_raw(raw: Raw, identity: Identity) -> Observations:
    """Observations out of raw probe frames."""
    ran = Runs(raw, identity)
    taken = commands(raw, identity, ran)
    injected = interrupts.injections(raw, identity, taken)
    return Observations(
        vms=identity.vms,
        itss=identity.itss,
        vcpus=identity.vcpus,
        commands=taken,
        register_writes=state.register_writes(raw, identity),
        redistributor_writes=state.redistributor_writes(raw, identity),
        injections=injected,
        queueings=interrupts.queueings(raw, identity, injected, ran),
        fills=interrupts.fills(raw, identity, interrupts.folds(raw, identity)),
        retargets=state.retargets(raw, identity),
        configs=state.configs(raw, identity),
        config_calls=state.config_calls(raw, identity, ran),
        invalls=state.invalls(raw, identity),
        invalidations=state.invalidations(raw, identity),
        allocations=state.allocations(raw, identity),
        guest_reads=state.guest_reads(raw, identity),
        runs=ran,
        vm_events=state.vm_events(raw, identity),
        markers=state.markers(raw),
        contradictions=calls.contradictions(raw, ran, identity, taken),
        folds=identity.with_vm(raw["fold"])
        .select("seq", "time_ns", "vm", "vcpu", "used", "lr0", "lr1", "lr2", "lr3")
        .sort("seq"),
        fill_returns=interrupts.fill_returns(raw, identity),
        disorder=disorder(raw, ran, taken),
        fed_by=raw.events,
        found_by=raw.found_by,
        remarks=raw.remarks,
        records={name: frame.height for name, frame in raw.frames.items() if frame.height},
        _raw=raw,
        skipped_slots=skipped_slots(raw, identity, taken),
    )


def from_qemu(raw: Raw) -> Observations:
    """Observations out of the log of QEMU's own ITS. What KVM's probes alone can tell stays empty."""
    raw = qemu.by_life(raw)
    identity = qemu.identify(raw)
    taken = qemu.commands(raw)
    return replace(
        from_raw(raw, identity),
        commands=taken,
        register_writes=qemu.register_writes(raw),
        injections=qemu.injections(raw, taken),
        vcpu_limits=qemu.vcpu_limits(raw, taken),
    )
