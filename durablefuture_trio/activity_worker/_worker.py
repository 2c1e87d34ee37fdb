"""The worker: frames in, attempts run, outcomes out."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import trio

from durablefuture_trio.activity_worker._outbox import Outbox
from durablefuture_trio.authoring._activity import ActivityDefinition
from durablefuture_trio.authoring._activity_context import ActivityInfo, current_activity
from durablefuture_trio.codec.failures import failure_of
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.codec.values import decode_arguments, encode_value
from durablefuture_trio.errors import PayloadError
from durablefuture_trio.history.events import FailureReason, TimeoutKind
from durablefuture_trio.ports.frame_codec import FrameReader
from durablefuture_trio.ports.frames import (
    ActivityKey,
    AttemptCompleted,
    AttemptFailed,
    Bye,
    CancelAttempt,
    RunActivity,
    WorkerDown,
)

READ_BYTES = 64 * 1024  # a buffer from 128 KiB on is mapped and unmapped for each read: ten times the cost
_READS_IN_ONE_GO = 16
LONGEST_CLEANUP_S = 2.0
"""How long the attempts of a worker whose supervisor is gone may clean up."""

EXIT_ABANDONED = 1

log = logging.getLogger("durablefuture_trio.activity_worker")


class _Attempt:
    """An attempt that runs."""

    __slots__ = ("cancel_wanted", "run", "scope")

    def __init__(self, run: RunActivity) -> None:
        self.run = run
        self.scope = trio.CancelScope()
        self.cancel_wanted = False


class Worker:
    """Runs the attempts a supervisor sends, until it says `Bye` or goes away.

    Args:
        sock: to the supervisor; made non-blocking.
        outbox: for the same socket.
        reader: what is left of the frames read so far.
        activities: the registered ones.
        concurrency: plain functions at once, each in a thread.
    """

    def __init__(
        self,
        sock: socket.socket,
        outbox: Outbox,
        reader: FrameReader[WorkerDown],
        activities: Mapping[str, ActivityDefinition[..., Any]],
        concurrency: int,
    ) -> None:
        self._sock = sock
        self._outbox = outbox
        self._reader = reader
        self._activities = activities
        self._threads = trio.CapacityLimiter(concurrency)
        self._running: dict[ActivityKey, _Attempt] = {}
        self._draining = False

    async def run(self, first: list[WorkerDown]) -> None:
        """Serve; `first` are frames that came together with the greeting."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._outbox.serve)
            for frame in first:
                self._handle(frame)
            while await self._read():
                await trio.lowlevel.wait_readable(self._sock)
            # Nobody wants the outcomes any more.
            _exit_after(LONGEST_CLEANUP_S)
            nursery.cancel_scope.cancel()

    async def _read(self) -> bool:
        """Handle what has arrived; False at the end of the file."""
        for _ in range(_READS_IN_ONE_GO):
            try:
                data = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not data:
                return False
            for frame in self._reader.feed(data):
                self._handle(frame)
            if len(data) < READ_BYTES:
                return True
        # More is there, but what has come should run too.
        await trio.lowlevel.checkpoint()
        return True

    def _handle(self, frame: WorkerDown) -> None:
        match frame:
            case RunActivity():
                attempt = self._running[frame.key] = _Attempt(frame)
                self._nursery.start_soon(self._attempt, attempt)
            case CancelAttempt():
                running = self._running.get(frame.key)
                if running is not None:
                    running.cancel_wanted = True
                    running.scope.cancel()
            case Bye():
                self._draining = True
                self._stop_if_drained()
            case _:
                log.error("unexpected %s frame from the supervisor", type(frame).__name__)

    def _stop_if_drained(self) -> None:
        if self._draining and not self._running:
            self._nursery.cancel_scope.cancel()

    async def _attempt(self, attempt: _Attempt) -> None:
        try:
            outcome = await self._outcome(attempt)
        finally:
            del self._running[attempt.run.key]
        self._outbox.add(outcome)
        if self._draining:
            self._stop_if_drained()

    async def _outcome(self, attempt: _Attempt) -> AttemptCompleted | AttemptFailed:
        run = attempt.run
        started_at = time.time()
        limit_s, kind = _limit(run, started_at)
        if limit_s <= 0 or attempt.cancel_wanted:
            return _stopped(attempt, started_at, kind)
        definition = self._activities.get(run.name)
        if definition is None:
            return _failed(attempt, started_at, self._unknown(run.name))
        attempt.scope.deadline = trio.current_time() + limit_s
        returned = False
        value: Any = None
        try:
            arguments = _arguments(definition, run)
            current_activity.set(_info(run, started_at, limit_s))
            with attempt.scope:
                if definition.is_async:
                    value = await definition.fn(*arguments)
                else:
                    value = await trio.to_thread.run_sync(partial(definition.fn, *arguments), limiter=self._threads)
                returned = True
            if not returned:
                return _stopped(attempt, started_at, kind)
            return AttemptCompleted(key=run.key, started_at=started_at, result=encode_value(value))
        except trio.Cancelled:
            raise
        except BaseException as error:
            # SystemExit and KeyboardInterrupt raised by user code too: they must not take the neighbours down.
            if isinstance(error, BaseExceptionGroup) and error.subgroup(trio.Cancelled) is not None:
                raise
            return _failed(attempt, started_at, failure_of(error))

    def _unknown(self, name: str) -> Failure:
        known = ", ".join(self._activities) or "none"
        return Failure(
            type="UnknownActivityError",
            message=f"no activity {name!r} is registered in this process: add its module to `modules`, or restart the "
            f"supervisor with the code that has it; registered are: {known}",
        )


