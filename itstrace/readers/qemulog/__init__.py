"""QEMU's own log of its emulated ITS, as `qemu-system-aarch64 -trace "gicv3_its_*"` prints it."""

from itstrace.readers.qemulog.events import FORMATS, ITS_EVENT, SYSTEM, operands
from itstrace.readers.qemulog.lines import first_event
from itstrace.readers.qemulog.reader import RECORD, QemuLog

__all__ = ["FORMATS", "ITS_EVENT", "RECORD", "SYSTEM", "QemuLog", "first_event", "operands"]
