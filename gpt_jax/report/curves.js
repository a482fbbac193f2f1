// Line charts in SVG, drawn by the page itself: hover, keyboard, zoom, bands, markers, dashes.
//
// A series is {label, style, dash, thin, points: [[x, y, half]]}, `half` that of an interval or 0.
"use strict";

const MARKERS = [
  "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0", "M0,-4L4,3L-4,3Z", "M-3,-3H3V3H-3Z",
  "M0,-4L4,0L0,4L-4,0Z", "M0,4L4,-3L-4,-3Z", "M-4,-1H-1V-4H1V-1H4V1H1V4H-1V1H-4Z",
];
const DASHES = { solid: null, dashed: "6 4", dotted: "2 3" };
const MOST_SAID = 12; // lines whose values are shown at once
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

class Chart {
  constructor(title, isTall, zoom) {
    Object.assign(this, { title, isTall, zoom, series: [], x: null, pressed: null });
    this.plot = svg("svg", { tabindex: 0, role: "img", class: "chart",
      onpointermove: (event) => this.look(this.at(event)),
      onpointerdown: (event) => {
        this.look(this.pressed = this.at(event));
        this.plot.setPointerCapture(event.pointerId);
      },
      onpointerup: () => this.release(),
      onpointercancel: () => (this.pressed = null),
      onpointerleave: () => this.pressed ?? this.look(null),
      ondblclick: () => zoom(null),
      onkeydown: (event) => this.key(event),
      onblur: () => this.look(null) });
    this.tip = element("div", { class: "tip", "aria-live": "polite", hidden: true });
    this.figure = element("figure", {}, element("figcaption", {}, title),
      element("div", { class: "plot" }, this.plot, this.tip));
  }

  // Draws all anew, as wide as there is room: series whose x in `range`, two numbers, are seen.
  draw(series, range, unit) {
    const width = Math.max(240, this.figure.clientWidth || 600);
    const height = this.isTall ? Math.min(380, Math.max(240, width * 0.5)) : 200;
    Object.assign(this, { series, range, unit, width, height });
    this.look(null);
    this.figure.hidden = !series.length;
    if (!series.length) return;
    const seen = series.flatMap((each) => each.points.filter(([x]) => this.isIn(x)));
    const ys = spread(seen.flatMap(([, y, half]) => [y - half, y + half]), 0.04);
    const { left, top } = MARGIN, right = width - MARGIN.right, bottom = height - MARGIN.bottom;
    this.toX = linear(range, [left, right]), this.toY = linear(ys, [bottom, top]);
    const write = (x, y, anchor, text) => svg("text", { x, y, "text-anchor": anchor }, text);
    const frame = { x: left - 5, y: 0, width: right - left + 10, height };
    this.cursor = svg("g", { class: "cursor" });
    filled(this.plot, { viewBox: `0 0 ${width} ${height}`, height,
      "aria-label": `${this.title} over ${unit}: ${series.length} lines; ${series[0].label} ends ` +
        `at ${exactly(series[0].points.at(-1)[1])}. Arrow keys read values, + zooms, 0 shows all.`,
    }, []);
    this.plot.replaceChildren(
      ...ticks(ys, this.isTall ? 6 : 4).flatMap((y) => [
        svg("path", { d: `M${left},${this.toY(y)}H${right}`, class: "grid" }),
        write(left - 6, this.toY(y) + 4, "end", shortly(y))]),
      ...ticks(range, Math.max(3, width / 110)).map((x) =>
        write(this.toX(x), bottom + 16, "middle", shortly(x))),
      write(right, height - 3, "end", unit),
      svg("svg", { ...frame, viewBox: Object.values(frame).join(" ") }, // which cuts off the rest
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

  // Where a pointer is, as an x inside the range.
  at(event) {
    const box = this.plot.getBoundingClientRect(), [left, right] = this.range;
    const place = (event.clientX - box.left) / box.width * this.width;
    const x = linear([MARGIN.left, this.width - MARGIN.right], this.range)(place);
    return Math.min(right, Math.max(left, x));
  }

  // Shows what every line has near x, and what is picked to zoom in on; null shows nothing.
  look(x) {
    this.x = x, this.tip.hidden = x === null;
    this.cursor?.replaceChildren();
    if (x === null) return;
    const place = this.toX(x), from = this.toX(this.pressed ?? x), isRight = place > this.width / 2;
    const strong = this.series.filter((each) => !each.thin);
    const lines = strong.length && this.series.length > 3 ? strong : this.series;
    const found = lines.map((each) => [each, nearest(each, x)]).filter(([, [at]]) => this.isIn(at));
    this.cursor.append(
      svg("rect", { x: Math.min(place, from), y: MARGIN.top, width: Math.abs(place - from),
        height: this.height - MARGIN.top - MARGIN.bottom }),
      svg("path", { d: `M${place},${MARGIN.top}V${this.height - MARGIN.bottom}` }),
      ...found.map(([, [at, y]]) => svg("circle", { r: 4, cx: this.toX(at), cy: this.toY(y) })));
    const [head] = found.length ? nearest({ points: found.map(([, point]) => point) }, x) : [x];
    this.tip.replaceChildren(element("div", {}, `${exactly(Math.round(head))} ${this.unit}`),
      ...found.slice(0, MOST_SAID).map(([{ style, dash, label }, [at, y, half]]) =>
        element("div", {}, swatch(style, dash),
          element("bdi", {}, label + (at === head ? "" : ` (at ${exactly(Math.round(at))})`)),
          element("b", {}, exactly(y) + (half ? ` ± ${half.toPrecision(2)}` : "")))),
      found.length > MOST_SAID ? `and ${found.length - MOST_SAID} more` : "");
    this.tip.style.left = isRight ? "auto" : `${place + 12}px`;
    this.tip.style.right = isRight ? `${this.width - place + 12}px` : "auto";
  }

  release() {
    const range = [this.pressed ?? this.x, this.x].sort((a, b) => a - b);
    this.pressed = null;
    if (this.toX(range[1]) - this.toX(range[0]) > 8) this.zoom(range);
  }

  key(event) {
    const [left, right] = this.range, x = this.x ?? left, some = (right - left) / 4;
    const xs = this.series.flatMap((each) => each.points.map(([at]) => at)).sort((a, b) => a - b);
    const seen = xs.filter((at) => this.isIn(at));
    if (event.key === "ArrowRight") this.look(seen.find((at) => at > x) ?? right);
    else if (event.key === "ArrowLeft") this.look(seen.findLast((at) => at < x) ?? left);
    else if (event.key === "+") this.zoom([Math.max(left, x - some), Math.min(right, x + some)]);
    else if (event.key === "0") this.zoom(null);
    else return;
    event.preventDefault();
  }
}
