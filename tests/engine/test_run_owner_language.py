"""Signals, updates, cancels, queries, children, and runs that go on in another run."""

from __future__ import annotations

import pytest

from durablefuture_trio import codec
from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.commands import (
    CancelChild,
    CancelWorkflow,
    CompleteUpdate,
    ContinueAsNew,
    FailWorkflow,
    RecordMarker,
    RequestExternal,
    StartChild,
)
from durablefuture_trio.engine.requests import (
    CancelRequest,
    ChildReport,
    ExternalReport,
    QueryRequest,
    SignalRequest,
    StartRequest,
    TerminateRequest,
    UpdateRequest,
)
from durablefuture_trio.history.events import (
    CallerRecord,
    CarriedSignal,
    ParentClose,
    WorkflowStarted,
)
from durablefuture_trio.history.options import RetryPolicy
from tests._support.owner import NO_ARGUMENTS, Driver, complete, schedule

PARENT = CallerRecord("parent", "parent-run", 7)
BOOM = Failure(type="Boom", message="boom")


def signal(driver: Driver, name: str = "go", *, request: str = "s1", seq: int | None = None, run_id: str = "") -> int:
    return driver.put(
        SignalRequest(workflow_id="w", name=name, arguments=NO_ARGUMENTS, run_id=run_id), request=request, seq=seq
    )


def update(driver: Driver, update_id: str = "u1", *, request: str = "u1", seq: int | None = None) -> int:
    envelope = UpdateRequest(workflow_id="w", update_id=update_id, name="change", arguments=NO_ARGUMENTS)
    return driver.put(envelope, request=request, seq=seq)


def child(call: int = 1, *, parent_close: ParentClose = "terminate") -> StartChild:
    return StartChild(
        call=call, workflow_id=f"w-{call}", workflow="kid", arguments=NO_ARGUMENTS, parent_close=parent_close
    )


def letters(driver: Driver) -> list[object]:
    """What was sent to other workflows, oldest first."""
    return [item.letter for item in driver.log if isinstance(item, out.Send)]


# --- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_is_answered_when_it_is_in_the_history() -> None:
    driver = Driver().running(wake_at=5000.0)
    driver.held.add(out.Publish)
    signal(driver)
    driver.activated(wake_at=5000.0)
    assert driver.kinds[-1] == "WorkflowStarted"
    assert [answer.request_id for answer in driver.answers] == ["q1"]
    driver.answer(out.Publish)
    assert driver.kinds[-1] == "SignalReceived"
    assert driver.answers[-1].answer == "applied"


def test_a_signal_sent_twice_under_one_request_id_is_received_once() -> None:
    driver = Driver().running(wake_at=5000.0)
    signal(driver)
    driver.activated(wake_at=5000.0)
    signal(driver)
    assert driver.kinds.count("SignalReceived") == 1
    assert [answer.answer for answer in driver.answers[1:]] == ["applied", "applied"]


def test_a_signal_that_meets_a_closed_run_is_reported_as_not_delivered() -> None:
    driver = Driver().running(complete())
    signal(driver)
    assert driver.answers[-1].answer == "closed"
    assert "SignalReceived" not in driver.kinds


def test_a_start_with_a_signal_gives_it_to_the_new_run_and_to_an_open_one() -> None:
    driver = Driver()
    envelope = StartRequest(
        workflow_id="w",
        workflow="flow",
        arguments=NO_ARGUMENTS,
        conflict="use_existing",
        signal=CarriedSignal("go", NO_ARGUMENTS),
    )
    driver.put(envelope, request="q1")
    driver.activated(wake_at=5000.0)
    started = driver.history.events[0]
    assert isinstance(started, WorkflowStarted)
    assert [item.name for item in started.signals] == ["go"]
    driver.put(envelope, request="q2")
    driver.activated(wake_at=5000.0)
    assert driver.kinds == ["WorkflowStarted", "SignalReceived"]
    assert driver.answers[-1].answer == "existing"
    driver.put(envelope, request="q2")
    assert driver.kinds.count("SignalReceived") == 1


# --- cancels ----------------------------------------------------------------------------------------------------------


def test_a_cancel_is_a_stimulus_and_a_second_one_is_answered_without_another() -> None:
    driver = Driver().running(wake_at=5000.0)
    driver.put(CancelRequest(workflow_id="w", reason="enough"), request="c1")
    driver.activated(wake_at=5000.0)
    driver.put(CancelRequest(workflow_id="w"), request="c2")
    assert driver.kinds == ["WorkflowStarted", "CancelRequested"]
    assert [answer.answer for answer in driver.answers[1:]] == ["applied", "applied"]
    assert driver.state.cancel_reason == "enough"


