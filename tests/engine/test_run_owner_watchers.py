"""Workflows that wait for the end of another: the owner of the run that is waited for, and of the one that waits."""

from __future__ import annotations

import pytest

from durablefuture_trio import codec
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.commands import (
    CancelWorkflow,
    Command,
    ContinueAsNew,
    FailWorkflow,
    RecordMarker,
    RequestExternal,
)
from durablefuture_trio.engine.requests import (
    CancelRequest,
    ChildReport,
    ExternalReport,
    SignalRequest,
    StartRequest,
    WatchRequest,
)
from durablefuture_trio.history.events import CallerRecord, ExternalResolved, WatcherAdded, WorkflowStarted
from durablefuture_trio.history.options import RetryPolicy
from tests._support.owner import NO_ARGUMENTS, Driver, complete

ASKER = CallerRecord("asker", "asker-run", 7)
OTHER = CallerRecord("asker", "asker-run", 8)
BOOM = Failure(type="Boom", message="boom")
AGAIN = ContinueAsNew(workflow="flow", arguments=NO_ARGUMENTS)


def watch(driver: Driver, sender: CallerRecord = ASKER, *, run_id: str = "", seq: int | None = None) -> int:
    envelope = WatchRequest(workflow_id="w", run_id=run_id, sender=sender)
    return driver.put(envelope, request=f"{sender.run_id}/{sender.call}", seq=seq)


def step(driver: Driver, *commands: Command, request: str = "s1", seq: int | None = None) -> None:
    """A signal comes, and the code does this."""
    driver.put(SignalRequest(workflow_id="w", name="go", arguments=NO_ARGUMENTS), request=request, seq=seq)
    driver.activated(*commands, wake_at=5000.0)


def told(driver: Driver) -> list[ExternalReport]:
    """What those who wait were sent, oldest first."""
    letters = [item.letter for item in driver.log if isinstance(item, out.Send)]
    return [letter for letter in letters if isinstance(letter, ExternalReport)]


def failures(driver: Driver) -> list[tuple[str, str]]:
    return [(item.failure.type, item.failure.message) for item in told(driver) if item.failure is not None]


def stored(driver: Driver) -> None:
    """The server has all messages to others."""
    while driver.asks(out.Send):
        driver.owner.sent(driver.pop(out.Send).key, driver.now)
        driver._pump()


RESULT = ExternalReport(workflow_id="asker", run_id="asker-run", call=7, result=codec.encode_value(5))


# --- an open run ------------------------------------------------------------------------------------------------------


def test_whoever_waits_for_an_open_run_is_told_its_result_after_the_commit_that_ends_it() -> None:
    driver = Driver().running(wake_at=5000.0)
    watch(driver)
    assert driver.kinds == ["WorkflowStarted", "WatcherAdded"]
    driver.held.add(out.Publish)
    step(driver, complete(5))
    assert told(driver) == []
    driver.answer(out.Publish)
    assert told(driver) == [RESULT]


def test_a_run_takes_a_watcher_without_its_code_and_is_done_with_the_message() -> None:
    heir = Driver().running(wake_at=5000.0).heir()
    seq = watch(heir)
    assert not heir.asks(out.Replay)
    assert not heir.asks(out.Activate)
    assert heir.history.commits[-1].finished
    assert heir.acked == [seq]
    assert heir.owner.is_idle


def test_a_blocked_run_takes_a_watcher_and_tells_it_of_its_termination() -> None:
    driver = Driver()
    driver.start(seq=1)
    driver.is_blocked()
    watch(driver)
    driver.terminate()
    assert failures(driver) == [("WorkflowTerminatedError", "workflow 'w' was terminated: no reason was given")]


