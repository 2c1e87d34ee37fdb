"""Whether a request is applied: the id policies, and the words of every refusal. Needs no sandbox."""

from __future__ import annotations

from zlib import crc32

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine.mail import released_children
from durablefuture_trio.engine.requests import (
    CancelRequest,
    Envelope,
    Inbound,
    SignalRequest,
    StartRequest,
    TerminateRequest,
    UpdateRequest,
    WatchRequest,
)
from durablefuture_trio.engine.retry import backoff_s, is_retryable
from durablefuture_trio.history.events import (
    CarriedSignal,
    CarriedUpdate,
    RequestRecord,
    WorkflowCompleted,
    WorkflowStarted,
)
from durablefuture_trio.history.state import MAX_RECENT_REQUESTS, MAX_UPDATE_OUTCOMES, RunState

MAX_SIGNALS = 10_000
"""Signals that one run may be sent; a workflow that gets more continues as new in time."""

MAX_OPEN_UPDATES = 1_000
"""Updates of one run that may be accepted and not completed."""

MAX_WATCHERS = 1_000
"""Calls of other workflows that may wait for the end of one run. All of them are in the first event of the run that
continues it."""


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


def run_verdict(
    message: Inbound, request: TerminateRequest | CancelRequest | SignalRequest | UpdateRequest, state: RunState | None
) -> RequestRecord | None:
    """What stands against a request to an open run; None: it is applied.

    A request means one run, or (naming its first one) whichever run of a chain is open.
    """
    request_id = message.request_id
    if state is None:
        words = f"no workflow has the id {request.workflow_id!r}"
        return RequestRecord(request_id, "not_found", "", words)
    if request_id and (record := state.requests.get(request_id)) is not None:
        return record
    parent = request.parent if isinstance(request, TerminateRequest | CancelRequest) else None
    if parent is not None and state.started.parent != parent:
        words = f"workflow id {state.workflow_id!r} has no run that was started by {parent.workflow_id!r}"
        return RequestRecord(request_id, "closed", state.run_id, words)
    if not _means(request.run_id, state):
        return _not_the_latest(request_id, request.run_id, state)
    if state.terminal is not None:
        words = f"run {state.run_id} of workflow id {state.workflow_id!r} is closed"
        return RequestRecord(request_id, "closed", state.run_id, words)
    return _limit_verdict(request_id, request, state)


def watch_verdict(message: Inbound, request: WatchRequest, state: RunState | None) -> RequestRecord | None:
    """What stands against telling a workflow the end of a run, open or closed; None: it will be told."""
    request_id = message.request_id
    if state is None:
        return RequestRecord(request_id, "not_found", "", f"no workflow has the id {request.workflow_id!r}")
    if not _means(request.run_id, state):
        return _not_the_latest(request_id, request.run_id, state)
    if state.terminal is None and len(state.watchers) >= MAX_WATCHERS:
        words = f"{MAX_WATCHERS} calls of other workflows wait for run {state.run_id} already, which is the limit"
        return RequestRecord(request_id, "limit", state.run_id, words)
    return None


def _means(run_id: str, state: RunState) -> bool:
    return run_id in ("", state.run_id, state.started.chain_id)


def _not_the_latest(request_id: str, run_id: str, state: RunState) -> RequestRecord:
    words = f"run {run_id} of workflow id {state.workflow_id!r} is not the latest, {state.run_id}"
    return RequestRecord(request_id, "closed", state.run_id, words)


def _limit_verdict(request_id: str, request: object, state: RunState) -> RequestRecord | None:
    """What a run has too much of already."""
    if isinstance(request, SignalRequest) and state.signals >= MAX_SIGNALS:
        words = f"run {state.run_id} has been sent {MAX_SIGNALS} signals: it has to continue as new to take more"
        return RequestRecord(request_id, "limit", state.run_id, words)
    if isinstance(request, UpdateRequest) and len(state.updates) >= MAX_OPEN_UPDATES:
        words = f"run {state.run_id} has {MAX_OPEN_UPDATES} updates that are not completed: try again later"
        return RequestRecord(request_id, "limit", state.run_id, words)
    return None


