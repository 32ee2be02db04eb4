"""Which profile a kernel is held against."""

from __future__ import annotations

import pytest

from itstrace.model import PROFILES, profile_for_kernel


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("6.1.0-50-arm64", "kvm-6.1"),
        ("5.10.0", "kvm-6.1"),
        ("6.9.12", "kvm-6.1"),
        ("6.10.0", "kvm-6.12"),
        ("6.12.107+deb13-arm64", "kvm-6.12"),
        ("6.18.3", "kvm-6.12"),
        ("7.2.9", "kvm-6.12"),
        ("7.3.4+deb13-arm64", "kvm-7.3"),
        ("8.0", "kvm-7.3"),
        ("unknown", "kvm-7.3"),
    ],
)
def test_profile_for_kernel(release: str, name: str) -> None:
    assert profile_for_kernel(release).name == name


@pytest.mark.parametrize(
    ("release", "frees", "keeps"),
    [
        ("6.1.0-56-arm64", False, False),
        ("6.1.180", False, True),
        ("6.1.192", False, False),
        ("6.11.2", False, True),
        ("6.12.0-124.8.1.el10.aarch64", False, True),
        ("6.12.107+deb13-arm64", False, True),
        ("6.12.112", True, True),
        ("6.12.117+deb13-arm64", True, False),
        ("7.3.4+deb13-arm64", True, False),
    ],
)
def test_what_a_stable_release_has_of_later_ones(release: str, frees: bool, keeps: bool) -> None:
    profile = profile_for_kernel(release)
    assert (profile.changed_baser_frees, profile.flush_keeps_latch) == (frees, keeps)


def test_every_profile_is_listed_under_its_name() -> None:
    assert {name: profile.name for name, profile in PROFILES.items()} == {name: name for name in PROFILES}
    assert list(PROFILES) == ["architecture", "kvm-6.1", "kvm-6.12", "kvm-7.3", "qemu"]
