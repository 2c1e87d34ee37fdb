"""What may happen next: inputs to a run become events. The only place that says so.

Every function reads the state and returns events with the next ids and the given time; nothing is changed. The caller
folds them in before it asks again.
"""

from __future__ import annotations

from collections.abc import Collection

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine.commands import (
    CancelActivity,
    CancelChild,
    CancelWorkflow,
    Command,
    CompleteUpdate,
    CompleteWorkflow,
    ContinueAsNew,
    FailWorkflow,
    RecordMarker,
    RequestExternal,
    ScheduleActivity,
    StartChild,
)
from durablefuture_trio.engine.requests import (
    CancelRequest,
    ChildReport,
    ExternalReport,
    Inbound,
    SignalRequest,
    StartRequest,
    UpdateRequest,
    WatchRequest,
)
from durablefuture_trio.engine.retry import is_free, retry_at
from durablefuture_trio.history.events import (
    ActivityCancelled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    ActivityStarted,
    CancelRequested,
    CarriedSignal,
    ChildCancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildInitiated,
    ChildStarted,
    ChildStartFailed,
    ContinuedAsNew,
    Event,
    ExternalRequested,
    ExternalResolved,
    FailureReason,
    MarkerRecorded,
    Route,
    SignalReceived,
    Stimulus,
    TimeoutKind,
    TimerFired,
    UpdateAccepted,
    UpdateCompleted,
    WatcherAdded,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowTimedOut,
)
from durablefuture_trio.history.state import ActivityPhase, ActivityState, RunState


def decide_command(
    state: RunState, command: Command, at: float, *, route: Route = "local", next_run_id: str = ""
) -> Event:
    """The event a command of workflow code becomes.

    Args:
        next_run_id: the run that begins with the end of this one, if one does.
    """
    event_id = state.last_event_id + 1
    match command:
        case ScheduleActivity():
            return ActivityScheduled(
                id=event_id,
                at=at,
                activity_id=command.call,
                route=route,
                name=command.name,
                arguments=command.arguments,
                options=command.options,
            )
        case CancelActivity():
            return ActivityCancelRequested(id=event_id, at=at, activity_id=command.call)
        case CompleteWorkflow():
            return WorkflowCompleted(id=event_id, at=at, result=command.result)
        case FailWorkflow():
            return WorkflowFailed(id=event_id, at=at, failure=command.failure, next_run_id=next_run_id)
        case CancelWorkflow():
            return WorkflowCancelled(id=event_id, at=at, reason=command.reason)
        case ContinueAsNew():
            return ContinuedAsNew(
                id=event_id,
                at=at,
                next_run_id=next_run_id,
                workflow=command.workflow,
                arguments=command.arguments,
            )
        case StartChild():
            return ChildInitiated(
                id=event_id,
                at=at,
                call=command.call,
                workflow_id=command.workflow_id,
                workflow=command.workflow,
                arguments=command.arguments,
                parent_close=command.parent_close,
                execution_timeout=command.execution_timeout,
                retry_policy=command.retry_policy,
                memo=command.memo,
            )
        case CancelChild():
            return ChildCancelRequested(id=event_id, at=at, call=command.call)
        case RequestExternal():
            return ExternalRequested(
                id=event_id,
                at=at,
                call=command.call,
                kind=command.kind,
                workflow_id=command.workflow_id,
                run_id=command.run_id,
                name=command.name,
                arguments=command.arguments,
                reason=command.reason,
            )
        case RecordMarker():
            return MarkerRecorded(id=event_id, at=at, patch=command.patch, deprecated=command.deprecated)
        case CompleteUpdate():
            return UpdateCompleted(
                id=event_id, at=at, update_id=command.update_id, result=command.result, failure=command.failure
            )


