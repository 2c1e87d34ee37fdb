"""Refused requests to a run: those that a copy could meet in another state are remembered (M3, H10)."""

from __future__ import annotations

import pytest

from durablefuture_trio.engine import admission
from durablefuture_trio.engine.requests import CancelRequest, Envelope, SignalRequest, UpdateRequest
from tests._support.owner import NO_ARGUMENTS, Driver, complete, schedule


def signal(run_id: str = "") -> SignalRequest:
    return SignalRequest(workflow_id="w", name="approve", arguments=NO_ARGUMENTS, run_id=run_id)


def update() -> UpdateRequest:
    return UpdateRequest(workflow_id="w", update_id="u", name="approve", arguments=NO_ARGUMENTS)


@pytest.mark.parametrize("envelope", [signal(), update(), CancelRequest(workflow_id="w")])
def test_h10_what_found_no_open_run_is_refused_again_although_another_run_has_begun(envelope: Envelope) -> None:
    dead = Driver().running(complete())
    dead.put(envelope, seq=7, request="s1")
    assert dead.answers[-1].answer == "closed"
    assert [record.request_id for record in dead.history.commits[-1].refused] == ["s1"]
    assert dead.acked[-1] == 7
    heir = dead.heir()
    heir.start("q2", seq=8)
    heir.activated(schedule(1))
    heir.put(envelope, seq=9, request="s1")
    assert heir.answers[-1].answer == "closed"
    assert heir.kinds.count("WorkflowStarted") == 2
    assert not {"SignalReceived", "UpdateAccepted", "CancelRequested"} & set(heir.kinds)


def test_a_signal_to_one_closed_run_is_refused_for_ever_and_needs_no_record() -> None:
    driver = Driver().running(complete())
    driver.put(signal(driver.run_id), seq=7, request="s1")
    assert driver.answers[-1].answer == "closed"
    assert len(driver.history.commits) == 1
    assert driver.acked[-1] == 7


def test_m3_a_signal_over_the_limit_stays_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_SIGNALS", 0)
    dead = Driver().running(schedule(1))
    dead.put(signal(), seq=7, request="s1")
    assert dead.answers[-1].answer == "limit"
    dead.succeeded(1)
    dead.activated(complete())
    assert [record.request_id for commit in dead.history.commits for record in commit.refused] == ["s1"]
    heir = dead.heir()
    heir.start("q2", seq=8)
    heir.activated(schedule(1))
    monkeypatch.setattr(admission, "MAX_SIGNALS", 10)
    heir.put(signal(), seq=9, request="s1")
    assert heir.answers[-1].answer == "limit"
    assert "SignalReceived" not in heir.kinds
