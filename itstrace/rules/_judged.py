"""Commands that KVM did not carry out as it must, each with what is missing and what was done instead.

Shared by ITS202 (only the cache was not dropped), ITS205 (only the configuration was not read) and ITS207 (all else).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Severity
from itstrace.gic.commands import Opcode, decode
from itstrace.gic.faults import Fault
from itstrace.observe.joins import after, before
from itstrace.rules._effects import compared, seen
from itstrace.rules.case import EVENT, LPI, NEVER, once

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from itstrace.findings import Finding
    from itstrace.gic.commands import Command
    from itstrace.rules.case import Case

Row = dict[str, Any]
#: What may be broken: a device, an event, a collection, or the target of an LPI, each with where it is.
Key = tuple[Any, ...]
#: So often it is no accident of a capture that lost a few records and does not say so.
_OFTEN = 3
#: A level-1 or device table entry of 8 bytes, bit 63: Valid. Kernel: vgic-its.c:vgic_its_check_id (v6.12)
_VALID = 1 << 63


@dataclass(slots=True)
class Judged:
    """A command, with what it had to do and was not seen to do, and what it did that it had no reason to do."""

    seq: int
    row: Row
    command: Command
    #: Rows of EXPECTED, certain, that were not seen; `told` of each: its probe fired at all.
    missing: list[Row] = field(default_factory=list)
    #: What was seen that nothing accounts for.
    extra: list[Row] = field(default_factory=list)
    #: KVM found that its tables have no room for the device, which the guest is to blame for.
    refused: bool = False
    #: Anything at all was seen of it.
    trace: bool = False
    #: An earlier command that was not carried out, of which this is a consequence.
    follows: int | None = None
    #: Of a command that maps or unmaps an event and left no trace: whether the event was mapped afterwards, as
    #: what came next shows. None: nothing shows it.
    mapped: bool | None = None

    @property
    def opcode(self) -> str:
        """The command's name."""
        return self.command.name or f"0x{self.command.opcode_number:02x}"

    @property
    def lacks(self) -> set[str]:
        """What is missing, by kind."""
        return {row["what"] for row in self.missing}

    @property
    def shown(self) -> bool:
        """At least one probe of what is missing fired in the capture: it was switched on."""
        return any(row["told"] for row in self.missing) or not self.missing

    @property
    def only_invalidation(self) -> bool:
        """The command was carried out, but for the cache, which it did not drop."""
        if self.lacks != {"invalidate"} or self.extra:
            return False
        return self.trace or (self.opcode == "DISCARD" and self.mapped is False)

    @property
    def only_configuration(self) -> bool:
        """The command was carried out, but for the property bytes that it did not read."""
        if self.lacks != {"config_read"} or self.extra:
            return False
        return self.trace or (self.opcode in ("MAPTI", "MAPI") and self.mapped is True)


