"""What travels through an inbox, and what comes back.

The body of an inbox message is one of the tagged records below. The request id and the reply address of a client travel
in headers, so that even a request that cannot be decoded can be answered.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.events import Event, RequestRecord
from durablefuture_trio.ports.broker import Delivery, Headers
from durablefuture_trio.ports.frames import AttemptCompleted, AttemptFailed

REQUEST_HEADER = "Df-Request"
REPLY_HEADER = "Df-Reply"

ConflictPolicy = Literal["fail", "use_existing", "terminate_existing"]
ReusePolicy = Literal["allow", "failed_only", "reject"]


class StartRequest(msgspec.Struct, frozen=True, tag="start", kw_only=True, omit_defaults=True):
    """Start a run.

    Attributes:
        execution_deadline: absolute Unix seconds.
        conflict: what to do when a run of this id is open.
        reuse: what to do when a run of this id has closed.
    """

    workflow_id: str
    workflow: str
    arguments: Payload
    execution_deadline: float | None = None
    memo: Payload | None = None
    conflict: ConflictPolicy = "fail"
    reuse: ReusePolicy = "allow"


class TerminateRequest(msgspec.Struct, frozen=True, tag="terminate", kw_only=True, omit_defaults=True):
    """End the open run without running its code. ``run_id`` empty: whichever is open."""

    workflow_id: str
    run_id: str = ""
    reason: str = ""


class AttemptReport(msgspec.Struct, frozen=True, tag="outcome", kw_only=True, omit_defaults=True):
    """The outcome of an attempt that ran elsewhere, e.g. on a supervisor that has lost the shard meanwhile."""

    workflow_id: str
    worker: str
    outcome: AttemptCompleted | AttemptFailed


class TimerFire(msgspec.Struct, frozen=True, tag="timer", kw_only=True, omit_defaults=True):
    """A schedule came due. Identified by the commit that armed it: the server may fire it twice."""

    workflow_id: str
    run_id: str
    n: int


Envelope: TypeAlias = StartRequest | TerminateRequest | AttemptReport | TimerFire

_KINDS: dict[type, str] = {
    StartRequest: "start",
    TerminateRequest: "terminate",
    AttemptReport: "outcome",
    TimerFire: "timer",
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


class Inbound(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded delivery."""

    delivery: Delivery
    envelope: Envelope

    @property
    def seq(self) -> int:
        return self.delivery.seq

    @property
    def request_id(self) -> str:
        return self.delivery.headers.get(REQUEST_HEADER, "")

    @property
    def reply(self) -> str:
        return self.delivery.headers.get(REPLY_HEADER, "")


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The owner's answer to a request, after the commit that decided it.

    Attributes:
        request_id: the request.
        answer: ``"applied"``, or the name of the refusal: ``"existing"`` (an open run was used), ``"already_started"``,
            ``"not_found"``, ``"closed"``, ``"undecodable"``.
        run_id: the run it was applied to, or that stands in the way.
        message: the words of a refusal.
    """

    request_id: str
    answer: str
    run_id: str = ""
    message: str = ""


class ClosedHint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Told when a run closed. ``event`` is the terminal event unless it is large; then the history has it."""

    run_id: str
    n: int
    event: Event | None = None


def answer_of(record: RequestRecord) -> Answer:
    """The answer that a remembered decision stands for."""
    return Answer(request_id=record.request_id, answer=record.answer, run_id=record.run_id, message=record.message)


_answer_decoder = msgspec.msgpack.Decoder(Answer)
_hint_decoder = msgspec.msgpack.Decoder(ClosedHint)


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
