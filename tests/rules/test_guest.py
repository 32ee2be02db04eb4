"""The guest's mistakes: one mistake is one finding, what follows from it is linked, and what is not known is not claimed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of

from itstrace import Confidence, Severity, analyze
from itstrace.errors import UsageError
from itstrace.gic.commands import Opcode, build, decode
from itstrace.gic.registers import GICR_PROPBASER, GITS_BASER, GITS_CBASER, GITS_CTLR, decode_gicr_propbaser
from itstrace.lives import live
from itstrace.observe import from_raw
from itstrace.observe.identity import identify
from itstrace.readers.images import MemoryImage, Region
from itstrace.replay import replay
from itstrace.rules import check
from itstrace.seed import GuestMemory, Seed, combine_seeds, load_seed
from itstrace.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from itstrace import Analysis, Finding
    from itstrace.observe import Observations

MISTAKES = SAMPLES / "7.3-guest-mistakes.dat"
CLEAN = SAMPLES / "6.12-clean.dat"
NO_GAPS = pl.DataFrame(schema={"cpu": pl.UInt16, "from_ns": pl.Int64, "to_ns": pl.Int64, "lost": pl.UInt64})


def _found(
    obs: Observations,
    code: str,
    *,
    kernel: str = "6.12",
    gaps: pl.DataFrame = NO_GAPS,
    seed: Seed | None = None,
) -> list[Finding]:
    history = replay(obs, kernel=kernel, seed=seed)
    end_ns = obs.queueings["time_ns"].max()
    assert isinstance(end_ns, int)
    findings, _ = check(obs, history, live(obs, history), gaps=gaps, damage=[], end_ns=end_ns, kernel=kernel)
    return [finding for finding in findings if finding.code == code]


def _always(time_ns: int) -> Callable[[str], int]:
    """An instant that any text names."""
    return lambda _: time_ns


def _of(analysis: Analysis, code: str) -> list[Finding]:
    return [finding for finding in analysis.findings if finding.code == code]


def _one(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, [finding.message for finding in findings]
    return findings[0]


def _gap(from_ns: int, to_ns: int) -> pl.DataFrame:
    return pl.DataFrame([(0, from_ns, to_ns, 5)], schema=NO_GAPS.schema, orient="row")


def _commands(obs: Observations, opcode: Opcode) -> pl.DataFrame:
    return obs.commands.filter(pl.col("dw0") & 0xFF == int(opcode))


def _changed(obs: Observations, seq: int, **fields: int) -> Observations:
    """The same observations, with other fields in one command."""
    row = obs.commands.filter(pl.col("seq") == seq).row(0, named=True)
    old = decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))
    assert isinstance(old.opcode, Opcode)
    words = build(old.opcode, **{**old.fields, **fields}).dw
    there = pl.col("seq") == seq
    commands = obs.commands.with_columns(
        pl.when(there).then(pl.lit(word, pl.UInt64)).otherwise(pl.col(f"dw{n}")).alias(f"dw{n}")
        for n, word in enumerate(words)
    )
    return replace(obs, commands=commands)


def _marked(obs: Observations, seq: int, **columns: bool) -> Observations:
    """The same observations, with other flags at one command."""
    there = pl.col("seq") == seq
    flags = [
        pl.when(there).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in columns.items()
    ]
    return replace(obs, commands=obs.commands.with_columns(flags))


def _between(obs: Observations, after: int, before: int) -> int:
    """A command between two records."""
    return int(obs.commands.filter(pl.col("seq").is_between(after + 1, before - 1))["seq"][-1])


def _rewritten(obs: Observations, seq: int) -> Observations:
    """The guest turns the ITS off, writes its table registers as they are, and turns it on again, just before a command."""
    registers = obs.register_writes
    written = registers.filter((pl.col("offset") - GITS_BASER).is_in([0, 8]) & (pl.col("seq") < seq)).tail(2)
    command = obs.commands.filter(pl.col("seq") == seq).row(0, named=True)
    like = written.head(1).with_columns(offset=pl.lit(GITS_CTLR, pl.UInt32))
    off = like.with_columns(value=pl.lit(0, pl.UInt64))
    on = like.with_columns(value=pl.lit(1, pl.UInt64))
    fresh = pl.concat([off, written, on]).with_columns(
        seq=pl.lit(seq - 1, pl.UInt64), time_ns=pl.lit(command["time_ns"] - 1)
    )
    return replace(obs, register_writes=pl.concat([registers, fresh]).sort("seq", maintain_order=True))


# --- ITS101 to ITS104: refused commands


def test_one_mistake_is_one_finding_and_is_linked_with_what_it_led_to() -> None:
    """MAPC V=0 orphaned three events, and eleven commands of three kinds were refused for it; likewise MAPD and MAPTI."""
    analysis = analysis_of(MISTAKES)
    by_id = {finding.id: finding for finding in analysis.findings}

    orphaned = _one(_of(analysis, "ITS109"))
    refused = by_id[orphaned.leads_to[0]]
    assert (refused.code, refused.count, len(refused.subjects)) == ("ITS103", 11, 3)
    assert (
        "Likewise INT of 0x123/3, INT of 0x200/1, MOVI of 0x123/1, DISCARD of 0x123/3; 11 times in all."
        in refused.message
    )
    assert "MAPC at 41.036977 unmapped the collection" in refused.message

    freed = by_id[_one(_of(analysis, "ITS108")).leads_to[0]]
    assert (freed.code, freed.count) == ("ITS102", 4)
    assert "MAPD of its device at 45.717772 freed it" in freed.message

    duplicate = by_id[_one(_of(analysis, "ITS106")).leads_to[0]]
    assert (duplicate.code, duplicate.count) == ("ITS102", 4)
    assert "its MAPTI at 35.277243 was itself refused" in duplicate.message
    assert len(_of(analysis, "ITS102")) == 4


@pytest.mark.parametrize(("devices", "findings"), [(2, 2), (3, 3), (5, 1)])
def test_a_few_devices_make_each_their_own_mistake_and_many_make_one(devices: int, findings: int) -> None:
    """ITS101: INT of devices that nothing mapped."""
    obs = analysis_of(CLEAN).observations
    for number, seq in enumerate(_commands(obs, Opcode.INT)["seq"].head(devices)):
        obs = _changed(obs, seq, device_id=0x700 + number, event_id=0)

    found = _found(obs, "ITS101")
    assert len(found) == findings
    assert sum(finding.count for finding in found) == devices
    assert {one.device_id for finding in found for one in finding.subjects} == {
        0x700 + n for n in range(devices)
    }


def test_a_refused_mapd_is_what_its_device_lacks() -> None:
    """ITS104 leads to ITS101: a device that MAPD could not map, for its id lies beyond the table."""
    obs = analysis_of(CLEAN).observations
    mapd = _commands(obs, Opcode.MAPD)["seq"][-1]
    mapti = obs.commands.filter((pl.col("seq") > mapd) & (pl.col("dw0") & 0xFF == int(Opcode.MAPTI)))["seq"][
        0
    ]
    obs = _changed(_changed(obs, mapd, device_id=0x70000), mapti, device_id=0x70000)
    out_of_range, unmapped = _one(_found(obs, "ITS104")), _found(obs, "ITS101")

    assert "device 0x70000 lies beyond the device table" in out_of_range.message
    named = next(one for one in unmapped if one.device_id == 0x70000)
    assert "for its MAPD at" in named.message
    assert named.caused_by == (out_of_range.id,)


def test_an_unmapped_event_is_not_claimed_where_commands_were_lost() -> None:
    """ITS102: a DISCARD and an INT of the event; with a command lost between them it may be mapped again."""
    obs = analysis_of(CLEAN).observations
    finding = _one(_found(obs, "ITS102"))
    discard, used = finding.blames[:2]
    lost = _marked(obs, _between(obs, discard, used), lost_before=True)

    assert finding.confidence is Confidence.CERTAIN
    assert finding.count - sum(one.count for one in _found(lost, "ITS102")) == 1


def test_records_lost_without_a_command_make_a_refusal_likely() -> None:
    """ITS102: the queue's offsets show no command missing; but they cannot show all."""
    obs = analysis_of(CLEAN).observations
    whole = _one(_found(obs, "ITS102"))
    assert whole.time_ns is not None
    finding = _one(_found(obs, "ITS102", gaps=_gap(whole.time_ns - 1000, whole.time_ns - 500)))

    assert (finding.confidence, finding.count) == (Confidence.LIKELY, whole.count)
    assert "no command missing" not in whole.doubt
    assert "no command missing" in finding.doubt
    assert finding.capture_next


