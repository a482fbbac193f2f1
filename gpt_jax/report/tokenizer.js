// Text to token ids and back: gpt_jax/tokenizer.py's characters, byte pairs and integers, without a
// page.
"use strict";
(function (space) {
  // White space as Python, Rust and Unicode have it: JavaScript's own has U+FEFF and no U+0085.
  const SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  const ENDINGS = "[sdmtſSDMT]|[lL][lL]|[vV][eE]|[rR][eE]"; // ſ is an s where case does not count
  const PATTERNS = {
    gpt4: `'(?:${ENDINGS})|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}` +
      `| ?[^${SPACE}\\p{L}\\p{N}]+[\\r\\n]*|[${SPACE}]*[\\r\\n]|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`,
    gpt2: `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+` +
      `|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`,
  };

  // UTF-8 (Unicode 3.9, table 3-7): the first two bytes of a character, and how many follow.
  const STARTS = [["\\xe0[\\xa0-\\xbf]", 1], ["[\\xe1-\\xec\\xee\\xef][\\x80-\\xbf]", 1],
    ["\\xed[\\x80-\\x9f]", 1], ["\\xf0[\\x90-\\xbf]", 2], ["[\\xf1-\\xf3][\\x80-\\xbf]", 2],
    ["\\xf4[\\x80-\\x8f]", 2]];
  const either = (least) =>
    STARTS.map(([start, n]) => `${start}[\\x80-\\xbf]{${least(n)}}`).join("|");
  const UTF8 = new RegExp(`([\\0-\\x7f]|[\\xc2-\\xdf][\\x80-\\xbf]|${either((n) => n)})|` +
    `${either((n) => `0,${n - 1}`)}|[^]`, "g");

  /** Returns the bytes of UTF-8, as a character each; half of a surrogate pair is U+FFFD. */
  space.toBytes = (text) => unescape(encodeURIComponent(text.toWellFormed()));

  /** Returns the text of such bytes; what is not UTF-8 is U+FFFD, as in Python and in browsers. */
  space.fromBytes = (bytes) => decodeURIComponent(escape(
    bytes.replace(UTF8, (match, whole) => (whole === undefined ? "\xef\xbf\xbd" : match))));

  /** One token per character. */
  class CharTokenizer {
    constructor({ vocabulary }) {
      this.characters = [...vocabulary], this.ids = new Map(this.characters.map((c, i) => [c, i]));
      this.startToken = this.ids.get("\n") ?? 0;
    }

    /** Returns the ids, and the characters that the vocabulary lacks, which have none. */
    encode(text) {
      const known = [...text].filter((c) => this.ids.has(c));
      const missing = [...new Set(text)].filter((c) => !this.ids.has(c));
      return { ids: known.map((c) => this.ids.get(c)), missing };
    }

    bytes(id) {
      return space.toBytes(this.characters[id]);
    }
  }

  /** One token per word: an integer, or the name that it has. */
  class IntegerTokenizer {
    constructor({ vocab_size: size, names }) {
      this.words = names ?? Array.from({ length: size }, (_, i) => String(i));
      this.ids = new Map(this.words.map((word, i) => [word, i])), this.startToken = 0;
    }

    /** Returns the ids, and the words that the vocabulary lacks, which have none. */
    encode(text) {
      const words = text.split(new RegExp(`[${SPACE}]+`, "u")).filter((word) => word);
      const missing = [...new Set(words)].filter((word) => !this.ids.has(word));
      return { ids: words.filter((w) => this.ids.has(w)).map((w) => this.ids.get(w)), missing };
    }

    bytes(id) {
      return space.toBytes(" " + this.words[id]);
    }
  }

  /** Byte pairs, merged in the order of the vocabulary inside the matches of its pattern. */
  class BpeTokenizer {
    constructor(file) {
      const text = (token) => String.fromCharCode(...space.decodeBase64(token));
      this.ranks = new Map(file.tokens.map((token, rank) => [text(token), rank]));
      this.idOf = (rank) => (file.ids ? file.ids[rank] : rank);
      this.texts = new Map([...this.ranks].map(([token, rank]) => [this.idOf(rank), token]));
      const special = Object.entries(file.special_tokens);
      for (const [name, id] of special) this.texts.set(id, space.toBytes(name));
      this.special = new Map(special.filter(([name]) => file.common_tokens?.includes(name)));
      this.pattern = new RegExp(PATTERNS[file.splits_like], "gu");
      this.prefix = file.prefix_space ? " " : "";
      this.startToken = this.idOf(this.ranks.get("\n"));
    }

    encode(text) {
      const names = [...this.special.keys()].sort((a, b) => b.length - a.length), ids = [];
      for (let at = 0; at < text.length; ) {
        const found = names.map((name) => [text.indexOf(name, at), name]).filter(([i]) => i >= 0);
        found.sort((a, b) => a[0] - b[0] || b[1].length - a[1].length);
        const [end, name] = found[0] ?? [text.length, ""], part = text.slice(at, end);
        const spaced = part && !part.startsWith(" ") ? this.prefix + part : part;
        for (const [match] of spaced.matchAll(this.pattern)) ids.push(...this.merge(match));
        if (name) ids.push(this.special.get(name));
        at = end + name.length;
      }
      return { ids, missing: [] };
    }

    /** Merges the pair of neighbours that came first into the vocabulary, until none is in it. */
    merge(match) {
      const parts = [...space.toBytes(match)], whole = this.ranks.get(parts.join(""));
      if (whole !== undefined) return [this.idOf(whole)];
      for (;;) {
        let best = Infinity, at = -1;
        for (let i = 0; i + 1 < parts.length; i++) {
          const rank = this.ranks.get(parts[i] + parts[i + 1]) ?? Infinity;
          if (rank < best) best = rank, (at = i);
        }
        if (at < 0) return parts.map((part) => this.idOf(this.ranks.get(part)));
        parts.splice(at, 2, parts[at] + parts[at + 1]);
      }
    }

    bytes(id) {
      return this.texts.get(id) ?? "";
    }
  }

  /** Takes tokenizer.json, of byte pairs with `splits_like`: which of PATTERNS its pattern is. */
  const KINDS = { char: CharTokenizer, bpe: BpeTokenizer, integers: IntegerTokenizer };
  space.makeTokenizer = (file) => new KINDS[file.kind](file);

  space.decode = (tokenizer, ids) =>
    space.fromBytes(ids.map((id) => tokenizer.bytes(id)).join(""));
})((globalThis.gptJax ??= {}));
