"""Observations to table history: every VM's commands through the model, and what it says kept as intervals.

Everything here runs per command or register write (thousands), never per interrupt. What the model must be told
and cannot work out - configuration bytes that KVM read, saved tables that it restored - comes from the
observations; what the commands make of it is the model's own word, never KVM's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.errors import UsageError
from itstrace.model.profiles import PROFILES, profile_for_kernel
from itstrace.replay.history import History, Note, Restored
from itstrace.replay.intervals import Recorder
from itstrace.replay.saved import imaged_vm, seeded_vm
from itstrace.replay.vm import VmReplay

if TYPE_CHECKING:
    from itstrace.observe import Observations
    from itstrace.seed import GuestMemory, Seed

__all__ = ["History", "Note", "Restored", "replay"]


def replay(
    observations: Observations,
    *,
    kernel: str | None = None,
    profile: str | None = None,
    seed: Seed | None = None,
) -> History:
    """Step every VM's commands and register writes through the model.

    `kernel` is the capture's `uname -r`, from which the profile is chosen unless `profile` names one.
    Raises: UsageError for a profile that does not exist, or a seed that several VMs fit.
    """
    if profile is not None and profile not in PROFILES:
        raise UsageError(f"there is no model profile {profile!r}", advice=f"one of {', '.join(PROFILES)}")
    chosen = PROFILES[profile] if profile else profile_for_kernel(kernel or "")
    recorder = Recorder()
    seeded = None if seed is None or not seed.has_tables else seeded_vm(observations, seed)
    images: dict[int | None, list[GuestMemory]] = {}
    for image in () if seed is None else seed.memory:
        vm = imaged_vm(observations, image) if seeded is None else seeded
        images.setdefault(vm, []).append(image)
    for row in observations.vms.iter_rows(named=True):
        vm = row["vm"]
        mine = seed if vm == seeded else None
        VmReplay(observations, row, chosen, recorder, mine, images=images.get(vm, ())).run()
    return recorder.history(chosen, observations.vms)
