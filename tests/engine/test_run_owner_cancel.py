"""Cancelled calls: the attempt is told, awaited, and its end is the answer; abandoned ones are not awaited."""

from __future__ import annotations

import pytest

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.attempts import ActivityKey
from durablefuture_trio.history.events import FailureReason
from tests._support.owner import FAST, Driver, cancel, complete, schedule


def cancelled_keys(driver: Driver) -> list[ActivityKey]:
    return [item.key for item in driver.log if isinstance(item, out.CancelAttempt)]


def cancelling(**options: object) -> Driver:
    """A call whose result is no longer wanted."""
    driver = Driver().running(schedule(1, **options), schedule(2))
    driver.succeeded(2)
    driver.held.add(out.Publish)
    driver.activated(cancel(1))
    assert cancelled_keys(driver) == [], "nothing leaves before its commit"
    driver.answer(out.Publish)
    assert cancelled_keys(driver) == [driver.key(1)]
    return driver


@pytest.mark.parametrize("reason", ["cancelled", "crashed", "timed_out", "lost"])
def test_the_end_of_the_attempt_is_the_answer_and_nothing_is_retried(reason: FailureReason) -> None:
    driver = cancelling(retry_policy=FAST)
    driver.failed(1, reason=reason)
    driver.activated(complete())
    assert "ActivityCancelled" in driver.kinds
    assert driver.dispatched == [(1, 1), (2, 1)]


def test_a_result_that_comes_anyway_is_returned() -> None:
    driver = cancelling()
    driver.succeeded(1)
    driver.activated(complete())
    assert driver.kinds[-3:] == ["ActivityStarted", "ActivityCompleted", "WorkflowCompleted"]


def test_an_error_of_its_own_is_the_final_failure() -> None:
    driver = cancelling(retry_policy=FAST)
    driver.failed(1, reason="error")
    driver.activated(complete())
    assert "ActivityFailed" in driver.kinds
    assert driver.dispatched == [(1, 1), (2, 1)]


def test_a_call_cancelled_during_its_backoff_is_answered_at_once() -> None:
    driver = Driver().running(schedule(1, retry_policy=FAST), schedule(2))
    driver.failed(1)
    driver.succeeded(2)
    driver.activated(cancel(1))
    driver.activated(complete())
    assert driver.kinds[-2:] == ["ActivityCancelled", "WorkflowCompleted"]
    driver.later(100.0)
    assert driver.dispatched == [(1, 1), (2, 1)]


@pytest.mark.parametrize("comes", ["success", "failure"])
def test_an_abandoned_call_is_told_and_not_awaited_and_what_comes_later_is_dropped(comes: str) -> None:
    driver = cancelling(abandon_on_cancel=True)
    assert not driver.state.activities
    before = driver.kinds
    if comes == "success":
        driver.succeeded(1)
    else:
        driver.failed(1, reason="cancelled")
    assert driver.kinds == before
    assert not driver.asks(out.Activate)


def test_attempts_that_run_when_the_run_ends_are_told() -> None:
    driver = Driver().running(schedule(1), schedule(2))
    driver.succeeded(2)
    driver.activated(complete())
    assert cancelled_keys(driver) == [driver.key(1)]
