"""Starts: what is recorded, who is answered when, and who is refused."""

from __future__ import annotations

import pytest

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.requests import ConflictPolicy, ReusePolicy
from durablefuture_trio.engine.run_owner import RunOwner
from tests._support.owner import Driver, complete, schedule


@pytest.mark.parametrize("assume_fresh", [True, False])
def test_a_start_is_one_commit_with_its_first_commands_and_answered_after_it(assume_fresh: bool) -> None:
    driver = Driver(assume_fresh=assume_fresh)
    driver.held.add(out.Publish)
    driver.start()
    assert not driver.asks(out.Publish), "the first activation is awaited"
    driver.activated(schedule(1))
    assert driver.asks(out.Publish)
    assert (driver.answers, driver.dispatched) == ([], [])
    driver.answer(out.Publish)
    assert driver.kinds == ["WorkflowStarted", "ActivityScheduled"]
    assert [(answer.answer, answer.run_id) for answer in driver.answers] == [("applied", driver.run_id)]
    assert driver.dispatched == [(1, 1)]
    assert any(isinstance(item, out.Load) for item in driver.log) is not assume_fresh


def test_an_id_that_was_taken_for_fresh_is_loaded_when_it_is_not() -> None:
    first = Driver().running(schedule(1))
    second = Driver(first.history, assume_fresh=True)
    second.start("q2", seq=2)
    second.activated(complete())
    assert any(isinstance(item, out.Load) for item in second.log)
    assert [answer.answer for answer in second.answers] == ["already_started"]
    assert first.kinds.count("WorkflowStarted") == 1


@pytest.mark.parametrize(
    ("conflict", "answer", "runs"),
    [("fail", "already_started", 1), ("use_existing", "existing", 1), ("terminate_existing", "applied", 2)],
)
def test_while_a_run_is_open_the_conflict_policy_decides(conflict: ConflictPolicy, answer: str, runs: int) -> None:
    driver = Driver().running(schedule(1))
    first = driver.run_id
    driver.start("q2", conflict=conflict)
    if runs == 2:
        driver.activated()
    assert driver.answers[-1].answer == answer
    assert (driver.answers[-1].run_id == first) is (runs == 1)
    assert driver.kinds.count("WorkflowStarted") == runs


@pytest.mark.parametrize(
    ("reuse", "ends_well", "answer"),
    [
        ("allow", True, "applied"),
        ("reject", True, "already_started"),
        ("reject", False, "already_started"),
        ("failed_only", True, "already_started"),
        ("failed_only", False, "applied"),
    ],
)
def test_after_a_run_has_closed_the_reuse_policy_decides(reuse: ReusePolicy, ends_well: bool, answer: str) -> None:
    driver = Driver()
    if ends_well:
        driver.running(complete())
    else:
        driver.running().terminate()
    driver.start("q2", reuse=reuse)
    if answer == "applied":
        driver.activated()
    assert driver.answers[-1].answer == answer


def test_two_identical_requests_in_one_batch_start_one_run_and_both_answers_wait_for_the_commit() -> None:
    driver = Driver()
    driver.held.add(out.Publish)
    driver.start("q", seq=1)
    driver.start("q", seq=2)
    driver.activated(schedule(1))
    assert driver.answers == []
    driver.answer(out.Publish)
    assert [(answer.answer, answer.run_id) for answer in driver.answers] == [("applied", driver.run_id)] * 2
    assert driver.kinds.count("WorkflowStarted") == 1


def test_a_request_of_an_earlier_run_is_answered_with_that_run() -> None:
    driver = Driver().running(complete())
    first = driver.run_id
    driver.start("q2")
    driver.activated(complete())
    driver.start("q1")
    assert (driver.answers[-1].answer, driver.answers[-1].run_id) == ("applied", first)
    assert driver.kinds.count("WorkflowStarted") == 2


class OwnerThatRefusesTooLate(RunOwner):
    def _refuse_waiting_starts(self, state: object, before_seq: float = 0) -> None:
        """Waiting starts are looked at after the close."""


