"""Who is who: which VM, ITS and vCPU a record belongs to.

Kernel pointers name a `struct kvm` and a `struct vgic_its`, and are reused after both are gone: a VM is a
pointer *and* a lifetime. Many probes carry neither; those records belong to the VM that their task last
worked for (a vCPU thread works for one VM all its life, an irqfd worker for whichever injected last).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import polars as pl

from itstrace import schemas
from itstrace.gic.registers import FRAME_MASK
from itstrace.observe.joins import after, before
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.observe.collect import Raw

#: Probes that carry a `struct kvm`, a `struct vgic_its`, or both.
_WITH_KVM = ("process", "command", "guest_read", "msi", "invalidate", "invalidate_all", "save_pending")
_WITH_ITS = (
    "process",
    "process_end",
    "command",
    "write_cwriter",
    "write_cbaser",
    "write_baser",
    "write_ctlr",
    "trigger",
    "invalidate",
    "alloc_device",
    "alloc_collection",
    "free_collection",
    "save_tables",
    "restore_tables",
)
#: Probes that only a living VM fires; freeing and flushing after the last of them is its teardown.
_ALIVE = (
    "process",
    "process_end",
    "command",
    "write_cwriter",
    "write_cbaser",
    "write_baser",
    "write_ctlr",
    "msi",
    "trigger",
    "alloc_device",
    "alloc_collection",
    "save_tables",
    "restore_tables",
    "save_pending",
)

#: Structures of the kernel's lie on multiples of this.
_ALIGNED = 8
#: One worker of the host's injects for several VMs, and one task saves all ITSs of its VM.
_FOR_SEVERAL = ("msi", "save_tables", "restore_tables")
#: A pointer that so many records name is real.
_OFTEN = 8

#: GITS_TRANSLATER lies 0x10040 above the base of the ITS. Spec: IHI 0069H, GITS_TRANSLATER.
TRANSLATER_OFFSET = 0x1_0040


@dataclass(slots=True)
class _Vm:
    kvm: int
    its: dict[int, int | None] = field(default_factory=dict)  # pointer -> base_gpa
    first_seq: dict[int, int] = field(default_factory=dict)  # its pointer -> first record that names it
    last_seq: int = 0
    from_seq: int = 0


@dataclass(slots=True)
class Identity:
    """Names for VMs, ITSs and vCPUs, and the means to give every record its own.

    `vms`, `itss`, `vcpus`: frames of schemas VMS, ITSS, VCPUS.
    """

    vms: pl.DataFrame
    itss: pl.DataFrame
    vcpus: pl.DataFrame
    #: (pid, seq, vm): from this record on the task worked for this VM.
    tasks: pl.DataFrame

    def with_vm(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add the column `vm` by the record's task: what it last worked for, or else will first work for."""
        if self.vms.height <= 1:
            vm = 0 if self.vms.height else None
            return frame.with_columns(pl.lit(vm, dtype=pl.UInt16).alias("vm"))
        # A record that itself names the VM belongs to it: for the moment of the join it stands after itself.
        rows = before(frame.with_columns(seq=pl.col("seq") + 1), self.tasks, _last="vm").with_columns(
            seq=pl.col("seq") - 1
        )
        rows = after(rows, self.tasks, _next="vm")
        return rows.with_columns(vm=pl.coalesce("_last", "_next")).drop("_last", "_next")

    def with_its(self, frame: pl.DataFrame, pointer: str = "its") -> pl.DataFrame:
        """Replace a column of `struct vgic_its` pointers by the ITS's number within the record's VM."""
        names = self.itss.select("vm", pl.col("pointer").alias(pointer), pl.col("its").alias("_its"))
        return (
            frame.join(names, on=["vm", pointer], how="left", maintain_order="left")
            .drop(pointer)
            .rename({"_its": "its"})
        )


