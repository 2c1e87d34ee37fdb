"""Disconnects, silence and what becomes of those who wait."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from durablefuture_trio.nats_bridge import ConnectOptions, NatsBroker, open_broker
from durablefuture_trio.ports.broker import Append, AppendOutcome, Conflict, NoAnswer, StreamSpec
from tests._support.nats_server import NatsServer

HISTORY = StreamSpec(name="H", subjects=("h.>",))


async def until_link(broker: NatsBroker, *, up: bool) -> None:
    with trio.fail_after(20):
        seen = broker.link.generation
        while broker.link.up is not up:
            seen = await broker.link.changed(seen)


async def test_the_link_says_when_it_goes_and_when_it_is_back(nats: NatsServer, broker: NatsBroker) -> None:
    assert broker.link.generation == 1
    await nats.kill()
    await until_link(broker, up=False)
    assert broker.link.generation == 2
    await nats.start()
    await until_link(broker, up=True)
    assert broker.link.generation == 3
    assert await broker.append(Append(subject="h.a.1", body=b"after")) == 1


async def test_a_disconnect_answers_all_who_wait_at_once(nats: NatsServer) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,), answer_timeout_s=600)) as broker:
        await broker.provision([HISTORY])
        nats.pause()
        outcomes: list[AppendOutcome] = []
        for number in range(100):
            broker.append_soon(Append(subject=f"h.a.{number}"), outcomes.append)
        failures: list[str] = []

        async def ask() -> None:
            with pytest.raises(NoAnswer):
                await broker.last("H", "h.a.1", confirmed=True)
            failures.append("last")

        async def write() -> None:
            with pytest.raises(NoAnswer):
                await broker.append(Append(subject="h.b"))
            failures.append("append")

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(write)
                await trio.testing.wait_all_tasks_blocked()
                await nats.kill()
        assert sorted(failures) == ["append", "last"]
        assert len(outcomes) == 100
        assert all(isinstance(outcome, NoAnswer) for outcome in outcomes)


async def test_h03_nothing_sent_before_a_disconnect_is_sent_again_after_it(nats: NatsServer) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,), answer_timeout_s=600)) as broker:
        await broker.provision([HISTORY])
        nats.pause()
        body = b"x" * 100_000
        outcomes: list[AppendOutcome] = []
        for number in range(300):  # more than the sockets of both sides hold
            broker.append_soon(Append(subject=f"h.a.{number}", body=body), outcomes.append)
        await trio.testing.wait_all_tasks_blocked()
        await nats.kill()
        await until_link(broker, up=False)
        assert len(outcomes) == 300
        await nats.start()
        await until_link(broker, up=True)
        assert await broker.append(Append(subject="h.marker")) == 1
        await broker.link.echo()
        state = await broker.stream_state("H")
        assert state is not None
        assert state.messages == 1


async def test_while_the_link_is_down_the_answer_is_noanswer_but_never_within_the_call(
    nats: NatsServer, broker: NatsBroker
) -> None:
    await nats.kill()
    await until_link(broker, up=False)
    outcomes: list[AppendOutcome] = []
    broker.append_soon(Append(subject="h.a"), outcomes.append)
    assert outcomes == []
    with pytest.raises(NoAnswer), trio.fail_after(1):
        await broker.append(Append(subject="h.b"))
    assert [type(outcome) for outcome in outcomes] == [NoAnswer]
    with pytest.raises(NoAnswer), trio.fail_after(1):
        await broker.last("H", "h.a")


async def test_h04_silence_becomes_noanswer_and_the_publish_may_land_later(nats: NatsServer) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,), answer_timeout_s=0.3)) as broker:
        await broker.provision([HISTORY])
        nats.pause()
        with pytest.raises(NoAnswer):
            await broker.append(Append(subject="h.a.1", body=b"late", expect_last=0))
        nats.resume()
        with trio.fail_after(10):
            while (found := await broker.last("H", "h.a.1", confirmed=True)) is None:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
        assert found.body == b"late"
        with pytest.raises(Conflict):
            await broker.append(Append(subject="h.a.1", body=b"late", expect_last=0))


async def test_eight_seconds_of_a_stopped_server_damage_nothing(nats: NatsServer) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,), answer_timeout_s=1)) as broker:
        await broker.provision([HISTORY])
        written = 40

        async def write(number: int) -> None:
            """The commit loop of the protocol: the identical bytes until the number is occupied."""
            while True:
                try:
                    await broker.append(Append(subject=f"h.a.{number}", body=b"%d" % number, expect_last=0))
                except NoAnswer:
                    await trio.sleep(0.05)
                except Conflict:
                    return
                else:
                    return

        nats.pause()
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                for number in range(written):
                    nursery.start_soon(write, number)
                await trio.sleep(8)
                nats.resume()
        found = [message async for message in broker.scan("H", "h.>")]
        assert sorted(message.body for message in found) == sorted(b"%d" % number for number in range(written))


async def test_appends_are_stored_in_the_order_of_the_calls(broker: NatsBroker) -> None:
    outcomes: list[AppendOutcome] = []
    for number in range(500):
        broker.append_soon(Append(subject=f"h.a.{number % 7}", body=b"%d" % number), outcomes.append)
    await broker.append(Append(subject="h.last"))
    assert outcomes == list(range(1, 501))
    found = [message async for message in broker.scan("H", "h.a.>")]
    assert [int(message.body) for message in found] == list(range(500))


async def test_a_cancelled_append_may_land_and_troubles_nobody(nats: NatsServer, broker: NatsBroker) -> None:
    nats.pause()
    with trio.move_on_after(0.05):
        await broker.append(Append(subject="h.a", body=b"cancelled"))
    with trio.move_on_after(0.05):
        await broker.stream_state("H")
    nats.resume()
    assert await broker.append(Append(subject="h.b")) == 2
    assert await broker.last("H", "h.a") is not None


async def test_an_error_in_a_callback_ends_the_broker_and_is_not_swallowed(nats: NatsServer) -> None:
    def on_outcome(_: AppendOutcome) -> None:
        raise LookupError("bug")

    with pytest.RaisesGroup(LookupError):
        async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
            await broker.provision([HISTORY])
            broker.append_soon(Append(subject="h.a"), on_outcome)
            with trio.fail_after(10):
                await trio.sleep_forever()


async def test_listeners_survive_a_reconnect(nats: NatsServer, broker: NatsBroker) -> None:
    async with broker.listen("hints.>") as hints:
        broker.tell("hints.a", b"one", {"k": "v"})
        with trio.fail_after(10):
            message = await hints.receive()
        assert (message.subject, message.body, message.headers) == ("hints.a", b"one", {"k": "v"})
        await nats.restart()
        await until_link(broker, up=False)
        await until_link(broker, up=True)
        broker.tell("hints.b", b"two")
        with trio.fail_after(10):
            assert (await hints.receive()).body == b"two"


async def test_a_slow_listener_loses_the_oldest(broker: NatsBroker) -> None:
    async with broker.listen("hints.>") as hints:
        for number in range(5000):
            broker.tell("hints.a", b"%d" % number)
        await broker.link.echo()
        first = int((await hints.receive()).body)
        assert first == 5000 - 4096


class StepCounter(trio.abc.Instrument):
    def __init__(self) -> None:
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


async def test_an_idle_broker_does_not_poll(broker: NatsBroker) -> None:
    await broker.append(Append(subject="h.a"))
    counter = StepCounter()
    trio.lowlevel.add_instrument(counter)
    await trio.sleep(2.5)
    trio.lowlevel.remove_instrument(counter)
    assert counter.steps < 20, "only the ping every two seconds is allowed"
