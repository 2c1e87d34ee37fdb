"""The two servers behind the broker port, for one suite over both: what a test can do to them from outside."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Literal, Protocol

import trio

from durablefuture_trio.memory_broker import FaultPlan, MemoryBroker, MemoryServer, open_trio_scheduler
from durablefuture_trio.nats_bridge.broker import open_broker
from durablefuture_trio.nats_bridge.options import ConnectOptions
from durablefuture_trio.ports.broker import Append, AppendOutcome, Broker, StoreFull, StreamSpec
from tests._support.nats_server import NatsServer, nats_server
from tests._support.tcp_proxy import TcpProxy, tcp_proxy

ANSWER_TIMEOUT_S = 10.0
"""Longer than any test needs an answer to take, on a busy machine; tests of silence ask for a shorter one."""

DEADLINE_S = 20.0
MAX_PAYLOAD_BYTES = 1024 * 1024

STREAMS = (
    StreamSpec(name="H", subjects=("h.>",)),
    StreamSpec(name="W", subjects=("w.>", "s.>"), retention="workqueue", schedules=True),
    StreamSpec(name="T", subjects=("t.>",), retention="workqueue"),
    StreamSpec(name="R", subjects=("r.>",), last_per_subject=True),
)
"""Streams shaped as the protocol has them: history, inbox with schedules, tasks, projection."""


class ServerUnderTest(Protocol):
    """What the suite does to a server, besides talking to it through the port."""

    @property
    def kind(self) -> Literal["memory", "nats"]: ...

    async def connect(self, name: str, *, answer_timeout: float = ANSWER_TIMEOUT_S) -> Broker:
        """A connection of its own."""
        ...

    def pause(self) -> None:
        """Keep the sockets open and answer nothing."""
        ...

    def resume(self) -> None: ...

    async def kill(self) -> None:
        """SIGKILL."""
        ...

    async def start(self) -> None:
        """Come back after `kill`."""
        ...

    def drop_link(self, broker: Broker) -> None:
        """Break the connection of this broker alone, until `mend_link`."""
        ...

    def mend_link(self, broker: Broker) -> None: ...

    def deafen_link(self, broker: Broker) -> None:
        """Nothing that the server sends reaches this broker any more; neither side can tell."""
        ...

    async def fill_store(self, broker: Broker) -> None:
        """Use up all room of the store."""
        ...

    async def free_store(self, broker: Broker) -> None: ...


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition that only asking can tell."""
    with trio.fail_after(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110 - nobody can tell but the server, and it only when asked
            await trio.sleep(0.01)


async def publish_all(broker: Broker, appends: Iterable[Append]) -> None:
    """Store them all, in order, many at a time."""
    failed: list[AppendOutcome] = []
    waiting = 0
    turn = trio.Event()

    def on_outcome(outcome: AppendOutcome) -> None:
        nonlocal waiting
        waiting -= 1
        if not isinstance(outcome, int):
            failed.append(outcome)
        turn.set()

    with trio.fail_after(DEADLINE_S):
        for append in appends:
            while waiting >= 200:
                turn = trio.Event()
                await turn.wait()
            waiting += 1
            broker.append_soon(append, on_outcome)
        while waiting:
            turn = trio.Event()
            await turn.wait()
    assert failed == []


async def until_link(broker: Broker, *, up: bool) -> None:
    """Wait until the link is (or is not) up."""
    with trio.fail_after(DEADLINE_S):
        while broker.link.up is not up:
            await broker.link.changed(broker.link.generation)


class MemoryUnderTest:
    """`MemoryServer` as `ServerUnderTest`."""

    kind: Literal["memory"] = "memory"

    def __init__(self, server: MemoryServer) -> None:
        self.server = server
        self._plans: dict[int, FaultPlan] = {}

    async def connect(self, name: str, *, answer_timeout: float = ANSWER_TIMEOUT_S) -> Broker:
        plan = FaultPlan()
        broker = self.server.connect(name, faults=plan, answer_timeout=answer_timeout)
        self._plans[id(broker)] = plan
        return broker

    def pause(self) -> None:
        self.server.pause()

    def resume(self) -> None:
        self.server.resume()

    async def kill(self) -> None:
        self.server.kill()

    async def start(self) -> None:
        self.server.start()

    def drop_link(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.link.drop()

    def mend_link(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        plan = self._plans[id(broker)]
        plan.lost_delivery = plan.lost_puback = plan.unanswered_read = 0.0
        broker.link.restore()

    def deafen_link(self, broker: Broker) -> None:
        plan = self._plans[id(broker)]
        plan.lost_delivery = plan.lost_puback = plan.unanswered_read = 1.0

    async def fill_store(self, broker: Broker) -> None:
        self.server.full = True

    async def free_store(self, broker: Broker) -> None:
        self.server.full = False


class NatsUnderTest:
    """A real nats-server as `ServerUnderTest`; every broker connects through a proxy of its own."""

    kind: Literal["nats"] = "nats"

    def __init__(self, server: NatsServer, nursery: trio.Nursery) -> None:
        self.server = server
        self._nursery = nursery
        self._proxies: dict[int, TcpProxy] = {}

    async def connect(self, name: str, *, answer_timeout: float = ANSWER_TIMEOUT_S) -> Broker:
        broker: Broker = await self._nursery.start(self._hold, name, answer_timeout)
        return broker

    async def _hold(self, name: str, answer_timeout: float, task_status: trio.TaskStatus[Broker]) -> None:
        """A task of its own for each connection: fixtures and tests are tasks that end in another order."""
        async with tcp_proxy(lambda: self.server.port) as proxy:
            options = ConnectOptions(
                urls=(f"nats://127.0.0.1:{proxy.port}",), name=name, answer_timeout_s=answer_timeout
            )
            async with open_broker(options) as broker:
                self._proxies[id(broker)] = proxy
                task_status.started(broker)
                await trio.sleep_forever()

    def pause(self) -> None:
        self.server.pause()

    def resume(self) -> None:
        self.server.resume()

    async def kill(self) -> None:
        await self.server.kill()

    async def start(self) -> None:
        await self.server.start()

    def drop_link(self, broker: Broker) -> None:
        self._proxies[id(broker)].cut()

    def mend_link(self, broker: Broker) -> None:
        self._proxies[id(broker)].mend()

    def deafen_link(self, broker: Broker) -> None:
        self._proxies[id(broker)].deafen()

    async def fill_store(self, broker: Broker) -> None:
        await broker.provision([StreamSpec(name="FILLER", subjects=("filler.>",))])
        for size in (256 * 1024, 16 * 1024, 1024, 64, 0):
            try:
                while True:
                    await broker.append(Append(subject="filler.x", body=b"x" * size))
            except StoreFull:
                continue

    async def free_store(self, broker: Broker) -> None:
        await broker.purge("FILLER", "filler.>")


@asynccontextmanager
async def memory_under_test() -> AsyncIterator[MemoryUnderTest]:
    """The model, on the real clock."""
    async with open_trio_scheduler(time.time()) as scheduler:
        yield MemoryUnderTest(MemoryServer(scheduler, max_payload_bytes=MAX_PAYLOAD_BYTES))


@asynccontextmanager
async def nats_under_test(*, store_bytes: int = 64 * 1024 * 1024) -> AsyncIterator[NatsUnderTest]:
    """A real server."""
    async with (
        nats_server(max_payload=MAX_PAYLOAD_BYTES, max_file_store=store_bytes) as server,
        trio.open_nursery() as nursery,
    ):
        yield NatsUnderTest(server, nursery)
        nursery.cancel_scope.cancel()
