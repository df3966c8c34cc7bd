// Charts as SVG: lines, steps and bands over one x axis, with marks, a level and a cursor that
// pointer and arrow keys move.
const chartSides = { left: 46, right: 12, top: 8, bottom: 20 };

/** Round step (1, 2 or 5 times a power of ten) for about `most` ticks. */
function tickStep(length, most) {
  const rough = length / most, power = 10 ** Math.floor(Math.log10(rough));
  return ([1, 2, 5].find(factor => factor * power >= rough) || 10) * power;
}
function ticksOf(low, high, most) {
  const step = tickStep(Math.max(high - low, 1e-9), most), ticks = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) ticks.push(at);
  return ticks;
}
function timeTicks(low, high, most) {
  const step = [5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].find(step => (high - low) / step <= most) || 7200, ticks = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) ticks.push(at);
  return ticks;
}

/**
 * Creates a chart. `spec`: title, height, label (for assistive technology), x [low, high] or absent,
 * xText, xTicks, yText, yMax, yTicks, series [{ name, style, kind: line | step | band | dots, points }],
 * marks [{ x, y, text }], level { y, text }, labels [{ x, y, text }]. A point is [x, y] or, of a band,
 * [x, low, high].
 */
function chart(title) {
  const readout = el("span", { class: "readout", "aria-live": "polite" });
  const legend = el("span", { class: "row" });
  const picture = svg("svg", { role: "img" });
  const figure = el("figure", { class: "chart", tabindex: "0" },
    el("figcaption", {}, el("span", { class: "title", text: title }), legend, readout), picture);
  const self = { figure, spec: null, cursor: null, view: null };
  self.update = spec => { self.spec = spec; drawChart(self, title, picture, legend, readout); };
  const redraw = () => { if (self.spec) drawChart(self, title, picture, legend, readout); };
  new ResizeObserver(redraw).observe(picture);
  picture.addEventListener("pointermove", event => {
    if (!self.view) return;
    const { width, low, high } = self.view, box = picture.getBoundingClientRect();
    const share = (event.clientX - box.left - chartSides.left) / (width - chartSides.left - chartSides.right);
    self.cursor = Math.max(low, Math.min(high, low + share * (high - low)));
    redraw();
  });
  const leave = () => { self.cursor = null; redraw(); };
  picture.addEventListener("pointerleave", leave);
  figure.addEventListener("blur", leave);
  figure.addEventListener("keydown", event => {
    if (!self.view || !["ArrowLeft", "ArrowRight", "Home", "End", "Escape"].includes(event.key)) return;
    event.preventDefault();
    const { low, high } = self.view, step = (high - low) / 60;
    const from = self.cursor ?? high;
    self.cursor = { ArrowLeft: from - step, ArrowRight: from + step, Home: low, End: high, Escape: null }[event.key];
    if (self.cursor !== null) self.cursor = Math.max(low, Math.min(high, self.cursor));
    redraw();
  });
  return self;
}