def test_a_run_that_lets_itself_be_cancelled_is_cancelled() -> None:
    driver = Driver().running(wake_at=5000.0)
    driver.put(CancelRequest(workflow_id="w", reason="enough"), request="c1")
    driver.activated(CancelWorkflow(reason="enough"))
    assert driver.kinds[-1] == "WorkflowCancelled"
    assert driver.owner.is_idle


# --- updates ----------------------------------------------------------------------------------------------------------


def answered(driver: Driver, *, failure: Failure | None = None, result: Payload | None = None) -> None:
    question = driver.pop(out.Ask)
    driver.owner.answered(question.token, result, failure, driver.now)
    driver._pump()


def test_an_update_that_its_validator_refuses_leaves_no_event() -> None:
    driver = Driver().running(wake_at=5000.0)
    update(driver)
    answered(driver, failure=BOOM)
    assert driver.kinds == ["WorkflowStarted"]
    assert (driver.answers[-1].answer, driver.answers[-1].failure) == ("rejected", BOOM)


def test_m03_a_refused_update_stays_refused_for_the_next_owner() -> None:
    driver = Driver().running(wake_at=5000.0)
    seq = update(driver)
    answered(driver, failure=BOOM)
    assert seq not in driver.acked
    signal(driver)
    driver.activated(wake_at=5000.0)
    assert seq in driver.acked
    heir = driver.heir()
    update(heir)
    assert heir.answers[-1].answer == "rejected"
    assert not heir.asks(out.Ask)


def test_an_accepted_update_is_answered_when_it_is_completed() -> None:
    driver = Driver().running(wake_at=5000.0)
    update(driver)
    answered(driver)
    driver.activated(wake_at=5000.0)
    assert driver.kinds[-1] == "UpdateAccepted"
    assert len(driver.answers) == 1
    signal(driver)
    driver.activated(CompleteUpdate(update_id="u1", result=codec.encode_value(5)), wake_at=5000.0)
    assert [answer.result for answer in driver.answers if answer.request_id == "u1"] == [codec.encode_value(5)]


def test_an_update_that_comes_many_times_runs_once_and_everybody_is_answered() -> None:
    driver = Driver().running(wake_at=5000.0)
    update(driver, request="a")
    answered(driver)
    driver.activated(wake_at=5000.0)
    update(driver, request="b")
    signal(driver)
    driver.activated(CompleteUpdate(update_id="u1", result=codec.encode_value(5)), wake_at=5000.0)
    update(driver, request="c")
    assert driver.kinds.count("UpdateAccepted") == 1
    answers = {answer.request_id: answer.result for answer in driver.answers if answer.request_id in "abc"}
    assert answers == dict.fromkeys("abc", codec.encode_value(5))


def test_m04_whoever_waits_for_an_update_of_a_run_that_ends_is_told() -> None:
    driver = Driver().running(wake_at=5000.0)
    update(driver)
    answered(driver)
    driver.activated(complete())
    assert [(answer.request_id, answer.answer) for answer in driver.answers[1:]] == [("u1", "failed")]


# --- queries ----------------------------------------------------------------------------------------------------------


def query(driver: Driver) -> None:
    question = QueryRequest(workflow_id="w", name="state", arguments=NO_ARGUMENTS, request_id="k", reply="to/k")
    driver.owner.asked(question, driver.now)
    driver._pump()


def test_a_query_is_answered_by_the_cached_run_and_leaves_nothing() -> None:
    driver = Driver().running(wake_at=5000.0)
    query(driver)
    answered(driver, result=codec.encode_value("fine"))
    assert (driver.answers[-1].answer, driver.answers[-1].result) == ("answered", codec.encode_value("fine"))
    assert len(driver.history.commits) == 1
    assert driver.owner.is_idle


def test_a_query_sees_what_was_acknowledged_before() -> None:
    driver = Driver().running(wake_at=5000.0)
    signal(driver)
    query(driver)
    assert not driver.asks(out.Ask)
    driver.activated(wake_at=5000.0)
    assert driver.pop(out.Ask).activation == 2


