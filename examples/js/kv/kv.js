// A replicated key-value store with text commands: `examples/kv`, in JavaScript. It has the same
// commands, answers and snapshots, byte for byte.

import {
  Rejected, corrupt, fromLatin1, invalidConfig, latin1, machine, utf8,
} from "../../../guest-sdk/js/lockstep.js";

const KEY_BYTES_MAX = 1024;
const VALUE_BYTES_MAX = 256 << 20; // in a snapshot; only a damaged length exceeds it

const NOTHING = new Uint8Array(0);
const I64_MAX = 2n ** 63n - 1n;

class Kv {
  static about = { name: "kv", version: "0.1.0", snapshotFormat: 1, oldestReadableFormat: 1 };

  // Keys are strings with one character for each byte, values are bytes.
  pairs = new Map();

  static init(ctx, config) {
    if (config.length > 0) throw invalidConfig("kv has nothing to configure");
    return new Kv();
  }

  apply(ctx, command) {
    const verb = verbOf(command);
    switch (verb) {
      case "set": {
        const [key, value] = words(command, 2, "`set K V`");
        return this.set(checked(key), value);
      }
      case "del": {
        const [word] = words(command, 1, "`del K`");
        const key = checked(word);
        const previous = this.pairs.get(key);
        this.pairs.delete(key);
        return previous ?? NOTHING;
      }
      case "cas": {
        const [key, old, value] = words(command, 3, "`cas K OLD NEW`");
        return this.cas(checked(key), old, value);
      }
      case "incr": {
        const [key] = words(command, 1, "`incr K`");
        return this.incr(checked(key));
      }
    }
    throw unknown(verb, "`set K V`, `del K`, `cas K OLD NEW` or `incr K`");
  }

  query(ctx, request) {
    const verb = verbOf(request);
    switch (verb) {
      case "get": {
        const [word] = words(request, 1, "`get K`");
        const key = checked(word);
        const value = this.pairs.get(key);
        if (value === undefined) throw new Rejected(fromLatin1(`no key \`${key}\``));
        return value;
      }
      case "scan": {
        const form = "`scan PREFIX LIMIT`, LIMIT a number";
        const [prefix, limit] = words(request, 2, form);
        const number = numberOf(limit);
        if (number === undefined || limit[0] === 0x2d || number >= 2n ** 32n)
          throw new Rejected(`expected ${form}`);
        return this.scan(latin1(prefix), Number(number));
      }
      case "len":
        if (request.length > 3) throw new Rejected("expected `len` and nothing after it");
        return String(this.pairs.size);
    }
    throw unknown(verb, "`get K`, `scan PREFIX LIMIT` or `len`");
  }

  snapshot(out) {
    out.writeU64(this.pairs.size);
    for (const key of [...this.pairs.keys()].sort()) {
      out.writeBlock(fromLatin1(key));
      out.writeBlock(this.pairs.get(key));
    }
  }

  static restore(header, config, from) {
    const kv = new Kv();
    let last;
    for (let left = from.readU64(); left > 0n; left--) {
      const key = latin1(from.readBlock(KEY_BYTES_MAX));
      const value = from.readBlock(VALUE_BYTES_MAX);
      if (last >= key) throw corrupt("its keys are out of order");
      kv.pairs.set(key, value);
      last = key;
    }
    return kv;
  }

  // Stores a value; returns the previous one.
  set(key, value) {
    const previous = this.pairs.get(key);
    this.pairs.set(key, value.slice());
    return previous ?? NOTHING;
  }

  cas(key, old, value) {
    const there = this.pairs.get(key);
    if (there === undefined && old.length > 0) throw new Rejected("there is no such key");
    if (there !== undefined && !equal(there, old))
      throw new Rejected("the key holds another value");
    return this.set(key, value);
  }

  incr(key) {
    const there = this.pairs.get(key);
    const number = there === undefined ? 0n : numberOf(there);
    if (number === undefined || number > I64_MAX || number < -I64_MAX - 1n)
      throw new Rejected("the key does not hold a 64-bit whole number");
    if (number === I64_MAX) throw new Rejected("the number would exceed 64 bits");
    const next = utf8(String(number + 1n));
    this.pairs.set(key, next);
    return next;
  }

  scan(prefix, limit) {
    const keys = [...this.pairs.keys()].filter((key) => key.startsWith(prefix)).sort();
    const lines = keys.slice(0, limit).map((key) => {
      const value = latin1(this.pairs.get(key));
      return `${key} ${value.replaceAll("\\", "\\\\").replaceAll("\n", "\\n")}\n`;
    });
    return fromLatin1(lines.join(""));
  }
}

// The first word, or its beginning if it is longer than any verb.
function verbOf(text) {
  const space = text.indexOf(0x20);
  return latin1(text.subarray(0, space < 0 ? 33 : Math.min(space, 33)));
}

// The words after the verb; the last one is all the rest.
function words(text, count, form) {
  const found = [];
  let begin = text.indexOf(0x20) + 1;
  while (begin > 0 && found.length < count) {
    const space = found.length < count - 1 ? text.indexOf(0x20, begin) : text.length;
    if (space < 0) break;
    found.push(text.subarray(begin, space));
    begin = space + 1;
  }
  if (found.length < count) throw new Rejected(`expected ${form}`);
  return found;
}

// The key, as a string, if it is valid.
function checked(key) {
  if (key.length === 0) throw new Rejected("a key has at least one byte");
  if (key.length > KEY_BYTES_MAX)
    throw new Rejected(`a key has ${key.length} bytes, the limit is ${KEY_BYTES_MAX}`);
  const text = latin1(key);
  if (/[\x00-\x20\x7f]/.test(text))
    throw new Rejected("a key has no spaces and no control characters");
  return text;
}

// A whole number of up to 19 digits, with any number of zeros before them.
function numberOf(bytes) {
  const found = /^([+-]?)0*([0-9]{1,19})$/.exec(latin1(bytes));
  if (found === null) return undefined;
  return found[1] === "-" ? -BigInt(found[2]) : BigInt(found[2]);
}

function equal(a, b) {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

// Quotes only the beginning of the verb, which may be megabytes of anything.
function unknown(verb, expected) {
  const special = { "\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "'": "\\'", "\\": "\\\\" };
  const shown = verb.slice(0, 32).replace(/["'\\]|[^ -~]/g, (character) => special[character]
    ?? `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);
  return new Rejected(`unknown \`${shown}${verb.length > 32 ? "…" : ""}\`; expected ${expected}`);
}

export const stateMachine = machine(Kv);
