"""Durable consumers: delivery, acknowledgement, redelivery, sharing, and how a reader learns that it is lost."""

from __future__ import annotations

import pytest
import trio

from durablefuture_trio.ports.broker import (
    Append,
    Broker,
    ConsumerConflict,
    ConsumerState,
    Delivery,
    NoAnswer,
    Reader,
    ReaderLost,
    Rejected,
)
from tests._support.broker_servers import DEADLINE_S, ServerUnderTest, publish_all, until, until_link
from tests.contract.conftest import BrokerPair
from tests.contract.differential import restart_in_good_order


async def receive(reader: Reader, count: int) -> list[Delivery]:
    """Exactly so many deliveries."""
    got: list[Delivery] = []
    with trio.fail_after(DEADLINE_S):
        while len(got) < count:
            got += await reader.receive()
    assert len(got) == count
    return got


async def lost(reader: Reader) -> str:
    """Why a reader is lost, whatever it still delivers before."""
    with trio.fail_after(DEADLINE_S):
        while True:
            try:
                await reader.receive()
            except ReaderLost as error:
                return error.reason


async def consumer(broker: Broker, stream: str, name: str) -> ConsumerState:
    [found] = [state for state in await broker.consumers(stream) if state.name == name]
    return found


async def publish(broker: Broker, subject: str, count: int, size: int = 1) -> None:
    for n in range(count):
        await broker.append(Append(subject=f"{subject}.{n}", body=b"x" * size))


async def stored(broker: Broker, stream: str) -> int:
    state = await broker.stream_state(stream)
    assert state is not None
    return state.messages


