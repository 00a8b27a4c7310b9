"""report.html: it stands alone, says what the rows say, and works in a browser, on a phone, in the dark and by keyboard.

The last part runs in headless Chromium, where selenium, Chromium and its driver are installed.
"""

import importlib.util
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import made_up_rows as made
import pytest
from conftest import ROOT, Call, refusal

from common import files
from common.report import rows as report_rows
from common.report.__main__ import main
from common.report.claims import CLAIMS
from common.report.editions import Edition, Selection, StoredRow
from common.report.make import make_chosen
from common.report.report_page import headlines

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """A page as a list of elements; tags that are not closed in order are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def rows() -> list[made.Row]:
    """Undefended with scores to draw, a defense with a name to escape, and a missing scenario."""
    found = [made.evaluation(scenario=one, auc=0.8 if one is None else 0.7) for one in (None, "1", "2", "3")]
    return [*found, made.evaluation(defense="mine<b>&"), made.intervals("cifar10", 30, 160)]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page from made-up rows."""
    folder = tmp_path_factory.mktemp("page")
    return make_chosen(ROOT, made.write_rows(folder, *rows()), folder / "out", Selection(), (), ())


@pytest.fixture(scope="module")
def page(page_file: Path) -> Page:
    return Page(page_file.read_text())


