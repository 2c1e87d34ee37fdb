"""What people read: columns, times, values, and what an event of a history means."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.history import events as ev

MAX_VALUE_CHARS = 120
"""A longer value is cut in tables; ``--json`` shows all of it."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns; the last one is as wide as it likes."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    ]


def time_text(seconds: float | None) -> str:
    """A moment, in UTC."""
    if seconds is None:
        return "-"
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


def one_line(text: str, limit: int = MAX_VALUE_CHARS) -> str:
    """Text without line breaks or control characters, cut to a length."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    plain = " ".join(plain.split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def payload_value(payload: Payload) -> Any:
    """What a payload holds, as plain JSON values."""
    try:
        return json.loads(payload.data)
    except ValueError:
        return {"encoding": payload.encoding, "base64": base64.b64encode(payload.data).decode("ascii")}


def value_text(value: Any, limit: int = MAX_VALUE_CHARS) -> str:
    """A plain value as people write it, cut to a length."""
    return one_line(json.dumps(value, ensure_ascii=False), limit)


def call_text(name: str, arguments: Payload | None) -> str:
    """A call: ``order("Bob", 2)``."""
    values = [] if arguments is None else payload_value(arguments)
    if not isinstance(values, list):
        return f"{name}({value_text(values)})"
    inside = json.dumps(values, ensure_ascii=False)[1:-1]
    return f"{name}({one_line(inside)})"


def plain(value: Any) -> Any:
    """A record as plain JSON values, for ``--json``."""
    match value:
        case Payload():
            return payload_value(value)
        case msgspec.Struct():
            return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case _:
            return value


def failure_text(failure: Failure) -> str:
    """A failure in one line."""
    return one_line(f"{failure.type}: {failure.message}" if failure.message else failure.type)


class EventWords:
    """Puts the events of one run, in order, into words. Remembers which activity a number belongs to."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def detail(self, event: ev.Event) -> str:
        """What the event says beside its name."""
        match event:
            case ev.WorkflowStarted():
                further = ", ".join(_beginning(event))
                return f"{call_text(event.workflow, event.arguments)} {further}".rstrip()
            case ev.ActivityScheduled():
                if event.attempt == 1:
                    self._names[event.activity_id] = event.name
                return f"{self._call(event.activity_id)} attempt {event.attempt} {event.route}"
            case ev.ActivityStarted():
                return f"#{event.activity_id} attempt {event.attempt} on {event.worker}"
            case ev.ActivityCompleted():
                return f"{self._call(event.activity_id)} returned {value_text(payload_value(event.result))}"
            case ev.ActivityFailed():
                return self._failed(event)
            case ev.ActivityCancelRequested():
                return self._call(event.activity_id)
            case ev.ActivityCancelled():
                return f"{self._call(event.activity_id)} attempt {event.attempt}"
            case ev.TimerFired():
                return f"deadline {time_text(event.deadline)}"
            case ev.WorkflowCompleted():
                return f"returned {value_text(payload_value(event.result))}"
            case ev.WorkflowFailed():
                again = f"; tried again in run {event.next_run_id}" if event.next_run_id else ""
                return f"{failure_text(event.failure)}{again}"
            case ev.WorkflowTerminated():
                return one_line(event.reason)
            case ev.WorkflowTimedOut():
                return "execution deadline passed"
            case _:
                return self._of_others(event)

    def _of_others(self, event: ev.Event) -> str:
        """What a run and other workflows, or people, say to each other."""
        match event:
            case ev.SignalReceived():
                return call_text(event.name, event.arguments)
            case ev.UpdateAccepted():
                return f"{one_line(event.update_id)} {call_text(event.name, event.arguments)}"
            case ev.CancelRequested() | ev.WorkflowCancelled():
                return one_line(event.reason)
            case ev.UpdateCompleted():
                came = "returned" if event.result is None else f"returned {value_text(payload_value(event.result))}"
                return f"{one_line(event.update_id)} {came if event.failure is None else failure_text(event.failure)}"
            case ev.ChildInitiated():
                self._names[event.call] = event.workflow
                return f"#{event.call} {one_line(event.workflow_id)}: {call_text(event.workflow, event.arguments)}"
            case ev.ChildStarted():
                return f"{self._call(event.call)} run {event.run_id}"
            case ev.ChildCompleted():
                return f"{self._call(event.call)} returned {value_text(payload_value(event.result))}"
            case ev.ChildStartFailed():
                return f"{self._call(event.call)} {failure_text(event.failure)}"
            case ev.ChildFailed():
                return f"{self._call(event.call)} {event.how}: {failure_text(event.failure)}"
            case ev.ChildCancelRequested():
                return self._call(event.call)
            case ev.ExternalRequested():
                of = "of " if event.kind == "result" else ""
                self._names[event.call] = f"{event.kind} {of}{one_line(event.workflow_id)}"
                said = call_text(event.name, event.arguments) if event.kind == "signal" else one_line(event.reason)
                return f"{self._call(event.call)} {said}".rstrip()
            case ev.ExternalResolved():
                came = "sent" if event.result is None else f"returned {value_text(payload_value(event.result))}"
                return f"{self._call(event.call)} {came if event.failure is None else failure_text(event.failure)}"
            case ev.WatcherAdded():
                return f"call #{event.caller.call} of {one_line(event.caller.workflow_id)} waits for the end"
            case ev.MarkerRecorded():
                return f"{one_line(event.patch)}{' (deprecated)' if event.deprecated else ''}"
            case ev.ContinuedAsNew():
                return f"run {event.next_run_id}: {call_text(event.workflow, event.arguments)}"
            case ev.HistoryLimitExceeded():
                return f"more than {event.limit} events"
            case _:
                return ""

    def _call(self, activity_id: int) -> str:
        return f"#{activity_id} {self._names.get(activity_id, '?')}"

    def _failed(self, event: ev.ActivityFailed) -> str:
        reason: str = event.reason
        if event.timeout is not None:
            reason = f"{reason} ({event.timeout})"
        if event.free:
            reason = f"{reason}, not counted"
        follow_up = "no retry" if event.retry_at is None else f"retry in {max(event.retry_at - event.at, 0.0):.1f} s"
        call = f"{self._call(event.activity_id)} attempt {event.attempt}"
        return f"{call} {reason}: {failure_text(event.failure)}; {follow_up}"


def _beginning(event: ev.WorkflowStarted) -> Iterator[str]:
    """What not every run begins with."""
    if event.attempt > 1:
        yield f"attempt {event.attempt}"
    if event.continued_from:
        yield f"continues run {event.continued_from}"
    if event.not_before is not None:
        yield f"begins at {time_text(event.not_before)}"
    if event.parent is not None:
        yield f"child of {one_line(event.parent.workflow_id)}"
    for signal in event.signals:
        yield f"signal {call_text(signal.name, signal.arguments)}"
    for update in event.updates:
        yield f"update {one_line(update.update_id)} {call_text(update.name, update.arguments)}"
    if event.watchers:
        yield f"{len(event.watchers)} waiting for its end"
    if event.cancel_reason is not None:
        yield f"cancelled {one_line(event.cancel_reason)}".rstrip()
