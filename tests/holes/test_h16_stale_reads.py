"""A replica may be behind. What ends in an acknowledgement and no commit needs the leader's word."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.errors import WorkflowNotFoundError
from durablefuture_trio.history.state import RunState
from durablefuture_trio.memory_broker import ReadFate
from durablefuture_trio.protocol.loading import HistoryReader, NumberedCommit, load_state, numbered
from tests._support.holes import SUBJECTS, Stage, result_within, retries_hourly, sleeps, stage
from tests._support.owner import Driver, schedule


class OwnerThatTrustsReplicas(RunOwner):
    """Takes what it has loaded for the truth."""

    def _become(self, state: RunState | None) -> None:
        super()._become(state)
        self._is_confirmed = True


async def terminate_on_a_stale_view(owner: type[RunOwner]) -> str:
    """The run is parked and its owner gone; the next one is asked to end it, and reads a replica that knows nothing of
    the id yet."""
    async with stage(owner=owner) as scene:
        await scene.start("A")
        handle = await scene.client.start(sleeps, 3600.0, id="w")
        await scene.until(5)
        assert scene.waiting() == 1, "the run is not parked"
        scene.faults.next_read(ReadFate(stale_by=100), "df.test.h.0.>", count=1)
        await scene.takeover("A", "B")
        try:
            await handle.terminate()
        except WorkflowNotFoundError:
            return "not found"
        return (await handle.describe()).status


async def test_h16_nothing_is_refused_on_the_word_of_a_replica(autojump_clock: MockClock) -> None:
    assert await terminate_on_a_stale_view(RunOwner) == "terminated"


async def test_h16_a_stale_read_taken_for_the_truth_refuses_a_workflow_that_runs(autojump_clock: MockClock) -> None:
    assert await terminate_on_a_stale_view(OwnerThatTrustsReplicas) == "not found"


async def result_on_a_stale_view(owner: type[RunOwner]) -> float:
    """The result of an activity comes back to an owner whose replica does not know of the activity. Returns when the
    run went on."""
    async with stage(owner=owner) as scene:
        await scene.start("A")
        handle = await scene.client.start(retries_hourly, 0.0, id="w")
        await scene.until(5)
        assert scene.waiting() == 1, "the run is not parked"
        await scene.takeover("A", "B")
        scene.faults.next_read(ReadFate(stale_by=100), "df.test.h.0.>", count=1)
        assert handle.run_id is not None
        await scene.report_success("w", handle.run_id)
        await result_within(handle, 3600)
        return scene.now


async def test_h16_a_result_is_not_dropped_on_the_word_of_a_replica(autojump_clock: MockClock) -> None:
    assert await result_on_a_stale_view(RunOwner) < 60


async def test_h16_a_stale_read_taken_for_the_truth_drops_a_result(autojump_clock: MockClock) -> None:
    assert await result_on_a_stale_view(OwnerThatTrustsReplicas) > 3000


class TrustingReader(HistoryReader):
    """Takes the commits that come for all there are."""

    async def _chunk(self, workflow_id: str, start: int, stop: int) -> list[NumberedCommit]:
        prefix = self._subjects.history_prefix(workflow_id)
        found = await self._broker.many("DF_test_H0", [f"{prefix}{n}" for n in range(start, stop)])
        return [numbered(stored) for stored in found]


async def test_h16_a_batch_that_is_behind_is_asked_for_again(autojump_clock: MockClock) -> None:
    async with stage() as scene:
        await recorded(scene)
        broker = scene.server.connect("reader")
        scene.faults.next_read(ReadFate(), "df.test.h.0.>", count=2)  # the tip is as it is
        scene.faults.next_read(ReadFate(stale_by=3), "df.test.h.0.>", count=10)
        state = await load_state(HistoryReader(broker, SUBJECTS), "w")
        assert state is not None
        assert state.tip_n == 3
        assert not state.activities


async def test_h16_a_batch_that_is_behind_taken_for_all_there_is_shows_a_run_that_has_long_gone_on(
    autojump_clock: MockClock,
) -> None:
    async with stage() as scene:
        await recorded(scene)
        broker = scene.server.connect("reader")
        scene.faults.next_read(ReadFate(), "df.test.h.0.>", count=2)
        scene.faults.next_read(ReadFate(stale_by=1), "df.test.h.0.>", count=10)
        state = await load_state(TrustingReader(broker, SUBJECTS), "w")
        assert state is not None
        assert state.tip_n == 2
        assert state.in_backoff, "its activity should still seem to wait for a retry"


async def test_h16_a_batch_that_breaks_off_is_not_a_shorter_history(autojump_clock: MockClock) -> None:
    async with stage() as scene:
        await recorded(scene)
        broker = scene.server.connect("reader")
        scene.faults.next_read(ReadFate(), "df.test.h.0.>", count=2)
        scene.faults.next_read(ReadFate(incomplete=True), "df.test.h.0.>", count=2)
        state = await load_state(HistoryReader(broker, SUBJECTS), "w")
        assert state is not None
        assert state.tip_n == 3


async def recorded(scene: Stage) -> None:
    """A run of three commits that goes on."""
    await scene.start("A")
    handle = await scene.client.start(retries_hourly, 3600.0, id="w")
    await scene.until(5)
    assert handle.run_id is not None
    await scene.report_success("w", handle.run_id)
    await trio.sleep(1)
    assert (await handle.history())[-1].n == 3


def loaded_from_a_replica_after_a_lost_commit(owner: type[RunOwner], *, knows_nothing: bool) -> Driver:
    """The owner of a run with a short timer loses a commit to a rival and reads the history again, from a replica that
    is behind: it knows nothing of the run yet, or does not know of the rival's commit."""
    driver = Driver(owner_type=owner).running(wake_at=1000.5)
    stale = None if knows_nothing else driver.history.state()
    if stale is not None:
        stale.wake_at = None
    rival = driver.heir()
    rival.start(seq=1)
    rival.later(0.5)
    rival.replayed(wake_at=1000.5)
    rival.activated(schedule(1))
    assert rival.dispatched == [(1, 1)]
    driver.held.update({out.Publish, out.Load, out.Confirm})
    driver.later(0.5)
    driver.activated(schedule(1))
    driver.answer(out.Publish)
    driver.pop(out.Load)
    driver.owner.loaded(stale, driver.now)
    driver.answer()
    return driver


@pytest.mark.parametrize("knows_nothing", [True, False])
def test_h16_the_last_message_is_not_let_go_on_the_word_of_a_replica(knows_nothing: bool) -> None:
    driver = loaded_from_a_replica_after_a_lost_commit(RunOwner, knows_nothing=knows_nothing)
    assert driver.acked == []
    driver.answer(out.Confirm, out.Load)
    assert driver.acked == []
    assert driver.kinds.count("TimerFired") == 1
    assert driver.dispatched == [(1, 2)], "what the rival had begun is repeated here"


@pytest.mark.parametrize("knows_nothing", [True, False])
def test_h16_letting_it_go_leaves_nobody_to_wake_the_run(knows_nothing: bool) -> None:
    driver = loaded_from_a_replica_after_a_lost_commit(OwnerThatTrustsReplicas, knows_nothing=knows_nothing)
    assert driver.acked == [1]
    assert driver.armed == {}
