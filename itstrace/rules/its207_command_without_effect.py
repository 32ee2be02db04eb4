"""ITS207: a command that had to succeed was not carried out, or did something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.gic import registers as reg
from itstrace.gic.commands import Opcode
from itstrace.observe.catalogue import PROBES as PLACES
from itstrace.observe.joins import after, before
from itstrace.rules._effects import PROBES, compared, seen
from itstrace.rules._enabling import unheeded
from itstrace.rules._judged import Judged, judged, unless_lost
from itstrace.rules.case import NEVER, Case, first_some, once
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LPI = ["vm", "intid"]

#: What a command did not do, of one of which something else was seen: the end of the sentence.
_UNDONE: Final = {
    "alloc_device": "did not map its device",
    "free_device": "did not unmap its device",
    "alloc_event": "did not map its event",
    "free_event": "did not unmap its event",
    "alloc_collection": "did not map its collection",
    "free_collection": "did not unmap its collection",
    "retarget": "did not retarget its LPI",
    "trigger": "triggered nothing",
    "invall": "read no configuration",
    "config_read": "did not read its LPI's configuration",
    "invalidate": "did not drop the translation cache",
}
#: What was done to something that was not meant.
_DONE: Final = {
    "alloc_device": "mapped another device",
    "free_device": "unmapped another device",
    "alloc_event": "mapped another event",
    "free_event": "unmapped another event",
    "alloc_collection": "mapped another collection",
    "free_collection": "unmapped another collection",
    "retarget": "retargeted another LPI",
    "trigger": "triggered another event",
    "invall": "read another vCPU's configuration",
    "config_read": "read another LPI's configuration",
    "invalidate": "dropped another translation cache",
}
#: What the guest sees of a command that was ignored.
_SEES: Final = {
    "MAPD": "The device's events cannot be mapped, or those that it took down still fire.",
    "MAPC": "Interrupts of the collection do not come, or come to the vCPU that it had before.",
    "MAPTI": "The device's interrupt never comes: its MSIs are dropped.",
    "MAPI": "The device's interrupt never comes: its MSIs are dropped.",
    "MOVI": "The interrupt keeps coming to the vCPU that it was moved away from.",
    "MOVALL": "Interrupts keep coming to the vCPU that they were moved away from.",
    "DISCARD": "An interrupt that was taken down still comes.",
    "CLEAR": "An interrupt that was cleared still comes.",
    "INT": "The interrupt never comes.",
    "INV": "An interrupt that was enabled does not come, or one that was disabled still does.",
    "INVALL": "Interrupts that were enabled do not come, or some that were disabled still do.",
}
#: GITS_BASER<n>.Indirect, bit 62. Spec: IHI 0069H, GITS_BASER<n>.
_INDIRECT: Final = 62
#: Where a handler is not called as its command is.
_HANDLERS: Final = {"MAPTI": "mapi", "MAPI": "mapi"}


@rule(
    "ITS207",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM did not do what a command said",
    needs=("COMMANDS",),
    suspect=("vgic_its_handle_command",),
    leads_to=(
        "ITS201",
        "ITS203",
        "ITS301",
        "ITS302",
        "ITS303",
        "ITS305",
        "ITS307",
        "ITS308",
        "ITS402",
        "ITS403",
        "ITS404",
    ),
)
def command_without_effect(case: Case) -> Iterator[Finding]:
    """A command that had to succeed left no trace of its effect, or had another effect.

    ## What it finds
    A command which, by the tables as they were, KVM had to carry out, and for which what KVM does for such a command
    was not seen before its task went on: a device, event or collection allocated or freed, an LPI given to another
    vCPU, an MSI triggered, a configuration read, a latch cleared. Also one that did that to something else, one that
    did it twice or although it must fail, what was done while no command was under way, and a call of update_affinity
    after which the LPI still has its old target. A command that failed only because an earlier one did is not reported
    again. A write to GICR_CTLR that changes EnableLPIs, after which KVM neither enabled nor flushed the vCPU's LPIs,
    counts as one.

    ## Why it matters
    KVM reports no command as failed, and the guest cannot ask: it goes on as if the interrupt were mapped, moved or
    taken down, and from here on its tables and KVM's differ.

    ## Where it comes from
    vgic_its_handle_command that does not know the command, or takes it for another; a handler that leaves too early
    or looks up the wrong device, event or collection; update_affinity that changes nothing.

    ## When it is wrong
    Where an effect's probe was never seen to fire, it may not have been switched on: then it is a note. A probe that was
    missed (ITS906) looks the same as an effect that was not there. So do mistakes of the guest that only its memory
    shows: an ITT or a device table that lies outside its memory, an entry of the device table's first level that is not
    valid on kernels whose reads of it are not recorded. Commands near lost records, and those that rest on entries that
    are only assumed, are left out.

    ## What to do
    Compare what the evidence shows between the command and the record after it with the handler of that command in
    vgic-its.c, and `itstrace tables --at` that moment with the kernel's vgic-its-state@....
    """
    failed = (
        _failed(case, one)
        for one in judged(case)
        if one.follows is None and not one.only_invalidation and not one.only_configuration
    )
    yield from unless_lost(case, failed)
    yield from _misdirected(case)
    yield from unless_lost(case, _of_no_command(case))
    yield from _mapped_otherwise(case)
    yield from unless_lost(case, _untaken(case))
    yield from _not_cleared(case)
    yield from _not_enabled(case)


# --- nothing, or something else


def _failed(case: Case, one: Judged) -> Finding:
    """A command of which something is missing, or which did something that it had no reason to do."""
    lacks, other = sorted(one.lacks), sorted({row["what"] for row in one.extra})
    unseen = f" ({_wanted(one)}) was not seen before its task went on" if one.missing else ""
    instead = f"; instead there was {_shown(one.extra)}" if one.extra and one.missing else ""
    if one.missing and not one.trace:
        mechanism = f"{one.opcode} left no trace of its effect"
        said = f"left no trace of its effect: what it must do{unseen}"
    elif one.extra and one.missing:
        what = next((each for each in other if each in lacks), other[0])
        mechanism = f"{one.opcode} {_DONE[what]}"
        said = f"{_DONE[what]}: what it must do{unseen}{instead}"
    elif one.missing:
        mechanism = f"{one.opcode} {' and '.join(_UNDONE[what] for what in lacks)}"
        said = f"{' and '.join(_UNDONE[what] for what in lacks)}: that{unseen}"
    elif all(row["twice"] for row in one.extra):
        mechanism = f"{one.opcode} was carried out twice"
        said = f"was carried out twice: there was another {_shown(one.extra)}"
    elif one.row["verdict"] == "fault":
        mechanism = f"{one.opcode} was carried out although it must fail"
        said = f"was carried out although it must fail: there was {_shown(one.extra)}"
    else:
        mechanism = f"{one.opcode} also {_DONE[other[0]]}"
        said = f"also {_DONE[other[0]]}: there was {_shown(one.extra)}"
    if one.mapped is not None and one.missing and not one.trace:
        still = "still " if one.opcode == "DISCARD" else ""
        said += f", and the event was {still if one.mapped else 'not '}mapped afterwards"
    about = next((row for row in one.missing if row["intid"] is not None), (one.missing or one.extra)[0])
    about = {**about, "device_id": one.command.device_id, "event_id": one.command.event_id}
    return case.finding(
        f"{one.row['text']} at {seconds(one.row['time_ns'])} {said}.",
        mechanism=mechanism,
        suspect=_suspect(one),
        guest_saw=_SEES.get(one.opcode, ""),
        seqs=first_some([one.seq, *(row["seq"] for row in one.extra[:6]), one.row["end_seq"]]),
        **_subject(case, one.row, about),
        **_confidence(case, one),
    )


def _subject(case: Case, row: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What a finding about a command is about."""
    device, event, intid = about["device_id"], about["event_id"], about["intid"]
    if intid is None and event is not None:
        keys = {"vm": row["vm"], "its": row["its"], "device_id": device, "event_id": event}
        held = case.live_rows(case.history.mappings, keys, row["seq"] - 1)
        intid = held[0]["intid"] if held else None
    elif intid is not None and device is None:
        _, device, event = case.event_of(row["vm"], intid, row["seq"])
    return {
        "vm": row["vm"],
        "its": row["its"],
        "device_id": device,
        "event_id": event,
        "intid": intid,
        "vcpus": () if about.get("vcpu") is None else (about["vcpu"],),
        "time_ns": row["time_ns"],
        "end_ns": row["end_ns"] if row["end_ns"] is not None else row["time_ns"],
        "blames": (row["seq"],),
    }


