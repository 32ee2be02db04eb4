"""Effects: what a command, a register write or an injection does, one class per fact.

An effect carries every operand that a reader of it needs, so nobody has to look at the tables again. `its` is
the key that the ITS was added under; None where an operand is not known, because the capture began after it
was set.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from itstrace.gic.commands import Command
    from itstrace.gic.faults import Fault


@dataclass(frozen=True, slots=True)
class Effect:
    """Base of all effects."""


@dataclass(frozen=True, slots=True)
class ItsEffect(Effect):
    """An effect of, or on, one ITS."""

    its: int


# --- tables


@dataclass(frozen=True, slots=True)
class DeviceMapped(ItsEffect):
    """A device has an Interrupt Translation Table."""

    device_id: int
    event_bits: int | None
    itt_gpa: int | None


@dataclass(frozen=True, slots=True)
class DeviceUnmapped(ItsEffect):
    """A device is gone, and its events with it: each is an `EventUnmapped` that follows."""

    device_id: int
    event_bits: int | None
    itt_gpa: int | None


@dataclass(frozen=True, slots=True)
class CollectionMapped(ItsEffect):
    """A collection has a target. The vCPU is None only where a seed did not say."""

    icid: int
    vcpu: int | None


@dataclass(frozen=True, slots=True)
class CollectionNamed(ItsEffect):
    """A collection is there, but has no target: MAPTI named it before any MAPC did (KVM)."""

    icid: int


@dataclass(frozen=True, slots=True)
class CollectionUnmapped(ItsEffect):
    """A collection is gone; `vcpu` None: it had no target, or it is not known."""

    icid: int
    vcpu: int | None


@dataclass(frozen=True, slots=True)
class CollectionRetargeted(ItsEffect):
    """A mapped collection (or, with `old_vcpu` None, perhaps a placeholder) got a target by MAPC."""

    icid: int
    old_vcpu: int | None
    new_vcpu: int


@dataclass(frozen=True, slots=True)
class EventMapped(ItsEffect):
    """An event translates to an LPI. `vcpu` is the target of its collection, if there is one."""

    device_id: int
    event_id: int
    intid: int
    icid: int | None
    vcpu: int | None


@dataclass(frozen=True, slots=True)
class EventUnmapped(ItsEffect):
    """An event translates to nothing any more."""

    device_id: int
    event_id: int
    intid: int | None
    icid: int | None


@dataclass(frozen=True, slots=True)
class EventMoved(ItsEffect):
    """An event goes by way of another collection."""

    device_id: int
    event_id: int
    intid: int | None
    old_icid: int | None
    new_icid: int


@dataclass(frozen=True, slots=True)
class EventOrphaned(ItsEffect):
    """An event lost its collection for good: mapping the same ICID again does not bring it back (KVM)."""

    device_id: int
    event_id: int
    intid: int | None
    icid: int


@dataclass(frozen=True, slots=True)
class TableWrite(ItsEffect):
    """One entry written to a table in guest memory, where the profile keeps tables there.

    Shape: table "dte": index (device_id,), fields size (event bits - 1), itt_gpa. "cte": index (icid,), field
    rdbase. "ite": index (itt_gpa, event_id), fields inttype, intid, icid, vpe_id, doorbell.
    """

    table: str
    index: tuple[int, ...]
    valid: bool
    fields: tuple[tuple[str, int], ...]


# --- LPIs


@dataclass(frozen=True, slots=True)
class LpiRetargeted(Effect):
    """An LPI targets another vCPU. `old_vcpu` None: unknown, or none before."""

    intid: int
    old_vcpu: int | None
    new_vcpu: int | None


@dataclass(frozen=True, slots=True)
class ConfigRead(Effect):
    """The property byte of this LPI must be read now; not `certain`: it may be."""

    intid: int
    certain: bool = True


@dataclass(frozen=True, slots=True)
class PendingTableRead(Effect):
    """Pending bits are read from a vCPU's pending table: one LPI's (`intid`), or all (None)."""

    vcpu: int
    intid: int | None


@dataclass(frozen=True, slots=True)
class PendingSet(Effect):
    """An LPI is pending on a vCPU. `coalesced`: it was so already, the two are one."""

    intid: int
    vcpu: int
    coalesced: bool = False


@dataclass(frozen=True, slots=True)
class PendingCleared(Effect):
    """An LPI is no longer pending on a vCPU, and was not delivered."""

    intid: int
    vcpu: int


@dataclass(frozen=True, slots=True)
class PendingMoved(Effect):
    """An LPI pending on one vCPU is now pending on another; what a list register holds does not move."""

    intid: int
    old_vcpu: int
    new_vcpu: int


@dataclass(frozen=True, slots=True)
class Resolved(ItsEffect):
    """An MSI found its LPI, which targets `vcpu`; the EnableLPIs of `collection_vcpu` was asked."""

    device_id: int
    event_id: int
    intid: int | None
    vcpu: int | None
    collection_vcpu: int | None


class RefusalReason(StrEnum):
    """Why an MSI was refused."""

    ITS_DISABLED = "the ITS is disabled"
    LPIS_DISABLED = "the target's EnableLPIs is 0"
    UNMAPPED = "the event or its collection is not mapped"


@dataclass(frozen=True, slots=True)
class InjectionRefused(ItsEffect):
    """An MSI (or INT) is dropped: `fault` where its operands are to blame, else KVM's `errno`, positive."""

    device_id: int
    event_id: int
    intid: int | None
    vcpu: int | None
    reason: RefusalReason
    fault: Fault | None
    errno: int | None


