"""A message that is in the history already is not done: what the history owes is redone before it is acknowledged."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.requests import Inbound
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.engine.settling import Settling
from durablefuture_trio.history.state import RunState
from durablefuture_trio.memory_broker import AppendFate
from tests._support.holes import one_long_step, one_step, result_within, stage


class OwnerThatOnlyAcknowledges(RunOwner):
    """Its id is in the history: handled, acknowledge."""

    def _declare_lost(self, state: RunState, now: float) -> None:
        """Nothing is redone."""

    def _redelivered(self, message: Inbound, now: float) -> bool:
        self._inputs.popleft()
        self._anchors.consume(message.seq)
        for handle in self._anchors.release(0):
            self._out(out.Ack(handle))
        return True


async def dies_after_the_dispatch(owner: type[RunOwner]) -> tuple[object, int]:
    async with stage(owner=owner) as scene:
        await scene.start("A")
        handle = await scene.client.start(one_long_step, 20.0, id="w")
        await scene.until(5)
        await scene.takeover("A", "B")
        result = await result_within(handle, 1000)
        await trio.sleep(10)
        return result, scene.waiting()


async def test_h05_a_redelivered_start_repeats_the_activity_that_died_with_its_supervisor(
    autojump_clock: MockClock,
) -> None:
    assert await dies_after_the_dispatch(RunOwner) == ("done", 0)


async def test_h05_acknowledging_a_redelivered_start_leaves_nobody_to_wake_the_run(autojump_clock: MockClock) -> None:
    assert await dies_after_the_dispatch(OwnerThatOnlyAcknowledges) == (None, 0)


async def dies_before_the_listing(owner: type[RunOwner]) -> str:
    """The terminal commit is in, its listing record never gets out, the supervisor dies."""
    async with stage(owner=owner) as scene:
        scene.faults.next_append(AppendFate(lands_after=None), "df.test.r.>", count=1000)
        await scene.start("A")
        assert await scene.client.run(one_step, id="w") == "done"
        await scene.cluster.supervisors["A"].kill()
        scene.faults._appends._waiting.clear()
        await scene.start("B")
        await scene.until(100)
        assert scene.waiting() == 0
        listed = [item.status async for item in scene.client.list()]
        return listed[0] if listed else "not listed"


async def test_h05_a_redelivered_start_writes_the_listing_record_that_was_owed(autojump_clock: MockClock) -> None:
    assert await dies_before_the_listing(RunOwner) == "completed"


class SettlingThatOwesNothing(Settling):
    """Takes every listing record for written."""

    def _show(self, state: RunState, now: float, **circumstances: object) -> bool:
        return True


class OwnerThatOwesNothing(RunOwner):
    """Takes the message for done once its run has closed."""

    settling_type = SettlingThatOwesNothing


async def test_h05_acknowledging_before_the_listing_record_loses_it(autojump_clock: MockClock) -> None:
    assert await dies_before_the_listing(OwnerThatOwesNothing) == "not listed"
