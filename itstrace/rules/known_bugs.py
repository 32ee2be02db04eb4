"""Known bugs of KVM's vITS, by the shape that they have in a capture and the kernels that have them.

One row a bug. A finding has its shape if its rule is one of `codes` and its mechanism holds `mechanism`; the bug is
named only where the capture's kernel may have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from itstrace.findings import KnownBug
from itstrace.observe.versions import Version, version_of

if TYPE_CHECKING:
    from itstrace.findings import Finding


@dataclass(frozen=True, slots=True)
class Shape:
    """What a bug looks like, and where it is. Versions are those of the kernel.org release in `uname -r` or the package."""

    bug: KnownBug
    codes: tuple[str, ...]
    #: A piece of the finding's mechanism; empty for any.
    mechanism: str = ""
    #: The first release that has it, and the first that has it no more (None: not known to be mended).
    since: Version = (0, 0, 0)
    until: Version | None = None
    #: By series (6, 12): the first stable release that has the fix.
    stable: tuple[tuple[tuple[int, int], int], ...] = ()

    def fits(self, finding: Finding, kernel: Version | None) -> bool:
        """Whether a finding has this shape, on a kernel that may have the bug; an unknown kernel may."""
        if finding.code not in self.codes or self.mechanism not in finding.mechanism:
            return False
        if kernel is None:
            return True
        if kernel < self.since or (self.until is not None and kernel >= self.until):
            return False
        return not any(kernel[:2] == series and kernel[2] >= patch for series, patch in self.stable)


_SOURCE = "arch/arm64/kvm/vgic"

#: Kernel: vgic-its.c, vgic.c, vgic-v3.c of 6.1.192, 6.12.107 and 7.3.4; CVE entries as cited.
KNOWN: Final[tuple[Shape, ...]] = (
    Shape(
        KnownBug(
            "EnableLPIs=0 leaves the LPI in the list register of a running vCPU: it can be live on two at once",
            "nowhere yet; 7.3 reads the register back at the vCPU's next exit, 6.12 and 6.1 may never do so",
            f"{_SOURCE}/vgic.c:vgic_flush_pending_lpis, kvm_vgic_sync_hwstate",
        ),
        ("ITS401",),
        mechanism="EnableLPIs=0",
    ),
    Shape(
        KnownBug(
            "Disabling a vCPU's LPIs races with moving one of them: the flush drops it while it is looked at",
            "6.1.191, 6.12.114 and 7.3.4",
            "CVE-2026-72288",
        ),
        ("ITS301", "ITS401", "ITS406"),
        mechanism="EnableLPIs=0",
        until=(7, 3, 4),
        stable=(((6, 1), 191), ((6, 12), 114)),
    ),
    Shape(
        KnownBug(
            "EnableLPIs=0 takes LPIs off the list and leaves pending_latch set, so that they wait for ever",
            "6.1.191, 6.12.114 and 7.3.4 clear the latch",
            f"{_SOURCE}/vgic.c:vgic_flush_pending_lpis",
        ),
        ("ITS301",),
        mechanism="EnableLPIs=0",
        until=(7, 3, 4),
        stable=(((6, 1), 191), ((6, 12), 114)),
    ),
    Shape(
        KnownBug(
            "MOVALL moves every LPI of the VM, not only those of the source vCPU",
            "6.12.113 and 7.3, which compare the old target; came with the xarray walk of 6.10",
            f"{_SOURCE}/vgic-its.c:vgic_its_cmd_handle_movall",
        ),
        ("ITS204", "ITS402"),
        mechanism="MOVALL",
        since=(6, 10, 0),
        until=(7, 3, 0),
        stable=(((6, 12), 113),),
    ),
    Shape(
        KnownBug(
            "An LPI that is discarded and mapped again while its interrupt is referenced keeps its old target",
            "7.3 (vgic_its_map_lpi sets the target)",
            f"{_SOURCE}/vgic-its.c:vgic_its_cmd_handle_mapi, vgic_add_lpi",
        ),
        ("ITS402", "ITS404"),
        mechanism="MAPTI kept the old target",
        until=(7, 3, 0),
    ),
    Shape(
        KnownBug(
            "Two events may share one LPI: moving or discarding one does so to the other",
            "7.3 refuses the second mapping (-EEXIST)",
            f"{_SOURCE}/vgic-its.c:vgic_add_lpi",
        ),
        ("ITS106", "ITS402"),
        mechanism="share",
        until=(7, 3, 0),
    ),
    Shape(
        KnownBug(
            "An LPI mapped again while its old interrupt is being released: the new one is dropped from the table",
            "7.3.4; not in 6.12.107",
            "CVE-2026-74568",
        ),
        ("ITS406", "ITS401", "ITS301"),
        mechanism="object",
        until=(7, 3, 4),
    ),
    Shape(
        KnownBug(
            "Invalidating the translation cache twice at once drops references that are not its own (use after free)",
            "6.12.107 and 7.3.4; came with the xarray cache of 6.10",
            "CVE-2026-46316",
        ),
        ("ITS206",),
        since=(6, 10, 0),
        until=(7, 3, 4),
        stable=(((6, 12), 107),),
    ),
    Shape(
        KnownBug(
            "An LPI stays active in the kernel after its list register is gone; nothing can end it any more",
            "7.3, which holds no LPI for active",
            f"{_SOURCE}/vgic-v3.c:vgic_v3_fold_lr_state",
        ),
        ("ITS312",),
        until=(7, 3, 0),
    ),
    Shape(
        KnownBug(
            "EnableLPIs 0->1 assigns the pending table's bits: what was injected since the register was written is lost",
            "nowhere yet",
            f"{_SOURCE}/vgic-v3.c:its_sync_lpi_pending_table",
        ),
        ("ITS310",),
    ),
    Shape(
        KnownBug(
            "MOVI does not kick the old vCPU: an LPI on its list is handed over only at that vCPU's next exit",
            "by design; the next exit of the old vCPU closes it",
            f"{_SOURCE}/vgic-its.c:update_affinity, vgic.c:vgic_prune_ap_list",
        ),
        ("ITS403",),
        mechanism="nothing kicked it",
    ),
    Shape(
        KnownBug(
            "DISCARD does not clear pending_latch: what was queued is still delivered",
            "by design",
            f"{_SOURCE}/vgic-its.c:vgic_its_cmd_handle_discard",
        ),
        ("ITS306",),
    ),
    Shape(
        KnownBug(
            "CLEAR does not look at list registers, and clears the latch without irq_lock",
            "by design; on 7.x the latch shares its byte with other flags, which the unlocked store can undo",
            f"{_SOURCE}/vgic-its.c:vgic_its_cmd_handle_clear",
        ),
        ("ITS307",),
    ),
    Shape(
        KnownBug(
            "An injection through the cache takes no its_lock: it may finish after the DISCARD or MAPD that forbids it",
            "by design",
            f"{_SOURCE}/vgic-its.c:vgic_its_inject_cached_translation",
        ),
        ("ITS305",),
        mechanism="under way",
    ),
    Shape(
        KnownBug(
            "MAPC V=0 takes the collection from its events for good; hardware keeps the ICID in the entry",
            "by design",
            f"{_SOURCE}/vgic-its.c:vgic_its_free_collection",
        ),
        ("ITS109",),
    ),
    Shape(
        KnownBug(
            "MAPD V=0 and DISCARD leave their entries in guest memory: a restore brings them back",
            "6.13 and stable releases since (in 6.1.192 and 6.12.107)",
            "commit 9d0bee66f739",
        ),
        ("ITS601",),
        mechanism="what had been unmapped came back",
        until=(6, 13, 0),
        stable=(((6, 1), 192), ((6, 12), 107)),
    ),
    Shape(
        KnownBug(
            "Saving an event without a collection dereferences NULL",
            "6.1.191, 6.12.113 and 7.3",
            f"{_SOURCE}/vgic-its.c:vgic_its_save_ite",
        ),
        ("ITS603",),
        mechanism="NULL",
        until=(7, 3, 0),
        stable=(((6, 1), 191), ((6, 12), 113)),
    ),
    Shape(
        KnownBug(
            "Saving pending tables takes no reference: an LPI discarded meanwhile is used after it is freed",
            "6.12.114; later than 7.3.3",
            "CVE-2026-89913",
        ),
        ("ITS602",),
        until=(7, 3, 4),
        stable=(((6, 12), 114),),
    ),
)


def known_bugs(finding: Finding, kernel: str | None) -> tuple[KnownBug, ...]:
    """The known bugs that have a finding's shape on this kernel."""
    version = version_of(kernel)
    return tuple(shape.bug for shape in KNOWN if shape.fits(finding, version))