def test_a_closed_run_is_loaded_for_a_query_and_dropped_again() -> None:
    heir = Driver().running(complete()).heir()
    query(heir)
    assert heir.pop(out.Replay).keep
    heir.owner.replayed(heir.owner._token, (), None, heir.now)
    answered(heir, result=codec.encode_value("closed"))
    assert heir.answers[-1].answer == "answered"
    assert heir.owner.is_idle
    assert isinstance(next(item for item in reversed(heir.log) if isinstance(item, out.Evict)), out.Evict)


def test_a_query_of_nobody_is_answered_so() -> None:
    driver = Driver()
    query(driver)
    assert driver.answers[-1].answer == "not_found"
    assert driver.owner.is_idle


# --- children ---------------------------------------------------------------------------------------------------------


def report(what: str, **fields: object) -> ChildReport:
    return ChildReport(workflow_id="w", run_id="", call=1, what=what, **fields)  # type: ignore[arg-type]


def stored(driver: Driver) -> None:
    """The server has all messages to others."""
    while driver.asks(out.Send):
        driver.owner.sent(driver.pop(out.Send).key, driver.now)
        driver._pump()


def test_a_child_is_started_after_the_commit_that_asks_for_it() -> None:
    driver = Driver()
    driver.held.add(out.Publish)
    driver.start(seq=1)
    driver.activated(child())
    assert letters(driver) == []
    driver.answer(out.Publish)
    (letter,) = letters(driver)
    assert isinstance(letter, StartRequest)
    assert letter.parent == CallerRecord("w", driver.run_id, 1)
    assert driver.acked == []
    stored(driver)
    assert driver.acked == [1]


def test_m10_a_parent_that_dies_before_the_start_is_stored_sends_it_again_under_the_same_request() -> None:
    driver = Driver().running(child())
    heir = driver.heir()
    signal(heir)
    if heir.asks(out.Replay):
        heir.replayed()
    heir.activated()
    first, again = (next(item for item in one.log if isinstance(item, out.Send)) for one in (driver, heir))
    assert (first.request_id, first.letter) == (again.request_id, again.letter)


def test_a_child_reports_its_start_and_its_end() -> None:
    driver = Driver().running(child())
    stored(driver)
    run_id = driver.run_id
    for what, fields in (("started", {"child_run_id": "kid"}), ("completed", {"result": codec.encode_value(1)})):
        letter = ChildReport(workflow_id="w", run_id=run_id, call=1, what=what, **fields)  # type: ignore[arg-type]
        driver.put(letter)
        driver.activated()
        driver.put(letter)
    assert driver.kinds == ["WorkflowStarted", "ChildInitiated", "ChildStarted", "ChildCompleted"]


def test_a_start_by_a_parent_is_answered_to_its_inbox_and_held_until_that_is_stored() -> None:
    driver = Driver()
    envelope = StartRequest(workflow_id="w", workflow="flow", arguments=NO_ARGUMENTS, parent=PARENT)
    driver.put(envelope, request="parent-run/7", seq=1)
    driver.activated(wake_at=5000.0)
    (started,) = letters(driver)
    assert isinstance(started, ChildReport)
    assert (started.workflow_id, started.call, started.what) == ("parent", 7, "started")
    assert driver.acked == []
    stored(driver)
    assert driver.acked == [1]
    driver.put(envelope, request="parent-run/7", seq=2)
    assert len(letters(driver)) == 2
    assert driver.kinds == ["WorkflowStarted"]


def test_the_end_of_a_child_is_told_to_its_parent_by_whoever_owns_it() -> None:
    driver = Driver()
    envelope = StartRequest(workflow_id="w", workflow="flow", arguments=NO_ARGUMENTS, parent=PARENT)
    driver.put(envelope, request="parent-run/7", seq=1)
    stored(driver)
    driver.activated(complete())
    heir = driver.heir()
    heir.put(envelope, request="parent-run/7", seq=1)
    for owner in (driver, heir):
        ends = [item for item in letters(owner) if isinstance(item, ChildReport) and item.what == "completed"]
        assert len(ends) == 1
    assert 1 not in heir.acked
    stored(heir)
    assert 1 in heir.acked


