"""The language over real processes: nats-server, supervisor and children, with one SIGKILL of the supervisor each."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from durablefuture_trio.client import Client
from durablefuture_trio.errors import RequestFailedError, WorkflowCancelledError
from durablefuture_trio.history.events import (
    ActivityCompleted,
    CancelRequested,
    ChildCompleted,
    ChildInitiated,
    ContinuedAsNew,
    SignalReceived,
    UpdateCompleted,
    WorkflowStarted,
)
from tests._support.installation import Installation
from tests.language import real_app as app

DEADLINE_S = 60.0


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """A supervisor's directory; what is started in it ends with the test."""
    installed = Installation(tmp_path)
    installed.configure(
        """
        [supervisor]
        modules = ["tests.language.real_app"]
        [nats.embedded]
        data_dir = "data"
        [[activity_pool]]
        processes = 1
        grace_period = 0.3
        """
    )
    try:
        yield installed
    finally:
        installed.end_now()


@pytest.fixture
async def client(installation: Installation) -> AsyncIterator[Client]:
    """A client that lives through the death of the supervisor and its server."""
    await installation.start()
    async with installation.client() as client:
        with trio.fail_after(DEADLINE_S):
            yield client


async def kill_and_restart(installation: Installation) -> None:
    await installation.running.kill()
    await installation.start()


async def kinds(client: Client, workflow_id: str) -> Counter[type]:
    return Counter(type(item.event) for item in await client.handle(workflow_id).history())


async def test_signals_and_queries_before_and_after_a_kill(installation: Installation, client: Client) -> None:
    handle = await client.start(app.counter, id="w")
    for number in (1, 2, 3):
        await handle.signal(app.add, number)
    assert await handle.query(app.current) == 6
    await kill_and_restart(installation)
    assert await handle.query(app.current) == 6
    await handle.signal(app.add, 4)
    assert await handle.query(app.current) == 10
    await handle.signal(app.finish)
    assert await handle.result() == 10
    assert await handle.query(app.current) == 10
    assert (await kinds(client, "w"))[SignalReceived] == 5


async def test_signals_that_are_sent_while_the_supervisor_dies_are_each_taken_once_or_refused(
    installation: Installation, client: Client
) -> None:
    handle = await client.start(app.counter, id="w")
    acknowledged: list[int] = []

    async def send(number: int) -> None:
        await trio.sleep(number * 0.02)
        try:
            await handle.signal(app.add, number)
        except RequestFailedError:
            return
        acknowledged.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(1, 41):
            nursery.start_soon(send, number)
        await trio.sleep(0.4)
        await kill_and_restart(installation)
    await handle.signal(app.finish)
    assert await handle.result() == sum(acknowledged)


async def test_an_update_that_is_asked_for_while_the_supervisor_dies_is_carried_out_once(
    installation: Installation, client: Client
) -> None:
    handle = await client.start(app.counter, id="w", start_signal=(app.add, (3,)))
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await handle.update(app.multiply, 5, update_id="one"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await kill_and_restart(installation)
    assert answers == [15]
    assert await handle.update(app.multiply, 5, update_id="one") == 15
    await handle.signal(app.finish)
    assert await handle.result() == 15
    assert (await kinds(client, "w"))[UpdateCompleted] == 1


async def test_a_cancel_and_its_compensation_outlive_the_supervisor(installation: Installation, client: Client) -> None:
    handle = await client.start(app.careful, id="w")
    await handle.cancel("no longer needed")
    with trio.fail_after(DEADLINE_S / 2):
        while (await kinds(client, "w"))[ActivityCompleted] < 1:  # noqa: ASYNC110 - in other processes
            await trio.sleep(0.05)
    await kill_and_restart(installation)
    with pytest.raises(WorkflowCancelledError, match="no longer needed"):
        await handle.result()
    found = await kinds(client, "w")
    assert (found[CancelRequested], found[ActivityCompleted]) == (1, 2)


async def test_children_are_started_once_and_their_results_arrive_whoever_dies(
    installation: Installation, client: Client
) -> None:
    handle = await client.start(app.parent, 5, id="w")
    with trio.fail_after(DEADLINE_S / 2):
        while (await kinds(client, "w"))[ChildInitiated] < 5:  # noqa: ASYNC110 - in other processes
            await trio.sleep(0.02)
    await kill_and_restart(installation)
    assert await handle.result() == 20
    found = await kinds(client, "w")
    assert (found[ChildInitiated], found[ChildCompleted]) == (5, 5)
    listed = [entry async for entry in client.list()]
    assert Counter(entry.workflow for entry in listed) == {"child": 5, "parent": 1}


async def test_a_chain_of_runs_goes_on_and_carries_its_signals(installation: Installation, client: Client) -> None:
    handle = await client.start(app.chain, 8, 0, id="w")
    for number in (1, 2, 3):
        await handle.signal(app.add, number)
    await kill_and_restart(installation)
    await handle.signal(app.add, 4)
    assert await handle.result() == 10
    last = await kinds(client, "w")
    assert (last[WorkflowStarted], last[ContinuedAsNew]) == (1, 0)
