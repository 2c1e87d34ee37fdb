"""Real Trio, one runner per workflow run, without I/O, driven by hand.

With `_trio_parts` this is the only place that touches Trio's internals; `pyproject.toml` bounds the versions it was
tried with (0.30 to 0.35). What it relies on:

- ``trio._core._run.unrolled_run`` is a generator that yields how long it would wait for I/O: zero means that there is
  more to run, anything else that the program is quiescent.
- ``GLOBAL_RUN_CONTEXT`` is a thread-local whose ``__dict__`` says which runner and task are current. It is set only
  while a runner is stepped, and what was there before is put back, so a run can be stepped inside another ``trio.run``.
- ``_ALLOW_DETERMINISTIC_SCHEDULING`` makes the scheduler sort each batch by spawn order before it is shuffled by the
  module's random source; a stand-in for that source keeps the order. Both are put back after each step.

What stays in memory order: the abort functions of the tasks of one cancelled scope (``CancelStatus._tasks`` is a set),
and scopes of one deadline (the heap breaks ties by ``id()``). The tasks themselves are then run in spawn order, so only
what abort functions do themselves can be seen to differ; see the sorting of cancels in `_run`.
"""

from __future__ import annotations

import contextvars
import gc
import sys
import traceback
from collections.abc import Awaitable, Callable, Generator
from random import Random
from types import TracebackType
from typing import Any, TypeVar

import outcome
import trio
from sniffio import thread_local as sniffio_library
from trio._core import _run as trio_run
from trio._core._entry_queue import EntryQueue
from trio._core._instrumentation import Instruments
from trio._core._ki import KIManager
from trio._core._run import GLOBAL_RUN_CONTEXT, Runner
from trio._core._thread_cache import ThreadCache

from durablefuture_trio.errors import SandboxViolationError
from durablefuture_trio.sandbox._trio_parts import (
    MAX_AWAITS_REFUSED,
    IdleWaiters,
    NoInputOutput,
    OrderedAsyncGenerators,
    SpawnOrder,
    Wakeup,
    WorkflowClock,
)

T = TypeVar("T")


class RunDropped(BaseException):
    """The run is leaving memory. User code that catches it is told again."""


_live: set[TrioDriver] = set()
"""Drivers that were not closed. The ``finally`` of a generator that is merely forgotten would wipe the context of
whichever run is current when the garbage collector gets to it: leaking is the lesser evil."""

_unclosable: list[object] = []
"""Coroutines that could not be ended; freed, they would run user code at any odd time."""


SPAWN_ORDER = SpawnOrder()

DETERMINISTIC = True
"""Turned off only by the test that shows what happens then."""


