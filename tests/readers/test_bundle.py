"""Folders and tars: what is in them is found, and taken together; what is hostile or missing is said."""

from __future__ import annotations

import io
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from conftest import SAMPLES, analysis_of
from helpers import tiny_capture
from helpers.raw_dumps import write_raw

from itstrace import analyze
from itstrace.errors import CaptureError, ItsTraceError, UnknownFormatError, UsageError
from itstrace.readers import open_capture, open_captures
from itstrace.readers.bundle.capture import read_uname
from itstrace.report.json import analysis_document

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOUBLE = SAMPLES / "6.12-double-delivery.dat"
LOST = SAMPLES / "6.12-lost-records.dat"
STATE = SAMPLES / "6.12-double-delivery.vgic-state"


def _without_names(document: dict[str, Any]) -> dict[str, Any]:
    for key in ("path", "paths", "format", "notes"):
        document["capture"].pop(key)
    return document


def _same_analysis(path: Path, original: Path) -> None:
    expected = _without_names(analysis_document(analysis_of(original)))

    assert _without_names(analysis_document(analyze(path))) == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a recorder would leave it: a capture, a dump, a note."""
    folder = tmp_path / "recording"
    (folder / "dumps").mkdir(parents=True)
    shutil.copy(DOUBLE, folder / "trace.dat")
    shutil.copy(STATE, folder / "dumps" / "vgic-state.end")
    (folder / "notes.txt").write_text("taken on a Tuesday\n")
    return folder


def _tar(folder: Path, path: Path, mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname=folder.name)
    return path


# -- folders -------------------------------------------------------------------------------------------------


def test_a_folder_is_the_capture_in_it(folder: Path) -> None:
    _same_analysis(folder, DOUBLE)
    with open_capture(folder) as capture:
        assert capture.info.path == folder
        assert capture.info.paths == [folder / "trace.dat"]
        assert capture.info.format == "bundle of trace.dat v7 zstd"
        assert capture.info.options["dumps"] == "dumps/vgic-state.end"
        assert capture.info.options["other files"] == "notes.txt"


def test_captures_in_a_folder_are_found_by_content(folder: Path) -> None:
    (folder / "trace.dat").rename(folder / "report.txt")

    with open_capture(folder) as capture:
        assert capture.info.paths == [folder / "report.txt"]


def test_a_packed_capture_in_a_folder_is_unpacked(folder: Path) -> None:
    plain = folder / "trace.dat"
    (folder / "trace.dat.zst").write_bytes(zstandard.ZstdCompressor().compress(plain.read_bytes()))
    plain.unlink()

    _same_analysis(folder, DOUBLE)


def test_captures_of_one_recording_in_a_folder_are_merged(folder: Path) -> None:
    shutil.copy(DOUBLE, folder / "again.dat")

    with open_capture(folder) as capture:
        assert capture.info.format == "bundle of 2 captures: trace.dat v7 zstd + trace.dat v7 zstd"
        assert capture.info.paths == [folder / "again.dat", folder / "trace.dat"]
        assert int(capture.counts()["records"].sum()) == int(analysis_of(DOUBLE).counts["records"].sum())


def test_captures_of_several_recordings_in_a_folder_are_listed(folder: Path) -> None:
    shutil.copy(SAMPLES / "7.3-migrate.dat", folder / "other.dat")

    with pytest.raises(UsageError) as refused:
        open_capture(folder)

    said = str(refused.value)
    assert "holds 2 captures, and not all are parts of one: " in said
    assert f"{folder / 'other.dat'}  trace.dat v7 zstd, " in said
    assert f"{folder / 'trace.dat'}  trace.dat v7 zstd, 1345.286619 to 1353.933252, clock mono" in said
    assert 'bundle.toml (captures = ["..."])' in said


def test_a_folder_without_a_capture_says_what_it_holds(folder: Path) -> None:
    (folder / "trace.dat").unlink()

    with pytest.raises(
        UnknownFormatError, match=r"without a capture; it holds dumps/vgic-state.end, notes.txt"
    ):
        open_capture(folder)


def test_an_empty_folder_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="a folder without a file"):
        open_capture(tmp_path)


def test_a_folder_and_a_file_are_merged(folder: Path) -> None:
    with open_captures([folder, DOUBLE]) as capture:
        assert capture.info.paths == [folder / "trace.dat", DOUBLE]
        assert len(capture.info.notes) == 1


def test_the_folders_of_the_corpus(corpus: Path) -> None:
    with open_capture(corpus / "boot-6.12") as capture:
        assert capture.info.paths == [corpus / "boot-6.12" / "trace.dat"]
        assert capture.info.options["dumps"].startswith("snap-boot/")
        assert capture.info.options["other files"] == "guest-console.txt"


# -- manifests -----------------------------------------------------------------------------------------------

HEAD = 'schema = "itstrace.bundle/1"\n'


def test_a_manifest_names_the_capture(folder: Path) -> None:
    shutil.copy(SAMPLES / "7.3-migrate.dat", folder / "other.dat")
    (folder / "bundle.toml").write_text(HEAD + 'captures = ["trace.dat"]\n')

    _same_analysis(folder, DOUBLE)


def test_a_manifest_tells_what_captures_do_not(tmp_path: Path) -> None:
    raw = write_raw(DOUBLE, tmp_path / "raw")
    for name in ("uname.txt", "trace_clock"):
        (raw / name).unlink()
    (raw / "bundle.toml").write_text(
        HEAD + 'captures = ["per_cpu"]\nclock = "mono"\nkernel = "6.12.1"\narch = "aarch64"\n'
    )

    with open_capture(raw) as capture:
        assert (capture.info.clock, capture.info.kernel, capture.info.arch) == ("mono", "6.12.1", "aarch64")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_the_seed_of_a_manifest_is_used(tmp_path: Path, packed: bool) -> None:
    """A capture that begins mid-life with the kernel's dumps of its beginning: as `--seed` has it."""
    folder = tmp_path / "migrate"
    folder.mkdir()
    shutil.copy(SAMPLES / "7.3-migrate.dat", folder / "trace.dat")
    snapshots = SAMPLES / "7.3-migrate.snapshots"
    state = next(path for path in sorted(snapshots.rglob("vgic-state*")) if path.is_file())
    shutil.copy(state, folder / "vgic-state")
    (folder / "bundle.toml").write_text(HEAD + '[[seeds]]\nfile = "vgic-state"\nat = "+0"\n')
    path = _tar(folder, tmp_path / "b.tar") if packed else folder

    with_seed = analyze(path)

    assert with_seed.seed is not None
    assert with_seed.seed.at_ns == with_seed.start_ns
    assert with_seed.seed.tables.lpis is not None
    assert with_seed.info.seeds[0].name == str(path / "vgic-state")
    assert analyze(folder / "trace.dat").seed is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("captures = [", "is no TOML"),
        ("\x00", "is no TOML"),
        ('captures = ["trace.dat"]', "schema None is unknown"),
        ('schema = "itstrace.bundle/2"', "schema 'itstrace.bundle/2' is unknown"),
        (HEAD + "captures = []", "captures names none"),
        (HEAD + "captures = 5", "captures names none"),
        (HEAD + "captures = [5]", "5 is no path"),
        (HEAD + 'captures = ["gone.dat"]', "is not in the bundle"),
        (HEAD + 'captures = ["/etc/passwd"]', "leads out of the bundle"),
        (HEAD + 'captures = ["../x"]', "leads out of the bundle"),
        (HEAD + 'captures = ["dumps"]', "is a folder, named by bundle.toml as a capture"),
        (HEAD + 'seeds = ["vgic-state"]', "seeds is no list of tables"),
        (HEAD + '[[seeds]]\nfile = "trace.dat"\nwhen = 5', "is none"),
        (HEAD + '[[seeds]]\nat = "+0"', "None is no path"),
        (HEAD + "clock = 5", "clock is no text"),
        (HEAD + "colour = 'red'", "colour: unknown"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "bundle.toml").write_text(text)

    with pytest.raises(CaptureError) as refused:
        open_capture(folder)

    assert words in refused.value.message
    assert "bundle.toml" in refused.value.message or "dumps" in refused.value.message


