"""Signals and cancels for a workflow id without any run: nothing is sent, and the call is told so."""

from __future__ import annotations

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.commands import RequestExternal
from durablefuture_trio.engine.requests import SignalRequest
from durablefuture_trio.history.events import ExternalResolved
from tests._support.owner import Driver, complete, schedule


def asking() -> tuple[Driver, out.Send]:
    """A run whose second call is a signal, and the signal."""
    driver = Driver().running(schedule(1), RequestExternal(call=2, kind="signal", workflow_id="other", name="go"))
    return driver, driver.pop(out.Send)


def unreachable(driver: Driver, send: out.Send) -> None:
    assert isinstance(send.letter, SignalRequest)
    assert send.letter.sender is not None
    driver.owner.unreachable(send, send.letter.sender, driver.now)
    driver._pump()


def test_a_call_is_told_that_the_workflow_it_means_does_not_exist() -> None:
    driver, send = asking()
    assert driver.owner.awaits(send)
    unreachable(driver, send)
    assert not driver.owner.awaits(send)
    driver.activated()
    resolved = driver.history.events[-1]
    assert isinstance(resolved, ExternalResolved)
    assert resolved.failure is not None
    assert resolved.failure.type == "WorkflowNotFoundError"
    assert not driver.asks(out.Send)


def test_when_the_history_is_read_again_the_message_is_to_be_sent_again_and_the_old_word_counts_no_more() -> None:
    driver, send = asking()
    driver.held.add(out.Publish)
    unreachable(driver, send)
    driver.activated()
    driver.held.clear()
    driver.pop(out.Publish)
    driver.owner.commit_lost(driver.now)
    driver._pump()
    again = driver.pop(out.Send)
    assert (again.key, again.letter) == (send.key, send.letter)
    unreachable(driver, send)
    assert driver.owner.awaits(again)
    assert "ExternalResolved" not in driver.history.kinds


def test_a_run_that_has_ended_is_told_nothing() -> None:
    driver, send = asking()
    driver.succeeded(1)
    driver.activated(complete())
    unreachable(driver, send)
    assert driver.history.kinds[-1] == "WorkflowCompleted"


def test_the_next_run_of_the_id_is_not_told_what_the_one_before_had_asked() -> None:
    driver, send = asking()
    driver.held.add(out.Publish)
    driver.start(request="again", conflict="terminate_existing")
    driver.activated(schedule(1), RequestExternal(call=2, kind="signal", workflow_id="other", name="go"))
    unreachable(driver, send)  # while the commit is under way in which the next run begins
    driver.held.clear()
    driver.answer(out.Publish)
    again = driver.pop(out.Send)
    assert again.key != send.key
    assert driver.owner.awaits(again)
    assert not driver.asks(out.Activate)


def test_an_owner_that_does_not_know_the_last_commit_reads_the_history_again_before_it_sends() -> None:
    driver, send = asking()
    driver.owner.told_of_tip(driver.owner.tip_n, driver.now)
    assert driver.owner.awaits(send)
    driver.owner.told_of_tip(driver.owner.tip_n + 1, driver.now)
    driver._pump()
    assert not driver.owner.awaits(send)
    assert driver.owner.awaits(driver.pop(out.Send))


def test_the_commit_that_is_under_way_is_known() -> None:
    driver, send = asking()
    driver.held.add(out.Publish)
    driver.succeeded(1)
    driver.activated(schedule(3))
    driver.owner.told_of_tip(driver.owner.tip_n + 1, driver.now)
    assert driver.owner.awaits(send)
