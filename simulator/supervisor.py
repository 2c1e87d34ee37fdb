"""The part of a supervisor that is simulated: the production leases, shards and owners over a broker and pools."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.ports.children import ActivityPool, ReplayPool
from durablefuture_trio.protocol.lease import Member
from durablefuture_trio.protocol.namespace import establish_namespace
from durablefuture_trio.supervisor._clock import ServerClock
from durablefuture_trio.supervisor._ownership import Ownership
from durablefuture_trio.supervisor._shard import Shard
from durablefuture_trio.supervisor._verifier import Verifiers

NAMESPACE = "test"


def is_paranoid(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether simulated supervisors are to be in paranoid mode: ``PARANOID=1`` in the environment."""
    return environ.get("PARANOID", "") not in ("", "0")


@dataclass(frozen=True)
class Parts:
    """What supervisors are made of; the table of fixes puts broken parts in."""

    shard: Callable[..., Shard] = Shard
    ownership: Callable[..., Ownership] = Ownership
    broker: Callable[[Broker], Broker] = lambda broker: broker


async def open_ownership(
    broker: Broker,
    *,
    member: Member,
    wall: Callable[[], float],
    replay: ReplayPool,
    activities: ActivityPool,
    shards: int,
    verifiers: Verifiers | None = None,
    shard_type: Callable[..., Shard] = Shard,
    ownership_type: Callable[..., Ownership] = Ownership,
    **options: Any,
) -> Ownership:
    """What `durablefuture_trio.app.serve` makes of its settings; still to be `run`.

    Args:
        wall: the machine's wall clock, which may be wrong.
        shard_type, ownership_type: what makes the parts; a test may put in a broken one.
        options: further arguments of `Ownership`.
    """
    clock = ServerClock(wall=wall, monotonic=trio.current_time)
    subjects = await establish_namespace(broker, NAMESPACE, shards=shards)

    def new_shard(number: int, on_reader_lost: Callable[[], None]) -> Shard:
        return shard_type(
            number,
            broker=broker,
            subjects=subjects,
            replay=replay,
            activities=activities,
            clock=clock,
            on_reader_lost=on_reader_lost,
            **({} if verifiers is None else {"verifiers": verifiers}),
        )

    return ownership_type(broker, subjects, member, clock, new_shard, monotonic=trio.current_time, **options)
