"""Every fault that really happened is counted once, under its name, and nothing else is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.memory_broker import (
    INJECTED_KINDS,
    AckFate,
    AppendFate,
    DeliveryFate,
    FaultPlan,
    FireFate,
    MemoryBroker,
    MemoryServer,
    ReadFate,
)
from durablefuture_trio.ports.broker import Append, BrokerError, Schedule


async def publish(broker: MemoryBroker, *subjects: str) -> None:
    for subject in subjects:
        await broker.append(Append(subject=subject))


async def try_append(broker: MemoryBroker, subject: str = "h.x") -> None:
    try:
        await broker.append(Append(subject=subject))
    except BrokerError:
        return


async def append_with(server: MemoryServer, fate: AppendFate) -> None:
    broker = server.connect("A")
    server.faults.next_append(fate)
    await try_append(broker)
    await publish(broker, "h.healthy")
    await trio.sleep(60)


async def read_with(server: MemoryServer, fate: ReadFate) -> None:
    broker = server.connect("A")
    await publish(broker, "h.1", "h.2")
    server.faults.next_read(fate)
    try:
        await broker.many("H", ["h.1", "h.2"])
    except BrokerError:
        assert not fate.answered or fate.incomplete
    await broker.many("H", ["h.1", "h.2"])


async def ack_with(server: MemoryServer, fate: AckFate) -> None:
    broker = server.connect("A")
    await publish(broker, "w.1", "w.2")
    async with broker.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        server.faults.next_ack(fate)
        for delivery in await reader.receive():
            reader.ack(delivery)
        await trio.sleep(60)


async def fire_with(server: MemoryServer, fate: FireFate) -> None:
    broker = server.connect("A")
    server.faults.next_fire(fate)
    for name in ("x", "healthy"):
        await arm(server, broker, name)
    await trio.sleep(60)


async def arm(server: MemoryServer, broker: MemoryBroker, name: str, due_in: float = 1.0) -> None:
    due = server.scheduler.now() + due_in
    await broker.append(Append(subject=f"s.{name}", schedule=Schedule(due=due, target=f"w.{name}")))


async def purged_replacement(server: MemoryServer) -> None:
    broker = server.connect("A")
    server.faults.next_fire(FireFate(stored_after=0.5))
    await arm(server, broker, "x")
    await trio.sleep(1.2)
    await arm(server, broker, "x", 100.0)
    await trio.sleep(60)


async def lost_delivery(server: MemoryServer) -> None:
    broker = server.connect("A")
    async with broker.open_reader("T", "q", "t.>", ack_wait=30.0) as reader:
        server.faults.next_delivery(DeliveryFate(arrives_after=None))
        await publish(broker, "t.1", "t.2")
        reader.ack((await reader.receive())[0])
        reader.ack((await reader.receive())[0])


async def dead_link(server: MemoryServer) -> None:
    a, b = server.connect("A", faults=FaultPlan(dead_link_for=(5.0, 5.0))), server.connect("B")
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None):
        a.link.drop()
        await publish(b, "w.1")


async def lost_tell(server: MemoryServer) -> None:
    broker = server.connect("A", faults=FaultPlan(lost_tell=1.0))
    broker.tell("x.1", b"")
    server.faults.lost_tell = 0.0
    server.connect("B").tell("x.1", b"")


async def lands_after_loss(server: MemoryServer) -> None:
    broker = server.connect("A", faults=FaultPlan(lands_after_link_loss=1.0))
    broker.link.drop()
    broker.link.drop()
    await try_append(broker)
    await trio.sleep(60)


async def full(server: MemoryServer) -> None:
    broker = server.connect("A")
    await arm(server, broker, "x")
    server.full = True
    await try_append(broker)
    await try_append(broker)
    await trio.sleep(60)


async def forgetful_restart(server: MemoryServer) -> None:
    broker = server.connect("A")
    await publish(broker, *(f"w.{n}" for n in range(5)))
    async with broker.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        for delivery in (await reader.receive())[:3]:
            reader.ack(delivery)
    server.faults.forgotten_delivery = 1.0
    server.restart(forget_acks=2)


async def purge_under_a_consumer(server: MemoryServer) -> None:
    broker = server.connect("A")
    await publish(broker, *(f"w.{n}" for n in range(4)))
    async with broker.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        got = await reader.receive()
        await broker.purge("W", "w.2")
        reader.ack(got[3])
    server.stop()
    server.start()


async def kill_and_pause(server: MemoryServer) -> None:
    server.kill()
    server.kill()
    server.start()
    server.pause()
    server.pause()
    server.resume()


SCENES: list[tuple[Callable[[MemoryServer], Awaitable[None]], dict[str, int]]] = [
    (lambda s: append_with(s, AppendFate(lands_after=9.0)), {"late_append": 1}),
    (lambda s: append_with(s, AppendFate(lands_after=None)), {"dropped_append": 1}),
    (lambda s: append_with(s, AppendFate(answered=False)), {"lost_puback": 1}),
    (lambda s: append_with(s, AppendFate(answer_after=1.0)), {"delayed_answer": 1}),
    (lambda s: append_with(s, AppendFate()), {}),
    (lambda s: read_with(s, ReadFate(stale_by=1)), {"stale_read": 1}),
    (lambda s: read_with(s, ReadFate(incomplete=True)), {"incomplete_read": 1}),
    (lambda s: read_with(s, ReadFate(answered=False)), {"unanswered_read": 1}),
    (lambda s: read_with(s, ReadFate(answer_after=1.0)), {"delayed_answer": 1}),
    (lambda s: ack_with(s, AckFate(lands_after=None)), {"lost_ack": 1}),
    (lambda s: ack_with(s, AckFate(lands_after=5.0)), {"late_ack": 1}),
    (lambda s: fire_with(s, FireFate(late_by=0.2)), {"late_fire": 1}),
    (lambda s: fire_with(s, FireFate(stored_after=0.2)), {"racing_fire": 1}),
    (lambda s: fire_with(s, FireFate(times=2)), {"double_fire": 1}),
    (purged_replacement, {"racing_fire": 1, "purged_replacement": 1}),
    (lost_delivery, {"lost_delivery": 1}),
    (dead_link, {"link_drop": 1, "delivered_into_dead_link": 1}),
    (lost_tell, {"lost_tell": 1}),
    (lands_after_loss, {"link_drop": 1, "lands_after_link_loss": 1}),
    (full, {"full": 2, "full_fire": 1}),
    (forgetful_restart, {"server_kill": 1, "forgotten_ack": 2, "forgotten_delivery": 4}),
    (purge_under_a_consumer, {"server_stop": 1, "forgotten_below_floor": 2}),
    (kill_and_pause, {"server_kill": 1, "server_pause": 1}),
]


@pytest.mark.parametrize(("scene", "wanted"), SCENES, ids=[" ".join(wanted) or "none" for _, wanted in SCENES])
async def test_what_really_happened_is_counted_and_nothing_else(
    autojump_clock: MockClock,
    server: MemoryServer,
    scene: Callable[[MemoryServer], Awaitable[None]],
    wanted: dict[str, int],
) -> None:
    await scene(server)
    assert dict(server.injected) == wanted  # dict: no entry at all for what did not happen


def test_every_kind_has_a_scene() -> None:
    assert {kind for _, wanted in SCENES for kind in wanted} == INJECTED_KINDS


async def test_a_stale_read_that_shows_the_present_all_the_same_is_none(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A", faults=FaultPlan(stale_read=1.0, stale_read_by=1))
    await publish(broker, "h.1", "h.2")
    assert await broker.last("H", "h.1") is not None
    assert await broker.last("H", "h.2", confirmed=True) is not None
    assert server.injected == Counter()
