"""Values that no history message can hold become recorded failures. Producers check against the limit of this program
first; the server in use may have a lower one."""

from __future__ import annotations

from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.attempts import AttemptCompleted, AttemptFailed, AttemptOutcome
from durablefuture_trio.engine.commands import (
    Command,
    CompleteUpdate,
    CompleteWorkflow,
    ContinueAsNew,
    FailWorkflow,
    RequestExternal,
    ScheduleActivity,
    StartChild,
)


def fitting_command(command: Command, limit_bytes: int) -> Command:
    """The command, or the failure of the run in its place."""
    match command:
        case ScheduleActivity(arguments=payload, name=name) if payload.size_bytes > limit_bytes:
            return FailWorkflow(failure=_too_large(f"the arguments of {name}", payload.size_bytes, limit_bytes))
        case StartChild(arguments=payload, workflow=name) if payload.size_bytes > limit_bytes:
            return FailWorkflow(failure=_too_large(f"the arguments of {name}", payload.size_bytes, limit_bytes))
        case RequestExternal(arguments=payload) if payload is not None and payload.size_bytes > limit_bytes:
            what = f"the arguments of signal {command.name}"
            return FailWorkflow(failure=_too_large(what, payload.size_bytes, limit_bytes))
        case ContinueAsNew(arguments=payload) if payload.size_bytes > limit_bytes:
            what = "the arguments of the next run"
            return FailWorkflow(failure=_too_large(what, payload.size_bytes, limit_bytes))
        case CompleteUpdate(result=payload) if payload is not None and payload.size_bytes > limit_bytes:
            failure = _too_large("the result of the update", payload.size_bytes, limit_bytes)
            return CompleteUpdate(update_id=command.update_id, failure=failure, source=command.source)
        case CompleteWorkflow(result=payload) if payload.size_bytes > limit_bytes:
            return FailWorkflow(failure=_too_large("the result", payload.size_bytes, limit_bytes))
        case _:
            return command


def fitting_outcome(outcome: AttemptOutcome, limit_bytes: int) -> AttemptOutcome:
    """The outcome, or the failure of the attempt in its place."""
    if isinstance(outcome, AttemptCompleted) and outcome.result.size_bytes > limit_bytes:
        failure = _too_large("the result", outcome.result.size_bytes, limit_bytes)
        return AttemptFailed(key=outcome.key, started_at=outcome.started_at, reason="error", failure=failure)
    return outcome


def _too_large(what: str, size_bytes: int, limit_bytes: int) -> Failure:
    words = f"{what} took {size_bytes} bytes, a history message holds {limit_bytes}: pass large values by reference"
    return Failure(type="PayloadError", message=words, non_retryable=True)
