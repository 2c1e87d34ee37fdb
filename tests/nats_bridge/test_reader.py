"""Reading consumers: nothing is missed in silence, and nothing stalls."""

from __future__ import annotations

import random

import pytest
import trio

from durablefuture_trio.nats_bridge import ConnectOptions, NatsBroker, _reader, open_broker
from durablefuture_trio.nats_bridge._reader import NatsReader
from durablefuture_trio.ports.broker import Append, ConsumerConflict, Delivery, ReaderLost, StreamSpec
from tests._support.nats_server import NatsServer, nats_server

INBOX = StreamSpec(name="W", subjects=("w.>",), retention="workqueue")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats in tenths of seconds."""
    monkeypatch.setattr(_reader, "IDLE_HEARTBEAT_S", 0.2)
    monkeypatch.setattr(_reader, "SILENCE_S", 0.8)


async def publish(broker: NatsBroker, first: int, last: int, size: int = 0) -> None:
    for number in range(first, last):
        broker.append_soon(Append(subject=f"w.0.id{number}", body=b"x" * size), lambda _: None)
    await broker.append(Append(subject=f"w.0.id{last}", body=b"x" * size))


async def take(reader: NatsReader, count: int, *, ack: bool = True) -> list[Delivery]:
    found: list[Delivery] = []
    with trio.fail_after(20):
        while len(found) < count:
            for delivery in await reader.receive():
                found.append(delivery)
                if ack:
                    reader.ack(delivery)
    return found


async def lost(reader: NatsReader) -> str:
    async def read_on() -> None:
        while True:
            await reader.receive()

    with trio.fail_after(20), pytest.raises(ReaderLost) as caught:
        await read_on()
    return caught.value.reason


async def messages_become(broker: NatsBroker, count: int) -> None:
    """Acknowledgements are worked off in the server's own time."""
    with trio.fail_after(20):
        while True:
            state = await broker.stream_state("W")
            assert state is not None
            if state.messages == count:
                return
            await trio.sleep(0.01)


async def test_deliveries_come_in_order_and_acknowledged_ones_leave_the_queue(broker: NatsBroker) -> None:
    await publish(broker, 1, 500)
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as reader:
        found = await take(reader, 500)
        assert [delivery.seq for delivery in found] == list(range(1, 501))
        assert (found[0].subject, found[0].delivered, found[0].pending) == ("w.0.id1", 1, 499)
    await messages_become(broker, 0)
    assert [consumer.name for consumer in await broker.consumers("W")] == ["own-1"], "leaving deletes no consumer"


async def test_what_was_not_acknowledged_comes_again_to_the_next_epoch(broker: NatsBroker) -> None:
    await publish(broker, 1, 10)
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as reader:
        found = await take(reader, 10, ack=False)
        for delivery in found[:5]:
            reader.ack(delivery)
    await messages_become(broker, 5)
    assert await broker.delete_consumer("W", "own-1") is True
    async with broker.open_reader("W", "own-2", "w.0.>", ack_wait=None) as reader:
        again = await take(reader, 5, ack=False)
        assert [delivery.seq for delivery in again] == [6, 7, 8, 9, 10]


async def test_h01_an_acknowledgement_of_an_older_epoch_reaches_nothing(broker: NatsBroker) -> None:
    await publish(broker, 1, 2)
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as stale:
        delivery, _ = await take(stale, 2, ack=False)
        await broker.delete_consumer("W", "own-1")
        async with broker.open_reader("W", "own-2", "w.0.>", ack_wait=None) as reader:
            _, second = await take(reader, 2, ack=False)
            stale.ack(delivery)
            await broker.link.echo()
            reader.ack(second)
            await messages_become(broker, 1)
            assert await broker.last("W", delivery.subject, confirmed=True) is not None


async def test_u10_two_consumers_of_the_same_subjects_conflict(broker: NatsBroker) -> None:
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None):
        with pytest.raises(ConsumerConflict):
            async with broker.open_reader("W", "own-2", "w.0.>", ack_wait=None):
                pytest.fail("opened")


@pytest.mark.usefixtures("impatient")
async def test_an_idle_reader_is_not_lost_and_gets_what_comes_later(broker: NatsBroker) -> None:
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as reader:
        await publish(broker, 1, 3)
        await take(reader, 3)
        with trio.move_on_after(2):
            pytest.fail(f"received {await reader.receive()}")
        await publish(broker, 4, 4)
        assert [delivery.seq for delivery in await take(reader, 1)] == [4]


