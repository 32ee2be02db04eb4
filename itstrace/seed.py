"""Seeds: what a dump says that the tables held at one instant, for captures that begin mid-life.

`--seed DUMP[@T]`: the dump is the kernel's own word as of T (where no T is given, as of the capture's start).
Several seeds are one where each knows another part: `vgic-state` the LPIs, table images the rest. Images also hold the
guest's own LPI configuration table, and so does raw memory (`guest-ram-GPA.bin`): not what KVM knows, but what it should.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from itstrace.errors import DumpError, UsageError
from itstrace.readers.dumps import ItsState, VgicState, read_dump
from itstrace.readers.images import is_guest_ram, read_guest_ram
from itstrace.saved_tables import guest_properties, tables_of_images
from itstrace.tables import LPI_ROWS, Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from itstrace.readers.images import MemoryImage


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """Guest memory as of one instant. `at_ns` None: as of the seed's. `propbaser`: GICR_PROPBASER, where the dump tells."""

    memory: MemoryImage
    at_ns: int | None
    propbaser: int | None = None

    def properties(self, propbaser: int | None, intids: Iterable[int]) -> dict[int, tuple[bool, int]]:
        """What the guest's configuration table says of LPIs: (enabled, priority) by INTID, where it is in the image.

        `propbaser` is the capture's, for an image that does not tell its own.
        """
        base = self.propbaser if self.propbaser is not None else propbaser
        return guest_properties(self.memory, base, intids) or {}


@dataclass(frozen=True, slots=True)
class Seed:
    """Tables that are known as of one instant.

    `at_ns` None: the capture's start. `base_gpa`: the ITS that they are of, None where no source says. `vm`
    and `its` of the rows are null, and so is what no source knows.
    """

    tables: Tables
    at_ns: int | None
    sources: tuple[Path, ...]
    base_gpa: int | None = None
    #: The device and collection tables are whole: what they lack is not mapped. `vgic-its-state` leaves out what has
    #: no event.
    whole: bool = False
    #: Images of guest memory, which may be of other instants than the tables.
    memory: tuple[GuestMemory, ...] = ()
    #: KVM itself said what it knows of LPIs (vgic-state); else their configuration is what the guest's memory says.
    kernel_lpis: bool = False

    @property
    def has_tables(self) -> bool:
        """Whether it says anything of the tables, and not of memory alone."""
        known = self.tables
        return any(one is not None for one in (known.devices, known.collections, known.events, known.lpis))


def split_seed(spec: str) -> tuple[Path, str | None]:
    """`DUMP[@T]` as a path and the text of T; a dump's name may hold an `@` of its own.

    Raises: UsageError where no such file or folder exists.
    """
    if Path(spec).exists():
        return Path(spec), None
    head, at, _ = spec.rpartition("@")
    while at:
        if head and Path(head).exists():
            return Path(head), spec[len(head) + 1 :]
        head, at, _ = head.rpartition("@")
    raise UsageError(f"--seed {spec}: there is no such file or folder", advice="--seed DUMP, or DUMP@T")


def load_seed(spec: str, resolve: Callable[[str], int] | None = None) -> Seed:
    """Read one seed. `resolve` turns the text of T into ns, as `parse_instant` does with a capture's markers.

    Raises: DumpError for a dump that cannot be read; UsageError for a T that names no instant.
    """
    path, instant = split_seed(spec)
    if instant is not None and resolve is None:
        raise UsageError(f"--seed {spec}: an instant needs a capture", advice=f"--seed {path}")
    return read_seed(path, None if instant is None or resolve is None else resolve(instant))


def read_seed(path: Path, at_ns: int | None) -> Seed:
    """Read a dump that was taken at `at_ns` (None: at the capture's start).

    Raises: DumpError where it cannot be read, or does not tell the tables.
    """
    if is_guest_ram(path):
        return Seed(Tables(), at_ns, (path,), memory=(GuestMemory(read_guest_ram(path), at_ns),))
    dump = read_dump(path)
    if isinstance(dump, VgicState):
        return Seed(dump.tables, at_ns, (path,), kernel_lpis=True)
    if isinstance(dump, ItsState):
        return Seed(dump.tables, at_ns, (path,), dump.base_gpa)
    saved = tables_of_images(dump)
    if saved.tables.events is None:
        raise DumpError(path, saved.problems[0], expected="images of the device table and of the ITTs")
    whole = saved.tables.devices is not None and saved.tables.collections is not None and not saved.problems
    memory = GuestMemory(dump.memory, at_ns, dump.propbaser)
    return Seed(saved.tables, at_ns, (path,), whole=whole, memory=(memory,))


def combine_seeds(seeds: Sequence[Seed]) -> Seed | None:
    """Several seeds of one instant as one; None where there is none. Raw memory may be of any instant.

    What KVM itself says of an LPI goes before what the guest's memory says of it; table images go before
    `vgic-its-state`, which leaves out what has no event.
    Raises: UsageError where they are of different instants, or of different ITSs.
    """
    if not seeds:
        return None
    tables_of = [seed for seed in seeds if seed.has_tables]
    if len({seed.at_ns for seed in tables_of}) > 1:
        raise UsageError("the seeds are of different instants", advice="give each the same @T")
    bases = {seed.base_gpa for seed in seeds if seed.base_gpa is not None}
    if len(bases) > 1:
        raise UsageError(
            "the seeds are of different ITSs: " + ", ".join(f"{base:#x}" for base in sorted(bases))
        )
    known = [seed.tables for seed in seeds]
    tables = Tables(
        devices=_fullest([one.devices for one in known]),
        collections=_fullest([one.collections for one in known]),
        events=_fullest([one.events for one in known]),
        lpis=_merged([one.lpis for one in known]),
    )
    sources = tuple(path for seed in seeds for path in seed.sources)
    return Seed(
        tables,
        (tables_of or seeds)[0].at_ns,
        sources,
        next(iter(bases), None),
        whole=any(seed.whole for seed in seeds),
        memory=tuple(image for seed in seeds for image in seed.memory),
        kernel_lpis=any(seed.kernel_lpis for seed in seeds),
    )


def _fullest(frames: Sequence[pl.DataFrame | None]) -> pl.DataFrame | None:
    """The one with the most rows and fewest nulls; the first of equals."""
    there = [frame for frame in frames if frame is not None]
    nulls = [sum(frame.null_count().row(0)) for frame in there]
    return (
        max(zip(there, nulls, strict=True), key=lambda pair: (pair[0].height, -pair[1]))[0] if there else None
    )


def _merged(frames: Sequence[pl.DataFrame | None]) -> pl.DataFrame | None:
    """LPIs of all sources; the word of `vgic-state` goes first, then that of any source that knows."""
    there = [frame for frame in frames if frame is not None]
    if not there:
        return None
    # vgic-state is the one that does not know which LPIs are mapped.
    rows = pl.concat(there).with_columns(rank=pl.col("mapped").is_not_null())
    ordered = rows.sort("intid", "rank", maintain_order=True)
    merged = ordered.group_by("vm", "intid", maintain_order=True).agg(
        pl.col("enabled", "priority", "target_vcpu", "pending", "mapped").drop_nulls().first()
    )
    return merged.select(LPI_ROWS.names()).cast(LPI_ROWS)
