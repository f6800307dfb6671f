"""A replicated key-value store with text commands: `examples/kv`, in Python. It has the same
commands, answers and snapshots, byte for byte."""

import re

import lockstep
from lockstep import Rejected

KEY_BYTES_MAX = 1024
VALUE_BYTES_MAX = 256 << 20
"""In a snapshot: only a damaged length exceeds it."""


class Kv:
    INFO = lockstep.Info("kv", "0.1.0", snapshot_format=1, oldest_readable_format=1)

    def __init__(self) -> None:
        self.pairs: dict[bytes, bytes] = {}

    @staticmethod
    def init(ctx: lockstep.Context, config: bytes) -> "Kv":
        if config:
            raise lockstep.invalid_config("kv has nothing to configure")
        return Kv()

    def apply(self, ctx: lockstep.Context, command: bytes) -> bytes:
        verb = command.split(b" ", 1)[0]
        match verb:
            case b"set":
                key, value = words(command, 2, "`set K V`")
                return self.set(checked(key), value)
            case b"del":
                (key,) = words(command, 1, "`del K`")
                return self.pairs.pop(checked(key), b"")
            case b"cas":
                key, old, new = words(command, 3, "`cas K OLD NEW`")
                return self.cas(checked(key), old, new)
            case b"incr":
                (key,) = words(command, 1, "`incr K`")
                return self.incr(checked(key))
        raise unknown(verb, "`set K V`, `del K`, `cas K OLD NEW` or `incr K`")

    def query(self, ctx: lockstep.Context, request: bytes) -> bytes | str:
        verb = request.split(b" ", 1)[0]
        match verb:
            case b"get":
                (key,) = words(request, 1, "`get K`")
                if checked(key) not in self.pairs:
                    raise Rejected(b"no key `%b`" % key)
                return self.pairs[key]
            case b"scan":
                parts = request.split(b" ", 2)
                limit = number(parts[2]) if len(parts) == 3 else None
                if limit is None or parts[2].startswith(b"-") or limit >= 1 << 32:
                    raise Rejected("expected `scan PREFIX LIMIT`, LIMIT a number")
                return self.scan(parts[1], limit)
            case b"len":
                if request != b"len":
                    raise Rejected("expected `len` and nothing after it")
                return str(len(self.pairs))
        raise unknown(verb, "`get K`, `scan PREFIX LIMIT` or `len`")

    def snapshot(self, out: lockstep.Writer) -> None:
        out.write_u64(len(self.pairs))
        for key in sorted(self.pairs):
            out.write_block(key)
            out.write_block(self.pairs[key])

    @staticmethod
    def restore(header: lockstep.SnapshotHeader, config: bytes, source: lockstep.Reader) -> "Kv":
        kv, last = Kv(), None
        for _ in range(source.read_u64()):
            key = source.read_block(KEY_BYTES_MAX)
            value = source.read_block(VALUE_BYTES_MAX)
            if last is not None and last >= key:
                raise lockstep.corrupt("its keys are out of order")
            kv.pairs[key] = value
            last = key
        return kv

    def set(self, key: bytes, value: bytes) -> bytes:
        previous = self.pairs.get(key, b"")
        self.pairs[key] = value
        return previous

    def cas(self, key: bytes, old: bytes, new: bytes) -> bytes:
        there = self.pairs.get(key)
        if there is None and old:
            raise Rejected("there is no such key")
        if there is not None and there != old:
            raise Rejected("the key holds another value")
        return self.set(key, new)

    def incr(self, key: bytes) -> bytes:
        there = number(self.pairs.get(key, b"0"))
        if there is None or not -(1 << 63) <= there < 1 << 63:
            raise Rejected("the key does not hold a 64-bit whole number")
        if there + 1 == 1 << 63:
            raise Rejected("the number would exceed 64 bits")
        self.pairs[key] = b"%d" % (there + 1)
        return self.pairs[key]

    def scan(self, prefix: bytes, limit: int) -> bytes:
        keys = sorted(key for key in self.pairs if key.startswith(prefix))
        return b"".join(
            b"%b %b\n" % (key, self.pairs[key].replace(b"\\", b"\\\\").replace(b"\n", b"\\n"))
            for key in keys[:limit]
        )


def words(text: bytes, count: int, form: str) -> list[bytes]:
    """The words after the verb; the last one is all the rest."""
    found = text.split(b" ", count)[1:]
    if len(found) < count:
        raise Rejected(f"expected {form}")
    return found


def checked(key: bytes) -> bytes:
    """The key, if it is valid."""
    if not key:
        raise Rejected("a key has at least one byte")
    if len(key) > KEY_BYTES_MAX:
        raise Rejected(f"a key has {len(key)} bytes, the limit is {KEY_BYTES_MAX}")
    if re.search(rb"[\x00-\x20\x7f]", key):
        raise Rejected("a key has no spaces and no control characters")
    return key


def number(text: bytes) -> int | None:
    """A whole number of up to 19 digits, with any number of zeros before them."""
    found = re.fullmatch(rb"([+-]?)0*([0-9]{1,19})", text)
    return int(found[1] + found[2]) if found else None


def unknown(verb: bytes, expected: str) -> Rejected:
    """Quotes only the beginning of the verb, which may be megabytes of anything."""
    special = {9: r"\t", 10: r"\n", 13: r"\r", 34: r"\"", 39: r"\'", 92: r"\\"}
    shown = "".join(
        special.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}")
        for byte in verb[:32]
    )
    dots = "…" if len(verb) > 32 else ""
    return Rejected(f"unknown `{shown}{dots}`; expected {expected}")


StateMachine = lockstep.state_machine(Kv)
