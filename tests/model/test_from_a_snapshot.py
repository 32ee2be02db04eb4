"""What began with a snapshot ends as what was followed from the start.

Random streams: the model is copied, or read back out of the guest's memory as KVM saved it, in their midst. Real
captures: all records before one of the kernel's own dumps are thrown away, and the dump is put in their place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.cut import from_the_middle
from helpers.its_pair import Pair, serialised
from helpers.plain_its import KERNELS, ORPHAN, entry, used
from helpers.streams import SEEDS, VCPUS, drawn, sketches_of
from hypothesis import given, settings
from hypothesis import strategies as st

from itstrace.gic import commands as build
from itstrace.gic.tables import Cte, encode_cte
from itstrace.instants import parse_instant
from itstrace.replay import replay
from itstrace.seed import combine_seeds, load_seed

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.streams import Sketch

    from itstrace.gic.commands import Command
    from itstrace.tables import Tables

STREAMS = settings(max_examples=60, derandomize=True, database=None, deadline=None)
SKETCHES = SEEDS.map(sketches_of)


def started(release: str, *, indirect: bool = False) -> Pair:
    """A VM with two devices, three collections, and some events."""
    pair = Pair(release, VCPUS)
    pair.set_up(indirect=indirect)
    pair.post(*(build.mapc(icid, icid) for icid in range(VCPUS)))
    pair.post(*(build.mapd(device, itt(device), 3) for device in range(2)))
    pair.post(*(build.mapti(device, 0, 8192 + device, device) for device in range(2)))
    return pair


def itt(device: int) -> int:
    """A place of its own for a device's ITT, 512 KiB at most, for what overlaps cannot be saved."""
    return (1 << 40) + device * 0x8_0000


def drawn_to_save(pair: Pair, sketch: Sketch) -> Command:
    """A random command; MAPD gives every device an ITT of its own."""
    command = drawn(pair, 0, sketch)
    if command.opcode is build.Opcode.MAPD:
        assert command.device_id is not None
        assert command.event_bits is not None
        return build.mapd(command.device_id, itt(command.device_id), command.event_bits, bool(command.valid))
    return command


@pytest.mark.parametrize("release", KERNELS)
@STREAMS
@given(before=SKETCHES, after=SKETCHES, indirect=st.booleans())
def test_a_stream_that_goes_on_from_a_copy_or_from_memory(
    release: str, before: list[Sketch], after: list[Sketch], indirect: bool
) -> None:
    """The copy is the same in all; what was read from memory, in its tables, save for events that KVM does not save."""
    pair = started(release, indirect=indirect)
    for sketch in before:
        pair.post(drawn_to_save(pair, sketch))
    host = (
        pair.migrated()
    )  # saves into the guest's memory, from which a later MAPTI reads pending bits: first
    copy = pair.copied()
    orphans = any(entry(one, at) & ORPHAN for one in pair.plain.itss[0].itts.values() for at in used(one))
    for sketch in after:
        command = drawn_to_save(pair, sketch)
        pair.post(command)
        copy.post(command)
        host.post(command)  # compared step by step with a KVM that restored the same memory
    assert copy.gic == pair.gic
    if not orphans:
        assert serialised(host.gic.its[0]) == serialised(pair.gic.its[0])


# --- real captures


def rows(tables: Tables) -> dict[str, set[tuple[object, ...]]]:
    """What tables hold, whether it was seen to be made or not."""
    assert tables.lpis is not None
    found = {"lpis": set(tables.lpis.filter("mapped").drop("pending").rows())}
    for name in ("devices", "collections", "events"):
        found[name] = set(getattr(tables, name).drop("assumed").rows())
    return found


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "snapshot"),
    [
        ("boot-6.12", "boot"),
        ("boot-6.12", "churn"),
        ("boot-6.12", "cpuoff"),
        ("boot-6.12", "rebind"),
        ("torture-6.1", "1a"),
        ("torture-6.12", "1a"),
        ("torture-7.3", "1a"),
    ],
)
def test_a_capture_that_begins_at_a_snapshot_ends_as_the_whole(
    corpus: Path, name: str, snapshot: str
) -> None:
    whole = analysis_of(corpus / name / "trace.dat")
    folder = corpus / name / f"snap-{snapshot}"
    at_ns = parse_instant(
        f"SNAP {snapshot} stopped", whole.start_ns, whole.end_ns, whole.observations.markers
    )
    seed = combine_seeds([load_seed(str(folder / one)) for one in ("vgic-state.stopped", "guest-tables")])
    recorded = (frame for frame in whole.observations.frames().values() if "seq" in frame.columns)
    firsts = [frame.filter(pl.col("time_ns") >= at_ns)["seq"].min() for frame in recorded]
    part = from_the_middle(whole.observations, min(first for first in firsts if isinstance(first, int)))
    assert part.commands.height < whole.observations.commands.height
    history = replay(part, kernel=name.rpartition("-")[2], seed=seed)
    assert rows(history.at(None)) == rows(whole.history.at(None))
    told = history.verdicts.select("seq", "verdict", "fault")
    assert told.equals(whole.history.verdicts.filter(pl.col("seq").is_in(told["seq"])).select(told.columns))


def test_a_collection_that_was_restored_without_a_vcpu_has_none() -> None:
    """KVM saves what MAPTI named and no MAPC has mapped; its events fault until one does."""
    whole = analysis_of(SAMPLES / "7.3-migrate.dat")
    reads = whole.observations.guest_reads
    saved = encode_cte(Cte(valid=True, rdbase=1, icid=1))
    unmapped = encode_cte(Cte(valid=True, rdbase=0xFFFF_FFFF, icid=1))
    assert reads.filter(pl.col("value") == saved).height == 1
    changed = pl.when(pl.col("value") == saved).then(pl.lit(unmapped, pl.UInt64)).otherwise("value")
    history = replay(replace(whole.observations, guest_reads=reads.with_columns(value=changed)), kernel="7.3")
    at_ns = parse_instant("SNAP restored stopped", whole.start_ns, whole.end_ns, whole.observations.markers)
    tables = history.at(at_ns, 1)
    assert tables.collections is not None
    assert tables.collections.select("icid", "target_vcpu", "assumed").rows() == [
        (0, 0, False),
        (1, None, False),
    ]
    before = whole.history.verdicts.filter(pl.col("verdict") == "fault").height
    assert history.verdicts.filter(pl.col("verdict") == "fault").height > before