def _confidence(case: Case, one: Judged) -> dict[str, Any]:
    """How sure it is that what was not seen did not happen."""
    if not one.shown:
        probes = [probe for row in one.missing for probe in PROBES[row["what"]][:1]]
        events = ", ".join(dict.fromkeys(PLACES[probe].events[0] for probe in probes))
        return {
            "severity": Severity.NOTE,
            "confidence": Confidence.UNPROVEN,
            "doubt": f"{events} never fired in this capture, and may not have been switched on.",
            "capture_next": events,
        }
    contradictions = case.observations.contradictions
    if not contradictions.filter(pl.col("what") != "another value").is_empty():
        return {
            "confidence": Confidence.LIKELY,
            "doubt": "Records are missing in this capture that no buffer lost (ITS906): this one's may be, too.",
            "capture_next": "kprobe_profile of tracefs, whose last column counts missed probes",
        }
    if one.opcode == "MAPD" and not case.recorded("guest_read") and _two_levels(case, one):
        return {
            "confidence": Confidence.LIKELY,
            "doubt": "The device table has two levels, and whether the first has an entry for the device is not recorded.",
            "capture_next": "kvm_read_guest at its return, with what was read",
        }
    if all(_complete(case).get((one.row["vm"], one.row["its"]), ())):
        return {}
    return {
        "confidence": Confidence.LIKELY,
        "doubt": "The capture begins while tables are in use; what they held is known from how it was used.",
        "capture_next": "the VM from its start, or a dump of its tables to begin with (--seed)",
    }


