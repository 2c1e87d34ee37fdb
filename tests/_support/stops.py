"""Stopping a supervisor at a named moment, without a hook in the product: the composition root of the tests puts these
between the owners and their broker and children.

A stop is written ``kind:pattern:count`` and reached at the count-th call of that kind whose subject or name matches the
pattern. There the process reports and stops itself (SIGSTOP): not an instruction more of it runs until the test kills
it or lets it go on (SIGCONT). Each stop is reached once in the life of a process.

| kind | the moment | matched |
|---|---|---|
| append | before a message is published to a stream | subject |
| appended | after the server's answer, before anybody here has seen it | subject |
| ack | before an inbox message is acknowledged | subject |
| tell | before a core message (an answer, a hint) is sent | subject |
| activate | before a stimulus goes to the sandbox | kind of the stimulus |
| activated | after the sandbox has answered, before the owner knows | kind of the answer |
| dispatch | before an attempt is given to the activity processes | activity |
| outcome | after an attempt has ended, before the owner knows | kind of the outcome |
| provision | before streams are created or checked | name of the first stream |
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import msgspec

from durablefuture_trio.app import Wiring
from durablefuture_trio.engine.attempts import ActivityKey, AttemptOutcome, RunActivity
from durablefuture_trio.history.events import Stimulus
from durablefuture_trio.ports.broker import (
    NO_HEADERS,
    Append,
    AppendOutcome,
    Broker,
    Delivery,
    Headers,
    Reader,
    StreamSpec,
)
from durablefuture_trio.ports.children import ActivityPool, ReplayAnswer, ReplayPool

Kind: TypeAlias = Literal[
    "append", "appended", "ack", "tell", "activate", "activated", "dispatch", "outcome", "provision"
]


class Stop(msgspec.Struct, frozen=True):
    """A moment; see the module's table. ``count`` is from 1."""

    kind: Kind
    pattern: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Stop:
        kind, pattern, count = text.split(":")
        if kind not in get_args(Kind):
            raise ValueError(f"{text!r}: unknown kind of stop; there are {', '.join(get_args(Kind))}")
        return cls(cast("Kind", kind), pattern, int(count))

    def __str__(self) -> str:
        return f"{self.kind}:{self.pattern}:{self.count}"


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """A report: the process has stopped itself."""

    stop: str
    name: str
    pid: int


class Stops:
    """The stops of this process."""

    def __init__(self, stops: Sequence[Stop], reports: Path) -> None:
        self._stops = stops
        self._reports = reports
        self._seen: Counter[Stop] = Counter()

    def at(self, kind: Kind, name: str) -> None:
        """A call is made; stop here if this is the one."""
        for stop in self._stops:
            if stop.kind == kind and fnmatchcase(name, stop.pattern):
                self._seen[stop] += 1
                if self._seen[stop] == stop.count:
                    self._halt(stop, name)

    def _halt(self, stop: Stop, name: str) -> None:
        report = msgspec.json.encode(Reached(stop=str(stop), name=name, pid=os.getpid())) + b"\n"
        descriptor = os.open(self._reports, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(descriptor, report)
        os.close(descriptor)
        # To this very thread: a signal to the process may be taken by another one while this one runs on.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def wiring(self) -> Wiring:
        """For `app.run`."""
        return Wiring(
            broker=lambda broker: cast("Broker", StoppingBroker(broker, self)),
            replay=lambda pool: cast("ReplayPool", StoppingReplay(pool, self)),
            activities=lambda pool: cast("ActivityPool", StoppingActivities(pool, self)),
        )


def read_reports(reports: Path) -> list[Reached]:
    """The stops that were reached so far."""
    try:
        content = reports.read_bytes()
    except FileNotFoundError:
        return []
    return [msgspec.json.decode(line, type=Reached) for line in content.splitlines()]


class StoppingBroker:
    """A broker with stops; everything else goes through."""

    def __init__(self, broker: Broker, stops: Stops) -> None:
        self._broker = broker
        self._stops = stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def provision(self, streams: Sequence[StreamSpec]) -> None:
        self._stops.at("provision", streams[0].name)
        await self._broker.provision(streams)

    def append_soon(self, append: Append, on_outcome: Callable[[AppendOutcome], None]) -> None:
        def answered(outcome: AppendOutcome) -> None:
            self._stops.at("appended", append.subject)
            on_outcome(outcome)

        self._stops.at("append", append.subject)
        self._broker.append_soon(append, answered)

    async def append(self, append: Append) -> int:
        self._stops.at("append", append.subject)
        seq = await self._broker.append(append)
        self._stops.at("appended", append.subject)
        return seq

    def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        self._stops.at("tell", subject)
        self._broker.tell(subject, body, headers)

    @asynccontextmanager
    async def open_reader(self, *arguments: Any, **options: Any) -> AsyncIterator[Reader]:
        async with self._broker.open_reader(*arguments, **options) as reader:
            yield cast("Reader", StoppingReader(reader, self._stops))


class StoppingReader:
    """A reader with stops before acknowledgements."""

    def __init__(self, reader: Reader, stops: Stops) -> None:
        self._reader = reader
        self._stops = stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def ack(self, delivery: Delivery) -> None:
        self._stops.at("ack", delivery.subject)
        self._reader.ack(delivery)


class StoppingReplay:
    """Replay processes with stops."""

    def __init__(self, pool: ReplayPool, stops: Stops) -> None:
        self._pool = pool
        self._stops = stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def activate(
        self, run_id: str, activation: int, stimulus: Stimulus, on_answer: Callable[[ReplayAnswer], None]
    ) -> None:
        def answered(answer: ReplayAnswer) -> None:
            self._stops.at("activated", type(answer).__name__)
            on_answer(answer)

        self._stops.at("activate", type(stimulus).__name__)
        self._pool.activate(run_id, activation, stimulus, answered)


class StoppingActivities:
    """Activity processes with stops."""

    def __init__(self, pool: ActivityPool, stops: Stops) -> None:
        self._pool = pool
        self._stops = stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def dispatch(
        self, attempt: RunActivity, task_queue: str, on_outcome: Callable[[AttemptOutcome, str], None]
    ) -> None:
        def ended(outcome: AttemptOutcome, worker: str) -> None:
            self._stops.at("outcome", type(outcome).__name__)
            on_outcome(outcome, worker)

        self._stops.at("dispatch", attempt.name)
        self._pool.dispatch(attempt, task_queue, ended)

    def cancel(self, key: ActivityKey) -> None:
        self._pool.cancel(key)
