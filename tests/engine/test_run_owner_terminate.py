"""Terminations need no sandbox and wait for nothing."""

from __future__ import annotations

import pytest

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.history.events import WorkflowStarted
from tests._support.owner import Driver, complete, schedule


def test_a_terminate_does_not_wait_for_an_activation_that_does_not_end() -> None:
    driver = Driver().running(schedule(1))
    driver.succeeded(1)
    question = driver.pop(out.Activate)
    driver.terminate()
    assert driver.kinds[-3:] == ["ActivityStarted", "ActivityCompleted", "WorkflowTerminated"]
    assert driver.answers[-1].answer == "applied"
    assert any(isinstance(item, out.Evict) for item in driver.log)
    driver.owner.activated(question.token, [complete()], None, driver.now)
    assert driver.kinds[-1] == "WorkflowTerminated", "what the sandbox says now concerns nobody"


def test_a_terminate_does_not_wait_for_a_replay() -> None:
    driver = Driver().running(schedule(1))
    driver.drops()
    driver.succeeded(1)
    assert driver.asks(out.Replay)
    driver.terminate()
    assert driver.kinds[-1] == "WorkflowTerminated"
    assert "ActivityCompleted" not in driver.kinds
    question = driver.pop(out.Replay)
    driver.owner.replayed(question.token, [], None, driver.now)
    assert not driver.asks(out.Activate)


def test_a_terminate_ends_a_start_that_was_not_even_committed() -> None:
    driver = Driver()
    driver.start()
    driver.terminate()
    assert driver.kinds == ["WorkflowStarted", "WorkflowTerminated"]
    assert [answer.answer for answer in driver.answers] == ["applied", "applied"]


def test_a_terminate_that_jumped_the_queue_and_is_delivered_again_ends_no_later_run() -> None:
    driver = Driver().running(schedule(1))
    driver.succeeded(1)
    driver.terminate("t1", seq=50)
    driver.start("q2", seq=60)
    driver.activated(schedule(1))
    driver.terminate("t1", seq=50)
    assert driver.answers[-1].answer == "applied"
    assert driver.state.terminal is None


def test_the_requests_a_terminate_jumped_over_are_still_decided() -> None:
    driver = Driver().running(schedule(1))
    driver.succeeded(1)
    driver.start("q2", seq=50)
    driver.terminate("t1", seq=60)
    assert [answer.answer for answer in driver.answers] == ["applied", "applied", "already_started"]
    heir = driver.heir()
    heir.start("q2", seq=50)
    assert heir.answers[-1].answer == "already_started"
    assert heir.kinds.count("WorkflowStarted") == 1


@pytest.mark.parametrize(
    ("scene", "answer"),
    [("nothing", "not_found"), ("closed", "closed"), ("another run", "closed"), ("this run", "applied")],
)
def test_what_stands_against_a_terminate(scene: str, answer: str) -> None:
    driver = Driver()
    run_id = ""
    if scene != "nothing":
        driver.running(*([complete()] if scene == "closed" else [schedule(1)]))
        run_id = driver.run_id
    if scene == "another run":
        driver.start("q2", conflict="terminate_existing")
        driver.activated()
    seq = driver.terminate(run_id=run_id)
    assert driver.answers[-1].answer == answer
    assert seq in driver.acked


def test_attempts_of_a_terminated_run_are_told_and_their_outcomes_dropped() -> None:
    driver = Driver().running(schedule(1))
    driver.terminate()
    assert driver.pop(out.CancelAttempt).key == driver.key(1)
    before = driver.kinds
    driver.succeeded(1)
    assert driver.kinds == before


# --- replacing a run -------------------------------------------------------------------------------------------------


def test_the_end_of_a_run_and_the_beginning_of_its_successor_are_one_commit() -> None:
    driver = Driver().running(schedule(1))
    first = driver.run_id
    driver.start("q2", conflict="terminate_existing")
    driver.activated(schedule(1))
    commit = driver.history.commits[-1]
    assert [type(event).__name__ for event in commit.events] == [
        "WorkflowTerminated",
        "WorkflowStarted",
        "ActivityScheduled",
    ]
    assert (commit.first_n, commit.run_id == first) == (2, False)
    assert driver.state.run_id == commit.run_id
    assert driver.dispatched == [(1, 1), (1, 1)]


def test_a_run_is_committed_before_it_is_replaced() -> None:
    """One commit holds at most the end of one run and the beginning of the next, or nobody finds what is between."""
    driver = Driver()
    driver.start("q1")
    driver.start("q2", conflict="terminate_existing")
    driver.start("q3", conflict="terminate_existing")
    for _ in range(3):
        driver.activated(schedule(1))
    starts = [sum(isinstance(event, WorkflowStarted) for event in commit.events) for commit in driver.history.commits]
    assert starts == [1, 1, 1]
    assert driver.kinds == [
        *("WorkflowStarted", "ActivityScheduled", "WorkflowTerminated"),
        *("WorkflowStarted", "ActivityScheduled", "WorkflowTerminated"),
        *("WorkflowStarted", "ActivityScheduled"),
    ]
    assert [answer.answer for answer in driver.answers] == ["applied", "applied", "applied"]


def test_a_run_is_replaced_while_it_is_blocked() -> None:
    driver = Driver()
    driver.start()
    driver.is_blocked()
    driver.start("q2", conflict="terminate_existing")
    driver.activated(complete())
    assert driver.kinds[-3:] == ["WorkflowTerminated", "WorkflowStarted", "WorkflowCompleted"]


def test_a_replacing_start_that_is_delivered_again_replaces_nothing() -> None:
    driver = Driver().running(schedule(1))
    driver.start("q2", seq=50, conflict="terminate_existing")
    driver.activated(schedule(1))
    heir = driver.heir()
    heir.start("q2", seq=50, conflict="terminate_existing")
    assert heir.kinds.count("WorkflowStarted") == 2
    assert heir.answers[-1].answer == "applied"
