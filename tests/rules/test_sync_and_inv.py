"""ITS111 and ITS112: a guest that does not wait for its commands, or does not tell of what it wrote."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.again import of
from helpers.guest import (
    CLEAN,
    MISTAKES,
    commands_of,
    findings_of,
    lost_between,
    marked,
    only,
    with_fields,
)

from itstrace import Confidence, Severity, analyze
from itstrace.errors import UsageError
from itstrace.gic.commands import Opcode, build
from itstrace.gic.registers import GICR_PROPBASER, decode_gicr_propbaser
from itstrace.readers.images import MemoryImage, Region
from itstrace.replay import replay
from itstrace.seed import GuestMemory, Seed, combine_seeds, load_seed
from itstrace.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from itstrace.observe import Observations


def _always(time_ns: int) -> Callable[[str], int]:
    """An instant that any text names."""
    return lambda _: time_ns


# --- ITS111


def test_a_guest_without_sync_relies_on_what_may_not_be_done() -> None:
    obs = analysis_of(CLEAN).observations
    silent = replace(obs, commands=obs.commands.filter(pl.col("dw0") & 0xFF != int(Opcode.SYNC)))
    finding = only(findings_of(silent, "ITS111"))

    assert findings_of(obs, "ITS111") == []
    assert finding.severity is Severity.NOTE
    assert finding.message.endswith("The guest sends no SYNC at all.")
    assert {"MOVI", "MAPTI"} <= set(finding.message.replace(",", "").split())


def test_the_sync_must_be_to_a_vcpu_that_the_event_goes_to() -> None:
    """ITS111: with every SYNC sent to a vCPU that has no part in it."""
    obs = analysis_of(CLEAN).observations
    elsewhere = obs
    for seq in commands_of(obs, Opcode.SYNC)["seq"]:
        elsewhere = with_fields(elsewhere, seq, rdbase=7)

    assert only(findings_of(elsewhere, "ITS111")).count > 10
    assert findings_of(obs, "ITS111") == []


def test_a_device_s_own_msi_does_not_wait_for_a_sync_that_is_on_its_way() -> None:
    """ITS111: with every SYNC in a write to CWRITER of its own, MSIs come in between; they are not the guest's reliance."""
    obs = analysis_of(CLEAN).observations
    writes = obs.register_writes.filter(pl.col("offset") == 0x88).head(1)
    syncs = commands_of(obs, Opcode.SYNC).select(pl.col("seq") - 1, "time_ns")
    apart = syncs.join(writes.drop("seq", "time_ns"), how="cross").select(obs.register_writes.columns)
    split = replace(obs, register_writes=pl.concat([obs.register_writes, apart]).sort("seq"))

    assert findings_of(split, "ITS111") == []


def test_a_sync_may_be_among_lost_commands() -> None:
    obs = analysis_of(MISTAKES).observations
    first = only(findings_of(obs, "ITS111", kernel="7.3"))
    lost = obs
    for seq in first.blames:
        lost = marked(lost, int(obs.commands.filter(pl.col("seq") > seq)["seq"][0]), lost_before=True)

    assert first.count == len(first.blames)
    assert findings_of(lost, "ITS111", kernel="7.3") == []


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name", ["boot-6.12", "migrate-7.3", "faults/L-clean-a-612", "faults/L-F1-612", "faults/MV-clean-612"]
)
def test_linux_sends_sync(corpus: Path, name: str) -> None:
    """Also where the capture begins mid-life, and it is not known from which vCPU an event came."""
    assert of(analysis_of(corpus / name / "trace.dat").findings, "ITS111") == []


# --- ITS112


def test_an_lpi_fired_by_its_guest_while_disabled_is_a_guess() -> None:
    finding = only(of(analysis_of(MISTAKES).findings, "ITS112"))

    assert (finding.severity, finding.confidence, finding.intid) == (Severity.NOTE, Confidence.LIKELY, 8193)
    assert "read at 43.981811" in finding.message
    assert finding.doubt
    assert "--seed" in finding.capture_next


