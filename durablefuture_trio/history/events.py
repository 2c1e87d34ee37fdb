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
from durablefuture_trio.history.options import ActivityOptionsRecord

Route = Literal["local", "queue"]
FailureReason = Literal["error", "crashed", "timed_out", "cancelled", "lost"]
TimeoutKind = Literal["start_to_close", "schedule_to_close", "schedule_to_start", "heartbeat"]


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
    """

    workflow_id: str
    run_id: str
    workflow: str
    arguments: Payload
    request_id: str = ""
    execution_deadline: float | None = None
    memo: Payload | None = None
    carried: tuple[RequestRecord, ...] = ()


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


class WorkflowCompleted(EventBase, frozen=True, tag=True):
    """The workflow function returned."""

    result: Payload


class WorkflowFailed(EventBase, frozen=True, tag=True):
    """The workflow function raised."""

    failure: Failure


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


Stimulus: TypeAlias = WorkflowStarted | ActivityCompleted | ActivityFailed | ActivityCancelled | TimerFired
Terminal: TypeAlias = WorkflowCompleted | WorkflowFailed | WorkflowTerminated | WorkflowTimedOut
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
)

TERMINAL_EVENTS = (WorkflowCompleted, WorkflowFailed, WorkflowTerminated, WorkflowTimedOut)

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
}


def class_of(event: Event) -> EventClass:
    """Which of the three classes `event` belongs to."""
    if isinstance(event, ActivityScheduled):
        return EventClass.COMMAND if event.attempt == 1 else EventClass.OWNER
    if isinstance(event, ActivityFailed):
        return EventClass.STIMULUS if event.retry_at is None else EventClass.OWNER
    return _CLASSES[type(event)]