def strays(raw: Raw) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """Pointers that cannot name what they should: (probe, column, its rows).

    A `struct kvm` or `struct vgic_its` is named again and again, and lies on a multiple of 8. One that a single record
    names is a stray where it does not lie so, or where the record's task, which works for one VM or ITS at a time, names
    another one of its kind: a probe that read a register or a stack slot too late, or a record that was damaged.
    """
    for column, probes in (("its", _WITH_ITS), ("kvm", _WITH_KVM)):
        parts = [
            raw[probe].select("seq", "pid", column, probe=pl.lit(probe))
            for probe in dict.fromkeys(probes)
            if raw[probe].height and column in raw[probe].columns
        ]
        if not parts:
            continue
        named = pl.concat(parts).drop_nulls(column)
        counts = named[column].value_counts()
        if counts.height < 2:
            continue
        often = counts.filter(pl.col("count") >= _OFTEN)[column]
        lonely = counts.filter(pl.col("count") == 1)[column]
        of_tasks = named.filter(pl.col(column).is_in(often.implode()))["pid"].unique()
        aside = (pl.col(column) % _ALIGNED != 0) | (
            pl.col("pid").is_in(of_tasks.implode()) & ~pl.col("probe").is_in(_FOR_SEVERAL)
        )
        found = named.filter(pl.col(column).is_in(lonely.implode()) & aside) if often.len() else named.clear()
        for probe in dict.fromkeys(found["probe"].to_list()):
            seqs = found.filter(pl.col("probe") == probe)["seq"]
            yield probe, column, raw[probe].filter(pl.col("seq").is_in(seqs.implode()))


def _believed(raw: Raw) -> Raw:
    """Raw frames in which strays are null: their records belong to what their task works for."""
    frames = dict(raw.frames)
    for probe, column, rows in strays(raw):
        stray = pl.col("seq").is_in(rows["seq"].implode())
        frames[probe] = frames[probe].with_columns(pl.when(~stray).then(pl.col(column)).alias(column))
    return replace(raw, frames=frames)


def identify(raw: Raw) -> Identity:
    """Find the VMs, their ITSs, and the tasks that work for them."""
    raw = _believed(raw)
    anchors = _anchors(raw)
    vms, itss = _lifetimes(raw, anchors)
    tasks = _tasks(raw, anchors, vms, itss)
    identity = Identity(vms, itss, pl.DataFrame(schema=schemas.VCPUS), tasks)
    identity.vcpus = _vcpus(raw, identity)
    return identity


def _anchors(raw: Raw) -> pl.DataFrame:
    """Every record that names a kvm or an ITS. Shape: seq, time_ns, pid, kvm, its, in order of seq."""
    parts = []
    for name in dict.fromkeys((*_WITH_KVM, *_WITH_ITS)):
        frame = raw[name]
        kvm = pl.col("kvm") if "kvm" in frame.columns else pl.lit(None, dtype=pl.UInt64)
        its = pl.col("its") if "its" in frame.columns else pl.lit(None, dtype=pl.UInt64)
        parts.append(frame.select("seq", "time_ns", "pid", kvm.alias("kvm"), its.alias("its")))
    anchors = pl.concat(parts).sort("seq")
    anchors = anchors.filter(pl.col("kvm").is_not_null() | pl.col("its").is_not_null())
    # An ITS belongs to the kvm beside which it is named, before or after.
    pairs = anchors.filter(pl.col("kvm").is_not_null() & pl.col("its").is_not_null())
    anchors = after(before(anchors, pairs, "its", back="kvm"), pairs, "its", ahead="kvm")
    anchors = anchors.with_columns(kvm=pl.coalesce("kvm", "back", "ahead")).drop("back", "ahead")
    # An ITS that is nowhere named beside one belongs to the kvm that its tasks work for, or to the only one
    # there is.
    named = anchors.filter(pl.col("kvm").is_not_null())
    works_for = named.group_by("pid", maintain_order=True).agg(pl.col("kvm").first())
    alone = anchors.filter(pl.col("kvm").is_null()).join(works_for, on="pid", how="inner", suffix="_of")
    owners = alone.group_by("its", maintain_order=True).agg(owner=pl.col("kvm_of").mode().min())
    only = named["kvm"].unique()
    anchors = anchors.join(owners, on="its", how="left", maintain_order="left")
    fallback = pl.lit(only[0] if only.len() == 1 else None, dtype=pl.UInt64)
    return anchors.with_columns(kvm=pl.coalesce("kvm", "owner", fallback)).drop("owner")


