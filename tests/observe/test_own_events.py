"""Captures whose events go by other names tell the same: by a file, or where the names are those of functions."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.renamed import Edit, rename, renames
from hypothesis import given
from hypothesis import strategies as st

from itstrace import Analysis, UsageError, analyze
from itstrace.errors import NothingToAnalyzeError
from itstrace.gic.commands import decode
from itstrace.observe import PROBES, How, load_events
from itstrace.observe.catalogue import Place, Probe
from itstrace.observe.collect import collect
from itstrace.readers import open_capture

if TYPE_CHECKING:
    from collections.abc import Callable

DOUBLE = SAMPLES / "6.12-double-delivery.dat"
GUIDE = Path(__file__).parents[2] / "docs" / "events.md"
#: Of the function itself; the build's own offset of the probe within the loop.
_OFFSETS = {Place.INSIDE: 228}


def _kprobe(probe: Probe, number: int) -> str:
    kind = "r" if probe.place is Place.RETURN else "p"
    part = "_part_0" if number else ""
    return f"kprobes:{kind}_{probe.function}{part}_{_OFFSETS.get(probe.place, 0)}"


def _perf(probe: Probe, number: int) -> str:
    ends = {Place.RETURN: "__return", Place.INSIDE: "_L22"}.get(probe.place, "")
    return f"probe:{probe.function}{ends}" + (f"_{number}" if number else "")


def _fprobe(probe: Probe, number: int) -> str:
    ends = {Place.RETURN: "exit", Place.ENTRY: "entry"}.get(probe.place)
    return f"fprobes:{probe.function}__{ends}" if ends and not number else _kprobe(probe, number)


def _plain(probe: Probe, number: int) -> str:
    """Names without a word of where: the capture's description says which is a return."""
    ends = {Place.RETURN: "_ret", Place.INSIDE: "_inside"}.get(probe.place, "")
    return f"mine:{probe.function}{'_isra_0' if number else ends}"


def _named(name: Callable[[Probe, int], str]) -> dict[str, str]:
    return {
        event: name(probe, number)
        for probe in PROBES.values()
        if probe.place is not Place.TRACEPOINT
        for number, event in enumerate(probe.events)
    }


def _tells_the_same(one: Analysis, other: Analysis) -> None:
    assert [(f.code, f.message) for f in one.findings] == [(f.code, f.message) for f in other.findings]
    assert one.lives.lives.equals(other.lives.lives)
    assert one.history.mappings.equals(other.history.mappings)
    assert one.history.collections.equals(other.history.collections)
    assert one.observations.commands.equals(other.observations.commands)
    assert one.observations.fed_by.keys() == other.observations.fed_by.keys()
    assert one.skipped == other.skipped


@pytest.mark.parametrize("name", [_kprobe, _perf, _fprobe])
@pytest.mark.parametrize("sample", ["6.12-double-delivery.dat", "7.3-guest-mistakes.dat"])
def test_events_named_after_their_functions_need_no_file(
    sample: str, name: Callable[[Probe, int], str], tmp_path: Path
) -> None:
    path = rename(SAMPLES / sample, tmp_path / "renamed.dat", renames(_named(name)))
    analysis = analyze(path)

    _tells_the_same(analysis, analysis_of(SAMPLES / sample))
    # update_affinity is the name of both the function and our own event.
    named = {"enter", "exit", "marker", "affinity"}
    assert {p for p, how in analysis.observations.found_by.items() if how is not How.FUNCTION} <= named


def test_a_capture_of_6_1_whose_returns_stand_within_functions(tmp_path: Path) -> None:
    """On 6.1 some of the "returns" are probes at an offset, which only a name can say."""
    sample = SAMPLES / "6.1-stale-target.dat"
    path = rename(sample, tmp_path / "renamed.dat", renames(_named(_plain) | {"its_cmd_off": "its_cmd_off"}))

    _tells_the_same(analyze(path), analysis_of(sample))


def _as_text_has_it(edit: Edit) -> Edit:
    """Descriptions without what text does not tell: groups, and whether a probe stands at a return."""

    def edited(system: str, text: str) -> tuple[str, str]:
        _, text = edit(system, text)
        return "", re.sub(r"\tfield:unsigned long __probe_\w+;.*\n", "", text)

    return edited


def _function_and_place(probe: Probe, number: int) -> str:
    ends = {Place.RETURN: "_ret", Place.INSIDE: "_inside"}.get(probe.place, "")
    return f"{probe.function}{'_part_0' if number else ends}"


