"""ITS112: the guest changed an LPI's configuration and did not say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.gic.lpi import FIRST_LPI
from itstrace.model import effects as fx
from itstrace.observe.joins import after, before
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

#: GICR_PROPBASER names the table by bits [51:12].
_PAGE = 4096
_RECORD = "the guest's LPI configuration table at that time: --seed with a folder of table images, or guest-ram-GPA.bin, and @T"


@rule(
    "ITS112",
    kind=Kind.GUEST,
    severity=Severity.WARNING,
    claim="the guest changed an LPI's configuration and sent no INV",
    needs=("COMMANDS", "QUEUEINGS", "CONFIGS"),
    guest_sees="An interrupt that it has enabled and that never comes, or comes only when something else makes KVM read again.",
)
def missing_inv(case: Case) -> Iterator[Finding]:
    """An LPI is used whose configuration the guest has changed, and no INV, INVALL, INVLPIR or INVALLR followed.

    ## What it finds
    KVM keeps a copy of each LPI's enable bit and priority, and reads the guest's configuration table only when it is told to.
    Where an image of the guest's memory is given (`--seed`) and says other than that copy, and the LPI is used without the
    copy being read again, that is a warning. From the trace alone it can be guessed: an LPI that was fired while the copy
    said disabled, and of which the copy was never read again before it was unmapped or the capture ended. That is a note.

    ## Why it matters
    The guest believes the interrupt enabled, and it stays pending in KVM for ever; or believes it disabled, and it comes.

    ## Where it comes from
    A driver that writes the property byte and leaves out INV (or GICR_INVLPIR), or sends it before the byte is written: a
    missing barrier.

    ## When it is wrong
    A guess is wrong where the guest masked the LPI on purpose: at a driver's removal an MSI may still come. MSIs are
    reported only if they waited longer than any that this capture shows to have been let through by INV later. An image
    can be wrong only if the guest was stopped between writing the byte and INV, and the capture does not go on.
    Stretches with lost records are left out.

    ## What to do
    Look at what the guest's driver does after it has written the property byte: it must send INV of the event, INVALL of its
    collection, or write GICR_INVLPIR. To be certain, save the guest's memory while the interrupt is missing.
    """
    disabled = _uses(case).filter(~pl.col("enabled"))
    if disabled.is_empty() and case.history.written.is_empty():
        return
    rereads = _rereads(case)
    images = _images(case, rereads)
    yield from _proven(case, images)
    yield from _guessed(case, _stretches(case, disabled, rereads), images)


def _rereads(case: Case) -> pl.DataFrame:
    """Whenever the property byte of an LPI was read, or had to be.

    Shape: vm, intid, seq, time_ns, `read` (it was, out of the guest's table), in order of seq.
    """
    had_to = [
        (note.vm, note.effect.intid, note.seq, note.time_ns)
        for note in case.history.notes
        if isinstance(note.effect, fx.ConfigRead)
    ]
    schema = {"vm": pl.UInt16, "intid": pl.UInt32, "seq": pl.UInt64, "time_ns": pl.Int64}
    asked = pl.DataFrame(had_to, schema=schema, orient="row").with_columns(read=pl.lit(value=False))
    found = _really_read(case).select(*schema, "read")
    return pl.concat([found, asked]).sort("seq")


def _really_read(case: Case) -> pl.DataFrame:
    """CONFIGS, with `read`: the byte was fetched from the guest's memory, as far as reads of it were recorded.

    Kernel: vgic-its.c:update_lpi_config (v6.12) reads the byte of an LPI at its place in the table, which is page-aligned.
    """
    obs = case.observations
    bytes_read = obs.guest_reads.filter(pl.col("size_bytes") == 1)
    rows = before(obs.configs, obs.configs, "pid", prior="seq")
    if bytes_read.is_empty():
        return rows.with_columns(read=pl.lit(value=True))
    rows = before(rows, bytes_read, "pid", fetched="seq", gpa="gpa")
    # The last byte that was read may be one of the pending table.
    base = pl.col("gpa").cast(pl.Int64) - (pl.col("intid").cast(pl.Int64) - FIRST_LPI)
    fetched = (pl.col("fetched") > pl.col("prior").fill_null(0)) & (base % _PAGE == 0)
    return rows.with_columns(read=fetched.fill_null(value=False))


def _unmapped(case: Case) -> pl.DataFrame:
    """Whenever the last event that maps an LPI was taken away. Shape: vm, intid, seq, time_ns, by."""
    mappings = case.history.mappings.drop_nulls("intid")
    goes_on = mappings.select(*LPI, pl.col("from_seq").alias("to_seq")).drop_nulls()
    ended = mappings.drop_nulls("to_seq").join(goes_on, on=[*LPI, "to_seq"], how="anti")
    return ended.select(*LPI, seq="to_seq", time_ns="to_ns", by="ended_by").sort("seq")


def _stretches(case: Case, rows: pl.DataFrame, rereads: pl.DataFrame) -> pl.DataFrame:
    """LPIs that were fired while KVM held them disabled, one row for all that was fired between two readings.

    Those are left out of which KVM did not read what it had to: that is no mistake of the guest.
    Shape: vm, intid, seq and time_ns of the first, uses, ints, latest_ns, `last` and `last_ns` (the reading before),
        `reread_ns` (the reading after, if the LPI was mapped until then), unmapped, unmapped_by, until, until_ns.
    """
    obs = case.observations
    # That KVM holds it enabled later on shows that it was read.
    enabled = [
        frame.filter("enabled").select(*LPI, "seq", "time_ns").join(rows, on=LPI, how="semi")
        for frame in (obs.queueings, obs.fills)
    ]
    again = pl.concat([rereads.drop("read"), *enabled]).sort("seq")
    rows = before(rows, rereads, LPI, last="seq", last_ns="time_ns", read="read")
    rows = rows.filter(pl.col("read").fill_null(value=True))
    rows = _until(case, after(rows, again, LPI, reread="seq", reread_ns="time_ns"))
    return (
        rows.sort("seq")
        .group_by(*LPI, "last", maintain_order=True)
        .agg(
            pl.exclude("cause").first(),
            uses=pl.len(),
            ints=(pl.col("cause") == "int").sum(),
            latest_ns=pl.col("time_ns").last(),
        )
    )


def _uses(case: Case) -> pl.DataFrame:
    """LPIs that were fired, by INT, MSI or whatever. Shape: vm, intid, seq, time_ns, enabled, cause."""
    fired = pl.col("pending") & (pl.col("cause") != "inv")
    return case.observations.queueings.filter(fired).select(*LPI, "seq", "time_ns", "enabled", "cause")


def _until(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """How long what `rows` (vm, intid, seq, reread, reread_ns) say held: until the next reading, or the LPI was unmapped.

    Adds `until`, `until_ns`, `unmapped` and `unmapped_by`; a reading after the LPI was unmapped is none.
    """
    rows = after(rows, _unmapped(case), LPI, unmapped="seq", unmapped_ns="time_ns", unmapped_by="by")
    in_time = pl.col("reread") <= pl.col("unmapped").fill_null(NEVER)
    rows = rows.with_columns(pl.when(in_time).then(pl.col(c)).alias(c) for c in ("reread_ns", "reread"))
    ends = case.observations.vms.select("vm", vm_end="end_ns")
    rows = rows.join(ends, on="vm", how="left", maintain_order="left")
    last_ns = pl.coalesce("reread_ns", "unmapped_ns", "vm_end", pl.lit(case.end_ns, dtype=pl.Int64))
    return rows.with_columns(
        until=pl.coalesce("reread", "unmapped", pl.lit(NEVER, dtype=pl.UInt64)), until_ns=last_ns
    ).drop("unmapped_ns", "vm_end")


def _guessed(case: Case, rows: pl.DataFrame, images: pl.DataFrame) -> Iterator[Finding]:
    """Stretches that no reading ended, as far as they do not look like masking and no image says what the guest wanted."""
    waited = pl.col("until_ns") - pl.col("time_ns")
    longest = rows.filter(pl.col("reread").is_not_null()).select(waited.max()).item()
    rows = after(rows, images, LPI, image="seq")
    rows = rows.filter(pl.col("image").is_null() | (pl.col("image") > pl.col("until")))
    rows = rows.join(
        images.filter("wrong").select(*LPI, "last"), on=[*LPI, "last"], how="anti", nulls_equal=True
    )
    own = pl.col("ints") > 0
    rows = rows.filter(pl.col("reread").is_null() & (own | (waited > (longest or 0)))).sort("seq")
    for row in case.without_lost(rows, "last_ns", "until_ns").iter_rows(named=True):
        own = row["ints"] > 0
        how = "INT of its event" if own else "an MSI"
        span = duration(row["until_ns"] - row["time_ns"])
        waits = (
            ""
            if own or longest is None
            else f", longer than the {duration(longest)} of any that was let through"
        )
        yield case.finding(
            f"LPI {row['intid']} was fired by {how} at {seconds(row['time_ns'])} ({times(row['uses'])}) while KVM's copy of its "
            f"configuration said disabled{_read_at(row)}, and no INV, INVALL, INVLPIR or INVALLR followed "
            f"{_before_end(case, row)} ({span} later{waits}).",
            severity=Severity.NOTE,
            confidence=Confidence.LIKELY if own else Confidence.UNPROVEN,
            doubt=(
                "The guest fires it itself, so it is likely to want it enabled; what it wrote into its table was not recorded."
                if own
                else "The guest may have masked it on purpose; what it wrote into its table was not recorded."
            ),
            capture_next=_RECORD,
            mechanism="fired while KVM holds it disabled, and not read again",
            **_about(case, row),
            measure=float(row["until_ns"] - row["time_ns"]),
            worst=f"LPI {row['intid']} waited {span} from {seconds(row['time_ns'])}",
            seqs=first_some([row["last"], row["seq"], row["unmapped"]]),
        )


def _before_end(case: Case, row: dict[str, Any]) -> str:
    """`before MAPD at 1153.991545 unmapped it`."""
    if row["unmapped"] is None:
        return "before the capture ended"
    opcode = case.command_text(row["unmapped_by"]).partition(" ")[0] or "a reset of the tables"
    return f"before {opcode} at {seconds(row['until_ns'])} unmapped it"


def _read_at(row: dict[str, Any]) -> str:
    return "" if row["last_ns"] is None else f" (read at {seconds(row['last_ns'])})"


def _about(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    its, device, event = case.event_of(row["vm"], row["intid"], row["seq"])
    return {
        "vm": row["vm"],
        "its": its,
        "device_id": device,
        "event_id": event,
        "intid": row["intid"],
        "time_ns": row["time_ns"],
        "end_ns": row["latest_ns"],
        "count": row["uses"],
    }


def _images(case: Case, rereads: pl.DataFrame) -> pl.DataFrame:
    """What images of the guest's memory say of LPIs that are mapped then, and what KVM held, and how the LPI was used.

    Shape: rows of WRITTEN, kvm_enabled, kvm_priority, last, last_ns, reread, until, until_ns, unmapped, unmapped_by,
        `used` and used_ns (the first use that rests on a wrong copy), `wrong` (the copy was wrong, and used).
    """
    rows = case.history.written.sort("seq")
    held = case.history.configurations.with_columns(seq=pl.col("from_seq").fill_null(0))
    mapped = case.history.mappings.drop_nulls("intid").with_columns(seq=pl.col("from_seq").fill_null(0))
    rows = before(rows, held, LPI, kvm_enabled="enabled", kvm_priority="priority")
    rows = before(rows, mapped, LPI, mapped_until="to_seq")
    rows = rows.filter(pl.col("mapped_until").fill_null(NEVER) >= pl.col("seq"))
    rows = before(rows, rereads, LPI, last="seq", last_ns="time_ns", read="read")
    rows = rows.filter(pl.col("read").fill_null(value=True))
    uses = _uses(case)
    rows = before(rows, uses, LPI, earlier="seq", earlier_ns="time_ns")
    rows = after(rows, uses, LPI, later="seq", later_ns="time_ns")
    rows = _until(case, after(rows, rereads, LPI, reread="seq", reread_ns="time_ns"))
    # A use before the image counts if nothing was read after it: else the guest was about to say so.
    then = (pl.col("earlier") > pl.col("last").fill_null(0)) & pl.col("reread").is_null()
    masked = ~pl.col("enabled") & pl.col("kvm_enabled")
    since = pl.col("later") < pl.col("until")
    differs = (pl.col("enabled") != pl.col("kvm_enabled")) | (pl.col("priority") != pl.col("kvm_priority"))
    used = [
        pl.when(then & ~masked).then(f"earlier{end}").when(since).then(f"later{end}") for end in ("", "_ns")
    ]
    rows = rows.with_columns(used=used[0], used_ns=used[1])
    return rows.with_columns(wrong=(differs & pl.col("used").is_not_null()).fill_null(value=False))


def _proven(case: Case, images: pl.DataFrame) -> Iterator[Finding]:
    """LPIs that were used by a configuration which is not that of the guest."""
    rows = images.filter("wrong").with_columns(end_ns=pl.max_horizontal("used_ns", "time_ns"))
    rows = rows.with_columns(
        end_ns=pl.when(pl.col("used") < pl.col("seq")).then("until_ns").otherwise("end_ns")
    )
    for row in case.without_lost(rows, "last_ns", "end_ns").iter_rows(named=True):
        differ = row["enabled"] != row["kvm_enabled"]
        guest, kvm = (
            _said(row[f"{whose}enabled"], row[f"{whose}priority"], differ) for whose in ("", "kvm_")
        )
        when = "at the end" if row["time_ns"] is None else f"at {seconds(row['time_ns'])}"
        ended = (
            f"read again only at {seconds(row['until_ns'])}"
            if row["reread"] is not None
            else f"not read again {_before_end(case, row)}"
        )
        yield case.finding(
            f"The guest's memory {when} has LPI {row['intid']} {guest}, but KVM's copy{_read_at(row)} says {kvm}; the LPI was "
            f"fired at {seconds(row['used_ns'])}, and the copy was {ended}.",
            mechanism="a configuration that was written and not read again",
            **_about(
                case,
                {
                    **row,
                    "seq": row["used"],
                    "time_ns": row["used_ns"],
                    "latest_ns": row["used_ns"],
                    "uses": 1,
                },
            ),
            seqs=first_some([row["last"], row["used"], row["reread"], row["unmapped"]]),
        )


def _said(enabled: bool | None, priority: int | None, differ: bool) -> str:
    """`enabled`, or with the enable bits alike `priority 0xa0`."""
    return ("enabled" if enabled else "disabled") if differ else f"priority 0x{priority or 0:x}"
