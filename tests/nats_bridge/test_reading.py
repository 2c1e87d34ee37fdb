"""Direct reads, batches, pages, deletes."""

from __future__ import annotations

import pytest
import trio

from durablefuture_trio.nats_bridge import NatsBroker, _js_api
from durablefuture_trio.ports.broker import Append, Incomplete, Rejected


async def fill(broker: NatsBroker, count: int, body: bytes = b"") -> None:
    for number in range(1, count):
        broker.append_soon(Append(subject=f"h.0.id.{number}", body=body or b"%d" % number), lambda _: None)
    await broker.append(Append(subject=f"h.0.id.{count}", body=body or b"%d" % count))


async def test_h17_a_thousand_literals_come_in_one_answer_and_in_order(broker: NatsBroker) -> None:
    await fill(broker, 1500)
    subjects = [f"h.0.id.{number}" for number in range(301, 1301)]
    with trio.fail_after(5):
        found = await broker.many("H", subjects)
    assert [message.subject for message in found] == subjects
    assert [message.seq for message in found] == list(range(301, 1301))


async def test_many_leaves_out_what_is_absent_and_takes_the_last_of_each(broker: NatsBroker) -> None:
    assert await broker.many("H", []) == []
    assert await broker.many("H", ["h.none"]) == []
    await broker.append(Append(subject="h.a", body=b"1"))
    await broker.append(Append(subject="h.b", body=b"2"))
    await broker.append(Append(subject="h.a", body=b"3"))
    found = await broker.many("H", ["h.a", "h.none", "h.b"])
    assert [(message.subject, message.body) for message in found] == [("h.b", b"2"), ("h.a", b"3")]
    assert [message.seq for message in await broker.many("H", ["h.*"])] == [2, 3]


async def test_many_refuses_what_the_server_would_not_answer(broker: NatsBroker) -> None:
    with pytest.raises(ValueError, match="1000"):
        await broker.many("H", [f"h.{number}" for number in range(1001)])
    await fill(broker, 1100)
    with pytest.raises(Rejected, match="413"):
        await broker.many("H", ["h.0.id.*"])


async def test_many_goes_on_where_the_server_ends_an_answer_at_its_limit_of_bytes(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = broker.link.request
    questions: list[object] = []

    async def counting(*args: object) -> list[tuple[bytes, bytes | None]]:
        questions.append(args)
        return await request(*args)  # type: ignore[arg-type]  # handed on as they came

    await fill(broker, 60, b"x" * 2_000_000)
    monkeypatch.setattr(broker.link, "request", counting)
    with trio.fail_after(30):
        found = await broker.many("H", [f"h.0.id.{number}" for number in range(1, 61)])
    assert [message.seq for message in found] == list(range(1, 61))
    assert all(len(message.body) == 2_000_000 for message in found)
    assert len(questions) > 1, "the server sent it all in one answer: the test proves nothing"


async def test_scan_pages_through_everything_above_a_sequence(broker: NatsBroker) -> None:
    await fill(broker, 2500)
    assert [message.seq async for message in broker.scan("H", "h.>")] == list(range(1, 2501))
    assert [message.seq async for message in broker.scan("H", "h.>", after=2000)] == list(range(2001, 2501))
    assert [message.seq async for message in broker.scan("H", "h.>", after=2500)] == []
    assert [message.seq async for message in broker.scan("H", "h.0.id.77")] == [77]
    assert [message.seq async for message in broker.scan("H", "h.none.>")] == []


async def test_scan_pages_by_bytes_too_and_skips_what_was_deleted(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_js_api, "PAGE_BYTES", 10_000)
    await fill(broker, 50, b"x" * 3000)
    assert await broker.delete("H", 20)
    assert [message.seq async for message in broker.scan("H", "h.>")] == [n for n in range(1, 51) if n != 20]


async def test_a_scan_may_be_left_at_any_point(broker: NatsBroker) -> None:
    await fill(broker, 10)
    async for message in broker.scan("H", "h.>"):
        if message.seq == 3:
            break
    assert message.seq == 3


async def test_h16_an_answer_with_a_hole_is_incomplete_and_not_a_shorter_history(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(broker, 10)
    request = broker.link.request

    async def losing(*args: object) -> list[tuple[bytes, bytes | None]]:
        answers = await request(*args)  # type: ignore[arg-type]  # handed on as they came
        del answers[lose]
        return answers

    monkeypatch.setattr(broker.link, "request", losing)
    for lose in (4, 9):  # noqa: B007 - read in losing()
        with pytest.raises(Incomplete):
            await broker.many("H", [f"h.0.id.{number}" for number in range(1, 11)])


async def test_last_finds_the_highest_sequence_under_a_wildcard(broker: NatsBroker) -> None:
    await fill(broker, 5)
    await broker.append(Append(subject="h.0.id.2", body=b"again"))
    for confirmed in (False, True):
        found = await broker.last("H", "h.0.id.*", confirmed=confirmed)
        assert found is not None
        assert (found.subject, found.seq, found.body) == ("h.0.id.2", 6, b"again")
        assert await broker.last("H", "h.none", confirmed=confirmed) is None


async def test_reading_a_stream_that_does_not_exist_is_rejected(broker: NatsBroker) -> None:
    assert await broker.stream_state("NONE") is None
    for confirmed in (False, True):
        with pytest.raises(Rejected):
            await broker.last("NONE", "h.a", confirmed=confirmed)
    with pytest.raises(Rejected):
        await broker.many("NONE", ["h.a"])


async def test_delete_and_purge_say_what_they_did(broker: NatsBroker) -> None:
    await fill(broker, 10)
    assert await broker.delete("H", 3) is True
    assert await broker.delete("H", 3) is False
    assert await broker.delete("H", 1000) is False
    assert await broker.purge("H", "h.0.id.4") == 1
    assert await broker.purge("H", "h.0.>", keep=2) == 6
    assert [message.seq async for message in broker.scan("H", "h.>")] == [9, 10]
    state = await broker.stream_state("H")
    assert state is not None
    assert (state.messages, state.first_seq, state.last_seq) == (2, 9, 10)
