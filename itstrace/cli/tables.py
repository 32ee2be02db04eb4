"""`itstrace tables`: the tables of the ITS at one instant."""

from typing import Annotated

import polars as pl
import typer

from itstrace._version import __version__
from itstrace.cli.options import AsJson, Captures, Events, Profile, Seeds, Vm
from itstrace.cli.output import Output, note
from itstrace.cli.running import analyzed, instant
from itstrace.errors import UsageError
from itstrace.report.json import table_documents
from itstrace.report.state import State
from itstrace.units import seconds

_SCHEMA = "itstrace.tables/1"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="tables",
        short_help="Show device, event and collection tables as of any time.",
        epilog="""Examples:

        \b
          itstrace tables trace.dat
          itstrace tables trace.dat --at 572.870490
          itstrace tables trace.dat --at +3.2
          itstrace tables trace.dat --at "SNAP churn stopped" """,
    )(_tables)


def _tables(
    captures: Captures,
    *,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Seconds as the trace prints them, +S from the start, -S from the end, or words of one "
            "marker. Without it the end, or just before a VM was torn down.",
        ),
    ] = None,
    vm: Vm = None,
    json: AsJson = False,
    seed: Seeds = None,
    kernel: Profile = None,
    events: Events = None,
) -> None:
    """Show the tables of every ITS as of a time: devices, collections, events, and the LPIs behind them."""
    analysis = analyzed(*captures, profile=kernel, seeds=seed or (), events=events)
    time_ns = None if at is None else instant(analysis, at)
    vms = analysis.observations.vms
    if vm is not None and vm not in vms["vm"]:
        those = ", ".join(map(str, vms["vm"]))
        raise UsageError(f"--vm {vm}: there is no such VM", advice=f"one of {those}")
    tables = analysis.at(time_ns, vm)
    if vm is not None:
        vms = vms.filter(pl.col("vm") == vm)
    if time_ns is not None:  # only those that were there then
        begun = pl.col("start_ns").is_null() | (pl.col("start_ns") <= time_ns)
        vms = vms.filter(begun & (pl.col("end_ns").is_null() | (pl.col("end_ns") > time_ns)))
    itss = analysis.observations.itss.join(vms, on="vm", how="semi", maintain_order="left")
    out = Output()
    if json:
        lpis = None if tables.lpis is None else tables.lpis.to_dicts()
        document = {
            "schema": _SCHEMA,
            "version": __version__,
            "time_ns": time_ns,
            **table_documents(tables),
            "lpis": lpis,
        }
        out.json(document)
    else:
        if time_ns is not None:
            note(f"tables as of {seconds(time_ns, 9)}{'' if itss.height else ', when there was no ITS'}")
        out.lines(State(out.sheet, tables, itss).lines())
    out.close()
