"""The captures whose traces for Perfetto are read back."""

from __future__ import annotations

from conftest import SAMPLES

#: What differs: two vCPUs at once; losses; a migration; microseconds, at which much is equal; QEMU, which shows commands only.
CAPTURES = [
    SAMPLES / name
    for name in (
        "6.12-double-delivery.dat",
        "6.12-lost-records.dat",
        "7.3-migrate.dat",
        "6.12-tracefs-trace.txt.zst",
        "qemu-linux.log.zst",
    )
]
