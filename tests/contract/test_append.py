"""Publishing: expectations, duplicates, sizes, order, and what is said when something is wrong."""

from __future__ import annotations

import msgspec
import pytest
import trio

from durablefuture_trio.nats_bridge._wire import append_headers
from durablefuture_trio.ports.broker import (
    Append,
    AppendOutcome,
    Conflict,
    NoAnswer,
    Rejected,
    Schedule,
    TooLarge,
)
from tests._support.broker_servers import DEADLINE_S, ServerUnderTest, until, until_link
from tests.contract.conftest import BrokerPair
from tests.contract.differential import restart_in_good_order


class Outcomes:
    """Collects what `append_soon` reports."""

    def __init__(self) -> None:
        self.all: list[AppendOutcome] = []
        self._changed = trio.Event()

    def __call__(self, outcome: AppendOutcome) -> None:
        self.all.append(outcome)
        self._changed.set()

    async def wait_for(self, count: int) -> list[AppendOutcome]:
        with trio.fail_after(DEADLINE_S):
            while len(self.all) < count:
                self._changed = trio.Event()
                await self._changed.wait()
        return self.all


async def test_append_returns_the_sequence_and_stores_what_was_given(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    assert await a.append(Append(subject="h.1", body=b"\x00\xffbody", headers={"Kind": "signal", "X-Y": "ä b"})) == 1
    assert await b.append(Append(subject="h.2")) == 2
    stored = await b.last("H", "h.1")
    assert stored is not None
    assert (stored.subject, stored.seq, stored.body) == ("h.1", 1, b"\x00\xffbody")
    assert dict(stored.headers) == {"Kind": "signal", "X-Y": "ä b"}


async def test_expecting_nothing_on_a_subject_lets_exactly_one_in(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    assert await a.append(Append(subject="h.w.7", body=b"a", expect_last=0)) == 1
    with pytest.raises(Conflict):
        await b.append(Append(subject="h.w.7", body=b"b", expect_last=0))
    stored = await b.last("H", "h.w.7")
    assert stored is not None
    assert stored.body == b"a"


async def test_of_many_writers_of_one_number_exactly_one_wins(broker_pair: BrokerPair) -> None:
    outcomes = Outcomes()
    for n in range(20):
        for broker in broker_pair:
            broker.append_soon(Append(subject=f"h.w.{n}", expect_last=0), outcomes)
    results = await outcomes.wait_for(40)
    assert sum(isinstance(result, int) for result in results) == 20
    assert sum(isinstance(result, Conflict) for result in results) == 20


async def test_the_expected_sequence_is_that_of_this_very_subject(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    first = await a.append(Append(subject="h.x"))
    await a.append(Append(subject="h.y"))
    second = await b.append(Append(subject="h.x", expect_last=first))
    with pytest.raises(Conflict):
        await a.append(Append(subject="h.x", expect_last=first))
    with pytest.raises(Conflict):
        await a.append(Append(subject="h.x", expect_last=0))
    assert await a.append(Append(subject="h.x", expect_last=second)) == second + 1


async def test_a_subject_that_never_was_has_no_other_last_sequence_than_zero(broker_pair: BrokerPair) -> None:
    with pytest.raises(Conflict):
        await broker_pair.a.append(Append(subject="h.new", expect_last=3))


async def test_after_a_deletion_the_last_sequence_is_that_of_the_message_before(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    first = await a.append(Append(subject="h.x"))
    second = await a.append(Append(subject="h.x"))
    await a.delete("H", second)
    with pytest.raises(Conflict):
        await b.append(Append(subject="h.x", expect_last=second))
    third = await b.append(Append(subject="h.x", expect_last=first))
    await a.purge("H", "h.x")
    with pytest.raises(Conflict):
        await b.append(Append(subject="h.x", expect_last=third))
    assert await b.append(Append(subject="h.x", expect_last=0)) == third + 1


async def test_compare_and_set_on_a_stream_of_the_last_per_subject(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    first = await a.append(Append(subject="r.lease", body=b"1", expect_last=0))
    second = await b.append(Append(subject="r.lease", body=b"2", expect_last=first))
    with pytest.raises(Conflict):
        await a.append(Append(subject="r.lease", body=b"stale", expect_last=first))
    stored = await a.last("R", "r.lease", confirmed=True)
    assert stored is not None
    assert (stored.seq, stored.body) == (second, b"2")


async def test_the_same_message_id_again_returns_the_first_sequence_and_stores_nothing(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    first = await a.append(Append(subject="h.x", body=b"1", message_id="m"))
    assert await b.append(Append(subject="h.x", body=b"2", message_id="m")) == first
    assert await b.append(Append(subject="h.y", body=b"3", message_id="m")) == first
    assert [stored.body async for stored in a.scan("H", "h.>")] == [b"1"]


async def test_the_expectation_is_looked_at_before_the_message_id(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await a.append(Append(subject="h.x", message_id="m", expect_last=0))
    with pytest.raises(Conflict):
        await b.append(Append(subject="h.x", message_id="m", expect_last=0))


async def test_a_message_id_belongs_to_its_stream(broker_pair: BrokerPair) -> None:
    a, _ = broker_pair
    await a.append(Append(subject="h.x", message_id="m"))
    await a.append(Append(subject="r.x", message_id="m"))
    state = await a.stream_state("R")
    assert state is not None
    assert state.messages == 1


async def test_a_subject_no_stream_takes_is_rejected(broker_pair: BrokerPair) -> None:
    with pytest.raises(Rejected):
        await broker_pair.a.append(Append(subject="nowhere.x"))


async def test_h12_body_and_headers_over_max_payload_are_too_large_and_the_link_survives(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    generation = a.link.generation
    limit = a.limits.max_payload_bytes
    outcomes = Outcomes()
    a.append_soon(Append(subject="h.x", body=b"x" * limit, headers={"One": "more"}), outcomes)
    assert outcomes.all == []
    [outcome] = await outcomes.wait_for(1)
    assert isinstance(outcome, TooLarge)
    with pytest.raises(TooLarge):
        await a.append(Append(subject="h.x", body=b"x" * limit, expect_last=0))
    with pytest.raises(TooLarge):
        await a.append(Append(subject="h.x", body=b"x" * (limit + 1)))
    assert await a.append(Append(subject="h.x", body=b"x" * limit)) == 1
    assert await a.append(Append(subject="h.y", body=b"x" * (limit - 200), expect_last=0)) == 2
    assert (a.link.up, a.link.generation) == (True, generation)
    stored = await b.last("H", "h.x")
    assert stored is not None
    assert len(stored.body) == limit


async def test_append_soon_never_reports_from_within_the_call(broker_pair: BrokerPair) -> None:
    outcomes = Outcomes()
    for n in range(50):
        broker_pair.a.append_soon(Append(subject="h.x", body=b"%d" % n), outcomes)
        assert outcomes.all == []
    assert sorted(outcome for outcome in await outcomes.wait_for(50) if isinstance(outcome, int)) == list(range(1, 51))


async def test_publishes_of_one_link_are_stored_in_the_order_of_the_calls(broker_pair: BrokerPair) -> None:
    outcomes = Outcomes()
    for n in range(300):
        broker_pair.a.append_soon(Append(subject="h.x", body=b"%d" % n), outcomes)
    await outcomes.wait_for(300)
    assert [stored.body async for stored in broker_pair.b.scan("H", "h.x")] == [b"%d" % n for n in range(300)]


async def test_append_soon_may_be_called_from_an_outcome(broker_pair: BrokerPair) -> None:
    a, _ = broker_pair
    outcomes = Outcomes()

    def again(outcome: AppendOutcome) -> None:
        outcomes(outcome)
        if isinstance(outcome, int) and outcome < 20:
            a.append_soon(Append(subject="h.x", expect_last=outcome), again)

    a.append_soon(Append(subject="h.x", expect_last=0), again)
    assert await outcomes.wait_for(20) == list(range(1, 21))


async def test_a_cancelled_append_has_been_sent_and_lands(broker_pair: BrokerPair, server: ServerUnderTest) -> None:
    a, b = broker_pair
    server.pause()
    with trio.move_on_after(0.05) as scope:
        await a.append(Append(subject="h.x", body=b"cancelled", expect_last=0))
    assert scope.cancelled_caught
    server.resume()
    with pytest.raises(Conflict):  # sent before, on the same link, so stored before
        await a.append(Append(subject="h.x", body=b"again", expect_last=0))
    stored = await b.last("H", "h.x")
    assert stored is not None
    assert stored.body == b"cancelled"


async def test_silence_becomes_no_answer_and_the_publish_may_still_land(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    _, b = broker_pair
    a = await server.connect("impatient", answer_timeout=0.8)
    server.pause()
    started = trio.current_time()
    with pytest.raises(NoAnswer):
        await a.append(Append(subject="h.x", body=b"late", expect_last=0))
    assert 0.79 < trio.current_time() - started < 5
    with pytest.raises(NoAnswer):
        await a.last("H", "h.x")
    server.resume()

    async def it_has_landed() -> bool:
        return await b.last("H", "h.x", confirmed=True) is not None

    await until(it_has_landed)
    with pytest.raises(Conflict):
        await b.append(Append(subject="h.x", body=b"again", expect_last=0))
    stored = await b.last("H", "h.x", confirmed=True)
    assert stored is not None
    assert stored.body == b"late"


async def test_the_loss_of_the_link_is_no_answer_at_once_for_all_who_wait(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, _ = broker_pair
    outcomes = Outcomes()
    server.pause()
    for n in range(5):
        a.append_soon(Append(subject=f"h.{n}"), outcomes)
    started = trio.current_time()
    server.drop_link(a)
    assert all(isinstance(outcome, NoAnswer) for outcome in await outcomes.wait_for(5))
    assert trio.current_time() - started < 5
    server.resume()


async def test_without_a_link_there_is_no_answer_and_nothing_is_sent_later(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    server.drop_link(a)
    await until_link(a, up=False)
    with pytest.raises(NoAnswer):
        await a.append(Append(subject="h.x", body=b"never"))
    with pytest.raises(NoAnswer):
        await a.last("H", "h.x")
    server.mend_link(a)
    await until_link(a, up=True)
    await a.append(Append(subject="h.y"))
    assert await b.last("H", "h.x", confirmed=True) is None


async def test_what_was_acknowledged_survives_the_death_of_the_server(
    broker_pair: BrokerPair, server: ServerUnderTest
) -> None:
    a, b = broker_pair
    for n in range(20):
        await a.append(Append(subject=f"h.{n}", body=b"%d" % n, expect_last=0))
    await server.kill()
    await until_link(a, up=False)
    await server.start()
    for broker in (a, b):
        await until_link(broker, up=True)
    assert [stored.body async for stored in b.scan("H", "h.>")] == [b"%d" % n for n in range(20)]
    with pytest.raises(Conflict):
        await a.append(Append(subject="h.3", expect_last=0))


@pytest.mark.parametrize(
    "append",
    [
        Append(subject=""),
        Append(subject="h.a b"),
        Append(subject="h.\r\nPUB"),
        Append(subject="h." + "x" * 900),
        Append(subject="h.x", headers={"A": "1\r\nB: 2"}),
        Append(subject="h.x", headers={"A b": "1"}),
        Append(subject="s.x", schedule=Schedule(due=1.0, target="")),
    ],
)
async def test_what_the_wire_cannot_carry_is_refused_within_the_call(broker_pair: BrokerPair, append: Append) -> None:
    outcomes = Outcomes()
    with pytest.raises(ValueError, match="not a NATS"):
        broker_pair.a.append_soon(append, outcomes)
    if append.schedule is None:
        with pytest.raises(ValueError, match="not a NATS"):
            broker_pair.a.tell(append.subject, b"", append.headers)
    assert await broker_pair.a.append(Append(subject="h.y")) == 1
    assert outcomes.all == []


@pytest.mark.parametrize(
    "append",
    [
        Append(subject="h.x"),
        Append(subject="h.x", headers={"A": "ü€", "Longer-Name": "1 2"}),
        Append(subject="h.x", expect_last=0, message_id="mü"),
        Append(subject="s.x", schedule=Schedule(due=4_000_000_000.25, target="w.x")),
    ],
)
async def test_h12_a_message_of_exactly_max_payload_is_taken_and_one_byte_more_is_too_large(
    broker_pair: BrokerPair, append: Append
) -> None:
    a, _ = broker_pair
    room = a.limits.max_payload_bytes - len(append_headers(append))
    with pytest.raises(TooLarge):
        await a.append(msgspec.structs.replace(append, body=b"x" * (room + 1)))
    assert await a.append(msgspec.structs.replace(append, body=b"x" * room)) == 1


async def test_h12_a_core_message_over_max_payload_is_too_large(broker_pair: BrokerPair) -> None:
    with pytest.raises(TooLarge):
        broker_pair.a.tell("x.1", b"x" * broker_pair.a.limits.max_payload_bytes, {"One": "more"})


async def test_of_several_reasons_to_refuse_the_same_one_is_given(broker_pair: BrokerPair) -> None:
    a, _ = broker_pair
    await a.append(Append(subject="h.x", message_id="m"))
    await a.append(Append(subject="s.x", message_id="m"))
    good, bad = Schedule(due=4e9, target="w.x"), Schedule(due=4e9, target="h.x")
    refused: list[tuple[Append, object]] = [
        # A time to live where the stream knows none comes first, then the expectation, then what is wrong with a
        # schedule, and at last the message id.
        (Append(subject="h.x", neutralise=True, expect_last=7, message_id="m"), 10166),
        (Append(subject="h.x", schedule=bad, expect_last=7, message_id="m"), Conflict),
        (Append(subject="s.x", schedule=bad, expect_last=7, message_id="m"), Conflict),
        (Append(subject="h.x", schedule=bad, expect_last=1, message_id="m"), 10188),
        (Append(subject="s.x", schedule=bad, expect_last=1, message_id="m"), 10190),
        (Append(subject="s.x", schedule=good, expect_last=1, message_id="m"), 1),
        (Append(subject="s.x", neutralise=True, expect_last=1, message_id="m"), 1),
    ]
    said: list[object] = []
    for append, _wanted in refused:
        try:
            said.append(await a.append(append))
        except Rejected as error:
            said.append(error.code)
        except Conflict:
            said.append(Conflict)
    assert said == [wanted for _append, wanted in refused]


async def test_h04_a_read_right_behind_a_publish_may_find_nothing_and_the_message_lands_all_the_same(
    broker_pair: BrokerPair,
) -> None:
    a, _ = broker_pair
    outcomes = Outcomes()
    for n in range(20):
        a.append_soon(Append(subject=f"h.{n}", body=b"%d" % n, expect_last=0), outcomes)
        found = await a.last("H", f"h.{n}", confirmed=n % 2 == 0)
        assert found is None or found.body == b"%d" % n
    assert await outcomes.wait_for(20) == list(range(1, 21))
    assert [stored.body async for stored in a.scan("H", "h.>")] == [b"%d" % n for n in range(20)]


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_u20_a_server_that_comes_back_knows_the_message_ids_of_what_it_still_holds_and_no_others(
    broker_pair: BrokerPair, server: ServerUnderTest, end: str
) -> None:
    a, b = broker_pair
    gone = await a.append(Append(subject="h.gone", message_id="gone"))
    kept = await a.append(Append(subject="h.kept", message_id="kept"))
    await a.delete("H", gone)
    assert await a.append(Append(subject="h.gone", message_id="gone")) == gone
    if end == "stop":
        await restart_in_good_order(server, a, b)
    else:
        await server.kill()
        await until_link(a, up=False)
        await server.start()
        await until_link(a, up=True)
    assert await a.append(Append(subject="h.kept", message_id="kept")) == kept
    assert await a.append(Append(subject="h.gone", message_id="gone")) == kept + 1
