"""A schedule that comes due while the store is full never fires by itself."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.protocol.inbox import open_inbox
from durablefuture_trio.protocol.schedules import OVERDUE_S, ArmedSchedule, Schedules
from durablefuture_trio.supervisor._shard import Shard
from tests._support.broker_servers import ServerUnderTest
from tests._support.holes import result_within, sleeps, stage
from tests.holes.conftest import Namespace


class WithoutBackstop(Schedules):
    def republish_overdue(self, now: float) -> list[ArmedSchedule]:
        self._heap.clear()
        return []


class ShardWithoutBackstop(Shard):
    def __init__(self, number: int, **others: Any) -> None:
        super().__init__(number, **others)
        self._schedules = WithoutBackstop(self._broker, self._subjects, number)


async def due_while_the_store_is_full(shard: type[Shard], *, takeover: bool) -> float:
    """The store is full from 8 s to 15 s, the timer is due at 10 s. Returns when the run woke, or infinity."""
    async with stage(shard=shard) as scene:
        await scene.start("A")
        handle = await scene.client.start(sleeps, 10.0, id="w")
        await scene.until(8)
        scene.server.full = True
        if takeover:
            await scene.cluster.supervisors["A"].kill()
        await scene.until(15)
        scene.server.full = False
        if takeover:
            await scene.start("B")
        result = await result_within(handle, 3600)
        return scene.now if result == "woke" else float("inf")


@pytest.mark.parametrize("takeover", [False, True])
async def test_h19_the_owner_publishes_an_overdue_schedule_again(autojump_clock: MockClock, takeover: bool) -> None:
    assert await due_while_the_store_is_full(Shard, takeover=takeover) < 40


@pytest.mark.parametrize("takeover", [False, True])
async def test_h19_without_the_backstop_the_run_sleeps_for_ever(autojump_clock: MockClock, takeover: bool) -> None:
    assert await due_while_the_store_is_full(ShardWithoutBackstop, takeover=takeover) == float("inf")


async def test_h19_only_publishing_an_overdue_schedule_again_makes_it_fire(
    server: ServerUnderTest, namespace: Namespace
) -> None:
    a, b, subjects = namespace
    schedules = Schedules(a, subjects, 0)
    with trio.fail_after(60):
        beat = await a.append(schedules.append_for("clock", "r", 1, 0.0))  # due at once: tells the server's time
        async with open_inbox(b, subjects, 0, 1) as box:
            told = (await box.receive())[0]
            assert told.seq > beat
            box.ack(told)
            due = told.time + 2.0
            stored = trio.Event()
            schedules.of("w")[1] = due
            schedules.arm("w", "r", 1, due, lambda error: stored.set() if error is None else None)
            await stored.wait()
            await server.fill_store(a)
            await trio.sleep(3.0)  # until it was due: the server says nothing about it
            await server.free_store(a)
            with trio.move_on_after(1.0) as silence:
                await box.receive()
            assert silence.cancelled_caught, "the schedule fired by itself"
            schedules.republish_overdue(due + OVERDUE_S)
            fired = (await box.receive())[0]
            assert fired.subject == subjects.inbox("w", "timer")
