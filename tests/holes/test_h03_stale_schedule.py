"""A stale owner's schedule that lands late must not replace the live one."""

from __future__ import annotations

from trio.testing import MockClock

from durablefuture_trio.memory_broker import AppendFate
from durablefuture_trio.supervisor._shard import Shard
from tests._support.holes import result_within, retries_hourly, stage
from tests.holes.test_h02_schedule_race import ShardWithOneScheduleSubject


async def schedule_lands_late(shard: type[Shard]) -> float:
    """A's schedule (due in an hour) lands only after B has armed its own, due in a minute; then B dies as well.

    Returns when the run was woken, or infinity."""
    async with stage(shard=shard) as scene:
        scene.faults.next_append(AppendFate(lands_after=40, answered=False), "df.test.s.>")
        await scene.start("A")
        handle = await scene.client.start(retries_hourly, 75.0, id="w")
        await scene.until(3)
        await scene.takeover("A", "B")
        await scene.until(15)
        assert handle.run_id is not None
        await scene.report_success("w", handle.run_id)
        await scene.until(60)
        await scene.takeover("B", "C")
        result = await result_within(handle, 2 * 3600)
        return scene.now if result == "woke" else float("inf")


async def test_h03_a_schedule_that_lands_late_delays_nothing(autojump_clock: MockClock) -> None:
    assert await schedule_lands_late(Shard) < 100


async def test_h03_with_one_schedule_subject_for_each_workflow_the_run_wakes_an_hour_late(
    autojump_clock: MockClock,
) -> None:
    assert await schedule_lands_late(ShardWithOneScheduleSubject) > 3000
