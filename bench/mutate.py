#!/usr/bin/env python3
"""Change one record of a clean capture, many times, and ask whether the analysis says so.

A mutation drops, duplicates, delays or alters one record of one probe: what a missed kprobe, a kernel that did something
twice, late, or otherwise would have left in the capture. Each is one of:

caught       the findings differ, and one of those that differ is about the record: it is in its evidence, or it names the
             record's LPI, event, device, vCPU or probe
elsewhere    the findings differ, but only in things that the record has nothing to do with
missed       some table or life differs, and no finding does

or it carries no information that a rule could go by, which comparing all frames of the two analyses proves:

in order     a delay: every observation is the same but in its time; it overtook nothing that it belongs with
unread       every observation is the same: nothing in the program reads what was changed
repeated     a duplicate: every observation was there before, only more often; tables and lives are the same
told twice   tables and lives are the same, and another record of the call gives the same values
no effect    tables, targets, configurations and the life of every LPI are the same, though this record alone told it

Times and orders within what the machine itself does are not compared. Everything is seeded: the same numbers come out
each time.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.lives import Lives, live
from itstrace.observe import Observations, from_raw
from itstrace.observe.collect import Raw, collect
from itstrace.observe.identity import identify
from itstrace.readers import open_capture
from itstrace.replay import History, replay
from itstrace.rules import check

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from itstrace.errors import Damage
    from itstrace.findings import Finding

#: Room between two records for one more.
_ROOM: Final = 8
#: How far a record is delayed at the most.
_DELAYS_NS: Final = (20_000, 1_000_000, 50_000_000, 2_000_000_000)
_HEAD: Final = ("seq", "time_ns", "cpu", "pid")
#: Columns that say what a record is about; all records of a VM share its pointers.
_NAMES: Final = {"intid", "device_id", "event_id", "icid", "gpa", "addr", "val", "dw0", "irq"}
#: Columns in which frames may differ though they tell the same: places, times, and who carried it out.
_WHEN: Final = {"cpu", "pid"}
#: Frames that say again what others do, or what findings are made of.
_NOT_COMPARED: Final = {"config_calls", "invalls", "markers", "contradictions", "disorder", "skipped_slots"}
#: A finding that quotes a record this near (in records) is about it.
_NEAR: Final = 12 * _ROOM


class Change(StrEnum):
    """What is done to one record."""

    DROP = "drop"
    DUPLICATE = "duplicate"
    DELAY = "delay"
    ALTER = "alter"


class Verdict(StrEnum):
    """What the analysis made of it."""

    CAUGHT = "caught"
    ELSEWHERE = "elsewhere"
    MISSED = "missed"
    IN_ORDER = "in order"
    UNREAD = "unread"
    REPEATED = "repeated"
    TOLD_TWICE = "told twice"
    NO_EFFECT = "no effect"


#: No rule could have told, and the frames prove it.
SILENT: Final = (
    Verdict.IN_ORDER,
    Verdict.UNREAD,
    Verdict.REPEATED,
    Verdict.TOLD_TWICE,
    Verdict.NO_EFFECT,
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One record changed: row `row` of probe `probe`; `detail` says how."""

    probe: str
    change: Change
    row: int
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutation.

    `said` are the codes of the findings that came, went or changed, `differs` the frames that differ where none did, and
    `why` what proves that it carries no information.
    """

    mutation: Mutation
    verdict: Verdict
    said: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    why: str = ""


@dataclass(slots=True)
class _Told:
    """One analysis, as far as it is compared."""

    observations: Observations
    history: History
    lives: Lives
    findings: list[Finding]


class Mutator:
    """One clean capture, held as raw probe frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_capture(path) as capture:
            raw = collect(capture)
            self.kernel = capture.info.kernel
            self.gaps, self.damage = capture.gaps(), capture.damage()
            self.span = capture.span()
        frames = {name: frame.with_columns(pl.col("seq") * _ROOM) for name, frame in raw.frames.items()}
        self.raw = replace(raw, frames=frames)
        self.base = self._tell(self.raw)
        times = pl.concat([frame.select("seq", "time_ns") for frame in frames.values()])
        self.times = times.sort("time_ns", "seq")

    def mutations(self, count: int, seed: int) -> Iterator[Mutation]:
        """Random mutations: each probe that fired is as likely as any other, whatever the number of its records."""
        chance = random.Random(f"{seed} {self.path.parent.name}")  # noqa: S311 - chosen, not secret
        probes = [
            name for name, frame in sorted(self.raw.frames.items()) if frame.height and name != "marker"
        ]
        for _ in range(count):
            probe = chance.choice(probes)
            frame = self.raw[probe]
            row = chance.randrange(frame.height)
            change = chance.choice(list(Change))
            detail = ""
            if change is Change.DELAY:
                detail = str(chance.randrange(1, chance.choice(_DELAYS_NS)))
            elif change is Change.ALTER:
                columns = [
                    c for c in frame.columns if c not in _HEAD and frame[c].null_count() < frame.height
                ]
                if not columns:
                    change = Change.DROP
                else:
                    column = chance.choice(columns)
                    detail = f"{column}={self._other(frame, column, row, chance)}"
            yield Mutation(probe, change, row, detail)

    def _other(self, frame: pl.DataFrame, column: str, row: int, chance: random.Random) -> int:
        """Another value for a field: one that the capture has elsewhere, else one bit of it turned."""
        mine = frame[column][row]
        others = sorted(value for value in frame[column].drop_nulls().unique().to_list() if value != mine)
        return chance.choice(others) if others else (mine or 0) ^ 1

    def try_one(self, mutation: Mutation) -> Outcome:
        """Analyze the capture with one record changed."""
        changed, at = self._changed(mutation)
        told = self._tell(changed)
        said = list(_differences(self.base.findings, told.findings))
        if said:
            row = self.raw[mutation.probe].row(mutation.row, named=True)
            event = self.raw.events.get(mutation.probe, mutation.probe)
            about = [finding for finding in said if _is_about(finding, row, mutation, at, event)]
            codes = tuple(sorted({finding.code for finding in about or said}))
            return Outcome(mutation, Verdict.CAUGHT if about else Verdict.ELSEWHERE, codes)
        differs = tuple(_differing(self.base, told))
        if differs:
            return Outcome(mutation, Verdict.MISSED, differs=differs)
        return self._uninformative(mutation, told.observations)

    def _uninformative(self, mutation: Mutation, observations: Observations) -> Outcome:
        """Tables and lives are the same: say why nothing could be said."""
        before, after = (
            {name: frame for name, frame in obs.frames().items() if name not in _NOT_COMPARED}
            for obs in (self.base.observations, observations)
        )
        differs = tuple(_unlike(before, after))
        if not differs:
            if mutation.change is Change.DELAY:
                return Outcome(mutation, Verdict.IN_ORDER)
            return Outcome(mutation, Verdict.UNREAD, why=mutation.detail.partition("=")[0])
        if mutation.change is Change.DUPLICATE and all(
            _doubled(before[name], after[name]) for name in differs
        ):
            return Outcome(mutation, Verdict.REPEATED, differs=differs)
        partner = self._partner(mutation)
        if partner is not None:
            return Outcome(mutation, Verdict.TOLD_TWICE, differs=differs, why=partner)
        why = mutation.detail.partition("=")[0] if mutation.change is Change.ALTER else ""
        return Outcome(mutation, Verdict.NO_EFFECT, differs=differs, why=why)

    def _partner(self, mutation: Mutation) -> str | None:
        """The probe of a record beside it, on its task, that gives what was dropped or altered."""
        record = self.raw[mutation.probe].row(mutation.row, named=True)
        altered = mutation.detail.partition("=")[0] if mutation.change is Change.ALTER else None
        told = {altered} if altered else _NAMES & record.keys()
        wanted = {name: record[name] for name in told if record.get(name)}
        if not wanted:
            return None
        for probe, frame in self.raw.frames.items():
            if probe == mutation.probe or not wanted.keys() <= set(frame.columns):
                continue
            near = frame.filter(
                (pl.col("pid") == record["pid"])
                & pl.col("seq").is_between(max(0, record["seq"] - _NEAR), record["seq"] + _NEAR)
            )
            same = pl.all_horizontal(pl.col(name) == value for name, value in wanted.items())
            if not near.filter(same).is_empty():
                return probe
        return None

    def _changed(self, mutation: Mutation) -> tuple[Raw, tuple[int, int]]:
        """The capture with one record changed, and where: before and after."""
        frame = self.raw[mutation.probe]
        record = frame.slice(mutation.row, 1)
        rest = pl.concat([frame.slice(0, mutation.row), frame.slice(mutation.row + 1)])
        was = now = int(record["seq"][0])
        match mutation.change:
            case Change.DROP:
                frame = rest
            case Change.DUPLICATE:
                now = was + 1
                # A thing done twice is done twice one after the other.
                again = record.with_columns(seq=pl.lit(now, dtype=pl.UInt64), time_ns=pl.col("time_ns") + 1)
                frame = pl.concat([frame, again])
            case Change.DELAY:
                time_ns = int(record["time_ns"][0]) + int(mutation.detail)
                place = int(self.times["time_ns"].search_sorted(time_ns, side="right"))
                now = int(self.times["seq"][place - 1]) + 1
                late = record.with_columns(
                    seq=pl.lit(now, dtype=pl.UInt64), time_ns=pl.lit(time_ns, dtype=pl.Int64)
                )
                frame = pl.concat([rest, late])
            case Change.ALTER:
                column, _, value = mutation.detail.partition("=")
                dtype = frame.schema[column]
                frame = pl.concat([rest, record.with_columns(pl.lit(int(value)).cast(dtype).alias(column))])
        frames = self.raw.frames | {mutation.probe: frame.sort("seq")}
        return replace(self.raw, frames=frames), (was, now)

    def _tell(self, raw: Raw) -> _Told:
        observations = from_raw(raw, identify(raw))
        history = replay(observations, kernel=self.kernel)
        lives = live(observations, history)
        damage: Sequence[Damage] = self.damage
        findings, _ = check(
            observations,
            history,
            lives,
            gaps=self.gaps,
            damage=damage,
            start_ns=self.span[0],
            end_ns=self.span[1],
            kernel=self.kernel,
        )
        return _Told(observations, history, lives, findings)


