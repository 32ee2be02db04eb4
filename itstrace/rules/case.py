"""What a rule may look at: observations, table history and lives of one capture, with what was lost of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import polars as pl

from itstrace.findings import Confidence, Finding
from itstrace.observe.catalogue import source_of
from itstrace.observe.joins import after, before

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from itstrace.errors import Damage
    from itstrace.lives import Lives
    from itstrace.observe import Observations
    from itstrace.replay import History
    from itstrace.rules.registry import Rule


#: What names an LPI, a vCPU and an event in every frame.
LPI: Final = ["vm", "intid"]
VCPU: Final = ["vm", "vcpu"]
EVENT: Final = ["vm", "its", "device_id", "event_id"]
#: An end that never comes.
NEVER = 2**64 - 1
#: Times before and after all others.
_EARLIEST, _LATEST = -(2**63), 2**63 - 1

_Made = TypeVar("_Made")


def once(make: Callable[[Case], _Made]) -> Callable[[Case], _Made]:
    """Decorate what several rules make of a capture: it is made once, and must not depend on the rule that asks.

    Nobody may change what it gives.
    """

    @wraps(make)
    def made(case: Case) -> _Made:
        if make not in case.shared:
            case.shared[make] = make(case)
        found: _Made = case.shared[make]
        return found

    return made


@dataclass(frozen=True, slots=True)
class Case:
    """One capture, as the rule that looks at it sees it."""

    observations: Observations
    history: History
    lives: Lives
    gaps: pl.DataFrame
    damage: Sequence[Damage]
    start_ns: int | None
    end_ns: int | None
    rule: Rule
    skipped: dict[str, tuple[str, ...]]
    #: The capture tells where records were lost; else `gaps` may lack some.
    losses_told: bool = True
    #: The capture's `uname -r`; None where it does not tell.
    kernel: str | None = None
    #: What the user set of the rules' numbers, by name.
    set: Mapping[str, float] = field(default_factory=dict)
    #: What rules of this analysis have made already, by the function that made it: see `once`.
    shared: dict[Callable[[Case], Any], Any] = field(init=False, default_factory=dict, repr=False)

    def sharing(self, shared: dict[Callable[[Case], Any], Any]) -> Case:
        """The same case, with what other rules of this analysis have made already."""
        object.__setattr__(self, "shared", shared)
        return self

    def setting(self, name: str) -> float:
        """A number of this rule: the user's, or its default."""
        return self.set.get(name, next(one.default for one in self.rule.settings if one.name == name))

    def recorded(self, *probes: str) -> bool:
        """Whether the capture could have recorded all of these probes (names of `observe/events.toml`)."""
        return all(probe in self.observations.fed_by for probe in probes)

    @property
    def host(self) -> str:
        """Whose ITS it is, for messages: KVM's or QEMU's own."""
        return _host(self)

    def finding(self, message: str, **details: Any) -> Finding:
        """A finding of this rule; severity, confidence and advice may be given, else they are the rule's."""
        given = {
            "severity": self.rule.severity,
            "confidence": Confidence.CERTAIN,
            "advice": self.rule.section("What to do"),
            "suspect": self.rule.suspect,
            "guest_saw": self.rule.guest_sees,
            "claim": self.rule.claim.replace("KVM", self.host),
            "harm": self.rule.harm,
            **details,
        }
        return Finding(
            code=self.rule.code, name=self.rule.name, kind=self.rule.kind, message=message, **given
        )

    def about(self, rows: pl.DataFrame, **changed: Any) -> dict[str, Any]:
        """What a finding over these rows is about: ids and time of the first, time of the last, how many.

        Rows of an LPI that name no event are about the event that maps it then. `changed` overrides.
        """
        first = rows.row(0, named=True)
        ids = {name: first[name] for name in ("vm", "its", "device_id", "event_id", "intid") if name in first}
        if "its" not in first:
            event = self.event_of(first["vm"], first["intid"], first["seq"])
            ids |= dict(zip(("its", "device_id", "event_id"), event, strict=True))
        span = {"time_ns": first["time_ns"], "end_ns": rows["time_ns"].max(), "count": rows.height}
        return ids | span | changed

    # --- what was lost

    def lost(self, from_ns: int | None, to_ns: int | None) -> bool:
        """Whether records of any CPU were lost within a span (None: open at that end)."""
        if self.gaps.is_empty():
            return False
        begins, ends = _gap_bounds(self)
        first = _EARLIEST if from_ns is None else from_ns
        last = _LATEST if to_ns is None else to_ns
        return bool(((begins <= last) & (ends >= first)).any())

    def without_lost(self, rows: pl.DataFrame, from_ns: str, to_ns: str) -> pl.DataFrame:
        """Rows whose span (two columns of times) holds no lost records."""
        if self.gaps.is_empty() or rows.is_empty():
            return rows
        begins, ends = _gap_bounds(self)
        first = rows[from_ns].cast(pl.Int64).fill_null(_EARLIEST).to_numpy()
        last = rows[to_ns].cast(pl.Int64).fill_null(_LATEST).to_numpy()
        if (begins <= ends).all() and (first <= last).all():
            # Gaps that begin by the row's end, but for those that were over before it begins.
            lost = np.searchsorted(np.sort(begins), last, "right") > np.searchsorted(np.sort(ends), first)
        else:
            lost = np.array([self.lost(a, b) for a, b in zip(rows[from_ns], rows[to_ns], strict=True)])
        return rows.filter(pl.Series(~lost))

    def without_lost_commands(self, rows: pl.DataFrame, since: str) -> pl.DataFrame:
        """Rows (vm, its, seq) since whose `since`, a column of records, no command of their ITS was lost.

        That commands were lost shows only at the next one: between the two nothing is known.
        """
        commands = self.observations.commands
        if rows.is_empty() or not commands["lost_before"].any():
            return rows
        lost = commands.filter("lost_before")
        rows = before(rows, lost, ["vm", "its"], _lost="seq")
        rows = after(rows, commands, ["vm", "its"], _next_lost="lost_before")
        known = (pl.col("_lost").fill_null(0) <= pl.col(since).fill_null(0)) & ~pl.col(
            "_next_lost"
        ).fill_null(value=False)
        return rows.filter(known).drop("_lost", "_next_lost")

    # --- table history

    def ends_of(self, commands: pl.Series) -> pl.Series:
        """The record by which each command had surely taken effect (null stays null; unknown ends are NEVER)."""
        asked = pl.DataFrame({"seq": commands})
        return asked.join(_ends(self), on="seq", how="left", maintain_order="left")["end_seq"]

    def live_rows(self, frame: pl.DataFrame, keys: dict[str, Any], seq: int) -> list[dict[str, Any]]:
        """Rows of an interval frame with these keys that hold at a record.

        For a few look-ups, not for many.
        """
        for name, value in keys.items():
            frame = frame.filter(pl.col(name) == value)
        begun = pl.col("from_seq").is_null() | (pl.col("from_seq") <= seq)
        return frame.filter(begun & (pl.col("to_seq").is_null() | (pl.col("to_seq") > seq))).to_dicts()

    def held(self, rows: pl.DataFrame, frame: pl.DataFrame, keys: list[str], **values: str) -> pl.DataFrame:
        """What an interval frame surely held throughout each row, from `seq` to `end_seq`.

        Shape: `rows` with the new columns `new_name="column of frame"`; null where nothing was held, only assumed,
            or not all the while (its command was still under way at the row's begin, or it ended before the row did).
        """
        frame = frame.with_columns(
            settled=self.ends_of(frame["set_by"]), from_seq=pl.col("from_seq").fill_null(0)
        )
        entries = frame.with_columns(settled=pl.coalesce("settled", "from_seq"), seq="from_seq")
        inner = {f"_{name}": column for name, column in values.items()}
        found = before(
            rows.with_columns(seq=pl.col("seq") + 1),
            entries,
            keys,
            _assumed="assumed",
            _settled="settled",
            _to="to_seq",
            **inner,
        ).with_columns(seq=pl.col("seq") - 1)
        throughout = (
            ~pl.col("_assumed")
            & (pl.col("_settled") <= pl.col("seq"))
            & (pl.col("_to").fill_null(NEVER) > pl.col("end_seq").fill_null(pl.col("seq")))
        )
        return found.with_columns(
            pl.when(throughout).then(pl.col(f"_{name}")).alias(name) for name in values
        ).drop("_assumed", "_settled", "_to", *inner)

    def compare(
        self, rows: pl.DataFrame, frame: pl.DataFrame, keys: list[str], column: str, *, seen: str, end: str
    ) -> pl.DataFrame:
        """Rows in which what was seen is not what the tables held, nor held while a command was under way.

        `rows` has `keys`, `seq`, `end` (its own end) and `seen`; `frame` is an interval frame. A command
        takes effect at some moment between its record and its end, so around it both the old and the new
        value are right.
        Shape: those rows, with `expected`, `since_seq`, `set_by`, `assumed` (of the entry that held; null:
            none held), and `known` (the history has any entry for the key at or before the row).
        """
        held = frame.with_columns(
            begin=pl.col("from_seq").fill_null(0), until=self.ends_of(frame["ended_by"]).alias("until")
        )
        # Where no command ended it (a restore, a reset), it ended at once.
        held = held.with_columns(
            until=pl.when(pl.col("to_seq").is_null()).then(NEVER).otherwise(pl.coalesce("until", "to_seq"))
        )
        entries = held.select(
            *keys, "set_by", "assumed", "until", "to_seq", begin="begin", seq="begin", value=column
        )
        tried = before(
            rows.with_columns(seq=pl.col("seq") + 1),
            entries,
            keys,
            expected="value",
            since_seq="begin",
            set_by="set_by",
            assumed="assumed",
            _until="until",
            _to="to_seq",
        ).with_columns(seq=pl.col("seq") - 1)
        right = (pl.col("expected") == pl.col(seen)) & (pl.col("seq") <= pl.col("_until"))
        wrong = tried.filter(right.fill_null(value=False).not_())
        wrong = wrong.with_columns(known=pl.col("since_seq").is_not_null())
        if wrong.is_empty():
            return wrong.drop("_until", "_to")
        # The few that remain may have met a value that was just going, or just coming.
        # Of one key and value, the entries begun by the row's end: did the longest of them reach its begin?
        also = held.select(*keys, "until", pl.col(column).alias(seen), seq="begin").sort("seq")
        also = also.with_columns(until=pl.col("until").cum_max().over(*keys, seen))
        at_end = wrong.with_columns(_seq="seq", seq=pl.col(end).fill_null(NEVER - 1) + 1)
        met = before(at_end, also, [*keys, seen], _until2="until")
        met = met.filter(pl.col("_until2") >= pl.col("_seq")).with_columns(seq="_seq")
        wrong = wrong.filter(~pl.col("seq").is_in(met["seq"].implode()))
        gone = pl.col("_to").is_not_null() & (pl.col("_to") <= pl.col("seq"))
        return wrong.with_columns(
            expected=pl.when(~gone).then("expected"),
            assumed=pl.when(~gone).then("assumed"),
            gone_by=pl.when(gone).then("_to"),
        ).drop("_until", "_to")

    def command_text(self, seq: int | None) -> str:
        """A command as text, with when it was; empty for none."""
        return _texts(self).get(seq, "") if seq is not None else ""

    def command_time(self, seq: int | None) -> int | None:
        """When a command was read."""
        return _times(self).get(seq) if seq is not None else None

    def event_of(self, vm: int, intid: int, seq: int) -> tuple[int | None, int | None, int | None]:
        """(ITS, device, event) that maps an LPI at a record, or last did; Nones where none is known."""
        rows = self.history.mappings.filter((pl.col("vm") == vm) & (pl.col("intid") == intid))
        rows = rows.filter(pl.col("from_seq").is_null() | (pl.col("from_seq") <= seq)).tail(1)
        return rows.select("its", "device_id", "event_id").row(0) if rows.height else (None, None, None)


