"""The report's page in a real browser: sorting, origins, print, accessibility, and what it must not do."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager

import pytest

import stores
from shortstack.report import Report, write_report
from shortstack.runs.records import read

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
HERE = ("file:", "data:")
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


@pytest.fixture
def page(browser, file):
    with opened(browser, file) as found:
        yield found


@contextmanager
def opened(browser, file, *, width=1400, **options):
    """A page that must stay silent and at home, with every table open."""
    said = []
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)  # a busy machine
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith(HERE) else None)
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(file)
    page.evaluate("document.querySelectorAll('section > details').forEach(each => each.open = true)")
    yield page
    context.close()
    assert said == []


def column(page, table, number, *, block=0):
    """What a column shows in the rows of a block, the base model's left out."""
    rows = f"document.querySelectorAll('#table-{table} tbody')[{block}].querySelectorAll('tr.row')"
    return page.evaluate(f"[...{rows}].map(row => row.cells[{number}].innerText)")


def test_a_heading_sorts_each_block_and_infinite_numbers_above_all(page):
    heading = page.locator("#table-metrics thead th").nth(1)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    for block in (0, 1):
        found = [float(text.split()[0]) for text in column(page, "metrics", 1, block=block)]
        assert found == sorted(found, reverse=True)
        assert len(found) == 6
    assert page.locator("#table-metrics tbody").first.locator("tr").nth(1).inner_text().startswith("base model")
    heading = page.locator("#table-settings thead th", has_text="wikitext")
    ends = []
    for _ in range(2):
        heading.locator("button").click()
        texts = column(page, "settings", heading.evaluate("th => th.cellIndex"))
        shown = [text.split()[0].rstrip("↓") for text in texts]
        ends.append((shown[0], shown[-2:]))
    assert ends[0][0] == "∞"
    assert (ends[0][1][1], ends[1][1]) == ("NaN", ["∞", "NaN"])


def test_a_number_leads_to_its_step(browser, page, file, runs):
    (table,) = (each for each in Report.of(runs).tables if each.key == "healing")
    cell = next(row for row in table.rows if row.label == "lora").cells[1]
    step = read(runs).steps[cell.link]
    link = page.locator("#table-healing tr", has_text="lora").first.locator("td a").first
    assert link.get_attribute("title") == cell.why
    link.click()
    entry = page.locator("details.entry[open]:target")  # opened by a script, which may take its time
    for fact in (step.key, step.host, "torch 2.13.0"):
        assert str(fact) in entry.inner_text()
    with opened(browser, file, java_script_enabled=False) as bare:
        target = bare.locator("#table-healing tbody tr.row td a").first.get_attribute("href")
        assert bare.locator(f"details{target} dl").count() == 1


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_no_rule_of_axe_is_broken_and_nothing_runs_over(width, scheme, browser, file):
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, file, width=width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("window.pwned") is None
        found = Axe().run(page)
    assert found.response["passes"]
    assert found.violations_count == 0, found.generate_report()


def test_it_prints_every_row(page):
    page.emulate_media(media="print")
    whole = "[...document.querySelectorAll('.scroll')].every(each => each.scrollHeight <= each.clientHeight + 1)"
    assert page.evaluate(whole)
    assert page.locator("#failed .trace").first.is_visible()
