"""The owner of one workflow id: a value that is notified of what happened and says what is to be done.

It takes requests, outcomes and deadlines one at a time, lets the sandbox activate each stimulus, turns commands into
events, and has them committed. Everything that touches the world waits for the acknowledgement of the commit that
justifies it; inbox messages are acknowledged last of all. `docs/protocol.md` has the rules, and the reason for each.

No input or output happens here, and no clock is read: every notification brings the time along, in Unix seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine import effects
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.admission import (
    conflict_verdict,
    continued_event,
    may_be_applied_later,
    next_attempt_event,
    run_verdict,
    start_verdict,
    started_event,
)
from durablefuture_trio.engine.attempts import (
    ActivityKey,
    AttemptCompleted,
    AttemptOutcome,
)
from durablefuture_trio.engine.commands import CancelActivity, Command, ContinueAsNew, FailWorkflow
from durablefuture_trio.engine.decide import (
    cancelled_in_backoff,
    decide_cancelled,
    decide_command,
    decide_completed,
    decide_failed,
    decide_message,
    decide_retry,
    decide_timeout,
    decide_timer,
    due_retries,
    lost_attempts,
)
from durablefuture_trio.engine.draft import Draft, Flight, freeze
from durablefuture_trio.engine.mail import Mail, Owed, answer_to_workflow, is_from_workflow, owed_by, released_children
from durablefuture_trio.engine.payload_limits import fitting_command, fitting_outcome
from durablefuture_trio.engine.requests import (
    Answer,
    AttemptReport,
    CancelRequest,
    ChildReport,
    ExternalReport,
    Inbound,
    QueryRequest,
    SignalRequest,
    StartRequest,
    TerminateRequest,
    TimerFire,
    UpdateRequest,
    answer_of,
)
from durablefuture_trio.engine.settling import PROJECT_AFTER_S, Settling, earliest
from durablefuture_trio.errors import PayloadError
from durablefuture_trio.history.commit import Commit
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    ActivityScheduled,
    ContinuedAsNew,
    Event,
    EventClass,
    HistoryLimitExceeded,
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
    MAX_RECENT_REQUESTS,
    RunState,
    start_state,
)

SLOW_START_S = 0.05
"""A WorkflowStarted whose first activation takes longer is committed without it, so that the client gets its answer."""

BLOCKED_RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Waits between attempts to replay a blocked run; the last one repeats."""

MAX_QUESTIONS = 1_000
"""So many queries may wait for one run; who asks more is not answered, and asks again."""

MAX_BLOCK_CHARS = 16_000
"""A listing record has to fit into a message, whatever an exception of a user's says."""


class Knowledge(Enum):
    """What the owner knows of the id's history."""

    NONE = "none"
    LOADING = "loading"
    ASSUMED_FRESH = "assumed fresh"
    """Nothing was read: a start publishes number 1 and loads on conflict."""
    KNOWN = "known"


class Waiting(Enum):
    """Whose answer is awaited before anything else of the run can go on."""

    NOBODY = "nobody"
    ACTIVATION = "activation"
    REPLAY = "replay"
    CONFIRMATION = "confirmation"
    ANSWER = "answer"
    """To a query, or to the validation of an update."""


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run cannot go on with today's code. See `ports.frames.Blocked`."""

    kind: str
    message: str
    recorded: str = ""
    produced: str = ""
    source: str = ""
    stack: str = ""

    @property
    def words(self) -> str:
        """What people are shown: the message, and where the code was if that is known."""
        return f"{self.message}\n{self.stack}".rstrip()[:MAX_BLOCK_CHARS]


class LocalOutcome(msgspec.Struct, frozen=True):
    """The outcome of an attempt that this owner dispatched."""

    outcome: AttemptOutcome
    worker: str


@dataclass(slots=True, kw_only=True)
class OwnerLimits:
    """What bounds an owner: the largest body of a history message, and the largest value in one."""

    commit_bytes: int
    payload_bytes: int