function drawChart(self, title, picture, legend, readout) {
  const spec = self.spec, width = Math.max(picture.clientWidth || 600, 200), height = spec.height || 160;
  const xs = spec.series.flatMap(series => series.points.map(point => point[0]));
  let [low, high] = spec.x || (xs.length ? [Math.min(...xs), Math.max(...xs)] : [0, 1]);
  if (spec.fromZero && low > 0 && low < high / 10) low = 0;
  const tops = spec.series.flatMap(series => series.points.map(point => point.at(-1))).filter(isFinite);
  const biggest = Math.max(0, ...tops);
  const limit = spec.yMax || Math.min(biggest, spec.yLimit || Infinity) || 1;
  const step = tickStep(limit, 4), top = spec.yMax || Math.ceil(limit / step - 1e-9) * step;
  const { left, right, top: above, bottom: below } = chartSides;
  const X = x => left + (x - low) / (high - low || 1) * (width - left - right);
  const Y = y => above + (1 - Math.max(0, Math.min(y, top)) / top) * (height - above - below);
  self.view = { width, low, high };
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  picture.setAttribute("height", height);
  picture.setAttribute("aria-label", spec.label || title);
  self.figure.setAttribute("aria-label", `${title}. The arrow keys move a cursor.`);
  const parts = [];
  const yText = spec.yText || (y => format.number(y, step < 1 ? (step < 0.1 ? 2 : 1) : 0));
  for (const y of spec.yTicks || ticksOf(0, top, 4)) {
    parts.push(svg("path", { class: "grid", d: `M${left} ${Y(y).toFixed(1)}H${width - right}` }));
    parts.push(svg("text", { x: left - 6, y: (Y(y) + 4).toFixed(1), "text-anchor": "end", text: yText(y) }));
  }
  const most = Math.max(2, Math.floor(width / 110));
  const xTicks = spec.xTicks || (spec.time === false ? ticksOf(low, high, most) : timeTicks(low, high, most));
  const xText = spec.xText || (xTicks[1] - xTicks[0] < 60 ? format.clock : format.minute);
  for (const x of xTicks)
    parts.push(svg("text", { x: X(x).toFixed(1), y: height - 4, "text-anchor": "middle", text: xText(x) }));
  for (const series of spec.series) parts.push(...drawSeries(series, X, Y));
  if (spec.level && spec.level.y <= top) {
    parts.push(svg("path", { class: "level", d: `M${left} ${Y(spec.level.y).toFixed(1)}H${width - right}` }));
    parts.push(svg("text", { class: "level-label", x: width - right, y: (Y(spec.level.y) - 4).toFixed(1), "text-anchor": "end", text: spec.level.text }));
  }
  for (const mark of spec.marks || []) {
    if (mark.x < low || mark.x > high) continue;
    const x = X(mark.x).toFixed(1);
    parts.push(svg("path", { class: "flip", d: `M${x} ${above}V${height - below}` }, svg("title", { text: mark.text })));
    parts.push(svg("path", { class: "flip-head", d: `M${x} ${above + 5}l-4 -7h8z` }, svg("title", { text: mark.text })));
  }
  for (const label of spec.labels || [])
    parts.push(svg("text", { class: "in-label", x: left + 8, y: (Y(label.y) + label.shift).toFixed(1), text: label.text }));
  if (self.cursor !== null) parts.push(svg("path", { class: "cursor", d: `M${X(self.cursor).toFixed(1)} ${above}V${height - below}` }));
  picture.replaceChildren(...parts);
  const names = spec.series.map(series => `${series.name}|${series.style}`).join();
  if (legend.dataset.names !== names) {
    legend.dataset.names = names;
    legend.replaceChildren(...spec.series.filter(series => series.name).map(series => el("span", { class: "legend" }, keyOf(series), series.name)));
  }
  setText(readout, self.cursor === null ? spec.note || "" : readAt(spec, self.cursor, xText, (high - low) / 60));
}

function keyOf(series) {
  const shape = series.kind === "band" ? svg("rect", { width: 22, height: 10, rx: 2, class: `f-${series.style}` })
    : svg("path", { class: `line s-${series.style}`, d: "M0 5H22" });
  return svg("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, shape);
}

function drawSeries(series, X, Y) {
  const at = (x, y) => `${X(x).toFixed(1)} ${Y(y).toFixed(1)}`;
  if (!series.points.length) return [];
  if (series.kind === "band") {
    const over = series.points.map(([x, , high]) => at(x, high)), under = series.points.map(([x, low]) => at(x, low)).reverse();
    return [svg("path", { class: `f-${series.style}`, d: `M${over.join("L")}L${under.join("L")}Z` })];
  }
  let path = "", before = null;
  for (const [x, y] of series.points) {
    if (y === null || y === undefined || !isFinite(y)) { before = null; continue; }
    if (before === null) path += `M${at(x, y)}`;
    else path += series.kind === "step" ? `H${X(x).toFixed(1)}V${Y(y).toFixed(1)}` : `L${at(x, y)}`;
    before = y;
  }
  const parts = [svg("path", { class: `line s-${series.style}`, d: path || "M0 0" })];
  if (series.kind === "dots") for (const [x, y] of series.points)
    if (isFinite(y)) parts.push(svg("circle", { cx: X(x).toFixed(1), cy: Y(y).toFixed(1), r: 3, class: `d-${series.style}` }));
  return parts;
}

/** Returns the values at the cursor, and the text of a nearby mark. */
function readAt(spec, x, xText, near) {
  const words = [(spec.cursorText || xText)(x)];
  for (const series of spec.series) {
    const point = series.points.findLast(point => point[0] <= x) || series.points[0];
    if (!point || !series.name || series.quiet) continue;
    const value = series.kind === "band" ? point[2] - point[1] : point[1];
    if (value !== null && isFinite(value)) words.push(`${series.name} ${(spec.valueText || (value => format.number(value)))(value)}`);
  }
  const mark = (spec.marks || []).find(mark => Math.abs(mark.x - x) < near);
  if (mark) words.push(mark.text);
  return words.join(" · ");
}
