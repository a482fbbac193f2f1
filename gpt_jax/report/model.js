// The GPT of gpt_jax/model/gpt.py in plain JavaScript: tokens in, logits out. Nothing of a page.
//
// Letters as there: D embedding width, H heads, K head size, F width of the MLP, V vocabulary.
// Activations are float64 and parameters float32, whatever the run's model.dtype. Kernels come
// transposed, (outputs, inputs), so that every product reads its numbers in a row.
"use strict";
(function (space) {
  const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const VALUES = new Uint8Array(128);
  [...ALPHABET].forEach((letter, value) => (VALUES[letter.charCodeAt(0)] = value));

  space.decodeBase64 = function (text) {
    const bytes = new Uint8Array(Math.floor((text.replace(/=+$/, "").length * 3) / 4));
    for (let i = 0, at = 0; at < bytes.length; i += 4) {
      let word = 0;
      for (let j = 0; j < 4; j++) word = (word << 6) | VALUES[text.charCodeAt(i + j)];
      for (let j = 16; j >= 0; j -= 8) bytes[at++] = word >> j; // past the end: no effect
    }
    return bytes;
  };

  function halfToFloat(bits) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    return bits & 0x8000 ? -size : size;
  }

  /** Returns {path: Float32Array}; arrays is [[path, shape]], text base64 of float16. */
  space.decodeParameters = function (arrays, text) {
    const bytes = space.decodeBase64(text), parameters = {};
    let at = 0;
    for (const [path, shape] of arrays) {
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
      for (let i = 0; i < values.length; i++, at += 2) {
        values[i] = halfToFloat(bytes[at] | (bytes[at + 1] << 8));
      }
      parameters[path] = values;
    }
    return parameters;
  };

  /** The error function (Abramowitz and Stegun 1964, 7.1.26); its error is below 1.5e-7. */
  function erf(x) {
    const t = 1 / (1 + 0.3275911 * Math.abs(x));
    const sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t +
      0.254829592) * t;
    return Math.sign(x) * (1 - sum * Math.exp(-x * x));
  }

  space.ACTIVATIONS = {
    relu: (x) => Math.max(x, 0),
    gelu: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
    gelu_exact: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
    relu2: (x) => Math.max(x, 0) ** 2,
    swiglu: (x) => x / (1 + Math.exp(-x)),
  };

  /** Returns x W^T + bias for n rows of x: four rows at once, or four outputs of a single row. */
  function affine(x, n, W, bias) {
    const I = x.length / n, O = W.length / I, y = new Float64Array(n * O);
    let t = 0;
    for (; t + 4 <= n; t += 4) {
      const a = t * I, b = a + I, c = b + I, d = c + I;
      for (let o = 0, k = 0; o < O; o++) {
        let p = bias ? bias[o] : 0, q = p, r = p, s = p;
        for (let i = 0; i < I; i++, k++) {
          const w = W[k];
          p += w * x[a + i], q += w * x[b + i], r += w * x[c + i], s += w * x[d + i];
        }
        const at = t * O + o;
        y[at] = p, y[at + O] = q, y[at + 2 * O] = r, y[at + 3 * O] = s;
      }
    }
    for (; t < n; t++) {
      for (let o = 0; o < O; o++) {
        const four = o + 4 <= O, a = o * I, b = a + I, c = b + I, d = c + I;
        let p = 0, q = 0, r = 0, s = 0;
        for (let i = 0, at = t * I; i < I; i++, at++) {
          const z = x[at];
          p += W[a + i] * z;
          if (four) q += W[b + i] * z, r += W[c + i] * z, s += W[d + i] * z;
        }
        const at = t * O + o;
        y[at] = p;
        if (four) y[at + 1] = q, y[at + 2] = r, y[at + 3] = s, (o += 3);
      }
      if (bias) for (let o = 0; o < O; o++) y[t * O + o] += bias[o];
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

  space.softmax = function (x) {
    let top = -Infinity, sum = 0;
    for (const value of x) top = Math.max(top, value);
    const y = Float64Array.from(x, (value) => Math.exp(value - top));
    for (const value of y) sum += value;
    return y.map((value) => value / sum);
  };

  space.Model = class {
    /** Takes the settings of the model and `decodeParameters`'s arrays. */
    constructor(settings, parameters) {
      const c = (this.settings = settings), H = c.n_head, K = c.n_embd / H;
      Object.assign(this, { K, kvHeads: c.n_kv_head ?? H, scale: c.attention_scale ?? K ** -0.5 });
      const rms = c.norm === "rms";
      this.norm = (x, p) => norm(x, p, c.norm_epsilon, rms);
      this.normHeads = (x, p) => norm(x, p, c.norm_epsilon, true);
      this.activation = space.ACTIVATIONS[c.activation];
      this.tokens = parameters["tokens/embedding"], this.positions = parameters.positions;
      this.head = c.tied ? this.tokens : parameters["head/kernel"];
      this.headBias = parameters[c.tied ? "head_bias" : "head/bias"];
      this.finalNorm = { scale: parameters["norm_f/scale"], bias: parameters["norm_f/bias"] };
      this.blocks = Array.from({ length: c.n_layer }, (_, layer) => {
        const block = {}; // {"attn/qkv": {kernel, bias}, "norm_1": {scale, bias}, ...}
        for (const [path, values] of Object.entries(parameters)) {
          if (!path.startsWith("blocks/")) continue;
          const cut = path.lastIndexOf("/"), size = values.length / c.n_layer;
          const part = (block[path.slice("blocks/".length, cut)] ??= {});
          part[path.slice(cut + 1)] = values.subarray(layer * size, (layer + 1) * size);
        }
        return block;
      });
    }

    newCache() {
      const c = this.settings, size = this.kvHeads * c.block_size * this.K;
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
      let x = new Float64Array(n * D);
      for (let t = 0; t < n; t++) {
        for (let i = 0; i < D; i++) {
          x[t * D + i] = this.tokens[ids[t] * D + i] +
            (this.positions ? this.positions[(start + t) * D + i] : 0);
        }
      }
      if (trace) Object.assign(trace, { residual: [x], attention: [] });
      this.blocks.forEach((block, layer) => {
        const last = lastOnly && layer === this.blocks.length - 1;
        const h = this.attention(block, layer, this.norm(x, block.norm_1), n, cache, last, trace);
        if (last) x = x.slice((n - 1) * D);
        const y = x.map((value, i) => value + h[i]), z = this.mlp(block, this.norm(y, block.norm_2));
        x = y.map((value, i) => value + z[i]);
        if (trace) trace.residual.push(x);
      });
      cache.length = start + n;
      return this.readOut(x);
    }

    /** Returns the logits that the output head makes of rows of the residual stream. */
    readOut(x) {
      const n = x.length / this.settings.n_embd;
      return affine(this.norm(x, this.finalNorm), n, this.head, this.headBias);
    }

    attention(block, layer, x, n, cache, lastOnly, trace) {
      const { K, kvHeads, settings: c } = this, H = c.n_head, S = c.block_size, D = c.n_embd;
      const start = cache.length, keys = cache.keys[layer], values = cache.values[layer];
      const qkv = affine(x, n, block["attn/qkv"].kernel, block["attn/qkv"].bias);
      const width = (H + 2 * kvHeads) * K, first = lastOnly ? n - 1 : 0, total = start + n;
      const y = new Float64Array((n - first) * D), weights = new Float64Array(total);
      const kept = trace ? new Float32Array(H * n * total) : null;
      const head = (t, h, name) => {
        let part = qkv.subarray(t * width + h * K, t * width + (h + 1) * K);
        if (name && c.qk_norm) part = this.normHeads(part, block[`attn/${name}`]);
        if (name && c.positions === "rotary") rotate(part, start + t, c.rotary_base);
        return part;
      };
      for (let t = 0; t < n; t++) {
        for (let h = 0; h < kvHeads; h++) {
          keys.set(head(t, H + h, "k_norm"), (h * S + start + t) * K);
          values.set(head(t, H + kvHeads + h), (h * S + start + t) * K);
        }
      }
      const scale = this.scale / (c.inverse_layer_scale ? layer + 1 : 1);
      for (let t = first; t < n; t++) {
        for (let h = 0; h < H; h++) {
          const q = head(t, h, "q_norm"), from = Math.floor((h * kvHeads) / H) * S * K;
          const to = (t - first) * D + h * K, seen = start + t + 1;
          let top = -Infinity, sum = 0;
          for (let s = 0, at = from; s < seen; s++) {
            let score = 0;
            for (let i = 0; i < K; i++, at++) score += q[i] * keys[at];
            weights[s] = score * scale;
            if (weights[s] > top) top = weights[s];
          }
          for (let s = 0; s < seen; s++) sum += weights[s] = Math.exp(weights[s] - top);
          for (let s = 0, at = from; s < seen; s++) {
            const weight = (weights[s] /= sum);
            for (let i = 0; i < K; i++, at++) y[to + i] += weight * values[at];
          }
          kept?.set(weights.subarray(0, seen), (h * n + t) * total);
        }
      }
      trace?.attention.push(kept);
      return affine(y, n - first, block["attn/proj"].kernel, block["attn/proj"].bias);
    }

    mlp(block, x) {
      const n = x.length / this.settings.n_embd, f = this.activation;
      const dense = (name, z) => affine(z, n, block[name].kernel, block[name].bias);
      const up = dense("mlp/up", x), gate = block["mlp/gate"] && dense("mlp/gate", x);
      return dense("mlp/down", up.map((value, i) => (gate ? f(gate[i]) * value : f(value))));
    }
  };
})((globalThis.gptJax ??= {}));
