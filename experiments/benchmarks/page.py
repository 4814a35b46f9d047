"""How fast `report.html` is with 131,072 features: made, opened, sorted, searched, clicked.

    python experiments/benchmarks/page.py [features]

Numbers are made up; tokens are drawn from a vocabulary of 100,000. Needs chromium and the extra
`browser`. Prints seconds: until the page answers (goal: 3), and from a click to its card (0.1);
and how many times those of pages that do as little as can be on this machine.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from steerlens.analysis.summary import summarise
from steerlens.report.page import write_run_page
from steerlens.report.page.render import CHARTS
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


@dataclass(frozen=True)
class Step:
    """What a step took: of the clock, and of the page's own thread, which others don't delay."""

    seconds: float
    thread_seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s, {self.thread_seconds:.3f} s of its thread"


def opened(browser: Any, page: Path, ready: str, steps: Mapping[str, str]) -> dict[str, Step]:
    """Open the page three times; of every step the medians."""
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(3):
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        session = tab.context.new_cdp_session(tab)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def thread_seconds(session: Any = session) -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return next(m["value"] for m in metrics if m["name"] == "TaskDuration")

        start = time.perf_counter()
        tab.goto(page.resolve().as_uri(), timeout=120_000)
        tab.wait_for_function(ready, timeout=120_000)
        times.setdefault("usable", []).append((time.perf_counter() - start, thread_seconds()))
        tab.wait_for_timeout(2000)
        for name, step in steps.items():
            before = thread_seconds()
            seconds = tab.evaluate(step) / 1000
            times.setdefault(name, []).append((seconds, thread_seconds() - before))
        tab.close()
    return {
        name: Step(*map(statistics.median, zip(*pairs, strict=True)))
        for name, pairs in times.items()
    }


def limits(page: Path, n: int, folder: Path) -> tuple[Path, Path]:
    """Pages that do as little as can be: as many bytes without a script, and as many points in
    ECharts alone.
    """
    n_bytes = page.stat().st_size
    empty, plain = folder / "empty.html", folder / "plain.html"
    empty.write_text(f'<!doctype html><script type="text/plain">{"x" * n_bytes}</script>')
    plain.write_text(
        f"""<!doctype html><div id="plot" style="width:1180px;height:500px"></div>
<script>{CHARTS.read_text(encoding="utf-8")}</script><script>
const points = Float32Array.from({{ length: {2 * n} }}, () => Math.random());
const plot = echarts.init(document.getElementById("plot"));
plot.on("finished", () => {{ window.isDrawn = true; }});
plot.on("click", () => {{ window.isClicked = true; }});
plot.setOption({{ animation: false, tooltip: {{ trigger: "item" }}, xAxis: {{}}, yAxis: {{}},
  dataset: {{ source: points, dimensions: ["x", "y"] }},
  series: [{{ type: "scatter", large: true, symbolSize: 3 }}] }});
</script>"""
    )
    return empty, plain


PLAIN_CLICK = """async () => {
  const box = document.getElementById("plot");
  const [x, y] = plot.convertToPixel({ gridIndex: 0 }, [points[0], points[1]]);
  const { left, top } = box.getBoundingClientRect();
  const at = { clientX: left + x, clientY: top + y, bubbles: true };
  const canvas = box.querySelector("canvas").parentElement;
  const start = performance.now();
  for (const kind of ["mousemove", "mousedown", "mouseup", "click"]) {
    canvas.dispatchEvent(new MouseEvent(kind, at));
  }
  await new Promise((next) => requestAnimationFrame(next));
  return performance.now() - start;
}"""


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
  const row = files.findLastIndex((number) => number > 0);
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
    """Make the page, measure it and its limits, print."""
    from playwright.sync_api import sync_playwright

    n = int(sys.argv[1]) if len(sys.argv) > 1 else 131_072
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        tables = made_up(n)
        start = time.process_time()
        page = write_run_page(tables, summarise(tables) | {"study": None}, folder)
        print(f"made in {time.process_time() - start:.1f} s of processor time")
        beside = sum(file.stat().st_size for file in (folder / "report.data").glob("*.js"))
        print(f"{page.stat().st_size / 1e6:.1f} MB, and {beside / 1e6:.1f} MB beside it")
        empty, plain = limits(page, n, folder)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        ours = opened(browser, page, "document.documentElement.dataset.ready === 'yes'", STEPS)
        for step, took in ours.items():
            print(f"{step}: {took}")
        of_empty = opened(browser, empty, "document.readyState === 'complete'", {})["usable"]
        of_plain = opened(browser, plain, "window.isDrawn", {"click": PLAIN_CLICK})
        browser.close()
        for step, ours_took, limit, took in (
            ("usable", ours["usable"], "an empty page of as many bytes", of_empty),
            ("usable", ours["usable"], "ECharts alone with as many points", of_plain["usable"]),
            ("click", ours["click on a point"], "a click in ECharts alone", of_plain["click"]),
        ):
            ratio = ours_took.seconds / took.seconds
            print(f"{step}: {ratio:.2f} of {limit} ({took})")


if __name__ == "__main__":
    main()
