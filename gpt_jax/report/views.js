// The model, alive, on the page: a text that it writes, and views of how it came to each token.
//
// The model computes in a worker (worker.js); here is only what is drawn, in places of page.html.
"use strict";

const WORKER_FILES = ["model.js", "sampling.js", "worker.js"];
const LEAST = [0.5, 0.2, 0.05, 0.01, 0]; // the least probability of each shade
const MOST_DRAWN = 40; // tokens of a picture of attention

const said = (p, rank) => `${percent(p)}, likelier tokens: ${rank - 1}`;
const percent = (p) => `${(100 * p).toPrecision(p < 0.1 ? 2 : 3)}%`;
const hex = (number, digits) => number.toString(16).padStart(digits, "0");
const codeOf = (c) => `U+${hex(c.codePointAt(0), 4).toUpperCase()}`;

/** Returns a token's text with what can't be seen, or would change the line, made visible. */
function shown(tokenizer, id) {
  const bytes = tokenizer.bytes(id), text = decode(tokenizer, [id]);
  if (!bytes) return `‹${id}›`;
  if (text.includes("\ufffd")) { // a part of a character
    return `‹${[...bytes].map((byte) => hex(byte.charCodeAt(0), 2)).join(" ")}›`;
  }
  return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/^\p{M}/u, "◌$&").replace(
    /[\p{C}\p{Zl}\p{Zp}]/gu,
    (c) => c < " " ? String.fromCodePoint(0x2400 + c.codePointAt(0)) : `‹${codeOf(c)}›`);
}

const tokenText = (text) => element("bdi", { class: "token-text" }, text);

/** Rows of a token, a bar and a number; a row with `take` is a button. */
const bars = (rows) => rows.map(({ label, p, note = "", take, isIt }) =>
  element(take ? "button" : "div", { class: isIt ? "bar is-it" : "bar", onclick: take },
    tokenText(label), element("progress", { value: p, "aria-hidden": true }),
    element("span", { class: "number" }, percent(p) + note)));

function makeWorker() {
  const source = (name) => document.querySelector(`script[data-file="${name}"]`).textContent;
  const text = [...WORKER_FILES.map(source), "startWorker(self);"].join("\n");
  return new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
}

class Live {
  constructor(live) {
    for (const each of document.querySelectorAll("#live [id]")) this[each.id] = each;
    Object.assign(this, { live, tokenizer: makeTokenizer(live.tokenizer), ids: [], judged: [],
      start: 0, job: 0, picked: -1, state: live.states.length - 1, worker: makeWorker() });
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = () => (this.status.textContent = "This browser starts no worker.");
    this.worker.postMessage({ load: live, job: 0 });
    this.fill(live);
    this.listen();
    this.read(this.box.value = live.sample.prompt ?? "", 0, true);
  }

  /** Puts what the run says into its places. */
  fill({ name, parameters, rounding, model, sample, states, found, has_room, code }) {
    this.about.textContent = `The ${exactly(parameters)} parameters of ${name} are in this file, ` +
      "rounded to half precision, and your browser computes with them; nothing leaves this " +
      `machine. ${rounding?.said ?? ""}` +
      (model.dtype === "float32" ? "" : ` The run computes in ${model.dtype}, this page not.`);
    for (const each of this.alive.querySelectorAll(".context")) each.append(model.block_size);
    for (const input of this.write.querySelectorAll("[type=number]")) {
      input.value = sample[input.name] ?? "";
    }
    this.steps.textContent = states.map(({ step }) => step).join(", ") +
      (found > states.length ? `, and there are ${found} such states` : "");
    this.slider.max = this.slider.value = this.state;
    this.slider.parentElement.hidden = this.slides.hidden = !this.state;
    this.keep.hidden = !has_room;
    const numbers = (n) => Array.from({ length: n }, (_, i) => new Option(i + 1, i));
    this.layer.append(...numbers(model.n_layer)), this.head.append(...numbers(model.n_head));
    for (const [view, { path, line, text, url }] of Object.entries(code)) {
      const quoted = details(`The code: ${path}, line ${line}`, element("pre", {}, text),
        url ? element("a", { href: url }, "read it where it stands") : null);
      quoted.className = "code";
      this[view].append(quoted);
    }
  }

  listen() {
    const keys = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    this.box.oninput = () => this.read(this.box.value, 0, true);
    this.more.onclick = () => this.go(this.number("max_new_tokens", 300));
    this.end.onclick = () => (this.more.focus(), this.go(0));
    this.back.onclick = () => this.read(this.box.value = this.prompt, 0, true);
    this.slider.oninput = () => {
      this.state = Number(this.slider.value);
      this.read(this.prompt, this.number("max_new_tokens", 300));
    };
    this.layer.onchange = this.head.onchange = () => this.look();
    this.attention.ontoggle = this.lens.ontoggle = () => this.look();
    this.strip.onclick = ({ target }) => target.dataset.i && this.pick(Number(target.dataset.i));
    this.strip.onkeydown = (event) => {
      if (!keys[event.key]) return;
      event.preventDefault();
      this.pick(this.picked + keys[event.key]);
      this.strip.children[this.picked].scrollIntoView({ block: "nearest" });
    };
  }