def _two_levels(case: Case, one: Judged) -> bool:
    """GITS_BASER0.Indirect of the ITS, as it was written last."""
    writes = case.observations.register_writes.filter(
        (pl.col("vm") == one.row["vm"])
        & (pl.col("its") == one.row["its"])
        & (pl.col("offset") == reg.GITS_BASER)
        & (pl.col("seq") < one.seq)
    )
    return not writes.is_empty() and bool(writes["value"][-1] >> _INDIRECT & 1)


@once
def _complete(case: Case) -> dict[tuple[int, int], list[bool]]:
    """Whether ITSs are known from their first command on."""
    found: dict[tuple[int, int], list[bool]] = {}
    for vm, its, complete in case.observations.itss.select("vm", "its", "complete").iter_rows():
        found.setdefault((vm, its), []).append(complete)
    return found


def _suspect(one: Judged) -> tuple[str, ...]:
    """The command's handler, and what it did not call or called for something else."""
    handler = f"cmd_handle_{_HANDLERS.get(one.opcode, one.opcode.lower())}"
    if one.opcode not in _SEES:
        handler = "handle_command"
    what = [row["what"] for row in (*one.missing, *one.extra)]
    called = (PLACES[PROBES[each][0]].function for each in dict.fromkeys(what))
    return (f"vgic_its_{handler}", *called)


def _wanted(one: Judged) -> str:
    """What a command must have done, as the calls that it must have made."""
    return _list(_call(row) for row in one.missing)


def _shown(rows: Iterable[dict[str, Any]]) -> str:
    return _list(_call(row) for row in rows)


def _list(calls: Iterable[str]) -> str:
    named = list(dict.fromkeys(calls))
    more = f" and {len(named) - 4} more" if len(named) > 4 else ""
    return ", ".join(named[:4]) + more


def _call(row: dict[str, Any]) -> str:
    """`update_affinity of LPI 8193`: the function that an effect is known by, and what for."""
    of = ""
    if row["intid"] is not None:
        of = f" of LPI {row['intid']}"
    elif row["device_id"] is not None:
        event = f"event {row['event_id']} of " if row["event_id"] is not None else ""
        of = f" of {event}device 0x{row['device_id']:x}"
    elif row["event_id"] is not None:
        of = f" of event {row['event_id']}"
    elif row["icid"] is not None:
        of = f" of collection {row['icid']}"
    elif row["what"] == "invall" and row["vcpu"] is not None:
        of = f" of vCPU {row['vcpu']}"
    return f"{PLACES[PROBES[row['what']][0]].function}{of}"


# --- the right thing, otherwise than asked


