"""The limit of one activation is not the limit of a replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from durablefuture_trio.supervisor import _replay_slot
from durablefuture_trio.supervisor._replay_slot import Question, ReplaySlot
from durablefuture_trio.supervisor._tree import Children, run_children
from durablefuture_trio.supervisor.settings import SandboxSettings, Settings, SupervisorSettings

SETTINGS = Settings(
    supervisor=SupervisorSettings(roles=("workflows",)),
    sandbox=SandboxSettings(processes=1, activation_timeout=0.05, replay_timeout=30.0),
)


def activation_limit(slot: ReplaySlot, question: Question) -> float:
    """One limit for everything."""
    return slot._settings.activation_timeout


async def replay_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> str:
    """A child replays a history that takes 1.5 s of CPU."""
    monkeypatch.setattr(_replay_slot, "_MODULE", "tests._support.fake_child")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    answers: list[Any] = []
    answered = trio.Event()

    def on_answer(answer: Any) -> None:
        answers.append(answer)
        answered.set()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[Children]) -> None:
                await run_children(SETTINGS, member="m0", task_status=task_status)

            children: Children = await nursery.start(run)
            assert children.replay is not None
            children.replay.load("run", (b"slow",) * 5, first=True, last=True, on_answer=on_answer)
            await answered.wait()
            nursery.cancel_scope.cancel()
    return type(answers[0]).__name__


async def test_m13_a_replay_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await replay_that_takes_long(monkeypatch) == "Loaded"


async def test_m13_the_limit_of_an_activation_kills_a_long_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReplaySlot, "_limit_s", activation_limit)
    assert await replay_that_takes_long(monkeypatch) == "Blocked"
