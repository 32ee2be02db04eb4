"""A QEMU log analyzed: the tables are those that QEMU's own ITS wrote, whatever form the log has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.qemu_log import EXCERPT, QemuRecord, records, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itstrace import Analysis, analyze
from itstrace.errors import ItsTraceError, NothingToAnalyzeError
from itstrace.gic.commands import Opcode
from itstrace.gic.faults import Fault

if TYPE_CHECKING:
    from pathlib import Path

_STAMP = re.compile(r"(?m)^\d+@\d+\.\d+:")
#: From power on, with a queue of two pages and the ITS enabled.
_SET_UP = (
    "gicv3_its_write GICv3 ITS write: offset 0x100 data 0xb800000041010600 size 8",
    "gicv3_its_write GICv3 ITS write: offset 0x108 data 0xb800000041020600 size 8",
    "gicv3_its_write GICv3 ITS write: offset 0x80 data 0xb800000041000401 size 8",
    "gicv3_its_write GICv3 ITS write: offset 0x0 data 0x1 size 4",
)
_PROCESS = "gicv3_its_process_command GICv3 ITS: processing command at offset"
_SYNC = "gicv3_its_cmd_sync GICv3 ITS: command SYNC"


@pytest.fixture(params=["excerpt", "qemu-linux", "qemu-torture"])
def log(request: pytest.FixtureRequest) -> Path:
    if request.param == "excerpt":
        return EXCERPT
    corpus: Path = request.getfixturevalue("corpus")
    return corpus / str(request.param) / "its.log.zst"


def analyzed(tmp_path: Path, text: str | bytes) -> Analysis:
    path = tmp_path / "its.log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return analyze(path)


def assert_tables_are_those_written(analysis: Analysis, said: list[QemuRecord]) -> None:
    """By QEMU's own record of what it wrote: of each entry, the last."""
    last = {
        event: {tuple(one.operands[key] for key in keys): one.operands for one in said if one.event == event}
        for event, keys in (
            ("dte_write", ("device_id",)),
            ("cte_write", ("icid",)),
            ("ite_write", ("itt_addr", "event_id")),
        )
    }
    devices = {key[0]: one for key, one in last["dte_write"].items() if one["valid"]}
    targets = {key[0]: one["rdbase"] for key, one in last["cte_write"].items() if one["valid"]}
    events = {
        (device_id, event_id): (entry["intid"], entry["icid"], targets.get(entry["icid"]))
        for device_id, device in devices.items()
        for (itt_addr, event_id), entry in last["ite_write"].items()
        if entry["valid"] and itt_addr == device["itt_addr"] << 8 and event_id >> (device["size"] + 1) == 0
    }
    tables = analysis.at()
    assert tables.devices is not None
    assert tables.collections is not None
    assert tables.events is not None
    assert {row["device_id"]: row for row in tables.devices.to_dicts()} == {
        device_id: {
            "vm": 0,
            "its": 0,
            "device_id": device_id,
            "event_bits": one["size"] + 1,
            "itt_gpa": one["itt_addr"] << 8,
            "assumed": False,
        }
        for device_id, one in devices.items()
    }
    assert dict(tables.collections.select("icid", "target_vcpu").iter_rows()) == targets
    columns = ["device_id", "event_id", "intid", "icid", "target_vcpu"]
    assert {row[:2]: row[2:] for row in tables.events.select(columns).iter_rows()} == events


def told(analysis: Analysis) -> list[tuple[str, str, int]]:
    """What was found, without when: but for the times, it does not depend on the log's form."""
    return [(one.code, re.sub(r"\d+\.\d{6}", "T", one.message), one.count) for one in analysis.findings]


def test_tables_are_those_that_qemu_wrote(log: Path) -> None:
    said = records(log)
    assert sum(one.is_table_write for one in said) > 50

    assert_tables_are_those_written(analysis_of(log), said)


