"""Which probe an event is by its function's name, from descriptions as binary captures and text give them."""

from __future__ import annotations

import tomllib

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itstrace.observe.catalogue import PROBES, Place
from itstrace.observe.matching import BUILT_IN, Catalogue, How
from itstrace.observe.recognise import standing
from itstrace.observe.strangers import Stranger, events_file, strangers
from itstrace.readers.base import EventField, EventFormat

ENTRY, RETURN = "__probe_ip", "__probe_func __probe_ret_ip"
READ = "gpa len dw0 dw1 dw2 dw3 ret"
PROCESS = "kvm its cbaser creadr cwriter"

#: As a binary capture has them; text has all numbers in 64 bits, those that are printed in hex unsigned.
_DTYPES: dict[int, pl.DataType] = {4: pl.Int32(), 8: pl.UInt64(), 64: pl.Int64()}


def _field(name: str, size_bytes: int = 8) -> EventField:
    bare, _, count = name.removesuffix("]").partition("[")
    dtype: pl.DataType = pl.Array(pl.UInt64(), int(count)) if count else _DTYPES[size_bytes]
    return EventField(
        bare, f"u64[{count}]" if count else "u64", 0, size_bytes * int(count or 1), signed=False, dtype=dtype
    )


def event(full_name: str, fields: str) -> EventFormat:
    """An event; `vcpu:4` is a field of four bytes, `dw[4]` an array."""
    system, _, name = full_name.rpartition(":")
    words = [word.partition(":") for word in fields.split()]
    made = [_field(each, int(size or 8)) for each, _, size in words]
    return EventFormat(1, system, name, tuple(made), "")


@pytest.mark.parametrize(
    ("name", "fields", "probe"),
    [
        ("kprobes:p_vgic_its_process_commands_0", f"{ENTRY} {PROCESS}", "process"),
        ("kprobes:r_vgic_its_process_commands_0", f"{RETURN} its", "process_end"),
        ("kprobes:p_vgic_its_process_commands_228", f"{ENTRY} its creadr dw0 dw1 dw2 dw3", "command"),
        ("kprobes:p_vgic_its_process_commands_228", f"{ENTRY} {PROCESS}", None),
        ("probe:vgic_its_process_commands", f"{ENTRY} {PROCESS}", "process"),
        ("probe:vgic_its_process_commands", f"{ENTRY} its creadr dw0 dw1 dw2 dw3", "command"),
        ("probe:vgic_its_process_commands_1", f"{ENTRY} {PROCESS}", "process"),
        ("probe:vgic_its_process_commands__return", f"{RETURN} its", "process_end"),
        ("probe:vgic_its_process_commands_L20", f"{ENTRY} {PROCESS}", None),
        # The reads of a command are read when the function returns, and not before.
        ("kprobes:r_kvm_read_guest_0", f"{RETURN} {READ}", "guest_read"),
        ("kprobes:p_kvm_read_guest_0", f"{ENTRY} {READ}", "guest_read_begin"),
        ("kprobes:r_kvm_read_guest_0", f"{RETURN} gpa len ret", None),
        ("kprobes:r_vgic_its_invalidate_cache_0", RETURN, "invalidate_end"),
        ("kprobes:p_vgic_its_invalidate_cache_0", f"{ENTRY} its", "invalidate"),
        ("kprobes:r_kvm_read_guest_0", f"{RETURN} gpa len w0 w1 w2 w3", "guest_read"),
        ("kprobes:r_kvm_read_guest_0", f"{RETURN} gpa len cmd[4]", "guest_read"),
        ("kprobes:r_kvm_read_guest_0", f"{RETURN} gpa len cmd[3]", None),
        ("kprobes:r_kvm_read_guest_page_0", f"{RETURN} {READ}", None),
        # What the kernel says of an event outweighs its name.
        ("mine:kvm_read_guest_entry", f"{RETURN} {READ}", "guest_read"),
        # A probe at the end of a function, where a return probe cannot fetch what it needs.
        ("mine:update_lpi_config_ret", f"{ENTRY} intid:4 enabled:4", "config_end"),
        ("mine:update_lpi_config", f"{ENTRY} intid:4 enabled:4", "config"),
        ("kprobes:p_update_affinity_isra_0_0", f"{ENTRY} intid:4", "affinity"),
        ("kprobes:p_vgic_queue_irq_unlock_part_0_0", f"{ENTRY} intid:4 pend en act tgt:4 vcpup", "queue"),
        ("kprobes:r_vgic_queue_irq_unlock_0", f"{RETURN} intid:4 pend en act tgt:4 vcpup", None),
        # $arg* gives the vcpu itself, which is no number.
        ("fprobes:vgic_flush_pending_lpis__entry", f"{ENTRY} vcpu", None),
        ("fprobes:vgic_flush_pending_lpis__entry", f"{ENTRY} vcpu vcpu_id:4", "flush_lpis"),
        ("fprobes:vgic_flush_pending_lpis__entry", f"{ENTRY} vcpu:4", "flush_lpis"),
        # Values without names are the function's parameters, if there are just so many.
        ("kprobes:p_vgic_its_trigger_msi_0", f"{ENTRY} arg1 arg2 arg3 arg4", "trigger"),
        ("kprobes:p_vgic_its_trigger_msi_0", f"{ENTRY} arg1 arg2 arg3", None),
        ("kprobes:p_vgic_its_trigger_msi_0", f"{ENTRY} arg2 arg3 arg4 arg5", None),
        ("kprobes:r_vgic_its_inject_msi_0", f"{RETURN} arg1", "msi_end"),
        ("kprobes:r_vgic_its_inject_msi_0", f"{RETURN} retval:4", "msi_end"),
        ("kprobes:r_vgic_its_inject_msi_0", f"{RETURN} arg1 arg2", None),
        # Text without groups, and without a word of where an event stands but its name and what it has.
        ("kvm_read_guest", READ, "guest_read"),
        ("kvm_read_guest", "gpa len", "guest_read_begin"),
        ("kvm_read_guest_ret", READ, "guest_read"),
        ("vgic_its_process_commands", PROCESS, "process"),
        ("vgic_its_process_commands", "its creadr cwriter", None),
        ("vgic_its_process_commands_return", "its creadr cwriter", "process_end"),
        ("vgic_its_inject_msi", "lo hi data devid", "msi"),
        ("vgic_its_inject_msi", "ret", "msi_end"),
        ("p_vgic_v3_fold_lr_state_0", "vcpu:64 used:64 lr0 lr1", "fold"),
        ("p_vgic_its_process_commands_0", PROCESS, "process"),
        ("r_vgic_its_process_commands_0", "", "process_end"),
        # Not of this world.
        ("kprobes:p_vfs_read_0", f"{ENTRY} {PROCESS}", None),
        ("kprobes:p_my_vgic_its_process_commands_0", f"{ENTRY} {PROCESS}", None),
        ("kvm:vgic_update_irq_pending", "vcpu_id irq level", None),
    ],
)  # fmt: skip
def test_an_event_is_the_probe_of_its_function_and_place(name: str, fields: str, probe: str | None) -> None:
    matches = BUILT_IN.matches(event(name, fields))

    assert [match.probe.name for match in matches] == ([] if probe is None else [probe])
    assert all(match.how is How.FUNCTION for match in matches)


