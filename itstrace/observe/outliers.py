"""Values that no such record can have, or that all others of their ITS, vCPU, task or pointer belie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.gic import registers as reg
from itstrace.observe.identity import TRANSLATER_OFFSET, strays
from itstrace.observe.joins import after
from itstrace.observe.runs import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.observe.calls import Found
    from itstrace.observe.collect import Raw
    from itstrace.observe.identity import Identity

#: Offset and size of the registers that each function writes.
_REGISTERS: Final = {
    "write_ctlr": (reg.GITS_CTLR, 4),
    "write_cbaser": (reg.GITS_CBASER, 8),
    "write_cwriter": (reg.GITS_CWRITER, 8),
    "write_baser": (reg.GITS_BASER, 8 * reg.GITS_BASER_COUNT),
    "write_rctlr": (reg.GICR_CTLR, 4),
    "write_propbaser": (reg.GICR_PROPBASER, 8),
    "write_pendbaser": (reg.GICR_PENDBASER, 8),
}
#: A task that has told so often which vCPU it runs, runs that.
_MANY: Final = 8


def outliers(raw: Raw, identity: Identity) -> Iterator[Found]:
    """Records with a value that cannot be theirs, kind by kind."""
    yield from _places(raw)
    yield from _frames(raw, identity)
    yield from _tasks(raw, identity)
    yield from _pointers(raw)
    yield from _vcpu_pointers(raw)
    yield from _irq_pointers(raw)
    yield from _addresses(raw, identity)


def _places(raw: Raw) -> Iterator[Found]:
    """Each of these functions writes one register of 4 or 8 bytes; which one it is, its address says.

    Kernel: vgic-its.c:its_registers, vgic-mmio-v3.c:vgic_v3_rd_registers (v6.12)
    """
    for probe, (first, size_bytes) in _REGISTERS.items():
        rows = raw[probe]
        offset = pl.col("addr") & reg.FRAME_MASK
        length = pl.col("len").fill_null(4) if "len" in rows.columns else pl.lit(4)
        inside = offset.is_between(first, first + size_bytes - 1) & (offset % length == 0)
        yield rows.filter(~inside), probe, probe, "at odds", "addr"
        if "len" in rows.columns:
            yield rows.filter(~pl.col("len").is_in([4, 8])), probe, probe, "at odds", "len"
        if "its" in rows.columns and raw.fired("process"):
            base = pl.col("addr") - offset
            bases = raw["process"].drop_nulls("base").unique("its", keep="first")
            named = rows.join(bases.select("its", _base="base"), on="its", how="inner", maintain_order="left")
            yield (
                named.filter((base != 0) & (base != pl.col("_base"))),
                probe,
                "process",
                "another value",
                "addr",
            )


def _frames(raw: Raw, identity: Identity) -> Iterator[Found]:
    """The redistributor that a guest's write is to says of which vCPU it is.

    Spec: IHI 0069H, a redistributor's RD_base and SGI_base frames are 128 KiB together.
    """
    probes = ("write_rctlr", "write_propbaser", "write_pendbaser")
    parts = [
        raw[probe].select("seq", "time_ns", "cpu", "pid", "vcpu", "addr", probe=pl.lit(probe))
        for probe in probes
    ]
    rows = identity.with_vm(pl.concat(parts).filter(pl.col("addr") > reg.FRAME_MASK).sort("seq"))
    rows = rows.with_columns(_frame=pl.col("addr") // (2 * (reg.FRAME_MASK + 1)))
    frame = ["vm", "_frame"]
    each = rows.group_by(*frame, "vcpu").agg(_n=pl.len())
    rows = rows.join(each, on=[*frame, "vcpu"], how="left", maintain_order="left", nulls_equal=True)
    rows = rows.filter((pl.col("_n") == 1) & (pl.col("_n").max().over(frame) > 1))
    for (probe,), found in rows.group_by(["probe"], maintain_order=True):
        yield found, str(probe), str(probe), "at odds", "vcpu"


def _tasks(raw: Raw, identity: Identity) -> Iterator[Found]:
    """A task runs one vCPU: one record of many that says another is wrong."""
    owns = identity.vcpus.select("pid", _owns="vcpu").unique("pid", keep="none")
    for probe in ("fill", "fill_end", "fold"):
        rows = raw[probe].drop_nulls("vcpu").join(owns, on="pid", how="inner", maintain_order="left")
        wrong = rows.filter(pl.col("vcpu") != pl.col("_owns"))
        if wrong.is_empty():
            continue
        counts = rows.group_by("pid", "vcpu").agg(_n=pl.len())
        total = rows.group_by("pid").agg(_of=pl.len())
        wrong = wrong.join(counts, on=["pid", "vcpu"], how="left", maintain_order="left")
        wrong = wrong.join(total, on="pid", how="left", maintain_order="left")
        yield wrong.filter((pl.col("_n") == 1) & (pl.col("_of") >= _MANY)), probe, "fill", "at odds", "vcpu"


def _pointers(raw: Raw) -> Iterator[Found]:
    """Pointers that no other record names, of tasks that otherwise name others."""
    for probe, column, rows in strays(raw):
        yield rows, probe, "process", "at odds", column


def _vcpu_pointers(raw: Raw) -> Iterator[Found]:
    """A `struct kvm_vcpu` has one number: one record of many that says another is wrong."""
    for probe, pointer, vcpu in (("affinity", "vcpu_ptr", "vcpu"), ("queue", "owner_ptr", "owner_vcpu")):
        if not raw[probe].height or not raw.gives(probe, pointer) or not raw.gives(probe, vcpu):
            continue
        rows = raw[probe].filter((pl.col(pointer) != 0) & pl.col(vcpu).is_not_null())
        counts = rows.group_by(pointer, vcpu).agg(n=pl.len())
        often = counts.sort("n", descending=True).group_by(pointer, maintain_order=True)
        told = often.agg(_of=pl.col("n").sum(), _usual=pl.col(vcpu).first(), _kinds=pl.len())
        told = told.filter((pl.col("_kinds") > 1) & (pl.col("_of") >= _MANY))
        rows = rows.join(told, on=pointer, how="inner", maintain_order="left")
        rows = rows.filter(pl.col(vcpu) != pl.col("_usual"))
        rows = rows.join(counts, on=[pointer, vcpu], how="left", maintain_order="left")
        yield rows.filter(pl.col("n") == 1), probe, probe, "at odds", vcpu


def _irq_pointers(raw: Raw) -> Iterator[Found]:
    """A `struct vgic_irq` is one LPI's as long as it lives: not another's for one record in between."""
    parts = []
    for probe in ("queue", "affinity", "resolve_end"):
        frame = raw[probe]
        if frame.height and raw.gives(probe, "irq") and raw.gives(probe, "intid"):
            frame = frame.filter(pl.col("ret") == 0) if probe == "resolve_end" else frame
            parts.append(frame.select("seq", "time_ns", "cpu", "pid", "irq", "intid", probe=pl.lit(probe)))
    if not parts:
        return
    rows = pl.concat(parts).drop_nulls(["irq", "intid"]).sort("seq")
    rows = rows.with_columns(
        _last=pl.col("intid").shift(1).over("irq"),
        _next=pl.col("intid").shift(-1).over("irq"),
        _last_irq=pl.col("irq").shift(1).over("intid"),
        _next_irq=pl.col("irq").shift(-1).over("intid"),
    )
    other = (pl.col("_last") == pl.col("_next")) & (pl.col("intid") != pl.col("_last"))
    back = (pl.col("_last_irq") == pl.col("_next_irq")) & (pl.col("irq") != pl.col("_last_irq"))
    # Where this is all that is said of the pointer, it may be a second object for the LPI: ITS406.
    mine = (pl.col("_last") == pl.col("intid")) | (pl.col("_next") == pl.col("intid"))
    known = pl.col("_last").is_not_null() | pl.col("_next").is_not_null()
    rows = rows.filter(
        other.fill_null(value=False) | (back & known & ~mine.fill_null(value=False)).fill_null(value=False)
    )
    for (probe,), found in rows.group_by(["probe"], maintain_order=True):
        yield found, str(probe), str(probe), "at odds", "irq"


def _addresses(raw: Raw, identity: Identity) -> Iterator[Found]:
    """An MSI that was taken was written to the doorbell of an ITS. Kernel: vgic-its.c:vgic_msi_to_its (v6.12)."""
    if not raw.fired("msi", "msi_end") or identity.itss["base_gpa"].null_count():
        return
    rows = after(after(raw["msi"], raw["msi_end"], _ret="ret", _end="seq"), raw["msi"], _next="seq")
    rows = rows.filter((pl.col("_end") < pl.col("_next").fill_null(NEVER)) & (pl.col("_ret") >= 0))
    doorbell = pl.col("lo").cast(pl.UInt64) + pl.col("hi").cast(pl.UInt64) * 2**32
    known = (identity.itss["base_gpa"] + TRANSLATER_OFFSET).unique()
    yield rows.filter(~doorbell.is_in(known.implode())), "msi", "msi_end", "another value", "lo"
