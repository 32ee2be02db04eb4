"""The ITS as a machine: a command in, effects out. Pure; no clock, no file, no frame.

`Gic` is one VM's GIC. `profile_for_kernel` chooses what it is held against. Everything that a command, a
register write or an injection does comes back as effects (`itstrace.model.effects`): frozen dataclasses, one
class per fact.
"""

from __future__ import annotations

from itstrace.model.machine import Gic
from itstrace.model.profiles import PROFILES, Profile, profile_for_kernel
from itstrace.model.state import Collection, Device, Ite, Its, Lpi, Redistributor

__all__ = [
    "PROFILES",
    "Collection",
    "Device",
    "Gic",
    "Ite",
    "Its",
    "Lpi",
    "Profile",
    "Redistributor",
    "profile_for_kernel",
]