def test_unnamed_values_stand_for_the_function_s_parameters() -> None:
    (match,) = BUILT_IN.matches(event("kprobes:p_vgic_its_trigger_msi_0", f"{ENTRY} arg1 arg2 arg3 arg4"))

    assert {column: str(source) for column, source in match.sources.items()} == {
        "its": "arg2", "device_id": "arg3", "event_id": "arg4",
    }  # fmt: skip


def test_our_own_names_come_before_those_of_functions() -> None:
    """Of two events for one probe the one that our own definition names is the better."""
    found = BUILT_IN.find(
        {
            e.full_name: e
            for e in (event("kprobes:r_kvm_read_guest_0", f"{RETURN} {READ}"), event("its:its_cmd", READ))
        }
    )

    assert [(m.event, m.how) for m in found["guest_read"]] == [
        ("its:its_cmd", How.NAME), ("kprobes:r_kvm_read_guest_0", How.FUNCTION),
    ]  # fmt: skip


def test_the_table_of_probes_is_sound() -> None:
    """Every name leads to one probe, and every function and place to one too."""
    names = [name for probe in PROBES.values() for name in probe.events]
    places = [
        (probe.function, probe.place) for probe in PROBES.values() if probe.place is not Place.TRACEPOINT
    ]

    assert len(names) == len(set(names))
    assert len(places) == len(set(places))
    for probe in PROBES.values():
        for column in probe.columns:
            assert len(column.fields) == len(set(column.fields))
            assert not (column.required and column.expected)


@given(
    st.text(alphabet="pr_0123456789kvm_readguestisra.part__L", max_size=60),
    st.sampled_from([ENTRY, RETURN, ""]),
)
def test_any_name_is_a_function_s_or_not(name: str, fields: str) -> None:
    found = standing(event(name.replace(":", ""), fields))

    assert found is None or found.function in name


