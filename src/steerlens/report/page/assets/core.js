/* What all parts share: the data, elements made without markup, numbers, the address, the theme. */
"use strict";
const steerlens = (window.steerlens = {});
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  /* Arrays of numbers come as bytes (base64), each in a block of its own: 131,072 features have two million of them. */
  const KINDS = { u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };
  function unpack({ kind, block }) {
    const text64 = document.getElementById(`array-${block}`).textContent;
    if (Uint8Array.fromBase64) return new KINDS[kind](Uint8Array.fromBase64(text64).buffer);
    const text = atob(text64);
    const bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
    return new KINDS[kind](bytes.buffer);
  }
  /* An array is unpacked when it is asked for. */
  function unpackLater(object, name) {
    const packed = object[name];
    Object.defineProperty(object, name, { configurable: true, enumerable: true, get() {
      const value = unpack(packed);
      Object.defineProperty(object, name, { value });
      return value;
    } });
  }
  unpackLater(data, "files");
  const { features } = data;
  if (features) {
    for (const name of ["layer", "feature", "promoted", "steered"]) unpackLater(features, name);
    for (const numbers of features.numbers) unpackLater(numbers, "values");
    features.layers = [...new Set(features.layer)].sort((a, b) => a - b);
  }
  /* What a card has where nothing is written. */
  const nothing = { promoted: [], promoted_logits: null, by_lens: [], suppressed: [], suppressed_logits: null, windows: [], marked: [],
    histogram: [], histogram_range: null, frequency: null, neighbours: [], url: null, steered: [] };
  const cards = new Map();
  function add(more) {
    for (const [key, card] of Object.entries(more)) cards.set(key, { ...nothing, ...card });
  }
  const waiting = new Map(); // number of a file of data -> what is called when it is there

  /* An element with properties and children; text is only ever text. */
  function make(tag, properties, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (name === "text") element.textContent = value;
      else if (name === "on") for (const [event, f] of Object.entries(value)) element.addEventListener(event, f);
      else if (name === "style") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  }

  function number(value, digits = 3) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (Number.isInteger(value)) return value.toLocaleString("en");
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(Math.max(0, digits - 2)).replace("e-", "e−").replace("e+", "e");
    return String(Number(value.toPrecision(digits)));
  }

  const percent = (share) => (share === null ? "–" : `${number(100 * share, share < 0.1 ? 2 : 3)} %`);

  /* Tokens of which a space is the visible ␣, each in a box of its own. */
  function token(text, extra = "") {
    return make("bdi", { class: `token ${extra}`, text });
  }

  function section(id, title, explanation, ...children) {
    return make("section", { id, "aria-labelledby": `${id}-title` },
      make("h2", { id: `${id}-title`, text: title }),
      explanation ? make("p", { class: "explains", text: explanation }) : null, ...children);
  }

  function field(label, input) {
    return make("label", { class: "field" }, make("span", { text: label }), input);
  }

  function options(values, chosen) {
    return values.map(([value, text]) => make("option", { value, selected: value === chosen, text }));
  }

  function tell(text) {
    document.getElementById("told").textContent = text;
  }

  async function copy(text, button) {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", { readonly: true });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    tell("Copied");
    setTimeout(() => { button.textContent = before; }, 1200);
  }

  /* A simple table; cells are texts, elements or numbers. */
  /* A table; `isStacked`: on a narrow screen each row is lines, its last cell, a text, as wide as the screen. */
  function table(header, rows, options = {}) {
    const numeric = header.map((_, at) => rows.every((row) => typeof row[at] === "number" || row[at] === "–" || row[at] === null || (row[at] && row[at].isNumber)));
    return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": options.label },
      make("table", { class: options.isStacked ? "stacked" : "" },
        make("thead", {}, make("tr", {}, header.map((name, at) => make("th", { scope: "col", class: numeric[at] ? "number" : "", text: name })))),
        make("tbody", {}, rows.map((row) => make("tr", { class: row.mark ? "marked" : "" }, row.map((cell, at) => {
          const isShort = typeof cell === "string" && cell.length < 22;
          const td = make("td", { class: numeric[at] ? "number" : isShort ? "short" : "", "data-name": header[at] });
          td.append(cell === null || cell === undefined ? "–" : typeof cell === "number" ? number(cell) : cell);
          return td;
        }))))));
  }

  const address = (layer, feature) => `#layer=${layer}&feature=${feature}`;

  function featureLink(layer, feature, text) {
    return make("a", { href: address(layer, feature), text: text || `${layer} / ${feature}` });
  }

  /* The row of a feature in the table of features; -1 if it has none. */
  function row(layer, feature) {
    if (!features) return -1;
    let at = features.feature.indexOf(feature);
    while (at >= 0 && features.layer[at] !== layer) at = features.feature.indexOf(feature, at + 1);
    return at;
  }

  function promoted(at, n = 10) {
    if (at < 0) return [];
    const first = at * features.n_promoted;
    const ids = Array.from(features.promoted.subarray(first, first + Math.min(n, features.n_promoted)));
    return ids.filter((id) => id < features.tokens.length).map((id) => features.tokens[id]);
  }

  /* Rows in the order of their values, NaN last, equal ones as they stand. A typed array sorts numbers many times as fast as
     comparisons of ours: each is 32 bits that order as the value does, then the row. Values of 64 bits are compared. */
  function sortedRows(values, isDown) {
    const n = values.length;
    const rows = new Uint32Array(n);
    if (values instanceof Float64Array || n > 0x200000) {
      const last = isDown ? -Infinity : Infinity;
      const key = (row) => (Number.isNaN(values[row]) ? last : values[row]);
      rows.forEach((_, row) => { rows[row] = row; });
      return rows.sort((a, b) => (key(a) === key(b) ? a - b : key(a) < key(b) === isDown ? 1 : -1));
    }
    const isFloat = values instanceof Float32Array;
    const bits = isFloat ? new Uint32Array(values.buffer) : values;
    const keys = new Float64Array(n);
    for (let row = 0; row < n; row += 1) {
      let key = bits[row];
      if (isFloat) key = values[row] === 0 ? 0x80000000 : key >= 0x80000000 ? 0xffffffff - key : key + 0x80000000;
      if (isDown) key = 0xffffffff - key;
      if (isFloat && Number.isNaN(values[row])) key = 0xffffffff;
      keys[row] = key * 0x200000 + row;
    }
    keys.sort();
    for (let at = 0; at < n; at += 1) rows[at] = keys[at] % 0x200000;
    return rows;
  }

  const column = (name) => (features ? features.numbers.find((numbers) => numbers.name === name) : undefined);

  /* A file of data beside the page calls this. */
  steerlens.addCards = (id, fileNumber, more) => {
    const arrived = waiting.get(fileNumber);
    waiting.delete(fileNumber);
    if (id === data.id) add(more);
    if (arrived) arrived(id === data.id ? null : `report.data/${name(fileNumber)} is of another page.`);
  };

  const name = (fileNumber) => `${String(fileNumber).padStart(3, "0")}.js`;

  /* The card of a feature, or why there is none. */
  let isParsed = false;
  function card(at) {
    if (!isParsed) { // with the first card: a page is there sooner without
      add(JSON.parse(document.getElementById("cards").textContent));
      isParsed = true;
    }
    const key = `${features.layer[at]}/${features.feature[at]}`;
    const fileNumber = data.files.length ? data.files[at] - 1 : -1;
    if (cards.has(key) || fileNumber < 0) return Promise.resolve([cards.get(key) || null, null]);
    return new Promise((resolve) => {
      const script = make("script", { src: `report.data/${name(fileNumber)}` });
      const done = (why) => { script.remove(); resolve([cards.get(key) || null, why]); };
      const others = waiting.get(fileNumber);
      waiting.set(fileNumber, (why) => { if (others) others(why); done(why); });
      script.addEventListener("error", () => {
        waiting.delete(fileNumber);
        done(`Its texts are in report.data/${name(fileNumber)}, which isn't beside this page.`);
        if (others) others(null);
      });
      document.head.append(script);
    });
  }

  /* Dark and light: the system's, until one chooses. */
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const themed = [];
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    themed.forEach((f) => f());
  }
  document.getElementById("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  /* Paper is white, and shows what is folded away. */
  let before = null;
  window.addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme || "";
    document.querySelectorAll(".facts").forEach((details) => { details.open = true; });
    setTheme("light");
  });
  window.addEventListener("afterprint", () => {
    if (before === "") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = before;
    themed.forEach((f) => f());
  });
  dark.addEventListener("change", () => themed.forEach((f) => f()));

  Object.assign(steerlens, {
    data, make, number, percent, token, section, field, options, tell, copy, table, featureLink, address,
    row, promoted, column, sortedRows, card, isDark, onTheme: (f) => themed.push(f), parts: [],
  });
})();
