/* The card that steers, in a page that `steerlens play` serves: what is asked of its server, and what comes back. */
"use strict";
(() => {
  const { data, make, number, token, field, options, section, promoted, row: rowOf } = steerlens;
  const { live } = data;
  const SHOWN = 60; // matches of a search
  const FIRST = 5; // promoted tokens that are searched
  const PAUSE = 250; // ms after which a moved slider is taken to rest

  function build() {
    const { features } = data;
    let chosen = []; // {layer, feature, weight}
    let texts = new Map(); // factor -> text, of what is set now
    let repeat = { command: null, python: null };
    let running = null; // the request under way
    let timer = 0;

    const prompt = make("textarea", { id: "live-prompt", rows: "2", maxlength: String(live.limits.prompt), spellcheck: "false" });
    prompt.value = live.prompt;
    const template = make("input", { type: "checkbox", checked: live.chat_template });
    const search = make("input", { type: "search", id: "live-search", placeholder: "token, number, concept", autocomplete: "off", spellcheck: "false" });
    const asConcept = make("button", { type: "button", text: "Find as a concept" });
    const matches = make("ul", { class: "matches", "aria-label": "Features to choose" });
    const chips = make("ul", { class: "chosen", "aria-label": "Chosen features" });
    const slider = make("input", { type: "range", id: "live-factor", min: "-8", max: "20", step: "0.1" });
    slider.value = "2";
    const shown = make("output");
    const operator = make("select", {}, options(live.operators.map((name) => [name, name]), live.operator));
    const positions = make("select", {}, options(live.positions.map((name) => [name, name]), live.position));
    const numeric = (value, min, max, step) => { const input = make("input", { type: "number", min, max, step }); input.value = String(value); return input; };
    const length = numeric(live.max_new_tokens, "1", String(live.limits.max_new_tokens), "1");
    const temperature = numeric(live.temperature, "0", "5", "0.1");
    const seed = numeric(live.seed, "0", "2147483648", "1");
    const write = make("button", { type: "button", class: "write", text: "Write" });
    const stop = make("button", { type: "button", text: "Stop", disabled: true });
    const command = make("button", { type: "button", text: "Copy as command", disabled: true });
    const python = make("button", { type: "button", text: "Copy as Python", disabled: true });
    const vector = make("button", { type: "button", text: "Export vector" });
    const says = make("p", { class: "explains says", role: "status" });
    const sides = make("div", { class: "sides" });
    const all = make("div", {});
    const own = make("p", { class: "explains" });

    const factorNow = () => Number(Number(slider.value).toFixed(4));
    const say = (text, isWrong = false) => { says.textContent = text; says.className = isWrong ? "warn says" : "explains says"; };

    /* What is asked for, but for the factors; another one makes the texts those of something else. */
    function setting() {
      return {
        layer: chosen.length ? chosen[0].layer : 0, features: chosen.map((one) => one.feature), weights: chosen.map((one) => one.weight),
        prompt: prompt.value, chat_template: template.checked, operator: operator.value, positions: positions.value,
        max_new_tokens: Math.round(Number(length.value)), temperature: Number(temperature.value), seed: Math.round(Number(seed.value)),
      };
    }

    function forget() {
      if (running) running.abort();
      clearTimeout(timer);
      texts = new Map();
      repeat = { command: null, python: null };
      own.replaceChildren();
      draw();
    }

    function statistics(text) {
      const parts = [];
      if (text.success !== null) parts.push(`success@20 ${number(text.success)}`);
      if (text.perplexity !== null) parts.push(`perplexity ${number(text.perplexity)}`);
      if (text.kl !== null && text.factor !== 0) parts.push(`KL ${number(text.kl)}`);
      return make("small", { text: parts.join(", ") });
    }

    function side(name, text) {
      const body = !text ? make("p", { class: "none", text: "not written yet" }) : text.segments.length ? steerlens.marked(text.segments) : make("p", { class: "none", text: "…" });
      return make("div", { class: "side" }, make("h5", {}, make("span", { text: name }), text ? statistics(text) : null), body);
    }

    function draw() {
      const factor = factorNow();
      shown.textContent = number(factor);
      slider.setAttribute("aria-valuetext", `factor ${number(factor)}`);
      sides.replaceChildren(side("unsteered", texts.get(0)), ...(factor === 0 ? [] : [side(`factor ${number(factor)}`, texts.get(factor))]));
      const rows = [...texts.values()].sort((a, b) => a.factor - b.factor).map((text) => [
        make("button", { type: "button", text: number(text.factor), "aria-label": `Show factor ${number(text.factor)}`, on: { click: () => { slider.value = String(text.factor); draw(); } } }),
        text.success, text.perplexity, text.kl, text.segments.length ? steerlens.marked(text.segments) : ""]);
      all.replaceChildren(...(rows.length ? [steerlens.table(["factor", "success@20", "perplexity", "KL, nats", "text"], rows, { label: "Texts by factor", isStacked: true })] : []));
      write.disabled = !chosen.length;
      vector.disabled = !chosen.length;
      stop.disabled = !running;
      command.disabled = !repeat.command;
      command.title = repeat.python && !repeat.command ? "A command steers; choose a factor that isn't 0." : "";
      python.disabled = !repeat.python;
      if (!chosen.length) say("Choose a feature: search for a token or a concept, or open one in the table below.");
    }

    function drawChosen() {
      chips.replaceChildren(...chosen.map((one, at) => {
        const weight = make("input", { type: "number", step: "0.5", "aria-label": `Weight of feature ${one.feature}` });
        weight.value = String(one.weight);
        weight.addEventListener("change", () => { one.weight = Number(weight.value) || 0; forget(); });
        return make("li", {}, steerlens.featureLink(one.layer, one.feature), ...promoted(rowOf(one.layer, one.feature), 3).map((text) => token(text)),
          chosen.length > 1 ? weight : null,
          make("button", { type: "button", class: "close", text: "×", "aria-label": `Without feature ${one.feature}`, on: { click: () => { chosen.splice(at, 1); drawChosen(); forget(); } } }));
      }));
    }

    function choose(layer, feature) {
      if (chosen.some((one) => one.layer === layer && one.feature === feature)) return;
      const others = chosen.filter((one) => one.layer === layer).slice(0, live.limits.features - 1);
      if (others.length < chosen.length) steerlens.tell("Features of one layer are steered with at once; the others are left out.");
      chosen = [...others, { layer, feature, weight: 1 }];
      search.value = "";
      matches.replaceChildren();
      drawChosen();
      forget();
      say("");
    }

    /* Features of the table whose number it is, that promote the text itself, whose label has it, that promote a token with it in:
       in this order, the strongest token first, of equal ones the higher S_out. */
    function look() {
      const text = search.value.trim().toLowerCase();
      if (!text) { matches.replaceChildren(); return; }
      const pair = /^(\d+)\s*\/\s*(\d+)$/.exec(text);
      const kinds = features.tokens.map((name) => { const plain = name.toLowerCase().replaceAll("␣", " ").trim(); return plain === text ? 2 : plain.includes(text) ? 1 : 0; });
      const score = steerlens.column("output_score");
      const scoreOf = (at) => (score && !Number.isNaN(score.values[at]) ? score.values[at] : null);
      function rank(at) {
        if (pair) return features.layer[at] === Number(pair[1]) && features.feature[at] === Number(pair[2]) ? 0 : Infinity;
        if (String(features.feature[at]) === text) return 0;
        let best = features.labels && features.labels[at] && features.labels[at].toLowerCase().includes(text) ? 10 : Infinity;
        for (let i = Math.min(FIRST, features.n_promoted) - 1; i >= 0; i -= 1) {
          const kind = kinds[features.promoted[at * features.n_promoted + i]];
          if (kind) best = Math.min(best, kind === 2 ? 1 + i : 20 + i);
        }
        return best;
      }
      const ranked = [];
      for (let at = 0; at < features.layer.length; at += 1) { const group = rank(at); if (group < Infinity) ranked.push([group, -(scoreOf(at) ?? 0), at]); }
      ranked.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
      list(ranked.slice(0, SHOWN).map(([, , at]) => [features.layer[at], features.feature[at], promoted(at, 6), scoreOf(at)]), "No feature promotes it; Find as a concept knows its other forms.");
    }

    function list(rows, none) {
      matches.replaceChildren(...rows.map(([layer, feature, tokens, score]) => make("li", {}, make("button", { type: "button", on: { click: () => choose(layer, feature) } },
        make("span", { text: `${layer} / ${feature} ` }), ...tokens.map((text) => token(text)), score === null ? null : make("small", { text: ` S_out ${number(score)}` })))));
      if (!rows.length) matches.replaceChildren(make("li", { class: "none", text: none }));
    }

    async function ask(where, body, signal) {
      let response;
      try {
        response = await fetch(where, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Error("The server doesn't answer; is steerlens play still running?");
      }
      if (!response.ok) {
        const told = await response.json().catch(() => ({}));
        throw new Error(told.error || `The server answers ${response.status}.`);
      }
      return response;
    }

    async function findConcept() {
      const concept = search.value.trim();
      if (!concept) return;
      say(`Looking for ${concept} …`);
      try {
        const rows = await (await ask("find", { concept })).json();
        list(rows.map((match) => [match.layer, match.feature, match.tokens, match.output_score]), "No feature promotes a token of it.");
        say(`${number(rows.length)} features promote a token of it${rows.length ? "; choose one or several" : ""}.`);
      } catch (error) { say(error.message, true); }
    }

    function take(event) {
      if (event.repeat) repeat = event.repeat;
      if (event.own) own.replaceChildren(chosen.length > 1 ? "Marked are their 20 logit-lens tokens; success@20 counts those of the first feature: " : "Marked are its 20 logit-lens tokens, which success@20 counts: ", ...event.own.slice(0, 40).map((text) => token(text)));
      if (event.waiting) say(`${number(event.waiting)} requests are before this one …`);
      if (event.error) throw new Error(event.error);
      for (const text of event.texts || event.done || []) if (event.done || !isWhole(text.factor)) texts.set(text.factor, text);
      if (event.texts) say("Writing …");
    }

    /* Asks for the slider's factor, those that are shown, and more; what has been written isn't written again, so that the command to copy has all of them. */
    async function send(more) {
      if (!chosen.length) return;
      if (running) running.abort();
      const factors = [...new Set([factorNow(), ...more, ...[...texts.keys()].reverse()])].filter((factor) => factor !== 0).slice(0, live.limits.factors);
      texts = new Map([...texts].filter(([factor]) => factor === 0 || factors.includes(factor)));
      const request = new AbortController();
      running = request;
      say("Asking …");
      draw();
      try {
        const reader = (await ask("write", { ...setting(), factors }, request.signal)).body.getReader();
        const decoder = new TextDecoder();
        let rest = "";
        for (;;) {
          const { done, value } = await reader.read();
          if (done) break;
          rest += decoder.decode(value, { stream: true });
          const lines = rest.split("\n");
          rest = lines.pop();
          if (running !== request) return;
          lines.forEach((line) => take(JSON.parse(line)));
          draw();
        }
        say("");
      } catch (error) {
        if (running === request) say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
      } finally {
        if (running === request) { running = null; draw(); }
      }
    }

    const sendAll = () => send(live.factors);

    /* A text has its numbers once it has been written to its end. */
    const isWhole = (factor) => texts.has(factor) && texts.get(factor).success !== null;

    function moved() {
      draw();
      clearTimeout(timer);
      if (texts.has(factorNow())) return;
      timer = setTimeout(() => send(texts.size ? [] : live.factors), PAUSE);
    }

    async function exportVector() {
      const factor = factorNow();
      try {
        const response = await ask("vector", { ...setting(), factors: factor === 0 ? [] : [factor] });
        const link = make("a", { href: URL.createObjectURL(await response.blob()), download: /filename="([\w.-]+)"/.exec(response.headers.get("content-disposition") || "")?.[1] || "vector.zip" });
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
        say("The vector is for tools that add a constant; steer.py in it says how.");
      } catch (error) { say(error.message, true); }
    }

    search.addEventListener("input", look);
    search.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); findConcept(); } });
    asConcept.addEventListener("click", findConcept);
    slider.addEventListener("input", moved);
    for (const input of [prompt, template, operator, positions, length, temperature, seed]) input.addEventListener("change", forget);
    write.addEventListener("click", sendAll);
    stop.addEventListener("click", () => running && running.abort());
    command.addEventListener("click", () => steerlens.copy(repeat.command, command));
    python.addEventListener("click", () => steerlens.copy(repeat.python, python));
    vector.addEventListener("click", exportVector);

    steerlens.tryFeature = (layer, feature) => make("p", {}, make("button", { type: "button", text: "Steer with this feature", on: { click: () => {
      choose(layer, feature);
      location.hash = "live";
      document.getElementById("live").scrollIntoView();
      sendAll();
    } } }));

    draw();
    return section("live", "Try a feature by hand", null,
      make("label", {}, make("span", { class: "explains", text: "Prompt" }), prompt),
      make("div", { class: "tools" }, live.has_template ? make("label", { class: "field check" }, template, make("span", { text: "in the chat template" })) : null),
      make("div", { class: "tools" }, field("Feature", search), asConcept), matches, chips,
      make("label", { class: "slider" }, make("span", { text: "Factor" }), slider, shown),
      make("details", {}, make("summary", { text: "How it is steered and written" }), make("div", { class: "tools" },
        field("Operator", operator), field("Positions", positions), field("Tokens", length), field("Temperature", temperature), field("Seed", seed))),
      make("div", { class: "tools" }, write, stop, command, python, vector), says, sides, own, all);
  }

  steerlens.parts.push(["live", "Try it", build]);
})();