@once
def _gap_bounds(case: Case) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """When records began to be lost, and when that was over, stretch by stretch."""
    begins = case.gaps["from_ns"].cast(pl.Int64).fill_null(_EARLIEST).to_numpy()
    ends = case.gaps["to_ns"].cast(pl.Int64).fill_null(_LATEST).to_numpy()
    return begins, ends


@once
def _ends(case: Case) -> pl.DataFrame:
    """By which record every command had surely taken effect."""
    return case.observations.commands.select(pl.col("seq"), pl.col("end_seq").fill_null(NEVER))


@once
def _host(case: Case) -> str:
    return source_of(case.observations.fed_by)


@once
def _texts(case: Case) -> dict[int, str]:
    """Every command as text, by its record."""
    rows = case.history.verdicts
    return dict(zip(rows["seq"].to_list(), rows["text"].to_list(), strict=True))


@once
def _times(case: Case) -> dict[int, int]:
    """When every command was read, by its record."""
    rows = case.observations.commands
    return dict(zip(rows["seq"].to_list(), rows["time_ns"].to_list(), strict=True))


def first_some(seqs: Iterable[int | None], limit: int = 12) -> tuple[int, ...]:
    """Up to `limit` records for evidence, in order, without doubles."""
    found = sorted({seq for seq in seqs if seq is not None})
    return tuple(found[:limit])
