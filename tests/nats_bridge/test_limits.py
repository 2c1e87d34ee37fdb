"""Sizes, full stores, and what cannot be put on the wire."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel

from durablefuture_trio.nats_bridge import ConnectOptions, NatsBroker, open_broker
from durablefuture_trio.ports.broker import Append, AppendOutcome, NoAnswer, Rejected, StoreFull, StreamSpec, TooLarge
from tests._support.nats_server import nats_server


async def test_h12_headers_count_towards_max_payload_and_nothing_too_large_is_sent() -> None:
    limit = 100_000
    async with nats_server(max_payload=limit) as server, open_broker(ConnectOptions(urls=(server.url,))) as broker:
        await broker.provision([StreamSpec(name="H", subjects=("h.>",))])
        headers = {"k": "v"}
        overhead = len(b"NATS/1.0\r\nk: v\r\n\r\n")
        fits = b"x" * (limit - overhead)
        assert await broker.append(Append(subject="h.a", body=fits, headers=headers)) == 1
        with pytest.raises(TooLarge, match="100001"):
            await broker.append(Append(subject="h.a", body=fits + b"x", headers=headers))
        outcomes: list[AppendOutcome] = []
        broker.append_soon(Append(subject="h.a", body=b"x" * (limit + 1)), outcomes.append)
        assert outcomes == []
        assert await broker.append(Append(subject="h.a", body=b"x" * limit)) == 2
        assert [type(outcome) for outcome in outcomes] == [TooLarge]
        with pytest.raises(TooLarge):
            broker.tell("hints", b"x" * (limit + 1))
        assert broker.link.generation == 1, "the server cut the connection"


async def test_a_full_store_is_told_and_stores_nothing_and_goes_on_when_there_is_room() -> None:
    async with (
        nats_server(max_file_store=1_000_000) as server,
        open_broker(ConnectOptions(urls=(server.url,))) as broker,
    ):
        await broker.provision([StreamSpec(name="H", subjects=("h.>",))])
        stored = 0

        async def fill() -> None:
            nonlocal stored
            for number in range(100):
                await broker.append(Append(subject=f"h.a.{number}", body=b"x" * 50_000))
                stored += 1

        with pytest.raises(StoreFull):
            await fill()
        assert 5 < stored < 25
        state = await broker.stream_state("H")
        assert state is not None
        assert state.messages == stored
        await broker.purge("H", "h.a.>")
        await broker.append(Append(subject="h.a.again", body=b"x" * 50_000))


async def test_a_subject_of_no_stream_is_rejected(broker: NatsBroker) -> None:
    with pytest.raises(Rejected) as caught:
        await broker.append(Append(subject="nowhere"))
    assert caught.value.code == 503


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB x 0", "a\tb", "h." + "x" * 1000])
async def test_a_subject_that_would_break_the_protocol_is_refused(broker: NatsBroker, subject: str) -> None:
    with pytest.raises(ValueError, match="subject"):
        await broker.append(Append(subject=subject))


@pytest.mark.parametrize("headers", [{"a\r\nb": "c"}, {"a": "b\r\nNats-Rollup: all"}, {"": "x"}, {"a:b": "c"}])
async def test_a_header_that_would_break_the_protocol_is_refused(broker: NatsBroker, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        await broker.append(Append(subject="h.a", headers=headers))
    with pytest.raises(ValueError, match="header"):
        broker.tell("h.a", b"", headers)


async def test_headers_and_bodies_come_back_as_they_were(broker: NatsBroker) -> None:
    headers = {"reply": "a.b", "ümlaut".encode().hex(): "grün ✓", "empty": ""}
    body = bytes(range(256)) * 10
    await broker.append(Append(subject="h.a", body=body, headers=headers, expect_last=0, message_id="m1"))
    for confirmed in (False, True):
        found = await broker.last("H", "h.a", confirmed=confirmed)
        assert found is not None
        assert (found.body, found.headers) == (body, headers)
    [found] = await broker.many("H", ["h.a"])
    assert (found.body, found.headers) == (body, headers)


async def test_a_stopped_server_is_not_fed_without_end() -> None:
    async with nats_server() as server, open_broker(ConnectOptions(urls=(server.url,))) as broker:
        await broker.provision([StreamSpec(name="H", subjects=("h.>",))])
        server.pause()
        body = b"x" * 1_000_000
        refused: list[str] = []
        with trio.fail_after(10):
            while not refused:

                def on_outcome(outcome: AppendOutcome) -> None:
                    if "nothing was sent" in str(outcome):
                        refused.append(str(outcome))

                for _ in range(10):
                    broker.append_soon(Append(subject="h.a", body=body), on_outcome)
                await trio.lowlevel.checkpoint()
        server.resume()
        with trio.fail_after(20):
            while True:
                # Not an endless wait: what is refused is answered at once.
                outcome = await try_append(broker)
                if outcome is None:
                    break
                assert "nothing was sent" in outcome
                await trio.sleep(0.05)


async def try_append(broker: NatsBroker) -> str | None:
    try:
        await broker.append(Append(subject="h.b", body=b"again"))
    except NoAnswer as error:
        return str(error)
    return None