@once
def judged(case: Case) -> list[Judged]:
    """The commands that were not carried out as they must, in the order in which their ITS took them.

    Left out are those near lost records, those that were under way when the capture ended, and those whose LPIs KVM
    was seen to have given to other vCPUs than the commands say.
    """
    done = seen(case)
    wanted, extra = compared(case)
    wanted = _targets_agree(case, _fresh_lpis(case, wanted))
    missing = wanted.filter(pl.col("certain") & ~pl.col("met"))
    extra = extra.filter(~_moved_too_much(case, extra))
    flagged = {*missing["command_seq"].to_list(), *extra["command_seq"].to_list()}
    if not flagged:
        return []
    commands = case.observations.commands.join(
        case.history.verdicts.select("seq", "text", "verdict"), on="seq", how="left", maintain_order="left"
    )
    suspects = commands.filter(pl.col("seq").is_in(list(flagged)) & pl.col("end_seq").is_not_null())
    suspects = case.without_lost_commands(case.without_lost(suspects, "time_ns", "end_ns"), "seq")
    refused = _refused_devices(case, suspects)
    found = {
        row["seq"]: Judged(row["seq"], row, decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"])))
        for row in suspects.iter_rows(named=True)
    }
    for row in missing.iter_rows(named=True):
        if row["command_seq"] in found:
            found[row["command_seq"]].missing.append(row)
    for row in extra.iter_rows(named=True):
        if row["command_seq"] in found:
            found[row["command_seq"]].extra.append(row)
    traced = set(done["command_seq"].drop_nulls().to_list())
    for one in found.values():
        one.trace, one.refused = one.seq in traced, one.seq in refused
    for seq, mapped in _mapped_after(case, found.values(), wanted).items():
        found[seq].mapped = mapped
    # A DISCARD that only failed to drop the cache leaves as little behind; where others fail so, it did too.
    if any(one.only_invalidation for one in found.values()):
        for one in found.values():
            if one.opcode == "DISCARD" and one.mapped is None:
                one.mapped = False
    _follow(case, commands, found, wanted)
    for one in found.values():
        if one.only_configuration and not one.trace:
            one.missing = [row for row in one.missing if not row["fresh"]]
    left = {seq for seq, one in found.items() if not one.refused and (one.missing or one.extra)}
    return [found[seq] for seq in commands["seq"].to_list() if seq in left]


def unless_lost(case: Case, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings that rest on what was not seen: notes, where losses are not told and it happened once or twice only."""
    found = list(findings)
    often = Counter(one.mechanism for one in found)
    for one in found:
        rare = not case.losses_told and often[one.mechanism] < _OFTEN
        yield replace(one, severity=Severity.NOTE) if rare else one


# --- what looks like it and is not


def _moved_too_much(case: Case, extra: pl.DataFrame) -> pl.Series:
    """LPIs that MOVALL called update_affinity for and that were not its source's: ITS204's matter."""
    movalls = case.history.verdicts.filter(pl.col("opcode") == "MOVALL")["seq"].implode()
    goal = case.history.expected.filter(pl.col("what") == "retarget").select("command_seq", _goal="vcpu")
    rows = extra.join(goal.unique("command_seq"), on="command_seq", how="left", maintain_order="left")
    to_goal = pl.col("vcpu").is_null() | pl.col("_goal").is_null() | (pl.col("vcpu") == pl.col("_goal"))
    return rows.select(
        (pl.col("what") == "retarget") & pl.col("command_seq").is_in(movalls) & to_goal
    ).to_series()


def _fresh_lpis(case: Case, wanted: pl.DataFrame) -> pl.DataFrame:
    """Where no probe shows an event being allocated (7.3), MAPTI shows by the property byte that it reads.

    It does so for an LPI of which nothing is left from an earlier mapping: no other event maps it, and what was
    queued last was filled, taken and folded. Such rows are `fresh`: if the event turns out to be mapped all the same,
    something did refer to the LPI still.
    """
    wanted = wanted.with_columns(fresh=pl.lit(value=False))
    if wanted.is_empty() or case.recorded("alloc_event"):
        return wanted
    sure = case.history.expected.filter((pl.col("what") == "alloc_event") & pl.col("certain"))
    rows = wanted.filter((pl.col("what") == "config_read") & ~pl.col("certain") & ~pl.col("met"))
    rows = rows.join(sure.select("command_seq"), on="command_seq", how="semi")
    if rows.is_empty():
        return wanted
    obs = case.observations
    listed = obs.queueings.filter(pl.col("pending") & pl.col("enabled"))
    rows = before(rows, listed, LPI, _queued="seq")
    rows = before(rows, obs.fills, LPI, _filled="seq", _folded="end_seq", _state="state")
    taken = (pl.col("_folded") < pl.col("seq")) & (pl.col("_state") == 0)
    whole = obs.itss.group_by("vm").agg(_whole=pl.col("complete").all())
    rows = rows.join(whole, on="vm", how="left", maintain_order="left")
    at_rest = pl.col("_filled").is_null() & pl.col("_queued").is_null() & pl.col("_whole")
    at_rest |= taken & (pl.col("_filled") > pl.col("_queued").fill_null(0))
    rows = rows.filter(at_rest.fill_null(value=False))
    shared = case.history.mappings.join(rows.select("vm", "intid", now="seq"), on=LPI, how="inner")
    begun = pl.col("from_seq").is_null() | (pl.col("from_seq") < pl.col("now"))
    shared = shared.filter(begun & (pl.col("to_seq").is_null() | (pl.col("to_seq") > pl.col("now"))))
    fresh = rows.filter(~pl.col("seq").is_in(shared["now"].implode()))["seq"].implode()
    mine = (pl.col("what") == "config_read") & pl.col("command_seq").is_in(fresh)
    return wanted.with_columns(certain=pl.col("certain") | mine, fresh=mine & ~pl.col("certain"))


def _targets_agree(case: Case, wanted: pl.DataFrame) -> pl.DataFrame:
    """MOVALL and INVALL go by the target that KVM has; where it was last seen to have another, nothing is certain.

    Kernel: vgic-its.c:vgic_its_cmd_handle_movall, vgic_its_invall (v6.1, v7.3)
    """
    by_target = case.history.verdicts.filter(pl.col("opcode").is_in(["MOVALL", "INVALL"]))
    rows = wanted.filter(
        pl.col("what").is_in(["retarget", "config_read"]) & pl.col("certain") & ~pl.col("met")
    ).join(by_target.select("seq"), on="seq", how="semi")
    if rows.is_empty():
        return wanted
    obs = case.observations
    said = pl.concat(
        [
            obs.queueings.select(*LPI, "seq", vcpu="target_vcpu"),
            # On 7.3 it is not told to which vCPU.
            obs.retargets.select(*LPI, "seq", "vcpu"),
        ]
    )
    # What MOVALL itself does begins with its record, so that just before it the source is held.
    held = case.history.targets.with_columns(seq=pl.col("from_seq").fill_null(0))
    rows = before(rows, said, LPI, _seen="vcpu")
    rows = before(rows, held, LPI, _held="target_vcpu")
    other = rows.filter(pl.col("_seen").is_not_null() & pl.col("_held").is_not_null())
    other = other.filter(pl.col("_seen") != pl.col("_held")).select(
        "seq", "what", "intid", _other=pl.lit(value=True)
    )
    wanted = wanted.join(other, on=["seq", "what", "intid"], how="left", maintain_order="left")
    return wanted.with_columns(certain=pl.col("certain") & pl.col("_other").is_null()).drop("_other")


def _refused_devices(case: Case, suspects: pl.DataFrame) -> set[int]:
    """MAPDs for which KVM found the table's first level without an entry, or could not read it: no such device.

    Kernel: vgic-its.c:vgic_its_check_id (v6.12)
    """
    reads = case.observations.guest_reads.filter(pl.col("size_bytes") == 8)
    rows = after(suspects, reads, _at="seq", _value="value", _result="result")
    none = (pl.col("_result") != 0) | ((pl.col("_value") & pl.lit(_VALID, dtype=pl.UInt64)) == 0)
    rows = rows.filter((pl.col("_at") < pl.col("end_seq")) & none)
    mapd = rows.filter((pl.col("dw0") & 0xFF) == int(Opcode.MAPD))
    return set(mapd["seq"].to_list())


# --- what came of it


def _mapped_after(case: Case, found: Iterable[Judged], wanted: pl.DataFrame) -> dict[int, bool]:
    """By command on an event: whether the next that is known of the event shows it mapped.

    That is an MSI or INT that goes through the tables, or the next MAPTI, which allocates it only if it is not.
    """
    ids = [
        (
            one.seq,
            one.row["end_seq"],
            one.row["vm"],
            one.row["its"],
            one.command.device_id,
            one.command.event_id,
        )
        for one in found
        if one.command.opcode in (Opcode.DISCARD, Opcode.MAPTI, Opcode.MAPI)
    ]
    if not ids:
        return {}
    schema = {"command_seq": pl.UInt64, "seq": pl.UInt64, "vm": pl.UInt16, "its": pl.UInt16}
    schema |= {"device_id": pl.UInt32, "event_id": pl.UInt32}
    rows = pl.DataFrame(ids, schema=schema, orient="row")
    tables = case.observations.injections.filter(
        ~pl.col("cached") & pl.col("result").is_in([0, int(Fault.INT_UNMAPPED_INTERRUPT)])
    )
    # Seen from MAPTI, the one that comes next tells the same of what was before it.
    again = wanted.filter((pl.col("what") == "alloc_event") & pl.col("certain"))
    touched = case.history.expected.filter(pl.col("what").is_in(["alloc_event", "free_event"]))
    rows = after(rows, tables, EVENT, _msi="seq", _result="result")
    rows = after(rows, again, EVENT, _again="seq", _met="met")
    rows = after(rows, touched, EVENT, _touched="seq")
    until = pl.col("_touched").fill_null(NEVER)
    by_msi = pl.when(pl.col("_msi") < until).then(pl.col("_result") == 0)
    by_mapti = pl.when(pl.col("_again") <= until).then(~pl.col("_met"))
    known = rows.with_columns(mapped=pl.coalesce(by_msi, by_mapti)).drop_nulls("mapped")
    return dict(known.select("command_seq", "mapped").iter_rows())


def _follow(case: Case, commands: pl.DataFrame, found: dict[int, Judged], wanted: pl.DataFrame) -> None:
    """Find out which commands failed only because an earlier one did: what they are about is not as it must be."""
    if not found:
        return
    met = _met(wanted)
    involved = commands.filter(pl.col("seq").is_in(pl.Series([*found, *met], dtype=pl.UInt64).implode()))
    # Where tables are set anew, what was wrong in them is gone.
    anew = case.history.expected.filter(
        pl.col("command_seq").is_null() & pl.col("what").str.starts_with("free_")
    )
    resets = iter(sorted(anew["seq"].unique().to_list()))
    reset = next(resets, NEVER)
    broken: dict[Key, int] = {}
    targets: dict[Key, int] = {}
    for seq, vm, its, *words in involved.select("seq", "vm", "its", "dw0", "dw1", "dw2", "dw3").iter_rows():
        one = found.get(seq)
        if one is None and not broken and not targets:
            continue
        while reset < seq:
            broken.clear()
            targets.clear()
            reset = next(resets, NEVER)
        command = decode((words[0], words[1], words[2], words[3]))
        own = _objects((vm, its), command)
        if one is None:
            _mend(broken, targets, own, command, met[seq])
            continue
        one.follows = _cause(one, broken, targets, own | _needs((vm, its), command))
        if one.only_invalidation or one.only_configuration:
            continue
        first = one.seq if one.follows is None else one.follows
        # After a MOVI that failed the event is mapped as before, and a later one does not fail because of it.
        for key in own if command.opcode != Opcode.MOVI else ():
            broken.setdefault(key, first)
        for lacking in one.missing:
            if lacking["what"] == "retarget":
                targets.setdefault((vm, lacking["intid"]), first)


def _cause(one: Judged, broken: Mapping[Key, int], targets: Mapping[Key, int], needs: set[Key]) -> int | None:
    """The earlier command because of which this one failed; what it lacks because of others is taken out of it.

    `broken`, `targets`: the command because of which an entry of the tables, or an LPI's target, is not as it must be.
    """
    if one.refused:
        return one.seq
    causes = [broken[key] for key in needs if key in broken]
    if one.command.opcode in (Opcode.MAPC, Opcode.MOVALL, Opcode.INVALL):
        # These go by what KVM has of an LPI, be it its collection or its target.
        excused = {m["intid"]: targets.get((m["vm"], m["intid"])) for m in one.missing}
        causes += [cause for cause in excused.values() if cause is not None]
        left = [m for m in one.missing if excused[m["intid"]] is None]
        if left:
            one.missing, causes = left, [broken[key] for key in needs if key in broken]
    return min(causes, default=None)


def _met(wanted: pl.DataFrame) -> dict[int, set[int]]:
    """By command that was seen to do what it must: the LPIs that it retargeted."""
    rows = wanted.filter("met")
    found: dict[int, set[int]] = {seq: set() for seq in rows["command_seq"].unique().to_list()}
    moved = rows.filter(pl.col("what") == "retarget").drop_nulls("intid")
    for seq, intid in moved.select("command_seq", "intid").iter_rows():
        found[seq].add(intid)
    return found


def _objects(at: tuple[int, int], command: Command) -> set[Key]:
    """What a command of an ITS makes or unmakes."""
    if command.opcode == Opcode.MAPD:
        return {("device", *at, command.device_id)}
    if command.opcode == Opcode.MAPC:
        return {("collection", *at, command.icid)}
    if command.opcode in (Opcode.MAPTI, Opcode.MAPI, Opcode.DISCARD, Opcode.MOVI):
        return {("event", *at, command.device_id, command.event_id)}
    return set()


def _needs(at: tuple[int, int], command: Command) -> set[Key]:
    """What a command of an ITS needs to be there."""
    needs: set[Key] = set()
    if command.device_id is not None and command.opcode != Opcode.MAPD:
        needs.add(("device", *at, command.device_id))
        needs.add(("event", *at, command.device_id, command.event_id))
    if command.icid is not None and command.opcode != Opcode.MAPC:
        needs.add(("collection", *at, command.icid))
    return needs


def _mend(
    broken: dict[Key, int], targets: dict[Key, int], own: set[Key], command: Command, lpis: set[int]
) -> None:
    """A command that was carried out puts right what it is about; MAPD all of its device's events.

    `lpis` were retargeted by it.
    """
    for key in own:
        broken.pop(key, None)
        if command.opcode == Opcode.MAPD:
            for other in [other for other in broken if other[0] == "event" and other[1:4] == key[1:4]]:
                del broken[other]
    for key in [key for key in targets if key[1] in lpis or key[1] == command.intid]:
        del targets[key]
