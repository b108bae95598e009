"""The report's page in a real browser: sorts, filters, colours, origins, print, and what it must not do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import stores
from shortstack.report import Report, write_report
from shortstack.runs.records import read

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
needed = pytest.mark.skipif(
    not CHROMIUM and "CI" not in os.environ, reason="chromium is not installed: apt-get install chromium"
)
pytestmark = needed


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "CI tests the page in a real browser: apt-get install -y chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS.split())
        yield running
        running.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with everything in it, names that are markup too."""
    return stores.write(tmp_path_factory.mktemp("runs"), documents=60)


@pytest.fixture(scope="module")
def file(runs: Path) -> str:
    return write_report(runs, runs / "report.html").as_uri()


@pytest.fixture
def page(browser: Browser, file: str) -> Iterator[Page]:
    """The page on a desk; whatever it says on the console or asks the network for fails the test."""
    with opened(browser, file, width=1280) as found:
        yield found


@contextmanager
def opened(browser: Browser, file: str, *, width: int, folded: bool = False, **options: Any) -> Iterator[Page]:
    """A page that must stay silent and at home. folded: tables stay as they are at first."""
    said: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 844}, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)  # a busy machine
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if outside(request.url) else None)
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(file)
    if not folded:
        page.evaluate("document.querySelectorAll('details.table').forEach(each => each.open = true)")
    yield page
    context.close()
    assert said == []


