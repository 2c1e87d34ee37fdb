"""A start is recorded and answered whatever the workflow's code does."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from durablefuture_trio.engine.run_owner import RunOwner
from tests._support.holes import DEFINITIONS, one_step, result_within, stage

WITHOUT_IT = tuple(item for item in DEFINITIONS if item is not one_step)


class OwnerThatWaitsForCode(RunOwner):
    """Commits a start together with its first activation, never before."""

    def _may_publish(self, now: float) -> bool:
        return super()._may_publish(now) and not (self.blocked is not None and self._starts_run(self._draft))


async def started_without_code(owner: type[RunOwner]) -> tuple[bool, object]:
    """The supervisor has no such workflow. Returns whether the client got its answer within a minute, and the result
    once a supervisor with the code has come."""
    async with stage(owner=owner, definitions=WITHOUT_IT) as scene:
        await scene.start("A")
        with trio.move_on_after(60) as waited:
            handle = await scene.client.start(one_step, id="w")
            description = await handle.describe()
            await scene.until(5)
            assert description.status in ("running", "blocked")
            assert "one_step" in ((await handle.describe()).blocked or "")
        if waited.cancelled_caught:
            return False, None
        scene.cluster.registry = type(scene.cluster.registry).of(DEFINITIONS)
        await scene.takeover("A", "B")
        return True, await result_within(handle, 60)


async def test_m12_a_start_is_answered_before_its_code_is_there(autojump_clock: MockClock) -> None:
    assert await started_without_code(RunOwner) == (True, "done")


async def test_m12_waiting_for_the_code_keeps_the_client_waiting(autojump_clock: MockClock) -> None:
    assert await started_without_code(OwnerThatWaitsForCode) == (False, None)
