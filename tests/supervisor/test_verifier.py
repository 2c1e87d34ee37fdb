"""Paranoid mode with real processes: what depends on more than its history is found at once, and nothing else is."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import trio

from durablefuture_trio.app import Supervisor, open_supervisor
from durablefuture_trio.client import WorkflowDescription
from tests._support.installation import Installation, described, listed, until

CONFIG = """
    [supervisor]
    modules = ["shop"]
    [nats.embedded]
    data_dir = "data"
    sync = "2m"
    [sandbox]
    paranoid = {paranoid}
    replay_timeout = 0.5
    activation_timeout = 0.5
    [[activity_pool]]
    processes = 1
    """

STEPS = """
    import trio
    from durablefuture_trio import activity, workflow

    @activity
    async def left() -> str:
        return "left"

    @activity
    async def right() -> str:
        return "right"

    @activity
    async def up() -> str:
        return "up"

    @activity
    async def down() -> str:
        return "down"

    @workflow.signal
    def go_on() -> None: ...
    """

REMEMBERS = """
    earlier = []

    @workflow
    async def remembers() -> str:
        went_on = trio.Event()

        @go_on.handler
        def handler() -> None:
            went_on.set()

        earlier.append("a run")
        done = await (left() if len(earlier) == 1 else right())
        await went_on.wait()
        return done
    """

OTHER_RESULT = """
    earlier = []

    @workflow
    async def counts() -> int:
        await left()
        earlier.append("a run")
        return len(earlier)
    """

ITERATES_STRINGS = """
    steps = {"left": left, "right": right, "up": up, "down": down}

    @workflow
    async def iterates() -> list[str]:
        return [await steps[name]() for name in {"left", "right", "up", "down"}]
    """

ITERATES_OBJECTS = """
    @workflow
    async def iterates() -> str:
        where = id(object())
        for bit in range(16, 36):  # twenty bits that processes draw for themselves
            await (left() if where >> bit & 1 else right())
        await trio.sleep(3600)
    """

SPINS_WHEN_FRESH = """
    earlier = []

    @workflow
    async def warms_up() -> None:
        earlier.append("a run")

    @workflow
    async def spins_when_fresh() -> str:
        while not earlier:
            pass
        return await left()
    """


def write(directory: Path, *sources: str, paranoid: bool = True) -> None:
    installation = Installation(directory)
    installation.module("shop", "".join(map(dedent, sources)))
    installation.configure(CONFIG.format(paranoid=str(paranoid).lower()))


@asynccontextmanager
async def supervised(directory: Path) -> AsyncIterator[Supervisor]:
    with trio.fail_after(60):
        async with open_supervisor(directory / "supervisor.toml") as supervisor:
            yield supervisor


def found(supervisor: Supervisor) -> dict[str, int]:
    statistics: dict[str, int] = supervisor.statistics()["verified"]
    return statistics


def is_blocked(description: WorkflowDescription) -> bool:
    return description.status == "blocked"


async def second_of_two(supervisor: Supervisor) -> Any:
    """Two runs; the first one has gone to its end."""
    first = await supervisor.client.start("remembers", id="first", result_type=str)
    await first.signal("go_on")
    assert await first.result() == "left"
    return await supervisor.client.start("remembers", id="second", result_type=str)


async def test_what_another_run_left_in_a_module_goes_unnoticed_without_paranoid_mode(tmp_path: Path) -> None:
    write(tmp_path, STEPS, REMEMBERS, paranoid=False)
    async with supervised(tmp_path) as supervisor:
        second = await second_of_two(supervisor)
        await described(second, lambda it: (it.history_length or 0) >= 4)
        await second.signal("go_on")
        assert await second.result() == "right"


async def test_what_another_run_left_in_a_module_blocks_the_run_with_both_sides_until_right_code_is_there(
    tmp_path: Path,
) -> None:
    write(tmp_path, STEPS, REMEMBERS)
    async with supervised(tmp_path) as supervisor:
        second = await second_of_two(supervisor)
        entry = await listed(supervisor.client, "second", is_blocked)
        assert "paranoid" in entry.blocked
        assert "schedule activity 1 'right'  (recorded)" in entry.blocked
        assert "schedule activity 1 'left' at" in entry.blocked
        assert "shop.py:" in entry.blocked
        # The process that runs it agrees with itself whenever it tries: it still remembers earlier runs.
        await until(lambda: found(supervisor)["doubted"] >= 3, "two more attempts")
        assert is_blocked(await second.describe())
        # Others go on, and what comes for it is kept.
        await second.signal("go_on")

    write(tmp_path, STEPS, REMEMBERS.replace("left() if len(earlier) == 1 else right()", "right()"))
    async with supervised(tmp_path) as supervisor:
        assert await supervisor.client.handle("second", result_type=str).result() == "right"
        await until(lambda: found(supervisor)["passed"] >= 1, "the healed run is verified")
    assert found(supervisor)["doubted"] == 0


async def test_a_history_that_another_supervisor_wrote_is_verified_when_it_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, STEPS, REMEMBERS, paranoid=False)
    async with supervised(tmp_path) as supervisor:
        second = await second_of_two(supervisor)
        await described(second, lambda it: (it.history_length or 0) >= 4)
    write(tmp_path, STEPS, REMEMBERS)
    async with supervised(tmp_path) as supervisor:
        other = await supervisor.client.start("remembers", id="other")  # now its replay goes as recorded there
        await described(other, lambda it: (it.history_length or 0) >= 4)
        await supervisor.client.handle("second").signal("nobody takes it")
        await listed(supervisor.client, "second", is_blocked)
        assert not is_blocked(await other.describe())


async def test_a_run_that_has_closed_on_a_way_that_a_replay_does_not_take_is_marked_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, STEPS, OTHER_RESULT)
    async with supervised(tmp_path) as supervisor:
        assert await supervisor.client.run("counts", id="first") == 1
        assert await supervisor.client.run("counts", id="second") == 2
        entry = await listed(supervisor.client, "second", lambda it: bool(it.blocked))
        assert entry.status == "completed"
        assert "complete workflow with 2  (recorded)" in entry.blocked
        assert "complete workflow with 1" in entry.blocked
        assert not (await listed(supervisor.client, "first", lambda it: it.status == "completed")).blocked
    assert any(record.levelno == logging.ERROR and "'second' has closed" in record.message for record in caplog.records)
    assert found(supervisor)["doubted"] == 1


async def test_the_order_of_a_set_of_strings_is_legal_and_told_once_for_each_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, STEPS, ITERATES_STRINGS)
    async with supervised(tmp_path) as supervisor:
        assert sorted(await supervisor.client.run("iterates", id="w")) == ["down", "left", "right", "up"]
    told = [record for record in caplog.records if "sets of strings" in record.message]
    assert len(told) == 1
    assert "recorded schedule activity 1" in told[0].message
    assert "produced schedule activity 1" in told[0].message
    assert "shop.py:" in told[0].message
    assert (found(supervisor)["doubted"], found(supervisor)["warned"]) == (0, 1)


@pytest.mark.parametrize("paranoid", [False, True])
async def test_what_depends_on_identities_blocks_in_paranoid_mode_only(tmp_path: Path, paranoid: bool) -> None:
    write(tmp_path, STEPS, ITERATES_OBJECTS, paranoid=paranoid)
    async with supervised(tmp_path) as supervisor:
        handle = await supervisor.client.start("iterates", id="w", result_type=str)
        if paranoid:
            assert "schedule activity" in (await listed(supervisor.client, "w", is_blocked)).blocked
        else:
            went = await described(handle, lambda it: (it.history_length or 0) >= 1 + 3 * 20)
            assert went.status == "running"


async def test_a_replay_that_does_not_end_is_given_up_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, STEPS, SPINS_WHEN_FRESH)
    async with supervised(tmp_path) as supervisor:
        await supervisor.client.run("warms_up")
        assert await supervisor.client.run("spins_when_fresh", id="w") == "left"
        await until(lambda: found(supervisor)["given_up"], "given up")
        # The process that was killed is replaced, and verifies what comes next.
        before = found(supervisor)["passed"]
        await supervisor.client.run("warms_up")
        await until(lambda: found(supervisor)["passed"] > before, "verified again")
    assert found(supervisor)["doubted"] == 0
    assert any("is not verified" in record.message for record in caplog.records)
    killed = [record.message for record in caplog.records if "is killed: an activation does not end" in record.message]
    assert any("verify" in message and "in spins_when_fresh" in message for message in killed)


# --- no false alarms --------------------------------------------------------------------------------------------------

HEALTHY = """
    import random
    import uuid
    from datetime import datetime

    @workflow
    async def child(number: int) -> int:
        await trio.sleep(0.01 * number)
        return number

    @workflow
    async def healthy(number: int, rounds: int) -> list[str]:
        went_on = trio.Event()
        done: list[str] = []

        @go_on.handler
        def handler() -> None:
            went_on.set()

        async def one(step) -> None:
            done.append(await step())

        if workflow.patched("new"):
            done.append(str(workflow.uuid4()))
        async with trio.open_nursery() as nursery:
            for step in random.sample([left, right, up, down], 3):
                nursery.start_soon(one, step)
        with trio.move_on_after(random.random() / 50):
            await down()
        done.append(f"{uuid.uuid4()} {datetime.now()} {number / 3}")
        future = up.submit()
        if number % 3 == 0:
            done.append(str(await child(number % 5)))
        with trio.move_on_after(0.3):
            await went_on.wait()
        done.append(await future)
        if rounds > 1:
            workflow.continue_as_new(number, rounds - 1)
        return done
    """


async def test_fifty_workflows_that_do_everything_right_raise_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, STEPS, HEALTHY)
    async with supervised(tmp_path) as supervisor:

        async def one(number: int) -> None:
            rounds = 1 + number % 2
            handle = await supervisor.client.start("healthy", number, rounds, id=f"w{number}")
            await handle.signal("go_on")
            assert len(await handle.result()) >= 6

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
    statistics = found(supervisor)
    print(statistics)
    assert statistics["passed"] >= 75  # every run at its end, at least
    assert (statistics["doubted"], statistics["warned"], statistics["given_up"]) == (0, 0, 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_verifier_that_is_killed_begins_again_and_nobody_is_doubted(tmp_path: Path) -> None:
    write(tmp_path, STEPS, HEALTHY)
    async with supervised(tmp_path) as supervisor:
        verifiers = [pool.slots[0].child for pool in supervisor._children.verifiers]

        async def one(number: int) -> None:
            handle = await supervisor.client.start("healthy", number, 1, id=f"w{number}")
            await handle.signal("go_on")
            assert len(await handle.result()) >= 6

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, number)
            await trio.sleep(0.1)
            for child in verifiers:
                assert child is not None
                child.kill()
    statistics = found(supervisor)
    assert statistics["passed"] >= 10
    assert (statistics["doubted"], statistics["warned"]) == (0, 0)