  /** Returns a field's number, and shows it there, within the field's bounds. */
  number(name, otherwise) {
    const field = this.write[name], { valueAsNumber: value, min, max, step } = field;
    const used = isNaN(value) ? otherwise
      : Math.min(Math.max(step ? value : Math.round(value), min), max || Infinity);
    if (used !== value) field.value = used ?? "";
    return used;
  }

  /** Takes a text, as a prompt, and lets the model read it, and then write `count` tokens. */
  read(text, count = 0, isTyped = false) {
    const { ids, missing } = this.tokenizer.encode(text);
    const named = missing.map((c) => [...c].length > 1 ? c : `${c} (${codeOf(c)})`).join(", ");
    this.missing = named && `Left out, as the model has no token for it: ${named}. `;
    Object.assign(this, { prompt: text, isTyped });
    this.ids = ids.length ? ids : [this.tokenizer.startToken]; // as `sample` starts an empty prompt
    this.picked = Math.min(this.picked, this.ids.length - 1);
    this.go(count);
  }

  /** Lets the model read the text, and write `count` tokens. */
  go(count) {
    const { ids, state, live } = this;
    this.before = ids.length, this.end.disabled = !count; // as long as it does not write
    this.worker.postMessage({ job: ++this.job, write: { state, ids, count, end: live.end,
      window: this.way.value, temperature: this.number("temperature", 1),
      topK: this.number("top_k", null), topP: this.number("top_p", null),
      seed: this.number("seed", 0) } });
  }

  receive(data) {
    if (data.job !== this.job) return;
    if (data.error) this.status.textContent = `The model can't compute this: ${data.error}`;
    if (data.attention && data.picked === this.picked) this.draw(data);
    if (!data.judged) return;
    const { from, ids, judged, start, more, seconds } = data;
    const wrote = from + ids.length - this.before, speed = wrote / Math.max(seconds, 0.001);
    if (more) this.worker.postMessage({ job: this.job, proceed: true });
    this.ids = [...this.ids.slice(0, from), ...ids];
    this.judged = [...this.judged.slice(0, from), ...judged];
    if (!more && document.activeElement === this.end) this.more.focus(); // which can be pressed
    this.start = start, this.end.disabled = !more;
    if (wrote > 0) this.isTyped = false;
    if (!this.isTyped) this.box.value = decode(this.tokenizer, this.ids), this.missing = "";
    this.step.textContent = `step ${this.live.states[this.state].step}`;
    this.status.textContent = `${this.missing}${wrote > 0 ? wrote : this.ids.length} tokens, ` +
      (wrote > 0 ? `${speed.toFixed(0)} a second, ` : "") + `at ${this.step.textContent}`;
    this.show(from);
    if (more) for (const each of [this.box, this.strip]) each.scrollTop = each.scrollHeight;
    else this.pick(this.picked < 0 ? this.ids.length - 1 : this.picked);
  }

  name(i) {
    return shown(this.tokenizer, this.ids[i]);
  }

  /** Draws the tokens from `from` on, and says which the model no longer sees. */
  show(from) {
    const { strip } = this;
    while (strip.childElementCount > from) strip.lastChild.remove();
    for (let i = from; i < this.ids.length; i++) {
      const about = this.judged[i], text = this.name(i);
      const words = about ? said(about.p, about.rank) : "not predicted";
      const shade = about ? `p${LEAST.findIndex((least) => about.p >= least)}` : "";
      strip.append(element("span", { class: `token ${shade}`, "data-i": i, id: `token-${i}`,
        role: "option", title: words, "aria-label": `${text}: ${words}`, "aria-selected": "false" },
      text.replaceAll("␣", " ").replaceAll("⏎", "⏎\n")));
    }
    [...strip.children].forEach((span, i) => span.classList.toggle("forgotten", i < this.start));
  }

  pick(i) {
    this.strip.children[this.picked]?.setAttribute("aria-selected", "false");
    this.picked = i = Math.min(Math.max(i, 0), this.ids.length - 1);
    const about = this.judged[i], span = this.strip.children[i];
    span.setAttribute("aria-selected", "true");
    this.strip.setAttribute("aria-activedescendant", span.id);
    const words = about ? `, had ${said(about.p, about.rank)} of ${this.live.model.vocab_size}.`
      : ", was not predicted: nothing stood before it.";
    const isHeld = this.choice.contains(document.activeElement);
    this.choice.replaceChildren(
      element("p", {}, `Token ${i + 1}, `, tokenText(this.name(i)), words),
      ...bars((about?.top ?? []).map(([id, p]) => ({ label: shown(this.tokenizer, id), p,
        isIt: id === this.ids[i], take: () => this.take(i, id) }))));
    if (isHeld) (this.choice.querySelector(".is-it") ?? this.choice.lastChild).focus();
    this.look();
  }