def _differences(before: Iterable[Finding], after: Iterable[Finding]) -> Iterator[Finding]:
    """Findings that came, went, or say something else now (how often, of what, how sure)."""
    old, new = ({_gist(finding): finding for finding in findings} for findings in (before, after))
    yield from (finding for gist, finding in new.items() if gist not in old)
    yield from (finding for gist, finding in old.items() if gist not in new)


def _gist(finding: Finding) -> tuple[Any, ...]:
    subjects = tuple((one.key, one.count) for one in finding.subjects)
    return (
        finding.code,
        finding.severity,
        finding.confidence,
        finding.mechanism,
        finding.count,
        finding.vcpus,
        subjects,
        "" if finding.subjects else finding.message,
    )


def _is_about(
    finding: Finding, row: dict[str, Any], mutation: Mutation, at: tuple[int, int], event: str
) -> bool:
    """Whether a finding has to do with the record that was changed, one of `event`."""
    if any(abs(seq - place) <= _NEAR for seq in (*finding.seqs, *finding.blames) for place in at):
        return True
    ids = {
        name: {value for value in (row.get(name), _altered(mutation, name)) if value is not None}
        for name in ("intid", "event_id", "device_id", "vcpu", "icid")
    }
    for one in finding.subjects:
        if one.intid in ids["intid"]:
            return True
        if one.event_id in ids["event_id"] and (not ids["device_id"] or one.device_id in ids["device_id"]):
            return True
        if one.event_id is None and one.device_id in ids["device_id"]:
            return True
    named = mutation.probe in finding.mechanism.replace(":", " ").split() or event in finding.message
    return named or bool(set(finding.vcpus) & ids["vcpu"])