# -- pages of ring buffers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["per_cpu/cpu{}/trace_pipe_raw", "cpu{}.raw", "trace_pipe_raw.cpu{}", "cpu{}"]
)
def test_pages_with_their_formats_are_the_trace_dat(tmp_path: Path, name: str) -> None:
    raw = write_raw(DOUBLE, tmp_path / "raw", name)

    _same_analysis(raw, DOUBLE)
    with open_capture(raw) as capture:
        assert capture.info.format == "trace_pipe_raw"


def test_lost_records_between_pages_are_seen(tmp_path: Path) -> None:
    with open_capture(write_raw(LOST, tmp_path / "raw")) as raw, open_capture(LOST) as whole:
        assert raw.gaps().equals(whole.gaps())
        assert raw.gaps().height > 0
        assert raw.counts().equals(whole.counts())


def test_formats_named_by_their_events_and_no_header_page(tmp_path: Path) -> None:
    """As a person copies them: SYSTEM.NAME.format, the uname's release alone, packed pages."""
    raw = write_raw(DOUBLE, tmp_path / "raw", "cpu{}.raw")
    for path in sorted((raw / "events").rglob("format")):
        path.rename(raw / f"{path.parts[-3]}.{path.parts[-2]}.format")
    shutil.rmtree(raw / "events")
    (raw / "uname.txt").write_text("6.12.107+deb13-arm64\n")
    for path in raw.glob("*.raw"):
        path.with_suffix(".raw.zst").write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
        path.unlink()

    with open_capture(raw) as capture, open_capture(DOUBLE) as whole:
        assert capture.counts().equals(whole.counts())
        assert capture.info.kernel == "6.12.107+deb13-arm64"


