"""Histories that were written once replay with today's code: no change of ours may break a run that is open."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.history.commit import closing_events, decode_commit, own_events
from durablefuture_trio.history.state import fold
from durablefuture_trio.ports.frames import Blocked, Loaded, LoadRun
from durablefuture_trio.sandbox._host import ReplayHost
from tests.language import golden_workflows
from tests.language.golden_recorder import GOLDEN, SCENES, record

RECORDED = sorted(GOLDEN.glob("*.json"))


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.of(golden_workflows.DEFINITIONS)


def runs_of(path: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(path.read_text())
    assert runs
    return runs


def load(host: ReplayHost, run: dict[str, Any], commits: list[bytes]) -> object:
    frame = LoadRun(
        exchange=1,
        run_id=run["run_id"],
        commits=tuple(commits),
        first=True,
        last=True,
        patches=tuple(run["patches"]),
    )
    return host.handle(frame)[-1]


def test_every_scene_has_a_recorded_history() -> None:
    assert {path.stem for path in RECORDED} == SCENES.keys(), "python -m tests.language.golden_recorder writes them"


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_history_replays_with_todays_code(path: Path, registry: Registry) -> None:
    for run in runs_of(path):
        host = ReplayHost(registry.workflows)
        answer = load(host, run, [base64.b64decode(commit) for commit in run["commits"]])
        host.close()
        assert isinstance(answer, Loaded), answer
        assert answer.unmatched == ()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_history_replays_from_every_commit_it_could_have_been_cut_at(path: Path, registry: Registry) -> None:
    for run in runs_of(path):
        bodies = [base64.b64decode(commit) for commit in run["commits"]]
        for length in range(1, len(bodies) + 1):
            host = ReplayHost(registry.workflows)
            answer = load(host, run, bodies[:length])
            host.close()
            assert isinstance(answer, Loaded), (length, answer)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_history_still_folds_to_a_closed_run(path: Path) -> None:
    for run in runs_of(path):
        commits = [decode_commit(base64.b64decode(commit)) for commit in run["commits"]]
        assert not any(closing_events(commit) for commit in commits)
        state = fold([(number, commit) for number, commit in enumerate(commits, start=commits[0].first_n)])
        assert state.terminal == [event for commit in commits for event in own_events(commit)][-1]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_is_recorded_today_has_the_same_events(path: Path) -> None:
    """Not a promise to anybody, but a change of it should be known: it is a change of what every workflow costs."""
    assert [run.kinds for run in record(path.stem)] == [run["kinds"] for run in runs_of(path)]


def test_a_history_of_other_code_is_refused(registry: Registry) -> None:
    """So that the tests above can fail."""
    (run,) = runs_of(GOLDEN / "order.json")
    workflows = {**registry.workflows, "golden_order": registry.workflows["golden_random"]}
    host = ReplayHost(workflows)
    answer = load(host, run, [base64.b64decode(commit) for commit in run["commits"]])
    host.close()
    assert isinstance(answer, Blocked)