@pytest.mark.parametrize(
    ("name", "fields", "probe"),
    [
        ("its:its_read", f"{ENTRY} kvm gpa len", "guest_read_begin"),
        ("its:its_inval_cache_ret", f"{RETURN} its", "invalidate_end"),
    ],
)
def test_events_of_our_own_names_are_their_probes(name: str, fields: str, probe: str) -> None:
    found = Catalogue().matches(event(name, fields))

    assert [(one.probe.name, one.how) for one in found] == [(probe, How.NAME)]


def test_what_looks_useful_and_feeds_nothing_is_told_why() -> None:
    formats = {
        e.full_name: e
        for e in (
            event("its:its_cmd", f"{RETURN} kvm gpa size w0 w1 w2"),
            event("kprobes:p_vgic_its_resolve_lpi_0", f"{ENTRY} kvm"),
            event("mine:cmds", f"{RETURN} address {READ}"),
            event("mine:fold_lr2", f"{ENTRY} vcpu:4 n a b c"),
            event("its:mapi_ret", f"{RETURN} ret"),
            event("mine:gic_thing", "a"),
            event("fprobes:vgic_enable_lpis__entry", f"{ENTRY} vcpu"),
            event("its:lpi_config_ret", f"{RETURN} intid[2] enabled"),
            event("kvm:vgic_update_irq_pending", "vcpu_id irq level"),
            event("kvm:kvm_mmio", "gpa val"),
            event("kvm:kvm_entry", "vcpu_pc"),
            event("block:block_bio_bits", "its lpi"),
            event("probe_libc:malloc", f"{ENTRY} arg1"),
            event("uprobes:p_its_0", f"{ENTRY} arg1"),
            event("its:its_process_ret", "its"),
            event("mine:other", f"{ENTRY} vcpu:4 n"),
        )
    }
    found = {one.event: one for one in strangers(formats, Catalogue())}

    assert {name: one.why for name, one in found.items()} == {
        "its:its_cmd": "guest_read by name, but no field gives dw3 (looked for dw3, w3, word3, cmd3, ...); "
        "record it with that",
        "kprobes:p_vgic_its_resolve_lpi_0": "it stands at the entry of vgic_its_resolve_lpi, where itstrace reads nothing",
        "mine:cmds": "its fields are like guest_read (kvm_read_guest, return)",
        "mine:fold_lr2": "its name is like fold (vgic_v3_fold_lr_state), but no field gives used, lr0",
        "fprobes:vgic_enable_lpis__entry": "enable_lpis by function name, but no field gives vcpu "
        "(vcpu, a u64, may be a pointer)",
        "its:lpi_config_ret": "config_end by name, but no field gives intid (intid, a u64[2], is no number)",
        "its:mapi_ret": "nothing in the name or the fields says what was recorded",
        "mine:other": "nothing in the name or the fields says what was recorded",
        "mine:gic_thing": "nothing in the name or the fields says what was recorded",
    }  # fmt: skip
    assert events_file(found.values()).splitlines() == [
        "[guest_read]  # kvm_read_guest, return",
        'events = ["mine:cmds"]',
        "",
        "[config_end]  # update_lpi_config, return",
        'events = ["its:lpi_config_ret"]',
        'fields.intid = "FIELD"',
        "# its other fields: intid",
        "",
        "[fold]  # vgic_v3_fold_lr_state",
        'events = ["mine:fold_lr2"]',
        'fields.used = "FIELD"',
        'fields.lr0 = "FIELD"',
        "# its other fields: n, a, b, c",
        "",
        "[enable_lpis]  # vgic_enable_lpis",
        'events = ["fprobes:vgic_enable_lpis__entry"]',
        'fields.vcpu = "FIELD"',
        "# its other fields: vcpu",
    ]


def test_events_that_come_near_one_probe_are_an_array_of_tables() -> None:
    formats = {
        e.full_name: e
        for e in (event("a:its_cmd", f"{RETURN} x {READ[4:]}"), event("b:its_cmd", f"{RETURN} y len"))
    }
    text = events_file(strangers(formats, Catalogue()))

    assert text.count("[[guest_read]]") == 2
    assert text.count('fields.gpa = "FIELD"') == 2


def test_a_hostile_name_stays_a_string() -> None:
    name = 'its:a"\nb\\\u202e'
    one = Stranger(name, "", "guest_read", (), ())

    assert tomllib.loads(events_file([one])) == {"guest_read": {"events": [name]}}
