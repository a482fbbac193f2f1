// From logits to tokens, and a text that grows: gpt_jax/inference/decoding.py, without a page.
"use strict";
(function (space) {
  const SHOWN = 10; // alternatives that are kept of each token

  /** A number in (0, 1), a function of two whole numbers: "lowbias32", as in model/layers.py. */
  space.uniform = function (seed, index) {
    const mix = (x) => {
      x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
      x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
      return x ^ (x >>> 16);
    };
    return ((mix(mix(seed) + Math.imul(index, 0x9e3779b9)) >>> 0) + 0.5) / 2 ** 32;
  };

  /** Returns all ids, the likeliest first; of equal logits the smaller id. */
  const ranked = (logits) =>
    Array.from(logits, (_, id) => id).sort((a, b) => logits[b] - logits[a] || a - b);

  /** Returns the probabilities that are left by temperature, topK and topP; null: no filter. */
  space.filtered = function (logits, { temperature = 1, topK = null, topP = null }) {
    const scaled = logits.map((x) => x / (temperature || 1)), p = space.softmax(scaled);
    if (topK === null && topP === null) return p;
    const likeliest = ranked(scaled).slice(0, topK ?? p.length), left = new Float64Array(p.length);
    const total = likeliest.reduce((sum, id) => sum + p[id], 0);
    let before = 0;
    likeliest.forEach((id, i) => {
      if (i === 0 || topP === null || before < topP * total) left[id] = p[id];
      before += p[id];
    });
    const sum = left.reduce((a, b) => a + b, 0);
    return left.map((x) => x / sum);
  };

  /** Returns a token: the likeliest at temperature 0, else the one at a number in (0, 1). */
  space.sample = function (logits, filters, number) {
    if (filters.temperature === 0) return logits.indexOf(Math.max(...logits));
    const p = space.filtered(logits, filters);
    let id = -1, last = 0;
    for (let rest = number; rest > 0 && ++id < p.length; ) {
      if (p[id] > 0) last = id;
      rest -= p[id];
    }
    return last; // where rounding leaves a rest: the last that may come
  };

  /** What the model said of a token before it came: {p, rank, top: [[id, p], ...]}. */
  space.judge = function (logits, id) {
    const p = space.softmax(logits), order = ranked(logits);
    return {
      p: p[id], rank: order.indexOf(id) + 1, top: order.slice(0, SHOWN).map((i) => [i, p[i]]),
    };
  };

  /**
   * A text of tokens that a model reads and continues.
   *
   * `judged` has what the model said of each token of `ids`, null for one that it was not asked. The
   * cache holds the context, from `start` on, as long as it fits; past that `append` computes the
   * last block_size tokens again ("exact") or keeps the later half ("refill").
   */
  space.Text = class {
    constructor(model) {
      Object.assign(this, { model, ids: [], judged: [], start: 0, cache: model.newCache() });
    }

    /** Becomes another text, of at least one token; what begins alike is not computed again. */
    become(ids) {
      const size = this.model.settings.block_size;
      let same = 0;
      while (same < ids.length && ids[same] === this.ids[same]) same++;
      this.judged = ids.map((_, i) => (i < same ? this.judged[i] : null)), this.ids = [...ids];
      let valid = Math.min(same, ids.length - 1) - this.start; // the last: its logits are needed
      if (valid < 0 || ids.length - this.start > size) {
        this.start = Math.max(0, ids.length - size), valid = 0;
      }
      this.cache.length = valid;
      const from = this.start + valid, V = this.model.settings.vocab_size;
      const logits = this.model.forward(this.cache, ids.slice(from));
      for (let i = from + 1; i < ids.length; i++) {
        this.judged[i] ??= space.judge(logits.subarray((i - 1 - from) * V, (i - from) * V), ids[i]);
      }
      this.logits = logits.slice(-V);
    }

    append(id, window) {
      const size = this.model.settings.block_size;
      this.judged.push(space.judge(this.logits, id)), this.ids.push(id);
      if (this.cache.length === size) {
        const kept = window === "exact" ? size : Math.max(1, Math.floor(size / 2));
        this.start = this.ids.length - kept, this.cache.length = 0;
      }
      const more = this.ids.slice(this.start + this.cache.length);
      this.logits = this.model.forward(this.cache, more, { lastOnly: true });
    }

    /** Samples the next token; its number depends on the seed and on how long the text is. */
    next({ seed, window, ...filters }) {
      const id = space.sample(this.logits, filters, space.uniform(seed, this.ids.length));
      this.append(id, window);
      return id;
    }
  };
})((globalThis.gptJax ??= {}));
