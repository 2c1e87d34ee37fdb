"""What an activation asks for. Commands travel up from the replay process and become events in `history.decide`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.history.events import (
    ActivityCancelRequested,
    ActivityScheduled,
    Event,
    WorkflowCompleted,
    WorkflowFailed,
)
from durablefuture_trio.history.options import ActivityOptionsRecord


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


class CompleteWorkflow(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The workflow function returned."""

    result: Payload
    source: str = ""


class FailWorkflow(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """The workflow function raised."""

    failure: Failure
    source: str = ""


Command: TypeAlias = ScheduleActivity | CancelActivity | CompleteWorkflow | FailWorkflow


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
        case _:
            return None
