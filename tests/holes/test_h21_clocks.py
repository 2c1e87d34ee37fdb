"""Timers at the edges: clocks that differ a little, clocks that are wrong, deadlines that round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio import codec
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine import settling
from durablefuture_trio.engine.decide import decide_timer, needed_wake
from durablefuture_trio.engine.requests import Inbound, TimerFire
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.errors import WorkflowTimedOutError
from durablefuture_trio.history.events import TimerFired, WorkflowStarted
from durablefuture_trio.history.options import ActivityOptionsRecord, RetryPolicy
from durablefuture_trio.history.state import ActivityPhase, ActivityState, RunState, start_state
from durablefuture_trio.ports.frames import Activate, Activated
from durablefuture_trio.sandbox._host import ReplayHost
from durablefuture_trio.supervisor._clock import ServerClock
from durablefuture_trio.supervisor._ownership import Ownership
from durablefuture_trio.supervisor._shard import Shard
from tests._support.cluster import open_cluster
from tests._support.holes import DEFINITIONS, one_long_step, one_step, result_within, sleeps, stage

# --- a: the server's clock fires, the owner's says: not yet ----------------------------------------------------------


class LateClock(ServerClock):
    """Three tenths of a second behind the server, and does not know it."""

    def __init__(self, clock: ServerClock) -> None:
        super().__init__()
        self._clock = clock

    def now(self) -> float:
        return self._clock.now() - 0.3


def late_shard(*args: Any, clock: ServerClock, **others: Any) -> Shard:
    return Shard(*args, clock=LateClock(clock), **others)


class OwnerThatTrustsItsClock(RunOwner):
    """Takes a fire that its own clock does not agree with for a mistake, and acknowledges it."""

    def _take_fire(self, message: Inbound, fire: TimerFire, now: float) -> bool:
        state = self._running_state()
        if decide_timer(state, now) is not None:
            return super()._take_fire(message, fire, now)
        self._inputs.popleft()
        self._anchors.consume(message.seq)
        for handle in self._anchors.release(0):
            self._out(out.Ack(handle))
        return True


async def fired_early(owner: type[RunOwner]) -> object:
    async with stage(owner=owner, shard=late_shard) as scene:
        await scene.start("A")
        handle = await scene.client.start(sleeps, 10.0, id="w")
        await scene.until(9.9)  # the fire came at 9.75
        await scene.takeover("A", "B")
        return await result_within(handle, 3600)


async def test_h21_a_fire_means_that_the_time_has_come(autojump_clock: MockClock) -> None:
    assert await fired_early(RunOwner) == "woke"


async def test_h21_a_fire_that_is_not_due_yet_and_acknowledged_is_the_last(autojump_clock: MockClock) -> None:
    assert await fired_early(OwnerThatTrustsItsClock) is None


# --- b: the time of the event is the deadline's, not a moment before it ----------------------------------------------


def sleeping() -> tuple[ReplayHost, RunState]:
    """A run that sleeps until 1010."""
    host = ReplayHost(Registry.of([sleeps]).workflows)
    started = WorkflowStarted(
        id=1, at=1000.0, workflow_id="w", run_id="r", workflow="sleeps", arguments=codec.encode_arguments((10.0,))
    )
    state = start_state(started, 1)
    state.apply(started)
    [answer] = host.handle(Activate(exchange=1, run_id="r", activation=1, stimulus=started))
    assert isinstance(answer, Activated)
    state.wake_at = answer.wake_at
    return host, state


def not_raised(fired: TimerFired) -> TimerFired:
    """Stamped by a clock that is a moment behind."""
    return msgspec.structs.replace(fired, at=fired.deadline - 0.0003)


@pytest.mark.parametrize(("stamp", "wakes"), [(lambda fired: fired, True), (not_raised, False)])
def test_h21_a_timer_event_before_its_deadline_wakes_nobody(
    stamp: Callable[[TimerFired], TimerFired], wakes: bool
) -> None:
    host, state = sleeping()
    fired = decide_timer(state, 1010.0)
    assert fired is not None
    [answer] = host.handle(Activate(exchange=2, run_id="r", activation=2, stimulus=stamp(fired)))
    assert isinstance(answer, Activated)
    assert bool(answer.commands) is wakes
    host.close()


@pytest.mark.parametrize(
    ("now", "last_at", "expected"), [(1010.0, 1000.0, 1010.0), (1012.0, 1000.0, 1012.0), (1010.5, 1011.0, 1011.0)]
)
def test_h21_the_time_of_a_timer_event_is_the_latest_of_three(now: float, last_at: float, expected: float) -> None:
    _, state = sleeping()
    state.last_at = last_at
    fired = decide_timer(state, now)
    assert fired is not None
    assert (fired.at, fired.deadline) == (expected, 1010.0)


# --- c: a supervisor whose clock is an hour ahead --------------------------------------------------------------------


class HastyOwnership(Ownership):
    """Takes shards before it has compared its clock with the server's."""

    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self._has_compared_clocks = True


