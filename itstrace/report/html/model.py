"""An analysis as the plain data of a page: one document, and frames (frames.py).

Decides nothing: what is wrong is what the findings say. Times are offsets from the page's origin.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace._version import __version__
from itstrace.findings import Kind, Severity
from itstrace.gic.commands import FIELDS, LABELS
from itstrace.observe.catalogue import OBSERVATIONS, recipe
from itstrace.report import figures
from itstrace.report.finding import KINDS, Naming, fixed_words, host, when
from itstrace.report.html import levels
from itstrace.report.html.frames import Caps, frames
from itstrace.report.json import analysis_document, finding_document
from itstrace.report.tales import by_kind
from itstrace.report.terminal import capture_facts, sentences
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from itstrace.analysis import Analysis
    from itstrace.findings import Finding

SCHEMA: Final = "itstrace.html/1"
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """What a page is made of: one document, and frames by name."""

    document: Document
    frames: dict[str, pl.DataFrame]
    origin_ns: int


def model(
    analysis: Analysis,
    *,
    pages: Callable[[str], str],
    rules: int,
    comms: Mapping[int, str],
    caps: Caps | None = None,
) -> Report:
    """Make the data of a page. `pages`: the documentation of a rule; `rules`: how many there are; `comms`: tasks' names."""
    caps = caps or Caps()
    origin = analysis.start_ns or 0
    made = frames(analysis, comms, caps)
    single = made.single
    whole = analysis_document(analysis)
    shown = analysis.findings[: caps.findings]
    naming = Naming(analysis)
    codes = {one.code for one in shown} | {one.code for one in analysis.skipped}
    document: Document = {
        "schema": SCHEMA,
        "version": __version__,
        "origin_ns": str(origin),
        "span_ns": (analysis.end_ns or origin) - origin,
        "file": _file(analysis),
        "host": host(analysis.info),
        "capture": _offsets(whole["capture"], origin),
        "summary": whole["summary"],
        "coverage": whole["coverage"],
        "missing": _missing(analysis),
        "vms": _offsets(_vms(analysis), origin),
        "facts": [[label, str(value)] for label, value in capture_facts(analysis) if str(value)],
        "verdict": [[text, style] for text, style in sentences(analysis, naming, rules)],
        "worst": _worst(analysis.findings, pages),
        "findings": [_offsets(_finding(analysis, one, naming, caps), origin) for one in shown],
        "pages": {code: pages(code) for code in sorted(codes)},
        "kinds": {str(kind): words.replace("KVM", naming.host) for kind, words in KINDS.items()},
        "stages": _stages(analysis.lives.lives),
        "commands": {
            "fields": {
                opcode.name: {
                    name: [each.dw, each.high, each.low, each.shift, each.bias]
                    for name, each in layout.items()
                }
                for opcode, layout in FIELDS.items()
            },
            "labels": {name: [label, hexa] for name, (label, hexa) in LABELS.items()},
        },
        "bins": list(levels.BINS),
        "buckets_per_decade": levels.BUCKETS_PER_DECADE,
        "single": {
            "whole": single.whole,
            "from_ns": (single.from_ns - origin).tolist(),
            "to_ns": (single.to_ns - origin).tolist(),
        },
        "kept": {**made.kept, "findings": [len(shown), len(analysis.findings)]},
    }
    return Report(document, made.frames, origin)


# --- documents


#: Times of the capture's clock. A reader of JSON may not hold them: it is given the distance from the origin.
_TIMES: Final = ("time_ns", "start_ns", "end_ns", "from_ns", "to_ns")


def _offsets(value: Any, origin_ns: int) -> Any:
    """The same document with every time as an offset from the origin."""
    if isinstance(value, dict):
        return {
            name: each - origin_ns if name in _TIMES and each is not None else _offsets(each, origin_ns)
            for name, each in value.items()
        }
    return [_offsets(each, origin_ns) for each in value] if isinstance(value, list | tuple) else value


def _file(analysis: Analysis) -> str:
    """The capture as a command line names it."""
    paths = analysis.info.paths or [analysis.info.path]
    return " ".join(_quoted(str(path)) for path in paths)


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word) else "'" + word.replace("'", "'\"'\"'") + "'"


def _vms(analysis: Analysis) -> list[Document]:
    """VMs with their ITSs and vCPUs."""
    obs = analysis.observations
    found = []
    for row in obs.vms.iter_rows(named=True):
        mine = pl.col("vm") == row["vm"]
        vcpus = set(obs.vcpus.filter(mine)["vcpu"].to_list()) | set(obs.fills.filter(mine)["vcpu"].to_list())
        # A guest may aim at vCPUs that do not exist: what commands say counts only where nothing else tells.
        if not vcpus:
            vcpus = set(obs.queueings.filter(mine)["target_vcpu"].to_list())
            vcpus |= set(analysis.history.targets.filter(mine)["target_vcpu"].to_list())
        its = obs.itss.filter(mine).sort("its").select("its", "base_gpa").to_dicts()
        found.append(
            {
                "vm": row["vm"],
                "vcpus": sorted(vcpu for vcpu in vcpus if vcpu is not None),
                "its": [{"its": one["its"], "base_gpa": _hex(one["base_gpa"])} for one in its],
                "start_ns": row["start_ns"],
                "end_ns": row["end_ns"],
                "complete": row["complete"],
                "profile": analysis.history.profiles.get(row["vm"]),
            }
        )
    return found


