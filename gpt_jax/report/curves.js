// Line charts in SVG, drawn by the page itself: hover, keyboard, zoom, bands, markers, dashes.
//
// A series is {label, style, dash, thin, x, y, half}: arrays of numbers, null where there is none.
"use strict";

const MARKERS = [
  "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0", "M0,-4L4,3L-4,3Z", "M-3,-3H3V3H-3Z",
  "M0,-4L4,0L0,4L-4,0Z", "M0,4L4,-3L-4,-3Z", "M-4,-1H-1V-4H1V-1H4V1H1V4H-1V1H-4Z",
];
const DASHES = { solid: "", dashed: "6 4", dotted: "2 3" };
const MARGIN = { left: 52, right: 14, top: 8, bottom: 34 };

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const exactly = (value) => value.toLocaleString("en",
  Number.isInteger(value) ? {} : { maximumSignificantDigits: 5 });
const shortly = (value) => Math.abs(value) >= 1e4
  ? value.toLocaleString("en", { notation: "compact" }) : Math.abs(value) < 1e-3 && value
    ? Number(value.toPrecision(4)).toExponential() : value.toLocaleString("en", { maximumSignificantDigits: 4 });

// Returns about `n` round numbers between two; of a logarithmic axis 1, 2, 5, 10, ...
function ticks(low, high, n, isLog) {
  if (isLog) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
    }
    const inside = found.filter((value) => value >= low && value <= high);
    return inside.length > 1 ? inside : ticks(low, high, n, false);
  }
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((digit) => digit * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 },
    (_, i) => Number(((first + i) * step).toPrecision(12)));
}

// Returns the index of the number nearest to x among those that have a y; -1 where there is none.
function nearest(series, x) {
  let best = -1;
  series.x.forEach((value, i) => {
    if (value === null || series.y[i] === null) return;
    if (best < 0 || Math.abs(value - x) < Math.abs(series.x[best] - x)) best = i;
  });
  return best;
}

// The swatch of a series, as in its chart: colour, dash and marker.
function swatch(style, dash = "solid") {
  const line = svg("path", { d: "M1,7H27", class: "line", "stroke-dasharray": DASHES[dash] });
  const children = style === null ? [line]
    : [line, svg("path", { d: MARKERS[style % MARKERS.length], class: "marker",
      transform: "translate(14 7)" })];
  return svg("svg", { width: 28, height: 14, "aria-hidden": true,
    class: style === null ? "plain" : `c${style % 8}` }, ...children);
}

