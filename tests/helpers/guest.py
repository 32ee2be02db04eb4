"""The two samples of guests, one of which makes every mistake, with one command more or other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
from conftest import SAMPLES, analysis_of

from helpers.again import again, of
from itstrace import schemas
from itstrace.gic.commands import Opcode, build, decode
from itstrace.gic.registers import GITS_BASER, GITS_CTLR

if TYPE_CHECKING:
    from itstrace import Finding
    from itstrace.observe import Observations

MISTAKES = SAMPLES / "7.3-guest-mistakes.dat"
CLEAN = SAMPLES / "6.12-clean.dat"
_OF_KERNEL = {"6.1": SAMPLES / "6.1-clean.dat", "6.12": CLEAN, "7.3": MISTAKES}


def findings_of(obs: Observations, code: str, *, kernel: str = "6.12", **given: Any) -> list[Finding]:
    """What one rule says of changed observations of the sample of a kernel."""
    return of(again(analysis_of(_OF_KERNEL[kernel]), obs, **given), code)


def only(findings: list[Finding]) -> Finding:
    """The one that there is."""
    assert len(findings) == 1, [finding.message for finding in findings]
    return findings[0]


def lost_between(from_ns: int, to_ns: int) -> pl.DataFrame:
    """Records lost on one CPU."""
    return pl.DataFrame([(0, from_ns, to_ns, 5)], schema=schemas.GAPS, orient="row")


def commands_of(obs: Observations, opcode: Opcode) -> pl.DataFrame:
    """All commands of one kind."""
    return obs.commands.filter(pl.col("dw0") & 0xFF == int(opcode))


def with_fields(obs: Observations, seq: int, **fields: int) -> Observations:
    """The same observations, with other fields in one command."""
    row = obs.commands.filter(pl.col("seq") == seq).row(0, named=True)
    old = decode((row["dw0"], row["dw1"], row["dw2"], row["dw3"]))
    assert isinstance(old.opcode, Opcode)
    words = build(old.opcode, **{**old.fields, **fields}).dw
    there = pl.col("seq") == seq
    commands = obs.commands.with_columns(
        pl.when(there).then(pl.lit(word, pl.UInt64)).otherwise(pl.col(f"dw{n}")).alias(f"dw{n}")
        for n, word in enumerate(words)
    )
    return replace(obs, commands=commands)


def marked(obs: Observations, seq: int, **columns: bool) -> Observations:
    """The same observations, with other flags at one command."""
    there = pl.col("seq") == seq
    flags = [
        pl.when(there).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in columns.items()
    ]
    return replace(obs, commands=obs.commands.with_columns(flags))


def rewritten(obs: Observations, seq: int) -> Observations:
    """The guest turns the ITS off, writes its table registers as they are, and turns it on again, just before a command."""
    registers = obs.register_writes
    written = registers.filter((pl.col("offset") - GITS_BASER).is_in([0, 8]) & (pl.col("seq") < seq)).tail(2)
    command = obs.commands.filter(pl.col("seq") == seq).row(0, named=True)
    like = written.head(1).with_columns(offset=pl.lit(GITS_CTLR, pl.UInt32))
    off = like.with_columns(value=pl.lit(0, pl.UInt64))
    on = like.with_columns(value=pl.lit(1, pl.UInt64))
    fresh = pl.concat([off, written, on]).with_columns(
        seq=pl.lit(seq - 1, pl.UInt64), time_ns=pl.lit(command["time_ns"] - 1)
    )
    return replace(obs, register_writes=pl.concat([registers, fresh]).sort("seq", maintain_order=True))
