// Text to token ids and back: gpt_jax/tokenizer.py's characters, byte pairs and integers, without a
// page. Bytes are a text of a character each, as `atob` gives them.
"use strict";

// White space as Python, Rust and Unicode have it: JavaScript's own has U+FEFF and no U+0085.
const SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const BLANKS = `[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`;
const ENDINGS = "[sdmtſSDMT]|[lL][lL]|[vV][eE]|[rR][eE]"; // ſ is an s where case does not count
const PATTERNS = {
  gpt4: `'(?:${ENDINGS})|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}` +
    `| ?[^${SPACE}\\p{L}\\p{N}]+[\\r\\n]*|[${SPACE}]*[\\r\\n]|${BLANKS}`,
  gpt2: `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|${BLANKS}`,
};
const DECODER = new TextDecoder("utf-8", { ignoreBOM: true });

/** Returns the bytes of UTF-8; half of a surrogate pair is U+FFFD. */
const toBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/** Returns the text of bytes; what is not UTF-8 is U+FFFD, as in Python. */
const fromBytes = (bytes) => DECODER.decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)));

/** One token for each of some words; these come between `before` and one another. */
class WordTokenizer {
  constructor(words, split, before) {
    this.words = words, this.split = split, this.before = before;
    this.ids = new Map(words.map((word, i) => [word, i]));
    this.startToken = this.ids.get("\n") ?? 0;
  }

  /** Returns the ids, and the words that the vocabulary lacks, which have none. */
  encode(text) {
    const words = this.split(text), isKnown = (word) => this.ids.has(word);
    return { ids: words.filter(isKnown).map((word) => this.ids.get(word)),
      missing: [...new Set(words)].filter((word) => !isKnown(word)) };
  }

  bytes(id) {
    return toBytes(this.before + this.words[id]);
  }
}

/** Byte pairs, merged in the order of the vocabulary inside the matches of its pattern. */
class BpeTokenizer {
  constructor(file) {
    this.ranks = new Map(file.tokens.map((token, rank) => [atob(token), rank]));
    this.idOf = (rank) => (file.ids ? file.ids[rank] : rank);
    this.texts = new Map([...this.ranks].map(([token, rank]) => [this.idOf(rank), token]));
    const special = Object.entries(file.special_tokens);
    for (const [name, id] of special) this.texts.set(id, toBytes(name));
    this.special = new Map(special.filter(([name]) => file.common_tokens?.includes(name)));
    this.pattern = new RegExp(PATTERNS[file.splits_like], "gu");
    this.prefix = file.prefix_space ? " " : "";
    this.startToken = this.idOf(this.ranks.get("\n"));
  }

  encode(text) {
    // The longest name of a special token first: an alternative that matches is taken.
    const names = [...this.special.keys()].sort((a, b) => b.length - a.length);
    const either = names.map((name) => name.replace(/\W/g, "\\$&")).join("|"), ids = [];
    const parts = either ? text.split(new RegExp(`(${either})`)) : [text];
    parts.forEach((part, i) => {
      if (i % 2) return ids.push(this.special.get(part));
      const spaced = part && !part.startsWith(" ") ? this.prefix + part : part;
      for (const [match] of spaced.matchAll(this.pattern)) ids.push(...this.merge(match));
    });
    return { ids, missing: [] };
  }

  /** Merges the pair of neighbours that came first into the vocabulary, until none is in it. */
  merge(match) {
    const parts = [...toBytes(match)], whole = this.ranks.get(parts.join(""));
    if (whole !== undefined) return [this.idOf(whole)];
    for (;;) {
      const ranks = parts.slice(1).map((part, i) => this.ranks.get(parts[i] + part) ?? Infinity);
      const least = ranks.reduce((a, b) => Math.min(a, b), Infinity), at = ranks.indexOf(least);
      if (least === Infinity) return parts.map((part) => this.idOf(this.ranks.get(part)));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  bytes(id) {
    return this.texts.get(id) ?? "";
  }
}

/** Takes tokenizer.json, of byte pairs with `splits_like`: which of PATTERNS its pattern is. */
function makeTokenizer(file) {
  if (file.kind === "bpe") return new BpeTokenizer(file);
  if (file.kind === "char") return new WordTokenizer([...file.vocabulary], (text) => [...text], "");
  const words = file.names ?? Array.from({ length: file.vocab_size }, (_, i) => String(i));
  const spaces = new RegExp(`[${SPACE}]+`);
  return new WordTokenizer(words, (text) => text.split(spaces).filter((word) => word), " ");
}

const decode = (tokenizer, ids) => fromBytes(ids.map((id) => tokenizer.bytes(id)).join(""));
