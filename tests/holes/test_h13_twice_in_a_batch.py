"""A message that is part of a commit under way is delivered again."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from durablefuture_trio import codec
from durablefuture_trio.engine.requests import Inbound, StartRequest
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.memory_broker import AppendFate
from tests._support.holes import event_names, one_long_step, stage


class OwnerThatDecidesOnDelivery(RunOwner):
    """Looks for duplicates when a message is delivered, and in the committed history only."""

    def __init__(self, *args: object, **others: object) -> None:
        super().__init__(*args, **others)  # type: ignore[arg-type]  # passed on as they are
        self._new: set[int] = set()

    def delivered(self, message: Inbound, now: float) -> None:
        if self.state is None or message.seq > self.state.consumed:
            self._new.add(message.seq)
        super().delivered(message, now)

    def _is_in_work(self, seq: int) -> bool:
        return False

    def _is_decided(self, message: Inbound) -> bool:
        return message.seq not in self._new


async def redelivered_while_it_is_committed(owner: type[RunOwner]) -> tuple[int, list[str]]:
    """A start that replaces the open run is in a commit whose publish stalls; the inbox is read again from its start.
    Returns how many runs there were, and the events of the last one."""
    async with stage(owner=owner) as scene:
        await scene.start("A")
        first = await scene.client.start(one_long_step, 1000.0, id="w")
        await scene.until(5)
        scene.faults.next_append(AppendFate(lands_after=4.5), "df.test.h.0.*.2")
        request = StartRequest(
            workflow_id="w",
            workflow=one_long_step.name,
            arguments=codec.encode_arguments((1000.0,)),
            conflict="terminate_existing",
        )
        await scene.put(request)
        await scene.until(6)
        supervisor = scene.cluster.supervisors["A"]
        assert supervisor.ownership is not None
        supervisor.ownership.shards[0]._reading.cancel()  # as after a gap: a new epoch, from the start of the inbox
        await scene.until(60)
        assert await event_names(first) == ["WorkflowStarted", "ActivityScheduled", "WorkflowTerminated"]
        runs = {witness.key.run_id for witness in scene.cluster.world.witnesses}
        await trio.sleep(1)
        return len(runs), await event_names(scene.client.handle("w"))


async def test_h13_a_message_delivered_again_during_its_commit_is_applied_once(autojump_clock: MockClock) -> None:
    runs, events = await redelivered_while_it_is_committed(RunOwner)
    assert runs == 2
    assert events == ["WorkflowStarted", "ActivityScheduled"]


async def test_h13_looking_in_the_committed_history_only_applies_it_twice(autojump_clock: MockClock) -> None:
    runs, _ = await redelivered_while_it_is_committed(OwnerThatDecidesOnDelivery)
    assert runs == 3
