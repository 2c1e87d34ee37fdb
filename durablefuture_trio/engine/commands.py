"""What an activation asks for. Commands travel up from the replay process and become events in `history.decide`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.history.events import (
    ActivityCancelRequested,
    ActivityScheduled,
    CarriedSignal,
    CarriedUpdate,
    ChildCancelRequested,
    ChildInitiated,
    ContinuedAsNew,
    Event,
    ExternalKind,
    ExternalRequested,
    MarkerRecorded,
    ParentClose,
    UpdateCompleted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
)
from durablefuture_trio.history.options import ActivityOptionsRecord, RetryPolicy


class ScheduleActivity(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """Run an activity. ``call`` is the number of the call in the run; ``source`` the ``file:line`` that made it."""

    call: int
    name: str
    arguments: Payload
    options: ActivityOptionsRecord
    source: str = ""


class CancelActivity(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The call's result is no longer wanted."""

    call: int
    source: str = ""


class StartChild(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """Start a child workflow. ``call`` shares its sequence with the activities; the fields are `ChildInitiated`'s."""

    call: int
    workflow_id: str
    workflow: str
    arguments: Payload
    parent_close: ParentClose = "terminate"
    execution_timeout: float | None = None
    retry_policy: RetryPolicy | None = None
    memo: Payload | None = None
    source: str = ""


class CancelChild(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The child's result is no longer wanted: cancel it."""

    call: int
    source: str = ""


class RequestExternal(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """Send a signal or a cancel to another workflow, or wait for its end; the fields are `ExternalRequested`'s."""

    call: int
    kind: ExternalKind
    workflow_id: str
    run_id: str = ""
    name: str = ""
    arguments: Payload | None = None
    reason: str = ""
    source: str = ""


class RecordMarker(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The code took the new side of a patch."""

    patch: str
    deprecated: bool = False
    source: str = ""


class CompleteUpdate(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The handler of an update returned or raised."""

    update_id: str
    result: Payload | None = None
    failure: Failure | None = None
    source: str = ""


class CompleteWorkflow(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The workflow function returned."""

    result: Payload
    source: str = ""


class FailWorkflow(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The workflow function raised."""

    failure: Failure
    source: str = ""


class CancelWorkflow(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The workflow function let its cancellation end it."""

    reason: str = ""
    source: str = ""


class ContinueAsNew(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The workflow goes on in a fresh run.

    Attributes:
        signals, updates: what this run was given and did not take or complete; the next one gets them.
    """

    workflow: str
    arguments: Payload
    signals: tuple[CarriedSignal, ...] = ()
    updates: tuple[CarriedUpdate, ...] = ()
    source: str = ""


Command: TypeAlias = (
    ScheduleActivity
    | CancelActivity
    | StartChild
    | CancelChild
    | RequestExternal
    | RecordMarker
    | CompleteUpdate
    | CompleteWorkflow
    | FailWorkflow
    | CancelWorkflow
    | ContinueAsNew
)


LAST_COMMANDS = (CompleteWorkflow, FailWorkflow, CancelWorkflow, ContinueAsNew)
"""The commands with which a run ends."""


def signature_of_command(command: Command) -> tuple[str, int, str]:
    """What determinism compares: the kind, the number of the call (0: none), and the name."""
    match command:
        case ScheduleActivity():
            return ("schedule activity", command.call, command.name)
        case CancelActivity():
            return ("cancel activity", command.call, "")
        case CompleteWorkflow():
            return ("complete workflow", 0, "")
        case FailWorkflow():
            return ("fail workflow", 0, "")
        case StartChild():
            return ("start child", command.call, f"{command.workflow} {command.workflow_id}")
        case CancelChild():
            return ("cancel child", command.call, "")
        case RequestExternal():
            return _signature_of_external(command)
        case RecordMarker():
            return ("record patch", 0, command.patch)
        case CompleteUpdate():
            return ("complete update", 0, command.update_id)
        case CancelWorkflow():
            return ("end cancelled workflow", 0, "")
        case ContinueAsNew():
            return ("continue as new", 0, command.workflow)


def _signature_of_external(item: RequestExternal | ExternalRequested) -> tuple[str, int, str]:
    verb = "await" if item.kind == "result" else item.kind
    return (f"{verb} workflow", item.call, f"{item.workflow_id} {item.name}".rstrip())


def values_of(item: Command | Event) -> Payload | None:
    """What workflow code handed over with a command: arguments, or a result. None: nothing."""
    match item:
        case ScheduleActivity() | StartChild() | RequestExternal() | ContinueAsNew():
            return item.arguments
        case ActivityScheduled() | ChildInitiated() | ExternalRequested() | ContinuedAsNew():
            return item.arguments
        case CompleteWorkflow() | CompleteUpdate() | WorkflowCompleted() | UpdateCompleted():
            return item.result
        case _:
            return None


def signature_of_event(event: Event) -> tuple[str, int, str] | None:
    """The same for a recorded command event; None for the other classes."""
    match event:
        case ActivityScheduled(attempt=1):
            return ("schedule activity", event.activity_id, event.name)
        case ActivityCancelRequested():
            return ("cancel activity", event.activity_id, "")
        case WorkflowCompleted():
            return ("complete workflow", 0, "")
        case WorkflowFailed():
            return ("fail workflow", 0, "")
        case ChildInitiated():
            return ("start child", event.call, f"{event.workflow} {event.workflow_id}")
        case ChildCancelRequested():
            return ("cancel child", event.call, "")
        case ExternalRequested():
            return _signature_of_external(event)
        case MarkerRecorded():
            return ("record patch", 0, event.patch)
        case UpdateCompleted():
            return ("complete update", 0, event.update_id)
        case WorkflowCancelled():
            return ("end cancelled workflow", 0, "")
        case ContinuedAsNew():
            return ("continue as new", 0, event.workflow)
        case _:
            return None
