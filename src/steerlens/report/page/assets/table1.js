/* Table 1: how a judge rates the texts of each method, with intervals, and the texts. */
"use strict";
(() => {
  const { data, make, number, section, field, options, chart } = steerlens;

  const BASELINE = "No steering";

  function bars(title, arms, most) {
    const methods = [...new Set(arms.map((arm) => arm.method))];
    const layers = [...new Set(arms.map((arm) => arm.layer))].sort((a, b) => a - b);
    const reversed = [...methods].reverse();
    const counts = arms.map((arm) => arm.concepts).filter((n) => n !== null);
    const fewest = Math.min(...counts);
    const largest = Math.max(...counts);
    const n = fewest < largest ? `${number(fewest)} to ${number(largest)}` : number(largest);
    const hasBaseline = methods.includes(BASELINE);
    return chart(`${title}.`, `Mean over ${counts.length ? `${n} concepts` : "concepts"}, 0 to 2, the higher the better; lines: 95 % interval over concepts${hasBaseline ? "; dashed: no steering" : ""}.`, 60 + methods.length * (16 + 12 * layers.length), (c, width) => {
      const colours = [c.blue, c.orange, c.green, c.red];
      const series = layers.flatMap((layer, at) => {
        const of = (method) => arms.find((arm) => arm.method === method && arm.layer === layer);
        const shift = (at - (layers.length - 1) / 2) * (0.6 / layers.length);
        const baseline = of(BASELINE);
        const level = baseline ? [{ xAxis: baseline.value, lineStyle: { type: "dashed", width: 1.2 } }] : [];
        const intervals = reversed.flatMap((method, y) => {
          const arm = of(method);
          if (!arm) return [];
          // A bar from 0, and over it the interval.
          const bar = [{ coord: [0, y - shift], lineStyle: { width: 0.5 * Math.min(16, 24 / layers.length), opacity: 0.35, cap: "butt" } }, { coord: [arm.value, y - shift] }];
          return arm.low === null ? [bar] : [bar, [{ coord: [arm.low, y - shift] }, { coord: [arm.high, y - shift] }]];
        });
        return [{
          name: `layer ${layer}`, type: "scatter", symbolSize: 9, itemStyle: { color: colours[at % 4] },
          symbol: ["circle", "rect", "triangle", "diamond"][at % 4],
          data: reversed.flatMap((method, y) => { const arm = of(method); return arm ? [[arm.value, y - shift]] : []; }),
          markLine: { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: colours[at % 4], type: "solid", width: 2, opacity: 0.7 }, precision: 9, data: [...intervals, ...level] },
          tooltip: { formatter: (point) => {
            const method = reversed[Math.round(point.value[1] + shift)];
            const arm = of(method);
            return `${method}, layer ${layer}\n${number(arm.value)} (${number(arm.low)} to ${number(arm.high)})\n${arm.concepts === null ? "" : `${arm.concepts} concepts`}`;
          } },
        }];
      });
      return {
        legend: layers.length > 1 ? { itemHeight: 9, itemWidth: 9, icon: undefined } : undefined, grid: { left: 8, right: 18, top: layers.length > 1 ? 30 : 8, bottom: 36, containLabel: true },
        tooltip: { trigger: "item" },
        xAxis: { type: "value", min: 0, max: Math.ceil(10.5 * most) / 10 || 2, name: "rating", nameLocation: "middle", nameGap: 24 },
        yAxis: { type: "value", min: -0.6, max: methods.length - 0.4, interval: 1, splitLine: { show: false }, axisLabel: { show: true, hideOverlap: false, customValues: reversed.map((_, y) => y), width: Math.min(220, 0.42 * width), overflow: "break", formatter: (value) => reversed[Math.round(value)] || "" } },
        series,
      };
    });
  }

  /* All charts have one axis: they are of one scale. */
  const most = () => Math.max(...Object.values(data.ratings.tables).flat().map((arm) => arm.high ?? arm.value));

  function texts(ratings) {
    if (!ratings.texts.length) return null;
    const concepts = [...new Set(ratings.texts.map((text) => text.concept))];
    const layers = [...new Set(ratings.texts.map((text) => text.layer))].sort((a, b) => a - b);
    const concept = make("select", {}, options(concepts.map((name) => [name, name]), concepts[0]));
    const layer = make("select", {}, options(layers.map((name) => [String(name), String(name)]), String(layers[0])));
    const list = make("div", { class: "rated" });
    function draw() {
      const of = ratings.texts.filter((text) => text.concept === concept.value && String(text.layer) === layer.value);
      const prompts = [...new Set(of.map((text) => text.prompt))];
      list.replaceChildren(...prompts.map((prompt) => make("article", {}, make("h4", {}, make("bdi", { text: prompt })),
        steerlens.table(["method", "factor", "ratings", "text"], of.filter((text) => text.prompt === prompt).map((text) => [
          text.method, text.factor, make("span", {}, text.ratings.map(([name, value]) => make("span", { class: `rating r${value}`, title: name, text: `${name} ${value}` }))), make("bdi", { class: "text", text: text.text }),
        ]), { label: `Texts after ${prompt}`, isStacked: true }))));
    }
    concept.addEventListener("change", draw);
    layer.addEventListener("change", draw);
    draw();
    return make("div", {}, make("h3", { text: "Texts with their ratings" }),
      make("div", { class: "tools" }, field("Concept", concept), layers.length > 1 ? field("Layer", layer) : null,
        make("output", { class: "count", text: `${number(ratings.texts.length)} of ${number(ratings.n_texts)} rated texts; ratings.parquet has all` })), list);
  }

  steerlens.parts.push(["table1", "Table 1", () => (data.ratings
    ? section("table1", "How methods are rated", null, Object.entries(data.ratings.tables).map(([title, arms]) => make("div", { class: "panel" }, bars(title, arms, most()))), texts(data.ratings))
    : null)]);
})();
