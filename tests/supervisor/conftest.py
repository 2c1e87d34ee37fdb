"""Pools of fake children, and the means to wait for what they do."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

from durablefuture_trio.supervisor import _replay_slot, _worker_slot
from durablefuture_trio.supervisor._channel import Outbox
from durablefuture_trio.supervisor._tree import Children, run_children
from durablefuture_trio.supervisor.settings import Settings

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 20.0

OpenChildren: TypeAlias = Callable[[Settings], AbstractAsyncContextManager[Children]]
Eventually: TypeAlias = Callable[[Callable[[], object]], object]


@pytest.fixture
async def outbox() -> AsyncIterator[Outbox]:
    outbox = Outbox()
    trio.lowlevel.add_instrument(outbox)
    yield outbox
    trio.lowlevel.remove_instrument(outbox)


@pytest.fixture
def fake_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the pools start fake children."""
    monkeypatch.setattr(_replay_slot, "_MODULE", "tests._support.fake_child")
    monkeypatch.setattr(_worker_slot, "_MODULE", "tests._support.fake_child")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def open_children() -> OpenChildren:
    """``async with open_children(settings) as children``: runs the pools as the supervisor does."""

    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[Children]:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(DEADLINE_S):

                async def run(task_status: trio.TaskStatus[Children]) -> None:
                    await run_children(settings, member="m0", task_status=task_status)

                children: Children = await nursery.start(run)
            yield children
            nursery.cancel_scope.cancel()

    return opened


@pytest.fixture
def eventually() -> Iterator[Callable[[Callable[[], object]], object]]:
    """``await eventually(condition)``: wait until it holds."""

    async def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"did not come true within {DEADLINE_S} s: {condition}")
            await trio.sleep(0.005)

    return wait