def _hex(value: int | None) -> str | None:
    return None if value is None else f"0x{value:x}"


_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
#: How many more causes the verdict leads to.
_MORE: Final = 3


def _worst(findings: Sequence[Finding], pages: Callable[[str], str]) -> Document | None:
    """What leads the verdict, told in two sentences, what happened and why (or how bad it got); and what else there is."""
    loud = by_kind(findings)
    leads = [mine[0].cause for mine in loud] + [tale.cause for mine in loud for tale in mine[1:]]
    # Where nothing is wrong, what the capture could not tell is the worst of it.
    leads = leads or [one for one in findings if one.severity is not Severity.NOTE]
    if not leads:
        return None
    worst, *others = leads
    first, *rest = _SENTENCE.split(worst.message)
    rest = [text for text in rest if not text.startswith("Likewise")]  # how often, the headline says
    why = (*rest, worst.worst, _why(pages(worst.code)), worst.guest_saw)
    second = next((text for text in why if text), "")
    return {
        "id": worst.id,
        "told": [text if text.endswith(".") else f"{text}." for text in (first, second) if text],
        "also": [one.id for one in others[:_MORE]],
        "others": len(others),
    }


def _why(page: str) -> str:
    """The first sentence under "Why it matters" of a rule's page."""
    found = re.search(r"^## Why it matters\n+(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return "" if found is None else _SENTENCE.split(" ".join(found[1].split()))[0]


def _finding(analysis: Analysis, finding: Finding, naming: Naming, caps: Caps) -> Document:
    """A finding as the JSON has it, and what a page shows besides."""
    document = finding_document(finding)
    document["evidence"] = [
        {**item, "seq": record.seq}
        for item, record in zip(document["evidence"], finding.evidence, strict=True)
    ][: caps.evidence]
    return {
        **document,
        "id": finding.id or finding.code,
        "subject": naming.subject(finding),
        "brief": naming.brief(finding),
        "when": when(finding),
        "mechanism": finding.mechanism,
        "worst": finding.worst,
        "guest_saw": finding.guest_saw,
        "suspect": list(finding.suspect),
        "known_bugs": [asdict(bug) for bug in finding.known_bugs],
        "fixes": [fixed_words(bug) for bug in finding.known_bugs],
        "doubt": finding.doubt,
        "capture_next": finding.capture_next,
        "caused_by": list(finding.caused_by),
        "leads_to": list(finding.leads_to),
        "records": len(finding.evidence),
        "subjects": [asdict(one) for one in finding.subjects[: caps.subjects]],
        "subjects_total": len(finding.subjects),
        "command": _same_in_terminal(analysis, finding, naming),
    }


def _same_in_terminal(analysis: Analysis, finding: Finding, naming: Naming) -> list[str]:
    """Command lines that show the same."""
    file = _file(analysis)
    several = sum(one.code == finding.code for one in analysis.findings) > 1
    lines = [f"itstrace analyze {file} --select {finding.numbered if several else finding.code}"]
    if finding.intid is not None:
        vm = f" --vm {finding.vm}" if naming.many_vms and finding.vm is not None else ""
        lines.append(f"itstrace lpi {file} {finding.intid}{vm}")
    if finding.time_ns is not None and finding.kind is not Kind.EVIDENCE:
        lines.append(f"itstrace tables {file} --at {seconds(finding.time_ns, 9)}")
    return lines


def _missing(analysis: Analysis) -> list[Document]:
    """What was not recorded, which rules that stops, and what to record next time."""
    what = {entry.name: entry.what for entry in OBSERVATIONS}
    obs, source = analysis.observations, host(analysis.info)
    seen = figures.observed(obs)
    lacking = [name for name, one in seen.items() if one.rows is None or not one.whole]
    stopped = dict.fromkeys(name for rule in analysis.skipped for name in rule.missing)
    names = dict.fromkeys([*stopped, *lacking])
    probes = {name: figures.to_record(name, obs.fed_by, source, analysis.info.kernel) for name in names}
    return [
        {
            "observation": name,
            "what": what.get(name, ""),
            "record": [one._asdict() for one in wanted],
            "recipe": recipe([one.how for one in wanted if one.how])._asdict(),
            "stops": [rule.code for rule in analysis.skipped if name in rule.missing],
        }
        for name, wanted in probes.items()
    ]


def _stages(lives: pl.DataFrame) -> list[Document]:
    found = []
    for title, begin, end in figures.STAGES:
        stage = figures.latency(lives, begin, end)
        if stage is not None:
            found.append({"title": title, **asdict(stage)})
    return found
