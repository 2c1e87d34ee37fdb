"""Streams without a leader: nobody takes what is sent to them, for a moment (elections, a stopping server) or long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import trio

from durablefuture_trio.authoring import workflow
from durablefuture_trio.client._timing import LEADER_WITHIN_S
from durablefuture_trio.errors import BrokerUnavailableError
from tests._support.scripted_owner import completed
from tests.client.conftest import World


@workflow
async def order(customer: str) -> str:
    return customer


@contextmanager
def leaderless(world: World) -> Iterator[None]:
    """All streams are there, and nobody answers for them: "no responders" for reads and writes."""
    streams = dict(world.server._streams)
    world.server._streams.clear()
    try:
        yield
    finally:
        world.server._streams.update(streams)


async def names(listing: AsyncIterator[object]) -> list[object]:
    return [item async for item in listing]


async def test_a_start_outlasts_it_and_is_stored_once(world: World) -> None:
    async with trio.open_nursery() as nursery:
        with leaderless(world):
            nursery.start_soon(world.client.start, order, "Bob")
            await trio.sleep(LEADER_WITHIN_S / 2)
        message, _request = await world.owner.start_request()
        await world.owner.begin(message, "run-1")
    assert len(world.published()) == 1


async def test_a_start_says_so_when_it_lasts(world: World) -> None:
    with (
        leaderless(world),
        trio.fail_after(2 * LEADER_WITHIN_S),
        pytest.raises(BrokerUnavailableError, match="no stream"),
    ):
        await world.client.start(order, "Bob")
    assert world.published() == []


async def test_a_look_outlasts_it(world: World) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.client.start, order, "Bob")
        message, request = await world.owner.start_request()
        await world.owner.begin(message, "run-1")
        await world.owner.close(request.workflow_id, "run-1", completed("Bob", 2))
    handle = world.client.handle(request.workflow_id)
    shown: list[object] = []

    async def look() -> None:
        shown.append(await handle.result())
        shown.append((await handle.describe()).status)
        shown.append(len(await handle.history()))

    async with trio.open_nursery() as nursery:
        with leaderless(world):
            nursery.start_soon(look)
            await trio.sleep(LEADER_WITHIN_S / 2)
    assert shown == ["Bob", "completed", 2]


async def test_a_look_and_a_listing_say_so_when_it_lasts(world: World) -> None:
    with leaderless(world), trio.fail_after(4 * LEADER_WITHIN_S):
        with pytest.raises(BrokerUnavailableError, match="no stream"):
            await world.client.handle("w").result()
        with pytest.raises(BrokerUnavailableError, match="no stream"):
            await names(world.client.list())
