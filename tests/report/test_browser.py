"""The page in a real browser, Chromium driven by selenium; skipped where one of them is not installed."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from causalmad import Detector
from causalmad.inputs import Inputs
from causalmad.report import write_report
from causalmad.signatures import CausalScrubbing
from causalmad.testing.toys import toy
from tests.report.made import made
from tests.report.test_page import ATTACKS, large

LABELS = np.arange(60) % 3 == 0
PAGE = 12  # inputs on a page of the table


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(f"{'chromium' if program is None else 'chromedriver'} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A report of tokens with labels; the ids of some inputs are attacks."""
    names = [*ATTACKS, *(f"input {i}" for i in range(60 - len(ATTACKS)))]
    detection, *_ = made(60, 12, ids=names)
    tokens = np.random.default_rng(0).integers(0, 50, (60, 6))
    inputs = Inputs.of({"input_ids": tokens}, ids=names)
    given = {"labels": LABELS, "normal": np.linspace(0.01, 1, 50), "inputs": inputs, "command": ATTACKS[0]}
    return write_report(tmp_path_factory.mktemp("report") / "report.html", detection, title=ATTACKS[1], **given)


def show(browser, path, width=1400, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(path.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "true"


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def texts(browser, selector):
    return [element.text for element in find(browser, selector)]


def column(browser, number):
    return texts(browser, f"#rows td:nth-child({number})")


def press(browser, key):
    browser.switch_to.active_element.send_keys(key)


def title(browser):
    return find(browser, "#why-title")[0].text


def test_it_opens_without_an_error_or_a_request(browser, path):
    show(browser, path)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert len(find(browser, "#rows tr")) == PAGE and texts(browser, "#count") == ["60 of 60 shown"]
    assert len(find(browser, ".chart svg")) == 3 and all(element.is_displayed() for element in find(browser, ".chart"))


def test_attacks_are_shown_as_text_and_nothing_runs(browser, path):
    show(browser, path)
    browser.execute_script("window.alert = () => { window.attacked = true; };")
    find(browser, "#find")[0].send_keys("alert(1)")
    assert set(column(browser, 1)) == {name for name in ATTACKS if "alert(1)" in name}
    for line in find(browser, "#rows tr"):
        line.click()
    assert browser.execute_script("return window.attacked === undefined")
    assert len(find(browser, "script")) == 2 and not find(browser, "img")
    assert not find(browser, "[onload],[onerror]") and browser.get_log("browser") == []


def test_filters_keep_what_they_say(browser, path):
    from selenium.webdriver.common.keys import Keys

    show(browser, path)
    (box,), (only,) = find(browser, "#find"), find(browser, "#flagged")
    box.send_keys("INPUT 7")
    assert column(browser, 1) == ["input 7"]
    box.send_keys(" nothing like it")
    assert find(browser, "#none")[0].is_displayed() and not find(browser, "#rows tr")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.DELETE)
    only.send_keys(Keys.SPACE)
    shown = column(browser, 4)
    assert 0 < len(shown) and set(shown) == {"flagged"}
    (count,) = texts(browser, "#count")
    assert browser.execute_script("return JSON.parse(document.getElementById('data').textContent).flag").count(
        "1"
    ) == int(count.split()[0])


def test_heads_sort_and_say_how(browser, path):
    show(browser, path)

    def number(text):
        return float(text.replace("−", "-"))

    scores = [number(text) for text in column(browser, 2)]
    assert scores == sorted(scores, reverse=True)
    for _ in range(2):
        find(browser, "th[data-column=score] button")[0].click()
        (order,) = (element.get_attribute("aria-sort") for element in find(browser, "th[data-column=score]"))
        scores = [number(text) for text in column(browser, 2)]
        assert scores == sorted(scores, reverse=order == "descending")
    find(browser, "th[data-column=id] button")[0].click()
    assert [element.get_attribute("aria-sort") for element in find(browser, "th")][:2] == ["ascending", "none"]
    find(browser, "#find")[0].send_keys("input")
    assert column(browser, 1) == [f"input {i}" for i in range(PAGE)]
    assert browser.execute_script("return document.activeElement.id") == "find"


def test_a_click_and_the_keyboard_open_an_explanation(browser, path):
    from selenium.webdriver.common.keys import Keys

    show(browser, path)
    rows = column(browser, 1)
    assert title(browser) == f"Input {rows[0]}"
    find(browser, "#rows tr")[2].click()
    assert title(browser) == f"Input {rows[2]}"
    assert [element.get_attribute("aria-current") for element in find(browser, "#rows tr")][2] == "true"
    amounts = [float(text.replace("−", "-")) for text in texts(browser, "#explanation .amount")]
    total = float(find(browser, "#explanation tfoot .number")[0].text)
    assert len(amounts) == 12 and abs(sum(amounts) - total) < 0.01 * max(1, abs(total))
    assert (
        len(find(browser, ".token")) == 6 and len(find(browser, "svg.map")) == 2 and len(find(browser, ".near li")) == 5
    )

    show(browser, path)
    for _ in range(30):
        press(browser, Keys.TAB)
        if browser.execute_script("return document.activeElement.tagName") == "TR":
            break
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    press(browser, Keys.ARROW_DOWN)
    press(browser, Keys.ENTER)
    assert title(browser) == f"Input {rows[1]}"
    press(browser, Keys.END)
    press(browser, Keys.ENTER)
    last = title(browser)
    assert texts(browser, "#page") == ["page 5 of 5"] and last not in {f"Input {name}" for name in rows}
    press(browser, Keys.HOME)
    press(browser, Keys.ENTER)
    assert title(browser) == f"Input {rows[0]}" and texts(browser, "#page") == ["page 1 of 5"]


def test_pages_hold_every_input_once(browser, path):
    show(browser, path)

    def rows():
        return [int(element.get_attribute("data-row")) for element in find(browser, "#rows tr")]

    seen = rows()
    while find(browser, "#after")[0].is_enabled():
        find(browser, "#after")[0].click()
        seen += rows()
    assert sorted(seen) == list(range(60))
    assert browser.execute_script("return document.activeElement.id") == "before"


def test_an_address_opens_its_input(browser, path):
    show(browser, path)
    find(browser, "#rows tr")[3].click()
    address, opened = browser.current_url, title(browser)
    assert "#" in address
    browser.get("about:blank")
    browser.get(address)
    assert title(browser) == opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1100, 1400])
