"""The kinds of durable calls: what each sends, and how its recorded outcome is given to the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring._children import ChildCall
from durablefuture_trio.authoring._futures import DurableCall
from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine.commands import CancelActivity, CancelChild
from durablefuture_trio.errors import (
    ActivityError,
    ChildWorkflowError,
    DurableFutureError,
    RequestFailedError,
    WorkflowCancelledError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowTerminatedError,
)
from durablefuture_trio.history.events import (
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ChildCompleted,
    ChildFailed,
    ChildStartFailed,
    ExternalResolved,
)
from durablefuture_trio.sandbox._blocked import RunBlockedError

RaiseCancel = Callable[[], NoReturn]
Outcome = ActivityCompleted | ActivityFailed | ActivityCancelled
ChildOutcome = ChildCompleted | ChildFailed | ChildStartFailed
Settlement = tuple[Any, DurableFutureError | None]
"""A value, or an error."""

_NO_ANSWER = ("cancelled", "crashed", "lost", "timed_out", "terminated", "not_started")
"""Ways to fail in which the code that was called said nothing: to a caller who has cancelled it they are the cancel's
end."""


class CallOwner(Protocol):
    """What a call needs of the calls it is one of."""

    def wake(self, task: trio.lowlevel.Task) -> None: ...

    def cancel(self, call: Call) -> None: ...


class Call(DurableCall):
    """An open call.

    Attributes:
        name: of what is called, for people.
        result_type: what the result is rebuilt as.
        source: ``file:line`` that made it.
        task: the task that awaits the very call; None: it is a future.
        raise_cancel: the task was cancelled, and this raises its `trio.Cancelled`.
        cancelling: its end was asked for.
    """

    __slots__ = ("calls", "cancelling", "name", "raise_cancel", "result_type", "source", "task")

    kind = "call"
    abandon = False
    """A cancelled call returns at once and its outcome is ignored."""

    def __init__(self, calls: CallOwner, number: int, name: str, result_type: Any, source: str) -> None:
        super().__init__(number)
        self.calls = calls
        self.name = name
        self.result_type = result_type
        self.source = source
        self.task: trio.lowlevel.Task | None = None
        self.raise_cancel: RaiseCancel | None = None
        self.cancelling = False

    def cancel(self) -> None:
        self.calls.cancel(self)

    def wake(self, task: trio.lowlevel.Task) -> None:
        self.calls.wake(task)

    def cancel_command(self) -> CancelActivity | CancelChild | None:
        """What asks for its end; None: nothing does."""
        return None

    def cancelled_error(self) -> DurableFutureError:
        """What a future of it raises that was cancelled without anything being recorded."""
        raise NotImplementedError

    def decoded(self, result: Payload) -> Any:
        """The recorded result.

        Raises:
            RunBlockedError: it cannot be rebuilt as the annotation says.
        """
        try:
            return codec.decode_value(result, self.result_type)
        except MemoryError:
            raise
        except Exception as error:  # whatever a user's class raises while it is rebuilt
            raise RunBlockedError(
                f"the result of {self.kind} {self.name!r} (call {self.number}) cannot be rebuilt as "
                f"{self.result_type!r}: {error}. The result is recorded: run code whose annotation fits it.",
                kind="undecodable",
                source=self.source,
            ) from error

    def __repr__(self) -> str:
        return f"{self.kind} {self.name!r} (call {self.number})"


class ActivityCall(Call):
    """An activity."""

    __slots__ = ("abandon",)

    kind = "activity"

    def __init__(
        self, calls: CallOwner, number: int, name: str, result_type: Any, source: str, *, abandon: bool
    ) -> None:
        super().__init__(calls, number, name, result_type, source)
        self.abandon = abandon

    def cancel_command(self) -> CancelActivity:
        return CancelActivity(call=self.number, source=self.source)

    def cancelled_error(self) -> ActivityError:
        return self._error(0, "cancelled", None)

    def settlement(self, stimulus: Outcome) -> Settlement:
        """The recorded outcome as a value or an error.

        Raises:
            RunBlockedError: the result cannot be rebuilt as the annotation says.
        """
        if isinstance(stimulus, ActivityCompleted):
            return self.decoded(stimulus.result), None
        if isinstance(stimulus, ActivityCancelled):
            return None, self._error(stimulus.attempt, "cancelled", None)
        return None, self._error(stimulus.attempt, stimulus.reason, codec.exception_of(stimulus.failure))

    def _error(self, attempts: int, reason: str, cause: BaseException | None) -> ActivityError:
        tries = {0: "before it began", 1: "after 1 attempt"}.get(attempts, f"after {attempts} attempts")
        words = {"error": "failed", "timed_out": "timed out", "lost": "was lost", "cancelled": "was cancelled"}
        error = ActivityError(
            f"activity {self.name!r} {words.get(reason, reason)} {tries}" + (f": {cause}" if cause is not None else ""),
            activity=self.name,
            activity_id=self.number,
            attempts=attempts,
            reason=reason,
            cause=cause,
        )
        error.__cause__ = cause
        return error


class ChildWorkflowCall(Call, ChildCall):
    """A child workflow."""

    __slots__ = ("run_id", "start", "workflow_id")

    kind = "child workflow"
    start: StartCall

    def __init__(
        self, calls: CallOwner, number: int, name: str, result_type: Any, source: str, *, workflow_id: str
    ) -> None:
        super().__init__(calls, number, name, result_type, source)
        self.workflow_id = workflow_id
        self.run_id = ""
        self.start = StartCall(calls, number, name, str, source)

    def cancel_command(self) -> CancelChild:
        return CancelChild(call=self.number, source=self.source)

    def cancelled_error(self) -> ChildWorkflowError:
        return self._error("cancelled", None)

    def settlement(self, stimulus: ChildOutcome) -> Settlement:
        """As `ActivityCall.settlement`."""
        if isinstance(stimulus, ChildCompleted):
            return self.decoded(stimulus.result), None
        reason = "not_started" if isinstance(stimulus, ChildStartFailed) else stimulus.how
        return None, self._error(reason, stimulus.failure)

    def _error(self, reason: str, failure: Failure | None) -> ChildWorkflowError:
        cause = None if failure is None else _rebuilt(failure, self.workflow_id, self.run_id)
        words = {"not_started": "could not be started", "timed_out": "timed out", "failed": "failed"}
        error = ChildWorkflowError(
            f"child workflow {self.name!r} ({self.workflow_id}) {words.get(reason, f'was {reason}')}"
            + (f": {cause}" if cause is not None else ""),
            workflow=self.name,
            workflow_id=self.workflow_id,
            reason=reason,
            cause=cause,
        )
        error.__cause__ = cause
        return error


class StartCall(Call):
    """The start of a child workflow: no call of its own, but something to wait for."""

    __slots__ = ()

    kind = "start of child workflow"


class ExternalCall(Call):
    """A request to another workflow: a signal, a cancel, or a wait for its end. Once recorded it cannot be called back:
    a caller that is cancelled leaves at once."""

    __slots__ = ("run_id", "workflow_id")

    kind = "request to another workflow"
    abandon = True

    def __init__(
        self, calls: CallOwner, number: int, name: str, result_type: Any, source: str, *, workflow_id: str, run_id: str
    ) -> None:
        super().__init__(calls, number, name, result_type, source)
        self.workflow_id = workflow_id
        self.run_id = run_id

    def settlement(self, stimulus: ExternalResolved) -> Settlement:
        """As `ActivityCall.settlement`."""
        if stimulus.failure is None:
            return None if stimulus.result is None else self.decoded(stimulus.result), None
        error = _rebuilt(stimulus.failure, self.workflow_id, self.run_id)
        if not isinstance(error, DurableFutureError):
            error = RequestFailedError(f"{self.name} failed: {error}")
        return None, error


def _rebuilt(failure: Failure, workflow_id: str, run_id: str) -> BaseException:
    """The exception a record is rebuilt as. Owners word what became of a workflow without its ids: those are the
    caller's knowledge."""
    error = codec.exception_of(failure)
    if not isinstance(error, WorkflowError) or hasattr(error, "workflow_id"):
        return error
    attributes: dict[str, Any] = {"workflow_id": workflow_id, "run_id": run_id}
    if isinstance(error, WorkflowCancelledError | WorkflowTerminatedError):
        attributes["reason"] = getattr(error, "reason", error.message)
    if isinstance(error, WorkflowFailedError):
        attributes["cause"] = error.cause
    named = type(error)(error.message, **attributes)
    named.__cause__ = error.__cause__
    return named


def says_nothing(error: DurableFutureError | None) -> bool:
    """Whether a call ended without a word of the code that was called."""
    return getattr(error, "reason", None) in _NO_ANSWER
