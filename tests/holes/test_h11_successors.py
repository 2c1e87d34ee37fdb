"""The end of one run and the beginning of the next are one commit."""

from __future__ import annotations

from trio.testing import MockClock

from durablefuture_trio import codec
from durablefuture_trio.engine.requests import Inbound, StartRequest
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.memory_broker import AppendFate
from tests._support.holes import one_long_step, one_step, stage


class OwnerWithTwoCommits(RunOwner):
    """Ends the run in the way in a commit of its own, and starts the next one after that."""

    _pending: tuple[Inbound, StartRequest] | None = None

    def _take_start(self, message: Inbound, request: StartRequest, now: float) -> bool:
        state = self.state
        if state is None or state.terminal is not None or request.conflict != "terminate_existing":
            return super()._take_start(message, request, now)
        self._inputs.popleft()
        self._begin_input(message)
        self._record(self._terminated(state, "replaced", "", now))
        self._pending = (message, request)
        return True

    def committed(self, now: float) -> None:
        super().committed(now)
        if self._pending is not None:
            (message, request), self._pending = self._pending, None
            self._start(message, request, now)
            self._advance(now)


async def dies_between(owner: type[RunOwner]) -> str:
    """A run is replaced by a new one; the supervisor dies before its second commit about that."""
    async with stage(owner=owner) as scene:
        await scene.start("A")
        await scene.client.start(one_long_step, 1000.0, id="w")
        await scene.until(5)
        # The replacing commit is number 2; what follows it never gets out.
        scene.faults.next_append(AppendFate(lands_after=None), "df.test.h.0.*.3", count=100)
        await scene.put(
            StartRequest(
                workflow_id="w",
                workflow=one_step.name,
                arguments=codec.encode_arguments(()),
                conflict="terminate_existing",
            )
        )
        await scene.until(8)
        await scene.cluster.supervisors["A"].kill()
        scene.faults._appends._waiting.clear()
        await scene.start("B")
        await scene.until(60)
        return (await scene.client.handle("w").describe()).status


async def test_h11d_a_run_that_is_replaced_has_its_successor_whatever_dies(autojump_clock: MockClock) -> None:
    assert await dies_between(RunOwner) == "completed"


async def test_h11d_with_two_commits_a_death_in_between_leaves_no_successor(autojump_clock: MockClock) -> None:
    assert await dies_between(OwnerWithTwoCommits) == "terminated"
