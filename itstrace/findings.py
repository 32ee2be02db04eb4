"""What a rule says: a finding, with its evidence.

Four kinds, never mixed: guest (the guest's command is wrong), host (KVM departs from the model), life (an LPI
lost, doubled, late), evidence (the capture cannot tell).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Kind(StrEnum):
    """Whose doing it is."""

    GUEST = "guest"
    HOST = "host"
    LIFE = "life"
    EVIDENCE = "evidence"

    @property
    def rank(self) -> int:
        """0 for what matters first: the kernel's and the interrupts' own troubles, then the guest's."""
        return (Kind.HOST, Kind.LIFE, Kind.GUEST, Kind.EVIDENCE).index(self)


class Severity(StrEnum):
    """How bad it is, the worst first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """0 for the worst; larger is milder."""
        return list(Severity).index(self)


class Confidence(StrEnum):
    """How sure the capture makes us, the surest first."""

    CERTAIN = "certain"
    LIKELY = "likely"
    UNPROVEN = "unproven"

    @property
    def rank(self) -> int:
        """0 for the surest."""
        return list(Confidence).index(self)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One record of the capture, as it stands there."""

    time_ns: int
    cpu: int
    event: str
    text: str
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One anomaly: one cause, however many symptoms (`count`), the first of them described.

    Times in ns of the capture's clock. Unknown is None. `seqs` are the records it rests on, `evidence` the
    same spelled out.
    """

    code: str
    name: str
    kind: Kind
    severity: Severity
    confidence: Confidence
    message: str
    advice: str
    vm: int | None = None
    its: int | None = None
    device_id: int | None = None
    event_id: int | None = None
    intid: int | None = None
    vcpus: tuple[int, ...] = ()
    time_ns: int | None = None
    end_ns: int | None = None
    count: int = 1
    seqs: tuple[int, ...] = ()
    evidence: tuple[Evidence, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class SkippedRule:
    """A rule that could not run: which observations it misses."""

    code: str
    name: str
    missing: tuple[str, ...]


def filter_findings(
    findings: Iterable[Finding], *, select: Sequence[str] = (), ignore: Sequence[str] = ()
) -> list[Finding]:
    """The findings whose code begins with one of `select` (empty: any) and with none of `ignore`."""
    chosen = (finding for finding in findings if not select or finding.code.startswith(tuple(select)))
    return [finding for finding in chosen if not ignore or not finding.code.startswith(tuple(ignore))]
