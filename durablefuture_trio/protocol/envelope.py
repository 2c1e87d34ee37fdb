"""What travels through an inbox, and what comes back.

The body of an inbox message is one of the tagged records of `engine.requests`. The request id and the reply address of
a client travel in headers, so that even a request that cannot be decoded can be answered.
"""

from __future__ import annotations

import msgspec

from durablefuture_trio.engine.requests import (
    Answer,
    AttemptReport,
    CancelRequest,
    ChildReport,
    Envelope,
    ExternalReport,
    Inbound,
    QueryRequest,
    SignalRequest,
    StartRequest,
    TerminateRequest,
    TimerFire,
    UpdateRequest,
    WatchRequest,
    answer_of,
)
from durablefuture_trio.history.events import Terminal
from durablefuture_trio.ports.broker import Delivery, Headers

__all__ = [
    "REPLY_HEADER",
    "REQUEST_HEADER",
    "Answer",
    "AttemptReport",
    "CancelRequest",
    "ChildReport",
    "ClosedHint",
    "Envelope",
    "ExternalReport",
    "Inbound",
    "QueryRequest",
    "SignalRequest",
    "StartRequest",
    "TerminateRequest",
    "TimerFire",
    "UpdateRequest",
    "WatchRequest",
    "answer_of",
    "decode_answer",
    "decode_envelope",
    "decode_hint",
    "decode_query",
    "encode_answer",
    "encode_envelope",
    "encode_hint",
    "encode_query",
    "inbound",
    "kind_of",
    "request_headers",
    "undecodable",
]

REQUEST_HEADER = "Df-Request"
REPLY_HEADER = "Df-Reply"

_KINDS: dict[type, str] = {
    StartRequest: "start",
    TerminateRequest: "terminate",
    CancelRequest: "cancel",
    SignalRequest: "signal",
    UpdateRequest: "update",
    AttemptReport: "outcome",
    TimerFire: "timer",
    ChildReport: "child",
    ExternalReport: "external",
    WatchRequest: "watch",
}
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Envelope] = msgspec.msgpack.Decoder(Envelope)


def kind_of(envelope: Envelope) -> str:
    """The last token of the inbox subject."""
    return _KINDS[type(envelope)]


def encode_envelope(envelope: Envelope) -> bytes:
    """Bytes of an inbox message."""
    return _encoder.encode(envelope)


def decode_envelope(body: bytes) -> Envelope:
    """Read an inbox message.

    Raises:
        msgspec.MsgspecError: it is none (or one of a newer program).
    """
    return _decoder.decode(body)


def request_headers(request_id: str, reply: str) -> Headers:
    """The headers of a client's request."""
    return {REQUEST_HEADER: request_id, REPLY_HEADER: reply}


def inbound(delivery: Delivery) -> Inbound:
    """Decode a delivery.

    Raises:
        msgspec.MsgspecError: its body is none of the known records.
    """
    return Inbound(
        seq=delivery.seq,
        time=delivery.time,
        envelope=_decoder.decode(delivery.body),
        handle=delivery,
        request_id=delivery.headers.get(REQUEST_HEADER, ""),
        reply=delivery.headers.get(REPLY_HEADER, ""),
    )


def undecodable(request_id: str, reason: str) -> Answer:
    """The answer to a request whose body cannot be read."""
    message = (
        f"the supervisor cannot read this request ({reason}): is the client of a newer version than the supervisor?"
    )
    return Answer(request_id=request_id, answer="undecodable", message=message)


class ClosedHint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Told when a run closed. ``event`` is the terminal event unless it is large; then the history has it."""

    run_id: str
    n: int
    event: Terminal | None = None


_answer_decoder = msgspec.msgpack.Decoder(Answer)
_hint_decoder = msgspec.msgpack.Decoder(ClosedHint)
_query_decoder = msgspec.msgpack.Decoder(QueryRequest)


def encode_answer(answer: Answer) -> bytes:
    """Bytes of an answer."""
    return _encoder.encode(answer)


def decode_answer(body: bytes) -> Answer:
    """Read an answer. Raises msgspec.MsgspecError."""
    return _answer_decoder.decode(body)


def encode_hint(hint: ClosedHint) -> bytes:
    """Bytes of a close hint."""
    return _encoder.encode(hint)


def decode_hint(body: bytes) -> ClosedHint:
    """Read a close hint. Raises msgspec.MsgspecError."""
    return _hint_decoder.decode(body)


def encode_query(query: QueryRequest) -> bytes:
    """Bytes of a query."""
    return _encoder.encode(query)


def decode_query(body: bytes) -> QueryRequest:
    """Read a query. Raises msgspec.MsgspecError."""
    return _query_decoder.decode(body)
