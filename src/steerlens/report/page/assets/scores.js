/* Scores: every feature a point, both scores by layer, and what a threshold buys. */
"use strict";
(() => {
  const { data, make, number, percent, section, field, options, chart, line, depth, column, promoted } = steerlens;

  function scatter() {
    const { features } = data;
    const scoreIn = column("input_score");
    const by = column("concept_score") && !column("output_score") ? column("concept_score") : column("output_score");
    if (!by && !scoreIn) return null;
    const x = scoreIn || by;
    const y = by || scoreIn;
    if (x === y) return null;
    const layers = [...new Set(features.layer)].sort((a, b) => a - b);
    const rowsOf = new Map(layers.map((layer) => [layer, []]));
    const values = new Map(layers.map((layer) => [layer, []]));
    const smallest = 1e-6;
    let none = 0;
    features.layer.forEach((layer, row) => {
      if (x.values[row] === null || y.values[row] === null) { none += 1; return; }
      rowsOf.get(layer).push(row);
    });
    let isLog = false;
    let only = "all";
    const shown = () => layers.filter((layer) => only === "all" || String(layer) === only);
    function fill() {
      for (const layer of layers) {
        values.set(layer, rowsOf.get(layer).map((row) => [x.values[row], isLog ? Math.max(y.values[row], smallest) : y.values[row]]));
      }
    }
    fill();
    const total = () => shown().reduce((sum, layer) => sum + rowsOf.get(layer).length, 0);
    const isBig = features.layer.length > 3000;
    let plot = null;
    const figure = chart(`${y.title} against ${x.title}`, "", 420, (c) => ({
      grid: { left: 60, right: 18, top: 16, bottom: 48 },
      xAxis: { type: "value", name: x.title, nameLocation: "middle", nameGap: 28, min: 0, max: 1 },
      yAxis: { type: isLog ? "log" : "value", name: y.title, nameLocation: "middle", nameGap: 42, min: isLog ? smallest : 0, max: 1 },
      dataZoom: [
        { type: "inside", xAxisIndex: 0, filterMode: "none", zoomOnMouseWheel: "shift", moveOnMouseWheel: false },
        { type: "inside", yAxisIndex: 0, filterMode: "none", zoomOnMouseWheel: "shift", moveOnMouseWheel: false },
      ],
      tooltip: { trigger: "item", formatter: (point) => {
        const row = rowsOf.get(shown()[point.seriesIndex])[point.dataIndex];
        return `layer ${features.layer[row]}, feature ${features.feature[row]}\n${y.title} ${number(y.values[row])}, ${x.title} ${number(x.values[row])}\n${promoted(row, 4).join("  ").slice(0, 60)}`;
      } },
      series: shown().map((layer) => ({
        name: `layer ${layer}`, type: "scatter", data: values.get(layer), large: isBig, largeThreshold: 0,
        progressive: 0, // Below 4 ECharts fills squares; larger ones are one path, on which a processor works minutes.
        symbolSize: isBig ? 3 : 7, itemStyle: { color: depth(layers.length > 1 ? layers.indexOf(layer) / (layers.length - 1) : 0.4), opacity: isBig ? 0.55 : 0.75 },
        // Without it a hover would draw all points once more.
        emphasis: isBig ? { disabled: true } : { scale: 1.6 },
      })),
    }), (drawn) => {
      plot = drawn;
      drawn.on("click", (point) => {
        const row = rowsOf.get(shown()[point.seriesIndex])[point.dataIndex];
        if (row !== undefined) steerlens.open(features.layer[row], features.feature[row]);
      });
    });
    figure.id = "scatter";
    const count = make("output", { class: "count" });
    const box = figure.querySelector(".chart");
    const redraw = () => { box.redraw(); count.textContent = `${number(total())} features${none ? `; ${number(none)} lack one of the scores` : ""}`; };
    redraw();
    const layerChoice = make("select", { on: { change: (event) => { only = event.target.value; redraw(); } } },
      options([["all", `all ${layers.length}`], ...layers.map((layer) => [String(layer), String(layer)])], "all"));
    const scale = make("select", { on: { change: (event) => { isLog = event.target.value === "log"; fill(); redraw(); } } },
      options([["linear", "linear"], ["log", "logarithmic"]], "linear"));
    const reset = make("button", { type: "button", text: "Whole plot", on: { click: () => { if (plot) [0, 1].forEach((at) => plot.dispatchAction({ type: "dataZoom", dataZoomIndex: at, start: 0, end: 100 })); } } });
    const key = layers.length > 1 ? make("span", { class: "key" }, make("span", { text: `layer ${layers[0]}` }),
      ...layers.slice(0, 40).map((_, at) => { const box = make("i"); box.style.background = depth(at / (layers.length - 1)); return box; }),
      make("span", { text: String(layers[layers.length - 1]) })) : null;
    return make("div", { class: "panel" }, make("div", { class: "tools" },
      layers.length > 1 ? field("Layer", layerChoice) : null, field(`${y.title} axis`, scale), reset, count, key), figure,
    make("p", { class: "explains", text: "Click a point for its card. Drag to move, Shift and the wheel (or two fingers) to zoom." }));
  }

  const NAMES = { output_score: "S_out", null: "random directions", input_score: "S_in" };
  const colourOf = (c, score) => ({ output_score: c.blue, null: c.grey, input_score: c.orange })[score];
  const symbolOf = { output_score: "circle", null: "diamond", input_score: "triangle" };

  function byLayer() {
    const scores = [...new Set(data.layers.map((row) => row.score))];
    const layers = [...new Set(data.layers.map((row) => row.layer))].sort((a, b) => a - b);
    if (!scores.length) return null;
    if (layers.length === 1) {
      return make("div", { class: "panel" }, steerlens.table(["", "n", "mean", "90th percentile", "share ≥ 0.01", "share ≥ 0.1"],
        data.layers.map((row) => [NAMES[row.score], row.n, row.mean, row.p90, percent(row.at_least_001), percent(row.at_least_01)]), { label: "Scores" }));
    }
    const curve = (key, title, caption, format) => chart(title, caption, 280, (c) => ({
      legend: {}, tooltip: { trigger: "axis", valueFormatter: (value) => (Array.isArray(value) ? format(value[1]) : format(value)) },
      xAxis: { type: "category", data: layers.map(String), boundaryGap: false, name: "layer", nameLocation: "middle", nameGap: 28 },
      yAxis: { type: "value", min: 0, axisLabel: { formatter: (value) => format(value) } },
      series: scores.map((score) => line(NAMES[score], data.layers.filter((row) => row.score === score).map((row) => [String(row.layer), row[key]]), colourOf(c, score),
        { symbol: symbolOf[score], lineStyle: { width: 2, color: colourOf(c, score), type: score === "null" ? "dashed" : "solid" } })),
    }));
    const total = (score) => data.layers.filter((row) => row.score === score).reduce((sum, row) => sum + row.n, 0);
    const counted = scores.map((score) => `${number(total(score))} ${score === "null" ? "random directions" : `features with ${NAMES[score]}`}`).join(", ");
    return make("div", { class: "panel pair" },
      curve("at_least_01", "Share with a score of at least 0.1, by layer.", `n: ${counted}.`, (value) => percent(value)),
      curve("p90", "90th percentile of the scores, by layer.", "A tenth of the layer's features score higher.", (value) => number(value)));
  }

  function thresholds() {
    const points = data.thresholds;
    if (points.length < 2) return null;
    const names = points.map((point) => number(point.threshold, 2));
    const at = (key) => points.map((point) => point[key]);
    const band = (low, high, colour) => [
      { type: "line", data: at(low), stack: low, symbol: "none", lineStyle: { opacity: 0 }, silent: true, tooltip: { show: false } },
      { type: "line", data: points.map((point) => (point[high] === null || point[low] === null ? null : point[high] - point[low])), stack: low, symbol: "none", lineStyle: { opacity: 0 }, areaStyle: { color: colour, opacity: 0.15 }, silent: true, tooltip: { show: false } },
    ];
    const axis = { type: "category", data: names, name: "S_out at least", nameLocation: "middle", nameGap: 28 };
    const most = points[0].selected;
    return make("div", { class: "panel pair" },
      chart("Success of the features above a threshold.", `Mean success@20 at the best factor; shaded: 95 % interval over features; ${number(most)} features at the left.`, 300, (c) => ({
        legend: { data: ["selected by S_out", "as many at random", "as many of the same layers"] }, tooltip: { trigger: "axis", valueFormatter: (value) => number(value) },
        xAxis: axis, yAxis: { type: "value", min: 0 },
        series: [...band("success_low", "success_high", c.blue), line("selected by S_out", at("success"), c.blue),
          line("as many at random", at("random"), c.grey, { symbol: "diamond", lineStyle: { width: 2, type: "dashed", color: c.grey } }),
          line("as many of the same layers", at("random_within_layers"), c.orange, { symbol: "triangle", lineStyle: { width: 2, type: "dotted", color: c.orange } })],
      })),
      chart("What selecting buys: times the success of all.", "Pooled, and beside as many features of the same layers; 1 = nothing.", 300, (c) => ({
        legend: { data: ["pooled", "within layers"] }, tooltip: { trigger: "axis", valueFormatter: (value) => number(value) },
        xAxis: axis, yAxis: { type: "value", min: 0 },
        series: [...band("payoff_low", "payoff_high", c.blue), line("pooled", at("payoff"), c.blue,
          { markLine: { silent: true, symbol: "none", data: [{ yAxis: 1 }], lineStyle: { color: c.muted, type: "dashed" }, label: { show: false } } }),
        ...band("payoff_within_layers_low", "payoff_within_layers_high", c.orange), line("within layers", at("payoff_within_layers"), c.orange, { symbol: "triangle" })],
      })));
  }

  steerlens.parts.push(["scores", "Scores", () => {
    if (!data.features && !data.layers.length) return null;
    const parts = [data.features ? scatter() : null, byLayer(), thresholds()].filter(Boolean);
    return parts.length ? section("scores", "Scores", "S_out: how far raising a feature makes its own tokens the next one. S_in: how often it fires hardest on them. Random directions show what S_out is worth.", ...parts) : null;
  }]);
})();
