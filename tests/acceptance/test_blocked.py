"""Runs that cannot go on: visible with the reason, nothing lost, healed by right code; the others go on."""

from __future__ import annotations

import re
import signal
from functools import partial

import pytest
import trio

from durablefuture_trio import WorkflowTerminatedError
from durablefuture_trio.client import Client, WorkflowDescription
from tests._support import acceptance_app as app
from tests._support.installation import Installation, clean_environment, described, listed, script, until

CONFIG = """
    [supervisor]
    modules = [{modules}]
    [nats.embedded]
    data_dir = "data"
    sync = "2m"
    [[activity_pool]]
    processes = 1
    """


def configure(installation: Installation, *modules: str) -> None:
    installation.configure(CONFIG.format(modules=", ".join(f'"{module}"' for module in modules)))


def is_blocked(description: WorkflowDescription) -> bool:
    return description.status == "blocked"


# --- names ------------------------------------------------------------------------------------------------------------


async def test_an_unknown_workflow_is_blocked_until_a_supervisor_has_it(installation: Installation) -> None:
    installation.module(
        "stock", "from durablefuture_trio import workflow\n@workflow\nasync def count() -> int:\n    return 3\n"
    )
    installation.module(
        "shop",
        "from durablefuture_trio import workflow\n@workflow\nasync def order(name: str) -> str:\n    return name\n",
    )
    configure(installation, "stock")
    process = await installation.start()
    async with installation.client() as client:
        started = await client.start("order", "Bob", id="order-1")
        entry = await listed(client, "order-1", is_blocked)
        assert "'order' is not registered here. Registered are: count." in entry.blocked
        assert await client.run("count") == 3, "others go on"
    table = await installation.command("list")
    assert "blocked" in table.stdout
    assert "'order' is not registered" in table.stdout
    # Whoever waits is told why, and may stop waiting.
    log = installation.directory / "waiting.log"
    with log.open("wb") as output, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            waiting = await nursery.start(
                partial(
                    trio.run_process,
                    [script("durablefuture"), "result", "order-1"],
                    cwd=installation.directory,
                    env=clean_environment(),
                    stderr=output,
                    check=False,
                )
            )
            await until(lambda: "workflow 'order-1' is blocked" in log.read_text(), "the reason told to a waiter")
            waiting.send_signal(signal.SIGINT)
            assert await waiting.wait() == 130
    assert "'order' is not registered here. Registered are: count." in log.read_text()
    assert await process.stop() == 0

    configure(installation, "stock", "shop")
    await installation.start()
    async with installation.client() as client:
        with trio.fail_after(20):
            assert await client.handle("order-1", run_id=started.run_id).result() == "Bob"
        assert (await listed(client, "order-1", lambda entry: entry.status == "completed")).blocked == ""


async def test_an_unknown_activity_is_retried_until_a_supervisor_has_it(installation: Installation) -> None:
    shop = """
        from durablefuture_trio import RetryPolicy, activity, workflow
        {decorator}
        async def pay() -> str:
            return "paid"
        @activity
        async def ship() -> str:
            return "shipped"
        @workflow
        async def order() -> str:
            return await pay()
        """
    # The workflow calls an activity that only its own module knows; the pool registers the attributes of a module.
    hidden = shop.format(decorator="@activity") + "\n        call_pay = pay.fn; hidden = [pay]; pay_ = None\n"
    hidden = hidden.replace("return await pay()", "return await hidden[0]()").replace("pay_ = None", "del pay")
    installation.module("shop", hidden)
    configure(installation, "shop")
    process = await installation.start()
    async with installation.client() as client:
        handle = await client.start("order", id="order-1", result_type=str)
        found = await described(handle, lambda found: found.pending_activities[0].attempt >= 2)
        (pending,) = found.pending_activities
        assert found.status == "running"
        assert "no activity 'pay' is registered" in pending.last_failure
        assert "ship" in pending.last_failure, "it names what is registered"
    assert await process.stop() == 0

    installation.module("shop", shop.format(decorator="@activity"))
    await installation.start()
    async with installation.client() as client:
        with trio.fail_after(30):
            assert await client.handle("order-1", result_type=str).result() == "paid"


async def test_a_task_queue_that_nobody_serves_is_told_and_retried(client: Client) -> None:
    handle = await client.start(app.on_queue, "gpu")
    found = await described(handle, lambda found: found.pending_activities[0].last_failure)
    assert "no activity pool of this supervisor serves task queue 'gpu'" in found.pending_activities[0].last_failure
    assert found.pending_activities[0].retry_at is not None
    await handle.terminate("nobody has a gpu")


# --- code -------------------------------------------------------------------------------------------------------------

