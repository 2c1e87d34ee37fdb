"""The JetStream API as raw requests: nats-py has no words for schedules, batched reads and their checks.

Subjects and fields: ADR-2 (API), ADR-31 (direct and batched get), ADR-33, ADR-37, ADR-43 (message TTL), ADR-51
(schedules) of the nats-architecture-and-design repository.
"""

from __future__ import annotations

import base64
from typing import Any, TypeVar

import msgspec

from durablefuture_trio.nats_bridge._link import BridgeLink
from durablefuture_trio.nats_bridge._wire import own_headers, parse_headers, parse_time, status_of, status_text
from durablefuture_trio.ports.broker import (
    NO_RESPONDERS,
    AppendOutcome,
    BrokerError,
    Conflict,
    ConsumerConflict,
    ConsumerState,
    Incomplete,
    NoAnswer,
    Rejected,
    Stored,
    StoreFull,
    StreamState,
)

NO_MESSAGE = 10037
SEQUENCE_NOT_FOUND = 10043
STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
STREAM_NAME_IN_USE = 10058
JETSTREAM_OFF = frozenset({10039, 10076})

_CONFLICT = frozenset({10071, 10164})
_STORE_FULL = frozenset({10023, 10047, 10077, 10122})
_CONSUMER_CONFLICT = frozenset({10099, 10100})

PAGE_MESSAGES = 1000
PAGE_BYTES = 4 * 1024 * 1024

T = TypeVar("T", bound="Answer")


class ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(msgspec.Struct):
    error: ApiError | None = None


class PubAck(Answer):
    seq: int = 0


class _StreamFigures(msgspec.Struct):
    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0
    consumer_count: int = 0


class StreamInfo(Answer):
    config: dict[str, Any] = {}
    created: str = ""
    state: _StreamFigures = msgspec.field(default_factory=_StreamFigures)


class _Sequences(msgspec.Struct):
    consumer_seq: int = 0


class ConsumerInfo(Answer):
    name: str = ""
    num_ack_pending: int = 0
    num_pending: int = 0
    delivered: _Sequences = msgspec.field(default_factory=_Sequences)


class ConsumerList(Answer):
    total: int = 0
    consumers: list[ConsumerInfo] | None = None


class _RawMessage(msgspec.Struct):
    subject: str
    seq: int
    time: str
    data: str = ""
    hdrs: str = ""


class MessageFound(Answer):
    message: _RawMessage | None = None


class Purged(Answer):
    purged: int = 0


class Done(Answer):
    success: bool = False


_pub_ack = msgspec.json.Decoder(PubAck)


def error_for(error: ApiError) -> BrokerError:
    """The broker's word for an error of the API."""
    code, text = error.err_code, error.description
    if code in _CONFLICT:
        return Conflict(text)
    if code in _STORE_FULL:
        return StoreFull(text)
    if code in _CONSUMER_CONFLICT:
        return ConsumerConflict(text)
    return Rejected(f"{text} ({code})", code or error.code)


def no_responders() -> BrokerError:
    """Nobody takes the subject: no such stream, its leader is missing, or JetStream is off. Nothing was stored."""
    return Rejected("no stream answers: it does not exist or has no leader at the moment", NO_RESPONDERS)


def append_outcome(body: bytes, headers: bytes | None) -> AppendOutcome:
    """Read the answer to an append."""
    if status_of(headers) == NO_RESPONDERS:
        return no_responders()
    try:
        ack = _pub_ack.decode(body)
    except msgspec.DecodeError as error:
        return Rejected(f"cannot read the server's acknowledgement: {error}")
    return ack.seq if ack.error is None else error_for(ack.error)


