// Line charts in SVG, drawn by the page itself: hover, keyboard, zoom, bands, markers, dashes.
//
// A series is {label, style, dash, thin, points: [[x, y, half]]}, `half` that of an interval or 0.
"use strict";

const MARKERS = [
  "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0", "M0,-4L4,3L-4,3Z", "M-3,-3H3V3H-3Z",
  "M0,-4L4,0L0,4L-4,0Z", "M0,4L4,-3L-4,-3Z", "M-4,-1H-1V-4H1V-1H4V1H1V4H-1V1H-4Z",
];
const DASHES = { solid: null, dashed: "6 4", dotted: "2 3" };
const MARGIN = { left: 52, right: 14, top: 8, bottom: 34 };

const exactly = (value) => value.toLocaleString("en",
  Number.isInteger(value) ? {} : { maximumSignificantDigits: 5 });
const shortly = (value) => value && Math.abs(value) < 1e-3 ? value.toExponential()
  : value.toLocaleString("en", { maximumSignificantDigits: 4,
    notation: value < 1e4 ? "standard" : "compact" });

// Returns at most about `n` round numbers between two: multiples of 1, 2 or 5 times a power of ten.
function ticks([low, high], n) {
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((digit) => digit * power >= rough);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 },
    (_, i) => Number(((first + i) * step).toPrecision(12)));
}

// Returns the least and the largest of numbers, never equal, with a margin beyond them.
function spread(values, margin = 0) {
  const sorted = Float64Array.from(values).sort(), low = sorted[0] ?? 0, high = sorted.at(-1) ?? 1;
  const more = low < high ? margin * (high - low) : 0.05 * (Math.abs(low) || 1);
  return [low - more, high + more];
}

const linear = ([a, b], [c, d]) => (value) => c + (value - a) / (b - a) * (d - c);

const nearest = ({ points }, x) =>
  points.reduce((best, each) => Math.abs(each[0] - x) < Math.abs(best[0] - x) ? each : best);

const marker = (style, x, y) => svg("path", { d: MARKERS[style % MARKERS.length], class: "marker",
  transform: `translate(${x} ${y})` });

// The swatch of a series, as in its chart: colour, dash and marker.
const swatch = (style, dash) => svg("svg", { width: 28, height: 14, "aria-hidden": true,
  class: style === null ? "plain" : `c${style % 8}` },
svg("path", { d: "M1,7H27", class: "line", "stroke-dasharray": DASHES[dash] }),
style === null ? null : marker(style, 14, 7));

// One chart. `shared` has what all charts of the page share: the x range, and where one looks.
class Chart {
  constructor(title, isTall, shared) {
    Object.assign(this, { title, isTall, shared, series: [], pressed: null });
    this.plot = svg("svg", { tabindex: 0, role: "img", class: "chart",
      onpointermove: (event) => this.move(this.at(event)),
      onpointerdown: (event) => {
        this.pressed = this.at(event);
        this.plot.setPointerCapture(event.pointerId);
      },
      onpointerup: (event) => this.release(this.at(event)),
      onpointercancel: () => (this.pressed = null),
      onpointerleave: () => this.pressed === null && shared.look(null),
      ondblclick: () => shared.zoom(null),
      onkeydown: (event) => this.key(event),
      onblur: () => shared.look(null) });
    this.tip = element("div", { class: "tip", "aria-live": "polite", hidden: true });
    this.figure = element("figure", {}, element("figcaption", {}, title),
      element("div", { class: "plot" }, this.plot, this.tip));
  }

  // Draws all anew, as wide as there is room.
  draw() {
    const { shared, series } = this, width = Math.max(240, this.figure.clientWidth || 600);
    const height = this.isTall ? Math.min(380, Math.max(240, width * 0.5)) : 200;
    Object.assign(this, { width, height, range: shared.range ?? shared.full });
    this.figure.hidden = !series.length;
    if (!series.length) return;
    const seen = series.flatMap((each) => each.points.filter(([x]) => this.isIn(x)));
    const ys = spread(seen.flatMap(([, y, half]) => [y - half, y + half]), 0.04);
    const across = [MARGIN.left, width - MARGIN.right], bottom = height - MARGIN.bottom;
    this.toX = linear(this.range, across), this.fromX = linear(across, this.range);
    this.toY = linear(ys, [bottom, MARGIN.top]);
    const write = (x, y, anchor, text) => svg("text", { x, y, "text-anchor": anchor }, text);
    this.cursor = svg("g", { class: "cursor" });
    filled(this.plot, { viewBox: `0 0 ${width} ${height}`, height,
      "aria-label": `${this.title} over ${shared.unit}: ${series.length} lines; ` +
        `${series[0].label} ends at ${exactly(series[0].points.at(-1)[1])}. Arrow keys read ` +
        "values, + zooms, 0 shows all." }, []);
    this.plot.replaceChildren(
      ...ticks(ys, this.isTall ? 6 : 4).flatMap((y) => [
        svg("path", { d: `M${MARGIN.left},${this.toY(y)}H${across[1]}`, class: "grid" }),
        write(MARGIN.left - 6, this.toY(y) + 4, "end", shortly(y))]),
      ...ticks(this.range, Math.max(3, width / 110)).map((x) =>
        write(this.toX(x), bottom + 16, "middle", shortly(x))),
      write(across[1], height - 3, "end", shared.unit),
      svg("svg", { x: MARGIN.left - 5, width: across[1] - MARGIN.left + 10, height,
        viewBox: `${MARGIN.left - 5} 0 ${across[1] - MARGIN.left + 10} ${height}` },
      series.map((each) => this.line(each)), this.cursor));
  }

