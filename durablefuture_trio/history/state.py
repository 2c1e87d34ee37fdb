"""The fold: what a list of events means. The only place that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.history.commit import Commit, own_events
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    ActivityCancelled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    CallerRecord,
    CancelRequested,
    ChildCancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildInitiated,
    ChildStarted,
    ChildStartFailed,
    ContinuedAsNew,
    Event,
    EventClass,
    ExternalRequested,
    ExternalResolved,
    MarkerRecorded,
    RequestRecord,
    Route,
    SignalReceived,
    Terminal,
    TimerFired,
    UpdateAccepted,
    UpdateCompleted,
    UpdateRecord,
    WatcherAdded,
    WorkflowStarted,
    WorkflowTerminated,
    class_of,
)
from durablefuture_trio.history.options import ActivityOptionsRecord

MAX_RECENT_REQUESTS = 100
"""How many decided requests of a workflow id are remembered; older ones are forgotten first."""


RUN_ENDED = "RunEnded"
"""Type of the failure of an update that its run did not complete."""

HISTORY_LIMIT_EVENTS = 50_000
"""A run with so many events is ended; it was told long before to continue as new."""

SUGGESTED_EVENTS = 10_000
"""With so many events a run is told, and people are warned, that it should continue as new."""

MAX_UPDATE_OUTCOMES = 100
"""How many outcomes of updates of a workflow id are remembered; older ones are forgotten first."""


class ActivityPhase(Enum):
    """Where an open activity call stands."""

    SCHEDULED = "scheduled"
    """An attempt may run, or is running."""
    BACKOFF = "backoff"
    """The last attempt failed; the next one is due at ``retry_at``."""


@dataclass(slots=True)
class ActivityState:
    """An open activity call. Closed ones leave the state.

    Attributes:
        scheduled_at: when attempt 1 was scheduled; ``schedule_to_close_timeout`` runs from it.
        counted: failed attempts that count against the retry policy.
        free_in_a_row: failed attempts since the last counted one that did not count.
        cancel_requested: workflow code no longer wants the result.
    """

    activity_id: int
    name: str
    arguments: Payload
    options: ActivityOptionsRecord
    scheduled_at: float
    attempt: int = 1
    route: Route = "local"
    phase: ActivityPhase = ActivityPhase.SCHEDULED
    retry_at: float = 0.0
    counted: int = 0
    free_in_a_row: int = 0
    cancel_requested: bool = False


@dataclass(slots=True)
class ChildState:
    """A child that was asked for and has not ended. Those that have leave the state.

    Attributes:
        run_id: of the child; empty until its owner has recorded its start.
        cancel_requested: workflow code no longer wants the result.
    """

    initiated: ChildInitiated
    run_id: str = ""
    cancel_requested: bool = False


@dataclass(slots=True)
class RunState:
    """All an owner needs to know about a run, and no more than the history says.

    Attributes:
        tip_n: number of the last commit folded in; 0: none.
        first_n: number of the run's first commit.
        last_event_id, last_at: of the last event.
        stimuli: how many stimuli there are; numbers the activations.
        consumed: the inbox mark (see `Commit.consumed`).
        wake_at: the sandbox's next deadline.
        finished: nothing recorded waits for its activation or its commands.
        activities: the open calls; in_backoff: those of them that wait for their next attempt.
        requests: recently decided requests, oldest first.
        terminal: the event that closed the run.
        children, externals: what was asked of other workflows and is not answered, by number of the call.
        updates: accepted updates that are not completed, by id; update_outcomes: recently completed ones, oldest first.
        signals: how many were received.
        cancel_reason: the run is cancelled; None: it is not.
        patches: markers in the history.
        watchers: who is told when the run ends, in the order in which they asked.
        may_owe: messages to other workflows may not have been stored yet.
    """

    started: WorkflowStarted
    first_n: int
    tip_n: int = 0
    last_event_id: int = 0
    last_at: float = 0.0
    stimuli: int = 0
    calls: int = 0
    consumed: int = 0
    wake_at: float | None = None
    finished: bool = True
    code_hash: str = ""
    activities: dict[int, ActivityState] = field(default_factory=dict)
    in_backoff: dict[int, ActivityState] = field(default_factory=dict)
    requests: dict[str, RequestRecord] = field(default_factory=dict)
    terminal: Terminal | None = None
    children: dict[int, ChildState] = field(default_factory=dict)
    externals: dict[int, ExternalRequested] = field(default_factory=dict)
    updates: dict[str, UpdateAccepted] = field(default_factory=dict)
    update_outcomes: dict[str, UpdateRecord] = field(default_factory=dict)
    signals: int = 0
    cancel_reason: str | None = None
    patches: set[str] = field(default_factory=set)
    watchers: dict[CallerRecord, None] = field(default_factory=dict)
    may_owe: bool = False

    @property
    def workflow_id(self) -> str:
        return self.started.workflow_id

    @property
    def run_id(self) -> str:
        return self.started.run_id

    def apply(self, event: Event) -> None:
        """Fold one event in. Assumes it was decided on this very state: nothing is checked again."""
        self.last_event_id = event.id
        self.last_at = event.at
        if class_of(event) is EventClass.STIMULUS:
            self.stimuli += 1
        match event:
            case ActivityScheduled(attempt=1):
                assert event.arguments is not None
                assert event.options is not None
                self.calls = max(self.calls, event.activity_id)
                self.activities[event.activity_id] = ActivityState(
                    activity_id=event.activity_id,
                    name=event.name,
                    arguments=event.arguments,
                    options=event.options,
                    scheduled_at=event.at,
                    route=event.route,
                )
            case ActivityScheduled():
                activity = self.activities[event.activity_id]
                activity.attempt = event.attempt
                activity.route = event.route
                activity.phase = ActivityPhase.SCHEDULED
                self.in_backoff.pop(event.activity_id, None)
            case ActivityCompleted() | ActivityCancelled():
                self._close(event.activity_id)
            case ActivityFailed():
                if event.retry_at is None:
                    self._close(event.activity_id)
                    return
                activity = self.activities[event.activity_id]
                activity.phase = ActivityPhase.BACKOFF
                activity.retry_at = event.retry_at
                self.in_backoff[event.activity_id] = activity
                if event.free:
                    activity.free_in_a_row += 1
                else:
                    activity.counted += 1
                    activity.free_in_a_row = 0
            case ActivityCancelRequested():
                if (call := self.activities.get(event.activity_id)) is not None:
                    call.cancel_requested = True
                    if call.options.abandon_on_cancel:
                        self._close(event.activity_id)
            case TimerFired():
                self.wake_at = None
            case WorkflowStarted():
                self._remember(RequestRecord(event.request_id, "applied", event.run_id))
            case SignalReceived() | UpdateAccepted() | CancelRequested() | WatcherAdded():
                self._apply_request(event)
            case UpdateCompleted():
                self.updates.pop(event.update_id, None)
                self._remember_update(UpdateRecord(event.update_id, event.result, event.failure))
            case ChildInitiated() | ChildCancelRequested() | ChildStarted():
                self._apply_child(event)
            case ChildStartFailed() | ChildCompleted() | ChildFailed():
                self.children.pop(event.call, None)
            case ExternalRequested():
                self.calls = max(self.calls, event.call)
                self.externals[event.call] = event
            case ExternalResolved():
                self.externals.pop(event.call, None)
            case MarkerRecorded():
                self.patches.add(event.patch)
            case WorkflowTerminated(request_id=request_id) if request_id:
                self._remember(RequestRecord(request_id, "applied", self.run_id))
            case _:
                pass
        if isinstance(event, TERMINAL_EVENTS):
            if not isinstance(event, ContinuedAsNew):
                # Failed, also for whoever asks for them again in a later run.
                for record in self.unfinished_updates():
                    self._remember_update(record)
                self.updates.clear()
            self.terminal = event
            self.activities.clear()
            self.in_backoff.clear()
            self.wake_at = None

    def _apply_request(self, event: SignalReceived | UpdateAccepted | CancelRequested | WatcherAdded) -> None:
        match event:
            case SignalReceived():
                self.signals += 1
            case UpdateAccepted():
                self.updates[event.update_id] = event
            case CancelRequested():
                self.cancel_reason = event.reason
            case WatcherAdded():
                self.watchers[event.caller] = None
        self._remember(RequestRecord(event.request_id, "applied", self.run_id))

    def _apply_child(self, event: ChildInitiated | ChildCancelRequested | ChildStarted) -> None:
        if isinstance(event, ChildInitiated):
            self.calls = max(self.calls, event.call)
            self.children[event.call] = ChildState(event)
        elif (child := self.children.get(event.call)) is None:
            return
        elif isinstance(event, ChildCancelRequested):
            child.cancel_requested = True
        else:
            child.run_id = event.run_id

    def unfinished_updates(self) -> list[UpdateRecord]:
        """The outcomes of its open updates if the run ends now."""
        words = f"run {self.run_id} ended before it completed the update"
        return [UpdateRecord(it, failure=Failure(type=RUN_ENDED, message=words)) for it in self.updates]

    def _remember_update(self, record: UpdateRecord) -> None:
        self.update_outcomes[record.update_id] = record
        while len(self.update_outcomes) > MAX_UPDATE_OUTCOMES:
            del self.update_outcomes[next(iter(self.update_outcomes))]

    def _close(self, activity_id: int) -> None:
        self.activities.pop(activity_id, None)
        self.in_backoff.pop(activity_id, None)

    def _remember(self, record: RequestRecord) -> None:
        if not record.request_id:
            return
        self.requests.pop(record.request_id, None)
        self.requests[record.request_id] = record
        while len(self.requests) > MAX_RECENT_REQUESTS:
            del self.requests[next(iter(self.requests))]

    def refuse(self, record: RequestRecord) -> None:
        """Remember a refusal; it is written with the next commit."""
        self._remember(record)

    def apply_commit(self, n: int, commit: Commit) -> None:
        """Fold a stored commit in."""
        for event in own_events(commit):
            self.apply(event)
        self.seal(n, consumed=commit.consumed, wake_at=commit.wake_at, finished=commit.finished)
        self.may_owe = commit.owes or any(map(calls_for_mail, own_events(commit)))
        self.code_hash = commit.code_hash
        for record in commit.refused:
            self._remember(record)

    def seal(self, n: int, *, consumed: int, wake_at: float | None, finished: bool) -> None:
        """Take over what a commit says beside its events."""
        self.tip_n = n
        self.consumed = max(self.consumed, consumed)
        self.wake_at = wake_at if self.terminal is None else None
        self.finished = finished


def calls_for_mail(event: Event) -> bool:
    """Whether other workflows have to be told when this event is committed."""
    match event:
        case WorkflowStarted():
            return bool(event.parent or event.released or event.replaced_child_of or event.replaced_watchers)
        case ChildInitiated() | ChildCancelRequested() | ExternalRequested():
            return True
        case _:
            return isinstance(event, TERMINAL_EVENTS)


def start_state(started: WorkflowStarted, first_n: int) -> RunState:
    """The state before the first event of a run; the event itself is still to be applied."""
    state = RunState(started=started, first_n=first_n)
    state.requests = {record.request_id: record for record in started.carried}
    state.update_outcomes = {record.update_id: record for record in started.update_outcomes}
    state.updates = {
        item.update_id: UpdateAccepted(
            id=started.id, at=started.at, update_id=item.update_id, name=item.name, arguments=item.arguments
        )
        for item in started.updates
    }
    state.cancel_reason = started.cancel_reason
    state.watchers = dict.fromkeys(started.watchers)
    return state


def begin(n: int, first: Commit) -> RunState:
    """The state before the first event of the run that commit `n` begins.

    Raises:
        ValueError: it does not begin with the run's WorkflowStarted.
    """
    events = own_events(first)
    if not events or not isinstance(events[0], WorkflowStarted):
        raise ValueError(f"commit {n} does not begin a run: its first event is {events[0] if events else None!r}")
    return start_state(events[0], n)


def fold(commits: list[tuple[int, Commit]]) -> RunState:
    """The state of a run from all its numbered commits, in order.

    Raises:
        ValueError: the commits do not begin with the run's WorkflowStarted.
    """
    if not commits:
        raise ValueError("a run has at least one commit")
    state = begin(*commits[0])
    for number, commit in commits:
        state.apply_commit(number, commit)
    return state
