"""Write a replicated state machine for Lockstep in Python.

A plugin is a class with the methods of `Machine`, exported with

    StateMachine = lockstep.state_machine(MyMachine)

and, if its world has them, with `Wake = lockstep.Wake` and `Digest = lockstep.Digest`. Events and
the timer are functions of the bindings: `events.emit(topic, payload)`, `timer.wake_at(time_ms)`,
`timer.cancel()` after `from wit_world.imports import events, timer`.

What the author promises, and what the host relies on:

* the state and the answers are a function of what the machine was given: no `set` is iterated over
  and no `hash` or `id` is used, because they may differ between replicas. A `dict` remembers the
  order of insertion, which a restored machine does not know: sort before it matters. `random` is
  for generators seeded from `ctx.seed`, `random.Random(…)`. There is no clock but `ctx.time_ms`:
  the functions of `time` raise, and what else asks for the time ends the instance;
* a restored machine behaves in every respect like the one that wrote the snapshot;
* equal states write equal snapshots.
"""

import sys
import time
from abc import abstractmethod
from functools import wraps
from typing import Protocol

from componentize_py_types import Err
from wit_world.imports import host, snapshot_io, types

Context = types.Context
Info = types.Info
SnapshotHeader = types.SnapshotHeader


def _no_clock() -> float:
    raise RuntimeError("there is no clock: ctx.time_ms is the log's time, in ms since 1970")


# They would tell each replica another time, and end the instance without saying why.
for _clock in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"):
    setattr(time, _clock, _no_clock)

CHUNK_BYTES_MAX = 256 << 10
ANSWER_BYTES_MAX = 65_536


class Rejected(Exception):
    """Raised by `apply` and `query`: the rules of the state machine refuse. The argument,
    `bytes` or `str`, is the answer and says why. What `apply` changed before stays changed."""


def invalid_config(why: str) -> Err:
    """The configuration is not what the machine expects: `raise invalid_config(…)`."""
    return Err(types.Failure_InvalidConfig(why))


def corrupt(why: str) -> Err:
    """The snapshot is not what its format promises: `raise corrupt(…)`."""
    return Err(types.Failure_Corrupt(why))


class Writer:
    """The snapshot being taken. Numbers are little-endian."""

    def __init__(self) -> None:
        self._chunk = bytearray()

    def write(self, data: bytes) -> None:
        self._chunk += data
        if len(self._chunk) >= CHUNK_BYTES_MAX:
            self._hand_on()

    def write_u64(self, number: int) -> None:
        self.write(number.to_bytes(8, "little"))

    def write_block(self, block: bytes) -> None:
        """Writes a length of four bytes, and the block."""
        self.write(len(block).to_bytes(4, "little"))
        self.write(block)

    def _hand_on(self, size_min: int = CHUNK_BYTES_MAX) -> None:
        """Hands all whole chunks to the host; with 1, the rest as well."""
        at = 0
        while len(self._chunk) - at >= size_min:
            snapshot_io.write(bytes(self._chunk[at : at + CHUNK_BYTES_MAX]))
            at += CHUNK_BYTES_MAX
        del self._chunk[:at]


class Reader:
    """The snapshot being restored. Whatever is missing raises `corrupt`."""

    def __init__(self) -> None:
        self._chunk, self._at = b"", 0

    def read(self, size: int) -> bytes:
        """Reads exactly this many bytes."""
        end = self._at + size
        if end <= len(self._chunk):
            data = self._chunk[self._at : end]
            self._at = end
            return data
        parts = [self._chunk[self._at :]]
        size -= len(parts[0])
        while size > 0:
            self._chunk = snapshot_io.read(CHUNK_BYTES_MAX)
            if not self._chunk:
                raise corrupt("it ends too early")
            parts.append(self._chunk[:size])
            self._at = len(parts[-1])
            size -= self._at
        return b"".join(parts)

    def read_u64(self) -> int:
        return int.from_bytes(self.read(8), "little")

    def read_block(self, bytes_max: int) -> bytes:
        """Reads what `write_block` wrote, if it is no longer than this."""
        size = int.from_bytes(self.read(4), "little")
        if size > bytes_max:
            raise corrupt(f"a block of {size} bytes exceeds the limit of {bytes_max}")
        return self.read(size)

    def is_at_end(self) -> bool:
        if self._at == len(self._chunk):
            self._chunk, self._at = snapshot_io.read(CHUNK_BYTES_MAX), 0
        return not self._chunk


