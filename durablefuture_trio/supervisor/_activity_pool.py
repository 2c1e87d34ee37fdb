"""The activity processes of a supervisor: least-loaded dispatch, a queue for what has to wait, and fair blame.

Who is to blame when a process dies: the attempt that ran alone in it has crashed. When several shared it, each is
reported lost, which costs no attempt of a retry policy, and its next attempt is dispatched alone in a process once; so
the culprit convicts itself, and then the others of that process are cleared.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import trio

from durablefuture_trio.engine.attempts import ActivityKey, AttemptOutcome, RunActivity
from durablefuture_trio.ports.frame_codec import FrameError
from durablefuture_trio.ports.frames import MAX_FRAME_BYTES, Hello
from durablefuture_trio.supervisor._suspects import Suspects
from durablefuture_trio.supervisor._worker_slot import Attempt, OnOutcome, WorkerSlot, failed
from durablefuture_trio.supervisor.settings import ActivityPoolSettings

log = logging.getLogger("durablefuture_trio.supervisor.activities")

_MAX_ARGUMENT_BYTES = MAX_FRAME_BYTES - 64 * 1024
_SWEEP_S = 1.0
_IDLE_SWEEPS = 5


class TaskQueuePool:
    """The processes of one task queue, and the attempts that wait for a place in them."""

    def __init__(self, settings: ActivityPoolSettings, slots: Sequence[WorkerSlot], suspects: Suspects) -> None:
        self.settings = settings
        self.slots = slots
        self._suspects = suspects
        self._waiting: deque[Attempt] = deque()
        self._waiting_alone: deque[Attempt] = deque()
        self._draining = False
        self._most_reserved = max(1, len(slots) // 2)

    @property
    def running(self) -> int:
        return sum(len(slot.running) for slot in self.slots)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._waiting_alone)

    @property
    def free_places(self) -> int:
        """How many more attempts would run at once."""
        if self._draining:
            return 0
        return max(0, sum(slot.free_places for slot in self.slots) - self.waiting)

    def dispatch(self, attempt: Attempt) -> None:
        """Run the attempt as soon as there is a place for it."""
        if attempt.alone or self._suspects.holds(attempt.run.key):
            attempt.alone = True
            self._waiting_alone.append(attempt)
            self.fill()
            return
        slot = None if self._waiting or self._draining else self._least_loaded()
        if slot is None:
            self._waiting.append(attempt)
        else:
            slot.start(attempt)

    def fill(self) -> None:
        """Start what waits, as far as there are places; called whenever one may have become free."""
        if self._draining:
            return
        if self._waiting_alone:
            self._fill_alone()
        while self._waiting:
            slot = self._least_loaded()
            if slot is None:
                return
            slot.start(self._waiting.popleft())

    def _least_loaded(self) -> WorkerSlot | None:
        best: WorkerSlot | None = None
        fewest = self.settings.concurrency
        for slot in self.slots:
            if slot.child is not None and not slot.reserved and len(slot.running) < fewest:
                best, fewest = slot, len(slot.running)
        return best

    def _fill_alone(self) -> None:
        """An attempt that has to be alone gets a process that is empty, or has one emptied: no new work goes there."""
        while self._waiting_alone:
            slot = next((slot for slot in self.slots if slot.reserved and not slot.running and slot.child), None)
            if slot is None:
                if sum(slot.reserved for slot in self.slots) >= self._most_reserved:
                    return
                candidates = [slot for slot in self.slots if slot.child is not None and not slot.reserved]
                if not candidates:
                    return
                slot = min(candidates, key=lambda slot: len(slot.running))
                slot.reserved = True
                if slot.running:
                    return
            slot.start(self._waiting_alone.popleft())

    def place_freed(self, slot: WorkerSlot) -> None:
        """An attempt of `slot` has ended, or `slot` has a new child."""
        if slot.reserved and not slot.running and not self._waiting_alone:
            slot.reserved = False
        if self._waiting or self._waiting_alone:
            self.fill()

    def take_waiting(self, wanted: Callable[[Attempt], bool]) -> list[Attempt]:
        """Remove and return the waiting attempts that `wanted` picks."""
        taken = {attempt: None for attempt in (*self._waiting, *self._waiting_alone) if wanted(attempt)}
        if taken:
            self._waiting = deque(attempt for attempt in self._waiting if attempt not in taken)
            self._waiting_alone = deque(attempt for attempt in self._waiting_alone if attempt not in taken)
            if not self._waiting_alone:
                self._release_reserved()
        return list(taken)

    def _release_reserved(self) -> None:
        """Nothing waits to be alone any more: processes that were being emptied for it take work again."""
        for slot in self.slots:
            if slot.reserved and not any(attempt.alone for attempt in slot.running.values()):
                slot.reserved = False
        self.fill()

    def stop_dispatching(self) -> None:
        self._draining = True


class WorkerActivityPool:
    """Implements `ports.children.ActivityPool` over all task queues of the supervisor.

    Args:
        pools: the ``[[activity_pool]]`` tables.
        hello: the first frame for every child; its name and settings are put in here.
        member: this supervisor's name, the first part of a worker's name in histories.
        start_timeout_s, exit_grace_s: seconds a child may take to get ready, and to exit when idle and told to.
    """

    def __init__(
        self,
        pools: Iterable[ActivityPoolSettings],
        hello: Hello,
        member: str,
        *,
        start_timeout_s: float,
        exit_grace_s: float,
    ) -> None:
        self._suspects = Suspects()
        self._queues: dict[str, TaskQueuePool] = {}
        self._attempts: dict[ActivityKey, Attempt] = {}
        self._token = trio.lowlevel.current_trio_token()
        self._sweep_wanted = trio.Event()
        self._settled = trio.Event()
        self._draining = False
        for settings in pools:
            slots = [
                WorkerSlot(
                    self,
                    settings,
                    hello,
                    f"{member}/{settings.task_queue}-{index}",
                    member,
                    start_timeout_s=start_timeout_s,
                    exit_grace_s=exit_grace_s,
                )
                for index in range(settings.processes)
            ]
            self._queues[settings.task_queue] = TaskQueuePool(settings, slots, self._suspects)

    @property
    def slots(self) -> list[WorkerSlot]:
        """All processes' places."""
        return [slot for queue in self._queues.values() for slot in queue.slots]

    # --- ports.children.ActivityPool ---

    def serves(self, task_queue: str) -> bool:
        """Whether attempts of this queue can be run here."""
        return task_queue in self._queues

    def dispatch(self, attempt: RunActivity, task_queue: str, on_outcome: OnOutcome, *, alone: bool = False) -> None:
        """Run one attempt when a place is free; `alone`: in a process that runs nothing else meanwhile.

        `on_outcome` is called once, later, never from within this call, with the outcome and the worker's name.

        An attempt that is here already keeps its place; only `on_outcome` is replaced.

        Raises:
            KeyError: the queue is not served here.
            FrameError: the arguments are too large to be sent to a process.
        """
        queue = self._queues[task_queue]
        if attempt.arguments.size_bytes > _MAX_ARGUMENT_BYTES:
            raise FrameError(f"{attempt.name} has {attempt.arguments.size_bytes} bytes of arguments")
        if (known := self._attempts.get(attempt.key)) is not None:
            known.on_outcome = on_outcome
            return
        entry = Attempt(attempt, queue, on_outcome, alone=alone)
        self._attempts[attempt.key] = entry
        queue.dispatch(entry)
        self._sweep_wanted.set()

    def cancel(self, key: ActivityKey) -> None:
        """Ask a running or waiting attempt to end; unknown keys are ignored. Its outcome is still reported."""
        attempt = self._attempts.get(key)
        if attempt is None:
            return
        if attempt.slot is not None:
            attempt.slot.cancel(attempt)
        else:
            self._token.run_sync_soon(self._cancel_waiting, attempt)

    # --- more that an owner may want to know ---

    def free_places(self, task_queue: str) -> int:
        """How many more attempts of the queue would run at once."""
        return self._queues[task_queue].free_places

    @property
    def running(self) -> int:
        """Attempts in processes now."""
        return sum(queue.running for queue in self._queues.values())

    @property
    def waiting(self) -> int:
        """Attempts that wait for a place."""
        return sum(queue.waiting for queue in self._queues.values())

    async def drain(self) -> None:
        """Start nothing any more, and wait until nothing runs. What waits stays where it is."""
        self._draining = True
        for queue in self._queues.values():
            queue.stop_dispatching()
        while self.running:
            self._settled = trio.Event()
            await self._settled.wait()

    # --- for the slots ---

    def finished(self, attempt: Attempt, outcome: AttemptOutcome, worker: str) -> None:
        """The one way out for an attempt."""
        self._attempts.pop(attempt.run.key, None)
        slot = attempt.slot
        if slot is not None:
            slot.running.pop(attempt.run.key, None)
            attempt.queue.place_freed(slot)
        if self._draining and not self.running:
            self._settled.set()
        attempt.on_outcome(outcome, worker)

    def place_freed(self, slot: WorkerSlot) -> None:
        self._queues[slot.task_queue].place_freed(slot)

    def acquit(self, attempt: Attempt) -> None:
        """The attempt was alone in its process and did not bring it down."""
        self._suspects.acquit(attempt.run.key)

    def convict(self, attempt: Attempt) -> None:
        """The attempt was alone in its process when that died."""
        if cleared := self._suspects.convict(attempt.run.key):
            log.info("attempt %s crashed its process alone: %d others are cleared", attempt.run.key, cleared)

    def suspect(self, attempts: Iterable[Attempt]) -> None:
        """These shared a process that died, and nobody knows whose fault it was."""
        self._suspects.add(attempt.run.key for attempt in attempts)

    # --- time ---

    async def watch_deadlines(self) -> None:
        """End what does not heed its timeout or cancel, for ever. Once a second, and only while something runs.

        The worker enforces limits to the millisecond; this is for code that cannot be interrupted, so a second more
        does not matter, and a heap of deadlines that nearly all attempts beat would cost more than it brings.
        """
        while True:
            await self._sweep_wanted.wait()
            idle_sweeps = 0
            while idle_sweeps < _IDLE_SWEEPS:
                await trio.sleep(_SWEEP_S)
                idle_sweeps = 0 if self._attempts else idle_sweeps + 1
                self.sweep(time.time(), time.monotonic())
            self._sweep_wanted = trio.Event()
            if self._attempts:
                self._sweep_wanted.set()

    def sweep(self, now: float, monotonic_now: float) -> None:
        """End what is over its limits at Unix time `now`."""
        for slot in self.slots:
            slot.sweep(now, monotonic_now)
        for queue in self._queues.values():
            for attempt in queue.take_waiting(lambda attempt: attempt.expired(now)):
                outcome = failed(
                    attempt.run,
                    now,
                    "timed_out",
                    "TimeoutError",
                    f"no place in an activity process of task queue {queue.settings.task_queue!r} became free in time",
                    timeout=attempt.run.timeout,
                )
                self.finished(attempt, outcome, "")

    def _cancel_waiting(self, attempt: Attempt) -> None:
        if attempt.slot is not None:  # it got a place meanwhile
            attempt.slot.cancel(attempt)
        elif attempt.queue.take_waiting(lambda waiting: waiting is attempt):
            now = time.time()
            text = "cancelled before it had a place in a process"
            self.finished(attempt, failed(attempt.run, now, "cancelled", "Cancelled", text), "")