  isIn(x) {
    return x >= this.range[0] && x <= this.range[1];
  }

  // A series as a band, a line, and at most some 24 markers.
  line({ style, dash, thin, points }) {
    const to = (x, y) => `${this.toX(x).toFixed(1)},${this.toY(y).toFixed(1)}`;
    const path = (all) => `M${all.join("L")}`, every = Math.ceil(points.length / 24);
    const edge = [...points.map(([x, y, half]) => to(x, y + half)),
      ...points.map(([x, y, half]) => to(x, y - half)).reverse()];
    const hasBand = points.some(([, , half]) => half);
    return svg("g", { class: `c${style % 8}${thin ? " thin" : ""}` },
      hasBand ? svg("path", { d: `${path(edge)}Z`, class: "band" }) : null,
      svg("path", { d: path(points.map(([x, y]) => to(x, y))), class: "line",
        "stroke-dasharray": DASHES[dash] }),
      points.filter((_, i) => !thin && (i % every === 0 || i === points.length - 1))
        .map(([x, y]) => marker(style, this.toX(x), this.toY(y))));
  }

  // Shows what every line has near x, in words where one points here; null shows nothing.
  look(x, isHere) {
    this.tip.hidden = !isHere;
    this.cursor?.replaceChildren();
    if (x === null || !this.series.length) return;
    const place = this.toX(x), isRight = place > this.width / 2;
    const lines = this.series.filter((each) => !each.thin || this.series.length < 4);
    const found = lines.map((each) => [each, nearest(each, x)]).filter(([, [at]]) => this.isIn(at));
    this.cursor.append(
      svg("path", { d: `M${place},${MARGIN.top}V${this.height - MARGIN.bottom}` }),
      ...found.map(([, [at, y]]) => svg("circle", { r: 4, cx: this.toX(at), cy: this.toY(y) })));
    this.tip.replaceChildren(element("div", {}, `${exactly(Math.round(x))} ${this.shared.unit}`),
      ...found.slice(0, 12).map(([{ style, dash, label }, [, y, half]]) => element("div", {},
        swatch(style, dash), element("bdi", {}, label),
        element("b", {}, exactly(y) + (half ? ` ± ${half.toPrecision(2)}` : "")))));
    this.tip.style.left = isRight ? "auto" : `${place + 12}px`;
    this.tip.style.right = isRight ? `${this.width - place + 12}px` : "auto";
  }

  // Where a pointer is, as an x inside the range.
  at(event) {
    const box = this.plot.getBoundingClientRect(), [left, right] = this.range;
    const x = this.fromX((event.clientX - box.left) / box.width * this.width);
    return Math.min(right, Math.max(left, x));
  }

  move(x) {
    this.shared.look(x, this);
    if (this.pressed === null) return;
    const [from, to] = [this.pressed, x].map(this.toX).sort((a, b) => a - b);
    this.cursor.append(svg("rect", { x: from, y: MARGIN.top, class: "picked", width: to - from,
      height: this.height - MARGIN.top - MARGIN.bottom }));
  }

  release(x) {
    const range = [this.pressed ?? x, x].sort((a, b) => a - b), [from, to] = range.map(this.toX);
    this.pressed = null;
    if (to - from > 8) this.shared.zoom(range);
  }

  key(event) {
    const { shared, range: [left, right] } = this, x = shared.x ?? left, some = (right - left) / 4;
    const xs = this.series.flatMap((each) => each.points.map(([at]) => at)).sort((a, b) => a - b);
    const seen = xs.filter((at) => this.isIn(at));
    if (event.key === "ArrowRight") shared.look(seen.find((at) => at > x) ?? right, this);
    else if (event.key === "ArrowLeft") shared.look(seen.findLast((at) => at < x) ?? left, this);
    else if (event.key === "+") shared.zoom([Math.max(left, x - some), Math.min(right, x + some)]);
    else if (event.key === "0") shared.zoom(null);
    else return;
    event.preventDefault();
  }
}