class Machine(Protocol):
    """What the author writes. Answers and reasons are `bytes` or `str`."""

    INFO: Info

    @staticmethod
    @abstractmethod
    def init(ctx: Context, config: bytes) -> "Machine":
        """Builds the initial state, or raises `invalid_config`."""

    @abstractmethod
    def apply(self, ctx: Context, command: bytes) -> bytes | str:
        """Executes a command and answers it, or raises `Rejected`. `ctx.position` is its position
        among the commands that came together."""

    @abstractmethod
    def query(self, ctx: Context, request: bytes) -> bytes | str:
        """Answers a question, or raises `Rejected`. Must not change the state."""

    @abstractmethod
    def snapshot(self, out: Writer) -> None:
        """Writes the whole state."""

    @staticmethod
    @abstractmethod
    def restore(header: SnapshotHeader, config: bytes, source: Reader) -> "Machine":
        """Reads the state that `snapshot` wrote, or raises `corrupt`. Formats that `INFO` excludes
        and bytes left over are refused here, not there."""

    # Optional: `wake(self, ctx)`, called when the timer's time has come, and `digest(self)`, which
    # summarises the state in at most 64 bytes, at little cost.


machine: Machine
"""The machine of this instance, made by `init` or `restore`."""


def as_bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


def log(level: str, target: str, message: str) -> None:
    """Hands a message to the log of the replica. `level` is `trace`, `debug`, `info`, `warn` or
    `error`."""
    host.log(host.Level[level.upper()], target, message)


class Printed:
    """Where `print` writes: each line becomes a message, once it is complete."""

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            log("info", "print", line)

    def flush(self) -> None:
        pass


sys.stdout = sys.stderr = Printed()


def logged(export):
    """An exception that no result can hold ends the instance: this says which one it was."""

    @wraps(export)
    def call(*arguments):
        try:
            return export(*arguments)
        except Err:
            raise
        except BaseException as error:
            # Without the source lines: to look for a file ends the instance.
            lines, at = [f"{type(error).__name__}: {error}"], error.__traceback__
            while at is not None:
                code = at.tb_frame.f_code
                lines.append(f"  at {code.co_filename}:{at.tb_lineno}, {code.co_qualname}")
                at = at.tb_next
            log("error", "exception", "\n".join(lines))
            raise

    return call


def state_machine(kind: type[Machine]) -> type:
    """The class to be exported under the name `StateMachine`."""

    class StateMachine:
        def describe(self) -> Info:
            return kind.INFO

        @logged
        def init(self, ctx: Context, config: bytes) -> None:
            global machine
            machine = kind.init(ctx, config)

        @logged
        def apply(self, ctx: Context, commands: types.Commands) -> types.Outcomes:
            ends, answers, rejected, omitted = [], [], [], []
            data, begin, size = commands.data, 0, 0
            for position, end in enumerate(commands.ends):
                ctx.position = position
                try:
                    answer = as_bytes(machine.apply(ctx, data[begin:end]))
                except Rejected as reason:
                    answer = as_bytes(reason.args[0])
                    rejected.append(position)
                begin = end
                if len(answer) > ANSWER_BYTES_MAX:
                    omitted.append(types.Omission(position, len(answer)))
                    answer = b""
                size += len(answer)
                answers.append(answer)
                ends.append(size)
            return types.Outcomes(ends, b"".join(answers), rejected, omitted)

        @logged
        def query(self, ctx: Context, request: bytes) -> bytes:
            try:
                return as_bytes(machine.query(ctx, request))
            except Rejected as reason:
                raise Err(as_bytes(reason.args[0])) from None

        @logged
        def snapshot(self) -> None:
            out = Writer()
            machine.snapshot(out)
            out._hand_on(size_min=1)

        @logged
        def restore(self, header: SnapshotHeader, config: bytes) -> None:
            global machine
            if not kind.INFO.oldest_readable_format <= header.format <= kind.INFO.snapshot_format:
                raise Err(types.Failure_UnsupportedFormat(header.format))
            source = Reader()
            machine = kind.restore(header, config, source)
            if not source.is_at_end():
                raise corrupt("bytes are left over at its end")

    return StateMachine


class Wake:
    """To be exported under this name if the machine has `wake`."""

    @logged
    def wake(self, ctx: Context) -> None:
        machine.wake(ctx)


class Digest:
    """To be exported under this name if the machine has `digest`."""

    @logged
    def digest(self) -> bytes:
        return machine.digest()