@pytest.mark.parametrize(
    ("command", "failure"),
    [
        (
            FailWorkflow(failure=BOOM),
            Failure(type="WorkflowFailedError", message="workflow 'w' failed: Boom: boom", cause=BOOM),
        ),
        (
            CancelWorkflow(reason="enough"),
            Failure(
                type="WorkflowCancelledError",
                message="workflow 'w' was cancelled: enough",
                info={"reason": "enough"},
            ),
        ),
    ],
)
def test_the_end_of_a_run_by_its_own_code_is_told_as_it_was(command: Command, failure: Failure) -> None:
    driver = Driver().running(wake_at=5000.0)
    watch(driver)
    driver.put(CancelRequest(workflow_id="w", reason="enough"), request="c1")
    driver.activated(command)
    assert [item.failure for item in told(driver)] == [failure]


def test_a_run_that_times_out_says_so() -> None:
    driver = Driver().running(deadline=1100.0, wake_at=5000.0)
    watch(driver)
    driver.later(100.0)
    driver.fire(1, 1100.0)
    assert failures(driver) == [("WorkflowTimedOutError", "workflow 'w' was still open at its execution deadline")]


def test_a_run_that_grew_too_long_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("run_drafting", "run_owner"):
        monkeypatch.setattr(f"durablefuture_trio.engine.{module}.HISTORY_LIMIT_EVENTS", 2)
    driver = Driver().running(wake_at=5000.0)
    watch(driver)
    assert failures(driver)[0][0] == "WorkflowFailedError"
    assert "more than 2 events" in failures(driver)[0][1]


def test_everybody_who_waits_is_told() -> None:
    driver = Driver().running(wake_at=5000.0)
    watch(driver)
    watch(driver, OTHER)
    step(driver, complete(5))
    assert [item.call for item in told(driver)] == [7, 8]


def test_a_request_that_comes_again_adds_no_second_watcher() -> None:
    driver = Driver().running(wake_at=5000.0)
    seq = watch(driver)
    again = watch(driver)
    heir = driver.heir()
    watch(heir, seq=seq)
    assert driver.kinds.count("WatcherAdded") == 1
    assert (again in driver.acked, seq in heir.acked) == (True, True)
    assert told(driver) == told(heir) == []


def test_nor_does_one_that_comes_again_when_its_id_is_forgotten() -> None:
    driver = Driver().running(wake_at=5000.0)
    watch(driver)
    for number in range(100):
        step(driver, request=f"s{number}")
    assert "asker-run/7" not in driver.state.requests
    watch(driver)
    assert driver.kinds.count("WatcherAdded") == 1


def test_a_run_has_a_limited_number_of_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durablefuture_trio.engine.admission.MAX_WATCHERS", 1)
    driver = Driver().running(wake_at=5000.0)
    watch(driver)
    seq = watch(driver, OTHER)
    ((kind, words),) = failures(driver)
    assert kind == "RequestFailedError"
    assert "the limit" in words
    assert seq not in driver.acked
    # Its owner dies before the answer is stored; by then the mark of a commit is above the message.
    step(driver)
    assert driver.history.commits[-1].consumed > seq
    heir = driver.heir()
    watch(heir, OTHER, seq=seq)
    assert [item.call for item in told(heir)] == [8]
    stored(heir)
    assert seq in heir.acked


# --- a closed run, and none -------------------------------------------------------------------------------------------


def test_whoever_asks_for_a_closed_run_is_told_at_once_and_the_message_is_held_until_that_is_stored() -> None:
    driver = Driver().running(complete(5))
    seq = watch(driver)
    assert told(driver) == [RESULT]
    assert driver.kinds == ["WorkflowStarted", "WorkflowCompleted"]
    assert seq not in driver.acked
    heir = driver.heir()
    watch(heir, seq=seq)
    assert told(heir) == [RESULT]
    stored(driver)
    assert seq in driver.acked
    assert driver.owner.is_idle


def test_each_of_those_who_ask_for_a_closed_run_is_done_with_when_its_own_answer_is_stored() -> None:
    driver = Driver().running(complete(5))
    first, second = watch(driver), watch(driver, OTHER)
    driver.owner.sent(driver.pop(out.Send).key, driver.now)
    driver._pump()
    assert second not in driver.acked
    stored(driver)
    assert {first, second} <= set(driver.acked)


