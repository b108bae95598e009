"""The report's page in a real browser: its first screen, sorting, origins, print, and what it must not do."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import stores
from shortstack.report import Report, write_report
from shortstack.runs.records import Conclusion, read

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM and "CI" not in os.environ, reason="chromium is not installed: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "CI tests the page in a real browser: apt-get install -y chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS.split())
        yield running
        running.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A study with everything in it, names that are markup too."""
    return stores.write(tmp_path_factory.mktemp("runs"), documents=20)


@pytest.fixture(scope="module")
def file(runs):
    return write_report(runs, runs / "report.html").as_uri()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The page of a large study."""
    runs = shutil.copytree(Path(__file__).parents[2] / "studies" / "smollm2", tmp_path_factory.mktemp("real") / "runs")
    return write_report(runs, runs / "report.html").as_uri()


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    """The page of one setting, as shrink leaves it."""
    folder = tmp_path_factory.mktemp("shrunk")
    store = stores.Store(folder / "runs")
    plan = stores.plan("bi", 8)
    measured = {"evaluate_base": stores.evaluation(1.0), "evaluate_pruned": stores.evaluation(0.85)}
    store.measured(stores.settings(), plan=plan, prune=plan, **measured)
    store.close()
    report = Report.of(
        replace(read(folder / "runs"), conclusion=Conclusion("Keep it.", ("And why.",), (), "shortstack"))
    )
    (folder / "report.html").write_text(report.html(), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture
def page(browser, file):
    with opened(browser, file) as found:
        yield found


@contextmanager
def opened(browser, file, *, width=1400, folded=False, **options):
    """A page that must stay silent and at home. folded: tables stay as they are at first."""
    said = []
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)  # a busy machine
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if outside(request.url) else None)
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(file)
    if not folded:
        page.evaluate("document.querySelectorAll('section > details').forEach(each => each.open = true)")
    yield page
    context.close()
    assert said == []


def outside(url):
    return not url.startswith(("file:", "data:"))


def column(page, table, number, *, block=0):
    """Return what a column shows in the rows of a block, the unpruned model's left out."""
    rows = f"document.querySelectorAll('#table-{table} tbody')[{block}].querySelectorAll('tr.row')"
    return page.evaluate(f"[...{rows}].map(row => row.cells[{number}].innerText)")


def values(texts):
    return [float(text.split()[0]) for text in texts]


@pytest.mark.parametrize("which", ["real", "shrunk"])
def test_two_sentences_a_picture_and_a_table_are_the_first_screen(browser, which, request):
    place = request.getfixturevalue(which)
    with opened(browser, place, folded=True) as page:
        for part in (".lead", ".first svg.chart", ".first table"):
            box = page.locator(part).bounding_box()
            assert box
            assert box["y"] + box["height"] < 900, part
    with opened(browser, place, width=390, folded=True) as page:
        picture = page.locator(".first svg.chart").bounding_box()
        assert picture
        assert picture["y"] + picture["height"] < 900
        assert page.locator(".first .scroll").evaluate("each => each.scrollWidth <= each.clientWidth")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_markup_in_names_does_nothing(page):
    assert page.evaluate("document.querySelectorAll('script[src], link[href^=http], img, iframe').length") == 0
    assert page.evaluate("window.pwned") is None


OUTSIDE = """() => [...document.querySelectorAll("svg text")].filter(text => {
    const [own, all] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
    return own.width && (own.left < all.left - 0.5 || own.right > all.right + 0.5);
}).map(text => text.textContent)"""


def test_no_word_of_a_chart_is_cut_off(browser, real, shrunk):
    for place, width in ((real, 390), (shrunk, 1400)):
        with opened(browser, place, width=width) as page:
            assert page.locator("svg text").count() > 10
            assert page.evaluate(OUTSIDE) == []


def test_a_click_on_a_heading_sorts_each_block(page):
    heading = page.locator("#table-metrics thead th").nth(1)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    for block in (0, 1):
        found = values(column(page, "metrics", 1, block=block))
        assert len(found) == 6
        assert found == sorted(found, reverse=True)
    heading.locator("button").press("Enter")
    assert values(column(page, "metrics", 1)) == sorted(values(column(page, "metrics", 1)))
    assert page.locator("#table-metrics tbody").first.locator("tr").nth(1).inner_text().startswith("unpruned")
    page.locator("#table-metrics thead th button").first.click()
    names = column(page, "metrics", 0)
    assert names == sorted(names)