@pytest.mark.parametrize(("owner_type", "runs"), [(RunOwner, 1), (OwnerThatRefusesTooLate, 2)])
def test_a_start_refused_by_an_owner_that_died_is_refused_again_although_the_run_closes_first(
    owner_type: type[RunOwner], runs: int
) -> None:
    dead = Driver().running(schedule(1), deadline=1100.0)
    dead.start("q2", seq=2)
    assert dead.answers[-1].answer == "already_started"
    heir = dead.heir(owner_type=owner_type)
    heir.now = 1200.0
    heir.held.add(out.Load)
    heir.start(seq=1)
    heir.start("q2", seq=2)
    heir.answer(out.Load)
    assert "WorkflowTimedOut" in heir.kinds
    assert heir.kinds.count("WorkflowStarted") + heir.asks(out.Activate) == runs
    if runs == 1:
        assert heir.answers[-1].answer == "already_started"


def test_a_refused_start_delivered_again_after_the_run_has_closed_is_refused_again() -> None:
    driver = Driver().running(schedule(1))
    driver.start("q2", seq=5)
    driver.succeeded(1)
    driver.activated(complete())
    heir = driver.heir()
    heir.start("q2", seq=5)
    assert heir.kinds.count("WorkflowStarted") == 1
    assert heir.answers[-1].answer == "already_started"
    assert heir.acked == [5]


def test_a_start_behind_a_terminate_of_the_same_batch_begins_the_next_run() -> None:
    driver = Driver().running(schedule(1))
    driver.held.add(out.Publish)
    driver.terminate(seq=5)
    driver.start("q2", seq=6)
    driver.answer(out.Publish)
    driver.activated()
    assert [answer.answer for answer in driver.answers] == ["applied", "applied", "applied"]
    assert driver.kinds.count("WorkflowStarted") == 2


def test_arguments_over_the_limit_are_refused_in_words() -> None:
    driver = Driver(commit_bytes=2)
    driver.start()
    assert driver.answers[0].answer == "too_large"
    assert "pass large values by reference" in driver.answers[0].message
    assert driver.kinds == []


def test_h10_a_refused_start_is_held_until_a_commit_says_so() -> None:
    driver = Driver().running(wake_at=5000.0)
    driver.start("q2", seq=7)
    assert driver.answers[-1].answer == "already_started"
    assert 7 not in driver.acked
    assert len(driver.history.commits) == 1
    driver.terminate(seq=8)
    assert {7, 8} <= set(driver.acked)
    assert [record.request_id for record in driver.history.commits[-1].refused] == ["q2"]


def test_h10_a_start_that_an_owner_refused_before_it_died_is_refused_by_its_heir() -> None:
    first = Driver().running(wake_at=5000.0)
    first.start("q2", seq=7)
    heir = first.heir()
    heir.start("q2", seq=7)
    heir.terminate(seq=8)
    heir.start("q2", seq=9)
    assert [answer.answer for answer in heir.answers] == ["already_started", "applied", "already_started"]
    assert heir.kinds.count("WorkflowStarted") == 1


def test_h10_a_start_that_a_closed_run_forbids_for_now_is_recorded_at_once() -> None:
    driver = Driver().running(complete())
    driver.start("q2", seq=7, reuse="failed_only")
    assert [record.request_id for record in driver.history.commits[-1].refused] == ["q2"]
    assert driver.acked[-1] == 7
    driver.start("q2", seq=8, reuse="failed_only")
    assert len(driver.history.commits) == 2


def test_h10_a_start_that_is_refused_for_ever_needs_no_record() -> None:
    driver = Driver().running(complete())
    driver.start("q2", seq=7, reuse="reject")
    assert len(driver.history.commits) == 1
    assert driver.acked[-1] == 7


def test_many_refused_starts_cost_one_commit_in_a_hundred() -> None:
    driver = Driver().running(wake_at=5000.0)
    for number in range(250):
        driver.start(f"q{number + 2}", seq=10 + number)
    assert len(driver.history.commits) == 3
    assert len(driver.acked) == 1 + 200
