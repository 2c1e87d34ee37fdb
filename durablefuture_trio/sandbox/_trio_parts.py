"""What a workflow's runner has in place of Trio's own parts: no input or output, no real clock, no memory order.

Together with `_trio_driver` the only place that touches Trio's internals.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any, NoReturn

import trio
from trio._core._asyncgens import AsyncGenerators
from trio._core._run import Runner

from durablefuture_trio.errors import SandboxViolationError

MAX_AWAITS_REFUSED = 1000
"""How often a coroutine that goes on awaiting is told to end when its run is dropped."""


class SpawnOrder:
    """Stands in for Trio's random source: tasks run in the order they were spawned in."""

    def shuffle(self, batch: list[Any]) -> None:
        # The scheduler has sorted the batch and pops from its end.
        batch.reverse()

    def random(self) -> float:
        return 1.0

    def uniform(self, low: float, _high: float) -> float:
        return low


class WorkflowClock(trio.abc.Clock):
    """Stands still until it is moved."""

    def __init__(self, now: float) -> None:
        self.now = now

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.now


class NoInputOutput:
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


class Wakeup:
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

    def forget(self) -> None:
        """Let go of the task that waits; it has ended."""
        self._task = None

    def close(self) -> None:
        pass


class IdleWaiters(dict[tuple[float, int], trio.lowlevel.Task]):
    """The tasks in ``wait_all_tasks_blocked``: what the loop uses of a SortedDict, which costs 20 times as much to make
    and is empty in nearly all runs."""

    def keys(self) -> list[tuple[float, int]]:  # type: ignore[override]
        return sorted(super().keys())

    def peekitem(self, index: int) -> tuple[tuple[float, int], trio.lowlevel.Task]:
        key = self.keys()[index]
        return key, self[key]


_NONE_ALIVE: weakref.WeakSet[Any] = weakref.WeakSet()


class OrderedAsyncGenerators(AsyncGenerators):
    """Trio's care for abandoned async generators, with the order of their creation in place of memory order.

    One that is dropped while its run is stepped (its last reference went, the same in every process) is finalized at
    once, as in Trio; one that the garbage collector finds later is finalized when the run ends.
    """

    def __init__(self) -> None:
        # Not calling the base class's: it makes weak sets, which most runs never need.
        self.alive, self.foreign, self.trailing_needs_finalize = _NONE_ALIVE, set(), set()
        self._numbers: MutableMapping[Any, int] = {}
        self._found: list[tuple[int, Any]] = []
        self._counter = 0
        self.stepping = False
        self.runner: Runner

    def firstiter(self, agen: AsyncGenerator[object, Any]) -> None:
        if self._counter == 0:
            self._numbers = weakref.WeakKeyDictionary()
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
