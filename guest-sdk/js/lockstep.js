// Write a replicated state machine for Lockstep in JavaScript.
//
// A plugin is a class, of which `machine` below says the methods, exported with
//
//     export const stateMachine = machine(MyMachine);
//
// and, if its world has them, with `export { wake, digest } from "./lockstep.js"`. Events and the
// timer are modules of the host: `events.emit(topic, payload)`, `timer.wakeAt(timeMs)` and
// `timer.cancel()` after `import events from "lockstep:fsm/events@0.2.0"` or "…/timer@0.2.0".
//
// What the author promises, and what the host relies on:
//
// * the state and the answers are a function of what the machine was given. A `Map` remembers the
//   order of insertion, which a restored machine does not know: sort before it matters. There is no
//   `Math.random`, for the same reason, and the clock ends the instance;
// * a restored machine behaves in every respect like the one that wrote the snapshot;
// * equal states write equal snapshots.
//
// Bytes are `Uint8Array`s. Those that a machine is given are views of something larger: `slice()`
// what is to stay. Numbers of 64 bits that come from the host are rounded to 53 bits, on every
// replica alike: the index and the time are not affected, the seed is.

import host from "lockstep:fsm/host@0.2.0";
import snapshotIo from "lockstep:fsm/snapshot-io@0.2.0";

const CHUNK_BYTES_MAX = 256 << 10;
const ANSWER_BYTES_MAX = 65_536;

/// Thrown by `apply` and `query`: the rules of the state machine refuse. The reason, bytes or a text,
/// is the answer. What `apply` changed before stays changed.
export class Rejected {
  constructor(why) {
    this.why = why;
  }
}

/// Thrown by `init`: the configuration is not what the machine expects.
export const invalidConfig = (why) => ({ tag: "invalid-config", val: why });

/// Thrown by `restore`: the snapshot is not what its format promises.
export const corrupt = (why) => ({ tag: "corrupt", val: why });

/// The snapshot being taken. Numbers are little-endian.
export class Writer {
  #chunk = new Uint8Array(CHUNK_BYTES_MAX);
  #view = new DataView(this.#chunk.buffer);
  #size = 0;

  write(bytes) {
    while (bytes.length > CHUNK_BYTES_MAX - this.#size) {
      const part = CHUNK_BYTES_MAX - this.#size;
      this.#chunk.set(bytes.subarray(0, part), this.#size);
      bytes = bytes.subarray(part);
      this.#size = CHUNK_BYTES_MAX;
      this.finish();
    }
    this.#chunk.set(bytes, this.#size);
    this.#size += bytes.length;
  }

  writeU64(number) {
    this.#reserve(8);
    this.#view.setBigUint64(this.#size, BigInt(number), true);
    this.#size += 8;
  }

  /// Writes a length of four bytes, and the block.
  writeBlock(block) {
    this.#reserve(4);
    this.#view.setUint32(this.#size, block.length, true);
    this.#size += 4;
    this.write(block);
  }

  finish() {
    if (this.#size > 0) snapshotIo.write(this.#chunk.subarray(0, this.#size));
    this.#size = 0;
  }

  #reserve(size) {
    if (this.#size + size > CHUNK_BYTES_MAX) this.finish();
  }
}

/// The snapshot being restored. Whatever is missing throws `corrupt`.
export class Reader {
  #chunk = new Uint8Array(0);
  #at = 0;

  /// Reads exactly this many bytes; they are the caller's.
  read(size) {
    const bytes = new Uint8Array(size);
    let there = 0;
    while (there < size) {
      if (this.isAtEnd()) throw corrupt("it ends too early");
      const part = this.#chunk.subarray(this.#at, this.#at + size - there);
      bytes.set(part, there);
      there += part.length;
      this.#at += part.length;
    }
    return bytes;
  }

  /// Reads a `BigInt`.
  readU64() {
    return new DataView(this.read(8).buffer).getBigUint64(0, true);
  }

  /// Reads what `writeBlock` wrote, if it is no longer than this.
  readBlock(bytesMax) {
    const size = new DataView(this.read(4).buffer).getUint32(0, true);
    if (size > bytesMax) throw corrupt(`a block of ${size} bytes exceeds the limit of ${bytesMax}`);
    return this.read(size);
  }

