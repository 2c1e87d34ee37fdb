"""What can happen to a read."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from durablefuture_trio.memory_broker import FaultPlan, MemoryServer, ReadFate
from durablefuture_trio.ports.broker import Append, Incomplete, NoAnswer


async def test_h16_an_unconfirmed_last_may_be_stale_and_a_confirmed_one_is_not(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A", faults=FaultPlan(stale_read=1.0, stale_read_by=1))
    for n in (1, 2):
        await broker.append(Append(subject="h.x", body=b"%d" % n))
    stale, fresh = await broker.last("H", "h.>"), await broker.last("H", "h.>", confirmed=True)
    assert stale is not None
    assert fresh is not None
    assert (stale.body, fresh.body) == (b"1", b"2")


async def test_h16_a_stale_read_finds_no_message_just_appended(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    await broker.append(Append(subject="h.w.1"))
    server.faults.next_read(ReadFate(stale_by=1))
    assert await broker.last("H", "h.w.>") is None
    assert await broker.last("H", "h.w.>") is not None


async def test_a_stale_read_of_the_last_per_subject_shows_the_record_before(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    await broker.append(Append(subject="r.x", body=b"1"))
    await broker.append(Append(subject="r.x", body=b"2"))
    server.faults.next_read(ReadFate(stale_by=2))  # two changes: the new record came, the old one went
    stored = await broker.last("R", "r.x")
    assert stored is not None
    assert stored.body == b"1"


async def test_a_stale_read_shows_what_was_deleted_since(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    await broker.delete("H", await broker.append(Append(subject="h.x", body=b"deleted")))
    server.faults.next_read(ReadFate(stale_by=1))
    assert [stored.body for stored in await broker.many("H", ["h.x"])] == [b"deleted"]
    assert await broker.many("H", ["h.x"]) == []


async def test_h16_a_stale_many_is_a_shorter_history(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    subjects = [f"h.w.{n}" for n in range(5)]
    for subject in subjects:
        await broker.append(Append(subject=subject))
    server.faults.next_read(ReadFate(stale_by=2))
    assert [stored.subject for stored in await broker.many("H", subjects)] == subjects[:3]


async def test_a_batched_read_may_break_off(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A", faults=FaultPlan(incomplete_read=1.0))
    await broker.append(Append(subject="h.x"))
    with pytest.raises(Incomplete):
        await broker.many("H", ["h.x"])
    with pytest.raises(Incomplete):
        async for _ in broker.scan("H", "h.x"):
            pass
    assert await broker.last("H", "h.x") is not None


async def test_a_read_may_remain_without_answer(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A", faults=FaultPlan(unanswered_read=1.0))
    for confirmed in (False, True):
        with pytest.raises(NoAnswer):
            await broker.last("H", "h.x", confirmed=confirmed)
    with pytest.raises(NoAnswer):
        await broker.many("H", ["h.x"])


async def test_stale_reads_hit_their_share_and_never_go_back_further_than_told(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A", faults=FaultPlan(stale_read=0.5, stale_read_by=3))
    behind = []
    for n in range(1, 201):
        await broker.append(Append(subject="h.x"))
        stored = await broker.last("H", "h.x")
        behind.append(n - (stored.seq if stored is not None else 0))
    assert max(behind) == 3
    assert 60 <= sum(distance > 0 for distance in behind) <= 140
