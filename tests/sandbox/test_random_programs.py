"""Proof by trying: random programs do the same in every process, under every replay, and from every cut.

DURABLEFUTURE_RANDOM_PROGRAMS sets how many programs are tried (default 300).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from durablefuture_trio import DurableFuture
from durablefuture_trio.engine.commands import Command
from durablefuture_trio.history.events import (
    ActivityCancelRequested,
    ActivityScheduled,
    ChildCancelRequested,
    ChildCompleted,
    ChildInitiated,
    ChildStarted,
    Event,
    EventClass,
    ExternalRequested,
    MarkerRecorded,
    TimerFired,
    class_of,
)
from durablefuture_trio.ports.frames import Activated, Loaded
from durablefuture_trio.sandbox import _asked, _trio_driver
from tests._support.random_programs import Scatter, digests, new_host, new_story, tell
from tests._support.sandbox import Story, body_of, event_of

# Some programs leave an async generator in the middle, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")

PROGRAMS = int(os.environ.get("DURABLEFUTURE_RANDOM_PROGRAMS", "300"))
ROOT = Path(__file__).parents[2]


def digests_of_a_process(hash_seed: str, salt: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests._support.random_programs", "0", str(PROGRAMS), str(salt)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_random_programs_do_the_same_in_every_process_and_hash_seed() -> None:
    expected = digests(range(PROGRAMS), salt=0)
    processes = [digests_of_a_process(hash_seed, salt) for salt, hash_seed in enumerate(("0", "1", "4242", "random"))]
    for process in processes:
        output, _ = process.communicate(timeout=120 + PROGRAMS)
        assert process.returncode == 0
        assert json.loads(output) == expected


def test_random_programs_do_the_same_when_they_are_replayed_before_every_stimulus() -> None:
    assert digests(range(PROGRAMS), salt=3, replay=True) == digests(range(PROGRAMS), salt=4)


def test_the_programs_try_what_they_are_meant_to_try() -> None:
    stories = [tell(new_story(seed), seed) for seed in range(PROGRAMS)]
    events = [event for story in stories for event in story.events]
    assert sum(isinstance(event, ActivityScheduled) for event in events) > 3 * PROGRAMS
    assert sum(isinstance(event, TimerFired) for event in events) > PROGRAMS
    for kind in (ChildInitiated, ChildStarted, ChildCompleted, ChildCancelRequested, ExternalRequested, MarkerRecorded):
        assert sum(isinstance(event, kind) for event in events) > PROGRAMS / 20, kind
    several_cancels = [story for story in stories if any(cancels_in(commit) > 1 for commit in story.commits)]
    assert len(several_cancels) > PROGRAMS / 5


def cancels_in(events: Sequence[Event]) -> int:
    return sum(isinstance(event, ActivityCancelRequested) for event in events)


def test_without_the_sorting_of_cancels_executions_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_the_order_of_arrival(self: _asked.AskedCommands) -> list[Command]:
        return list(self._cancels.values())

    monkeypatch.setattr(_asked.AskedCommands, "_ordered_cancels", in_the_order_of_arrival)
    assert digests(range(100), salt=5) != digests(range(100), salt=6)


def test_without_hashes_of_their_own_sets_of_futures_make_executions_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DurableFuture, "__hash__", lambda self: id(self._call))
    assert digests(range(100), salt=9) != digests(range(100), salt=10)


def test_without_deterministic_scheduling_executions_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trio_driver, "DETERMINISTIC", False)
    assert digests(range(100), salt=7) != digests(range(100), salt=8)


# --- cuts -------------------------------------------------------------------------------------------------------------


def cuts_of(commit: Sequence[Event]) -> Iterator[int]:
    """How many events of an unfinished commit may have been written: the stimulus, and any number of commands."""
    yield from range(1, len(commit) + 1)


def depends_on(stimulus: Event, commit: Sequence[Event]) -> bool:
    """Whether this stimulus could only come after the commands of `commit` were recorded."""
    call = call_of(stimulus)
    return isinstance(stimulus, TimerFired) or any(
        class_of(event) is EventClass.COMMAND and call_of(event) == call for event in commit
    )


def call_of(event: Event) -> int | None:
    """The number of the call that the event is about."""
    found: int | None = getattr(event, "activity_id", getattr(event, "call", None))
    return found


def test_a_history_cut_anywhere_in_an_unfinished_commit_has_exactly_the_lacking_commands_left_over() -> None:
    scatter = Scatter(9)
    cuts = 0
    for seed in range(PROGRAMS):
        story = tell(new_story(seed), seed)
        bodies = story.bodies()
        for index, commit in enumerate(story.commits):
            for written in cuts_of(commit):
                scatter.shake()
                cut = body_of(story.run_id, commit[:written], number=index + 1, finished=False)
                again = resumed(story, (*bodies[:index], cut))
                assert as_events(again.unmatched) == list(map(repr_of, commit[written:])), (seed, index, written)
                cuts += 1
    assert cuts > 5 * PROGRAMS


def test_several_unactivated_stimuli_leave_the_commands_of_all_of_them_over() -> None:
    tried = 0
    for seed in range(PROGRAMS):
        story = tell(new_story(seed), seed)
        bodies = story.bodies()
        for index in range(len(story.commits) - 1):
            commit, following = story.commits[index : index + 2]
            if index == 0 or depends_on(following[0], commit):
                continue
            cut = body_of(story.run_id, (commit[0], following[0]), number=index + 1, finished=False)
            again = resumed(story, (*bodies[:index], cut))
            expected = [repr_of(event) for event in (*commit[1:], *following[1:])]
            assert as_events(again.unmatched) == expected, (seed, index)
            tried += 1
    assert tried > PROGRAMS / 3


def test_a_run_that_was_loaded_from_a_cut_goes_on_as_it_would_have() -> None:
    for seed in range(0, PROGRAMS, 3):
        story = tell(new_story(seed), seed)
        bodies = story.bodies()
        for index, commit in enumerate(story.commits[:-1]):
            story.host.close()
            cut = body_of(story.run_id, commit[:1], number=index + 1, finished=False)
            resumed(story, (*bodies[:index], cut))
            story.activations = index + 1
            stimulus, *recorded = story.commits[index + 1]
            assert class_of(stimulus) is EventClass.STIMULUS
            answer = story.ask(stimulus)  # type: ignore[arg-type]  # so its class says
            assert isinstance(answer, Activated)
            assert as_events(answer.commands) == list(map(repr_of, recorded))


def resumed(story: Story, bodies: Sequence[bytes]) -> Loaded:
    story.host.close()
    story.host = new_host()
    answer = story.replay(bodies=bodies)
    assert isinstance(answer, Loaded), answer
    return answer


def as_events(commands: Sequence[Command]) -> list[object]:
    return [repr_of(event_of(command, 0, 0.0)) for command in commands]


def repr_of(event: Event) -> object:
    """An event for comparison, without its place in the history and without what only people read."""
    failure = getattr(event, "failure", None)
    if failure is not None:
        return (type(event), failure.type, failure.message)
    return [getattr(event, name) for name in event.__struct_fields__ if name not in ("id", "at")]
