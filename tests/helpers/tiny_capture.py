"""A capture of a few records, written here: one guest, one device, one MSI; hostile words on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.tracedat_writer import Buffer, Event, Field, Machine, TraceFile, pages

if TYPE_CHECKING:
    from pathlib import Path

#: Words that a terminal, a markup language or a browser would act on.
HOSTILE = "[red]\x1b[2J\x07<script>\u202e[/red]"

KVM, ITS, IRQ = 0xFFFF800082AF5000, 0xFFFF000003082300, 0xFFFF00000CE1E680
_START_NS = 100_000_000_000
_STEP_NS = 100_000
_QEMU, _VHOST = 4711, 4712


def _u64(*names: str) -> list[Field]:
    return [Field("u64", name, "Q") for name in names]


def _s32(*names: str) -> list[Field]:
    return [Field("s32", name, "i") for name in names]


def _hex(*names: str) -> str:
    return f'"{" ".join(f"{n}=0x%Lx" for n in names)}", {", ".join(f"REC->{n}" for n in names)}'


_PROCESS = ("kvm", "its", "base", "enabled", "cbaser", "creadr", "cwriter")
_COMMAND = ("its", "kvm", "creadr", "cwriter", "dw0", "dw1", "dw2", "dw3")
_FORMATS = (
    Event(101, "its", "its_process", _u64(*_PROCESS), _hex(*_PROCESS)),
    Event(102, "its", "its_cmd_off", _u64(*_COMMAND), _hex(*_COMMAND)),
    Event(103, "its", "its_process_ret", _u64("its", "creadr", "cwriter"), _hex("its", "creadr", "cwriter")),
    Event(104, "its", "its_inject_msi", _u64("kvm", "lo", "hi", "data", "devid")),
    Event(105, "its", "its_inject_msi_ret", _s32("ret")),
    Event(106, "its", "its_cached_ret", [*_u64("data", "devid"), *_s32("ret")]),
    Event(107, "its", "its_trigger", _u64("its", "devid", "eventid")),
    Event(108, "its", "its_trigger_ret", _s32("ret")),
    Event(109, "its", "its_resolve_ret", [*_u64("irq"), *_s32("intid", "ret")]),
    Event(
        110, "vgic", "queue_irq",
        [*_u64("irq"), *_s32("intid", "pend", "en", "act", "tgt", "vcpu"), *_u64("vcpup")],
    ),
    Event(111, "vgic", "populate_lr", _s32("vcpu", "intid", "lr", "pend", "act", "en", "tgt")),
    Event(112, "vgic", "fold_lr", [*_s32("vcpu", "used"), *_u64("lr0", "lr1", "lr2", "lr3")]),
    Event(113, "kvm", "kvm_entry", [Field("unsigned long", "vcpu_pc", "L")], '"PC: 0x%016lx", REC->vcpu_pc'),
    Event(
        114, "kvm", "kvm_exit",
        [*_s32("ret"), Field("unsigned long", "vcpu_pc", "L")],
        '"%s: PC: 0x%016lx", __print_symbolic(REC->ret, { 0, "IRQ" }, { 2, "TRAP" }), REC->vcpu_pc',
    ),
    Event(
        115, "ftrace", "print",
        [Field("unsigned long", "ip", "L"), Field("__data_loc char[]", "buf", "str")],
        '"%ps: %s", (void *)REC->ip, __get_str(buf)',
    ),
)  # fmt: skip
EVENTS = {event.name: event for event in _FORMATS}

#: MAPC collection 0 to vCPU 0; MAPD device 8; MAPTI event 0 to LPI 8192; an INT of device 9, never mapped.
_COMMANDS = (
    (0x09, 0, 1 << 63, 0),
    (0x08 | 8 << 32, 4, 1 << 63 | 0x41060000, 0),
    (0x0A | 8 << 32, 8192 << 32, 0, 0),
    (0x03 | 9 << 32, 1, 0, 0),
)


def _story(note: str) -> list[tuple[str, int, int, tuple[object, ...]]]:
    """Event, CPU, pid, values: the commands of the guest, then one MSI from injection to its end."""
    steps: list[tuple[str, int, int, tuple[object, ...]]] = [
        ("print", 0, _QEMU, (0, f"HMARK {note}\n")),
        ("kvm_exit", 0, _QEMU, (2, 0x40000000)),
        ("its_process", 0, _QEMU, (KVM, ITS, 0x8080000, 1, 0, 0, 0x80)),
    ]
    for slot, words in enumerate(_COMMANDS):
        steps.append(("its_cmd_off", 0, _QEMU, (ITS, KVM, slot * 32, 0x80, *words)))
    steps += [
        ("its_process_ret", 0, _QEMU, (ITS, 0x80, 0x80)),
        ("kvm_entry", 0, _QEMU, (0x40000004,)),
        ("its_inject_msi", 1, _VHOST, (KVM, 0x8090040, 0, 0, 8)),
        ("its_cached_ret", 1, _VHOST, (0, 8, -11)),
        ("its_trigger", 1, _VHOST, (ITS, 8, 0)),
        ("its_resolve_ret", 1, _VHOST, (IRQ, 8192, 0)),
        ("queue_irq", 1, _VHOST, (IRQ, 8192, 1, 1, 0, 0, 0, 0)),
        ("its_trigger_ret", 1, _VHOST, (0,)),
        ("its_inject_msi_ret", 1, _VHOST, (1,)),
        ("kvm_exit", 0, _QEMU, (0, 0x40000008)),
        ("populate_lr", 0, _QEMU, (0, 8192, 0, 1, 0, 1, 0)),
        ("kvm_entry", 0, _QEMU, (0x40000008,)),
        ("kvm_exit", 0, _QEMU, (2, 0x4000000C)),
        ("fold_lr", 0, _QEMU, (0, 1, 8192, 0, 0, 0)),
        ("kvm_entry", 0, _QEMU, (0x4000000C,)),
    ]
    return steps


def write(path: Path, *, note: str = "start", comm: str = "qemu-system-aar") -> Path:
    """Write the capture; `note` is a marker's text, `comm` a task's name."""
    machine = Machine()
    by_cpu: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
    for step, (name, cpu, pid, values) in enumerate(_story(note)):
        by_cpu[cpu].append((_START_NS + step * _STEP_NS, EVENTS[name].payload(machine, pid, values)))
    buffer = Buffer({cpu: pages(machine, 4096, records) for cpu, records in by_cpu.items()})
    return TraceFile(list(_FORMATS), [buffer], comms={_QEMU: comm, _VHOST: "vhost-4711"}).write(path)


def write_x86(path: Path) -> Path:
    """Write a sound capture of another world: a scheduler event of an x86 host."""
    machine = Machine()
    switch = Event(55, "sched", "sched_switch", _s32("prev_pid", "next_pid"))
    records = [(_START_NS + step, switch.payload(machine, 1, (1, 2))) for step in range(5)]
    buffer = Buffer({0: pages(machine, 4096, records)})
    return TraceFile([switch], [buffer], comms={1: "systemd"}).write(path)