# --- ITS105 to ITS109


def test_unknown_opcodes_are_told_together_and_gicv4_apart() -> None:
    found = _of(analysis_of(MISTAKES), "ITS105")
    assert sorted(finding.mechanism for finding in found) == [
        "GICv4 commands in the queue",
        "reserved opcodes in the queue",
    ]
    assert any("0x77 once, 0x02 once" in finding.message for finding in found)
    assert any("VMAPTI once, VMOVI once" in finding.message for finding in found)


@pytest.mark.parametrize("code", ["ITS106", "ITS107", "ITS108", "ITS109"])
def test_what_was_mapped_is_not_claimed_where_commands_were_lost(code: str) -> None:
    obs = analysis_of(MISTAKES).observations
    finding = _one(_found(obs, code, kernel="7.3"))

    assert _found(_marked(obs, finding.blames[0], lost_before=True), code, kernel="7.3") == []


@pytest.mark.parametrize("code", ["ITS106", "ITS107", "ITS108", "ITS109"])
def test_a_guest_that_begins_anew_makes_no_mistake_by_what_kvm_kept(code: str) -> None:
    """As a kernel that kexec started: it turns the ITS off, gives it its tables and maps what it needs."""
    obs = analysis_of(MISTAKES).observations
    finding = _one(_found(obs, code, kernel="7.3"))
    again = _rewritten(obs, finding.blames[0])

    assert _found(again, code, kernel="7.3") == []
    assert len(_found(again, "ITS104", kernel="7.3")) == len(_found(obs, "ITS104", kernel="7.3"))