def decide_message(state: RunState, message: Inbound, at: float) -> Stimulus | None:
    """The stimulus that a message becomes; None: it is late, nobody waits for it any more."""
    event_id = state.last_event_id + 1
    match message.envelope:
        case SignalRequest() as signal:
            return SignalReceived(
                id=event_id, at=at, name=signal.name, arguments=signal.arguments, request_id=message.request_id
            )
        case StartRequest(signal=CarriedSignal() as carried):
            return SignalReceived(
                id=event_id, at=at, name=carried.name, arguments=carried.arguments, request_id=message.request_id
            )
        case CancelRequest(reason=reason):
            return CancelRequested(id=event_id, at=at, reason=reason, request_id=message.request_id)
        case UpdateRequest() as update:
            return UpdateAccepted(
                id=event_id,
                at=at,
                update_id=update.update_id,
                name=update.name,
                arguments=update.arguments,
                request_id=message.request_id,
            )
        case ChildReport() as report if report.run_id == state.run_id:
            return _decide_child(state, report, at)
        case ExternalReport() as report if report.run_id == state.run_id and report.call in state.externals:
            return ExternalResolved(id=event_id, at=at, call=report.call, failure=report.failure, result=report.result)
        case _:
            return None


def decide_watcher(state: RunState, message: Inbound, request: WatchRequest, at: float) -> WatcherAdded:
    """Whoever asks is told when the open run ends."""
    return WatcherAdded(id=state.last_event_id + 1, at=at, caller=request.sender, request_id=message.request_id)


def decide_unreachable(state: RunState, call: int, workflow_id: str, at: float) -> ExternalResolved:
    """Nothing was sent to a workflow id without any run, where nobody could remember having refused it."""
    failure = Failure(type="WorkflowNotFoundError", message=f"no workflow has the id {workflow_id!r}")
    return ExternalResolved(id=state.last_event_id + 1, at=at, call=call, failure=failure)


def _decide_child(state: RunState, report: ChildReport, at: float) -> Stimulus | None:
    event_id, call = state.last_event_id + 1, report.call
    child = state.children.get(call)
    if child is None:
        return None
    run_id = "" if child.run_id else report.child_run_id
    match report.what:
        case "started":
            return None if child.run_id else ChildStarted(id=event_id, at=at, call=call, run_id=report.child_run_id)
        case "start_failed":
            if child.run_id:
                return None
            return ChildStartFailed(id=event_id, at=at, call=call, failure=report.failure or _NO_WORDS)
        case "completed":
            result = report.result or Payload(b"null")
            return ChildCompleted(id=event_id, at=at, call=call, result=result, run_id=run_id)
        case how:
            failure = report.failure or _NO_WORDS
            return ChildFailed(id=event_id, at=at, call=call, how=how, failure=failure, run_id=run_id)


_NO_WORDS = Failure(type="ChildWorkflowError", message="the child gave no reason")


def cancelled_in_backoff(state: RunState) -> ActivityState | None:
    """A call that was cancelled while no attempt of it was running: its answer follows at once."""
    return next((activity for activity in state.in_backoff.values() if activity.cancel_requested), None)


def decide_cancelled(state: RunState, activity: ActivityState, at: float) -> ActivityCancelled:
    """The end of such a call."""
    return ActivityCancelled(
        id=state.last_event_id + 1, at=at, activity_id=activity.activity_id, attempt=activity.attempt
    )


def decide_completed(
    state: RunState, activity_id: int, attempt: int, result: Payload, *, worker: str, started_at: float, at: float
) -> list[Event]:
    """A success of any attempt completes an open call; of a closed one it is dropped (no events)."""
    activity = state.activities.get(activity_id)
    if activity is None:
        return []
    started = _started(state, activity_id, attempt, worker, started_at, at)
    completed = ActivityCompleted(
        id=state.last_event_id + 2, at=at, activity_id=activity_id, attempt=attempt, result=result
    )
    return [started, completed]


