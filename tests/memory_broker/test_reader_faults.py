"""What can happen to deliveries and acknowledgements."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.memory_broker import AckFate, DeliveryFate, FaultPlan, MemoryBroker, MemoryReader, MemoryServer
from durablefuture_trio.ports.broker import Append, Delivery, ReaderLost


async def receive(reader: MemoryReader, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    with trio.fail_after(3600):
        while len(got) < count:
            got += await reader.receive()
    assert len(got) == count
    return got


def queued(server: MemoryServer, stream: str = "W") -> list[str]:
    return [stored.subject for stored in server.page(stream, ">", 0, 1000)]


async def publish(broker: MemoryBroker, *subjects: str) -> None:
    for subject in subjects:
        await broker.append(Append(subject=subject))


async def test_a_lost_ack_leaves_the_message_in_the_queue(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A", faults=FaultPlan(lost_ack=1.0))
    await publish(broker, "w.1")
    async with broker.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        reader.ack((await receive(reader, 1))[0])
        await trio.sleep(3600)
        assert queued(server) == ["w.1"]
        assert server.consumer_states("W")[0].ack_pending == 1


@pytest.mark.parametrize(("name", "left"), [("own-1", []), ("own-2", ["w.1"])])
async def test_h01_a_late_ack_deletes_the_anchor_of_a_consumer_of_the_same_name_only(
    autojump_clock: MockClock, server: MemoryServer, name: str, left: list[str]
) -> None:
    a, b = server.connect("A"), server.connect("B")
    await publish(a, "w.1")
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as stale:
        [delivery] = await receive(stale, 1)
        server.faults.next_ack(AckFate(lands_after=10.0))
        stale.ack(delivery)
        await b.delete_consumer("W", "own-1")
        async with b.open_reader("W", name, "w.>", ack_wait=None) as fresh:
            await receive(fresh, 1)
            assert queued(server) == ["w.1"]
            await trio.sleep(11)
            assert queued(server) == left


async def test_h01_acks_of_a_lost_link_may_be_sent_when_it_is_back(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    plan = FaultPlan(lands_after_link_loss=1.0, lands_after_link_loss_by=(5.0, 5.0))
    broker = server.connect("A", faults=plan)
    await publish(broker, "w.1")
    async with broker.open_reader("W", "inbox", "w.>", ack_wait=None) as reader:
        [delivery] = await receive(reader, 1)
        broker.link.drop(restore_after=1.0)
        reader.ack(delivery)
    await trio.sleep(2)
    await broker.delete_consumer("W", "inbox")
    async with broker.open_reader("W", "inbox", "w.>", ack_wait=None) as reader:
        await receive(reader, 1)
        await trio.sleep(5)
        assert queued(server) == []


async def test_h06_a_delivery_lost_while_the_link_holds_shows_as_a_gap_at_the_next_one(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    async with broker.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        server.faults.next_delivery(DeliveryFate(arrives_after=None), subject="w.2")
        await publish(broker, "w.1", "w.2", "w.3")
        assert [delivery.subject for delivery in await reader.receive()] == ["w.1"]
        with pytest.raises(ReaderLost) as caught:
            await reader.receive()
        assert caught.value.reason == "gap"
        assert trio.current_time() < 1
    assert queued(server) == ["w.1", "w.2", "w.3"]


async def test_h06_a_delivery_lost_at_the_end_shows_at_the_next_heartbeat(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    async with broker.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        server.faults.next_delivery(DeliveryFate(arrives_after=None))
        await publish(broker, "w.1")
        with trio.fail_after(10), pytest.raises(ReaderLost) as caught:
            await reader.receive()
        assert caught.value.reason == "gap"


async def test_lost_deliveries_and_late_acks_hit_their_share(autojump_clock: MockClock, server: MemoryServer) -> None:
    plan = FaultPlan(lost_delivery=0.5, late_ack=0.5, late_ack_by=(5.0, 6.0))
    a, b = server.connect("A", faults=plan), server.connect("B")
    await publish(b, *(f"t.{n}" for n in range(200)))
    async with a.open_reader("T", "q", "t.>", ack_wait=60.0) as reader:
        got = await reader.receive()
        assert 70 <= len(got) <= 130
        for delivery in got:
            reader.ack(delivery)
        at_once = 200 - len(queued(server, "T"))
        assert 0.3 * len(got) < at_once < 0.7 * len(got)
        await trio.sleep(6.5)
        assert 200 - len(queued(server, "T")) == len(got)


async def test_a_lost_delivery_of_a_shared_consumer_comes_again_after_the_wait(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    async with broker.open_reader("T", "q", "t.>", ack_wait=30.0) as reader:
        server.faults.next_delivery(DeliveryFate(arrives_after=None), subject="t.1")
        await publish(broker, "t.1", "t.2")
        got = await receive(reader, 1)
        reader.ack(got[0])
        got += await receive(reader, 1)
        assert [(delivery.subject, delivery.delivered) for delivery in got] == [("t.2", 1), ("t.1", 2)]
        assert trio.current_time() == pytest.approx(30.0)


async def test_h06_a_dead_link_swallows_deliveries_for_a_while(autojump_clock: MockClock, server: MemoryServer) -> None:
    a, b = server.connect("A", faults=FaultPlan(dead_link_for=(5.0, 5.0))), server.connect("B")
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        a.link.drop(restore_after=1.0)
        await publish(b, "w.swallowed")
        with pytest.raises(ReaderLost):
            await reader.receive()
    await trio.sleep(10)
    await publish(b, "w.later")
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        assert [delivery.subject for delivery in await receive(reader, 1)] == ["w.later"]
    await a.delete_consumer("W", "own-1")
    async with a.open_reader("W", "own-2", "w.>", ack_wait=None) as reader:
        assert [delivery.subject for delivery in await receive(reader, 2)] == ["w.swallowed", "w.later"]


async def test_deliveries_keep_their_order_under_latency(autojump_clock: MockClock, server: MemoryServer) -> None:
    a, b = server.connect("A", faults=FaultPlan(latency=(0.0, 0.5))), server.connect("B")
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        await publish(b, *(f"w.{n}" for n in range(50)))
        assert [delivery.seq for delivery in await receive(reader, 50)] == list(range(1, 51))


async def test_h10_a_killed_server_forgets_recent_acks_and_no_stored_message(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    await publish(broker, *(f"w.{n}" for n in range(5)), "h.1")
    async with broker.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        for delivery in (await receive(reader, 5))[:4]:
            reader.ack(delivery)
        await trio.sleep(1)
    assert queued(server) == ["w.4"]
    server.restart(forget_acks=2)
    assert queued(server) == ["w.2", "w.3", "w.4"]
    assert queued(server, "H") == ["h.1"]
    await broker.delete_consumer("W", "own-1")
    async with broker.open_reader("W", "own-2", "w.>", ack_wait=None) as reader:
        assert [(d.subject, d.delivered) for d in await receive(reader, 3)] == [("w.2", 1), ("w.3", 1), ("w.4", 1)]
    last = await broker.last("W", "w.>", confirmed=True)
    assert last is not None
    assert last.subject == "w.4"


async def test_forgotten_acks_and_deliveries_hit_their_share(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    await publish(broker, *(f"t.{n}" for n in range(200)))
    async with broker.open_reader("T", "q", "t.>", ack_wait=None) as reader:
        for delivery in (await receive(reader, 200))[:100]:
            reader.ack(delivery)
    assert len(queued(server, "T")) == 100
    server.faults.forgotten_ack = 0.5
    server.faults.forgotten_delivery = 0.5
    server.restart()
    assert 130 <= len(queued(server, "T")) <= 170
    [state] = server.consumer_states("T")
    assert state.ack_pending + state.pending == len(queued(server, "T"))
    assert 45 <= state.pending <= 110
    async with broker.open_reader("T", "q", "t.>", ack_wait=None) as reader:
        again = await receive(reader, state.pending)
    assert {delivery.delivered for delivery in again} == {1}
    assert [delivery.seq for delivery in again] == sorted(delivery.seq for delivery in again)


async def test_opening_a_reader_whose_answer_never_comes_leaves_nobody_swallowing_messages(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    a, b = server.connect("A"), server.connect("B")
    server.pause()
    with trio.move_on_after(1):
        async with a.open_reader("W", "own-1", "w.>", ack_wait=None):
            raise AssertionError("opened without an answer")
    server.resume()
    await publish(b, "w.1")
    [state] = server.consumer_states("W")
    assert (state.ack_pending, state.pending) == (0, 1)


async def test_core_messages_get_lost(autojump_clock: MockClock, server: MemoryServer) -> None:
    a, b = server.connect("A", faults=FaultPlan(lost_tell=0.5)), server.connect("B")
    async with b.listen("x.>") as channel:
        for _ in range(100):
            a.tell("x.1", b"")
        await trio.sleep(1)
        assert 30 <= channel.statistics().current_buffer_used <= 70
