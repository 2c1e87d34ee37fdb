"""Core messages (hints), and the state of the link."""

from __future__ import annotations

import pytest
import trio

from durablefuture_trio.ports.broker import Append, Conflict, Message
from tests._support.broker_servers import DEADLINE_S, ServerUnderTest, until_link
from tests.contract.conftest import BrokerPair


async def receive(channel: trio.MemoryReceiveChannel[Message], count: int) -> list[Message]:
    with trio.fail_after(DEADLINE_S):
        return [await channel.receive() for _ in range(count)]


async def test_who_listens_when_entered_hears_what_is_told(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    async with b.listen("x.*") as channel, a.listen("x.>") as own:
        a.tell("x.1", b"body", {"K": "v"})
        a.tell("y.1", b"other")
        a.tell("x.2.3", b"deeper")
        a.tell("x.4", b"last")
        assert [(m.subject, m.body, dict(m.headers)) for m in await receive(channel, 2)] == [
            ("x.1", b"body", {"K": "v"}),
            ("x.4", b"last", {}),
        ]
        assert [m.subject for m in await receive(own, 3)] == ["x.1", "x.2.3", "x.4"]


async def test_who_has_left_hears_nothing_and_telling_nobody_is_no_error(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    async with b.listen("x.>") as gone:
        pass
    a.tell("x.1", b"")
    await a.consumers("H")  # the server has read what came before on this link
    async with b.listen("x.>") as channel:
        a.tell("x.2", b"")
        assert [m.subject for m in await receive(channel, 1)] == ["x.2"]
    with pytest.raises(trio.ClosedResourceError):
        gone.receive_nowait()


async def test_a_listener_that_is_too_slow_loses_the_oldest(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    count = 10_000
    async with b.listen("x.>") as slow, b.listen("x.>") as quick:
        for n in range(count):
            a.tell("x.1", b"%d" % n)
            if n % 1000 == 0:
                await receive(quick, 1 if n == 0 else 1000)
        rest = await receive(quick, 999)
        assert rest[-1].body == b"%d" % (count - 1)
        kept = [int(slow.receive_nowait().body) for _ in range(slow.statistics().current_buffer_used)]
    assert 0 < len(kept) < count
    assert kept == list(range(count - len(kept), count))


async def test_u11_publishes_are_visible_to_core_subscribers_even_if_they_are_refused(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    async with b.listen("h.>") as channel:
        await a.append(Append(subject="h.x", body=b"stored", expect_last=0))
        with pytest.raises(Conflict):
            await a.append(Append(subject="h.x", body=b"refused", expect_last=0))
        assert [m.body for m in await receive(channel, 2)] == [b"stored", b"refused"]


async def test_a_core_message_on_a_streams_subject_is_stored(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    a.tell("h.x", b"told")
    await a.append(Append(subject="h.y"))
    stored = await b.last("H", "h.x")
    assert stored is not None
    assert stored.body == b"told"


async def test_the_link_tells_every_change(broker_pair: BrokerPair, server: ServerUnderTest) -> None:
    a, b = broker_pair
    assert a.link.up
    first = a.link.generation
    server.drop_link(a)
    with trio.fail_after(DEADLINE_S):
        second = await a.link.changed(first)
    assert second == first + 1
    assert not a.link.up
    assert b.link.up
    server.mend_link(a)
    with trio.fail_after(DEADLINE_S):
        third = await a.link.changed(second)
    assert third == second + 1
    assert a.link.up
    assert await a.link.changed(first) == third


async def test_a_listener_hears_again_after_the_link_is_back(broker_pair: BrokerPair, server: ServerUnderTest) -> None:
    a, b = broker_pair
    async with b.listen("x.>") as channel:
        server.drop_link(b)
        await until_link(b, up=False)
        a.tell("x.1", b"unheard")
        await a.append(Append(subject="h.x"))  # so that it has been passed on before the link is back
        server.mend_link(b)
        await until_link(b, up=True)
        await b.append(Append(subject="h.y"))  # so that it is subscribed again
        a.tell("x.2", b"heard")
        assert [m.body for m in await receive(channel, 1)] == [b"heard"]


async def test_the_limits_are_those_of_the_server(broker_pair: BrokerPair) -> None:
    limits = broker_pair.a.limits
    assert limits.max_payload_bytes == 1024 * 1024
    assert tuple(int(part) for part in limits.server_version.split(".")[:2]) >= (2, 12)


async def test_one_link_lost_leaves_the_other_at_work(broker_pair: BrokerPair, server: ServerUnderTest) -> None:
    a, b = broker_pair
    server.drop_link(a)
    await until_link(a, up=False)
    assert await b.append(Append(subject="h.x", expect_last=0)) == 1
    server.mend_link(a)
    await until_link(a, up=True)
    with pytest.raises(Conflict):
        await a.append(Append(subject="h.x", expect_last=0))
