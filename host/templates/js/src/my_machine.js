// A count for each key.
//
// Commands, as JSON: `{"add": {"key": "apples", "by": 3}}` is answered with the new count, and
// `{"reset": {"key": "apples"}}` with the last one. Queries: `{"count": "apples"}` and `"total"`.
// When a count passes a hundred, or another one, those who watch `hundreds/` hear of it.
//
// This file promises what every state machine promises. The answers and the state are a function
// of the commands. A machine that was restored from a snapshot goes on like the one that wrote it.
// Equal states write equal snapshots. A query changes nothing. `lockstep test` checks it.

import events from "lockstep:fsm/events@0.2.0";
import { Rejected, corrupt, fromUtf8, machine, utf8 } from "./lockstep.js";

export { digest } from "./lockstep.js"; // `lockstep.toml` names it, too

const KEY_BYTES_MAX = 128; // whatever a client can make grow has a bound

class Tally {
  static about = {
    name: "my-machine", version: "0.1.0", snapshotFormat: 1, oldestReadableFormat: 1,
  };

  // The whole state: the counts that are not 0. A `Map` remembers the order of insertion, which a
  // restored machine does not know, so the order must not matter: sort before it does.
  counts = new Map();
  // The sum of `checksum` for all counts: derived from them, so no part of the snapshot.
  sum = 0;

  static init(ctx, config) {
    return new Tally();
  }

  // Checks first, changes afterwards: what is rejected must not be half done. An error of another
  // kind would stop every replica, so what cannot be done is rejected.
  apply(ctx, command) {
    const { add, reset } = parsed(command);
    if (add !== undefined) {
      const key = checked(add?.key), by = add.by;
      if (!Number.isSafeInteger(by) || by < 0) throw new Rejected("expected a whole number `by`");
      const before = this.count(key), count = before + by;
      if (!Number.isSafeInteger(count)) throw new Rejected("the count would exceed 53 bits");
      this.set(key, count);
      if (Math.floor(count / 100) > Math.floor(before / 100))
        events.emit(`hundreds/${key}`, utf8(String(count)));
      return String(count);
    }
    if (reset !== undefined) {
      const key = checked(reset?.key), before = this.count(key);
      if (before === 0) throw new Rejected(`nothing was counted for ${key}`);
      this.set(key, 0);
      return String(before);
    }
    throw new Rejected("expected `add` or `reset`");
  }

  query(ctx, request) {
    const asked = parsed(request);
    if (asked.count !== undefined) return String(this.count(checked(asked.count)));
    if (asked !== "total") throw new Rejected("expected `count` or `total`");
    // Sorted, because a sum of floating-point numbers may depend on the order.
    return String([...this.counts.values()].sort((a, b) => a - b).reduce((a, b) => a + b, 0));
  }

  // The number of counts; for each its key, as a block, and the count, in the order of the keys.
  snapshot(out) {
    out.writeU64(this.counts.size);
    for (const key of [...this.counts.keys()].sort()) {
      out.writeBlock(utf8(key));
      out.writeU64(this.counts.get(key));
    }
  }

  static restore(header, config, from) {
    const tally = new Tally();
    let last;
    for (let left = from.readU64(); left > 0n; left--) {
      const key = fromUtf8(from.readBlock(KEY_BYTES_MAX));
      const count = Number(from.readU64());
      if (last >= key) throw corrupt("its keys are out of order");
      tally.set(key, count);
      last = key;
    }
    return tally;
  }

  // Lets tests compare replicas without a snapshot.
  digest() {
    return utf8(String(this.sum));
  }

  count(key) {
    return this.counts.get(key) ?? 0;
  }

  // Nothing is kept for a count of 0: equal states must be equal to their last byte.
  set(key, count) {
    this.sum = (this.sum - checksum(key, this.count(key)) + checksum(key, count)) >>> 0;
    if (count === 0) this.counts.delete(key);
    else this.counts.set(key, count);
  }
}

// FNV-1a of a key and its count; 0 if nothing is counted.
function checksum(key, count) {
  if (count === 0) return 0;
  const step = (hash, byte) => Math.imul(hash ^ byte, 0x01000193);
  return utf8(`${key} ${count}`).reduce(step, 0x811c9dc5) >>> 0;
}

// What is no JSON is rejected, like everything else that a client may send.
function parsed(bytes) {
  try {
    return JSON.parse(fromUtf8(bytes)) ?? "nothing";
  } catch {
    throw new Rejected("expected JSON");
  }
}

function checked(key) {
  // A text that is not well formed, with half of a pair of surrogates, would not survive a snapshot.
  if (typeof key !== "string" || key === "" || /[\ud800-\udfff]/u.test(key))
    throw new Rejected("expected a text `key`");
  if (utf8(key).length > KEY_BYTES_MAX)
    throw new Rejected(`a key has at most ${KEY_BYTES_MAX} bytes`);
  return key;
}

export const stateMachine = machine(Tally);