@pytest.mark.usefixtures("impatient")
async def test_pulls_that_expire_are_renewed(broker: NatsBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reader, "PULL_EXPIRES_S", 0.5)
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as reader:
        with trio.move_on_after(2):
            pytest.fail(f"received {await reader.receive()}")
        assert reader._pulls > 2
        await publish(broker, 1, 1)
        await take(reader, 1)


@pytest.mark.usefixtures("impatient")
async def test_h06_a_message_that_went_elsewhere_is_a_gap(nats: NatsServer, broker: NatsBroker) -> None:
    async with (
        open_broker(ConnectOptions(urls=(nats.url,))) as other,
        broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as reader,
        other.open_reader("W", "own-1", "w.0.>", ack_wait=None) as thief,
    ):
        await publish(broker, 1, 20)
        assert await lost(reader) == "gap"
        assert await lost(thief) == "gap"


@pytest.mark.usefixtures("impatient")
async def test_h06_a_last_message_that_went_elsewhere_shows_at_the_next_heartbeat(
    nats: NatsServer, broker: NatsBroker
) -> None:
    async with (
        open_broker(ConnectOptions(urls=(nats.url,))) as other,
        broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as reader,
        other.open_reader("W", "own-1", "w.0.>", ack_wait=None) as thief,
    ):
        await publish(broker, 1, 1)
        async with trio.open_nursery() as nursery:
            got: list[Delivery] = []
            reasons: list[str] = []

            async def read(one: NatsReader) -> None:
                try:
                    while True:
                        got.extend(await one.receive())
                except ReaderLost as error:
                    reasons.append(error.reason)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(read, reader)
            nursery.start_soon(read, thief)
            nursery.cancel_scope.deadline = trio.current_time() + 10
        assert len(got) == 1
        assert reasons == ["gap"]


async def test_a_shared_consumer_spreads_its_messages_and_that_is_no_gap(nats: NatsServer, broker: NatsBroker) -> None:
    async with (
        open_broker(ConnectOptions(urls=(nats.url,))) as other,
        broker.open_reader("W", "queue", "w.0.>", ack_wait=30) as one,
        other.open_reader("W", "queue", "w.0.>", ack_wait=30) as two,
    ):
        await publish(broker, 1, 200)
        seen: set[int] = set()
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                async def read(reader: NatsReader) -> None:
                    while True:
                        for delivery in await reader.receive():
                            seen.add(delivery.seq)
                            reader.ack(delivery)
                            if len(seen) == 200:
                                nursery.cancel_scope.cancel()

                nursery.start_soon(read, one)
                nursery.start_soon(read, two)
        assert seen == set(range(1, 201))


async def test_an_unacknowledged_task_comes_again_unless_it_is_in_progress(broker: NatsBroker) -> None:
    await publish(broker, 1, 2)
    async with broker.open_reader("W", "queue", "w.0.>", ack_wait=1) as reader:
        first, second = await take(reader, 2, ack=False)
        again: list[Delivery] = []
        with trio.move_on_after(2.5):
            async with trio.open_nursery() as nursery:

                async def keep() -> None:
                    while True:
                        reader.in_progress(first)
                        await trio.sleep(0.2)

                nursery.start_soon(keep)
                while True:
                    again += await reader.receive()
        assert {delivery.seq for delivery in again} == {second.seq}
        assert again[0].delivered == 2


async def test_a_deleted_consumer_is_told(broker: NatsBroker) -> None:
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as reader:
        await publish(broker, 1, 1)
        await take(reader, 1)  # the server has the pull now: a delete right behind it could be worked off before it
        await broker.delete_consumer("W", "own-1")
        assert await lost(reader) == "deleted"


async def test_a_lost_link_is_told_after_what_had_come(nats: NatsServer, broker: NatsBroker) -> None:
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as reader:
        await publish(broker, 1, 3)
        with trio.fail_after(10):
            while len(reader._buffer) < 3:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.005)
        await nats.kill()
        seen = broker.link.generation
        while broker.link.up:
            seen = await broker.link.changed(seen)
        assert len(await reader.receive()) == 3
        assert await lost(reader) == "link"


@pytest.mark.usefixtures("impatient")
async def test_u12_a_silent_server_is_noticed_by_its_missing_heartbeats(nats: NatsServer, broker: NatsBroker) -> None:
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None) as reader:
        await broker.link.echo()
        nats.pause()
        assert await lost(reader) == "silent"
        nats.resume()


