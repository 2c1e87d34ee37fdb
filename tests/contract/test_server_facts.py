"""Facts of nats-server that the port cannot express, because the design keeps away from them; the reasons it does."""

from __future__ import annotations

import json
from typing import Any

from durablefuture_trio.nats_bridge.broker import NatsBroker
from durablefuture_trio.ports.broker import Append, Schedule
from tests._support.broker_servers import nats_under_test

FAR_FUTURE = 4_000_000_000.0


async def create_stream(broker: NatsBroker, name: str, **config: Any) -> dict[str, Any]:
    """The server's answer to a stream of our own making."""
    body = json.dumps({"name": name, "subjects": [f"{name.lower()}.>"], "allow_msg_schedules": True, **config}).encode()
    [(answer, _)] = await broker.link.request(f"$JS.API.STREAM.CREATE.{name}".encode(), body)
    found: dict[str, Any] = json.loads(answer)
    return found


async def test_h14_a_stream_with_schedules_cannot_refuse_new_messages_at_a_limit() -> None:
    async with nats_under_test() as server:
        broker = await server.connect("a")
        assert isinstance(broker, NatsBroker)
        answer = await create_stream(broker, "X", discard="new", max_msgs=5)
        assert answer["error"]["err_code"] == 10052


async def test_h14_with_discard_old_a_limit_drops_schedules_and_acknowledged_messages_in_silence() -> None:
    async with nats_under_test() as server:
        broker = await server.connect("a")
        assert isinstance(broker, NatsBroker)
        assert "error" not in await create_stream(broker, "X", discard="old", max_msgs=3, retention="workqueue")
        await broker.append(Append(subject="x.s.1", schedule=Schedule(due=FAR_FUTURE, target="x.w.1")))
        for n in range(4):
            await broker.append(Append(subject=f"x.w.start.{n}"))
        assert [stored.subject async for stored in scan_without_direct(broker)] == [
            "x.w.start.1",
            "x.w.start.2",
            "x.w.start.3",
        ]


async def scan_without_direct(broker: NatsBroker) -> Any:
    """The messages of X one by one: it does not allow direct reads."""
    for subject in ("x.s.1", *(f"x.w.start.{n}" for n in range(4))):
        stored = await broker.last("X", subject, confirmed=True)
        if stored is not None:
            yield stored
