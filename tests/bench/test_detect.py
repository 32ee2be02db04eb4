"""bench/detect.py and bench/mutate.py: what they count as found, and that nothing of a mutated clean capture is missed."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import SAMPLES

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import detect
import mutate
from mutate import Change, Mutation, Verdict

from itstrace import Severity

if TYPE_CHECKING:
    import polars as pl


@cache
def _mutator(name: str) -> mutate.Mutator:
    return mutate.Mutator(SAMPLES / name)


def _row(name: str, probe: str, **values: int) -> int:
    """A record of a probe with these values, as far from both ends as there is one."""
    frame: pl.DataFrame = _mutator(name).raw[probe]
    rows = [
        number
        for number, row in enumerate(frame.iter_rows(named=True))
        if all(row[column] == value for column, value in values.items())
    ]
    return rows[len(rows) // 2]


def _try(name: str, probe: str, change: Change, detail: str = "", **values: int) -> mutate.Outcome:
    return _mutator(name).try_one(Mutation(probe, change, _row(name, probe, **values), detail))


# --- mutations


@pytest.mark.parametrize("name", ["6.1-clean.dat", "6.12-clean.dat"])
def test_nothing_that_carries_information_is_missed(name: str) -> None:
    mutator = _mutator(name)
    outcomes = [mutator.try_one(mutation) for mutation in mutator.mutations(7, seed=4)]

    assert [one for one in outcomes if one.verdict is Verdict.MISSED] == []
    assert sum(one.verdict is Verdict.CAUGHT for one in outcomes) >= len(outcomes) // 3


def test_the_same_seed_gives_the_same_mutations() -> None:
    mutator = _mutator("6.12-clean.dat")

    assert list(mutator.mutations(20, seed=1)) == list(mutator.mutations(20, seed=1))
    assert list(mutator.mutations(20, seed=1)) != list(mutator.mutations(20, seed=2))


@pytest.mark.parametrize(
    ("probe", "change", "detail", "code"),
    [
        ("affinity", Change.DROP, "", "ITS207"),
        ("invalidate", Change.DROP, "", "ITS202"),
        ("enable_lpis", Change.DROP, "", "ITS207"),
        ("alloc_device", Change.ALTER, "bits=1", "ITS207"),
        ("fill_end", Change.ALTER, "lr0=5809643519307956000", "ITS208"),
        ("config_end", Change.ALTER, "priority=64", "ITS205"),
        ("fill", Change.DROP, "", "ITS301"),
        ("write_cwriter", Change.DROP, "", "ITS906"),
        ("save_pending", Change.ALTER, "kvm=18446603336389431297", "ITS906"),
    ],
)
def test_a_change_is_told_by_the_rule_that_it_concerns(
    probe: str, change: Change, detail: str, code: str
) -> None:
    values = {"lr": 0} if detail.startswith("lr0") else {}
    outcome = _try("6.12-clean.dat", probe, change, detail, **values)

    assert outcome.verdict is Verdict.CAUGHT
    assert code in outcome.said


@pytest.mark.parametrize(
    ("probe", "change", "detail", "verdict"),
    [
        ("fill", Change.DELAY, "1", Verdict.IN_ORDER),
        ("write_propbaser", Change.DUPLICATE, "", Verdict.REPEATED),
        ("save_tables", Change.DROP, "", Verdict.NO_EFFECT),
        ("fill_end", Change.ALTER, "lr3=1", Verdict.UNREAD),
    ],
)
def test_what_carries_no_information_is_told_apart(
    probe: str, change: Change, detail: str, verdict: Verdict
) -> None:
    outcome = _try("6.12-clean.dat", probe, change, detail, **({"lr": 0} if probe == "fill_end" else {}))

    assert outcome.verdict is verdict
    assert outcome.said == ()


def test_a_stray_pointer_makes_no_second_vm() -> None:
    mutator = _mutator("6.1-clean.dat")
    changed, _ = mutator._changed(Mutation("save_pending", Change.ALTER, 0, "kvm=18446603336389431297"))
    told = mutator._tell(changed)

    assert told.observations.vms.equals(mutator.base.observations.vms)
    assert told.history.mappings.equals(mutator.base.history.mappings)
    assert {one.code for one in told.findings} - {one.code for one in mutator.base.findings} == {"ITS906"}


def test_the_share_is_that_of_mutations_that_carry_information() -> None:
    outcomes = [
        ("a", mutate.Outcome(Mutation("queue", Change.DROP, 0, ""), verdict))
        for verdict in (Verdict.CAUGHT, Verdict.CAUGHT, Verdict.MISSED, Verdict.UNREAD, Verdict.ELSEWHERE)
    ]
    tally = mutate.Tally(outcomes)

    assert mutate.share(tally.count()) == "75%"
    assert mutate.share(tally.count(change=Change.DELAY)) == "-"
    assert [one.verdict for _, one in tally.missed()] == [Verdict.MISSED]


# --- keys


def _scored(key: dict[str, Any], *found: tuple[str, Severity, tuple[str, ...]]) -> detect.Scored:
    findings: list[Any] = [
        SimpleNamespace(code=code, severity=severity, id=code, caused_by=caused_by)
        for code, severity, caused_by in found
    ]
    return detect.Scored("made up", key, findings)


ERROR, NOTE = Severity.ERROR, Severity.NOTE


@pytest.mark.parametrize(
    ("key", "found", "right"),
    [
        ({"accept": ["ITS301", "ITS304"]}, [("ITS304", NOTE, ())], True),
        ({"accept": ["ITS301"]}, [], False),
        ({"accept": ["ITS301"], "require": ["ITS207"]}, [("ITS301", ERROR, ())], False),
        ({"accept": ["ITS301"], "require": ["ITS207"]}, [("ITS301", ERROR, ()), ("ITS207", ERROR, ())], True),
        # Only what follows from something that the key does not name.
        ({"accept": ["ITS301"]}, [("ITS207", ERROR, ()), ("ITS301", ERROR, ("ITS207",))], False),
        # What follows from another one that it names counts.
        ({"accept": ["ITS301", "ITS207"]}, [("ITS207", ERROR, ()), ("ITS301", ERROR, ("ITS207",))], True),
        ({"clean": True}, [("ITS901", NOTE, ())], True),
        ({"clean": True}, [("ITS301", ERROR, ())], False),
        ({"clean": True, "accept": ["ITS102"]}, [("ITS102", ERROR, ())], True),
    ],
)
def test_a_key_is_satisfied_by_the_mechanism_that_it_names(
    key: dict[str, Any], found: list[Any], right: bool
) -> None:
    assert _scored(key, *found).right is right


def test_what_the_key_does_not_name_is_unexpected_unless_it_follows() -> None:
    wanted = ("ITS207", ERROR, ())
    scored = _scored({"accept": ["ITS207"]}, wanted, ("ITS301", ERROR, ("ITS207",)), ("ITS308", ERROR, ()))

    assert scored.unexpected == {"ITS308"}


def test_rules_are_scored_by_captures() -> None:
    scores = detect.by_rule(
        [
            _scored({"accept": ["ITS301"]}, ("ITS301", ERROR, ())),
            _scored({"accept": ["ITS301"], "require": ["ITS207"]}, ("ITS308", ERROR, ())),
            _scored({"clean": True}, ("ITS308", ERROR, ())),
        ]
    )

    assert (len(scores["ITS301"].right), len(scores["ITS301"].missed)) == (1, 1)
    assert len(scores["ITS207"].missed) == 1
    assert len(scores["ITS308"].wrong) == 2