def test_a_mapping_whose_collection_is_not_known_is_not_remapped_by_the_same_lpi() -> None:
    """ITS107: a capture that begins mid-life shows by an MSI which LPI an event is, not which collection it goes by."""
    obs = analysis_of(CLEAN).observations
    mapti = _commands(obs, Opcode.MAPTI).filter(pl.col("dw0") // 2**32 == 0x20)["seq"][-1]
    row = obs.commands.filter(pl.col("seq") == mapti).row(0, named=True)
    command = decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))
    later = obs.injections.filter(
        (pl.col("device_id") == command.device_id)
        & (pl.col("event_id") == command.event_id)
        & (pl.col("seq") > mapti)
    )
    seen = later.head(1).with_columns(seq=pl.lit(1, pl.UInt64), end_seq=pl.lit(2, pl.UInt64))
    incomplete = replace(
        obs,
        injections=pl.concat([seen, obs.injections]),
        commands=obs.commands.filter(pl.col("seq") >= mapti),
        register_writes=obs.register_writes.head(0),
        itss=obs.itss.with_columns(complete=pl.lit(value=False)),
        vms=obs.vms.with_columns(complete=pl.lit(value=False)),
    )

    assert later.height
    assert _found(incomplete, "ITS107") == []
    other = _changed(incomplete, mapti, intid=(command.intid or 0) + 40)
    assert _one(_found(other, "ITS107")).intid == command.intid


# --- ITS110


