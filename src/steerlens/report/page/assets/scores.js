/* Scores: every feature a point (`scatter`), both scores by layer, and what a threshold buys. */
"use strict";
(() => {
  const { data, make, number, percent, section, chart, line } = steerlens;

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
      curve("p90", "90th percentile of the scores, by layer.", `A tenth of the layer's features score higher; n: ${counted}.`, (value) => number(value)));
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
      chart("What selecting buys: times the success of all.", `Pooled, and beside as many features of the same layers; 1 = nothing; shaded: 95 % interval over features; ${number(most)} features at the left.`, 300, (c) => ({
        legend: { data: ["pooled", "within layers"] }, tooltip: { trigger: "axis", valueFormatter: (value) => number(value) },
        xAxis: axis, yAxis: { type: "value", min: 0 },
        series: [...band("payoff_low", "payoff_high", c.blue), line("pooled", at("payoff"), c.blue,
          { markLine: { silent: true, symbol: "none", data: [{ yAxis: 1 }], lineStyle: { color: c.muted, type: "dashed" }, label: { show: false } } }),
        ...band("payoff_within_layers_low", "payoff_within_layers_high", c.orange), line("within layers", at("payoff_within_layers"), c.orange, { symbol: "triangle" })],
      })));
  }

  steerlens.parts.push(["scores", "Scores", () => {
    if (!data.features && !data.layers.length) return null;
    const parts = [data.features ? steerlens.scatter() : null, byLayer(), thresholds()].filter(Boolean);
    return parts.length ? section("scores", "Scores", "S_out: how far raising a feature makes its own tokens the next one. S_in: how often it fires hardest on them. Random directions show what S_out is worth.", ...parts) : null;
  }]);
})();
