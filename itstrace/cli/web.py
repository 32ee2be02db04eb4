"""`itstrace analyze --html`: the report as a page."""

from collections.abc import Sequence
from pathlib import Path

from itstrace.analysis import Analysis
from itstrace.cli.output import note, working
from itstrace.errors import UsageError
from itstrace.readers import open_captures
from itstrace.report.html import Assets, page
from itstrace.rules import all_rules


def save_page(path: Path, analysis: Analysis, captures: Sequence[Path], assets: Assets) -> None:
    """Write the page, and what it needs beside it.

    Raises: UsageError where a file cannot be written.
    """
    with working(f"writing {path.name}"):
        with open_captures(captures) as opened:
            comms = opened.comms
        made = page(analysis, pages=_page, rules=len(all_rules()), comms=comms, assets=assets, stem=path.stem)
        try:
            path.write_text(made.html, encoding="utf-8", newline="\n")
            for name, data in made.beside.items():
                beside = path.parent / name
                beside.parent.mkdir(exist_ok=True)
                beside.write_bytes(data)
        except OSError as error:
            raise UsageError(
                f"--html {path}: cannot be written: {(error.strerror or str(error)).lower()}"
            ) from error
    if made.beside:
        note(f"{path} needs the folder {path.stem}.files beside it")


def _page(code: str) -> str:
    rule = all_rules().get(code)
    return "" if rule is None else rule.page
