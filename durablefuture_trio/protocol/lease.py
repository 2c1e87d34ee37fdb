"""Shard leases: one record per shard, taken and renewed by compare-and-set. The epoch is a counter in it.

A lease is for liveness only: two owners at once may waste work, but the commit rule keeps the histories right. It
counts as expired when an observer has seen the same sequence for the lease time on its own monotonic clock, while its
own link answered; so neither a wrong clock nor a stalled server makes anybody's lease expire.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from math import ceil

import msgspec

from durablefuture_trio.ports.broker import Append, Broker, Conflict
from durablefuture_trio.protocol.subjects import Subjects

DEFAULT_LEASE_S = 5.0


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Who a supervisor is.

    Attributes:
        name: its slot in the namespace directory, e.g. ``"host-m0"``.
        token: random, kept beside the slot: a restarted supervisor of the same slot gets its leases back at once.
        incarnation: random, of this very process.
    """

    name: str
    token: str
    incarnation: str


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who owns a shard. ``owner`` empty: it was released."""

    epoch: int
    owner: str
    token: str = ""
    incarnation: str = ""


class MemberRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A member's heartbeat.

    Attributes:
        beat: only counts, so that each record differs from the one before.
        declines: it takes no shards (its clock is wrong, or not yet compared): they are spread over the others.
    """

    name: str
    incarnation: str
    beat: int
    declines: bool = False


class Lease(msgspec.Struct, frozen=True):
    """A lease held by this process: the record's sequence is what renewing it compares with."""

    shard: int
    epoch: int
    seq: int


class LeaseLost(Exception):
    """Somebody else has taken the lease."""


_lease_decoder = msgspec.json.Decoder(LeaseRecord)
_member_decoder = msgspec.json.Decoder(MemberRecord)


class _Seen(msgspec.Struct):
    seq: int
    since: float
    record: LeaseRecord | None = None
    declines: bool = False