def test_an_id_that_nobody_knows_has_no_end() -> None:
    driver = Driver()
    seq = watch(driver)
    assert failures(driver) == [("WorkflowNotFoundError", "no workflow has the id 'w'")]
    stored(driver)
    assert driver.acked == [seq]


def test_a_run_that_is_not_the_latest_is_refused() -> None:
    driver = Driver().running(complete(5))
    first = driver.run_id
    driver.start("q2")
    driver.activated(wake_at=5000.0)
    watch(driver, run_id=first)
    ((kind, words),) = failures(driver)
    assert kind == "WorkflowNotFoundError"
    assert "is not the latest" in words
    assert "WatcherAdded" not in driver.kinds


# --- runs that go on in another one -----------------------------------------------------------------------------------


def test_a_run_that_continues_as_new_hands_its_watchers_over_and_tells_nobody() -> None:
    driver = Driver().running(wake_at=5000.0)
    first = driver.run_id
    watch(driver, run_id=first)
    step(driver, AGAIN)
    driver.activated(wake_at=5000.0)
    assert driver.kinds[-2:] == ["ContinuedAsNew", "WorkflowStarted"]
    assert told(driver) == []
    watch(driver)
    watch(driver, OTHER, run_id=first)
    heir = driver.heir()
    heir.put(SignalRequest(workflow_id="w", name="go", arguments=NO_ARGUMENTS), request="s2", seq=200)
    heir.replayed(wake_at=5000.0)
    heir.activated(complete(5))
    assert [(item.call, item.result) for item in told(heir)] == [(7, RESULT.result), (8, RESULT.result)]
    assert heir.kinds.count("WatcherAdded") == 2


def test_a_run_that_is_tried_again_tells_the_end_of_its_last_attempt() -> None:
    driver = Driver()
    policy = RetryPolicy(initial_interval=10.0, maximum_attempts=2)
    driver.put(
        StartRequest(workflow_id="w", workflow="flow", arguments=NO_ARGUMENTS, retry_policy=policy), request="q1"
    )
    driver.activated(wake_at=5000.0)
    watch(driver)
    step(driver, FailWorkflow(failure=BOOM))
    driver.activated(wake_at=5000.0)
    assert told(driver) == []
    step(driver, FailWorkflow(failure=BOOM), request="s2")
    assert failures(driver) == [("WorkflowFailedError", "workflow 'w' failed: Boom: boom")]


REPLACED = ("WorkflowTerminatedError", "workflow 'w' was terminated: replaced by a new run of workflow id 'w'")


def test_h11_watchers_of_a_run_that_is_replaced_are_told_whoever_dies() -> None:
    driver = Driver().running(wake_at=5000.0)
    watch(driver)
    driver.start("q2", seq=200, conflict="terminate_existing")
    driver.activated(wake_at=5000.0)
    assert failures(driver) == [REPLACED]
    heir = driver.heir()
    heir.start("q2", seq=200)
    assert failures(heir) == [REPLACED]
    assert told(heir) == told(driver)
    stored(heir)
    assert 200 in heir.acked
    assert heir.state.watchers == {}