class TrioDriver:
    """One Trio program, stepped by hand.

    Args:
        async_fn: the main function; called without arguments, its outcome is `main_outcome` at the end.
        now: where the clock stands at first, in Unix seconds.
        context: what all tasks inherit, system tasks too; default a copy of the caller's.
        order: who shuffles the tasks that can run at the same time; default: nobody, they run as they were spawned.
    """

    def __init__(
        self,
        async_fn: Callable[[], Awaitable[object]],
        *,
        now: float,
        context: contextvars.Context | None = None,
        order: Random | None = None,
    ) -> None:
        self._order = SPAWN_ORDER if order is None else order
        self._clock = WorkflowClock(now)
        self._asyncgens = OrderedAsyncGenerators()
        self._runner = Runner(
            clock=self._clock,
            instruments=Instruments(()),
            io_manager=NoInputOutput(),  # type: ignore[arg-type] # the loop calls nothing else of it
            ki_manager=KIManager(),
            strict_exception_groups=True,
            system_context=contextvars.copy_context() if context is None else context,
            entry_queue=EntryQueue(wakeup=Wakeup()),  # type: ignore[arg-type] # the same two methods
            asyncgens=self._asyncgens,
            waiting_for_idle=IdleWaiters(),
        )
        self._asyncgens.runner = self._runner
        self._loop: Generator[float, Any, None] = trio_run.unrolled_run(self._runner, async_fn, (), True)
        self._context: dict[str, Any] = {"runner": self._runner}
        self._started = False
        self.finished = False
        _live.add(self)

    @property
    def now(self) -> float:
        """Where the clock stands, in Unix seconds."""
        return self._clock.now

    @property
    def main_outcome(self) -> outcome.Outcome[object] | None:
        """How the main function ended; None while it runs."""
        return self._runner.main_task_outcome

    @property
    def next_deadline(self) -> float:
        """The earliest deadline some task waits for, in Unix seconds; infinity when there is none."""
        return self._runner.deadlines.next_deadline()

    def reschedule(self, task: trio.lowlevel.Task, next_send: outcome.Outcome[Any]) -> None:
        """Let a task that waits in ``wait_task_rescheduled`` go on with the next step."""
        self._runner.reschedule(task, next_send)

    def task_stacks(self) -> str:
        """Where every task stands, in the order they were spawned in, for people."""
        lines: list[str] = []
        for task in sorted(self._runner.tasks, key=lambda task: task._counter):  # noqa: SLF001
            lines.append(f"task {task.name}:")
            lines += [
                f'  File "{frame.f_code.co_filename}", line {line} in {frame.f_code.co_name}'
                for frame, line in task.iter_await_frames()
            ]
        return "\n".join(lines)

    def enter(self, call: Callable[[], None]) -> None:
        """Make a synchronous call inside the program, between two steps: it may wake tasks and cancel scopes."""
        with _Stepping(self):
            call()

    def look(self, question: Callable[[], T]) -> T:
        """Ask something of the program between two steps, also after its end.

        Raises:
            SandboxViolationError: the question woke a task, started one, or moved a deadline.
        """
        with _Stepping(self):
            runner = GLOBAL_RUN_CONTEXT.runner = self._runner
            before = (len(runner.runq), len(runner.tasks), runner.deadlines.next_deadline())
            answer = question()
            if (len(runner.runq), len(runner.tasks), runner.deadlines.next_deadline()) != before:
                raise SandboxViolationError(
                    "a query or a validator only looks at what the run holds, but it woke or started a task, or moved "
                    "a deadline: do that in the handler of a signal or an update"
                )
            return answer

    def step(self, now: float) -> None:
        """Move the clock to `now` and run until nothing can run any more. Deadlines up to `now` expire.

        Raises:
            trio.TrioInternalError: the program broke Trio itself, or a system task of it crashed.
        """
        self._clock.now = now
        with _Stepping(self):
            try:
                timeout = self._loop.send(() if self._started else None)
                self._started = True
                # A task in wait_all_tasks_blocked() wakes when nothing else runs; its cushion is real time, of which
                # none passes here.
                while timeout <= 0 or self._runner.waiting_for_idle:
                    timeout = self._loop.send(())
            except StopIteration:
                self._end()
            except BaseException:
                GLOBAL_RUN_CONTEXT.runner = self._runner
                self._end_tasks()
                self._end()
                raise

    def close(self) -> None:
        """End the program where it stands. Its ``finally`` blocks run (Python runs them when a coroutine is freed);
        whatever they await is refused, and their errors go nowhere, for nothing they do can count any more."""
        if self.finished:
            return
        with _Stepping(self):
            self._end_tasks()
            try:
                if self._started:
                    # With no tasks left the loop ends by itself, without its warning about abandoned runs.
                    self._loop.send(())
                else:
                    self._loop.close()
            except StopIteration:
                pass
            finally:
                self._end()

    def _end_tasks(self) -> None:
        runner = self._runner
        self._asyncgens.stepping = False  # generators that are freed now are ended below
        ended: list[trio.lowlevel.Task] = []
        self._end_others(ended)
        for agen in self._asyncgens.take_remaining():
            runner.system_context.copy().run(_end_generator, agen)
        self._end_others(ended)
        for task in ended:
            _untangle(task)
        runner.tasks.clear()
        runner.runq.clear()
        runner.waiting_for_idle.clear()
        runner.deadlines = trio_run.Deadlines()

    def _end_others(self, ended: list[trio.lowlevel.Task]) -> None:
        # Again, for a ``finally`` block may start tasks; freed as they are, they would warn that nobody awaited them.
        while tasks := sorted(self._runner.tasks.difference(ended), key=lambda task: task._counter, reverse=True):  # noqa: SLF001
            for task in tasks:
                _detach(task)
            for task in tasks:
                GLOBAL_RUN_CONTEXT.task = task
                task.context.run(_end_coroutine, task.coro)
            ended += tasks

    def _end(self) -> None:
        self.finished = True
        self._context = {}
        _live.discard(self)
        # Without these references, which lead round in circles, the memory is free at once: a process that drops runs
        # all the time must not need a full garbage collection for it.
        runner = self._runner
        runner.main_task = runner.init_task = runner.system_nursery = None
        runner.system_context = contextvars.Context()
        runner.entry_queue.wakeup.forget()  # type: ignore[attr-defined] # it is our own
        del self._asyncgens.runner


