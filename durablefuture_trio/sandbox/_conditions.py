"""`workflow.wait_until`: tasks that wait for something to become true."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import trio


class Conditions(trio.abc.Instrument):
    """The tasks of a run in ``wait_until``, and the predicates they wait for.

    After each step of a task every predicate is looked at: only a step (or a new stimulus) can have changed what it
    depends on, and each step is a function of the history. A task whose predicate holds is woken, and looks again
    itself: another task may have been quicker.
    """

    def __init__(self) -> None:
        self._waiting: dict[trio.lowlevel.Task, Callable[[], object]] = {}
        self._installed = False

    async def wait_until(self, predicate: Callable[[], Any]) -> Any:
        """Wait until `predicate` is truthy; gives what it returned."""
        if not self._installed:
            # Not before: steps of a run without conditions cost nothing then.
            trio.lowlevel.add_instrument(self)
            self._installed = True
        await trio.lowlevel.checkpoint()
        while not (value := predicate()):
            await self._park(predicate)
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError("wait_until takes a plain function that looks at the workflow's state, not an async one")
        return value

    def check(self) -> None:
        """Wake the tasks whose predicates hold, in the order in which they began to wait."""
        woken = [task for task, predicate in self._waiting.items() if _holds(task, predicate)]
        for task in woken:
            del self._waiting[task]
            trio.lowlevel.reschedule(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio."""
        if self._waiting:
            self.check()

    @property
    def any_waiting(self) -> bool:
        """Whether a task waits."""
        return bool(self._waiting)

    def forget(self) -> None:
        """Let go of the tasks; the run has ended."""
        self._waiting.clear()

    async def _park(self, predicate: Callable[[], object]) -> None:
        task = trio.lowlevel.current_task()
        self._waiting[task] = predicate

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiting[task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


def _holds(task: trio.lowlevel.Task, predicate: Callable[[], object]) -> bool:
    try:
        return bool(task.context.run(predicate))
    except BaseException:  # noqa: BLE001 - the task asks again itself, and gets what is raised
        return True