def _mapd_of(obs: Observations, device: int) -> int:
    mapds = _commands(obs, Opcode.MAPD).filter(
        (pl.col("dw0") // 2**32 == device) & (pl.col("dw2") // 2**63 == 1)
    )
    return int(mapds["seq"][0])


#: 6.12-clean.dat: device 0x10 has its ITT at 0x41081000 (32 entries of 8 bytes), device 0x8 at 0x41080000.
@pytest.mark.parametrize(
    ("itt_gpa", "event_bits", "what"),
    [
        (0x4108_0000, 5, "another ITT"),
        (0x4107_FF00, 6, "another ITT"),  # reaches into it from below
        (0x4107_FF00, 5, None),  # ends where the other begins
        (0x4108_0100, 5, None),  # begins where the other ends
        (0x4100_0F00, 5, "the command queue"),
        (0x4101_FF00, 5, "the table"),
        (0x4103_0000, 5, "the LPI configuration table"),
        (0x4105_0000, 5, "the LPI pending table"),
        (0x4110_0000, 5, None),
    ],
)
def test_an_itt_must_have_its_own_memory(itt_gpa: int, event_bits: int, what: str | None) -> None:
    obs = analysis_of(CLEAN).observations
    found = _found(_changed(obs, _mapd_of(obs, 0x10), itt_gpa=itt_gpa, event_bits=event_bits), "ITS110")

    assert _found(obs, "ITS110") == []
    assert [finding.mechanism for finding in found] == ([] if what is None else [f"an ITT overlaps {what}"])
    assert [finding.device_id for finding in found] == ([] if what is None else [0x10])


def test_an_itt_of_an_unmapped_device_may_be_used_again() -> None:
    """ITS110: 7.3-guest-mistakes maps, unmaps and remaps the same devices over the same ITTs, and one twice at once."""
    analysis = analysis_of(MISTAKES)
    finding = _one(_of(analysis, "ITS110"))

    assert analysis.history.devices["itt_gpa"].n_unique() < analysis.history.devices.height
    assert (finding.device_id, finding.count) == (0x201, 1)
    assert "the ITT of device 0x123 (0x41080000 to 0x410800ff)" in finding.message


def test_an_itt_is_not_claimed_to_be_in_use_where_commands_were_lost() -> None:
    obs = analysis_of(MISTAKES).observations
    mapd = _one(_found(obs, "ITS110", kernel="7.3")).blames[0]

    assert _found(_marked(obs, mapd, lost_before=True), "ITS110", kernel="7.3") == []
    assert _found(_rewritten(obs, mapd), "ITS110", kernel="7.3") == []


# --- ITS111


def test_a_guest_without_sync_relies_on_what_may_not_be_done() -> None:
    obs = analysis_of(CLEAN).observations
    silent = replace(obs, commands=obs.commands.filter(pl.col("dw0") & 0xFF != int(Opcode.SYNC)))
    finding = _one(_found(silent, "ITS111"))

    assert _found(obs, "ITS111") == []
    assert finding.severity is Severity.NOTE
    assert finding.message.endswith("The guest sends no SYNC at all.")
    assert {"MOVI", "MAPTI"} <= set(finding.message.replace(",", "").split())


def test_the_sync_must_be_to_a_vcpu_that_the_event_goes_to() -> None:
    """ITS111: with every SYNC sent to a vCPU that has no part in it."""
    obs = analysis_of(CLEAN).observations
    elsewhere = obs
    for seq in _commands(obs, Opcode.SYNC)["seq"]:
        elsewhere = _changed(elsewhere, seq, rdbase=7)

    assert _one(_found(elsewhere, "ITS111")).count > 10
    assert _found(obs, "ITS111") == []


def test_a_device_s_own_msi_does_not_wait_for_a_sync_that_is_on_its_way() -> None:
    """ITS111: with every SYNC in a write to CWRITER of its own, MSIs come in between; they are not the guest's reliance."""
    obs = analysis_of(CLEAN).observations
    writes = obs.register_writes.filter(pl.col("offset") == 0x88).head(1)
    syncs = _commands(obs, Opcode.SYNC).select(pl.col("seq") - 1, "time_ns")
    apart = syncs.join(writes.drop("seq", "time_ns"), how="cross").select(obs.register_writes.columns)
    split = replace(obs, register_writes=pl.concat([obs.register_writes, apart]).sort("seq"))

    assert _found(split, "ITS111") == []


def test_a_sync_may_be_among_lost_commands() -> None:
    obs = analysis_of(MISTAKES).observations
    first = _one(_found(obs, "ITS111", kernel="7.3"))
    lost = obs
    for seq in first.blames:
        lost = _marked(lost, int(obs.commands.filter(pl.col("seq") > seq)["seq"][0]), lost_before=True)

    assert first.count == len(first.blames)
    assert _found(lost, "ITS111", kernel="7.3") == []


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name", ["boot-6.12", "migrate-7.3", "faults/L-clean-a-612", "faults/L-F1-612", "faults/MV-clean-612"]
)
def test_linux_sends_sync(corpus: Path, name: str) -> None:
    """Also where the capture begins mid-life, and it is not known from which vCPU an event came."""
    assert _of(analysis_of(corpus / name / "trace.dat"), "ITS111") == []


