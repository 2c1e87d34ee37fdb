"""The pools as one service: when it is started, what ends it, and what it leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from durablefuture_trio.errors import ConfigError
from durablefuture_trio.supervisor import _keeper, _tree
from durablefuture_trio.supervisor._budget import RestartBudgetSpent
from durablefuture_trio.supervisor._exit import ExitCode, explain
from durablefuture_trio.supervisor._tree import run_children
from durablefuture_trio.supervisor.settings import Settings, SupervisorSettings

pytestmark = pytest.mark.usefixtures("fake_children")

DEADLINE_S = 20.0


def use_mode(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Have every child behave in `mode` when it is greeted."""
    hello = _tree.Hello

    def with_mode(**fields: Any) -> Any:
        return hello(**{**fields, "settings": {"mode": mode}})

    monkeypatch.setattr(_tree, "Hello", with_mode)


def children_of_this_process() -> list[str]:
    pid = os.getpid()
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_it_is_started_when_every_process_is_ready_and_leaves_none_behind(open_children: Any) -> None:
    before = children_of_this_process()
    async with open_children(Settings()) as children:
        assert len(children.slots) == 3
        assert all(slot.child is not None for slot in children.slots)
        assert len(children_of_this_process()) == len(before) + 3
    assert children_of_this_process() == before, "not even zombies"


async def test_without_a_role_its_processes_are_not_there(open_children: Any) -> None:
    activities_only = Settings(supervisor=SupervisorSettings(roles=("activities",)))
    async with open_children(activities_only) as children:
        assert children.replay is None
        assert children.activities.serves("default")
    workflows_only = Settings(supervisor=SupervisorSettings(roles=("workflows",)))
    async with open_children(workflows_only) as children:
        assert children.replay is not None
        assert not children.activities.serves("default")


async def test_modules_that_are_refused_end_it_with_each_problem_once(monkeypatch: pytest.MonkeyPatch) -> None:
    use_mode(monkeypatch, "refuse")
    with trio.fail_after(DEADLINE_S), pytest.raises(ConfigError) as raised:
        await run_children(Settings(), member="m0")
    assert raised.value.problems == ("shop.py:3: no such thing", "shop.py:9: nor this")


async def test_children_that_are_not_ready_in_time_end_it_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    use_mode(monkeypatch, "mute")
    slow = Settings(supervisor=SupervisorSettings(start_timeout=0.2))
    with trio.fail_after(DEADLINE_S), pytest.raises(ConfigError, match="start_timeout"):
        await run_children(slow, member="m0")


async def test_children_that_keep_dying_before_they_are_ready_spend_the_restart_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_mode(monkeypatch, "die")
    monkeypatch.setattr(_keeper.Backoff, "after", lambda self, lifetime_s: 0.0)
    with trio.fail_after(DEADLINE_S), pytest.raises(RestartBudgetSpent, match="exited with code 3") as raised:
        await run_children(Settings(supervisor=SupervisorSettings(roles=("workflows",))), member="m0")
    explained = explain(raised.value)
    assert explained is not None
    assert explained[0] == ExitCode.RESTART_BUDGET_SPENT


async def test_idle_children_that_keep_dying_spend_the_budget_and_working_ones_do_not(
    open_children: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_keeper.Backoff, "after", lambda self, lifetime_s: 0.0)
    spent: list[str] = []
    monkeypatch.setattr(_tree.RestartBudget, "spend", lambda self, what, now: spent.append(what))
    async with open_children(Settings(supervisor=SupervisorSettings(roles=("workflows",)))) as children:
        (slot,) = children.slots

        async def die(run_id: str | None) -> None:
            child = slot.child
            if run_id is not None:
                answers: list[Any] = []
                children.replay.activate(run_id, 1, None, answers.append)
                await eventually(lambda: answers)
            else:
                child.kill()
            await eventually(lambda: slot.child not in (None, child))

        await die("crash-1")
        assert spent == []
        await die(None)
        assert spent == ["m0/replay-0 was killed by SIGKILL"]
