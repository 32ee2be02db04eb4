"""The bytes of a capture out of packings and pipes: whole, in part, or refused with a clear word; never without bounds."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import resource
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard
from conftest import SAMPLES, analysis_of
from helpers.tracedat_writer import Buffer, Event, Field, Machine, TraceFile, pages

from itstrace.errors import CaptureError, UnknownFormatError
from itstrace.readers import open_capture
from itstrace.readers.source import open_source, peek

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DOUBLE = SAMPLES / "6.12-double-delivery.dat"
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
each_packing = pytest.mark.parametrize("kind", PACKINGS)
#: Bytes that pack badly, so that a cut or a damaged place is somewhere in the middle of them.
NOISE = os.urandom(3 << 20)


def _unpacked(path: Path) -> tuple[bytes, tuple[str, ...], list[str]]:
    source = open_source(path)
    content = source.data[:]
    source.close()
    return content, source.packing, [place.problem for place in source.damage]


# -- whole ---------------------------------------------------------------------------------------------------


@each_packing
def test_what_was_packed_comes_out(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACKINGS[kind](NOISE))

    assert _unpacked(path) == (NOISE, (kind,), [])


@each_packing
@pytest.mark.parametrize("padding", [b"", b"\0" * 4, b"\0" * (3 << 20)], ids=["none", "some", "much"])
def test_members_are_one_stream(tmp_path: Path, kind: str, padding: bytes) -> None:
    """As `cat a.gz b.gz` and parallel packers make them; a megabyte read ends within a member, a magic or padding."""
    parts = [NOISE[: (1 << 20) - 20], NOISE[(1 << 20) - 20 : (1 << 20) + 5], NOISE[(1 << 20) + 5 :]]
    path = tmp_path / "x"
    path.write_bytes(padding.join(PACKINGS[kind](part) for part in parts) + padding)

    assert _unpacked(path) == (NOISE, (kind,), [])


@each_packing
def test_a_member_may_begin_anywhere(tmp_path: Path, kind: str) -> None:
    pack = PACKINGS[kind]
    second = pack(b"the end")
    for short in range(7):  # of a megabyte: the magic of the second member lies across the border
        first = pack(NOISE[: (1 << 20) - len(pack(b"")) - 400])
        room = (1 << 20) - short - len(first)
        path = tmp_path / "x"
        path.write_bytes(first + b"\0" * (room // 4 * 4) + second)

        assert _unpacked(path)[0].endswith(b"the end")
        assert _unpacked(path)[2] == []


def test_frames_to_be_skipped_are_skipped(tmp_path: Path) -> None:
    """As pzstd and the seekable format write them: before, between and behind the frames."""
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    seek_table = b"\x5e\x2a\x4d\x18\x02\x00\x00\x00ab"
    pack = zstandard.ZstdCompressor().compress
    path = tmp_path / "x"
    path.write_bytes(skipped + pack(NOISE[:1000]) + skipped + pack(NOISE[1000:]) + seek_table)

    assert _unpacked(path) == (NOISE, ("zstd",), [])


def test_packed_twice_is_unpacked_twice(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(PACKINGS["zstd"](NOISE)))

    assert _unpacked(path) == (NOISE, ("gzip", "zstd"), [])


def test_packed_three_times_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(gzip.compress(gzip.compress(b"capture"))))

    with pytest.raises(CaptureError, match=r"packed 3 times over \(gzip, gzip, gzip\)"):
        open_source(path)


# -- in part -------------------------------------------------------------------------------------------------


@each_packing
def test_what_is_cut_short_gives_its_beginning(tmp_path: Path, kind: str) -> None:
    packed = PACKINGS[kind](NOISE)
    path = tmp_path / "x"
    path.write_bytes(packed[: len(packed) // 2])

    content, _, damage = _unpacked(path)
    assert NOISE.startswith(content)
    assert len(content) > len(NOISE) // 2 - (256 << 10)
    assert damage == [f"the {kind} file is cut short"]


@each_packing
def test_what_is_damaged_gives_what_came_before(tmp_path: Path, kind: str) -> None:
    """Damage that the packing's own checks see: a changed byte of the header of what follows, or of a checksum."""
    packed = bytearray(PACKINGS[kind](NOISE[: 1 << 20]) + PACKINGS[kind](NOISE[1 << 20 :]))
    second = len(PACKINGS[kind](NOISE[: 1 << 20]))
    packed[second + 8 : second + 44] = b"\xff" * 36
    path = tmp_path / "x"
    path.write_bytes(packed)

    content, _, damage = _unpacked(path)
    assert content[: 1 << 20] == NOISE[: 1 << 20]
    assert damage[0].startswith(f"{kind} data damaged after ")