def may_be_applied_later(envelope: Envelope, record: RequestRecord) -> bool:
    """Whether a copy of a refused request that comes again could be decided otherwise, if nobody remembered."""
    match record.answer, envelope:
        case (("rejected" | "limit"), _):
            return True
        case "already_started", StartRequest(reuse=reuse):
            return reuse != "reject"
        case "closed", SignalRequest(run_id="") | UpdateRequest(run_id="") | CancelRequest(run_id="", parent=None):
            return True
        case _:
            return False


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
        carried=_carried(before),
        parent=request.parent,
        retry_policy=request.retry_policy,
        not_before=request.not_before,
        signals=() if request.signal is None else (request.signal,),
        last_result=_last_result(before),
        update_outcomes=() if before is None else tuple(before.update_outcomes.values()),
    )


def _last_result(before: RunState | None) -> Payload | None:
    if before is None:
        return None
    return before.terminal.result if isinstance(before.terminal, WorkflowCompleted) else before.started.last_result


def _carried(before: RunState | None) -> tuple[RequestRecord, ...]:
    """The decided requests that the next run of an id has to know, with room for its own start."""
    return () if before is None else tuple(before.requests.values())[-MAX_RECENT_REQUESTS + 1 :]


def continued_event(
    before: RunState, run_id: str, workflow: str, arguments: Payload, signals: tuple[CarriedSignal, ...]
) -> WorkflowStarted:
    """The first event of the run that goes on where another one continues as new. Its open updates and its
    cancellation go on as well, its deadline stands."""
    started = before.started
    return WorkflowStarted(
        id=1,
        at=before.last_at,
        workflow_id=before.workflow_id,
        run_id=run_id,
        workflow=workflow,
        arguments=arguments,
        execution_deadline=started.execution_deadline,
        memo=started.memo,
        carried=_carried(before),
        parent=started.parent,
        first_run_id=started.chain_id,
        continued_from=before.run_id,
        retry_policy=started.retry_policy,
        signals=signals,
        updates=tuple(CarriedUpdate(it.update_id, it.name, it.arguments) for it in before.updates.values()),
        cancel_reason=before.cancel_reason,
        last_result=started.last_result,
        update_outcomes=tuple(before.update_outcomes.values()),
        released=released_children(before),
        watchers=tuple(before.watchers),
    )


def replacing_event(started: WorkflowStarted, before: RunState) -> WorkflowStarted:
    """The first event of a run in the commit that terminates another one: only that commit knows what is still owed."""
    return msgspec.structs.replace(
        started,
        released=released_children(before),
        replaced_child_of=before.started.parent,
        replaced_watchers=tuple(before.watchers),
    )


def still_owing(started: WorkflowStarted, before: RunState) -> WorkflowStarted:
    """The first event of a run, when what the run before it was to pass on may not have been stored yet."""
    owing = before.started
    return msgspec.structs.replace(
        started,
        released=(*owing.released, *started.released),
        replaced_child_of=started.replaced_child_of or owing.replaced_child_of,
        replaced_watchers=(*owing.replaced_watchers, *started.replaced_watchers),
    )


def next_attempt_event(before: RunState, run_id: str, failure: Failure, at: float) -> WorkflowStarted | None:
    """The first event of the run that tries a failed workflow again; None: it is not tried again."""
    started = before.started
    policy = started.retry_policy
    if policy is None or before.cancel_reason is not None or not is_retryable(policy, failure):
        return None
    if policy.maximum_attempts is not None and started.attempt >= policy.maximum_attempts:
        return None
    unit = crc32(before.run_id.encode()) / 2**32
    delay = failure.next_retry_delay
    due = at + (backoff_s(policy, started.attempt, unit) if delay is None else max(0.0, delay))
    if started.execution_deadline is not None and due >= started.execution_deadline:
        return None
    again = continued_event(before, run_id, started.workflow, started.arguments, started.signals)
    outcomes = (*before.update_outcomes.values(), *before.unfinished_updates())[-MAX_UPDATE_OUTCOMES:]
    return msgspec.structs.replace(
        again, attempt=started.attempt + 1, not_before=due, updates=(), update_outcomes=outcomes
    )
