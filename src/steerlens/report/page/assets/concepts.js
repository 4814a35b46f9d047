/* Concepts: what was found, why each candidate was chosen or not, and the best one's texts. */
"use strict";
(() => {
  const { data, make, number, section, token, featureLink, table } = steerlens;

  function candidates(concept) {
    const rows = concept.candidates.map((one) => {
      const row = [featureLink(one.layer, one.feature), make("span", { class: "tokens" }, one.tokens.slice(0, 6).map((text) => token(text))),
        one.toward, one.output_score, one.best_factor, one.success, one.unsteered, one.perplexity, one.why];
      row.mark = one.is_best;
      return row;
    });
    return table(["layer / feature", "promotes", "toward it", "S_out", "factor", "its tokens a text", "unsteered", "perplexity", "why"], rows, { label: `Candidates for ${concept.concept}` });
  }

  function winner(concept) {
    const best = concept.candidates.find((one) => one.is_best);
    if (!best || !data.features) return null;
    const holder = make("div", { class: "winner" });
    const at = steerlens.row(best.layer, best.feature);
    if (at < 0) return null;
    steerlens.card(at).then(([card]) => {
      const steered = card && card.steered.find((one) => one.concept === concept.concept);
      if (steered) holder.append(steerlens.steering(steered));
    });
    return holder;
  }

  function result(concept, isOpen) {
    const best = concept.candidates.find((one) => one.is_best);
    const summary = make("summary", {}, make("bdi", { class: "word", text: concept.concept }),
      make("span", { class: concept.is_found ? "yes" : "no", text: concept.is_found ? "steered toward" : "nothing steers toward it" }),
      best ? make("span", { text: `layer ${best.layer}, feature ${best.feature}; factor ${number(best.best_factor)}; ${number(best.success)} of its tokens a text (unsteered ${number(best.unsteered)})` }) : null);
    const details = make("details", { open: isOpen }, summary, make("p", { text: concept.sentence }),
      make("p", {}, "Tokens that stand for it: ", concept.tokens.map((text) => token(text))));
    let isFilled = false;
    const fill = () => {
      if (isFilled || !details.open) return;
      isFilled = true;
      details.append(...[winner(concept), make("h3", { text: "Candidates" }), candidates(concept)].filter(Boolean));
    };
    details.addEventListener("toggle", fill);
    fill();
    return details;
  }

  steerlens.parts.push(["concepts", "Concepts", () => (data.concepts.length
    ? section("concepts", data.concepts.length > 1 ? "Words that features steer toward" : "Toward the concept", null, data.concepts.map((concept, at) => result(concept, at === 0)))
    : null)]);
})();
