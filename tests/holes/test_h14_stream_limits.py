"""A stream with a limit drops acknowledged messages silently: such a stream is never written to."""

from __future__ import annotations

from typing import Any

import pytest

from durablefuture_trio.errors import NamespaceError
from durablefuture_trio.nats_bridge import ConnectOptions, NatsBroker, open_broker
from durablefuture_trio.nats_bridge.broker import stream_config
from durablefuture_trio.ports.broker import Append
from durablefuture_trio.protocol.namespace import establish_namespace
from durablefuture_trio.protocol.subjects import Subjects, lease_stream_spec, stream_specs
from tests._support.nats_server import NatsServer


async def make_streams(broker: NatsBroker, subjects: Subjects, limits: dict[str, Any]) -> None:
    """The streams of a namespace, the inbox with limits."""
    for spec in (lease_stream_spec("test"), *stream_specs(subjects)):
        changes = limits if spec.name == subjects.inbox_stream(0) else {}
        answer = await broker._api.create_stream(spec.name, stream_config(spec) | changes)
        assert answer.error is None, answer.error


async def acknowledged_and_kept(broker: NatsBroker, subjects: Subjects) -> tuple[int, int]:
    """Publish ten starts; how many were acknowledged, and how many are there."""
    acknowledged = 0
    for number in range(10):
        await broker.append(Append(subject=subjects.inbox(f"w{number}", "start"), body=b"start"))
        acknowledged += 1
    state = await broker.stream_state(subjects.inbox_stream(0))
    assert state is not None
    return acknowledged, state.messages


async def test_h14_a_namespace_keeps_every_acknowledged_start(nats: NatsServer) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
        subjects = await establish_namespace(broker, "test", shards=1)
        assert await acknowledged_and_kept(broker, subjects) == (10, 10)


async def test_h14_with_a_limit_on_the_inbox_acknowledged_starts_are_gone(nats: NatsServer) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
        subjects = Subjects("test", 1)
        await make_streams(broker, subjects, {"max_msgs": 5})
        assert await acknowledged_and_kept(broker, subjects) == (10, 5)


@pytest.mark.parametrize("limit", [{"max_msgs": 5}, {"max_bytes": 1000}, {"max_age": 60_000_000_000}])
async def test_h14_a_namespace_with_such_a_stream_is_refused_with_its_name(
    nats: NatsServer, limit: dict[str, Any]
) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
        await make_streams(broker, Subjects("test", 1), limit)
        with pytest.raises(NamespaceError, match=rf"DF_test_W0.*\n.*{next(iter(limit))}: wanted"):
            await establish_namespace(broker, "test", shards=1)
