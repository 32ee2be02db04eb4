"""What a write to a register does: GITS_* of an ITS, GICR_* of a redistributor.

Rule 1: what an ITS ignores is said, never dropped in silence. Rule 2: a register of which only one half was
seen is unknown, unless the ITS was seen from its reset on: then it was 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.gic import registers as reg
from itstrace.gic.lpi import FIRST_LPI
from itstrace.model import effects as fx
from itstrace.model.profiles import CacheScope

if TYPE_CHECKING:
    from itstrace.model.effects import Effect
    from itstrace.model.machine import Gic
    from itstrace.model.state import Its, Redistributor

_ALL = (1 << 64) - 1


def write_its(gic: Gic, its: Its, offset: int, value: int, size_bytes: int) -> list[Effect]:
    """A write to a register of an ITS, `offset` from its base.

    Kernel: vgic-its.c:its_registers and vgic_mmio_write_its_* (v6.12)
    """
    value &= (1 << 8 * size_bytes) - 1
    if offset == reg.GITS_CTLR:
        return _write_its_ctlr(gic, its, value)
    if reg.GITS_CBASER <= offset < reg.GITS_CBASER + 8:
        if its.enabled:
            return [fx.RegisterIgnored("GITS_CBASER", value, fx.RegisterReason.ITS_ENABLED, its=its.key)]
        its.cbaser = merged = _merge(_before(its, its.cbaser), offset % 8, value, size_bytes)
        its.creadr = its.cwriter = 0
        if merged is None:
            return []
        if gic.profile.attributes_sanitised:  # and the queue is 64 KiB aligned
            its.cbaser = merged = reg.kvm_memory_attributes(merged) & ~0xF000
        queue = reg.decode_gits_cbaser(merged)
        return [fx.QueueSet(its.key, queue.queue_gpa, queue.size_bytes, queue.valid)]
    if reg.GITS_CWRITER <= offset < reg.GITS_CWRITER + 8:
        return _write_cwriter(its, value) if offset == reg.GITS_CWRITER else []
    if reg.GITS_CREADR <= offset < reg.GITS_CREADR + 8:
        return [fx.RegisterIgnored("GITS_CREADR", value, fx.RegisterReason.READ_ONLY, its=its.key)]
    if reg.GITS_BASER <= offset < reg.GITS_BASER + 8 * reg.GITS_BASER_COUNT:
        return _write_baser(gic, its, offset, value, size_bytes)
    return []


def _write_its_ctlr(gic: Gic, its: Its, value: int) -> list[Effect]:
    enable = reg.decode_gits_ctlr(value).enabled
    if enable and not its.enabled and gic.profile.enable_needs_tables:
        needed = (its.baser.get(0), its.baser.get(1), its.cbaser)
        if any(one is not None and not one >> 63 for one in needed):
            reason = fx.RegisterReason.INVALID_TABLES
            return [fx.RegisterIgnored("GITS_CTLR", value, reason, its=its.key)]
    before, its.enabled = its.enabled, enable
    effects: list[Effect] = []
    if enable and before is not True:
        effects.append(fx.ItsEnabled(its.key))
    if not enable:
        if before is not False:
            effects.append(fx.ItsDisabled(its.key))
        if gic.profile.cache is not CacheScope.NONE:
            effects += gic.invalidate_cache(its)
    return effects


def _write_cwriter(its: Its, value: int) -> list[Effect]:
    """Kernel: vgic-its.c:vgic_mmio_write_its_cwriter (v6.12)."""
    offset = reg.decode_queue_offset(value)
    if its.cbaser is not None and offset >= reg.decode_gits_cbaser(its.cbaser).size_bytes:
        reason = fx.RegisterReason.OUT_OF_RANGE
        return [fx.RegisterIgnored("GITS_CWRITER", value, reason, its=its.key)]
    effects: list[Effect] = []
    if value & 0x1E:
        effects.append(fx.CwriterUnaligned(its.key, value))
    its.cwriter = offset
    if its.enabled is False and its.creadr != offset:
        effects.append(fx.CommandsWaiting(its.key, its.creadr, offset))
    return effects


def _write_baser(gic: Gic, its: Its, offset: int, value: int, size_bytes: int) -> list[Effect]:
    """GITS_BASER<n>, as the ITS keeps it, and what becomes of the objects in the table.

    Kernel: vgic-its.c:vgic_mmio_write_its_baser (v6.12; from v6.12.112 on and in v7.3 every change, and nothing
        else, frees the objects, and drops the cache)
    """
    number = (offset - reg.GITS_BASER) // 8
    tables = gic.profile.tables
    if tables is not None and number >= len(tables):
        return []
    if its.enabled:
        name = f"GITS_BASER{number}"
        return [fx.RegisterIgnored(name, value, fx.RegisterReason.ITS_ENABLED, its=its.key)]
    old = its.baser.get(number)
    new = _merge(_before(its, old), offset % 8, value, size_bytes)
    if new is not None and tables is not None:
        table_type, entry_size_bytes = tables[number]
        new = new & ~(7 << 56 | 0x1F << 48) | table_type << 56 | (entry_size_bytes - 1) << 48
    if new is not None and gic.profile.page_size_bytes:  # KVM: and a collection table is always flat
        new = new & ~(3 << 8) | 2 << 8
        if reg.decode_gits_baser(new).table_type == reg.BASER_TYPE_COLLECTION:
            new &= ~(1 << 62)
    if new is not None and gic.profile.attributes_sanitised:
        new = reg.kvm_memory_attributes(new)
    its.baser[number] = new
    effects: list[Effect] = [fx.TableSet(its.key, number, new)]
    if number == 0 and new != old:
        its.l1_valid = {}
    invalid = new is not None and not new >> 63
    changed = new is not None and (new != old if old is not None else its.complete or invalid)
    if changed if gic.profile.changed_baser_frees else invalid and gic.profile.invalid_baser_frees:
        effects += gic.free_devices(its) if number == 0 else gic.free_collections(its)
        if gic.profile.changed_baser_frees:
            effects += gic.invalidate_cache(its)
    return effects


def write_redistributor(
    gic: Gic, one: Redistributor, offset: int, value: int, size_bytes: int
) -> list[Effect]:
    """A write to a register of a vCPU's redistributor, `offset` from its RD_base.

    Kernel: vgic-mmio-v3.c:vgic_mmio_write_v3r_ctlr, _propbase, _pendbase, _invlpi, _invall (v6.12)
    """
    value &= (1 << 8 * size_bytes) - 1
    if offset == reg.GICR_CTLR:
        return _write_gicr_ctlr(gic, one, value)
    for register, start in (
        ("GICR_PROPBASER", reg.GICR_PROPBASER),
        ("GICR_PENDBASER", reg.GICR_PENDBASER),
    ):
        if start <= offset < start + 8:
            if one.enable_lpis:
                reason = fx.RegisterReason.LPIS_ENABLED
                return [fx.RegisterIgnored(register, value, reason, vcpu=one.vcpu)]
            if start == reg.GICR_PROPBASER:
                gic.propbaser = _merge(gic.propbaser, offset % 8, value, size_bytes)
            else:
                one.pendbaser = _merge(one.pendbaser, offset % 8, value, size_bytes)
            return []
    if offset not in (reg.GICR_INVLPIR, reg.GICR_INVALLR):
        return []
    if one.enable_lpis is False:
        name = reg.redistributor_register_name(offset) or ""
        return [fx.RegisterIgnored(name, value, fx.RegisterReason.LPIS_DISABLED, vcpu=one.vcpu)]
    if offset == reg.GICR_INVALLR:
        return gic.read_configurations(one.vcpu)
    intid = reg.decode_gicr_invlpir(value)
    lpi = gic.lpis.get(intid)
    if lpi is not None and lpi.mapped_by:
        return [fx.ConfigRead(intid)]
    if intid < FIRST_LPI or (lpi is None and all(its.complete for its in gic.its.values())):
        reason = fx.RegisterReason.UNKNOWN_LPI
        return [fx.RegisterIgnored("GICR_INVLPIR", value, reason, vcpu=one.vcpu)]
    return [fx.ConfigRead(intid, certain=False)]


def _write_gicr_ctlr(gic: Gic, one: Redistributor, value: int) -> list[Effect]:
    """EnableLPIs.

    Kernel: vgic-mmio-v3.c:vgic_mmio_write_v3r_ctlr, vgic.c:vgic_flush_pending_lpis (v7.3)
    """
    before, one.enable_lpis = one.enable_lpis, reg.decode_gicr_ctlr(value).enable_lpis
    if one.enable_lpis and before is not True:
        ptz = None if one.pendbaser is None else reg.decode_gicr_pendbaser(one.pendbaser).ptz
        effects: list[Effect] = [fx.LpisEnabled(one.vcpu, None if ptz is None else not ptz)]
        return effects if ptz else [*effects, fx.PendingTableRead(one.vcpu, None)]
    if not one.enable_lpis and before is not False:
        effects = [fx.LpisDisabled(one.vcpu)]
        for intid in sorted(one.pending):
            # A disabled LPI is on no vCPU's list, and keeps its latch.
            lpi = gic.lpis.get(intid)
            if not (gic.profile.lpi_has_target and lpi is not None and lpi.enabled is False):
                effects += gic.clear_pending(one.vcpu, intid)
        if gic.profile.cache is not CacheScope.NONE:
            certain = before is True
            effects.append(fx.CacheInvalidated(tuple(sorted(gic.its)), certain))
        return effects
    return []


def _before(its: Its, value: int | None) -> int | None:
    """What a register of an ITS held before a write."""
    return 0 if value is None and its.complete else value


def _merge(old: int | None, at: int, value: int, size_bytes: int) -> int | None:
    """A 64-bit register after a write of `size_bytes` at byte `at`; None where the other half is unknown.

    Kernel: vgic-mmio-v3.c:update_64bit_reg (v6.12)
    """
    if size_bytes == 8:
        return value
    if old is None:
        return None
    mask = ((1 << 8 * size_bytes) - 1) << 8 * at
    return (old & ~mask | value << 8 * at & mask) & _ALL