def test_a_wrong_checksum_costs_no_more_than_a_piece(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(NOISE))
    packed[-6] ^= 0xFF
    path = tmp_path / "x"
    path.write_bytes(packed)

    content, _, damage = _unpacked(path)
    assert NOISE.startswith(content)
    assert len(content) >= len(NOISE) - (64 << 10)
    assert "incorrect data check" in damage[0]


@each_packing
def test_what_follows_the_packed_data_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACKINGS[kind](NOISE) + b"and then some")

    assert _unpacked(path) == (NOISE, (kind,), [f"something else than {kind} follows the packed data"])


@each_packing
def test_what_gives_nothing_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACKINGS[kind](NOISE)[:10])

    with pytest.raises(CaptureError, match="nothing could be unpacked: "):
        open_source(path)


@each_packing
def test_a_capture_cut_short_in_its_packing_is_analyzed_in_part(tmp_path: Path, kind: str) -> None:
    """Version 6 says at its head where everything lies: what came out is read, the rest is damage."""
    machine = Machine()
    event = Event(300, "demo", "noise", [Field("u64[16]", "value", "16Q")])
    words = [int.from_bytes(NOISE[8 * i : 8 * i + 8], "little") for i in range(16 * 1500)]
    records = [
        (10**9 + i * 1000, event.payload(machine, 1, [words[16 * i : 16 * i + 16]])) for i in range(1500)
    ]
    whole = TraceFile([event], [Buffer({0: pages(machine, 4096, records)})], machine, 6).to_bytes()
    packed = PACKINGS[kind](whole)
    path = tmp_path / "x.dat"
    path.write_bytes(packed[: len(packed) * 9 // 10])

    with open_capture(path) as capture:
        assert 300 < int(capture.counts()["records"].sum()) < 1500
        problems = [place.problem for place in capture.damage()]
    assert problems[0] == f"the {kind} file is cut short"
    assert any("before the CPU's data" in problem for problem in problems)


# -- beyond all measure --------------------------------------------------------------------------------------


def _zeros(kind: str) -> bytes:
    """A gigabyte of zeros."""
    piece, count = bytes(1 << 20), 1 << 10
    if kind == "gzip":
        deflate = zlib.compressobj(9, wbits=31)
        return b"".join([*(deflate.compress(piece) for _ in range(count)), deflate.flush()])
    if kind == "xz":
        pack = lzma.LZMACompressor(preset=0)
        return b"".join([*(pack.compress(piece) for _ in range(count)), pack.flush()])
    squeeze = zstandard.ZstdCompressor().compressobj()
    return b"".join([*(squeeze.compress(piece) for _ in range(count)), squeeze.flush()])


_MEASURE = """
import resource, sys
from itstrace.readers.source import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_source(sys.argv[1])
except Exception as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@each_packing
def test_a_bomb_is_stopped_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(_zeros(kind))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    *said, grown_kib = done.stdout.splitlines()

    assert "400 times its size: nothing that a tracer wrote does" in said[0]
    assert f"{kind} -d" in said[1]
    assert int(grown_kib) < 64 << 10


def test_a_bomb_in_a_packing_is_measured_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the outer packing gives is not what the inner one may multiply."""
    monkeypatch.setattr("itstrace.readers.source.FREE_BYTES", 1 << 20)
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(gzip.compress(bytes(64 << 20))))

    with pytest.raises(CaptureError, match="times its size"):
        open_source(path)


def test_a_window_beyond_measure_is_refused_with_its_remedy(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    pack = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "x"
    path.write_bytes(pack.compress(NOISE) + pack.flush())

    with pytest.raises(CaptureError, match="needs more than 128 MiB of memory") as refused:
        open_source(path)
    assert "zstd -d --long=31" in str(refused.value)


def test_an_xz_that_wants_much_memory_is_refused_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itstrace.readers.packing._XZ_MEMORY_BYTES", 8 << 20)
    path = tmp_path / "x"
    path.write_bytes(lzma.compress(NOISE, preset=9))

    with pytest.raises(CaptureError, match="needs more than 8 MiB of memory"):
        open_source(path)


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(NOISE))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 1024; trap '' XFSZ; exec {sys.executable} -m itstrace.cli info {path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limits
    assert done.returncode == 3
    assert "cannot be unpacked: file too large" in done.stderr
    assert "TMPDIR" in done.stderr


# -- pipes ---------------------------------------------------------------------------------------------------


def _run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "ITSTRACE": f"{sys.executable} -m itstrace.cli", **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "cat {0} | $ITSTRACE analyze - --json -",
        "$ITSTRACE analyze - --json - < {0}",
        "gzip -c {0} | $ITSTRACE analyze - --json -",
        "$ITSTRACE analyze <(cat {0}) --json -",
        "$ITSTRACE analyze <(gzip -c {0}) --json -",
        "tar cf - -C {1} {2} | $ITSTRACE analyze - --json -",
    ],
)
def test_a_capture_through_a_pipe(command: str) -> None:
    done = _run(command.format(DOUBLE, DOUBLE.parent, DOUBLE.name))

    assert done.stderr == ""
    found = [finding["code"] for finding in json.loads(done.stdout)["findings"]]
    assert found == [finding.code for finding in analysis_of(DOUBLE).findings]