def test_infinite_numbers_sort_above_all_and_missing_ones_last(page):
    heading = page.locator("#table-settings thead th", has_text="wikitext")
    number = heading.evaluate("th => th.cellIndex")
    ends = []
    for _ in range(2):
        heading.locator("button").click()
        shown = [text.split()[0].rstrip("↓") for text in column(page, "settings", number)]
        ends.append([shown[0], *shown[-2:]])
        finite = [float(text) for text in shown if text[0].isdigit()]
        assert finite in (sorted(finite), sorted(finite, reverse=True)), "as words 99 would come before 100"
    assert ends[0][::2] == ["∞", "NaN"]
    assert ends[1][1:] == ["∞", "NaN"]


def test_a_number_leads_to_the_step_it_comes_from(browser, page, file, runs):
    (table,) = (each for each in Report.of(runs).tables if each.key == "healing")
    cell = next(row for row in table.rows if row.label == "lora").cells[1]
    step = read(runs).steps[cell.steps[0]]
    link = page.locator("#table-healing tr", has_text="lora").first.locator("td a").first
    assert link.get_attribute("title") == cell.why
    link.click()
    entry = page.locator("details.entry[open]:target")  # opened by a script, which may take its time
    assert entry.inner_text()
    for fact in (step.key, step.command, step.host, "torch 2.13.0"):
        assert str(fact) in entry.inner_text()
    page.locator("#table-settings tbody tr.row th a").first.click()
    page.locator("details.entry:target a", has_text="evaluate").first.click()
    assert page.locator("details.entry:target summary").inner_text().startswith("evaluate")
    with opened(browser, file, java_script_enabled=False) as page:
        target = page.locator("#table-healing tbody tr.row td a").first.get_attribute("href")
        assert page.locator(f"details{target} dl").count() == 1


def test_a_phone_scrolls_tables_and_not_the_page(browser, file):
    with opened(browser, file, width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        wide = page.locator("#metrics .scroll")
        wide.evaluate("each => each.scrollTo(200, 300)")
        boxes = [wide.bounding_box(), *(wide.locator(each).first.bounding_box() for each in ("thead th", "tr.row th"))]
        box, header, name = (each or pytest.fail("not drawn") for each in boxes)
        assert abs(header["y"] - box["y"]) < 3, "the heading stays"
        assert abs(header["x"] - box["x"]) < 3, "the first column stays"
        assert abs(name["x"] - box["x"]) < 3
        ticks = "[...document.querySelectorAll('.chart:not(.heat) .tick')].filter(t => t.getClientRects().length)"
        assert min(page.evaluate(f"{ticks}.map(t => t.getBoundingClientRect().height)")) >= 11


@pytest.mark.parametrize(("which", "width", "scheme"), [("shrunk", 390, "dark"), ("file", 1400, "light")])
def test_no_rule_of_axe_is_broken(browser, which, width, scheme, request):
    """Contrast, names of tables, figures and buttons, headings, identifiers."""
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, request.getfixturevalue(which), width=width, color_scheme=scheme) as page:
        found = Axe().run(page)
    assert found.response["passes"]
    assert found.violations_count == 0, found.generate_report()


def test_the_page_of_a_large_study_is_not_long(browser, real):
    with opened(browser, real, folded=True) as page:
        assert page.evaluate("document.documentElement.scrollHeight") < 9000
        rows = page.locator("#table-settings tr.row")
        assert rows.first.is_hidden()
        page.locator("#settings summary").click()
        assert rows.first.is_visible()


def test_it_prints_every_row(page, tmp_path):
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().count(b"/Type /Page\n") >= 3
    page.emulate_media(media="print")
    whole = "[...document.querySelectorAll('.scroll')].every(each => each.scrollHeight <= each.clientHeight + 1)"
    assert page.evaluate(whole)
    assert page.locator("#failed .trace").first.is_visible()