@pytest.mark.parametrize(
    ("policy", "kind"), [("terminate", TerminateRequest), ("cancel", CancelRequest), ("abandon", None)]
)
def test_what_becomes_of_children_when_their_parent_ends(policy: ParentClose, kind: type | None) -> None:
    driver = Driver().running(child(parent_close=policy))
    stored(driver)
    report_ = ChildReport(workflow_id="w", run_id=driver.run_id, call=1, what="started", child_run_id="kid")
    driver.put(report_)
    driver.activated(complete())
    assert [type(item) for item in letters(driver)[1:]] == ([] if kind is None else [kind])
    heir = driver.heir()
    heir.put(report_, seq=1)
    assert [type(item) for item in letters(heir)] == ([] if kind is None else [kind])


def test_the_cancel_of_a_child_waits_for_its_start_to_be_stored() -> None:
    driver = Driver().running(child())
    signal(driver)
    driver.activated(CancelChild(call=1))
    assert [type(item) for item in letters(driver)] == [StartRequest]
    stored(driver)
    assert [type(item) for item in letters(driver)] == [StartRequest, CancelRequest]


def test_a_word_to_another_workflow_is_resolved_by_its_answer() -> None:
    driver = Driver().running(RequestExternal(call=1, kind="signal", workflow_id="other", name="go"))
    (letter,) = letters(driver)
    assert isinstance(letter, SignalRequest)
    driver.put(ExternalReport(workflow_id="w", run_id=driver.run_id, call=1, failure=BOOM))
    driver.activated()
    assert driver.kinds[-1] == "ExternalResolved"


def test_a_signal_of_a_workflow_is_answered_to_its_inbox() -> None:
    driver = Driver().running(wake_at=5000.0)
    seq = driver.put(
        SignalRequest(workflow_id="w", name="go", arguments=NO_ARGUMENTS, sender=PARENT), request="parent-run/7"
    )
    driver.activated(wake_at=5000.0)
    assert letters(driver) == [ExternalReport(workflow_id="parent", run_id="parent-run", call=7)]
    assert seq not in driver.acked
    stored(driver)
    assert seq in driver.acked


# --- runs that go on --------------------------------------------------------------------------------------------------

AGAIN = ContinueAsNew(
    workflow="flow", arguments=codec.encode_arguments((2,)), signals=(CarriedSignal("go", NO_ARGUMENTS),)
)


def test_h11_a_run_continues_as_new_in_one_commit() -> None:
    driver = Driver().running(wake_at=5000.0)
    first = driver.run_id
    driver.put(CancelRequest(workflow_id="w", reason="enough"), request="c1")
    driver.activated(AGAIN)
    driver.activated(wake_at=5000.0)
    last = driver.history.commits[-1]
    assert [type(event).__name__ for event in last.events] == ["CancelRequested", "ContinuedAsNew", "WorkflowStarted"]
    started = last.events[-1]
    assert isinstance(started, WorkflowStarted)
    assert (started.continued_from, started.chain_id, started.cancel_reason) == (first, first, "enough")
    assert [item.name for item in started.signals] == ["go"]
    signal(driver, run_id=first)
    driver.activated(wake_at=5000.0)
    assert driver.answers[-1].answer == "applied"


def test_a_run_that_continues_at_once_does_so_in_a_commit_of_its_own() -> None:
    driver = Driver()
    driver.start(seq=1)
    driver.activated(RecordMarker(patch="p"), AGAIN)
    driver.activated(complete())
    kinds = [[type(event).__name__ for event in commit.events] for commit in driver.history.commits]
    assert kinds == [["WorkflowStarted", "MarkerRecorded"], ["ContinuedAsNew", "WorkflowStarted", "WorkflowCompleted"]]
    assert not driver.history.commits[0].finished


def test_a_run_that_continues_at_once_goes_on_under_another_owner() -> None:
    driver = Driver()
    driver.start(seq=1)
    driver.activated(AGAIN)
    heir = driver.heir()
    heir.history.bodies = {1: driver.history.bodies[1]}
    heir.start(seq=1)
    heir.replayed(AGAIN)
    heir.activated(complete())
    assert heir.kinds == ["WorkflowStarted", "ContinuedAsNew", "WorkflowStarted", "WorkflowCompleted"]


def test_a_failed_workflow_is_tried_again_as_its_policy_says() -> None:
    driver = Driver()
    policy = RetryPolicy(initial_interval=10.0, maximum_attempts=2)
    envelope = StartRequest(workflow_id="w", workflow="flow", arguments=NO_ARGUMENTS, retry_policy=policy)
    driver.put(envelope, request="q1")
    driver.activated(wake_at=5000.0)
    signal(driver)
    driver.activated(FailWorkflow(failure=BOOM))
    driver.activated(wake_at=5000.0)
    started = driver.history.events[-1]
    assert isinstance(started, WorkflowStarted)
    assert (started.attempt, started.not_before) == (2, 1010.0)
    signal(driver, request="s2")
    driver.activated(FailWorkflow(failure=BOOM))
    assert driver.kinds[-1] == "WorkflowFailed"
    assert driver.kinds.count("WorkflowStarted") == 2


