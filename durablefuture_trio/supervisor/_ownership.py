"""Which shards this supervisor owns: takes leases, renews them, gives them up, and runs the shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from durablefuture_trio.ports.broker import Broker, BrokerError
from durablefuture_trio.protocol.lease import DEFAULT_LEASE_S, Lease, LeaseLost, LeaseTable, Member
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.supervisor._clock import ServerClock
from durablefuture_trio.supervisor._shard import Shard

logger = logging.getLogger("durablefuture_trio.ownership")

LOOKS_PER_LEASE = 5
RENEWALS_PER_LEASE = 3
REPORT_SKEW_S = 1.0
DECLINE_SKEW_S = 60.0
HAND_OVER_AFTER_S = 10.0
"""A shard that another member is to have is made quiet when it has not become so by itself."""

GIVE_UP_S = 30.0
"""Without a link for this long, local work is cancelled: by then somebody else has it."""


@dataclass(slots=True)
class _Owned:
    lease: Lease
    shard: Shard
    renewed_at: float
    scope: trio.CancelScope
    is_suspended: bool = False
    needs_epoch: bool = False
    unwanted_since: float | None = None
    ended: trio.Event = field(default_factory=trio.Event)


class Ownership:
    """The shards of one supervisor.

    Args:
        new_shard: makes a `Shard` from its number and the callback for a lost reader.
        lease_s: seconds without a renewal after which a shard changes hands.
        monotonic: this process's clock for lease times, in seconds.
    """

    def __init__(
        self,
        broker: Broker,
        subjects: Subjects,
        member: Member,
        clock: ServerClock,
        new_shard: Callable[[int, Callable[[], None]], Shard],
        *,
        lease_s: float = DEFAULT_LEASE_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._subjects = subjects
        self._clock = clock
        self._new_shard = new_shard
        self._lease_s = lease_s
        self._now = monotonic
        self._table = LeaseTable(broker, subjects, member, lease_s=lease_s)
        self._owned: dict[int, _Owned] = {}
        self._kick = trio.Event()
        self._beaten_at = -lease_s
        self._answered_at = monotonic()
        self._is_leaving = False
        self._reported_skew = False
        self._has_compared_clocks = False
        self._beat_window: tuple[float, float] | None = None

    @property
    def shards(self) -> dict[int, Shard]:
        """The shards owned now, by number."""
        return {number: owned.shard for number, owned in self._owned.items()}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the leases until cancelled. Started after the first look, with the shards that were free."""
        async with trio.open_nursery() as nursery:
            await self._look(nursery)
            with trio.move_on_after(self._lease_s):
                for owned in list(self._owned.values()):
                    await owned.shard.usable.wait()
            task_status.started()
            while True:
                self._kick = trio.Event()
                with trio.move_on_after(self._lease_s / LOOKS_PER_LEASE):
                    await self._kick.wait()
                await self._look(nursery)

    async def leave(self) -> None:
        """Drain every shard, then release the leases, so that nobody has to wait for them."""
        self._is_leaving = True
        async with trio.open_nursery() as nursery:
            for owned in list(self._owned.values()):
                nursery.start_soon(owned.shard.drain)
        await self.release_all()

    async def release_all(self) -> None:
        """Release the leases as they are."""
        self._is_leaving = True
        for number, owned in list(self._owned.items()):
            owned.shard.suspend()
            try:
                await self._table.release(owned.lease)
            except (LeaseLost, BrokerError) as error:
                logger.info("shard %d: lease not released: %r", number, error)
        try:
            await self._table.leave()
        except BrokerError as error:
            logger.info("heartbeat not taken away: %r", error)

    # --- looking ------------------------------------------------------------------------------------------------------

    async def _look(self, nursery: trio.Nursery) -> None:
        self._suspend_late()
        try:
            await self._observe()
            now = self._now()
            if now - self._beaten_at >= self._lease_s / RENEWALS_PER_LEASE and not self._is_leaving:
                await self._table.beat(declines=self._declines)
                self._beaten_at = now
                self._beat_window = (now, self._now())
                if not self._has_compared_clocks:
                    # The first events of a shard taken before would be stamped by a clock that may be wrong, and the
                    # time of a run never goes back.
                    await self._observe()
            for number in range(self._subjects.shards):
                if number in self._owned:
                    await self._look_after(number, self._owned[number])
                elif not self._is_leaving and self._may_take(number):
                    await self._take(number, nursery)
        except BrokerError as error:
            logger.warning("leases cannot be looked after: %r", error)
            self._table.interrupted()
            self._suspend_late()
            self._give_up_after_silence()
            await self._wait_for_link()

    async def _observe(self) -> None:
        sent_at = self._now()
        await self._table.observe(sent_at)
        self._answered_at = self._now()
        self._table.settle_interruption(self._answered_at)
        if (stored_at := self._table.own_beat_time) is not None and self._beat_window is not None:
            self._report_skew(self._clock.observe(stored_at, *self._beat_window))
            self._has_compared_clocks = True

    def _report_skew(self, offset: float) -> None:
        is_large = abs(offset) > REPORT_SKEW_S
        if is_large and not self._reported_skew:
            logger.warning(
                "this machine's clock is %.1f s %s the NATS server's; timers follow the server's",
                abs(offset),
                "behind" if offset > 0 else "ahead of",
            )
        self._reported_skew = is_large

    @property
    def _declines(self) -> bool:
        return not self._has_compared_clocks or abs(self._clock.offset) > DECLINE_SKEW_S

    def _may_take(self, number: int) -> bool:
        if self._declines:
            return False
        now = self._now()
        return self._table.is_available(number, now) and self._table.is_preferred(number, now)

    async def _take(self, number: int, nursery: trio.Nursery) -> None:
        asked_at = self._now()
        try:
            lease = await self._table.take(number)
        except LeaseLost:
            return
        shard = self._new_shard(number, self._reader_lost(number))
        owned = _Owned(lease, shard, asked_at, trio.CancelScope())
        self._owned[number] = owned
        nursery.start_soon(self._run_shard, number, owned)

    def _reader_lost(self, number: int) -> Callable[[], None]:
        def lost() -> None:
            if (owned := self._owned.get(number)) is not None:
                owned.needs_epoch = True
                self._kick.set()

        return lost

    async def _run_shard(self, number: int, owned: _Owned) -> None:
        try:
            with owned.scope:
                await owned.shard.run(owned.lease.epoch)
        finally:
            owned.ended.set()
            if self._owned.get(number) is owned:
                del self._owned[number]

    async def _look_after(self, number: int, owned: _Owned) -> None:
        now = self._now()
        try:
            if owned.needs_epoch or owned.is_suspended:
                owned.lease = await self._table.take(number) if self._still_ours(owned) else await self._lost(number)
                owned.renewed_at = now
                owned.is_suspended = owned.needs_epoch = False
                owned.shard.resume(owned.lease.epoch)
            elif now - owned.renewed_at >= self._lease_s / RENEWALS_PER_LEASE:
                owned.lease = await self._table.renew(owned.lease)
                owned.renewed_at = now
        except LeaseLost:
            logger.warning("shard %d is owned by another supervisor now", number)
            self._abandon(number, owned)
            return
        if self._is_leaving:
            return
        if owned.shard.is_quiescing:
            if owned.shard.is_quiet:
                await self._give_away(number, owned)
        elif self._table.is_preferred(number, now):
            owned.unwanted_since = None
        elif owned.shard.is_quiet:
            await self._give_away(number, owned)
        elif owned.unwanted_since is None:
            owned.unwanted_since = now
        elif now - owned.unwanted_since >= HAND_OVER_AFTER_S:
            owned.shard.quiesce()

    def _still_ours(self, owned: _Owned) -> bool:
        return self._table.is_own(owned.lease.shard)

    async def _lost(self, number: int) -> Lease:
        raise LeaseLost(f"shard {number}")

    async def _give_away(self, number: int, owned: _Owned) -> None:
        """Another member is to have this shard, and nothing of it runs here: hand it over without making it wait."""
        logger.info("shard %d goes to another supervisor", number)
        self._abandon(number, owned)
        try:
            await self._table.release(owned.lease)
        except LeaseLost:
            return

    def _abandon(self, number: int, owned: _Owned) -> None:
        owned.shard.abandon()
        del self._owned[number]

    def _suspend_late(self) -> None:
        """A lease that could not be renewed in time may be somebody else's by now."""
        for number, owned in self._owned.items():
            if not owned.is_suspended and self._now() - owned.renewed_at >= self._lease_s:
                logger.warning("shard %d: lease not renewed in time; suspended", number)
                owned.is_suspended = True
                owned.shard.suspend()

    def _give_up_after_silence(self) -> None:
        if self._now() - self._answered_at < GIVE_UP_S:
            return
        for number, owned in list(self._owned.items()):
            logger.warning("shard %d: no link for %d s; given up", number, GIVE_UP_S)
            self._abandon(number, owned)

    async def _wait_for_link(self) -> None:
        link = self._broker.link
        if not link.up:
            with trio.move_on_after(self._lease_s):
                await link.changed(link.generation)