class RunOwner:
    """The owner of one workflow id. Methods are notifications; what is to be done is appended to `outputs`."""

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
    ) -> None:
        self.workflow_id = workflow_id
        self._out = outputs
        self._limits = limits
        self._new_id = new_id
        self._code_hash = code_hash
        self._is_cached = is_cached
        self._may_assume_fresh = may_assume_fresh
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
        self._inputs: deque[Inbound | LocalOutcome] = deque()
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
        self._validated = 0
        self._blocked_attempts = 0
        self._blocked_until = 0.0
        self._revision = 0
        self._suspended = False
        self._is_quiescing = False
        self._load_retry_at: float | None = None
        self._load_failures = 0

    # --- notifications -----------------------------------------------------------------------------------------------

    def delivered(self, message: Inbound, now: float) -> None:
        """An inbox message has come (perhaps again, after a takeover)."""
        self._receive(message)
        self._advance(now)

    def outcome(self, outcome: AttemptOutcome, worker: str, now: float) -> None:
        """An attempt dispatched here has ended."""
        self.live.discard(outcome.key)
        self._inputs.append(LocalOutcome(outcome, worker))
        self._advance(now)

    def loaded(self, state: RunState | None, now: float) -> None:
        """The answer to `Load`."""
        if self.knowledge is not Knowledge.LOADING:
            return
        self._load_failures = 0
        self._become(state)
        if state is not None:
            if state.may_owe:
                for owed in owed_by(state):
                    self._mail.post(owed)
            if state.terminal is None:
                self._declare_lost(state, now)
        self._advance(now)

    def load_failed(self, block: Block | None, now: float) -> None:
        """The history could not be read: for now (None), or because it is damaged."""
        if self.knowledge is not Knowledge.LOADING:
            return
        self.knowledge = Knowledge.NONE
        delay = BLOCKED_RETRY_S[min(self._load_failures, len(BLOCKED_RETRY_S) - 1)]
        self._load_failures += 1
        self._load_retry_at = now + delay
        if block is not None:
            self.blocked = block
            self._out(out.Report("error", f"workflow {self.workflow_id!r} cannot be loaded: {block.message}"))
            self._refuse_requests("damaged", block.message)
        self._advance(now)

    def confirmed(self, is_tip: bool, now: float) -> None:
        """The answer to `Confirm`."""
        if self._awaits is not Waiting.CONFIRMATION:
            return
        self._awaits = Waiting.NOBODY
        if is_tip:
            self._is_confirmed = True
        else:
            self._forget()
        self._advance(now)

    def activated(self, token: int, commands: Iterable[Command], wake_at: float | None, now: float) -> None:
        """The sandbox has applied the stimulus and nothing can run any more."""
        if token != self._token or self._awaits is not Waiting.ACTIVATION:
            return
        self._awaits = Waiting.NOBODY
        # Its stimulus may have been committed ahead (a slow start): then a commit has to say that it is finished.
        self._drafting()
        self._record_commands(commands, wake_at)
        self._advance(now)

    def replayed(self, token: int, commands: Iterable[Command], wake_at: float | None, now: float) -> None:
        """The sandbox has replayed the committed history; `commands` are those an unfinished commit lacked."""
        if token != self._token or self._awaits is not Waiting.REPLAY:
            return
        self._awaits = Waiting.NOBODY
        state = self._running_state()
        if state.terminal is not None:  # loaded for a query
            self._just_replayed = True
            self._advance(now)
            return
        if self.blocked is not None:
            self._out(out.Report("info", f"workflow {self.workflow_id!r} is no longer blocked"))
            self.blocked = None
            self._blocked_attempts = 0
        self._needs_replay = False
        self._just_replayed = True
        if not state.finished:
            self._drafting()
        self._record_commands(commands, wake_at)
        self._advance(now)

    def missing(self, token: int, now: float) -> None:
        """The sandbox does not hold the run any more. The stimulus is committed as it is; the replay activates it."""
        if token != self._token or self._awaits not in (Waiting.ACTIVATION, Waiting.REPLAY, Waiting.ANSWER):
            return
        asked, self._awaits = self._awaits is Waiting.ANSWER, Waiting.NOBODY
        self._just_replayed = False
        self._needs_replay = self._needs_replay or not asked  # after a question the next one loads it
        self._advance(now)

    def asked(self, question: QueryRequest, now: float) -> None:
        """Somebody asks the run something that is not recorded. Dropped when it cannot be answered soon: who asked
        asks again."""
        if self._suspended or len(self._questions) >= MAX_QUESTIONS:
            return
        self._questions.append(question)
        self._advance(now)

    def answered(self, token: int, result: Payload | None, failure: Failure | None, now: float) -> None:
        """The sandbox has answered a query, or the validation of an update."""
        if token != self._token or self._awaits is not Waiting.ANSWER:
            return
        self._awaits = Waiting.NOBODY
        if self._validated:
            self._take_validation(failure, now)
        elif self._questions:
            question = self._questions.popleft()
            how = "answered" if failure is None else "failed"
            run_id = self._running_state().run_id
            answer = Answer(request_id=question.request_id, answer=how, run_id=run_id, result=result, failure=failure)
            self._out(out.Reply(question.reply, answer))
            if self._running_state().terminal is not None:
                self._out(out.Evict(run_id))
        self._advance(now)

    def sent(self, key: str, now: float) -> None:
        """A message to another workflow is stored."""
        self._anchors.consume(*self._mail.stored(key))
        self._advance(now)

    def is_blocked(self, token: int, block: Block, now: float) -> None:
        """The run cannot go on with today's code. Nothing is lost: what comes is committed without being activated."""
        if token != self._token or self._awaits not in (Waiting.ACTIVATION, Waiting.REPLAY, Waiting.ANSWER):
            return
        self._awaits = Waiting.NOBODY
        if self._running_state().terminal is not None:  # loaded for a query
            self._refuse_questions("blocked", block.message)
            self._advance(now)
            return
        self._needs_replay = True
        self._block(block, now)
        self._advance(now)

    def committed(self, now: float) -> None:
        """The message published last is in the history."""
        flight = self._flight
        if flight is None:
            return
        part = flight.part
        self._tip_n = part.n
        state = self.state
        assert state is not None
        state.tip_n = part.n
        state.consumed = max(state.consumed, self._mark)
        state.finished = part.finished
        self._is_confirmed = True
        if flight.index + 1 < len(flight.parts):
            flight.index += 1
            self._publish_part(flight)
            return
        self._flight = None
        self._anchors.consume(*flight.draft.consumed)
        for effect in flight.draft.effects:
            if isinstance(effect, Owed):
                self._mail.post(effect)
                continue
            if isinstance(effect, out.Dispatch):
                self.live.add(effect.attempt.key)
            self._out(effect)
        self._advance(now)

    def commit_lost(self, now: float) -> None:
        """Somebody else's commit holds the number: what was decided is void, and decided again on the new history."""
        self._forget()
        self._advance(now)

    def armed_at(self, n: int, due: float, now: float) -> None:
        """A schedule is stored."""
        self._settling.armed_at(n, due)
        self._advance(now)

    def arm_failed(self, n: int, now: float) -> None:
        """It is unknown whether the schedule is stored; it is armed again."""
        self._settling.arm_failed(n)
        self._advance(now)

    def projected(self, status_key: str, seq: int, now: float) -> None:
        """The listing record is written (or a newer one stands)."""
        self._settling.projected(status_key, seq)
        self._advance(now)

    def projection_failed(self, now: float) -> None:
        """The listing record could not be written; it is tried again."""
        self._settling.projection_failed(now)
        self._advance(now)

    def wake(self, now: float) -> None:
        """The time asked for with `WakeAt` has come."""
        self._settling.woken()
        self._advance(now)

    def suspend(self) -> None:
        """Ownership is in doubt: decide, dispatch and acknowledge nothing. Attempts go on; outcomes are kept."""
        self._suspended = True

    def resume(self, now: float, waiting: Iterable[Inbound] = ()) -> None:
        """Ownership is certain again, under a new epoch: every unacknowledged inbox message is delivered anew.

        Args:
            waiting: those that were in the inbox. They are there before anything else of the run goes on: a start
                among them, refused by an owner that has died since, must not be found behind the end of the run.
        """
        self._anchors.clear()
        self._told.clear()
        self._questions.clear()
        self._inputs = deque(item for item in self._inputs if isinstance(item, LocalOutcome))
        for message in waiting:
            self._receive(message)
        self._suspended = False
        self._advance(now)

    def quiesce(self) -> None:
        """Begin nothing new: what still comes is committed without being activated, and the next owner goes on there.
        Attempts that run, and activations under way, are finished."""
        self._is_quiescing = True

    # --- what the shell asks -----------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Something that was delivered is not consumed and committed yet."""
        return bool(
            self._inputs
            or self._draft is not None
            or self._flight is not None
            or self._awaits is not Waiting.NOBODY
            or self.knowledge in (Knowledge.LOADING, Knowledge.NONE)
            or self._is_unfinished()
        )

    @property
    def is_quiet(self) -> bool:
        """No attempt runs here, and nothing is being activated or committed."""
        return not (self.live or self._draft or self._flight or self._awaits is not Waiting.NOBODY)

    @property
    def is_idle(self) -> bool:
        """Nothing of the run lives here only: the owner can be dropped and made again from the history."""
        return not (
            self.live
            or self._inputs
            or self._draft
            or self._flight
            or self._awaits is not Waiting.NOBODY
            or self.knowledge is Knowledge.LOADING
            or self._mail
            or self._questions
            or not self._settling.is_idle
        )

    def _receive(self, message: Inbound) -> None:
        known = message.seq in self._anchors
        self._anchors.hold(message.seq, message.handle)
        if isinstance(message.envelope, TimerFire):
            self._settling.fired(message.envelope.n)
        if not known and not self._is_in_work(message.seq):
            self._inputs.append(message)

    # --- taking inputs -----------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        if self._suspended:
            return
        while self._step(now):
            pass
        if self._flight is None and self._draft is not None and self._may_publish(now):
            self._publish(now)
        self._settle(now)

    def _step(self, now: float) -> bool:
        """Take one thing that can be taken now; False if there is none."""
        if self._awaits is not Waiting.NOBODY:
            return self._preempt(now)
        if self._flight is not None or not self._have_state(now):
            return False
        if self._commands and self._draft is None:
            commands, self._commands = list(self._commands), deque()
            self._record_commands(commands, self._running_state().wake_at)
            return True
        if self._questions and self._draft is None and self._take_question(now):
            return True
        state = self.state
        if state is None or state.terminal is not None:
            # A run that is just closing is committed before the id's next run begins.
            return self._draft is None and self._take_input(now)
        if self._is_quiescing:
            return isinstance(next(iter(self._inputs), None), LocalOutcome) and self._take_input(now)
        if (ended := decide_timeout(state, now)) is not None:
            self._record(ended)
            return True
        if state.last_event_id >= HISTORY_LIMIT_EVENTS:
            at = self._time(state, now)
            self._record(HistoryLimitExceeded(id=state.last_event_id + 1, at=at, limit=HISTORY_LIMIT_EVENTS))
            return True
        if self._take_retries(state, now):
            return True
        if self._draft is None and self._wants_replay(now):
            self._replay(state, now)
            return True
        if self._needs_replay and self.blocked is None:
            return False
        if (call := cancelled_in_backoff(state)) is not None and self._sandbox_ready(state, now):
            self._stimulate(decide_cancelled(state, call, self._time(state, now)), now)
            return True
        if self._take_input(now):
            return True
        if self.blocked is None and (fired := decide_timer(state, now)) is not None and self._sandbox_ready(state, now):
            self._stimulate(fired, now)
            return True
        return False

    def _wants_replay(self, now: float) -> bool:
        if self.blocked is not None:
            return now >= self._blocked_until
        return self._needs_replay

    def _have_state(self, now: float) -> bool:
        if self.knowledge in (Knowledge.KNOWN, Knowledge.ASSUMED_FRESH):
            return True
        if self.knowledge is Knowledge.LOADING or not (self._inputs or self._anchors or self._questions):
            return False
        if self._load_retry_at is not None and now < self._load_retry_at:
            return False
        first = self._inputs[0] if self._inputs else None
        if self._may_assume_fresh and isinstance(first, Inbound) and isinstance(first.envelope, StartRequest):
            self.knowledge = Knowledge.ASSUMED_FRESH
            return True
        self.knowledge = Knowledge.LOADING
        self._load_retry_at = None
        self._out(out.Load())
        return False

    def _load_wake(self) -> float | None:
        # Without anything to do for the id nobody reads it, and a time that has passed would wake its owner for ever.
        wants_it = self.knowledge is Knowledge.NONE and (self._inputs or self._anchors or self._questions)
        return self._load_retry_at if wants_it else None

    def _preempt(self, now: float) -> bool:
        """A terminate does not wait for the sandbox: the stimulus under way stays without its activation."""
        if self._awaits not in (Waiting.ACTIVATION, Waiting.REPLAY) or self._flight is not None:
            return False
        if self.state is None or self.state.terminal is not None:
            return False
        for index, item in enumerate(self._inputs):
            if isinstance(item, Inbound) and isinstance(item.envelope, TerminateRequest):
                if self._is_decided(item) or run_verdict(item, item.envelope, self.state) is not None:
                    continue
                self._needs_replay = True
                self._token += 1
                self._awaits = Waiting.NOBODY
                self._out(out.Evict(self.state.run_id))
                del self._inputs[index]
                self._refuse_waiting_starts(self.state, item.seq)
                self._terminate(item, item.envelope, now, in_order=False)
                return True
        return False

    def _take_input(self, now: float) -> bool:
        if not self._inputs:
            return False
        item = self._inputs[0]
        if isinstance(item, LocalOutcome):
            return self._take_outcome(item, item.outcome, item.worker, now)
        if self._is_decided(item):
            return self._redelivered(item, now)
        match item.envelope:
            case StartRequest() as request:
                return self._take_start(item, request, now)
            case TerminateRequest() as request:
                return self._take_terminate(item, request, now)
            case AttemptReport() as report:
                return self._take_outcome(item, report.outcome, report.worker, now)
            case TimerFire() as fire:
                return self._take_fire(item, fire, now)
            case SignalRequest() | CancelRequest() as request:
                return self._take_request(item, request, now)
            case UpdateRequest() as update:
                return self._take_update(item, update, now)
            case ChildReport() | ExternalReport():
                return self._take_message(item, now)

    def _is_decided(self, message: Inbound) -> bool:
        """Whether the history says that this message was consumed, applied or refused."""
        return self.state is not None and message.seq <= self.state.consumed

    def _is_in_work(self, seq: int) -> bool:
        """Whether this very message waits, or is part of a commit being made or under way."""
        drafts = [self._draft, None if self._flight is None else self._flight.draft]
        return any(draft is not None and seq in draft.sequences for draft in drafts) or any(
            isinstance(item, Inbound) and item.seq == seq for item in self._inputs
        )

    def _redelivered(self, message: Inbound, now: float) -> bool:
        """A message below the mark is not "done": it anchors the run while what the history owes is made good."""
        self._inputs.popleft()
        record = None if self.state is None else self.state.requests.get(message.request_id)
        if record is not None:
            self._reply(message, answer_of(record))
        if record is None or not is_from_workflow(message):
            self._anchors.consume(message.seq)
        if self.state is not None and self.state.terminal is not None:
            self._out(out.Closed(self.state.run_id, self._tip_n, self.state.terminal))
        self._settling.outdate()
        return True

    # --- requests ----------------------------------------------------------------------------------------------------

    def _take_start(self, message: Inbound, request: StartRequest, now: float) -> bool:
        state = self.state
        verdict = start_verdict(message, request, state, self._limits.payload_bytes)
        if verdict is not None and verdict.answer == "existing" and request.signal is not None:
            return self._take_message(message, now, answer="existing")
        if verdict is not None:
            return self._decline(message, verdict)
        if self._starts_run(self._draft):
            # A run that begins and ends in the first commit of its successor would be found by nobody.
            return False
        self._inputs.popleft()
        self._begin_input(message)
        if state is not None and state.terminal is None:
            # One commit ends the old run and begins the new one: a crash cannot come between.
            reason = f"replaced by a new run of workflow id {self.workflow_id!r}"
            self._record(self._terminated(state, reason, "", now))
        self._start(message, request, now)
        return True

    def _start(self, message: Inbound, request: StartRequest, now: float) -> None:
        before = self.state
        started = started_event(message, request, before, self._new_id(), now)
        if before is not None and self._drafting().events:
            # Only this commit knows what the run that it ends still owes.
            started = msgspec.structs.replace(
                started, released=released_children(before), replaced_child_of=before.started.parent
            )
        self._begin(started, now)
        self._reply_after_commit(message, RequestRecord(message.request_id, "applied", started.run_id))

    def _begin(self, started: WorkflowStarted, now: float) -> None:
        before = self.state
        state = start_state(started, self._tip_n + 1)
        state.consumed = 0 if before is None else before.consumed
        state.tip_n = self._tip_n
        self.state = state
        self.blocked = None
        self._needs_replay = False
        self._settling.outdate(now + PROJECT_AFTER_S)
        self._stimulate(started, now)

    def _take_terminate(self, message: Inbound, request: TerminateRequest, now: float) -> bool:
        verdict = run_verdict(message, request, self.state)
        if verdict is not None:
            return self._decline(message, verdict)
        self._inputs.popleft()
        self._terminate(message, request, now, in_order=True)
        return True

    def _take_request(self, message: Inbound, request: SignalRequest | CancelRequest, now: float) -> bool:
        state = self.state
        verdict = run_verdict(message, request, state)
        is_cancelled = state is not None and state.cancel_reason is not None
        if verdict is None and state is not None and is_cancelled and isinstance(request, CancelRequest):
            verdict = RequestRecord(message.request_id, "applied", state.run_id)
        if verdict is not None:
            return self._decline(message, verdict)
        return self._take_message(message, now)

    def _take_message(self, message: Inbound, now: float, *, answer: str = "applied") -> bool:
        """A message that is one stimulus of the open run, or late."""
        state = self.state
        if state is None or state.terminal is not None:
            return self._consume_without_commit(message)
        if not self._sandbox_ready(state, now):
            return False
        event = decide_message(state, message, self._time(state, now))
        if event is None:
            return self._consume_without_commit(message)
        self._inputs.popleft()
        self._begin_input(message)
        self._stimulate(event, now)
        if message.request_id:
            self._reply_after_commit(message, RequestRecord(message.request_id, answer, state.run_id))
        return True

    def _take_update(self, message: Inbound, request: UpdateRequest, now: float) -> bool:
        state = self.state
        if state is not None and (outcome := state.update_outcomes.get(request.update_id)) is not None:
            if not self._consume_without_commit(message):
                return False
            self._reply(message, _update_answer(message, outcome, state.run_id))
            return True
        if state is not None and state.terminal is None and request.update_id in state.updates:
            if not self._consume_without_commit(message):
                return False
            self._updating.setdefault(request.update_id, []).append(message)
            return True
        verdict = run_verdict(message, request, state)
        if verdict is not None:
            return self._decline(message, verdict)
        assert state is not None
        if self.blocked is not None or self._is_quiescing:
            return self._accept_update(message, request, now)
        if self._draft is not None or not self._sandbox_ready(state, now):
            return False
        if not self._is_confirmed:  # a refusal leaves no commit behind
            self._ask_leader()
            return True
        self._validated = message.seq
        self._ask("validate", state, request.name, request.arguments)
        return True

    def _take_validation(self, failure: Failure | None, now: float) -> None:
        seq, self._validated = self._validated, 0
        message = self._inputs[0] if self._inputs else None
        if not isinstance(message, Inbound) or message.seq != seq or not isinstance(message.envelope, UpdateRequest):
            return  # given up meanwhile; it will come again
        if failure is None:
            self._accept_update(message, message.envelope, now)
            return
        record = RequestRecord(message.request_id, "rejected", self._running_state().run_id, failure.message)
        answer = msgspec.structs.replace(answer_of(record), failure=failure)
        self._decline(message, record, answer)

    def _accept_update(self, message: Inbound, request: UpdateRequest, now: float) -> bool:
        if not self._take_message(message, now, answer=""):
            return False
        self._updating.setdefault(request.update_id, []).append(message)
        return True

    # --- questions ---------------------------------------------------------------------------------------------------

    def _take_question(self, now: float) -> bool:
        state = self.state
        question = self._questions[0]
        if state is None or question.run_id not in ("", state.run_id, state.started.chain_id):
            self._refuse_questions("not_found", f"workflow id {self.workflow_id!r} has no such run")
        elif self._is_quiescing:
            self._questions.clear()
        elif self.blocked is not None:
            self._refuse_questions("blocked", self.blocked.message)
        elif self._needs_replay and state.terminal is None:
            return False
        elif not self._just_replayed and not self._is_cached(state.run_id):
            self._replay(state, now)
        else:
            self._just_replayed = False
            self._ask("query", state, question.name, question.arguments)
        return True

    def _ask(self, kind: Literal["query", "validate"], state: RunState, name: str, arguments: Payload) -> None:
        self._token += 1
        self._awaits = Waiting.ANSWER
        self._out(out.Ask(self._token, state.run_id, state.stimuli, kind, name, arguments))

    def _refuse_questions(self, answer: str, words: str) -> None:
        for question in self._questions:
            self._out(out.Reply(question.reply, Answer(request_id=question.request_id, answer=answer, message=words)))
        self._questions.clear()

    def _terminate(self, message: Inbound, request: TerminateRequest, now: float, *, in_order: bool) -> None:
        state = self._running_state()
        self._begin_input(message, in_order=in_order)
        self._record(self._terminated(state, request.reason, message.request_id, now))
        self._reply_after_commit(message, RequestRecord(message.request_id, "applied", state.run_id))

    def _terminated(self, state: RunState, reason: str, request_id: str, now: float) -> WorkflowTerminated:
        return WorkflowTerminated(
            id=state.last_event_id + 1, at=self._time(state, now), reason=reason, request_id=request_id
        )

    def _take_fire(self, message: Inbound, fire: TimerFire, now: float) -> bool:
        state = self.state
        if state is None or state.terminal is not None or state.run_id != fire.run_id:
            return self._consume_without_commit(message)
        if not self._sandbox_ready(state, now):
            return False
        # The server's clock says that the time has come; ours may be behind.
        due = max(now, fire.due)
        if self.blocked is None and (fired := decide_timer(state, due)) is not None:
            self._inputs.popleft()
            self._begin_input(message)
            self._stimulate(fired, now)
            return True
        if not self._consume_without_commit(message):
            return False
        self._take_retries(state, due)
        return True

    def _take_outcome(self, item: Inbound | LocalOutcome, outcome: AttemptOutcome, worker: str, now: float) -> bool:
        state = self.state
        key = outcome.key
        events: list[Event] = []
        if state is not None and state.run_id == key.run_id and state.terminal is None:
            if not self._sandbox_ready(state, now):
                return False
            outcome = fitting_outcome(outcome, self._limits.payload_bytes)
            at = self._time(state, now)
            if isinstance(outcome, AttemptCompleted):
                events = decide_completed(
                    state,
                    key.activity_id,
                    key.attempt,
                    outcome.result,
                    worker=worker,
                    started_at=outcome.started_at,
                    at=at,
                )
            else:
                events = decide_failed(
                    state,
                    key.activity_id,
                    key.attempt,
                    reason=outcome.reason,
                    failure=outcome.failure,
                    timeout=outcome.timeout,
                    worker=worker,
                    started_at=outcome.started_at or None,
                    at=at,
                )
        if not events:
            # Late, or of a run that is gone. A stale view must not drop what the true history still waits for.
            return self._consume_without_commit(item)
        self._inputs.popleft()
        self._begin_input(item)
        current = None if state is None else state.activities.get(key.activity_id)
        if current is not None and current.attempt != key.attempt:
            self._cancel_live(ActivityKey(key.run_id, key.activity_id, current.attempt))
        for event in events[:-1]:
            self._record(event)
        self._record_or_stimulate(events[-1], now)
        return True

    # --- decisions that leave no commit behind -----------------------------------------------------------------------

    def _decline(self, message: Inbound, record: RequestRecord, answer: Answer | None = None) -> bool:
        """Answer without applying: the request is refused, or was decided before.

        A refused request that could be applied later (a start once the run has closed, a signal to whichever run is
        open once there is one) is remembered in the history: its client may send it again, with the same request id,
        when this owner is gone. That costs no commit of its own: the message is held until the next one.
        """
        state = self.state
        could_change = may_be_applied_later(message.envelope, record)
        is_recorded = state is not None and record.request_id in state.requests and record not in self._refused
        holds = state is not None and could_change and not is_recorded
        if not self._consume_without_commit(message, holds=holds):
            return False
        self._reply(message, answer or answer_of(record))
        if state is not None and holds:
            if record not in self._refused:
                self._refused.append(record)
                state.refuse(record)
            if state.terminal is not None or len(self._refused) >= MAX_RECENT_REQUESTS:
                self._drafting()
        return True

    def _refuse_requests(self, answer: str, words: str) -> None:
        """Nothing can be decided about this id: whoever asks is told so, instead of waiting for ever."""
        asked = [item for item in self._inputs if isinstance(item, Inbound) and item.reply]
        for item in asked:
            self._inputs.remove(item)
            self._anchors.consume(item.seq)
            self._reply(item, Answer(request_id=item.request_id, answer=answer, message=words))

    def _consume_without_commit(self, item: Inbound | LocalOutcome, *, holds: bool = False) -> bool:
        """Consume the first input without an event; False: not yet. `holds`: it is acknowledged after the next commit.

        Only once what was decided so far is committed, and the leader has confirmed that nothing newer contradicts.
        """
        if self._draft is not None:
            return False
        if not self._is_confirmed:
            self._ask_leader()
            return False
        self._inputs.popleft()
        if isinstance(item, Inbound):
            self._mark = max(self._mark, item.seq)
            if holds:
                self._told.append(item)
            elif not is_from_workflow(item):
                self._anchors.consume(item.seq)
        return True

    def _ask_leader(self) -> None:
        self._awaits = Waiting.CONFIRMATION
        self._out(out.Confirm(self._tip_n))

    def _sandbox_ready(self, state: RunState, now: float) -> bool:
        """Whether a stimulus can be activated at once, or is not to be, as the run is blocked.

        A run that is not cached any more is replayed first: committing the stimulus ahead of its activation would cost
        a second commit for the commands. Only once, though: a cache may be too small to keep even one run.
        """
        if self.blocked is not None or self._is_quiescing:
            return True
        if self._just_replayed or self._is_cached(state.run_id):
            return True
        if self._draft is None:
            self._replay(state, now)
        return False

    # --- drafting ----------------------------------------------------------------------------------------------------

    def _drafting(self) -> Draft:
        if self._draft is None:
            self._draft = Draft()
        return self._draft

    def _begin_input(self, item: Inbound | LocalOutcome, *, in_order: bool = True) -> None:
        self._drafting().inputs.append(item)
        if in_order and isinstance(item, Inbound):
            self._mark = max(self._mark, item.seq)

    def _record(self, event: Event) -> None:
        draft = self._drafting()
        draft.events.append(event)
        state = self._running_state()
        state.apply(event)
        if isinstance(event, TERMINAL_EVENTS):
            effects.close(draft, state, self.live, self._tip_n + 1, event)
            self.blocked = None
            if not (isinstance(event, ContinuedAsNew) or (isinstance(event, WorkflowFailed) and event.next_run_id)):
                self._close_updates(draft, state.run_id)
            if not isinstance(event, WorkflowTerminated):
                self._refuse_waiting_starts(state)
        elif isinstance(event, ActivityScheduled):
            draft.effects.append(effects.dispatch(state, state.activities[event.activity_id]))
        elif isinstance(event, UpdateCompleted):
            record = UpdateRecord(event.update_id, event.result, event.failure)
            for message in self._updating.pop(event.update_id, ()):
                draft.effects.append(out.Reply(message.reply, _update_answer(message, record, state.run_id)))
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
        have refused it. Not so behind a request that ends the run, which every owner decides first."""
        for item in self._inputs:
            if isinstance(item, Inbound) and isinstance(item.envelope, StartRequest) and item.seq < before_seq:
                record = conflict_verdict(item, item.envelope, state)
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
            if again is not None and self._starts_run(self._draft):
                # Runs are found by the commit they begin in: the next one begins in a commit of its own.
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
            return continued_event(state, self._new_id(), command.workflow, command.arguments, command.signals)
        if isinstance(command, FailWorkflow):
            return next_attempt_event(state, self._new_id(), command.failure, state.last_at)
        return None

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

    # --- effects -----------------------------------------------------------------------------------------------------

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

    # --- committing --------------------------------------------------------------------------------------------------

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
        self._refused.clear()
        draft.inputs.extend(self._told)
        self._told.clear()
        self._draft = None
        self._flight = Flight(draft, parts)
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
        self._inputs.extendleft(reversed(again))
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

    def _replay(self, state: RunState, now: float) -> None:
        self._token += 1
        self._awaits = Waiting.REPLAY
        self._since = now
        keep = state.terminal is not None
        patches = tuple(sorted(state.patches))
        self._out(out.Replay(self._token, state.run_id, state.first_n, self._tip_n, patches, keep))

    def _block(self, block: Block, now: float) -> None:
        delay = BLOCKED_RETRY_S[min(self._blocked_attempts, len(BLOCKED_RETRY_S) - 1)]
        self._blocked_attempts += 1
        self._blocked_until = now + delay
        if self.blocked != block:
            self._revision += 1
            self._out(out.Report("error", f"workflow {self.workflow_id!r} is blocked ({block.kind}): {block.words}"))
        self.blocked = block

    # --- settling ----------------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        settling, state = self._settling, self.state
        if self.is_busy:
            settling.busy(earliest(self._slow_start_wake(), self._load_wake()))
        elif self._mail:
            settling.busy(None)
        elif self._anchors and not self._is_confirmed and self.blocked is None:
            # To let go of the last message on a replica's word could leave nobody to wake the run.
            self._ask_leader()
            settling.busy(None)
        elif state is None:
            settling.without_run()
        elif state.terminal is not None:
            settling.closed(state, now)
        elif self._is_quiescing:
            settling.busy(None)
        elif self.blocked is not None:
            settling.blocked(
                state, now, words=self.blocked.words, revision=self._revision, retry_at=self._blocked_until
            )
        else:
            settling.running(state, now, is_live=bool(self.live), revision=self._revision)

    def _is_unfinished(self) -> bool:
        """Whether a replay has to follow before the run can wait for anything."""
        if not self._needs_replay or self.blocked is not None:
            return False
        return self.state is not None and self.state.terminal is None

    def _slow_start_wake(self) -> float | None:
        if self._awaits is not Waiting.ACTIVATION or self._flight is not None or not self._starts_run(self._draft):
            return None
        return self._since + SLOW_START_S

    @staticmethod
    def _starts_run(draft: Draft | None) -> bool:
        return draft is not None and any(isinstance(event, WorkflowStarted) for event in draft.events)

    @staticmethod
    def _time(state: RunState, now: float) -> float:
        """The time of an event: never before the event that precedes it."""
        return max(now, state.last_at)

    def _running_state(self) -> RunState:
        assert self.state is not None
        return self.state


def _update_answer(message: Inbound, outcome: UpdateRecord, run_id: str) -> Answer:
    """The answer to whoever waits for an update."""
    how = "applied" if outcome.failure is None else "failed"
    return Answer(
        request_id=message.request_id, answer=how, run_id=run_id, result=outcome.result, failure=outcome.failure
    )