async def after_a_clock_that_was_ahead(ownership: type[Ownership], skew_s: float) -> float:
    """A's clock is ahead; B's is right, and comes when A has died. Returns when a sleep of ten seconds was over."""
    async with stage() as scene:
        scene.cluster.ownership_type = ownership
        await scene.cluster.start("A", skew_s=skew_s)
        with trio.move_on_after(2):
            await scene.client.start(sleeps, 10.0, id="w")
        await scene.until(3)
        await scene.cluster.supervisors["A"].kill()
        scene.cluster.ownership_type = Ownership
        await scene.start("B")
        await result_within(scene.client.handle("w"), 2 * 3600)
        return scene.now


@pytest.mark.parametrize("skew_s", [30.0, 3600.0])
async def test_h21_a_clock_that_is_ahead_makes_no_time_stand_still(autojump_clock: MockClock, skew_s: float) -> None:
    assert await after_a_clock_that_was_ahead(Ownership, skew_s) < 25


@pytest.mark.parametrize("skew_s", [30.0, 3600.0])
async def test_h21_owning_before_comparing_clocks_makes_time_stand_still(
    autojump_clock: MockClock, skew_s: float
) -> None:
    assert await after_a_clock_that_was_ahead(HastyOwnership, skew_s) > skew_s


# --- d: the next wake-up is the first of all sources -----------------------------------------------------------------


def waiting(*, wake_at: float | None, retry_at: float | None, deadline: float | None) -> RunState:
    started = WorkflowStarted(
        id=1,
        at=0.0,
        workflow_id="w",
        run_id="r",
        workflow="x",
        arguments=codec.encode_arguments(()),
        execution_deadline=deadline,
    )
    state = start_state(started, 1)
    state.wake_at = wake_at
    if retry_at is not None:
        state.in_backoff[1] = ActivityState(
            activity_id=1,
            name="a",
            arguments=codec.encode_arguments(()),
            options=ActivityOptionsRecord(retry_policy=RetryPolicy()),
            scheduled_at=0.0,
            phase=ActivityPhase.BACKOFF,
            retry_at=retry_at,
        )
    return state


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"wake_at": 3.0, "retry_at": 2.0, "deadline": 1.0}, 1.0),
        ({"wake_at": 3.0, "retry_at": 2.0, "deadline": None}, 2.0),
        ({"wake_at": 1.0, "retry_at": 2.0, "deadline": 3.0}, 1.0),
        ({"wake_at": None, "retry_at": None, "deadline": 3.0}, 3.0),
        ({"wake_at": None, "retry_at": None, "deadline": None}, None),
    ],
)
def test_h21_the_next_wake_up_is_the_first_of_all_sources(sources: dict[str, Any], expected: float | None) -> None:
    assert needed_wake(waiting(**sources)) == expected


def without_deadline(state: RunState, *, sandbox: bool = True) -> float | None:
    """Leaves one source out."""
    return state.wake_at


async def timed_out_at(monkeypatch: pytest.MonkeyPatch, needed: Callable[..., float | None]) -> float:
    """A parked run with an execution deadline after 20 s, asleep for an hour. Returns when it ended."""
    monkeypatch.setattr(settling, "needed_wake", needed)
    async with stage() as scene:
        await scene.start("A")
        handle = await scene.client.start(sleeps, 3600.0, id="w", execution_timeout=20.0)
        await scene.until(5)
        assert scene.waiting() == 1, "the run is not parked"
        with pytest.raises(WorkflowTimedOutError):
            await handle.result()
        return scene.now


async def test_h21_a_parked_run_ends_at_its_deadline(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await timed_out_at(monkeypatch, needed_wake) < 30


async def test_h21_a_source_that_is_left_out_is_noticed_an_hour_late(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await timed_out_at(monkeypatch, without_deadline) > 3000


async def test_h21_a_long_step_is_cut_at_the_deadline(autojump_clock: MockClock) -> None:
    async with stage() as scene:
        await scene.start("A")
        handle = await scene.client.start(one_long_step, 1000.0, id="w", execution_timeout=20.0)
        with pytest.raises(WorkflowTimedOutError):
            await handle.result()
        assert scene.now < 25


async def test_h21_a_supervisor_whose_clock_is_too_wrong_keeps_no_shard_from_the_others(
    autojump_clock: MockClock,
) -> None:
    async with open_cluster(DEFINITIONS, shards=4) as cluster:
        await cluster.start("B", skew_s=90.0)
        await cluster.start("A")
        async with cluster.client() as client:
            with trio.fail_after(30):
                for number in range(8):
                    assert await client.run(one_step, id=f"w{number}") == "done"
