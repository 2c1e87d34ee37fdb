"""Runs that keep an anchor each must not stop the shard."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.supervisor._shard import Shard
from tests._support.holes import BrokerProxy, one_long_step, one_step, result_within, stage


class CappedBroker(BrokerProxy):
    """Consumers with a limit of unacknowledged deliveries, as the server has it by default (1,000; here fewer)."""

    def open_reader(self, *args: Any, max_ack_pending: int, **others: Any) -> Any:
        return self.broker.open_reader(*args, max_ack_pending=20, **others)


class CappedShard(Shard):
    def __init__(self, number: int, *, broker: Broker, **others: Any) -> None:
        super().__init__(number, broker=CappedBroker(broker), **others)  # type: ignore[arg-type]  # stands in for one


async def many_long_steps(shard: type[Shard]) -> tuple[object, bool]:
    """Twenty runs with long local activities, then a short one, and a terminate."""
    async with stage(shard=shard) as scene:
        await scene.start("A")
        handles = [await scene.client.start(one_long_step, 500.0, id=f"w{number}") for number in range(20)]
        short = None
        with trio.move_on_after(60):
            short = await scene.client.run(one_step, id="short")
        with trio.move_on_after(60) as waited:
            await handles[0].terminate()
        assert [await result_within(handle, 2000) for handle in handles[1:]] == ["done"] * 19
        return short, not waited.cancelled_caught


async def test_h07_anchors_hold_nobody_up(autojump_clock: MockClock) -> None:
    assert await many_long_steps(Shard) == ("done", True)


async def test_h07_with_a_limit_of_unacknowledged_messages_the_shard_stands_still(autojump_clock: MockClock) -> None:
    assert await many_long_steps(CappedShard) == (None, False)
