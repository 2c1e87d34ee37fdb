"""The durable calls of one run: from the call in workflow code to its recorded outcome.

A call blocks its task in ``wait_task_rescheduled``; the outcome's stimulus reschedules it. Cancelling follows Trio's
own rule for threads: the cancel is recorded and the attempt's outcome awaited; what came anyway is given to the caller,
who meets `trio.Cancelled` at the next checkpoint. A call that is cancelled in the activation that made it never
happened: nothing of it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import outcome
import trio

from durablefuture_trio import codec
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.commands import CancelActivity, ScheduleActivity
from durablefuture_trio.errors import ActivityError, NondeterminismError
from durablefuture_trio.history.events import ActivityCancelled, ActivityCompleted, ActivityFailed
from durablefuture_trio.history.options import ActivityOptionsRecord
from durablefuture_trio.sandbox._asked import AskedCommands
from durablefuture_trio.sandbox._blocked import RunBlockedError
from durablefuture_trio.sandbox._sources import source_here, source_of_task

RaiseCancel = Callable[[], NoReturn]

_NO_ANSWER = ("cancelled", "crashed", "lost", "timed_out")
"""Ways to fail in which the attempt itself said nothing: to a caller who has cancelled it they are the cancel's end."""


class _Call:
    __slots__ = ("name", "number", "options", "raise_cancel", "result_type", "source", "task")

    def __init__(self, number: int, name: str, options: ActivityOptionsRecord, result_type: Any, source: str) -> None:
        self.number = number
        self.name = name
        self.options = options
        self.result_type = result_type
        self.source = source
        self.task = trio.lowlevel.current_task()
        self.raise_cancel: RaiseCancel | None = None


class DurableCalls:
    """The open calls of a run.

    Args:
        reschedule: lets a waiting task go on, see `TrioDriver.reschedule`.
        asked: takes the commands.
    """

    def __init__(
        self, reschedule: Callable[[trio.lowlevel.Task, outcome.Outcome[Any]], None], asked: AskedCommands
    ) -> None:
        self._reschedule = reschedule
        self._asked = asked
        self._open: dict[int, _Call] = {}
        self._made = 0
        self._abandoned: set[int] = set()

    async def call(self, name: str, arguments: Payload, options: ActivityOptionsRecord, result_type: Any) -> Any:
        """Schedule an activity and wait for its result.

        Raises:
            ActivityError: it failed for good.
            trio.Cancelled: the caller was cancelled, and the activity with it.
        """
        self._made += 1
        number = self._made
        source = source_here(2) or source_of_task(trio.lowlevel.current_task())
        call = _Call(number, name, options, result_type, source)
        self._open[number] = call
        self._asked.add_call(
            number,
            ScheduleActivity(call=number, name=name, arguments=arguments, options=options, source=source),
        )
        del arguments  # may be large, and this frame lives as long as the activity takes

        def abort(raise_cancel: RaiseCancel) -> trio.lowlevel.Abort:
            return self._cancel(call, raise_cancel)

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def forget(self) -> None:
        """Let go of everything: the run has ended."""
        self._open.clear()

    def settle(self, stimulus: ActivityCompleted | ActivityFailed | ActivityCancelled) -> None:
        """Give a recorded outcome to the task that waits for it.

        Raises:
            NondeterminismError: this code never made the call.
            RunBlockedError: the result cannot be rebuilt as the activity's annotation says.
        """
        number = stimulus.activity_id
        call = self._open.pop(number, None)
        if call is None:
            if number in self._abandoned:
                self._abandoned.discard(number)
                return
            raise NondeterminismError(
                f"event {stimulus.id} is the outcome of activity call {number}, which is not open in this code. "
                "The workflow code differs from the code that wrote this history: run that code.",
                recorded=f"outcome of activity call {number}",
                produced="",
                source="",
            )
        self._reschedule(call.task, _outcome_of(call, stimulus))

    def _cancel(self, call: _Call, raise_cancel: RaiseCancel) -> trio.lowlevel.Abort:
        if self._asked.take_back(call.number):
            del self._open[call.number]
            return trio.lowlevel.Abort.SUCCEEDED
        self._asked.cancel(call.number, CancelActivity(call=call.number, source=call.source))
        if call.options.abandon_on_cancel:
            del self._open[call.number]
            self._abandoned.add(call.number)
            return trio.lowlevel.Abort.SUCCEEDED
        call.raise_cancel = raise_cancel
        return trio.lowlevel.Abort.FAILED


def _outcome_of(call: _Call, stimulus: ActivityCompleted | ActivityFailed | ActivityCancelled) -> outcome.Outcome[Any]:
    if isinstance(stimulus, ActivityCompleted):
        try:
            return outcome.Value(codec.decode_value(stimulus.result, call.result_type))
        except MemoryError:
            raise
        except Exception as error:  # whatever a user's class raises while it is rebuilt
            raise RunBlockedError(
                f"the result of activity {call.name!r} (call {call.number}) cannot be rebuilt as {call.result_type!r}: "
                f"{error}. The result is recorded: run code whose annotation fits it.",
                kind="undecodable",
                source=call.source,
            ) from error
    if isinstance(stimulus, ActivityCancelled):
        if call.raise_cancel is not None:
            return outcome.capture(call.raise_cancel)
        return outcome.Error(_activity_error(call, stimulus.attempt, "cancelled", None))
    if call.raise_cancel is not None and stimulus.reason in _NO_ANSWER:
        return outcome.capture(call.raise_cancel)
    return outcome.Error(_activity_error(call, stimulus.attempt, stimulus.reason, codec.exception_of(stimulus.failure)))


def _activity_error(call: _Call, attempts: int, reason: str, cause: BaseException | None) -> ActivityError:
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    words = {"error": "failed", "timed_out": "timed out", "lost": "was lost"}.get(reason, reason)
    error = ActivityError(
        f"activity {call.name!r} {words} after {tries}" + (f": {cause}" if cause is not None else ""),
        activity=call.name,
        activity_id=call.number,
        attempts=attempts,
        reason=reason,
        cause=cause,
    )
    error.__cause__ = cause
    return error
