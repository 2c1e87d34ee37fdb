"""Paranoid mode, the owner's side: what is to be replayed elsewhere, and what a doubt does to the run."""

from __future__ import annotations

from functools import partial
from typing import Any

from durablefuture_trio import codec
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.commands import ContinueAsNew
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.engine.run_records import Block
from tests._support.owner import Driver, complete, schedule

BLOCK = Block(kind="nondeterminism", message="went differently", recorded="a", produced="b")
VERIFIED: Any = partial(RunOwner, is_verified=True)


def verified() -> Driver:
    """A run with two calls."""
    return Driver(owner_type=VERIFIED).running(schedule(1), schedule(2))


def doubt(driver: Driver, run_id: str = "") -> None:
    driver.owner.doubted(run_id or driver.run_id, BLOCK, driver.now)
    driver.answer()


def targets(driver: Driver) -> list[tuple[int, int, bool]]:
    """First number, last number and whether it has closed, of all that was to be verified."""
    return [(it.first_n, it.tip_n, it.is_closed) for it in driver.log if isinstance(it, out.Verify)]


def test_every_finished_commit_is_to_be_verified_once_it_is_stored() -> None:
    driver = Driver(owner_type=VERIFIED)
    driver.held.add(out.Publish)
    driver.start()
    driver.activated(schedule(1), wake_at=1010.0)
    assert targets(driver) == []
    driver.answer(out.Publish)
    (verify,) = [it for it in driver.log if isinstance(it, out.Verify)]
    assert (verify.first_n, verify.tip_n, verify.wake_at, verify.is_closed) == (1, 1, 1010.0, False)
    driver.succeeded(1)
    driver.activated(complete())
    assert targets(driver) == [(1, 1, False), (1, 2, True)]


def test_nothing_is_to_be_verified_unless_it_was_told_to() -> None:
    assert targets(Driver().running(schedule(1))) == []


def test_the_end_of_a_run_is_verified_although_it_is_stored_in_the_commit_with_which_the_next_one_begins() -> None:
    driver = verified()
    first = driver.run_id
    driver.succeeded(1)
    driver.activated(ContinueAsNew(workflow="flow", arguments=codec.encode_arguments(())))
    driver.activated(schedule(1))
    verifies = [it for it in driver.log if isinstance(it, out.Verify)]
    assert [(it.run_id == first, it.first_n, it.tip_n, it.is_closed) for it in verifies] == [
        (True, 1, 1, False),
        (True, 1, 2, True),
        (False, 2, 2, False),
    ]


def test_a_doubted_run_is_blocked_and_its_copy_dropped() -> None:
    driver = verified()
    doubt(driver)
    assert driver.owner.blocked == BLOCK
    assert driver.run_id not in driver.cached
    project = [item for item in driver.log if isinstance(item, out.Project)][-1]
    assert project.blocked == "went differently"
    driver.succeeded(1)
    assert not driver.asks(out.Activate)
    assert not driver.history.commits[-1].finished
    assert driver.wake_at is not None
    driver.later(driver.wake_at - driver.now)
    driver.replayed(complete())
    assert driver.owner.blocked is None
    assert driver.kinds[-1] == "WorkflowCompleted"


def test_a_stimulus_under_way_stays_without_its_activation() -> None:
    driver = verified()
    driver.succeeded(1)
    question = driver.pop(out.Activate)
    doubt(driver)
    assert driver.owner.blocked == BLOCK
    driver.owner.activated(question.token, [complete()], None, driver.now)
    assert driver.kinds[-1] == "ActivityCompleted"
    assert not driver.history.commits[-1].finished


def test_a_doubt_of_a_run_that_is_not_there_any_more_is_nobodys_business() -> None:
    driver = verified()
    doubt(driver, "an earlier run")
    assert driver.owner.blocked is None
    driver.succeeded(1)
    driver.activated(complete())
    driver.failed(2, reason="cancelled")
    doubt(driver)
    assert driver.owner.blocked is None
    assert driver.owner.is_idle


def test_an_owner_that_knows_nothing_loads_the_run_that_is_doubted_and_blocks_it() -> None:
    driver = verified()
    run_id = driver.run_id
    later = Driver(driver.history, owner_type=VERIFIED, now=driver.now)
    doubt(later, run_id)
    assert later.owner.blocked == BLOCK
    assert not later.owner.is_idle, "it is tried again"
    assert targets(later)[0] == (1, 1, False), "what another owner has written is verified when it is loaded"


def test_while_ownership_is_in_doubt_a_doubt_of_the_run_waits() -> None:
    driver = verified()
    driver.owner.suspend()
    doubt(driver)
    assert driver.owner.blocked is None
    driver.owner.resume(driver.now)
    assert driver.owner.blocked == BLOCK
