// From logits to tokens, and a text that grows: gpt_jax/inference/decoding.py, without a page.
"use strict";

const SHOWN = 10; // alternatives that are kept of each token

/** A number in (0, 1), a function of two whole numbers: "lowbias32", as in model/layers.py. */
function uniform(seed, index) {
  const mix = (x) => {
    x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
    x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
    return x ^ (x >>> 16);
  };
  return ((mix(mix(seed) + Math.imul(index, 0x9e3779b9)) >>> 0) + 0.5) / 2 ** 32;
}

/** Returns all ids, the likeliest first; of equal logits the smaller id. */
const ranked = (logits) => Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);

/** Returns the probabilities that are left by temperature, topK and topP; null: no filter. */
function filtered(logits, { temperature = 1, topK = null, topP = null }) {
  const scaled = logits.map((x) => x / temperature), p = softmax(scaled);
  if (topK === null && topP === null) return p;
  const likeliest = ranked(scaled).slice(0, topK ?? p.length), left = new Float64Array(p.length);
  const total = likeliest.reduce((sum, id) => sum + p[id], 0);
  let before = 0;
  for (const id of likeliest) {
    if (before === 0 || before < (topP ?? Infinity) * total) left[id] = p[id];
    before += p[id];
  }
  const sum = left.reduce((a, b) => a + b);
  return left.map((x) => x / sum);
}

/** Returns a token: the likeliest at temperature 0, else the one at a number in (0, 1). */
function sample(logits, filters, number) {
  if (filters.temperature === 0) return ranked(logits)[0];
  const p = filtered(logits, filters);
  let id = -1, last = 0;
  for (let rest = number; rest > 0 && ++id < p.length; rest -= p[id]) {
    if (p[id] > 0) last = id;
  }
  return last; // where rounding leaves a rest: the last that may come
}

/** What the model said of a token, from the context that begins at `start`, before it came. */
function judge(logits, id, start) {
  const p = softmax(logits), order = ranked(logits), top = order.slice(0, SHOWN);
  return { start, p: p[id], rank: order.indexOf(id) + 1, top: top.map((each) => [each, p[each]]) };
}

/**
 * A text of tokens that a model reads and continues.
 *
 * `judged` has what the model said of each token of `ids`; null for the first. The cache holds the
 * context, from `start` on, as long as it fits; past that `append` computes the last block_size
 * tokens again ("exact") or keeps the later half ("refill").
 */
class LiveText {
  constructor(model) {
    Object.assign(this, { model, ids: [], judged: [], start: 0, cache: model.newCache() });
  }

  /** Reads tokens from an index on, judges those that were not, and returns the last logits. */
  read(cache, from, to) {
    const { ids, model } = this, start = from - cache.length;
    const logits = model.forward(cache, ids.slice(from, to)), V = model.settings.vocab_size;
    const row = (i) => logits.subarray(i * V, (i + 1) * V);
    for (let i = from + 1; i < to; i++) this.judged[i] ??= judge(row(i - 1 - from), ids[i], start);
    return row(to - 1 - from);
  }

  /**
   * Becomes another text, of at least one token; what begins alike is not computed again.
   *
   * The context is then its last tokens. Those before it are judged in windows that overlap.
   */
  become(ids) {
    const size = this.model.settings.block_size, half = Math.ceil(size / 2);
    let same = ids.findIndex((id, i) => id !== this.ids[i]);
    if (same < 0) same = ids.length;
    this.judged = ids.map((_, i) => (i < same ? this.judged[i] : null)), this.ids = [...ids];
    let valid = same - 1 - this.start; // the last that is alike predicts the next
    if (valid < 0 || ids.length - this.start > size) {
      this.start = Math.max(0, ids.length - size), valid = 0;
    }
    for (let at = Math.max(0, same - half); at < this.start; at += half) {
      this.read(this.model.newCache(), at, Math.min(at + size, ids.length));
    }
    this.cache.length = valid;
    this.logits = this.read(this.cache, this.start + valid, ids.length);
  }

  append(id, window) {
    const size = this.model.settings.block_size;
    this.judged.push(judge(this.logits, id, this.start)), this.ids.push(id);
    if (this.cache.length === size) {
      const kept = window === "exact" ? size : Math.max(1, Math.floor(size / 2));
      this.start = this.ids.length - kept, this.cache.length = 0;
    }
    const more = this.ids.slice(this.start + this.cache.length);
    this.logits = this.model.forward(this.cache, more, { lastOnly: true });
  }

  /** Samples the next token; its number depends on the seed and on how long the text is. */
  next({ seed, window, ...filters }) {
    const id = sample(this.logits, filters, uniform(seed, this.ids.length));
    this.append(id, window);
    return id;
  }
}