def outside(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


def column(page: Page, table: str, number: int, *, block: int = 0) -> list[str]:
    """What a column shows in the rows that can be seen, the unpruned model's left out."""
    script = f"""[...document.querySelectorAll('#table-{table} tbody')].filter(b => !b.classList.contains('out'))[{block}]
        .querySelectorAll('tr.row:not(.out)')"""
    return page.evaluate(f"[...{script}].map(row => row.cells[{number}].innerText)")


def values(texts: list[str]) -> list[float]:
    return [float(text.split()[0]) for text in texts]


def test_it_is_one_page_without_errors_or_requests(page: Page) -> None:
    assert page.locator("h1").inner_text() == "Which layers a small model can do without"
    assert page.evaluate("document.querySelectorAll('script[src], link[href^=http], img, iframe').length") == 0
    assert page.evaluate("window.pwned") is None


OUTSIDE = """() => [...document.querySelectorAll("svg text")].filter(text => {
    const [own, all] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
    return own.width && (own.left < all.left - 0.5 || own.right > all.right + 0.5);
}).map(text => text.textContent)"""


def test_no_word_of_a_chart_is_cut_off(browser: Browser, page: Page, tmp_path: Path) -> None:
    assert page.evaluate(OUTSIDE) == []
    real = shutil.copytree(Path(__file__).parents[2] / "studies" / "smollm2", tmp_path / "smollm2")
    file = write_report(real, real / "report.html").as_uri()
    for width in (390, 1280):
        with opened(browser, file, width=width) as found:
            assert found.locator("svg text").count() > 50
            assert found.evaluate(OUTSIDE) == []


def test_a_click_on_a_heading_sorts_each_block(page: Page) -> None:
    heading = page.locator("#table-metrics thead th").nth(1)
    for block in (0, 1):
        assert len(column(page, "metrics", 1, block=block)) == 6
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    for block in (0, 1):
        found = values(column(page, "metrics", 1, block=block))
        assert found == sorted(found, reverse=True)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert values(column(page, "metrics", 1)) == sorted(values(column(page, "metrics", 1)))
    assert page.locator("#table-metrics tbody").first.locator("tr").nth(1).inner_text().startswith("unpruned")


def test_the_keyboard_sorts_too_and_names_by_letters(page: Page) -> None:
    page.locator("#table-metrics thead th button").first.focus()
    page.keyboard.press("Enter")
    names = column(page, "metrics", 0)
    assert names == sorted(names)
    assert names != sorted(names, reverse=True)


def test_infinite_numbers_sort_above_all_and_missing_ones_last(page: Page) -> None:
    heading = page.locator("#table-settings thead th", has_text="wikitext")
    number = heading.evaluate("th => th.cellIndex")
    heading.locator("button").click()
    shown = [text.split()[0].rstrip("↓") for text in column(page, "settings", number)]
    assert shown[0] == "∞"
    assert shown[-1] == "NaN"
    finite = values(shown[1:-1])
    assert finite == sorted(finite, reverse=True)
    assert finite[0] > 100 > finite[-1], "as words 99 would come before 100"
    heading.locator("button").click()
    shown = [text.split()[0].rstrip("↓") for text in column(page, "settings", number)]
    assert shown[-1] == "NaN"
    assert shown[-2] == "∞"


def test_words_and_chips_filter_rows_blocks_and_lines(page: Page, runs: Path) -> None:
    settings = Report.of(runs).findings.results
    before = page.locator(".chart .series:visible").count()
    page.locator(".chips > summary").click()
    page.locator(".chip", has_text="taylor").click()
    assert page.locator(".chip", has_text="taylor").get_attribute("aria-pressed") == "true"
    shown = column(page, "settings", 0)
    assert len(shown) == sum(each.factors["metric"] == "taylor" for each in settings)
    assert page.locator(".chart .series:visible").count() < before
    assert page.locator("#table-repair tbody:visible").count() == 0, "no block is left without rows"
    page.locator(".chip", has_text="50%").click()
    both = [each for each in settings if each.factors["metric"] == "taylor" and each.factors["drop"] == "50%"]
    assert len(column(page, "settings", 0)) == len(both)
    assert re.fullmatch(r"\d+ of \d+ rows", page.locator("#count").inner_text())
    page.keyboard.press("Escape")
    page.locator("#clear").click()
    assert len(column(page, "settings", 0)) == len(settings)
    page.locator("#find").fill("dolly")
    assert len(column(page, "settings", 0)) == sum(each.factors["data"] == "dolly" for each in settings)
    page.locator("#find").fill("dolly reverse")
    assert len(column(page, "settings", 0)) == 1
    page.locator("#find").fill("")
    assert len(column(page, "settings", 0)) == len(settings)
    assert page.locator("#count").inner_text() == ""


def test_a_number_shows_the_step_it_comes_from(page: Page, runs: Path) -> None:
    (table,) = (each for each in Report.of(runs).tables if each.key == "healing")
    cell = next(row for row in table.rows if row.label == "lora").cells[1]
    step = read(runs).steps[cell.steps[0]]
    page.locator("#table-healing tr", has_text="lora").first.locator("td a").first.click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    for fact in (step.key, step.command, step.host, "torch 2.13.0", cell.why):
        assert str(fact) in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.locator("#table-settings tbody tr.row th a").first.click()
    assert dialog.locator("h2").inner_text() == "trial 1"
    dialog.locator("a", has_text="evaluate").first.click()
    assert dialog.locator("h2").inner_text().startswith("evaluate")


def test_without_its_script_a_number_is_a_link_to_its_step(browser: Browser, file: str) -> None:
    with opened(browser, file, width=1280, java_script_enabled=False) as page:
        target = page.locator("#table-healing tbody tr.row td a").first.get_attribute("href")
        assert page.locator(f"details{target} dl").count() == 1
        assert not page.locator("#bar").is_visible()


def test_colours_follow_the_system_until_they_are_chosen(browser: Browser, file: str) -> None:
    def paper(page: Page) -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    with opened(browser, file, width=1280, color_scheme="dark") as page:
        dark = paper(page)
        page.emulate_media(color_scheme="light")
        light = paper(page)
        assert light != dark
        page.locator("#theme").click()
        assert (page.locator("#theme").inner_text(), paper(page)) == ("Light", light)
        page.locator("#theme").click()
        assert (page.locator("#theme").inner_text(), paper(page)) == ("Dark", dark)
        page.locator("#theme").click()
        assert (page.locator("#theme").inner_text(), paper(page)) == ("Auto", light)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_what_is_behind_it(browser: Browser, file: str, scheme: str) -> None:
    """WCAG 2.2 AA: a contrast of 4.5 for the colours of text on both backgrounds."""
    script = """names => { const probe = document.body.appendChild(document.createElement('i'));
        return names.map(name => { probe.style.color = `var(--${name})`;
            return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number); }); }"""
    with opened(browser, file, width=1280, color_scheme=scheme) as page:
        paper, sheet, *inks = page.evaluate(script, ["paper", "sheet", "ink", "soft", "accent", "bad"])
    assert min(contrast(ink, behind) for ink in inks for behind in (paper, sheet)) >= 4.5


def contrast(one: list[float], other: list[float]) -> float:
    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_a_phone_scrolls_tables_and_not_the_page(browser: Browser, file: str) -> None:
    with opened(browser, file, width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        wide = page.locator("#metrics .scroll")
        assert wide.evaluate("each => each.scrollWidth > each.clientWidth")
        wide.evaluate("each => each.scrollTo(200, 300)")
        header, name = (wide.locator(each).first.bounding_box() for each in ("thead th", "tbody:visible tr.base th"))
        box = wide.bounding_box()
        assert box
        assert header
        assert name
        assert abs(header["y"] - box["y"]) < 3, "the heading stays"
        assert abs(header["x"] - box["x"]) < 3, "the first column stays"
        assert abs(name["x"] - box["x"]) < 3
        ticks = "[...document.querySelectorAll('.chart:not(.heat) .tick')].filter(t => t.getClientRects().length)"
        sizes = f"{ticks}.map(t => t.getBoundingClientRect().height)"
        assert min(page.evaluate(sizes)) >= 11, "numbers along axes can be read"
        page.locator(".chips > summary").click()
        panel = page.locator(".panel").bounding_box()
        assert panel
        assert panel["x"] >= 0
        assert panel["x"] + panel["width"] <= 390


@pytest.mark.parametrize(("width", "shown", "hidden"), [(1400, ".wide", ".narrow"), (390, ".narrow", ".wide")])
def test_a_chart_alone_in_its_row_is_as_wide_as_the_page(
    browser: Browser, file: str, width: int, shown: str, hidden: str
) -> None:
    with browser.new_context(viewport={"width": width, "height": 900}) as context:
        page = context.new_page()
        page.goto(file)
        charts = page.locator(f".pictures > figure:only-child > {shown} > svg")
        (room,) = {
            round(section["width"]) for each in page.locator("main > section").all() if (section := each.bounding_box())
        }
        boxes = [box for each in charts.all() if (box := each.bounding_box())]
        assert boxes
        assert all(abs(box["width"] - room) < 2 for box in boxes)
        assert not any(each.bounding_box() for each in page.locator(f"{hidden} > svg").all())


def test_everything_has_a_name_for_those_who_do_not_see_it(page: Page) -> None:
    faults = page.evaluate("""() => [
        ...[...document.querySelectorAll('table')].filter(t => !t.caption?.textContent).map(t => `caption of ${t.id}`),
        ...[...document.querySelectorAll('th:not([scope])')].map(t => `scope of ${t.textContent}`),
        ...[...document.querySelectorAll('svg[role=img]:not([aria-label])')].map(() => 'name of a figure'),
        ...[...document.querySelectorAll('button')].filter(b => !(b.textContent.trim() || b.ariaLabel)).map(() => 'button'),
        ...[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, n, ids) => ids.indexOf(id) !== n),
    ]""")
    assert faults == []
    levels = page.evaluate("[...document.querySelectorAll('main h1, main h2, main h3')].map(h => h.tagName)")
    assert set(levels) == {"H2"}
    assert page.locator("main").count() == page.locator("h1").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_no_rule_of_axe_is_broken(browser: Browser, file: str, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, file, width=width, color_scheme=scheme) as page:
        found = Axe().run(page)
    assert found.response["passes"]
    assert found.violations_count == 0, found.generate_report()


def test_the_page_of_a_large_study_is_not_long_and_loses_nothing(browser: Browser, tmp_path: Path) -> None:
    real = shutil.copytree(Path(__file__).parents[2] / "studies" / "smollm2", tmp_path / "smollm2")
    assert len(read(real).trials) == 75
    with opened(browser, write_report(real, real / "report.html").as_uri(), width=1400, folded=True) as page:
        assert page.evaluate("document.documentElement.scrollHeight") <= 6000
        rows = page.locator("#table-settings tr.row")
        page.locator("#settings details.table > summary").click()
        assert rows.nth(20).is_hidden()
        page.locator("#settings .fold").click()
        assert rows.nth(20).is_visible()
        assert page.evaluate("[...document.querySelectorAll('tr.base')].filter(r => r.offsetParent).length") > 0


def test_a_filter_looks_at_folded_rows_too(page: Page) -> None:
    row = page.locator("#table-settings tr.row").last
    assert row.is_hidden()
    page.locator("#find").fill((row.locator("th").text_content() or "").replace("…", " "))
    assert row.is_visible()


def test_it_prints_every_row(page: Page, tmp_path: Path) -> None:
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") >= 3
    page.emulate_media(media="print")
    assert not page.locator("#bar").is_visible()
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(each => each.scrollHeight <= each.clientHeight + 1)"
    )
    assert page.locator("#failed .trace").first.is_visible()


def test_a_link_to_a_step_opens_the_list_it_is_in(browser: Browser, file: str) -> None:
    with opened(browser, f"{file}#s3", width=1280) as page:
        assert page.locator("#s3 dl").is_visible()