@pytest.mark.parametrize("is_stored", [False, True])
def test_h11_nor_are_they_forgotten_when_the_next_run_is_gone_before_they_are_told(is_stored: bool) -> None:
    for end in ("replaced", "continued"):
        driver = Driver().running(wake_at=5000.0)
        watch(driver)
        driver.start("q2", seq=200, conflict="terminate_existing")
        driver.activated(wake_at=5000.0)
        if is_stored:
            stored(driver)
        if end == "replaced":
            driver.start("q3", seq=300, conflict="terminate_existing")
        else:
            step(driver, AGAIN, seq=300)
        driver.activated(wake_at=5000.0)
        last = driver.history.events[-1]
        assert isinstance(last, WorkflowStarted)
        assert last.replaced_watchers == (() if is_stored else (ASKER,))
        heir = driver.heir()
        heir.start("q2", seq=200)
        assert failures(heir) == ([] if is_stored else [REPLACED])


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_an_owner_that_dies_before_the_report_is_stored_is_followed_by_one_that_sends_it() -> None:
    driver = Driver().running(wake_at=5000.0)
    watch(driver)
    seq = driver.put(SignalRequest(workflow_id="w", name="go", arguments=NO_ARGUMENTS), request="s1")
    driver.activated(complete(5))
    assert seq not in driver.acked
    heir = driver.heir()
    heir.put(SignalRequest(workflow_id="w", name="go", arguments=NO_ARGUMENTS), request="s1", seq=seq)
    assert told(heir) == told(driver) == [RESULT]
    assert seq not in heir.acked
    stored(heir)
    assert heir.acked == [seq]


def test_a_commit_that_is_lost_takes_its_watcher_along_and_the_request_is_decided_again() -> None:
    driver = Driver().running(wake_at=5000.0)
    heir = driver.heir()
    heir.put(SignalRequest(workflow_id="w", name="go", arguments=NO_ARGUMENTS), request="s1")
    heir.replayed(wake_at=5000.0)
    heir.activated(complete(5))
    seq = watch(driver)
    assert "WatcherAdded" not in driver.kinds
    assert told(driver) == [RESULT]
    stored(driver)
    assert seq in driver.acked


@pytest.mark.parametrize("waits", ["watcher", "parent"])
def test_h11_the_end_of_a_run_is_told_before_the_next_run_of_its_id_begins(waits: str) -> None:
    driver = Driver()
    parent = ASKER if waits == "parent" else None
    start = StartRequest(workflow_id="w", workflow="flow", arguments=NO_ARGUMENTS, parent=parent)
    driver.put(start, request="q1", seq=1)
    driver.activated(wake_at=5000.0)
    stored(driver)
    if waits == "watcher":
        watch(driver)
    step(driver, complete(5))
    driver.start("q2", seq=200)
    assert not driver.asks(out.Activate)
    end = driver.pop(out.Send)
    assert isinstance(end.letter, ExternalReport | ChildReport)
    driver.owner.sent(end.key, driver.now)
    driver._pump()
    driver.activated(wake_at=5000.0)
    assert driver.kinds.count("WorkflowStarted") == 2


# --- the one who waits ------------------------------------------------------------------------------------------------

ASKS = RequestExternal(call=1, kind="result", workflow_id="other", run_id="r1")


def test_a_workflow_that_waits_asks_the_other_ones_owner_under_an_id_of_its_call() -> None:
    driver = Driver().running(ASKS)
    heir = driver.heir()
    heir.start(seq=1)
    for one in (driver, heir):
        sent = one.pop(out.Send)
        sender = CallerRecord("w", driver.run_id, 1)
        assert sent.letter == WatchRequest(workflow_id="other", run_id="r1", sender=sender)
        assert sent.request_id == f"{driver.run_id}/1"


@pytest.mark.parametrize("failure", [None, BOOM])
def test_the_end_it_is_told_is_one_stimulus_however_often_it_comes(failure: Failure | None) -> None:
    driver = Driver().running(ASKS)
    result = codec.encode_value(5) if failure is None else None
    report = ExternalReport(workflow_id="w", run_id=driver.run_id, call=1, failure=failure, result=result)
    driver.put(report)
    driver.activated(RecordMarker(patch="told"), wake_at=5000.0)
    driver.put(report)
    assert not driver.asks(out.Activate)
    (event,) = [event for event in driver.history.events if isinstance(event, ExternalResolved)]
    assert (event.call, event.failure, event.result) == (1, failure, result)


def test_a_watcher_is_recorded_with_its_call() -> None:
    driver = Driver().running(wake_at=5000.0)
    watch(driver)
    (event,) = [event for event in driver.history.events if isinstance(event, WatcherAdded)]
    assert (event.caller, event.request_id) == (ASKER, "asker-run/7")
