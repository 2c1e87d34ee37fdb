"""Defects that a system of this kind must never have; README.md says for each of twenty which test excludes it."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import trio

from durablefuture_trio.client import Client
from durablefuture_trio.codec import encode_value
from durablefuture_trio.engine.attempts import ActivityKey, AttemptCompleted
from durablefuture_trio.engine.requests import AttemptReport, Envelope, StartRequest, TimerFire
from durablefuture_trio.ports.broker import Append
from durablefuture_trio.protocol.envelope import encode_envelope, kind_of, request_headers
from tests._support import acceptance_app as app
from tests._support.acceptance_app import noted
from tests._support.installation import Installation, listed, until_noted
from tests._support.raw import raw_broker


async def test_many_workflows_share_a_store(client: Client) -> None:
    results: dict[int, str] = {}

    async def one(number: int) -> None:
        results[number] = await client.run(app.greeting, f"guest {number}")

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, number)
    assert results == {number: f"hello guest {number}" for number in range(200)}


async def test_a_fan_out_that_is_replayed_runs_nothing_again_and_swaps_nothing(
    installation: Installation, journal: Path
) -> None:
    installation.configure(
        """
        [supervisor]
        modules = ["tests._support.acceptance_app"]
        [nats.embedded]
        data_dir = "data"
        sync = "2m"
        """
    )
    process = await installation.start()
    async with installation.client() as client:
        handle = await client.start(app.fan_out_and_wait, 30, 2.0, str(journal))
        await until_noted(journal, 30)
        await listed(client, handle.id, lambda entry: entry.status == "running")
    await process.kill()
    await installation.start()
    async with installation.client() as client:
        with trio.fail_after(20):
            assert await client.handle(handle.id, app.fan_out_and_wait).result() == [2 * n for n in range(30)]
    assert sorted(noted(journal), key=int) == [str(number) for number in range(30)]


async def test_a_blocked_run_does_not_grow(client: Client, shared: Installation) -> None:
    handle = await client.start("never registered")
    await listed(client, handle.id, lambda entry: entry.status == "blocked")
    told = f"workflow {handle.id!r} is blocked"
    # Tried again after 1 s and after 2 s more.
    await trio.sleep(1.3)
    assert [item.type for item in await handle.history()] == ["WorkflowStarted"]
    assert shared.running.log.count(told) == 1, "a reason that is known is not told again"
    await handle.terminate("never will be")


async def test_each_retry_has_the_input_of_its_own_call(client: Client, journal: Path) -> None:
    assert await client.run(app.two_that_fail_first, str(journal)) == ["first", "second"]
    assert sorted(noted(journal)) == ["first 1", "first 2", "first 3", "second 1", "second 2", "second 3"]


async def test_no_step_waits_for_silence(client: Client) -> None:
    durations = []
    for _ in range(21):
        before = time.perf_counter()
        assert await client.run(app.many_steps, 3) == 3
        durations.append(time.perf_counter() - before)
    assert statistics.median(durations) < 0.4, "three steps in less than one wait of half a second"


async def test_what_is_done_leaves_nothing_in_the_way(shared: Installation, client: Client) -> None:
    async with raw_broker(shared) as (broker, subjects):
        inboxes = [subjects.inbox_stream(shard) for shard in range(subjects.shards)]

        async def waiting() -> int:
            states = [await broker.stream_state(stream) for stream in inboxes]
            return sum(state.messages for state in states if state is not None)

        for handle in [entry async for entry in client.list(status=("running", "blocked"))]:
            await client.handle(handle.workflow_id).terminate("left by another test")
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(client.run, app.greeting, f"guest {number}")
                # Parked: these arm schedules, which are stored beside the inbox.
                nursery.start_soon(client.run, app.sleeping, 1.1)
        with trio.fail_after(20):
            while await waiting():  # noqa: ASYNC110 - the server tells nobody
                await trio.sleep(0.05)
        for stream in inboxes:
            assert len(await broker.consumers(stream)) == 1
        tasks = await broker.stream_state(subjects.tasks_stream)
        assert tasks is not None
        assert tasks.messages == 0


async def test_late_and_duplicate_messages_do_not_wake_a_closed_run(
    shared: Installation, client: Client, journal: Path
) -> None:
    handle = await client.start(app.fan_out, 3, str(journal), id="closed", request_id="start of closed")
    assert await handle.result() == [0, 2, 4]
    before = await handle.history()
    assert handle.run_id is not None
    key = ActivityKey(handle.run_id, 1, 1)
    late: list[Envelope] = [
        AttemptReport(
            workflow_id="closed",
            worker="elsewhere",
            outcome=AttemptCompleted(key=key, started_at=time.time(), result=encode_value(99)),
        ),
        TimerFire(workflow_id="closed", run_id=handle.run_id, n=1, due=time.time()),
        # The start itself once more, as a client sends it that has not heard of the first one's fate.
        StartRequest(workflow_id="closed", workflow="fan_out", arguments=encode_value([3, str(journal)])),
    ]
    async with raw_broker(shared) as (broker, subjects):
        stream = subjects.inbox_stream(subjects.shard_of("closed"))
        for envelope in late:
            subject = subjects.inbox("closed", kind_of(envelope))
            headers = request_headers("start of closed", "")
            await broker.append(Append(subject=subject, body=encode_envelope(envelope), headers=headers))
        with trio.fail_after(20):
            while await broker.last(stream, subjects.inbox("closed", "*")):  # noqa: ASYNC110 - the server tells nobody
                await trio.sleep(0.01)
    assert await handle.history() == before
    assert (await client.handle("closed").describe()).run_id == handle.run_id
    assert len(noted(journal)) == 3
