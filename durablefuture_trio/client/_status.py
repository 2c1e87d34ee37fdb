"""How a namespace is doing: who owns its shards, and how much is waiting."""

from __future__ import annotations

import msgspec

from durablefuture_trio.ports.broker import Broker, Stored
from durablefuture_trio.protocol.lease import LeaseRecord, MemberRecord
from durablefuture_trio.protocol.subjects import Subjects


class ShardStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One shard.

    Attributes:
        owner: the supervisor that owns it; empty: none does.
        epoch: how often it has changed hands.
        renewed_at: when the owner renewed its lease last, Unix seconds of the server.
        inbox: messages in its inbox: requests not decided yet, armed timers, and one for each run that is active.
    """

    shard: int
    owner: str
    epoch: int
    renewed_at: float | None
    inbox: int


class MemberStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One supervisor: its name, and when it gave its last sign of life (Unix seconds of the server)."""

    name: str
    seen_at: float


class NamespaceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace.

    Attributes:
        tasks: activity tasks that wait for a supervisor with their queue.
        dead_letters: messages that could not be read.
    """

    namespace: str
    server_version: str
    shards: tuple[ShardStatus, ...]
    members: tuple[MemberStatus, ...]
    tasks: int
    dead_letters: int


async def namespace_status(broker: Broker, subjects: Subjects) -> NamespaceStatus:
    """Ask the server.

    Raises:
        BrokerError: as the server says.
    """
    leases = [subjects.lease(shard) for shard in range(subjects.shards)]
    found = {
        stored.subject: stored for stored in await broker.many(subjects.lease_stream, [*leases, subjects.member_filter])
    }
    shards = [await _shard(broker, subjects, shard, found.pop(lease, None)) for shard, lease in enumerate(leases)]
    return NamespaceStatus(
        namespace=subjects.namespace,
        server_version=broker.limits.server_version,
        shards=tuple(shards),
        members=tuple(_member(found[subject]) for subject in sorted(found)),
        tasks=await _messages(broker, subjects.tasks_stream),
        dead_letters=await _messages(broker, subjects.dead_stream),
    )


async def _shard(broker: Broker, subjects: Subjects, shard: int, stored: Stored | None) -> ShardStatus:
    record = LeaseRecord(epoch=0, owner="") if stored is None else msgspec.json.decode(stored.body, type=LeaseRecord)
    return ShardStatus(
        shard=shard,
        owner=record.owner,
        epoch=record.epoch,
        renewed_at=None if stored is None else stored.time,
        inbox=await _messages(broker, subjects.inbox_stream(shard)),
    )


def _member(stored: Stored) -> MemberStatus:
    return MemberStatus(name=msgspec.json.decode(stored.body, type=MemberRecord).name, seen_at=stored.time)


async def _messages(broker: Broker, stream: str) -> int:
    state = await broker.stream_state(stream)
    return 0 if state is None else state.messages
