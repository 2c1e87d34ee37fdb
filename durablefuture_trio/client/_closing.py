"""Waiting for runs to close: subscribe to the close hint, look in the history, wait, look again every few seconds."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import msgspec
import trio

from durablefuture_trio.client._reading import continued_in, end_of_chain, last_commit, persistently
from durablefuture_trio.client._timing import LOOK_AT_LEAST_EVERY_S, LOOK_EVERY_S, jittered
from durablefuture_trio.history.events import Terminal
from durablefuture_trio.ports.broker import Broker, BrokerError
from durablefuture_trio.protocol.envelope import ClosedHint, decode_hint
from durablefuture_trio.protocol.loading import HistoryReader
from durablefuture_trio.protocol.projection import standing_record
from durablefuture_trio.protocol.subjects import Subjects

logger = logging.getLogger("durablefuture_trio.client")

_MAX_HINTS = 16
"""Hints a waiter keeps before it knows which run it waits for."""


class Closing(msgspec.Struct, frozen=True):
    """How a run ended."""

    run_id: str
    event: Terminal


class CloseWaiter:
    """One task that waits for a run of a workflow id; fed by the shared subscription.

    Attributes:
        subscribed: set when the server has confirmed the subscription.
    """

    def __init__(self, subscribed: trio.Event) -> None:
        self.subscribed = subscribed
        self._hints: dict[str, ClosedHint] = {}
        self._told = trio.Event()
        self._nudged = False

    def tell(self, hint: ClosedHint) -> None:
        """A run of the id has closed."""
        self._hints[hint.run_id] = hint
        if len(self._hints) > _MAX_HINTS:
            del self._hints[next(iter(self._hints))]
        self._told.set()

    def take(self, run_id: str) -> ClosedHint | None:
        """The hint about this run, if it has come."""
        return self._hints.pop(run_id, None)

    def nudge(self) -> None:
        """The link has come back: hints may have been lost meanwhile."""
        self._nudged = True
        self._told.set()

    async def told(self) -> bool:
        """Wait for the next hint (False), or until hints may have been lost (True)."""
        await self._told.wait()
        self._told = trio.Event()
        nudged, self._nudged = self._nudged, False
        return nudged


class _Subscription:
    def __init__(self) -> None:
        self.waiters: set[CloseWaiter] = set()
        self.sent = trio.Event()
        self.confirmed = trio.Event()
        self.scope = trio.CancelScope()


class CloseHints:
    """One subscription for each workflow id that somebody waits for; `nursery` runs them."""

    def __init__(self, broker: Broker, subjects: Subjects, nursery: trio.Nursery) -> None:
        self._broker = broker
        self._subjects = subjects
        self._nursery = nursery
        self._subscriptions: dict[str, _Subscription] = {}
        nursery.start_soon(self._watch_link)

    async def _watch_link(self) -> None:
        link = self._broker.link
        seen = link.generation
        while True:
            seen = await link.changed(seen)
            if link.up:
                for subscription in self._subscriptions.values():
                    for waiter in subscription.waiters:
                        waiter.nudge()

    @asynccontextmanager
    async def watch(self, workflow_id: str) -> AsyncIterator[CloseWaiter]:
        """Subscribe. When this is entered the subscription has been sent, so it is there before whatever the same link
        sends from then on; `CloseWaiter.subscribed` says that it is there. The difference is a round trip.
        """
        subscription = self._subscriptions.get(workflow_id)
        if subscription is None:
            subscription = self._subscriptions[workflow_id] = _Subscription()
            self._nursery.start_soon(self._listen, workflow_id, subscription)
        waiter = CloseWaiter(subscription.confirmed)
        subscription.waiters.add(waiter)
        try:
            await subscription.sent.wait()
            yield waiter
        finally:
            subscription.waiters.discard(waiter)
            if not subscription.waiters:
                # Forgotten before it has ended: whoever comes next must not share a subscription that is closing.
                del self._subscriptions[workflow_id]
                subscription.scope.cancel()

    async def _listen(self, workflow_id: str, subscription: _Subscription) -> None:
        subject = self._subjects.closed_hint(workflow_id)
        with subscription.scope:
            while True:
                try:
                    # Whoever waits for this runs when `listen` has come to wait for the server, and not earlier.
                    subscription.sent.set()
                    async with self._broker.listen(subject) as messages:
                        subscription.confirmed.set()
                        async for message in messages:
                            self._deliver(message.body, subscription)
                    return
                except BrokerError as error:
                    logger.debug("cannot subscribe to %s just now: %r", subject, error)
                await trio.sleep(jittered(1.0))

    @staticmethod
    def _deliver(body: bytes, subscription: _Subscription) -> None:
        try:
            hint = decode_hint(body)
        except msgspec.MsgspecError as error:
            logger.warning("a close hint cannot be read (%s); looking in the history instead", error)
            return
        for waiter in subscription.waiters:
            waiter.tell(hint)


class Closings:
    """Finds out how runs ended."""

    def __init__(self, broker: Broker, subjects: Subjects, reader: HistoryReader, hints: CloseHints) -> None:
        self._broker = broker
        self._subjects = subjects
        self._reader = reader
        self._hints = hints

    def watch(self, workflow_id: str) -> AbstractAsyncContextManager[CloseWaiter]:
        """Subscribe to the closes of a workflow id; see `CloseHints.watch`."""
        return self._hints.watch(workflow_id)

    async def of(self, workflow_id: str, run_id: str | None) -> Closing:
        """Wait for a run (None: the latest one) and those that continue it to close, as long as the caller's scope
        allows.

        Raises:
            WorkflowNotFoundError, HistoryError, BrokerUnavailableError: as in `last_commit` and `persistently`.
        """
        async with self.watch(workflow_id) as waiter:
            await waiter.subscribed.wait()
            if run_id is None:
                run_id = await self._latest_run(workflow_id)
            return await self.told_to(waiter, workflow_id, run_id, look_first=True)

    async def told_to(self, waiter: CloseWaiter, workflow_id: str, run_id: str, *, look_first: bool) -> Closing:
        """Wait for a run, and those that continue it, to close, as a task that is subscribed already.

        Args:
            look_first: the run may have closed before the subscription was sent.
        """
        if look := look_first or not waiter.subscribed.is_set():
            # Still unconfirmed after a whole request: the link was down, and the subscription may be later than that.
            await waiter.subscribed.wait()
        pause = LOOK_EVERY_S
        told = ""
        while True:
            if look:
                run_id, event = await self._look(workflow_id, run_id)
                if event is not None:
                    return Closing(run_id, event)
            if (hint := waiter.take(run_id)) is not None:
                if hint.event is None:
                    look = True  # too large for a hint: the history has it
                elif following := continued_in(hint.event):
                    run_id, look = following, False
                else:
                    return Closing(run_id, hint.event)
                continue
            look = True
            with trio.move_on_after(jittered(pause)):
                look = await waiter.told()
                pause = LOOK_EVERY_S
                continue
            pause = min(2 * pause, LOOK_AT_LEAST_EVERY_S)
            told = await self._tell_if_blocked(workflow_id, run_id, told)

    async def _tell_if_blocked(self, workflow_id: str, run_id: str, told: str) -> str:
        """Whoever waits should know why nothing comes; gives the reason that was told."""
        try:
            record = await standing_record(self._broker, self._subjects, workflow_id)
        except BrokerError as error:
            logger.debug("cannot ask why workflow %r takes so long: %r", workflow_id, error)
            return told
        blocked = record.blocked if record is not None and record.run_id == run_id else ""
        if blocked and blocked != told:
            logger.warning(
                "workflow %r is blocked until the cause is mended (or it is terminated): %s", workflow_id, blocked
            )
        return blocked

    async def _latest_run(self, workflow_id: str) -> str:
        async def read() -> str:
            return (await last_commit(self._reader, workflow_id, None)).commit.run_id

        return await persistently(f"the history of workflow {workflow_id!r}", read)

    async def _look(self, workflow_id: str, run_id: str) -> tuple[str, Terminal | None]:
        return await persistently(
            f"the history of workflow {workflow_id!r}", partial(end_of_chain, self._reader, workflow_id, run_id)
        )
