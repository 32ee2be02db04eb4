"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

_CAPTURE = (
    "A capture: trace.dat, perf.data, text of ftrace, trace-cmd or perf script, a log of QEMU's ITS; packed or not; a folder "
    "or tar with one; or - for standard input."
)
CapturePath = Annotated[Path, typer.Argument(metavar="CAPTURE", help=_CAPTURE, show_default=False)]
Captures = Annotated[
    list[Path],
    typer.Argument(
        metavar="CAPTURE",
        help=f"{_CAPTURE} Several are parts of one, merged by time.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Profile = Annotated[
    str | None,
    typer.Option(
        "--kernel",
        metavar="PROFILE",
        help="Replay as this model instead of the one of the capture's kernel: kvm-6.1, kvm-6.12, kvm-7.3, "
        "qemu or architecture.",
    ),
]
Seeds = Annotated[
    list[str] | None,
    typer.Option(
        "--seed",
        metavar="DUMP[@T]",
        help="What the tables held at T (the start, if not said): a vgic-state, a vgic-its-state@... or a "
        "folder of table images. For a capture that begins mid-life; may be given several times. Raw guest memory "
        "(guest-ram-GPA.bin, .zst) tells what the guest had configured at T (the VM's end, if not said and it began within "
        "the capture).",
    ),
]
Events = Annotated[
    Path | None,
    typer.Option(
        "--events",
        metavar="FILE",
        help="A TOML file that says which of the capture's own events, and which of their fields, is what: "
        "for probes that were recorded under other names than itstrace's. See docs/events.md.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Set a number that a rule goes by; itstrace rules CODE lists those of a rule.",
    ),
]
Vm = Annotated[
    int | None, typer.Option("--vm", metavar="N", help="The VM meant, where the capture holds several.")
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", min=0, help="Print at most N rows; 0 is all. On a terminal 50, else all."
    ),
]

All = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=0, help="Print at most N of them; 0 is all, as is no limit."),
]

#: Rows that a terminal shows where no --limit is given.
TERMINAL_ROWS = 50


def rows_shown(limit: int | None, width: int | None) -> int | None:
    """How many rows to print; None is all."""
    if limit is None:
        return None if width is None else TERMINAL_ROWS
    return limit or None
