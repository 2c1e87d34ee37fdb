"""What clients show of workflows: descriptions, pending activities, history events."""

from __future__ import annotations

from typing import Literal

import msgspec

from durablefuture_trio.client._reading import continued_in
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.commit import own_events
from durablefuture_trio.history.events import ActivityFailed, Event, FailureReason, UpdateAccepted
from durablefuture_trio.history.state import ActivityPhase, ActivityState, ChildState, RunState
from durablefuture_trio.protocol.loading import Folder, NumberedCommit
from durablefuture_trio.protocol.projection import ProjectionRecord, Status, status_of

Phase = Literal["scheduled", "backoff", "cancelling"]
ChildPhase = Literal["starting", "running", "cancelling"]


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


class PendingChild(msgspec.Struct, frozen=True, kw_only=True):
    """A child workflow that has not ended yet.

    Attributes:
        call: number of the call in the run; it shares its sequence with the activities.
        workflow_id, run_id: the child's; the run id is empty until its start is recorded.
        phase: ``"starting"``, ``"running"``, or ``"cancelling"``: workflow code no longer wants the result.
        initiated_at: when the call was made, Unix seconds.
    """

    call: int
    workflow_id: str
    workflow: str
    phase: ChildPhase
    initiated_at: float
    run_id: str = ""


class PendingUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted update whose handler has not returned yet (or is not there yet).

    Attributes:
        accepted_at: Unix seconds; of one that a run before has accepted: when this run began.
    """

    update_id: str
    update: str
    accepted_at: float


class WorkflowDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a run. All times are Unix seconds.

    Attributes:
        workflow_id, run_id: its ids.
        workflow: the workflow's registered name.
        status: ``"running"``, ``"blocked"``, ``"completed"``, ``"failed"``, ``"cancelled"``, ``"continued"`` (as new),
            ``"terminated"`` or ``"timed_out"``.
        closed_at: None while the run is open.
        blocked: why a blocked run cannot go on; it goes on when right code is back.
        memo: the encoded value given at the start.
        execution_deadline: when the run times out.
        history_length: number of recorded events; None in listings.
        pending_activities, pending_children, pending_updates: calls without a result, updates that are accepted and not
            completed; empty in listings, and when the run has closed.
        not_before: when its code begins, of a delayed start or another attempt.
        attempt: of the workflow's retry policy, from 1.
        is_cancelled: somebody has asked the run to end; cancel_reason: in these words.
        parent_workflow_id, parent_run_id: the workflow that started this one as a child; empty: none did.
        continued_from, continued_in: the run before and the run after this one, if it has continued as new or been
            tried again; empty: none.
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
    pending_children: tuple[PendingChild, ...] = ()
    pending_updates: tuple[PendingUpdate, ...] = ()
    not_before: float | None = None
    attempt: int = 1
    is_cancelled: bool = False
    cancel_reason: str = ""
    parent_workflow_id: str = ""
    parent_run_id: str = ""
    continued_from: str = ""
    continued_in: str = ""


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
    started = state.started
    return WorkflowDescription(
        workflow_id=state.workflow_id,
        run_id=state.run_id,
        workflow=started.workflow,
        status=status if terminal is None else status_of(terminal),
        started_at=started.at,
        closed_at=None if terminal is None else terminal.at,
        blocked=blocked,
        memo=started.memo,
        execution_deadline=started.execution_deadline,
        history_length=state.last_event_id,
        pending_activities=_pending(state, commits),
        pending_children=() if terminal is not None else tuple(map(_pending_child, state.children.values())),
        pending_updates=() if terminal is not None else tuple(map(_pending_update, state.updates.values())),
        not_before=started.not_before,
        attempt=started.attempt,
        is_cancelled=state.cancel_reason is not None,
        cancel_reason=state.cancel_reason or "",
        parent_workflow_id="" if started.parent is None else started.parent.workflow_id,
        parent_run_id="" if started.parent is None else started.parent.run_id,
        continued_from=started.continued_from,
        continued_in="" if terminal is None else continued_in(terminal),
    )


def _pending_child(child: ChildState) -> PendingChild:
    initiated = child.initiated
    running: ChildPhase = "running" if child.run_id else "starting"
    return PendingChild(
        call=initiated.call,
        workflow_id=initiated.workflow_id,
        workflow=initiated.workflow,
        run_id=child.run_id,
        phase="cancelling" if child.cancel_requested else running,
        initiated_at=initiated.at,
    )


def _pending_update(update: UpdateAccepted) -> PendingUpdate:
    return PendingUpdate(update_id=update.update_id, update=update.name, accepted_at=update.at)


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
