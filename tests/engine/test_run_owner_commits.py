"""Commits that are cut, lost, or unknown; decisions that leave none."""

from __future__ import annotations

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.commands import CompleteWorkflow, ScheduleActivity
from durablefuture_trio.history.events import EventClass, class_of
from durablefuture_trio.history.options import ActivityOptionsRecord
from tests._support.owner import Driver, complete, schedule


def large(call: int) -> ScheduleActivity:
    return ScheduleActivity(
        call=call, name="act", arguments=Payload(b'"' + b"x" * 600 + b'"'), options=ActivityOptionsRecord()
    )


def test_an_activation_that_does_not_fit_is_cut_and_only_the_last_part_is_finished() -> None:
    driver = Driver(commit_bytes=2000)
    driver.held.add(out.Publish)
    driver.start()
    driver.activated(*(large(call) for call in range(1, 9)))
    assert len([item for item in driver.asked if isinstance(item, out.Publish)]) == 1, "one after the other"
    driver.answer(out.Publish)
    commits = driver.history.commits
    assert len(commits) > 3
    assert [commit.finished for commit in commits] == [False] * (len(commits) - 1) + [True]
    assert driver.kinds == ["WorkflowStarted"] + ["ActivityScheduled"] * 8
    assert [key[0] for key in driver.dispatched] == list(range(1, 9))
    assert all(len(body) <= 2000 for body in driver.history.bodies.values())


def test_an_owner_that_dies_between_two_parts_leaves_the_rest_to_the_next_one() -> None:
    driver = Driver(commit_bytes=2000)
    driver.held.add(out.Publish)
    driver.start(seq=1)
    driver.activated(*(large(call) for call in range(1, 9)))
    publish = driver.pop(out.Publish)
    driver.history.bodies[publish.n] = publish.body
    recorded = driver.kinds.count("ActivityScheduled")
    assert recorded < 8
    heir = driver.heir(commit_bytes=2000)
    heir.start(seq=1)
    heir.replayed(*(large(call) for call in range(recorded + 1, 9)))
    firsts = [event.activity_id for event in heir.history.events if class_of(event) is EventClass.COMMAND]  # type: ignore[union-attr] # all are calls
    assert firsts == list(range(1, 9))
    assert heir.history.commits[-1].finished


def test_a_result_that_no_message_holds_fails_the_run() -> None:
    driver = Driver(commit_bytes=2000)
    driver.start()
    driver.activated(CompleteWorkflow(result=Payload(b'"' + b"x" * 1500 + b'"')))
    assert driver.kinds == ["WorkflowStarted", "WorkflowFailed"]


def test_a_lost_commit_voids_the_sandbox_and_everything_is_decided_again() -> None:
    driver = Driver().running(schedule(1), schedule(2))
    rival = driver.heir()
    driver.held.add(out.Publish)
    driver.succeeded(1)
    driver.activated(schedule(3))
    driver.succeeded(2)
    rival.start(seq=1)
    assert rival.kinds.count("ActivityFailed") == 2, "the rival has declared both attempts lost"
    driver.answer(out.Publish)
    assert (3, 1) not in driver.dispatched, "nothing of the lost commit has left"
    assert any(isinstance(item, out.Evict) for item in driver.log)
    driver.replayed()
    driver.activated()
    driver.activated(complete())
    assert driver.kinds.count("ActivityCompleted") == 2
    ids = [event.id for event in driver.history.events]
    assert ids == list(range(1, len(ids) + 1))


def test_a_start_that_lost_its_number_is_answered_by_what_stands_there() -> None:
    driver = Driver(assume_fresh=True)
    driver.held.add(out.Publish)
    driver.start("mine", seq=2)
    driver.activated(schedule(1))
    rival = Driver(driver.history)
    rival.start("theirs", seq=1)
    rival.activated(schedule(1))
    driver.answer(out.Publish)
    assert [answer.answer for answer in driver.answers] == ["already_started"]
    assert (1, 1) not in driver.dispatched


def test_a_refusal_waits_for_the_word_of_the_leader() -> None:
    first = Driver().running(wake_at=5000.0)
    driver = first.heir()
    driver.held.add(out.Confirm)
    driver.start("q2", seq=5)
    assert driver.answers == []
    assert 5 not in driver.acked
    driver.answer(out.Confirm)
    assert driver.answers[-1].answer == "already_started"


def test_a_refusal_on_a_stale_view_is_decided_again() -> None:
    first = Driver()
    first.held.add(out.Confirm)
    first.terminate(seq=5)
    assert first.answers == []
    rival = Driver(first.history)
    rival.start(seq=1)
    rival.activated(schedule(1))
    first.answer(out.Confirm)
    if first.asks(out.Replay):
        first.replayed()
    assert [answer.answer for answer in first.answers] == ["applied"]
    assert first.kinds[-1] == "WorkflowTerminated"


def test_nothing_is_decided_while_ownership_is_in_doubt_and_outcomes_are_kept() -> None:
    driver = Driver().running(schedule(1))
    driver.owner.suspend()
    driver.succeeded(1)
    driver.start("q2")
    assert not driver.asks(out.Activate)
    assert len(driver.answers) == 1
    driver.owner.resume(driver.now)
    driver.activated(complete())
    assert driver.kinds[-1] == "WorkflowCompleted"


def test_an_id_that_could_not_be_read_is_not_woken_for_it_when_there_is_nothing_left_to_do() -> None:
    driver = Driver()
    driver.held.add(out.Load)
    driver.terminate(seq=5)
    driver.pop(out.Load)
    driver.owner.load_failed(None, driver.now)
    driver.answer(out.WakeAt)
    assert driver.wake_at == driver.now + 1
    driver.owner.suspend()
    driver.now += 10
    driver.owner.resume(driver.now)
    driver.answer(out.WakeAt)
    assert driver.wake_at is None
    driver.terminate(seq=5)
    assert driver.asks(out.Load)


def test_the_consumed_mark_covers_what_was_applied_and_what_was_refused_and_goes_on_across_runs() -> None:
    driver = Driver().running(schedule(1))
    driver.start("q2", seq=7)
    driver.succeeded(1)
    driver.activated(complete())
    assert driver.history.commits[-1].consumed == 7
    driver.start("q3", seq=9)
    driver.activated(complete())
    assert driver.history.commits[-1].consumed == 9
