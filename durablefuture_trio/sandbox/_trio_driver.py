"""Real Trio, one runner per workflow run, without I/O, driven by hand.

This is the only module that touches Trio's internals; `pyproject.toml` bounds the versions it was tried with
(0.30 to 0.35). What it relies on:

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
import warnings
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, NoReturn

import outcome
import trio
from sniffio import thread_local as sniffio_library
from trio._core import _run as trio_run
from trio._core._asyncgens import AsyncGenerators
from trio._core._entry_queue import EntryQueue
from trio._core._instrumentation import Instruments
from trio._core._ki import KIManager
from trio._core._run import GLOBAL_RUN_CONTEXT, Runner
from trio._core._thread_cache import ThreadCache

from durablefuture_trio.errors import SandboxViolationError

MAX_AWAITS_REFUSED = 1000
"""How often a coroutine that goes on awaiting is told to end when its run is dropped."""


class RunDropped(BaseException):
    """The run is leaving memory. User code that catches it is told again."""


_live: set[TrioDriver] = set()
"""Drivers that were not closed. The ``finally`` of a generator that is merely forgotten would wipe the context of
whichever run is current when the garbage collector gets to it: leaking is the lesser evil."""

_unclosable: list[object] = []
"""Coroutines that could not be ended; freed, they would run user code at any odd time."""


class _SpawnOrder:
    """Stands in for Trio's random source: tasks run in the order they were spawned in."""

    def shuffle(self, batch: list[Any]) -> None:
        # The scheduler has sorted the batch and pops from its end.
        batch.reverse()

    def random(self) -> float:
        return 1.0

    def uniform(self, low: float, _high: float) -> float:
        return low


SPAWN_ORDER = _SpawnOrder()

DETERMINISTIC = True
"""Turned off only by the test that shows what happens then."""


class _WorkflowClock(trio.abc.Clock):
    """Stands still until it is moved."""

    def __init__(self, now: float) -> None:
        self.now = now

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.now


class _NoInputOutput:
    """In place of epoll: a run waits for nothing but its clock and its durable calls."""

    def process_events(self, events: object) -> None:
        pass

    def close(self) -> None:
        pass

    def force_wakeup(self) -> None:
        pass

    def statistics(self) -> object:
        return "workflow"

    def __getattr__(self, name: str) -> NoReturn:
        raise SandboxViolationError(
            f"a workflow cannot wait for input or output (trio.lowlevel.{name}): do it in an activity"
        )


class _Wakeup:
    """In place of a socket pair: nobody outside the run wakes it."""

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._woken = False

    def wakeup_thread_and_signal_safe(self) -> None:
        if self._task is None:
            self._woken = True
        else:
            task, self._task = self._task, None
            task._runner.reschedule(task)  # noqa: SLF001 - may be called while no run is current

    async def wait_woken(self) -> None:
        if self._woken:
            self._woken = False
            return
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def close(self) -> None:
        pass


