"""What the owners of a shard ask of the world, carried out: reads, commits, attempts, schedules, messages, answers."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.attempts import AttemptCompleted, AttemptFailed, AttemptOutcome
from durablefuture_trio.engine.requests import AttemptReport, CancelRequest, Inbound, SignalRequest
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.engine.run_records import Block
from durablefuture_trio.errors import HistoryError
from durablefuture_trio.history.events import CallerRecord
from durablefuture_trio.ports.broker import NO_HEADERS, Append, AppendOutcome, Broker, BrokerError, Delivery
from durablefuture_trio.ports.children import ActivityPool, ReplayAnswer, ReplayPool
from durablefuture_trio.ports.frames import Activated, Blocked, Loaded, Queried, Query, ValidateUpdate
from durablefuture_trio.protocol.committing import CommitLoop, PendingCommit
from durablefuture_trio.protocol.envelope import (
    ClosedHint,
    encode_answer,
    encode_envelope,
    encode_hint,
    kind_of,
    request_headers,
)
from durablefuture_trio.protocol.inbox import Inbox
from durablefuture_trio.protocol.loading import HistoryReader, load_state
from durablefuture_trio.protocol.projection import Projection, project
from durablefuture_trio.protocol.schedules import Schedules
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.supervisor._caution import Caution
from durablefuture_trio.supervisor._clock import ServerClock
from durablefuture_trio.supervisor._verifier import ShardVerifier, Target, Verdict, Verifiers
from durablefuture_trio.supervisor._wakes import Wakes

logger = logging.getLogger("durablefuture_trio.shard")

CONCURRENT_LOADS = 32
LARGE_HINT_BYTES = 64 * 1024
LIST_AFTER_S = 0.002
MARK_ATTEMPTS = 10
UNDER_WAY_S = 0.05


class Errands:
    """Carries out the outputs of run owners, and brings them the answers.

    The base of `Shard`, which says what becomes of a notification while ownership is in doubt.
    """

    def __init__(
        self,
        number: int,
        *,
        broker: Broker,
        subjects: Subjects,
        replay: ReplayPool,
        activities: ActivityPool,
        clock: ServerClock,
        on_reader_lost: Callable[[], None],
        verifiers: Verifiers | None = None,
        owner_type: type[RunOwner] = RunOwner,
    ) -> None:
        self.number = number
        self._owner_type = owner_type
        self._broker = broker
        self._subjects = subjects
        self._replay = replay
        self._activities = activities
        self._clock = clock
        self._on_reader_lost = on_reader_lost
        self._owners: dict[str, RunOwner] = {}
        self._outputs: deque[tuple[RunOwner, out.Output]] = deque()
        self._pumping = False
        self._held: list[Callable[[], None]] = []
        self._schedules = Schedules(broker, subjects, number)
        self._projection = Projection(broker, subjects)
        self._reader = HistoryReader(broker, subjects)
        self._verifier = None if verifiers is None else ShardVerifier(verifiers, self._reader, self._doubted)
        self._loads = trio.CapacityLimiter(CONCURRENT_LOADS)
        self._known: OrderedDict[str, None] = OrderedDict()
        self._past_barrier = False
        self._inbox: Inbox | None = None
        self._epoch = 0
        self._epoch_changed = trio.Event()
        self._reading = trio.CancelScope()
        self._progress = trio.Event()
        self.usable = trio.Event()
        """Set when the inbox was opened for the first time."""
        self._is_active = False
        self._is_abandoned = False
        self.is_quiescing = False
        self._wakes: Wakes[RunOwner] = Wakes()
        self._alarm = trio.Event()
        self._listings: list[tuple[Append, Callable[[AppendOutcome], None]]] = []
        self._to_list = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._commits: CommitLoop | None = None
        self._quarantined: set[str] = set()
        self._caution = Caution(broker, subjects, number)
        self._in_turn: deque[Inbound] | None = None
        self._handlers: dict[type, Callable[[RunOwner, Any], None]] = {
            out.Load: self._do_load,
            out.Confirm: self._do_confirm,
            out.Activate: self._do_activate,
            out.Replay: self._do_replay,
            out.Verify: self._do_verify,
            out.Evict: lambda owner, output: self._replay.evict(output.run_id),
            out.Publish: self._do_publish,
            out.Ask: self._do_ask,
            out.Send: self._do_send,
            out.Dispatch: self._do_dispatch,
            out.CancelAttempt: lambda owner, output: self._activities.cancel(output.key),
            out.Arm: self._do_arm,
            out.Neutralise: lambda owner, output: self._schedules.neutralise(owner.workflow_id, output.n),
            out.Project: self._do_project,
            out.Reply: lambda owner, output: self._broker.tell(output.address, encode_answer(output.answer)),
            out.Closed: self._do_closed,
            out.Ack: self._do_ack,
            out.WakeAt: self._do_wake_at,
            out.Report: self._do_report,
        }

    def _do_load(self, owner: RunOwner, output: out.Load) -> None:
        self._spawn(self._load, owner)

    async def _load(self, owner: RunOwner) -> None:
        async with self._loads:
            try:
                state = await load_state(self._reader, owner.workflow_id)
            except HistoryError as error:
                block = Block(kind="history", message=error.message)
                self._later(owner, lambda: owner.load_failed(block, self._clock.now()))
                await self._project_damage(owner.workflow_id, error.message)
                return
            except BrokerError as error:
                logger.warning("loading workflow %r: %r", owner.workflow_id, error)
                self._later(owner, lambda: owner.load_failed(None, self._clock.now()))
                return
        self._later(owner, lambda: owner.loaded(state, self._clock.now()))

    async def _project_damage(self, workflow_id: str, message: str) -> None:
        try:
            await self._projection.mark_damaged(workflow_id, message)
        except BrokerError as error:
            logger.warning("the listing does not show that workflow %r is blocked: %r", workflow_id, error)

    def _do_confirm(self, owner: RunOwner, output: out.Confirm) -> None:
        self._spawn(self._confirm, owner, output.tip_n)

    async def _confirm(self, owner: RunOwner, tip_n: int) -> None:
        is_tip = (await self._leaders_tip_n(owner.workflow_id) or 0) == tip_n
        self._later(owner, lambda: owner.confirmed(is_tip, self._clock.now()))

    async def _leaders_tip_n(self, workflow_id: str) -> int | None:
        """The number of the last commit, by the leader's word; 0: there is none; None: it cannot be read."""
        while True:
            try:
                tip = await self._reader.tip(workflow_id, confirmed=True)
            except HistoryError:
                return None
            except BrokerError as error:
                logger.warning("confirming the tip of workflow %r: %r", workflow_id, error)
                await trio.sleep(1.0)
            else:
                return 0 if tip is None else tip.n

    def _do_activate(self, owner: RunOwner, output: out.Activate) -> None:
        self._replay.activate(
            output.run_id, output.activation, output.stimulus, partial(self._answered, owner, output.token)
        )

    def _answered(self, owner: RunOwner, token: int, answer: ReplayAnswer) -> None:
        now = self._clock.now()
        match answer:
            case Activated():
                notification = partial(owner.activated, token, answer.commands, answer.wake_at, now)
            case Loaded():
                notification = partial(owner.replayed, token, answer.unmatched, answer.wake_at, now)
            case Queried():
                notification = partial(owner.answered, token, answer.result, answer.failure, now)
            case Blocked():
                block = Block(
                    kind=answer.kind,
                    message=answer.message,
                    recorded=answer.recorded,
                    produced=answer.produced,
                    source=answer.source,
                    stack=answer.stack,
                )
                notification = partial(owner.is_blocked, token, block, now)
            case _:
                notification = partial(owner.missing, token, now)
        self._later(owner, notification)

    def _do_replay(self, owner: RunOwner, output: out.Replay) -> None:
        self._spawn(self._stream_history, owner, output)

    async def _stream_history(self, owner: RunOwner, output: out.Replay) -> None:
        """Read the history chunk by chunk and hand each on while the next one comes."""
        answered = partial(self._answered, owner, output.token)
        if self._verifier is not None and owner.blocked is not None:
            answered = partial(self._replayed_here, owner, output, self._verifier)
        async with self._loads:
            n = output.first_n
            while n <= output.tip_n:
                try:
                    async for chunk in self._reader.commits(owner.workflow_id, n, output.tip_n):
                        n = chunk[-1].n + 1
                        self._replay.load(
                            output.run_id,
                            tuple(item.body for item in chunk),
                            first=chunk[0].n == output.first_n,
                            last=n > output.tip_n,
                            patches=output.patches,
                            keep=output.keep,
                            on_answer=answered if n > output.tip_n else None,
                        )
                except HistoryError as error:
                    block = Block(kind="history", message=error.message)
                    self._later(owner, partial(owner.is_blocked, output.token, block, self._clock.now()))
                    return
                except BrokerError as error:
                    logger.warning("reading the history of workflow %r: %r", owner.workflow_id, error)
                    await trio.sleep(1.0)

    def _do_verify(self, owner: RunOwner, output: out.Verify) -> None:
        if self._verifier is not None:
            self._verifier.verify(
                Target(
                    workflow_id=owner.workflow_id,
                    run_id=output.run_id,
                    first_n=output.first_n,
                    tip_n=output.tip_n,
                    patches=output.patches,
                    wake_at=output.wake_at,
                    is_closed=output.is_closed,
                )
            )

    def _doubted(self, target: Target, block: Block) -> None:
        workflow_id = target.workflow_id
        if target.is_closed:
            logger.error("run %s of workflow %r has closed, but %s", target.run_id, workflow_id, block.words)
            self._spawn(self._mark_doubted, target, block)
        elif not self._is_abandoned and workflow_id not in self._quarantined:
            owner = self._owner(workflow_id)
            self._later(owner, lambda: owner.doubted(target.run_id, block, self._clock.now()))

    async def _mark_doubted(self, target: Target, block: Block) -> None:
        for _ in range(MARK_ATTEMPTS):
            try:
                if await self._projection.mark_doubted(target.workflow_id, target.run_id, target.tip_n, block.words):
                    return
            except BrokerError as error:
                logger.warning("the listing does not show what is doubted of %r: %r", target.workflow_id, error)
            await trio.sleep(1.0)  # the record of a run that has just closed is written a moment later

    def _replayed_here(
        self, owner: RunOwner, output: out.Replay, verifier: ShardVerifier, answer: ReplayAnswer
    ) -> None:
        """A blocked run goes on only when its replay goes well elsewhere too: this process may agree with itself."""
        if not isinstance(answer, Loaded):
            self._answered(owner, output.token, answer)
            return
        target = Target(
            workflow_id=owner.workflow_id,
            run_id=output.run_id,
            first_n=output.first_n,
            tip_n=output.tip_n,
            patches=output.patches,
            wake_at=answer.wake_at,
            unmatched=answer.unmatched,
        )
        verifier.check(target, partial(self._replayed_elsewhere, owner, output, answer))

    def _replayed_elsewhere(self, owner: RunOwner, output: out.Replay, answer: Loaded, verdict: Verdict) -> None:
        if verdict.block is None and verdict.is_certain:
            self._answered(owner, output.token, answer)
            return
        self._replay.evict(output.run_id)
        still = owner.blocked if verdict.block is None else verdict.block
        if still is not None:
            self._later(owner, lambda: owner.is_blocked(output.token, still, self._clock.now()))

    def _do_ask(self, owner: RunOwner, output: out.Ask) -> None:
        kind = Query if output.kind == "query" else ValidateUpdate
        question = kind(
            exchange=0,
            run_id=output.run_id,
            activation=output.activation,
            name=output.name,
            arguments=output.arguments,
        )
        self._replay.ask(question, partial(self._answered, owner, output.token))

    def _do_send(self, owner: RunOwner, output: out.Send) -> None:
        match output.letter:
            case SignalRequest(sender=CallerRecord() as caller) | CancelRequest(sender=CallerRecord() as caller):
                # A copy of it could be refused before the first run of the id, and applied after.
                self._spawn(self._send_to_known, owner, output, caller)
            case _:
                self._post(owner, output)

    async def _send_to_known(self, owner: RunOwner, output: out.Send, caller: CallerRecord) -> None:
        has_history = await self._leaders_tip_n(output.letter.workflow_id) != 0
        if not await self._is_current(owner, output):
            return
        if has_history:
            self._post(owner, output)
        else:
            self._later(owner, lambda: owner.unreachable(output, caller, self._clock.now()))

    async def _is_current(self, owner: RunOwner, output: out.Send) -> bool:
        """Whether a message is still to be sent, by the history as the leader has it."""
        while True:
            tip_n = await self._leaders_tip_n(owner.workflow_id) or 0
            if self._is_abandoned or self._owners.get(owner.workflow_id) is not owner or not owner.awaits(output):
                return False
            if tip_n <= owner.tip_n:
                return True
            self._later(owner, partial(owner.told_of_tip, tip_n, self._clock.now()))
            await trio.sleep(UNDER_WAY_S)  # it may be this owner's own commit

    def _post(self, owner: RunOwner, output: out.Send) -> None:
        letter = output.letter
        append = Append(
            subject=self._subjects.inbox(letter.workflow_id, kind_of(letter)),
            body=encode_envelope(letter),
            headers=request_headers(output.request_id, "") if output.request_id else NO_HEADERS,
        )

        def answered(outcome: AppendOutcome) -> None:
            if isinstance(outcome, int):
                self._later(owner, lambda: owner.sent(output.key, self._clock.now()))
            else:
                self._spawn(self._send_again, owner, output, outcome)

        self._broker.append_soon(append, answered)

    async def _send_again(self, owner: RunOwner, output: out.Send, error: BrokerError) -> None:
        logger.warning("workflow %r cannot reach %r: %r", owner.workflow_id, output.letter.workflow_id, error)
        await trio.sleep(1.0)
        if not self._is_abandoned and self._owners.get(owner.workflow_id) is owner:
            self._post(owner, output)

    def _do_publish(self, owner: RunOwner, output: out.Publish) -> None:
        assert self._commits is not None
        pending = PendingCommit(owner.workflow_id, output.n, output.commit_id, output.body)
        self._commits.publish(pending, partial(self._resolved, owner))

    def _resolved(self, owner: RunOwner, is_ours: bool) -> None:
        if is_ours:
            self._later(owner, lambda: owner.committed(self._clock.now()))
        else:
            logger.info("workflow %r: another owner has committed; loading its history", owner.workflow_id)
            self._later(owner, lambda: owner.commit_lost(self._clock.now()))

    def _do_dispatch(self, owner: RunOwner, output: out.Dispatch) -> None:
        if not self._activities.serves(output.task_queue):
            self._refuse_dispatch(owner, output)
            return
        self._activities.dispatch(output.attempt, output.task_queue, partial(self._ended, owner))

    def _refuse_dispatch(self, owner: RunOwner, output: out.Dispatch) -> None:
        words = f"no activity pool of this supervisor serves task queue {output.task_queue!r}: add an [[activity_pool]]"
        failure = Failure(type="NoActivityPool", message=words)
        outcome = AttemptFailed(key=output.attempt.key, started_at=self._clock.now(), reason="error", failure=failure)
        owner.outcome(outcome, "", self._clock.now())

    def _ended(self, owner: RunOwner, outcome: AttemptOutcome, worker: str) -> None:
        if self._is_abandoned:
            if isinstance(outcome, AttemptCompleted):
                self._hand_over(owner.workflow_id, outcome, worker)
            return
        self._later(owner, lambda: owner.outcome(outcome, worker, self._clock.now()))

    def _hand_over(self, workflow_id: str, outcome: AttemptOutcome, worker: str) -> None:
        """The shard is somebody else's: its owner gets the result through the inbox."""
        report = AttemptReport(workflow_id=workflow_id, worker=worker, outcome=outcome)
        append = Append(subject=self._subjects.inbox(workflow_id, kind_of(report)), body=encode_envelope(report))

        def stored(result: int | BrokerError) -> None:
            if not isinstance(result, int):
                logger.warning("result of %s/%d was not handed over: %r", workflow_id, outcome.key.activity_id, result)

        self._broker.append_soon(append, stored)

    def _do_arm(self, owner: RunOwner, output: out.Arm) -> None:
        def done(error: BrokerError | None) -> None:
            now = self._clock.now()
            if error is None:
                self._alarm.set()
                self._later(owner, lambda: owner.armed_at(output.n, output.due, now))
            else:
                self._spawn(self._arm_again, owner, output, error)

        self._schedules.arm(owner.workflow_id, output.run_id, output.n, output.due, done)

    async def _arm_again(self, owner: RunOwner, output: out.Arm, error: BrokerError) -> None:
        logger.warning("arming the timer of workflow %r: %r", owner.workflow_id, error)
        await trio.sleep(1.0)
        self._later(owner, lambda: owner.arm_failed(output.n, self._clock.now()))

    def _do_project(self, owner: RunOwner, output: out.Project) -> None:
        record = project(output.state, blocked=output.blocked, revision=output.revision)
        append = self._projection.append_for(record, output.last_seq)

        def answered(outcome: int | BrokerError) -> None:
            if isinstance(outcome, int):
                self._later(owner, lambda: owner.projected(output.status_key, outcome, self._clock.now()))
            else:
                self._spawn(rewrite)

        async def rewrite() -> None:
            try:
                seq = await self._projection.write(record, last_seq=output.last_seq)
            except BrokerError as error:
                logger.warning("writing the listing record of workflow %r: %r", owner.workflow_id, error)
                self._later(owner, lambda: owner.projection_failed(self._clock.now()))
                return
            self._later(owner, lambda: owner.projected(output.status_key, seq, self._clock.now()))

        self._listings.append((append, answered))
        self._to_list.set()

    async def _write_listings(self) -> None:
        """Write listing records a moment later. The server sends what it has for a connection when it has read all that
        came in one piece: an answer told together with the publish of a record would wait for the record's fsync."""
        while True:
            await self._to_list.wait()
            await trio.sleep(LIST_AFTER_S)
            self._to_list = trio.Event()
            listings, self._listings = self._listings, []
            for append, answered in listings:
                self._broker.append_soon(append, answered)

    def _do_closed(self, owner: RunOwner, output: out.Closed) -> None:
        body = encode_hint(ClosedHint(run_id=output.run_id, n=output.n, event=output.terminal))
        if len(body) > LARGE_HINT_BYTES:
            body = encode_hint(ClosedHint(run_id=output.run_id, n=output.n))
        self._broker.tell(self._subjects.closed_hint(owner.workflow_id), body)

    def _do_ack(self, owner: RunOwner, output: out.Ack) -> None:
        assert isinstance(output.handle, Delivery)
        assert self._inbox is not None
        self._inbox.ack(output.handle)

    def _do_report(self, owner: RunOwner, output: out.Report) -> None:
        self._report(output.level, output.message)

    @staticmethod
    def _report(level: str, message: str) -> None:
        logger.log(logging.getLevelNamesMapping()[level.upper()], "%s", message)

    def _do_wake_at(self, owner: RunOwner, output: out.WakeAt) -> None:
        if self._wakes.put(owner, output.when):
            self._alarm.set()

    def _later(self, owner: RunOwner, notification: Callable[[], None]) -> None:
        """Bring an owner an answer that came by itself."""
        raise NotImplementedError

    def _spawn(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a task for as long as the shard is owned."""
        raise NotImplementedError

    def _owner(self, workflow_id: str) -> RunOwner:
        """The owner of a workflow id, made if there is none."""
        raise NotImplementedError