# --- ITS112


def test_an_lpi_fired_by_its_guest_while_disabled_is_a_guess() -> None:
    finding = _one(_of(analysis_of(MISTAKES), "ITS112"))

    assert (finding.severity, finding.confidence, finding.intid) == (Severity.NOTE, Confidence.LIKELY, 8193)
    assert "read at 43.981811" in finding.message
    assert finding.doubt
    assert "--seed" in finding.capture_next


def test_an_inv_that_follows_makes_it_masking() -> None:
    """ITS112: the same, with INV of the event just before the LPI is unmapped."""
    obs = analysis_of(MISTAKES).observations
    finding = _one(_found(obs, "ITS112", kernel="7.3"))
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

    assert _found(followed, "ITS112", kernel="7.3") == []
    assert finding.time_ns is not None
    assert _found(obs, "ITS112", kernel="7.3", gaps=_gap(finding.time_ns + 10, finding.time_ns + 20)) == []


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
    guess = _one(_found(obs, "ITS112", kernel="7.3"))
    assert guess.time_ns is not None
    seed = _image(obs, guess.time_ns + 1_000_000, lpi8193=0xA1)
    finding = _one(_found(obs, "ITS112", kernel="7.3", seed=seed))

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
    guess = _one(_found(obs, "ITS112", kernel="7.3"))
    assert guess.time_ns is not None

    assert _found(obs, "ITS112", kernel="7.3", seed=_image(obs, guess.time_ns + 1_000_000)) == []


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
    found = _found(obs, "ITS112", seed=seed)

    assert [said in finding.message for finding in found if said] == ([] if said is None else [True])
    assert len(found) == (said is not None)
    assert _found(obs, "ITS112") == []


def test_a_byte_that_is_written_before_its_inv_is_no_mistake() -> None:
    """ITS112: an image between the guest's store and its INV, which follows before the LPI is used again."""
    obs = analysis_of(MISTAKES).observations
    inv = obs.configs.filter(pl.col("intid") == 8193)["time_ns"][2]

    assert (
        _found(obs, "ITS112", kernel="7.3", seed=_image(obs, inv - 1_000, lpi8193=0xA0))[0].severity
        is Severity.NOTE
    )


