"""An owner that goes on under a new epoch knows first what waited in the inbox."""

from __future__ import annotations

import pytest

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.requests import Inbound, StartRequest
from tests._support.owner import NO_ARGUMENTS, Driver, complete


def refused_before() -> Inbound:
    """A start that an owner, since dead, has refused: nothing of that is in the history."""
    request = StartRequest(workflow_id="w", workflow="flow", arguments=NO_ARGUMENTS)
    return Inbound(seq=7, time=0.0, envelope=request, handle=7, request_id="q2", reply="r")


@pytest.mark.parametrize(("is_known_first", "answer"), [(True, "already_started"), (False, "applied")])
def test_h10c_what_waited_is_known_before_a_resumed_run_reaches_its_end(is_known_first: bool, answer: str) -> None:
    driver = Driver().running(wake_at=5000.0, deadline=1020.0)
    driver.owner.suspend()
    driver.now = 1030.0
    if is_known_first:
        driver.owner.resume(driver.now, [refused_before()])
    else:
        driver.owner.resume(driver.now)
        driver.owner.delivered(refused_before(), driver.now)
    driver.answer()
    if driver.asks(out.Activate):
        driver.activated(complete())
    assert driver.answers[-1].answer == answer
    assert driver.kinds[1] == "WorkflowTimedOut"
    assert driver.kinds.count("WorkflowStarted") == (1 if is_known_first else 2)
