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
        ("7.3.4+deb13-arm64", "kvm-7.3"),
        ("8.0", "kvm-7.3"),
        ("unknown", "kvm-7.3"),
    ],
)
def test_profile_for_kernel(release: str, name: str) -> None:
    assert profile_for_kernel(release).name == name


def test_every_profile_is_listed_under_its_name() -> None:
    assert {name: profile.name for name, profile in PROFILES.items()} == {name: name for name in PROFILES}
    assert list(PROFILES) == ["architecture", "kvm-6.1", "kvm-6.12", "kvm-7.3", "qemu"]