def test_nothing_needs_sideways_scrolling_in_either_scheme(browser, path, width, scheme):
    show(browser, path, width, scheme)
    wide, dark = browser.execute_script(
        "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    )
    assert wide <= width
    shades = [int(part) for part in dark[dark.index("(") + 1 : -1].split(",")[:3]]
    assert max(shades) < 60 if scheme == "dark" else min(shades) > 200
    find(browser, "#rows tr")[1].click()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []


def test_on_a_phone_an_opened_input_comes_into_view(browser, path):
    show(browser, path, 390)
    find(browser, "#rows tr")[4].click()
    assert browser.execute_script("return document.activeElement.id") == "why-title"
    (back,) = find(browser, ".back a")
    assert back.is_displayed()


def test_failing_parts_of_a_hypothesis_are_marked(browser, tmp_path):
    toys = toy("gpt2", trusted=30, fresh=10)
    fitted = Detector(CausalScrubbing(toys.hypothesis, draws=2)).fit(toys.model, toys.trusted)
    detection = replace(fitted.detect(toys.fresh, alpha=0.2), p_values=np.linspace(0.1, 1, 10))
    given = {"hypothesis": toys.hypothesis, "detector": fitted, "inputs": toys.fresh}
    show(browser, write_report(tmp_path / "report.html", detection, **given))
    assert len(find(browser, ".graph .node")) == 3 and len(find(browser, ".graph .edge")) == 2
    for line in range(10):
        rows = find(browser, "#rows tr")
        row = int(rows[line].get_attribute("data-row"))
        rows[line].click()
        failed = detection.reason(row).failed
        wanted = [failed.removeprefix("claim ")] if failed.startswith("claim ") and detection.flags[row] else []
        assert texts(browser, ".graph .failed .node-name") == wanted
        assert failed in find(browser, "#graph-note")[0].text
        assert find(browser, "dl dt")[0].text.startswith("claim")
    assert browser.get_log("browser") == []


def test_ten_thousand_inputs_open_filter_and_sort(browser, tmp_path):
    fitted, detection, inputs = large()
    path = write_report(tmp_path / "report.html", detection, inputs=inputs, detector=fitted)
    show(browser, path)
    assert texts(browser, "#count") == ["10,000 of 10,000 shown"] and texts(browser, "#page") == ["page 1 of 834"]
    find(browser, "th[data-column=id] button")[0].click()
    assert column(browser, 1)[0] == detection.ids[0]
    find(browser, "#find")[0].send_keys(detection.ids[1234])
    assert column(browser, 1) == [detection.ids[1234]]
    assert len(find(browser, "#rows tr")) == 1 and browser.get_log("browser") == []
