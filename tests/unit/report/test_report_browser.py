"""The page in a real Chromium: no complaint, tooltips, filter, keyboard, phone, speed."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from chromium import BINARY, Page, chromium

from orchestrator.report.page import render

pytestmark = pytest.mark.skipif(BINARY is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def page(recorded, tmp_path_factory) -> Iterator[Page]:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(render(recorded, pictures=False)[0])
    with chromium() as tab:
        tab.size(1280, 900)
        tab.open(file)
        yield tab


def test_it_loads_quietly_and_alone(page):
    assert page.complaints() == []
    assert page.requests() == []
    assert page.js("document.scripts.length") == 1  # that of a run's tag is text


def test_the_keyboard_reaches_points_and_their_tooltips(page):
    page.js("document.querySelector('#front .wide .tip[tabindex=\"0\"]').focus()")
    first = page.js("document.getElementById('tooltip').textContent")
    assert "clean" in first
    page.key("ArrowRight")
    second = page.js("document.getElementById('tooltip').textContent")
    assert second != first
    assert not page.js("document.getElementById('tooltip').hidden")
    page.key("Escape")
    assert page.js("document.getElementById('tooltip').hidden")


def test_the_mouse_shows_a_tooltip(page):
    page.js("document.querySelector('#front').scrollIntoView()")
    page.settle()  # scrolling hides a tooltip
    x, y = page.js(
        "(() => {const mark = document.querySelector('#front .wide .mark.won');"
        "const r = mark.getBoundingClientRect();"
        "return [r.left + r.width / 2, r.top + r.height / 2]})()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert "verified" in page.js("document.getElementById('tooltip').textContent")


def test_the_filter_takes_trials_out_of_pictures_and_table(page, recorded):
    shown = "document.querySelectorAll('#trials tbody tr:not([hidden])').length"
    assert page.js(shown) == len(recorded.trials)
    page.js(
        "(() => {const i = document.querySelector('fieldset[data-axis=\"0\"] input');"
        "i.value = 500; i.dispatchEvent(new Event('input', {bubbles: true}))})()"
    )
    values = [trial.point["k1"] for trial in recorded.trials]
    half = (min(values) + max(values)) / 2
    kept = sum(value >= half for value in values)
    assert page.js(shown) == kept
    assert page.js("document.querySelectorAll('.parallel .tip:not(.out)').length") == kept
    assert page.js("document.getElementById('count').textContent") == f"{kept} of 10 trials"
    page.js("document.getElementById('reset').click()")
    assert page.js(shown) == len(recorded.trials)
    page.js(
        "(() => {const c = document.querySelector('fieldset[data-axis=\"3\"] select');"
        "c.value = '1'; c.dispatchEvent(new Event('input', {bubbles: true}))})()"
    )
    trades = sum(trial.point["objective.accuracy"] == "trades" for trial in recorded.trials)
    assert page.js(shown) == trades
    page.js("document.getElementById('reset').click()")


def keep_k1_from(page, share):
    page.js(
        "(() => {const i = document.querySelector('fieldset[data-axis=\"0\"] input');"
        f"i.value = {1000 * share}; i.dispatchEvent(new Event('input', {{bubbles: true}}))}})()"
    )


def test_what_the_filter_leaves_can_be_reached_by_the_keyboard(page, recorded):
    stop = '.points .tip[tabindex="0"]'
    visible = f"[...document.querySelectorAll('{{}} {stop}')].map(t => !t.matches('.out'))"
    values = sorted(trial.point["k1"] for trial in recorded.trials)
    for kept in range(1, len(values)):  # whichever trial was the stop, it is taken out once
        share = (values[kept] + values[kept - 1]) / 2 - values[0]
        keep_k1_from(page, share / (values[-1] - values[0]))
        assert page.js(visible.format("#parameters figure.scroll")) == [True]
        left = [t for t in recorded.trials if t.whole and t.point["k1"] >= values[kept]]
        assert page.js(visible.format("#front .wide")) == ([True] if left else [])
    page.js("document.getElementById('reset').click()")


def test_labels_and_border_go_with_their_points(page, recorded):
    label = f'#front .wide [data-trial="{recorded.winner.number}"] > .label'
    border = "#front .wide .border"
    hidden = "getComputedStyle(document.querySelector('{}').closest('svg *')).display === 'none'"
    gone = f"document.querySelector('{label}').closest('.out') !== null"
    assert not page.js(gone)
    keep_k1_from(page, 1.001)
    assert page.js(gone)
    assert page.js(hidden.format(border))
    page.js("document.getElementById('reset').click()")
    assert not page.js(gone)
    assert not page.js(hidden.format(border))


def test_dragging_along_an_axis_keeps_a_part_of_it(page, recorded):
    shown = "document.querySelectorAll('.parallel .tip:not(.out)').length"
    hold = "document.querySelector('.brush[data-axis=\"0\"] .hold').getBoundingClientRect()"
    page.js("document.querySelector('.parallel').scrollIntoView()")
    page.settle()
    x, top, bottom = page.js(f"(r => [r.left + r.width / 2, r.top, r.bottom])({hold})")
    middle = (top + bottom) / 2

    def mouse(kind, y):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    mouse("mousePressed", top + 1)
    mouse("mouseMoved", middle)
    mouse("mouseReleased", middle)
    values = [trial.point["k1"] for trial in recorded.trials]
    kept = sum(value >= (min(values) + max(values)) / 2 for value in values)
    assert 0 < kept < len(values)
    assert page.js(shown) == kept
    sliders = "[...document.querySelectorAll('fieldset[data-axis=\"0\"] input')].map(i => +i.value)"
    assert page.js(sliders) == [pytest.approx(500, abs=5), pytest.approx(1000, abs=5)]
    mouse("mousePressed", middle)
    mouse("mouseReleased", middle)
    assert page.js(shown) == len(recorded.trials)
    assert page.js(sliders) == [0, 1000]


def test_dark_and_light(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.js(colour)
    page.js("document.getElementById('theme').click()")
    assert page.js(colour) != light
    page.js("document.getElementById('theme').click()")
    assert page.js(colour) == light


def printed_colours(page, path):
    """Fill colours of a PDF: red, green and blue in [0, 1]."""
    page.pdf(path)
    found = set()
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", path.read_bytes(), re.DOTALL):
        try:
            drawn = zlib.decompress(stream)
        except zlib.error:  # a font or an image
            continue
        for fill in re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg", drawn):
            found.add(tuple(round(float(part), 2) for part in fill))
    return found


@pytest.mark.parametrize("dark", ["theme", "system"])
def test_what_is_dark_on_the_screen_is_printed_light(page, tmp_path, dark):
    light = printed_colours(page, tmp_path / "light.pdf")
    assert (0, 0, 0) in light
    if dark == "theme":
        page.js("document.documentElement.dataset.theme = 'dark'")
    else:
        feature = {"name": "prefers-color-scheme", "value": "dark"}
        page.call("Emulation.setEmulatedMedia", features=[feature])
    assert page.js("getComputedStyle(document.body).color") == "rgb(232, 234, 237)"
    assert printed_colours(page, tmp_path / "dark.pdf") == light
    page.js("delete document.documentElement.dataset.theme")
    page.call("Emulation.setEmulatedMedia", features=[])


def test_on_paper_results_come_before_commands_and_charts_stay_with_their_words(page):
    page.call("Emulation.setEmulatedMedia", media="print")
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert page.js(top.format(".again")) > page.js(top.format("#trials"))
    after = "[...document.querySelectorAll('{}')].map(e => getComputedStyle(e).breakAfter)"
    assert set(page.js(after.format("section > h2, section > p, .legend"))) == {"avoid"}
    page.call("Emulation.setEmulatedMedia", media="")
    assert page.js(top.format(".again")) < page.js(top.format("#front"))


def test_files_stay_folded_in_print(page, tmp_path):
    page.js("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    page.pdf(tmp_path / "page.pdf")
    opened = "[...document.querySelectorAll('details{}')].map(d => d.open)"
    assert set(page.js(opened.format(".file"))) == {False}
    assert set(page.js(opened.format(":not(.file)"))) == {True}


def test_the_axes_text_is_no_larger_than_the_bodys(page):
    drawn = (
        "(() => {const svg = document.querySelector('svg.parallel');"
        "return svg.getBoundingClientRect().width / svg.viewBox.baseVal.width})()"
    )
    assert 13 * page.js(drawn) <= 16


def test_charts_side_by_side_are_level_whatever_their_captions(page):
    caption = "document.querySelector('.panels figcaption')"
    said = page.js(f"{caption}.textContent")
    page.js(f"{caption}.textContent = 'long '.repeat(40)")
    tops = page.js(
        "[...document.querySelectorAll('.panels svg')].slice(0, 2)"
        ".map(s => s.getBoundingClientRect().top)"
    )
    assert tops[0] == pytest.approx(tops[1], abs=1)
    page.js(f"{caption}.textContent = {json.dumps(said)}")


def test_a_phone_is_told_what_fingers_do(page):
    page.size(390, 844, phone=True)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    shown = "[...document.querySelectorAll('{}')].map(e => getComputedStyle(e).display !== 'none')"
    assert set(page.js(shown.format(".touch"))) == {True}
    assert set(page.js(shown.format(".mouse"))) == {False}
    heights = "[...document.querySelectorAll('#answer .copy')].map(b => b.offsetHeight)"
    assert max(page.js(heights)) < 32  # one line
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)
    page.size(1280, 900)
    assert set(page.js(shown.format(".touch"))) == {False}


def test_a_phone_needs_no_sideways_scrolling(page):
    page.size(390, 844, phone=True)
    assert page.js("document.documentElement.scrollWidth") <= 390
    narrow = "getComputedStyle(document.querySelector('#front .narrow')).display"
    assert page.js(narrow) == "block"
    page.size(1280, 900)
    assert page.complaints() == []


def test_two_hundred_trials_are_small_and_open_at_once(page, recorded, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.report.importance.RESAMPLINGS", 2)
    many = [
        replace(trial, number=10 * copy + trial.number)
        for copy in range(20)
        for trial in recorded.trials
    ]
    file = tmp_path / "many.html"
    file.write_text(render(replace(recorded, trials=many), pictures=False)[0])
    assert file.stat().st_size < 1.5e6
    page.open(file)
    times = "performance.timing.loadEventEnd - performance.timing.navigationStart"
    assert 0 < page.js(times) < 2000
    assert page.js("document.querySelectorAll('#trials tbody tr').length") == 200
