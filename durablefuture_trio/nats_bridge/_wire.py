"""The NATS client protocol as bytes: commands out, headers and acknowledgement addresses in.

nats-py keeps the connection; commands are encoded here because the size check against ``max_payload`` needs the
encoded headers anyway (the server counts them, nats-py does not), and encoding them twice would be the larger half of
the cost of a publish.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from durablefuture_trio.ports.broker import NO_HEADERS, Append, Headers

_HEADER_START = "NATS/1.0\r\n"
_MAX_SUBJECT_CHARS = 900
"""Four bytes each, and the rest of the line, stay under the server's 4 KiB for a command: past it, it hangs up."""
_SUBJECT = re.compile(r"[^\s\x00-\x20\x7f]+")
_HEADER_NAME = re.compile(r"[!-9;-~]+")
_LINE_BREAK = re.compile(r"[\r\n]")


def subscribe_command(subject: bytes, sid: int) -> bytes:
    """SUB."""
    return b"SUB %b %d\r\n" % (subject, sid)


def unsubscribe_command(sid: int) -> bytes:
    """UNSUB."""
    return b"UNSUB %d\r\n" % sid


def publish_command(subject: bytes, reply: bytes, headers: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    """PUB or HPUB in parts, so that joining what goes out together is the only copy of the body."""
    if headers:
        size = len(headers)
        return b"HPUB %b %b %d %d\r\n%b" % (subject, reply, size, size + len(body), headers), body, b"\r\n"
    return b"PUB %b %b %d\r\n" % (subject, reply, len(body)), body, b"\r\n"


def encode_subject(subject: str) -> bytes:
    """Refuse what would break out of the command line.

    Raises:
        ValueError: empty, too long, or with white space or control characters.
    """
    if len(subject) > _MAX_SUBJECT_CHARS or not _SUBJECT.fullmatch(subject):
        raise ValueError(f"not a NATS subject, or one of more than {_MAX_SUBJECT_CHARS} characters: {subject!r}")
    return subject.encode()


def encode_headers(headers: Headers) -> bytes:
    """The header block, empty for no headers.

    Raises:
        ValueError: a name or value that headers cannot hold.
    """
    if not headers:
        return b""
    return (_HEADER_START + _lines(headers) + "\r\n").encode()


def append_headers(append: Append) -> bytes:
    """The header block of an append.

    Raises:
        ValueError: a name or value that headers cannot hold.
    """
    lines = ""
    if append.expect_last is not None:
        lines = f"Nats-Expected-Last-Subject-Sequence: {append.expect_last}\r\n"
    if append.message_id is not None:
        lines += _lines({"Nats-Msg-Id": append.message_id})
    if append.schedule is not None:
        encode_subject(append.schedule.target)
        lines += (
            f"Nats-Schedule: @at {format_time(append.schedule.due)}\r\n"
            f"Nats-Schedule-Target: {append.schedule.target}\r\n"
        )
    if append.neutralise:
        # Rollup takes what the subject held away; the empty message in its place goes by itself. Deleting a schedule
        # instead leaks server memory until its due time.
        lines += "Nats-Rollup: sub\r\nNats-TTL: 1s\r\n"
    if append.headers:
        lines += _lines(append.headers)
    if not lines:
        return b""
    return f"{_HEADER_START}{lines}\r\n".encode()


def _lines(headers: Headers) -> str:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or _LINE_BREAK.search(value):
            raise ValueError(f"not a NATS header: {name!r}: {value!r}")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def status_of(headers: bytes | None) -> int:
    """The status code of an inline status message (100, 404, 409, 503 …), 0 for an ordinary message."""
    if headers is None or headers[8:9] != b" ":
        return 0
    code = headers[9:12]
    return int(code) if code.isdigit() else 0


def status_text(headers: bytes) -> str:
    """What an inline status message says after its code."""
    return headers[13 : headers.index(b"\r\n")].decode("utf-8", "replace")


def parse_headers(headers: bytes | None) -> dict[str, str]:
    """All headers of a block, also of a status message."""
    found: dict[str, str] = {}
    if headers is not None:
        for line in headers.split(b"\r\n")[1:]:
            name, colon, value = line.partition(b":")
            if colon:
                found[name.decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return found


def own_headers(headers: Mapping[str, str]) -> Headers:
    """Without those that belong to the server (``Nats-…``): what the message's author gave."""
    return {name: value for name, value in headers.items() if not name.startswith("Nats-")} or NO_HEADERS


class AckAddress(msgspec.Struct, frozen=True):
    """What the acknowledgement address of a delivery says."""

    delivered: int
    stream_seq: int
    consumer_seq: int
    time: float
    pending: int


def parse_ack_address(reply: bytes) -> AckAddress:
    """Read ``$JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<ns>.<pending>``, and the longer form with
    domain and account hash before the stream (ADR-15).

    Raises:
        ValueError: it is neither.
    """
    tokens = reply.split(b".")
    if tokens[:2] != [b"$JS", b"ACK"]:
        raise ValueError(f"not an acknowledgement address: {reply!r}")
    if len(tokens) == 9:
        first = 4
    elif len(tokens) >= 11:
        first = 6
    else:
        raise ValueError(f"not an acknowledgement address: {reply!r}")
    delivered, stream_seq, consumer_seq, nanoseconds, pending = map(int, tokens[first : first + 5])
    return AckAddress(delivered, stream_seq, consumer_seq, nanoseconds / 1e9, pending)


def format_time(seconds: float) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{micro:06d}Z"


def parse_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time stamp with up to nine digits."""
    return datetime.fromisoformat(text).timestamp()