class _Stepping:
    """The state of the process that belongs to the run being stepped; put back at the end."""

    __slots__ = ("_collecting", "_deterministic", "_driver", "_hooks", "_library", "_outer", "_random")

    def __init__(self, driver: TrioDriver) -> None:
        self._driver = driver

    def __enter__(self) -> None:
        current = GLOBAL_RUN_CONTEXT.__dict__
        self._outer = dict(current)
        self._random = trio_run._r  # noqa: SLF001
        self._deterministic = trio_run._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001
        self._hooks = sys.get_asyncgen_hooks()
        self._library = sniffio_library.name
        # Collecting another run's loop generator would wipe the context of this one.
        self._collecting = gc.isenabled()
        if self._collecting:
            gc.disable()
        asyncgens = self._driver._asyncgens  # noqa: SLF001
        asyncgens.stepping = True
        sys.set_asyncgen_hooks(firstiter=asyncgens.firstiter, finalizer=asyncgens.finalizer)
        trio_run._r = self._driver._order  # type: ignore[assignment] # noqa: SLF001
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = DETERMINISTIC  # type: ignore[misc] # noqa: SLF001
        sniffio_library.name = "trio"
        current.clear()
        current.update(self._driver._context)  # noqa: SLF001

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        current = GLOBAL_RUN_CONTEXT.__dict__
        current.clear()
        current.update(self._outer)
        sniffio_library.name = self._library
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = self._deterministic  # type: ignore[misc] # noqa: SLF001
        trio_run._r = self._random  # noqa: SLF001
        sys.set_asyncgen_hooks(*self._hooks)
        self._driver._asyncgens.stepping = False  # noqa: SLF001
        if self._collecting:
            gc.enable()


def _detach(task: trio.lowlevel.Task) -> None:
    """Cut a task out of the program, so that ending its coroutine neither cancels nor waits for others."""
    task._abort_func = None  # noqa: SLF001
    if task._cancel_status is not None:  # noqa: SLF001
        # Scopes marked so leave the exception alone that passes through them.
        task._cancel_status._mark_abandoned()  # noqa: SLF001
        status = task._cancel_status  # noqa: SLF001
        while status is not None:
            status.abandoned_by_misnesting = True
            status = status._parent  # type: ignore[assignment] # noqa: SLF001
    for nursery in task._child_nurseries:  # noqa: SLF001
        nursery._children.clear()  # noqa: SLF001


def _untangle(task: trio.lowlevel.Task) -> None:
    """Break the circles of references around a task that has ended."""
    status = task._cancel_status  # noqa: SLF001
    task._cancel_status = None  # type: ignore[assignment] # noqa: SLF001
    for nursery in task._child_nurseries:  # noqa: SLF001
        nursery._pending_excs.clear()  # noqa: SLF001
    if task._parent_nursery is not None:  # noqa: SLF001
        # A nursery opened on the way out may have left its task's list already, and complains about its children.
        task._parent_nursery._children.clear()  # noqa: SLF001
    task._child_nurseries.clear()  # noqa: SLF001
    while status is not None:
        status._tasks.clear()  # noqa: SLF001
        status._children.clear()  # noqa: SLF001
        status._scope._cancel_status = None  # noqa: SLF001
        outer = status._parent  # noqa: SLF001
        status._parent = None  # noqa: SLF001
        status = outer  # type: ignore[assignment] # None ends the loop


def _end_coroutine(coroutine: Any) -> None:
    # Not close(): when an inner coroutine awaits on its way out, close() gives up on it, to be freed later.
    thrown: list[BaseException] = []
    for _ in range(MAX_AWAITS_REFUSED):
        thrown.append(RunDropped())
        try:
            coroutine.throw(thrown[-1])
        except BaseException as last:  # noqa: BLE001 - user code's last words; the run is dropped, and may be replayed
            thrown.append(last)
            break
    else:
        _unclosable.append(coroutine)
        return
    for error in thrown:
        _clear_frames(error)


def _clear_frames(error: BaseException) -> None:
    """Empty the frames an exception has come through: most hold the exception itself, by way of a nursery."""
    found: list[BaseException | None] = [error]
    while found:
        one = found.pop()
        if one is None or one.__traceback__ is None:
            continue
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None
        found += [one.__context__, one.__cause__]
        if isinstance(one, BaseExceptionGroup):
            found += one.exceptions


def _end_generator(agen: Any) -> None:
    ending = agen.athrow(RunDropped())
    try:
        ending.send(None)
    except BaseException:  # noqa: BLE001 - as in _end_coroutine
        return
    _end_coroutine(ending)


def threads_of_trio() -> tuple[type, str]:
    """Where all worker threads of Trio are asked for, however ``to_thread`` was imported: class and method."""
    return ThreadCache, "start_thread_soon"


def runs_of_trio() -> tuple[Any, str]:
    """Where every ``trio.run`` and ``start_guest_run`` begins: module and function."""
    return trio_run, "setup_runner"
