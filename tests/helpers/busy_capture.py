"""A written capture of many MSIs: four vCPUs, eight devices, 64 LPIs; to be repeated into millions (bench/make_capture.py).

It ends as it began, with nothing mapped, so that copies of it follow one another as one capture. In each copy one MSI
comes from a device that no command maps, and LPIs are moved now and then.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from helpers.tiny_capture import EVENTS, IRQ, ITS, KVM
from helpers.tracedat_writer import Buffer, Machine, TraceFile, pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VCPUS, DEVICES, EVENTS_EACH = 4, 8, 8
_FIRST_LPI = 8192
_START_NS = 100_000_000_000
_QEMU, _VHOST, _VHOST_CPU = 5000, 5100, VCPUS
#: GITS_CBASER of 0: one page, 128 commands. A copy fills it twice, so that the next goes on where it ends.
_QUEUE_BYTES, _BATCH = 0x1000, 64
Words = tuple[int, int, int, int]
Step = tuple[int, str, int, int, tuple[object, ...]]


def _target(lpi: int) -> int:
    return lpi % VCPUS


def _maps() -> Iterator[Words]:
    for vcpu in range(VCPUS):
        yield 0x09, 0, 1 << 63 | vcpu << 16 | vcpu, 0
    for device in range(1, DEVICES + 1):
        yield 0x08 | device << 32, 4, 1 << 63 | 0x41000000 + device * 0x10000, 0
        for event in range(EVENTS_EACH):
            lpi = (device - 1) * EVENTS_EACH + event
            yield 0x0A | device << 32, _FIRST_LPI + lpi << 32 | event, _target(lpi), 0
            yield 0x0C | device << 32, event, 0, 0


def _unmaps() -> Iterator[Words]:
    for device in range(1, DEVICES + 1):
        for event in range(EVENTS_EACH):
            yield 0x0F | device << 32, event, 0, 0
        yield 0x08 | device << 32, 0, 0, 0


class _Story:
    def __init__(self, seed: int) -> None:
        self.now, self.slot = _START_NS, 0
        self.steps: list[Step] = []
        self.random = random.Random(seed)  # noqa: S311  the same capture each time
        self.targets = [_target(lpi) for lpi in range(DEVICES * EVENTS_EACH)]

    def put(self, name: str, cpu: int, pid: int, *values: object, after_ns: int = 700) -> None:
        self.now += after_ns
        self.steps.append((self.now, name, cpu, pid, values))

    def commands(self, words: Iterator[Words]) -> None:
        rest = list(words)
        rest += [(0x05, 0, 0, 0)] * (-len(rest) % 128)
        while rest:
            self._some(rest[:_BATCH])
            rest = rest[_BATCH:]

    def _some(self, chosen: list[Words]) -> None:
        end = self.slot + len(chosen) * 32
        self.put("kvm_exit", 0, _QEMU, 2, 0x40000000, after_ns=3000)
        self.put(
            "its_process", 0, _QEMU, KVM, ITS, 0x8080000, 1, 0, self.slot % _QUEUE_BYTES, end % _QUEUE_BYTES
        )
        for each in chosen:
            at = self.slot % _QUEUE_BYTES
            self.put("its_cmd_off", 0, _QEMU, ITS, KVM, at, end % _QUEUE_BYTES, *each)
            self.slot += 32
        done = end % _QUEUE_BYTES
        self.put("its_process_ret", 0, _QEMU, ITS, done, done)
        self.put("kvm_entry", 0, _QEMU, 0x40000004)

    def msi(self, device: int, event: int) -> None:
        lpi = (device - 1) * EVENTS_EACH + event
        known = device <= DEVICES
        host = (_VHOST_CPU, _VHOST)
        self.put(
            "its_inject_msi",
            *host,
            KVM,
            0x8090040,
            0,
            event,
            device,
            after_ns=self.random.randrange(4000, 30000),
        )
        self.put("its_cached_ret", *host, event, device, -11)
        self.put("its_trigger", *host, ITS, device, event)
        if not known:
            self.put("its_trigger_ret", *host, 0x10301)
            self.put("its_inject_msi_ret", *host, 0)
            return
        vcpu = self.targets[lpi]
        guest = (vcpu, _QEMU + vcpu)
        self.put("its_resolve_ret", *host, IRQ + lpi * 0x100, _FIRST_LPI + lpi, 0)
        self.put("queue_irq", *host, IRQ + lpi * 0x100, _FIRST_LPI + lpi, 1, 1, 0, vcpu, 0, 0)
        self.put("its_trigger_ret", *host, 0)
        self.put("its_inject_msi_ret", *host, 1)
        self.put("kvm_exit", *guest, 0, 0x40000008, after_ns=self.random.randrange(500, 9000))
        self.put("populate_lr", *guest, vcpu, _FIRST_LPI + lpi, 0, 1, 0, 1, vcpu)
        self.put("kvm_entry", *guest, 0x40000008)
        self.put("kvm_exit", *guest, 2, 0x4000000C, after_ns=self.random.randrange(900, 5000))
        self.put("fold_lr", *guest, vcpu, 1, _FIRST_LPI + lpi, 0, 0, 0)
        self.put("kvm_entry", *guest, 0x4000000C)


def write(path: Path, *, msis: int = 2000, seed: int = 1) -> Path:
    """Write one copy: all is mapped, so many MSIs come, all is unmapped."""
    story = _Story(seed)
    for vcpu in range(VCPUS):
        story.put("kvm_entry", vcpu, _QEMU + vcpu, 0x40000000)
    story.commands(_maps())
    for at in range(msis):
        if at == msis // 2:
            story.msi(DEVICES + 1, 0)
        else:
            lpi = story.random.randrange(DEVICES * EVENTS_EACH)
            story.msi(lpi // EVENTS_EACH + 1, lpi % EVENTS_EACH)
    story.commands(_unmaps())
    machine = Machine()
    by_cpu: dict[int, list[tuple[int, bytes]]] = {cpu: [] for cpu in range(VCPUS + 1)}
    for time_ns, name, cpu, pid, values in story.steps:
        by_cpu[cpu].append((time_ns, EVENTS[name].payload(machine, pid, values)))
    buffer = Buffer({cpu: pages(machine, 4096, records) for cpu, records in by_cpu.items()})
    comms = {_QEMU + vcpu: f"CPU {vcpu}/KVM" for vcpu in range(VCPUS)} | {_VHOST: "vhost-5000"}
    return TraceFile(list(EVENTS.values()), [buffer], version=6, comms=comms).write(path)
