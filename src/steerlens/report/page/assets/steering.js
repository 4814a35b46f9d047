/* What steering with a feature did: numbers by factor, and a slider that shows its texts. */
"use strict";
(() => {
  const { make, number, chart, line } = steerlens;
  const KINDS = ["", "own", "concept", "own concept"];

  /* A text whose tokens of interest are marked. */
  function marked(segments) {
    return make("bdi", { class: "text" }, segments.map(([text, kind]) => (kind
      ? make("mark", { class: KINDS[kind], title: ["", "one of the feature's 20 logit-lens tokens, which success@20 counts", "a token of the concept", "its own token, and the concept's"][kind], text })
      : document.createTextNode(text))));
  }

  function dose(steered) {
    const factors = [...new Set(steered.arms.flatMap((arm) => arm.factors))].sort((a, b) => a - b);
    const names = factors.map((factor) => number(factor));
    const values = (arm, key) => factors.map((factor) => { const at = arm.factors.indexOf(factor); return at < 0 ? null : arm[key][at]; });
    const measures = [
      ["success", "success@20", "tokens a text that are among its 20 logit-lens tokens"],
      ["concept_success", "concept success", "tokens of the concept a text"],
      ["perplexity", "perplexity", "of prompt and text, unsteered model"],
      ["kl", "KL, nats", "first steered next-token distribution from the unsteered"],
    ];
    const isMeasured = ([key]) => steered.arms.some((arm) => arm[key].some((value) => value !== null && value !== 0));
    return make("div", { class: "doses" }, measures.filter(isMeasured).map(([key, title, meaning]) => chart(title, `${meaning}; mean over ${steered.n_prompts === 1 ? "1 prompt" : `${number(steered.n_prompts)} prompts`}`, 190, (c) => {
      const colours = [c.blue, c.grey, c.orange, c.green];
      const symbols = ["circle", "diamond", "triangle", "rect"];
      return {
        grid: { left: 46, right: 12, top: steered.arms.length > 1 ? 26 : 10, bottom: 38 },
        legend: steered.arms.length > 1 ? {} : undefined,
        tooltip: { trigger: "axis", valueFormatter: (value) => number(Array.isArray(value) ? value[1] : value) },
        xAxis: { type: "category", data: names, boundaryGap: false, name: "factor", nameLocation: "middle", nameGap: 24 },
        yAxis: { type: "value", splitNumber: 3, scale: key === "perplexity" },
        series: steered.arms.map((arm, at) => line(arm.name, values(arm, key), colours[at % 4], {
          connectNulls: true,
          symbol: symbols[at % 4],
          lineStyle: { width: 2, color: colours[at % 4], type: at ? "dashed" : "solid" },
          markLine: at === 0 && steered.best_factor !== null ? { silent: true, symbol: "none", data: [{ xAxis: number(steered.best_factor) }], lineStyle: { color: c.muted, type: "dotted" }, label: { show: false } } : undefined,
          markArea: at === 0 && steered.safe_range ? { silent: true, data: [[{ xAxis: number(steered.safe_range[0]) }, { xAxis: number(steered.safe_range[1]) }]], itemStyle: { color: c.muted, opacity: 0.12 } } : undefined,
        })),
      };
    })));
  }

  function texts(steered) {
    if (!steered.texts.length) return make("p", { class: "explains", text: "Its texts are in generations.parquet." });
    const factors = [...new Set(steered.texts.map((text) => text.factor))].sort((a, b) => a - b);
    const best = factors.indexOf(steered.best_factor);
    const slider = make("input", { type: "range", min: "0", max: String(factors.length - 1), step: "1", list: "factors" });
    slider.value = String(best >= 0 ? best : factors.length - 1);
    const shown = make("output");
    const list = make("div", { class: "texts" });
    const at = (prompt, arm, factor) => steered.texts.find((text) => text.prompt === prompt && text.arm === arm && text.factor === factor);
    const side = (name, text) => make("div", { class: "side" }, make("h5", {}, make("span", { text: name }), text && text.perplexity !== null ? make("small", { text: `perplexity ${number(text.perplexity)}` }) : null),
      text ? (text.segments.length ? marked(text.segments) : make("p", { class: "none", text: "(no character)" })) : make("p", { class: "none", text: "no text at this factor" }));
    function draw() {
      const factor = factors[Number(slider.value)];
      shown.textContent = `${number(factor)}${factor === steered.best_factor ? " (best)" : factor === 0 ? " (unsteered)" : ""}`;
      slider.setAttribute("aria-valuetext", `factor ${shown.textContent}`);
      list.replaceChildren(...steered.prompts.map((prompt, i) => make("article", {},
        make("h4", {}, make("bdi", { text: prompt })),
        make("div", { class: "sides" }, side("unsteered", at(i, 0, 0)), side(`factor ${number(factor)}`, at(i, 0, factor)),
          steered.arms.slice(1).map((arm, j) => side(arm.name, at(i, j + 1, factor)))))));
    }
    slider.addEventListener("input", draw);
    draw();
    return make("div", {}, make("label", { class: "slider" }, make("span", { text: "Factor" }), slider, shown),
      make("p", { class: "explains" }, make("mark", { class: "own", text: "its 20 logit-lens tokens" }), " ", steered.concept ? make("mark", { class: "concept", text: "tokens of the concept" }) : null,
        steered.n_prompts > steered.prompts.length ? ` The first ${steered.prompts.length} of ${steered.n_prompts} prompts; all are in generations.parquet.` : ""), list);
  }

  steerlens.steering = (steered) => make("div", { class: "steering" },
    make("h3", { text: steered.concept ? `Steered toward ${steered.concept}` : "Steered" }),
    make("p", { text: steered.best_factor === null ? `${steered.why_none[0].toUpperCase()}${steered.why_none.slice(1)}.` : `Best factor ${number(steered.best_factor)}${steered.safe_range ? `; the rule allows ${number(steered.safe_range[0])} to ${number(steered.safe_range[1])} (shaded)` : ""}${steered.undecided ? ", undecided: no factor has any success" : ""}.` }),
    texts(steered), dose(steered));
  steerlens.marked = marked;
})();
