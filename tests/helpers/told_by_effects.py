"""What effects tell of a GIC's state. Effects applied to what was must give what is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from itstrace.model import effects as fx

if TYPE_CHECKING:
    from collections.abc import Iterable

    from itstrace.model import Gic

Event = tuple[int, int, int]


@dataclass
class Told:
    """Tables, targets and pending state, by key. None is what is not known, and what there is none of."""

    lpis_have_targets: bool
    devices: dict[tuple[int, int], tuple[int | None, int | None]] = field(default_factory=dict)
    collections: dict[tuple[int, int], int | None] = field(default_factory=dict)
    events: dict[Event, tuple[int | None, int | None]] = field(default_factory=dict)
    targets: dict[int, int] = field(default_factory=dict)
    pending: set[tuple[int, int]] = field(default_factory=set)
    _just_mapped: dict[int, int | None] = field(default_factory=dict)

    def apply(self, effects: Iterable[fx.Effect]) -> None:
        """Apply the effects of one step."""
        self._just_mapped = {}
        for effect in effects:
            self._apply(effect)
        self._just_mapped = {}

    def _apply(self, effect: fx.Effect) -> None:
        match effect:
            case fx.DeviceMapped(its, device, bits, itt):
                self.devices[its, device] = bits, itt
            case fx.DeviceUnmapped(its, device):
                del self.devices[its, device]
            case fx.CollectionMapped(its, icid, vcpu) | fx.CollectionRetargeted(its, icid, _, vcpu):
                self.collections[its, icid] = vcpu
            case fx.CollectionNamed(its, icid):
                assert (its, icid) not in self.collections
                self.collections[its, icid] = None
            case fx.CollectionUnmapped(its, icid):
                del self.collections[its, icid]
            case fx.EventMapped(its, device, event, intid, icid, vcpu):
                self.events[its, device, event] = intid, icid
                self._just_mapped[intid] = vcpu
            case fx.EventUnmapped(its, device, event):
                del self.events[its, device, event]
            case fx.EventMoved(its, device, event, intid, _, icid):
                assert self.events[its, device, event][0] == intid
                self.events[its, device, event] = intid, icid
            case fx.EventOrphaned(its, device, event, intid):
                self.events[its, device, event] = intid, None
            case fx.Assumed(its, what, device_id, event_id, icid_):
                self._assume(its, what, (device_id, event_id, icid_))
            case _:
                self._apply_to_lpi(effect)

    def _assume(self, its: int, what: fx.Assumption, ids: tuple[int | None, int | None, int | None]) -> None:
        device_id, event_id, icid = ids
        if what is fx.Assumption.DEVICE and device_id is not None:
            self.devices[its, device_id] = None, None
        elif what is fx.Assumption.EVENT and device_id is not None and event_id is not None:
            self.events[its, device_id, event_id] = None, None
        elif what is fx.Assumption.COLLECTION and icid is not None:
            self.collections[its, icid] = None

    def _apply_to_lpi(self, effect: fx.Effect) -> None:
        match effect:
            case fx.LpiRetargeted(intid, _, vcpu):
                self._aim(intid, vcpu)
            case fx.ConfigRead(intid) if intid in self._just_mapped:
                self._aim(intid, self._just_mapped.pop(intid))  # a new LPI, or one that nobody held any more
            case fx.Resolved(_, _, _, intid_, vcpu) if intid_ is not None and vcpu is not None:
                self._aim(intid_, vcpu)
            case fx.PendingSet(intid, vcpu, coalesced):
                assert coalesced == ((intid, vcpu) in self.pending)
                self.pending.add((intid, vcpu))
            case fx.PendingCleared(intid, vcpu):
                self.pending.remove((intid, vcpu))
            case fx.PendingMoved(intid, old, new):
                self.pending.remove((intid, old))
                self.pending.add((intid, new))

    def _aim(self, intid: int, vcpu: int | None) -> None:
        if not self.lpis_have_targets:
            return
        if vcpu is None:
            self.targets.pop(intid, None)
        else:
            self.targets[intid] = vcpu


def told_by(gic: Gic) -> Told:
    """What effects would have told, had they told all of a GIC's state."""
    told = Told(gic.profile.lpi_has_target)
    for key, its in gic.its.items():
        for device in its.devices.values():
            told.devices[key, device.device_id] = device.event_bits, device.itt_gpa
            for ite in device.reached():
                icid = ite.icid if ite.collection_valid else None
                told.events[key, device.device_id, ite.event_id] = ite.intid, icid
        for collection in its.collections.values():
            told.collections[key, collection.icid] = collection.target_vcpu
    if told.lpis_have_targets:
        told.targets = {
            intid: lpi.target_vcpu for intid, lpi in gic.lpis.items() if lpi.target_vcpu is not None
        }
    told.pending = {(intid, one.vcpu) for one in gic.redistributors.values() for intid in one.pending}
    return told
