"""How fast `report.html` is with 131,072 features: made, opened, sorted, searched, clicked.

    python experiments/benchmarks/page.py [features]

Numbers are made up; tokens are drawn from a vocabulary of 100,000. Needs chromium and the extra
`browser`. Prints seconds: until the page answers (goal: 3), and from a click to its card (0.1).
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from steerlens.analysis.summary import summarise
from steerlens.report.page import write_run_page
from steerlens.results import FEATURES
from steerlens.results.folder import RunTables

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
VOCABULARY = 100_000


def made_up(n: int) -> RunTables:
    """A run of one layer with `n` features."""
    rng = np.random.default_rng(0)
    words = np.array([f" w{i:x}" for i in range(VOCABULARY)], dtype=object)
    promoted = words[rng.integers(0, VOCABULARY, 20 * n)]
    offsets = np.arange(0, 20 * n + 1, 20)
    return RunTables(
        FEATURES.frame(
            {
                "model": "made-up",
                "sae": "made-up-131k",
                "hook_name": "blocks.20.hook_resid_post",
                "layer": np.full(n, 20),
                "feature": np.arange(n),
                "output_score": rng.beta(0.1, 1.0, n),
                "output_score_delta": rng.beta(0.1, 1.0, n),
                "output_score_p": rng.uniform(size=n),
                "input_score": rng.beta(0.1, 1.0, n),
                "activation_frequency": rng.beta(0.5, 50.0, n),
                "max_activation": rng.gamma(2.0, 5.0, n),
                "output_token": promoted[::20],
                "logit_lens_tokens": pa.ListArray.from_arrays(
                    pa.array(offsets, pa.int32()), pa.array(promoted.tolist())
                ),
                "input_top_examples": [
                    [f"some text «{words[i % 999]}» and more"] for i in range(n)
                ],
            }
        )
    )


def measure(page: Path) -> dict[str, float]:
    """Open the page three times; medians of the seconds that each step takes."""
    from playwright.sync_api import sync_playwright

    seconds: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        for _ in range(3):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            tab.goto(page.resolve().as_uri())
            tab.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
            seconds.setdefault("usable", []).append(time.perf_counter() - start)
            tab.locator("#scatter .chart").scroll_into_view_if_needed()
            tab.wait_for_timeout(3000)
            for name, step in STEPS.items():
                seconds.setdefault(name, []).append(tab.evaluate(step) / 1000)
            tab.close()
        browser.close()
    return {name: statistics.median(times) for name, times in seconds.items()}


CARD = """
  const shown = () => !document.getElementById("card").hidden
    && document.querySelector("#card h2").textContent.includes(String(wanted));
  while (!shown()) await new Promise((next) => setTimeout(next, 0));
  await new Promise((next) => requestAnimationFrame(next));
  return performance.now() - start;
}"""
STEPS: dict[str, Any] = {
    # By the mouse's events on the canvas, as ECharts gets them.
    "click on a point": """async () => {
  const { features } = steerlens.data;
  const box = document.querySelector("#scatter .chart");
  const of = (name) => features.numbers.find((numbers) => numbers.name === name).values;
  const row = features.feature.findIndex((_, at) => of("output_score")[at] > 0.97);
  const plot = echarts.getInstanceByDom(box);
  const [x, y] = plot.convertToPixel({ gridIndex: 0 },
    [of("input_score")[row], of("output_score")[row]]);
  const { left, top } = box.getBoundingClientRect();
  const at = { clientX: left + x, clientY: top + y, bubbles: true };
  const canvas = box.querySelector("canvas").parentElement;
  const start = performance.now();
  for (const kind of ["mousemove", "mousedown", "mouseup", "click"]) {
    canvas.dispatchEvent(new MouseEvent(kind, at));
  }
  const wanted = "feature";"""
    + CARD,
    "card from the data beside the page": """async () => {
  const { features, files } = steerlens.data;
  const row = files.findLastIndex((number) => number >= 0);
  const wanted = features.feature[row];
  const start = performance.now();
  steerlens.open(features.layer[row], wanted);"""
    + CARD,
    "sort": """async () => {
  const start = performance.now();
  [...document.querySelectorAll(".head button")].at(-1).click();
  await new Promise((next) => requestAnimationFrame(next));
  return performance.now() - start;
}""",
    "search": """async () => {
  const input = document.querySelector("input[type=search]");
  const count = document.querySelector("#features .count");
  const before = count.textContent;
  const start = performance.now();
  input.value = "w1f";
  input.dispatchEvent(new Event("input"));
  while (count.textContent === before) await new Promise((next) => setTimeout(next, 0));
  return performance.now() - start;
}""",
}


def main() -> None:
    """Make the page, measure it, print."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 131_072
    with tempfile.TemporaryDirectory() as folder:
        tables = made_up(n)
        start = time.process_time()
        page = write_run_page(tables, summarise(tables) | {"study": None}, Path(folder))
        print(f"made in {time.process_time() - start:.1f} s of processor time")
        beside = sum(file.stat().st_size for file in (page.parent / "report.data").glob("*.js"))
        print(f"{page.stat().st_size / 1e6:.1f} MB, and {beside / 1e6:.1f} MB beside it")
        for name, seconds in measure(page).items():
            print(f"{name}: {seconds:.3f} s")


if __name__ == "__main__":
    main()
