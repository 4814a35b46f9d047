/* The table of all features: search, sort, filter; only the rows in sight exist. */
"use strict";
(() => {
  const { data, make, number, section, field, options, token, promoted } = steerlens;
  const HEIGHT = 34;

  function build() {
    const { features } = data;
    const n = features.layer.length;
    const steered = new Set(features.steered);
    const { layers } = features;
    const columns = [
      { title: "layer", values: features.layer, key: "layer", width: "4rem" },
      { title: "feature", values: features.feature, key: "feature", width: "5.5rem" },
      ...features.numbers.map((numbers) => ({ title: numbers.title, values: numbers.values, key: numbers.name, meaning: numbers.meaning, width: "6.2rem" })),
    ];
    let lower = null; // the tokens as they are searched, from the first search on
    const first = columns.find((column) => column.key === data.ranked_by) || columns[0];
    let sort = { key: first.key, down: first.key === data.ranked_by };
    let order = new Uint32Array();
    let chosen = 0;

    const hasTokens = features.tokens.length > 0;
    const says = [hasTokens && "promoted tokens", features.labels && "label"].filter(Boolean).reverse().join(", ");
    const placeholder = [hasTokens && "token", features.labels && "label", "number"].filter(Boolean).join(", ").replace(/, (\w+)$/, " or $1");
    const search = make("input", { type: "search", id: "search", placeholder, autocomplete: "off", spellcheck: "false" });
    const layerChoice = make("select", {}, options([["all", "all"], ...layers.map((layer) => [String(layer), String(layer)])], "all"));
    const onlySteered = make("input", { type: "checkbox" });
    const count = make("output", { class: "count" });
    const template = `${columns.slice(0, 2).map((column) => column.width).join(" ")} ${says ? "minmax(14rem, 1fr) " : ""}${columns.slice(2).map((column) => column.width).join(" ")}`;
    const width = `calc(${9.5 + (says ? 14 : 0) + 6.2 * (columns.length - 2)}rem + ${(columns.length + 1) * 0.6 + 0.6}rem)`;
    const layout = { "grid-template-columns": template, "min-width": width };
    const head = make("div", { class: "head", role: "row", style: layout });
    const spacer = make("div", { class: "spacer" });
    const rows = make("div", { class: "rows", role: "rowgroup" });
    const body = make("div", { class: "body", tabindex: "0", "aria-label": "Features; arrow keys move, Enter opens" }, head, spacer);
    spacer.append(rows);
    body.setAttribute("role", "grid");

    const heads = columns.map((column) => {
      const button = make("button", { type: "button", title: column.meaning, text: column.title, on: { click: () => {
        sort = { key: column.key, down: sort.key === column.key ? !sort.down : column.key !== "layer" && column.key !== "feature" };
        update();
      } } });
      return make("div", { role: "columnheader", class: "number" }, button);
    });
    head.append(heads[0], heads[1], says ? make("div", { role: "columnheader", text: says, title: hasTokens ? "by the logit lens, the strongest first" : "" }) : "", ...heads.slice(2));

    /* Rows that are asked for, or null for all of them. */
    function matches() {
      const wanted = search.value.toLowerCase().replaceAll("␣", " ");
      const isSpaced = wanted.startsWith(" ");
      const text = isSpaced ? ` ${wanted.trim()}` : wanted.trim();
      const layer = layerChoice.value;
      if (!text.trim() && layer === "all" && !onlySteered.checked) return null;
      if (text.trim() && !lower) lower = features.tokens.map((token) => token.toLowerCase().replaceAll("␣", " "));
      const hit = new Uint8Array(features.tokens.length + 1);
      if (text.trim()) lower.forEach((token, at) => { if (token.includes(text)) hit[at] = 1; });
      const asNumber = /^\d+$/.test(text) ? Number(text) : null;
      const asPair = /^(\d+)\s*\/\s*(\d+)$/.exec(text);
      const wantedRows = new Uint8Array(n);
      for (let row = 0; row < n; row += 1) {
        if (layer !== "all" && String(features.layer[row]) !== layer) continue;
        if (onlySteered.checked && !steered.has(row)) continue;
        if (text.trim()) {
          let is = asPair ? features.layer[row] === Number(asPair[1]) && features.feature[row] === Number(asPair[2]) : features.feature[row] === asNumber;
          for (let at = row * features.n_promoted; !is && at < (row + 1) * features.n_promoted; at += 1) is = hit[features.promoted[at]] === 1;
          if (!is && features.labels && features.labels[row]) is = features.labels[row].toLowerCase().includes(text);
          if (!is) continue;
        }
        wantedRows[row] = 1;
      }
      return wantedRows;
    }

    /* All rows in the order of a column, missing numbers last. */
    const sorted = new Map();
    function rowsBy({ key, down }) {
      const name = `${key} ${down}`;
      if (!sorted.has(name)) sorted.set(name, steerlens.sortedRows(columns.find((column) => column.key === key).values, down));
      return sorted.get(name);
    }

    function update() {
      const wanted = matches();
      order = wanted ? rowsBy(sort).filter((row) => wanted[row]) : rowsBy(sort);
      chosen = 0;
      heads.forEach((head, at) => head.setAttribute("aria-sort", columns[at].key === sort.key ? (sort.down ? "descending" : "ascending") : "none"));
      count.textContent = order.length === n ? `${number(n)} features` : `${number(order.length)} of ${number(n)}`;
      body.setAttribute("aria-rowcount", order.length + 1);
      body.style.maxHeight = `${HEIGHT * (Math.max(order.length, 1) + 1) + 18}px`;
      spacer.style.height = `${Math.max(order.length, 1) * HEIGHT}px`;
      body.scrollTop = 0;
      draw();
    }

    function draw() {
      const top = Math.max(0, Math.floor(body.scrollTop / HEIGHT) - 4);
      const visible = Math.ceil((body.clientHeight || 480) / HEIGHT) + 8;
      rows.style.transform = `translateY(${top * HEIGHT}px)`;
      rows.replaceChildren(...Array.from(order.subarray(top, top + visible), (row, at) => line(row, top + at)));
      if (!order.length) rows.replaceChildren(make("p", { class: "none", text: "No feature matches." }));
    }

    function line(row, at) {
      const label = features.labels && features.labels[row];
      const element = make("div", { class: `line${at === chosen ? " chosen" : ""}${steered.has(row) ? " steered" : ""}`, role: "row", "aria-rowindex": at + 2, style: layout },
        make("div", { role: "gridcell", class: "number", text: String(features.layer[row]) }),
        make("div", { role: "gridcell", class: "number" }, steerlens.featureLink(features.layer[row], features.feature[row], String(features.feature[row]))),
        says ? make("div", { role: "gridcell", class: "tokens" }, label ? make("bdi", { class: "label", text: label }) : null, promoted(row, 8).map((text) => token(text))) : null,
        ...columns.slice(2).map((column) => make("div", { role: "gridcell", class: "number", text: number(column.values[row]) })));
      element.addEventListener("click", () => { chosen = at; open(); });
      return element;
    }

    function open() {
      const row = order[chosen];
      if (row !== undefined) steerlens.open(features.layer[row], features.feature[row]);
      draw();
    }

    body.addEventListener("scroll", draw, { passive: true });
    body.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(body.clientHeight / HEIGHT) - 2);
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -order.length, End: order.length };
      if (event.target !== body) return;
      if (event.key === "Enter") { open(); return; }
      if (!(event.key in moves)) return;
      event.preventDefault();
      chosen = Math.min(Math.max(chosen + moves[event.key], 0), Math.max(order.length - 1, 0));
      const top = chosen * HEIGHT;
      if (top < body.scrollTop) body.scrollTop = top;
      else if (top + 3 * HEIGHT > body.scrollTop + body.clientHeight) body.scrollTop = top + 3 * HEIGHT - body.clientHeight;
      draw();
    });
    new ResizeObserver(draw).observe(body);
    let timer = 0;
    search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(update, n > 30000 ? 120 : 30); });
    layerChoice.addEventListener("change", update);
    onlySteered.addEventListener("change", update);
    update();
    return section("features", "Features", hasTokens ? null : "The tables of this run don't have the tokens that features promote.",
      make("div", { class: "tools" }, field("Search", search), layers.length > 1 ? field("Layer", layerChoice) : null,
        features.steered.length ? make("label", { class: "field check" }, onlySteered, make("span", { text: `steered (${number(features.steered.length)})` })) : null, count),
      make("div", { class: "grid" }, body));
  }

  steerlens.parts.push(["features", "Features", () => (data.features ? build() : null)]);
})();
