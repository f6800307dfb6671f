"""A count for each key.

Commands, as JSON: `{"add": {"key": "apples", "by": 3}}` is answered with the new count, and
`{"reset": {"key": "apples"}}` with the last one. Queries: `{"count": "apples"}` and `"total"`. When
a count passes a hundred, or another one, those who watch `hundreds/` hear of it.

This file promises what every state machine promises. The answers and the state are a function of
the commands. A machine that was restored from a snapshot goes on like the one that wrote it. Equal
states write equal snapshots. A query changes nothing. `lockstep test` checks it.
"""

import json

from wit_world.imports import events

import lockstep
from lockstep import Digest, Rejected  # `lockstep.toml` names the digest, too

KEY_BYTES_MAX = 128
"""Whatever a client can make grow has a bound."""
COUNT_MAX = (1 << 64) - 1


class Tally:
    INFO = lockstep.Info("my-machine", "0.1.0", snapshot_format=1, oldest_readable_format=1)

    def __init__(self) -> None:
        # The whole state: the counts that are not 0. A `dict` remembers the order of insertion,
        # which a restored machine does not know: sort before it matters.
        self.counts: dict[str, int] = {}
        # The sum of `checksum` for all counts: derived from them, so no part of the snapshot.
        self.sum = 0

    @staticmethod
    def init(ctx: lockstep.Context, config: bytes) -> "Tally":
        return Tally()

    def apply(self, ctx: lockstep.Context, command: bytes) -> str:
        """Checks first, changes afterwards: what is rejected must not be half done. Another
        exception would stop every replica, so what cannot be done is rejected."""
        match parsed(command):
            case {"add": {"key": str(key), "by": int(by)}} if by >= 0 and not isinstance(by, bool):
                checked(key)
                before = self.count(key)
                count = before + by
                if count > COUNT_MAX:
                    raise Rejected("the count would exceed 64 bits")
                self.set(key, count)
                if count // 100 > before // 100:
                    events.emit(f"hundreds/{key}", str(count).encode())
                return str(count)
            case {"reset": {"key": str(key)}}:
                checked(key)
                before = self.count(key)
                if before == 0:
                    raise Rejected(f"nothing was counted for {key}")
                self.set(key, 0)
                return str(before)
        raise Rejected("expected `add` with `key` and `by`, or `reset` with `key`")

    def query(self, ctx: lockstep.Context, request: bytes) -> str:
        match parsed(request):
            case {"count": str(key)}:
                return str(self.count(key))
            case "total":
                return str(sum(self.counts.values()))
        raise Rejected("expected `count` with a key, or `total`")

    def snapshot(self, out: lockstep.Writer) -> None:
        """The number of counts; for each its key, as a block, and the count, by key."""
        out.write_u64(len(self.counts))
        for key in sorted(self.counts):
            out.write_block(key.encode())
            out.write_u64(self.counts[key])

    @staticmethod
    def restore(
        header: lockstep.SnapshotHeader, config: bytes, source: lockstep.Reader
    ) -> "Tally":
        tally, last = Tally(), ""
        for _ in range(source.read_u64()):
            try:
                key = source.read_block(KEY_BYTES_MAX).decode()
            except UnicodeDecodeError:
                raise lockstep.corrupt("a key is not UTF-8") from None
            if last >= key:
                raise lockstep.corrupt("its keys are out of order")
            tally.set(key, source.read_u64())
            last = key
        return tally

    def digest(self) -> bytes:
        """Lets tests compare replicas without a snapshot."""
        return self.sum.to_bytes(8, "little")

    def count(self, key: str) -> int:
        return self.counts.get(key, 0)

    def set(self, key: str, count: int) -> None:
        """Nothing is kept for a count of 0: equal states must be equal to their last byte."""
        before = checksum(key, self.count(key))
        self.sum = (self.sum - before + checksum(key, count)) % (1 << 64)
        if count == 0:
            self.counts.pop(key, None)
        else:
            self.counts[key] = count


def checksum(key: str, count: int) -> int:
    """FNV-1a of a key and its count; 0 if nothing is counted. (`hash` may differ between replicas.)"""
    if count == 0:
        return 0
    value = 0xCBF29CE484222325
    for byte in f"{key} {count}".encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


def parsed(text: bytes) -> object:
    """What is no JSON is rejected, like everything else that a client may send."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Rejected("expected JSON") from None


def checked(key: str) -> None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise Rejected("the key is no text: it has half of a pair of surrogates") from None
    if not 0 < size <= KEY_BYTES_MAX:
        raise Rejected(f"a key has 1 to {KEY_BYTES_MAX} bytes")


StateMachine = lockstep.state_machine(Tally)