@pytest.mark.parametrize("count", [1, 2])
def test_pages_alone_say_what_is_needed(tmp_path: Path, count: int) -> None:
    raw = write_raw(DOUBLE, tmp_path / "raw", "cpu{}.raw")

    with pytest.raises(CaptureError, match="nothing says which events") as refused:
        open_captures([raw / f"cpu{cpu}.raw" for cpu in range(count)])

    assert "cp -r /sys/kernel/tracing/events" in str(refused.value)


def test_two_dumps_of_one_cpu_are_refused(tmp_path: Path) -> None:
    raw = write_raw(DOUBLE, tmp_path / "raw", "cpu{}.raw")
    shutil.copy(raw / "cpu0.raw", raw / "trace_pipe_raw.cpu0")

    with pytest.raises(CaptureError, match="is of CPU 0, and so is"):
        open_capture(raw)


def test_pages_that_are_cut_or_empty_or_full_of_lies(tmp_path: Path) -> None:
    raw = write_raw(DOUBLE, tmp_path / "raw", "cpu{}.raw")
    first = (raw / "cpu0.raw").read_bytes()
    (raw / "cpu1.raw").write_bytes(b"")
    (raw / "cpu0.raw").write_bytes(first[: len(first) // 2 + 100])
    with open_capture(raw) as capture:
        counts = capture.counts()
        assert counts["records"].sum() > 0
        assert counts["cpu"].unique().to_list() == [0]

    # One header, then nothing that could be a record or a page.
    (raw / "cpu0.raw").write_bytes(first[:16] + b"\xff" * 5000)
    with open_capture(raw) as capture:
        assert capture.counts()["records"].sum() == 0
        assert capture.damage()

    (raw / "cpu1.raw").write_bytes(bytes(4096))
    with open_capture(raw) as capture:
        assert "cpu1.raw is named as a CPU's pages, but does not hold any" in capture.info.notes[0]

    (raw / "cpu0.raw").write_bytes(first[:16] + b"\xff" * (1 << 20))
    with pytest.raises(CaptureError, match="holds no pages of a ring buffer"):
        open_capture(raw)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Linux host 6.1.0 #1 SMP x aarch64 GNU/Linux",
            ("Linux host 6.1.0 #1 SMP x aarch64", "6.1.0", "aarch64"),
        ),
        ("6.12.107+deb13-arm64\n", (None, "6.12.107+deb13-arm64", None)),
        ("", (None, None, None)),
        ("what is this text here", (None, None, None)),
    ],
)
def test_unames(text: str, expected: tuple[str | None, str | None, str | None]) -> None:
    assert read_uname(text) == expected


# -- tars ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_is_the_folder_that_was_packed(folder: Path, tmp_path: Path, mode: str) -> None:
    path = _tar(folder, tmp_path / "b.tar", mode)

    _same_analysis(path, DOUBLE)
    with open_capture(path) as capture:
        assert capture.info.paths == [path / "trace.dat"]
        assert capture.info.options["dumps"] == "dumps/vgic-state.end"


def test_a_tar_packed_with_zstd_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _tar(folder, tmp_path / "b.tar")
    path = tmp_path / "b.tar.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(plain.read_bytes()))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    with open_capture(path) as capture:
        assert list(temporary.iterdir())
        assert capture.read("its_cmd").height == 172

    assert list(temporary.iterdir()) == []
    (folder / "trace.dat").unlink()
    with pytest.raises(UnknownFormatError):
        open_capture(_tar(folder, tmp_path / "c.tar"))
    assert list(temporary.iterdir()) == []


