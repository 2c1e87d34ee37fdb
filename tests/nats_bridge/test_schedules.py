"""Message schedules of the real server (ADR-51)."""

from __future__ import annotations

import time

import pytest
import trio

from durablefuture_trio.nats_bridge import NatsBroker
from durablefuture_trio.ports.broker import Append, Conflict, Schedule
from tests._support.nats_server import NatsServer


def armed(number: int, in_s: float) -> Append:
    return Append(
        subject=f"s.0.id.{number}",
        body=b"fire %d" % number,
        headers={"run": "r1"},
        schedule=Schedule(due=time.time() + in_s, target="w.0.id.timer"),
    )


async def fired(broker: NatsBroker, count: int) -> list[bytes]:
    with trio.fail_after(10):
        while len(found := [m async for m in broker.scan("W", "w.>")]) < count:  # noqa: ASYNC110
            await trio.sleep(0.02)
    return [message.body for message in found]


async def test_a_schedule_fires_when_due_with_body_and_headers_and_goes_away(broker: NatsBroker) -> None:
    append = armed(1, 0.5)
    assert append.schedule is not None
    await broker.append(append)
    assert await fired(broker, 1) == [b"fire 1"]
    message = await broker.last("W", "w.0.id.timer")
    assert message is not None
    assert message.headers == {"run": "r1"}
    assert -0.001 <= message.time - append.schedule.due < 0.6
    assert await broker.last("W", "s.0.id.1") is None


async def test_a_schedule_of_the_past_fires_at_once(broker: NatsBroker) -> None:
    await broker.append(armed(1, -60))
    assert await fired(broker, 1) == [b"fire 1"]


async def test_a_neutralised_schedule_never_fires_and_leaves_nothing(broker: NatsBroker) -> None:
    await broker.append(armed(1, 1.0))
    await broker.append(armed(2, 1.6))
    await broker.append(Append(subject="s.0.id.1", neutralise=True))
    left = await broker.last("W", "s.0.id.1", confirmed=True)
    assert left is not None
    assert left.body == b""
    assert await fired(broker, 1) == [b"fire 2"]
    with trio.fail_after(10):
        while await broker.last("W", "s.0.id.1", confirmed=True) is not None:  # noqa: ASYNC110 - no event tells
            await trio.sleep(0.05)
    state = await broker.stream_state("W")
    assert state is not None
    assert state.messages == 1


async def test_schedules_survive_a_sigkill_of_the_server(nats: NatsServer, broker: NatsBroker) -> None:
    await broker.append(armed(1, 0.8))
    await broker.append(armed(2, 0.1))
    await nats.kill()
    await trio.sleep(0.3)
    await nats.start()
    with trio.fail_after(20):
        seen = broker.link.generation
        while not broker.link.up:
            seen = await broker.link.changed(seen)
    assert sorted(await fired(broker, 2)) == [b"fire 1", b"fire 2"]


async def test_h03_a_schedule_can_be_fenced(broker: NatsBroker) -> None:
    append = armed(1, 3600)
    first = await broker.append(Append(subject=append.subject, schedule=append.schedule, expect_last=0))
    with pytest.raises(Conflict):
        await broker.append(Append(subject=append.subject, schedule=append.schedule, expect_last=0))
    again = Append(subject=append.subject, schedule=append.schedule, expect_last=first)
    assert await broker.append(again) > first


async def test_a_target_that_would_break_the_protocol_is_refused(broker: NatsBroker) -> None:
    with pytest.raises(ValueError, match="subject"):
        await broker.append(Append(subject="s.1", schedule=Schedule(due=time.time(), target="w.1\r\nNats-Rollup: all")))
