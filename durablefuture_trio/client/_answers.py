"""What an owner's answer to a message means to the caller: a value, or an error."""

from __future__ import annotations

from typing import Any

from durablefuture_trio.codec import decode_value, exception_of
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.requests import Answer
from durablefuture_trio.errors import (
    DurableFutureError,
    QueryFailedError,
    RequestFailedError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowNotFoundError,
)


def refusal(answer: Answer, what: str, workflow_id: str) -> DurableFutureError:
    """The error for a request that was not carried out. ``what`` names it, e.g. ``"signal 'approve'"``."""
    words = answer.message or _WORDS.get(answer.answer, answer.answer)
    message = f"{what} was not delivered to workflow {workflow_id!r}: {words}"
    if answer.answer == "not_found":
        return WorkflowNotFoundError(
            f"{message}. Check the id and the namespace.", workflow_id=workflow_id, run_id=answer.run_id
        )
    return RequestFailedError(message)


_WORDS = {
    "not_found": "it is not known in this namespace",
    "closed": "it has closed already",
    "undecodable": "its supervisor cannot read the request",
}


def update_result(answer: Answer, name: str, update_id: str, workflow_id: str, result_type: Any) -> Any:
    """What the handler of an update returned.

    Raises:
        UpdateRejectedError, UpdateFailedError: by its validator; by its handler, or because the run ended.
        RequestFailedError, WorkflowNotFoundError: it was not delivered.
        PayloadError: the result is not what `result_type` wants.
    """
    what = f"update {name!r}"
    if answer.answer == "applied" and answer.result is not None:
        return decode_value(answer.result, result_type)
    if answer.answer not in ("rejected", "failed"):
        raise refusal(answer, what, workflow_id)
    failure = answer.failure
    what = f"{what} of workflow {workflow_id!r}"
    # One that waited for its handler was accepted, and refused by the validator that came with it.
    if answer.answer == "rejected" or (failure is not None and failure.type == UpdateRejectedError.__name__):
        cause = _cause(failure)
        if isinstance(cause, UpdateRejectedError):
            cause = cause.cause or cause
        raise UpdateRejectedError(f"{what} was rejected: {_words(answer, cause)}", cause=cause) from cause
    cause = _cause(failure)
    raise UpdateFailedError(
        f"{what} failed: {_words(answer, cause)}",
        workflow_id=workflow_id,
        run_id=answer.run_id,
        update_id=update_id,
        cause=cause,
    ) from cause


def query_result(answer: Answer, name: str, workflow_id: str, result_type: Any) -> Any:
    """What the handler of a query returned.

    Raises:
        QueryFailedError: it raised, or there is none of that name.
        WorkflowNotFoundError: there is no such run. RequestFailedError: the run cannot be asked now.
        PayloadError: the result is not what `result_type` wants.
    """
    what = f"query {name!r} of workflow {workflow_id!r}"
    match answer.answer:
        case "answered" if answer.result is not None:
            return decode_value(answer.result, result_type)
        case "failed":
            cause = _cause(answer.failure)
            raise QueryFailedError(
                f"{what} failed: {_words(answer, cause)}",
                workflow_id=workflow_id,
                run_id=answer.run_id,
                query=name,
                cause=cause,
            ) from cause
        case "blocked":
            raise RequestFailedError(
                f"{what} cannot be answered: the run is blocked ({answer.message}). It goes on, and answers, when the "
                "cause is mended."
            )
        case _:
            raise refusal(answer, f"query {name!r}", workflow_id)


def _cause(failure: Failure | None) -> BaseException | None:
    return None if failure is None else exception_of(failure)


def _words(answer: Answer, cause: BaseException | None) -> str:
    if cause is None:
        return answer.message or "no reason was given"
    kind = getattr(cause, "type", None) or type(cause).__name__
    return f"{kind}: {cause}"
