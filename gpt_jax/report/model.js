// The GPT of gpt_jax/model/gpt.py in plain JavaScript: tokens in, logits out. Nothing of a page.
//
// Letters as there: D embedding width, H heads, K head size, F width of the MLP, V vocabulary.
// Activations are float64 and parameters float32, whatever the run's model.dtype. Kernels come
// transposed, (outputs, inputs), so that every product reads its numbers in a row.
"use strict";

/** Returns {path: Float32Array}; arrays is [[path, shape]], text base64 of float16. */
function decodeParameters(arrays, text) {
  const bytes = Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0));
  const halves = new Uint16Array(bytes.buffer), bits = new Uint32Array(halves.length);
  halves.forEach((h, i) => (bits[i] = ((h & 0x8000) << 16) | ((h & 0x7fff) << 13)));
  // As float32 these bits are the number but for its exponent, which begins elsewhere.
  const values = new Float32Array(bits.buffer).map((x) => x * 2 ** 112);
  let at = 0;
  return Object.fromEntries(arrays.map(([path, shape]) =>
    [path, values.subarray(at, (at += shape.reduce((a, b) => a * b, 1)))]));
}

/** The error function (Abramowitz and Stegun 1964, 7.1.26); its error is below 1.5e-7. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const factors = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
  const sum = factors.reduce((sum, factor) => (sum + factor) * t, 0);
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}

const ACTIVATIONS = {
  relu: (x) => Math.max(x, 0),
  gelu: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  gelu_exact: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  relu2: (x) => Math.max(x, 0) ** 2,
  swiglu: (x) => x / (1 + Math.exp(-x)),
};

/** Returns x W^T + bias for n rows of x, 4 outputs at once; past the end the last one is meant. */
function affine(x, n, W, bias) {
  const I = x.length / n, O = W.length / I, y = new Float64Array(n * O);
  for (let t = 0; t < n; t++) {
    if (bias) y.set(bias, t * O);
    for (let o = 0; o < O; o += 4) {
      const k = Math.min(o + 1, O - 1), l = Math.min(o + 2, O - 1), m = Math.min(o + 3, O - 1);
      const a = o * I, b = k * I, c = l * I, d = m * I, from = t * I, to = t * O;
      let p = y[to + o], q = y[to + k], r = y[to + l], s = y[to + m];
      for (let i = 0; i < I; i++) {
        const z = x[from + i];
        p += W[a + i] * z, q += W[b + i] * z, r += W[c + i] * z, s += W[d + i] * z;
      }
      y[to + o] = p, y[to + k] = q, y[to + l] = r, y[to + m] = s;
    }
  }
  return y;
}

/** Normalises each run of scale.length numbers: LayerNorm, or RMSNorm where `rms`. */
function norm(x, { scale, bias }, epsilon, rms) {
  const D = scale.length, y = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += D) {
    let mean = 0, square = 0;
    if (!rms) for (let i = 0; i < D; i++) mean += x[at + i] / D;
    for (let i = 0; i < D; i++) square += (x[at + i] - mean) ** 2 / D;
    const inverse = 1 / Math.sqrt(square + epsilon);
    for (let i = 0; i < D; i++) {
      y[at + i] = (x[at + i] - mean) * inverse * scale[i] + (bias ? bias[i] : 0);
    }
  }
  return y;
}

/** Rotates a head's K numbers by its position; angles are float32, as in jax. */
function rotate(x, position, base) {
  const half = x.length / 2;
  for (let i = 0; i < half; i++) {
    const angle = Math.fround(position * Math.fround(base ** -(i / half)));
    const cos = Math.cos(angle), sin = Math.sin(angle), a = x[i], b = x[half + i];
    x[i] = a * cos - b * sin, x[half + i] = b * cos + a * sin;
  }
}

function softmax(x) {
  const most = x.reduce((a, b) => Math.max(a, b)), y = x.map((value) => Math.exp(value - most));
  const sum = y.reduce((a, b) => a + b, 0);
  return y.map((value) => value / sum);
}

class Model {
  /** Takes the settings of the model and `decodeParameters`'s arrays. */
  constructor(settings, parameters) {
    const c = settings, H = c.n_head, K = c.n_embd / H, blocks = [];
    Object.assign(this, { settings, parameters, blocks, K, kvHeads: c.n_kv_head ?? H });
    this.scale = c.attention_scale ?? K ** -0.5;
    this.norm = (x, p, rms = c.norm === "rms") => norm(x, p, c.norm_epsilon, rms);
    for (const [path, values] of Object.entries(parameters)) {
      const cut = path.lastIndexOf("/"), size = values.length / c.n_layer;
      const part = path.slice("blocks/".length, cut), name = path.slice(cut + 1);
      for (let layer = 0; path.startsWith("blocks/") && layer < c.n_layer; layer++) {
        const block = (blocks[layer] ??= {}); // {"attn/qkv": {kernel, bias}, "norm_1": {scale}, ..}
        (block[part] ??= {})[name] = values.subarray(layer * size, (layer + 1) * size);
      }
    }
  }