BEFORE = """
    from pathlib import Path
    import trio
    from durablefuture_trio import activity, workflow

    @activity
    async def charge() -> str:
        return "charged"

    @activity
    async def refund() -> str:
        return "refunded"

    @workflow
    async def order() -> str:
        first = await charge()
        await trio.sleep(1.2)
        return first
    """


async def test_changed_code_blocks_the_run_with_both_sides_until_the_right_code_is_back(
    installation: Installation,
) -> None:
    installation.module("shop", BEFORE)
    configure(installation, "shop")
    process = await installation.start()
    async with installation.client() as client:
        handle = await client.start("order", id="order-1", result_type=str)
        await described(handle, lambda found: (found.history_length or 0) >= 4)
    assert await process.stop() == 0

    changed = installation.module("shop", BEFORE.replace("first = await charge()", "first = await refund()"))
    line = next(n for n, text in enumerate(changed.read_text().splitlines(), 1) if "await refund()" in text)
    process = await installation.start()
    async with installation.client() as client:
        handle = client.handle("order-1", result_type=str)
        entry = await listed(client, "order-1", is_blocked)
        assert "schedule activity 1 'charge'" in entry.blocked
        assert "schedule activity 1 'refund'" in entry.blocked
        assert f"shop.py:{line}" in entry.blocked
        assert "Nothing is lost" in entry.blocked or "nothing is lost" in entry.blocked
        length = (await handle.describe()).history_length
        # Trying again leaves nothing in the history: a blocked run does not grow.
        await process.logged("is blocked (nondeterminism)")
        await trio.sleep(1.2)
        assert (await handle.describe()).history_length == length
        assert await client.run("order", result_type=str) == "refunded", "fresh runs take the new code"
    shown = await installation.command("show", "order-1")
    assert "blocked" in shown.stdout
    assert await process.stop() == 0

    installation.module("shop", BEFORE)
    await installation.start()
    async with installation.client() as client:
        with trio.fail_after(20):
            assert await client.handle("order-1", result_type=str).result() == "charged"


# --- what workflow code must not do -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ("file", "read and write files in an activity"),
        ("socket", "talk to the network in an activity"),
        ("sleep", "use `await trio.sleep(...)`, which is durable"),
        ("thread", "for concurrency use `nursery.start_soon`"),
    ],
)
async def test_workflow_code_that_touches_the_world_is_blocked_and_told_what_to_use(
    client: Client, what: str, instead: str
) -> None:
    handle = await client.start(app.violating, what)
    entry = await listed(client, handle.id, is_blocked)
    assert instead in entry.blocked
    assert "acceptance_app.py:" in entry.blocked
    assert await client.run(app.greeting, "Bob") == "hello Bob", "others go on"
    await handle.terminate("seen")
    with pytest.raises(WorkflowTerminatedError, match="seen"):
        await handle.result()


async def test_a_workflow_that_never_gives_way_is_blocked_with_its_stack_and_others_go_on(
    shared: Installation, client: Client
) -> None:
    bystander = await client.start(app.giving_up, 0.5, "/dev/null")
    handle = await client.start(app.spinning, "Bob")
    found = await described(handle, is_blocked)
    assert "did not come to an await for more than 0.5 s of CPU" in found.blocked
    assert re.search(r'acceptance_app.py", line \d+ in spinning', found.blocked), found.blocked
    shown = await shared.command("show", handle.id)
    assert "in spinning" in shown.stdout
    with trio.fail_after(20):
        assert await bystander.result() == "hello again"
    await handle.terminate("seen")
    assert (await handle.describe()).status == "terminated"


async def test_a_workflow_that_hoards_memory_is_blocked_and_others_go_on(client: Client) -> None:
    bystander = await client.start(app.sleeping, 0.5)
    handle = await client.start(app.hoarding)
    found = await described(handle, is_blocked)
    assert "memory_limit_mb" in found.blocked, found.blocked
    with trio.fail_after(20):
        assert await bystander.result() >= 0.5
        assert await client.run(app.greeting, "Bob") == "hello Bob"
    await handle.terminate("seen")


async def test_a_run_that_never_gives_way_holds_others_up_for_its_limit_only_each_time_it_is_tried(
    shared: Installation, client: Client
) -> None:
    handle = await client.start(app.spinning, "Bob")
    await described(handle, is_blocked)
    killed = "is killed: an activation does not end"
    before = shared.running.log.count(killed)
    # The run is replayed after 1 s and after 2 s more. A replay has a wide limit, which is not for what never ends.
    with trio.fail_after(15):
        while shared.running.log.count(killed) < before + 2:
            assert await client.run(app.greeting, "Bob") == "hello Bob"
            await trio.sleep(0.05)
    await handle.terminate("seen")
