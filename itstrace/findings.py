"""What a rule says: a finding, with its evidence.

Four kinds, never mixed: guest (the guest's command is wrong), host (KVM departs from the model), life (an LPI
lost, doubled, late), evidence (the capture cannot tell).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
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


class Harm(IntEnum):
    """What it does to the guest, the worst first: what leads among findings of one severity and kind."""

    GONE = 0  # an interrupt never comes
    TWICE = 1  # one comes that nobody sent
    WRONG = 2  # state or a place that is not what it has to be
    LATE = 3
    REFUSED = 4  # what was asked for was refused


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
class Subject:
    """One device, event or LPI that a finding is about, and how often and when it was hit. Unknown is None."""

    device_id: int | None = None
    event_id: int | None = None
    intid: int | None = None
    vcpus: tuple[int, ...] = ()
    count: int = 1
    time_ns: int | None = None
    end_ns: int | None = None

    @property
    def key(self) -> tuple[int | None, int | None, int | None]:
        """What it is, whenever it was hit."""
        return self.device_id, self.event_id, self.intid


@dataclass(frozen=True, slots=True)
class KnownBug:
    """A bug of the kernel, or a limit of its design, whose shape a finding has."""

    title: str
    #: where it was mended, in words: "v7.3", "nowhere yet"
    fixed: str
    #: where this is from: a CVE, a commit, the kernel's source
    source: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One anomaly: one cause, however many symptoms (`count`, `subjects`), the first of them described.

    Times in ns of the capture's clock. Unknown is None. `seqs` are the records it rests on, `evidence` the
    same spelled out. Findings of one rule, VM and ITS with the same `mechanism` are told as one; one without
    is told alone.
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
    #: What went wrong, in a few words without numbers: the same for all symptoms of one cause.
    mechanism: str = ""
    #: Everything that was hit, by first occurrence; one entry where the finding is about one thing.
    subjects: tuple[Subject, ...] = ()
    #: The worst occurrence in words ("vCPU 0 waited 1.44 s at 2043.087024"), where one is worse than another.
    worst: str = ""
    #: By which the worst of several findings is chosen; larger is worse.
    measure: float = 0.0
    #: What the guest saw of it; empty where nothing, or where it cannot be told.
    guest_saw: str = ""
    #: Functions of KVM that are to be suspected.
    suspect: tuple[str, ...] = ()
    known_bugs: tuple[KnownBug, ...] = ()
    #: Why the confidence is not `certain`, in words.
    doubt: str = ""
    #: What to record next time to be certain; only of findings that are not.
    capture_next: str = ""
    #: Commands (seq) that it holds responsible, or says were not carried out: what stories are linked by.
    blames: tuple[int, ...] = ()
    #: The rule's name as a clause: "KVM had one LPI live on two vCPUs at once".
    claim: str = ""
    harm: Harm = Harm.WRONG
    #: Unique in one analysis, and the same each time: `ITS401`, or `ITS401-2` for a second one.
    id: str = ""
    #: Ids of the findings that this one follows from, and of those that follow from it.
    caused_by: tuple[str, ...] = ()
    leads_to: tuple[str, ...] = ()

    @property
    def numbered(self) -> str:
        """Its id with a number, which that of the first of a code has not: ITS401-1, ITS401-2."""
        return self.id if "-" in self.id else f"{self.code}-1"


@dataclass(frozen=True, slots=True)
class SkippedRule:
    """A rule that could not run: which observations it misses, or why it failed (only another package's can)."""

    code: str
    name: str
    missing: tuple[str, ...]
    why: str = ""

    @property
    def reason(self) -> str:
        """Why it could not run, in words."""
        if self.why:
            return f"it failed: {self.why}"
        return f"{' and '.join(self.missing)} {'were' if len(self.missing) > 1 else 'was'} not recorded"


def filter_findings(
    findings: Iterable[Finding], *, select: Sequence[str] = (), ignore: Sequence[str] = ()
) -> list[Finding]:
    """The findings that one of `select` names (empty: any) and none of `ignore`.

    Each is a code or the beginning of one (ITS3, ITS401), or one of several findings of a code (ITS401-1, ITS401-2).
    """
    return [
        finding
        for finding in findings
        if (not select or _names(select, finding)) and not _names(ignore, finding)
    ]


def _names(given: Sequence[str], finding: Finding) -> bool:
    return any(one == finding.numbered if "-" in one else finding.code.startswith(one) for one in given)