def _altered(mutation: Mutation, column: str) -> int | None:
    name, _, value = mutation.detail.partition("=")
    return int(value) if value and name == column else None


def _differing(one: _Told, other: _Told) -> Iterator[str]:
    """Names of the frames that tell what happened, and tell it otherwise."""
    frames = [
        {
            "verdicts": told.history.verdicts,
            "devices": told.history.devices,
            "collections": told.history.collections,
            "mappings": told.history.mappings,
            "targets": told.history.targets,
            "configurations": told.history.configurations,
            "lives": told.lives.lives,
            "fills": told.lives.fills.select("vm", "vcpu", "intid", "taken", "latched_by"),
            "pending": told.lives.pending,
        }
        for told in (one, other)
    ]
    yield from _unlike(*frames)


def _unlike(one: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> Iterator[str]:
    for name, frame in one.items():
        if not _timeless(frame).equals(_timeless(other[name])):
            yield name


def _doubled(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Whether the second frame has the first one's rows, some of them more than once, and no others."""
    return _timeless(one).unique().sort(pl.all()).equals(_timeless(other).unique().sort(pl.all()))


def _timeless(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame without places and times, which one record more or less moves."""
    named = [
        c
        for c in frame.columns
        if c not in _WHEN
        and c not in {"seq", "time_ns", "set_by", "ended_by", "from_command"}
        and not c.endswith(("_seq", "_ns"))
    ]
    rows = frame.select(named)
    return rows.sort(named, nulls_last=True) if named else rows


@dataclass(slots=True)
class Tally:
    """Outcomes, counted."""

    outcomes: list[tuple[str, Outcome]]

    def count(self, **which: object) -> Counter[Verdict]:
        """Verdicts of those whose mutation has these attributes."""
        return Counter(
            outcome.verdict
            for _, outcome in self.outcomes
            if all(getattr(outcome.mutation, name) == value for name, value in which.items())
        )

    def missed(self) -> list[tuple[str, Outcome]]:
        """Those that ought to have been told."""
        return [(name, one) for name, one in self.outcomes if one.verdict is Verdict.MISSED]


def share(counted: Counter[Verdict]) -> str:
    """How many of those that carry information were told."""
    told = counted[Verdict.CAUGHT] + counted[Verdict.ELSEWHERE]
    all_of_them = told + counted[Verdict.MISSED]
    return f"{told / all_of_them:.0%}" if all_of_them else "-"
