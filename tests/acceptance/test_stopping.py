"""Restarts and ends: what was acknowledged goes on, what runs is finished, and nothing is left behind."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
import trio

from durablefuture_trio import ActivityError, WorkflowFailedError, WorkflowTimedOutError
from durablefuture_trio.history.events import ActivityFailed, ActivityScheduled
from tests._support import acceptance_app as app
from tests._support.acceptance_app import noted
from tests._support.installation import (
    Installation,
    descendants,
    described,
    is_alive,
    listed,
    until,
    until_noted,
    zombies,
)
from tests._support.nats_server import NatsServer

CONFIG = """
    [supervisor]
    modules = ["tests._support.acceptance_app"]
    drain_timeout = {drain_timeout}
    shutdown_grace = 1.0
    [nats.embedded]
    data_dir = "data"
    sync = "2m"
    [[activity_pool]]
    processes = 1
    grace_period = 0.3
    """


async def test_sigterm_lets_running_activities_finish_and_leaves_nothing_behind(
    installation: Installation, journal: Path
) -> None:
    installation.configure(CONFIG.format(drain_timeout=20))
    process = await installation.start()
    children = descendants(process.pid)
    async with installation.client() as client:
        handle = await client.start(app.slow_step, 1.0, str(journal))
        await until_noted(journal, 1)
    process.signal(signal.SIGTERM)
    assert await process.exit_code() == 0
    assert noted(journal) == ["started", "finished"]
    await until(lambda: not any(is_alive(child) for child in children), "the end of every child")
    assert "Traceback" not in process.log
    assert "SIGTERM: finishing what runs" in process.log

    # The result was recorded: the next supervisor does not run it again.
    process = await installation.start()
    async with installation.client() as client:
        with trio.fail_after(20):
            assert await client.handle(handle.id, app.slow_step).result() == "finished"
    assert noted(journal) == ["started", "finished"]


async def test_a_second_sigterm_ends_at_once_and_says_so_by_its_exit_code(
    installation: Installation, journal: Path
) -> None:
    installation.configure(CONFIG.format(drain_timeout=60))
    process = await installation.start()
    children = descendants(process.pid)
    async with installation.client() as client:
        handle = await client.start(app.slow_step, 3600.0, str(journal))
        await until_noted(journal, 1)
    process.signal(signal.SIGTERM)
    await process.logged("SIGTERM: finishing what runs")
    began = time.monotonic()
    process.signal(signal.SIGTERM)
    assert await process.exit_code() == 75
    assert time.monotonic() - began < 5
    await until(lambda: not any(is_alive(child) for child in children), "the end of every child")

    process = await installation.start()
    async with installation.client() as client:
        # The attempt that was cut off is in the history, and is followed by another one.
        await until_noted(journal, 2)
        failures = [
            item.event for item in await client.handle(handle.id).history() if isinstance(item.event, ActivityFailed)
        ]
        assert [(event.attempt, event.reason) for event in failures] == [(1, "lost")]
        await client.handle(handle.id).terminate("enough")


async def test_work_beyond_the_drain_timeout_is_cut_off_and_told_by_the_exit_code(
    installation: Installation, journal: Path
) -> None:
    installation.configure(CONFIG.format(drain_timeout=0.5))
    process = await installation.start()
    async with installation.client() as client:
        await client.start(app.slow_step, 3600.0, str(journal))
        await until_noted(journal, 1)
    process.signal(signal.SIGINT)
    assert await process.exit_code() == 75


async def test_an_idle_supervisor_ends_with_a_quiet_log(installation: Installation) -> None:
    installation.configure(CONFIG.format(drain_timeout=5))
    process = await installation.start()
    async with installation.client() as client:
        assert await client.run(app.greeting, "Bob") == "hello Bob"
    assert zombies(process.pid) == []
    assert await process.stop() == 0
    lines = process.log.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (INFO|WARNING) +durablefuture_trio\.\S+: ", line) for line in lines)
    assert [line for line in lines if " WARNING " in line] == []
    assert len(lines) < 20


async def test_the_log_can_be_json(installation: Installation) -> None:
    import orjson

    installation.configure(CONFIG.format(drain_timeout=5) + "    [log]\n    format = 'json'\n")
    process = installation.supervisor()
    await process.logged("supervisor is ready")
    assert await process.stop() == 0
    records = [orjson.loads(line) for line in process.log.splitlines()]
    assert any("supervisor is ready" in record["message"] for record in records)


# --- what outlives a supervisor ---------------------------------------------------------------------------------------


async def test_a_retry_s_backoff_outlives_its_supervisor(installation: Installation, journal: Path) -> None:
    installation.configure(CONFIG.format(drain_timeout=5))
    process = await installation.start()
    async with installation.client() as client:
        handle = await client.start(app.with_retries, 2, 2.5, 1.0, str(journal))
        found = await described(handle, lambda found: found.pending_activities[0].phase == "backoff")
        retry_at = found.pending_activities[0].retry_at
        assert retry_at is not None
    await process.kill()

    process = await installation.start()
    async with installation.client() as client:
        with trio.fail_after(20):
            assert await client.handle(handle.id, app.with_retries).result() == 2
        events = [item.event for item in await client.handle(handle.id).history()]
    (first, second) = [event for event in events if isinstance(event, ActivityScheduled)]
    assert second.at >= retry_at
    assert second.at - first.at < 10
    assert len(noted(journal)) == 2


async def test_a_parked_sleep_outlives_its_supervisor_and_finished_steps_are_not_repeated(
    installation: Installation, journal: Path
) -> None:
    installation.configure(CONFIG.format(drain_timeout=5))
    process = await installation.start()
    async with installation.client() as client:
        handle = await client.start(app.step_sleep_step, 2.0, str(journal))
        await until_noted(journal, 1)
        await listed(client, handle.id, lambda entry: entry.status == "running")
    await process.kill()

    await installation.start()
    async with installation.client() as client:
        with trio.fail_after(20):
            assert await client.handle(handle.id, app.step_sleep_step).result() >= 2.0
    assert noted(journal) == ["before", "after"]


async def test_a_deadline_that_passes_while_nobody_is_there_is_kept(installation: Installation) -> None:
    installation.configure(CONFIG.format(drain_timeout=5))
    process = await installation.start()
    async with installation.client() as client:
        handle = await client.start(app.waiting_for_ever, execution_timeout=1.5)
        await listed(client, handle.id, lambda entry: entry.status == "running")
    assert await process.stop() == 0
    await trio.sleep(1.5)
    await installation.start()
    async with installation.client() as client:
        with trio.fail_after(10), pytest.raises(WorkflowTimedOutError):
            await client.handle(handle.id).result()


async def test_what_workflows_and_activities_log_is_in_the_log_once_whatever_is_replayed(
    installation: Installation,
) -> None:
    installation.configure(CONFIG.format(drain_timeout=5))
    process = await installation.start()
    async with installation.client() as client:
        handle = await client.start(app.talking, "aloha", 1.5, id="talker")
        await process.logged("the activity says aloha")
        await listed(client, handle.id, lambda entry: entry.status == "running")
    assert await process.stop() == 0
    await installation.start()
    async with installation.client() as client:
        await client.handle("talker").result()
    await installation.running.logged("the workflow has said aloha")
    log = installation.log.read_text()
    assert log.count("the workflow says aloha") == 1
    assert log.count("the workflow has said aloha") == 1
    assert log.count("printed: aloha") == 1
    for words in ("the activity says aloha", "the workflow says aloha"):
        (line,) = [line for line in log.splitlines() if words in line]
        assert handle.run_id is not None
        assert handle.run_id in line, "a line says which run it belongs to"


@pytest.mark.parametrize("delay", [0.3, 0.45, 0.6])
async def test_a_supervisor_that_is_stopped_while_it_starts_leaves_nothing_behind(
    installation: Installation, delay: float
) -> None:
    installation.configure(CONFIG.format(drain_timeout=5))
    process = installation.supervisor()
    # Before the log begins the interpreter is still importing, and a signal simply ends it.
    await process.logged("nats-server listens")
    children = descendants(process.pid)
    await trio.sleep(delay - 0.3)
    children += descendants(process.pid)
    assert await process.stop() == 0
    await until(lambda: not any(is_alive(child) for child in children), "the end of every child")
    assert "Traceback" not in process.log


async def test_views_and_results_outlive_every_process(installation: Installation) -> None:
    installation.configure(CONFIG.format(drain_timeout=5))
    process = await installation.start()
    async with installation.client() as client:
        await client.run(app.greeting, "Bob", id="kept", memo="a note")
        await listed(client, "kept", lambda entry: entry.status == "completed")
        before = await client.handle("kept").history()
    assert await process.stop() == 0

    await installation.start()
    async with installation.client() as client:
        entry = await listed(client, "kept", lambda entry: entry.status == "completed")
        assert entry.memo is not None
        assert await client.handle("kept").history() == before
        assert await client.handle("kept", app.greeting).result() == "hello Bob"


async def test_a_client_waits_through_a_restart_of_the_supervisor(installation: Installation) -> None:
    installation.configure(CONFIG.format(drain_timeout=5))
    process = await installation.start()
    results: list[float] = []
    async with installation.client() as client, trio.open_nursery() as nursery:
        handle = await client.start(app.sleeping, 2.0)

        async def wait() -> None:
            results.append(await handle.result())

        nursery.start_soon(wait)
        await process.kill()
        # Started while nobody is there to decide it: stored, and carried out later.
        nursery.start_soon(client.run, app.greeting, "Eve")
        await installation.start()
        with trio.fail_after(25):
            await until(lambda: results, "the result", deadline_s=20)
    assert len(results) == 1
    assert results[0] >= 2.0


async def test_an_activity_that_may_run_only_once_is_reported_as_lost_with_its_supervisor(
    installation: Installation, journal: Path
) -> None:
    installation.configure(CONFIG.format(drain_timeout=5))
    process = await installation.start()
    async with installation.client() as client:
        handle = await client.start(app.working_for_ever, str(journal))
        await until_noted(journal, 1)
    await process.kill()
    await installation.start()
    async with installation.client() as client:
        with pytest.raises(WorkflowFailedError) as caught, trio.fail_after(20):
            await client.handle(handle.id, app.working_for_ever).result()
    assert isinstance(caught.value.cause, ActivityError)
    assert caught.value.cause.reason == "lost"
    assert noted(journal) == ["started"]


# --- namespaces -------------------------------------------------------------------------------------------------------


@pytest.fixture
def second(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("second"))


async def test_two_namespaces_on_one_server_know_nothing_of_each_other(
    installation: Installation, second: Installation, nats: NatsServer
) -> None:
    try:
        for installed, namespace in ((installation, "red"), (second, "red_2")):
            installed.configure(
                f"""
                [supervisor]
                namespace = "{namespace}"
                modules = ["shop"]
                state_dir = "state"
                [nats]
                url = "{nats.url}"
                [[activity_pool]]
                processes = 1
                """
            )
            installed.module(
                "shop",
                f"""
                import trio
                from durablefuture_trio import activity, workflow

                @activity
                async def where() -> str:
                    return "{namespace}"

                @workflow
                async def order(wait: bool) -> str:
                    if wait:
                        await trio.sleep_forever()
                    return await where()
                """,
            )
            await installed.start()
        async with installation.client() as red, second.client() as other:
            for number in range(8):
                assert await red.run("order", False, id=f"same-{number}") == "red"
                assert await other.run("order", False, id=f"same-{number}") == "red_2"
            await red.start("order", True, id="only red")
            await other.start("order", True, id="both")
            await red.start("order", True, id="both")
            await red.handle("both").terminate("in red alone")
            assert (await other.handle("both").describe()).status == "running"
            await listed(red, "both", lambda entry: entry.status == "terminated")
            ids = {entry.workflow_id async for entry in other.list()}
            assert "only red" not in ids
            assert len(await other.handle("same-0").history()) == 5
        # Each supervisor is alone in its namespace.
        for installed in (installation, second):
            status = (await installed.command("status", "--json")).data
            assert len(status["members"]) == 1
            assert len({shard["owner"] for shard in status["shards"]}) == 1
    finally:
        second.end_now()
