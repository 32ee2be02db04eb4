#!/usr/bin/env python3
"""Score itstrace against captures with answer keys, and against mutations of the clean ones; print Markdown.

    python bench/detect.py CAPTURES              every folder below CAPTURES that has a trace.dat and a key.json
    python bench/detect.py CAPTURES --mutations 700 --write docs/detection.md

key.json: `accept`: at least one of these codes must be found, at any severity; `require`: all of them; `clean`: no finding
of severity error or warning but those in `accept`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mutate

from itstrace import Severity, analyze
from itstrace.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.findings import Finding

#: What the bare-metal guests of these captures do on purpose, in the clean ones too.
GUESTS_DOING = {"ITS102", "ITS302"}


@dataclass(slots=True)
class Scored:
    """One capture beside its key."""

    name: str
    key: dict[str, Any]
    found: list[Finding]

    @property
    def clean(self) -> bool:
        """Whether nothing may be found in it."""
        return bool(self.key.get("clean"))

    @property
    def codes(self) -> set[str]:
        """What was found, at any severity."""
        return {finding.code for finding in self.found}

    @property
    def named(self) -> set[str]:
        """What the key names."""
        return {*self.key.get("accept", ()), *self.key.get("require", ())}

    @property
    def unexpected(self) -> set[str]:
        """Errors and warnings that the key does not name, and that do not follow from what it names."""
        loud = [one for one in self.found if one.severity is not Severity.NOTE]
        good = {one.id for one in self.found if one.code in self.named}
        return {
            one.code
            for one in loud
            if one.code not in self.named
            and not (not self.clean and (one.code in GUESTS_DOING or good & set(one.caused_by)))
        }

    @property
    def right(self) -> bool:
        """Whether the key is satisfied, by a finding that names the mechanism and not only its consequence."""
        if self.clean:
            return not self.unexpected
        accept = set(self.key.get("accept", ()))
        ids = {one.id for one in self.found if one.code in self.named}
        first_hand = {one.code for one in self.found if one.code in self.named and set(one.caused_by) <= ids}
        return set(self.key.get("require", ())) <= self.codes and (not accept or bool(accept & first_hand))


@dataclass(slots=True)
class Score:
    """One rule over all captures, in captures."""

    right: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def captures(folder: Path) -> Iterator[Scored]:
    """Analyze every capture that has a key."""
    for path in sorted(folder.rglob("key.json")):
        capture = path.with_name("trace.dat")
        if capture.is_file():
            key = json.loads(path.read_text(encoding="utf-8"))
            yield Scored(path.parent.name, key, analyze(capture).findings)


def by_rule(scored: Sequence[Scored]) -> dict[str, Score]:
    """Recall and precision of each rule.

    A rule has missed a capture whose key requires it, or whose key accepts it where nothing that it accepts was found.
    """
    scores: dict[str, Score] = defaultdict(Score)
    for one in scored:
        hit = one.named & one.codes
        if not one.clean:
            for code in hit:
                scores[code].right.append(one.name)
            lacking = set(one.key.get("require", ())) - one.codes
            if one.key.get("accept") and not set(one.key["accept"]) & one.codes:
                lacking |= set(one.key["accept"])
            for code in lacking:
                scores[code].missed.append(one.name)
        for code in one.unexpected:
            scores[code].wrong.append(one.name)
    return dict(sorted(scores.items()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def detection(scored: Sequence[Scored]) -> str:
    """The part about captures with keys."""
    faults = [one for one in scored if not one.clean]
    controls = [one for one in scored if one.clean]
    found = sum(one.right for one in faults)
    quiet = sum(one.right for one in controls)
    rows = [
        [
            one.name,
            one.key.get("fault", "").split(" (")[0],
            "nothing" if one.clean else _wanted(one),
            _said(one),
            "yes" if one.right else "**no**",
        ]
        for one in scored
    ]
    lines = [
        f"{found} of {len(faults)} faults found by a rule that names their mechanism.",
        f"{quiet} of {len(controls)} clean controls without an error or warning that their key does not name.\n",
        table(["capture", "fault", "wanted", "said (notes in brackets)", "right"], rows),
        "\n### Rule by rule\n",
        "In captures: found where the key names it; missed; wrong where it is said as error or warning, the key does not",
        "name it, and it does not follow from what the key names.\n",
    ]
    ruled = []
    for code, score in by_rule(scored).items():
        right, missed, wrong = len(score.right), len(score.missed), len(score.wrong)
        recall = f"{right / (right + missed):.0%}" if right + missed else "-"
        precision = f"{right / (right + wrong):.0%}" if right + wrong else "-"
        where = ", ".join(score.missed + [f"(wrong) {name}" for name in score.wrong])
        name = RULES[code].name if code in RULES else "?"
        ruled.append([f"{code} {name}", str(right), str(missed), str(wrong), recall, precision, where])
    lines.append(table(["rule", "found", "missed", "wrong", "recall", "precision", "where not"], ruled))
    return "\n".join(lines)


def _wanted(one: Scored) -> str:
    accept, require = one.key.get("accept", ()), one.key.get("require", ())
    parts = [" or ".join(accept)] if accept else []
    if require:
        parts.append("all of " + ", ".join(require))
    return "; ".join(parts)


def _said(one: Scored) -> str:
    severity = {finding.code: Severity.NOTE for finding in one.found}
    for finding in one.found:
        severity[finding.code] = min(severity[finding.code], finding.severity, key=lambda s: s.rank)
    loud = [code for code in sorted(severity) if severity[code] is not Severity.NOTE]
    quiet = [code for code in sorted(severity) if severity[code] is Severity.NOTE]
    return ", ".join([*loud, *(f"({code})" for code in quiet)]) or "nothing"


def mutations(folder: Path, count: int, seed: int) -> mutate.Tally:
    """Mutate the clean captures, each as often as any other."""
    clean = [
        path.with_name("trace.dat")
        for path in sorted(folder.rglob("key.json"))
        if json.loads(path.read_text(encoding="utf-8")).get("clean")
    ]
    outcomes: list[tuple[str, mutate.Outcome]] = []
    for number, path in enumerate(clean):
        mutator = mutate.Mutator(path)
        share = count * (number + 1) // len(clean) - count * number // len(clean)
        for done, mutation in enumerate(mutator.mutations(share, seed)):
            outcomes.append((path.parent.name, mutator.try_one(mutation)))
            if sys.stderr.isatty():
                print(f"\r{path.parent.name}: {done + 1} of {share} ", end="", file=sys.stderr)
    return mutate.Tally(outcomes)


def mutated(tally: mutate.Tally, seed: int) -> str:
    """The part about mutations."""
    verdicts = list(mutate.Verdict)

    def row(name: str, **which: object) -> list[str]:
        counted = tally.count(**which)
        return [name, str(counted.total()), *(str(counted[v]) for v in verdicts), mutate.share(counted)]

    head = ["", "tried", *(str(v) for v in verdicts), "told"]
    probes = sorted({outcome.mutation.probe for _, outcome in tally.outcomes})
    said = Counter(code for _, outcome in tally.outcomes for code in outcome.said)
    lines = [
        f"{len(tally.outcomes)} mutations, seed {seed}. `told` is the share of those that carry information: caught and",
        "elsewhere, of these and missed.\n",
        table(head, [*(row(change, change=change) for change in mutate.Change), row("all")]),
        "",
        table(head, [row(f"`{probe}`", probe=probe) for probe in probes]),
        "\nBy whom: " + ", ".join(f"{code} {number}" for code, number in said.most_common()) + ".",
    ]
    lines += ["\n" + _silent(tally)]
    missed = tally.missed()
    if missed:
        lines.append("\nMissed:\n")
        rows = [
            [
                name,
                f"`{one.mutation.probe}`",
                one.mutation.change,
                one.mutation.detail,
                ", ".join(one.differs),
            ]
            for name, one in missed
        ]
        lines.append(table(["capture", "probe", "change", "", "what differs"], rows))
    return "\n".join(lines)


def _silent(tally: mutate.Tally) -> str:
    """What carries no information, and why: the records, and what proves it."""
    found = Counter(
        (outcome.verdict, outcome.mutation.probe, outcome.mutation.change, outcome.why, outcome.differs)
        for _, outcome in tally.outcomes
        if outcome.verdict in mutate.SILENT and outcome.verdict is not mutate.Verdict.IN_ORDER
    )
    rows = [
        [
            verdict,
            f"`{probe}` {change}" + (f" `{why}`" if verdict is not mutate.Verdict.TOLD_TWICE and why else ""),
            str(number),
            f"`{why}` tells it"
            if verdict is mutate.Verdict.TOLD_TWICE
            else ", ".join(f"`{name}`" for name in differs),
        ]
        for (verdict, probe, change, why, differs), number in sorted(found.items())
    ]
    head = ["", "record", "tried", "told by, or else where alone it shows"]
    return "What carries no information, but for delays in order:\n\n" + table(head, rows)


def main() -> None:
    """Score once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="the folder of captures with key.json beside them")
    parser.add_argument(
        "--mutations", type=int, default=0, metavar="N", help="mutate clean captures N times (0)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (1)")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="replace the tables in FILE, between its marks"
    )
    args = parser.parse_args()
    scored = list(captures(args.folder))
    if not scored:
        raise SystemExit(f"{args.folder}: no folder with a key.json and a trace.dat")
    parts = {"detection": detection(scored)}
    if args.mutations:
        parts["mutations"] = mutated(mutations(args.folder, args.mutations, args.seed), args.seed)
    if args.write is None:
        print("\n\n".join(parts.values()))
        return
    text = args.write.read_text(encoding="utf-8")
    for name, body in parts.items():
        begin, end = f"<!-- {name}: bench/detect.py -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        if not rest or not after:
            raise SystemExit(f"{args.write}: has no {begin.strip()} ... {end.strip()}")
        text = f"{before}{begin}\n{body}\n{end}{after}"
    args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