// One chart. `shared` has what all charts of the page share: the x range, and where one looks.
class Chart {
  constructor(title, shared) {
    Object.assign(this, { title, shared, series: [], isLog: false });
    this.plot = svg("svg", { tabindex: 0, role: "img", class: "chart" });
    this.tip = element("div", { class: "tip", "aria-live": "polite", hidden: true });
    this.figure = element("figure", {}, element("figcaption", {}, title),
      element("div", { class: "plot" }, this.plot, this.tip));
    this.plot.addEventListener("pointermove", (event) => this.move(event));
    this.plot.addEventListener("pointerdown", (event) => this.press(event));
    this.plot.addEventListener("pointerup", (event) => this.release(event));
    this.plot.addEventListener("pointercancel", () => { this.pressed = null; shared.look(null); });
    this.plot.addEventListener("pointerleave", () => this.pressed || shared.look(null));
    this.plot.addEventListener("dblclick", () => shared.zoom(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => shared.look(null));
  }

  // Draws all anew, as wide as there is room.
  draw() {
    const width = this.width = Math.max(240, this.figure.clientWidth || 600);
    const height = this.height = this.isTall ? Math.min(380, Math.max(240, width * 0.5)) : 200;
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.plot.setAttribute("height", height);
    const known = this.series.filter((each) => nearest(each, 0) >= 0);
    this.figure.hidden = !known.length;
    this.known = known;
    if (!known.length) return;
    const [left, right] = this.range = this.shared.range ?? this.shared.full;
    const isIn = (x) => x !== null && x >= left && x <= right;
    const ys = known.flatMap((each) => each.y.flatMap((y, i) => y === null || !isIn(each.x[i]) ? []
      : each.half?.[i] ? [y - each.half[i], y + each.half[i]] : [y]));
    const above = ys.filter((y) => y > 0), isLog = this.isLog && above.length > 0;
    const [low, high] = spread(isLog ? above : ys, isLog ? 0 : 0.04);
    const scale = isLog ? (y) => Math.log(Math.max(y, low / 2)) : (y) => y;
    this.toX = (x) => MARGIN.left
      + (x - left) / (right - left) * (width - MARGIN.left - MARGIN.right);
    this.fromX = (place) => left + Math.min(1, Math.max(0, (place - MARGIN.left)
      / (width - MARGIN.left - MARGIN.right))) * (right - left);
    this.toY = (y) => height - MARGIN.bottom - (scale(y) - scale(low))
      / (scale(high) - scale(low)) * (height - MARGIN.top - MARGIN.bottom);
    const id = `clip-${this.title.replace(/\W/g, "")}`;
    this.plot.replaceChildren(
      svg("clipPath", { id }, svg("rect", { x: MARGIN.left - 5, y: 0, height,
        width: width - MARGIN.left - MARGIN.right + 10 })),
      ...this.axes(left, right, low, high, isLog),
      svg("g", { "clip-path": `url(#${id})` }, ...known.flatMap((each) => this.lines(each))),
      this.cursor = svg("g", { class: "cursor" }));
    const last = known[0].y.findLast((y) => y !== null);
    this.plot.setAttribute("aria-label", `${this.title} over ${this.shared.unit}: ${known.length} `
      + `lines; ${known[0].label} ends at ${exactly(last)}. Arrow keys read values, plus and minus `
      + "zoom, 0 shows all.");
  }

  axes(left, right, low, high, isLog) {
    const bottom = this.height - MARGIN.bottom, made = [];
    for (const y of ticks(low, high, this.isTall ? 6 : 4, isLog)) {
      made.push(svg("path", { d: `M${MARGIN.left},${this.toY(y)}H${this.width - MARGIN.right}`,
        class: "grid" }));
      made.push(svg("text", { x: MARGIN.left - 6, y: this.toY(y) + 4, "text-anchor": "end" },
        shortly(y)));
    }
    for (const x of ticks(left, right, Math.max(3, this.width / 110), false)) {
      made.push(svg("text", { x: this.toX(x), y: bottom + 16, "text-anchor": "middle" },
        shortly(x)));
    }
    made.push(svg("text", { x: this.width - MARGIN.right, y: this.height - 3,
      "text-anchor": "end", class: "unit" }, this.shared.unit));
    return made;
  }

  lines(series) {
    const points = series.x.map((x, i) => [x, series.y[i], series.half?.[i] ?? 0])
      .filter(([x, y]) => x !== null && y !== null);
    const to = (x, y) => `${this.toX(x).toFixed(1)},${this.toY(y).toFixed(1)}`;
    const group = svg("g", { class: `c${series.style % 8}${series.thin ? " thin" : ""}` });
    if (points.some(([, , half]) => half)) {
      const edge = [...points.map(([x, y, half]) => to(x, y + half)),
        ...points.map(([x, y, half]) => to(x, y - half)).reverse()];
      group.append(svg("path", { d: `M${edge.join("L")}Z`, class: "band" }));
    }
    group.append(svg("path", { d: `M${points.map(([x, y]) => to(x, y)).join("L")}`, class: "line",
      "stroke-dasharray": DASHES[series.dash] }));
    const every = Math.ceil(points.length / 24);
    points.forEach(([x, y], i) => (i % every && i < points.length - 1) || series.thin
      || group.append(svg("path", { d: MARKERS[series.style % MARKERS.length], class: "marker",
        transform: `translate(${to(x, y)})` })));
    return [group];
  }

  // Shows what every line has near x; null shows nothing.
  look(x) {
    this.cursor?.replaceChildren();
    this.tip.hidden = x === null || !this.known?.length;
    if (this.tip.hidden) return;
    const place = this.toX(x), rows = [];
    this.cursor.append(svg("path",
      { d: `M${place},${MARGIN.top}V${this.height - MARGIN.bottom}` }));
    for (const series of this.known.filter((each) => !each.thin || this.known.length < 4)) {
      const i = nearest(series, x), half = series.half?.[i];
      if (series.x[i] < this.range[0] || series.x[i] > this.range[1]) continue;
      this.cursor.append(svg("circle", { r: 4, cx: this.toX(series.x[i]),
        cy: this.toY(series.y[i]) }));
      rows.push(element("div", {}, swatch(series.style, series.dash),
        element("bdi", {}, series.label), element("b", {},
          exactly(series.y[i]) + (half ? ` ± ${half.toPrecision(2)}` : ""))));
    }
    this.tip.replaceChildren(element("div", {}, `${shortly(x)} ${this.shared.unit}`),
      ...rows.slice(0, 12));
    const isRight = place > this.width / 2;
    this.tip.style.left = isRight ? "auto" : `${place + 12}px`;
    this.tip.style.right = isRight ? `${this.width - place + 12}px` : "auto";
  }

  place(event) {
    const box = this.plot.getBoundingClientRect();
    return this.fromX((event.clientX - box.left) / box.width * this.width);
  }

  press(event) {
    this.pressed = { x: this.place(event), at: event.clientX };
    this.plot.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.known?.length) return;
    const x = this.place(event);
    this.shared.look(x, this);
    if (!this.pressed) return;
    const [from, to] = [this.toX(this.pressed.x), this.toX(x)];
    this.cursor.append(svg("rect", { x: Math.min(from, to), y: MARGIN.top, class: "picked",
      width: Math.abs(to - from), height: this.height - MARGIN.top - MARGIN.bottom }));
  }

  release(event) {
    const pressed = this.pressed, x = this.place(event);
    this.pressed = null;
    if (pressed && Math.abs(event.clientX - pressed.at) > 8) {
      this.shared.zoom([Math.min(pressed.x, x), Math.max(pressed.x, x)]);
    }
  }

  key(event) {
    const [left, right] = this.range, x = this.shared.x ?? left, width = right - left;
    const places = [...new Set(this.known.flatMap((each) => each.x.filter((value, i) =>
      value !== null && each.y[i] !== null && value >= left && value <= right)))]
      .sort((a, b) => a - b);
    if (event.key === "ArrowRight") this.shared.look(places.find((p) => p > x) ?? right, this);
    else if (event.key === "ArrowLeft") this.shared.look(places.findLast((p) => p < x) ?? left, this);
    else if (event.key === "+") this.shared.zoom([Math.max(left, x - width / 4), Math.min(right, x + width / 4)]);
    else if (event.key === "-" || event.key === "0" || event.key === "Escape") this.shared.zoom(null);
    else return;
    event.preventDefault();
  }
}

// Returns the least and the largest of numbers, never equal, with a margin beyond them.
function spread(values, margin = 0) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (!(low <= high)) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.05, high + (Math.abs(high) || 1) * 0.05];
  return [low - margin * (high - low), high + margin * (high - low)];
}