class _OrderedAsyncGenerators(AsyncGenerators):
    """Trio's care for abandoned async generators, with the order of their creation in place of memory order.

    One that is dropped while its run is stepped (its last reference went, the same in every process) is finalized at
    once, as in Trio; one that the garbage collector finds later is finalized when the run ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._found: list[tuple[int, Any]] = []
        self._counter = 0
        self.stepping = False
        self.runner: Runner

    def firstiter(self, agen: AsyncGenerator[object, Any]) -> None:
        self._counter += 1
        self._numbers[agen] = self._counter

    def finalizer(self, agen: Any) -> None:
        name = agen.__qualname__
        if not self.stepping or self.runner.system_nursery is None or self.runner.system_nursery._closed:  # noqa: SLF001
            self._found.append((self._numbers.get(agen, 0), agen))
            return
        self.runner.entry_queue.run_sync_soon(self._finalize_soon, agen, name)
        # Last, because a strict warnings filter makes it raise.
        warnings.warn(
            f"Async generator {name!r} was garbage collected before it had been exhausted. Surround its use in 'async "
            "with aclosing(...):' to ensure that it gets cleaned up as soon as you're done using it.",
            ResourceWarning,
            stacklevel=2,
            source=agen,
        )

    def _finalize_soon(self, agen: Any, name: str) -> None:
        try:
            self.runner.spawn_system_task(self._finalize_one, agen, name, name=f"close asyncgen {name} (abandoned)")
        except RuntimeError:  # the system nursery was closed meanwhile
            self._found.append((self._numbers.get(agen, 0), agen))

    async def finalize_remaining(self, runner: Runner) -> None:
        for _ in range(MAX_AWAITS_REFUSED):
            remaining = self.take_remaining()
            if not remaining:
                return
            for agen in remaining:
                await self._finalize_one(agen, agen.__qualname__)

    def take_remaining(self) -> list[Any]:
        """Every generator that is not finished, oldest first; forgets them."""
        remaining = [(number, agen) for agen, number in self._numbers.items()] + self._found
        self._numbers.clear()
        self._found.clear()
        remaining.sort(key=lambda pair: pair[0])
        return [agen for _, agen in remaining]

    def close(self) -> None:
        pass


class TrioDriver:
    """One Trio program, stepped by hand.

    Args:
        async_fn: the main function; called without arguments, its outcome is `main_outcome` at the end.
        now: where the clock stands at first, in Unix seconds.
        context: what all tasks inherit, system tasks too; default a copy of the caller's.
    """

    def __init__(
        self, async_fn: Callable[[], Awaitable[object]], *, now: float, context: contextvars.Context | None = None
    ) -> None:
        self._clock = _WorkflowClock(now)
        self._asyncgens = _OrderedAsyncGenerators()
        self._runner = Runner(
            clock=self._clock,
            instruments=Instruments(()),
            io_manager=_NoInputOutput(),  # type: ignore[arg-type] # the loop calls nothing else of it
            ki_manager=KIManager(),
            strict_exception_groups=True,
            system_context=contextvars.copy_context() if context is None else context,
            entry_queue=EntryQueue(wakeup=_Wakeup()),  # type: ignore[arg-type] # the same two methods
            asyncgens=self._asyncgens,
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
                self._end()
                raise

    def close(self) -> None:
        """End the program where it stands. Its ``finally`` blocks run (Python runs them when a coroutine is freed);
        whatever they await is refused, and their errors go nowhere, for nothing they do can count any more."""
        if self.finished:
            _live.discard(self)
            return
        with _Stepping(self):
            self._asyncgens.stepping = False  # generators that are freed now are ended below
            tasks = sorted(self._runner.tasks, key=lambda task: task._counter, reverse=True)  # noqa: SLF001
            for task in tasks:
                _detach(task)
            for task in tasks:
                GLOBAL_RUN_CONTEXT.task = task
                task.context.run(_end_coroutine, task.coro)
            for agen in self._asyncgens.take_remaining():
                self._runner.system_context.copy().run(_end_generator, agen)
            # With nothing left the loop ends by itself, without its warning about abandoned runs.
            self._runner.tasks.clear()
            self._runner.runq.clear()
            self._runner.waiting_for_idle.clear()
            self._runner.deadlines = trio_run.Deadlines()
            try:
                if self._started:
                    self._loop.send(())
                else:
                    self._loop.close()
            except StopIteration:
                pass
            finally:
                self._end()

    def _end(self) -> None:
        self.finished = True
        self._context = {}
        _live.discard(self)


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
        trio_run._r = SPAWN_ORDER  # type: ignore[assignment] # noqa: SLF001
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


def _end_coroutine(coroutine: Any) -> None:
    # Not close(): when an inner coroutine awaits on its way out, close() gives up on it, to be freed later.
    for _ in range(MAX_AWAITS_REFUSED):
        try:
            coroutine.throw(RunDropped())
        except BaseException:  # noqa: BLE001 - user code's last words; the run is dropped, and replayed if it is needed
            return
    _unclosable.append(coroutine)


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
