"""A browser for the tests of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.browser import Browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A window of Chromium; the test is skipped where there is none."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    from helpers.browser import CHROMIUM, DRIVER, Browser  # noqa: PLC0415  selenium may not be there

    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed: pages are not opened")
    window = Browser(tmp_path_factory.mktemp("chromium"))
    yield window
    window.close()
