"""What an owner makes of everything that reaches it: requests, reports, outcomes, fires and questions."""

from __future__ import annotations

from typing import Literal

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.admission import (
    may_be_applied_later,
    run_verdict,
    start_verdict,
    watch_verdict,
)
from durablefuture_trio.engine.attempts import (
    ActivityKey,
    AttemptCompleted,
    AttemptOutcome,
)
from durablefuture_trio.engine.decide import (
    decide_completed,
    decide_failed,
    decide_message,
    decide_timer,
    decide_unreachable,
    decide_watcher,
)
from durablefuture_trio.engine.mail import end_answer, is_from_workflow, owed_by, replaced_words
from durablefuture_trio.engine.payload_limits import fitting_outcome
from durablefuture_trio.engine.requests import (
    Answer,
    AttemptReport,
    CancelRequest,
    ChildReport,
    ExternalReport,
    Inbound,
    SignalRequest,
    StartRequest,
    TerminateRequest,
    TimerFire,
    UpdateRequest,
    WatchRequest,
    answer_of,
)
from durablefuture_trio.engine.run_drafting import RunDrafting, update_answer
from durablefuture_trio.engine.run_records import (
    LocalOutcome,
    Unreachable,
    Waiting,
)
from durablefuture_trio.history.events import (
    Event,
    RequestRecord,
)
from durablefuture_trio.history.state import (
    MAX_RECENT_REQUESTS,
    RunState,
)


class RunInputs(RunDrafting):
    """Takes one input at a time, and decides. Between `RunDrafting` and `RunOwner`."""

    def _take_input(self, now: float) -> bool:
        if not self._inputs:
            return False
        item = self._inputs[0]
        if isinstance(item, LocalOutcome):
            return self._take_outcome(item, item.outcome, item.worker, now)
        if isinstance(item, Unreachable):
            return self._take_unreachable(item, now)
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
            case WatchRequest() as watch:
                return self._take_watch(item, watch, now)
            case ChildReport() | ExternalReport():
                return self._take_message(item, now)

    def _is_in_work(self, seq: int) -> bool:
        """Whether this very message is part of a commit being made or under way. (One that waits is anchored.)"""
        drafts = [self._draft, None if self._flight is None else self._flight.draft]
        return any(draft is not None and seq in draft.sequences for draft in drafts)

    def _redelivered(self, message: Inbound, now: float) -> bool:
        """A message below the mark is not "done": it anchors the run while what the history owes is made good."""
        if isinstance(message.envelope, WatchRequest):
            # Decided again: the answer may not have been stored, and the asker takes the first one.
            if not self._take_watch(message, message.envelope, now):
                return False
        else:
            self._inputs.popleft()
            record = None if self.state is None else self.state.requests.get(message.request_id)
            if record is not None:
                self._reply(message, answer_of(record))
            if record is None or not is_from_workflow(message):
                self._anchors.consume(message.seq)
        if self.state is not None and self.state.terminal is not None:
            self._out(out.Closed(self.state.run_id, self._tip_n, self.state.terminal))
            self._post_what_is_owed(self.state)
        self._settling.outdate()
        return True

    def _post_what_is_owed(self, state: RunState) -> None:
        if state.may_owe:
            for owed in owed_by(state):
                self._mail.post(owed)

    def _preempt(self, now: float) -> bool:
        """A terminate does not wait for the sandbox: the stimulus under way stays without its activation."""
        if not self._may_preempt or self._awaits not in (Waiting.ACTIVATION, Waiting.REPLAY):
            return False
        if self._flight is not None or self.state is None or self.state.terminal is not None:
            return False
        self._may_preempt = False
        for index, item in enumerate(self._inputs):
            if isinstance(item, Inbound) and isinstance(item.envelope, TerminateRequest):
                self._may_preempt = True
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
        if state is not None and state.terminal is not None and self._mail:
            # Those who wait for its end have not been told, and only the latest run of an id is ever loaded.
            return False
        self._inputs.popleft()
        self._begin_input(message)
        if state is not None and state.terminal is None:
            # One commit ends the old run and begins the new one: a crash cannot come between.
            self._record(self._terminated(state, replaced_words(self.workflow_id), "", now))
        self._start(message, request, now)
        return True

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

    def _take_unreachable(self, item: Unreachable, now: float) -> bool:
        """No input of the draft: should that be lost, it is to be sent again."""
        state, call = self.state, item.caller.call
        is_awaited = (
            state is not None
            and state.terminal is None
            and state.run_id == item.caller.run_id
            and call in state.externals
        )
        if is_awaited and not self._sandbox_ready(self._running_state(), now):
            return False
        self._inputs.popleft()
        self._mail.stored(item.key)
        if state is None or not is_awaited:
            return True
        self._stimulate(decide_unreachable(state, call, item.workflow_id, self._time(state, now)), now)
        return True

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

    def _take_watch(self, message: Inbound, request: WatchRequest, now: float) -> bool:
        """Another workflow waits for the end of a run: it is told now if that has come, else when it comes."""
        state = self.state
        is_watching = state is not None and (request.sender in state.watchers or message.request_id in state.requests)
        verdict = None if is_watching else watch_verdict(message, request, state)
        if state is not None and state.terminal is None and verdict is None and not is_watching:
            self._inputs.popleft()
            self._begin_input(message)
            self._record(decide_watcher(state, message, request, self._time(state, now)))
            return True
        if not self._consume_without_commit(message):
            return False
        if is_watching:
            self._anchors.consume(message.seq)  # the terminal commit of the run answers it, or has done so
        elif verdict is not None:
            # Not remembered: a copy may be decided otherwise, and the asker takes the first answer.
            self._reply(message, answer_of(verdict))
        else:
            assert state is not None
            self._mail.post(end_answer(message, request.sender, state))
        return True

    def _take_update(self, message: Inbound, request: UpdateRequest, now: float) -> bool:
        state = self.state
        if state is not None and (outcome := state.update_outcomes.get(request.update_id)) is not None:
            if not self._consume_without_commit(message):
                return False
            self._reply(message, update_answer(message, outcome, state.run_id))
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

    def _take_question(self, now: float) -> bool:
        state = self.state
        question = self._questions[0]
        if not self._is_confirmed:  # loaded from a replica that is behind, it may not know an acknowledged signal
            self._ask_leader()
        elif state is None or question.run_id not in ("", state.run_id, state.started.chain_id):
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

    def _replay(self, state: RunState, now: float) -> None:
        self._token += 1
        self._awaits = Waiting.REPLAY
        self._since = now
        keep = state.terminal is not None
        patches = tuple(sorted(state.patches))
        self._out(out.Replay(self._token, state.run_id, state.first_n, self._tip_n, patches, keep))