def test_an_inv_that_follows_makes_it_masking() -> None:
    """ITS112: the same, with INV of the event just before the LPI is unmapped."""
    obs = analysis_of(MISTAKES).observations
    finding = only(findings_of(obs, "ITS112", kernel="7.3"))
    used = int(finding.seqs[1])
    mapd = obs.commands.filter(pl.col("seq") > used)["seq"][0]
    words = build(Opcode.INV, device_id=0x123, event_id=1).dw
    inv = obs.commands.filter(pl.col("seq") == mapd).with_columns(
        pl.lit(mapd - 1, pl.UInt64).alias("seq"),
        *(pl.lit(w, pl.UInt64).alias(f"dw{n}") for n, w in enumerate(words)),
    )
    followed = replace(
        obs,
        commands=pl.concat(
            [obs.commands.filter(pl.col("seq") < mapd), inv, obs.commands.filter(pl.col("seq") >= mapd)]
        ),
    )

    assert findings_of(followed, "ITS112", kernel="7.3") == []
    assert finding.time_ns is not None
    assert (
        findings_of(
            obs, "ITS112", kernel="7.3", gaps=lost_between(finding.time_ns + 10, finding.time_ns + 20)
        )
        == []
    )


def _image(obs: Observations, at_ns: int | None, **changed: int) -> Seed:
    """The guest's configuration table as KVM read it last, with some property bytes changed (`lpi8193=0xa2`)."""
    base = obs.redistributor_writes.filter(pl.col("offset") == GICR_PROPBASER)["value"][-1]
    gpa = decode_gicr_propbaser(base).config_table_gpa
    table = bytearray(0x1_0000 - 8192)
    configs = obs.configs if at_ns is None else obs.configs.filter(pl.col("time_ns") <= at_ns)
    for intid, enabled, priority in configs.select("intid", "enabled", "priority").iter_rows():
        table[intid - 8192] = priority | enabled
    for name, value in changed.items():
        table[int(name.removeprefix("lpi")) - 8192] = value
    memory = MemoryImage(Path("guest-ram"), (Region("guest-ram", gpa, len(table), bytes(table)),))
    return Seed(Tables(), None, (), memory=(GuestMemory(memory, at_ns),))


def test_an_image_of_guest_memory_proves_it() -> None:
    """ITS112: the LPI that was fired while disabled is enabled in the guest's memory then: certain, and no guess any more."""
    obs = analysis_of(MISTAKES).observations
    guess = only(findings_of(obs, "ITS112", kernel="7.3"))
    assert guess.time_ns is not None
    seed = _image(obs, guess.time_ns + 1_000_000, lpi8193=0xA1)
    finding = only(findings_of(obs, "ITS112", kernel="7.3", seed=seed))

    assert (finding.severity, finding.confidence, finding.intid) == (
        Severity.WARNING,
        Confidence.CERTAIN,
        8193,
    )
    assert "has LPI 8193 enabled, but KVM's copy (read at 43.981811) says disabled" in finding.message
    assert (finding.device_id, finding.event_id) == (0x123, 1)


def test_an_image_that_agrees_refutes_the_guess() -> None:
    """ITS112: the guest has the LPI masked, as KVM does."""
    obs = analysis_of(MISTAKES).observations
    guess = only(findings_of(obs, "ITS112", kernel="7.3"))
    assert guess.time_ns is not None

    assert findings_of(obs, "ITS112", kernel="7.3", seed=_image(obs, guess.time_ns + 1_000_000)) == []


