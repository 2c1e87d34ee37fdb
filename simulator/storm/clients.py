"""Clients in a storm: rivals for an id, repetitions of a request, somebody who loses patience. What each was told
becomes evidence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from durablefuture_trio.client import Client, WorkflowHandle
from durablefuture_trio.engine.requests import ConflictPolicy, ReusePolicy
from durablefuture_trio.errors import (
    RequestFailedError,
    WorkflowAlreadyStartedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from simulator.oracle import EndTold, StartTold, TerminateTold
from simulator.programs import program
from simulator.storm.words import Words

if TYPE_CHECKING:
    from simulator.storm.plan import Assignment

HABITS = (
    "plain",
    "plain",
    "plain",
    "rivals",
    "twins",
    "replace",
    "terminate",
    "again",
    "impatient",
    "deadline",
    "look",
)


class Visitor:
    """Carries out one assignment, with clients over different connections.

    Attributes:
        doing: what it waits for, for reports; empty: nothing any more.

    Args:
        elapsed_s: how long ago the round began. Above 0 this may be a later life of the client: what was told to the
            earlier one is not asked again.
    """

    def __init__(self, assignment: Assignment, clients: list[Client], words: Words, elapsed_s: float = 0.0) -> None:
        self.doing = "its time"
        self._assignment = assignment
        self._workflow_id = assignment.workflow_id
        self._clients = clients
        self._words = words
        self._elapsed_s = elapsed_s
        self._rng = Random(assignment.seed)
        self._requests = 0

    async def run(self) -> None:
        """Come at the time of the assignment and do as is its habit; returns when all is known."""
        await trio.sleep(max(0.0, self._assignment.at_s - self._elapsed_s))
        habit: Callable[[], Awaitable[None]] = getattr(self, f"_{self._assignment.habit}")
        try:
            await habit()
        except Exception as error:  # noqa: BLE001 - reported
            self._words.fail(f"{self._workflow_id}: a client was told {error!r}")
        self.doing = ""

    # --- habits ---

    async def _plain(self) -> None:
        await self._start_and_wait(self._request_id())

    async def _rivals(self) -> None:
        """Several want the id for themselves, one takes what is there."""
        policies: list[ConflictPolicy] = ["fail", "fail", "use_existing"]
        async with trio.open_nursery() as nursery:
            for policy in policies:
                start = partial(self._start_and_wait, self._request_id(), conflict=policy, reuse="reject")
                nursery.start_soon(self._later, self._rng.uniform(0, 1), start)

    async def _twins(self) -> None:
        """One request, made by two, and again when all is over."""
        request_id = self._request_id()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(self._later, self._rng.uniform(0, 2), partial(self._start_and_wait, request_id))
        await self._start_and_wait(request_id)

    async def _replace(self) -> None:
        """A run in the way is ended by the start of the next."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._start_and_wait, self._request_id())
            for _ in range(self._rng.randint(1, 2)):
                replace = partial(self._start_and_wait, self._request_id(), conflict="terminate_existing")
                nursery.start_soon(self._later, self._rng.uniform(0, 4), replace)

    async def _terminate(self) -> None:
        """Somebody ends it, and says so twice."""
        request_id = self._request_id()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._start_and_wait, self._request_id())
            delay = self._rng.uniform(0, 5)
            nursery.start_soon(self._later, delay, partial(self._end, request_id))
            nursery.start_soon(self._later, delay + self._rng.uniform(0, 0.1), partial(self._end, self._request_id()))

    async def _again(self) -> None:
        """One run after the other, as far as the policy allows."""
        for reuse in ("allow", "failed_only", "reject"):
            await self._start_and_wait(self._request_id(), reuse=reuse)

    async def _impatient(self) -> None:
        """Gives up waiting for the answer to the start, and repeats it."""
        request_id = self._request_id()
        for _ in range(3):
            with trio.move_on_after(self._rng.uniform(0.0, 0.3)):
                await self._start(request_id)
        await self._start_and_wait(request_id)

    async def _deadline(self) -> None:
        """A run that must not take longer than it may."""
        await self._start_and_wait(self._request_id(), execution_timeout=self._rng.choice((0.3, 1.5, 6.0)))

    async def _look(self) -> None:
        """Watched all the time."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await self._start_and_wait(self._request_id())
            nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        while True:
            await trio.sleep(self._rng.uniform(0.1, 1.0))
            handle = self._client().handle(self._workflow_id)
            with suppress(WorkflowNotFoundError):  # before its start is committed
                await handle.describe()
                await handle.history()

    # --- words ---

    async def _later(self, delay_s: float, call: Callable[[], Awaitable[None]]) -> None:
        await trio.sleep(delay_s)
        await call()

    def _client(self) -> Client:
        return self._rng.choice(self._clients)

    def _request_id(self) -> str:
        self._requests += 1
        return f"{self._workflow_id}-{self._requests}"

    async def _start_and_wait(
        self,
        request_id: str,
        *,
        conflict: ConflictPolicy = "fail",
        reuse: ReusePolicy = "allow",
        execution_timeout: float | None = None,
    ) -> None:
        handle = await self._start(request_id, conflict, reuse, execution_timeout)
        if handle is not None:
            await self._wait(handle)

    async def _start(
        self,
        request_id: str,
        conflict: ConflictPolicy = "fail",
        reuse: ReusePolicy = "allow",
        execution_timeout: float | None = None,
    ) -> WorkflowHandle[Any] | None:
        known = self._words.decision(request_id) if self._elapsed_s else None
        if known is not None:  # by an earlier life of this process
            run_id = known.run_id if isinstance(known, StartTold) else None
            return None if run_id is None else self._client().handle(self._workflow_id, run_id=run_id)
        self.doing = f"the answer to start {request_id}"
        try:
            handle = await self._client().start(
                program,
                self._assignment.program.tree,
                id=self._workflow_id,
                request_id=request_id,
                id_conflict_policy=conflict,
                id_reuse_policy=reuse,
                execution_timeout=execution_timeout,
            )
        except WorkflowAlreadyStartedError:
            self._words.add(StartTold(self._workflow_id, request_id, None, new=False))
            return None
        self._words.add(StartTold(self._workflow_id, request_id, handle.run_id, new=conflict != "use_existing"))
        return handle

    async def _wait(self, handle: WorkflowHandle[Any]) -> None:
        run_id = handle.run_id
        assert run_id is not None
        self.doing = f"the end of run {run_id}"
        try:
            await handle.result()
            how = "WorkflowCompleted"
        except WorkflowFailedError:
            how = "WorkflowFailed"
        except WorkflowTerminatedError:
            how = "WorkflowTerminated"
        except WorkflowTimedOutError:
            how = "WorkflowTimedOut"
        self._words.add(EndTold(self._workflow_id, run_id, how))

    async def _end(self, request_id: str) -> None:
        if self._elapsed_s and self._words.decision(request_id) is not None:
            return
        self.doing = f"the answer to terminate {request_id}"
        applied = False
        with suppress(WorkflowNotFoundError, RequestFailedError):
            await self._client().handle(self._workflow_id).terminate("lost patience", request_id=request_id)
            applied = True
        self._words.add(TerminateTold(self._workflow_id, request_id, applied))