def test_memory_of_no_time_is_that_of_the_end() -> None:
    """Of a VM that begins within the capture: its last use counts, and nothing comes after."""
    obs = analysis_of(CLEAN).observations
    history = replay(obs, kernel="6.12", seed=_image(obs, None))

    assert history.written.height
    assert history.written["seq"].unique().to_list() == obs.vms["to_seq"].to_list()
    assert _found(obs, "ITS112", seed=_image(obs, None)) == []


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
    guess = _one(_of(analysis_of(folder / "trace.dat"), "ITS112"))
    markers = analysis_of(folder / "trace.dat").observations.markers
    stopped = markers.filter(pl.col("text").str.contains("SNAP 1a stopped"))["time_ns"][0]
    seed = load_seed(f"{folder / 'snap-1a' / 'guest-tables'}@x", _always(int(stopped)))
    proof = _one(_of(analyze(folder / "trace.dat", seed=seed), "ITS112"))

    assert (guess.severity, guess.intid) == (Severity.NOTE, 8200)
    assert (proof.severity, proof.confidence, proof.intid) == (Severity.WARNING, Confidence.CERTAIN, 8200)


@pytest.mark.corpus
def test_memory_of_the_faults_shows_no_mistake_that_the_guest_did_not_make(corpus: Path) -> None:
    """F5: KVM reads no property bytes; F9f: it reads those of another event. Neither is the guest's doing."""
    seen = Counter[str]()
    for path in sorted(corpus.glob("faults/*/guest-ram-*")):
        analysis = analyze(path.with_name("trace.dat"), seed=load_seed(str(path)))
        assert analysis.history.written.height, path
        seen[path.parent.name] += sum(one.severity is not Severity.NOTE for one in _of(analysis, "ITS112"))
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


# --- ITS113


def _with_register(obs: Observations, offset: int, value: Callable[[int], int]) -> Observations:
    """The same, with a register of the ITS written once more at the end, while it is enabled."""
    writes = obs.register_writes
    row = writes.filter(pl.col("offset") == offset).tail(1)
    last = obs.commands.tail(1)
    again = row.with_columns(
        seq=last["end_seq"], time_ns=last["end_ns"], value=pl.lit(value(row["value"][0]), pl.UInt64)
    )
    return replace(obs, register_writes=pl.concat([writes, again]).sort("seq", maintain_order=True))


@pytest.mark.parametrize(
    ("offset", "value", "fires"),
    [
        (GITS_BASER, lambda value: value, False),  # as a driver does that comes back from suspend
        (GITS_BASER, lambda value: value + 0x1_0000, True),
        (GITS_CBASER, lambda value: value + 0x1_0000, True),
    ],
)
def test_a_table_register_may_be_written_with_what_it_holds(
    offset: int, value: Callable[[int], int], fires: bool
) -> None:
    found = _found(_with_register(analysis_of(CLEAN).observations, offset, value), "ITS113")

    assert [finding.mechanism for finding in found] == (
        ["a table or queue register written while the ITS is enabled"] if fires else []
    )


def test_commands_left_for_a_disabled_its_are_known_to_be_left() -> None:
    """ITS113: not where the queue's place is not known, nor where the writes that enabled the ITS may have been lost."""
    obs = analysis_of(MISTAKES).observations

    def waiting(changed: Observations, gaps: pl.DataFrame = NO_GAPS) -> list[Finding]:
        found = _found(changed, "ITS113", kernel="7.3", gaps=gaps)
        return [finding for finding in found if finding.mechanism == "commands left for a disabled ITS"]

    finding = _one(waiting(obs))
    assert "from 0x1a0 to 0x1e0" in finding.message
    assert finding.count == 2
    assert finding.time_ns is not None
    assert finding.end_ns is not None
    assert waiting(obs, _gap(finding.time_ns - 20, finding.time_ns - 10)) == []
    following = obs.commands.filter(pl.col("time_ns") > finding.end_ns)["seq"][0]
    assert waiting(_marked(obs, following, lost_before=True)) == []
    midlife = replace(
        obs,
        commands=obs.commands.filter(pl.col("seq") >= following),
        register_writes=obs.register_writes.filter(pl.col("offset") != GITS_CBASER),
        itss=obs.itss.with_columns(complete=pl.lit(value=False)),
    )
    assert waiting(midlife) == []


