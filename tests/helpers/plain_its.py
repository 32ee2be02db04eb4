"""A second vITS, deliberately plain: the tables are the 8-byte entries that KVM saves, in byte arrays.

It shares no code with itstrace, so that one mistake is not made twice: commands are taken out of the guest's
queue and picked apart here, by shifts. What each does follows kvm-its-facts B and C and the source of v6.1.192,
v6.12.117 and v7.3 (vgic-its.c, vgic-v3.c, vgic.c, vgic-mmio-v3.c), step by step, in the order in which the kernel
checks. What a release is *meant* to do is what is written here: of its known bugs (v6.12.107's MOVALL of every
LPI, the target that a new MAPTI leaves behind up to v6.12) there are none.

What the saved bytes cannot hold is kept so:
- a collection that MAPTI named and no MAPC has mapped: a valid CTE with RDbase ~0, just as KVM saves it;
- an event that lost its collection to MAPC V=0: KVM saves nothing, but remembers its LPI. Here the entry stays,
  with the bit `ORPHAN` in `next`, which is free: distances are worked out when the tables are saved;
- CTEs stand at their ICID, KVM's saved list has no order;
- an ITT is its device's own: what another device has at the same address is not seen before a save;
- an LPI (struct vgic_irq) is 8 bytes: flags, priority, target vCPU, the vCPU that it is pending on, how many events
  map it. It lives while an event maps it or a vCPU has it in its list: while it is pending and enabled. Which LPIs
  live stands in another byte array, one byte each.

Not here: hw (GICv4) LPIs, memory that is no RAM, list registers (a vCPU takes an LPI and is done with it), the latch
of an LPI that has no target (KVM sets it and queues nothing; here and in the model such an MSI leaves no trace).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

NOBODY = 0xFFFF
UNMAPPED_RDBASE = 0xFFFF_FFFF
ORPHAN = 1 << 63
VALID = 1 << 63
FIRST_LPI, LPI_LIMIT = 8192, 65536
ENODEV, EBUSY, EEXIST, EINVAL = -19, -16, -17, -22
ENABLED = 1
#: Room for ids in the tables of devices and collections; no guest here sets up larger ones.
IDS = 2 * 8192
#: GITS_BASER0 and 1 as KVM creates them: Type, entries of 8 bytes, 64 KiB pages, not valid. INITIAL_BASER_VALUE
BASER_AT_RESET = [
    1 << 56 | 7 << 48 | 3 << 59 | 1 << 10 | 2 << 8,
    4 << 56 | 7 << 48 | 3 << 59 | 1 << 10 | 2 << 8,
]


@dataclass(frozen=True)
class Kernel:
    """What releases do differently."""

    #: MAPC V=0 looks at RDbase too (v6.1).
    mapc_always_checks_vcpu: bool = False
    #: All ITSs share one translation cache (before v6.10).
    one_cache: bool = False
    #: Any change of GITS_BASER<n> frees its table, not only Valid=0; and a save leaves out a device that its table
    #: cannot hold any more, instead of failing (v6.12.112, v7.3).
    changed_baser_frees: bool = False
    #: MAPTI of an LPI that another event maps is refused (v7.3).
    one_event_per_lpi: bool = False


#: By `uname -r`.
KERNELS = {
    "6.1.192": Kernel(mapc_always_checks_vcpu=True, one_cache=True),
    "6.12.107": Kernel(),
    "6.12.117": Kernel(changed_baser_frees=True),
    "7.3.4": Kernel(changed_baser_frees=True, one_event_per_lpi=True),
}


class Memory:
    """The guest's memory, all of it RAM; pages that nobody wrote are zeros."""

    PAGE = 65536

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes, which do not cross a page."""
        page = self.pages.get(gpa // self.PAGE)
        at = gpa % self.PAGE
        return bytes(size) if page is None else bytes(page[at : at + size])

    def write(self, gpa: int, data: bytes | bytearray) -> None:
        """Bytes, which do not cross a page."""
        page = self.pages.setdefault(gpa // self.PAGE, bytearray(self.PAGE))
        page[gpa % self.PAGE : gpa % self.PAGE + len(data)] = data

    def read_u64(self, gpa: int) -> int:
        """A doubleword."""
        return int.from_bytes(self.read(gpa, 8), "little")

    def write_u64(self, gpa: int, value: int) -> None:
        """A doubleword."""
        self.write(gpa, value.to_bytes(8, "little"))


@dataclass
class Done:
    """What one command, register write or MSI came to: 0, an E_ITS_* code, or a negative errno.

    And what it read on the way: property bytes by LPI, pending bits by (vCPU, LPI); and whose translation cache
    it dropped.
    """

    command: bytes | None = None
    code: int = 0
    properties: dict[int, int] = field(default_factory=dict)
    pending_bits: dict[tuple[int, int], bool] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)


def entry(table: bytearray, index: int) -> int:
    """The 8-byte entry at an index."""
    return int.from_bytes(table[8 * index : 8 * index + 8], "little")


def put(table: bytearray, index: int, value: int) -> None:
    """Set the 8-byte entry at an index."""
    table[8 * index : 8 * index + 8] = value.to_bytes(8, "little")


def used(table: bytearray) -> list[int]:
    """The indexes whose entries are not 0."""
    end = -(-len(table.rstrip(b"\0")) // 8)
    return [index for index, value in enumerate(memoryview(table)[: 8 * end].cast("Q")) if value]


def merged(old: int, offset: int, value: int, size: int) -> int:
    """A 64-bit register after a write of `size` bytes at `offset`."""
    data = bytearray(old.to_bytes(8, "little"))
    data[offset % 8 : offset % 8 + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return int.from_bytes(data, "little")


def sanitised(value: int) -> int:
    """GITS_BASER<n> and GITS_CBASER: shareability and cacheability that KVM allows (vgic_sanitise_*)."""
    if value >> 10 & 3 == 2:  # outer shareable is taken as inner shareable
        value = value & ~(3 << 10) | 1 << 10
    if value >> 59 & 7 in (0, 1):  # no inner non-cacheable: RaWb
        value = value & ~(7 << 59) | 3 << 59
    if value >> 53 & 7 not in (0, 1):  # outer: same as inner, or non-cacheable
        value &= ~(7 << 53)
    return value


class PlainVm:
    """One VM: its memory, redistributors, LPIs and ITSs."""

    def __init__(self, kernel: Kernel, vcpus: int, itss: int = 1) -> None:
        self.kernel = kernel
        self.vcpus = vcpus
        self.memory = Memory()
        self.propbaser = 0
        self.pendbaser = [0] * vcpus
        self.lpis_enabled = [False] * vcpus
        self.lpis = bytearray(8 * LPI_LIMIT)
        self.lives = bytearray(LPI_LIMIT)
        self.cache: dict[tuple[int, int, int], int] = {}
        self.itss = [PlainIts(self, key) for key in range(itss)]
        self.now = Done()
        self.log: list[Done] = []

    def _begin(self, command: bytes | None = None) -> Done:
        self.now = Done(command)
        self.log.append(self.now)
        return self.now

    # --- LPIs: flags u8, priority u8, target u16, pending on u16, events u16

    def lpi(self, intid: int) -> tuple[int, int, int, int, int]:
        """An LPI's record."""
        flags, priority, target, where, events = struct.unpack_from("<BBHHH", self.lpis, 8 * intid)
        return flags, priority, target, where, events

    def put_lpi(self, intid: int, record: tuple[int, int, int, int, int]) -> None:
        """Set an LPI's record; one that nobody holds any more is gone."""
        flags, _, _, where, events = record
        self.lives[intid] = bool(events) or (where != NOBODY and bool(flags & ENABLED))
        if not self.lives[intid]:
            record = (0, 0, 0, 0, 0)
        struct.pack_into("<BBHHH", self.lpis, 8 * intid, *record)

    def living(self) -> list[int]:
        """The LPIs that there are."""
        found = [self.lives.find(1)]
        while found[-1] >= 0:
            found.append(self.lives.find(1, found[-1] + 1))
        return found[:-1]

    def add_lpi(self, intid: int, vcpu: int) -> int:
        """An event maps the LPI, `vcpu` being its collection's (or NOBODY). vgic_add_lpi."""
        flags, priority, target, where, events = self.lpi(intid)
        if self.lives[intid]:
            if events and self.kernel.one_event_per_lpi:
                return EEXIST
            if not events:  # what v7.3's vgic_its_map_lpi does, and older ones were meant to
                target = vcpu
                where = vcpu if NOBODY not in (where, vcpu) else where
            self.put_lpi(intid, (flags, priority, target, where, events + 1))
            return 0
        self.put_lpi(intid, (0, 0, vcpu, NOBODY, 1))
        self.read_property(intid)
        if vcpu != NOBODY:  # vgic_v3_lpi_sync_pending_status: the bit is taken
            self.read_pending_bit(vcpu, intid)
            gpa, bit = self.pending_place(vcpu, intid)
            self.memory.write(gpa, bytes([self.memory.read(gpa, 1)[0] & ~(1 << bit)]))
        return 0

    def drop_lpi(self, intid: int) -> None:
        """An event maps the LPI no more."""
        flags, priority, target, where, events = self.lpi(intid)
        self.put_lpi(intid, (flags, priority, target, where, events - 1))

    def read_property(self, intid: int) -> None:
        """update_lpi_config."""
        gpa = (self.propbaser & 0x000F_FFFF_FFFF_F000) + intid - FIRST_LPI
        byte = self.memory.read(gpa, 1)[0]
        self.now.properties[intid] = byte
        _, _, target, where, events = self.lpi(intid)
        self.put_lpi(intid, (byte & ENABLED, byte & 0xFC, target, where, events))

    def read_properties(self, vcpu: int) -> None:
        """Those of every LPI of a vCPU. vgic_its_invall."""
        for intid in self.living():
            if self.lpi(intid)[2] == vcpu:
                self.read_property(intid)

    def pending_place(self, vcpu: int, intid: int) -> tuple[int, int]:
        """Address and bit number in a vCPU's pending table."""
        return (self.pendbaser[vcpu] & 0x000F_FFFF_FFFF_0000) + intid // 8, intid % 8

    def read_pending_bit(self, vcpu: int, intid: int) -> None:
        """The LPI's latch becomes what the bit says."""
        gpa, bit = self.pending_place(vcpu, intid)
        is_set = bool(self.memory.read(gpa, 1)[0] >> bit & 1)
        self.now.pending_bits[vcpu, intid] = is_set
        flags, priority, target, _, events = self.lpi(intid)
        self.put_lpi(intid, (flags, priority, target, vcpu if is_set else NOBODY, events))

    def aim(self, intid: int, vcpu: int) -> None:
        """The LPI targets a vCPU, and is pending there if at all. update_affinity."""
        flags, priority, _, where, events = self.lpi(intid)
        self.put_lpi(intid, (flags, priority, vcpu, NOBODY if where == NOBODY else vcpu, events))

    def latch(self, intid: int) -> None:
        """The LPI is pending on its target."""
        flags, priority, target, where, events = self.lpi(intid)
        self.put_lpi(intid, (flags, priority, target, where if target == NOBODY else target, events))

    def unlatch(self, intid: int) -> None:
        """The LPI is pending nowhere."""
        flags, priority, target, _, events = self.lpi(intid)
        self.put_lpi(intid, (flags, priority, target, NOBODY, events))

    def take(self, vcpu: int) -> list[int]:
        """A vCPU runs: it takes what is pending on it and enabled, and is done with it."""
        mine = [i for i in self.living() if self.lpi(i)[3] == vcpu and self.lpi(i)[0] & ENABLED]
        for intid in mine:
            self.unlatch(intid)
        return mine

    def drop_cache(self, its: int | None) -> None:
        """Drop the translation cache of an ITS, or of all (None). vgic_its_invalidate_cache."""
        everybody = its is None or self.kernel.one_cache
        keys = set(range(len(self.itss))) if everybody else {its}
        self.now.dropped |= {key for key in keys if key is not None}
        self.cache = {event: intid for event, intid in self.cache.items() if event[0] not in keys}

    # --- redistributors

    def write_redistributor(self, vcpu: int, offset: int, value: int, size: int) -> None:
        """GICR_CTLR, PROPBASER, PENDBASER, INVLPIR, INVALLR."""
        self._begin()
        value &= (1 << 8 * size) - 1
        if offset == 0x0:
            self._write_ctlr(vcpu, enable=bool(value & 1))
        elif 0x70 <= offset < 0x78 and not self.lpis_enabled[vcpu]:
            self.propbaser = merged(self.propbaser, offset, value, size)
        elif 0x78 <= offset < 0x80 and not self.lpis_enabled[vcpu]:
            self.pendbaser[vcpu] = merged(self.pendbaser[vcpu], offset, value, size)
        elif offset == 0xA0 and self.lpis_enabled[vcpu]:
            intid = value & 0xFFFF_FFFF
            if FIRST_LPI <= intid < LPI_LIMIT and self.lives[intid]:
                self.read_property(intid)
        elif offset == 0xB0 and self.lpis_enabled[vcpu]:
            self.read_properties(vcpu)

    def _write_ctlr(self, vcpu: int, *, enable: bool) -> None:
        if enable and not self.lpis_enabled[vcpu]:
            self.lpis_enabled[vcpu] = True
            if not self.pendbaser[vcpu] >> 62 & 1:  # its_sync_lpi_pending_table
                for intid in self.living():
                    if self.lpi(intid)[2] == vcpu:
                        self.read_pending_bit(vcpu, intid)
        elif not enable and self.lpis_enabled[vcpu]:
            self.lpis_enabled[vcpu] = False
            self.take(vcpu)  # vgic_flush_pending_lpis: off the list and not pending
            self.drop_cache(None)

    # --- MSIs

    def msi(self, its: int, device: int, event: int) -> bool:
        """An MSI; whether the translation cache knew it. vgic_its_inject_msi."""
        now = self._begin()
        intid = self.cache.get((its, device, event))
        if intid is not None:
            self.latch(intid)
            return True
        now.code = self.itss[its].trigger(device, event)
        return False

    # --- saving, and coming up on another host

    def save(self) -> int:
        """KVM_DEV_ARM_ITS_SAVE_TABLES of every ITS, and KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES."""
        for its in self.itss:
            code = its.save()
            if code:
                return code
        for intid in self.living():
            _, _, target, where, _ = self.lpi(intid)
            if target != NOBODY:
                gpa, bit = self.pending_place(target, intid)
                byte = self.memory.read(gpa, 1)[0] & ~(1 << bit)
                self.memory.write(gpa, bytes([byte | (where != NOBODY) << bit]))
        return 0

    def restored(self) -> PlainVm:
        """Another VM with the same memory and registers, its tables restored from memory."""
        other = PlainVm(self.kernel, self.vcpus, len(self.itss))
        for number, page in self.memory.pages.items():
            other.memory.pages[number] = bytearray(page)
        other.propbaser, other.pendbaser = self.propbaser, list(self.pendbaser)
        other.lpis_enabled = list(self.lpis_enabled)
        for old, new in zip(self.itss, other.itss, strict=True):
            new.baser, new.cbaser = list(old.baser), old.cbaser
            new.creadr, new.cwriter, new.enabled = old.creadr, old.cwriter, old.enabled
            new.restore()
        return other


