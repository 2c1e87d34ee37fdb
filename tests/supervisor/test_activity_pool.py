"""Activity processes: where attempts run, what ends them, and who is to blame for a death."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.attempts import ActivityKey, AttemptCompleted, AttemptFailed, RunActivity
from durablefuture_trio.supervisor._activity_pool import WorkerActivityPool
from durablefuture_trio.supervisor.settings import ActivityPoolSettings, Settings, SupervisorSettings

pytestmark = pytest.mark.usefixtures("fake_children")


def settings(**pool: Any) -> Settings:
    defaults = {"processes": 1, "concurrency": 10}
    return Settings(
        supervisor=SupervisorSettings(roles=("activities",)),
        activity_pool=(ActivityPoolSettings(**{**defaults, **pool}),),
    )


class Dispatcher:
    """Dispatches attempts and keeps their outcomes by activity id."""

    def __init__(self, pool: WorkerActivityPool) -> None:
        self.pool = pool
        self.outcomes: dict[int, Any] = {}
        self.workers: dict[int, str] = {}

    def dispatch(self, activity_id: int, name: str, *, attempt: int = 1, alone: bool = False, **run: Any) -> None:
        key = ActivityKey("r", activity_id, attempt)
        frame = RunActivity(key=key, workflow_id="w", name=name, arguments=Payload(b"[]"), **run)

        def on_outcome(outcome: Any, worker: str) -> None:
            assert activity_id not in self.outcomes, "an outcome is reported once"
            self.outcomes[activity_id] = outcome
            self.workers[activity_id] = worker

        self.pool.dispatch(frame, "default", on_outcome, alone=alone)

    def retry(self, activity_id: int, name: str) -> None:
        del self.outcomes[activity_id]
        self.dispatch(activity_id, name, attempt=2)

    def cancel(self, activity_id: int) -> None:
        self.pool.cancel(ActivityKey("r", activity_id, 1))

    def reasons(self) -> dict[int, str]:
        return {number: getattr(outcome, "reason", "completed") for number, outcome in self.outcomes.items()}


async def test_attempts_run_and_report_which_process_ran_them(open_children: Any, eventually: Any) -> None:
    async with open_children(settings()) as children:
        work = Dispatcher(children.activities)
        assert children.activities.serves("default")
        assert not children.activities.serves("other")
        for number in range(25):
            work.dispatch(number, "echo")
        assert work.outcomes == {}, "an outcome never comes from within the dispatch"
        await eventually(lambda: len(work.outcomes) == 25)
        assert all(isinstance(outcome, AttemptCompleted) for outcome in work.outcomes.values())
        assert set(work.workers.values()) == {f"m0/{children.activities.slots[0].child.pid}"}


async def test_attempts_go_to_the_process_with_the_fewest_and_the_rest_waits_in_order(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings(processes=2, concurrency=2)) as children:
        pool = children.activities
        work = Dispatcher(pool)
        for number in range(6):
            work.dispatch(number, "hold")
        assert [len(slot.running) for slot in pool.slots] == [2, 2]
        assert (pool.running, pool.waiting, pool.free_places("default")) == (4, 2, 0)
        work.cancel(0)
        await eventually(lambda: len(work.outcomes) == 1)
        assert (pool.running, pool.waiting) == (4, 1)
        assert any(key.activity_id == 4 for slot in pool.slots for key in slot.running), "first come, first served"


async def test_a_crash_of_the_only_attempt_in_a_process_is_its_own_failure(open_children: Any, eventually: Any) -> None:
    async with open_children(settings(processes=2)) as children:
        work = Dispatcher(children.activities)
        work.dispatch(1, "hold")
        work.dispatch(2, "crash")
        await eventually(lambda: 2 in work.outcomes)
        outcome = work.outcomes[2]
        assert isinstance(outcome, AttemptFailed)
        assert (outcome.reason, outcome.failure.type) == ("crashed", "ProcessCrashed")
        assert "SIGSEGV" in outcome.failure.message
        assert 1 not in work.outcomes, "the neighbour process is not touched"


async def test_after_a_shared_crash_each_runs_alone_once_and_the_culprit_convicts_itself(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings(processes=2, concurrency=10)) as children:
        pool = children.activities
        work = Dispatcher(pool)
        with_culprit = pool.slots[0]
        pool.slots[1].reserved = True  # all go into one process
        for number in range(4):
            work.dispatch(number, "hold")
        work.dispatch(4, "exit")
        await eventually(lambda: len(work.outcomes) == 5)
        assert set(work.reasons().values()) == {"lost"}
        pool.slots[1].reserved = False
        await eventually(lambda: with_culprit.child is not None)

        most_at_once: list[int] = []
        work.retry(4, "exit")
        for number in range(3):
            work.retry(number, "hold")
        most_at_once.append(max(len(slot.running) for slot in pool.slots))
        await eventually(lambda: 4 in work.outcomes)
        assert most_at_once == [1]
        assert work.reasons() == {3: "lost", 4: "crashed"}

        # The culprit is known, so the one that has not been dispatched again yet is free to share a process.
        work.retry(3, "hold")
        assert not pool._suspects.holds(ActivityKey("r", 3, 2))


async def test_a_suspect_that_ends_well_is_acquitted(open_children: Any, eventually: Any) -> None:
    async with open_children(settings()) as children:
        pool = children.activities
        work = Dispatcher(pool)
        work.dispatch(1, "hold")
        work.dispatch(2, "hold")
        pool.slots[0].child.kill()
        await eventually(lambda: len(work.outcomes) == 2)
        assert work.reasons() == {1: "lost", 2: "lost"}
        work.retry(1, "echo")
        work.retry(2, "echo")
        await eventually(lambda: len(work.outcomes) == 2)
        assert work.reasons() == {1: "completed", 2: "completed"}
        assert not pool._suspects.holds(ActivityKey("r", 1, 3))
        await eventually(lambda: not pool.slots[0].reserved)


async def test_an_attempt_that_has_to_be_alone_waits_until_its_process_is_empty_and_keeps_others_out(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings()) as children:
        pool = children.activities
        work = Dispatcher(pool)
        work.dispatch(1, "hold")
        work.dispatch(2, "hold", alone=True)
        work.dispatch(3, "hold")
        assert [key.activity_id for key in pool.slots[0].running] == [1]
        work.cancel(1)
        await eventually(lambda: 1 in work.outcomes)
        assert [key.activity_id for key in pool.slots[0].running] == [2]
        work.cancel(2)
        await eventually(lambda: 2 in work.outcomes)
        assert [key.activity_id for key in pool.slots[0].running] == [3]


async def test_cancelling_the_attempt_that_was_to_be_alone_lets_the_others_in_again(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings()) as children:
        work = Dispatcher(children.activities)
        work.dispatch(1, "hold")
        work.dispatch(2, "hold", alone=True)
        work.dispatch(3, "hold")
        work.cancel(2)
        await eventually(lambda: 2 in work.outcomes)
        assert work.outcomes[2].reason == "cancelled"
        assert [key.activity_id for key in children.activities.slots[0].running] == [1, 3]


async def test_a_cancel_that_is_not_heeded_ends_in_a_kill_and_neighbours_are_lost_but_no_suspects(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings(grace_period=0.2)) as children:
        pool = children.activities
        work = Dispatcher(pool)
        work.dispatch(1, "stubborn")
        work.dispatch(2, "hold")
        work.cancel(1)
        await eventually(lambda: len(work.outcomes) == 2)
        assert work.reasons() == {1: "cancelled", 2: "lost"}
        assert "grace period" in work.outcomes[1].failure.message
        assert not pool._suspects.holds(ActivityKey("r", 2, 2))


@pytest.mark.parametrize(
    ("limits", "timeout"),
    [
        ({"start_to_close": 0.1}, "start_to_close"),
        ({"deadline": 0.1, "timeout": "schedule_to_close"}, "schedule_to_close"),
    ],
)
async def test_an_attempt_over_its_time_and_grace_is_killed_and_its_neighbour_is_free(
    open_children: Any, eventually: Any, limits: dict[str, Any], timeout: str
) -> None:
    if "deadline" in limits:
        limits = {**limits, "deadline": time.time() + limits["deadline"]}
    async with open_children(settings(grace_period=0.2)) as children:
        work = Dispatcher(children.activities)
        work.dispatch(1, "hold", **limits)
        work.dispatch(2, "hold")
        await eventually(lambda: len(work.outcomes) == 2)
        assert work.reasons() == {1: "timed_out", 2: "lost"}
        assert work.outcomes[1].timeout == timeout


async def test_an_attempt_whose_deadline_passes_while_it_waits_for_a_place_times_out(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings(concurrency=1)) as children:
        work = Dispatcher(children.activities)
        work.dispatch(1, "hold")
        work.dispatch(2, "hold", deadline=time.time() + 0.1, timeout="schedule_to_start")
        await eventually(lambda: 2 in work.outcomes)
        assert (work.outcomes[2].reason, work.outcomes[2].timeout) == ("timed_out", "schedule_to_start")
        assert 1 not in work.outcomes


async def test_an_attempt_that_is_dispatched_twice_runs_once_and_reports_to_the_second(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings()) as children:
        first, second = Dispatcher(children.activities), Dispatcher(children.activities)
        first.dispatch(1, "hold")
        second.dispatch(1, "hold")
        second.cancel(1)
        await eventually(lambda: second.outcomes)
        assert first.outcomes == {}
        assert children.activities.running == 0


async def test_draining_waits_for_what_runs_and_starts_nothing_more(open_children: Any, eventually: Any) -> None:
    async with open_children(settings(concurrency=1)) as children:
        work = Dispatcher(children.activities)
        work.dispatch(1, "hold")
        work.dispatch(2, "hold")
        drained = trio.Event()

        async def drain() -> None:
            await children.drain()
            drained.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await trio.testing.wait_all_tasks_blocked()
            assert not drained.is_set()
            work.cancel(1)
            await eventually(drained.is_set)
        assert list(work.outcomes) == [1]
        assert children.activities.waiting == 1
