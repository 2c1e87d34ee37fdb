"""Streams: made once, checked afterwards, and what they say of themselves."""

from __future__ import annotations

import msgspec
import pytest
import trio

from durablefuture_trio.ports.broker import Append, Rejected, StreamDrift, StreamSpec
from tests._support.broker_servers import STREAMS, ServerUnderTest
from tests.contract.conftest import BrokerPair


async def test_a_new_stream_is_empty(broker_pair: BrokerPair) -> None:
    state = await broker_pair.b.stream_state("H")
    assert state is not None
    assert (state.messages, state.last_seq, state.consumers) == (0, 0, 0)
    assert state.created


async def test_there_is_no_state_of_a_stream_that_does_not_exist(broker_pair: BrokerPair) -> None:
    assert await broker_pair.a.stream_state("NONE") is None


async def test_provisioning_again_changes_nothing(broker_pair: BrokerPair) -> None:
    await broker_pair.a.append(Append(subject="h.1"))
    before = await broker_pair.a.stream_state("H")
    await broker_pair.b.provision(STREAMS)
    assert await broker_pair.b.stream_state("H") == before


async def test_two_who_provision_at_the_same_time_both_succeed(server: ServerUnderTest) -> None:
    a, b = await server.connect("a"), await server.connect("b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.provision, STREAMS)
        nursery.start_soon(b.provision, STREAMS)
    assert await a.append(Append(subject="h.1", expect_last=0)) == 1


async def test_a_stream_with_another_retention_has_drifted_and_stays_as_it_is(broker_pair: BrokerPair) -> None:
    wanted = msgspec.structs.replace(STREAMS[0], retention="workqueue")
    with pytest.raises(StreamDrift) as caught:
        await broker_pair.a.provision([wanted])
    assert caught.value.stream == "H"
    assert [line.split(":")[0] for line in caught.value.differences] == ["retention"]
    await broker_pair.a.provision(STREAMS)


async def test_a_stream_with_other_subjects_has_drifted(broker_pair: BrokerPair) -> None:
    with pytest.raises(StreamDrift) as caught:
        await broker_pair.a.provision([StreamSpec(name="H", subjects=("h.>", "also.>"))])
    assert [line.split(":")[0] for line in caught.value.differences] == ["subjects"]


async def test_a_stream_without_schedules_has_drifted_from_one_with(broker_pair: BrokerPair) -> None:
    with pytest.raises(StreamDrift):
        await broker_pair.a.provision([msgspec.structs.replace(STREAMS[0], schedules=True)])


async def test_a_stream_that_keeps_all_has_drifted_from_one_that_keeps_the_last_per_subject(
    broker_pair: BrokerPair,
) -> None:
    with pytest.raises(StreamDrift):
        await broker_pair.a.provision([msgspec.structs.replace(STREAMS[0], last_per_subject=True)])


async def test_a_stream_cannot_take_the_subjects_of_another(broker_pair: BrokerPair) -> None:
    with pytest.raises(Rejected):
        await broker_pair.a.provision([StreamSpec(name="X", subjects=("h.1.*",))])


async def test_the_state_follows_appends_and_deletions(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    seqs = [await a.append(Append(subject=f"h.{n}")) for n in range(4)]
    await a.delete("H", seqs[0])
    await a.delete("H", seqs[2])
    state = await b.stream_state("H")
    assert state is not None
    assert (state.messages, state.first_seq, state.last_seq) == (2, seqs[1], seqs[3])


async def test_an_emptied_stream_goes_on_counting(broker_pair: BrokerPair) -> None:
    a, _ = broker_pair
    last = [await a.append(Append(subject="h.1")) for _ in range(3)][-1]
    assert await a.purge("H", "h.>") == 3
    state = await a.stream_state("H")
    assert state is not None
    assert (state.messages, state.first_seq, state.last_seq) == (0, last + 1, last)
    assert await a.append(Append(subject="h.1")) == last + 1


async def test_a_stream_of_the_last_per_subject_keeps_only_that(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for body in (b"1", b"2", b"3"):
        await a.append(Append(subject="r.x", body=body))
    await a.append(Append(subject="r.y", body=b"other"))
    assert [(stored.subject, stored.body) async for stored in b.scan("R", "r.>")] == [("r.x", b"3"), ("r.y", b"other")]


async def test_delete_says_whether_the_message_was_there(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    seq = await a.append(Append(subject="h.1"))
    assert await b.delete("H", seq) is True
    assert await b.delete("H", seq) is False
    assert await b.delete("H", seq + 100) is False


async def test_purge_keeps_the_last_ones_and_leaves_other_subjects_alone(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    seqs = [await a.append(Append(subject="h.x")) for _ in range(4)]
    other = await a.append(Append(subject="h.y"))
    assert await b.purge("H", "h.x", keep=2) == 2
    assert [stored.seq async for stored in a.scan("H", "h.>")] == [*seqs[2:], other]


async def test_purge_takes_wildcards(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for subject in ("h.x.1", "h.x.2", "h.y.1"):
        await a.append(Append(subject=subject))
    assert await b.purge("H", "h.x.*") == 2
    assert [stored.subject async for stored in a.scan("H", "h.>")] == ["h.y.1"]


async def test_questions_about_a_stream_that_does_not_exist_are_rejected(broker_pair: BrokerPair) -> None:
    a, _ = broker_pair
    for question in (
        lambda: a.last("NONE", "x"),
        lambda: a.last("NONE", "x", confirmed=True),
        lambda: a.many("NONE", ["x"]),
        lambda: a.consumers("NONE"),
        lambda: a.purge("NONE", "x"),
        lambda: a.delete("NONE", 1),
        lambda: a.delete_consumer("NONE", "x"),
    ):
        with pytest.raises(Rejected):
            await question()
    with pytest.raises(Rejected):
        async for _stored in a.scan("NONE", "x"):
            pass
    with pytest.raises(Rejected):
        async with a.open_reader("NONE", "x", "x", ack_wait=None):
            pass


async def test_a_purge_of_everything_moves_the_first_sequence_of_a_stream_that_held_nothing(
    broker_pair: BrokerPair,
) -> None:
    a, b = broker_pair
    for pattern, first_seq in (("h.>", 0), (">", 1)):
        assert await a.purge("H", pattern) == 0
        state = await b.stream_state("H")
        assert state is not None
        assert (state.first_seq, state.last_seq) == (first_seq, 0)
