"""Whatever is killed and whenever: one answer to each question, one outcome for each attempt, nothing left behind."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import trio

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.attempts import ActivityKey, RunActivity
from durablefuture_trio.supervisor import _keeper, _tree
from durablefuture_trio.supervisor.settings import ActivityPoolSettings, SandboxSettings, Settings

pytestmark = [pytest.mark.usefixtures("fake_children"), pytest.mark.chaos]

QUESTIONS = 400
KILLS = 25


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_question_has_one_answer_and_every_attempt_one_outcome(
    open_children: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(_keeper.Backoff, "after", lambda self, lifetime_s: 0.0)
    monkeypatch.setattr(_tree.RestartBudget, "spend", lambda self, what, now: None)  # many are idle when killed
    answers: Counter[int] = Counter()
    outcomes: Counter[int] = Counter()
    settings = Settings(
        sandbox=SandboxSettings(processes=2), activity_pool=(ActivityPoolSettings(processes=2, concurrency=5),)
    )
    async with open_children(settings) as children:

        async def kill() -> None:
            for _ in range(KILLS):
                await trio.sleep(chance.uniform(0.0, 0.08))
                child = chance.choice(children.slots).child
                if child is not None:
                    child.kill()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            for number in range(QUESTIONS):
                ask(children, chance, number, answers, outcomes)
                await trio.sleep(chance.uniform(0.0, 0.008))
        await eventually(lambda: len(answers) == QUESTIONS and len(outcomes) == QUESTIONS)
        assert children.activities.running == 0
        assert children.activities.waiting == 0
        assert all(slot.idle for slot in children.slots)
        assert not children.replay._loading
    assert set(answers.values()) == {1}
    assert set(outcomes.values()) == {1}


def ask(children: Any, chance: random.Random, number: int, answers: Counter[int], outcomes: Counter[int]) -> None:
    def answered(answer: Any) -> None:
        answers[number] += 1

    def ended(outcome: Any, worker: str) -> None:
        outcomes[number] += 1

    run_id = f"run-{chance.randrange(40)}"
    if chance.random() < 0.3:
        children.replay.load(run_id, (b"one",), first=True, last=False)
        children.replay.load(run_id, (b"two",), first=False, last=True, on_answer=answered)
    else:
        children.replay.activate(run_id, chance.choice([1, 2]), None, answered)
    name = chance.choices(["echo", "hold", "exit"], weights=[8, 2, 1])[0]
    key = ActivityKey("r", number, 1)
    run = RunActivity(key=key, workflow_id="w", name=name, arguments=Payload(b"[]"))
    children.activities.dispatch(run, "default", ended, alone=chance.random() < 0.1)
    if name == "hold":
        children.activities.cancel(key)
