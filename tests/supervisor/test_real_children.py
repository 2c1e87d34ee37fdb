"""The pools with the real replay and activity processes."""

from __future__ import annotations

import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.attempts import ActivityKey, AttemptCompleted, AttemptFailed, RunActivity
from durablefuture_trio.engine.commands import CompleteWorkflow, ScheduleActivity
from durablefuture_trio.errors import ConfigError
from durablefuture_trio.history.events import ActivityCompleted, WorkflowStarted
from durablefuture_trio.ports.frames import Activated, Blocked, Missing
from durablefuture_trio.supervisor._tree import Children, run_children
from durablefuture_trio.supervisor.settings import ActivityPoolSettings, SandboxSettings, Settings, SupervisorSettings

APPLICATION = """
import ctypes
import os
import signal
import time
import trio
from durablefuture_trio import activity, workflow


@activity
async def add(a: int, b: int) -> int:
    return a + b


@activity
def process_id() -> int:
    return os.getpid()


@activity
async def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@activity
async def wait_for_ever() -> None:
    await trio.sleep_forever()


@activity
async def block_the_loop() -> None:
    time.sleep(600)


@workflow
async def sum_up(a: int, b: int) -> int:
    return 10 * await add(a, b)


@workflow
async def spin() -> None:
    count = 0
    while True:
        count += 1


@workflow
async def segfault() -> None:
    ctypes.string_at(1)
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    (tmp_path / "real_application.py").write_text(textwrap.dedent(APPLICATION))
    return tmp_path


def settings(application: Path, *modules: str) -> Settings:
    return Settings(
        supervisor=SupervisorSettings(modules=modules or ("real_application",)),
        sandbox=SandboxSettings(activation_timeout=0.5),
        activity_pool=(ActivityPoolSettings(processes=1, grace_period=0.3),),
        path=str(application / "supervisor.toml"),
    )


@pytest.fixture
async def children(application: Path, open_children: Any) -> AsyncIterator[Children]:
    async with open_children(settings(application)) as children:
        yield children


def started(workflow: str, arguments: bytes = b"[]") -> WorkflowStarted:
    return WorkflowStarted(
        id=1, at=1_800_000_000.0, workflow_id="w", run_id=workflow, workflow=workflow, arguments=Payload(arguments)
    )


async def test_a_workflow_is_stepped_and_its_activity_runs(children: Children, eventually: Any) -> None:
    replay, activities = children.replay, children.activities
    assert replay is not None
    assert replay.workflows == {"segfault", "spin", "sum_up"}
    answers: list[Any] = []
    replay.activate("sum_up", 1, started("sum_up", b"[2,3]"), answers.append)
    await eventually(lambda: answers)
    (command,) = answers.pop().commands
    assert isinstance(command, ScheduleActivity)
    assert command.name == "add"

    outcomes: list[Any] = []
    attempt = RunActivity(
        key=ActivityKey("sum_up", command.call, 1), workflow_id="w", name=command.name, arguments=command.arguments
    )
    activities.dispatch(attempt, "default", lambda outcome, worker: outcomes.append((outcome, worker)))
    await eventually(lambda: outcomes)
    outcome, worker = outcomes[0]
    assert isinstance(outcome, AttemptCompleted)
    assert worker.startswith("m0/")

    completed = ActivityCompleted(id=4, at=1_800_000_001.0, activity_id=command.call, attempt=1, result=outcome.result)
    replay.activate("sum_up", 2, completed, answers.append)
    await eventually(lambda: answers)
    (command,) = answers.pop().commands
    assert isinstance(command, CompleteWorkflow)
    assert command.result == Payload(b"50")
    assert not replay.cached("sum_up"), "nothing is kept of a run that has come to its end"


async def test_workflow_code_that_never_awaits_is_blocked_with_its_line_in_the_stack_and_others_go_on(
    children: Children, eventually: Any
) -> None:
    assert children.replay is not None
    answers: list[Any] = []
    children.replay.activate("spin", 1, started("spin"), answers.append)
    children.replay.activate("sum_up", 1, started("sum_up", b"[1,1]"), answers.append)
    await eventually(lambda: len(answers) == 2)
    blocked, other = answers
    assert isinstance(blocked, Blocked)
    assert blocked.kind == "deadlock"
    assert "real_application.py" in blocked.stack
    assert "in spin" in blocked.stack
    assert isinstance(other, Missing)
    children.replay.activate("sum_up", 1, started("sum_up", b"[1,1]"), answers.append)
    await eventually(lambda: len(answers) == 3)
    assert isinstance(answers[2], Activated)


async def test_workflow_code_that_brings_its_process_down_is_blocked(children: Children, eventually: Any) -> None:
    assert children.replay is not None
    answers: list[Any] = []
    children.replay.activate("segfault", 1, started("segfault"), answers.append)
    await eventually(lambda: answers)
    assert (answers[0].kind, answers[0].run_id) == ("crashed", "segfault")
    assert "SIGSEGV" in answers[0].message


class Work:
    """Dispatches activities by name and keeps the outcomes by activity id."""

    def __init__(self, children: Children) -> None:
        self._pool = children.activities
        self.outcomes: dict[int, Any] = {}

    def dispatch(self, activity_id: int, name: str, **limits: Any) -> None:
        run = RunActivity(
            key=ActivityKey("r", activity_id, 1), workflow_id="w", name=name, arguments=Payload(b"[]"), **limits
        )
        self._pool.dispatch(run, "default", lambda outcome, worker: self.outcomes.update({activity_id: outcome}))

    def cancel(self, activity_id: int) -> None:
        self._pool.cancel(ActivityKey("r", activity_id, 1))


async def test_an_activity_that_kills_its_process_has_crashed_and_the_next_process_serves_on(
    children: Children, eventually: Any
) -> None:
    work = Work(children)
    work.dispatch(1, "die")
    await eventually(lambda: 1 in work.outcomes)
    assert work.outcomes[1].reason == "crashed"
    work.dispatch(2, "process_id")
    await eventually(lambda: 2 in work.outcomes)
    assert isinstance(work.outcomes[2], AttemptCompleted)


async def test_a_cancel_reaches_an_activity_that_awaits(children: Children, eventually: Any) -> None:
    work = Work(children)
    work.dispatch(1, "wait_for_ever")
    work.cancel(1)
    await eventually(lambda: work.outcomes)
    assert isinstance(work.outcomes[1], AttemptFailed)
    assert work.outcomes[1].reason == "cancelled"


async def test_an_activity_that_blocks_its_process_is_killed_after_its_time_and_the_neighbour_is_lost(
    children: Children, eventually: Any
) -> None:
    work = Work(children)
    work.dispatch(2, "wait_for_ever")
    work.dispatch(1, "block_the_loop", start_to_close=0.1)
    begun = time.monotonic()
    await eventually(lambda: len(work.outcomes) == 2)
    assert time.monotonic() - begun < 10
    assert (work.outcomes[1].reason, work.outcomes[1].timeout) == ("timed_out", "start_to_close")
    assert work.outcomes[2].reason == "lost"


async def test_modules_that_fail_when_imported_end_the_start_with_what_they_raised(application: Path) -> None:
    (application / "broken_application.py").write_text("import no_such_library\n")
    with trio.fail_after(20), pytest.raises(ConfigError, match="no_such_library"):
        await run_children(settings(application, "broken_application"), member="m0")
