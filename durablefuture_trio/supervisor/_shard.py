"""The owner of a shard: the shell around the owners of its runs.

It brings them what happens (inbox messages, answers of the sandbox, outcomes of attempts, acknowledgements, times) and
carries out what they ask for. Every source notifies synchronously; there is no task per message or per run.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import msgspec
import trio

from durablefuture_trio._ids import new_id
from durablefuture_trio.codec.payload import MAX_PAYLOAD_BYTES
from durablefuture_trio.engine.requests import Inbound
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.engine.run_records import OwnerLimits
from durablefuture_trio.engine.settling import earliest
from durablefuture_trio.ports.broker import Append, BrokerError, Delivery, Message
from durablefuture_trio.protocol.committing import CommitLoop
from durablefuture_trio.protocol.envelope import (
    REPLY_HEADER,
    REQUEST_HEADER,
    decode_query,
    encode_answer,
    inbound,
    undecodable,
)
from durablefuture_trio.protocol.inbox import Inbox, Superseded, open_inbox
from durablefuture_trio.supervisor._errands import Errands

logger = logging.getLogger("durablefuture_trio.shard")

MARGIN_BYTES = 4096
"""Room for headers and the framing of a commit beside its events."""

KNOWN_IDS = 10_000
QUARANTINE_S = 60.0
"""A run that the engine itself breaks on is left alone for so long."""

CAUTIOUS_S = 2.0
"""A run that is loaded alone has so long to bring its owner down."""

HASTE_S = 0.2
"""An inbox that is lost sooner than this after it was opened is not opened again at once."""


class Shard(Errands):
    """One owned shard. `run` it; `suspend` and `resume` it as the lease goes and comes; `abandon` it when it is
    lost."""

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

    def _spawn(self, function: Callable[..., Any], *args: Any) -> None:
        # Answers of the server may come after the shard was given up: nobody is left to act on them.
        if self._nursery is not None:
            self._nursery.start_soon(function, *args)

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
        if self._in_turn is not None and query.workflow_id not in self._owners:
            return  # loaded for a question, a run would go on without the messages that wait for their turn
        owner = self._owner(query.workflow_id)
        self._notify(owner, partial(owner.asked, query, self._clock.now()))
        self._pump()

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
