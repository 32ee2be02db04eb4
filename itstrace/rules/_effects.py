"""What KVM was seen to do for each command, beside what it must do: shared by ITS202, ITS204, ITS205 and ITS207.

A command is carried out by the task that read it, between its record and that task's next one (`end_seq` of
COMMANDS): what the task does within is the command's doing, and no interrupt, no other vCPU and no other command
comes between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.observe.joins import before
from itstrace.rules.case import NEVER, once

if TYPE_CHECKING:
    from itstrace.rules.case import Case

#: By what an effect is known for the one that was expected, as far as the capture's probes tell.
KEYS: Final[dict[str, tuple[str, ...]]] = {
    "alloc_device": ("device_id",),
    "free_device": ("device_id",),
    "alloc_event": ("device_id", "event_id"),
    "free_event": ("device_id", "event_id"),
    "alloc_collection": ("icid",),
    "free_collection": ("icid",),
    "retarget": ("intid",),
    "invalidate": ("its",),
    "trigger": ("device_id", "event_id"),
    "invall": ("vcpu",),
    "config_read": ("intid",),
}

#: The probe that shows an effect (any of them does).
PROBES: Final[dict[str, tuple[str, ...]]] = {
    **{what: (what,) for what in KEYS},
    "retarget": ("affinity",),
    "config_read": ("config", "config_end"),
}

#: A probe of which more commands than this share fire twice is recorded twice.
_RARE: Final = 0.2

_SEEN: Final = {
    "seq": pl.UInt64(),
    "time_ns": pl.Int64(),
    "pid": pl.Int32(),
    "vm": pl.UInt16(),
    "its": pl.UInt16(),
    "what": pl.String(),
    "device_id": pl.UInt32(),
    "event_id": pl.UInt32(),
    "intid": pl.UInt32(),
    "icid": pl.UInt32(),
    "vcpu": pl.Int32(),
}


def told(case: Case, what: str) -> bool | None:
    """Whether the capture shows this effect: None if it has no probe for it, False if that never fired.

    A capture describes the host's probes, and not which of them were switched on.
    """
    probes = [probe for probe in PROBES[what] if case.recorded(probe)]
    return any(case.observations.records.get(probe) for probe in probes) if probes else None


@once
def seen(case: Case) -> pl.DataFrame:
    """Everything that KVM was seen to do that a command may be the cause of.

    Shape: the columns of `_SEEN`, in order of seq, with `command_seq`, the command that its task was carrying out
        (null: none).
    """
    obs = case.observations
    configs = obs.config_calls if case.recorded("config") else obs.configs
    parts = [
        obs.allocations.rename({"op": "what"}),
        obs.retargets.with_columns(what=pl.lit("retarget")),
        obs.invalidations.with_columns(what=pl.lit("invalidate")),
        configs.with_columns(what=pl.lit("config_read")),
        obs.invalls.with_columns(what=pl.lit("invall")),
        obs.injections.filter(pl.col("from_command").is_not_null())
        .drop("intid")
        .with_columns(what=pl.lit("trigger")),
    ]
    rows = pl.concat(
        [
            part.select(
                pl.col(name).cast(dtype) if name in part.columns else pl.lit(None, dtype=dtype).alias(name)
                for name, dtype in _SEEN.items()
            )
            for part in parts
        ]
    )
    rows = before(rows, obs.commands, command_seq="seq", _end="end_seq")
    within = pl.col("seq") < pl.col("_end").fill_null(NEVER)
    return rows.with_columns(command_seq=pl.when(within).then("command_seq")).drop("_end")


@once
def compared(case: Case) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What commands had to do, and what they did besides.

    Left out are effects that the capture shows none of.
    Shape: rows of EXPECTED of commands with `met` (it was seen) and `told` (its probe fired at all); rows of what was
        `seen` of commands that nothing expected accounts for.
    """
    expected = case.history.expected.drop_nulls("command_seq")
    done = seen(case).drop_nulls("command_seq")
    wanted, extra = [], []
    for (what,), mine in expected.group_by("what", maintain_order=True):
        told_of = told(case, str(what)) if what in KEYS else None
        if told_of is None:
            continue
        shown = done.filter(pl.col("what") == what)
        keys = ["command_seq", *_keys(shown, str(what))]
        found = shown.select(keys).unique().with_columns(met=pl.lit(value=True))
        rows = mine.join(found, on=keys, how="left", maintain_order="left", nulls_equal=what == "invalidate")
        wanted.append(rows.with_columns(pl.col("met").fill_null(value=False), told=pl.lit(told_of)))
    for (what,), shown in done.group_by("what", maintain_order=True):
        mine = expected.filter(pl.col("what") == what)
        keys = _keys(shown, str(what))
        rest = shown.join(
            mine,
            on=["command_seq", *keys],
            how="anti",
            maintain_order="left",
            nulls_equal=what == "invalidate",
        )
        # An operand that is not known, or any, stands for all.
        any_of = mine.filter(pl.any_horizontal(pl.col(key).is_null() for key in keys)) if keys else mine
        rest = rest.join(any_of, on="command_seq", how="anti", maintain_order="left")
        extra += [
            rest.with_columns(twice=pl.lit(value=False)),
            _again(shown, mine, ["command_seq", *keys], str(what)),
        ]
    columns = {**expected.schema, "met": pl.Boolean(), "told": pl.Boolean()}
    return (
        pl.concat(wanted).sort("seq", maintain_order=True) if wanted else pl.DataFrame(schema=columns),
        pl.concat(extra).sort("seq") if extra else done.clear().with_columns(twice=pl.lit(value=False)),
    )


def _again(shown: pl.DataFrame, mine: pl.DataFrame, keys: list[str], what: str) -> pl.DataFrame:
    """What a command did more often than it had to.

    Where most commands seem to, the probe is recorded twice, and where it cannot be told for what, nothing is said.
    """
    nulls = what == "invalidate"
    counted = mine.group_by(keys).agg(due=pl.len())
    rows = shown.with_columns(nth=pl.int_range(pl.len()).over(keys) + 1)
    rows = rows.join(counted, on=keys, how="left", nulls_equal=nulls, maintain_order="left")
    more = rows.filter(pl.col("nth") > pl.col("due"))
    usual = more["command_seq"].n_unique() > _RARE * shown["command_seq"].n_unique()
    if usual or len(keys) == 1 or what == "config_read":
        more = more.clear()
    return more.drop("nth", "due").with_columns(twice=pl.lit(value=True))


def _keys(shown: pl.DataFrame, what: str) -> list[str]:
    """The operands that the capture's probe gives."""
    if shown.is_empty():
        return list(KEYS[what])
    return [key for key in KEYS[what] if shown[key].null_count() < shown.height]
