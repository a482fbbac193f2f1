// The model, alive, on the page: a text that it writes, and views of how it came to each token.
//
// What a run or a reader wrote becomes text and attributes, never markup. The model computes in a
// worker (worker.js); here is only what is drawn.
"use strict";
(function (space) {
  const WORKER_FILES = ["model.js", "tokenizer.js", "sampling.js", "worker.js"];
  const LEAST = [0.5, 0.2, 0.05, 0.01, 0]; // the least probability of each shade
  const MOST_DRAWN = 40; // tokens of a picture of attention
  const MOST_WRITTEN = 5000; // tokens at once
  const codeOf = (c) => `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  const percent = (p) => `${(100 * p).toPrecision(p < 0.1 ? 2 : 3)}%`;

  /** Returns a token's text with what can't be seen, or would change the line, made visible. */
  space.shown = function (tokenizer, id) {
    const bytes = tokenizer.bytes(id), text = space.decode(tokenizer, [id]);
    if (!bytes) return `‹${id}›`;
    if (text.includes("\ufffd")) { // a part of a character
      const hex = (byte) => byte.charCodeAt(0).toString(16).padStart(2, "0");
      return `‹${[...bytes].map(hex).join(" ")}›`;
    }
    return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/^\p{M}/u, "◌$&").replace(
      /[\p{C}\p{Zl}\p{Zp}]/gu,
      (c) => c < " " ? String.fromCodePoint(0x2400 + c.codePointAt(0)) : `‹${codeOf(c)}›`);
  };

  function drawing(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /** Rows of a label, a bar and a number; a row with `take` is a button. */
  function bars(rows) {
    return element("div", { class: "bars" }, rows.map(({ label, p, note = "", take, isIt }) =>
      element(take ? "button" : "div", { class: isIt ? "bar is-it" : "bar", onclick: take ?? null,
        type: take ? "button" : null },
      element("bdi", { class: "token-text" }, label),
      element("span", { class: "track" }, drawing("svg", { viewBox: "0 0 100 1",
        preserveAspectRatio: "none", "aria-hidden": "true" },
      drawing("rect", { width: 100 * p, height: 1 }))),
      element("span", { class: "number" }, percent(p) + note))));
  }

  const code = ({ path, line, text }, address) => element("details", { class: "code" },
    element("summary", {}, `The code: ${path}, line ${line}`),
    element("pre", {}, element("code", {}, text)),
    address && /^https?:/.test(address)
      ? element("a", { href: `${address}/${path}#L${line}` }, "read it where it stands") : null);

  function makeWorker() {
    const text = (name) => document.querySelector(`script[data-file="${name}"]`).textContent;
    const parts = [...WORKER_FILES.map(text), "gptJax.startWorker(self);"];
    const url = URL.createObjectURL(new Blob([parts.join("\n")], { type: "text/javascript" }));
    return new Worker(url);
  }

  function control(label, kind, attributes, ...options) {
    const input = element(kind, attributes, ...options);
    return [input, element("label", {}, label, input)];
  }

  space.startLive = function (root, live) {
    root.append(element("h2", {}, "The model, alive"));
    if (!live || live.reason) {
      root.append(element("p", {}, `The page can't compute with this model. ${live?.reason ?? ""}`));
      return;
    }
    new Live(root, live);
  };

  class Live {
    constructor(root, live) {
      const tokenizer = space.makeTokenizer(live.tokenizer);
      Object.assign(this, { live, tokenizer, ids: [], judged: [], start: 0, faded: 0, job: 0,
        picked: -1 });
      this.state = live.states.length - 1;
      this.worker = makeWorker();
      this.worker.onmessage = ({ data }) => this.receive(data);
      this.worker.onerror = () => this.say("This browser does not let the page start a worker.");
      this.worker.postMessage({ load: live, job: 0 });
      root.append(...this.introduction(), this.writing(), this.tokens(), this.training(),
        this.attention(), this.lens());
      this.read(live.sample.prompt ?? "");
    }

    introduction() {
      const { name, parameters, rounding, model } = this.live;
      const notes = [`The ${parameters.toLocaleString("en")} parameters of ${name} are in this ` +
        "file, rounded to half precision, and your browser computes with them; nothing leaves " +
        "this machine."];
      if (rounding?.exact) {
        const split = rounding.is_whole ? "the whole validation split"
          : `the first ${rounding.tokens.toLocaleString("en")} validation tokens`;
        const change = Math.abs(rounding.rounded - rounding.exact).toPrecision(2);
        notes.push(` The rounding changes its loss on ${split}, ${rounding.exact.toFixed(4)} nats ` +
          `per token, by ${change}.`);
      } else if (rounding) notes.push(` What the rounding changes was not measured: ${rounding.why}`);
      if (model.dtype !== "float32") notes.push(` The run computes in ${model.dtype}, this page not.`);
      return [element("p", {}, "The model gives every token that it knows a probability to come " +
        "next; one is drawn by these, put at the end of the text, and the model reads on. A low " +
        "temperature favours the likely ones; top-k and top-p leave out the unlikely ones."),
      element("p", { class: "hint" }, notes.join(""))];
    }

    writing() {
      const { sample, model } = this.live, number = { type: "number", inputmode: "decimal" };
      const set = (label, name, value, attributes) => {
        const [input, field] = control(label, "input", { ...number, value, ...attributes });
        this[name] = input;
        return field;
      };
      const fields = [
        set("temperature", "temperature", sample.temperature, { min: 0, max: 10, step: 0.1 }),
        set("top-k", "topK", sample.top_k, { min: 1, step: 1, placeholder: "all" }),
        set("top-p", "topP", sample.top_p, { min: 0.01, max: 1, step: 0.01, placeholder: "all" }),
        set("seed", "seed", sample.seed, { min: 0, max: 2 ** 32 - 1, step: 1 }),
        set("tokens", "count", sample.max_new_tokens, { min: 1, max: MOST_WRITTEN, step: 1 }),
      ];
      const [way, wayField] = control(`past ${model.block_size} tokens`, "select", {},
        element("option", { value: "refill" }, "drop the older half (refill)"),
        element("option", { value: "exact" }, "recompute all (exact, slower)"));
      this.way = way;
      this.box = element("textarea", { rows: 6, dir: "auto", spellcheck: "false", maxlength: 20000,
        "aria-label": "the text: type a prompt, or change it anywhere",
        oninput: () => this.read(this.box.value, this.box.value) });
      const button = (label, onclick) => element("button", { type: "button", onclick }, label);
      this.stopButton = button("Stop", () => this.stop());
      this.status = element("output", { class: "hint" });
      return element("div", { class: "writing" }, this.box, element("div", { class: "controls" },
        button("Continue", () => this.write(this.number(this.count, 300))), this.stopButton,
        button("Back to the prompt", () => this.read(this.prompt)), this.status),
      element("div", { class: "controls fields" }, fields, wayField),
      element("p", { class: "hint" }, `The model sees at most ${model.block_size} tokens. Past that ` +
        "refill, the default of this page, forgets the older half at once, which is an " +
        "approximation; exact computes the last ones anew for each token, as the command sample " +
        "does. A seed repeats a text here; the command's own texts come from other numbers."),
      code(this.live.code.write, this.live.address));
    }

    view(name, title, words, ...body) {
      return element("details", { class: "view", ontoggle: (event) => {
        if (event.target === event.currentTarget) this.look();
      } }, element("summary", {}, title), element("p", {}, words), ...body,
      code(this.live.code[name], this.live.address));
    }

    tokens() {
      const keys = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      this.strip = element("div", { class: "tokens", tabindex: 0, role: "listbox",
        "aria-label": "the tokens; arrow keys choose one",
        onclick: ({ target }) => target.dataset?.i && this.pick(Number(target.dataset.i)),
        onkeydown: (event) => {
          if (!keys[event.key]) return;
          event.preventDefault();
          this.pick(this.picked + keys[event.key]);
          this.strip.children[this.picked].scrollIntoView({ block: "nearest" });
        } });
      this.choice = element("div", {});
      const legend = element("p", { class: "legend hint" }, "probability: ", LEAST.map((least, i) =>
        element("span", { class: `token p${i}` }, least ? `from ${100 * least}%` : "less")));
      const made = this.view("probability", "How likely was each token?", "Each token is shaded, " +
        "and underlined, by the probability that the model gave it before it came: the stronger, " +
        "the greater the surprise. Choose one to see what else could have stood there; " +
        "take another, and the model continues from it.", legend,
      element("div", { class: "pictures" }, this.strip, this.choice));
      made.open = true;
      return made;
    }

    training() {
      const { states } = this.live, last = states.length - 1;
      const label = element("output", {}, `step ${states[last].step}`);
      const [slider, field] = control("parameters after ", "input", { type: "range", min: 0,
        max: last, step: 1, value: last, oninput: () => {
          this.state = Number(slider.value);
          label.textContent = `step ${states[this.state].step}`;
          this.read(this.prompt, null, this.number(this.count, 300));
        } });
      field.append(label);
      const kept = `This page has the parameters of step ${states.map((s) => s.step).join(", ")}. ` +
        "A run keeps more of them for good with --train.keep-interval.";
      return this.view("training", "Through training", "The slider takes the parameters as they " +
        "were after fewer steps, and the text above is continued anew from the same prompt, with " +
        "the same seed. At step 0 they are random numbers, and every later step changed each of " +
        "them a little, so that the text it learned from became likelier.",
      last ? element("div", { class: "controls slider" }, field) : null,
      element("p", { class: "hint" }, kept));
    }

    attention() {
      const { n_layer: L, n_head: H } = this.live.model;
      const choose = (label, n) => control(`${label} `, "select", { onchange: () => this.look() },
        Array.from({ length: n }, (_, i) => element("option", { value: i }, i + 1)));
      const [layer, layerField] = choose("layer", L), [head, headField] = choose("head", H);
      Object.assign(this, { layer, head, attentionBody: element("div", { class: "attention" }) });
      this.attentionView = this.view("attention", "Attention: where does the model look?",
        "Reading a token, each head looks back at the tokens so far and mixes what it finds " +
        "there; the stronger a line or a square, the larger that token's share. " +
        "Nothing points forward: what is still to come can't be seen.",
        element("div", { class: "controls" }, layerField, headField), this.attentionBody);
      return this.attentionView;
    }

    lens() {
      this.lensBody = element("div", {});
      this.lensView = this.view("lens", "Through the layers: where does the answer form?",
        "Each block adds something to the numbers that stand for a token, and from their sum after " +
        "the last block the next token is predicted. Here the same output head reads them after " +
        "every block, so that you see where the answer forms.", this.lensBody);
      return this.lensView;
    }

    say(text) {
      this.status.textContent = text;
    }

    number(input, otherwise) {
      const value = input.valueAsNumber, { min, max } = input;
      if (!Number.isFinite(value)) return otherwise;
      return Math.min(Math.max(value, Number(min)), max === "" ? Infinity : Number(max));
    }

    /** Takes a text, as a prompt, and lets the model read it, and then write `count` tokens. */
    read(text, typed = null, count = 0) {
      const { ids, missing } = this.tokenizer.encode(text);
      this.prompt = text, this.typed = typed;
      this.missing = missing.length ? `Left out, as the model has no token for it: ${missing.map((c) =>
        [...c].length > 1 ? c : `${c} (${codeOf(c)})`).join(", ")}. ` : "";
      this.ids = ids.length ? ids : [this.tokenizer.startToken]; // as `sample` starts an empty prompt
      this.picked = Math.min(this.picked, this.ids.length - 1);
      this.write(count);
    }

    write(count) {
      if (this.isWriting) this.stop();
      this.isWriting = count > 0, this.before = this.ids.length;
      const { ids, state } = this, end = this.live.end;
      this.post({ write: { state, ids, count, end, window: this.way.value,
        temperature: this.number(this.temperature, 1), topK: this.number(this.topK, null),
        topP: this.number(this.topP, null), seed: this.number(this.seed, 0) } });
    }

    stop() {
      this.isWriting = false;
      this.post({ stop: true });
      this.look();
    }

    post(message) {
      this.stopButton.disabled = !this.isWriting;
      this.worker.postMessage({ ...message, job: ++this.job });
    }

    receive(data) {
      if (data.job !== this.job) return;
      if (data.error) return this.say(`The model can't compute this: ${data.error}`);
      if (data.attention) return this.draw(data);
      const { from, ids, judged, more, seconds } = data, wrote = from + ids.length - this.before;
      if (more) this.worker.postMessage({ job: this.job, proceed: true });
      this.ids = [...this.ids.slice(0, from), ...ids];
      this.judged = [...this.judged.slice(0, from), ...judged];
      this.start = data.start, this.isWriting = more, this.stopButton.disabled = !more;
      const text = space.decode(this.tokenizer, this.ids);
      if (this.typed === null || wrote > 0) this.box.value = text;
      if (wrote > 0) this.typed = null;
      const speed = wrote > 0 ? `${wrote} tokens, ${(wrote / Math.max(seconds, 0.001)).toFixed(0)} ` +
        "a second" : `${this.ids.length} tokens`;
      this.say(`${this.missing}${speed}, at step ${this.live.states[this.state].step}`);
      this.show(from);
      if (more) for (const each of [this.box, this.strip]) each.scrollTop = each.scrollHeight;
      if (!more) this.pick(this.picked < 0 ? this.ids.length - 1 : this.picked);
    }

    /** Draws the tokens from `from` on, and says which the model no longer sees. */
    show(from) {
      while (this.strip.childElementCount > from) this.strip.lastChild.remove();
      for (let i = from; i < this.ids.length; i++) {
        const about = this.judged[i], text = space.shown(this.tokenizer, this.ids[i]);
        const shade = about ? `p${LEAST.findIndex((least) => about.p >= least)}` : "";
        const words = about ? `${percent(about.p)}, number ${about.rank}` : "not predicted";
        this.strip.append(element("span", { class: `token ${shade}`, "data-i": i, role: "option",
          title: words, "aria-label": `${text}: ${words}`, "aria-selected": "false", id: `token-${i}`,
        }, text.replaceAll("␣", " ").replaceAll("⏎", "⏎\n")));
      }
      const [low, high] = [this.faded, this.start].sort((a, b) => a - b);
      for (let i = low; i < Math.min(high, this.ids.length); i++) {
        this.strip.children[i].classList.toggle("forgotten", i < this.start);
      }
      this.faded = this.start;
    }

    pick(i) {
      this.strip.children[this.picked]?.setAttribute("aria-selected", "false");
      this.picked = i = Math.min(Math.max(i, 0), this.ids.length - 1);
      const about = this.judged[i], span = this.strip.children[i];
      span.setAttribute("aria-selected", "true");
      this.strip.setAttribute("aria-activedescendant", span.id);
      const name = space.shown(this.tokenizer, this.ids[i]);
      const title = element("p", {}, `Token ${i + 1}, `, element("bdi", { class: "token-text" }, name),
        about ? `, had ${percent(about.p)} and was number ${about.rank} of ` +
          `${this.live.model.vocab_size}.` : ", was not predicted: nothing stood before it.");
      this.choice.replaceChildren(title, about ? bars(about.top.map(([id, p]) => ({
        label: space.shown(this.tokenizer, id), p, isIt: id === this.ids[i],
        take: () => this.take(i, id) }))) : "");
      this.look();
    }

    /** Puts another token in a token's place, and writes as many after it as there were. */
    take(i, id) {
      const left = this.ids.length - i - 1;
      this.ids = [...this.ids.slice(0, i), id];
      this.prompt = space.decode(this.tokenizer, this.ids), this.typed = null;
      this.write(left);
    }

    /** Asks for what the open views show. */
    look() {
      if (this.isWriting || !(this.attentionView.open || this.lensView.open)) return;
      this.worker.postMessage({ job: this.job, look: { state: this.state, ids: this.ids,
        picked: this.picked, layer: Number(this.layer.value) } });
    }

    draw({ start, T, attention, lens }) {
      if (this.lensView.open) this.lensBody.replaceChildren(this.lensTable(lens));
      if (!this.attentionView.open) return;
      const h = Number(this.head.value);
      const weights = (t, s) => attention[(h * T + t) * T + s];
      const name = (t) => space.shown(this.tokenizer, this.ids[start + t]);
      const t = this.picked - start, from = Math.max(0, t + 1 - MOST_DRAWN);
      const drawn = { from, to: Math.min(T, from + MOST_DRAWN), t, weights, name, start };
      const row = Array.from({ length: t + 1 }, (_, s) => [weights(t, s), s]);
      row.sort((a, b) => b[0] - a[0]);
      this.attentionBody.replaceChildren(
        element("p", {}, this.habits(T, weights, name)),
        element("p", {}, "From ", element("bdi", { class: "token-text" }, name(t)),
          ` (token ${start + t + 1}) it looks at, with the number of the token:`),
        bars(row.slice(0, 5).map(([p, s]) => ({ label: name(s), p, note: ` · ${start + s + 1}` }))),
        element("div", { class: "pictures" }, this.lines(drawn), this.matrix(drawn)),
        element("p", { class: "hint" }, `Drawn are tokens ${start + from + 1} to ` +
          `${start + drawn.to}, of ${T} that the model reads together here, from token ` +
          `${start + 1} on. In the square a row looks, and a column is looked at.`));
    }

    /** Says what a head looks at most, over all tokens. */
    habits(T, weights, name) {
      const share = { itself: 0, "the token before": 0, "the first token": 0 }, of = new Map();
      for (let t = 1; t < T; t++) {
        share.itself += weights(t, t) / (T - 1);
        share["the token before"] += weights(t, t - 1) / (T - 1);
        share["the first token"] += weights(t, 0) / (T - 1);
        for (let s = 0; s <= t; s++) of.set(name(s), (of.get(name(s)) ?? 0) + weights(t, s) / (T - 1));
      }
      if (T < 2) return "One token alone can look only at itself.";
      const shares = Object.entries(share).map(([what, p]) => `${percent(p)} at ${what}`);
      const [token, p] = [...of].sort((a, b) => b[1] - a[1])[0];
      return `This head looks, on average, ${shares.join(", ")}; most at “${token}” (${percent(p)}).`;
    }

    lines({ from, to, t, weights, name, start }) {
      const y = (s) => 18 * (s - from) + 12, made = [];
      for (let q = from; q < to; q++) {
        for (let s = from; s <= q; s++) {
          const w = weights(q, s);
          if (w > 0.02) made.push(drawing("line", { x1: 110, x2: 210, y1: y(q), y2: y(s),
            "stroke-width": 0.5 + 5 * w, opacity: q === t ? 0.3 + 0.7 * w : 0.25 * w }));
        }
      }
      for (let s = from; s < to; s++) {
        const label = (x, anchor, strong) => {
          const text = drawing("text", { x, y: y(s) + 4, "text-anchor": anchor,
            class: strong ? "strong" : "" }, name(s).slice(0, 12));
          text.addEventListener("click", () => this.pick(start + s));
          return text;
        };
        made.push(label(104, "end", s === t), label(216, "start", false));
      }
      return drawing("svg", { viewBox: `0 0 320 ${18 * (to - from) + 6}`, class: "lines", role: "img",
        "aria-label": "who looks, left, at whom, right" }, ...made);
    }

    matrix({ from, to, t, weights, name, start }) {
      const n = to - from, squares = [];
      for (let q = from; q < to; q++) {
        for (let s = from; s <= q; s++) {
          const square = drawing("rect", { x: s - from, y: q - from, width: 1, height: 1,
            "fill-opacity": Math.max(0.04, weights(q, s)) },
          drawing("title", {}, `${name(q)} at ${name(s)}: ${percent(weights(q, s))}`));
          square.addEventListener("click", () => this.pick(start + q));
          squares.push(square);
        }
      }
      return drawing("svg", { viewBox: `0 0 ${n} ${n}`, class: "matrix", role: "img",
        "aria-label": "the share of each token, right, for each that looks, down" }, ...squares,
      drawing("rect", { x: 0, y: t - from, width: t - from + 1, height: 1, class: "outline" }));
    }

    lensTable(lens) {
      const i = this.picked;
      if (i < 1) return element("p", {}, "Choose a later token: nothing predicted the first.");
      const name = (id) => space.shown(this.tokenizer, id), { n_layer: L } = this.live.model;
      return element("div", { class: "pictures" }, element("p", {}, "The prediction of token ", String(i + 1), ", ",
        element("bdi", { class: "token-text" }, name(this.ids[i])), ", read off after each block:"),
      lens.map(({ p, rank, top }, depth) => element("div", { class: "depth" },
        element("h4", {}, depth ? `after block ${depth} of ${L}` : "before the first block"),
        bars(top.slice(0, 3).map(([id, q]) => ({ label: name(id), p: q, isIt: id === this.ids[i] }))),
        element("p", { class: "hint" }, `the token itself: ${percent(p)}, number ${rank}`))));
    }
  }
})((globalThis.gptJax ??= {}));

const startLive = gptJax.startLive; // what page.js calls