class PlainIts:
    """One ITS: registers and tables."""

    def __init__(self, vm: PlainVm, key: int) -> None:
        self.vm = vm
        self.key = key
        self.enabled = False
        self.cbaser = self.creadr = self.cwriter = 0
        self.baser = list(BASER_AT_RESET)
        self.dtes = bytearray(8 * IDS)
        self.ctes = bytearray(8 * IDS)
        self.itts: dict[int, bytearray] = {}

    # --- registers

    def write(self, offset: int, value: int, size: int) -> None:
        """GITS_CTLR, CBASER, CWRITER, BASER<n>; then what commands there are."""
        self.vm._begin()
        if offset == 0x0:
            self._write_ctlr(enable=bool(value & 1))
        elif 0x80 <= offset < 0x88 and not self.enabled:
            self.cbaser = sanitised(merged(self.cbaser, offset, value, size)) & ~0xF000
            self.creadr = self.cwriter = 0
        elif 0x88 <= offset < 0x90:
            cwriter = merged(self.cwriter, offset, value, size) & 0xF_FFE0
            if cwriter < self.queue_bytes():
                self.cwriter = cwriter
                self._process()
        elif 0x100 <= offset < 0x110 and not self.enabled:
            self._write_baser((offset - 0x100) // 8, offset, value, size)

    def queue_bytes(self) -> int:
        """The size of the command queue."""
        return ((self.cbaser & 0xFF) + 1) * 4096

    def _write_ctlr(self, *, enable: bool) -> None:
        sound = all(value & VALID for value in (*self.baser, self.cbaser))
        if enable and not self.enabled and not sound:
            return
        self.enabled = enable
        if not enable:
            self.vm.drop_cache(self.key)
        self._process()

    def _write_baser(self, number: int, offset: int, value: int, size: int) -> None:
        new = merged(self.baser[number], offset, value, size)
        new = new & ~(7 << 56 | 0x1F << 48 | 3 << 8) | (1, 4)[number] << 56 | 7 << 48 | 2 << 8
        new = sanitised(new & ~(1 << 62) if number else new)
        changed = new != self.baser[number]
        self.baser[number] = new
        if (changed and self.vm.kernel.changed_baser_frees) or (
            not new & VALID and not self.vm.kernel.changed_baser_frees
        ):
            if number:
                self._free_collections()
            else:
                self._free_devices()
            if self.vm.kernel.changed_baser_frees:
                self.vm.drop_cache(self.key)

    def reset(self) -> None:
        """KVM_DEV_ARM_ITS_CTRL_RESET. vgic_its_reset."""
        self.vm._begin()
        self.baser = [value & ~VALID for value in self.baser]
        self.cbaser = self.creadr = self.cwriter = 0
        self.enabled = False
        self._free_devices()
        self._free_collections()

    def _free_devices(self) -> None:
        for device in sorted(self.itts):
            self._free_device(device)

    def _free_collections(self) -> None:
        for icid in used(self.ctes):
            self._free_collection(icid)

    def _process(self) -> None:
        """vgic_its_process_commands."""
        while self.enabled and self.cwriter != self.creadr:
            gpa = (self.cbaser & 0x000F_FFFF_FFFF_F000) + self.creadr
            command = self.vm.memory.read(gpa, 32)
            done = self.vm._begin(command)
            done.code = self._handle(command)
            self.creadr += 32
            if self.creadr == self.queue_bytes():
                self.creadr = 0

    # --- the tables

    def fits(self, number: int, index: int) -> int | None:
        """Where the entry of a device (0) or a collection (1) would be saved; None where not. vgic_its_check_id."""
        baser = self.baser[number]
        base = baser & 0x0000_FFFF_FFFF_0000 | (baser >> 12 & 0xF) << 48
        size = ((baser & 0xFF) + 1) * 65536
        if index > 0xFFFF:
            return None
        if not baser >> 62 & 1:
            return base + 8 * index if index < size // 8 else None
        if index // 8192 >= size // 8:
            return None
        assert index < IDS or not self.vm.memory.read_u64(base + 8 * (index // 8192))
        level1 = self.vm.memory.read_u64(base + 8 * (index // 8192))
        return (level1 & 0x000F_FFFF_FFFF_0000) + 8 * (index % 8192) if level1 & VALID else None

    def dte(self, device: int) -> int:
        """A device's entry; 0 where it is not mapped."""
        return entry(self.dtes, device) if device < IDS else 0

    def ite(self, device: int, event: int) -> int:
        """An event's entry; 0 where it is not mapped."""
        itt = self.itts.get(device)
        return entry(itt, event) if itt is not None and 8 * event < len(itt) else 0

    def vcpu_of(self, ite: int) -> int | None:
        """The vCPU of the entry's collection; None where that is not mapped. its_is_collection_mapped."""
        return None if ite & ORPHAN else self.collection(ite & 0xFFFF)

    def collection(self, icid: int) -> int | None:
        """A collection's vCPU; None where it is not mapped."""
        cte = entry(self.ctes, icid)
        rdbase = cte >> 16 & 0xFFFF_FFFF
        return None if not cte & VALID or rdbase == UNMAPPED_RDBASE else rdbase

    def _free_device(self, device: int) -> None:
        for event in used(self.itts[device]):
            self.vm.drop_lpi(self.ite(device, event) >> 16 & 0xFFFF_FFFF)
        del self.itts[device]
        put(self.dtes, device, 0)
        self.vm.drop_cache(self.key)

    def _free_collection(self, icid: int) -> None:
        for itt in self.itts.values():
            for event in self._users(itt, icid):
                put(itt, event, entry(itt, event) | ORPHAN)
        put(self.ctes, icid, 0)

    def _users(self, itt: bytearray, icid: int) -> list[int]:
        """The events that have a collection."""
        return [at for at in used(itt) if not entry(itt, at) & ORPHAN and entry(itt, at) & 0xFFFF == icid]

    # --- commands

    def _handle(self, command: bytes) -> int:
        dw = struct.unpack("<4Q", command)
        device, event = dw[0] >> 32, dw[1] & 0xFFFF_FFFF
        intid, icid = dw[1] >> 32, dw[2] & 0xFFFF
        rdbase, valid = dw[2] >> 16 & 0xFFFF_FFFF, bool(dw[2] & VALID)
        match dw[0] & 0xFF:
            case 0x08:
                return self._mapd(device, (dw[1] & 0x1F) + 1, dw[2] & 0x000F_FFFF_FFFF_FF00, valid)
            case 0x09:
                return self._mapc(icid, rdbase, valid)
            case 0x0A:
                return self._mapti(device, event, intid, icid)
            case 0x0B:
                return self._mapti(device, event, event, icid)
            case 0x01:
                return self._movi(device, event, icid)
            case 0x0E:
                return self._movall(rdbase, dw[3] >> 16 & 0xFFFF_FFFF)
            case 0x0F:
                return self._discard(device, event)
            case 0x04:
                return self._clear(device, event)
            case 0x03:
                return self.trigger(device, event)
            case 0x0C:
                return self._inv(device, event)
            case 0x0D:
                return self._invall(icid)
            case 0x05:
                return 0
        return ENODEV

    def _mapd(self, device: int, bits: int, itt: int, valid: bool) -> int:
        place = self.fits(0, device)
        if place is None:
            return 0x010801
        if valid and bits > 16:
            return 0x010802
        if self.dte(device):
            self._free_device(device)
        if valid:
            put(self.dtes, device, VALID | (itt >> 8) << 5 | (bits - 1))
            self.itts[device] = bytearray(8 << bits)
        else:
            self.vm.memory.write_u64(place, 0)
        return 0

    def _mapc(self, icid: int, rdbase: int, valid: bool) -> int:
        if rdbase >= self.vm.vcpus and (valid or self.vm.kernel.mapc_always_checks_vcpu):
            return 0x010902
        if not valid:
            if entry(self.ctes, icid):
                self._free_collection(icid)
            self.vm.drop_cache(self.key)
            return 0
        is_new = not entry(self.ctes, icid)
        if is_new and self.fits(1, icid) is None:
            return 0x010903
        put(self.ctes, icid, VALID | rdbase << 16 | icid)
        if not is_new:
            for itt in self.itts.values():
                for event in self._users(itt, icid):
                    self.vm.aim(entry(itt, event) >> 16 & 0xFFFF_FFFF, rdbase)
        return 0

    def _mapti(self, device: int, event: int, intid: int, icid: int) -> int:
        if not self.dte(device):
            return 0x010A04
        if 8 * event >= len(self.itts[device]):
            return 0x010A05
        if not FIRST_LPI <= intid < 1 << min((self.vm.propbaser & 0x1F) + 1, 16):
            return 0x010A06
        if self.ite(device, event):
            return 0
        if not entry(self.ctes, icid) and self.fits(1, icid) is None:
            return 0x010903
        vcpu = self.collection(icid)
        code = self.vm.add_lpi(intid, NOBODY if vcpu is None else vcpu)
        if code:
            return code
        if not entry(self.ctes, icid):
            put(self.ctes, icid, VALID | UNMAPPED_RDBASE << 16 | icid)
        put(self.itts[device], event, intid << 16 | icid)
        return 0

    def _movi(self, device: int, event: int, icid: int) -> int:
        ite = self.ite(device, event)
        if not ite:
            return 0x010107
        vcpu = self.collection(icid)
        if self.vcpu_of(ite) is None or vcpu is None:
            return 0x010109
        put(self.itts[device], event, ite & ~0xFFFF | icid)
        self.vm.drop_cache(self.key)
        self.vm.aim(ite >> 16 & 0xFFFF_FFFF, vcpu)
        return 0

    def _movall(self, source: int, target: int) -> int:
        if source >= self.vm.vcpus or target >= self.vm.vcpus:
            return 0x010E01
        if source == target:
            return 0
        for intid in self.vm.living():
            if self.vm.lpi(intid)[2] == source:
                self.vm.aim(intid, target)
        self.vm.drop_cache(self.key)
        return 0

    def _discard(self, device: int, event: int) -> int:
        ite = self.ite(device, event)
        if not ite or self.vcpu_of(ite) is None:
            return 0x010F07
        self.vm.drop_cache(self.key)
        put(self.itts[device], event, 0)
        self.vm.drop_lpi(ite >> 16 & 0xFFFF_FFFF)
        self.vm.memory.write_u64(self.itt_gpa(device) + 8 * event, 0)
        return 0

    def _clear(self, device: int, event: int) -> int:
        ite = self.ite(device, event)
        if not ite:
            return 0x010507
        self.vm.unlatch(ite >> 16 & 0xFFFF_FFFF)
        return 0

    def _inv(self, device: int, event: int) -> int:
        ite = self.ite(device, event)
        if not ite:
            return 0x010C07
        self.vm.read_property(ite >> 16 & 0xFFFF_FFFF)
        return 0

    def _invall(self, icid: int) -> int:
        vcpu = self.collection(icid)
        if vcpu is None:
            return 0x010D09
        self.vm.read_properties(vcpu)
        return 0

    def trigger(self, device: int, event: int) -> int:
        """An MSI that no cache knew, or INT. vgic_its_trigger_msi, vgic_its_resolve_lpi."""
        if not self.enabled:
            return EBUSY
        ite = self.ite(device, event)
        vcpu = self.vcpu_of(ite) if ite else None
        if vcpu is None:
            return 0x010307
        if not self.vm.lpis_enabled[vcpu]:
            return EBUSY
        self.vm.cache[self.key, device, event] = ite >> 16 & 0xFFFF_FFFF
        self.vm.latch(ite >> 16 & 0xFFFF_FFFF)
        return 0

    # --- saved tables, in guest memory

    def save(self) -> int:
        """vgic_its_save_tables_v0: devices and their ITTs, then the list of collections."""
        memory = self.vm.memory
        if self.baser[0] & VALID:
            code = self._save_devices()
            if code:
                return code
        if self.baser[1] & VALID:
            icids = used(self.ctes)
            for at, icid in enumerate(icids):
                memory.write_u64(self.list_gpa(at), entry(self.ctes, icid))
            if len(icids) < self.list_length():
                memory.write_u64(self.list_gpa(len(icids)), 0)
        return 0

    def list_gpa(self, at: int) -> int:
        """Where an entry of the saved list of collections stands."""
        return (self.baser[1] & 0x0000_FFFF_FFFF_0000 | (self.baser[1] >> 12 & 0xF) << 48) + 8 * at

    def list_length(self) -> int:
        """How many entries the list of collections has room for."""
        return ((self.baser[1] & 0xFF) + 1) * 8192

    def itt_gpa(self, device: int) -> int:
        """Where the guest gave room for a device's ITT."""
        return (self.dte(device) >> 5 & (1 << 44) - 1) << 8

    def _save_devices(self) -> int:
        reachable = [device for device in sorted(self.itts) if self.fits(0, device) is not None]
        if len(reachable) < len(self.itts) and not self.vm.kernel.changed_baser_frees:
            return EINVAL
        for device in reachable:
            self._save_itt(device)
            following = min((one for one in reachable if one > device), default=device)
            step = min(following - device, (1 << 14) - 1)
            place = self.fits(0, device)
            assert place is not None
            self.vm.memory.write_u64(place, self.dte(device) | step << 49)
        return 0

    def _save_itt(self, device: int) -> None:
        events = used(self.itts[device])
        kept = [event for event in events if not self.ite(device, event) & ORPHAN]
        for event in events:
            step = min((one for one in kept if one > event), default=event) - event
            saved = step << 48 | self.ite(device, event) if event in kept else 0
            self.vm.memory.write_u64(self.itt_gpa(device) + 8 * event, saved)

    def restore(self) -> None:
        """vgic_its_restore_tables_v0: collections first, then devices with their ITTs."""
        memory = self.vm.memory
        if self.baser[1] & VALID:
            for at in range(self.list_length()):
                cte = memory.read_u64(self.list_gpa(at))
                if not cte & VALID:
                    break
                put(self.ctes, cte & 0xFFFF, cte)
        if self.baser[0] & VALID:
            self._restore_devices()

    def _restore_devices(self) -> None:
        device = 0
        while device < IDS:
            place = self.fits(0, device)
            if place is None:
                device = (device // 8192 + 1) * 8192
                continue
            dte = self.vm.memory.read_u64(place)
            if not dte & VALID:
                device += 1
                continue
            put(self.dtes, device, dte & ~(0x3FFF << 49))
            self._restore_itt(device, (dte & 0x1F) + 1)
            step = dte >> 49 & 0x3FFF
            if not step:
                return
            device += step

    def _restore_itt(self, device: int, bits: int) -> None:
        self.itts[device] = bytearray(8 << bits)
        event = 0
        while event < 1 << bits:
            ite = self.vm.memory.read_u64(self.itt_gpa(device) + 8 * event)
            intid = ite >> 16 & 0xFFFF_FFFF
            if not intid:
                event += 1
                continue
            vcpu = self.collection(ite & 0xFFFF)
            put(self.itts[device], event, ite & (1 << 48) - 1)
            self.vm.add_lpi(intid, NOBODY if vcpu is None else vcpu)
            if not ite >> 48:
                return
            event += ite >> 48