def _entry(name: str, content: bytes = b"", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def _written(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return path


#: Stands for the test's own folder, where what comes out of a tar by an absolute name would be seen.
_ABSOLUTE = "/ABSOLUTE"


def _hostile() -> Iterator[Any]:
    yield pytest.param(_entry("../out.dat", b"x"), id="upwards")
    yield pytest.param(_entry("a/../../out.dat", b"x"), id="upwards-within")
    yield pytest.param(_entry(f"{_ABSOLUTE}/out.dat", b"x"), id="absolute")
    yield pytest.param(_entry("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), id="symlink")
    yield pytest.param(_entry("hard", type=tarfile.LNKTYPE, linkname="/etc/passwd"), id="hardlink")
    yield pytest.param(_entry("pipe", type=tarfile.FIFOTYPE), id="fifo")
    yield pytest.param(_entry("disk", type=tarfile.BLKTYPE, devmajor=8), id="device")
    yield pytest.param(_entry("n" * 3000, b"x"), id="long-name")
    yield pytest.param(_entry("trace.dat/inner", b"x"), id="file-as-folder")
    yield pytest.param(_entry("\x1b[2J", type=tarfile.SYMTYPE, linkname="x"), id="terminal-words")


@pytest.mark.parametrize("entry", list(_hostile()))
def test_hostile_entries_are_left_out_and_said(tmp_path: Path, entry: tuple[tarfile.TarInfo, bytes]) -> None:
    inner = tmp_path / "in"
    inner.mkdir()
    entry[0].name = entry[0].name.replace(_ABSOLUTE, str(tmp_path))
    path = _written(
        inner / "b.tar", [_entry("trace.dat", tiny_capture.write(tmp_path / "t").read_bytes()), entry]
    )
    before = sorted(tmp_path.rglob("*"))

    with open_capture(path) as capture:
        assert int(capture.counts()["records"].sum()) == 22
        assert "left out (links, devices, names that lead out of it)" in capture.info.notes[0]
        assert "\x1b" not in capture.info.notes[0]

    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_does_not_lead_a_later_entry_out(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    entries = [
        _entry("trace.dat", tiny_capture.write(tmp_path / "t").read_bytes()),
        _entry("way", type=tarfile.SYMTYPE, linkname=str(target)),
        _entry("way/out.dat", b"x"),
    ]
    with open_capture(_written(tmp_path / "b.tar", entries)):
        assert list(target.iterdir()) == []


def test_a_sparse_file_does_not_grow(tmp_path: Path) -> None:
    """A header that promises a terabyte of holes."""
    info, _ = _entry("big")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(1 << 40),
                        "GNU.sparse.map": "0,1", "GNU.sparse.name": "big"}  # fmt: skip
    path = tmp_path / "b.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        whole, content = _entry("trace.dat", tiny_capture.write(tmp_path / "t").read_bytes())
        tar.addfile(whole, io.BytesIO(content))
        tar.addfile(info)

    with open_capture(path) as capture:
        assert "big" in capture.info.notes[0]


def test_a_tar_that_is_cut_short_gives_what_is_left(tmp_path: Path) -> None:
    whole = _written(
        tmp_path / "b.tar", [_entry("trace.dat", LOST.read_bytes()), _entry("more", bytes(50_000))]
    )
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:-40_000])

    with open_capture(cut) as capture:
        assert int(capture.counts()["records"].sum()) == int(analysis_of(LOST).counts["records"].sum())
        assert "cut short" in capture.info.notes[0]


@pytest.mark.parametrize("at", range(0, 1024, 37))
def test_damaged_headers_end_in_an_error_or_a_result(tmp_path: Path, at: int) -> None:
    content = bytearray(
        _written(
            tmp_path / "b.tar",
            [_entry("a.txt", b"text"), _entry("trace.dat", tiny_capture.write(tmp_path / "t").read_bytes())],
        ).read_bytes()
    )
    content[at] ^= 0xFF
    path = tmp_path / "damaged.tar"
    path.write_bytes(content)

    try:
        with open_capture(path) as capture:
            assert int(capture.counts()["records"].sum()) == 22
    except ItsTraceError as error:
        said = str(error)
    else:
        said = str(path)
    assert str(path) in said


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itstrace.readers.bundle.tar._MAX_ENTRIES", 5)

    with pytest.raises(CaptureError, match="holds more than 5 entries"):
        open_capture(_written(tmp_path / "b.tar", [_entry(f"f{i}", b"x") for i in range(7)]))


def test_too_many_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itstrace.readers.bundle.scan._MAX_FILES", 2)

    with pytest.raises(CaptureError, match="holds more than 2 files"):
        open_capture(folder)


def test_what_only_a_reading_of_a_text_tells_is_told_of_its_folder_too(tmp_path: Path) -> None:
    """That perf script does not tell its losses shows in its lines; a uname beside them names the kernel."""
    shutil.copy(SAMPLES / "6.12-perf-script.txt.zst", tmp_path / "script.txt.zst")
    (tmp_path / "uname.txt").write_text("6.12.107+deb13-arm64\n")
    analysis = analyze(tmp_path)

    assert not analysis.info.tells_losses
    assert any("--show-lost-events" in note for note in analysis.info.notes)
    assert analysis.info.kernel == "6.12.107+deb13-arm64"
    assert set(analysis.history.profiles.values()) == {"kvm-6.12"}