  newCache() {
    const size = this.kvHeads * this.settings.block_size * this.K;
    const empty = () => this.blocks.map(() => new Float64Array(size));
    return { keys: empty(), values: empty(), length: 0 };
  }

  /**
   * Appends tokens to the cache; cache.length + ids.length is at most block_size.
   *
   * Returns the logits of every position, or with `lastOnly` of the last. `trace`, {}, gets
   * `residual`, the stream (T, D) before the first block and after each, and `attention`, the
   * weights (H, T, S) of each block.
   */
  forward(cache, ids, { lastOnly = false, trace = null } = {}) {
    const D = this.settings.n_embd, start = cache.length, n = ids.length;
    const { "tokens/embedding": tokens, positions } = this.parameters;
    let x = new Float64Array(n * D);
    ids.forEach((id, t) => x.set(tokens.subarray(id * D, (id + 1) * D), t * D));
    if (positions) x = x.map((value, i) => value + positions[start * D + i]);
    if (trace) Object.assign(trace, { residual: [x], attention: [] });
    this.blocks.forEach((block, layer) => {
      let h = this.attention(block, layer, this.norm(x, block.norm_1), n, cache, trace);
      if (lastOnly && block === this.blocks.at(-1)) x = x.slice(-D), h = h.slice(-D);
      const y = x.map((value, i) => value + h[i]), z = this.mlp(block, this.norm(y, block.norm_2));
      x = y.map((value, i) => value + z[i]);
      trace?.residual.push(x);
    });
    cache.length = start + n;
    return this.readOut(x);
  }

  /** Returns the logits that the output head makes of rows of the residual stream. */
  readOut(x) {
    const p = this.parameters, { tied, n_embd: D } = this.settings;
    const normed = this.norm(x, { scale: p["norm_f/scale"], bias: p["norm_f/bias"] });
    return tied ? affine(normed, x.length / D, p["tokens/embedding"], p.head_bias)
      : affine(normed, x.length / D, p["head/kernel"], p["head/bias"]);
  }

  attention(block, layer, x, n, cache, trace) {
    const { K, kvHeads, settings: c } = this, H = c.n_head, S = c.block_size;
    const start = cache.length, keys = cache.keys[layer], values = cache.values[layer];
    const scale = this.scale / (c.inverse_layer_scale ? layer + 1 : 1);
    const qkv = affine(x, n, block["attn/qkv"].kernel, block["attn/qkv"].bias);
    const y = new Float64Array(n * H * K), kept = new Float32Array(trace ? H * n * (start + n) : 0);
    const head = (t, h, name) => {
      const at = (t * (H + 2 * kvHeads) + h) * K;
      let part = qkv.subarray(at, at + K);
      if (name && c.qk_norm) part = this.norm(part, block[`attn/${name}`], true);
      if (name && c.positions === "rotary") rotate(part, start + t, c.rotary_base);
      return part;
    };
    for (let t = 0; t < n; t++) {
      for (let h = 0; h < kvHeads; h++) {
        keys.set(head(t, H + h, "k_norm"), (h * S + start + t) * K);
        values.set(head(t, H + kvHeads + h), (h * S + start + t) * K);
      }
      for (let h = 0; h < H; h++) {
        const q = head(t, h, "q_norm"), from = Math.floor((h * kvHeads) / H) * S * K;
        const scores = new Float64Array(start + t + 1), to = (t * H + h) * K;
        for (let s = 0, at = from; s < scores.length; s++) {
          let score = 0;
          for (let i = 0; i < K; i++, at++) score += q[i] * keys[at];
          scores[s] = score * scale;
        }
        const weights = softmax(scores);
        for (let s = 0, at = from; s < scores.length; s++) {
          for (let i = 0; i < K; i++, at++) y[to + i] += weights[s] * values[at];
        }
        if (trace) kept.set(weights, (h * n + t) * (start + n));
      }
    }
    trace?.attention.push(kept);
    return affine(y, n, block["attn/proj"].kernel, block["attn/proj"].bias);
  }

  mlp(block, x) {
    const n = x.length / this.settings.n_embd, f = ACTIVATIONS[this.settings.activation];
    const dense = (name, z) => affine(z, n, block[name].kernel, block[name].bias);
    const up = dense("mlp/up", x), gate = block["mlp/gate"] && dense("mlp/gate", x);
    return dense("mlp/down", up.map((value, i) => (gate ? f(gate[i]) * value : f(value))));
  }
}