@pytest.mark.parametrize("name", [_kprobe, _function_and_place])
def test_names_alone_do_where_a_capture_tells_nothing_else(
    name: Callable[[Probe, int], str], tmp_path: Path
) -> None:
    names = {event: each.rpartition(":")[2] for event, each in _named(name).items()}
    names["its_cmd_off"] = "its_cmd_off" if name is _function_and_place else names["its_cmd_off"]
    analysis = analyze(rename(DOUBLE, tmp_path / "text.dat", _as_text_has_it(renames(names))))

    _tells_the_same(analysis, analysis_of(DOUBLE))
    assert ":" not in "".join(
        analysis.observations.fed_by[probe] for probe in ("process", "guest_read", "enter")
    )


_OTHER_FIELDS = {
    "its_cmd": {"gpa": "address", "dw0": "words0", "dw1": "words1", "dw2": "words2", "dw3": "words3"},
    "its_process": {"its": "its_ptr", "creadr": "rd", "cwriter": "wr"},
    "queue_irq": {"tgt": "to"},
}


def _words_in_an_array(system: str, text: str) -> tuple[str, str]:
    """Make one array of four fields that stand one behind the other."""
    first = re.search(r"\tfield:u64 words0;\toffset:(\d+);\tsize:8;\tsigned:0;\n", text)
    if first is None:
        return system, text
    array = f"\tfield:u64 words[4];\toffset:{first[1]};\tsize:32;\tsigned:0;\n"
    return system, re.sub(r"\tfield:u64 words[123];.*\n", "", text.replace(first[0], array))


def _as_in_the_guide(path: Path, also: dict[str, str] | None = None) -> Path:
    edit = renames({"its_cmd": "mine:cmd", "its_process": "its_run"} | (also or {}), _OTHER_FIELDS)
    return rename(DOUBLE, path, lambda system, text: _words_in_an_array(*edit(system, text)))


