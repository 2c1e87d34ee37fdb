"""Whether a request is applied: the id policies, and the words of every refusal. Needs no sandbox."""

from __future__ import annotations

from durablefuture_trio.engine.requests import Inbound, StartRequest, TerminateRequest
from durablefuture_trio.history.events import RequestRecord, WorkflowCompleted, WorkflowStarted
from durablefuture_trio.history.state import MAX_RECENT_REQUESTS, RunState


def start_verdict(
    message: Inbound, request: StartRequest, state: RunState | None, limit_bytes: int
) -> RequestRecord | None:
    """What stands against a start; None: it is applied (ending the open run first, if there is one)."""
    request_id = message.request_id
    if state is not None and (record := state.requests.get(request_id)) is not None:
        return record
    if request.arguments.size_bytes > limit_bytes:
        words = (
            f"the arguments take {request.arguments.size_bytes} bytes, a history message holds {limit_bytes}: "
            "pass large values by reference"
        )
        return RequestRecord(request_id, "too_large", "", words)
    if state is None:
        return None
    if state.terminal is None:
        return conflict_verdict(message, request, state)
    if request.reuse == "reject":
        words = f"workflow id {state.workflow_id!r} was used before, and id_reuse_policy is 'reject'"
        return RequestRecord(request_id, "already_started", state.run_id, words)
    if request.reuse == "failed_only" and isinstance(state.terminal, WorkflowCompleted):
        words = f"workflow id {state.workflow_id!r} has completed, and id_reuse_policy is 'failed_only'"
        return RequestRecord(request_id, "already_started", state.run_id, words)
    return None


def conflict_verdict(message: Inbound, request: StartRequest, state: RunState) -> RequestRecord | None:
    """What stands against a start while a run of its id is open."""
    if request.conflict == "use_existing":
        return RequestRecord(message.request_id, "existing", state.run_id)
    if request.conflict == "fail":
        words = f"workflow id {state.workflow_id!r} has an open run {state.run_id}"
        return RequestRecord(message.request_id, "already_started", state.run_id, words)
    return None


def terminate_verdict(message: Inbound, request: TerminateRequest, state: RunState | None) -> RequestRecord | None:
    """What stands against a terminate; None: it is applied."""
    request_id = message.request_id
    if state is None:
        words = f"no workflow has the id {request.workflow_id!r}"
        return RequestRecord(request_id, "not_found", "", words)
    if (record := state.requests.get(request_id)) is not None:
        return record
    if request.run_id not in ("", state.run_id):
        words = f"run {request.run_id} of workflow id {state.workflow_id!r} is not the latest, {state.run_id}"
        return RequestRecord(request_id, "closed", state.run_id, words)
    if state.terminal is not None:
        words = f"run {state.run_id} of workflow id {state.workflow_id!r} is closed"
        return RequestRecord(request_id, "closed", state.run_id, words)
    return None


def started_event(
    message: Inbound, request: StartRequest, before: RunState | None, run_id: str, now: float
) -> WorkflowStarted:
    """The first event of the run a start asks for. Decided requests of earlier runs of the id are carried over."""
    return WorkflowStarted(
        id=1,
        at=now if before is None else max(now, before.last_at),
        workflow_id=request.workflow_id,
        run_id=run_id,
        workflow=request.workflow,
        arguments=request.arguments,
        request_id=message.request_id,
        execution_deadline=request.execution_deadline,
        memo=request.memo,
        carried=() if before is None else tuple(before.requests.values())[-MAX_RECENT_REQUESTS + 1 :],
    )
