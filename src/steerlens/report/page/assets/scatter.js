/* Every feature a point. ECharts has the axes and the zoom; the points are drawn and hit here, as ECharts would draw all
   131,072 of them again whenever the mouse moves. */
"use strict";
(() => {
  const { data, make, number, field, options, chart, depth, column, promoted, onTheme } = steerlens;
  const SMALLEST = 1e-6; // of a logarithmic axis: lower scores are drawn there
  const MARGIN = { left: 60, right: 18, top: 16, bottom: 48 };
  const REACH = 8; // pixels from a point within which it is meant
  const MANY = 3000; // points beyond which they are small squares, counted in pixels

  /* Squares of a few pixels, blended one over the other: milliseconds for 131,072 of them. */
  function drawSquares(context, rows, pixelOf, colourOf, ratio) {
    const { width, height } = context.canvas;
    const image = context.createImageData(width, height);
    const pixels = image.data;
    const size = Math.max(2, Math.round((9 - 1.3 * Math.log10(rows.length)) * ratio)); // 4 pixels for 3,000, 2 for 131,072
    const alpha = 0.5;
    for (const row of rows) {
      const [px, py] = pixelOf(row);
      const left = Math.round(px * ratio - size / 2);
      const top = Math.round(py * ratio - size / 2);
      if (left < 0 || top < 0 || left + size > width || top + size > height) continue;
      const colour = colourOf(row);
      for (let y = top; y < top + size; y += 1) {
        for (let at = 4 * (y * width + left), end = at + 4 * size; at < end; at += 4) {
          const under = (pixels[at + 3] / 255) * (1 - alpha);
          const total = alpha + under;
          for (let i = 0; i < 3; i += 1) pixels[at + i] = (colour[i] * alpha + pixels[at + i] * under) / total;
          pixels[at + 3] = 255 * total;
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  function drawCircles(context, rows, pixelOf, colourOf, ratio) {
    context.scale(ratio, ratio);
    for (const row of rows) {
      const [px, py] = pixelOf(row);
      context.beginPath();
      context.arc(px, py, 3.5, 0, 2 * Math.PI);
      context.fillStyle = `rgb(${colourOf(row).join(" ")} / 75%)`;
      context.fill();
    }
  }

  function scatter() {
    const { features } = data;
    const scoreIn = column("input_score");
    const scoreOut = column("output_score") || column("concept_score");
    if (!scoreOut || !scoreIn) return null;
    const x = scoreIn.values;
    const y = scoreOut.values;
    const { layers } = features;
    const scored = Uint32Array.from(features.layer.keys()).filter((row) => !Number.isNaN(x[row]) && !Number.isNaN(y[row]));
    const rankOf = new Map(layers.map((layer, at) => [layer, at]));
    let rows = scored;
    let isLog = false;
    let plot = null;
    let pixelOf = null;
    let drawnAs = "";

    const points = make("canvas", { class: "points" });
    const ring = make("i", { class: "ring", hidden: true });
    const tip = make("div", { class: "tip", hidden: true });
    const height = Math.min(620, Math.max(420, Math.round(0.42 * Math.min(window.innerWidth, 1500))));
    const figure = chart(`${scoreOut.title} against ${scoreIn.title}.`, `${number(scored.length)} features that have both, a point each.`, height, () => ({
      grid: MARGIN, tooltip: { show: false },
      xAxis: { type: "value", name: scoreIn.title, nameLocation: "middle", nameGap: 28, min: 0, max: 1 },
      yAxis: { type: isLog ? "log" : "value", name: scoreOut.title, nameLocation: "middle", nameGap: 42, min: isLog ? SMALLEST : 0, max: 1 },
      dataZoom: [0, 1].map((at) => ({ type: "inside", [at ? "yAxisIndex" : "xAxisIndex"]: 0, filterMode: "none", zoomOnMouseWheel: "shift", moveOnMouseWheel: false })),
      series: [{ type: "scatter", data: [] }],
    }), (drawn) => {
      plot = drawn;
      box.append(points, ring, tip);
      drawn.on("finished", paint);
      paint();
    });
    figure.id = "scatter";
    const box = figure.querySelector(".chart");

    /* Draw the points anew where their place, their colour or their choice has changed. */
    function paint() {
      const yStart = isLog ? SMALLEST : 0;
      const [left, bottom] = plot.convertToPixel({ gridIndex: 0 }, [0, yStart]);
      const [right, top] = plot.convertToPixel({ gridIndex: 0 }, [1, 1]);
      const width = box.clientWidth;
      const ratio = window.devicePixelRatio || 1;
      const look = [left, bottom, right, top, width, ratio, isLog, rows.length, rows[0], steerlens.isDark()].join();
      if (look === drawnAs || !width) return;
      drawnAs = look;
      const decades = Math.log10(SMALLEST);
      const position = [0, 0];
      pixelOf = (row) => {
        const share = isLog ? 1 - Math.log10(Math.max(y[row], SMALLEST)) / decades : y[row];
        position[0] = left + x[row] * (right - left);
        position[1] = bottom + share * (top - bottom);
        return position;
      };
      points.width = Math.round(width * ratio);
      points.height = Math.round(height * ratio);
      // The axes' frame, and a point's reach around it.
      points.style.setProperty("clip-path", `inset(${MARGIN.top - 5}px ${MARGIN.right - 5}px ${MARGIN.bottom - 5}px ${MARGIN.left - 5}px)`);
      const colours = layers.map((_, at) => depth(layers.length > 1 ? at / (layers.length - 1) : 0.4));
      const colourOf = (row) => colours[rankOf.get(features.layer[row])];
      const draw = rows.length > MANY ? drawSquares : drawCircles;
      draw(points.getContext("2d"), rows, pixelOf, colourOf, ratio);
      hide();
    }

    /* The row of the point next to a place in the plot; -1 = none is near. */
    function rowAt(left, top) {
      const width = box.clientWidth;
      if (!pixelOf || left < MARGIN.left - REACH || left > width - MARGIN.right + REACH || top < MARGIN.top - REACH || top > height - MARGIN.bottom + REACH) return -1;
      let nearest = -1;
      let least = REACH * REACH;
      for (const row of rows) {
        const [px, py] = pixelOf(row);
        const distance = (px - left) ** 2 + (py - top) ** 2;
        if (distance < least) { least = distance; nearest = row; }
      }
      return nearest;
    }

    function hide() {
      ring.hidden = true;
      tip.hidden = true;
      box.classList.remove("on-point");
    }

    function showAt(left, top) {
      const row = rowAt(left, top);
      if (row < 0) { hide(); return; }
      const [px, py] = pixelOf(row);
      ring.hidden = false;
      tip.hidden = false;
      box.classList.add("on-point");
      ring.style.setProperty("transform", `translate(${px - 6}px, ${py - 6}px)`);
      tip.replaceChildren(make("strong", { text: `layer ${features.layer[row]}, feature ${features.feature[row]}` }),
        make("div", { text: `${scoreOut.title} ${number(y[row])}, ${scoreIn.title} ${number(x[row])}` }),
        make("div", {}, promoted(row, 5).map((text) => steerlens.token(text))));
      tip.style.setProperty("transform", `translate(${Math.max(0, Math.min(px + 12, box.clientWidth - tip.offsetWidth))}px, ${py > height / 2 ? py - tip.offsetHeight - 10 : py + 12}px)`);
    }

    const placeOf = (event) => { const of = box.getBoundingClientRect(); return [event.clientX - of.left, event.clientY - of.top]; };
    let next = null; // where the mouse is, until the next frame
    let pressed = null;
    box.addEventListener("mousemove", (event) => {
      const isWaiting = next !== null;
      next = placeOf(event);
      if (!isWaiting) requestAnimationFrame(() => { const [left, top] = next; next = null; showAt(left, top); });
    });
    window.addEventListener("beforeprint", () => { if (plot) { plot.getZr().flush(); paint(); } });
    box.addEventListener("mouseleave", () => requestAnimationFrame(hide));
    box.addEventListener("mousedown", (event) => { pressed = placeOf(event); });
    box.addEventListener("click", (event) => {
      const [left, top] = placeOf(event);
      if (pressed && Math.hypot(pressed[0] - left, pressed[1] - top) > 4) return; // the end of a drag
      const row = rowAt(left, top);
      if (row >= 0) steerlens.open(features.layer[row], features.feature[row]);
    });
    const count = make("output", { class: "count" });
    const lacking = features.layer.length - scored.length;
    const redraw = () => {
      count.textContent = `${number(rows.length)} features${lacking ? `; ${number(lacking)} lack one of the scores` : ""}`;
      box.redraw();
    };
    redraw();
    const layerChoice = make("select", { on: { change: ({ target }) => {
      rows = target.value === "all" ? scored : scored.filter((row) => features.layer[row] === Number(target.value));
      redraw();
    } } }, options([["all", `all ${layers.length}`], ...layers.map((layer) => [String(layer), String(layer)])], "all"));
    const scale = make("select", { on: { change: ({ target }) => { isLog = target.value === "log"; redraw(); } } },
      options([["linear", "linear"], ["log", "logarithmic"]], "linear"));
    const reset = make("button", { type: "button", text: "Whole plot", on: { click: () => { if (plot) [0, 1].forEach((at) => plot.dispatchAction({ type: "dataZoom", dataZoomIndex: at, start: 0, end: 100 })); } } });
    const key = layers.length > 1 ? make("span", { class: "key" }) : null;
    function drawKey() {
      key.replaceChildren(make("span", { text: `layer ${layers[0]}` }),
        ...layers.map((_, at) => make("i", { style: { background: `rgb(${depth(at / (layers.length - 1)).join(" ")})` } })),
        make("span", { text: String(layers[layers.length - 1]) }));
    }
    if (key) {
      drawKey();
      onTheme(drawKey);
    }
    return make("div", { class: "panel" }, make("div", { class: "tools" },
      layers.length > 1 ? field("Layer", layerChoice) : null, field(`${scoreOut.title} axis`, scale), reset, count, key), figure,
    make("p", { class: "explains", text: "Click a point for its card. Drag to move, Shift and the wheel (or two fingers) to zoom." }));
  }

  steerlens.scatter = scatter;
})();