def _misdirected(case: Case) -> Iterator[Finding]:
    """Commands that did what they must to what they must, but not as they must: another vCPU, another collection."""
    done = seen(case)
    wanted, _ = compared(case)
    for what, operand, name in (
        ("retarget", "vcpu", "vCPU"),
        ("alloc_event", "icid", "collection"),
        ("trigger", "its", "ITS"),
    ):
        keys = {"retarget": ["intid"], "alloc_event": ["event_id"], "trigger": ["event_id"]}[what]
        asked = wanted.filter((pl.col("what") == what) & pl.col("certain") & pl.col("met"))
        rows = asked.join(
            done.filter(pl.col("what") == what).select("command_seq", *keys, done_seq="seq", got=operand),
            on=["command_seq", *keys],
            how="inner",
            maintain_order="left",
        ).filter(pl.col("got") != pl.col(operand))
        rows = rows.join(
            case.observations.commands, on="seq", how="inner", suffix="_of", maintain_order="left"
        )
        for row in case.without_lost(rows, "time_ns", "end_ns").iter_rows(named=True):
            text = case.command_text(row["seq"])
            yield case.finding(
                f"{text} at {seconds(row['time_ns'])} was carried out with {name} {row['got']}, not {row[operand]}.",
                mechanism=f"{text.split()[0]} was carried out with another {name}",
                seqs=first_some([row["seq"], row["done_seq"], row["end_seq"]]),
                **_subject(case, row, row),
            )


def _of_no_command(case: Case) -> Iterator[Finding]:
    """LPIs retargeted, devices and events allocated by a vCPU's task that was carrying out no command.

    Only commands do that, and restoring saved tables, which is the VMM's task.
    """
    obs = case.observations
    rows = seen(case).filter(
        pl.col("command_seq").is_null() & pl.col("what").is_in(["retarget", "alloc_device", "alloc_event"])
    )
    rows = rows.filter(pl.col("pid").is_in(obs.vcpus["pid"].implode()))
    # A task that is first seen in the middle of its commands was carrying out one that came before the capture.
    rows = before(rows, obs.commands, last="seq", since_ns="time_ns").drop_nulls("last")
    rows = after(rows, obs.commands, _lost="lost_before").filter(~pl.col("_lost").fill_null(value=False))
    ends = obs.vms.select("vm", _gone=pl.col("to_seq").fill_null(NEVER))
    rows = rows.join(ends, on="vm", how="left", maintain_order="left").filter(pl.col("seq") < pl.col("_gone"))
    for row in case.without_lost(rows, "since_ns", "time_ns").iter_rows(named=True):
        done = (
            _DONE[row["what"]]
            .replace("another", "a")
            .replace("a event", "an event")
            .replace("a LPI", "an LPI")
        )
        yield case.finding(
            f"{_call(row)[0].upper()}{_call(row)[1:]} at {seconds(row['time_ns'])}, though its task was carrying out no command.",
            mechanism=f"no command {done}",
            confidence=Confidence.LIKELY,
            doubt="The command that did it may not have been recorded.",
            capture_next="its_cmd_off (vgic_its_process_commands, inside its loop)",
            vm=row["vm"],
            its=row["its"],
            device_id=row["device_id"],
            event_id=row["event_id"],
            intid=row["intid"],
            time_ns=row["time_ns"],
            end_ns=row["time_ns"],
            seqs=first_some([row["last"], row["seq"]]),
        )


