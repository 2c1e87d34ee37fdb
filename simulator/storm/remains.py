"""What nobody should own any more when every run has closed."""

from __future__ import annotations

from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.protocol.subjects import Subjects


async def remains(broker: Broker, subjects: Subjects) -> list[str]:
    """What a namespace in which every run has closed still has stored or waiting; empty: nothing."""
    found: list[str] = []
    for stream in (*(subjects.inbox_stream(shard) for shard in range(subjects.shards)), subjects.tasks_stream):
        state = await broker.stream_state(stream)
        assert state is not None
        if state.messages:
            stored = [item async for item in broker.scan(stream, ">")]
            found.append(f"{stream}: {state.messages} messages: {[(item.seq, item.subject) for item in stored][:20]}")
        waiting = (item for item in await broker.consumers(stream) if item.ack_pending or item.pending)
        found.extend(f"{stream}: {consumer}" for consumer in waiting)
    for shard in range(subjects.shards):
        armed = broker.scan(subjects.inbox_stream(shard), subjects.schedule_filter(shard))
        found.extend([f"schedule armed: {stored.subject}" async for stored in armed])
    dead = await broker.stream_state(subjects.dead_stream)
    if dead is not None and dead.messages:
        found.append(f"{dead.messages} dead letters")
    return found
