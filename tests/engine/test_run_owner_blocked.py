"""Blocked runs: nothing is lost, nothing is activated, right code heals them; slow starts."""

from __future__ import annotations

import pytest

from durablefuture_trio.engine import outputs as out
from tests._support.owner import Driver, complete, schedule


def blocked_later() -> Driver:
    """A run with two calls whose first outcome the code cannot take."""
    driver = Driver().running(schedule(1), schedule(2))
    driver.succeeded(1)
    driver.is_blocked()
    return driver


def test_the_stimulus_that_blocked_is_committed_as_unfinished_and_kept_as_the_anchor() -> None:
    driver = blocked_later()
    assert driver.kinds[-1] == "ActivityCompleted"
    assert not driver.history.commits[-1].finished
    assert driver.acked == []
    project = [item for item in driver.log if isinstance(item, out.Project)][-1]
    assert "no such code" in project.blocked


def test_what_comes_while_it_is_blocked_is_committed_and_acknowledged_and_not_activated() -> None:
    driver = blocked_later()
    driver.succeeded(2, elsewhere=True)
    assert driver.kinds[-1] == "ActivityCompleted"
    assert not driver.asks(out.Activate)
    assert driver.acked == [100], "the oldest message anchors the run"


def test_it_is_tried_again_with_growing_pauses_and_goes_on_when_healed() -> None:
    driver = blocked_later()
    waits = []
    for _ in range(3):
        before = driver.now
        assert driver.wake_at is not None
        driver.later(driver.wake_at - driver.now)
        waits.append(driver.now - before)
        driver.is_blocked(out.Replay)
    assert waits == [1.0, 2.0, 4.0]
    assert driver.wake_at is not None
    driver.later(driver.wake_at - driver.now)
    driver.replayed(schedule(3))
    assert driver.owner.blocked is None
    assert driver.history.commits[-1].finished
    assert driver.dispatched[-1] == (3, 1)


def test_a_run_that_is_blocked_can_be_terminated() -> None:
    driver = blocked_later()
    driver.terminate()
    assert driver.kinds[-1] == "WorkflowTerminated"
    assert driver.answers[-1].answer == "applied"
    assert sorted(driver.acked) == [1, 100]  # type: ignore[type-var]  # the handles of this test are numbers


def test_a_run_that_is_blocked_times_out() -> None:
    driver = Driver().running(schedule(1), deadline=1060.0)
    driver.succeeded(1)
    driver.is_blocked()
    while driver.now < 1061.0 and driver.wake_at is not None and "WorkflowTimedOut" not in driver.kinds:
        driver.later(driver.wake_at - driver.now)
        if driver.asks(out.Replay):
            driver.is_blocked(out.Replay)
    assert driver.kinds[-1] == "WorkflowTimedOut"
    assert driver.now == 1060.0


def test_a_start_whose_code_is_missing_is_recorded_and_answered() -> None:
    driver = Driver()
    driver.start(seq=1)
    driver.is_blocked()
    assert driver.kinds == ["WorkflowStarted"]
    assert driver.answers[0].answer == "applied"
    assert driver.acked == []


def test_the_next_owner_of_a_blocked_run_tries_it_at_once() -> None:
    driver = blocked_later()
    heir = driver.heir()
    heir.start(seq=1)
    heir.replayed(complete())
    assert heir.kinds[-1] == "WorkflowCompleted"


# --- slow starts ---------------------------------------------------------------------------------------------------


def test_a_start_whose_code_takes_long_is_committed_alone_and_answered() -> None:
    driver = Driver()
    driver.start()
    driver.later(0.04)
    assert driver.kinds == []
    driver.later(0.01)
    assert driver.kinds == ["WorkflowStarted"]
    assert driver.answers[0].answer == "applied"
    assert not driver.history.commits[0].finished
    driver.activated(schedule(1))
    assert driver.kinds == ["WorkflowStarted", "ActivityScheduled"]
    assert driver.history.commits[1].finished
    assert driver.dispatched == [(1, 1)]


@pytest.mark.parametrize("commands", [(), (schedule(1),)])
def test_an_activation_answered_while_its_slow_start_is_being_committed_is_recorded_as_finished(
    commands: tuple[object, ...],
) -> None:
    driver = Driver()
    driver.held.add(out.Publish)
    driver.start()
    driver.later(0.05)
    assert driver.asks(out.Publish)
    driver.activated(*commands)  # type: ignore[arg-type]  # commands they are
    assert driver.dispatched == []
    driver.answer(out.Publish)
    assert [commit.finished for commit in driver.history.commits] == [False, True]
    assert len(driver.dispatched) == len(commands)


def test_the_owner_after_a_slow_start_goes_on_from_its_stimulus() -> None:
    driver = Driver()
    driver.start(seq=1)
    driver.later(0.05)
    heir = driver.heir()
    heir.start(seq=1)
    heir.replayed(schedule(1))
    assert heir.kinds == ["WorkflowStarted", "ActivityScheduled"]
    assert heir.dispatched == [(1, 1)]
