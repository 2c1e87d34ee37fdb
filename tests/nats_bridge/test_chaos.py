"""A server that is killed again and again under load."""

from __future__ import annotations

import random

import pytest
import trio

from durablefuture_trio.nats_bridge import ConnectOptions, open_broker
from durablefuture_trio.ports.broker import Append, Conflict, NoAnswer, ReaderLost, StreamSpec
from tests._support.nats_server import NatsServer

pytestmark = pytest.mark.chaos

WRITERS = 20
KILLS = 6


async def test_nothing_acknowledged_is_lost_or_doubled_while_the_server_is_killed(nats: NatsServer) -> None:
    chance = random.Random(7)
    acknowledged: set[str] = set()
    read: set[int] = set()
    epochs = 0
    async with open_broker(ConnectOptions(urls=(nats.url,), answer_timeout_s=2)) as broker:
        await broker.provision(
            [
                StreamSpec(name="H", subjects=("h.>",)),
                StreamSpec(name="W", subjects=("w.>",), retention="workqueue"),
            ]
        )
        writing = True

        async def write(writer: int) -> None:
            number = 0
            while writing:
                number += 1
                subject = f"h.{writer}.{number}"
                while True:
                    try:
                        await broker.append(Append(subject=subject, body=subject.encode(), expect_last=0))
                    except NoAnswer:
                        await trio.sleep(0.01)
                        continue
                    except Conflict:
                        pass  # an earlier publish of the same bytes has landed
                    break
                acknowledged.add(subject)

        async def feed() -> None:
            number = 0
            while writing:
                number += 1
                try:
                    await broker.append(Append(subject=f"w.{number}"))
                except NoAnswer:
                    await trio.sleep(0.01)
                await trio.sleep(0.001)

        async def follow() -> None:
            """What an owner does: a new epoch whenever the reader is lost."""
            nonlocal epochs
            while True:
                epochs += 1
                try:
                    for consumer in await broker.consumers("W"):
                        await broker.delete_consumer("W", consumer.name)
                    async with broker.open_reader("W", f"own-{epochs}", "w.>", ack_wait=None) as reader:
                        while True:
                            read.update(delivery.seq for delivery in await reader.receive())
                except (ReaderLost, NoAnswer):
                    await trio.sleep(0.01)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                async with trio.open_nursery() as writers:
                    for writer in range(WRITERS):
                        writers.start_soon(write, writer)
                    writers.start_soon(feed)
                    for _ in range(KILLS):
                        await trio.sleep(chance.uniform(0.05, 0.4))
                        await nats.kill()
                        await trio.sleep(chance.uniform(0, 0.1))
                        await nats.start()
                        while not broker.link.up:
                            await broker.link.changed(broker.link.generation)
                    writing = False
                stored = {message.seq async for message in broker.scan("W", "w.>")}
                while not stored <= read:  # noqa: ASYNC110 - a set tells nobody
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        history = [message.subject async for message in broker.scan("H", "h.>")]
    assert len(history) == len(set(history))
    assert acknowledged <= set(history)
    assert len(acknowledged) > WRITERS
    assert epochs > KILLS / 2
