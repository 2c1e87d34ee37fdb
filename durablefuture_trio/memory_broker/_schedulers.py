"""Who calls back, and when: the only clock the memory broker knows.

Everything in this package that happens later goes through one `Scheduler`, so a run is a pure function of the calls
made, the seed and the fault plan. `TrioScheduler` rides on Trio's clock (real, or a `MockClock` that jumps);
`VirtualScheduler` is driven by hand, without an event loop.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias

import trio

Callback: TypeAlias = Callable[[], None]


class Scheduler(Protocol):
    """Time, and calls at a time."""

    def now(self) -> float:
        """The server's clock, Unix seconds."""
        ...

    def call_at(self, when: float, callback: Callback) -> None:
        """Call `callback` once at `when` (Unix seconds; not before now, never from within this call). Calls for the
        same time are made in the order they were asked for."""
        ...


class Process(Protocol):
    """The process that holds a link, as far as a simulation that stops and kills processes has to know."""

    def call_at(self, when: float, callback: Callback) -> None:
        """`Scheduler.call_at`, made inside the process: later while it is stopped, never once it is dead."""
        ...

    def enter(self, callback: Callable[[], object]) -> None:
        """Make this call inside the process as soon as it runs."""
        ...

    def sends(self) -> None:
        """The process is about to send something; a simulation may kill it at this very moment."""
        ...


class ThisProcess:
    """The process everything runs in: it is never stopped, and ends with its server."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.call_at = scheduler.call_at

    def enter(self, callback: Callable[[], object]) -> None:
        callback()

    def sends(self) -> None:
        pass


class VirtualScheduler:
    """A scheduler whose time moves only when it is told to.

    Args:
        start: the first time it shows, Unix seconds.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._heap: list[tuple[float, int, Callback]] = []
        self._count = 0

    def now(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callback) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(self._now, when), self._count, callback))

    @property
    def next_due(self) -> float | None:
        """When the next call is due; None if nothing is waiting."""
        return self._heap[0][0] if self._heap else None

    def run_next(self) -> bool:
        """Move to the next call and make it; False if nothing is waiting."""
        if not self._heap:
            return False
        when, _, callback = heapq.heappop(self._heap)
        if when > self._now:
            self._now = when
        callback()
        return True

    def run_until(self, when: float) -> None:
        """Make every call due up to and including `when`, and end at that time."""
        while self._heap and self._heap[0][0] <= when:
            self.run_next()
        self._now = max(self._now, when)

    def run_for(self, seconds: float) -> None:
        """`run_until` that many seconds from now."""
        self.run_until(self._now + seconds)


class TrioScheduler:
    """A scheduler on Trio's clock. Its calls are made by `run`, one task for all of them.

    Args:
        start: what `now` shows at construction, Unix seconds.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._offset = start - trio.current_time()
        self._heap: list[tuple[float, int, Callback]] = []
        self._count = 0
        self._sleep: trio.CancelScope | None = None

    def now(self) -> float:
        return trio.current_time() + self._offset

    def call_at(self, when: float, callback: Callback) -> None:
        # The heap is kept in Trio's time: converted back and forth, a due time could round to just after the moment
        # its own deadline woke us, and under a clock that stands still we would never get past it.
        at = max(when - self._offset, trio.current_time())
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, callback))
        sleep = self._sleep
        if sleep is not None and at < sleep.deadline:
            sleep.deadline = at

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make the calls, for ever. An exception of a call ends it."""
        heap = self._heap
        task_status.started()
        while True:
            # Calls asked for by these calls wait for the next turn: otherwise two that keep asking would hold the loop.
            now, asked = trio.current_time(), self._count
            while heap and heap[0][0] <= now and heap[0][1] <= asked:
                heapq.heappop(heap)[2]()
            if heap and heap[0][0] <= now:
                await trio.lowlevel.checkpoint()
                continue
            with trio.CancelScope(deadline=heap[0][0] if heap else math.inf) as self._sleep:
                await trio.sleep_forever()
            self._sleep = None


@asynccontextmanager
async def open_trio_scheduler(start: float = 1_700_000_000.0) -> AsyncIterator[TrioScheduler]:
    """A running `TrioScheduler`."""
    scheduler = TrioScheduler(start)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()
