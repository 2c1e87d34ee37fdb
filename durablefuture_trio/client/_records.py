"""What clients show of workflows: descriptions, pending activities, history events."""

from __future__ import annotations

from typing import Literal

import msgspec

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.commit import own_events
from durablefuture_trio.history.events import ActivityFailed, Event, FailureReason
from durablefuture_trio.history.state import ActivityPhase, ActivityState, RunState
from durablefuture_trio.protocol.loading import Folder, NumberedCommit
from durablefuture_trio.protocol.projection import ProjectionRecord, Status, status_of

Phase = Literal["scheduled", "backoff", "cancelling"]


class PendingActivity(msgspec.Struct, frozen=True, kw_only=True):
    """An activity call without a result yet.

    Attributes:
        activity_id: number of the call in its run.
        attempt: the current attempt, from 1; in backoff: the one that failed last.
        phase: ``"scheduled"``: an attempt is waiting or running; ``"backoff"``: waiting for ``retry_at``;
            ``"cancelling"``: workflow code no longer wants the result.
        scheduled_at: when the call was made, Unix seconds.
        retry_at: when the next attempt is due, Unix seconds, in backoff.
        last_failure: what the last failed attempt said, ``"type: message"``; empty if none has failed.
        last_failure_reason: ``"error"``, ``"crashed"``, ``"timed_out"``, ``"cancelled"`` or ``"lost"``.
    """

    activity_id: int
    activity: str
    attempt: int
    phase: Phase
    task_queue: str
    scheduled_at: float
    retry_at: float | None = None
    last_failure: str = ""
    last_failure_reason: FailureReason | None = None


class WorkflowDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a run. All times are Unix seconds.

    Attributes:
        workflow_id, run_id: its ids.
        workflow: the workflow's registered name.
        status: ``"running"``, ``"blocked"``, ``"completed"``, ``"failed"``, ``"terminated"`` or ``"timed_out"``.
        closed_at: None while the run is open.
        blocked: why a blocked run cannot go on; it goes on when right code is back.
        memo: the encoded value given at the start.
        execution_deadline: when the run times out.
        history_length: number of recorded events; None in listings.
        pending_activities: calls without a result; empty in listings.
    """

    workflow_id: str
    run_id: str
    workflow: str
    status: Status
    started_at: float
    closed_at: float | None = None
    blocked: str = ""
    memo: Payload | None = None
    execution_deadline: float | None = None
    history_length: int | None = None
    pending_activities: tuple[PendingActivity, ...] = ()


class HistoryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded event of a run.

    Attributes:
        n: number of the commit it was written in; events of one commit happened together.
        event: the record itself; its class is named for what happened.
    """

    n: int
    run_id: str
    event: Event

    @property
    def id(self) -> int:
        """Number of the event in its run, from 1."""
        return self.event.id

    @property
    def at(self) -> float:
        """When, in Unix seconds."""
        return self.event.at

    @property
    def type(self) -> str:
        """What happened, e.g. ``"ActivityScheduled"``."""
        return type(self.event).__name__


def listed(record: ProjectionRecord) -> WorkflowDescription:
    """The description of a listing record."""
    return WorkflowDescription(
        workflow_id=record.workflow_id,
        run_id=record.run_id,
        workflow=record.workflow,
        status=record.status,
        started_at=record.started_at,
        closed_at=record.closed_at,
        blocked=record.blocked,
        memo=record.memo,
    )


def history_events(commits: list[NumberedCommit]) -> list[HistoryEvent]:
    """The events of the run whose commits are given.

    The last commit may carry the closing events of the run *and* be merged from the first one of the next run; it
    keeps the number it is filed under.
    """
    events: list[HistoryEvent] = []
    for item in commits:
        run_id = item.commit.run_id
        events.extend(HistoryEvent(n=item.n, run_id=run_id, event=event) for event in own_events(item.commit))
    return events


def described(commits: list[NumberedCommit], record: ProjectionRecord | None) -> WorkflowDescription:
    """The description of a run from its history; `record` adds what only the owner knows (why it is blocked)."""
    state = Folder().add(commits)
    blocked = record.blocked if record is not None and record.run_id == state.run_id else ""
    terminal = state.terminal
    if terminal is not None:
        blocked = ""
    status: Status = "blocked" if blocked else "running"
    return WorkflowDescription(
        workflow_id=state.workflow_id,
        run_id=state.run_id,
        workflow=state.started.workflow,
        status=status if terminal is None else status_of(terminal),
        started_at=state.started.at,
        closed_at=None if terminal is None else terminal.at,
        blocked=blocked,
        memo=state.started.memo,
        execution_deadline=state.started.execution_deadline,
        history_length=state.last_event_id,
        pending_activities=_pending(state, commits),
    )


def _pending(state: RunState, commits: list[NumberedCommit]) -> tuple[PendingActivity, ...]:
    if not state.activities:
        return ()
    failed: dict[int, ActivityFailed] = {
        event.activity_id: event
        for item in commits
        for event in own_events(item.commit)
        if isinstance(event, ActivityFailed)
    }
    return tuple(
        _pending_activity(state.activities[activity_id], failed.get(activity_id))
        for activity_id in sorted(state.activities)
    )


def _pending_activity(activity: ActivityState, failed: ActivityFailed | None) -> PendingActivity:
    waiting = activity.phase is ActivityPhase.BACKOFF
    return PendingActivity(
        activity_id=activity.activity_id,
        activity=activity.name,
        attempt=activity.attempt,
        phase="cancelling" if activity.cancel_requested else activity.phase.value,
        task_queue=activity.options.task_queue,
        scheduled_at=activity.scheduled_at,
        retry_at=activity.retry_at if waiting else None,
        last_failure="" if failed is None else f"{failed.failure.type}: {failed.failure.message}",
        last_failure_reason=None if failed is None else failed.reason,
    )
