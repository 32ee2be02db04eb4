"""How the kernel prints its own KVM events: a form per event, from which the fields are read back.

A form is the event's `print fmt` with each operand's name and kind in its place: `d` a decimal number, `x` a
hexadecimal one, `s` a word, or the name of a table below for a value that is printed by name. Dynamic events need no
form: they print `name=value`. libtraceevent's kvm plugin puts complaints of x86 before arm64's `kvm_entry` and
`kvm_exit`; they are passed over.

Source: arch/arm64/kvm/trace_arm.h, arch/arm64/kvm/trace_handle_exit.h, arch/arm64/kvm/vgic/trace.h,
include/trace/events/kvm.h (v6.1, v6.12)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

#: Values that are printed by name.
NAMES: Final[dict[str, dict[str, int]]] = {
    "exit": {"IRQ": 0, "SERROR": 1, "TRAP": 2, "HYP_GONE": 0xBADCA11},
    "mmio": {"unsatisfied-read": 0, "read": 1, "write": 2},
    "wfx": {"i": 0, "e": 1},
    "on": {"off": 0, "on": 1},
    "grow": {"shrink": 0, "grow": 1},
    "wait": {"poll": 0, "wait": 1},
    "valid": {"invalid": 0, "valid": 1},
    "rw": {"read": 0, "write": 1},
    "load": {"unload": 0, "load": 1},
}

_FORMS: Final[dict[str, str]] = {
    "kvm_access_fault": "IPA: {ipa:x}",
    "kvm_ack_irq": "irqchip {irqchip:d} pin {pin:d}",
    "kvm_age_hva": "mmu notifier age hva: {start:x} -- {end:x}",
    "kvm_arm_clear_debug": "flags: {guest_debug:x}",
    "kvm_arm_set_dreg32": "{name:s}: {value:x}",
    "kvm_arm_setup_debug": "vcpu: {vcpu:x}, flags: {guest_debug:x}",
    "kvm_entry": "PC: {vcpu_pc:x}",
    "kvm_exit": "{ret:exit}: HSR_EC: {esr_ec:x} ({_ec:s}), PC: {vcpu_pc:x}",
    "kvm_fpu": "{load:load}",
    "kvm_get_timer_map": (
        "VCPU: {vcpu_id:d}, dv: {direct_vtimer:d}, dp: {direct_ptimer:d},[ ev: {emul_vtimer:d},] ep: {emul_ptimer:d}"
    ),
    "kvm_guest_fault": "ipa {ipa:x}, hsr {hsr:x}, hxfar {hxfar:x}, pc {vcpu_pc:x}",
    "kvm_halt_poll_ns": "vcpu {vcpu_id:d}: halt_poll_ns {new:d} ({grow:grow} {old:d})",
    "kvm_handle_sys_reg": "HSR {hsr:x}",
    "kvm_hvc_arm64": "HVC at {vcpu_pc:x} (r0: {r0:x}, imm: {imm:x})",
    "kvm_irq_line": "Inject {_kind:s} interrupt ({type:d}), vcpu->idx: {vcpu_idx:d}, num: {irq_num:d}, level: {level:d}",
    "kvm_mmio": "mmio {type:mmio} len {len:d} gpa {gpa:x} val {val:x}",
    "kvm_mmio_emulate": "Emulate MMIO at: {vcpu_pc:x} (instr: {instr:x}, cpsr: {cpsr:x})",
    "kvm_mmio_nisv": "ipa {ipa:x}, esr {esr:x}, far {far:x}, pc {vcpu_pc:x}",
    "kvm_set_guest_debug": "vcpu: {vcpu:x}, flags: {guest_debug:x}",
    "kvm_set_irq": "gsi {gsi:d} level {level:d} source {irq_source_id:d}",
    "kvm_set_spte_hva": "mmu notifier set pte hva: {hva:x}",
    "kvm_set_way_flush": "S/W flush at {vcpu_pc:x} (cache {cache:on})",
    "kvm_sys_access": "PC: {vcpu_pc:x} {name:s} ({Op0:d},{Op1:d},{CRn:d},{CRm:d},{Op2:d}) {is_write:rw}",
    "kvm_test_age_hva": "mmu notifier test age hva: {hva:x}",
    "kvm_timer_emulate": "arch_timer_ctx_index: {timer_idx:d} (should_fire: {should_fire:d})",
    "kvm_timer_hrtimer_expire": "arch_timer_ctx_index: {timer_idx:d}",
    "kvm_timer_restore_state": "CTL: {ctl:x} CVAL: {cval:x} arch_timer_ctx_index: {timer_idx:d}",
    "kvm_timer_save_state": "CTL: {ctl:x} CVAL: {cval:x} arch_timer_ctx_index: {timer_idx:d}",
    "kvm_timer_update_irq": "VCPU: {vcpu_id:d}, IRQ {irq:d}, level {level:d}",
    "kvm_toggle_cache": "VM op at {vcpu_pc:x} (cache was {was:on}, now {now:on})",
    "kvm_unmap_hva_range": "mmu notifier unmap range: {start:x} -- {end:x}",
    "kvm_userspace_exit": "reason {_reason:s} ({reason:d})",
    "kvm_vcpu_wakeup": "{waited:wait} time {ns:d} ns, polling {valid:valid}",
    "kvm_wfx_arm64": "guest executed wf{is_wfe:wfx} at: {vcpu_pc:x}",
    "vgic_update_irq_pending": "VCPU: {vcpu_id:d}, IRQ {irq:d}, level: {level:d}",
}

_OPERAND = re.compile(r"\\\{(\w+):(\w+)\\\}")
_KINDS: Final = {"d": r"-?\d+", "x": r"(?:0x)?[0-9a-fA-F]+", "s": r"\S.*?"}
_COMPLAINTS = r"""(?:CAN'T FIND FIELD "\w+")?(?:<CANT FIND FIELD \w+>)?\s*"""


@dataclass(frozen=True, slots=True)
class Form:
    """How one event is printed: a pattern with a group per field, and how each field's text becomes a value.

    Operands that only repeat another one by name begin with `_` and are no fields.
    """

    pattern: re.Pattern[str]
    kinds: dict[str, str]

    def value(self, name: str, text: str | None) -> int | str | None:
        """The value of a field's text; None where there is none."""
        kind = self.kinds[name]
        if text is None or kind == "s":
            return text
        if kind in NAMES:
            return NAMES[kind].get(text)
        return int(text, 16 if kind == "x" else 10)


def form_of(name: str) -> Form | None:
    """The form of one of the kernel's own events; None for any other."""
    return _compiled(name) if name in _FORMS else None


@cache
def _compiled(name: str) -> Form:
    text = re.escape(_FORMS[name]).replace(r"\ ", r"\s+")
    # What stands in brackets came with a later kernel.
    text = text.replace(r"\[", "(?:").replace(r"\]", ")?")
    kinds = dict(_OPERAND.findall(text))

    def operand(match: re.Match[str]) -> str:
        kind = match[2]
        pattern = _KINDS[kind] if kind in _KINDS else "|".join(map(re.escape, NAMES[kind]))
        return f"(?P<{match[1]}>{pattern})"

    return Form(
        re.compile(_COMPLAINTS + _OPERAND.sub(operand, text) + r"\s*"),
        {field: kind for field, kind in kinds.items() if not field.startswith("_")},
    )
