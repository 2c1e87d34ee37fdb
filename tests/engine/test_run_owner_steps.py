"""Activities: scheduled by a commit, run after it, recorded once."""

from __future__ import annotations

import pytest

from durablefuture_trio.codec import encode_value
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.attempts import AttemptCompleted
from tests._support.owner import FAST, Driver, complete, schedule


def test_a_step_is_one_commit_with_the_outcome_and_what_follows() -> None:
    driver = Driver().running(schedule(1))
    driver.succeeded(1)
    driver.activated(schedule(2))
    driver.succeeded(2)
    driver.activated(complete("end"))
    assert driver.kinds == [
        "WorkflowStarted",
        "ActivityScheduled",
        "ActivityStarted",
        "ActivityCompleted",
        "ActivityScheduled",
        "ActivityStarted",
        "ActivityCompleted",
        "WorkflowCompleted",
    ]
    assert driver.history.tip_n == 3
    assert [event.id for event in driver.history.events] == list(range(1, 9))


def test_nothing_is_dispatched_before_its_commit_is_acknowledged() -> None:
    driver = Driver().running(schedule(1))
    driver.held.add(out.Publish)
    driver.succeeded(1)
    driver.activated(schedule(2))
    assert driver.dispatched == [(1, 1)]
    driver.answer(out.Publish)
    assert driver.dispatched == [(1, 1), (2, 1)]


def test_outcomes_during_a_commit_collect_and_go_into_the_next_one_in_order() -> None:
    driver = Driver().running(*(schedule(call) for call in (1, 2, 3)))
    driver.held.add(out.Publish)
    driver.succeeded(2)
    driver.activated()
    driver.succeeded(1)
    driver.succeeded(3)
    assert not driver.asks(out.Activate), "nothing is activated before the commit it follows is acknowledged"
    driver.answer(out.Publish)
    driver.activated()
    driver.activated(complete())
    assert driver.history.tip_n == 3
    done = [event.activity_id for event in driver.history.events if type(event).__name__ == "ActivityCompleted"]  # type: ignore[union-attr] # it has one
    assert done == [2, 1, 3]


def test_each_stimulus_is_activated_alone_and_numbered() -> None:
    driver = Driver().running(schedule(1), schedule(2))
    driver.succeeded(1)
    driver.succeeded(2)
    assert driver.activated().activation == 2
    assert driver.activated(complete()).activation == 3


@pytest.mark.parametrize("elsewhere", [True, False])
def test_the_second_outcome_of_an_attempt_is_dropped(elsewhere: bool) -> None:
    driver = Driver().running(schedule(1), schedule(2))
    driver.succeeded(1)
    driver.activated()
    before = driver.kinds
    driver.succeeded(1, elsewhere=elsewhere)
    assert driver.kinds == before
    assert not driver.asks(out.Activate)


def test_the_outcome_of_another_run_of_the_id_is_dropped() -> None:
    driver = Driver().running(schedule(1))
    old = driver.key(1)
    driver.start("q2", conflict="terminate_existing")
    driver.activated(schedule(1))
    before = driver.kinds
    driver.succeeded(1)  # of the new run: counts
    assert driver.kinds == before
    driver.activated()
    assert driver.kinds[-1] == "ActivityCompleted"
    driver.owner.outcome(AttemptCompleted(key=old, started_at=1.0, result=encode_value(1)), "here", driver.now)
    assert not driver.asks(out.Activate)


def test_a_run_whose_sandbox_keeps_nothing_is_replayed_before_each_stimulus_and_gets_on() -> None:
    driver = Driver().running(schedule(1))
    driver.drops()
    for call in (1, 2, 3):
        driver.succeeded(call)
        driver.replayed()
        driver.activated(schedule(call + 1))
    assert driver.kinds.count("ActivityCompleted") == 3
    assert driver.dispatched == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert all(commit.finished for commit in driver.history.commits)


def test_a_run_dropped_between_its_replay_and_its_stimulus_commits_that_and_replays_on() -> None:
    driver = Driver().running(schedule(1))
    driver.drops()
    driver.succeeded(1)
    driver.replayed()
    driver.missing()
    assert [commit.finished for commit in driver.history.commits] == [True, False]
    driver.replayed(schedule(2))
    assert driver.history.commits[-1].finished
    assert driver.dispatched == [(1, 1), (2, 1)]


def test_time_never_goes_back_whatever_the_clock_says() -> None:
    driver = Driver().running(schedule(1, retry_policy=FAST))
    driver.now -= 500.0
    driver.succeeded(1)
    driver.activated(complete())
    times = [event.at for event in driver.history.events]
    assert times == sorted(times)