def _bases(raw: Raw) -> dict[int, int]:
    """Base addresses of ITSs, by pointer: what process says, else the frame that its registers were written through."""
    bases: dict[int, int] = {}
    for name in ("write_ctlr", "write_baser", "write_cwriter", "write_cbaser"):
        for its, addr in raw[name].select("its", "addr").unique(maintain_order=True).iter_rows():
            if its is not None and addr is not None and addr > FRAME_MASK:
                bases[its] = addr & ~FRAME_MASK
    # Of records that disagree, most are right.
    said = raw["process"].drop_nulls(["its", "base"]).group_by("its").agg(pl.col("base").mode().min())
    return bases | dict(said.iter_rows())


def _lifetimes(raw: Raw, anchors: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    bases = _bases(raw)
    spans = (
        anchors.filter(pl.col("its").is_not_null())
        .group_by("kvm", "its")
        .agg(first=pl.col("seq").min(), last=pl.col("seq").max())
        .sort("first")
    )
    kvms = anchors.filter(pl.col("kvm").is_not_null())["kvm"].unique(maintain_order=True).to_list()
    gone = _freed(raw)
    vms: list[_Vm] = []
    current: dict[int | None, _Vm] = {}
    for kvm, its, first, last in spans.iter_rows():
        vm = current.get(kvm)
        base = bases.get(its)
        reused = base is not None and vm is not None and base in vm.its.values()
        if vm is None or reused or all(gone.get(pointer, first) < first for pointer in vm.its):
            # Another ITS at the same address, or after all ITSs were freed: the old VM is gone, and its
            # `struct kvm` was reused.
            fresh = _Vm(kvm=kvm or its, from_seq=0 if vm is None else vm.last_seq + 1)
            vms.append(fresh)
            current[kvm] = vm = fresh
        vm.its[its] = base
        vm.first_seq[its] = first
        vm.last_seq = max(vm.last_seq, last)
    vms += [_Vm(kvm=kvm) for kvm in kvms if kvm not in current]
    vms.sort(key=lambda vm: (vm.from_seq, min(vm.first_seq.values(), default=0)))

    _learn_base(raw, vms)
    complete_at = _complete_its(raw)
    its_rows, vm_rows = [], []
    for index, vm in enumerate(vms):
        ordered = sorted(vm.its, key=lambda p: (vm.its[p] is None, vm.its[p] or 0))
        complete = bool(ordered)
        for number, pointer in enumerate(ordered):
            whole = complete_at.get(pointer, False)
            complete &= whole
            its_rows.append((index, number, pointer, vm.its[pointer], vm.first_seq[pointer], whole))
        end = _teardown(raw, set(vm.its), vm)
        start = (
            anchors.filter((pl.col("kvm") == vm.kvm) | pl.col("its").is_in(list(vm.its)))
            .filter(pl.col("seq") >= vm.from_seq)["time_ns"]
            .min()
        )
        vm_rows.append((index, vm.kvm, vm.from_seq, end[0], start, end[1], complete))
    return (
        pl.DataFrame(vm_rows, schema=schemas.VMS, orient="row"),
        pl.DataFrame(its_rows, schema=schemas.ITSS, orient="row"),
    )


def _learn_base(raw: Raw, vms: list[_Vm]) -> None:
    """Where a VM's only ITS lies, if no register of it was touched: below the doorbell that all its MSIs are sent to."""
    for vm in vms:
        if list(vm.its.values()) != [None]:
            continue
        until = min(
            (later.from_seq for later in vms if later.kvm == vm.kvm and later.from_seq > vm.from_seq),
            default=NEVER,
        )
        seq = pl.col("seq")
        mine = raw["msi"].filter((pl.col("kvm") == vm.kvm) & (seq >= vm.from_seq) & (seq < until))
        doorbells = mine.select("lo", "hi").unique().rows()
        if len(doorbells) == 1:
            low, high = doorbells[0]
            vm.its = dict.fromkeys(vm.its, (high << 32 | low) - TRANSLATER_OFFSET)


def _freed(raw: Raw) -> dict[int, int]:
    """ITSs whose collections were freed after the last sign of life, and the record at which."""
    alive: dict[int, int] = {}
    for name in _ALIVE:
        if "its" in raw[name].columns:
            for its, seq in raw[name].group_by("its").agg(pl.col("seq").max()).iter_rows():
                alive[its] = max(seq, alive.get(its, 0))
    freed = raw["free_collection"].group_by("its").agg(pl.col("seq").max())
    return {its: seq for its, seq in freed.iter_rows() if seq > alive.get(its, 0)}


def _complete_its(raw: Raw) -> dict[int, bool]:
    """Which ITSs are known from their first command on.

    Writing CBASER resets the queue (Kernel: vgic-its.c:vgic_mmio_write_its_cbaser), and a restore reads all
    tables; either before the first command means that nothing came before the capture. So does a first batch
    that starts with no queue.
    """
    first_command: dict[int, int] = dict(
        raw["process"]
        .filter(pl.col("creadr") != pl.col("cwriter"))
        .group_by("its")
        .agg(pl.col("seq").min())
        .iter_rows()
    )
    known: dict[int, bool] = {}
    for name in ("write_cbaser", "restore_tables"):
        for its, seq in raw[name].group_by("its").agg(pl.col("seq").min()).iter_rows():
            known[its] = known.get(its, False) or seq < first_command.get(its, seq + 1)
    return known


def _teardown(raw: Raw, pointers: set[int], vm: _Vm) -> tuple[int | None, int | None]:
    """(seq, time) at which the VM's tables began to be freed for good, or (None, None)."""
    last_alive = vm.from_seq
    for name in _ALIVE:
        frame = raw[name]
        mine = pl.col("its").is_in(list(pointers)) if "its" in frame.columns else pl.col("kvm") == vm.kvm
        seqs = frame.filter(
            mine & (pl.col("seq") >= vm.from_seq) & (pl.col("seq") <= max(vm.last_seq, vm.from_seq))
        )["seq"]
        if seqs.len():
            last_alive = max(last_alive, int(seqs.max()))  # type: ignore[arg-type]
    frees = raw["free_collection"].filter(pl.col("its").is_in(list(pointers)) & (pl.col("seq") > last_alive))
    if frees.is_empty():
        return None, None
    pid, until = frees["pid"][0], frees["seq"][-1]
    freeing = pl.concat(
        [
            raw[name].select("seq", "time_ns", "pid")
            for name in ("free_device", "free_collection", "flush_lpis")
        ]
    ).filter((pl.col("pid") == pid) & (pl.col("seq") > last_alive) & (pl.col("seq") <= until))
    first = freeing.sort("seq").row(0)
    return first[0], first[1]


def _tasks(raw: Raw, anchors: pl.DataFrame, vms: pl.DataFrame, itss: pl.DataFrame) -> pl.DataFrame:
    """From which record on which task worked for which VM. Shape: pid, seq, vm; changes only."""
    if vms.height <= 1:
        return pl.DataFrame(schema={"pid": pl.Int32, "seq": pl.UInt64, "vm": pl.UInt16})
    by_its = itss.select("vm", its="pointer")
    named = (
        anchors.filter(pl.col("its").is_not_null())
        .join(by_its, on="its", how="inner")
        .select("seq", "pid", "vm")
    )
    # A kvm without an ITS: the VM of that pointer whose lifetime holds the record.
    bare = (
        anchors.filter(pl.col("its").is_null() & pl.col("kvm").is_not_null())
        .select("seq", "pid", "kvm")
        .sort("seq")
    )
    starts = vms.select("kvm", "vm", seq="from_seq")
    bare = before(bare.with_columns(seq=pl.col("seq") + 1), starts, "kvm", vm="vm").drop_nulls("vm")
    bare = bare.select(pl.col("seq") - 1, "pid", "vm")
    rows = pl.concat([named, bare]).sort("seq")
    changes = rows.filter(pl.col("vm").ne_missing(pl.col("vm").shift(1).over("pid")))
    return pl.concat([changes.select("pid", "seq", "vm"), _orphans(raw, changes, vms)])


def _orphans(raw: Raw, known: pl.DataFrame, vms: pl.DataFrame) -> pl.DataFrame:
    """VMs for vCPU tasks that never touched an ITS: by whose vCPU is still without a task, then by whose LPIs they fill."""
    seen = pl.concat([raw[name].select("pid", "vcpu", "seq") for name in ("fill", "fold")])
    seen = seen.group_by("pid").agg(
        pl.col("vcpu").mode().min(), first=pl.col("seq").min(), last=pl.col("seq").max()
    )
    owners = seen.join(known.group_by("pid").agg(pl.col("vm").first()), on="pid", how="left")
    taken = {(vm, vcpu) for vm, vcpu in owners.drop_nulls("vm").select("vm", "vcpu").iter_rows()}
    rows: list[tuple[int, int, int]] = []
    for pid, vcpu, first, last in (
        owners.filter(pl.col("vm").is_null()).select("pid", "vcpu", "first", "last").sort("first").iter_rows()
    ):
        alive = [
            vm
            for vm, start, end in vms.select("vm", "from_seq", "to_seq").iter_rows()
            if start <= last and (end is None or end >= first)
        ]
        free = [vm for vm in alive if (vm, vcpu) not in taken] or alive
        if free:
            best = max(free, key=lambda vm: _matches(raw, known, pid, vcpu, vm)) if len(free) > 1 else free[0]
            taken.add((best, vcpu))
            rows.append((pid, first, best))
    return pl.DataFrame(rows, schema={"pid": pl.Int32, "seq": pl.UInt64, "vm": pl.UInt16}, orient="row")


def _matches(raw: Raw, known: pl.DataFrame, pid: int, vcpu: int, vm: int) -> int:
    """How many fills of a task follow a queueing of the same LPI, in this VM, for this vCPU."""
    pids = known.filter(pl.col("vm") == vm)["pid"].to_list()
    queued = raw["queue"].filter(pl.col("pid").is_in(pids) & (pl.col("target_vcpu") == vcpu))
    joined = before(raw["fill"].filter(pl.col("pid") == pid), queued, "intid", q="seq")
    return int(joined.filter(pl.col("q").is_not_null()).n_unique(["intid", "q"]))


def _vcpus(raw: Raw, identity: Identity) -> pl.DataFrame:
    """Which task runs which vCPU: fills and folds name the vCPU on its own task."""
    seen = pl.concat([raw[name].select("seq", "pid", "vcpu") for name in ("fill", "fold")])
    pairs = (
        seen.group_by("pid", "vcpu").agg(pl.col("seq").min(), count=pl.len()).sort("count", descending=True)
    )
    pairs = pairs.unique("pid", keep="first", maintain_order=True)
    return (
        identity.with_vm(pairs)
        .select("vm", "vcpu", "pid")
        .drop_nulls("vm")
        .sort("vm", "vcpu", "pid")
        .cast({"vm": pl.UInt16, "vcpu": pl.Int32, "pid": pl.Int32})
    )