def test_it_loads_nothing_and_runs_no_script(page_file: Path, page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    sources = [image["src"] or "" for image in page.all("img")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://|\son\w+=", re.sub(r"base64,[^\"]*", "", page_file.read_text()))


def test_ids_are_unique_and_links_lead_to_them(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    links = [link["href"] or "" for link in page.all("a")]
    assert len(links) > 20
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_headings_go_down_one_step_at_a_time_and_pictures_have_words(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(len(image["alt"] or "") > 40 for image in page.all("img"))
    assert all(head.get("scope") for head in page.all("th"))


def test_wide_tables_scroll_in_a_named_box_that_the_keyboard_reaches(page: Page) -> None:
    boxes = [one for one in page.all("div") if "wide" in (one.get("class") or "").split()]
    assert len(boxes) == len(page.all("table"))
    assert all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in boxes)


def test_the_headline_is_what_the_rows_say(page: Page) -> None:
    assert "0.800 → 0.700" in page.text
    assert "± 0.020 and ± 0.020 (95% interval, one seed)." in page.text
    assert "Floor: 0.620." in page.text
    assert "Test accuracy 75.0%. Diffence changed 0 of 12,000 labels, so accuracy is unchanged." in page.text
    assert "0.791 → 0.681" in page.text  # the paper's Table III
    changed = made.evaluation(scenario="1")
    changed["diffence"]["labels_changed"]["members"] = 3
    assert "unchanged" not in headline_of(made.evaluation(), changed)


def headline_of(*found: made.Row) -> str:
    edition = Edition("narrow", "clean", [StoredRow(row, Path()) for row in found])
    cards = headlines(edition)
    assert cards is not None
    return " ".join(cards[1][0].lines)


def test_several_seeds_are_a_mean_with_their_deviation() -> None:
    found = [made.evaluation(auc=auc, seed=seed, scenario=one) for seed, auc in enumerate((0.7, 0.8)) for one in (None, "1")]
    assert "± 0.071 and ± 0.071 (standard deviation over 2 seeds)." in headline_of(*found)


def test_every_claim_has_its_verdict_and_names_are_escaped(page_file: Path, page: Page) -> None:
    for claim in CLAIMS:
        assert re.search(re.escape(claim.title) + r": (holds|holds in part|does not hold here|cannot|not measured)", page.text)
    assert "mine<b>&" in page.text
    assert "mine<b>" not in page_file.read_text()


def test_what_was_run_and_how_to_run_it_again(page: Page) -> None:
    for fact in ("0123456789ab", "25,000", "2,000 + 2,000", "30, 160", "cpu"):
        assert fact in page.text
    assert "bash all-train-all.sh --datasets cifar10 --profile narrow" in page.text


# the command


def test_the_command_writes_what_is_asked_for_and_nothing_else(tmp_path: Path, call: Call) -> None:
    folder = made.write_rows(tmp_path, *rows())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = call(main, ROOT, "--rows", folder, "--out", tmp_path / "out", "--table", "III", "--figure", "5", "8")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == f"Report: {tmp_path / 'out' / 'report.html'}"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    table, figure = "table-III-narrow-clean", "figure-5-narrow-clean"
    pictures = {f"{figure}.png", f"{figure}.pdf", f"{figure}.csv"}
    assert names == {"report.html", "README.md", "tables.tex", f"{table}.tex", f"{table}.csv"} | pictures
    assert {path: path.read_bytes() for path in before} == before


def test_refusals(tmp_path: Path, call: Call) -> None:
    folder = made.write_rows(tmp_path, made.evaluation())
    options = ("--rows", folder, "--out", tmp_path / "out")
    assert "Known: III, IV, V, VI, VII, VIII." in refusal(call(main, ROOT, *options, "--table", "IX"))
    assert "Did you mean 'cifar10'?" in refusal(call(main, ROOT, *options, "--dataset", "cifar-10"))
    assert "is no folder" in refusal(call(main, ROOT, "--rows", tmp_path / "none", "--table", "III"))
    assert "takes no options" in refusal(call(main, ROOT, "--out", tmp_path / "out", "collect", "cifar10"))
    (tmp_path / "empty").mkdir()
    assert "holds no rows" in refusal(call(main, ROOT, "--rows", tmp_path / "empty", "--table", "III"))


def test_a_row_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is what grows with the rows (benchmarks/report.py measures 1,000 of them)."""
    folder = made.write_rows(tmp_path, *rows())
    read: list[Path] = []

    def read_json(path: Path, remake: str) -> made.Row:
        read.append(path)
        return files.read_json(path, remake)

    monkeypatch.setattr(report_rows, "read_json", read_json)
    make_chosen(ROOT, folder, tmp_path / "out", Selection(), ["III"], [])
    assert Counter(read) == Counter(folder.rglob("*.json"))


# in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and importlib.util.find_spec("selenium")),
    reason="needs selenium, Chromium and chromedriver (pip install selenium; apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def visit(browser: Any, page: Path, width: int, scheme: str = "light") -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(f"file://{page}")


@in_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_no_error_no_request_and_no_sideways_scrolling(browser: Any, page_file: Path, width: int) -> None:
    visit(browser, page_file, width)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    requests = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert requests and not [one for one in requests if re.search(r'"url":"https?:', one)]
    broken = "return [...document.images].filter(one => one.complete && !one.naturalWidth).length"
    assert browser.execute_script(broken) == 0


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(browser: Any, page_file: Path, scheme: str) -> None:
    """WCAG's contrast of at least 4.5 for text, soft text, links and verdicts."""
    visit(browser, page_file, 1280, scheme)
    colors = browser.execute_script(
        """const all = [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color];
        for (const name of ['small', 'holds', 'fails', 'part', 'open']) {
          const one = document.body.appendChild(document.createElement('p')); one.className = name;
          all.push(getComputedStyle(one).color); }
        return [...all, getComputedStyle(document.querySelector('a')).color]"""
    )

    def luminance(color: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
        red, green, blue = (value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    back, *texts = map(luminance, colors)
    assert len(texts) == 7
    assert (back < 0.5) == (scheme == "dark")
    assert min((max(back, one) + 0.05) / (min(back, one) + 0.05) for one in texts) >= 4.5


@in_browser
def test_the_keyboard_reaches_the_content(browser: Any, page_file: Path) -> None:
    """Tab shows the skip link first, Enter goes to the content, and Enter on a claim opens it, with a visible focus."""
    from selenium.webdriver.common.keys import Keys

    visit(browser, page_file, 1280)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the content"
    assert skip.rect["x"] >= 0
    skip.send_keys(Keys.ENTER)
    assert browser.execute_script("return location.hash") == "#main"
    summary = browser.find_element("css selector", "summary")
    browser.execute_script("arguments[0].focus({focusVisible: true})", summary)
    assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", summary) == "solid"
    summary.send_keys(Keys.ENTER)
    assert browser.execute_script("return arguments[0].parentElement.open", summary)
