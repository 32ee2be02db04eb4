"""The path of an LPI over the vCPUs, in a real browser: it shows what a finding is about, and can be moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from conftest import SAMPLES, analysis_of
from helpers.pages import page_of

if TYPE_CHECKING:
    from helpers.browser import Browser

DOUBLE = "6.12-double-delivery.dat"
LOST = "6.12-lost-lpi.dat"
MISTAKES = "7.3-guest-mistakes.dat"
DRAWN = "return document.querySelector('section:not([hidden]) .pathbox svg')"


def _finding(browser: Browser, name: str, identity: str, *, width: int = 1280) -> None:
    browser.size(width, 900)
    browser.open(page_of(name), f"finding={identity}")
    browser.wait(DRAWN)


def _boxes(browser: Browser, selector: str) -> list[dict[str, Any]]:
    """Where elements of the visible picture are, and what their tooltips say."""
    script = (
        "return [...document.querySelectorAll('section:not([hidden]) .pathbox svg ' + arguments[0])].map(one => {"
        " const at = one.getBoundingClientRect(); return {left: at.left, right: at.right, top: at.top,"
        " width: at.width, height: at.height, says: one.querySelector('title')?.textContent ?? '',"
        " text: [...one.childNodes].filter(each => each.nodeType === 3).map(each => each.data).join('')}})"
    )
    return list(browser.run(script, selector))


def _words(browser: Browser, selector: str) -> list[str]:
    """Texts in the visible picture."""
    return [str(box["text"]) for box in _boxes(browser, selector)]


def _stretch(browser: Browser) -> tuple[float, float]:
    """From when to when the visible picture is, in seconds."""
    words = browser.texts("section:not([hidden]) .explorer figcaption .mono")[0].split()
    return float(words[0]), float(words[2])


def _flags(browser: Browser) -> list[str]:
    return [str(text) for text in browser.run(
        "return [...document.querySelectorAll('section:not([hidden]) .pathbox svg .flag:not(.edge)')]"
        ".map(one => one.dataset.n).sort((a, b) => a - b)"
    )]  # fmt: skip


@pytest.mark.parametrize("place", ["", "finding=ITS401"])
def test_a_double_delivery_is_seen_as_two_bars(browser: Browser, place: str) -> None:
    browser.size(1280, 900)
    browser.open(page_of(DOUBLE), place)
    browser.wait(DRAWN)

    held = _boxes(browser, "rect.held")
    second = next(bar for bar in held if "of vCPU 0" in bar["says"])
    first = next(bar for bar in held if "of vCPU 1" in bar["says"] and bar["width"] > second["width"])
    assert second["width"] > 40
    assert first["left"] < second["left"]
    assert second["right"] < first["right"]
    assert len({round(flag["left"]) for flag in _boxes(browser, ".flag circle")}) == 7
    # What is left out is a break that says how long it is, within the text as well.
    cuts = [cut["text"] for cut in _boxes(browser, ".cuttext")]
    assert cuts == ["3.96 ms", "81.4 ms"]
    assert "cut out" in browser.texts("section:not([hidden]) .explorer figcaption .mono")[0]
    assert len(_boxes(browser, ".break")) == 2 * len(cuts)


def test_bars_can_be_seen_and_say_where_they_are_and_how_much_longer(browser: Browser) -> None:
    _finding(browser, MISTAKES, "ITS401")
    assert [cut["text"] for cut in _boxes(browser, ".cuttext")] == []
    bars = _boxes(browser, "rect.held, rect.queued")
    assert min(bar["width"] for bar in bars) >= 4
    assert "LR0" in _words(browser, ".inbar")

    _finding(browser, DOUBLE, "ITS401", width=2560)
    more = [text for text in _words(browser, ".overbar") if "more" in text]
    assert more == ["231 us more \u2192"]
    browser.size(1280, 900)


def test_a_loss_is_seen_until_somebody_came(browser: Browser) -> None:
    _finding(browser, LOST, "ITS301")
    assert browser.texts("section:not([hidden]) .scenesays") == [
        "The worst: LPI 8199 waited 11.1 s from 447.564776"
    ]
    assert "The path of LPI 8199" in browser.texts(".finding h3")
    begin, end = _stretch(browser)
    assert begin < 447.564776
    assert end > 458.637303
    waits = [bar for bar in _boxes(browser, "rect.queued") if "pending, queued for vCPU 1" in bar["says"]]
    assert max(bar["width"] for bar in waits) > 300
    assert any(
        "pending (queued)" in text for text in browser.texts("section:not([hidden]) .explorer .legend span")
    )

    browser.run(
        "[...document.querySelectorAll('.buttons button')].find(one => one.innerText === 'the first').click()"
    )
    begin, end = _stretch(browser)
    assert "The path of LPI 8196" in browser.texts(".finding h3")
    assert begin < 444.498059
    assert end > 447.340940


def test_numbers_have_their_meaning_below_the_verdict(browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(page_of(DOUBLE))
    browser.wait(DRAWN)
    assert browser.texts(".worst .markkey li")[:2] == [
        "1 into LR0 of vCPU 1 populate_lr",
        "2 EnableLPIs of vCPU 1 goes to 0 flush_lpis",
    ]
    assert browser.texts(".worst .markkey li")[6] == "7 vCPU 1 reads it back: empty, taken fold_lr"


def test_what_lies_outside_the_stretch_stands_at_its_edge(browser: Browser) -> None:
    _finding(browser, LOST, "ITS301")
    assert _words(browser, ".flag.edge text") == ["1\u20136 \u2190 224 ms"]
    _finding(browser, DOUBLE, "ITS401")
    browser.all(".pathbox")[0].send_keys("+" * 3)
    edges = _words(browser, ".flag.edge text")
    assert "\u2192" in edges[-1]
    shown = {int(n) for n in _flags(browser)}
    assert 0 < len(shown) < 7


def test_flags_and_evidence_lead_to_one_another(browser: Browser) -> None:
    from helpers.browser import Keys  # noqa: PLC0415  selenium may not be there

    _finding(browser, DOUBLE, "ITS401")
    flag = browser.all(".finding .pathbox svg .flag[data-n='5']")[0]
    assert flag.get_attribute("role") == "button"
    browser.run("arguments[0].focus()", flag)
    browser.press(Keys.ENTER)
    marked = "return [...document.querySelectorAll('.finding tbody tr.chosen')].map(row => row.cells[0].innerText.trim())"
    assert browser.run(marked) == ["5"]

    # Zoomed away from it, a record's number in the evidence brings it back, and has the focus there.
    browser.all(".pathbox")[0].send_keys("+" * 4)
    assert "7" not in _flags(browser)
    browser.run(
        "[...document.querySelectorAll('.finding button.flagnumber')].find(one => one.innerText === '7').click()"
    )
    assert browser.run(marked) == ["7"]
    assert "7" in _flags(browser)
    assert browser.run("return document.activeElement.dataset.n") == "7"


def test_zooming_in_keeps_a_record_in_sight(browser: Browser) -> None:
    for identity in ("ITS401", "ITS106", "ITS111", "ITS405"):
        _finding(browser, MISTAKES, identity)
        whole = _stretch(browser)
        box = browser.all(".pathbox")[0]
        spans = [whole[1] - whole[0]]
        for _ in range(5):
            box.send_keys("+")
            begin, end = _stretch(browser)
            spans.append(end - begin)
            assert _flags(browser), (identity, spans)
        assert spans == sorted(spans, reverse=True)
        box.send_keys("0")
        assert _stretch(browser) == whole


def test_dragging_zooms_in_and_a_double_click_out(browser: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains  # noqa: PLC0415  selenium may not be there

    _finding(browser, MISTAKES, "ITS401")
    begin, end = _stretch(browser)
    box = browser.all(".pathbox")[0]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", box)
    # From a quarter of the box to its middle.
    quarter = int(box.size["width"] / 4)
    ActionChains(browser.driver).move_to_element_with_offset(
        box, -quarter, 12
    ).click_and_hold().move_by_offset(quarter // 2, 0).move_by_offset(
        quarter - quarter // 2, 0
    ).release().perform()
    after = _stretch(browser)
    assert begin < after[0] < after[1] < end
    assert (after[1] - after[0]) / (end - begin) == pytest.approx(0.27, abs=0.04)
    ActionChains(browser.driver).move_to_element_with_offset(box, 0, 12).double_click().perform()
    out = _stretch(browser)
    assert (out[1] - out[0]) / (after[1] - after[0]) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize(("name", "lpi"), [("7.3-migrate.dat", "1:8193"), ("qemu-linux.log.zst", "0:8193")])
def test_vcpus_whose_runs_were_not_recorded_are_not_drawn_as_idle(
    browser: Browser, name: str, lpi: str
) -> None:
    browser.size(1280, 900)
    browser.open(page_of(name), f"lpi={lpi}")
    browser.wait(DRAWN)
    assert _boxes(browser, "rect.out") == []
    assert _boxes(browser, "rect.unknown")
    assert browser.texts("section:not([hidden]) .explorer .legend span")[0] == "when it ran was not recorded"
    several = len(analysis_of(SAMPLES / name).observations.vms) > 1
    lane = "VM 1 vCPU 0" if several else "vCPU 0"
    assert _words(browser, ".lane")[1] == lane


def test_nothing_is_drawn_beyond_the_capture_or_the_vm(browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(page_of(DOUBLE), "lpi=0:8193")
    browser.wait(DRAWN)
    last = (analysis_of(SAMPLES / DOUBLE).end_ns or 0) / 1e9
    box = browser.all(".pathbox")[0]
    for _ in range(4):
        assert _stretch(browser)[1] <= last + 1e-6
        box.send_keys("-")
    assert _boxes(browser, ".vmedge")[0]["says"].endswith("the VM is torn down")
    end = _boxes(browser, ".vmedge")[0]["left"]
    assert all(lane["right"] <= end + 1.5 for lane in _boxes(browser, "rect.out"))


def test_the_legend_has_what_occurs(browser: Browser) -> None:
    _finding(browser, MISTAKES, "ITS101")
    assert browser.texts("section:not([hidden]) .explorer .legend span") == ["vCPU in the guest", "command"]
    browser.open(page_of("6.12-lost-records.dat"), "lpi=0:8193")
    browser.wait(DRAWN)
    assert "records lost" in browser.texts("section:not([hidden]) .explorer .legend span")
    assert _boxes(browser, "rect.gap")


@pytest.mark.parametrize("width", [1280, 2560])
def test_the_first_screen_does_not_jump(browser: Browser, width: int) -> None:
    browser.size(width, 900)
    browser.open(page_of(DOUBLE))
    browser.wait(DRAWN)
    moved = browser.promised(
        "return new Promise(tell => { const seen = [];"
        " new PerformanceObserver(list => seen.push(...list.getEntries())).observe({type: 'layout-shift', buffered: true});"
        " requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => tell(seen.map(one =>"
        " [one.value, one.sources.map(each => (each.node?.parentNode ?? each.node)?.outerHTML?.slice(0, 120))])), 200)))})"
    )
    assert [one for one in moved if one[0] > 0.001] == []
    browser.size(1280, 900)


@pytest.mark.parametrize("width", [400, 640])
def test_a_narrow_window_holds_it(browser: Browser, width: int) -> None:
    for place in ("", "finding=ITS401", "lpi=0:8193"):
        browser.size(width, 800)
        browser.open(page_of(DOUBLE), place)
        browser.wait(DRAWN)
        box = browser.run(
            "const one = document.querySelector('section:not([hidden]) .pathbox svg').getBoundingClientRect();"
            "return [one.left, one.right]"
        )
        assert box[0] >= 0
        assert box[1] <= width, place
        assert (
            browser.run(
                "return document.querySelector('section:not([hidden]) .pathbox svg').viewBox.baseVal.width"
            )
            <= width
        )
    browser.size(1280, 900)


def test_every_finding_of_every_rule_is_drawn_with_its_records(browser: Browser) -> None:
    for name in (MISTAKES, LOST, "6.12-lost-records.dat", "6.12-stranded-lpi.dat", "6.1-stale-target.dat"):
        browser.size(1280, 900)
        browser.open(page_of(name), "view=findings")
        drawn = browser.run(
            "return itstrace.report.findings.filter(one => one.evidence.length && one.vm !== null).map(one => one.id)"
        )
        for identity in drawn:
            browser.go(f"finding={identity}")
            browser.wait(DRAWN)
            assert _flags(browser), (name, identity)
    assert browser.heard() == []


def test_paper_has_the_pictures(browser: Browser) -> None:
    browser.open(page_of(DOUBLE))
    browser.promised("await itstrace.frames()")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.wait("return document.querySelector('#paper .finding svg.path .held')")
    assert browser.run("return document.querySelector('#paper .worst svg.path .held') !== null")
    assert browser.run("return document.querySelector('#paper .worst .markkey').textContent").startswith(
        "1 into LR0"
    )
