"""A firing schedule purges its subject, whatever that holds by then: no other decision's schedule may be there."""

from __future__ import annotations

from typing import Any

from trio.testing import MockClock

from durablefuture_trio.memory_broker import FireFate
from durablefuture_trio.protocol.schedules import Schedules
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.supervisor._shard import Shard
from tests._support.holes import result_within, retries_every_ten_seconds, stage


class OneScheduleSubject(Subjects):
    """One schedule subject for each workflow id."""

    def schedule(self, workflow_id: str, n: int) -> str:
        return super().schedule(workflow_id, 0)


class ShardWithOneScheduleSubject(Shard):
    def __init__(self, number: int, *, subjects: Subjects, **others: Any) -> None:
        super().__init__(number, subjects=subjects, **others)
        self._schedules = Schedules(self._broker, OneScheduleSubject(subjects.namespace, subjects.shards), number)


async def replaced_while_it_fires(shard: type[Shard]) -> object:
    """The retry's schedule is collected at 10 s and stored half a second later. In between a late result arrives, and
    the run goes to sleep for an hour: its schedule is stored and acknowledged, then the fire purges its own subject.
    The supervisor dies, so nobody remembers what was armed."""
    async with stage(shard=shard) as scene:
        scene.faults.next_fire(FireFate(stored_after=0.5), "df.test.s.>")
        await scene.start("A")
        handle = await scene.client.start(retries_every_ten_seconds, 3600.0, id="w")
        await scene.until(9)
        assert scene.waiting() == 1, "the run is not parked behind its schedule"
        await scene.until(10.3)
        assert handle.run_id is not None
        await scene.report_success("w", handle.run_id)
        await scene.until(60)
        await scene.takeover("A", "B")
        return await result_within(handle, 2 * 3600)


async def test_h02_a_fire_purges_only_its_own_schedule(autojump_clock: MockClock) -> None:
    assert await replaced_while_it_fires(Shard) == "woke"


async def test_h02_with_one_schedule_subject_for_each_workflow_the_run_never_wakes(autojump_clock: MockClock) -> None:
    assert await replaced_while_it_fires(ShardWithOneScheduleSubject) is None
