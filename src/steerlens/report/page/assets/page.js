/* The page: its top, then every part that the run has something for. */
"use strict";
(() => {
  const { data, make, copy } = steerlens;
  const main = document.getElementById("main");
  const { overview } = data;
  const MOST = 16; // sentences in sight

  /* All of them, but where they would hide the page: the first, and the others folded away. */
  function sentences(texts) {
    const list = (some) => make("ul", { class: "sentences" }, some.map((text) => make("li", { text })));
    if (texts.length <= MOST) return texts.length ? [list(texts)] : [];
    const others = texts.slice(MOST - 2);
    return [list(texts.slice(0, MOST - 2)), make("details", { class: "facts more" }, make("summary", { text: `${others.length} more sentences` }), list(others))];
  }

  function top() {
    const command = overview.command ? make("div", { class: "command" }, make("code", { text: overview.command }),
      make("button", { type: "button", text: "Copy", on: { click: (event) => copy(overview.command, event.target) } })) : null;
    const facts = overview.facts.length ? make("details", { class: "facts" }, make("summary", { text: "Model, SAE, versions" }),
      make("dl", {}, overview.facts.flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]))) : null;
    const state = overview.state === "done" ? null : make("p", { class: "warn", role: "alert", text: `Unfinished: ${overview.state.replace(/^unfinished: /, "")}.` });
    const numbers = overview.key_numbers.length > 1 ? make("ul", { class: "numbers" }, overview.key_numbers.map(({ value, meaning, beside }) => make("li", {}, make("strong", { text: value }), make("span", { text: meaning }), beside ? make("small", { text: beside }) : null))) : null;
    const cameOut = [numbers, ...sentences(overview.sentences), command, facts].filter(Boolean);
    // Who opens a live page wants to try a feature: what its run said is folded away.
    const isFolded = Boolean(data.live) && cameOut.length > 0;
    return make("section", { id: "top", "aria-labelledby": "title" }, make("h1", { id: "title", text: data.title }), state,
      make("p", { class: "asked", text: overview.question }),
      overview.notes.length ? make("ul", { class: "warn" }, overview.notes.map((text) => make("li", { text }))) : null,
      ...(isFolded ? [make("details", { class: "facts" }, make("summary", { text: "What the run found, and its command" }), cameOut)] : cameOut));
  }

  main.replaceChildren(top());
  const nav = document.getElementById("nav");
  const order = [...(data.live ? ["live"] : []), "concepts", "table1", "results", "scores", "features"];
  for (const wanted of order) {
    const [id, title, build] = steerlens.parts.find((part) => part[0] === wanted);
    let part = null;
    try {
      part = build();
    } catch (error) {
      part = make("section", { id }, make("p", { class: "warn", text: `The part ${title} can't be shown: ${error.message}` }));
      console.error(error);
    }
    if (!part) continue;
    main.append(part);
    nav.append(make("a", { href: `#${id}`, text: title }));
  }
  steerlens.follow();
  document.documentElement.dataset.ready = "yes";
})();