def test_commands_are_those_that_qemu_processed(log: Path) -> None:
    said = [one.operands for one in records(log) if one.event == "process_command"]
    commands = analysis_of(log).observations.commands

    numbers = commands.select(pl.col("slot") // 32, pl.col("dw0") & 0xFF).rows()
    assert numbers == [(one["slot"], one["opcode"]) for one in said]
    assert not commands["lost_before"].any()
    assert commands["readable"].all()
    assert commands["seq"].is_sorted()
    assert (commands["end_seq"].drop_nulls() > commands["seq"].head(commands["end_seq"].count())).all()


def test_msis_go_where_qemu_read_them_to_go(log: Path) -> None:
    """By the entries that QEMU read for each, in order: the LPI of the last valid one, or none."""
    expected: list[tuple[int, int, int | None]] = []
    follows = False
    for one in records(log):
        if one.event in {"translation_write", "cmd_int"}:
            event_id = one.operands["event_id" if one.event == "cmd_int" else "data"]
            expected.append((one.operands["device_id"], event_id, None))
            follows = True
        elif one.event == "ite_read" and follows:
            intid = one.operands["intid"] if one.operands["valid"] else None
            expected[-1] = (*expected[-1][:2], intid)
        elif one.event == "cte_read" and follows:
            if not one.operands["valid"]:
                expected[-1] = (*expected[-1][:2], None)
            follows = False
        elif not one.event.endswith("_read"):
            follows = False
    injections = analysis_of(log).observations.injections

    assert injections.select("device_id", "event_id", "intid").rows() == expected
    assert (injections["intid"].is_null() == (injections["result"] != 0)).all()


@pytest.mark.corpus
def test_linux_guest_is_clean(corpus: Path) -> None:
    analysis = analysis_of(corpus / "qemu-linux" / "its.log.zst")

    assert {one.code for one in analysis.findings} == {"ITS903"}
    assert analysis.history.profiles == {0: "qemu"}
    assert analysis.observations.injections["result"].unique().to_list() == [0]


@pytest.mark.corpus
def test_torture_guest_is_told_its_mistakes(corpus: Path) -> None:
    """What torture.c does in its phase "errors", and no more: QEMU takes INVALL of any collection."""
    analysis = analysis_of(corpus / "qemu-torture" / "its.log.zst")
    starts = analysis.history.verdicts.filter(pl.col("text") == "INT DeviceID 0x77 EventID 0")["seq"][0]
    phase = analysis.history.verdicts.filter(pl.col("seq") >= starts).head(16)

    assert dict(phase.select("text", "fault").iter_rows()) == {
        "INT DeviceID 0x77 EventID 0": "INT_UNMAPPED_DEVICE",
        "MOVI DeviceID 0x8 EventID 30 ICID 0": "MOVI_UNMAPPED_INTERRUPT",
        "MOVI DeviceID 0x8 EventID 0 ICID 9": "MOVI_UNMAPPED_COLLECTION",
        "MAPTI DeviceID 0x8 EventID 33 pINTID 8210 ICID 0": "MAPTI_ID_OOR",
        "MAPTI DeviceID 0x8 EventID 5 pINTID 8000 ICID 0": "MAPTI_PHYSICALID_OOR",
        "MAPTI DeviceID 0x8 EventID 6 pINTID 8211 ICID 8192": "MAPTI_COLLECTION_OOR",
        "MAPD DeviceID 0x20000 event_bits 3 ITT_addr 0x41069000 V 1": "MAPD_DEVICE_OOR",
        "MAPC ICID 4 RDbase 7 V 1": "MAPC_PROCNUM_OOR",
        "unknown opcode 0x77": "UNKNOWN_COMMAND",
        "VMAPTI DeviceID 0x0 EventID 0 vPEID 0 vINTID 0 Dbell_pINTID 0": "GICV4_COMMAND",
        "CLEAR DeviceID 0x8 EventID 31": "CLEAR_UNMAPPED_INTERRUPT",
        "DISCARD DeviceID 0x8 EventID 31": "DISCARD_UNMAPPED_INTERRUPT",
        "INV DeviceID 0x8 EventID 31": "INV_UNMAPPED_INTERRUPT",
        "INVALL ICID 0": None,
        "MOVALL RDbase 0 RDbase2 5": None,
        "MAPD DeviceID 0x10 event_bits 17 ITT_addr 0x41060000 V 1": "MAPD_ITTSIZE_OOR",
    }
    results = analysis.observations.injections.filter(
        pl.col("from_command").is_null() & (pl.col("result") != 0)
    )
    assert dict(results.select("event_id", "result").iter_rows()) == {
        17: int(Fault.INT_UNMAPPED_INTERRUPT),
        40: int(Fault.INT_ID_OOR),
        16: -16,
    }
    assert {one.code for one in analysis.findings if one.kind == "host"} == set()


def test_evidence_is_the_line_of_the_log(log: Path) -> None:
    said = {line.partition(":")[2] for line in text_of(log).splitlines()}
    analysis = analysis_of(log)
    shown = [one for finding in analysis.findings for one in finding.evidence]
    decoded = dict(analysis.history.verdicts.select("seq", "text").iter_rows())

    for one in shown:
        text = one.text.removeprefix(f"{decoded.get(one.seq)}: ")
        assert f"{one.event} {text}" in said
    assert bool(shown) == any(finding.seqs for finding in analysis.findings)


def test_without_stamps_all_but_the_times_is_the_same(tmp_path: Path) -> None:
    whole = analysis_of(EXCERPT)
    bare = analyzed(tmp_path, _STAMP.sub("", text_of(EXCERPT)))

    assert_tables_are_those_written(bare, records(EXCERPT))
    words = ["slot", "dw0", "dw1", "dw2", "dw3", "readable", "lost_before"]
    assert bare.observations.commands.select(words).equals(whole.observations.commands.select(words))
    assert told(bare) == told(whole)


def test_line_ends_and_consoles_change_nothing(tmp_path: Path) -> None:
    whole = analysis_of(EXCERPT)
    noisy = analyzed(tmp_path, text_of(EXCERPT).replace("\n", "\r\nlogin: root\r\n[ 1.0] \x1b[2J\r\n"))

    assert told(noisy) == told(whole)
    assert noisy.history.verdicts["text"].equals(whole.history.verdicts["text"])


def test_two_boots_are_two_machines(tmp_path: Path, corpus: Path) -> None:
    """A guest that is reset finds GITS_CTLR.Enabled cleared; the log itself says nothing of it."""
    text = text_of(corpus / "qemu-linux" / "its.log.zst")
    once = analysis_of(corpus / "qemu-linux" / "its.log.zst")
    twice = analyzed(tmp_path, _STAMP.sub("", text) * 2)

    assert twice.observations.vms["complete"].to_list() == [True, True]
    assert {one.code for one in twice.findings} == {"ITS903"}
    for vm in (0, 1):
        mine, whole = twice.at(vm=vm), once.at()
        assert mine.events is not None
        assert whole.events is not None
        assert mine.events.drop("vm").equals(whole.events.drop("vm"))


def test_command_whose_operands_are_torn_is_not_made_up(tmp_path: Path) -> None:
    torn = "gicv3_its_cmd_mapd GICv3 ITS: command MAPD DeviceID 0x8 Si"
    analysis = analyzed(
        tmp_path, "\n".join([*_SET_UP, f"{_PROCESS} 0x0: 0x5", _SYNC, f"{_PROCESS} 0x1: 0x8", torn])
    )

    assert analysis.history.verdicts["verdict"].to_list() == ["ok", "unreadable"]
    assert analysis.history.devices.is_empty()
    assert "ITS905" in {one.code for one in analysis.findings}


@pytest.mark.parametrize(
    ("slots", "lost"),
    [
        (["0x0", "0x1", "0x2"], [False, False, False]),
        (["0x0", "0x1", "0x5", "0x6"], [False, False, True, False]),
        (["0x0", "0x1", "0x0"], [False, False, True]),
        ([*(f"0x{n:x}" for n in range(256)), "0x0", "0x1"], [False] * 258),
    ],
)
def test_gap_in_the_queue_is_seen(tmp_path: Path, slots: list[str], lost: list[bool]) -> None:
    lines = [line for slot in slots for line in (f"{_PROCESS} {slot}: 0x5", _SYNC)]
    commands = analyzed(tmp_path, "\n".join([*_SET_UP, *lines])).observations.commands

    assert commands["lost_before"].to_list() == lost


def test_log_that_begins_late_says_so(tmp_path: Path) -> None:
    said = text_of(EXCERPT).splitlines(keepends=True)
    analysis = analyzed(tmp_path, "".join(said[len(said) // 2 :]))

    assert "ITS902" in {one.code for one in analysis.findings}
    assert analysis.observations.vms["complete"].to_list() == [False]


@pytest.mark.parametrize(("log_line", "codes"), [("", {"ITS105"}), ("VMAPP", set())])
def test_gicv4_commands_are_wrong_only_where_qemu_has_none(
    tmp_path: Path, log_line: str, codes: set[str]
) -> None:
    """QEMU with virtual LPIs tells their operands, without them it only counts the command."""
    vmapp = (
        "gicv3_its_cmd_vmapp GICv3 ITS: command VMAPP vPEID 0x1 RDbase 0x0 V 1 VPT_addr 0x4200 VPT_size 0xf"
    )
    said = [*_SET_UP, f"{_PROCESS} 0x0: 0x29", *([vmapp] if log_line else []), f"{_PROCESS} 0x1: 0x5", _SYNC]
    analysis = analyzed(tmp_path, "\n".join(said))

    assert {one.code for one in analysis.findings if one.kind == "guest"} == codes
    words = "VMAPP vPEID 1 V 1 RDbase 0 VPT_addr 0x42000000 vpt_bits 16" if log_line else "VMAPP vPEID 0 V 0"
    assert analysis.history.verdicts["text"][0].startswith(words)


@pytest.mark.parametrize("share", range(1, 20))
def test_nothing_is_wrong_with_any_late_beginning_of_a_clean_log(tmp_path: Path, share: int) -> None:
    said = text_of(SAMPLES / "qemu-linux.log.zst").splitlines(keepends=True)
    analysis = analyzed(tmp_path, "".join(said[share * len(said) // 20 :]))

    assert {one.code for one in analysis.findings} == {"ITS902", "ITS903"}


@pytest.mark.parametrize(("begin", "end"), [(332, 532), (117, 474), (1065, 1319), (7042, 7434)])
def test_commands_cut_out_of_a_clean_log_are_nobodys_fault(tmp_path: Path, begin: int, end: int) -> None:
    said = text_of(SAMPLES / "qemu-linux.log.zst").splitlines(keepends=True)
    analysis = analyzed(tmp_path, "".join(said[:begin] + said[end:]))

    assert analysis.observations.commands["lost_before"].sum() == 1
    assert {one.code for one in analysis.findings} == {"ITS903", "ITS906"}


def test_msi_at_the_very_end_is_not_judged(tmp_path: Path) -> None:
    said = text_of(EXCERPT).splitlines(keepends=True)
    msi = "gicv3_its_translation_write GICv3 ITS TRANSLATER write: offset 0x40 data 0x0 size 4 requester_id 0x8\n"
    analysis = analyzed(tmp_path, _STAMP.sub("", "".join(said)) + msi)

    assert analysis.observations.injections.tail(1).select("result", "intid").row(0) == (None, None)


def test_vcpus_are_limited_by_what_was_refused() -> None:
    """torture.c maps collection 4 to vCPU 7 of two: QEMU writes no entry."""
    assert analysis_of(EXCERPT).observations.vcpu_limits == {0: 7}


def test_operands_are_not_told_for_sync_and_invall() -> None:
    commands = analysis_of(EXCERPT).observations.commands
    bare = commands.filter((pl.col("dw0") & 0xFF).is_in([int(Opcode.SYNC), int(Opcode.INVALL)]))

    assert bare.height
    assert bare.select("dw1", "dw2", "dw3").sum().row(0) == (0, 0, 0)


def test_log_of_other_things_says_what_to_record(tmp_path: Path) -> None:
    with pytest.raises(NothingToAnalyzeError) as raised:
        analyzed(
            tmp_path,
            "1@2.000003:gicv3_redist_set_irq GICv3 redistributor 0x0 interrupt 27 level changed to 1\n",
        )
    assert raised.value.advice is not None
    assert '-trace "gicv3_its_*"' in raised.value.advice


def test_log_of_torn_lines_only_is_nothing_to_analyze(tmp_path: Path) -> None:
    with pytest.raises(NothingToAnalyzeError):
        analyzed(tmp_path, "1@1.000000:gicv3_its_cmd_inv GICv3 ITS: command INV Dev\n" * 3)


LINES = text_of(EXCERPT).splitlines(keepends=True)[:400]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 399),
            st.integers(0, 399),
            st.sampled_from(["0x", "ffffffffffff", "9" * 19, "\0", ""]),
        ),
        max_size=20,
    ),
    st.integers(0, 60),
)
def test_damaged_logs_are_analyzed_or_refused(
    tmp_path: Path, wounds: list[tuple[int, int, str]], cut: int
) -> None:
    said = list(LINES)
    for at, other, put in wounds:
        # Lines swapped, numbers that no register has, ends torn off.
        said[at], said[other] = said[other], said[at]
        said[at] = said[at].replace("0x", f"0x{put}", 1) if put else said[at][:cut]
    try:
        analysis = analyzed(tmp_path, "".join(said)[: -cut or None])
        analysis.at()
    except ItsTraceError:
        return
    assert analysis.observations.commands["vm"].null_count() == 0
