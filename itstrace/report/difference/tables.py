"""Table entries of two captures side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.report.difference.parts import Grid, Line, Part, Row, Section, Told
from itstrace.report.text import hexa, number, plural
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from itstrace.difference import Difference

_WHAT: Final = {"device": "device", "collection": "collection", "event": "event", "lpi": "LPI"}
_FIELDS: Final = {
    "mapped": "",
    "event_bits": "event bits",
    "itt_gpa": "ITT",
    "target_vcpu": "vCPU",
    "intid": "LPI",
    "icid": "collection",
}


def entries(different: Difference) -> list[tuple[Row, list[Row]]]:
    """Entries that differ, each with the fields in which it does."""
    rows = different.entries.filter(pl.col("verdict") == "different")
    keys = ["what", "vm", "its", "device_id", "event_id", "icid", "intid"]
    return [
        (dict(zip(keys, key, strict=True)), group.to_dicts())
        for key, group in rows.group_by(keys, maintain_order=True)
    ]


def tables(different: Difference) -> Section:
    """The section."""
    differing = entries(different)
    apart = different.guests.different
    parts: list[Part] = []
    if differing and apart:
        parts.append(
            Told(
                "The guests are different: these rows tell what each of them mapped, not what went wrong.",
                "dim",
            )
        )
    if differing:
        columns = ("entry", "A", "B")
        parts.append(
            Grid("", columns, _differing(different, differing), frozenset({0, 1, 2}), 0, folded=apart)
        )
    rest = _rest(different)
    if rest:
        columns = ("field", "entries", "why")
        parts.append(Grid("not counted", columns, rest, left=frozenset({0, 2}), give=2))
    equal = int((different.entries["verdict"] == "equal").sum())
    if not different.entries.filter(pl.col("verdict") != "unknown").height:
        parts.append(Told("No entry of the tables is known in both captures.", "dim"))
    count = len(differing)
    note = (
        f"{plural(count, 'entry', 'entries')} {'differs' if count == 1 else 'differ'}"
        if count
        else "no entry differs"
    )
    are = "is" if equal == 1 else "are"
    return Section(
        "Tables", f"{_as_of(different)}: {note}, {plural(equal, 'field')} {are} equal", tuple(parts)
    )


def _differing(different: Difference, differing: Sequence[tuple[Row, list[Row]]]) -> tuple[Line, ...]:
    many_vms = different.entries["vm"].n_unique() > 1
    itss = different.entries.drop_nulls("its").select("vm", "its").n_unique()
    many_itss = itss > different.entries["vm"].n_unique()
    return tuple(
        Line(
            (
                _entry(key, many_vms=many_vms, many_itss=many_itss),
                *(_held(rows, side) for side in "ab"),
            ),
            counts=True,
        )
        for key, rows in differing
    )


def _rest(different: Difference) -> tuple[Line, ...]:
    """What differs or is unknown, and is not counted."""
    others = different.entries.filter(pl.col("verdict").is_in(["aside", "unknown"]))
    grouped = others.group_by("verdict", "what", "field", "reason", maintain_order=True).len()
    return tuple(
        Line(
            (
                f"{_WHAT[what]} {_FIELDS.get(name, name)}".rstrip(),
                number(count),
                f"{'differs' if kind == 'aside' else 'unknown'}: {reason}",
            )
        )
        for kind, what, name, reason, count in grouped.iter_rows()
    )


def _as_of(different: Difference) -> str:
    at = [different.at_a_ns, different.at_b_ns]
    words = ["the end" if time_ns is None else seconds(time_ns) for time_ns in at]
    return f"at {words[0]}" if words[0] == words[1] else f"A at {words[0]}, B at {words[1]}"


def _entry(key: Row, *, many_vms: bool, many_itss: bool) -> str:
    name = {
        "device": f"device {hexa(key['device_id'])}",
        "collection": f"collection {key['icid']}",
        "event": f"device {hexa(key['device_id'])} event {key['event_id']}",
        "lpi": f"LPI {key['intid']}",
    }[key["what"]]
    if key["what"] == "event" and key["intid"] is not None:
        name += f" (LPI {key['intid']})"
    its = f", ITS {key['its']}" if many_itss and key["its"] is not None else ""
    return name + (f", VM {key['vm']}" if many_vms else "") + its


def _held(rows: Sequence[Row], side: str) -> str:
    return ", ".join(f"{_FIELDS.get(row['field'], row['field'])} {row[side]}".lstrip() for row in rows)
