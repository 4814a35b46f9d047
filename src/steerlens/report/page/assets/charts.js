/* Charts with one look, drawn when they come into sight, and again when theme or width change. */
"use strict";
(() => {
  const { make, isDark, onTheme } = steerlens;
  /* Okabe and Ito's palette, lighter on dark: told apart under every common colour blindness. */
  const light = { ink: "#22262b", muted: "#5b6470", grid: "#e3e6ea", paper: "#ffffff",
    blue: "#0072b2", orange: "#b86e00", green: "#007a5a", red: "#c04a00", grey: "#7a828c" };
  const dark = { ink: "#e6e8eb", muted: "#9aa3ad", grid: "#2d333b", paper: "#15181c",
    blue: "#56b4e9", orange: "#e69f00", green: "#2fc79a", red: "#ff8a4c", grey: "#8a929c" };
  const colours = () => (isDark() ? dark : light);
  const all = new Set();
  const font = "system-ui, -apple-system, 'Segoe UI', sans-serif";

  /* A chart in a figure; `option(colours, width)` gives what ECharts draws. */
  function chart(title, caption, height, option, ready) {
    const box = make("div", { class: "chart", style: { height: `${height}px` }, role: "img", "aria-label": `${title}. ${caption || ""}` });
    const figure = make("figure", {}, make("figcaption", {}, make("strong", { text: title }), caption ? make("span", { text: ` ${caption}` }) : null), box);
    const one = { box, drawn: null, draw, redraw };
    function draw() {
      if (one.drawn || !box.clientWidth) return;
      one.drawn = echarts.init(box, null, { renderer: "canvas" });
      one.drawn.setOption(withLook(option(colours(), box.clientWidth), box.clientWidth));
      if (ready) ready(one.drawn);
    }
    function redraw() {
      if (one.drawn) one.drawn.setOption(withLook(option(colours(), box.clientWidth), box.clientWidth), { notMerge: true });
    }
    all.add(one);
    if (seen) seen.observe(box);
    box.redraw = redraw;
    box.chart = one;
    return figure;
  }

  /* On a narrow screen a legend has the lines that it needs, above the plot; without room it would have pages. */
  function legendRows(option, width) {
    const names = (option.legend && option.legend.data) || [...new Set((option.series || []).map((one) => one.name))].filter(Boolean);
    let used = 0;
    return names.reduce((rows, name) => {
      const wide = 14 + 5 + 6.6 * name.length + 10; // icon, gap, text, gap
      const isNew = used && used + wide > width;
      used = isNew ? wide : used + wide;
      return rows + (isNew ? 1 : 0);
    }, 1);
  }

  function withLook(option, width) {
    const c = colours();
    const rows = option.legend ? legendRows(option, width) : 1;
    const isPaged = rows > 4;
    const grid = { left: 56, right: 18, top: 34, bottom: 46, ...(option.grid || {}) };
    const axis = {
      axisLine: { lineStyle: { color: c.grid } }, axisTick: { show: false },
      axisLabel: { color: c.muted, fontFamily: font, hideOverlap: true }, splitLine: { lineStyle: { color: c.grid } },
      nameTextStyle: { color: c.muted, fontFamily: font },
    };
    const dress = (value) => (Array.isArray(value) ? value : [value]).map((one) => ({
      ...axis, ...one,
      axisLabel: { ...axis.axisLabel, ...(one.axisLabel || {}) },
      splitLine: { ...axis.splitLine, ...(one.splitLine || {}) },
    }));
    return {
      animation: false, textStyle: { fontFamily: font, color: c.ink }, ...option,
      xAxis: dress(option.xAxis), yAxis: dress(option.yAxis),
      grid: { ...grid, top: grid.top + (isPaged ? 0 : 18 * (rows - 1)) },
      tooltip: { renderMode: "richText", backgroundColor: c.paper, borderColor: c.grid, confine: true,
        textStyle: { color: c.ink, fontFamily: font, fontSize: 12 }, ...(option.tooltip || {}) },
      legend: option.legend === undefined ? undefined : { top: 0, left: 0, type: isPaged ? "scroll" : "plain", itemGap: 10, padding: [5, 0], icon: "roundRect", itemWidth: 14, itemHeight: 3, textStyle: { color: c.ink }, pageTextStyle: { color: c.muted }, ...option.legend },
    };
  }

  const seen = window.IntersectionObserver && new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) entry.target.chart.draw();
  }, { rootMargin: "200px" });
  const sized = new ResizeObserver(() => all.forEach((one) => { if (one.drawn && one.box.isConnected) one.drawn.resize(); }));
  sized.observe(document.documentElement);
  onTheme(() => all.forEach((one) => one.redraw()));
  window.addEventListener("beforeprint", () => all.forEach((one) => one.draw()));

  /* Charts of an element that is thrown away. */
  function forget(element) {
    for (const one of all) {
      if (element.contains(one.box)) {
        if (one.drawn) one.drawn.dispose();
        if (seen) seen.unobserve(one.box);
        all.delete(one);
      }
    }
  }

  function line(name, points, colour, more = {}) {
    return { name, type: "line", data: points, symbolSize: 6, lineStyle: { width: 2, color: colour }, itemStyle: { color: colour }, ...more };
  }

  /* From the first layer to the last, even in lightness (viridis without its ends): red, green, blue. */
  function depth(share) {
    const stops = isDark()
      ? [[59, 82, 139], [33, 144, 141], [93, 201, 98], [253, 231, 37]]
      : [[68, 1, 84], [49, 104, 142], [33, 150, 130], [122, 175, 40]];
    const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const first = Math.min(Math.floor(at), stops.length - 2);
    const mix = stops[first].map((value, i) => Math.round(value + (at - first) * (stops[first + 1][i] - value)));
    return mix;
  }

  Object.assign(steerlens, { chart, colours, forget, line, depth });
})();
