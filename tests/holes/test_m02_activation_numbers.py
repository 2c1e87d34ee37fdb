"""A sandbox that is ahead of the history says so, instead of applying the next stimulus on top."""

from __future__ import annotations

import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring import activity, workflow
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.engine.commands import CompleteWorkflow
from durablefuture_trio.history.commit import Commit, encode_commit
from durablefuture_trio.history.events import ActivityCompleted, ActivityScheduled, WorkflowStarted
from durablefuture_trio.history.options import ActivityOptionsRecord
from durablefuture_trio.ports.frames import Activate, Activated, Loaded, LoadRun, Missing, SandboxUp
from durablefuture_trio.sandbox._host import ReplayHost


@activity
async def answer(number: int) -> int:
    return number


@workflow
async def order_of_arrival() -> list[int]:
    """Two calls beside each other."""
    arrived: list[int] = []

    async def one(number: int) -> None:
        arrived.append(await answer(number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 1)
        nursery.start_soon(one, 2)
    return arrived


class CarelessHost(ReplayHost):
    """Applies whatever comes to whatever it has."""

    def _activate(self, frame: Activate) -> SandboxUp:
        run = self._runs.get(frame.run_id)
        if run is not None:
            run.activations = frame.activation - 1
        return super()._activate(frame)


STARTED = WorkflowStarted(
    id=1, at=1.0, workflow_id="w", run_id="r", workflow="order_of_arrival", arguments=codec.encode_arguments(())
)
CALLS = tuple(
    ActivityScheduled(
        id=number + 1,
        at=1.0,
        activity_id=number,
        name="answer",
        arguments=codec.encode_arguments((number,)),
        options=ActivityOptionsRecord(),
    )
    for number in (1, 2)
)


def completed(event_id: int, call: int) -> ActivityCompleted:
    return ActivityCompleted(
        id=event_id, at=float(event_id), activity_id=call, attempt=1, result=codec.encode_value(call)
    )


def ahead_by_one(host: ReplayHost) -> SandboxUp:
    """The first call's answer was applied, but its commit lost to another owner's, who has recorded the second's."""
    host.handle(Activate(exchange=1, run_id="r", activation=1, stimulus=STARTED))
    host.handle(Activate(exchange=2, run_id="r", activation=2, stimulus=completed(4, 1)))
    [answered] = host.handle(Activate(exchange=3, run_id="r", activation=2, stimulus=completed(4, 2)))
    return answered


def test_m02_a_run_that_is_ahead_of_the_history_is_dropped_and_replayed() -> None:
    host = ReplayHost(Registry.of([order_of_arrival, answer]).workflows)
    assert isinstance(ahead_by_one(host), Missing)
    commit = Commit(
        run_id="r", commit_id="1", first_n=1, finished=True, consumed=0, events=(STARTED, *CALLS, completed(4, 2))
    )
    [loaded] = host.handle(LoadRun(exchange=4, run_id="r", commits=(encode_commit(commit),), first=True, last=True))
    assert isinstance(loaded, Loaded)
    [done] = host.handle(Activate(exchange=5, run_id="r", activation=3, stimulus=completed(5, 1)))
    assert said(done) == [2, 1]
    host.close()


def test_m02_without_the_number_the_run_ends_with_a_result_that_was_never_recorded() -> None:
    host = CarelessHost(Registry.of([order_of_arrival, answer]).workflows)
    assert said(ahead_by_one(host)) == [1, 2]
    host.close()


def said(answered: SandboxUp) -> object:
    """What the workflow returned."""
    assert isinstance(answered, Activated)
    [end] = [command for command in answered.commands if isinstance(command, CompleteWorkflow)]
    return codec.decode_value(end.result, list[int])
