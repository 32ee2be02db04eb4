"""What a GIC knows: tables, LPIs, redistributors. Data only; `machine.py` and `commands.py` change it.

Unknown is None. An object that was first seen in use, because the capture began after it was made, is
`assumed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(slots=True)
class Ite:
    """One event's translation: to LPI `intid`, by way of collection `icid`.

    `collection_valid` is False once MAPC V=0 has taken the collection away for good (KVM); the ICID is then
    what it was.
    """

    event_id: int
    intid: int | None
    icid: int | None
    collection_valid: bool = True
    assumed: bool = False


@dataclass(slots=True)
class Device:
    """One mapped device. `complete`: every mapped event is in `events`, for its MAPD was seen."""

    device_id: int
    event_bits: int | None
    itt_gpa: int | None
    events: dict[int, Ite] = field(default_factory=dict)
    assumed: bool = False
    complete: bool = True
    #: Events that are known not to be mapped, where the device is not complete.
    gone: set[int] = field(default_factory=set)

    def reached(self) -> list[Ite]:
        """The entries of mapped events, in order. An ITT in memory may hold more, behind its end (QEMU)."""
        end = 1 << (self.event_bits or 32)
        return [ite for event_id, ite in sorted(self.events.items()) if event_id < end]

    def clone(self) -> Device:
        """A copy that shares nothing."""
        events = {event_id: replace(ite) for event_id, ite in self.events.items()}
        return replace(self, events=events, gone=set(self.gone))


@dataclass(slots=True)
class Collection:
    """One collection. A placeholder has no target yet (KVM: MAPTI came before MAPC); else None is unknown."""

    icid: int
    target_vcpu: int | None
    placeholder: bool = False
    assumed: bool = False


@dataclass(slots=True)
class Lpi:
    """One LPI, from its first mapping on. `target_vcpu` None: none if not `assumed`, unknown if it is.

    `mapped_by` are the (its, device, event) that map it now; the LPI outlives them, as its pending state
    does.
    """

    intid: int
    enabled: bool | None = None
    priority: int | None = None
    target_vcpu: int | None = None
    assumed: bool = False
    mapped_by: set[tuple[int, int, int]] = field(default_factory=set)

    def clone(self) -> Lpi:
        """A copy that shares nothing."""
        return replace(self, mapped_by=set(self.mapped_by))


@dataclass(slots=True)
class Redistributor:
    """One vCPU's redistributor: whether it takes LPIs, and those that are pending there and not yet taken."""

    vcpu: int
    enable_lpis: bool | None = None
    pendbaser: int | None = None
    pending: set[int] = field(default_factory=set)

    def clone(self) -> Redistributor:
        """A copy that shares nothing."""
        return replace(self, pending=set(self.pending))


@dataclass(slots=True)
class Its:
    """One ITS. `complete`: every mapped object is in the tables, for the replay saw it from its reset on."""

    key: int
    base_gpa: int | None = None
    complete: bool = True
    enabled: bool | None = None
    cbaser: int | None = None
    creadr: int | None = None
    cwriter: int | None = None
    baser: dict[int, int | None] = field(default_factory=dict)
    #: Level-1 entries of an indirect device table: whether they are valid. Unknown ones count as valid.
    l1_valid: dict[int, bool] = field(default_factory=dict)
    devices: dict[int, Device] = field(default_factory=dict)
    collections: dict[int, Collection] = field(default_factory=dict)
    #: Devices and collections that are known not to be mapped, where the ITS is not complete.
    gone_devices: set[int] = field(default_factory=set)
    gone_collections: set[int] = field(default_factory=set)
    #: ITTs of unmapped devices, by address, where tables live in guest memory (QEMU).
    left_itts: dict[int, dict[int, Ite]] = field(default_factory=dict)

    def clone(self) -> Its:
        """A copy that shares nothing."""
        return replace(
            self,
            baser=dict(self.baser),
            l1_valid=dict(self.l1_valid),
            devices={device_id: device.clone() for device_id, device in self.devices.items()},
            collections={icid: replace(collection) for icid, collection in self.collections.items()},
            gone_devices=set(self.gone_devices),
            gone_collections=set(self.gone_collections),
            left_itts={
                gpa: {event_id: replace(ite) for event_id, ite in itt.items()}
                for gpa, itt in self.left_itts.items()
            },
        )
