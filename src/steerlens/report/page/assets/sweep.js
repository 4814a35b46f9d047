/* Sweeps, releases and comparisons: tables of jobs and answers, and results over each other. */
"use strict";
(() => {
  const { data, make, section, chart, line, percent, number } = steerlens;

  /* How the results are told apart, in every chart. */
  const style = (c, at) => ({ colour: [c.blue, c.orange, c.green, c.red, c.grey][at % 5], symbol: ["circle", "triangle", "diamond", "rect"][at % 4], type: ["solid", "dashed", "dotted"][Math.floor(at / 5) % 3] });

  function overlay() {
    const { series } = data;
    if (series.length < 2) return null;
    const layers = [...new Set(series.flatMap((one) => one.layers.map((row) => row.layer)))].sort((a, b) => a - b);
    const counts = (score) => series.map((one) => `${number(one.layers.filter((row) => row.score === score).reduce((sum, row) => sum + row.n, 0))} of ${one.label}`).join(", ");
    const curves = (score, key, title, format) => chart(title, `Features that have it, all layers: ${counts(score)}.`, 300, (c) => ({
      legend: {}, tooltip: { trigger: "axis", valueFormatter: (value) => format(Array.isArray(value) ? value[1] : value) },
      xAxis: { type: "category", data: layers.map(String), boundaryGap: false, name: "layer", nameLocation: "middle", nameGap: 28 },
      yAxis: { type: "value", min: 0, axisLabel: { formatter: format } },
      series: series.map((one, at) => { const { colour, symbol, type } = style(c, at); return line(one.label, one.layers.filter((row) => row.score === score).map((row) => [String(row.layer), row[key]]), colour, { symbol, lineStyle: { width: 2, color: colour, type } }); }),
    }));
    const has = (score) => series.some((one) => one.layers.some((row) => row.score === score));
    if (layers.length < 2) {
      return make("div", { class: "panel" }, steerlens.table(["result", "score", "n", "mean", "90th percentile", "share ≥ 0.1"],
        series.flatMap((one) => one.layers.map((row) => [one.label, { output_score: "S_out", null: "random directions", input_score: "S_in" }[row.score], row.n, row.mean, row.p90, percent(row.at_least_01)])), { label: "Scores" }));
    }
    return make("div", { class: "panel pair" },
      has("output_score") ? curves("output_score", "at_least_01", "Share of features with S_out ≥ 0.1, by layer.", percent) : null,
      has("input_score") ? curves("input_score", "at_least_01", "Share of features with S_in ≥ 0.1, by layer.", percent) : null);
  }

  function success() {
    const series = data.series.filter((one) => one.thresholds.length);
    if (series.length < 2) return null;
    return make("div", { class: "panel" }, chart("Success of the features above a threshold of S_out.", `Mean success@20 at the best factor; features at the left: ${series.map((one) => `${number(one.thresholds[0].selected)} of ${one.label}`).join(", ")}.`, 300, (c) => ({
      legend: {}, tooltip: { trigger: "axis", valueFormatter: (value) => number(Array.isArray(value) ? value[1] : value) },
      xAxis: { type: "log", axisLabel: { formatter: (value) => number(value, 2) }, name: "S_out at least", nameLocation: "middle", nameGap: 28 }, yAxis: { type: "value", min: 0 },
      series: series.map((one) => { const { colour, symbol, type } = style(c, data.series.indexOf(one)); return line(one.label, one.thresholds.map((point) => [point.threshold, point.success]), colour, { symbol, lineStyle: { width: 2, color: colour, type } }); }),
    })));
  }

  // Beside the table of its jobs a sweep with a study has those of its answer.
  const isStudied = data.overview.kind !== "sweep" || data.tables.length > 1 || data.figures.length > 0;
  const [short, title] = data.overview.kind === "comparison" ? ["Side by side", "Two results over each other"]
    : isStudied ? ["Study", "What the study found"] : ["Jobs", "Jobs and what they found"];
  const LONG = 30; // rows: longer tables of a study are folded away, or the others couldn't be seen

  function plain(one) {
    const rows = steerlens.table(one.header, one.rows, { label: one.title });
    const isLong = isStudied && one.rows.length > LONG;
    return make("div", { class: "plain" }, make("h3", { text: one.title }),
      isLong ? make("details", { class: "facts more" }, make("summary", { text: `${number(one.rows.length)} rows` }), rows) : rows);
  }

  steerlens.parts.push(["results", short, () => {
    const drawn = data.figures.map((one) => make("figure", { class: "drawn" }, make("img", { src: one.png, alt: one.title, loading: "lazy" })));
    const parts = [...drawn, overlay(), success(), ...data.tables.map(plain)].filter(Boolean);
    return parts.length ? section("results", title, null, ...parts) : null;
  }]);
})();
