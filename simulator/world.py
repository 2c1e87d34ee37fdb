"""Simulated processes and the time they share.

Each process is a Trio program of its own, stepped by hand, so it can be stopped in its tracks while the others go on
(SIGSTOP, a paused machine), and killed between any two steps or at any message it sends. Time jumps from one thing that
happens to the next; all chance comes from one seed.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import outcome

from durablefuture_trio.memory_broker import MemoryBroker, MemoryServer, VirtualScheduler
from durablefuture_trio.sandbox._trio_driver import TrioDriver

EPOCH = 1_700_000_000.0
"""When every simulation begins, Unix seconds."""


class ProcessFailed(Exception):
    """A simulated process ended with an error of its own."""


class SimulatedProcess:
    """One process. Also the `Scheduler` and the `Process` of its links and pools.

    Attributes:
        is_stopped: it makes no step until `resume`.
        is_dead: nothing of it does anything any more.
        returned: its main function has returned.
    """

    def __init__(self, world: World, name: str, main: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self.is_stopped = False
        self.is_dead = False
        self.returned = False
        self.deadline = math.inf
        self._world = world
        self._links: list[MemoryBroker] = []
        self._calls: list[Callable[[], object]] = []
        self._on_end: list[Callable[[], None]] = []
        self._kill_at_send: int | None = None
        self._is_turning = False
        self._driver = TrioDriver(main, now=world.now(), order=world.rng)

    def connect(self, name: str | None = None) -> MemoryBroker:
        """A link to the server."""
        broker = self._world.server.connect(name or self.name, process=self)
        self._links.append(broker)
        return broker

    def at_end(self, call: Callable[[], None]) -> None:
        """Make this call when the process has ended, however."""
        self._on_end.append(call)

    # --- memory_broker.Scheduler, memory_broker.Process ---

    def now(self) -> float:
        return self._world.now()

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        self._world.scheduler.call_at(when, partial(self.enter, callback))

    def enter(self, callback: Callable[[], object]) -> None:
        if not self.is_dead:
            self._calls.append(callback)
            self._world.wake(self)

    def sends(self) -> None:
        if self._kill_at_send is not None:
            self._kill_at_send -= 1
            if self._kill_at_send <= 0:
                self._world.trace(self.name, "killed in the middle of a step")
                self.kill()

    # --- its fate ---

    def stop(self) -> None:
        """SIGSTOP."""
        self.is_stopped = True

    def resume(self) -> None:
        """SIGCONT: everything that has come meanwhile is there at once, and the clock has moved on."""
        self.is_stopped = False
        self._world.wake(self)

    def kill_at_send(self, count: int) -> None:
        """SIGKILL just before it sends its so many-th message from now."""
        self._kill_at_send = count

    def spare(self) -> None:
        """Take `kill_at_send` back."""
        self._kill_at_send = None

    def drop_links(self, restore_after: float) -> None:
        """Lose its connections for so many seconds."""
        for broker in self._links:
            broker.link.drop(restore_after)

    def kill(self) -> None:
        """SIGKILL."""
        if self.is_dead:
            return
        self.is_dead = True
        self._kill_at_send = None
        for broker in self._links:
            broker.kill()
        if not self._is_turning:
            self._end()

    def _end(self) -> None:
        self._driver.close()
        for call in self._on_end:
            call()
        self._world.processes.pop(self, None)

    def turn(self) -> None:
        """Run until nothing can run any more.

        Raises:
            ProcessFailed: its main function has raised.
        """
        if self.is_dead or self.is_stopped:
            return
        self._is_turning = True
        try:
            while self._calls:
                calls, self._calls = self._calls, []
                self._driver.enter(partial(_make, calls))
            self._driver.step(self._world.now())
        finally:
            self._is_turning = False
        if self.is_dead:
            self._end()
            return
        if self._driver.finished:
            ended = self._driver.main_outcome
            self.returned = True
            self.kill()
            if isinstance(ended, outcome.Error):
                raise ProcessFailed(f"{self.name} failed") from ended.error
            return
        self.deadline = self._driver.next_deadline


def _make(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


class World:
    """The clock, the server and the processes."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.scheduler = VirtualScheduler(EPOCH)
        self.server = MemoryServer(self.scheduler, rng=Random(self.rng.getrandbits(64)))
        self.processes: dict[SimulatedProcess, None] = {}
        self.on_trace: Callable[[float, str, str], None] | None = None
        self._ready: dict[SimulatedProcess, None] = {}

    def now(self) -> float:
        """Unix seconds."""
        return self.scheduler.now()

    def trace(self, who: str, what: str) -> None:
        """Tell the trace, if there is one."""
        if self.on_trace is not None:
            self.on_trace(self.now(), who, what)

    def spawn(self, name: str, main: Callable[[SimulatedProcess], Awaitable[object]]) -> SimulatedProcess:
        """Start a process; `main` gets the process itself."""
        # The process has to exist before its main function can be given it.
        process = SimulatedProcess(self, name, lambda: main(process))
        self.processes[process] = None
        self.wake(process)
        return process

    def wake(self, process: SimulatedProcess) -> None:
        """Let a process run at this very time."""
        self._ready[process] = None

    def run(self, until: Callable[[], bool], *, patience_s: float) -> bool:
        """Go on until `until()` holds (it is looked at whenever time moves); False if it does not in time."""
        give_up_at = self.now() + patience_s
        while True:
            self._run_ready()
            if until():
                return True
            due = self.scheduler.next_due
            deadline = min((it.deadline for it in self.processes if not it.is_stopped), default=math.inf)
            if min(deadline, math.inf if due is None else due) > give_up_at:
                self.scheduler.run_until(give_up_at)
                return False
            if due is not None and due <= deadline:
                self.scheduler.run_next()
                continue
            self.scheduler.run_until(deadline)
            for process in self.processes:
                if process.deadline <= deadline:
                    self.wake(process)

    def _run_ready(self) -> None:
        ready = self._ready
        while ready:
            process = next(iter(ready)) if len(ready) == 1 else self.rng.choice(list(ready))
            del ready[process]
            process.turn()

    def close(self) -> None:
        """Kill everything."""
        for process in list(self.processes):
            process.kill()