# --- the translation cache


@dataclass(frozen=True, slots=True)
class CacheInvalidated(Effect):
    """The translation caches of these ITSs must be dropped now; not `certain`: they may be."""

    its_keys: tuple[int, ...]
    certain: bool = True


# --- commands


@dataclass(frozen=True, slots=True)
class CommandFaulted(ItsEffect):
    """A command that is wrong and changed nothing; `fault` is None where KVM only has an errno (EEXIST)."""

    command: Command
    fault: Fault | None
    errno: int | None = None


class IgnoredReason(StrEnum):
    """Why a command that is not wrong did nothing."""

    ALREADY_MAPPED = "the event is mapped already, and the first mapping stays"
    SAME_TARGET = "source and destination are the same"


@dataclass(frozen=True, slots=True)
class CommandIgnored(ItsEffect):
    """A command that succeeded and changed nothing."""

    command: Command
    reason: IgnoredReason


@dataclass(frozen=True, slots=True)
class UnknownCommand(ItsEffect):
    """A reserved opcode, or a GICv4 command where there is no GICv4; skipped."""

    command: Command
    gicv4: bool


class Assumption(StrEnum):
    """What was assumed."""

    DEVICE = "the device was mapped before the capture began"
    EVENT = "the event was mapped before the capture began"
    COLLECTION = "the collection was mapped before the capture began"
    EVENT_NEW = "the event was not mapped before"
    ITS_ENABLED = "the ITS was enabled, for it takes commands"


@dataclass(frozen=True, slots=True)
class Assumed(ItsEffect):
    """Something that the capture does not show was taken to be so."""

    what: Assumption
    device_id: int | None = None
    event_id: int | None = None
    icid: int | None = None


# --- the guest's mistakes that the ITS does not report


@dataclass(frozen=True, slots=True)
class DuplicateLpi(ItsEffect):
    """MAPTI of an LPI that another event maps. `refused`: and it was not done (7.3)."""

    intid: int
    device_id: int
    event_id: int
    other_its: int
    other_device_id: int
    other_event_id: int
    refused: bool


@dataclass(frozen=True, slots=True)
class EventRemapped(ItsEffect):
    """MAPTI on a mapped event, with other operands; `kept`: the first mapping stays, else it is replaced."""

    device_id: int
    event_id: int
    old_intid: int | None
    old_icid: int | None
    asked_intid: int
    asked_icid: int
    kept: bool


@dataclass(frozen=True, slots=True)
class LiveDeviceRemapped(ItsEffect):
    """MAPD V=1 over a device that had mapped events: (event, LPI) pairs.

    `kept`: the new ITT is the old one, in memory, and still maps them.
    """

    device_id: int
    events: tuple[tuple[int, int | None], ...]
    kept: bool = False


@dataclass(frozen=True, slots=True)
class OrphanedCollection(ItsEffect):
    """MAPC V=0 while events use the collection: (device, event, LPI) triples."""

    icid: int
    events: tuple[tuple[int, int, int | None], ...]
    permanent: bool


# --- registers


class RegisterReason(StrEnum):
    """Why a register write did nothing."""

    ITS_ENABLED = "the ITS is enabled"
    LPIS_ENABLED = "EnableLPIs is 1"
    LPIS_DISABLED = "EnableLPIs is 0"
    OUT_OF_RANGE = "the offset lies beyond the command queue"
    INVALID_TABLES = "a table or the command queue is not valid"
    UNKNOWN_LPI = "no such LPI is mapped"
    READ_ONLY = "the register is read-only"


@dataclass(frozen=True, slots=True)
class RegisterIgnored(Effect):
    """A register write that did nothing; of an ITS (`its`) or of a vCPU's redistributor (`vcpu`)."""

    register: str
    value: int
    reason: RegisterReason
    its: int | None = None
    vcpu: int | None = None


@dataclass(frozen=True, slots=True)
class ItsEnabled(ItsEffect):
    """GITS_CTLR.Enabled went to 1."""


@dataclass(frozen=True, slots=True)
class ItsDisabled(ItsEffect):
    """GITS_CTLR.Enabled went to 0."""


@dataclass(frozen=True, slots=True)
class QueueSet(ItsEffect):
    """GITS_CBASER was written: a new queue, empty."""

    queue_gpa: int
    size_bytes: int
    valid: bool


@dataclass(frozen=True, slots=True)
class TableSet(ItsEffect):
    """GITS_BASER<n> was written; `value` as the ITS keeps it, None where only half of it is known."""

    number: int
    value: int | None


@dataclass(frozen=True, slots=True)
class CwriterUnaligned(ItsEffect):
    """GITS_CWRITER was written with an offset that is no multiple of 32; the ITS takes it rounded down."""

    value: int


@dataclass(frozen=True, slots=True)
class CommandsWaiting(ItsEffect):
    """GITS_CWRITER was moved while the ITS is disabled: commands lie in the queue."""

    creadr: int | None
    cwriter: int


@dataclass(frozen=True, slots=True)
class LpisEnabled(Effect):
    """A vCPU's EnableLPIs went to 1. `reads_pending_table`: PENDBASER.PTZ is 0; None where it is unknown."""

    vcpu: int
    reads_pending_table: bool | None


@dataclass(frozen=True, slots=True)
class LpisDisabled(Effect):
    """A vCPU's EnableLPIs went to 0."""

    vcpu: int
