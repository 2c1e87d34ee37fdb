"""What is acknowledged, armed, neutralised and shown."""

from __future__ import annotations

import pytest

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.settling import Settling
from durablefuture_trio.history.state import RunState
from tests._support.owner import FAST, Driver, complete, schedule


def test_a_run_with_a_local_attempt_keeps_its_oldest_message_and_arms_nothing() -> None:
    driver = Driver().running(schedule(1), wake_at=5000.0)
    driver.start("q2", seq=7, conflict="use_existing")
    assert driver.acked == [7]
    assert driver.armed == {}


def test_a_run_that_sleeps_long_is_parked_behind_a_schedule() -> None:
    driver = Driver()
    driver.held.add(out.Arm)
    driver.running(wake_at=1500.0)
    assert driver.acked == []
    driver.answer(out.Arm)
    assert driver.armed == {1: 1500.0}
    assert driver.acked == [1]
    assert driver.owner.is_idle


def test_a_run_that_sleeps_shortly_stays_and_is_woken_by_its_owner() -> None:
    driver = Driver().running(wake_at=1000.8)
    assert (driver.armed, driver.acked, driver.wake_at) == ({}, [], 1000.8)
    driver.later(0.8)
    driver.activated(complete())
    assert driver.kinds == ["WorkflowStarted", "TimerFired", "WorkflowCompleted"]
    assert driver.acked == [1]


def test_a_closed_run_leaves_nothing_behind() -> None:
    driver = Driver().running(complete())
    assert (driver.acked, driver.wake_at, driver.armed) == ([1], None, {})
    assert driver.owner.is_idle


def test_a_schedule_that_could_not_be_stored_is_stored_again() -> None:
    driver = Driver()
    driver.held.add(out.Arm)
    driver.running(wake_at=1500.0)
    failed = driver.pop(out.Arm)
    driver.owner.arm_failed(failed.n, driver.now)
    assert driver.acked == []
    driver.answer(out.Arm)
    assert driver.acked == [1]


def parked_in_backoff() -> Driver:
    """A run parked behind a schedule that fires in ten seconds."""
    driver = Driver().running(schedule(1, retry_policy=FAST))
    driver.failed(1)
    assert driver.armed == {2: 1010.0}
    return driver


@pytest.mark.parametrize(
    ("wake_at", "armed", "neutralised"),
    [
        (1005.0, {2: 1010.0, 3: 1005.0}, []),
        (1040.0, {2: 1010.0}, []),
        (4600.0, {3: 4600.0}, [2]),
        (None, {}, [2]),
    ],
)
def test_what_is_armed_already_is_used_if_it_fires_in_time_and_not_much_too_early(
    wake_at: float | None, armed: dict[int, float], neutralised: list[int]
) -> None:
    driver = parked_in_backoff()
    driver.succeeded(1, elsewhere=True)
    driver.activated(wake_at=wake_at)
    assert driver.armed == armed
    assert driver.neutralised == neutralised
    assert driver.owner.is_idle
    if wake_at is not None:
        assert any(due <= wake_at for due in driver.armed.values()), "nothing would wake the run"


class NeutralisesFirst(Settling):
    """Takes any schedule that fires before it is needed for good enough, and removes those that fire too early."""

    def _park(self, state: RunState, needed: float | None, is_shown: bool) -> None:
        if needed is not None and any(due <= needed for due in self.armed.values()):
            for n, due in list(self.armed.items()):
                if due < needed - 60.0:
                    self._neutralise(n)
            self._release(keep=0)
            self._set_wake(None)
            return
        super()._park(state, needed, is_shown)


def test_removing_the_early_one_before_the_right_one_is_stored_leaves_nothing_armed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durablefuture_trio.engine.run_owner.RunOwner.settling_type", NeutralisesFirst)
    driver = parked_in_backoff()
    driver.succeeded(1, elsewhere=True)
    driver.activated(wake_at=4600.0)
    assert driver.owner.is_idle
    assert driver.armed == {}


def test_the_early_schedule_is_removed_only_when_the_right_one_is_stored() -> None:
    driver = parked_in_backoff()
    driver.held.add(out.Arm)
    driver.succeeded(1, elsewhere=True)
    driver.activated(wake_at=4600.0)
    assert driver.armed == {2: 1010.0}
    driver.answer(out.Arm)
    assert driver.armed == {3: 4600.0}


def test_a_fire_of_another_schedule_is_acknowledged_while_the_right_one_is_armed() -> None:
    driver = Driver().running(wake_at=1500.0)
    seq = driver.fire(7, 1000.0)
    assert seq in driver.acked
    assert driver.armed == {1: 1500.0}


def test_the_fire_of_the_only_schedule_that_comes_too_early_anchors_the_run() -> None:
    driver = Driver().running(wake_at=1500.0)
    seq = driver.fire(1, 1000.0)
    assert seq not in driver.acked, "nothing else would wake the run"
    driver.later(500.0)
    driver.activated(complete())
    assert driver.kinds == ["WorkflowStarted", "TimerFired", "WorkflowCompleted"]
    assert seq in driver.acked


def test_the_schedules_of_a_run_are_neutralised_when_it_closes() -> None:
    driver = parked_in_backoff()
    driver.succeeded(1, elsewhere=True)
    driver.activated(complete())
    assert (driver.armed, driver.neutralised) == ({}, [2])


def test_a_fire_before_the_owners_own_clock_is_taken_for_the_time() -> None:
    driver = Driver().running(wake_at=1010.0)
    driver.now = 1009.7
    driver.fire(1, 1010.0)
    driver.activated(complete())
    fired = driver.history.events[1]
    assert fired.at >= 1010.0


def test_a_second_fire_of_the_same_schedule_does_no_harm() -> None:
    driver = Driver().running(wake_at=1010.0)
    driver.now = 1010.0
    first = driver.fire(1, 1010.0)
    driver.activated(wake_at=2000.0)
    second = driver.fire(1, 1010.0)
    assert driver.kinds == ["WorkflowStarted", "TimerFired"]
    assert {first, second} <= set(driver.acked)
    assert driver.armed.get(2) == 2000.0


# --- listings --------------------------------------------------------------------------------------------------------


def shown(driver: Driver) -> list[str]:
    return [item.status_key.split("/")[1] for item in driver.log if isinstance(item, out.Project)]


def test_a_run_that_ends_soon_is_shown_once() -> None:
    driver = Driver().running(schedule(1))
    driver.later(0.1)
    driver.succeeded(1)
    driver.activated(complete())
    assert shown(driver) == ["WorkflowCompleted"]


def test_a_run_that_goes_on_is_shown_as_running() -> None:
    driver = Driver().running(schedule(1))
    driver.later(0.2)
    assert shown(driver) == ["running"]
    driver.succeeded(1)
    driver.activated(complete())
    assert shown(driver) == ["running", "WorkflowCompleted"]


def test_the_last_message_goes_only_when_the_end_is_shown() -> None:
    driver = Driver()
    driver.held.add(out.Project)
    driver.running(complete())
    assert driver.acked == []
    driver.owner.projection_failed(driver.now)
    driver.answer()
    driver.later(1.0)
    assert driver.acked == []
    driver.answer(out.Project)
    assert driver.acked == [1]


def test_a_redelivered_message_of_a_closed_run_shows_its_end_again_before_it_goes() -> None:
    driver = Driver().running(complete())
    heir = driver.heir()
    heir.held.add(out.Project)
    heir.start(seq=1)
    assert heir.acked == []
    heir.answer(out.Project)
    assert heir.acked == [1]
    assert heir.answers[-1].answer == "applied"
    assert heir.asks(out.Closed)
