"""The analysis as a trace for ui.perfetto.dev: what was recorded, on tracks; times are the capture's own, to the ns.

Tracks: findings, lost records, markers; of each VM its ITSs (commands, rate of MSIs), its vCPUs (in the guest; under it each
list register) and its LPIs (where each was pending; MSIs, queueings, moves and configurations). A flow leads from an MSI
over its queueing to the list registers that carried it. Nothing is left out and nothing is joined. Slices of one track never
overlap: where an LPI was pending in two places at once, a second track of the same name takes one of them, and both are drawn
as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from itstrace._version import __version__
from itstrace.report.commands import command_rows
from itstrace.report.finding import known_bug
from itstrace.report.packets import Hex, TraceWriter
from itstrace.report.text import hexa, plural
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from typing import BinaryIO

    from itstrace.analysis import Analysis
    from itstrace.findings import Finding
    from itstrace.report.packets import Value

#: What a fold found in a list register; see FILLS.
_STATES: Final = {
    0: "gone: taken and ended",
    1: "still pending",
    2: "active",
    3: "pending and active",
}
#: A rate is counted over so many parts of the capture.
_PARTS: Final = 1000
_NS: Final = 1_000_000_000
_OPEN: Final = "no end was recorded; it is drawn to the end of the VM or the capture"
_NO_EXIT: Final = "the exit was not recorded: how long the vCPU stayed is not known"
_BACKWARDS: Final = "it is stamped as ended before it began; it is drawn as over at once"
#: Stands for an id that is not known where tracks are looked up.
_NONE: Final = -1


def write_trace(analysis: Analysis, out: BinaryIO, *, runs: bool = True) -> TraceWriter:
    """Write the trace; without `runs`, without the stays of vCPUs in the guest, which are most of a long capture."""
    start_ns = analysis.start_ns or 0
    writer = TraceWriter(out, clock=analysis.info.clock, start_ns=start_ns)
    _Trace(analysis, writer, start_ns, max(start_ns, analysis.end_ns or 0)).write(runs=runs)
    return writer


class _Trace:
    def __init__(self, analysis: Analysis, out: TraceWriter, start_ns: int, end_ns: int) -> None:
        self.analysis, self.obs, self.out = analysis, analysis.observations, out
        self.start_ns, self.end_ns = start_ns, end_ns
        self._tracks: dict[Hashable, int] = {}

    def write(self, *, runs: bool) -> None:
        self._capture()
        self._findings()
        self._gaps()
        self._markers()
        self._vms()
        self._commands()
        self._rates()
        if runs:
            self._runs()
        self._vm_events()
        self._invalidations()
        self._retargets()
        self._configs()
        # A flow goes from event to event in order of time, and of the file where times are equal.
        self._msis()
        self._queueings()
        self._fills()
        self._pending()

    # Tracks, made when something is put on them.

    def _root(self, name: str, rank: int, description: str = "") -> int:
        return self._track(("root", name), lambda: self.out.track(name, rank=rank, description=description))

    def _vm(self, vm: int) -> int:
        name = f"VM {_id(vm)}"
        return self._track(("vm", vm), lambda: self.out.track(name, rank=10 + vm))

    def _its(self, vm: int, its: int) -> int:
        base = self.obs.itss.filter((pl.col("vm") == vm) & (pl.col("its") == its))["base_gpa"].to_list()
        at = f" at {hexa(base[0])}" if base and base[0] is not None else ""
        name = f"ITS {_id(its)}{at}"
        return self._track(("its", vm, its), lambda: self.out.track(name, self._vm(vm), rank=its))

    def _vcpu(self, vm: int, vcpu: int, lane: int = 0) -> int:
        pids = self.obs.vcpus.filter((pl.col("vm") == vm) & (pl.col("vcpu") == vcpu))["pid"].to_list()
        task = f" (task {', '.join(map(str, pids))})" if pids else ""
        name = f"vCPU {_id(vcpu)}{task}"
        return self._track(
            ("vcpu", vm, vcpu, lane), lambda: self.out.track(name, self._vm(vm), rank=1000 + vcpu)
        )

    def _list_register(self, vm: int, vcpu: int, lr: int, lane: int) -> int:
        return self._track(
            ("lr", vm, vcpu, lr, lane),
            lambda: self.out.track(f"LR {_id(lr)}", self._vcpu(vm, vcpu), rank=lr),
        )

    def _lpi(self, vm: int, intid: int, lane: int = 0) -> int:
        def make() -> int:
            lpis = self._track(("lpis", vm), lambda: self.out.track("LPIs", self._vm(vm), rank=1_000_000))
            return self.out.track(f"LPI {intid}", lpis, rank=intid)

        return self._track(("lpi", vm, intid, lane), make)

    def _track(self, key: Hashable, make: Callable[[], int]) -> int:
        if key not in self._tracks:
            self._tracks[key] = make()
        return self._tracks[key]

    def _on(self, rows: pl.DataFrame, keys: Sequence[str], track: Callable[..., int]) -> pl.DataFrame:
        """The rows with the `_track` of their keys (and of `_lane`, where they have one), in order of track."""
        keys = [*keys, *(["_lane"] if "_lane" in rows.columns else [])]
        known = [f"_{key}" if key != "_lane" else key for key in keys]
        rows = rows.with_columns(
            pl.col(key).cast(pl.Int64).fill_null(_NONE).alias(name)
            for key, name in zip(keys, known, strict=True)
        )
        found = rows.select(known).unique().sort(known)
        tracks = pl.Series("_track", [track(*key) for key in found.iter_rows()], dtype=pl.UInt64)
        return rows.join(found.with_columns(tracks), on=known, how="left", maintain_order="left").drop(known)

    # Slices.

    def _closed(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows (`vm`, `_begin`, `_end`) whose every slice has an end, and a `note` where that is not the recorded one."""
        ends = {vm: end for vm, end in self.obs.vms.select("vm", "end_ns").iter_rows() if end is not None}
        last = pl.lit(self.end_ns)
        if ends:
            last = pl.col("vm").replace_strict(ends, default=self.end_ns, return_dtype=pl.Int64)
        note = (
            pl.when(pl.col("_end").is_null())
            .then(pl.lit(_OPEN))
            .when(pl.col("_end") < pl.col("_begin"))
            .then(pl.lit(_BACKWARDS))
        )
        return rows.with_columns(
            _end=pl.max_horizontal("_begin", pl.coalesce("_end", last)),
            note=pl.coalesce("note", note) if "note" in rows.columns else note,
        )

    def _slices(self, rows: pl.DataFrame, keys: Sequence[str], track: Callable[..., int]) -> None:
        """Write slices, on as many tracks for each combination of the keys as they need in order not to overlap."""
        rows = _lanes(self._closed(rows), keys)
        rows = self._on(rows, keys, track).sort("_track", "_begin", maintain_order=True)
        self.out.slices(rows.drop("vm"))

    # What is on the tracks.

    def _capture(self) -> None:
        info = self.analysis.info
        args: dict[str, Value] = {
            "path": str(info.path),
            "format": info.format,
            "kernel": info.kernel,
            "clock": info.clock or "not known",
            "events": int(self.analysis.counts["records"].sum()),
            "damage": [damage.problem for damage in self.analysis.damage],
            "notes": list(info.notes),
            "written by": f"itstrace {__version__}",
        }
        self.out.slice(
            self._root("Capture", 0), self.start_ns, self.end_ns, info.path.name or "capture", args
        )

    def _findings(self) -> None:
        findings = self.analysis.findings
        track = self._root("Findings", 1, "What itstrace found. Under it each finding with its evidence.")
        for finding in sorted(findings, key=self._time):
            self.out.instant(track, self._time(finding), f"{finding.code} {finding.name}", _told(finding))
        for rank, finding in enumerate(findings):
            if finding.end_ns is None and not finding.evidence:
                continue
            label = f"{finding.id or finding.code} {finding.name}"
            own = self.out.track(label, track, rank=rank)
            begin = self._time(finding)
            if finding.end_ns is not None and finding.end_ns >= begin:
                self.out.slice(
                    own, begin, finding.end_ns, label, {"message": finding.message, "count": finding.count}
                )
            for item in sorted(finding.evidence, key=lambda one: one.time_ns):
                self.out.instant(
                    own, item.time_ns, item.event, {"text": item.text, "cpu": item.cpu, "seq": item.seq}
                )

    def _time(self, finding: Finding) -> int:
        return self.start_ns if finding.time_ns is None else finding.time_ns

    def _gaps(self) -> None:
        gaps = self.analysis.gaps
        if gaps.is_empty():
            return
        parent = self._root("Lost records", 2, "From the last record before a loss to the first after it.")
        rows = gaps.select(
            "cpu",
            vm=pl.lit(None, dtype=pl.UInt16),
            _name=pl.lit("records lost"),
            _begin=pl.coalesce("from_ns", pl.lit(self.start_ns)),
            _end="to_ns",
            lost="lost",
            note=pl.when(pl.col("lost").is_null()).then(pl.lit("the kernel did not count how many")),
        )

        def track(cpu: int, lane: int) -> int:
            return self._track(
                ("cpu", cpu, lane), lambda: self.out.track(f"CPU {_id(cpu)}", parent, rank=cpu)
            )

        self._slices(rows, ["cpu"], track)

    def _markers(self) -> None:
        if self.obs.markers.height:
            track = self._root("Markers", 3)
            rows = self.obs.markers.select("seq", "cpu", "pid", _name="text", _begin="time_ns")
            rows = rows.with_columns(pl.col("_name").fill_null(""), _track=pl.lit(track, dtype=pl.UInt64))
            self.out.instants(rows.sort("_begin", maintain_order=True))

    def _vms(self) -> None:
        rows = self.obs.vms.select(
            "vm",
            pl.col("kvm").alias("struct kvm#"),
            pl.col("complete").alias("begins within the capture"),
            _name=pl.format("VM {}", "vm"),
            _begin=pl.when("complete").then("start_ns").fill_null(self.start_ns),
            _end="end_ns",
            model=pl.col("vm").replace_strict(
                self.analysis.history.profiles, default=None, return_dtype=pl.String
            ),
        )
        self._slices(rows.with_columns(number="vm"), ["number"], lambda vm, _lane: self._vm(vm))

    def _commands(self) -> None:
        rows = command_rows(self.analysis)
        wrong = pl.col("verdict").is_not_null() & (pl.col("verdict") != "ok")
        text = pl.col("text").fill_null("command")
        rows = rows.sort("seq").select(
            "vm",
            "its",
            "seq",
            "opcode",
            "verdict",
            "fault",
            "detail",
            pl.col("slot").alias("slot#"),
            *(pl.col(f"dw{word}").alias(f"dw{word}#") for word in range(4)),
            "readable",
            "cpu",
            "pid",
            _name=pl.when(wrong).then(pl.format("{} [{}]", text, "verdict")).otherwise(text),
            _begin="time_ns",
            _end="end_ns",
            **{"commands before it were lost": pl.when("lost_before").then("lost_before")},
        )

        def track(vm: int, its: int, lane: int) -> int:
            return self._track(
                ("commands", vm, its, lane), lambda: self.out.track("commands", self._its(vm, its))
            )

        self._slices(rows, ["vm", "its"], track)

    def _rates(self) -> None:
        """How many MSIs each ITS was offered, over equal parts of the capture."""
        part = max(1, -(-(self.end_ns - self.start_ns) // _PARTS))
        counted = (
            self.obs.injections.select("vm", "its", part=(pl.col("time_ns") - self.start_ns).clip(0) // part)
            .group_by("vm", "its", "part")
            .agg(count=pl.len())
        )
        # A part without MSIs behind one that has some brings the rate down to 0.
        after = counted.with_columns(pl.col("part") + 1, count=pl.lit(0, dtype=pl.UInt32))
        counted = pl.concat([counted, after]).group_by("vm", "its", "part").agg(pl.col("count").sum())
        rows = counted.select(
            "vm",
            "its",
            _begin=self.start_ns + pl.col("part") * part,
            _value=(pl.col("count").cast(pl.Float64) * _NS / part).round().cast(pl.Int64),
        )

        def track(vm: int, its: int) -> int:
            about = f"Mean over {part:,} ns from each value on"
            return self.out.track("MSI rate", self._its(vm, its), rank=1, description=about, unit="MSI/s")

        self.out.values(self._on(rows, ["vm", "its"], track).sort("_track", "_begin"))

    def _runs(self) -> None:
        rows = self.obs.runs.frame().sort("vm", "vcpu", "enter_seq")
        last = pl.col("enter_seq") == pl.col("enter_seq").last().over("vm", "vcpu")
        lost = pl.col("exit_ns").is_null() & ~last
        rows = rows.select(
            "vm",
            "vcpu",
            _name=pl.lit("in guest"),
            _begin="enter_ns",
            _end=pl.when(lost).then("enter_ns").otherwise("exit_ns"),
            seq="enter_seq",
            note=pl.when(lost).then(pl.lit(_NO_EXIT)),
        )
        self._slices(rows, ["vm", "vcpu"], self._vcpu)

    def _vm_events(self) -> None:
        rows = self.obs.vm_events.select(
            "vm",
            "vcpu",
            "its",
            "seq",
            pl.col("intid").alias("LPI"),
            "cpu",
            "pid",
            _name="what",
            _begin="time_ns",
        )

        def track(vm: int, vcpu: int, its: int) -> int:
            return (
                self._vcpu(vm, vcpu)
                if vcpu != _NONE
                else self._its(vm, its)
                if its != _NONE
                else self._vm(vm)
            )

        rows = self._on(rows, ["vm", "vcpu", "its"], track).drop("vm", "vcpu", "its")
        self.out.instants(rows.sort("_track", "_begin", "seq"))

    def _invalidations(self) -> None:
        """Where KVM dropped the translations that it had cached: at its ITS, or at the VM if it was not told which."""
        rows = self.obs.invalidations.select(
            "vm", "its", "seq", "cpu", "pid", _name=pl.lit("translation cache dropped"), _begin="time_ns"
        )

        def track(vm: int, its: int) -> int:
            return self._its(vm, its) if its != _NONE else self._vm(vm)

        rows = self._on(rows, ["vm", "its"], track).drop("vm", "its")
        self.out.instants(rows.sort("_track", "_begin", "seq"))

    def _retargets(self) -> None:
        vcpu = pl.col("vcpu").cast(pl.String)
        rows = self.obs.retargets.select(
            "vm",
            "intid",
            "seq",
            "cpu",
            "pid",
            pl.col("vcpu").alias("vCPU"),
            _name=pl.coalesce(
                pl.format("moved to vCPU {}", vcpu), pl.lit("moved, where to was not recorded")
            ),
            _begin="time_ns",
        )
        self._about_lpis(rows)

    def _configs(self) -> None:
        """Each time that KVM read an LPI's property byte."""
        on = (
            pl.when(pl.col("enabled"))
            .then(pl.lit("enabled"))
            .when(~pl.col("enabled"))
            .then(pl.lit("disabled"))
            .otherwise(pl.lit("?"))
        )
        rows = self.obs.configs.select(
            "vm",
            "intid",
            "seq",
            "priority",
            "result",
            "cpu",
            "pid",
            _name=pl.format("configuration read: {}", on),
            _begin="time_ns",
        )
        self._about_lpis(rows)

    def _about_lpis(self, rows: pl.DataFrame) -> None:
        rows = self._on(rows, ["vm", "intid"], self._lpi).drop("vm", "intid")
        self.out.instants(rows.sort("_track", "_begin", "seq"))

    def _msis(self) -> None:
        lives = self.analysis.lives.lives.select(
            "outcome", "queued_vcpu", "filled_ns", "retired_ns", "refills", "moves", seq="injected_seq"
        )
        rows = self.obs.injections.join(lives, on="seq", how="left", maintain_order="left")
        rows = rows.select(
            "vm",
            "its",
            "intid",
            "seq",
            pl.col("device_id").alias("DeviceID#"),
            pl.col("event_id").alias("EventID"),
            pl.col("intid").alias("LPI"),
            "result",
            "outcome",
            pl.col("queued_vcpu").alias("queued on vCPU"),
            (pl.col("filled_ns") - pl.col("time_ns")).alias("ns to list register"),
            (pl.col("retired_ns") - pl.col("time_ns")).alias("ns until it was taken"),
            "refills",
            "moves",
            "cpu",
            "pid",
            _name=pl.format(
                "{} {}",
                pl.when(pl.col("from_command").is_null()).then(pl.lit("MSI")).otherwise(pl.lit("INT")),
                pl.col("outcome").fill_null("unknown"),
            ),
            _begin="time_ns",
            _flow=pl.when(pl.col("queue_seq").is_not_null()).then(_flow("seq")),
            **{
                "resolved by": pl.when("cached")
                .then(pl.lit("the translation cache"))
                .when(~pl.col("cached"))
                .then(pl.lit("the tables")),
                "seq of the INT command": pl.col("from_command"),
            },
        )

        def track(vm: int, its: int, intid: int) -> int:
            if intid != _NONE:
                return self._lpi(vm, intid)
            return self._track(
                ("no lpi", vm, its), lambda: self.out.track("MSIs of no LPI", self._its(vm, its), rank=2)
            )

        rows = self._on(rows, ["vm", "its", "intid"], track).drop("vm", "its", "intid")
        self.out.instants(rows.sort("_track", "_begin", "seq"))

    def _queueings(self) -> None:
        flows = (
            self.obs.injections.drop_nulls("queue_seq")
            .sort("seq")
            .unique("queue_seq", keep="first")
            .select(_flow=_flow("seq"), seq="queue_seq")
        )
        vcpu = pl.coalesce("owner_vcpu", "target_vcpu").cast(pl.String).fill_null("?")
        rows = self.obs.queueings.join(flows, on="seq", how="left", maintain_order="left")
        rows = rows.select(
            "vm",
            "intid",
            "seq",
            "cause",
            pl.col("target_vcpu").alias("target vCPU"),
            pl.col("owner_vcpu").alias("on the list of vCPU"),
            "pending",
            "enabled",
            "active",
            "cpu",
            "pid",
            "_flow",
            _name=pl.format("queue for vCPU {} ({})", vcpu, pl.col("cause").fill_null("?")),
            _begin="time_ns",
        )
        self._about_lpis(rows)

    def _fills(self) -> None:
        """Each list register, with what was in it: where a flow ends."""
        chains = self.analysis.lives.fills.select("vm", "intid", "chain", "seq")
        carried = self.analysis.lives.lives.drop_nulls("filled_seq").select(
            _flow=_flow("injected_seq"), seq="filled_seq"
        )
        first = chains.join(carried.unique("seq", keep="first"), on="seq")
        flows = chains.join(first.drop("seq"), on=["vm", "intid", "chain"]).select("seq", "_flow")
        state = pl.col("state").replace_strict(_STATES, default=None, return_dtype=pl.String)
        rows = self.obs.fills.join(flows, on="seq", how="left", maintain_order="left")
        rows = rows.select(
            "vm",
            "vcpu",
            "lr",
            "seq",
            pl.col("intid").alias("LPI"),
            "pending",
            "active",
            "enabled",
            pl.col("target_vcpu").alias("target vCPU"),
            pl.col("ended_by").alias("ended by"),
            "cpu",
            "pid",
            "_flow",
            _name=pl.format("LPI {}", "intid"),
            _begin="time_ns",
            _end="end_ns",
            **{
                "read back as": pl.coalesce(state, pl.lit("never read back")),
                "latch still set": pl.col("latch_kept"),
            },
        )
        self._slices(rows.sort("seq"), ["vm", "vcpu", "lr"], self._list_register)

    def _pending(self) -> None:
        where = (
            pl.when(pl.col("where") == "queued")
            .then(pl.lit("queued on vCPU {}"))
            .otherwise(pl.lit("in a list register of vCPU {}"))
        )
        vcpu = pl.col("vcpu").cast(pl.String).fill_null("?")
        rows = self.analysis.lives.pending.sort("from_seq").select(
            "vm",
            "intid",
            "vcpu",
            _name=where.str.replace("{}", vcpu, literal=True),
            _begin=pl.coalesce("from_ns", pl.lit(self.start_ns)),
            _end="to_ns",
            seq="from_seq",
        )
        rows = rows.with_columns(pl.col("vcpu").alias("vCPU")).drop("vcpu")
        self._slices(rows, ["vm", "intid"], self._lpi)


def _flow(seq: str) -> pl.Expr:
    """The id of an MSI's flow; 0 is none."""
    return pl.col(seq) + 1


def _id(value: int) -> str:
    return "?" if value == _NONE else str(value)


def _lanes(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The rows with a `_lane`: slices of the same keys and lane do not overlap. Most need one lane only."""
    rows = rows.with_row_index("_row").sort(*keys, "_begin", maintain_order=True)
    behind = pl.col("_end").cum_max().shift(1).over(keys)
    crowded = (pl.col("_begin") < behind).fill_null(value=False).any().over(keys)
    rows = rows.with_columns(_crowded=crowded, _lane=pl.lit(0, dtype=pl.UInt32))
    some = rows.filter("_crowded")
    if some.height:
        lanes: list[int] = []
        ends: dict[Any, list[int]] = {}
        for *key, begin, end in some.select(*keys, "_begin", "_end").iter_rows():
            own = ends.setdefault(tuple(key), [])
            lane = next((at for at, last in enumerate(own) if last <= begin), len(own))
            own[lane : lane + 1] = [end]
            lanes.append(lane)
        rows = pl.concat(
            [rows.filter(~pl.col("_crowded")), some.with_columns(_lane=pl.Series(lanes, dtype=pl.UInt32))]
        )
    return rows.sort("_row").drop("_row", "_crowded")


def _told(finding: Finding) -> dict[str, Value]:
    """A finding as arguments."""
    return {
        "id": finding.id,
        "severity": str(finding.severity),
        "kind": str(finding.kind),
        "confidence": str(finding.confidence),
        "message": finding.message,
        "advice": finding.advice,
        "evidence": [
            f"{seconds(item.time_ns, 9)} [{item.cpu:03d}] {item.event}: {item.text}"
            for item in finding.evidence
        ],
        "when": "of no one moment: shown at the start" if finding.time_ns is None else None,
        "count": finding.count,
        "VM": finding.vm,
        "ITS": finding.its,
        "DeviceID": None if finding.device_id is None else Hex(finding.device_id),
        "EventID": finding.event_id,
        "LPI": finding.intid,
        "vCPUs": ", ".join(map(str, finding.vcpus)),
        "subjects": plural(len(finding.subjects), "subject") if len(finding.subjects) > 1 else None,
        "mechanism": finding.mechanism,
        "worst": finding.worst,
        "guest saw": finding.guest_saw,
        "doubt": finding.doubt,
        "capture next": finding.capture_next,
        "suspect": list(finding.suspect),
        "known bugs": [known_bug(bug) for bug in finding.known_bugs],
        "caused by": ", ".join(finding.caused_by),
        "leads to": ", ".join(finding.leads_to),
    }