def _guide(path: Path) -> Path:
    (example,) = re.findall(
        r"^```toml\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    path.write_text(example, encoding="utf-8")
    return path


def test_the_guide_s_example_names_all_that_was_renamed(tmp_path: Path) -> None:
    path = _as_in_the_guide(tmp_path / "mine.dat")
    events = _guide(tmp_path / "mine.toml")
    as_it_stands = analyze(path, events=events)
    # Here the probe has no filter, and its length is recorded.
    events.write_text(events.read_text().replace("fields.len = 32", 'fields.len = "len"'))
    analysis = analyze(path, events=events)

    # As it stands, reads of a byte pass for reads of a command: no command follows them (ITS906), and no byte was read (ITS205).
    said = [finding.message for finding in as_it_stands.findings if finding.code not in ("ITS205", "ITS906")]
    assert said == [finding.message for finding in analysis.findings]
    _tells_the_same(analysis, analysis_of(DOUBLE))
    files = {probe for probe, how in analysis.observations.found_by.items() if how is How.FILE}
    assert files == {"guest_read", "process"}
    assert analysis.observations.fed_by["process"] == "its:its_run"
    assert analysis.observations.remarks == [
        "[process] old_its_run: the capture has no such event; there is its_run"
    ]


def test_without_its_file_such_a_capture_lacks_what_was_renamed(tmp_path: Path) -> None:
    analysis = analyze(_as_in_the_guide(tmp_path / "mine.dat"))

    assert {"guest_read", "process", "queue"}.isdisjoint(analysis.observations.fed_by)
    assert {name for rule in analysis.skipped for name in rule.missing} == {
        *("COMMANDS", "QUEUEINGS"),
        "INVALIDATION_ENDS",  # which nobody records
    }


def test_words_of_an_array_are_the_commands(tmp_path: Path) -> None:
    """With the probe inside the loop out of the way, the words come from the array alone."""
    path = _as_in_the_guide(tmp_path / "mine.dat", {"its_cmd_off": "its:other"})
    events = tmp_path / "mine.toml"
    events.write_text(_guide(events).read_text().replace("fields.len = 32", 'fields.len = "len"'))
    words = ["dw0", "dw1", "dw2", "dw3"]
    commands = analyze(path, events=str(events)).observations.commands

    assert commands.select(words).equals(analysis_of(DOUBLE).observations.commands.select(words))
    assert commands.height > 20
    assert {decode(row).name for row in commands.select(words).iter_rows()} >= {"MAPD", "MAPC", "MOVI"}


def test_a_constant_fills_its_column_and_is_no_evidence(tmp_path: Path) -> None:
    path = _as_in_the_guide(tmp_path / "mine.dat")
    with open_capture(path) as capture:
        raw = collect(capture, load_events(_guide(tmp_path / "mine.toml")))
    assert raw["guest_read"]["len"].unique().to_list() == [32]
    assert raw["guest_read"].schema["len"] == pl.UInt32

    observations = analyze(path, events=tmp_path / "mine.toml").observations
    (line,) = observations.lines([int(raw["guest_read"]["seq"][0])])["text"].to_list()
    assert re.fullmatch(r"kvm=0x\w+ address=0x\w+ words\[0\]=0x\w+ .* words\[3\]=0x\w+ ret=0", line)


def test_evidence_has_the_capture_s_own_names(tmp_path: Path) -> None:
    analysis = analyze(_as_in_the_guide(tmp_path / "mine.dat"), events=_guide(tmp_path / "mine.toml"))
    seqs = analysis.observations.queueings["seq"].to_list()[:1]
    (text,) = analysis.observations.lines(seqs)["text"].to_list()

    assert re.search(r" to=\d+ ", text)
    assert "tgt" not in text
    assert "target_vcpu" not in text


def test_the_built_in_table_is_a_file_of_events_too() -> None:
    table = Path(str(resources.files("itstrace.observe").joinpath("events.toml")))
    analysis = analyze(DOUBLE, events=table)

    _tells_the_same(analysis, analysis_of(DOUBLE))
    assert set(analysis.observations.found_by.values()) == {How.FILE}


def test_an_event_that_a_file_names_is_what_the_file_says_and_nothing_else(tmp_path: Path) -> None:
    events = tmp_path / "mine.toml"
    events.write_text('[inv_lpi]\nevents = ["its:lpi_config"]\n')
    observations = analyze(DOUBLE, events=events).observations

    assert observations.fed_by["inv_lpi"] == "its:lpi_config"
    assert "config" not in observations.fed_by


def test_tables_of_one_probe_are_tried_for_what_fits(tmp_path: Path) -> None:
    """One name with other fields on another host: the table that the event fits counts."""
    path = rename(DOUBLE, tmp_path / "mine.dat", renames({"fold_lr": "folded"}, {"fold_lr": {"used": "n"}}))
    events = tmp_path / "mine.toml"
    events.write_text(
        '[[fold]]\nevents = "folded"\nfields.used = "count"\n[[fold]]\nevents = "folded"\nfields.used = "n"\n'
    )
    analysis = analyze(path, events=events)

    _tells_the_same(analysis, analysis_of(DOUBLE))
    assert analysis.observations.remarks == []


def test_what_a_file_asks_for_in_vain_is_said(tmp_path: Path) -> None:
    events = tmp_path / "mine.toml"
    events.write_text('[fold]\nevents = ["vgic:fold_lrs", "kvm_exit"]\nfields.used = "n"\n')
    analysis = analyze(DOUBLE, events=events)

    assert analysis.observations.fed_by["fold"] == "vgic:fold_lr"
    first, second = analysis.observations.remarks
    assert first == "[fold] vgic:fold_lrs: the capture has no such event; there is vgic:fold_lr"
    assert second.startswith(
        "[fold] kvm:kvm_exit has no field for vcpu (looked for vcpu, vcpu_id), used (looked for n, "
    )


def test_nothing_to_analyze_says_what_the_file_lacks(tmp_path: Path) -> None:
    path = rename(
        DOUBLE,
        tmp_path / "strange.dat",
        lambda _, text: ("odd", re.sub(r"name: (\w+)", r"name: odd_\1", text)),
    )
    events = tmp_path / "mine.toml"
    events.write_text('[fold]\nevents = ["vgic:fold"]\n')

    with pytest.raises(NothingToAnalyzeError) as caught:
        analyze(path, events=events)
    assert caught.value.advice is not None
    assert f"{events}: [fold] vgic:fold: the capture has no such event" in caught.value.advice


@pytest.mark.parametrize(
    ("text", "problem", "advice"),
    [
        ("[guest_raed]\nevents = ['a']", "[guest_raed]: there is no such probe", "[guest_read]"),
        ("[its_cmd]\nevents = ['a']", "[its_cmd]: there is no such probe", "[guest_read], the probe of kvm_read_guest, return"),
        ("[commands]\nevents = ['a']", "[commands]: there is no such probe", "process, command, guest_read"),
        ("[zzzzzz]\nevents = ['a']", "[zzzzzz]: there is no such probe", "one of guest_read, command, "),
        ("guest_read = 3", "guest_read must be a table, not a number", "events = "),
        ("[[guest_read]]\nevents = ['a']\n[[guest_read]]\nevnts = 1", "[[guest_read]] number 2 evnts: ", "events"),
        ("[guest_read]\nlen = 'size'", "[guest_read] len: there is no such key", "fields.len"),
        ("[guest_read]", "[guest_read] says nothing", "events = "),
        ("[guest_read]\nevents = 7", "[guest_read] events must be a name or a list of names, not a number", "my_event"),
        ("[guest_read]\nevents = []", "[guest_read] events is empty", "my_event"),
        ("[guest_read]\nevents = ['a', true]", "[guest_read] events must hold names, not true", "my_event"),
        ("[guest_read]\nevents = ['a b']", "[guest_read] events: 'a b' is no name", "group:my_event"),
        ("[guest_read]\nfields = 'len'", "[guest_read] fields must be a table, not a text", "fields.len"),
        ("[guest_read]\nfields.length = 'len'", "fields.length: guest_read has no such column", "fields.len"),
        ("[trigger]\nfields.devid = 'dev'", "fields.devid: trigger has no such column", 'fields.device_id = "devid"'),
        ("[guest_read]\nfields.zzzz = 'len'", "fields.zzzz: guest_read has no such column", "one of kvm, gpa, len"),
        ("[enter]\nfields.vcpu = 'len'", "fields.vcpu: enter has no such column", "leave fields out"),
        ("[guest_read]\nfields.len = 1.5", "a list of names or a number, not a fraction", "size"),
        ("[guest_read]\nfields.len = true", "not true", "size"),
        ("[guest_read]\nfields.len = -1", "fields.len cannot be -1", "0 to 4294967295"),
        ("[guest_read]\nfields.ret = 0x80000000", "fields.ret cannot be 2147483648", "-2147483648 to 2147483647"),
        ("[marker]\nfields.text = 3", "fields.text is text and cannot be 3", '"buf"'),
        ("[guest_read]\nfields.len = 'a b'", "fields.len: 'a b' is no name", "words[0]"),
        ("[guest_read]\nfields.len = 'w[x]'", "fields.len: 'w[x]' is no name", "words[0]"),
        ("[guest_read]\nfields.len = {type = 'u64', names = ['a']}", "own table to say ('u32' there)", "leave type out"),
        ("[guest_read]\nfields.len = {required = true}", "fields.len names no field", "size"),
        ("[guest_read]\nfields.len = {name = 'a'}", "fields.len name: there is no such key", "names"),
        ("[guest_read]\nat = 'entry'\nevents = ['a']", "at is for itstrace's own table to say ('return' there)", "leave at out"),
        ("[[queue]]\nfields.irq = 'a'\n[[queue]]\nfields.irq = 'b'", "only one of several tables", "name the events"),
        ("[guest_read\nevents", "is no TOML: ", "at line 1"),
        ("a = " + "[" * 100_000, "is no TOML that can be read", "events = "),
        ("#" * (1 << 18) + "\n#", "is larger than 256 KiB", "events = "),
        (b"\xff\xfe", "is no text in UTF-8 (byte 0)", "events = "),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_mistake_in_a_file_is_named_with_its_place(
    text: str | bytes, problem: str, advice: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(UsageError) as caught:
        load_events(path)
    assert caught.value.message.startswith(f"--events {path}: ")
    assert problem in caught.value.message
    assert advice in str(caught.value)


_NAMES = st.sampled_from(
    ["guest_read", "fold", "marker", "events", "fields", "names", "len", "dw0", "type", "at", "a"]
)
_VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from(["'a'", "'w[0]'", "''", "1979-05-27", "'u32'"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: f"[{', '.join(map(_toml, each))}]"),
        st.dictionaries(_NAMES, inner, max_size=3).map(
            lambda each: "{" + ", ".join(f"{name} = {_toml(value)}" for name, value in each.items()) + "}"
        ),
    ),
    max_leaves=6,
)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, (bool, float)) else str(value)


def _refused(raw: bytes) -> bool:
    """Whether a file is refused, and with its name."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_bytes(raw)
        try:
            load_events(path)
        except UsageError as error:
            message = error.message
        else:
            return False
    assert message.startswith(f"--events {path}: ")
    return True


@given(st.dictionaries(_NAMES, _VALUES, min_size=1, max_size=3))
def test_whatever_a_file_says_it_is_understood_or_refused(said: dict[str, object]) -> None:
    text = "\n".join(f"{name} = {_toml(value)}" for name, value in said.items())

    assert _refused(text.encode()) or said.keys() <= PROBES.keys()


@given(st.binary(max_size=80))
def test_any_bytes_are_understood_or_refused(raw: bytes) -> None:
    assert _refused(raw) or not tomllib.loads(raw.decode()).keys() - PROBES.keys()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.toml: cannot be read: no such file"):
        analyze(DOUBLE, events=tmp_path / "nothing.toml")
    with pytest.raises(UsageError, match="cannot be read: is a directory"):
        load_events(tmp_path)
