"""Reading a stream: the last message, many at once, and page by page."""

from __future__ import annotations

import time

import pytest

from durablefuture_trio.ports.broker import Append, BrokerError, Incomplete, Rejected
from tests._support.broker_servers import publish_all
from tests.contract.conftest import BrokerPair

CONFIRMED = pytest.mark.parametrize("confirmed", [False, True])


@CONFIRMED
async def test_the_last_message_of_a_subject(broker_pair: BrokerPair, confirmed: bool) -> None:
    a, b = broker_pair
    assert await b.last("H", "h.x", confirmed=confirmed) is None
    for body in (b"1", b"2"):
        await a.append(Append(subject="h.x", body=body, headers={"N": body.decode()}))
    await a.append(Append(subject="h.y"))
    stored = await b.last("H", "h.x", confirmed=confirmed)
    assert stored is not None
    assert (stored.subject, stored.seq, stored.body, dict(stored.headers)) == ("h.x", 2, b"2", {"N": "2"})
    assert abs(stored.time - time.time()) < 60


@CONFIRMED
async def test_the_last_message_of_a_wildcard_is_the_one_with_the_highest_sequence(
    broker_pair: BrokerPair, confirmed: bool
) -> None:
    a, b = broker_pair
    for subject in ("h.1.a.9", "h.1.a.10", "h.1.b.1", "h.2.a.1"):
        await a.append(Append(subject=subject))
    for pattern, wanted in (("h.1.a.>", "h.1.a.10"), ("h.1.>", "h.1.b.1"), ("h.*.a.*", "h.2.a.1"), ("h.3.>", None)):
        stored = await b.last("H", pattern, confirmed=confirmed)
        assert (stored.subject if stored is not None else None) == wanted


@CONFIRMED
async def test_a_deleted_message_is_not_the_last(broker_pair: BrokerPair, confirmed: bool) -> None:
    a, b = broker_pair
    await a.append(Append(subject="h.x", body=b"1"))
    await a.delete("H", await a.append(Append(subject="h.x", body=b"2")))
    stored = await b.last("H", "h.>", confirmed=confirmed)
    assert stored is not None
    assert stored.body == b"1"


async def test_many_gives_the_last_of_each_in_stream_order_and_leaves_absent_ones_out(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for subject in ("h.3", "h.1", "h.2", "h.1"):
        await a.append(Append(subject=subject))
    found = await b.many("H", ["h.1", "h.2", "h.3", "h.4"])
    assert [(stored.subject, stored.seq) for stored in found] == [("h.3", 1), ("h.2", 3), ("h.1", 4)]


async def test_many_of_nothing_is_nothing(broker_pair: BrokerPair) -> None:
    a, _ = broker_pair
    assert await a.many("H", []) == []
    assert await a.many("H", ["h.1", "h.2"]) == []


async def test_many_takes_a_wildcard(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for subject in ("h.x.1", "h.y.1", "h.x.2", "h.x.1"):
        await a.append(Append(subject=subject, body=subject.encode()))
    found = await b.many("H", ["h.x.*"])
    assert [(stored.subject, stored.seq) for stored in found] == [("h.x.2", 3), ("h.x.1", 4)]


async def test_h17_a_thousand_literals_are_read_at_once_and_a_wide_wildcard_is_refused(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish_all(a, [Append(subject=f"h.0.wid.{n}", body=b"%d" % n) for n in range(1101)])
    found = await b.many("H", [f"h.0.wid.{n}" for n in range(1000)])
    assert [stored.body for stored in found] == [b"%d" % n for n in range(1000)]
    with pytest.raises((Rejected, Incomplete)):
        await b.many("H", ["h.0.wid.>"])
    with pytest.raises(ValueError, match="1000"):
        await b.many("H", [f"h.0.wid.{n}" for n in range(1001)])
    last = await b.last("H", "h.0.wid.>")
    assert last is not None
    assert last.body == b"1100"


async def test_many_gives_all_bodies_even_if_they_are_large(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for n in range(40):
        await a.append(Append(subject=f"h.{n}", body=b"%d" % n * 200_000))
    found = await b.many("H", [f"h.{n}" for n in range(40)])
    assert [len(stored.body) for stored in found] == [len(b"%d" % n * 200_000) for n in range(40)]


async def test_scan_gives_everything_that_matches_in_stream_order(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    await publish_all(a, [Append(subject=f"h.{n % 3}.{n}", body=b"%d" % n) for n in range(2500)])
    await a.append(Append(subject="h.2.end", body=b"end"))
    assert [stored.body async for stored in b.scan("H", "h.1.*")] == [b"%d" % n for n in range(1, 2500, 3)]
    assert len([stored async for stored in b.scan("H", "h.>")]) == 2501


async def test_scan_starts_above_the_given_sequence(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for _ in range(5):
        await a.append(Append(subject="h.x"))
    assert [stored.seq async for stored in b.scan("H", "h.x", after=3)] == [4, 5]
    assert [stored.seq async for stored in b.scan("H", "h.x", after=5)] == []
    assert [stored.seq async for stored in b.scan("H", "h.none")] == []


async def test_scan_gives_every_message_of_a_subject_not_only_the_last(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for body in (b"1", b"2", b"3"):
        await a.append(Append(subject="h.x", body=body))
    assert [stored.body async for stored in b.scan("H", "h.x")] == [b"1", b"2", b"3"]


async def test_every_error_of_a_broker_is_one_of_the_port(broker_pair: BrokerPair) -> None:
    with pytest.raises(BrokerError):
        await broker_pair.a.last("NONE", "h.x")


async def test_the_last_of_everything_is_nothing_once_the_last_message_was_removed(broker_pair: BrokerPair) -> None:
    a, b = broker_pair
    for _ in range(2):
        await a.append(Append(subject="h.x"))
    await a.delete("H", 2)
    for confirmed in (False, True):
        assert await b.last("H", ">", confirmed=confirmed) is None
        stored = await b.last("H", "h.>", confirmed=confirmed)
        assert stored is not None
        assert stored.seq == 1
