"""One request starts at most one run, however often it is sent, delivered, refused or forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.engine.requests import Inbound, StartRequest
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.errors import WorkflowAlreadyStartedError
from durablefuture_trio.history.state import RunState
from durablefuture_trio.memory_broker import AckFate
from durablefuture_trio.ports.broker import Append, AppendOutcome, Broker
from tests._support.holes import BrokerProxy, Stage, one_long_step, one_step, stage


class OwnerWithoutRequestIds(RunOwner):
    """Remembers no request."""

    def _take_start(self, message: Inbound, request: StartRequest, now: float) -> bool:
        if self.state is not None:
            self.state.requests.clear()
        return super()._take_start(message, request, now)


class OwnerWithoutMark(OwnerWithoutRequestIds):
    """Looks for a message in the current run only, and finds none."""

    def _is_decided(self, message: Inbound) -> bool:
        return False


def charges(scene: Stage) -> int:
    """How many activities ran."""
    return len(scene.cluster.world.witnesses)


# --- a: the same request again, long after -------------------------------------------------------------------------


async def sent_again_after_five_minutes(owner: type[RunOwner]) -> tuple[bool, int]:
    """The client's acknowledgement is lost, it sends the start again when its link is back, five minutes later."""
    async with stage(owner=owner) as scene:
        await scene.start("A")
        first = await scene.client.start(one_step, id="card", request_id="q")
        assert await first.result() == "done"
        await scene.until(300)
        again = await scene.client.start(one_step, id="card", request_id="q")
        assert await again.result() == "done"
        return again.run_id == first.run_id, charges(scene)


async def test_h10a_a_repeated_request_is_answered_with_its_run(autojump_clock: MockClock) -> None:
    assert await sent_again_after_five_minutes(RunOwner) == (True, 1)


async def test_h10a_without_request_ids_a_repetition_charges_twice(autojump_clock: MockClock) -> None:
    assert await sent_again_after_five_minutes(OwnerWithoutRequestIds) == (False, 2)


# --- b: the same message again -------------------------------------------------------------------------------------


async def delivered_again_after_the_next_run(owner: type[RunOwner]) -> int:
    """Two runs have come and gone; the server is killed and has forgotten the acknowledgements of both starts."""
    async with stage(owner=owner) as scene:
        await scene.start("A")
        for _ in range(2):
            assert await scene.client.run(one_step, id="card") == "done"
        await scene.until(10)
        assert scene.waiting() == 0
        scene.server.kill()
        await trio.sleep(0.5)
        scene.server.start(forget_acks=2)
        await scene.until(60)
        assert scene.waiting() == 0
        return charges(scene)


async def test_h10b_a_start_whose_acknowledgement_was_forgotten_starts_nothing(autojump_clock: MockClock) -> None:
    assert await delivered_again_after_the_next_run(RunOwner) == 2


async def test_h10b_without_the_mark_every_forgotten_start_runs_again(autojump_clock: MockClock) -> None:
    assert await delivered_again_after_the_next_run(OwnerWithoutMark) > 2


# --- c: refused, and delivered again -------------------------------------------------------------------------------


async def refused_and_delivered_again(owner: type[RunOwner]) -> int:
    """A start is refused because a run is open. Its acknowledgement is lost, the run completes, the server restarts."""
    async with stage(owner=owner) as scene:
        await scene.start("A")
        scene.faults.next_ack(AckFate(lands_after=None), "df.test.w.0.*.start", count=2)
        handle = await scene.client.start(one_long_step, 5.0, id="card")
        with pytest.raises(WorkflowAlreadyStartedError):
            await scene.client.start(one_long_step, 5.0, id="card")
        assert await handle.result() == "done"
        await scene.until(10)
        scene.server.restart()
        await scene.until(60)
        return charges(scene)


async def test_h10c_a_refused_start_never_runs(autojump_clock: MockClock) -> None:
    assert await refused_and_delivered_again(RunOwner) == 1


async def test_h10c_without_mark_and_request_ids_a_refused_start_runs(autojump_clock: MockClock) -> None:
    assert await refused_and_delivered_again(OwnerWithoutMark) == 2


class OwnerThatForgetsRefusals(RunOwner):
    """Leaves the starts that wait when a run closes to be decided afterwards."""

    def _refuse_waiting_starts(self, state: RunState, before_seq: float = 0) -> None:
        """Nothing."""


async def refused_by_an_owner_that_dies(owner: type[RunOwner]) -> int:
    """A refuses a start and dies before anything of that is in the history. At B the open run comes to its deadline
    before the start is looked at again."""
    async with stage(owner=owner) as scene:
        await scene.start("A")
        scene.faults.next_ack(AckFate(lands_after=None), "df.test.w.0.*.start", count=2)
        await scene.client.start(one_long_step, 1000.0, id="card", execution_timeout=20.0)
        await scene.until(15)
        with pytest.raises(WorkflowAlreadyStartedError):
            await scene.client.start(one_step, id="card")
        await scene.cluster.supervisors["A"].kill()
        await scene.until(25)
        await scene.start("B")
        await scene.until(60)
        return sum(witness.name == "quick" for witness in scene.cluster.world.witnesses)


async def test_h10c_a_start_that_a_dead_owner_has_refused_never_runs(autojump_clock: MockClock) -> None:
    assert await refused_by_an_owner_that_dies(RunOwner) == 0


async def test_h10c_deciding_waiting_starts_after_the_close_runs_a_refused_one(autojump_clock: MockClock) -> None:
    assert await refused_by_an_owner_that_dies(OwnerThatForgetsRefusals) == 1


# --- d: what identifies a request ----------------------------------------------------------------------------------


class NamingBroker(BrokerProxy):
    """Publishes starts under the workflow id as their message id."""

    def append_soon(self, append: Append, on_outcome: Callable[[AppendOutcome], None]) -> None:
        if append.subject.endswith(".start"):
            append = msgspec.structs.replace(append, message_id=append.subject.split(".")[-2])
        self.broker.append_soon(append, on_outcome)


async def started_twice_within_two_minutes(wrap: Callable[[Broker], Any]) -> object:
    """A run completes, and the same id is legitimately started again at once."""
    async with stage() as scene:
        requests = scene.client._core.requests
        requests._broker = wrap(requests._broker)
        await scene.start("A")
        assert await scene.client.run(one_step, id="card") == "done"
        with trio.move_on_after(60):
            return await scene.client.run(one_step, id="card")
        return None


async def test_h10d_a_second_start_of_an_id_is_a_request_of_its_own(autojump_clock: MockClock) -> None:
    assert await started_twice_within_two_minutes(lambda broker: broker) == "done"


async def test_h10d_with_the_workflow_id_as_message_id_the_second_start_is_dropped(autojump_clock: MockClock) -> None:
    assert await started_twice_within_two_minutes(NamingBroker) is None
