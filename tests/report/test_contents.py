"""What `info` says: what a file holds and what is missing, without analyzing it."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers import tiny_capture
from helpers.renamed import rename, renames
from helpers.tiny_analysis import hostile

from itstrace.errors import Damage
from itstrace.observe import load_events
from itstrace.readers import open_capture
from itstrace.report.contents import Contents, contents, contents_document, overview
from itstrace.report.layout import Sheet
from itstrace.schemas import COUNTS, GAPS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NEEDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ITS101": ("unmapped-device", ("COMMANDS",)),
    "ITS113": ("queue-misuse", ("COMMANDS", "REGISTER_WRITES")),
    "ITS905": ("damaged-capture", ()),
}


def _contents(path: Path) -> Contents:
    with open_capture(path) as capture:
        return contents(capture)


def _text(held: Contents, sheet: Sheet) -> str:
    return "\n".join(line.plain for line in overview(sheet, held, NEEDS))


def test_it_counts_what_the_analysis_counts() -> None:
    held = _contents(SAMPLES / "6.12-clean.dat")
    analysis = analysis_of(SAMPLES / "6.12-clean.dat")

    assert held.counts.equals(analysis.counts)
    assert (held.start_ns, held.end_ns) == (analysis.start_ns, analysis.end_ns)
    assert held.fed_by.keys() == analysis.observations.fed_by.keys()


def test_it_says_what_can_run_and_what_to_record(tmp_path: Path) -> None:
    held = _contents(tiny_capture.write(tmp_path / "tiny.dat"))
    text = " ".join(_text(held, Sheet()).split())
    document = contents_document(held, NEEDS)

    assert "2 of 3 rules can run on it." in text
    assert "REGISTER_WRITES: record its_wr_cwriter (vgic_mmio_write_its_cwriter)" in text
    assert document["rules"] == {
        "can_run": ["ITS101", "ITS905"],
        "skipped": [{"code": "ITS113", "name": "queue-misuse", "missing": ["REGISTER_WRITES"]}],
    }
    assert document["observations"]["COMMANDS"] == {
        "records": 5, "events": ["its:its_process", "its:its_cmd_off"], "whole": True,
    }  # fmt: skip
    assert document["observations"]["REGISTER_WRITES"]["records"] is None


def test_a_capture_of_another_world_is_described_too(tmp_path: Path) -> None:
    held = _contents(tiny_capture.write_x86(tmp_path / "x86.dat"))
    text = _text(held, Sheet())

    assert "sched:sched_switch        5      5" in text
    assert "1 of 3 rules can run on it." in text
    assert "1 event of 1 type" not in text
    assert "5 events of 1 type, none lost; 1 type described" in text


def test_lost_records_and_damage_are_shown(tmp_path: Path) -> None:
    held = _contents(tiny_capture.write(tmp_path / "tiny.dat"))
    gaps = pl.DataFrame([(1, None, 100_000_000_000, None), (0, 5, 10, 99)], schema=GAPS, orient="row")
    held = replace(held, gaps=gaps, damage=[Damage(4096, 1, "a page is torn")] * 5)
    text = _text(held, Sheet())

    assert "a page is torn at byte 4096 (CPU 1)" in text
    assert "and 2 more places" in text
    assert "    1  the start  100.000000     ?        ?" in text
    assert "    0   0.000000    0.000000  5 ns       99" in text
    assert contents_document(held, NEEDS)["lost"][1] == {"cpu": 0, "from_ns": 5, "to_ns": 10, "records": 99}


@pytest.mark.parametrize("cpus", [8, 9, 300])
def test_many_cpus_fit_a_narrow_terminal(tmp_path: Path, cpus: int) -> None:
    held = _contents(tiny_capture.write(tmp_path / "tiny.dat"))
    rows = [("kvm:kvm_exit", cpu, 7) for cpu in range(cpus)]
    held = replace(held, counts=pl.DataFrame(rows, schema=COUNTS, orient="row"))
    lines = list(overview(Sheet(80, fine=True), held, NEEDS))

    assert max(line.cell_len for line in lines) <= 80
    assert any(line.plain.split()[:2] == ["kvm:kvm_exit", f"{7 * cpus:,}"] for line in lines)


@pytest.mark.parametrize("sheet", [Sheet(), Sheet(80, fine=True)])
def test_hostile_words_reach_no_terminal(tmp_path: Path, sheet: Sheet) -> None:
    held = _contents(tiny_capture.write(tmp_path / "tiny.dat"))
    held = replace(held, info=copy(hostile().info), damage=[Damage(None, None, tiny_capture.HOSTILE)])
    lines = list(overview(sheet, held, NEEDS))

    assert all(line.plain.isprintable() for line in lines)
    assert "\\x1b[2J" in "".join(line.plain for line in lines)


def test_the_document_is_json() -> None:
    held = _contents(SAMPLES / "7.3-migrate.dat")
    document = json.loads(json.dumps(contents_document(held, NEEDS)))

    assert document["schema"] == "itstrace.info/1"
    assert sum(event["records"] for event in document["events"]) == held.counts["records"].sum()
    assert all(sum(event["by_cpu"].values()) == event["records"] for event in document["events"])


def test_it_names_qemus_events_for_qemu_and_kvms_for_kvm(tmp_path: Path) -> None:
    path = tmp_path / "its.log"
    path.write_text("gicv3_its_cmd_sync GICv3 ITS: command SYNC\n")
    needs = {**NEEDS, "ITS301": ("lost-lpi", ("QUEUEINGS",))}
    told = " ".join(" ".join(line.plain for line in overview(Sheet(), _contents(path), needs)).split())

    assert 'COMMANDS: record qemu:gicv3_its_process_command (QEMU, -trace "gicv3_its_*")' in told
    assert "QUEUEINGS: no log of QEMU tells it" in told
    assert "vgic_" not in told
    assert "qemu:" not in _text(_contents(SAMPLES / "6.12-clean.dat"), Sheet())


def test_it_says_what_a_log_of_qemu_is() -> None:
    told = " ".join(_text(_contents(SAMPLES / "qemu-linux.log.zst"), Sheet()).split())

    assert "QEMU log" in told
    assert "ITS QEMU's own" in told
    assert "clock wall" in told
    assert "COMMANDS 595 records from qemu:gicv3_its_process_command" in told


def _renamed(path: Path) -> Path:
    """A capture with one event by its function's name, one nobody knows, and one whose field nobody knows."""
    events = {
        "its_process": "kprobes:p_vgic_its_process_commands_0",
        "fold_lr": "mine:lr_folded",
        "its_trigger": "mine:go",
    }
    fields = {"queue_irq": {"tgt": "to"}, "its_trigger": {"eventid": "e"}}
    return rename(SAMPLES / "6.12-double-delivery.dat", path, renames(events, fields))