def _mapped_otherwise(case: Case) -> Iterator[Finding]:
    """MAPDs that mapped their device with another ITT, or for another number of events."""
    obs = case.observations
    made = obs.allocations.filter((pl.col("op") == "alloc_device") & pl.col("itt_gpa").is_not_null())
    words = obs.commands.select(
        *("pid", "seq", "vm", "its", "dw0", "dw1", "dw2"),
        ends="end_seq",
        until_ns="end_ns",
        begun_ns="time_ns",
    )
    rows = before(
        made.drop("vm"),
        words,
        command="seq",
        vm="vm",
        its="its",
        dw0="dw0",
        size="dw1",
        itt="dw2",
        ends="ends",
        begun_ns="begun_ns",
        until_ns="until_ns",
    )
    rows = rows.filter((pl.col("seq") < pl.col("ends")) & (pl.col("dw0") & 0xFF == int(Opcode.MAPD)))
    # MAPD: Size [4:0] of the second word, ITT_addr [51:8] of the third. Spec: IHI 0069H, MAPD.
    rows = rows.with_columns(bits=(pl.col("size") & 0x1F) + 1, itt=pl.col("itt") & 0x000F_FFFF_FFFF_FF00)
    other_itt, other_size = pl.col("itt") != pl.col("itt_gpa"), pl.col("bits") != pl.col("event_bits")
    rows = rows.with_columns(other_itt=other_itt).filter(other_itt | other_size)
    for row in case.without_lost(rows, "begun_ns", "until_ns").iter_rows(named=True):
        got, asked, name = (
            (f"0x{row['itt_gpa']:x}", f"0x{row['itt']:x}", "ITT")
            if row["other_itt"]
            else (row["event_bits"], row["bits"], "number of EventID bits")
        )
        command = {"seq": row["command"], "end_ns": row["until_ns"], "time_ns": row["begun_ns"]}
        yield case.finding(
            f"{case.command_text(row['command'])} at {seconds(row['begun_ns'])} was carried out with {name} {got}, not {asked}.",
            mechanism=f"MAPD was carried out with another {name}",
            suspect=("vgic_its_cmd_handle_mapd", "vgic_its_alloc_device"),
            guest_saw=_SEES["MAPD"],
            seqs=first_some([row["command"], row["seq"], row["ends"]]),
            **_subject(case, row | command, row | {"event_id": None, "intid": None}),
        )


def _not_enabled(case: Case) -> Iterator[Finding]:
    """Writes to GICR_CTLR.EnableLPIs that KVM did not heed."""
    for row in unheeded(case):
        written, called = (1, "vgic_enable_lpis") if row["on"] else (0, "vgic_flush_pending_lpis")
        yield case.finding(
            f"GICR_CTLR.EnableLPIs of vCPU {row['vcpu']} was written {written} at {seconds(row['time_ns'])}, and had not been so "
            f"since {seconds(row['was_ns'])}; {called} was not called before its task went on.",
            mechanism=f"EnableLPIs was written {written} and {called} was not called",
            suspect=("vgic_mmio_write_v3r_ctlr", called),
            guest_saw="Its LPIs do not come." if row["on"] else "LPIs that it had disabled still come.",
            vm=row["vm"],
            vcpus=(row["vcpu"],),
            time_ns=row["time_ns"],
            end_ns=row["over_ns"],
            seqs=first_some([row["seq"], row["over_seq"]]),
        )


def _untaken(case: Case) -> Iterator[Finding]:
    """Calls of update_affinity after which the LPI still does not have the target that it was given.

    What is seen next of the LPI shows its target, as long as nothing else has given it one since.
    """
    obs = case.observations
    wanted, _ = compared(case)
    rows = wanted.filter(
        (pl.col("what") == "retarget") & pl.col("certain") & pl.col("met") & pl.col("vcpu").is_not_null()
    )
    rows = rows.join(
        obs.commands.select("seq", "time_ns", "end_seq", "end_ns"),
        on="seq",
        how="inner",
        maintain_order="left",
    ).drop_nulls("end_seq")
    rows = after(rows, obs.retargets, LPI, called="seq", irq="irq")
    # From the command's end on: what was queued within it may have been so before its target changed.
    late = rows.with_columns(command_seq="seq", seq="end_seq")
    targets = [
        obs.queueings.select(*LPI, "seq", "time_ns", "target_vcpu", "irq"),
        obs.fills.select(*LPI, "seq", "time_ns", "target_vcpu", irq=pl.lit(None, dtype=pl.UInt64)),
    ]
    late = after(
        late,
        pl.concat(targets).drop_nulls("target_vcpu"),
        LPI,
        shown="seq",
        shown_ns="time_ns",
        target="target_vcpu",
        shown_irq="irq",
    )
    given = pl.concat(
        [
            obs.retargets.select(*LPI, "seq"),
            case.history.mappings.select(*LPI, seq="from_seq").drop_nulls(),
            case.history.targets.select(*LPI, seq="from_seq").drop_nulls(),
        ]
    )
    late = after(late, given, LPI, given="seq")
    same = pl.col("shown_irq").is_null() | pl.col("irq").is_null() | (pl.col("shown_irq") == pl.col("irq"))
    wrong = late.filter(
        (pl.col("target") != pl.col("vcpu")) & (pl.col("shown") < pl.col("given").fill_null(NEVER)) & same
    )
    # Of several events that share an LPI (up to v6.12) each moves it.
    shared = wanted.filter(pl.col("what") == "retarget").group_by("seq", "intid").agg(n=pl.len())
    wrong = wrong.join(
        shared.filter(pl.col("n") > 1).select(command_seq="seq", intid="intid"),
        on=["command_seq", "intid"],
        how="anti",
    )
    wrong = case.without_lost(wrong, "time_ns", "shown_ns").drop("seq").rename({"command_seq": "asked"})
    wrong = case.without_lost_commands(wrong.with_columns(seq="shown"), "asked").drop("seq")
    wrong = wrong.rename({"asked": "command_seq"})
    for row in wrong.sort("command_seq").iter_rows(named=True):
        text = case.command_text(row["command_seq"])
        yield case.finding(
            f"{text} at {seconds(row['time_ns'])} called update_affinity for LPI {row['intid']} to give it to vCPU "
            f"{row['vcpu']}, but at {seconds(row['shown_ns'])} its target was vCPU {row['target']}.",
            mechanism="update_affinity was called and the LPI kept its target",
            suspect=("update_affinity",),
            guest_saw=_SEES["MOVI"],
            seqs=first_some([row["command_seq"], row["called"], row["shown"]]),
            **(
                _subject(case, row | {"seq": row["command_seq"]}, row)
                | {"vcpus": tuple(sorted({row["vcpu"], row["target"]}))}
            ),
        )