def _exit_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (EXIT_ABANDONED,))
    timer.daemon = True
    timer.start()


def _limit(run: RunActivity, now: float) -> tuple[float, TimeoutKind]:
    """Seconds the attempt may take from now, and by which of its limits."""
    left: float = float("inf")
    kind: TimeoutKind = "start_to_close"
    if run.start_to_close is not None:
        left = run.start_to_close
    if run.deadline is not None and run.deadline - now < left:
        left = run.deadline - now
        kind = run.timeout or "schedule_to_close"
    return left, kind


def _info(run: RunActivity, started_at: float, limit_s: float) -> ActivityInfo:
    return ActivityInfo(
        activity=run.name,
        workflow_id=run.workflow_id,
        run_id=run.key.run_id,
        activity_id=run.key.activity_id,
        attempt=run.key.attempt,
        deadline=None if limit_s == float("inf") else started_at + limit_s,
    )


def _arguments(definition: ActivityDefinition[..., Any], run: RunActivity) -> tuple[Any, ...]:
    arguments = decode_arguments(run.arguments, definition.parameter_hints)
    if len(arguments) < definition.signature.required:
        raise PayloadError(
            f"activity {run.name} needs {definition.signature.required} arguments "
            f"({', '.join(definition.signature.names)}), but the call recorded {len(arguments)}: give parameters that "
            "were added since then a default",
            path="$",
        )
    return arguments


def _stopped(attempt: _Attempt, started_at: float, kind: TimeoutKind) -> AttemptFailed:
    """The outcome of an attempt whose scope was cancelled, by the supervisor or by its deadline."""
    if attempt.cancel_wanted:
        return _failed(attempt, started_at, Failure(type="Cancelled", message="the attempt was cancelled"), "cancelled")
    text = f"the attempt was over its {kind}_timeout"
    if kind == "start_to_close":
        text += f" of {attempt.run.start_to_close:g} s"
    return _failed(attempt, started_at, Failure(type="TimeoutError", message=text), "timed_out", kind)


def _failed(
    attempt: _Attempt,
    started_at: float,
    failure: Failure,
    reason: FailureReason = "error",
    timeout: TimeoutKind | None = None,
) -> AttemptFailed:
    return AttemptFailed(key=attempt.run.key, started_at=started_at, reason=reason, failure=failure, timeout=timeout)
