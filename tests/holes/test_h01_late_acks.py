"""A stale owner's acknowledgement must not reach the message that anchors the run at the next owner."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.memory_broker import AckFate
from durablefuture_trio.ports.broker import Append
from durablefuture_trio.protocol.inbox import Inbox, consumer_name, open_inbox
from durablefuture_trio.supervisor._shard import Shard
from tests._support.broker_servers import until
from tests._support.holes import result_within, sleeps_then_steps, stage
from tests.holes.conftest import Namespace


def without_epoch(epoch: int) -> str:
    """One name for all epochs."""
    return "own"


class ShardWithoutEpoch(Shard):
    def _open_inbox(self, epoch: int) -> AbstractAsyncContextManager[Inbox]:
        return open_inbox(self._broker, self._subjects, self.number, epoch, name_of=without_epoch)


async def anchor_and_late_ack(shard: type[Shard]) -> object:
    """A acknowledges the start, and the acknowledgement takes 85 s. Meanwhile B owns the run, keeps that very start as
    its anchor, and dies."""
    async with stage(shard=shard) as scene:
        scene.faults.next_ack(AckFate(lands_after=85), "df.test.w.0.*.start")
        await scene.start("A")
        handle = await scene.client.start(sleeps_then_steps, 60.0, 100.0, id="w")
        await scene.until(58)
        await scene.takeover("A", "B")
        await scene.until(90)
        await scene.takeover("B", "C")
        return await result_within(handle, 1000)


async def test_h01_a_late_ack_of_a_dead_owner_leaves_the_anchor(autojump_clock: MockClock) -> None:
    assert await anchor_and_late_ack(Shard) == "done"


async def test_h01_with_one_consumer_name_for_all_owners_the_run_never_wakes(autojump_clock: MockClock) -> None:
    assert await anchor_and_late_ack(ShardWithoutEpoch) is None


@pytest.mark.parametrize(("name_of", "is_left"), [(consumer_name, True), (without_epoch, False)])
async def test_h01_an_ack_of_an_older_epoch_reaches_a_consumer_of_the_same_name_only(
    namespace: Namespace, name_of: Callable[[int], str], is_left: bool
) -> None:
    a, b, subjects = namespace
    stream = subjects.inbox_stream(0)
    with trio.fail_after(20):
        await a.append(Append(subject=subjects.inbox("w", "start"), body=b"m1"))
        async with open_inbox(a, subjects, 0, 1, name_of=name_of) as before:
            old = (await before.receive())[0]
            async with open_inbox(b, subjects, 0, 2, name_of=name_of) as after:
                assert (await after.receive())[0].body == b"m1"
                before.ack(old)
                # Sent behind it on the same connection: once it is stored, the acknowledgement has been seen.
                second = await a.append(Append(subject=subjects.inbox("v", "start"), body=b"m2"))
                delivery = (await after.receive())[0]
                assert delivery.seq == second
                after.ack(delivery)

                async def second_is_gone() -> bool:
                    return await b.last(stream, subjects.inbox("v", "start"), confirmed=True) is None

                await until(second_is_gone)
                anchor = await b.last(stream, subjects.inbox("w", "start"), confirmed=True)
                assert (anchor is not None) is is_left