class JetStream:
    """The requests, over a link."""

    def __init__(self, link: BridgeLink) -> None:
        self._link = link

    async def _call(self, verb: str, question: Any, answer: type[T]) -> T:
        """One request; the answer may be an error of the API."""
        body = msgspec.json.encode(question) if question is not None else b""
        self._check_size(len(body))
        [(reply, headers)] = await self._link.request(f"$JS.API.{verb}".encode(), body)
        if status_of(headers) == NO_RESPONDERS:
            raise Rejected("JetStream does not answer: it is off, or has no leader at the moment", NO_RESPONDERS)
        try:
            return msgspec.json.decode(reply, type=answer)
        except msgspec.DecodeError as error:
            raise Rejected(f"cannot read the server's answer to {verb}: {error}") from error

    async def _demand(self, verb: str, question: Any, answer: type[T]) -> T:
        """One request; an error of the API is raised."""
        found = await self._call(verb, question, answer)
        if found.error is not None:
            raise error_for(found.error)
        return found

    def _check_size(self, size: int) -> None:
        if size > self._link.max_payload_bytes:
            raise Rejected(f"the question has {size} bytes, the server takes {self._link.max_payload_bytes}")

    async def account(self) -> Answer:
        """Whether JetStream is there: the answer, or its error."""
        return await self._call("INFO", None, Answer)

    async def create_stream(self, name: str, config: dict[str, Any]) -> Answer:
        """Create; the same again is no error, another configuration is `STREAM_NAME_IN_USE`."""
        return await self._call(f"STREAM.CREATE.{name}", config, Answer)

    async def stream_info(self, name: str) -> StreamInfo | None:
        """A stream's settings and figures."""
        info = await self._call(f"STREAM.INFO.{name}", None, StreamInfo)
        if info.error is not None:
            if info.error.err_code == STREAM_NOT_FOUND:
                return None
            raise error_for(info.error)
        return info

    async def stream_state(self, name: str) -> StreamState | None:
        """A stream's figures."""
        info = await self.stream_info(name)
        if info is None:
            return None
        state = info.state
        return StreamState(
            messages=state.messages,
            first_seq=state.first_seq,
            last_seq=state.last_seq,
            consumers=state.consumer_count,
            created=info.created,
        )

    async def delete_message(self, stream: str, seq: int) -> bool:
        """Delete a message without overwriting it on the disk."""
        done = await self._call(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True}, Done)
        if done.error is not None:
            if done.error.err_code == SEQUENCE_NOT_FOUND or not await self._exists(stream, seq):
                return False
            raise error_for(done.error)
        return done.success

    async def _exists(self, stream: str, seq: int) -> bool:
        # A sequence above the last one is not called "not found" by a delete, but "stream store EOF".
        found = await self._call(f"STREAM.MSG.GET.{stream}", {"seq": seq}, MessageFound)
        return found.error is None or found.error.err_code != NO_MESSAGE

    async def purge(self, stream: str, subject: str, keep: int) -> int:
        """Purge a subject but for its last messages."""
        question: dict[str, Any] = {"filter": subject}
        if keep:
            question["keep"] = keep
        return (await self._demand(f"STREAM.PURGE.{stream}", question, Purged)).purged

    # --- consumers ---

    async def create_consumer(self, stream: str, name: str, config: dict[str, Any]) -> ConsumerInfo:
        """Create; the same again is no error."""
        question = {"stream_name": stream, "config": config, "action": "create"}
        return await self._demand(f"CONSUMER.CREATE.{stream}.{name}", question, ConsumerInfo)

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """Delete a consumer, if there is one."""
        done = await self._call(f"CONSUMER.DELETE.{stream}.{name}", None, Done)
        if done.error is not None:
            if done.error.err_code == CONSUMER_NOT_FOUND:
                return False
            raise error_for(done.error)
        return done.success

    async def consumers(self, stream: str) -> list[ConsumerState]:
        """All consumers of a stream."""
        found: list[ConsumerState] = []
        while True:
            page = await self._demand(f"CONSUMER.LIST.{stream}", {"offset": len(found)}, ConsumerList)
            found += [
                ConsumerState(name=c.name, ack_pending=c.num_ack_pending, pending=c.num_pending)
                for c in page.consumers or ()
            ]
            if not page.consumers or len(found) >= page.total:
                return found

    # --- reading ---

    async def last_direct(self, stream: str, subject: str) -> Stored | None:
        """The last message on a subject; any replica may answer."""
        question = msgspec.json.encode({"last_by_subj": subject})
        [(body, headers)] = await self._link.request(f"$JS.API.DIRECT.GET.{stream}".encode(), question)
        status = status_of(headers)
        if status == 404:
            return None
        if status:
            raise _refused(status, headers)
        return _stored(body, parse_headers(headers))

    async def last_confirmed(self, stream: str, subject: str) -> Stored | None:
        """The last message on a subject; the leader answers."""
        found = await self._call(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, MessageFound)
        if found.error is not None:
            if found.error.err_code == NO_MESSAGE:
                return None
            raise error_for(found.error)
        raw = found.message
        if raw is None:
            raise Rejected("the server's answer holds no message")
        headers = parse_headers(base64.b64decode(raw.hdrs)) if raw.hdrs else {}
        return Stored(
            subject=raw.subject,
            seq=raw.seq,
            time=parse_time(raw.time),
            body=base64.b64decode(raw.data),
            headers=own_headers(headers),
        )

    async def last_of_each(self, stream: str, subjects: list[str]) -> list[Stored]:
        """The last message of each subject, as of one moment, in stream order."""
        found: list[Stored] = []
        question: dict[str, Any] = {"multi_last": subjects}
        while True:
            page = await self._page(stream, question)
            found += page.messages
            if not page.left:
                return found
            # The server ends an answer at its own limit of bytes: go on behind it, as of the same moment.
            question |= {"seq": found[-1].seq + 1, "up_to_seq": page.up_to}

    async def page_after(self, stream: str, subject: str, after: int) -> tuple[list[Stored], int]:
        """A page of the messages on a subject above a sequence, and how many are left after it."""
        page = await self._page(
            stream, {"next_by_subj": subject, "seq": after + 1, "batch": PAGE_MESSAGES, "max_bytes": PAGE_BYTES}
        )
        return page.messages, page.left

    async def _page(self, stream: str, question: dict[str, Any]) -> _Page:
        encoded = msgspec.json.encode(question)
        self._check_size(len(encoded))
        try:
            answers = await self._link.request(f"$JS.API.DIRECT.GET.{stream}".encode(), encoded, _ends_batch)
        except NoAnswer as error:
            raise NoAnswer(f"reading {stream}: {error}") from error
        _, end = answers.pop()
        assert end is not None
        status = status_of(end)
        if status == 404:
            return _Page([], 0, 0)
        if status != 204:
            raise _refused(status, end)
        messages: list[Stored] = []
        left = 0
        for body, raw in answers:
            headers = parse_headers(raw)
            pending = int(headers.get("Nats-Num-Pending", 0))
            if messages and pending != left - 1:
                raise Incomplete(f"{stream}: a message is missing after sequence {messages[-1].seq}")
            left = pending
            messages.append(_stored(body, headers))
        closing = parse_headers(end)
        if not messages or int(closing.get("Nats-Last-Sequence", 0)) != messages[-1].seq:
            raise Incomplete(f"{stream}: the answer ended before sequence {closing.get('Nats-Last-Sequence')}")
        return _Page(messages, int(closing.get("Nats-Num-Pending", 0)), int(closing.get("Nats-UpTo-Sequence", 0)))


class _Page(msgspec.Struct, frozen=True):
    messages: list[Stored]
    left: int
    up_to: int


def _ends_batch(headers: bytes | None) -> bool:
    """An inline status ends a batched answer: 204 (all of it came), or an error."""
    return status_of(headers) != 0


def _refused(status: int, headers: bytes | None) -> BrokerError:
    if status == NO_RESPONDERS:
        return no_responders()
    return Rejected(f"the server refused to read: {status_text(headers or b'')} ({status})", status)


def _stored(body: bytes, headers: dict[str, str]) -> Stored:
    return Stored(
        subject=headers["Nats-Subject"],
        seq=int(headers["Nats-Sequence"]),
        time=parse_time(headers["Nats-Time-Stamp"]),
        body=body,
        headers=own_headers(headers),
    )
