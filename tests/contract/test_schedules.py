"""Message schedules: when they fire, what they carry, and every way in which they do not."""

from __future__ import annotations

import time

import pytest
import trio

from durablefuture_trio.ports.broker import Append, Broker, Conflict, Rejected, Schedule, Stored
from tests._support.broker_servers import DEADLINE_S, ServerUnderTest, until, until_link
from tests.contract.conftest import BrokerPair
from tests.contract.differential import restart_in_good_order


def schedule(name: str, due_in: float, body: bytes = b"", **more: object) -> Append:
    return Append(
        subject=f"s.{name}",
        body=body,
        schedule=Schedule(due=time.time() + due_in, target=f"w.{name}"),
        **more,  # type: ignore[arg-type]  # the rest of Append's fields
    )


async def fired(broker: Broker, name: str) -> Stored:
    """Wait until the schedule has fired."""
    found: list[Stored] = []

    async def it_has_fired() -> bool:
        stored = await broker.last("W", f"w.{name}", confirmed=True)
        found.extend([stored] if stored is not None else [])
        return stored is not None

    await until(it_has_fired)
    return found[0]


async def held(broker: Broker, subject: str) -> list[bytes]:
    return [stored.body async for stored in broker.scan("W", subject)]


async def test_a_schedule_fires_at_its_time_with_its_body_and_headers(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    append = schedule("x", 0.5, b"wake up", headers={"Run": "1"}, message_id="m")
    await a.append(append)
    assert await held(b, "s.x") == [b"wake up"]
    stored = await fired(b, "x")
    assert append.schedule is not None
    assert -0.01 <= stored.time - append.schedule.due < 2.0
    assert (stored.subject, stored.body, dict(stored.headers)) == ("w.x", b"wake up", {"Run": "1"})


async def test_a_fired_schedule_is_gone_and_fires_once(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await a.append(schedule("x", 0.3, b"x"))
    await fired(b, "x")

    async def it_is_gone() -> bool:
        return await held(b, "s.x") == []

    await until(it_is_gone)
    await a.append(schedule("y", 1.0, b"y"))
    await fired(b, "y")
    assert await held(b, "w.x") == [b"x"]


async def test_a_fire_is_delivered_like_any_message(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    async with b.open_reader("W", "own-1", "w.>", ack_wait=None) as reader:
        await a.append(schedule("x", 0.3, b"x"))
        with trio.fail_after(DEADLINE_S):
            [delivery] = await reader.receive()
        assert (delivery.subject, delivery.body, delivery.delivered) == ("w.x", b"x", 1)


async def test_a_schedule_of_the_past_fires_at_once(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await a.append(schedule("x", -60.0, b"x"))
    assert (await fired(b, "x")).body == b"x"


async def test_many_schedules_fire_in_their_time(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for n in range(20):
        await a.append(schedule(f"x{n}", 0.2 + (n % 5) * 0.1, b"%d" % n))
    for n in range(20):
        assert (await fired(b, f"x{n}")).body == b"%d" % n


async def test_a_schedule_on_the_same_subject_replaces_the_one_before(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await a.append(schedule("x", 0.5, b"first"))
    await a.append(schedule("x", 1.0, b"second"))
    assert await held(b, "s.x") == [b"second"]
    assert (await fired(b, "x")).body == b"second"
    await a.append(schedule("y", 0.2))
    await fired(b, "y")
    assert await held(b, "w.x") == [b"second"]


async def test_a_neutralised_schedule_never_fires_and_leaves_nothing(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await a.append(schedule("x", 1.0))
    await a.append(Append(subject="s.x", neutralise=True))
    await a.append(schedule("y", 1.5))
    await fired(b, "y")
    assert await held(b, "w.x") == []

    async def it_is_gone() -> bool:
        return await held(b, "s.x") == []

    await until(it_is_gone)


async def test_a_deleted_schedule_never_fires(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await a.delete("W", await a.append(schedule("x", 0.5)))
    await a.append(schedule("z", 0.5))
    await a.purge("W", "s.z")
    await a.append(schedule("y", 1.0))
    await fired(b, "y")
    assert await held(b, "w.x") == []
    assert await held(b, "w.z") == []


@pytest.mark.parametrize("how", ["append", "tell"])
async def test_a_plain_message_over_a_schedule_holds_it_until_the_server_is_killed(
    broker_pair: BrokerPair, server: ServerUnderTest, how: str
) -> None:
    a, b = broker_pair
    await a.append(schedule("x", 0.7, b"x"))
    if how == "append":
        await a.append(Append(subject="s.x", body=b"plain"))
    else:
        a.tell("s.x", b"plain")
    await a.append(schedule("y", 1.2))
    await fired(b, "y")
    assert await held(b, "w.x") == []
    assert await held(b, "s.x") == [b"x", b"plain"]
    await server.kill()
    await server.start()
    await until_link(b, up=True)
    assert (await fired(b, "x")).body == b"x"


async def test_a_covered_schedule_stays_covered_once_the_server_has_stopped_in_good_order(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await a.append(schedule("x", 0.7, b"x"))
    await a.append(Append(subject="s.x", body=b"plain"))
    await restart_in_good_order(server, a, b)
    await server.kill()
    await until_link(a, up=False)
    await server.start()
    await until_link(a, up=True)
    await until_link(b, up=True)
    await a.append(schedule("y", 1.0))
    await fired(b, "y")
    assert await held(b, "w.x") == []
    assert await held(b, "s.x") == [b"x", b"plain"]


async def test_h03_a_stale_schedule_with_a_fence_is_refused_and_one_without_is_accepted(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    first = await a.append(schedule("x", 3600.0, b"first", expect_last=0))
    second = await a.append(schedule("x", 3600.0, b"second", expect_last=first))
    with pytest.raises(Conflict):
        await b.append(schedule("x", 1.0, b"stale", expect_last=first))
    assert await held(b, "s.x") == [b"second"]
    assert await b.append(schedule("x", 3600.0, b"stale")) == second + 1
    assert await held(b, "s.x") == [b"stale"]


async def test_a_schedule_needs_a_stream_for_schedules_and_a_target_in_it(broker_pair: BrokerPair) -> None:
    a, _ = broker_pair
    due = time.time() + 3600
    for subject, target in (("h.x", "h.y"), ("s.x", "h.y"), ("s.x", "w.*"), ("s.x", "s.x"), ("s.x", "nowhere")):
        with pytest.raises(Rejected):
            await a.append(Append(subject=subject, schedule=Schedule(due=due, target=target)))
    with pytest.raises(Rejected):
        await a.append(Append(subject="h.x", neutralise=True))
    state = await a.stream_state("W")
    assert state is not None
    assert state.messages == 0


async def test_schedules_survive_the_death_of_the_server_and_overdue_ones_fire(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    await a.append(schedule("overdue", 0.5, b"overdue"))
    due = time.time() + 2.5
    await a.append(Append(subject="s.later", body=b"later", schedule=Schedule(due=due, target="w.later")))
    await server.kill()
    await until_link(a, up=False)
    await trio.sleep(0.8)  # until the first one is due
    await server.start()
    await until_link(b, up=True)
    assert (await fired(b, "overdue")).body == b"overdue"
    assert (await fired(b, "later")).time >= due - 0.01


async def test_h02_a_replacement_published_around_the_due_time_may_be_deleted_but_some_fire_always_comes(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    done: list[object] = []
    names = [f"x{n}" for n in range(40)]
    base = time.time() + 0.4
    for name in names:
        a.append_soon(
            Append(subject=f"s.{name}", body=b"1", schedule=Schedule(due=base, target=f"w.{name}")), done.append
        )
    for n, name in enumerate(names):
        await trio.sleep(max(0.0, base + (n - 20) * 0.004 - time.time()))
        again = Schedule(due=base + 1.0, target=f"w.{name}")
        a.append_soon(Append(subject=f"s.{name}", body=b"2", schedule=again), done.append)
    for name in names:
        assert (await fired(b, name)).body in (b"1", b"2")
    await a.append(schedule("end", base + 1.5 - time.time()))
    await fired(b, "end")
    assert all(isinstance(outcome, int) for outcome in done)
    for name in names:
        # Replaced in time, fired both, or fired once while its purge took the acknowledged replacement away.
        assert await held(b, f"w.{name}") in ([b"2"], [b"1", b"2"], [b"1"])


async def test_u09_a_fire_has_no_message_id_and_is_never_taken_for_a_duplicate(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await a.append(schedule("x", 0.3, b"fired", message_id="m"))
    await fired(b, "x")
    # The id is that of the schedule: who uses it again is told the schedule's sequence, and nothing is stored.
    assert await a.append(Append(subject="w.x", body=b"again", message_id="m")) == 1
    assert await held(b, "w.x") == [b"fired"]
    await a.append(schedule("x", 0.3, b"fired", message_id="other"))

    async def both_have_fired() -> bool:
        return len(await held(b, "w.x")) == 2

    await until(both_have_fired)