  /** Puts another token in a token's place, and writes as many after it as there were. */
  take(i, id) {
    const left = this.ids.length - i - 1;
    this.ids = [...this.ids.slice(0, i), id];
    this.prompt = decode(this.tokenizer, this.ids), this.isTyped = false;
    this.go(left);
  }

  /** Asks for what the open views show. */
  look() {
    if (!this.end.disabled || !(this.attention.open || this.lens.open)) return;
    const { state, picked, layer } = this;
    this.worker.postMessage({ job: this.job, look: { state, picked, layer: +layer.value } });
  }

  draw({ start, T, attention, lens }) {
    const names = Array.from({ length: T }, (_, t) => this.name(start + t));
    const weights = attention.subarray(this.head.value * T * T, (+this.head.value + 1) * T * T);
    const t = this.picked - start, from = Math.max(0, t + 1 - MOST_DRAWN);
    const to = Math.min(T, from + MOST_DRAWN);
    const row = Array.from(weights.subarray(t * T, t * T + t + 1), (p, s) =>
      ({ label: names[s], p, note: ` · ${start + s + 1}` }));
    this.depths.replaceChildren(...this.layers(lens));
    this.looks.replaceChildren(
      element("p", {}, this.habits(T, weights, names)),
      element("p", {}, "From ", tokenText(names[t]),
        ` (token ${start + t + 1}) it looks at, with the number of the token:`),
      ...bars(row.sort((a, b) => b.p - a.p).slice(0, 5)),
      element("div", { class: "pictures" },
        this.pictures({ from, to, t, T, start, weights, names })),
      element("p", { class: "hint" }, `Drawn are tokens ${start + from + 1} to ${start + to}, of ` +
        `${T} that the model reads together here, from token ${start + 1} on. In the square a ` +
        "row looks, and a column is looked at."));
  }

  /** Says what a head looks at most, over all tokens but the first. */
  habits(T, weights, names) {
    if (T < 2) return "One token alone can look only at itself.";
    const ts = names.map((_, t) => t).slice(1), shares = new Map();
    const share = (at) => ts.reduce((sum, t) => sum + weights[t * T + at(t)], 0) / ts.length;
    names.forEach((name, s) => shares.set(name, (shares.get(name) ?? 0) + share(() => s)));
    const [most, p] = [...shares].reduce((best, each) => each[1] > best[1] ? each : best);
    return `This head looks, on average, ${percent(share((t) => t))} at itself, ` +
      `${percent(share((t) => t - 1))} at the token before, ${percent(share(() => 0))} at the ` +
      `first token; most at “${most}” (${percent(p)}).`;
  }

  /** Returns the weights between some tokens as lines, and as a matrix. */
  pictures({ from, to, t, T, start, weights, names }) {
    const lines = [], squares = [], n = to - from, y = (s) => 18 * (s - from) + 12;
    for (let q = from; q < to; q++) {
      const pick = () => this.pick(start + q);
      for (let s = from; s <= q; s++) {
        const w = weights[q * T + s];
        if (w > 0.02) lines.push(svg("line", { x1: 110, x2: 210, y1: y(q), y2: y(s),
          "stroke-width": 0.5 + 5 * w, opacity: q === t ? 0.3 + 0.7 * w : 0.25 * w }));
        squares.push(svg("rect", { x: s - from, y: q - from, width: 1, height: 1, onclick: pick,
          "fill-opacity": Math.max(0.04, w) },
        svg("title", {}, `${names[q]} at ${names[s]}: ${percent(w)}`)));
      }
      const label = (attributes) => svg("text", { y: y(q) + 4, onclick: pick, ...attributes },
        names[q].slice(0, 12));
      lines.push(label({ x: 104, "text-anchor": "end", class: q === t ? "strong" : null }),
        label({ x: 216 }));
    }
    squares.push(svg("rect", { y: t - from, width: t - from + 1, height: 1, class: "outline" }));
    return [svg("svg", { viewBox: `0 0 320 ${18 * n + 6}`, class: "lines", role: "img",
      "aria-label": "who looks, left, at whom, right" }, lines),
    svg("svg", { viewBox: `0 0 ${n} ${n}`, class: "matrix", role: "img",
      "aria-label": "the share of each token, right, for each that looks, down" }, squares)];
  }

  /** Returns the prediction of the chosen token, read off before the first block and after each. */
  layers(lens) {
    const i = this.picked, { n_layer: L } = this.live.model;
    if (i < 1) return [element("p", {}, "Choose a later token: nothing predicted the first.")];
    return [element("p", {}, `The prediction of token ${i + 1}, `, tokenText(this.name(i)),
      ", read off after each block:"),
    ...lens.map(({ p, rank, top }, depth) => element("div", { class: "depth" },
      element("h4", {}, depth ? `after block ${depth} of ${L}` : "before the first block"),
      bars(top.slice(0, 3).map(([id, q]) => ({ label: shown(this.tokenizer, id), p: q,
        isIt: id === this.ids[i] }))),
      element("p", { class: "hint" }, `the token that came: ${said(p, rank)}`)))];
  }
}
