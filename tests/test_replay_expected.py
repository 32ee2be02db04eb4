"""What KVM must be seen to do (`History.expected`) is what it was seen to do, wherever no fault was put in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.cut import from_the_middle

from itstrace import schemas
from itstrace.replay import replay
from itstrace.rules import RULES
from itstrace.rules._effects import KEYS, compared, seen, told
from itstrace.rules.case import Case

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Analysis
    from itstrace.replay import History

#: Captures of kernels that do what their commands say.
SOUND = [
    "6.1-clean.dat",
    "6.12-clean.dat",
    "6.12-double-delivery.dat",
    "6.12-lost-records.dat",
    "6.12-tracefs-trace.txt.zst",
    "7.3-guest-mistakes.dat",
    "7.3-migrate.dat",
]
TORTURE = ["torture-6.1", "torture-6.12", "torture-7.3"]


def _case(analysis: Analysis, history: History | None = None) -> Case:
    return Case(
        analysis.observations,
        history or analysis.history,
        analysis.lives,
        analysis.gaps,
        [],
        analysis.start_ns,
        analysis.end_ns,
        RULES["ITS207"],
        {},
    )


def _unmet_and_extra(case: Case) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What commands surely had to do and were not seen to, and what they did besides; MOVALL by itself, see below."""
    wanted, extra = compared(case)
    movalls = case.history.verdicts.filter(pl.col("opcode") == "MOVALL")["seq"].implode()
    return wanted.filter(pl.col("certain") & ~pl.col("met")), extra.filter(
        ~pl.col("command_seq").is_in(movalls)
    )


@pytest.mark.parametrize("name", SOUND)
def test_every_command_did_what_it_must_and_nothing_else(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    unmet, extra = _unmet_and_extra(_case(analysis))

    assert analysis.history.expected.schema == schemas.EXPECTED
    assert analysis.history.expected["certain"].any()
    assert unmet.is_empty()
    assert extra.is_empty()


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name", [*TORTURE, "boot-6.12", "migrate-7.3", "faults/MV-clean-612", "faults/F12-all-73"]
)
def test_every_command_of_every_kind_did_what_it_must(corpus: Path, name: str) -> None:
    analysis = analysis_of(corpus / name / "trace.dat")
    unmet, extra = _unmet_and_extra(_case(analysis))

    assert unmet.is_empty()
    assert extra.is_empty()


@pytest.mark.corpus
@pytest.mark.parametrize("name", TORTURE)
def test_every_kind_of_effect_is_expected_and_seen(corpus: Path, name: str) -> None:
    """Each kind that the kernel has a probe for, by at least one command, and surely."""
    case = _case(analysis_of(corpus / name / "trace.dat"))
    wanted, _ = compared(case)
    sure = set(wanted.filter("certain")["what"])

    assert sure == {what for what in KEYS if told(case, what) is not None}
    assert {"alloc_event", "free_event"} <= sure or name != "torture-6.1"


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "calls"),
    # By vgic-its.c:vgic_its_cmd_handle_movall: v6.12 calls update_affinity for every LPI of the VM (its bug), v7.3 too
    # (and looks at the source within), v6.1 for those of the source.
    [("torture-6.1", 0), ("torture-6.12", 5), ("torture-7.3", 5)],
)
def test_movall_is_the_exception(corpus: Path, name: str, calls: int) -> None:
    case = _case(analysis_of(corpus / name / "trace.dat"))
    _, extra = compared(case)

    assert extra.filter(pl.col("what") == "retarget").height == extra.height == calls


@pytest.mark.corpus
@pytest.mark.parametrize("name", TORTURE)
def test_what_no_command_did_is_a_register_s_a_restore_s_or_the_teardown_s(corpus: Path, name: str) -> None:
    """Frees and invalidations outside of commands come from BASER, CTLR or EnableLPIs, a reset, or the end of the VM."""
    analysis = analysis_of(corpus / name / "trace.dat")
    obs = analysis.observations
    outside = seen(_case(analysis)).filter(pl.col("command_seq").is_null())
    freed = outside.filter(pl.col("what").str.starts_with("free_") | (pl.col("what") == "invalidate"))
    writers = pl.concat([obs.register_writes, obs.redistributor_writes], how="diagonal").select(
        "pid", write="seq"
    )
    rows = (
        freed.with_columns(write="seq")
        .sort("write")
        .join_asof(
            writers.sort("write").with_columns(by_write="write"), on="write", by="pid", check_sortedness=False
        )
    )
    end = obs.vms["to_seq"].fill_null(2**63)[0]
    near = (pl.col("seq") - pl.col("by_write") < 64).fill_null(value=False)
    reset = ~pl.col("pid").is_in(obs.vcpus["pid"].implode())

    assert set(outside["what"]) <= {
        "free_device", "free_event", "free_collection", "invalidate", "invall", "config_read"
    }  # fmt: skip
    assert rows.filter(~near & ~reset & (pl.col("seq") < end)).is_empty()


@pytest.mark.parametrize(
    "name", ["6.1-clean.dat", "6.12-clean.dat", "7.3-guest-mistakes.dat", "7.3-migrate.dat"]
)
@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_from_the_middle_of_a_life_nothing_is_certain_that_is_not_so(name: str, part: float) -> None:
    """A capture without its beginning: what commands still surely do, they do."""
    analysis = analysis_of(SAMPLES / name)
    obs = analysis.observations
    middle = int(obs.commands["seq"][int(part * obs.commands.height)])
    late = from_the_middle(obs, middle)
    history = replay(late, kernel=analysis.info.kernel)
    case = replace(_case(analysis, history), observations=late)
    unmet, extra = _unmet_and_extra(case)

    assert history.expected["certain"].any()
    assert unmet.is_empty()
    assert extra.is_empty()


def test_a_command_that_fails_or_changes_nothing_has_nothing_to_do() -> None:
    analysis = analysis_of(SAMPLES / "7.3-guest-mistakes.dat")
    history = analysis.history
    idle = history.verdicts.filter(
        pl.col("verdict").is_in(["fault", "ignored"]) & (pl.col("opcode") != "INT")
    )
    rows = history.expected.filter(pl.col("command_seq").is_in(idle["seq"].implode()))

    assert idle.height > 10
    assert not rows["certain"].any()


def test_lost_commands_make_what_follows_uncertain() -> None:
    """An event that was mapped when commands were lost may not be so any more; one mapped since is."""
    analysis = analysis_of(SAMPLES / "6.12-clean.dat")
    obs = analysis.observations
    moves = analysis.history.expected.filter((pl.col("what") == "retarget") & pl.col("certain"))
    at = int(moves["seq"][10])
    gap = obs.commands.with_columns(lost_before=pl.col("lost_before") | (pl.col("seq") == at))
    rows = replay(replace(obs, commands=gap), kernel="6.12").expected.filter(pl.col("what") == "retarget")

    assert rows.filter(pl.col("seq") == at)["certain"].to_list() == [False]
    assert rows.filter(pl.col("seq") < at)["certain"].all()
    assert rows.filter(pl.col("seq") > at)["certain"].any()
