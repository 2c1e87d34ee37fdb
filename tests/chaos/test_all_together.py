"""Workflows under random kills of everything, and under the loss of all processes at once.

``CHAOS_SECONDS`` and ``CHAOS_WORKFLOWS`` set how long and how many (the acceptance is 60 and 200), ``CHAOS_SEED`` the
choice of victims; the moments are never the same.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from durablefuture_trio.nats_bridge import ConnectOptions
from tests._support.chaos import Chaos, Connection
from tests._support.chaos_app import chain, chain_result, napping_chain
from tests._support.chaos_killer import Killer
from tests._support.nats_server import NatsServer, nats_server

pytestmark = pytest.mark.chaos

SECONDS = float(os.environ.get("CHAOS_SECONDS", "12"))
WORKFLOWS = int(os.environ.get("CHAOS_WORKFLOWS", "40"))
SEED = os.environ.get("CHAOS_SEED", "")
STEPS = 5
FINISH_S = 60.0
RESTART_BUDGET_SPENT = 70


@asynccontextmanager
async def embedded(chaos: Chaos) -> AsyncIterator[tuple[Connection, NatsServer | None]]:
    """One supervisor with its own server."""
    supervisor = chaos.supervisor(replays=2, lease_s=2.0)
    await supervisor.start()
    async with chaos.connect(supervisor) as connection:
        yield connection, None


@asynccontextmanager
async def shared(chaos: Chaos) -> AsyncIterator[tuple[Connection, NatsServer | None]]:
    """Two supervisors on one server."""
    async with nats_server() as server:
        for name in "ab":
            await chaos.supervisor(name, url=server.url, lease_s=2.0).start()
        async with chaos.connect_to(ConnectOptions(urls=(server.url,))) as connection:
            yield connection, server
            for supervisor in chaos.supervisors:
                supervisor.kill_now()


@pytest.mark.parametrize("topology", [embedded, shared], ids=["one supervisor", "two supervisors"])
async def test_every_workflow_completes_with_the_right_result(
    chaos: Chaos, topology: Callable[[Chaos], object], request: pytest.FixtureRequest
) -> None:
    seed = SEED or str(random.SystemRandom().randrange(10**6))
    chance = random.Random(seed)
    ids = [f"run-{number}" for number in range(WORKFLOWS)]
    open_topology = embedded if topology is embedded else shared
    async with open_topology(chaos) as (connection, server):
        killer = Killer(chaos, chance, server)
        try:
            async with trio.open_nursery() as nursery:
                for number, workflow_id in enumerate(ids):
                    nursery.start_soon(run_one, connection, workflow_id, number, chance.random(), chance.random())
                await killer.run(SECONDS)
                nursery.cancel_scope.deadline = trio.current_time() + FINISH_S
            assert not nursery.cancel_scope.cancelled_caught, await unfinished(connection, ids)
            await chaos.check(connection, *ids)
            assert sum(killer.deeds.values()) >= SECONDS / 5
            assert killer.exit_codes.keys() <= {-signal.SIGKILL, RESTART_BUDGET_SPENT}
        finally:
            diary = "\n".join(
                [f"seed {seed}", *killer.diary, f"{dict(killer.deeds)}, exit codes {dict(killer.exit_codes)}"]
            )
            request.node.add_report_section("call", "killer", diary)


async def run_one(connection: Connection, workflow_id: str, number: int, when: float, nap: float) -> None:
    """Start one at its time, and check its result. Every other one sleeps, some of them long enough to be parked."""
    await trio.sleep(when * 0.9 * SECONDS)
    client = connection.client
    if number % 2:
        result = await client.run(chain, number, STEPS, 0.2, id=workflow_id)
    else:
        result = await client.run(napping_chain, number, STEPS, 0.1, 1.5 * nap, id=workflow_id)
    assert result == chain_result(number, STEPS)


async def unfinished(connection: Connection, ids: list[str]) -> str:
    """What is known about the runs that have not closed."""
    found: list[str] = []
    for workflow_id in ids:
        with trio.move_on_after(5):
            try:
                description = await connection.client.handle(workflow_id).describe()
            except Exception as error:
                found.append(f"{workflow_id}: {error!r}")
                continue
            if description.closed_at is None:
                found.append(f"{workflow_id}: {description}")
    return "\n".join(found)


async def test_all_processes_lost_at_once_again_and_again(chaos: Chaos) -> None:
    """As in a power cut, but for what the disk has not written yet."""
    supervisor = chaos.supervisor(lease_s=2.0)
    await supervisor.start()
    ids = [f"run-{number}" for number in range(20)]
    async with chaos.connect(supervisor) as connection, trio.open_nursery() as nursery:
        for number, workflow_id in enumerate(ids):
            nursery.start_soon(expect, connection, workflow_id, number)
        for _ in range(3):
            begun = len(chaos.witnesses)
            with trio.fail_after(20):
                while len(chaos.witnesses) < begun + 10:  # noqa: ASYNC110 - other processes write them
                    await trio.sleep(0.005)
            chaos.kill_everything()
            await supervisor.kill()
            await supervisor.start()
        nursery.cancel_scope.deadline = trio.current_time() + FINISH_S
    assert not nursery.cancel_scope.cancelled_caught, await unfinished(connection, ids)
    async with chaos.connect(supervisor) as connection:
        await chaos.check(connection, *ids)


async def expect(connection: Connection, workflow_id: str, number: int) -> None:
    assert await connection.client.run(chain, number, STEPS, 0.1, id=workflow_id) == chain_result(number, STEPS)
