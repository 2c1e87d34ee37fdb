"""The owner's work on the next commit: events are recorded, folded in, and published in messages that fit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine import effects
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.admission import (
    conflict_verdict,
    continued_event,
    next_attempt_event,
    replacing_event,
    started_event,
    still_owing,
)
from durablefuture_trio.engine.attempts import (
    ActivityKey,
)
from durablefuture_trio.engine.commands import CancelActivity, Command, ContinueAsNew, FailWorkflow
from durablefuture_trio.engine.decide import (
    decide_command,
    decide_failed,
    decide_retry,
    due_retries,
    lost_attempts,
)
from durablefuture_trio.engine.draft import Draft, Flight, freeze
from durablefuture_trio.engine.mail import Mail, answer_to_workflow
from durablefuture_trio.engine.payload_limits import fitting_command
from durablefuture_trio.engine.requests import (
    Answer,
    Inbound,
    QueryRequest,
    StartRequest,
    TerminateRequest,
    answer_of,
)
from durablefuture_trio.engine.run_records import (
    BLOCKED_RETRY_S,
    SLOW_START_S,
    Block,
    Knowledge,
    LocalOutcome,
    OwnerLimits,
    Unreachable,
    Waiting,
)
from durablefuture_trio.engine.settling import PROJECT_AFTER_S, Settling
from durablefuture_trio.errors import PayloadError
from durablefuture_trio.history.commit import Commit
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    ActivityScheduled,
    ContinuedAsNew,
    Event,
    EventClass,
    RequestRecord,
    Stimulus,
    UpdateCompleted,
    UpdateRecord,
    WorkflowFailed,
    WorkflowStarted,
    WorkflowTerminated,
    class_of,
)
from durablefuture_trio.history.state import (
    HISTORY_LIMIT_EVENTS,
    RUN_ENDED,
    SUGGESTED_EVENTS,
    RunState,
    calls_for_mail,
    start_state,
)


class RunDrafting:
    """The state of a run as decided so far, and the draft of what is not committed yet. The base of `RunOwner`."""

    settling_type = Settling

    def __init__(
        self,
        workflow_id: str,
        outputs: Callable[[out.Output], None],
        *,
        limits: OwnerLimits,
        new_id: Callable[[], str],
        code_hash: Callable[[], str],
        is_cached: Callable[[str], bool],
        armed: dict[int, float],
        may_assume_fresh: bool,
        is_verified: bool = False,
    ) -> None:
        self.workflow_id = workflow_id
        self._out = outputs
        self._limits = limits
        self._new_id = new_id
        self._code_hash = code_hash
        self._is_cached = is_cached
        self._may_assume_fresh = may_assume_fresh
        self._is_verified = is_verified
        """Every finished commit is replayed in another process."""
        self._doubt: tuple[str, Block] | None = None
        self.knowledge = Knowledge.NONE
        self.state: RunState | None = None
        self.blocked: Block | None = None
        self._settling = self.settling_type(outputs, armed)
        self._anchors = self._settling.anchors
        self.live: set[ActivityKey] = set()
        """Attempts dispatched here whose outcome has not come."""
        self._tip_n = 0
        self._is_confirmed = False
        self._mark = 0
        self._inputs: deque[Inbound | LocalOutcome | Unreachable] = deque()
        self._draft: Draft | None = None
        self._flight: Flight | None = None
        self._awaits = Waiting.NOBODY
        self._token = 0
        self._since = 0.0
        self._needs_replay = False
        self._just_replayed = False
        self._refused: list[RequestRecord] = []
        self._told: list[Inbound] = []
        """Refused, and held until a commit says so: the next owner would not know."""
        self._mail = Mail(outputs)
        self._commands: deque[Command] = deque()
        """Asked for by an activation, and still to be recorded: behind a commit of what came before."""
        self._updating: dict[str, list[Inbound]] = {}
        """Who waits here for the outcome of an accepted update."""
        self._questions: deque[QueryRequest] = deque()
        self._may_preempt = False
        """A terminate may be among the inputs."""
        self._validated = 0
        self._blocked_attempts = 0
        self._blocked_until = 0.0
        self._revision = 0
        self._suspended = False
        self._is_quiescing = False
        self._load_retry_at: float | None = None
        self._load_failures = 0

    def _drafting(self) -> Draft:
        if self._draft is None:
            self._draft = Draft()
        return self._draft

    def _begin_input(self, item: Inbound | LocalOutcome, *, in_order: bool = True) -> None:
        self._drafting().inputs.append(item)
        if in_order and isinstance(item, Inbound):
            self._mark = max(self._mark, item.seq)

    @property
    def _next_n(self) -> int:
        """The number of the commit that is in the making."""
        return (self._tip_n if self._flight is None else self._flight.parts[-1].n) + 1

    def _record(self, event: Event) -> None:
        draft = self._drafting()
        draft.events.append(event)
        state = self._running_state()
        state.apply(event)
        if isinstance(event, TERMINAL_EVENTS):
            effects.close(draft, state, self.live, self._next_n, event)
            self.blocked = None
            if not isinstance(event, ContinuedAsNew):
                self._close_updates(draft, state.run_id)
            if not isinstance(event, WorkflowTerminated):
                self._refuse_waiting_starts(state)
        elif isinstance(event, ActivityScheduled):
            draft.effects.append(effects.dispatch(state, state.activities[event.activity_id]))
        elif isinstance(event, WorkflowStarted):
            draft.starts_run = True
        elif isinstance(event, UpdateCompleted):
            record = UpdateRecord(event.update_id, event.result, event.failure)
            for message in self._updating.pop(event.update_id, ()):
                draft.effects.append(out.Reply(message.reply, update_answer(message, record, state.run_id)))
        else:
            effects.letters(draft, state, event)

    def _close_updates(self, draft: Draft, run_id: str) -> None:
        """Whoever waits for an update that its run did not complete is told."""
        for messages in self._updating.values():
            for message in messages:
                words = f"run {run_id} ended before it completed the update"
                answer = Answer(request_id=message.request_id, answer="failed", run_id=run_id, message=words)
                draft.effects.append(out.Reply(message.reply, answer))
        self._updating.clear()

    def _refuse_waiting_starts(self, state: RunState, before_seq: float = float("inf")) -> None:
        """A start that came while the run was open must not run once it has closed: an owner that has died since may
        have refused it. Not so behind a request that ends the run, which every owner decides first; nor one whose
        signal the open run would have been given, for that would be in the history."""
        for item in self._inputs:
            if isinstance(item, Inbound) and isinstance(item.envelope, StartRequest) and item.seq < before_seq:
                record = conflict_verdict(item, item.envelope, state)
                if record is not None and record.answer == "existing" and item.envelope.signal is not None:
                    continue
                if record is not None and item.request_id not in state.requests and not self._is_decided(item):
                    self._refused.append(record)
                    state.refuse(record)

    def _record_or_stimulate(self, event: Event, now: float) -> None:
        if class_of(event) is EventClass.STIMULUS:
            self._stimulate(event, now)  # type: ignore[arg-type]  # class_of has just said so
        else:
            self._record(event)

    def _stimulate(self, event: Stimulus, now: float) -> None:
        """Record a stimulus and have it activated, unless the run is blocked."""
        state = self._running_state()
        self._record(event)
        self._just_replayed = False
        if self.blocked is not None or self._is_quiescing:
            self._needs_replay = True
            return
        self._token += 1
        self._awaits = Waiting.ACTIVATION
        self._since = now
        self._out(out.Activate(self._token, state.run_id, state.stimuli, event))

    def _record_commands(self, commands: Iterable[Command], wake_at: float | None) -> None:
        state = self._running_state()
        state.wake_at = wake_at
        left = deque(commands)
        while left:
            command = fitting_command(left[0], self._limits.payload_bytes)
            again = self._successor(state, command)
            if again is not None and (self._flight is not None or self._starts_run(self._draft)):
                # Runs are found by the commit they begin in: the next one begins in a commit of its own, when the
                # number of that is known.
                self._commands = left
                return
            left.popleft()
            call = state.activities.get(command.call) if isinstance(command, CancelActivity) else None
            next_run_id = "" if again is None else again.run_id
            self._record(decide_command(state, command, state.last_at, next_run_id=next_run_id))
            if again is not None:
                self._begin(again, again.at)
            if state.terminal is not None:
                return
            if call is not None:
                key = effects.key_of(state, call)
                self._drafting().effects.append(out.CancelAttempt(key))

    def _successor(self, state: RunState, command: Command) -> WorkflowStarted | None:
        """The first event of the run that begins with the end of this one, if one does."""
        if isinstance(command, ContinueAsNew):
            again = continued_event(state, self._new_id(), command.workflow, command.arguments, command.signals)
            return self._owing(again, state)
        if isinstance(command, FailWorkflow):
            tried = next_attempt_event(state, self._new_id(), command.failure, state.last_at)
            return None if tried is None else self._owing(tried, state)
        return None

    def _owing(self, started: WorkflowStarted, before: RunState) -> WorkflowStarted:
        return still_owing(started, before) if self._mail else started

    def _start(self, message: Inbound, request: StartRequest, now: float) -> None:
        before = self.state
        started = started_event(message, request, before, self._new_id(), now)
        if before is not None and self._drafting().events:
            started = self._owing(replacing_event(started, before), before)
        self._begin(started, now)
        self._reply_after_commit(message, RequestRecord(message.request_id, "applied", started.run_id))

    def _begin(self, started: WorkflowStarted, now: float) -> None:
        before = self.state
        if before is not None and self._drafting().events:
            # Its last events are in the commit that begins the next run.
            self._drafting().effects += self._verification(before, self._tip_n + 1)
        state = start_state(started, self._tip_n + 1)
        state.consumed = 0 if before is None else before.consumed
        state.tip_n = self._tip_n
        self.state = state
        self.blocked = None
        self._needs_replay = False
        self._settling.outdate(now + PROJECT_AFTER_S)
        self._stimulate(started, now)

    def _terminate(self, message: Inbound, request: TerminateRequest, now: float, *, in_order: bool) -> None:
        state = self._running_state()
        self._begin_input(message, in_order=in_order)
        self._record(self._terminated(state, request.reason, message.request_id, now))
        self._reply_after_commit(message, RequestRecord(message.request_id, "applied", state.run_id))

    def _terminated(self, state: RunState, reason: str, request_id: str, now: float) -> WorkflowTerminated:
        return WorkflowTerminated(
            id=state.last_event_id + 1, at=self._time(state, now), reason=reason, request_id=request_id
        )

    def _take_retries(self, state: RunState, now: float) -> bool:
        due = due_retries(state, now)
        for activity in due:
            self._record(decide_retry(state, activity, self._time(state, now)))
        return bool(due)

    def _declare_lost(self, state: RunState, now: float) -> None:
        """Attempts that ran on an owner that is gone are visible in the history before they are repeated."""
        live = {(key.activity_id, key.attempt) for key in self.live if key.run_id == state.run_id}
        for activity in lost_attempts(state, live):
            failure = Failure(type="AttemptLost", message="the supervisor that ran this attempt is gone")
            events = decide_failed(
                state,
                activity.activity_id,
                activity.attempt,
                reason="lost",
                failure=failure,
                timeout=None,
                worker="",
                started_at=None,
                at=self._time(state, now),
            )
            for event in events:
                self._record(event)
                if class_of(event) is EventClass.STIMULUS:
                    self._needs_replay = True

    def _cancel_live(self, key: ActivityKey) -> None:
        if key in self.live:
            self._drafting().effects.append(out.CancelAttempt(key))

    def _reply(self, message: Inbound, answer: Answer) -> None:
        if (letter := answer_to_workflow(message, answer)) is not None:
            self._mail.post(letter)
        elif message.reply:
            self._out(out.Reply(message.reply, answer))

    def _reply_after_commit(self, message: Inbound, record: RequestRecord) -> None:
        if (letter := answer_to_workflow(message, answer_of(record))) is not None:
            self._drafting().effects.append(letter)
        elif message.reply and record.answer:
            self._drafting().effects.append(out.Reply(message.reply, answer_of(record)))

    def _verification(self, state: RunState, tip_n: int) -> list[out.Verify]:
        """What has to be replayed elsewhere when all of `state` is stored."""
        terminal = state.terminal
        # A value too large for the server was recorded as this failure, which no replay produces.
        is_replaced = isinstance(terminal, WorkflowFailed) and terminal.failure.type == "PayloadError"
        if not self._is_verified or is_replaced:
            return []
        patches = tuple(sorted(state.patches))
        is_closed = terminal is not None
        return [out.Verify(state.run_id, state.first_n, tip_n, patches, state.wake_at, is_closed)]

    def _may_publish(self, now: float) -> bool:
        if self._awaits is not Waiting.ACTIVATION:
            return self._awaits is Waiting.NOBODY
        return self._starts_run(self._draft) and now >= self._since + SLOW_START_S

    def _publish(self, now: float) -> None:
        draft = self._draft
        state = self.state
        assert draft is not None
        assert state is not None
        template = Commit(
            run_id=state.run_id,
            commit_id="",
            first_n=state.first_n,
            finished=not self._needs_replay and self._awaits is Waiting.NOBODY and not self._commands,
            consumed=max(self._mark, state.consumed),
            wake_at=state.wake_at,
            code_hash=self._code_hash(),
            events=(),
            refused=tuple(self._refused),
            owes=bool(self._mail),
        )
        try:
            parts = freeze(template, draft.events, self._tip_n + 1, self._limits.commit_bytes, self._new_id)
        except PayloadError as error:
            # Producers check their values against the same limit; what still gets here waits for a larger server.
            self._forget()
            self._load_retry_at = now + BLOCKED_RETRY_S[-1]
            self._out(out.Report("error", f"workflow {self.workflow_id!r} cannot be committed: {error.message}"))
            return
        if draft.events and draft.events[0].id <= SUGGESTED_EVENTS <= draft.events[-1].id:
            words = f"workflow {self.workflow_id!r} has {SUGGESTED_EVENTS} events, and will be ended at "
            self._out(out.Report("warning", words + f"{HISTORY_LIMIT_EVENTS}: it should continue as new"))
        self._refused.clear()
        draft.inputs.extend(self._told)
        self._told.clear()
        self._draft = None
        self._flight = Flight(draft, parts, may_owe=template.owes or any(map(calls_for_mail, draft.events)))
        self._publish_part(self._flight)

    def _publish_part(self, flight: Flight) -> None:
        part = flight.part
        self._out(out.Publish(part.n, part.commit_id, part.body))

    def _forget(self) -> None:
        """Drop what is believed of the run; inputs not in the history are decided again."""
        if self.state is not None:
            self._out(out.Evict(self.state.run_id))
        again: list[Inbound | LocalOutcome] = []
        for draft in (None if self._flight is None else self._flight.draft, self._draft):
            if draft is not None:
                again.extend(draft.inputs)  # type: ignore[arg-type]  # only these are ever put in
        again.extend(self._told)
        self._inputs = deque(item for item in (*again, *self._inputs) if not isinstance(item, Unreachable))
        self._may_preempt = True
        self._told.clear()
        self._refused.clear()
        self._mail.clear()
        self._commands.clear()
        self._updating.clear()
        self._flight = None
        self._draft = None
        self._token += 1
        self._awaits = Waiting.NOBODY
        self._become(None)
        self.knowledge = Knowledge.NONE
        self._may_assume_fresh = False
        self._is_confirmed = False

    def _become(self, state: RunState | None) -> None:
        self.state = state
        self.knowledge = Knowledge.KNOWN
        self._tip_n = 0 if state is None else state.tip_n
        self._mark = 0 if state is None else state.consumed
        self._is_confirmed = False
        self._needs_replay = state is not None and state.terminal is None and not state.finished
        self._settling.outdate()
        self.blocked = None

    def _is_decided(self, message: Inbound) -> bool:
        """Whether the history says that this message was consumed, applied or refused."""
        return self.state is not None and message.seq <= self.state.consumed

    @staticmethod
    def _starts_run(draft: Draft | None) -> bool:
        return draft is not None and draft.starts_run

    @staticmethod
    def _time(state: RunState, now: float) -> float:
        """The time of an event: never before the event that precedes it."""
        return max(now, state.last_at)

    def _running_state(self) -> RunState:
        assert self.state is not None
        return self.state


def update_answer(message: Inbound, outcome: UpdateRecord, run_id: str) -> Answer:
    """The answer to whoever waits for an update."""
    if outcome.failure is not None and outcome.failure.type == RUN_ENDED:
        return Answer(request_id=message.request_id, answer="failed", run_id=run_id, message=outcome.failure.message)
    how = "applied" if outcome.failure is None else "failed"
    return Answer(
        request_id=message.request_id, answer=how, run_id=run_id, result=outcome.result, failure=outcome.failure
    )
