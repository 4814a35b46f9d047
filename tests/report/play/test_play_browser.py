"""The served page in a real browser: it finds, writes, moves, stops, and takes no text for more."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steerlens.results.folder import read_tables
from tests.report.page.runs import HOSTILE, hostile_tables
from tests.report.play.served import Served, Written, served
from tests.support.frames import frame, steering
from tests.support.sweeps import save_run

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
]


@dataclass
class Tab:
    """The page in a browser, its server, and what went wrong."""

    tab: Any
    server: Served
    faults: list[str]

    def choose(self, text: str) -> None:
        self.tab.fill("#live-search", text)
        self.tab.locator("#live .matches button").first.click()

    def write(self, prompt: str = "Note that") -> None:
        self.tab.fill("#live-prompt", prompt)
        self.tab.locator("#live .write").click()


@pytest.fixture(scope="module")
def tabs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Served]]:
    """A browser, and a server whose every text tries to be more than text."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="needs the extra `browser`", exc_type=ImportError
    )
    written = Written(words=("so", " it", " goes", HOSTILE[1], HOSTILE[2]))
    folder = tmp_path_factory.mktemp("served")
    with served(hostile_tables(), folder, written) as server, api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium, server
        chromium.close()


@pytest.fixture
def page(tabs: tuple[Any, Served]) -> Iterator[Tab]:
    chromium, server = tabs
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab, faults = context.new_page(), []
    tab.on("console", lambda line: line.type in ("error", "warning") and faults.append(line.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    ours = (server.address, "data:", "blob:")
    tab.on("request", lambda sent: sent.url.startswith(ours) or faults.append(sent.url))
    server.written.pause = 0.0
    tab.goto(server.address)
    tab.wait_for_selector("html[data-ready]")
    yield Tab(tab, server, faults)
    context.close()


def test_it_writes_beside_the_unsteered_text_and_marks(page: Tab) -> None:
    assert page.tab.locator("#live .write").is_disabled()
    page.choose("1 / 3")
    page.write()
    page.tab.wait_for_selector("#live small:has-text('perplexity 9.5')")
    sides = page.tab.locator("#live .side")
    assert sides.count() == 2
    assert page.tab.locator("#live .side mark").first.inner_text() == " goes"
    assert page.tab.locator("#live tbody tr").count() == 5
    assert [writing.factors for writing in page.server.written.begun[-1:]] == [(0.5, 1, 2, 4)]
    assert page.tab.locator("text=Copy as command").is_enabled()
    assert page.tab.evaluate("window.broken") is None
    assert page.tab.locator("#live img, #live script").count() == 0
    assert page.faults == []


def test_a_search_begins_with_the_feature_that_promotes_the_very_text_most(page: Tab) -> None:
    wanted = HOSTILE[3]  # every feature has it, at another rank
    page.tab.fill("#live-search", wanted)
    first = page.tab.locator("#live .matches button").first
    assert first.locator(".token").first.inner_text() == wanted
    assert "S_out" in first.inner_text()


def test_a_factor_that_is_not_written_yet_is_asked_for(page: Tab) -> None:
    page.choose("1 / 3")
    page.write()
    page.tab.wait_for_selector("#live small:has-text('perplexity')")
    slider = page.tab.locator("#live input[type=range]")
    slider.focus()
    page.tab.keyboard.press("ArrowRight")
    page.tab.wait_for_selector("#live tbody tr:nth-child(6)")
    assert page.server.written.begun[-1].factors == (0.5, 1, 2, 2.1, 4)
    assert page.tab.locator("#live .slider output").inner_text() == "2.1"
    n_begun = len(page.server.written.begun)
    page.tab.locator("#live tbody button", has_text="0.5").click()
    assert page.tab.locator("#live .slider output").inner_text() == "0.5"
    page.tab.wait_for_timeout(400)
    assert len(page.server.written.begun) == n_begun, "what is written is shown at once"
    assert page.faults == []


def test_several_features_have_weights_and_come_from_cards_and_concepts(page: Tab) -> None:
    page.tab.goto(page.server.address + "#layer=1&feature=5")
    page.tab.locator("text=Steer with this feature").click()
    page.tab.wait_for_selector("#live small:has-text('perplexity')")
    page.tab.fill("#live-search", "going")
    page.tab.keyboard.press("Enter")
    page.tab.locator("#live .matches button", has_text="1 / 3").click()
    weights = page.tab.locator("#live .chosen input[type=number]")
    assert weights.count() == 2
    weights.first.fill("3")
    page.write()
    page.tab.wait_for_selector("#live small:has-text('perplexity')")
    last = page.server.written.begun[-1]
    assert (last.features, last.weights) == ((5, 3), (3, 1))
    assert page.faults == []


def test_what_fails_is_one_sentence(page: Tab) -> None:
    page.choose("1 / 3")
    page.write("fail")
    page.tab.wait_for_selector("#live .warn:has-text('the prompt has failed.')")
    page.write("x" * 3_000)
    page.tab.wait_for_selector("#live small:has-text('perplexity')")
    assert page.faults == []


def test_stopping_and_leaving_end_the_writing(page: Tab) -> None:
    written = page.server.written
    page.choose("1 / 3")
    n_ended, written.pause = len(written.ended), 1.0  # longer than a busy browser takes
    page.write()
    page.tab.wait_for_selector("#live .side .text")
    page.tab.locator("text=Stop").click()
    page.tab.wait_for_selector("#live .says:has-text('Stopped.')")
    page.write()
    page.tab.wait_for_selector("#live .says:has-text('Writing')")
    page.tab.close()
    time.sleep(5.5)
    assert len(written.ended) == n_ended


def test_what_the_run_said_is_folded_away_above_the_card(
    tabs: tuple[Any, Served], tmp_path: Path
) -> None:
    chromium, _ = tabs
    run = save_run(tmp_path / "run", frame((0,), 4), steering((0,), 2))
    tables = dataclasses.replace(read_tables(run), command="steerlens layer=0")
    folder = tmp_path / "page"
    folder.mkdir()
    with served(tables, folder, Written(), run) as server:
        tab = chromium.new_page()
        tab.goto(server.address)
        tab.wait_for_selector("html[data-ready]")
        assert tab.locator("main > section").nth(1).get_attribute("id") == "live"
        folded = tab.locator("#top > details")
        for part in (".sentences", ".numbers", ".command"):
            assert tab.locator(f"#top {part}").count() == folded.locator(part).count() == 1
            assert folded.locator(part).is_hidden()
        folded.locator("summary").first.click()
        assert folded.locator(".command code").inner_text() == "steerlens layer=0"
        tab.close()


@pytest.mark.parametrize("width", [380, 2560])
def test_nothing_sticks_out(tabs: tuple[Any, Served], width: int) -> None:
    chromium, server = tabs
    server.written.pause = 0.0
    context = chromium.new_context(viewport={"width": width, "height": 800})
    tab = Tab(context.new_page(), server, [])
    tab.tab.goto(server.address)
    tab.choose("1 / 3")
    tab.write()
    tab.tab.wait_for_selector("#live small:has-text('perplexity')")
    assert tab.tab.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
