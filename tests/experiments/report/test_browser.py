"""The report in a browser: what only shows there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from synthetic_runs import comparison, run

from experiments.pages.render import write_page
from experiments.report.build import data_files, make_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install -e '.[dev]')")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ERROR = "<script>document.title = 'taken over'</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    home = {"XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("config"))}  # crash reports go there, whatever the profile
    driver = webdriver.Chrome(options=options, service=Service(DRIVER, env=os.environ | home))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = comparison({"good": 90.0, "poor": 30.0, "<b>odd</b> $x$ _": 60.0}, seeds=3, envs=["Pole-v1"])
    bad = run("good", "Pole-v1", 9, 5.0, points=2, state="failed", error=ERROR)
    made = replace(made, runs=[*made.runs, bad])
    path = write_page(make_page(made), tmp_path_factory.mktemp("report") / "page", data_files(made))
    return path.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    browser.set_window_size(1280, 900)
    browser.get(address)
    return browser


def all_of(page: Any, selector: str) -> list[Any]:
    return list(page.find_elements(By.CSS_SELECTOR, selector))


def one(page: Any, selector: str) -> Any:
    return page.find_element(By.CSS_SELECTOR, selector)


def test_it_loads_nothing_but_itself_and_logs_no_error(page: Any, address: str) -> None:
    page.get_log("performance")
    page.get(address)
    assert page.get_log("browser") == []
    asked = [entry["message"] for entry in page.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert asked
    assert not [message for message in asked if '"url":"http' in message]
    links = page.execute_script(
        "return [...document.querySelectorAll('[src], [href]')].map(e => e.getAttribute('href') ?? e.src)"
    )
    assert links
    assert not [link for link in links if "http" in str(link)]


def test_what_a_run_says_is_text(page: Any) -> None:
    assert page.title == "Synthetic"
    assert not all_of(page, "main b")
    assert ERROR in one(page, "#failures").get_attribute("textContent")
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = arguments[0]; document.body.append(s)",
        "document.title = 'taken over'",
    )
    assert page.title == "Synthetic"  # the page's policy lets no other script run
    page.get_log("browser")


def test_an_agent_can_be_hidden_in_all_figures(page: Any) -> None:
    def shown(agent: str) -> set[bool]:
        script = (
            "return [...document.querySelectorAll('#curves [data-agent]')].filter(e => e.dataset.agent === arguments[0]"
            " && e.closest('.option:not([hidden])')).map(e => e.getClientRects().length > 0)"
        )
        return set(page.execute_script(script, agent))

    assert shown("good") == shown("poor") == {True}
    box = one(page, ".agents input[value='good']")
    box.send_keys(Keys.SPACE)
    assert shown("good") == {False}
    assert shown("poor") == {True}
    hidden = "return [...document.querySelectorAll('#improvement .off')].map(e => [e.dataset.agent, e.dataset.other])"
    assert {tuple(pair) for pair in page.execute_script(hidden)} == {("good", "poor"), ("good", "<b>odd</b> $x$ _")}
    box.send_keys(Keys.SPACE)
    assert shown("good") == {True}


def test_the_x_axis_is_chosen_by_keyboard(page: Any) -> None:
    options = all_of(page, "#curves .option")
    assert [option.is_displayed() for option in options] == [True, False, False]
    one(page, "#curves input[type=radio]").send_keys(Keys.ARROW_RIGHT)
    assert [option.is_displayed() for option in options] == [False, True, False]


def test_a_table_is_sorted_by_keyboard(page: Any) -> None:
    def column() -> list[float]:
        return [float(cell.get_attribute("data-sort")) for cell in all_of(page, "#table-environments td:nth-child(4)")]

    header = one(page, "#table-environments thead th:nth-child(4)")
    button = header.find_element(By.TAG_NAME, "button")
    before = column()
    assert before != sorted(before)
    for key, order, reverse in ((Keys.ENTER, "ascending", False), (Keys.SPACE, "descending", True)):
        button.send_keys(key)
        assert header.get_attribute("aria-sort") == order
        assert column() == sorted(before, reverse=reverse)


def test_the_theme_is_switched_and_figures_with_it(page: Any) -> None:
    def colours() -> list[str]:
        script = "return ['body', '#curves svg text'].map(s => getComputedStyle(document.querySelector(s)))"
        return page.execute_script(f"{script}.map((s, i) => i ? s.fill : s.backgroundColor)")

    light = colours()
    button = one(page, "#theme")
    assert button.text == "Dark theme"
    button.send_keys(Keys.ENTER)
    dark = colours()
    assert button.text == "Light theme"
    assert (light[0], light[1]) == ("rgb(255, 255, 255)", "rgb(28, 31, 35)")
    assert (dark[0], dark[1]) == ("rgb(21, 24, 28)", "rgb(228, 230, 233)")


def test_nothing_but_tables_scrolls_sideways_on_a_phone(page: Any, address: str) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page.get(address)
        page.execute_script("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
        assert page.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        scrolling = "return [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)"
        boxes = page.execute_script(scrolling)
        assert boxes
        assert {box.get_attribute("tabindex") for box in boxes} == {"0"}
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_figures_and_tables_are_described(page: Any) -> None:
    pictures = all_of(page, "main svg")
    assert pictures
    assert all(picture.get_attribute("role") == "img" for picture in pictures)
    assert all(len(picture.get_attribute("aria-label")) > 20 for picture in pictures)
    assert len(all_of(page, "main table")) == len(all_of(page, "main table > caption")) > 3
    assert all(cell.get_attribute("scope") in ("col", "row") for cell in all_of(page, "main th"))
    assert {len(all_of(page, landmark)) for landmark in ("main", "header", "nav", "footer")} == {1}


def test_the_first_stop_of_the_keyboard_skips_to_the_content(page: Any) -> None:
    one(page, "body").send_keys(Keys.TAB)
    first = page.switch_to.active_element
    assert first.text == "Skip to the content"
    assert first.rect["x"] >= 0