def _not_cleared(case: Case) -> Iterator[Finding]:
    """CLEARs of an LPI that was latched and in no list register, after which it was still latched.

    One that is in a list register is delivered whatever CLEAR does: ITS307.
    """
    obs = case.observations
    rows = case.history.expected.filter((pl.col("what") == "clear_pending") & pl.col("certain")).drop_nulls(
        "intid"
    )
    if rows.is_empty():
        return
    rows = rows.join(
        obs.commands.select("seq", "pid", "time_ns", "end_seq", "end_ns"),
        on="seq",
        how="inner",
        maintain_order="left",
    ).drop_nulls("end_seq")
    rows = before(rows, case.lives.latches, LPI, latched="latched", latched_by="by", latched_seq="seq")
    rows = before(rows, obs.fills, LPI, _filled="seq", _folded="end_seq")
    held = pl.col("_filled").is_not_null() & (pl.col("_folded").fill_null(NEVER) > pl.col("seq"))
    rows = rows.filter(pl.col("latched").fill_null(value=False) & ~held.fill_null(value=False))
    # Anything else that touches the LPI while the command is under way may come before it or after.
    tables = obs.vm_events.filter(pl.col("what").is_in(["enable_lpis", "flush_lpis", "restore_tables"]))
    rows = after(
        rows, obs.queueings, LPI, queued="seq", pending="pending", cause="cause", queued_ns="time_ns"
    )
    rows = after(rows, obs.fills.filter("pending"), LPI, filled="seq", filled_ns="time_ns")
    rows = after(rows, obs.fills.filter(~pl.col("pending")), LPI, _dry="seq")
    rows = after(rows, tables, "vm", _table="seq")
    mapped = case.history.mappings.select(*LPI, seq="from_seq").drop_nulls()
    rows = after(rows, mapped, LPI, _mapped="seq")
    by_queue = pl.col("pending") & (pl.col("cause") == "inv")
    first = pl.min_horizontal("queued", "filled", "_dry", "_table", "_mapped")
    again = ((first == pl.col("filled")) | ((first == pl.col("queued")) & by_queue)).fill_null(value=False)
    rows = rows.filter(again & (first > pl.col("end_seq"))).with_columns(
        shown=first, shown_ns=pl.when(first == pl.col("filled")).then("filled_ns").otherwise("queued_ns")
    )
    for row in case.without_lost(rows, "time_ns", "shown_ns").iter_rows(named=True):
        yield case.finding(
            f"{case.command_text(row['seq'])} at {seconds(row['time_ns'])} left LPI {row['intid']} pending: it was latched, "
            f"in no list register, and without another MSI still latched at {seconds(row['shown_ns'])}.",
            mechanism="CLEAR left the LPI pending",
            suspect=("vgic_its_cmd_handle_clear",),
            guest_saw=_SEES["CLEAR"],
            seqs=first_some([row["latched_seq"], row["seq"], row["end_seq"], row["shown"]]),
            **_subject(case, row, row),
        )
