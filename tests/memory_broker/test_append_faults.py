"""What can happen to a publish."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.memory_broker import AppendFate, FaultPlan, MemoryServer
from durablefuture_trio.ports.broker import Append, AppendOutcome, Conflict, NoAnswer


def bodies(server: MemoryServer, subject: str = "h.>") -> list[bytes]:
    """What the server itself holds, whatever links would show."""
    return [stored.body for stored in server.page("H", subject, 0, 1000)]


async def test_h04_a_late_append_is_given_up_and_lands_afterwards(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A", answer_timeout=5.0)
    server.faults.next_append(AppendFate(lands_after=8.0))
    with pytest.raises(NoAnswer):
        await broker.append(Append(subject="h.1", body=b"late", expect_last=0))
    assert trio.current_time() == pytest.approx(5.0)
    assert await broker.last("H", "h.1", confirmed=True) is None
    await trio.sleep(2.9)
    assert bodies(server) == []
    await trio.sleep(0.2)
    assert bodies(server) == [b"late"]


async def test_h04_a_late_append_takes_a_number_from_the_one_who_gave_it_up(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    a = server.connect("A")
    server.faults.next_append(AppendFate(lands_after=8.0))
    with pytest.raises(NoAnswer):
        await a.append(Append(subject="h.7", body=b"first", expect_last=0))
    await trio.sleep(5)
    with pytest.raises(Conflict):
        await a.append(Append(subject="h.7", body=b"rebuilt", expect_last=0))
    assert bodies(server) == [b"first"]


async def test_h03_a_late_append_is_overtaken_and_overwrites_what_came_after_it(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    a, b = server.connect("A"), server.connect("B")
    server.faults.next_append(AppendFate(lands_after=6.0))
    with pytest.raises(NoAnswer):
        await a.append(Append(subject="r.x", body=b"stale"))
    await b.append(Append(subject="r.x", body=b"new"))
    await trio.sleep(2)
    stored = await b.last("R", "r.x")
    assert stored is not None
    assert stored.body == b"stale"


async def test_a_late_append_that_lost_its_number_harms_nobody(autojump_clock: MockClock, server: MemoryServer) -> None:
    a, b = server.connect("A"), server.connect("B")
    server.faults.next_append(AppendFate(lands_after=6.0))
    with pytest.raises(NoAnswer):
        await a.append(Append(subject="h.7", body=b"a", expect_last=0))
    await b.append(Append(subject="h.7", body=b"b", expect_last=0))
    await trio.sleep(2)
    assert bodies(server) == [b"b"]


async def test_a_lost_puback_leaves_a_stored_message_and_no_answer(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A", answer_timeout=3.0)
    server.faults.next_append(AppendFate(answered=False))
    with pytest.raises(NoAnswer):
        await broker.append(Append(subject="h.1", body=b"x"))
    assert trio.current_time() == pytest.approx(3.0)
    assert bodies(server) == [b"x"]


async def test_a_dropped_append_is_never_stored(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    server.faults.next_append(AppendFate(lands_after=None))
    with pytest.raises(NoAnswer):
        await broker.append(Append(subject="h.1"))
    await trio.sleep(1000)
    assert bodies(server) == []
    assert await broker.append(Append(subject="h.1")) == 1


async def test_a_delayed_answer_comes_later_than_what_the_server_did(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    outcomes: list[AppendOutcome] = []
    server.faults.next_append(AppendFate(answer_after=2.0))
    broker.append_soon(Append(subject="h.1", body=b"x"), outcomes.append)
    await trio.sleep(1.9)
    assert bodies(server) == [b"x"]
    assert outcomes == []
    await trio.sleep(0.2)
    assert outcomes == [1]


async def test_an_answer_delayed_past_the_timeout_is_no_answer_once(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A", answer_timeout=5.0)
    outcomes: list[AppendOutcome] = []
    server.faults.next_append(AppendFate(answer_after=7.0))
    broker.append_soon(Append(subject="h.1", body=b"x"), outcomes.append)
    await trio.sleep(20)
    assert [type(outcome) for outcome in outcomes] == [NoAnswer]
    assert bodies(server) == [b"x"]


async def test_h04_with_a_store_delay_a_read_right_after_the_publish_finds_nothing(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A", faults=FaultPlan(store_delay=(0.01, 0.02)))
    outcomes: list[AppendOutcome] = []
    for n in range(20):
        broker.append_soon(Append(subject=f"h.{n}", expect_last=0), outcomes.append)
        assert await broker.last("H", f"h.{n}", confirmed=True) is None
    await trio.sleep(0.1)
    assert outcomes == list(range(1, 21))


async def test_latency_keeps_the_order_of_a_link(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A", faults=FaultPlan(latency=(0.001, 0.5), store_delay=(0.0, 0.3)))
    outcomes: list[AppendOutcome] = []
    for n in range(50):
        broker.append_soon(Append(subject="h.1", body=b"%d" % n), outcomes.append)
    assert bodies(server) == []
    await trio.sleep(5)
    assert bodies(server) == [b"%d" % n for n in range(50)]
    assert outcomes == list(range(1, 51))


async def test_latency_is_paid_both_ways(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A", faults=FaultPlan(latency=(0.2, 0.2)))
    await broker.append(Append(subject="h.1"))
    assert trio.current_time() == pytest.approx(0.4)
    await broker.last("H", "h.1")
    assert trio.current_time() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("plan", "answers", "stored"),
    [
        (FaultPlan(), 100, 100),
        (FaultPlan(late_append=0.5), (30, 70), 100),
        (FaultPlan(lost_puback=0.5), (30, 70), 100),
        (FaultPlan(dropped_append=0.5), (30, 70), (30, 70)),
        (FaultPlan(delayed_answer=0.5, delayed_answer_by=(6.0, 7.0)), (30, 70), 100),
    ],
    ids=["healthy", "late", "lost puback", "dropped", "delayed"],
)
async def test_a_probability_hits_its_share(
    autojump_clock: MockClock,
    server: MemoryServer,
    plan: FaultPlan,
    answers: int | tuple[int, int],
    stored: int | tuple[int, int],
) -> None:
    broker = server.connect("A", faults=plan)
    outcomes: list[AppendOutcome] = []
    for n in range(100):
        broker.append_soon(Append(subject=f"h.{n}"), outcomes.append)
    await trio.sleep(60)
    assert len(outcomes) == 100
    for count, wanted in ((sum(isinstance(o, int) for o in outcomes), answers), (len(bodies(server)), stored)):
        low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        assert low <= count <= high


async def test_every_link_has_its_own_faults(autojump_clock: MockClock, server: MemoryServer) -> None:
    a, b = server.connect("A", faults=FaultPlan(dropped_append=1.0)), server.connect("B")
    with pytest.raises(NoAnswer):
        await a.append(Append(subject="h.1"))
    assert await b.append(Append(subject="h.1")) == 1


async def test_a_hook_may_decide(autojump_clock: MockClock, server: MemoryServer) -> None:
    asked: list[tuple[str, str]] = []

    def hook(link: str, append: Append) -> AppendFate | None:
        asked.append((link, append.subject))
        return AppendFate(lands_after=None) if append.subject == "h.bad" else None

    server.faults.append_hook = hook
    broker = server.connect("A")
    assert await broker.append(Append(subject="h.good")) == 1
    with pytest.raises(NoAnswer):
        await broker.append(Append(subject="h.bad"))
    assert asked == [("A", "h.good"), ("A", "h.bad")]


async def test_a_script_waits_for_its_subject_and_is_used_up(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    server.faults.next_append(AppendFate(lands_after=None), subject="h.*.2", count=2)
    assert await broker.append(Append(subject="h.x.1")) == 1
    for _ in range(2):
        with pytest.raises(NoAnswer):
            await broker.append(Append(subject="h.x.2"))
    assert await broker.append(Append(subject="h.x.2")) == 2


@pytest.mark.parametrize("lands", [False, True])
async def test_what_is_under_way_when_the_link_is_lost_lands_or_not(
    autojump_clock: MockClock, server: MemoryServer, lands: bool
) -> None:
    plan = FaultPlan(latency=(0.1, 0.1), lands_after_link_loss=float(lands), lands_after_link_loss_by=(3.0, 3.0))
    broker = server.connect("A", faults=plan)
    outcomes: list[AppendOutcome] = []
    broker.append_soon(Append(subject="h.1", body=b"x"), outcomes.append)
    broker.link.drop(restore_after=1.0)
    assert outcomes == []
    await trio.sleep(0.01)
    assert [type(outcome) for outcome in outcomes] == [NoAnswer]
    await trio.sleep(2.9)
    assert bodies(server) == []
    await trio.sleep(1.0)
    assert bodies(server) == ([b"x"] if lands else [])
    assert len(outcomes) == 1


async def test_h03_what_is_sent_into_a_lost_link_may_land_after_it_is_back(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    a = server.connect("A", faults=FaultPlan(lands_after_link_loss=1.0, lands_after_link_loss_by=(4.0, 4.0)))
    b = server.connect("B")
    a.link.drop(restore_after=1.0)
    with pytest.raises(NoAnswer):
        await a.append(Append(subject="r.x", body=b"buffered"))
    await b.append(Append(subject="r.x", body=b"new"))
    await trio.sleep(4.1)
    stored = await b.last("R", "r.x")
    assert stored is not None
    assert stored.body == b"buffered"


async def test_what_is_under_way_when_the_server_dies_is_gone(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A", faults=FaultPlan(latency=(0.1, 0.1), lands_after_link_loss=1.0))
    outcomes: list[AppendOutcome] = []
    broker.append_soon(Append(subject="h.1"), outcomes.append)
    server.restart()
    await trio.sleep(60)
    assert [type(outcome) for outcome in outcomes] == [NoAnswer]
    assert bodies(server) == []


async def test_the_death_of_a_process_calls_nobody_back_and_what_it_sent_may_land(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    plan = FaultPlan(latency=(0.1, 0.1), lands_after_link_loss=1.0, lands_after_link_loss_by=(1.0, 1.0))
    broker = server.connect("A", faults=plan)
    outcomes: list[AppendOutcome] = []
    broker.append_soon(Append(subject="h.1", body=b"x"), outcomes.append)
    broker.kill()
    broker.append_soon(Append(subject="h.2", body=b"after death"), outcomes.append)
    await trio.sleep(60)
    assert outcomes == []
    assert bodies(server) == [b"x"]


async def test_u20_a_killed_server_forgets_the_message_ids_of_what_it_holds_no_longer(
    autojump_clock: MockClock, server: MemoryServer
) -> None:
    broker = server.connect("A")
    gone = await broker.append(Append(subject="h.gone", message_id="gone"))
    kept = await broker.append(Append(subject="h.kept", message_id="kept"))
    await broker.delete("H", gone)
    assert await broker.append(Append(subject="h.gone", message_id="gone")) == gone
    server.restart()
    assert await broker.append(Append(subject="h.kept", message_id="kept")) == kept
    assert await broker.append(Append(subject="h.gone", message_id="gone")) == kept + 1


async def test_u20_a_message_id_is_forgotten_after_two_minutes(autojump_clock: MockClock, server: MemoryServer) -> None:
    broker = server.connect("A")
    first = await broker.append(Append(subject="h.x", message_id="m"))
    await trio.sleep(119)
    assert await broker.append(Append(subject="h.x", message_id="m")) == first
    await trio.sleep(2)
    assert await broker.append(Append(subject="h.x", message_id="m")) == first + 1
