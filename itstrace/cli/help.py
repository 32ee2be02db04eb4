"""How the help reads: plain text, commands in groups, arguments as a manual page names them."""

from __future__ import annotations

from typing import Any, Final

from typer.core import TyperCommand, TyperGroup

#: The commands by what they are for, in the order of a reader's questions.
GROUPS: Final = (
    ("Answer", ("analyze",)),
    ("Look closer", ("lpi", "commands", "tables", "events")),
    ("Check", ("info", "verify", "diff", "rules")),
    ("Pass on", ("export",)),
)
_NO_COLOR: Final = ("--no-color", "No colours (the variable NO_COLOR does the same).")


class Command(TyperCommand):
    """A command whose usage says `CAPTURE`, not `{CAPTURE}`, and whose arguments carry no Python types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words after the command's name in its usage."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options."""
        records = [(param.param_type_name, param.get_help_record(ctx)) for param in self.get_params(ctx)]
        arguments = [record for kind, record in records if kind == "argument" and record is not None]
        options = [record for kind, record in records if kind == "option" and record is not None]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(
                    [(name.split(" ")[0], text.replace("  [required]", "")) for name, text in arguments]
                )
        with formatter.section("Options"):
            formatter.write_dl([*options[:-1], _NO_COLOR, *options[-1:]])


class Group(TyperGroup):
    """The program: `--no-color` may stand anywhere, and the help lists commands in groups."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take `--no-color` from wherever it stands before a `--`."""
        end = args.index("--") if "--" in args else len(args)
        if "--no-color" in args[:end]:
            args = ["--no-color", *(arg for arg in args[:end] if arg != "--no-color"), *args[end:]]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands, in their groups."""
        limit = formatter.width - 6 - max(map(len, self.commands))
        grouped = {name for _, names in GROUPS for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in grouped)
        for title, names in (*GROUPS, ("More", others)):
            rows = [
                (name, self.commands[name].get_short_help_str(limit))
                for name in names
                if name in self.commands
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