  isAtEnd() {
    if (this.#at === this.#chunk.length) {
      this.#chunk = snapshotIo.read(CHUNK_BYTES_MAX);
      this.#at = 0;
    }
    return this.#chunk.length === 0;
  }
}

/// A string with one character for each byte; such strings compare as bytes do.
export function latin1(bytes) {
  if (bytes.length <= 4096) return String.fromCharCode.apply(null, bytes);
  let text = "";
  for (let at = 0; at < bytes.length; at += 4096) text += latin1(bytes.subarray(at, at + 4096));
  return text;
}

/// The bytes of such a string.
export function fromLatin1(text) {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/// The UTF-8 bytes of a text; what is no text is returned as it is.
export const utf8 = (text) =>
  typeof text === "string" ? fromLatin1(unescape(encodeURIComponent(text))) : text;

/// The text of UTF-8 bytes; throws if they are none.
export const fromUtf8 = (bytes) => decodeURIComponent(escape(latin1(bytes)));

/// Hands a message to the log of the replica. The level is "trace", "debug", "info", "warn" or
/// "error".
export const log = (level, target, message) => host.log(level, target, message);

globalThis.console = Object.fromEntries(["trace", "debug", "info", "warn", "error"].map(
  (level) => [level, (...values) => log(level, "console", values.map(String).join(" "))],
));
console.log = console.info;

/// An error that no result can hold ends the instance: this says which one it was.
const logged = (call) => (...parameters) => {
  try {
    return call(...parameters);
  } catch (error) {
    if (error instanceof Error) log("error", "exception", `${error}\n${error.stack}`);
    throw error;
  }
};

const allLogged = (calls) =>
  Object.fromEntries(Object.entries(calls).map(([name, call]) => [name, logged(call)]));

// It would go on where it was at the build, also in a restored machine.
Math.random = () => {
  throw new Error("there is no Math.random: derive it from ctx.seed");
};

// It would tell each replica another time, and end the instance without saying why.
const noClock = () => {
  throw new Error("there is no clock: ctx.timeMs is the log's time, in milliseconds since 1970");
};
globalThis.Date = class extends Date {
  constructor(...given) {
    super(...(given.length > 0 ? given : [noClock()]));
  }
  static now = noClock;
};

let current; // the machine of this instance, made by `init` or `restore`

/// Makes the export `stateMachine` of a class that has
///
/// * `static about`: name, version, snapshotFormat, oldestReadableFormat;
///
/// and these methods, where `ctx` has `index`, that of the entry, and `timeMs`, the log's time in
/// milliseconds since 1970, both `bigint`, and `seed`, two of them that no client can foresee:
///
/// * `static init(ctx, config)`, which returns the initial machine;
/// * `apply(ctx, command)` and `query(ctx, request)`, which return bytes or a text, or throw
///   `Rejected`; `ctx.position` is the command's position among those that came together;
/// * `snapshot(out)`, which writes the whole state to a `Writer`;
/// * `static restore(header, config, from)`, which returns the machine that it reads from a
///   `Reader`. Formats that `about` excludes and bytes left over are refused here, not there;
/// * optionally `wake(ctx)`, and `digest()`, which returns at most 64 bytes.
export const machine = (kind) => allLogged({
  describe: () => kind.about,

  init(ctx, config) {
    current = kind.init(ctx, config);
  },

  apply(ctx, { ends: commandEnds, data: commands }) {
    const ends = [], answers = [], rejected = [], omitted = [];
    let begin = 0, size = 0;
    for (let position = 0; position < commandEnds.length; position++) {
      ctx.position = position;
      const command = commands.subarray(begin, commandEnds[position]);
      begin = commandEnds[position];
      let answer;
      try {
        answer = utf8(current.apply(ctx, command));
      } catch (error) {
        answer = reasonOf(error);
        rejected.push(position);
      }
      if (answer.length > ANSWER_BYTES_MAX) {
        omitted.push({ position, bytes: answer.length });
        answer = answer.subarray(0, 0);
      }
      answers.push(answer);
      size += answer.length;
      ends.push(size);
    }
    const data = new Uint8Array(size);
    for (let i = 0; i < answers.length; i++) data.set(answers[i], i > 0 ? ends[i - 1] : 0);
    return { ends, data, rejected, omitted };
  },

  query(ctx, request) {
    try {
      return utf8(current.query(ctx, request));
    } catch (error) {
      throw reasonOf(error);
    }
  },

  snapshot() {
    const out = new Writer();
    current.snapshot(out);
    out.finish();
  },

  restore(header, config) {
    const { snapshotFormat, oldestReadableFormat } = kind.about;
    if (header.format < oldestReadableFormat || header.format > snapshotFormat)
      throw { tag: "unsupported-format", val: header.format };
    const from = new Reader();
    current = kind.restore(header, config, from);
    if (!from.isAtEnd()) throw corrupt("bytes are left over at its end");
  },
});

/// The bytes of the reason, if it is one.
function reasonOf(error) {
  if (!(error instanceof Rejected)) throw error;
  return utf8(error.why);
}

export const wake = allLogged({ wake: (ctx) => current.wake(ctx) });
export const digest = allLogged({ digest: () => current.digest() });
