"""One random sequence of port operations, applied in step to the model in memory and to a real nats-server.

Nothing goes wrong here: no fault is injected, the server is stopped in good order. So both sides must give the same
answers, hold the same messages and deliver the same deliveries. What takes its time on a real server (deliveries,
acknowledgements, fires, expiries) is compared once both sides have come to rest.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import trio

from durablefuture_trio.ports.broker import (
    Append,
    Broker,
    BrokerError,
    Delivery,
    Reader,
    ReaderLost,
    Rejected,
    Schedule,
    Stored,
)
from tests._support.broker_servers import (
    DEADLINE_S,
    STREAMS,
    MemoryUnderTest,
    NatsUnderTest,
    ServerUnderTest,
    memory_under_test,
    nats_under_test,
)

AT_REST_DEADLINE_S = 8.0
PATIENCE_S = 3600.0
"""An acknowledgement wait that never ends in a test, but is a wait (and so without the check for gaps)."""

Answer: TypeAlias = Any
"""What a broker said, without the times, which differ."""


async def restart_in_good_order(server: ServerUnderTest, *brokers: Broker) -> None:
    """SIGTERM (`ServerUnderTest.kill` is the other way to go), and back again, with the links of these brokers."""
    before = [broker.link.generation for broker in brokers]
    if isinstance(server, MemoryUnderTest):
        server.server.stop()
        server.server.start()
    else:
        assert isinstance(server, NatsUnderTest)
        await server.server.restart()
    with trio.fail_after(DEADLINE_S):
        for broker, seen in zip(brokers, before, strict=True):
            while broker.link.generation < seen + 2 or not broker.link.up:
                await broker.link.changed(broker.link.generation)


class Differs(AssertionError):
    """The two sides are not the same. The message holds what was done so far."""


class TooSlow(Exception):
    """The machine did not get done in time what had to be done before a schedule was due: nothing can be said."""


class Reading:
    """A reader on one side, with a task that takes whatever comes.

    Attributes:
        of: stream and consumer.
        got: everything it has been given.
        lost: why nothing more comes, if so.
    """

    def __init__(self, of: tuple[str, str], reader: Reader, stack: AsyncExitStack) -> None:
        self.of = of
        self.reader = reader
        self.got: list[Delivery] = []
        self.lost: str | None = None
        self._stack = stack
        self.ended = trio.Event()
        self._scope = trio.CancelScope()

    async def take_all(self) -> None:
        with self._scope:
            while True:
                try:
                    self.got += await self.reader.receive()
                except ReaderLost as error:
                    self.lost = error.reason
                    break
        self.ended.set()

    async def close(self) -> None:
        self._scope.cancel()
        await self._stack.aclose()
        self.lost = "closed"

    def seen(self) -> Answer:
        # A roll-up may remove what is pending before or after a delivery has counted it.
        exact = self.of[0] != "W"
        return self.lost, [
            (d.subject, d.seq, d.body, dict(d.headers), d.delivered, d.pending if exact else None) for d in self.got
        ]


class Side:
    """One of the two servers, with two links."""

    def __init__(self, server: MemoryUnderTest | NatsUnderTest, a: Broker, b: Broker, nursery: trio.Nursery) -> None:
        self.server = server
        self.a = a
        self.b = b
        self.readings: list[Reading] = []
        self._nursery = nursery

    async def open(self, stream: str, name: str, subject: str, ack_wait: float | None, max_ack_pending: int) -> None:
        stack = AsyncExitStack()
        reader = await stack.enter_async_context(
            self.b.open_reader(stream, name, subject, ack_wait=ack_wait, max_ack_pending=max_ack_pending)
        )
        await self.b.consumers(stream)  # its pull has reached the server
        self.readings.append(Reading((stream, name), reader, stack))
        self._nursery.start_soon(self.readings[-1].take_all)

    async def close(self, number: int) -> None:
        await self.readings[number].close()
        await self.b.consumers("H")  # that it has left has reached the server

    async def restart(self) -> None:
        open_before = [reading for reading in self.readings if reading.lost is None]
        await restart_in_good_order(self.server, self.a, self.b)
        for reading in open_before:
            with trio.fail_after(AT_REST_DEADLINE_S):
                # "link", or "deleted": a server that stops in good order may still say that the consumer is going.
                await reading.ended.wait()
            reading.lost = "restart"

    async def at_rest(self) -> Answer:
        """What is seen of streams, consumers and readers."""
        return [
            [reading.seen() for reading in self.readings],
            [(spec.name, await _figures(self.a, spec.name), await _consumers(self.a, spec.name)) for spec in STREAMS],
        ]

    async def holds(self) -> Answer:
        """Every message of every stream."""
        return [[without_time(stored) async for stored in self.a.scan(spec.name, ">")] for spec in STREAMS]


def without_time(stored: Stored | None) -> Answer:
    return None if stored is None else (stored.subject, stored.seq, stored.body, dict(stored.headers))


async def _figures(broker: Broker, stream: str) -> Answer:
    state = await broker.stream_state(stream)
    assert state is not None
    return state.messages, state.first_seq, state.last_seq, state.consumers


async def _consumers(broker: Broker, stream: str) -> Answer:
    return sorted((c.name, c.ack_pending, c.pending) for c in await broker.consumers(stream))


class Pair:
    """Both sides, and what was done to them.

    Attributes:
        memory, nats: the sides.
        log: operations and answers so far.
    """

    def __init__(self, memory: Side, nats: Side) -> None:
        self.memory = memory
        self.nats = nats
        self.log: list[str] = []

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.memory, self.nats

    async def do(self, what: str, operation: Callable[[Side], Awaitable[Answer]]) -> Answer:
        """Have both do it, and compare what they say; returns it."""
        answers = [await _answer(operation, side) for side in self.sides]
        self.log.append(f"{what} -> {answers[0]!r}")
        if answers[0] != answers[1]:
            raise Differs("\n".join([*self.log, f"memory said {answers[0]!r}", f"nats   said {answers[1]!r}"]))
        return answers[0]

    async def settle(self, look: Callable[[Side], Awaitable[Answer]] = Side.at_rest) -> None:
        """Wait until both show the same."""
        deadline = trio.current_time() + AT_REST_DEADLINE_S
        while (memory := await look(self.memory)) != (nats := await look(self.nats)):
            if trio.current_time() > deadline:
                raise Differs("\n".join([*self.log, "came to rest differently:", *_different_parts(memory, nats)]))
            await trio.sleep(0.005)

    async def compare_all(self) -> None:
        """Wait until both have come to rest in the same state, with the same messages."""
        await self.settle(Side.holds)
        await self.settle()


async def _answer(operation: Callable[[Side], Awaitable[Answer]], side: Side) -> Answer:
    try:
        return await operation(side)
    except BrokerError as error:
        return (type(error).__name__, error.code) if isinstance(error, Rejected) else type(error).__name__


def _different_parts(memory: Answer, nats: Answer, path: str = "") -> list[str]:
    """The smallest parts in which two nested lists differ."""
    if memory == nats:
        return []
    if isinstance(memory, (list, tuple)) and isinstance(nats, (list, tuple)) and len(memory) == len(nats):
        parts = enumerate(zip(memory, nats, strict=True))
        return [line for n, (one, other) in parts for line in _different_parts(one, other, f"{path}[{n}]")]
    return [f"memory{path}: {memory!r}", f"nats{path}:   {nats!r}"]


@asynccontextmanager
async def open_pair() -> AsyncIterator[Pair]:
    """Two fresh servers with `STREAMS`."""
    async with memory_under_test() as memory, nats_under_test() as nats, trio.open_nursery() as nursery:
        sides = [
            Side(server, await server.connect("a"), await server.connect("b"), nursery) for server in (memory, nats)
        ]
        for side in sides:
            await side.a.provision(STREAMS)
        try:
            yield Pair(sides[0], sides[1])
        finally:
            for side in sides:
                for reading in side.readings:
                    await reading.close()
        nursery.cancel_scope.cancel()


def schedule_at(due: float, subject: str, target: str, body: bytes, **more: Any) -> Append:
    """A schedule that is due so many seconds from now."""
    return Append(subject=subject, body=body, schedule=Schedule(due=time.time() + due, target=target), **more)
