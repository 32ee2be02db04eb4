"""`itstrace lpi`: the life of one LPI."""

from itertools import pairwise
from typing import Annotated

import polars as pl
import typer

from itstrace._version import __version__
from itstrace.analysis import Analysis
from itstrace.cli.options import All, AsJson, Captures, Events, Profile, Seeds, Vm
from itstrace.cli.output import Output
from itstrace.cli.running import analyzed
from itstrace.errors import UsageError
from itstrace.report.story import known_lpis, story, story_document, told

_SCHEMA = "itstrace.lpi/1"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="lpi",
        short_help="Tell the life of one LPI in order.",
        epilog="""Examples:

        \b
          itstrace lpi trace.dat 8193
          itstrace lpi trace.dat 0x2001 --vm 1
          itstrace lpi trace.dat perf.data 8193""",
    )(_lpi)


def _lpi(
    captures: Captures,
    intid: Annotated[
        str,
        typer.Argument(metavar="INTID", help="The LPI: 8193, or 0x2001.", show_default=False),
    ],
    *,
    vm: Vm = None,
    limit: All = None,
    json: AsJson = False,
    seed: Seeds = None,
    kernel: Profile = None,
    events: Events = None,
) -> None:
    """Tell the life of one LPI in order.

    What mapped and configured it, every MSI, where it was queued, the list registers that it went into and
    what came back, every move, and what is wrong with it.
    """
    number = _number(intid)
    analysis = analyzed(*captures, profile=kernel, seeds=seed or (), events=events)
    tale = story(analysis, _vm(analysis, number, vm), number)
    out = Output()
    if json:
        out.json({"schema": _SCHEMA, "version": __version__, **story_document(analysis, tale)})
    else:
        out.lines(told(out.sheet, analysis, tale, show=limit or None))
    out.close()


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError as error:
        raise UsageError(f"{text} is no INTID", advice="a number, as 8193 or 0x2001") from error


def _vm(analysis: Analysis, intid: int, vm: int | None) -> int:
    """The VM whose LPI is meant."""
    lpis = known_lpis(analysis)
    having = lpis.filter(pl.col("intid") == intid)["vm"].to_list()
    if vm is None and len(having) == 1:
        return int(having[0])
    if vm is not None and vm in having:
        return vm
    if not having:
        raise UsageError(f"LPI {intid} does not occur in the capture", advice=_occurring(lpis))
    those = ", ".join(map(str, having))
    raise UsageError(f"LPI {intid} occurs in VM {those}", advice=f"--vm {having[0]}")


def _occurring(lpis: pl.DataFrame) -> str:
    """`one of 8192-8203, 8210`."""
    numbers = lpis["intid"].unique().sort().to_list()
    if not numbers:
        return "another capture: this one shows no LPI"
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b != a + 1)]
    ends = [*(a for a, b in pairwise(numbers) if b != a + 1), numbers[-1]]
    return "one of " + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
