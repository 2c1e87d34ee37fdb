"""What can happen to a schedule."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.memory_broker import FaultPlan, FireFate, MemoryBroker, MemoryServer, open_trio_scheduler
from durablefuture_trio.ports.broker import Append, Schedule
from tests._support.broker_servers import STREAMS


async def arm(server: MemoryServer, broker: MemoryBroker, name: str, due_in: float, body: bytes) -> int:
    due = server.scheduler.now() + due_in
    return await broker.append(
        Append(subject=f"s.{name}", body=body, schedule=Schedule(due=due, target=f"w.{name}.timer"))
    )


def fires(server: MemoryServer) -> list[bytes]:
    return [stored.body for stored in server.page("W", "w.>", 0, 1000)]


def armed(server: MemoryServer) -> list[bytes]:
    return [stored.body for stored in server.page("W", "s.>", 0, 1000)]


async def test_a_healthy_schedule_fires_once_and_on_time(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    await arm(server, broker, "x", 10.0, b"1")
    await trio.sleep(9.99)
    assert (fires(server), armed(server)) == ([], [b"1"])
    await trio.sleep(0.02)
    assert (fires(server), armed(server)) == ([b"1"], [])
    await trio.sleep(1000)
    assert fires(server) == [b"1"]


async def test_h02_a_fire_deletes_the_acknowledged_replacement_that_came_in_between(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    server.faults.next_fire(FireFate(stored_after=0.5))
    first = await arm(server, broker, "x", 10.0, b"1")
    await trio.sleep(10.2)  # collected, not yet stored
    second = await arm(server, broker, "x", 100.0, b"2")
    assert second == first + 1
    assert armed(server) == [b"2"]
    await trio.sleep(0.5)
    assert (fires(server), armed(server)) == ([b"1"], [])
    await trio.sleep(1000)
    assert fires(server) == [b"1"]


async def test_h02_no_expectation_on_the_replacement_helps(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    server.faults.next_fire(FireFate(stored_after=0.5))
    first = await arm(server, broker, "x", 10.0, b"1")
    await trio.sleep(10.2)
    due = server.scheduler.now() + 100
    schedule = Schedule(due=due, target="w.x.timer")
    assert await broker.append(Append(subject="s.x", schedule=schedule, expect_last=first)) == first + 1
    await trio.sleep(0.5)
    assert armed(server) == []


async def test_h02_a_schedule_on_a_subject_of_its_own_survives_the_fire_of_another(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    server.faults.next_fire(FireFate(stored_after=0.5))
    await arm(server, broker, "x.1", 10.0, b"1")
    await trio.sleep(10.2)
    await arm(server, broker, "x.2", 100.0, b"2")
    await trio.sleep(1000)
    assert fires(server) == [b"1", b"2"]


async def test_a_schedule_neutralised_while_it_fires_fires_all_the_same(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    server.faults.next_fire(FireFate(stored_after=0.5))
    await arm(server, broker, "x", 10.0, b"1")
    await trio.sleep(10.2)
    await broker.append(Append(subject="s.x", neutralise=True))
    await trio.sleep(10)
    assert fires(server) == [b"1"]


async def test_u09_a_schedule_may_fire_twice(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    server.faults.double_fire = 1.0
    await arm(server, broker, "x", 1.0, b"1")
    await trio.sleep(1000)
    assert fires(server) == [b"1", b"1"]


async def test_a_server_killed_while_it_fires_fires_after_the_restart(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    server.faults.next_fire(FireFate(stored_after=0.5))
    await arm(server, broker, "x", 10.0, b"1")
    await trio.sleep(10.2)
    server.kill()
    await trio.sleep(10)
    assert fires(server) == []
    server.start()
    await trio.sleep(1)
    assert (fires(server), armed(server)) == ([b"1"], [])


async def test_fires_come_up_to_a_quarter_of_a_second_late(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    server.faults.late_fire = 1.0
    due = server.scheduler.now() + 5.0
    for n in range(50):
        await arm(server, broker, f"x{n}", 5.0, b"%d" % n)
    await trio.sleep(10)
    late = [stored.time - due for stored in server.page("W", "w.>", 0, 1000)]
    assert len(late) == 50
    assert all(-0.001 <= seconds <= 0.251 for seconds in late)
    assert max(late) - min(late) > 0.1


async def test_racing_and_double_fires_hit_their_share(autojump_clock: MockClock) -> None:
    async with open_trio_scheduler() as scheduler:
        plan = FaultPlan(racing_fire=0.5, racing_fire_by=(0.2, 0.2), double_fire=0.5)
        server = MemoryServer(scheduler, rng=Random(3), faults=plan)
        server.provision(STREAMS)
        broker = server.connect("A")
        for n in range(100):
            await arm(server, broker, f"x{n}", 5.0, b"1")
        await trio.sleep(5.1)
        assert 30 <= len(armed(server)) <= 70
        await trio.sleep(1)
        assert armed(server) == []
        assert 130 <= len(fires(server)) <= 170


async def test_h19_a_schedule_due_while_the_store_is_full_fires_only_after_a_restart(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    await arm(server, broker, "x", 10.0, b"1")
    server.full = True
    await trio.sleep(11)
    server.full = False
    await trio.sleep(10_000)
    assert (fires(server), armed(server)) == ([], [b"1"])
    server.restart()
    await trio.sleep(1)
    assert (fires(server), armed(server)) == ([b"1"], [])


async def test_h19_publishing_a_stuck_schedule_again_makes_it_fire(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    await arm(server, broker, "x", 10.0, b"1")
    server.full = True
    await trio.sleep(11)
    server.full = False
    await arm(server, broker, "x", -1.0, b"again")
    await trio.sleep(1)
    assert (fires(server), armed(server)) == ([b"again"], [])


@pytest.mark.parametrize("pause_for", [1.0, 30.0])
async def test_a_schedule_due_during_a_pause_fires_after_it(
    autojump_clock: MockClock, server: MemoryServer, pause_for: float
) -> None:
    broker = server.connect("A")
    await arm(server, broker, "x", 0.5, b"1")
    server.pause()
    await trio.sleep(pause_for)
    assert fires(server) == []
    server.resume()
    await trio.sleep(0.1)
    assert fires(server) == [b"1"]
