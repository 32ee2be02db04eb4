"""Which event and field of which kernel says what: one table, read by everything that has to know.

A *probe* is one place in KVM that a capture may have recorded, under the event name that our own definitions
give it. Its columns name what we want, and the field names under which a kernel's definition may give it, the
best first. They stand in `events.toml`. An *observation* is a frame made out of one or several probes. `info`,
coverage and the advice about missing events read the same table.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from itstrace.observe.versions import version_of
from itstrace.readers import qemulog

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: The types of columns, by the names that `events.toml` gives them.
TYPES: Final[dict[str, pl.DataType]] = {
    "u64": pl.UInt64(),
    "u32": pl.UInt32(),
    "s32": pl.Int32(),
    "text": pl.String(),
}


class Place(StrEnum):
    """Where in a function a probe stands."""

    ENTRY = "entry"
    RETURN = "return"
    INSIDE = "inside"
    TRACEPOINT = "tracepoint"  # not in a function of its own


#: The first kernel whose probes take names of arguments, in returns too. Kernel: kernel/trace/trace_probe.c (v6.9)
_NAMED_ARGUMENTS = (6, 9)
_PLACE_WORDS = {Place.RETURN: ", return", Place.INSIDE: ", inside its loop"}


@dataclass(frozen=True, slots=True)
class Column:
    """One value that a probe gives: our name and type, and the event fields that may hold it, the best first.

    `required`: a record without it says nothing, and an event that has no such field is not this probe.
    `expected`: an event that has no such field is not this probe either, but a record may leave it empty.
    `narrow`: a number of 32 bits at most; an unsigned field of 64 bits may be a pointer by the same name.
    """

    name: str
    dtype: pl.DataType
    fields: tuple[str, ...]
    required: bool = False
    expected: bool = False
    narrow: bool = False

    @property
    def needed(self) -> bool:
        """Whether an event must have a field for it."""
        return self.required or self.expected


@dataclass(frozen=True, slots=True)
class Probe:
    """One place in KVM: our name, the events that record it (the best first), its columns, and where it stands.

    `source`: who says it; a capture has either KVM's probes or QEMU's own ITS. `record`: how to define the best of the
    events, and how on 7.0 and newer; empty where it cannot be said without the very build.
    """

    name: str
    events: tuple[str, ...]
    function: str
    place: Place
    columns: tuple[Column, ...]
    #: The columns that values without a name stand for, where there are just so many; a name that is no
    #: column is one that nobody needs.
    arguments: tuple[str, ...] = ()
    source: str = "KVM"
    record: tuple[str, str] = ("", "")

    def recording(self, kernel: str | None) -> str:
        """What to write to record it: a line for tracefs' `dynamic_events`, or `-e` with the name of a tracepoint.

        Empty where it is not known for this kernel (as `uname -r` has it). What depends on the build is in capitals: the
        offset VGIC_LR of vgic_lr[] in struct kvm_vcpu; and INTID, that of intid in struct vgic_irq, where the kernel is not
        known.
        """
        if self.place is Place.TRACEPOINT:
            return f"-e {self.events[0]}"
        version = version_of(kernel)
        if version is not None and version[:2] < _NAMED_ARGUMENTS:
            return ""
        newer = version is not None and version[0] >= 7
        # Kernel: vgic.h:struct vgic_irq of 6.12.107 and 7.3.4
        offsets = {
            "intid": "INTID" if version is None else 4 if newer else 56,
            "lr0": "VGIC_LR",
            **{f"lr{n}": f"VGIC_LR+{8 * n}" for n in (1, 2, 3)},
        }
        return self.record[newer].format(**offsets)

    @property
    def kernel(self) -> str:
        """Where it stands, in words: `kvm_read_guest, return`."""
        return self.function + _PLACE_WORDS.get(self.place, "")


class Recipe(NamedTuple):
    """Commands, as root on the host, that record probes: what defines them, what records, which words stand for offsets."""

    defined: tuple[str, ...]
    record: str
    offsets: tuple[str, ...]


#: Words in definitions that stand for what depends on the build.
_OFFSETS: Final = {"VGIC_LR": "of vgic_lr[] in struct kvm_vcpu", "INTID": "of intid in struct vgic_irq"}


def recipe(lines: Sequence[str]) -> Recipe:
    """How to record what these lines (`Probe.recording`, none empty) define; `record` is empty where there are none."""
    events = [line for line in lines if line.startswith("-e ")]
    defined = [line for line in lines if not line.startswith("-e ")]
    groups = sorted({line.split()[0].partition(":")[2].partition("/")[0] for line in defined})
    chosen = " ".join([*(f"-e {group}" for group in groups), *events])
    return Recipe(
        tuple(f"echo '{line}' >> /sys/kernel/tracing/dynamic_events" for line in defined),
        f"trace-cmd record -C mono {chosen}" if lines else "",
        tuple(
            f"{word} is the offset {what} of that very kernel (pahole, from its BTF)"
            for word, what in _OFFSETS.items()
            if any(word in line for line in defined)
        ),
    )


#: The table as it stands in the file, by the names of probes.
TABLE: Final[dict[str, dict[str, Any]]] = tomllib.loads(
    resources.files("itstrace.observe").joinpath("events.toml").read_text(encoding="utf-8")
)


def _probe(name: str, table: dict[str, Any]) -> Probe:
    columns = (
        Column(
            column,
            TYPES[said["type"]],
            tuple(said["names"]),
            *(said.get(flag, False) for flag in ("required", "expected", "narrow")),
        )
        for column, said in table.get("fields", {}).items()
    )
    return Probe(
        name,
        tuple(table["events"]),
        table["function"],
        Place(table.get("at", Place.ENTRY)),
        tuple(columns),
        tuple(table.get("arguments", ())),
        record=(table.get("record", ""), table.get("record_7", table.get("record", ""))),
    )


def _qemu(event: str) -> Probe:
    """What QEMU's own ITS logs: the event's operands as they stand."""
    columns = tuple(Column(name, TYPES["u64"], (name,), required=True) for name in qemulog.operands(event))
    full_name = f"{qemulog.SYSTEM}:{qemulog.ITS_EVENT}{event}"
    where = 'QEMU, -trace "gicv3_its_*"'
    return Probe(f"qemu_{event}", (full_name,), where, Place.TRACEPOINT, columns, source="QEMU")


#: Events of QEMU's ITS that say nothing of what a guest asked or got.
_QEMU_UNUSED = {"badread", "badwrite", "dte_write", "ite_write", "vte_read", "vte_write", "vte_read_fault"}

#: Every probe that itstrace understands, by our name for it.
PROBES: Final[dict[str, Probe]] = {name: _probe(name, table) for name, table in TABLE.items()} | {
    probe.name: probe for probe in (_qemu(event) for event in qemulog.FORMATS if event not in _QEMU_UNUSED)
}


@dataclass(frozen=True, slots=True)
class Observation:
    """One frame of what KVM did: the probes that feed it, which of them suffice, and why a reader would want it."""

    name: str
    #: Any of these groups of probes is enough.
    fed_by: tuple[tuple[str, ...], ...]
    what: str

    def ways(self, source: str) -> tuple[tuple[str, ...], ...]:
        """The groups of probes of one source, "KVM" or "QEMU"; none where it cannot tell."""
        return tuple(group for group in self.fed_by if PROBES[group[0]].source == source)


def source_of(probes: Iterable[str]) -> str:
    """Who recorded a capture that feeds these probes: "KVM" or "QEMU"."""
    return "QEMU" if any(PROBES[probe].source == "QEMU" for probe in probes) else "KVM"


#: The observations, in the order in which `info` prints them.
OBSERVATIONS: Final[tuple[Observation, ...]] = (
    Observation(
        "COMMANDS",
        (("process", "command"), ("process", "guest_read"), ("qemu_process_command",)),
        "ITS commands as the ITS took them",
    ),
    Observation(
        "REGISTER_WRITES",
        (("write_cwriter", "write_cbaser", "write_baser", "write_ctlr"), ("qemu_write",)),
        "writes to the ITS's registers",
    ),
    Observation(
        "REDISTRIBUTOR_WRITES",
        (("write_rctlr",), ("enable_lpis", "flush_lpis")),
        "EnableLPIs and the table bases",
    ),
    Observation(
        "INJECTIONS",
        (
            ("msi", "cached", "trigger_end", "resolve_end"),
            ("trigger", "trigger_end", "resolve_end"),
            ("qemu_translation_write",),
        ),
        "MSIs offered to the ITS",
    ),
    Observation("QUEUEINGS", (("queue",),), "LPIs put on a vCPU's ap_list"),
    Observation("LIST_REGISTERS", (("fill", "fold"),), "LPIs written into list registers and read back"),
    Observation("FILL_RETURNS", (("fill", "fill_end"),), "what was written into list registers"),
    Observation("RETARGETS", (("affinity",),), "LPIs given to another vCPU"),
    Observation("CONFIGS", (("config_end",),), "LPI configuration as KVM read it"),
    Observation("INVALIDATIONS", (("invalidate",),), "translation caches dropped"),
    Observation(
        "INVALIDATION_ENDS",
        (("invalidate", "invalidate_end"),),
        "when the dropping of a translation cache was over",
    ),
    Observation(
        "ALLOCATIONS", (("alloc_device", "alloc_collection"),), "devices, events and collections allocated"
    ),
    Observation("RUNS", (("enter", "exit"),), "when a vCPU was in the guest"),
    Observation("MARKERS", (("marker",),), "notes written into the trace"),
)
