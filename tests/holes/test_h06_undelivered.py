"""A message that the server counts as delivered and that never reached its owner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.memory_broker import DeliveryFate, MemoryReader
from durablefuture_trio.ports.broker import Append, ReaderLost
from durablefuture_trio.protocol.inbox import Inbox, consumer_name, open_inbox
from durablefuture_trio.supervisor._shard import Shard
from tests._support.broker_servers import ServerUnderTest, until_link
from tests._support.holes import result_within, retries_hourly, stage
from tests.holes.conftest import Namespace


class ShardWithoutContinuity(Shard):
    """Takes what comes, and never asks whether something is missing."""

    def _open_inbox(self, epoch: int) -> AbstractAsyncContextManager[Inbox]:
        return self._open(epoch)

    @asynccontextmanager
    async def _open(self, epoch: int) -> AsyncIterator[Inbox]:
        async with open_inbox(self._broker, self._subjects, self.number, epoch) as box:
            assert isinstance(box._reader, MemoryReader)
            box._reader._contiguous = False
            yield box


async def lost_on_the_way(shard: type[Shard]) -> float:
    """A result from elsewhere is delivered into the void. Returns when the run noticed."""
    async with stage(shard=shard) as scene:
        await scene.start("A")
        handle = await scene.client.start(retries_hourly, 0.0, id="w")
        await scene.until(3)
        scene.faults.next_delivery(DeliveryFate(arrives_after=None), "df.test.w.0.*.outcome")
        assert handle.run_id is not None
        await scene.report_success("w", handle.run_id)
        await result_within(handle, 2 * 3600)
        return scene.now


async def test_h06_a_gap_in_the_deliveries_means_a_new_epoch(autojump_clock: MockClock) -> None:
    assert await lost_on_the_way(Shard) < 20


async def test_h06_without_the_check_the_message_stays_out(autojump_clock: MockClock) -> None:
    assert await lost_on_the_way(ShardWithoutContinuity) > 3000


@pytest.mark.parametrize("is_new_epoch", [True, False])
async def test_h06_after_a_reconnect_only_a_new_epoch_gets_what_went_into_the_dying_socket(
    server: ServerUnderTest, namespace: Namespace, is_new_epoch: bool
) -> None:
    a, b, subjects = namespace
    stream = subjects.inbox_stream(0)
    with trio.fail_after(30):
        async with open_inbox(a, subjects, 0, 1) as box:
            server.deafen_link(a)
            await b.append(Append(subject=subjects.inbox("w", "outcome"), body=b"m2"))
            while (await b.consumers(stream))[0].ack_pending == 0:  # noqa: ASYNC110 - only the server knows
                await trio.sleep(0.01)
            server.drop_link(a)
            await until_link(a, up=False)
            server.mend_link(a)
            await until_link(a, up=True)
            with pytest.raises(ReaderLost):
                await box.receive()
        if is_new_epoch:
            async with open_inbox(a, subjects, 0, 2) as box:
                assert [delivery.body for delivery in await box.receive()] == [b"m2"]
            return
        async with a.open_reader(
            stream, consumer_name(1), subjects.inbox_filter(0), ack_wait=None, max_ack_pending=-1
        ) as reader:
            with trio.move_on_after(1.5) as waited:
                await reader.receive()
            assert waited.cancelled_caught, "the same consumer was expected to keep the message out"
