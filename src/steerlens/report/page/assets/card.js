/* A feature's card, at an address of its own. */
"use strict";
(() => {
  const { data, make, number, percent, token, chart, forget, promoted, row: rowOf } = steerlens;
  const panel = document.getElementById("card");
  let open = null;
  let cameFrom = null;

  function bars(tokens, logits, kind) {
    const most = logits && Math.max(...logits.map((value) => Math.abs(value || 0)));
    return make("ol", { class: `bars ${kind}` }, tokens.map((text, at) => {
      const value = logits ? logits[at] : null;
      const bar = value !== null && most ? make("i", { style: { width: `${(100 * Math.abs(value)) / most}%` } }) : null;
      return make("li", {}, bar, token(text), value === null ? null : make("span", { class: "value", text: number(value) }));
    }));
  }

  /* The text with each token's background as strong as the feature fires there. */
  function windowOf(window) {
    const element = make("p", { class: "window" });
    const text = make("bdi", {});
    window.tokens.forEach((part, at) => {
      const share = window.activations[at] || 0;
      if (share <= 0) { text.append(part); return; }
      const mark = make("mark", { class: "fires", text: part, title: window.maximum === null ? "peak" : number(share * window.maximum) });
      mark.style.setProperty("--share", String(0.15 + 0.75 * share));
      text.append(mark);
    });
    element.append(text);
    return element;
  }

  /* A text of which only the peak is known. */
  function peakOf(text) {
    const match = /^([^]*?)«([^]*?)»([^]*)$/.exec(text);
    return match ? windowOf({ tokens: match.slice(1), activations: [0, 1, 0], maximum: null }) : windowOf({ tokens: [text], activations: [0], maximum: null });
  }

  /* Each score, and the share of the layer's features that have less of it. */
  function scores(at) {
    const { features } = data;
    const layer = features.layer[at];
    const rows = features.numbers.filter((numbers) => !Number.isNaN(numbers.values[at])).map((numbers) => {
      const { values } = numbers;
      let below = 0;
      let all = 0;
      for (let row = 0; row < values.length; row += 1) {
        if (features.layer[row] !== layer || Number.isNaN(values[row])) continue;
        all += 1;
        if (values[row] < values[at]) below += 1;
      }
      const name = make("span", { title: numbers.meaning, text: numbers.title });
      return [name, numbers.values[at], all > 1 ? `above ${percent(below / (all - 1 || 1))}` : "–"];
    });
    return steerlens.table(["score", "value", `in layer ${layer}`], rows, { label: "Scores" });
  }

  function histogram(card) {
    if (!card.histogram.length || !card.histogram_range) return null;
    const step = card.histogram_range / card.histogram.length;
    const names = card.histogram.map((_, at) => `${number(at * step, 2)}–${number((at + 1) * step, 2)}`);
    return chart("Activations", `${number(card.histogram.reduce((a, b) => a + b, 0))} above 0${card.frequency === null ? "" : `, on ${percent(card.frequency)} of the corpus's tokens`}; logarithmic.`, 170, (c) => ({
      grid: { left: 46, right: 8, top: 10, bottom: 30 }, xAxis: { type: "category", data: names }, yAxis: { type: "log", min: 1, splitNumber: 3 },
      tooltip: { trigger: "axis" }, series: [{ type: "bar", data: card.histogram.map((value) => value || null), itemStyle: { color: c.blue }, barCategoryGap: "10%" }],
    }));
  }

  function content(at, card, why) {
    const { features } = data;
    const parts = [steerlens.tryFeature ? steerlens.tryFeature(features.layer[at], features.feature[at]) : null, scores(at)];
    if (card) {
      for (const steered of card.steered) parts.push(steerlens.steering(steered));
      parts.push(make("div", { class: "pair" },
        card.promoted.length ? make("div", {}, make("h3", { text: "Promotes (logit lens)" }), bars(card.promoted, card.promoted_logits, "up")) : null,
        card.by_lens.length ? make("div", {}, make("h3", { text: `Promotes (${features.lens || "the run's own"} lens)`, title: "The scores know the feature by these tokens; texts have the logit lens's marked, which success counts." }), bars(card.by_lens, null, "up")) : null,
        card.suppressed.length ? make("div", {}, make("h3", { text: "Suppresses" }), bars(card.suppressed, card.suppressed_logits, "down")) : null));
      const texts = [...card.windows.map(windowOf), ...card.marked.map(peakOf)];
      if (texts.length) parts.push(make("h3", { text: "Fires on" }), make("div", { class: "windows" }, texts));
      parts.push(histogram(card));
      if (card.neighbours.length) {
        parts.push(make("h3", { text: "Nearest decoder directions" }), steerlens.table(["feature", "cosine", "promotes"], card.neighbours.map((near) => [
          steerlens.featureLink(features.layer[at], near.feature, String(near.feature)), near.cosine, make("span", {}, promoted(rowOf(features.layer[at], near.feature), 5).map((text) => token(text)))]), { label: "Neighbours" }));
      }
      if (card.url) parts.push(make("p", {}, make("a", { href: card.url, rel: "noopener noreferrer", target: "_blank", text: "On Neuronpedia" })));
    } else if (features.tokens.length) {
      parts.push(make("h3", { text: "Promotes (logit lens)" }), make("p", {}, promoted(at).map((text) => token(text))));
    }
    if (why) parts.push(make("p", { class: "warn", text: why }));
    return parts.filter(Boolean);
  }

  async function show(layer, feature) {
    const at = rowOf(layer, feature);
    forget(panel);
    const close = make("button", { type: "button", class: "close", "aria-label": "Close", text: "×", on: { click: hide } });
    const title = make("h2", { tabindex: "-1", text: `Layer ${layer}, feature ${feature}` });
    const head = make("header", {}, title, close);
    if (panel.hidden) cameFrom = document.activeElement;
    open = `${layer}/${feature}`;
    panel.hidden = false;
    document.body.classList.add("with-card");
    if (at < 0) {
      panel.replaceChildren(head, make("p", { class: "warn", text: "This run has no such feature." }));
      title.focus({ preventScroll: true });
      return;
    }
    const label = data.features.labels && data.features.labels[at];
    const top = [head, label ? make("p", { class: "label" }, make("bdi", { text: label })) : null].filter(Boolean);
    panel.replaceChildren(...top, make("p", { class: "explains", text: "…" }));
    panel.scrollTop = 0;
    title.focus({ preventScroll: true });
    const key = open;
    const [card, why] = await steerlens.card(at);
    if (open !== key) return; // another one was opened in the meantime
    panel.replaceChildren(...top, ...content(at, card, why));
    steerlens.tell(`Card of layer ${layer}, feature ${feature}`);
  }

  function hide() {
    if (open === null) return;
    open = null;
    forget(panel);
    panel.replaceChildren();
    panel.hidden = true;
    document.body.classList.remove("with-card");
    if (/feature=/.test(location.hash)) history.pushState(null, "", location.pathname + location.search);
    if (cameFrom && cameFrom.isConnected) cameFrom.focus({ preventScroll: true });
  }

  function follow() {
    const match = /^#layer=(\d{1,6})&feature=(\d{1,9})$/.exec(location.hash);
    if (match) show(Number(match[1]), Number(match[2]));
    else hide();
  }

  steerlens.open = (layer, feature) => {
    const address = steerlens.address(layer, feature);
    if (location.hash === address) show(layer, feature);
    else location.hash = address;
  };
  steerlens.follow = follow;
  window.addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !panel.hidden) hide(); });
})();
