"""The event table: everything that can be recorded about a run.

Each event belongs to one of three classes. A *stimulus* wakes the sandbox: it is applied alone, with the workflow clock
at its timestamp, until nothing can run any more. A *command* is what an activation asked for. An *owner event* is
neither: bookkeeping of the owner that workflow code never sees. The fold and the replay both read this table and
nothing else.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.history.options import ActivityOptionsRecord, RetryPolicy

Route = Literal["local", "queue"]
FailureReason = Literal["error", "crashed", "timed_out", "cancelled", "lost"]
TimeoutKind = Literal["start_to_close", "schedule_to_close", "schedule_to_start", "heartbeat"]
ParentClose = Literal["terminate", "cancel", "abandon"]
ExternalKind = Literal["signal", "cancel", "result"]
ChildEnd = Literal["failed", "cancelled", "terminated", "timed_out"]


class EventClass(Enum):
    """Who an event is for; see the module's docstring."""

    STIMULUS = "stimulus"
    COMMAND = "command"
    OWNER = "owner"


class EventBase(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all events share.

    Attributes:
        id: number of the event in its run, from 1, without gaps.
        at: when, in Unix seconds; never less than the event before.
    """

    id: int
    at: float


class RequestRecord(msgspec.Struct, frozen=True, array_like=True):
    """A client request that has been decided, kept so that a retry of it is answered and never applied again.

    Attributes:
        request_id: the client's id of the request.
        answer: ``"applied"``, or the name of the refusal.
        run_id: the run it was applied to or refused for.
        message: the words of a refusal.
    """

    request_id: str
    answer: str
    run_id: str
    message: str = ""


class CallerRecord(msgspec.Struct, frozen=True, array_like=True):
    """The call of a workflow that asked for something of another workflow, and is told what came of it."""

    workflow_id: str
    run_id: str
    call: int


class CarriedSignal(msgspec.Struct, frozen=True, array_like=True):
    """A signal that a run was given and did not take before it continued as new."""

    name: str
    arguments: Payload


class CarriedUpdate(msgspec.Struct, frozen=True, array_like=True):
    """An accepted update that was not completed before its run continued as new."""

    update_id: str
    name: str
    arguments: Payload


class ReleasedChild(msgspec.Struct, frozen=True, array_like=True):
    """A child that was open when its parent ended: its close policy is still to be carried out.

    Attributes:
        has_started: its owner had recorded its start; otherwise it is to be started first.
    """

    parent: CallerRecord
    initiated: ChildInitiated
    has_started: bool


class UpdateRecord(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of an update, kept so that a repetition of it is answered. One of the two is there."""

    update_id: str
    result: Payload | None = None
    failure: Failure | None = None


# --- stimuli ----------------------------------------------------------------------------------------------------------


class WorkflowStarted(EventBase, frozen=True, tag=True):
    """The first event of a run.

    Attributes:
        workflow_id, run_id: whose history this is.
        workflow: the workflow's registered name.
        arguments: encoded positional arguments.
        request_id: the request that asked for this run.
        execution_deadline: absolute Unix seconds at which the run times out.
        memo: encoded user value shown in listings.
        carried: decided requests of earlier runs of the id, newest last, bounded.
        parent: the call that started this run as a child.
        first_run_id: the run with which the chain began that this one continues; empty: this one.
        continued_from: the run that this one continues (as new, or as its next attempt).
        attempt: of the workflow's retry policy, from 1.
        retry_policy: how failed runs are repeated; None: not at all.
        not_before: Unix seconds before which the code does not begin (a delayed start, or the backoff of a retry).
        signals, updates: what the run before was given and did not take or complete.
        cancel_reason: the run before was cancelled, and so is this one from its beginning; None: not.
        last_result: what the last run of the id that completed returned.
        update_outcomes: completed updates of earlier runs of the id, newest last, bounded.
        released: children of the run that ended in the same commit.
        replaced_child_of: the parent of that run, if it is still to be told that it was terminated.
        watchers: who waits for the end of the chain that this run goes on with.
        replaced_watchers: who waited for that run, and is still to be told that it was terminated.
    """

    workflow_id: str
    run_id: str
    workflow: str
    arguments: Payload
    request_id: str = ""
    execution_deadline: float | None = None
    memo: Payload | None = None
    carried: tuple[RequestRecord, ...] = ()
    parent: CallerRecord | None = None
    first_run_id: str = ""
    continued_from: str = ""
    attempt: int = 1
    retry_policy: RetryPolicy | None = None
    not_before: float | None = None
    signals: tuple[CarriedSignal, ...] = ()
    updates: tuple[CarriedUpdate, ...] = ()
    cancel_reason: str | None = None
    last_result: Payload | None = None
    update_outcomes: tuple[UpdateRecord, ...] = ()
    released: tuple[ReleasedChild, ...] = ()
    replaced_child_of: CallerRecord | None = None
    watchers: tuple[CallerRecord, ...] = ()
    replaced_watchers: tuple[CallerRecord, ...] = ()

    @property
    def chain_id(self) -> str:
        """The run with which the chain of runs began: requests that name it mean whichever run of it is open."""
        return self.first_run_id or self.run_id


class ActivityCompleted(EventBase, frozen=True, tag=True):
    """An activity call has its result. A success of any attempt completes an open call."""

    activity_id: int
    attempt: int
    result: Payload


class ActivityFailed(EventBase, frozen=True, tag=True):
    """An attempt failed. Final (a stimulus) when ``retry_at`` is None; else the owner schedules the next attempt then.

    Attributes:
        reason: what kind of failure.
        timeout: which limit was passed, when the reason is ``"timed_out"``.
        retry_at: Unix seconds at which the next attempt is due.
        free: the attempt does not count against the retry policy (its process or supervisor was lost beside it).
    """

    activity_id: int
    attempt: int
    reason: FailureReason
    failure: Failure
    retry_at: float | None = None
    timeout: TimeoutKind | None = None
    free: bool = False


class ActivityCancelled(EventBase, frozen=True, tag=True):
    """An activity call ended by cancellation, without a result."""

    activity_id: int
    attempt: int


class TimerFired(EventBase, frozen=True, tag=True):
    """The workflow clock has reached a deadline some task was waiting for. ``at`` is not before ``deadline``."""

    deadline: float


class SignalReceived(EventBase, frozen=True, tag=True):
    """Somebody sent the run a signal."""

    name: str
    arguments: Payload
    request_id: str = ""


class UpdateAccepted(EventBase, frozen=True, tag=True):
    """An update is to be run: its validator had nothing against it, or its handler is not there yet."""

    update_id: str
    name: str
    arguments: Payload
    request_id: str = ""


class CancelRequested(EventBase, frozen=True, tag=True):
    """Somebody wants the run to end: its root scope is cancelled."""

    reason: str = ""
    request_id: str = ""


class ChildStarted(EventBase, frozen=True, tag=True):
    """The child's owner has recorded its start."""

    call: int
    run_id: str


class ChildStartFailed(EventBase, frozen=True, tag=True):
    """The child's owner has refused its start."""

    call: int
    failure: Failure


class ChildCompleted(EventBase, frozen=True, tag=True):
    """A child workflow has its result. ``run_id``: of its first run, for its end may be heard of before its start."""

    call: int
    result: Payload
    run_id: str = ""


class ChildFailed(EventBase, frozen=True, tag=True):
    """A child workflow ended without a result.

    Attributes:
        failure: what it raised, or says what became of it.
        run_id: as of `ChildCompleted`.
    """

    call: int
    how: ChildEnd
    failure: Failure
    run_id: str = ""


class ExternalResolved(EventBase, frozen=True, tag=True):
    """What came of a request to another workflow.

    Attributes:
        failure: None: a signal or a cancel is in that workflow's history, or the workflow has a result.
        result: of the workflow whose end was waited for.
    """

    call: int
    failure: Failure | None = None
    result: Payload | None = None


# --- commands ---------------------------------------------------------------------------------------------------------


class ActivityScheduled(EventBase, frozen=True, tag=True):
    """An attempt of an activity call may run. A command for attempt 1, an owner event after that.

    Attributes:
        activity_id: number of the call in the run, given by the child when the call was made.
        name, arguments, options: present with attempt 1 only; later attempts run with the same.
        route: ``"local"``: dispatched by the owner's own supervisor; ``"queue"``: published to the task stream.
    """

    activity_id: int
    attempt: int = 1
    route: Route = "local"
    name: str = ""
    arguments: Payload | None = None
    options: ActivityOptionsRecord | None = None


class ActivityCancelRequested(EventBase, frozen=True, tag=True):
    """Workflow code no longer wants the result of this call."""

    activity_id: int


class ChildInitiated(EventBase, frozen=True, tag=True):
    """A child workflow is to be started. The start is sent after this is committed, as often as it takes.

    Attributes:
        call: number of the call in the run; it shares its sequence with the activities.
        workflow_id, workflow, arguments: of the child.
        parent_close: what becomes of the child when this run ends before it.
        execution_timeout: seconds the child may take.
    """

    call: int
    workflow_id: str
    workflow: str
    arguments: Payload
    parent_close: ParentClose = "terminate"
    execution_timeout: float | None = None
    retry_policy: RetryPolicy | None = None
    memo: Payload | None = None


class ChildCancelRequested(EventBase, frozen=True, tag=True):
    """Workflow code no longer wants the child's result: the child is to be cancelled."""

    call: int


class ExternalRequested(EventBase, frozen=True, tag=True):
    """A signal or a cancel is to be sent to another workflow, or its end is waited for. ``run_id`` empty: to whichever
    run is open, or the end of the latest one."""

    call: int
    kind: ExternalKind
    workflow_id: str
    run_id: str = ""
    name: str = ""
    arguments: Payload | None = None
    reason: str = ""


class MarkerRecorded(EventBase, frozen=True, tag=True):
    """The code took the new side of `workflow.patched`. ``deprecated``: code without the old side recorded it, and code
    without the patch may replay it."""

    patch: str
    deprecated: bool = False


class UpdateCompleted(EventBase, frozen=True, tag=True):
    """The handler of an accepted update returned or raised."""

    update_id: str
    result: Payload | None = None
    failure: Failure | None = None


class WorkflowCompleted(EventBase, frozen=True, tag=True):
    """The workflow function returned."""

    result: Payload


class WorkflowFailed(EventBase, frozen=True, tag=True):
    """The workflow function raised. ``next_run_id``: the run that tries again, which starts in the same commit."""

    failure: Failure
    next_run_id: str = ""


class WorkflowCancelled(EventBase, frozen=True, tag=True):
    """The workflow function let its cancellation end it."""

    reason: str = ""


class ContinuedAsNew(EventBase, frozen=True, tag=True):
    """The workflow goes on in a fresh run, which starts in the same commit."""

    next_run_id: str
    workflow: str
    arguments: Payload


# --- owner events -----------------------------------------------------------------------------------------------------


class ActivityStarted(EventBase, frozen=True, tag=True):
    """An attempt ran. Written together with its outcome.

    Attributes:
        worker: the process that ran it, ``member/pid``.
        started_at: when it began, in Unix seconds of that worker.
    """

    activity_id: int
    attempt: int
    worker: str
    started_at: float


class WorkflowTerminated(EventBase, frozen=True, tag=True):
    """The run was ended from outside, without running workflow code."""

    reason: str = ""
    request_id: str = ""


class WorkflowTimedOut(EventBase, frozen=True, tag=True):
    """The run was still open at its execution deadline."""


class WatcherAdded(EventBase, frozen=True, tag=True):
    """A call of another workflow waits for the end of this run (or of those that continue it), and will be told."""

    caller: CallerRecord
    request_id: str = ""


class HistoryLimitExceeded(EventBase, frozen=True, tag=True):
    """The run has more events than a history may hold, and was ended."""

    limit: int


Stimulus: TypeAlias = (
    WorkflowStarted
    | ActivityCompleted
    | ActivityFailed
    | ActivityCancelled
    | TimerFired
    | SignalReceived
    | UpdateAccepted
    | CancelRequested
    | ChildStarted
    | ChildStartFailed
    | ChildCompleted
    | ChildFailed
    | ExternalResolved
)
Terminal: TypeAlias = (
    WorkflowCompleted
    | WorkflowFailed
    | WorkflowCancelled
    | ContinuedAsNew
    | WorkflowTerminated
    | WorkflowTimedOut
    | HistoryLimitExceeded
)
Event: TypeAlias = (
    WorkflowStarted
    | ActivityCompleted
    | ActivityFailed
    | ActivityCancelled
    | TimerFired
    | ActivityScheduled
    | ActivityCancelRequested
    | WorkflowCompleted
    | WorkflowFailed
    | ActivityStarted
    | WorkflowTerminated
    | WorkflowTimedOut
    | SignalReceived
    | UpdateAccepted
    | CancelRequested
    | ChildStarted
    | ChildStartFailed
    | ChildCompleted
    | ChildFailed
    | ExternalResolved
    | ChildInitiated
    | ChildCancelRequested
    | ExternalRequested
    | MarkerRecorded
    | UpdateCompleted
    | WorkflowCancelled
    | ContinuedAsNew
    | HistoryLimitExceeded
    | WatcherAdded
)

TERMINAL_EVENTS = (
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowCancelled,
    ContinuedAsNew,
    WorkflowTerminated,
    WorkflowTimedOut,
    HistoryLimitExceeded,
)

_CLASSES: dict[type[EventBase], EventClass] = {
    WorkflowStarted: EventClass.STIMULUS,
    ActivityCompleted: EventClass.STIMULUS,
    ActivityCancelled: EventClass.STIMULUS,
    TimerFired: EventClass.STIMULUS,
    ActivityCancelRequested: EventClass.COMMAND,
    WorkflowCompleted: EventClass.COMMAND,
    WorkflowFailed: EventClass.COMMAND,
    ActivityStarted: EventClass.OWNER,
    WorkflowTerminated: EventClass.OWNER,
    WorkflowTimedOut: EventClass.OWNER,
    SignalReceived: EventClass.STIMULUS,
    UpdateAccepted: EventClass.STIMULUS,
    CancelRequested: EventClass.STIMULUS,
    ChildStarted: EventClass.STIMULUS,
    ChildStartFailed: EventClass.STIMULUS,
    ChildCompleted: EventClass.STIMULUS,
    ChildFailed: EventClass.STIMULUS,
    ExternalResolved: EventClass.STIMULUS,
    ChildInitiated: EventClass.COMMAND,
    ChildCancelRequested: EventClass.COMMAND,
    ExternalRequested: EventClass.COMMAND,
    MarkerRecorded: EventClass.COMMAND,
    UpdateCompleted: EventClass.COMMAND,
    WorkflowCancelled: EventClass.COMMAND,
    ContinuedAsNew: EventClass.COMMAND,
    HistoryLimitExceeded: EventClass.OWNER,
    WatcherAdded: EventClass.OWNER,
}


def class_of(event: Event) -> EventClass:
    """Which of the three classes `event` belongs to."""
    if isinstance(event, ActivityScheduled):
        return EventClass.COMMAND if event.attempt == 1 else EventClass.OWNER
    if isinstance(event, ActivityFailed):
        return EventClass.STIMULUS if event.retry_at is None else EventClass.OWNER
    return _CLASSES[type(event)]