class LeaseTable:
    """What one member sees of all leases of a namespace, and its own."""

    def __init__(self, broker: Broker, subjects: Subjects, member: Member, *, lease_s: float = DEFAULT_LEASE_S) -> None:
        self._broker = broker
        self._subjects = subjects
        self._member = member
        self._lease_s = lease_s
        self._shards: dict[int, _Seen] = {}
        self._members: dict[str, _Seen] = {}
        self._observed_at: float | None = None
        self._beat = 0
        self._beat_seq = 0
        self.own_beat_time: float | None = None
        """When the server stored this member's latest heartbeat, once that has been read back."""

    async def observe(self, now: float) -> None:
        """Read all leases and members. `now` is this process's monotonic clock, in seconds.

        Raises:
            BrokerError: as the server says; the observation then counts as interrupted.
        """
        if self._observed_at is not None and now - self._observed_at > self._lease_s / 2:
            self.interrupted()
        subjects = self._subjects
        wanted = [*(subjects.lease(shard) for shard in range(subjects.shards)), subjects.member_filter]
        found = await self._broker.many(subjects.lease_stream, wanted)
        self._observed_at = now
        for stored in found:
            kind, _, name = stored.subject.removeprefix(f"df.{subjects.namespace}.").partition(".")
            if kind == "m":
                seen = self._members.get(name)
                if seen is None or seen.seq != stored.seq:
                    declines = _member_decoder.decode(stored.body).declines
                    self._members[name] = _Seen(stored.seq, now, declines=declines)
                if stored.seq == self._beat_seq:
                    self.own_beat_time = stored.time
            else:
                shard = int(name)
                known = self._shards.get(shard)
                if known is None or known.seq != stored.seq:
                    self._shards[shard] = _Seen(stored.seq, now, _lease_decoder.decode(stored.body))

    def interrupted(self) -> None:
        """This side's link did not answer: nothing seen before proves that anybody else was silent."""
        self._observed_at = None
        for seen in (*self._shards.values(), *self._members.values()):
            seen.since = float("inf")

    def settle_interruption(self, now: float) -> None:
        """The link answers again: count from now."""
        for seen in (*self._shards.values(), *self._members.values()):
            seen.since = min(seen.since, now)

    def is_available(self, shard: int, now: float) -> bool:
        """Whether the shard may be taken: nobody's, released, expired, or this very slot's."""
        seen = self._shards.get(shard)
        if seen is None or seen.record is None or not seen.record.owner:
            return True
        return seen.record.token == self._member.token or now - seen.since >= self._lease_s

    def is_own(self, shard: int) -> bool:
        """Whether the record seen last was written by this very process (an answer may have been lost meanwhile)."""
        seen = self._shards.get(shard)
        return seen is not None and seen.record is not None and seen.record.incarnation == self._member.incarnation

    def live_members(self, now: float) -> set[str]:
        """Names (escaped) of the members whose heartbeat changes and who take shards; this one included."""
        own = self._subjects.member(self._member.name).rpartition(".")[2]
        return {own} | {
            name for name, seen in self._members.items() if now - seen.since < self._lease_s and not seen.declines
        }

    def is_preferred(self, shard: int, now: float) -> bool:
        """Whether the shard is to be this member's among the live ones (see `spread`)."""
        own = self._subjects.member(self._member.name).rpartition(".")[2]
        return spread(self._subjects.shards, frozenset(self.live_members(now)))[shard] == own

    async def take(self, shard: int) -> Lease:
        """Take the shard under the next epoch, replacing the record seen last.

        Raises:
            LeaseLost: somebody else was faster. BrokerError: as the server says.
        """
        try:
            return await self._take(shard)
        except LeaseLost:
            if not self.is_own(shard):
                raise
            # What stands there is a write of this very process that has landed after it was given up.
            return await self._take(shard)

    async def _take(self, shard: int) -> Lease:
        seen = self._shards.get(shard)
        epoch = 1 if seen is None or seen.record is None else seen.record.epoch + 1
        return await self._write(shard, self._own_record(epoch), 0 if seen is None else seen.seq)

    async def renew(self, lease: Lease) -> Lease:
        """Write the record again, so that observers see it change.

        Raises:
            LeaseLost: somebody else has taken it. BrokerError: as the server says.
        """
        return await self._write(lease.shard, self._own_record(lease.epoch), lease.seq)

    async def release(self, lease: Lease) -> None:
        """Give the shard back, so that the next owner need not wait.

        Raises:
            LeaseLost: somebody else has taken it. BrokerError: as the server says.
        """
        await self._write(lease.shard, LeaseRecord(epoch=lease.epoch, owner=""), lease.seq)

    async def beat(self, *, declines: bool = False) -> None:
        """Write this member's heartbeat.

        Args:
            declines: see `MemberRecord`.

        Raises:
            BrokerError: as the server says.
        """
        self._beat += 1
        self.own_beat_time = None
        member = self._member
        record = MemberRecord(name=member.name, incarnation=member.incarnation, beat=self._beat, declines=declines)
        append = Append(subject=self._subjects.member(self._member.name), body=msgspec.json.encode(record))
        self._beat_seq = await self._broker.append(append)

    async def leave(self) -> None:
        """Take this member's heartbeat away: its shards are spread over the others at once.

        Raises:
            BrokerError: as the server says.
        """
        await self._broker.purge(self._subjects.lease_stream, self._subjects.member(self._member.name))

    def _own_record(self, epoch: int) -> LeaseRecord:
        member = self._member
        return LeaseRecord(epoch=epoch, owner=member.name, token=member.token, incarnation=member.incarnation)

    async def _write(self, shard: int, record: LeaseRecord, expect: int) -> Lease:
        append = Append(subject=self._subjects.lease(shard), body=msgspec.json.encode(record), expect_last=expect)
        try:
            seq = await self._broker.append(append)
        except Conflict:
            standing = await self._broker.last(self._subjects.lease_stream, append.subject, confirmed=True)
            if standing is None:
                raise LeaseLost(f"shard {shard}") from None
            held = _lease_decoder.decode(standing.body)
            if held.incarnation == self._member.incarnation:
                self._remember(shard, standing.seq, held)
            if standing.body != append.body:
                raise LeaseLost(f"shard {shard}") from None
            # An earlier publish of these very bytes has landed after all.
            seq = standing.seq
        self._remember(shard, seq, record)
        return Lease(shard, record.epoch, seq)

    def _remember(self, shard: int, seq: int, record: LeaseRecord) -> None:
        known = self._shards.get(shard)
        self._shards[shard] = _Seen(seq, known.since if known is not None else 0.0, record)


@lru_cache(maxsize=16)
def spread(shards: int, members: frozenset[str]) -> tuple[str, ...]:
    """Which member each shard is to belong to: rendezvous hashing, with no member above its even share.

    All members that see the same others come to the same answer, and when one comes or goes few shards change hands.
    """
    share = ceil(shards / len(members))
    held: Counter[str] = Counter()
    owners: list[str] = []
    for shard in range(shards):
        # Not a CRC: those of names of one length differ by a constant, and one member would win every shard.
        weights = {name: blake2b(f"{shard}/{name}".encode(), digest_size=8).digest() for name in members}
        owners.append(max((name for name in members if held[name] < share), key=weights.__getitem__))
        held[owners[-1]] += 1
    return tuple(owners)
