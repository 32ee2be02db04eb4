"""Replayed state against the kernel's own dump, entry by entry, as of one instant.

What the capture (or a seed) does not make known, or the dump leaves out, is unknown and no difference. Whose
a difference is, is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from itstrace.compare import COMPARISONS, Pair, in_order
from itstrace.errors import DumpError, ExitCode, UsageError
from itstrace.gic.registers import decode_gits_baser
from itstrace.readers.dumps import ItsState, VgicState, read_dump
from itstrace.saved_tables import DEVICE_BASER, PAGE_BYTES, table_registers, tables_of_images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from itstrace.analysis import Analysis
    from itstrace.readers.dumps import Dump
    from itstrace.seed import Seed
    from itstrace.tables import Tables


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of a comparison: `rows` of COMPARISONS, differences first; `notes` for the reader."""

    rows: pl.DataFrame
    notes: tuple[str, ...]

    def count(self, verdict: str) -> int:
        """How many rows have that verdict."""
        return self.rows.filter(pl.col("verdict") == verdict).height

    @property
    def differences(self) -> pl.DataFrame:
        """The rows in which replay and kernel disagree."""
        return self.rows.filter(pl.col("verdict") == "different")

    @property
    def exit_code(self) -> ExitCode:
        """What the process tells its caller."""
        if self.count("different"):
            return ExitCode.DIFFERENCE
        return ExitCode.DONE if self.count("equal") else ExitCode.UNREADABLE


def verify(
    analysis: Analysis,
    dumps: Sequence[Path],
    at_ns: int | None = None,
    *,
    vm: int | None = None,
    its: int | None = None,
    seed: Seed | None = None,
) -> Comparison:
    """Compare the replayed tables and LPIs with dumps, as of `at_ns` (None: the end, before any teardown).

    `vm` and `its` choose where the dump's ITS base or LPIs do not; `seed` is the one of the analysis.
    Raises: DumpError for a dump that cannot be read; UsageError where it could be of several VMs or ITSs.
    """
    rows = [pl.DataFrame(schema=COMPARISONS)]
    notes: list[str] = []
    for path in dumps:
        one = _Verifier(analysis, path, at_ns, seed)
        rows += one.compare(vm, its)
        notes += one.notes
    return Comparison(in_order(pl.concat(rows)), tuple(notes))


@dataclass(frozen=True, slots=True)
class _Subject:
    """The VM that a dump is of, and the ITS; None where the dump says nothing about one."""

    vm: int
    its: int | None

    def __str__(self) -> str:
        return f"VM {self.vm}" if self.its is None else f"ITS {self.its} of VM {self.vm}"