@pytest.mark.parametrize(
    "pipe", ["cat {0} | $ITSTRACE {1} -", "$ITSTRACE {1} <(cat {0})", "$ITSTRACE {1} - < {0}"]
)
def test_a_command_that_opens_its_capture_twice(pipe: str) -> None:
    """`commands` wants the names of the tasks once it has analyzed: a pipe gives it all once only."""
    done = _run(pipe.format(DOUBLE, "commands"))

    assert done.stderr == ""
    assert "qemu-system-aar" in done.stdout


def test_a_seed_at_a_marker_of_a_capture_through_a_pipe() -> None:
    state = SAMPLES / "6.12-double-delivery.vgic-state"
    done = _run(f"cat {DOUBLE} | $ITSTRACE tables - --seed {state}@+7")

    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_on_standard_input_is_said() -> None:
    done = _run("true | $ITSTRACE info -")
    assert (done.returncode, "nothing came on standard input" in done.stderr) == (3, True)

    closed = _run("$ITSTRACE info - <&-")
    assert (closed.returncode, "standard input is closed" in closed.stderr) == (3, True)


# -- a look at the beginning ---------------------------------------------------------------------------------


@each_packing
def test_a_look_at_the_beginning(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACKINGS[kind](NOISE))
    assert peek(path, 100) == NOISE[:100]
    path.write_bytes(gzip.compress(PACKINGS[kind](NOISE)))
    assert peek(path, 100) == NOISE[:100]
    path.write_bytes(PACKINGS[kind](NOISE)[:8] + b"\xff" * 50)
    assert peek(path) == b""
    path.write_bytes(PACKINGS[kind](bytes(64 << 20)))
    assert peek(path) == bytes(4096)


def test_other_packings_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bz2.compress(DOUBLE.read_bytes()))

    with pytest.raises(UnknownFormatError):
        open_capture(path)


def test_standard_input_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook or a test may put any stream in its place."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(DOUBLE.read_bytes())))

    with open_capture("-") as capture:
        assert capture.counts().height > 0
