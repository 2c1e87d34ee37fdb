"""A short storm over real processes, and the judge's eye for evidence that was tampered with.

Longer ones: `make storm STORM_SECONDS=3600`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from durablefuture_trio.history.commit import decode_commit, encode_commit
from durablefuture_trio.history.events import ActivityCompleted, ActivityScheduled
from durablefuture_trio.ports.broker import Stored
from simulator.oracle import EndTold, Evidence, StartTold, TerminateTold, judge
from simulator.programs import outcome_of
from simulator.storm.plan import Plan
from simulator.storm.processes import REPOSITORY
from simulator.storm.rounds import Observed, RoundReport, run_round

pytestmark = pytest.mark.chaos

SEED = "a fixed one"
SECONDS = 6.0


@dataclass(frozen=True)
class Stormy:
    """A round that was lived through once for all tests of this module."""

    report: RoundReport
    evidence: Evidence


@pytest.fixture(scope="module")
def stormy(tmp_path_factory: pytest.TempPathFactory) -> Stormy:
    plan = Plan.drawn(SEED, SECONDS, supervisors=2, embedded=False)
    observed: Observed = trio.run(partial(run_round, plan, tmp_path_factory.mktemp("storm")))
    assert observed.evidence is not None, observed.report.anomalies
    return Stormy(observed.report, observed.evidence)


def anomalies(evidence: Evidence) -> list[str]:
    return judge(evidence, outcome_of=outcome_of).anomalies


def test_promises_hold_in_a_storm(stormy: Stormy) -> None:
    report = stormy.report
    assert report.anomalies == []
    assert sum(report.disturbances.values()) >= 3
    assert report.runs >= report.workflow_ids > 0
    assert report.attempts > 0
    assert report.told >= report.workflow_ids


def test_a_seed_stands_for_one_plan() -> None:
    draw = partial(Plan.drawn, seconds=30.0, supervisors=None, embedded=None)
    assert draw("x") == draw("x")
    assert draw("x") != draw("y")


# --- evidence that was tampered with -----------------------------------------------------------------------------


def test_the_evidence_as_it_was_gathered_convicts_nobody(stormy: Stormy) -> None:
    assert anomalies(stormy.evidence) == []


def test_a_commit_that_is_missing_is_found(stormy: Stormy) -> None:
    histories = list(stormy.evidence.histories)
    histories.remove(next(stored for stored in histories if stored.subject.endswith(".2")))
    assert anomalies(replace(stormy.evidence, histories=histories))


def test_a_last_commit_that_is_missing_is_found(stormy: Stormy) -> None:
    """The numbers have no gap then: the run is open, and what ran for it was never asked for."""
    last = {stored.subject.rpartition(".")[0]: stored for stored in by_number(stormy.evidence.histories)}
    for stored in last.values():
        histories = [item for item in stormy.evidence.histories if item is not stored]
        assert anomalies(replace(stormy.evidence, histories=histories)), stored.subject


def test_an_attempt_nobody_asked_for_is_found(stormy: Stormy) -> None:
    ran = [*stormy.evidence.ran, replace(stormy.evidence.ran[0], attempt=1000)]
    assert [words for words in anomalies(replace(stormy.evidence, ran=ran)) if "never scheduled" in words]


def test_an_attempt_that_ran_twice_is_found(stormy: Stormy) -> None:
    ran = [*stormy.evidence.ran, stormy.evidence.ran[0]]
    assert [words for words in anomalies(replace(stormy.evidence, ran=ran)) if "ran 2 times" in words]


def test_what_is_left_in_a_queue_is_found(stormy: Stormy) -> None:
    assert anomalies(replace(stormy.evidence, left=["one message in W0"])) == ["left behind: one message in W0"]


def test_a_result_that_was_recorded_twice_is_found(stormy: Stormy) -> None:
    histories = doctored(stormy.evidence.histories, repeated_result)
    assert [words for words in anomalies(replace(stormy.evidence, histories=histories)) if "more than one" in words]


def test_a_result_of_another_call_is_found(stormy: Stormy) -> None:
    histories = doctored(stormy.evidence.histories, result_of_another_call)
    assert [words for words in anomalies(replace(stormy.evidence, histories=histories)) if "never made" in words]


@pytest.mark.parametrize("kind", ["start", "end", "refusal", "termination"])
def test_a_client_that_was_told_something_else_is_found(stormy: Stormy, kind: str) -> None:
    words = next(word for word in stormy.evidence.told if isinstance(word, StartTold) and word.run_id and word.new)
    assert words.run_id is not None
    lie = {
        "start": replace(words, run_id="another"),
        "end": EndTold(words.workflow_id, words.run_id, "WorkflowVanished"),
        "refusal": replace(words, run_id=None),
        "termination": TerminateTold(words.workflow_id, "a request nobody made", applied=True),
    }[kind]
    assert len(anomalies(replace(stormy.evidence, told=[*stormy.evidence.told, lie]))) == 1


def test_another_outcome_than_the_programs_is_found(stormy: Stormy) -> None:
    workflow_id, outcome = next(
        (workflow_id, outcome)
        for workflow_id, outcome in stormy.evidence.expected.items()
        if outcome[0] == "completed" and ended(stormy.evidence, workflow_id)
    )
    expected = {**stormy.evidence.expected, workflow_id: (outcome[0], -1)}
    found = anomalies(replace(stormy.evidence, expected=expected))
    assert found
    assert all(words.startswith(workflow_id) for words in found)


def by_number(histories: object) -> list[Stored]:
    assert isinstance(histories, list)
    return sorted(histories, key=lambda stored: int(stored.subject.rpartition(".")[2]))


def ended(evidence: Evidence, workflow_id: str) -> bool:
    return any(
        isinstance(word, EndTold) and word.workflow_id == workflow_id and word.how == "WorkflowCompleted"
        for word in evidence.told
    )


Change = Callable[[tuple[object, ...]], tuple[object, ...] | None]


def doctored(histories: object, change: Change) -> list[Stored]:
    """The first commit that can be changed this way, changed."""
    assert isinstance(histories, list)
    for place, stored in enumerate(histories):
        commit = decode_commit(stored.body)
        events = change(commit.events)
        if events is not None:
            body = encode_commit(msgspec.structs.replace(commit, events=events))
            return [*histories[:place], msgspec.structs.replace(stored, body=body), *histories[place + 1 :]]
    raise AssertionError("no commit could be changed")


def repeated_result(events: tuple[object, ...]) -> tuple[object, ...] | None:
    result = next((event for event in events if isinstance(event, ActivityCompleted)), None)
    return None if result is None else (*events, result)


def result_of_another_call(events: tuple[object, ...]) -> tuple[object, ...] | None:
    for place, event in enumerate(events):
        if isinstance(event, ActivityCompleted) and not any(isinstance(item, ActivityScheduled) for item in events):
            other = msgspec.structs.replace(event, activity_id=1000)
            return (*events[:place], other, *events[place + 1 :])
    return None


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_reports_in_json_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "storm"
    command = [sys.executable, "-m", "simulator.storm", "--seconds", "2", "--round-seconds", "2", "--seed", "1"]
    done = subprocess.run(
        [*command, "--supervisors", "1", "--shared", "--json", "--directory", str(home)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["seed"], report["rounds"], report["anomalies"]) == ("1", 1, {})
    assert not home.exists(), "a storm in which all was well leaves nothing"
