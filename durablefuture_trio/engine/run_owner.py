"""The owner of one workflow id: a value that is notified of what happened and says what is to be done.

It takes requests, outcomes and deadlines one at a time, lets the sandbox activate each stimulus, turns commands into
events, and has them committed. Everything that touches the world waits for the acknowledgement of the commit that
justifies it; inbox messages are acknowledged last of all. `docs/protocol.md` has the rules, and the reason for each.

No input or output happens here, and no clock is read: every notification brings the time along, in Unix seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.attempts import (
    AttemptOutcome,
)
from durablefuture_trio.engine.commands import Command
from durablefuture_trio.engine.decide import (
    cancelled_in_backoff,
    decide_cancelled,
    decide_timeout,
    decide_timer,
)
from durablefuture_trio.engine.mail import Owed, owed_by
from durablefuture_trio.engine.requests import (
    Answer,
    Inbound,
    QueryRequest,
    StartRequest,
    TerminateRequest,
    TimerFire,
)
from durablefuture_trio.engine.run_inputs import RunInputs
from durablefuture_trio.engine.run_records import (
    BLOCKED_RETRY_S,
    MAX_QUESTIONS,
    SLOW_START_S,
    Block,
    Knowledge,
    LocalOutcome,
    Unreachable,
    Waiting,
)
from durablefuture_trio.engine.settling import earliest
from durablefuture_trio.history.events import CallerRecord, HistoryLimitExceeded
from durablefuture_trio.history.state import (
    HISTORY_LIMIT_EVENTS,
    RunState,
)


class RunOwner(RunInputs):
    """The owner of one workflow id. Methods are notifications; what is to be done is appended to `outputs`."""

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
            self._post_what_is_owed(state)
            if state.terminal is None:
                if state.finished:  # its owner may have died between the commit and what a replay made of it
                    self._output_all(self._verification(state, state.tip_n))
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
        if self._has_settled_its_debts():
            # Written down: two closed runs that owe each other a word would go on telling each other at every word.
            self._drafting()
        self._advance(now)

    def awaits(self, send: out.Send) -> bool:
        """Whether this message is still to be stored."""
        return self._mail.awaits(send)

    @property
    def tip_n(self) -> int:
        """The last commit that is known here."""
        return self._tip_n

    def told_of_tip(self, tip_n: int, now: float) -> None:
        """The leader's word of the last commit: is it not known here, the history is read again."""
        if self._flight is None and tip_n > self._tip_n and self.knowledge is Knowledge.KNOWN:
            self._forget()
            self._advance(now)

    def unreachable(self, send: out.Send, caller: CallerRecord, now: float) -> None:
        """A message of this call was not sent: the workflow it is for has no history."""
        if self._mail.awaits(send):
            self._inputs.append(Unreachable(send.key, caller, send.letter.workflow_id))
            self._advance(now)

    def _has_settled_its_debts(self) -> bool:
        state = self.state
        if state is None or state.terminal is None or not state.may_owe:
            return False
        if self._mail or self._draft is not None or self._flight is not None:
            return False
        return any(True for _ in owed_by(state))

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
        state.may_owe = flight.may_owe
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
        if part.finished:
            self._output_all(self._verification(state, part.n))
        self._advance(now)

    def doubted(self, run_id: str, block: Block, now: float) -> None:
        """The stored history of this run was replayed in another process, and that went differently: the copy here is
        not to be trusted. What is stored stays; the run goes on when a replay goes well, here and there."""
        self._doubt = (run_id, block)
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
        self._inputs = deque(item for item in self._inputs if isinstance(item, LocalOutcome | Unreachable))
        for message in waiting:
            self._receive(message)
        self._suspended = False
        self._advance(now)

    def quiesce(self) -> None:
        """Begin nothing new: what still comes is committed without being activated, and the next owner goes on there.
        Attempts that run, and activations under way, are finished."""
        self._is_quiescing = True

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
            or self._doubt is not None
            or not self._settling.is_idle
        )

    def _receive(self, message: Inbound) -> None:
        known = message.seq in self._anchors
        self._anchors.hold(message.seq, message.handle)
        if isinstance(message.envelope, TimerFire):
            self._settling.fired(message.envelope.n)
        elif isinstance(message.envelope, TerminateRequest):
            self._may_preempt = True
        if not known and not self._is_in_work(message.seq):
            self._inputs.append(message)

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
        if self._doubt is not None and self._take_doubt(self._doubt, now):
            return True
        if self._awaits is not Waiting.NOBODY:
            return self._preempt(now)
        if self._flight is not None or not self._have_state(now):
            return False
        if self._commands:
            if self._draft is not None:
                return False  # a signal that is taken now would come too late for what they carry over
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
            is_local = isinstance(next(iter(self._inputs), None), LocalOutcome | Unreachable)
            return is_local and self._take_input(now)
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
        if self.knowledge is Knowledge.LOADING or not self._needs_state:
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
        wants_it = self.knowledge is Knowledge.NONE and self._needs_state
        return self._load_retry_at if wants_it else None

    @property
    def _needs_state(self) -> bool:
        return bool(self._inputs or self._anchors or self._questions or self._doubt)

    def _take_doubt(self, doubt: tuple[str, Block], now: float) -> bool:
        """Block the run, whatever is under way in the sandbox: a stimulus stays without its activation."""
        if self.knowledge in (Knowledge.NONE, Knowledge.LOADING):
            return False
        self._doubt = None
        run_id, block = doubt
        state = self.state
        if state is None or state.run_id != run_id or state.terminal is not None or self.blocked is not None:
            return True
        self._out(out.Evict(run_id))
        if self._awaits in (Waiting.ACTIVATION, Waiting.REPLAY, Waiting.ANSWER):
            self._token += 1
            self._awaits = Waiting.NOBODY
            self._validated = 0
        self._commands.clear()  # a replay asks for them again
        self._needs_replay = True
        self._just_replayed = False
        self._block(block, now)
        return True

    def _output_all(self, outputs: Iterable[out.Output]) -> None:
        for output in outputs:
            self._out(output)

    def _block(self, block: Block, now: float) -> None:
        delay = BLOCKED_RETRY_S[min(self._blocked_attempts, len(BLOCKED_RETRY_S) - 1)]
        self._blocked_attempts += 1
        self._blocked_until = now + delay
        if self.blocked != block:
            self._revision += 1
            self._out(out.Report("error", f"workflow {self.workflow_id!r} is blocked ({block.kind}): {block.words}"))
        self.blocked = block

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
