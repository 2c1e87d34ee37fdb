"""Bytes: what the real server of these tests does not happen to send."""

from __future__ import annotations

import pytest

from durablefuture_trio.nats_bridge import _wire
from durablefuture_trio.ports.broker import Append, Schedule


@pytest.mark.parametrize(
    "address",
    [
        b"$JS.ACK.W.own-1.2.17.5.1795367228852905311.3",
        b"$JS.ACK.hub.ACCHASH.W.own-1.2.17.5.1795367228852905311.3",
        b"$JS.ACK._.ACCHASH.W.own-1.2.17.5.1795367228852905311.3.random",
    ],
)
def test_acknowledgement_addresses_are_read_in_both_forms(address: bytes) -> None:
    found = _wire.parse_ack_address(address)
    assert (found.delivered, found.stream_seq, found.consumer_seq, found.pending) == (2, 17, 5, 3)
    assert found.time == pytest.approx(1795367228.8529053)


@pytest.mark.parametrize("address", [b"", b"_INBOX.x", b"$JS.ACK.W.own-1.2.17.5.1", b"$JS.ACK.W.own-1.a.b.c.d.e"])
def test_what_is_no_acknowledgement_address_is_refused(address: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        _wire.parse_ack_address(address)


def test_status_lines_are_told_from_headers() -> None:
    heartbeat = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\nNats-Last-Stream: 9\r\n\r\n"
    assert _wire.status_of(heartbeat) == 100
    assert _wire.status_text(heartbeat) == "Idle Heartbeat"
    assert _wire.parse_headers(heartbeat) == {"Nats-Last-Consumer": "7", "Nats-Last-Stream": "9"}
    assert _wire.status_of(b"NATS/1.0 503\r\n\r\n") == 503
    assert _wire.status_text(b"NATS/1.0 503\r\n\r\n") == ""
    assert _wire.status_of(b"NATS/1.0\r\nk: v\r\n\r\n") == 0
    assert _wire.status_of(None) == 0


def test_the_servers_own_headers_are_not_the_authors() -> None:
    assert _wire.own_headers({"Nats-Msg-Id": "1", "k": "v"}) == {"k": "v"}


def test_an_append_encodes_its_headers_once_and_in_full() -> None:
    append = Append(
        subject="s.1",
        expect_last=4,
        message_id="m",
        headers={"k": "v"},
        schedule=Schedule(due=1795367228.25, target="w.1"),
    )
    assert _wire.append_headers(append).split(b"\r\n") == [
        b"NATS/1.0",
        b"Nats-Expected-Last-Subject-Sequence: 4",
        b"Nats-Msg-Id: m",
        b"Nats-Schedule: @at 2026-11-22T17:07:08.250000Z",
        b"Nats-Schedule-Target: w.1",
        b"k: v",
        b"",
        b"",
    ]
    assert _wire.append_headers(Append(subject="h.1")) == b""


@pytest.mark.parametrize("seconds", [0.0, 1795367228.0, 1795367228.999999, 4102444799.9999999])
def test_times_survive_the_way_there_and_back(seconds: float) -> None:
    assert _wire.parse_time(_wire.format_time(seconds)) == pytest.approx(seconds, abs=1e-6)


def test_times_with_nanoseconds_are_read() -> None:
    assert _wire.parse_time("2026-11-22T17:07:08.123456789Z") == pytest.approx(1795367228.123456)
    assert _wire.parse_time("2026-11-22T17:07:08Z") == 1795367228.0
