"""Which kernel a capture is of, as a number: what depends on the kernel asks here."""

from __future__ import annotations

import re

Version = tuple[int, int, int]


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