def test_h11_what_a_replaced_parent_owes_its_children_is_in_the_first_event_of_the_next_run() -> None:
    driver = Driver().running(child())
    driver.start("q2", seq=2, conflict="terminate_existing")
    driver.activated(schedule(1))
    heir = driver.heir()
    heir.start("q2", seq=2)
    assert [type(item) for item in letters(heir)] == [StartRequest]
    stored(heir)
    assert [type(item) for item in letters(heir)] == [StartRequest, TerminateRequest]


# --- limits -----------------------------------------------------------------------------------------------------------


def test_m14_a_run_with_too_many_events_is_warned_about_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("run_drafting", "run_owner"):
        monkeypatch.setattr(f"durablefuture_trio.engine.{module}.HISTORY_LIMIT_EVENTS", 8)
    monkeypatch.setattr("durablefuture_trio.engine.run_drafting.SUGGESTED_EVENTS", 5)
    driver = Driver().running(wake_at=5000.0)
    while driver.asks(out.Activate) or driver.state.terminal is None:
        signal(driver, request=f"s{driver.state.signals}")
        if driver.asks(out.Activate):
            driver.activated(wake_at=5000.0)
    warnings = [item.message for item in driver.log if isinstance(item, out.Report) and item.level == "warning"]
    assert len(warnings) == 1
    assert "continue as new" in warnings[0]
    assert driver.kinds == ["WorkflowStarted", *["SignalReceived"] * 7, "HistoryLimitExceeded"]
    assert driver.owner.is_idle


def test_a_run_that_was_sent_too_many_signals_refuses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durablefuture_trio.engine.admission.MAX_SIGNALS", 1)
    driver = Driver().running(wake_at=5000.0)
    signal(driver)
    driver.activated(wake_at=5000.0)
    signal(driver, request="s2")
    assert driver.answers[-1].answer == "limit"
    assert driver.kinds.count("SignalReceived") == 1


def test_the_next_run_of_an_id_has_the_last_result() -> None:
    driver = Driver().running(complete())
    result = driver.state.terminal
    driver.start("q2", seq=2)
    driver.activated(FailWorkflow(failure=BOOM))
    driver.start("q3", seq=3)
    driver.activated(wake_at=5000.0)
    assert driver.state.started.last_result == result.result  # type: ignore[union-attr]


def test_h05_a_closed_run_tells_its_parent_until_a_commit_says_that_it_is_stored() -> None:
    driver = Driver()
    envelope = StartRequest(workflow_id="w", workflow="flow", arguments=NO_ARGUMENTS, parent=PARENT)
    driver.put(envelope, request="parent-run/7", seq=1)
    driver.activated(complete())
    heir = driver.heir()
    signal(heir, seq=9)  # whatever has the run loaded
    assert [item.what for item in letters(heir) if isinstance(item, ChildReport)] == ["completed"]
    stored(heir)
    assert heir.history.commits[-1].events == ()
    last = heir.heir()
    signal(last, request="s2", seq=10)
    assert letters(last) == []
    assert last.owner.is_idle


@pytest.mark.parametrize("again", [False, True], ids=["the next start", "the next attempt"])
def test_m04_an_update_that_failed_with_its_run_is_not_carried_out_by_the_next(again: bool) -> None:
    driver = Driver()
    policy = RetryPolicy(initial_interval=1.0) if again else None
    envelope = StartRequest(workflow_id="w", workflow="flow", arguments=NO_ARGUMENTS, retry_policy=policy)
    driver.put(envelope, request="q1")
    driver.activated(wake_at=5000.0)
    update(driver, request="a")
    answered(driver)
    driver.activated(FailWorkflow(failure=BOOM))
    if not again:
        driver.start("q2")
    driver.activated(wake_at=5000.0)
    update(driver, request="b")
    assert [(it.request_id, it.answer) for it in driver.answers if it.request_id in "ab"] == [
        ("a", "failed"),
        ("b", "failed"),
    ]
    assert driver.kinds.count("UpdateAccepted") == 1
