"""Known bugs of KVM's vITS, by the shape that they have in a capture and the kernels that have them.

One row a bug. A finding has its shape if its rule is one of `codes` and its mechanism holds `mechanism`; the bug is
named only where the capture's kernel may have it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from itstrace.findings import Finding, KnownBug

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a bug looks like, and where it is. Versions are those of the kernel.org release in `uname -r` or the package."""

    bug: KnownBug
    codes: tuple[str, ...]
    #: A piece of the finding's mechanism; empty for any.
    mechanism: str = ""
    #: The first release that has it, and the first that has it no more (None: not known to be mended).
    since: Version = (0, 0, 0)
    until: Version | None = None
    #: By series (6, 12): the first stable release that has the fix.
    stable: tuple[tuple[tuple[int, int], int], ...] = ()

    def fits(self, finding: Finding, kernel: Version | None) -> bool:
        """Whether a finding has this shape, on a kernel that may have the bug; an unknown kernel may."""
        if finding.code not in self.codes or self.mechanism not in finding.mechanism:
            return False
        if kernel is None:
            return True
        if kernel < self.since or (self.until is not None and kernel >= self.until):
            return False
        return not any(kernel[:2] == series and kernel[2] >= patch for series, patch in self.stable)


KNOWN: Final[tuple[Shape, ...]] = ()


def version_of(release: str | None) -> Version | None:
    """The version in a `uname -r`, or in a `uname -a` that names the Debian package; None where there is none.

    The last number is -1 where the release does not tell it: Debian's 6.1 calls itself 6.1.0-56-arm64 whatever
    stable release it is made of.
    """
    if release is None:
        return None
    found = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", release) or re.search(
        r"(\d+)\.(\d+)(?:\.(\d+))?", release
    )
    if found is None:
        return None
    hidden = found[3] is None or (found[3] == "0" and re.search(r"\d-\d+-[a-z]", release) is not None)
    return int(found[1]), int(found[2]), -1 if hidden and "Debian" not in release else int(found[3] or 0)


def known_bugs(finding: Finding, kernel: str | None) -> tuple[KnownBug, ...]:
    """The known bugs that have a finding's shape on this kernel."""
    version = version_of(kernel)
    return tuple(shape.bug for shape in KNOWN if shape.fits(finding, version))
