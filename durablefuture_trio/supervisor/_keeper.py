"""Keeps a child process alive: spawn, serve, report its end, wait, spawn again."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

import trio

from durablefuture_trio.errors import ConfigError
from durablefuture_trio.ports.frames import Ready
from durablefuture_trio.supervisor._budget import Backoff, RestartBudget
from durablefuture_trio.supervisor._channel import Outbox
from durablefuture_trio.supervisor._children import Child, ChildSpec, Ended

log = logging.getLogger("durablefuture_trio.supervisor.children")


class ChildSlot(Protocol):
    """A place in a pool that always is to have a child, and what the pool wants to know of it."""

    @property
    def name(self) -> str: ...

    @property
    def idle(self) -> bool:
        """Whether the child has nothing to do, so that its death is nobody's fault but its own."""
        ...

    @property
    def exit_grace_s(self) -> float:
        """Seconds an idle child gets to exit by itself when the supervisor stops."""
        ...

    def next_child(self) -> ChildSpec:
        """What to start; asked before every start."""
        ...

    def child_ready(self, child: Child, ready: Ready) -> None: ...

    def handle(self, frame: Any) -> None: ...

    def child_ended(self, child: Child, ended: Ended) -> None:
        """The child is gone and reaped; nothing of it comes any more. Called before the next one is started."""
        ...


async def keep_alive(
    slot: ChildSlot,
    budget: RestartBudget,
    outbox: Outbox,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Give `slot` a child, for ever. Started when the first one is ready.

    Raises:
        ConfigError: the very first child refused to start, or was not ready in time.
        RestartBudgetSpent: children die too often without having had work.
    """
    backoff = Backoff()
    first = True
    announced = False

    def on_ready(child: Child, ready: Ready) -> None:
        nonlocal announced
        log.debug("%s is ready (pid %d)", child.name, child.pid)
        slot.child_ready(child, ready)
        if not announced:
            announced = True
            task_status.started()

    while True:
        started_at = time.monotonic()
        lifetime_s, worked = 0.0, False
        try:
            child = Child(slot.next_child(), outbox, on_ready, slot.handle)
        except OSError as error:
            log.error("%s cannot be started: %s", slot.name, error)
            budget.spend(f"{slot.name} could not be started: {error}", started_at)
        else:
            ended = await child.run(lambda: slot.exit_grace_s if slot.idle else 0.0)
            worked = ended.was_ready and not slot.idle
            slot.child_ended(child, ended)
            if first and not ended.was_ready:
                _refuse_first(slot, child, ended)
            first = False
            lifetime_s = time.monotonic() - started_at
            _report(child, ended)
            if not worked:
                budget.spend(f"{child.name} {ended.status}", time.monotonic())
        await trio.sleep(backoff.after(lifetime_s))


def _refuse_first(slot: ChildSlot, child: Child, ended: Ended) -> None:
    """What stops the first child stops all: better to say so than to try again."""
    if ended.problems:
        raise ConfigError(ended.problems)
    if ended.late:
        raise ConfigError(
            [
                f"{child.name} was not ready in time: importing the modules takes too long; raise [supervisor] "
                "start_timeout, or move the work out of the modules' top level"
            ]
        )


def _report(child: Child, ended: Ended) -> None:
    for problem in ended.problems:
        log.error("%s refused to start: %s", child.name, problem)
    if ended.late:
        log.error("%s (pid %d) was not ready in time and was killed", child.name, child.pid)
    elif not ended.problems:
        log.warning("%s (pid %d) %s; starting another one", child.name, child.pid, ended.status)