class _Verifier:
    """One dump and what it is compared with."""

    def __init__(self, analysis: Analysis, path: Path, at_ns: int | None, seed: Seed | None) -> None:
        self.analysis = analysis
        self.path = path
        self.at_ns = at_ns
        self.seed = seed
        self.notes: list[str] = []
        self.dump: Dump = read_dump(path)
        if isinstance(self.dump, VgicState | ItsState):
            self.kernel: Tables = self.dump.tables
            return
        saved = tables_of_images(self.dump)
        self.kernel = saved.tables
        self.notes += [f"{path}: {problem}" for problem in saved.problems]
        if self.kernel.events is None and self.kernel.collections is None:
            raise DumpError(path, "none of the tables can be found in its images")

    def compare(self, vm: int | None, its: int | None) -> list[pl.DataFrame]:
        """Rows of COMPARISONS."""
        subject = self._choose(vm, its)
        if subject is None:
            self.notes.append(f"{self.path}: the capture shows no VM that it could be of")
            return []
        if isinstance(self.dump, VgicState):
            return [self._lpis(subject, self.at_ns, ["target_vcpu", "enabled", "priority", "pending"])]
        if isinstance(self.dump, ItsState):
            return self._tables(subject, self.at_ns)
        saved_ns = self._saved_at(subject.vm)
        if saved_ns is None:
            return self._tables(subject, self.at_ns)
        self._unread_properties(subject)
        return [*self._tables(subject, saved_ns), self._lpis(subject, saved_ns, ["pending"])]

    # --- whose dump it is

    def _choose(self, vm: int | None, its: int | None) -> _Subject | None:
        """The VM and ITS by the dump's ITS base or tables, else by what they have in common.

        Raises: UsageError where several remain.
        """
        subjects = self._subjects(vm, its)
        if isinstance(self.dump, ItsState) and self.dump.base_gpa is not None:
            subjects = self._of_base(subjects, self.dump.base_gpa)
        elif not isinstance(self.dump, VgicState | ItsState):
            subjects = self._of_device_table(subjects, self.dump.basers.get(DEVICE_BASER))
        if len(subjects) > 1:
            shared = [self._in_common(subject) for subject in subjects]
            subjects = [subject for subject, n in zip(subjects, shared, strict=True) if n == max(shared)]
        if len(subjects) > 1:
            advice = "--vm N" if len({subject.vm for subject in subjects}) > 1 else "--its N"
            listed = ", ".join(str(subject) for subject in subjects)
            raise UsageError(f"{self.path} could be of {listed}", advice=f"say which with {advice}")
        return subjects[0] if subjects else None

    def _subjects(self, vm: int | None, its: int | None) -> list[_Subject]:
        """The VMs that were there at that instant and have LPIs, or their ITSs where the dump is of one."""
        obs = self.analysis.observations
        vms = obs.vms if vm is None else obs.vms.filter(pl.col("vm") == vm)
        if vms.is_empty() and vm is not None:
            known = ", ".join(map(str, obs.vms["vm"])) or "none was seen"
            raise UsageError(f"the capture has no VM {vm}", advice=f"one of these: {known}")
        if self.at_ns is not None:
            gone = pl.col("end_ns").is_not_null() & (pl.col("end_ns") < self.at_ns)
            vms = vms.filter(~gone & ~(pl.col("complete") & (pl.col("start_ns") > self.at_ns)))
        itss = obs.itss.join(vms.select("vm"), on="vm", how="semi")
        if its is not None:
            itss = itss.filter(pl.col("its") == its)
            if itss.is_empty():
                raise UsageError(f"the capture has no ITS {its} there", advice="'itstrace tables' lists them")
        if not isinstance(self.dump, VgicState):
            return [_Subject(*row) for row in itss.select("vm", "its").iter_rows()]
        lpis = self.analysis.history.at(self.at_ns).lpis
        known_vms = set(itss["vm"]) | set(() if lpis is None else lpis["vm"])
        return [_Subject(index, None) for index in vms["vm"] if index in known_vms]

    def _of_base(self, subjects: list[_Subject], base_gpa: int) -> list[_Subject]:
        """Those whose registers stand at that address, as far as that is known."""
        itss = self.analysis.observations.itss.select("vm", "its", "base_gpa")
        bases = {_Subject(vm, its): base for vm, its, base in itss.iter_rows()}
        return [subject for subject in subjects if bases[subject] in (None, base_gpa)]

    def _of_device_table(self, subjects: list[_Subject], baser: int | None) -> list[_Subject]:
        """Those whose device table stands where the images' does, as far as its register was seen written."""
        if baser is None:
            return subjects
        gpa = decode_gits_baser(baser, page_size_bytes=PAGE_BYTES).table_gpa
        found = []
        for subject in subjects:
            assert subject.its is not None
            mine = table_registers(
                self.analysis.observations, subject.vm, subject.its, self.at_ns
            ).device_baser
            if mine is None or decode_gits_baser(mine, page_size_bytes=PAGE_BYTES).table_gpa == gpa:
                found.append(subject)
        return found

    def _in_common(self, subject: _Subject) -> int:
        """How many entries replay and dump share."""
        replay = self._replayed(subject, self.at_ns)
        if subject.its is None:
            ours, theirs, keys = replay.lpis, self.kernel.lpis, ["intid"]
        else:
            ours, theirs, keys = replay.events, self.kernel.events, ["device_id", "event_id", "intid"]
        return 0 if ours is None or theirs is None else ours.join(theirs, on=keys, how="semi").height

    # --- what is known

    def _replayed(self, subject: _Subject, at_ns: int | None) -> Tables:
        """The replay's tables of that VM and ITS."""
        tables = self.analysis.at(at_ns, subject.vm)
        if subject.its is not None:
            for name in ("devices", "collections", "events"):
                setattr(tables, name, getattr(tables, name).filter(pl.col("its") == subject.its))
        return tables

    def _saved_at(self, vm: int) -> int | None:
        """When KVM last wrote its tables to memory, which it does when told to; None where that was not seen.

        Kernel: vgic-its.c:vgic_its_save_tables_v0 (v6.12)
        """
        events = self.analysis.observations.vm_events
        saves = events.filter((pl.col("vm") == vm) & (pl.col("what") == "save_tables"))["time_ns"]
        if self.at_ns is not None:
            saves = saves.filter(saves <= self.at_ns)
        return None if saves.is_empty() else int(saves[-1])

    def _complete(self, subject: _Subject, at_ns: int | None, what: str) -> bool:
        """Whether the replay knows every entry of a kind: what it does not have is not mapped."""
        obs = self.analysis.observations
        lost = obs.commands.filter((pl.col("vm") == subject.vm) & pl.col("lost_before"))
        if not _until(lost, "time_ns", at_ns).is_empty():
            return False
        frame = obs.vms if subject.its is None else obs.itss.filter(pl.col("its") == subject.its)
        if frame.filter(pl.col("vm") == subject.vm)["complete"].all():
            return True
        seed = self.seed
        if seed is None or (seed.at_ns is not None and at_ns is not None and seed.at_ns > at_ns):
            return False
        if what == "lpi":
            # Images hold the LPIs that an event maps; only vgic-state, which knows targets, has them all.
            lpis = seed.tables.lpis
            return lpis is not None and lpis["target_vcpu"].is_not_null().any()
        return seed.whole or (what == "event" and seed.tables.events is not None)

    # --- comparing

    def _tables(self, subject: _Subject, at_ns: int | None) -> list[pl.DataFrame]:
        """Devices, collections and events."""
        replay = self._replayed(subject, at_ns)
        partial = isinstance(self.dump, ItsState)
        rows: list[pl.DataFrame] = []
        for what, keys, fields in (
            ("device", ["device_id"], ["event_bits"] if partial else ["event_bits", "itt_gpa"]),
            ("collection", ["icid"], ["target_vcpu"]),
            ("event", ["device_id", "event_id"], ["intid", "icid"]),
        ):
            ours: pl.DataFrame | None = getattr(replay, f"{what}s")
            theirs: pl.DataFrame | None = getattr(self.kernel, f"{what}s")
            if ours is None or theirs is None:
                continue
            absent = pl.lit(None, pl.String)
            if what == "event":
                absent = pl.when(pl.col("icid").is_null()).then(
                    pl.lit("a dump leaves out events without a collection")
                )
            elif partial and replay.events is not None:
                used = replay.events.drop_nulls("icid").select(keys).unique()
                ours = ours.join(used.with_columns(used=pl.lit(value=True)), on=keys, how="left")
                absent = pl.when(pl.col("used").is_null()).then(
                    pl.lit(f"this dump leaves out a {what} without events")
                )
            complete = self._complete(subject, at_ns, what)
            pair = Pair(what, ours, theirs, keys, fields, complete)
            rows.append(self._named(subject, pair.compare(absent)))
        return rows

    def _lpis(self, subject: _Subject, at_ns: int | None, fields: list[str]) -> pl.DataFrame:
        """LPIs. What no event maps any more may live on in the kernel, or be gone."""
        ours, theirs = self._replayed(subject, at_ns).lpis, self.kernel.lpis
        if ours is None or theirs is None:
            return pl.DataFrame(schema=COMPARISONS)
        there = pl.col("intid").is_in(theirs["intid"].implode())
        must = pl.col("mapped") & pl.lit(isinstance(self.dump, VgicState))
        ours = ours.filter(must | there).with_columns(assumed=pl.lit(value=False))
        complete = self._complete(_Subject(subject.vm, None), at_ns, "lpi")
        lost = None if _until(self.analysis.gaps, "from_ns", at_ns).is_empty() else "records were lost before"
        rows = Pair("lpi", ours, theirs, ["intid"], fields, complete).compare(pl.lit(None, pl.String), lost)
        return self._named(_Subject(subject.vm, None), rows)

    def _named(self, subject: _Subject, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(
            dump=pl.lit(self.path.name),
            vm=pl.lit(subject.vm, pl.UInt16),
            its=pl.lit(subject.its, pl.UInt16),
        )

    def _unread_properties(self, subject: _Subject) -> None:
        """Note the LPIs whose property byte in the guest's memory is not what KVM read last."""
        replay = self._replayed(subject, self.at_ns).lpis
        if replay is None or self.kernel.lpis is None:
            return
        both = replay.join(self.kernel.lpis, on="intid", suffix="_guest")
        for intid, written in (
            both.filter(pl.col("enabled") != pl.col("enabled_guest")).select("intid", "enabled_guest").rows()
        ):
            told = "enabled" if written else "disabled"
            self.notes.append(
                f"{self.path}: LPI {intid} is {told} in the guest's memory, which KVM has not read since"
            )


def _until(frame: pl.DataFrame, column: str, at_ns: int | None) -> pl.DataFrame:
    return frame if at_ns is None else frame.filter(pl.col(column) <= at_ns)