def decide_failed(
    state: RunState,
    activity_id: int,
    attempt: int,
    *,
    reason: FailureReason,
    failure: Failure,
    timeout: TimeoutKind | None,
    worker: str,
    started_at: float | None,
    at: float,
) -> list[Event]:
    """A failure counts only for the current attempt of an open call; any other is dropped (no events).

    Args:
        started_at: None when nobody can say that the attempt ever began.
    """
    activity = state.activities.get(activity_id)
    if activity is None or activity.attempt != attempt or activity.phase is not ActivityPhase.SCHEDULED:
        return []
    events: list[Event] = []
    next_id = state.last_event_id + 1
    if started_at is not None:
        events.append(_started(state, activity_id, attempt, worker, started_at, at))
        next_id += 1
    if activity.cancel_requested and reason in ("cancelled", "crashed", "lost", "timed_out"):
        # Nobody waits for this attempt's success any more: how it ended is the answer to the cancel.
        events.append(ActivityCancelled(id=next_id, at=at, activity_id=activity_id, attempt=attempt))
        return events
    due = retry_at(activity, run_id=state.run_id, reason=reason, failure=failure, at=at)
    events.append(
        ActivityFailed(
            id=next_id,
            at=at,
            activity_id=activity_id,
            attempt=attempt,
            reason=reason,
            failure=failure,
            retry_at=due,
            timeout=timeout,
            free=is_free(activity, reason),
        )
    )
    return events


def _started(
    state: RunState, activity_id: int, attempt: int, worker: str, started_at: float, at: float
) -> ActivityStarted:
    return ActivityStarted(
        id=state.last_event_id + 1,
        at=at,
        activity_id=activity_id,
        attempt=attempt,
        worker=worker,
        started_at=started_at,
    )


def lost_attempts(state: RunState, live: Collection[tuple[int, int]]) -> list[ActivityState]:
    """The open attempts that were dispatched locally and are not among `live`, (activity id, attempt) pairs."""
    return [
        activity
        for activity in state.activities.values()
        if activity.phase is ActivityPhase.SCHEDULED
        and activity.route == "local"
        and (activity.activity_id, activity.attempt) not in live
    ]


def decide_retry(state: RunState, activity: ActivityState, at: float, *, route: Route = "local") -> ActivityScheduled:
    """The next attempt of a call whose backoff is over."""
    return ActivityScheduled(
        id=state.last_event_id + 1,
        at=at,
        activity_id=activity.activity_id,
        attempt=activity.attempt + 1,
        route=route,
    )


def due_retries(state: RunState, now: float) -> list[ActivityState]:
    """The calls whose next attempt is due, longest due first."""
    due = [
        activity for activity in state.in_backoff.values() if activity.retry_at <= now and not activity.cancel_requested
    ]
    due.sort(key=lambda activity: (activity.retry_at, activity.activity_id))
    return due


def decide_timer(state: RunState, now: float) -> TimerFired | None:
    """The sandbox's deadline, if it has been reached. Its time is never before the deadline or the last event."""
    if state.wake_at is None or state.wake_at > now:
        return None
    at = max(now, state.last_at, state.wake_at)
    return TimerFired(id=state.last_event_id + 1, at=at, deadline=state.wake_at)


def decide_timeout(state: RunState, now: float) -> WorkflowTimedOut | None:
    """The end of the run at its execution deadline, if that has been reached."""
    deadline = state.started.execution_deadline
    if deadline is None or deadline > now:
        return None
    return WorkflowTimedOut(id=state.last_event_id + 1, at=max(now, state.last_at, deadline))


def needed_wake(state: RunState, *, sandbox: bool = True) -> float | None:
    """When the run has to be looked at again if nothing arrives: the minimum over every source.

    Args:
        sandbox: False leaves the sandbox's own deadline out (nobody can act on it while the run is blocked).
    """
    if state.terminal is not None:
        return None
    candidates = [activity.retry_at for activity in state.in_backoff.values()]
    if sandbox and state.wake_at is not None:
        candidates.append(state.wake_at)
    if state.started.execution_deadline is not None:
        candidates.append(state.started.execution_deadline)
    return min(candidates, default=None)