# --- ITS114


def test_a_slot_that_could_not_be_read_is_the_guest_s_mistake_and_leads_to_others() -> None:
    obs = analysis_of(CLEAN).observations
    int_ = _commands(obs, Opcode.INT).row(0, named=True)
    event = (int_["dw0"] >> 32, int_["dw1"])
    maptis = _commands(obs, Opcode.MAPTI).filter(
        (pl.col("dw0") // 2**32 == event[0])
        & (pl.col("dw1") & 0xFFFF_FFFF == event[1])
        & (pl.col("seq") < int_["seq"])
    )
    mapti = int(maptis["seq"][-1])
    unread = _marked(obs, mapti, readable=False)
    finding = _one(_found(unread, "ITS114"))

    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 1)
    assert finding.blames == (mapti,)
    assert f"Slot 0x{maptis['slot'][-1]:x} of the command queue could not be read" in finding.message
    unmapped = [one for one in _found(unread, "ITS102") if finding.id in one.caused_by]
    assert unmapped
    assert "in the slot that could not be read" in unmapped[0].message
    assert _found(obs, "ITS114") == []


def _without_record(analysis: Analysis, probe: str, place: int, **changed: Any) -> tuple[Observations, int]:
    """The observations anew, as if one record of a probe had not been made; and which record it was."""
    raw = analysis.observations._raw
    frame = raw[probe]
    seq = int(frame["seq"][place])
    frames = raw.frames | {probe: frame.filter(pl.col("seq") != seq)} | changed
    fewer = replace(raw, frames=frames)
    return from_raw(fewer, identify(fewer)), seq


@pytest.mark.parametrize("place", [12, -1])
def test_a_slot_without_a_command_was_passed_over(place: int) -> None:
    """ITS114 on 6.1, where nothing tells that a read failed: the probe inside the loop is not reached. Or it was lost."""
    analysis = analysis_of(SAMPLES / "6.1-clean.dat")
    obs, seq = _without_record(analysis, "command", place)
    command = analysis.observations.commands.filter(pl.col("seq") == seq).row(0, named=True)
    finding = _one(_found(obs, "ITS114", kernel="6.1"))

    assert obs.skipped_slots["slot"].to_list() == [command["slot"]]
    assert finding.confidence is Confidence.LIKELY
    assert f"Slot 0x{command['slot']:x}" in finding.message
    lost = _gap(command["time_ns"] - 10, command["time_ns"] + 10)
    assert _found(obs, "ITS114", kernel="6.1", gaps=lost) == []
    assert analysis.observations.skipped_slots.is_empty()


def test_a_failed_read_of_which_the_record_holds_no_words_is_a_slot_that_could_not_be_read() -> None:
    """ITS114 on 6.12: the return of kvm_read_guest says that it failed, and its buffer could not be fetched either."""
    analysis = analysis_of(CLEAN)
    raw = analysis.observations._raw
    gone = int(raw["command"]["seq"][12])
    read = raw["guest_read"].filter((pl.col("len") == 32) & (pl.col("seq") < gone))["seq"][-1]
    there = pl.col("seq") == read
    failed = raw["guest_read"].with_columns(
        pl.when(there).then(-14).otherwise("ret").cast(pl.Int32).alias("ret"),
        *(pl.when(~there).then(word).alias(word) for word in ("dw0", "dw1", "dw2", "dw3")),
    )
    obs, _ = _without_record(analysis, "command", 12, guest_read=failed)

    assert obs.commands.filter(~pl.col("readable"))["slot"].to_list() == [
        analysis.observations.commands.filter(pl.col("seq") == gone)["slot"][0]
    ]
    assert not obs.commands["lost_before"].any()
    assert _one(_found(obs, "ITS114")).confidence is Confidence.CERTAIN
    # Where that return is recorded, a slot without either record was lost.
    assert _without_record(analysis, "command", 12)[0].skipped_slots.is_empty()