def test_it_shows_which_event_feeds_what_and_by_what_it_was_found(tmp_path: Path) -> None:
    held = _contents(_renamed(tmp_path / "renamed.dat"))
    text = " ".join(_text(held, Sheet()).split())
    document = contents_document(held, NEEDS)

    assert (
        "records from its:its_cmd_off, its:its_cmd; "
        "kprobes:p_vgic_its_process_commands_0 as its_process (by function name)"
    ) in text
    assert document["probes"]["process"] == {
        "event": "kprobes:p_vgic_its_process_commands_0",
        "found": "by function name",
        "records": 43,
        "fields": {name: name for name in ("kvm", "its", "base", "enabled", "cbaser", "creadr", "cwriter")},
    }
    assert document["probes"]["msi"]["found"] == "by name"
    assert document["probes"]["msi"]["fields"]["device_id"] == "devid"
    assert document["events_file"] is None


@pytest.mark.parametrize("width", [80, 160])
def test_what_is_not_understood_is_told_with_what_to_write(tmp_path: Path, width: int) -> None:
    path = _renamed(tmp_path / "renamed.dat")
    held = _contents(path)
    lines = list(overview(Sheet(width, fine=True), held, NEEDS))
    plain = [line.plain for line in lines]
    start = next(at for at, line in enumerate(plain) if line.startswith("Not understood"))
    text = " ".join(" ".join(plain[start:]).split())

    assert all(line.cell_len <= width for line in lines)
    assert (
        "vgic:queue_irq (392 records): queue by name, but no field gives target_vcpu (looked for tgt, target, target_vcpu)"
        in text
    )
    assert "mine:lr_folded (33 records): its fields are like fold (vgic_v3_fold_lr_state)" in text
    assert [line.strip() for line in plain if "kvm:" in line and plain.index(line) > start] == []

    # What it says, pasted and completed, is understood.
    file = "\n".join(
        line.removeprefix("    ") for line in plain if line.startswith(("    [", "    events", "    fields"))
    )
    assert 'fields.target_vcpu = "FIELD"' in file
    events = tmp_path / "mine.toml"
    events.write_text(file.replace('target_vcpu = "FIELD"', 'target_vcpu = "to"'))
    with open_capture(path) as capture:
        after = contents(capture, load_events(events))
    assert {"queue", "fold"} <= after.fed_by.keys()
    assert {one.event for one in after.strangers} == {one.event for one in held.strangers} - {
        "vgic:queue_irq",
        "mine:lr_folded",
    }
    shown = " ".join(_text(after, Sheet()).split())
    assert "QUEUEINGS 392 records from vgic:queue_irq as queue_irq (by --events)" in shown
    assert contents_document(after, NEEDS)["events_file"] == {"path": str(events), "remarks": []}


def test_a_file_that_asks_in_vain_is_told_so(tmp_path: Path) -> None:
    events = tmp_path / "mine.toml"
    events.write_text('[fold]\nevents = ["vgic:folds"]\n')
    with open_capture(SAMPLES / "6.12-clean.dat") as capture:
        held = contents(capture, load_events(events))

    assert f"{events}: [fold] vgic:folds: the capture has no such event; there is vgic:fold_lr" in " ".join(
        _text(held, Sheet()).split()
    )
    document = contents_document(held, NEEDS)
    assert document["events_file"]["remarks"] == [
        "[fold] vgic:folds: the capture has no such event; there is vgic:fold_lr"
    ]


def test_a_stock_capture_has_nothing_that_is_not_understood(tmp_path: Path) -> None:
    held = _contents(tiny_capture.write(tmp_path / "tiny.dat"))

    assert held.strangers == []
    assert "Not understood" not in _text(held, Sheet())
    assert contents_document(held, NEEDS)["not_understood"] == []
