"""How a closed run looks to the one who waits for it: a value, or an error."""

from __future__ import annotations

from typing import Any

from durablefuture_trio.client._closing import Closing
from durablefuture_trio.codec import decode_value, exception_of
from durablefuture_trio.errors import (
    HistoryError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durablefuture_trio.history.events import (
    ContinuedAsNew,
    HistoryLimitExceeded,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowTerminated,
    WorkflowTimedOut,
)


def result_of(workflow_id: str, closing: Closing, result_type: Any) -> Any:
    """The result of a run, rebuilt as `result_type`.

    Raises:
        WorkflowFailedError, WorkflowCancelledError, WorkflowTerminatedError, WorkflowTimedOutError: it ended without
            one.
        PayloadError: the result is not what `result_type` wants.
    """
    run_id = closing.run_id
    match closing.event:
        case WorkflowCompleted(result=result):
            return decode_value(result, result_type)
        case WorkflowFailed(failure=failure):
            cause = exception_of(failure)
            raise WorkflowFailedError(
                f"workflow {workflow_id!r} failed: {failure.type}: {failure.message}",
                workflow_id=workflow_id,
                run_id=run_id,
                cause=cause,
            ) from cause
        case WorkflowTerminated(reason=reason):
            raise WorkflowTerminatedError(
                f"workflow {workflow_id!r} was terminated: {reason or 'no reason was given'}",
                workflow_id=workflow_id,
                run_id=run_id,
                reason=reason,
            )
        case WorkflowTimedOut():
            raise WorkflowTimedOutError(
                f"workflow {workflow_id!r} was still open at its execution deadline",
                workflow_id=workflow_id,
                run_id=run_id,
            )
        case WorkflowCancelled(reason=reason):
            raise WorkflowCancelledError(
                f"workflow {workflow_id!r} was cancelled: {reason or 'no reason was given'}",
                workflow_id=workflow_id,
                run_id=run_id,
                reason=reason,
            )
        case HistoryLimitExceeded(limit=limit):
            raise WorkflowFailedError(
                f"workflow {workflow_id!r} was ended because its history has more than {limit} events: a workflow that "
                "does so much has to continue as new in time (workflow.info().continue_as_new_suggested says when)",
                workflow_id=workflow_id,
                run_id=run_id,
                cause=None,
            )
        case ContinuedAsNew(next_run_id=next_run_id):
            raise HistoryError(
                f"workflow {workflow_id!r} continued in run {next_run_id!r}, which is not in its history: restore the "
                "stream from a backup",
                subject="",
                sequence=0,
            )
