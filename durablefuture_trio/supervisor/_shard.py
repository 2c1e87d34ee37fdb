"""The owner of a shard: the shell around the owners of its runs.

It brings them what happens (inbox messages, answers of the sandbox, outcomes of attempts, acknowledgements, times) and
carries out what they ask for. Every source notifies synchronously; there is no task per message or per run.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import msgspec
import trio

from durablefuture_trio._ids import new_id
from durablefuture_trio.codec.payload import MAX_PAYLOAD_BYTES, Failure
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.attempts import AttemptCompleted, AttemptFailed, AttemptOutcome
from durablefuture_trio.engine.requests import AttemptReport, Inbound
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.engine.run_records import Block, OwnerLimits
from durablefuture_trio.engine.settling import earliest
from durablefuture_trio.errors import HistoryError
from durablefuture_trio.ports.broker import NO_HEADERS, Append, AppendOutcome, Broker, BrokerError, Delivery, Message
from durablefuture_trio.ports.children import ActivityPool, ReplayAnswer, ReplayPool
from durablefuture_trio.ports.frames import Activated, Blocked, Loaded, Queried, Query, ValidateUpdate
from durablefuture_trio.protocol.committing import CommitLoop, PendingCommit
from durablefuture_trio.protocol.envelope import (
    REPLY_HEADER,
    REQUEST_HEADER,
    ClosedHint,
    decode_query,
    encode_answer,
    encode_envelope,
    encode_hint,
    inbound,
    kind_of,
    request_headers,
    undecodable,
)
from durablefuture_trio.protocol.inbox import Inbox, Superseded, open_inbox
from durablefuture_trio.protocol.loading import HistoryReader, load_state
from durablefuture_trio.protocol.projection import Projection, project
from durablefuture_trio.protocol.schedules import Schedules
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.supervisor._caution import Caution
from durablefuture_trio.supervisor._clock import ServerClock
from durablefuture_trio.supervisor._verifier import ShardVerifier, Target, Verdict, Verifiers
from durablefuture_trio.supervisor._wakes import Wakes

logger = logging.getLogger("durablefuture_trio.shard")

MARGIN_BYTES = 4096
"""Room for headers and the framing of a commit beside its events."""

CONCURRENT_LOADS = 32
KNOWN_IDS = 10_000
LARGE_HINT_BYTES = 64 * 1024
QUARANTINE_S = 60.0
"""A run that the engine itself breaks on is left alone for so long."""

CAUTIOUS_S = 2.0
"""A run that is loaded alone has so long to bring its owner down."""

LIST_AFTER_S = 0.002
MARK_ATTEMPTS = 10
HASTE_S = 0.2
"""An inbox that is lost sooner than this after it was opened is not opened again at once."""


class Shard:
    """One owned shard. `run` it; `suspend` and `resume` it as the lease goes and comes; `abandon` it when it is
    lost."""

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

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self, epoch: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the shard under `epoch` (and those given to `resume`) until cancelled or abandoned."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._commits = CommitLoop(self._broker, self._subjects, self._spawn, self._report)
            self._epoch = epoch
            nursery.start_soon(self._keep_time)
            nursery.start_soon(self._write_listings)
            nursery.start_soon(self._hear_queries)
            if self._verifier is not None:
                nursery.start_soon(self._verifier.run)
            nursery.start_soon(self._end_spawning)
            task_status.started()
            while not self._is_abandoned:
                epoch = self._epoch
                with self._reading:
                    await self._read_until_lost(epoch)
                self.suspend()
                if self._epoch == epoch and not self._is_abandoned:
                    changed = self._epoch_changed
                    self._on_reader_lost()
                    await changed.wait()
                self._reading = trio.CancelScope()
            nursery.cancel_scope.cancel()

    async def _end_spawning(self) -> None:
        """A nursery is closed as soon as its last task has ended, which is before `run` gets to know of it; an answer
        of the server may come just then."""
        try:
            await trio.sleep_forever()
        finally:
            self._nursery = None

    def suspend(self) -> None:
        """Ownership is in doubt: commit, dispatch and acknowledge nothing; attempts go on."""
        self._is_active = False
        for owner in self._owners.values():
            owner.suspend()

    def resume(self, epoch: int) -> None:
        """Ownership is certain again, under a new epoch: the inbox is read again from its start."""
        self._epoch = epoch
        self._reading.cancel()
        self._epoch_changed.set()
        self._epoch_changed = trio.Event()

    def abandon(self) -> None:
        """The shard belongs to somebody else: local attempts are cancelled, results that come anyway are handed
        over."""
        self._is_abandoned = True
        self.suspend()
        for owner in self._owners.values():
            for key in owner.live:
                self._activities.cancel(key)
            if owner.state is not None:
                self._replay.evict(owner.state.run_id)
        self.resume(self._epoch)

    async def drain(self) -> None:
        """Begin nothing new and wait until no attempt of this shard runs here."""
        self.quiesce()
        while not self.is_quiet:
            self._progress = trio.Event()
            await self._progress.wait()
        if self._verifier is not None:
            await self._verifier.drain()

    def quiesce(self) -> None:
        """Begin nothing new: leave the inbox, and what outcomes lead to, to the next owner."""
        self.is_quiescing = True
        for owner in self._owners.values():
            owner.quiesce()

    @property
    def is_quiet(self) -> bool:
        """Nothing of this shard is under way here."""
        return all(owner.is_quiet for owner in self._owners.values())

    @property
    def live_attempts(self) -> int:
        """Attempts of this shard that run here."""
        return sum(len(owner.live) for owner in self._owners.values())

    def statistics(self) -> dict[str, int]:
        """Figures for logs and tests."""
        return {
            "owners": len(self._owners),
            "live": self.live_attempts,
            "armed": self._schedules.count,
            "epoch": self._epoch,
        }

    async def _read_until_lost(self, epoch: int) -> None:
        began = trio.current_time()
        try:
            await self._read_inbox(epoch)
        except* (BrokerError, Superseded) as group:
            logger.info("shard %d, epoch %d: inbox closed: %r", self.number, epoch, group.exceptions)
        if trio.current_time() - began < HASTE_S:
            await trio.sleep(HASTE_S)

    # --- the inbox ----------------------------------------------------------------------------------------------------

    def _open_inbox(self, epoch: int) -> AbstractAsyncContextManager[Inbox]:
        return open_inbox(self._broker, self._subjects, self.number, epoch)

    async def _read_inbox(self, epoch: int) -> None:
        async with self._open_inbox(epoch) as box:
            await self._schedules.recover()
            self._in_turn = None
            await self._caution.enter(self._clock.now())
            self._leave_suspects_alone()
            self._inbox = box
            self._past_barrier = box.barrier == 0
            early: list[Inbound] = []
            if self._past_barrier:
                self._activate(early)
            while True:
                for delivery in await box.receive():
                    message = self._decode(delivery)
                    if self._past_barrier:
                        if message is not None and self._in_turn is not None:
                            self._in_turn.append(message)
                        elif message is not None:
                            self._deliver(message)
                        continue
                    if message is not None:
                        early.append(message)
                    if box.is_past_barrier(delivery):
                        # In this order: a start that was waiting may have been applied by an earlier owner.
                        self._activate(early)
                        self._past_barrier = True
                self._pump()

    def _activate(self, early: list[Inbound]) -> None:
        """Everything that was waiting at the takeover is known: now runs may go on."""
        self._is_active = True
        now = self._clock.now()
        count = len(early)
        known = {workflow_id: list[Inbound]() for workflow_id in self._owners}
        if not self.is_quiescing:
            for message in early:
                if (messages := known.get(message.envelope.workflow_id)) is not None:
                    messages.append(message)
            early = [message for message in early if message.envelope.workflow_id not in known]
        for workflow_id, messages in known.items():
            owner = self._owners[workflow_id]
            self._notify(owner, partial(owner.resume, now, messages))
        held, self._held = self._held, []
        for notify in held:
            notify()
        if self._caution.is_advised(message.envelope.workflow_id for message in early):
            early.sort(key=lambda message: self._caution.is_suspect(message.envelope.workflow_id))
            self._in_turn = deque(early)
            self._spawn(self._deliver_in_turn, self._in_turn)
        else:
            for message in early:
                self._deliver(message)
        self._pump()
        self._alarm.set()
        self.usable.set()
        logger.info("shard %d is owned, epoch %d, %d messages waiting", self.number, self._epoch, count)

    def _decode(self, delivery: Delivery) -> Inbound | None:
        try:
            return inbound(delivery)
        except msgspec.MsgspecError as error:
            self._bury(delivery, str(error))
            return None

    def _bury(self, delivery: Delivery, reason: str) -> None:
        """Move what nobody can read out of the way: stored as a dead letter first, acknowledged then."""
        logger.error("inbox message %s (sequence %d) cannot be read: %s", delivery.subject, delivery.seq, reason)
        headers = {"Df-Subject": delivery.subject, "Df-Sequence": str(delivery.seq), "Df-Reason": reason[:500]}
        append = Append(
            subject=self._subjects.dead_letter(self.number), body=delivery.body, headers={**delivery.headers, **headers}
        )
        box = self._inbox

        def stored(outcome: int | BrokerError) -> None:
            if isinstance(outcome, int) and box is not None and box is self._inbox:
                if reply := delivery.headers.get(REPLY_HEADER):
                    request_id = delivery.headers.get(REQUEST_HEADER, "")
                    self._broker.tell(reply, encode_answer(undecodable(request_id, reason)))
                box.ack(delivery)

        self._broker.append_soon(append, stored)

    async def _deliver_in_turn(self, queue: deque[Inbound]) -> None:
        """One run after the other, each named before it is loaded: owners before this one may have died of it."""
        try:
            while queue is self._in_turn and queue:
                workflow_id = queue[0].envelope.workflow_id
                if workflow_id not in self._quarantined:
                    logger.info("shard %d: workflow %r is loaded alone", self.number, workflow_id)
                    await self._caution.loading(workflow_id)
                    if queue is not self._in_turn:
                        return
                messages = [item for item in queue if item.envelope.workflow_id == workflow_id]
                rest = [item for item in queue if item.envelope.workflow_id != workflow_id]
                queue.clear()
                queue.extend(rest)
                for message in messages:
                    self._deliver(message)
                self._pump()
                with trio.move_on_after(CAUTIOUS_S):
                    while (owner := self._owners.get(workflow_id)) is not None and owner.is_busy:  # noqa: ASYNC110
                        await trio.sleep(0.01)  # whatever it waits for tells the owner, not us
                if workflow_id not in self._quarantined:
                    self._caution.survived(workflow_id)
                if not queue:
                    await self._caution.relax()
        except BrokerError as error:
            logger.info("shard %d: %r while runs are loaded one by one; from the start again", self.number, error)
            self._reading.cancel()
            return
        if queue is self._in_turn:
            self._in_turn = None

    def _leave_suspects_alone(self) -> None:
        for suspect in self._caution.suspects(self._clock.now()):
            if suspect.workflow_id not in self._quarantined:
                wait = suspect.until - self._clock.now()
                words = f"set aside for {wait:.0f} s: {suspect.deaths} supervisors died while they loaded it"
                logger.error("workflow %r is %s", suspect.workflow_id, words)
                self._quarantined.add(suspect.workflow_id)
                self._spawn(self._project_damage, suspect.workflow_id, words)
                self._spawn(self._end_quarantine, suspect.workflow_id, wait)

    def _deliver(self, message: Inbound) -> None:
        workflow_id = message.envelope.workflow_id
        if self.is_quiescing or workflow_id in self._quarantined:
            return  # unacknowledged: it will be delivered again, to the next owner
        owner = self._owner(workflow_id)
        self._notify(owner, partial(owner.delivered, message, self._clock.now()))

    def _owner(self, workflow_id: str) -> RunOwner:
        owner = self._owners.get(workflow_id)
        if owner is None:
            limit = self._broker.limits.max_payload_bytes - MARGIN_BYTES
            holder: list[RunOwner] = []
            append = self._outputs.append
            owner = self._owner_type(
                workflow_id,
                lambda output: append((holder[0], output)),
                limits=OwnerLimits(commit_bytes=limit, payload_bytes=min(MAX_PAYLOAD_BYTES, limit - MARGIN_BYTES)),
                new_id=new_id,
                code_hash=lambda: self._replay.code_hash,
                is_cached=self._replay.cached,
                armed=self._schedules.of(workflow_id),
                # What is still delivered in turn was waiting at the takeover, and may have been applied before.
                may_assume_fresh=self._past_barrier and self._in_turn is None and workflow_id not in self._known,
                is_verified=self._verifier is not None,
            )
            holder.append(owner)
            self._owners[workflow_id] = owner
        return owner

    # --- notifying ----------------------------------------------------------------------------------------------------

    def _notify(self, owner: RunOwner, notification: Callable[[], None]) -> None:
        """Bring an owner something, inside its own exception boundary."""
        try:
            notification()
        except Exception as error:
            logger.exception("workflow %r is set aside for %d s", owner.workflow_id, QUARANTINE_S)
            self._set_aside(owner, error)

    def _set_aside(self, owner: RunOwner, error: Exception) -> None:
        """An error of the engine stops one run, not the shard. Its messages stay unacknowledged."""
        workflow_id = owner.workflow_id
        self._quarantined.add(workflow_id)
        self._drop(owner)
        owner.suspend()
        for key in owner.live:
            self._activities.cancel(key)
        if owner.state is not None:
            self._replay.evict(owner.state.run_id)
        words = f"set aside for {QUARANTINE_S:.0f} s after an error of the engine: {error!r}"
        self._spawn(self._project_damage, workflow_id, words)
        self._spawn(self._end_quarantine, workflow_id, QUARANTINE_S)

    async def _end_quarantine(self, workflow_id: str, wait_s: float) -> None:
        """Have everything delivered again, under a new epoch: only that brings back what was left unacknowledged."""
        await trio.sleep(wait_s)
        self._quarantined.discard(workflow_id)
        self._reading.cancel()

    def _later(self, owner: RunOwner, notification: Callable[[], None]) -> None:
        """Bring an owner an answer that came by itself; held back while ownership is in doubt."""
        if self._is_abandoned or self._owners.get(owner.workflow_id) is not owner:
            return
        if not self._is_active:
            self._held.append(lambda: self._notify(owner, notification))
            return
        self._notify(owner, notification)
        self._pump()

    def _pump(self) -> None:
        """Carry out what the owners have asked for."""
        if self._pumping or not self._is_active:
            return
        self._pumping = True
        outputs = self._outputs
        touched: set[RunOwner] = set()
        try:
            while outputs:
                owner, output = outputs.popleft()
                touched.add(owner)
                if self._owners.get(owner.workflow_id) is owner:
                    self._handlers[type(output)](owner, output)
        finally:
            self._pumping = False
            self._progress.set()
        for owner in touched:
            if owner.is_idle and self._owners.get(owner.workflow_id) is owner:
                self._drop(owner)

    def _drop(self, owner: RunOwner) -> None:
        self._owners.pop(owner.workflow_id, None)
        self._wakes.put(owner, None)
        self._schedules.forget(owner.workflow_id)
        self._known[owner.workflow_id] = None
        while len(self._known) > KNOWN_IDS:
            self._known.popitem(last=False)

    # --- carrying out -------------------------------------------------------------------------------------------------

    def _spawn(self, function: Callable[..., Any], *args: Any) -> None:
        # Answers of the server may come after the shard was given up: nobody is left to act on them.
        if self._nursery is not None:
            self._nursery.start_soon(function, *args)

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
        while True:
            try:
                tip = await self._reader.tip(owner.workflow_id, confirmed=True)
                break
            except HistoryError:
                tip = None
                break
            except BrokerError as error:
                logger.warning("confirming the tip of workflow %r: %r", owner.workflow_id, error)
                await trio.sleep(1.0)
        is_tip = (0 if tip is None else tip.n) == tip_n
        self._later(owner, lambda: owner.confirmed(is_tip, self._clock.now()))

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

    # --- paranoid mode ------------------------------------------------------------------------------------------------

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

    async def _hear_queries(self) -> None:
        """Queries come over core NATS and are stored nowhere: one that is lost is asked again."""
        while True:
            try:
                async with self._broker.listen(self._subjects.queries(self.number)) as messages:
                    async for message in messages:
                        self._take_query(message)
            except BrokerError as error:
                logger.info("shard %d: queries are not heard for a moment: %r", self.number, error)
            await trio.sleep(1.0)

    def _take_query(self, message: Message) -> None:
        try:
            query = decode_query(message.body)
        except msgspec.MsgspecError as error:
            logger.warning("a query of shard %d cannot be read: %s", self.number, error)
            return
        if not self._is_active or self.is_quiescing or query.workflow_id in self._quarantined:
            return
        owner = self._owner(query.workflow_id)
        self._notify(owner, partial(owner.asked, query, self._clock.now()))
        self._pump()

    def _do_send(self, owner: RunOwner, output: out.Send) -> None:
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
            self._do_send(owner, output)

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

    # --- time ---------------------------------------------------------------------------------------------------------

    def _do_wake_at(self, owner: RunOwner, output: out.WakeAt) -> None:
        if self._wakes.put(owner, output.when):
            self._alarm.set()

    async def _keep_time(self) -> None:
        """One heap for every run's next time; wakes what is due, and looks after schedules that did not fire."""
        while True:
            self._alarm = trio.Event()
            due = self._next_time()
            with trio.move_on_after(max(0.0, due - self._clock.now()) if due is not None else 3600.0):
                await self._alarm.wait()
            now = self._clock.now()
            for owner in self._wakes.take(now):
                self._later(owner, partial(owner.wake, now))
            if self._is_active:
                for schedule in self._schedules.republish_overdue(now):
                    logger.warning("timer of workflow %r did not fire; armed again", schedule.workflow_id)

    def _next_time(self) -> float | None:
        overdue = self._schedules.next_check if self._is_active else None
        return earliest(self._wakes.first, overdue)
