"""The listing record never goes back, and nobody waits for a hint alone."""

from __future__ import annotations

from typing import Any

import msgspec
import trio
from trio.testing import MockClock

from durablefuture_trio.client._requests import DecisionSearch
from durablefuture_trio.engine.requests import Answer
from durablefuture_trio.memory_broker import AppendFate
from durablefuture_trio.ports.broker import Append
from durablefuture_trio.protocol.projection import Projection, ProjectionRecord
from durablefuture_trio.supervisor._shard import Shard
from tests._support.holes import one_long_step, one_step, result_within, stage


class UnfencedProjection(Projection):
    """Writes its record over whatever stands there."""

    def append_for(self, record: ProjectionRecord, last_seq: int) -> Append:
        return msgspec.structs.replace(super().append_for(record, last_seq), expect_last=None)


class ShardWithUnfencedProjection(Shard):
    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self._projection = UnfencedProjection(self._broker, self._subjects)


async def listed_after_a_late_write(shard: type[Shard]) -> str:
    """A's record ("running") lands only after B has written the last one."""
    async with stage(shard=shard) as scene:
        scene.faults.next_append(AppendFate(lands_after=60, answered=False), "df.test.r.>")
        await scene.start("A")
        handle = await scene.client.start(one_long_step, 20.0, id="w")
        await scene.until(3)
        await scene.takeover("A", "B")
        assert await result_within(handle, 50) == "done"
        await scene.until(100)
        [listed] = [item.status async for item in scene.client.list()]
        return listed


async def test_h20_a_late_listing_record_replaces_no_newer_one(autojump_clock: MockClock) -> None:
    assert await listed_after_a_late_write(Shard) == "completed"


async def test_h20_without_the_fence_a_closed_run_is_listed_as_running(autojump_clock: MockClock) -> None:
    assert await listed_after_a_late_write(ShardWithUnfencedProjection) == "running"


class NeverLooks(DecisionSearch):
    async def look(self) -> Answer | None:
        return None


async def test_h20_who_waits_finds_start_and_result_in_the_history_when_every_hint_is_lost(
    autojump_clock: MockClock,
) -> None:
    async with stage() as scene:
        await scene.start("A")
        scene.faults.lost_tell = 1.0
        with trio.fail_after(120):
            assert await scene.client.run(one_step, id="w") == "done"
        assert len(scene.cluster.world.witnesses) == 1


async def test_h20_who_waits_for_the_answer_alone_waits_for_ever(autojump_clock: MockClock, monkeypatch: Any) -> None:
    monkeypatch.setattr("durablefuture_trio.client._requests.DecisionSearch", NeverLooks)
    async with stage() as scene:
        await scene.start("A")
        scene.faults.lost_tell = 1.0
        with trio.move_on_after(3600) as waited:
            await scene.client.start(one_step, id="w")
        assert waited.cancelled_caught
        assert len(scene.cluster.world.witnesses) == 1, "asking again and again started nothing more"