async def test_a_reader_gets_what_was_there_and_what_comes_in_stream_order(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    first = await a.append(Append(subject="w.1.start", body=b"1", headers={"K": "v"}))
    await a.append(Append(subject="w.2.start", body=b"2"))
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        got = await receive(reader, 2)
        await a.append(Append(subject="w.1.signal", body=b"3"))
        got += await receive(reader, 1)
    assert [(d.subject, d.seq, d.body, d.delivered) for d in got] == [
        ("w.1.start", first, b"1", 1),
        ("w.2.start", first + 1, b"2", 1),
        ("w.1.signal", first + 2, b"3", 1),
    ]
    assert [d.pending for d in got] == [1, 0, 0]
    assert dict(got[0].headers) == {"K": "v"}
    assert dict(got[1].headers) == {}
    held = await a.last("W", "w.1.start")
    assert held is not None
    assert abs(held.time - got[0].time) < 0.001


async def test_a_reader_gets_only_the_subjects_it_asked_for(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for subject in ("t.other.1", "t.mail.1", "t.mail.x.2"):
        await a.append(Append(subject=subject))
    async with b.open_reader("T", "mail", "t.mail.>", ack_wait=None) as reader:
        assert [d.subject for d in await receive(reader, 2)] == ["t.mail.1", "t.mail.x.2"]


async def test_an_acknowledged_message_leaves_the_work_queue(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "w", 3)
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        got = await receive(reader, 3)
        reader.ack(got[1])

        async def one_has_gone() -> bool:
            return await stored(a, "W") == 2

        await until(one_has_gone)
        assert [left.subject async for left in a.scan("W", "w.>")] == ["w.0", "w.2"]
        assert await consumer(a, "W", "own-1") == ConsumerState(name="own-1", ack_pending=2, pending=0)


async def test_acknowledging_twice_or_something_deleted_does_no_harm(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "w", 2)
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        got = await receive(reader, 2)
        await a.delete("W", got[0].seq)
        for delivery in (*got, *got):
            reader.ack(delivery)

        async def all_have_gone() -> bool:
            return await stored(a, "W") == 0

        await until(all_have_gone)
        await a.append(Append(subject="w.later"))
        assert [d.subject for d in await receive(reader, 1)] == ["w.later"]


async def test_an_acknowledged_message_stays_in_a_stream_that_keeps_all(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "h", 1)
    async with b.open_reader("H", "follower", "h.>", ack_wait=None) as reader:
        reader.ack((await receive(reader, 1))[0])

        async def acknowledged() -> bool:
            return (await consumer(a, "H", "follower")).ack_pending == 0

        await until(acknowledged)
    assert await stored(a, "H") == 1


async def test_two_consumers_of_a_stream_that_keeps_all_both_get_everything(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "h", 2)
    async with (
        a.open_reader("H", "one", "h.>", ack_wait=None) as one,
        b.open_reader("H", "two", "h.>", ack_wait=None) as two,
    ):
        assert [d.seq for d in await receive(one, 2)] == [d.seq for d in await receive(two, 2)] == [1, 2]


async def test_an_unacknowledged_message_is_delivered_again_after_the_acknowledgement_wait(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    await publish(a, "t", 2)
    async with b.open_reader("T", "q", "t.>", ack_wait=0.5) as reader:
        first = await receive(reader, 2)
        reader.ack(first[0])
        again = await receive(reader, 1)
        assert [(d.seq, d.delivered) for d in again] == [(first[1].seq, 2)]
        reader.ack(again[0])

        async def acknowledged() -> bool:
            return await stored(a, "T") == 0

        await until(acknowledged)


async def test_h22_a_wait_that_ends_while_the_server_is_away_is_a_second_delivery_when_it_is_back(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await publish(a, "t", 1)
    async with b.open_reader("T", "q", "t.>", ack_wait=0.6) as reader:
        await receive(reader, 1)
        await server.kill()
        await trio.sleep(0.8)  # until the wait is over
    await server.start()
    await until_link(b, up=True)
    async with b.open_reader("T", "q", "t.>", ack_wait=0.6) as reader:
        [again] = await receive(reader, 1)
    # A killed server may have forgotten the first delivery: the count is no proof that nobody had the message.
    assert again.subject == "t.0"
    assert again.delivered in (1, 2)


async def test_in_progress_starts_the_wait_anew(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "t", 1)
    async with b.open_reader("T", "q", "t.>", ack_wait=1.0) as reader:
        [first] = await receive(reader, 1)
        begun = trio.current_time()
        for _ in range(6):
            await trio.sleep(0.3)  # the passing time itself is the subject here
            reader.in_progress(first)
        [again] = await receive(reader, 1)
        assert again.delivered == 2
        assert trio.current_time() - begun > 2.5


async def test_without_a_wait_nothing_is_delivered_again(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "w", 1)
    async with (
        b.open_reader("W", "own-1", "w.>", ack_wait=None) as patient,
        b.open_reader("T", "q", "t.>", ack_wait=0.4) as impatient,
    ):
        await receive(patient, 1)
        await publish(a, "t", 1)
        for delivered in (1, 2, 3):  # meanwhile a short wait expires twice
            assert [d.delivered for d in await receive(impatient, 1)] == [delivered]
        await a.append(Append(subject="w.next"))
        assert [d.subject for d in await receive(patient, 1)] == ["w.next"]


async def test_two_readers_share_a_consumer_and_each_message_goes_to_one(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    async with (
        a.open_reader("T", "q", "t.>", ack_wait=30.0) as one,
        b.open_reader("T", "q", "t.>", ack_wait=30.0) as two,
        trio.open_nursery() as nursery,
    ):
        got: dict[str, list[int]] = {"one": [], "two": []}

        async def work(name: str, reader: Reader) -> None:
            while True:
                for delivery in await reader.receive():
                    got[name].append(delivery.seq)
                    reader.ack(delivery)

        nursery.start_soon(work, "one", one)
        nursery.start_soon(work, "two", two)
        await publish(a, "t", 60)

        async def all_done() -> bool:
            return await stored(a, "T") == 0

        await until(all_done)
        nursery.cancel_scope.cancel()
    assert sorted(got["one"] + got["two"]) == list(range(1, 61))
    assert got["one"]
    assert got["two"]


async def test_no_more_than_max_ack_pending_are_out_at_once(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "t", 5)
    async with b.open_reader("T", "q", "t.>", ack_wait=30.0, max_ack_pending=2) as reader:
        got = await receive(reader, 2)
        assert await consumer(a, "T", "q") == ConsumerState(name="q", ack_pending=2, pending=3)
        reader.ack(got[0])
        got += await receive(reader, 1)
        assert [d.seq for d in got] == [1, 2, 3]
        assert (await consumer(a, "T", "q")).ack_pending == 2


async def test_h07_without_a_limit_thousands_may_be_unacknowledged(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish_all(a, [Append(subject=f"w.{n}") for n in range(3001)])
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        got = await receive(reader, 3001)
    assert [d.seq for d in got] == list(range(1, 3002))


async def test_credit_bounds_what_the_server_sends_ahead(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    size = 200_000
    await publish(a, "w", 40, size)
    limit = max(1_000_000, a.limits.max_payload_bytes) // size + 2
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None, credit_bytes=1_000_000) as reader:
        seen = [-1, -2]

        async def it_has_stopped() -> bool:
            seen.append((await consumer(a, "W", "own-1")).ack_pending)
            return seen[-1] > 0 and len(set(seen[-5:])) == 1

        await until(it_has_stopped)
        assert seen[-1] <= limit
        got = await receive(reader, 40)
    assert [d.seq for d in got] == list(range(1, 41))


async def test_u07_a_message_larger_than_the_credit_is_delivered(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await a.append(Append(subject="w.small", body=b"x"))
    await a.append(Append(subject="w.large", body=b"x" * 500_000))
    await a.append(Append(subject="w.small", body=b"x"))
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None, credit_bytes=1000) as reader:
        assert [len(d.body) for d in await receive(reader, 3)] == [1, 500_000, 1]


async def test_leaving_a_reader_keeps_its_consumer_and_what_it_had(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "w", 2)
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        await receive(reader, 2)
    assert [state.name for state in await a.consumers("W")] == ["own-1"]
    await a.append(Append(subject="w.next"))
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        assert [d.subject for d in await receive(reader, 1)] == ["w.next"]
    assert await stored(a, "W") == 3


async def test_opening_a_consumer_with_other_settings_is_rejected(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    async with a.open_reader("T", "q", "t.>", ack_wait=30.0):
        with pytest.raises(Rejected):
            async with b.open_reader("T", "q", "t.>", ack_wait=7.0):
                pass
        with pytest.raises(Rejected):
            async with b.open_reader("T", "q", "t.other", ack_wait=30.0):
                pass


@pytest.mark.parametrize("subject", ["w.>", "w.1.start", "w.*.start", ">", "w.1.>"])
async def test_u10_consumers_of_a_work_queue_must_not_overlap(broker_pair: BrokerPair, subject: str) -> None:
    a, b = broker_pair
    async with a.open_reader("W", "own-1", "w.1.*", ack_wait=None):
        with pytest.raises(ConsumerConflict):
            async with b.open_reader("W", "own-2", subject, ack_wait=None):
                pass
        assert [state.name for state in await b.consumers("W")] == ["own-1"]


async def test_u10_consumers_of_disjoint_subjects_of_a_work_queue_live_side_by_side(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    async with (
        a.open_reader("T", "one", "t.one.>", ack_wait=30.0) as one,
        b.open_reader("T", "two", "t.two.>", ack_wait=30.0) as two,
    ):
        await publish(a, "t.two", 1)
        await publish(a, "t.one", 1)
        assert [d.subject for d in await receive(one, 1)] == ["t.one.0"]
        assert [d.subject for d in await receive(two, 1)] == ["t.two.0"]
    assert sorted(state.name for state in await a.consumers("T")) == ["one", "two"]


async def test_a_reader_whose_consumer_is_deleted_is_lost(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        # Its pull has reached the server: a delete that overtakes the first one is noticed as silence only.
        await publish(b, "w.1", 1)
        await receive(reader, 1)
        assert await b.delete_consumer("W", "own-1") is True
        assert await lost(reader) == "deleted"
        with pytest.raises(ReaderLost):
            await reader.receive()
    assert await b.delete_consumer("W", "own-1") is False
    assert await b.consumers("W") == []


async def test_h01_a_recreated_consumer_delivers_everything_unacknowledged_anew_with_count_one(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    await publish(a, "w", 3)
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        got = await receive(reader, 3)
        reader.ack(got[1])

        async def one_has_gone() -> bool:
            return await stored(a, "W") == 2

        await until(one_has_gone)
    await b.delete_consumer("W", "own-1")
    assert await stored(b, "W") == 2
    async with b.open_reader("W", "own-2", "w.>", ack_wait=None) as reader:
        assert [(d.subject, d.delivered) for d in await receive(reader, 2)] == [("w.0", 1), ("w.2", 1)]


async def test_h01_a_late_ack_reaches_a_consumer_recreated_under_the_same_name(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "w", 1)
    async with a.open_reader("W", "inbox", "w.>", ack_wait=None) as stale:
        [old] = await receive(stale, 1)
        await b.delete_consumer("W", "inbox")
        async with b.open_reader("W", "inbox", "w.>", ack_wait=None) as fresh:
            await receive(fresh, 1)
            stale.ack(old)

            async def it_has_gone() -> bool:
                return await stored(b, "W") == 0

            await until(it_has_gone)


async def test_h01_a_late_ack_to_a_consumer_of_another_name_reaches_nothing(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "w", 2)
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as stale:
        old = await receive(stale, 2)
        await b.delete_consumer("W", "own-1")
        async with b.open_reader("W", "own-2", "w.>", ack_wait=None) as fresh:
            new = await receive(fresh, 2)
            stale.ack(old[0])
            # Sent on the same link after it, so the stale one has been dealt with when this one shows.
            a_marker = await a.append(Append(subject="h.marker"))
            assert a_marker == 1
            fresh.ack(new[1])

            async def the_other_has_gone() -> bool:
                return await stored(b, "W") == 1

            await until(the_other_has_gone)
            assert [left.subject async for left in b.scan("W", "w.>")] == ["w.0"]


async def test_an_ack_for_a_message_the_recreated_consumer_has_not_delivered_reaches_nothing(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    await publish(a, "w", 2)
    async with a.open_reader("W", "inbox", "w.>", ack_wait=None, max_ack_pending=2) as stale:
        old = await receive(stale, 2)
        await b.delete_consumer("W", "inbox")
        async with b.open_reader("W", "inbox", "w.>", ack_wait=None, max_ack_pending=1) as fresh:
            await receive(fresh, 1)
            stale.ack(old[1])
            await a.append(Append(subject="h.marker"))
            assert await consumer(b, "W", "inbox") == ConsumerState(name="inbox", ack_pending=1, pending=1)
            assert await stored(b, "W") == 2


async def test_a_reader_whose_link_breaks_is_lost(broker_pair: BrokerPair, server: ServerUnderTest) -> None:
    a, _ = broker_pair
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        server.drop_link(a)
        assert await lost(reader) == "link"
        server.mend_link(a)
        await until_link(a, up=True)
        with pytest.raises(ReaderLost):
            await reader.receive()
        async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as again:
            await a.append(Append(subject="w.1"))
            assert [d.subject for d in await receive(again, 1)] == ["w.1"]


async def test_a_reader_whose_server_stalls_is_lost(broker_pair: BrokerPair, server: ServerUnderTest) -> None:
    a, _ = broker_pair
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        server.pause()
        assert await lost(reader) in ("silent", "link")
        server.resume()


async def test_a_reader_is_lost_when_its_server_dies_and_the_consumer_survives(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await publish(a, "w", 1)
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        await receive(reader, 1)
        await server.kill()
        assert await lost(reader) == "link"
    await server.start()
    for broker in broker_pair:
        await until_link(broker, up=True)
    assert [state.name for state in await b.consumers("W")] == ["own-1"]
    await b.delete_consumer("W", "own-1")
    async with b.open_reader("W", "own-2", "w.>", ack_wait=None) as reader:
        assert [d.subject for d in await receive(reader, 1)] == ["w.0"]


async def test_a_reader_cannot_be_opened_without_a_link(broker_pair: BrokerPair, server: ServerUnderTest) -> None:
    a, _ = broker_pair
    server.drop_link(a)
    await until_link(a, up=False)
    with pytest.raises(NoAnswer):
        async with a.open_reader("W", "own-1", "w.>", ack_wait=None):
            pass


async def test_h06_what_was_delivered_into_a_dying_link_never_comes_again_on_that_consumer(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        await b.append(Append(subject="w.seen"))
        await receive(reader, 1)
        server.deafen_link(a)
        await b.append(Append(subject="w.unseen"))

        async def it_counts_as_delivered() -> bool:
            return await consumer(b, "W", "own-1") == ConsumerState(name="own-1", ack_pending=2, pending=0)

        await until(it_counts_as_delivered)
        server.drop_link(a)
        assert await lost(reader) == "link"
    server.mend_link(a)
    await until_link(a, up=True)
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        await b.append(Append(subject="w.next"))
        assert [d.subject for d in await receive(reader, 1)] == ["w.next"]
    await a.delete_consumer("W", "own-1")
    async with a.open_reader("W", "own-2", "w.>", ack_wait=None) as reader:
        assert [d.subject for d in await receive(reader, 3)] == ["w.seen", "w.unseen", "w.next"]


async def test_h10_a_retry_with_the_same_message_id_after_consumption_is_a_duplicate_and_not_delivered(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    first = await a.append(Append(subject="w.1.start", message_id="request"))
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        reader.ack((await receive(reader, 1))[0])

        async def it_has_gone() -> bool:
            return await stored(a, "W") == 0

        await until(it_has_gone)
        assert await a.append(Append(subject="w.1.start", message_id="request")) == first
        await a.append(Append(subject="w.2.start"))
        assert [d.subject for d in await receive(reader, 1)] == ["w.2.start"]


async def test_a_message_deleted_before_it_was_delivered_is_passed_over(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "w", 3)
    await a.delete("W", 2)
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        assert [d.seq for d in await receive(reader, 2)] == [1, 3]


async def test_a_deleted_delivery_no_longer_waits_for_its_acknowledgement(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "t", 2)
    async with b.open_reader("T", "q", "t.>", ack_wait=30.0) as reader:
        got = await receive(reader, 2)
        await a.delete("T", got[0].seq)

        async def one_is_left() -> bool:
            return (await consumer(a, "T", "q")).ack_pending == 1

        await until(one_is_left)


async def test_a_reader_that_is_cancelled_while_waiting_loses_nothing(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        for n in range(30):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(a.append, Append(subject=f"w.{n}"))
                    scope.deadline = trio.current_time() + 0.0005 * n
                    await trio.sleep_forever()
        last = await a.append(Append(subject="w.last"))
        got: list[Delivery] = []
        with trio.fail_after(DEADLINE_S):
            while not got or got[-1].seq != last:
                with trio.move_on_after(0.0005):
                    got += await reader.receive()
    assert [d.seq for d in got] == list(range(1, last + 1))


async def test_h01_a_late_ack_removes_what_a_consumer_of_the_same_name_has_only_come_past(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    await publish(a, "w", 2)
    async with a.open_reader("W", "inbox", "w.>", ack_wait=None) as stale:
        old = await receive(stale, 2)
        await b.delete_consumer("W", "inbox")
        async with b.open_reader("W", "inbox", "s.>", ack_wait=None) as fresh:
            await b.append(Append(subject="s.x"))
            await receive(fresh, 1)
            stale.ack(old[0])  # never delivered to this one, which does not even want it

            async def it_has_gone() -> bool:
                return await stored(b, "W") == 2

            await until(it_has_gone)
            assert [left.subject async for left in b.scan("W", ">")] == ["w.1", "s.x"]


async def test_h10_a_killed_server_may_have_forgotten_acks_and_deliveries_and_nothing_else(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await publish(a, "w", 30)
    async with a.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        got = await receive(reader, 30)
        for delivery in got[::2]:
            reader.ack(delivery)

        async def all_acknowledged() -> bool:
            return await stored(b, "W") == 15

        await until(all_acknowledged)
        await server.kill()
        assert await lost(reader) == "link"
    await server.start()
    for broker in broker_pair:
        await until_link(broker, up=True)
    left = [message.seq async for message in b.scan("W", "w.>")]
    assert {delivery.seq for delivery in got[1::2]} <= set(left) <= {delivery.seq for delivery in got}
    state = await consumer(b, "W", "own-1")
    assert state.ack_pending + state.pending <= 30
    await b.delete_consumer("W", "own-1")
    async with b.open_reader("W", "own-2", "w.>", ack_wait=None) as reader:
        assert [(d.seq, d.delivered) for d in await receive(reader, len(left))] == [(seq, 1) for seq in left]


async def test_a_server_that_stops_in_good_order_remembers_acks_deliveries_and_counts(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await publish(a, "t", 6)
    async with a.open_reader("T", "q", "t.>", ack_wait=0.5) as reader:
        got = await receive(reader, 6)
        for delivery in got[:4]:
            reader.ack(delivery)
        again = await receive(reader, 2)
        assert [(d.seq, d.delivered) for d in again] == [(5, 2), (6, 2)]
        reader.ack(again[0])

        async def acknowledged() -> bool:
            return await stored(a, "T") == 1

        await until(acknowledged)
    await restart_in_good_order(server, a, b)
    assert await stored(b, "T") == 1
    async with b.open_reader("T", "q", "t.>", ack_wait=0.5) as reader:
        [third] = await receive(reader, 1)
        assert (third.seq, third.delivered >= 3) == (6, True)


async def test_a_purge_by_subject_of_what_is_delivered_makes_a_restarted_server_forget_older_deliveries(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await publish(a, "t", 4)
    async with a.open_reader("T", "q", "t.>", ack_wait=1.0) as reader:
        got = await receive(reader, 4)
        assert await a.purge("T", "t.2") == 1
        reader.ack(got[3])

        async def acknowledged() -> bool:
            return await consumer(b, "T", "q") == ConsumerState(name="q", ack_pending=2, pending=0)

        await until(acknowledged)
    await restart_in_good_order(server, a, b)
    # The two that were never acknowledged are still stored, and will never be delivered again on this consumer.
    assert await stored(b, "T") == 2
    assert await consumer(b, "T", "q") == ConsumerState(name="q", ack_pending=0, pending=0)
    async with b.open_reader("T", "q", "t.>", ack_wait=1.0) as reader:
        await publish(a, "t.new", 1)
        assert [d.subject for d in await receive(reader, 1)] == ["t.new.0"]
        [again] = await receive(reader, 1)
        assert (again.subject, again.delivered) == ("t.new.0", 2)  # its wait is over, and theirs would be
    await b.delete_consumer("T", "q")
    async with b.open_reader("T", "q2", "t.>", ack_wait=30.0) as reader:
        assert [d.subject for d in await receive(reader, 3)] == ["t.0", "t.1", "t.new.0"]


async def test_a_deletion_of_what_is_delivered_leaves_older_deliveries_to_a_restarted_server(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await publish(a, "t", 4)
    async with a.open_reader("T", "q", "t.>", ack_wait=1.0) as reader:
        got = await receive(reader, 4)
        assert await a.delete("T", 3)
        reader.ack(got[3])

        async def acknowledged() -> bool:
            return await consumer(b, "T", "q") == ConsumerState(name="q", ack_pending=2, pending=0)

        await until(acknowledged)
    await restart_in_good_order(server, a, b)
    async with b.open_reader("T", "q", "t.>", ack_wait=1.0) as reader:
        assert {(d.subject, d.delivered) for d in await receive(reader, 2)} == {("t.0", 2), ("t.1", 2)}


async def test_redeliveries_come_before_new_messages_and_within_the_limit_of_unacknowledged_ones(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    await publish(a, "t", 4)
    async with b.open_reader("T", "q", "t.>", ack_wait=0.7, max_ack_pending=2) as reader:
        assert [(d.seq, d.delivered) for d in await receive(reader, 2)] == [(1, 1), (2, 1)]
        again = await receive(reader, 2)
        assert [(d.seq, d.delivered) for d in again] == [(1, 2), (2, 2)]
        for delivery in again:
            reader.ack(delivery)
        assert [(d.seq, d.delivered) for d in await receive(reader, 2)] == [(3, 1), (4, 1)]


async def test_a_deletion_of_an_unacknowledged_delivery_makes_room_for_the_next_one(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish(a, "t", 3)
    async with b.open_reader("T", "q", "t.>", ack_wait=30.0, max_ack_pending=1) as reader:
        for n in range(3):
            [delivery] = await receive(reader, 1)
            assert delivery.subject == f"t.{n}"
            assert await a.delete("T", delivery.seq)
