"""Retries: events, timers, and what late outcomes still count for."""

from __future__ import annotations

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.history.events import ActivityFailed
from durablefuture_trio.history.options import RetryPolicy
from tests._support.owner import FAST, Driver, complete, schedule


def test_a_failed_attempt_is_followed_by_the_next_one_when_its_backoff_is_over() -> None:
    driver = Driver().running(schedule(1, retry_policy=FAST))
    driver.failed(1)
    assert driver.kinds[-2:] == ["ActivityStarted", "ActivityFailed"]
    assert not driver.asks(out.Activate), "workflow code never sees it"
    assert driver.armed == {driver.history.tip_n: 1010.0}
    driver.fire(driver.history.tip_n, 1010.0)
    assert driver.dispatched == [(1, 1), (1, 2)], "the server's clock says that the time has come"
    assert driver.kinds[-1] == "ActivityScheduled"


def test_a_short_backoff_needs_no_schedule() -> None:
    driver = Driver().running(schedule(1, retry_policy=RetryPolicy(initial_interval=0.5)))
    driver.failed(1)
    assert (driver.armed, driver.wake_at) == ({}, 1000.5)
    driver.later(0.4)
    assert driver.dispatched == [(1, 1)]
    driver.later(0.1)
    assert driver.dispatched == [(1, 1), (1, 2)]


def test_the_last_attempt_is_final_and_workflow_code_sees_it() -> None:
    driver = Driver().running(schedule(1, retry_policy=RetryPolicy(initial_interval=0.1, maximum_attempts=2)))
    driver.failed(1)
    driver.later(0.1)
    driver.failed(1, 2)
    driver.activated(complete())
    final = [event for event in driver.history.events if isinstance(event, ActivityFailed)]
    assert [event.retry_at is None for event in final] == [False, True]
    assert driver.kinds[-1] == "WorkflowCompleted"


def test_a_success_of_an_earlier_attempt_during_the_backoff_completes_the_call() -> None:
    driver = Driver().running(schedule(1, retry_policy=FAST))
    driver.failed(1, reason="timed_out")
    driver.succeeded(1, elsewhere=True)
    driver.activated(complete())
    assert driver.kinds[-3:] == ["ActivityStarted", "ActivityCompleted", "WorkflowCompleted"]
    assert driver.dispatched == [(1, 1)]


def test_a_failure_of_an_earlier_attempt_during_the_backoff_is_dropped() -> None:
    driver = Driver().running(schedule(1, retry_policy=FAST))
    driver.failed(1, reason="timed_out")
    before = driver.kinds
    driver.failed(1, elsewhere=True)
    assert driver.kinds == before


def test_a_success_of_an_earlier_attempt_completes_the_call_and_ends_the_current_attempt() -> None:
    driver = Driver().running(schedule(1, retry_policy=RetryPolicy(initial_interval=0.1)))
    driver.failed(1, reason="timed_out")
    driver.later(0.1)
    assert driver.dispatched == [(1, 1), (1, 2)]
    driver.succeeded(1, 1, elsewhere=True)
    driver.activated(complete())
    assert driver.pop(out.CancelAttempt).key == driver.key(1, 2)
    before = driver.kinds
    driver.failed(1, 2, reason="cancelled")
    assert driver.kinds == before


def test_a_failure_of_an_earlier_attempt_does_not_count_for_the_current_one() -> None:
    driver = Driver().running(schedule(1, retry_policy=RetryPolicy(initial_interval=0.1)))
    driver.failed(1)
    driver.later(0.1)
    before = driver.kinds
    driver.failed(1, 1, elsewhere=True)
    assert driver.kinds == before
    driver.succeeded(1, 2)
    assert driver.asks(out.Activate)


def test_what_ran_on_a_dead_owner_is_a_lost_attempt_and_then_the_next_one() -> None:
    dead = Driver().running(schedule(1, retry_policy=FAST), schedule(2, retry_policy=RetryPolicy(maximum_attempts=1)))
    heir = dead.heir()
    heir.start(seq=1)
    heir.replayed()
    lost = [event for event in heir.history.events if isinstance(event, ActivityFailed)]
    assert [(event.activity_id, event.reason, event.free) for event in lost] == [(1, "lost", True), (2, "lost", False)]
    assert heir.dispatched == [(1, 2)], "maximum_attempts=1 means at most once"


def test_the_same_owner_under_a_new_epoch_loses_nothing_that_it_runs() -> None:
    driver = Driver().running(schedule(1))
    driver.owner.suspend()
    driver.owner.resume(driver.now)
    driver.start(seq=1)
    assert driver.dispatched == [(1, 1)]
    assert "ActivityFailed" not in driver.kinds
    driver.succeeded(1)
    driver.activated(complete())
    assert driver.kinds[-1] == "WorkflowCompleted"