@pytest.mark.parametrize(
    ("byte", "said"),
    [(0xA0, "disabled, but KVM's copy"), (0x41, "priority 0x40, but KVM's copy"), (0xA1, None), (0xA3, None)],
)
def test_whatever_the_guest_wrote_counts_once_the_lpi_is_used(byte: int, said: str | None) -> None:
    """ITS112: masked, or another priority, and then delivered all the same; bit 1 says nothing."""
    obs = analysis_of(CLEAN).observations
    reads, fired = obs.configs, obs.queueings.filter("pending")
    rows = fired.join(
        reads.group_by("intid").agg(last=pl.col("seq").max(), last_ns=pl.col("time_ns").max()), on="intid"
    )
    row = rows.filter(pl.col("seq") > pl.col("last")).row(0, named=True)
    seed = _image(obs, (row["last_ns"] + row["time_ns"]) // 2, **{f"lpi{row['intid']}": byte})
    found = findings_of(obs, "ITS112", seed=seed)

    assert [said in finding.message for finding in found if said] == ([] if said is None else [True])
    assert len(found) == (said is not None)
    assert findings_of(obs, "ITS112") == []


def test_a_byte_that_is_written_before_its_inv_is_no_mistake() -> None:
    """ITS112: an image between the guest's store and its INV, which follows before the LPI is used again."""
    obs = analysis_of(MISTAKES).observations
    inv = obs.configs.filter(pl.col("intid") == 8193)["time_ns"][2]

    assert (
        findings_of(obs, "ITS112", kernel="7.3", seed=_image(obs, inv - 1_000, lpi8193=0xA0))[0].severity
        is Severity.NOTE
    )


def test_memory_of_no_time_is_that_of_the_end() -> None:
    """Of a VM that begins within the capture: its last use counts, and nothing comes after."""
    obs = analysis_of(CLEAN).observations
    history = replay(obs, kernel="6.12", seed=_image(obs, None))

    assert history.written.height
    assert history.written["seq"].unique().to_list() == obs.vms["to_seq"].to_list()
    assert findings_of(obs, "ITS112", seed=_image(obs, None)) == []


def test_memory_may_be_of_another_time_than_the_tables(tmp_path: Path) -> None:
    ram = tmp_path / "guest-ram-41030000.bin"
    ram.write_bytes(b"\xa1" * 0x10000)
    state = str(SAMPLES / "6.12-clean.vgic-state")
    seed = combine_seeds([load_seed(state), load_seed(f"{ram}@7", int)])

    assert seed is not None
    assert seed.at_ns is None
    assert seed.memory[0].at_ns == 7
    assert seed.memory[0].properties(0x4103_058F, [8192]) == {8192: (True, 0xA0)}
    with pytest.raises(UsageError, match="different instants"):
        combine_seeds([load_seed(state), load_seed(f"{state}@7", int)])


@pytest.mark.corpus
def test_a_snapshot_shows_an_lpi_that_moved_away_from_its_invallr(corpus: Path) -> None:
    """Torture-6.1: MOVALL moved LPI 8200 to vCPU 1, and the guest sent the INVALLR after it had enabled it to vCPU 0."""
    folder = corpus / "torture-6.1"
    guess = only(of(analysis_of(folder / "trace.dat").findings, "ITS112"))
    markers = analysis_of(folder / "trace.dat").observations.markers
    stopped = markers.filter(pl.col("text").str.contains("SNAP 1a stopped"))["time_ns"][0]
    seed = load_seed(f"{folder / 'snap-1a' / 'guest-tables'}@x", _always(int(stopped)))
    proof = only(of(analyze(folder / "trace.dat", seed=seed).findings, "ITS112"))

    assert (guess.severity, guess.intid) == (Severity.NOTE, 8200)
    assert (proof.severity, proof.confidence, proof.intid) == (Severity.WARNING, Confidence.CERTAIN, 8200)


@pytest.mark.corpus
def test_memory_of_the_faults_shows_no_mistake_that_the_guest_did_not_make(corpus: Path) -> None:
    """F5: KVM reads no property bytes; F9f: it reads those of another event. Neither is the guest's doing."""
    seen = Counter[str]()
    for path in sorted(corpus.glob("faults/*/guest-ram-*")):
        analysis = analyze(path.with_name("trace.dat"), seed=load_seed(str(path)))
        assert analysis.history.written.height, path
        seen[path.parent.name] += sum(
            one.severity is not Severity.NOTE for one in of(analysis.findings, "ITS112")
        )
    assert len(seen) > 20
    assert not +seen


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["boot-6.12", "migrate-7.3"])
def test_a_seed_within_a_clean_capture_finds_nothing(corpus: Path, name: str) -> None:
    """Linux tells KVM of every byte that it writes, and a dump does not take the place of what was recorded."""
    markers = analysis_of(corpus / name / "trace.dat").observations.markers
    for snapshot in sorted((corpus / name).glob("snap-*")):
        stopped = markers.filter(
            pl.col("text").str.contains(f"SNAP {snapshot.name.removeprefix('snap-')} stopped")
        )
        at_ns = int(stopped["time_ns"][0])
        seed = load_seed(f"{snapshot / 'guest-tables'}@x", _always(at_ns))
        analysis = analyze(corpus / name / "trace.dat", seed=seed)
        assert analysis.history.written.height
        assert {one.code for one in analysis.findings if one.severity is not Severity.NOTE} == set()
