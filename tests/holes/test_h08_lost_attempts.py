"""An activity that takes its supervisor along must not run as attempt 1 for ever."""

from __future__ import annotations

from trio.testing import MockClock

from durablefuture_trio.authoring import activity, workflow
from durablefuture_trio.engine import effects
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.errors import WorkflowFailedError
from durablefuture_trio.history.options import RetryPolicy
from durablefuture_trio.history.state import RunState
from tests._support.holes import stage


@activity(retry_policy=RetryPolicy(initial_interval=0.1, maximum_attempts=2))
async def takes_its_supervisor_along() -> None:
    return None


@workflow
async def poisonous() -> None:
    await takes_its_supervisor_along()


class OwnerThatRepeats(RunOwner):
    """Dispatches what the dead owner had dispatched once more, under the same number."""

    def _declare_lost(self, state: RunState, now: float) -> None:
        for call in state.activities.values():
            self._drafting().effects.append(effects.dispatch(state, call))


async def every_supervisor_dies(owner: type[RunOwner], lives: int) -> tuple[list[int], object]:
    """Kill each supervisor as soon as it runs the activity. Returns the attempts seen, and how the run ended."""
    async with stage(owner=owner, definitions=(takes_its_supervisor_along, poisonous)) as scene:
        world = scene.cluster.world
        world.duration = (1000.0, 1000.0)
        await scene.start("A")
        handle = await scene.client.start(poisonous, id="w")
        for _ in range(lives):
            await scene.until(scene.now + 10)
            if (await handle.describe()).closed_at is not None:
                break
            await scene.takeover("A", "A")
        attempts = [witness.key.attempt for witness in world.witnesses]
        if (await handle.describe()).closed_at is None:
            return attempts, None
        try:
            await handle.result()
        except WorkflowFailedError as error:
            return attempts, error.cause
        return attempts, "completed"


async def test_h08_attempts_that_die_with_their_supervisor_are_counted_and_end(autojump_clock: MockClock) -> None:
    attempts, cause = await every_supervisor_dies(RunOwner, lives=12)
    assert attempts == [1, 2, 3, 4, 5, 6, 7, 8], "before each of the policy's two attempts three losses are free"
    assert "lost" in str(cause).lower() or "gone" in str(cause).lower()


async def test_h08_without_lost_attempts_every_supervisor_dies_of_attempt_one(autojump_clock: MockClock) -> None:
    attempts, cause = await every_supervisor_dies(OwnerThatRepeats, lives=12)
    assert len(attempts) >= 12
    assert set(attempts) == {1}
    assert cause is None
