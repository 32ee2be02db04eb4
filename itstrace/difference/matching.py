"""Which VM and which ITS of one capture is which of the other."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from itstrace.analysis import Analysis
    from itstrace.difference.recorded import Matched


def matched_vms(a: Analysis, b: Analysis) -> dict[int, int]:
    """B's VM for each of A's: one that maps most of the same events; the rest in order, those with an ITS first."""
    mine, other = _events(a), _events(b)
    alike = {(ours, theirs): _alike(mine[ours], other[theirs]) for ours, theirs in product(mine, other)}
    found: dict[int, int] = {}
    order_a, order_b = list(mine), list(other)
    apart = {pair: abs(order_a.index(pair[0]) - order_b.index(pair[1])) for pair in alike}
    for ours, theirs in sorted(alike, key=lambda pair: (-alike[pair], apart[pair])):
        if alike[ours, theirs] > 1 / 2 and ours not in found and theirs not in found.values():
            found[ours] = theirs
    rest = (
        [vm for vm in _by_use(each, numbers) if vm not in known]
        for each, numbers, known in ((a, mine, found.keys()), (b, other, set(found.values())))
    )
    return dict(sorted((found | dict(zip(*rest, strict=False))).items()))


def _events(analysis: Analysis) -> dict[int, set[tuple[int, int]]]:
    """By VM, in order: every event (DeviceID, EventID) that it ever maps."""
    found: dict[int, set[tuple[int, int]]] = {
        vm: set() for vm in sorted(analysis.observations.vms["vm"].to_list())
    }
    mapped = analysis.history.mappings.select("vm", "device_id", "event_id").drop_nulls().unique()
    for vm, device, event in mapped.iter_rows():
        found.setdefault(vm, set()).add((device, event))
    return found


def _alike(mine: set[tuple[int, int]], other: set[tuple[int, int]]) -> float:
    """The share of the events of either that both map."""
    return len(mine & other) / len(mine | other) if mine or other else 0.0


def _by_use(analysis: Analysis, numbers: dict[int, set[tuple[int, int]]]) -> list[int]:
    """VMs with an ITS, then those without."""
    with_its = set(analysis.observations.itss["vm"])
    return sorted(numbers, key=lambda vm: (vm not in with_its, vm))


def matched_itss(a: Analysis, b: Analysis, vms: dict[int, int]) -> Matched:
    """B's (VM, ITS) for each of A's: by the base address; by number where a base is not known."""
    found: Matched = {}
    for vm, other in vms.items():
        ours, theirs = (
            {
                base if base is not None else -1 - its: its
                for its, base in each.observations.itss.filter(pl.col("vm") == number)
                .select("its", "base_gpa")
                .iter_rows()
            }
            for each, number in ((a, vm), (b, other))
        )
        if min([*ours, *theirs], default=0) < 0:
            numbers = set(ours.values()) & set(theirs.values())
            found |= {(vm, its): (other, its) for its in numbers}
        else:
            found |= {(vm, its): (other, theirs[base]) for base, its in ours.items() if base in theirs}
    return found
