"""The page in a real browser: opened from disk, without errors and without a network."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerlens.report.page import render, write_page_without_tables
from steerlens.report.page.contents import Overview, Page, RatedArm, Ratings
from steerlens.report.page.render import write_html
from steerlens.results import FEATURES
from steerlens.results.folder import RunTables
from tests.report.page.runs import HOSTILE, hostile_tables, save_page
from tests.support.frames import frame, generations, null_scores, steering

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="needs the extra `browser`", exc_type=ImportError
    )
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page in the browser, and what went wrong in it."""

    tab: Any
    faults: list[str]

    def open(self, path: Path, address: str = "") -> None:
        self.tab.goto(path.resolve().as_uri() + address)
        self.tab.wait_for_selector("html[data-ready]")

    def wait_for_lines(self, at_least: int) -> None:
        """Wait until the table shows so many features; exactly one where that is 1."""
        for _ in range(100):
            count = self.tab.locator(".line").count()
            if count == at_least or count > at_least > 1:
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError(f"the table shows {count} features")


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    """A tab that notes errors and every request that isn't for a file."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab, faults = context.new_page(), []
    tab.on("console", lambda line: line.type in ("error", "warning") and faults.append(line.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url),
    )
    yield Opened(tab, faults)
    context.close()


def plain_tables() -> RunTables:
    """Steered features whose tokens are words."""
    words = [" music", " water", " of", "ing", " the", " garden", " sea", " sky", " red"]
    tokens = [words[i % 9 :] + words[: i % 9] for i in range(24)]
    return RunTables(
        frame((3, 7), 12, logit_lens_tokens=tokens, input_top_examples=[["so «music» plays"]] * 24),
        generations(n=3, layers=(3, 7), text="some music here"),
        steering((3, 7), 3),
        null_scores=null_scores((3, 7)),
        command="steerlens layer=3,7",
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_page(plain_tables(), tmp_path_factory.mktemp("page"))


def test_it_opens_from_disk_without_an_error_or_a_request(opened: Opened, page: Path) -> None:
    opened.open(page)
    assert opened.tab.title() == "toy with toy-sae"
    assert opened.tab.locator("#scatter .points").count() == 1
    assert "24 features" in opened.tab.locator("#features .count").inner_text()
    opened.tab.evaluate("location.hash = '#layer=3&feature=1'")
    opened.tab.wait_for_selector("#card .doses figcaption")
    captions = opened.tab.locator("figcaption").all_inner_texts()
    assert len(captions) >= 5
    for caption in captions:
        assert re.search(r"\d+ (features|random directions|prompts?|above 0)", caption), caption
    assert opened.faults == []


def test_a_click_on_a_point_opens_its_card(opened: Opened, page: Path) -> None:
    opened.open(page)
    box = opened.tab.locator("#scatter .chart")
    box.scroll_into_view_if_needed()
    opened.tab.wait_for_timeout(200)
    point = opened.tab.evaluate(
        """() => {
          const { features } = steerlens.data;
          const column = (name) => features.numbers.find((numbers) => numbers.name === name);
          const value = (name, row) => column(name).values[row];
          const row = features.feature.findIndex((_, at) => value("output_score", at) > 0.1);
          const box = document.querySelector("#scatter .chart");
          const plot = echarts.getInstanceByDom(box);
          const at = [value("input_score", row), value("output_score", row)];
          const [x, y] = plot.convertToPixel({ gridIndex: 0 }, at);
          return { x, y, hash: `#layer=${features.layer[row]}&feature=${features.feature[row]}` };
        }"""
    )
    box.click(position={"x": point["x"], "y": point["y"]})
    opened.tab.wait_for_selector("#card h2")
    assert opened.tab.evaluate("location.hash") == point["hash"]
    assert opened.faults == []


def test_the_plot_shows_one_layer_where_that_is_chosen(opened: Opened, page: Path) -> None:
    opened.open(page)
    count = opened.tab.locator(".panel:has(#scatter) .count")
    of_layer = opened.tab.evaluate("""() => {
      const { features } = steerlens.data;
      return features.layer.filter((layer, row) => layer === features.layers[0]).length;
    }""")
    every = count.inner_text()
    choice = opened.tab.locator(".panel:has(#scatter) select").first
    layer = choice.locator("option").nth(1).inner_text()
    choice.select_option(layer)
    shown = int(count.inner_text().split()[0])
    assert 0 < shown <= of_layer < int(every.split()[0])
    choice.select_option("all")
    assert count.inner_text() == every
    assert opened.faults == []


def test_search_by_token_sorts_and_filters(opened: Opened, page: Path) -> None:
    opened.open(page)
    search = opened.tab.locator("input[type=search]")
    search.fill("7 / 5")
    opened.wait_for_lines(1)
    search.fill("no such token")
    opened.tab.wait_for_selector("text=No feature matches.")
    search.fill("")
    opened.wait_for_lines(20)
    opened.tab.locator(".head button", has_text="S_in").click()
    titles = opened.tab.locator(".head [role=columnheader]").all_inner_texts()
    at = next(i for i, title in enumerate(titles) if title.startswith("S_in"))
    cells = opened.tab.locator(f".line > :nth-child({at + 1})").all_inner_texts()
    values = [float(cell.replace("\u2212", "-")) for cell in cells]
    assert values == sorted(values, reverse=True)
    assert opened.tab.locator("[aria-sort=descending]").inner_text().startswith("S_in")
    opened.tab.locator(".body").focus()
    opened.tab.keyboard.press("ArrowDown")
    opened.tab.keyboard.press("Enter")
    opened.tab.wait_for_selector("#card h2")
    assert opened.faults == []


def test_rows_are_sorted_as_numbers_with_what_is_missing_last(opened: Opened, page: Path) -> None:
    opened.open(page)
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=40).round(1), [0.0, -0.0, 1e-30, -1e30, 3.0, np.nan]])
    numbers = [None if np.isnan(value) else float(value) for value in values]
    for kind in ("Float32Array", "Float64Array"):
        for is_down in (False, True):
            rows = opened.tab.evaluate(
                f"""([numbers, isDown]) => Array.from(steerlens.sortedRows(
                  {kind}.from(numbers.map((value) => value ?? NaN)), isDown))""",
                [numbers, is_down],
            )
            # Stable, and NaN last both ways.
            assert rows == np.argsort(-values if is_down else values, kind="stable").tolist()


def test_the_slider_shows_other_texts_and_escape_closes(opened: Opened, page: Path) -> None:
    opened.open(page, "#layer=3&feature=1")
    slider = opened.tab.locator("#card input[type=range]")
    assert "2 (best)" in opened.tab.locator("#card .slider output").inner_text()
    slider.focus()
    opened.tab.keyboard.press("Home")
    assert "0 (unsteered)" in opened.tab.locator("#card .slider output").inner_text()
    opened.tab.keyboard.press("End")
    assert "8" in opened.tab.locator("#card .slider output").inner_text()
    assert opened.tab.locator("#card .texts article").count() == 4
    opened.tab.keyboard.press("Escape")
    assert opened.tab.locator("#card").is_hidden()
    assert opened.tab.evaluate("location.hash") == ""
    assert opened.faults == []


def test_an_address_leads_to_a_card_from_the_data_beside_the_page(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "EMBEDDED_BYTES", 0)
    monkeypatch.setattr(render, "CARDS_OF_A_FILE", 5)
    path = save_page(plain_tables(), tmp_path)
    opened.open(path, "#layer=7&feature=11")
    opened.tab.wait_for_selector("#card .window")
    assert opened.tab.locator("#card .window mark").inner_text() == "music"
    assert opened.faults == []
    shutil.rmtree(tmp_path / "report.data")
    opened.open(path, "#layer=7&feature=10")
    opened.tab.wait_for_selector("#card .warn")
    assert "isn't beside this page" in opened.tab.locator("#card .warn").inner_text()


def test_a_card_has_the_tokens_of_another_lens_beside_the_logit_lens(
    opened: Opened, tmp_path: Path
) -> None:
    part = plain_tables()
    by_lens = part.features.assign(promoted_tokens=[[" lens", " else"]] * len(part.features))
    opened.open(
        save_page(dataclasses.replace(part, features=by_lens), tmp_path), "#layer=3&feature=1"
    )
    opened.tab.wait_for_selector("#card .bars")
    headings = opened.tab.locator("#card h3").all_inner_texts()
    assert [text for text in headings if text.startswith("Promotes")] == [
        "Promotes (logit lens)",
        "Promotes (the run's own lens)",
    ]
    of_logit_lens, of_own = opened.tab.locator("#card .bars").all()[:2]
    assert of_own.locator(".token").all_inner_texts() == ["␣lens", "␣else"]
    assert of_logit_lens.locator(".token").first.inner_text() == "␣water"
    assert opened.faults == []


def test_a_narrow_screen_has_texts_below_their_numbers_and_whole_legends(
    browser: Any, page: Path
) -> None:
    context = browser.new_context(viewport={"width": 380, "height": 800})
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    tab.wait_for_selector("html[data-ready]")
    tab.evaluate(
        """() => document.querySelector("#features").append(steerlens.table(["factor", "text"],
        [[2, "word ".repeat(40)]], { label: "texts", isStacked: true }))"""
    )
    row = tab.locator("table.stacked tbody tr").first
    number, text = (row.locator("td").nth(at).bounding_box() for at in (0, 1))
    assert text["y"] >= number["y"] + number["height"]
    assert text["x"] + text["width"] <= 380
    legends = tab.evaluate(
        """() => [...document.querySelectorAll(".chart")].flatMap((box) => {
          if (box.chart) box.chart.draw();
          const plot = echarts.getInstanceByDom(box);
          return plot ? (plot.getOption().legend || []).map((one) => one.type) : [];
        })"""
    )
    assert legends
    assert set(legends) == {"plain"}
    context.close()


def test_no_text_runs_or_leaves_its_place(opened: Opened, tmp_path: Path) -> None:
    path = save_page(hostile_tables(), tmp_path)
    opened.open(path, "#layer=0&feature=1")
    opened.tab.wait_for_selector("#card .bars.down")
    opened.tab.wait_for_timeout(300)
    assert opened.tab.evaluate("window.broken") is None
    assert opened.tab.locator("img").count() == 0
    assert opened.tab.locator("script:not([type])").count() == 2
    assert opened.tab.locator("a[href^='javascript']").count() == 0
    assert HOSTILE[0] in opened.tab.locator("h1").inner_text()
    opened.tab.fill("input[type=search]", "<script>")
    opened.tab.wait_for_timeout(200)
    assert opened.tab.evaluate("window.broken") is None
    assert opened.faults == []


def test_a_run_with_little_in_it_has_a_page_that_says_so(opened: Opened, tmp_path: Path) -> None:
    nothing = RunTables(frame((0,), 4, output_score=np.nan, input_score=np.nan))
    long = RunTables(frame((0,), 4, label="a" * 100_000, input_top_examples=[["b" * 100_000]] * 4))
    pages = {
        "0 features, none with a score": RunTables(FEATURES.frame([])),
        "4 features, none with a score": nothing,
        "Unfinished: 1 of 2 layers; it was killed": dataclasses.replace(
            plain_tables(), unfinished="unfinished: 1 of 2 layers; it was killed"
        ),
        "generations.parquet is missing": RunTables(frame((0,), 4), steering=steering((0,), 3)),
        "provenance.json is missing": long,
    }
    for number, (told, tables) in enumerate(pages.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        opened.open(save_page(tables, folder), "#layer=0&feature=1")
        assert told in opened.tab.locator("#top").inner_text()
        opened.tab.wait_for_selector("#card h2")
    opened.tab.wait_for_selector("#card .window")
    assert "more characters" in opened.tab.locator("#card").inner_text()
    opened.open(write_page_without_tables("there is no features.parquet", tmp_path))
    assert "there is no features.parquet" in opened.tab.locator("#top").inner_text()
    assert opened.faults == []


def test_tables_without_tokens_have_no_column_of_tokens(opened: Opened, tmp_path: Path) -> None:
    part = plain_tables()
    bare = part.features.assign(logit_lens_tokens=None, logit_lens_token_ids=None, label=None)
    opened.open(save_page(dataclasses.replace(part, features=bare), tmp_path), "#layer=3&feature=1")
    told = "don't have the tokens that features promote"
    assert told in opened.tab.locator("#features").inner_text()
    cells = opened.tab.locator("#features .line").first.locator("[role=gridcell]")
    heads = opened.tab.locator("#features [role=columnheader]")
    assert cells.count() == heads.count()
    texts = [cell.inner_text() for cell in [*heads.all(), *cells.all()]]
    assert all(texts), texts
    assert opened.tab.locator("#search").get_attribute("placeholder") == "number"
    opened.tab.wait_for_selector("#card h3")
    assert not any("Promotes" in text for text in opened.tab.locator("#card h3").all_inner_texts())
    assert opened.faults == []


def test_many_sentences_are_folded_away_after_the_first(opened: Opened, tmp_path: Path) -> None:
    for n, n_in_sight in ((16, 16), (17, 14)):
        overview = Overview("run", "asked", [f"line {i}" for i in range(n)], [], "done", None, [])
        opened.open(write_html(Page(title="toy", overview=overview), (), 0, tmp_path))
        lines = opened.tab.locator("#top .sentences li")
        assert lines.count() == n
        assert [line.is_visible() for line in lines.all()] == [i < n_in_sight for i in range(n)]
    summary = opened.tab.locator("#top details.more summary")
    assert summary.inner_text() == "3 more sentences"
    summary.click()
    assert lines.last.inner_text() == "line 16"
    assert lines.last.is_visible()
    assert opened.faults == []


def test_no_steering_is_a_dashed_line_across_the_rated_methods(
    opened: Opened, tmp_path: Path
) -> None:
    overview = Overview("sweep", "asked", [], [], "done", None, [])
    arms = [RatedArm("No steering", 3, 0.2, 0.1, 0.3, 5), RatedArm("SAE", 3, 0.6, 0.5, 0.7, 5)]
    for of, levels in ((arms, [0.2]), (arms[1:], [])):
        ratings = Ratings({"judge": of}, [], 0)
        page = Page(title="toy", overview=overview, ratings=ratings)
        opened.open(write_html(page, (), 0, tmp_path))
        chart = opened.tab.locator("#table1 .chart")
        chart.scroll_into_view_if_needed()
        opened.tab.wait_for_function(
            "echarts.getInstanceByDom(document.querySelector('#table1 .chart'))"
        )
        dashed = opened.tab.evaluate(
            """() => echarts.getInstanceByDom(document.querySelector("#table1 .chart")).getOption()
              .series.flatMap((of) => of.markLine.data)
              .filter((line) => line.lineStyle && line.lineStyle.type === "dashed")
              .map((line) => line.xAxis)"""
        )
        assert dashed == levels
        caption = opened.tab.locator("#table1 figcaption").inner_text()
        assert ("dashed: no steering" in caption) == bool(levels)
    assert opened.faults == []


@pytest.mark.parametrize("width", [380, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(browser: Any, page: Path, width: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(page.resolve().as_uri() + "#layer=3&feature=1")
    tab.wait_for_selector("#card h2")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    lightness = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (lightness == "rgb(255, 255, 255)") == (scheme == "light")
    tab.keyboard.press("Escape")
    tab.locator("#theme").click()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != lightness
    context.close()


def test_it_prints(opened: Opened, page: Path) -> None:
    opened.open(page, "#layer=3&feature=1")
    document = opened.tab.pdf()
    opened.tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.tab.evaluate("document.documentElement.dataset.theme") == "light"
    assert opened.tab.locator(".facts:not([open])").count() == 0
    opened.tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened.tab.evaluate("document.documentElement.dataset.theme") is None
    assert document.startswith(b"%PDF")
    assert len(document) > 20_000
    assert opened.faults == []
