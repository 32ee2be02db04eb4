"""Whether two analyses tell the same story: tables, LPIs, commands, lives and findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from itstrace.report.json import analysis_document

if TYPE_CHECKING:
    from collections.abc import Collection

    from itstrace import Analysis

#: A text tells of the events that fired, and cannot tell which others were recorded.
_OF_THE_FORM = frozenset({"ITS903"})


def differences(
    first: Analysis, second: Analysis, *, tolerance_ns: int = 0, apart: Collection[str] = _OF_THE_FORM
) -> list[str]:
    """What differs; times may differ by `tolerance_ns`, and what rests on them alone (latency) is left out then.

    `apart`: codes of findings that say what the form of one of the two does not carry.
    """
    found: list[str] = []
    ours, theirs = (
        _told(analysis_document(each), apart, exact=tolerance_ns == 0) for each in (first, second)
    )
    found += [
        f"{key}: {ours[key]!r:.400} and {theirs[key]!r:.400}" for key in ours if ours[key] != theirs[key]
    ]
    for (what, a), (other, b) in zip(_times(first, apart), _times(second, apart), strict=False):
        if (
            what != other
            or (a is None) != (b is None)
            or (a is not None and b is not None and abs(a - b) > tolerance_ns)
        ):
            found.append(f"{what} at {a} and {other} at {b}")
            break
    return found


def _told(document: dict[str, Any], apart: Collection[str], *, exact: bool) -> dict[str, Any]:
    """What is told, without names of files and times."""
    vms = [
        {key: value for key, value in vm.items() if key not in ("start_ns", "end_ns")}
        for vm in document["vms"]
    ]
    if not exact:
        for vm in vms:
            vm["lpis"] = [
                {key: value for key, value in lpi.items() if key != "latency_ns"} for lpi in vm["lpis"]
            ]
    kept = (
        "code",
        "kind",
        "severity",
        "confidence",
        "vm",
        "its",
        "device_id",
        "event_id",
        "intid",
        "vcpus",
        "count",
    )
    return {
        "vms": vms,
        "commands": document["summary"]["commands"],
        "injections": document["summary"]["injections"],
        "deliveries": document["summary"]["deliveries"],
        "findings": [
            {key: finding[key] for key in kept}
            for finding in document["findings"]
            if finding["code"] not in apart
        ],
        "lost": [(gap["cpu"], gap["records"]) for gap in document["capture"]["lost"]],
    }


def _times(analysis: Analysis, apart: Collection[str]) -> list[tuple[str, int | None]]:
    """Every time that the analysis gives, in a fixed order."""
    lives = analysis.lives.lives
    stages = [name for name in lives.columns if name.endswith("_ns")]
    found: list[tuple[str, int | None]] = [
        (f"{stage} of life {row} ({outcome}, LPI {intid})", time)
        for stage in stages
        for row, (outcome, intid, time) in enumerate(lives.select("outcome", "intid", stage).iter_rows())
    ]
    told = (each for each in analysis.findings if each.code not in apart)
    return [*found, *((f"finding {finding.code}", finding.time_ns) for finding in told)]
