"""A store without room: what is refused, what is admitted all the same, and what becomes of schedules."""

from __future__ import annotations

import time

import msgspec
import pytest
import trio

from durablefuture_trio.ports.broker import Append, Conflict, Rejected, Schedule, StoreFull, StreamSpec
from tests._support.broker_servers import STREAMS, ServerUnderTest, until, until_link
from tests.contract.conftest import BrokerPair
from tests.contract.differential import restart_in_good_order
from tests.contract.test_readers import consumer, receive, stored
from tests.contract.test_schedules import fired, held, schedule

LARGE = b"x" * 3000


async def test_a_full_store_refuses_and_takes_up_again_when_there_is_room(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    first = await a.append(Append(subject="h.x", body=b"before"))
    await server.fill_store(b)
    with pytest.raises(StoreFull):
        await a.append(Append(subject="h.x", body=b"x" * 100))
    with pytest.raises(Conflict):
        await a.append(Append(subject="h.x", body=b"x" * 100, expect_last=first + 7))
    stored = await a.last("H", "h.x")
    assert stored is not None
    assert stored.body == b"before"
    await server.free_store(b)
    assert await a.append(Append(subject="h.x", body=b"after", expect_last=first)) == first + 1


async def test_every_kind_of_publish_is_refused_and_stores_nothing(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await a.append(Append(subject="r.1", body=LARGE))
    armed = await a.append(schedule("x", 3600.0, LARGE))
    await server.fill_store(b)
    for append in (
        Append(subject="h.1", body=LARGE),
        Append(subject="h.1", body=LARGE, expect_last=0, message_id="new"),
        Append(subject="r.1", body=LARGE),  # although it would take the place of the one before
        schedule("y", 3600.0, LARGE),
        schedule("x", 3600.0, LARGE, expect_last=armed),
        Append(subject="s.x", neutralise=True),
    ):
        with pytest.raises(StoreFull):
            await a.append(append)
    a.tell("h.told", LARGE)
    assert await b.last("H", "h.>", confirmed=True) is None
    assert await held(b, "s.>") == [LARGE]
    await server.free_store(b)
    assert await a.append(Append(subject="h.1", body=LARGE, expect_last=0, message_id="new")) == 1


async def test_what_needs_no_room_is_answered_as_ever(broker_pair: BrokerPair, server: ServerUnderTest) -> None:
    a, b = broker_pair
    await a.append(Append(subject="h.1", message_id="m"))
    await server.fill_store(b)
    assert await a.append(Append(subject="h.1", body=LARGE, message_id="m")) == 1
    with pytest.raises(Conflict):
        await a.append(Append(subject="h.1", body=LARGE, expect_last=7))
    for append in (
        schedule("x", 3600.0, LARGE, headers={}),
        Append(subject="h.1", body=LARGE, neutralise=True),
        Append(subject="nowhere", body=LARGE),
    ):
        wrong = msgspec.structs.replace(append, schedule=append.schedule and Schedule(due=1.0, target="h.1"))
        with pytest.raises(Rejected):
            await a.append(wrong)


async def test_a_full_store_takes_acks_deletions_purges_and_new_consumers_and_streams(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    for n in range(4):
        await a.append(Append(subject=f"w.{n}"))
    for n in range(4):
        await a.append(Append(subject=f"h.{n % 2}"))
    await server.fill_store(b)
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        got = await receive(reader, 4)
        for delivery in got[:3]:
            reader.ack(delivery)

        async def acknowledged() -> bool:
            return await stored(a, "W") == 1

        await until(acknowledged)
        assert (await consumer(a, "W", "own-1")).ack_pending == 1
    assert await a.delete_consumer("W", "own-1") is True
    assert await a.delete("H", 1) is True
    assert await a.purge("H", "h.1", keep=1) == 1
    await a.provision([StreamSpec(name="NEW", subjects=("new.>",)), *STREAMS])
    assert [held.seq async for held in a.scan("H", "h.>")] == [3, 4]


async def test_h19_a_schedule_stuck_by_a_full_store_fires_when_it_is_published_again(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await stick(broker_pair, server)
    await a.append(schedule("x", -1.0, b"again"))
    assert (await fired(b, "x")).body == b"again"
    await restart_in_good_order(server, a, b)
    await a.append(schedule("y", 0.5, b"y"))
    await fired(b, "y")
    assert await held(b, "w.x") == [b"again"]


@pytest.mark.parametrize("how", ["deleted", "neutralised"])
async def test_h19_a_schedule_stuck_by_a_full_store_and_taken_away_never_fires(
    broker_pair: BrokerPair, server: ServerUnderTest, how: str
) -> None:
    a, b = broker_pair
    seq = await stick(broker_pair, server)
    if how == "deleted":
        assert await a.delete("W", seq) is True
    else:
        await a.append(Append(subject="s.x", neutralise=True))
    await server.kill()
    await server.start()
    for broker in broker_pair:
        await until_link(broker, up=True)
    await a.append(schedule("y", 0.5, b"y"))
    await fired(b, "y")
    assert await held(b, "w.x") == []


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_h19_a_schedule_due_while_the_store_is_full_never_fires_until_the_server_restarts(
    broker_pair: BrokerPair, server: ServerUnderTest, end: str
) -> None:
    a, b = broker_pair
    await stick(broker_pair, server)
    assert await held(b, "s.x") == [b"x"]
    if end == "stop":
        await restart_in_good_order(server, a, b)
    else:
        await server.kill()
        await server.start()
        await until_link(b, up=True)
    assert (await fired(b, "x")).body == b"x"


async def stick(broker_pair: BrokerPair, server: ServerUnderTest) -> int:
    """A schedule ``x`` that came due while the store was full, which has room again; its sequence."""
    a, b = broker_pair
    for due_in in (1.0, 3.0, 9.0):
        seq = await a.append(schedule("x", due_in, b"x"))
        due = time.time() + due_in
        await server.fill_store(b)
        if time.time() < due - 0.1:
            break
        await server.free_store(b)  # too late, on a busy machine: it may have fired, or be stuck
        with trio.move_on_after(2.0):
            await fired(b, "x")
        await a.purge("W", ">")
    await trio.sleep(due - time.time() + 0.6)
    await server.free_store(b)
    await a.append(schedule("z", 0.3, b"z"))
    await fired(b, "z")
    assert await held(b, "w.x") == []
    return seq
