"""Every error a user can meet, in one tree.

Each message says what happened and what to do about it. The errors are picklable and carry what a program may want to
look at as keyword attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any


class DurableFutureError(Exception):
    """The root of all errors raised by durablefuture_trio."""

    def __init__(self, message: str, **attributes: Any) -> None:
        super().__init__(message)
        self.message = message
        self._attributes = attributes
        for name, value in attributes.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self._attributes))


def _rebuild(cls: type[DurableFutureError], message: str, attributes: dict[str, Any]) -> DurableFutureError:
    error = cls.__new__(cls)
    DurableFutureError.__init__(error, message, **attributes)
    return error


# --- failures of user code, as the history records them -------------------------------------------------------------


class ApplicationError(DurableFutureError):
    """A failure that the user words: raised by activities and workflows, and what a recorded failure is rebuilt as.

    Args:
        message: what went wrong, for people.
        type: the name that ``RetryPolicy.non_retryable_error_types`` matches; default ``"ApplicationError"``.
        details: values to carry along; anything the codec can encode.
        non_retryable: True ends the retries of the activity whatever its policy says.
        next_retry_delay: seconds (or a timedelta) before the next attempt, instead of the policy's backoff.
    """

    type: str
    details: tuple[Any, ...]
    non_retryable: bool
    next_retry_delay: float | None
    traceback_text: str

    def __init__(
        self,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 - the field's word, pinned by the public API
        details: Sequence[Any] = (),
        non_retryable: bool = False,
        next_retry_delay: float | timedelta | None = None,
    ) -> None:
        delay = next_retry_delay.total_seconds() if isinstance(next_retry_delay, timedelta) else next_retry_delay
        super().__init__(
            message,
            type=type or "ApplicationError",
            details=tuple(details),
            non_retryable=non_retryable,
            next_retry_delay=delay,
            traceback_text="",
        )


class ActivityError(DurableFutureError):
    """An activity call failed for good: its retries are spent, or its failure was not retryable.

    Attributes:
        activity: the activity's name.
        activity_id: the number of the call in its run.
        attempts: how many attempts were made.
        reason: ``"error"``, ``"crashed"``, ``"timed_out"``, ``"cancelled"`` or ``"lost"``.
        cause: the failure of the last attempt, rebuilt as an exception.
    """

    activity: str
    activity_id: int
    attempts: int
    reason: str
    cause: BaseException | None


class ChildWorkflowError(DurableFutureError):
    """A child workflow ended without a result, or could not be started.

    Attributes:
        workflow: the name of the child's workflow.
        workflow_id: the child's id.
        reason: ``"failed"``, ``"cancelled"``, ``"terminated"``, ``"timed_out"``, or ``"not_started"``.
        cause: its failure, rebuilt as an exception.
    """

    workflow: str
    workflow_id: str
    reason: str
    cause: BaseException | None


class WorkflowError(DurableFutureError):
    """A workflow run did not end with a result. ``workflow_id`` and ``run_id`` say which one."""

    workflow_id: str
    run_id: str


class WorkflowFailedError(WorkflowError):
    """The workflow function raised. ``cause`` is what it raised, rebuilt as an exception."""

    cause: BaseException | None


class WorkflowCancelledError(WorkflowError):
    """The run ended by cancellation. ``reason`` is what the one who cancelled gave."""

    reason: str


class WorkflowTerminatedError(WorkflowError):
    """The run was terminated from outside. ``reason`` is what the one who terminated gave."""

    reason: str


class WorkflowTimedOutError(WorkflowError):
    """The run was still open at its execution deadline."""


class WorkflowAlreadyStartedError(WorkflowError):
    """A start was refused: the id is in use (or was, and the reuse policy forbids another run)."""


class WorkflowNotFoundError(WorkflowError):
    """No run is known for this workflow id (and run id, if one was given)."""


class UpdateRejectedError(DurableFutureError):
    """The validator of an update refused it: its handler did not run. ``cause`` is what the validator raised."""

    cause: BaseException | None = None


class UpdateFailedError(WorkflowError):
    """An update was accepted and came to no result: its handler raised, or the run ended before it had returned.

    Attributes:
        update_id: the id of the update.
        cause: what the handler raised, rebuilt as an exception; None if the run ended.
    """

    update_id: str
    cause: BaseException | None


class QueryFailedError(WorkflowError):
    """A query came to no answer: there is no such handler, or it raised. ``cause`` is what was raised, rebuilt."""

    query: str
    cause: BaseException | None


class RequestFailedError(DurableFutureError):
    """The owner could not carry out a request, and says why; nothing was applied."""


class LimitExceededError(DurableFutureError):
    """A run has asked for more at once than one run may. ``limit`` is how many are allowed.

    Wait for some of the calls before making more (`durable_map` does, with its ``concurrency``), or split the work over
    child workflows.
    """

    limit: int


# --- failures of code and data ----------------------------------------------------------------------------------------


class NondeterminismError(DurableFutureError):
    """Replay produced other commands than the history records; the run is blocked until the right code is back.

    Attributes:
        recorded: what the history holds next, in words (empty: nothing).
        produced: what the code asked for next, in words (empty: nothing).
        source: file and line of the workflow code that asked for it.
    """

    recorded: str
    produced: str
    source: str


class SandboxViolationError(DurableFutureError):
    """Workflow code touched the world. The message names what to use instead."""


class PayloadError(DurableFutureError):
    """A value cannot be encoded or decoded, or is too large. ``path`` is the place inside the value."""

    path: str


class HistoryError(DurableFutureError):
    """A history message cannot be read. ``subject`` and ``sequence`` name it."""

    subject: str
    sequence: int


# --- failures of the installation -------------------------------------------------------------------------------------


class ConfigError(DurableFutureError):
    """The configuration is wrong. ``problems`` holds one line for each thing to mend."""

    problems: tuple[str, ...]

    def __init__(self, problems: Sequence[str]) -> None:
        lines = tuple(problems)
        super().__init__("\n".join(lines), problems=lines)


class BrokerUnavailableError(DurableFutureError):
    """NATS cannot be reached or used: down, wrong credentials, JetStream off, too old. The message has the remedy."""


class NamespaceError(DurableFutureError):
    """The namespace in NATS is not as this program needs it, e.g. a stream whose settings drifted."""