async def test_u07_credit_smaller_than_the_largest_message_does_not_stall(nats: NatsServer, broker: NatsBroker) -> None:
    largest = broker.limits.max_payload_bytes
    await broker.append(Append(subject="w.0.a", body=b"x" * largest))
    await broker.append(Append(subject="w.0.b", body=b"y" * largest))
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None, credit_bytes=1000) as reader:
        found = await take(reader, 2)
        assert [len(delivery.body) for delivery in found] == [largest, largest]


async def test_u07_a_message_of_a_time_with_a_larger_limit_still_comes(nats: NatsServer, broker: NatsBroker) -> None:
    await broker.append(Append(subject="w.0.a", body=b"x" * 1_000_000))
    await nats.restart(max_payload=1024)
    with trio.fail_after(20):
        while broker.limits.max_payload_bytes != 1024:  # noqa: ASYNC110 - no event tells
            await trio.sleep(0.01)
    async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None, credit_bytes=1000) as reader:
        [delivery] = await take(reader, 1)
        assert len(delivery.body) == 1_000_000


@pytest.mark.usefixtures("impatient")
async def test_a_reader_holds_no_more_than_its_credit_and_every_pull_is_used_up_cleanly() -> None:
    async with nats_server(max_payload=2048) as server, open_broker(ConnectOptions(urls=(server.url,))) as broker:
        await broker.provision([INBOX])
        sizes = random.Random(1)
        count = 3000
        for number in range(count - 1):
            body = b"x" * sizes.randrange(200)
            broker.append_soon(Append(subject=f"w.0.{number}", body=body, headers={"n": "1"}), lambda _: None)
        await broker.append(Append(subject="w.0.last"))
        async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None, credit_bytes=20_000) as reader:
            await trio.sleep(0.3)
            assert 10_000 < reader._buffered_bytes <= 20_000
            assert len(await take(reader, count)) == count
            assert reader._pulls > 10


async def test_the_bytes_of_a_pull_are_counted_as_the_server_counts_them() -> None:
    # A pull of exactly the bytes of what is there ends without a status, and has to be known as ended.
    async with nats_server(max_payload=2048) as server, open_broker(ConnectOptions(urls=(server.url,))) as broker:
        await broker.provision([INBOX])
        async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None, credit_bytes=20_000) as reader:
            left = reader._pull_bytes
            await broker.append(Append(subject="w.0.a", body=b"x" * 777, headers={"k": "v"}))
            [delivery] = await take(reader, 1, ack=False)
            # The server says what is left of a pull when it refuses a message that is too large for the rest.
            counted = left - reader._pull_bytes
            assert counted > 777
            told: list[int] = []
            on_status = reader._on_status

            def spy(status: int, subject: bytes, headers: bytes) -> None:
                text = dict(line.split(b": ") for line in headers.split(b"\r\n")[1:] if line)
                if b"Nats-Pending-Bytes" in text:
                    told.append(int(text[b"Nats-Pending-Bytes"]) - reader._pull_bytes)
                on_status(status, subject, headers)

            reader._on_status = spy  # type: ignore[method-assign]  # a spy
            for number in range(60):
                await broker.append(Append(subject=f"w.0.{number}", body=b"x" * 900, headers={"k": "v"}))
            await take(reader, 60)
            assert told
            assert set(told) == {0}
            assert delivery.seq == 1


@pytest.mark.usefixtures("impatient")
async def test_u07_a_pull_whose_last_byte_was_used_ends_without_a_word_and_the_next_one_is_opened() -> None:
    async with nats_server(max_payload=30_000) as server, open_broker(ConnectOptions(urls=(server.url,))) as broker:
        await broker.provision([INBOX])
        async with broker.open_reader("W", "own-1", "w.0.>", ack_wait=None, credit_bytes=1) as reader:
            await broker.append(Append(subject="w.0.a", body=b"x" * 20_000))
            [first] = await take(reader, 1, ack=False)
            pulls, left = reader._pulls, reader._pull_bytes
            # The next address has as many digits as this one.
            await broker.append(Append(subject="w.0.b", body=b"x" * (left - len("w.0.b") - len(first.reply))))
            await take(reader, 1, ack=False)
            assert reader._pulls == pulls + 1
            await broker.append(Append(subject="w.0.c"))
            assert [delivery.seq for delivery in await take(reader, 1)] == [3]
