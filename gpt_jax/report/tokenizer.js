// Text to token ids and back: gpt_jax/tokenizer.py's characters and byte pairs, without a page.
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

  /** Returns the bytes of UTF-8; half of a surrogate pair becomes U+FFFD. */
  space.toUtf8 = function (text) {
    const bytes = [];
    for (const character of text) {
      let point = character.codePointAt(0);
      if (point >= 0xd800 && point < 0xe000) point = 0xfffd;
      if (point < 0x80) {
        bytes.push(point);
        continue;
      }
      const more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
      bytes.push([0, 0xc0, 0xe0, 0xf0][more] | (point >> (6 * more)));
      for (let i = more - 1; i >= 0; i--) bytes.push(0x80 | ((point >> (6 * i)) & 63));
    }
    return bytes;
  };

  /**
   * Returns decode(bytes, last=false) for bytes that come a few at a time.
   *
   * A character comes with the last of its bytes; what is not UTF-8 is U+FFFD, once for each longest
   * beginning of a character (Unicode 3.9, table 3-8), as in Python and in browsers.
   */
  space.makeUtf8Decoder = function () {
    let held = 0, needed = 0, low = 0x80, high = 0xbf;
    const read = (byte) => {
      if (needed && (byte < low || byte > high)) {
        needed = 0;
        return "\ufffd" + read(byte);
      }
      if (needed) {
        held = (held << 6) | (byte & 63), low = 0x80, high = 0xbf;
        return --needed ? "" : String.fromCodePoint(held);
      }
      if (byte < 0x80) return String.fromCharCode(byte);
      if (byte < 0xc2 || byte > 0xf4) return "\ufffd";
      needed = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3, held = byte & (0x3f >> needed);
      low = { 0xe0: 0xa0, 0xf0: 0x90 }[byte] ?? 0x80, high = { 0xed: 0x9f, 0xf4: 0x8f }[byte] ?? 0xbf;
      return "";
    };
    return (bytes, last = false) => {
      let text = "";
      for (const byte of bytes) text += read(byte);
      if (last && needed) text += "\ufffd", (needed = 0);
      return text;
    };
  };

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
      return space.toUtf8(this.characters[id]);
    }
  }

  /** Byte pairs, merged in the order of the vocabulary inside the matches of its pattern. */
  class BpeTokenizer {
    constructor(file) {
      const text = (token) => String.fromCharCode(...space.decodeBase64(token)); // a char per byte
      this.ranks = new Map(file.tokens.map((token, rank) => [text(token), rank]));
      this.idOf = (rank) => (file.ids ? file.ids[rank] : rank);
      this.texts = new Map([...this.ranks].map(([token, rank]) => [this.idOf(rank), token]));
      const special = Object.entries(file.special_tokens);
      for (const [name, id] of special) this.texts.set(id, this.binary(name));
      this.special = new Map(special.filter(([name]) => file.common_tokens?.includes(name)));
      this.pattern = new RegExp(PATTERNS[file.splits_like], "gu");
      this.prefix = file.prefix_space ? " " : "";
      this.startToken = this.idOf(this.ranks.get("\n"));
    }

    binary(text) {
      return space.toUtf8(text).map((byte) => String.fromCharCode(byte)).join("");
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
      const parts = [...this.binary(match)], whole = this.ranks.get(parts.join(""));
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
      return Array.from(this.texts.get(id) ?? "", (c) => c.charCodeAt(0));
    }
  }

  /** Takes tokenizer.json, of byte pairs with `splits_like`: which of PATTERNS its pattern is. */
  space.makeTokenizer = (file) => new (file.kind === "char" ? CharTokenizer : BpeTokenizer)(file);

  space.decode = function (tokenizer, ids) {
    return space.makeUtf8Decoder()(ids.flatMap((id) => tokenizer.bytes(id)), true);
  };
})((globalThis.gptJax ??= {}));
