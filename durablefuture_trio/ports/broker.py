"""The broker port, at the height of JetStream primitives.

A broker says what the server says and decides nothing: policy (who may write, what an unknown outcome means, when a
consumer is replaced) lives in `protocol`, above this port, so that every implementation runs the same lines. There are
two: `nats_bridge` talks to a real nats-server, `memory_broker` models one at its worst. Both pass one contract suite.

All times are Unix seconds of the server's clock, all sizes bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias

import msgspec
from trio import MemoryReceiveChannel

Headers: TypeAlias = Mapping[str, str]
NO_HEADERS: Headers = {}


# --- what the server may answer ---------------------------------------------------------------------------------------


class BrokerError(Exception):
    """The root of what a broker raises. Internal: the parts above turn it into words for users."""


class Conflict(BrokerError):
    """The expected last sequence of the subject was another one (API errors 10071 and 10164)."""


class NoAnswer(BrokerError):
    """No answer came before the deadline, or the link went down first. A publish may still land."""


class TooLarge(BrokerError):
    """Body and headers exceed the server's max_payload. Nothing was sent."""


class StoreFull(BrokerError):
    """The server has no room (API errors 10023, 10047, 10077 and 10122). Nothing was stored."""


NO_RESPONDERS = 503
"""The code of `Rejected` when nobody took the message: the stream has no leader at the moment, as in an election and
in a server that is just stopping, or does not exist."""


class Rejected(BrokerError):
    """The server refused for another reason. ``code`` is its error code, 0 if it gave none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class ConsumerConflict(BrokerError):
    """A consumer on the same subjects of a work queue exists (API errors 10099 and 10100)."""


class StreamDrift(BrokerError):
    """A stream exists with other settings. ``differences`` holds one line for each: ``field: wanted X, found Y``."""

    def __init__(self, stream: str, differences: Sequence[str]) -> None:
        super().__init__(f"stream {stream} has drifted: " + "; ".join(differences))
        self.stream = stream
        self.differences = tuple(differences)


class Incomplete(BrokerError):
    """A batched read ended before everything asked for had come."""


class ReaderLost(BrokerError):
    """The reader can no longer be trusted to deliver everything: open one under a new name.

    Attributes:
        reason: ``"gap"``: consumer sequences were not contiguous; ``"link"``: the connection was lost meanwhile;
            ``"deleted"``: the consumer is gone; ``"silent"``: the idle heartbeat was missed.
    """

    def __init__(self, reason: Literal["gap", "link", "deleted", "silent"]) -> None:
        super().__init__(reason)
        self.reason = reason


# --- records ----------------------------------------------------------------------------------------------------------


class BrokerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the server told about itself.

    Attributes:
        max_payload_bytes: largest message, headers and body together.
        server_version: e.g. ``"2.15.1"``.
    """

    max_payload_bytes: int
    server_version: str


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream has to be. There is deliberately no limit to set: with schedules the server only knows
    ``discard: old``, which drops acknowledged messages silently."""

    name: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"] = "limits"
    last_per_subject: bool = False
    schedules: bool = False
    replicas: int = 1


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """A stream's figures. ``created`` identifies the stream (a restored or recreated one has another)."""

    messages: int
    first_seq: int
    last_seq: int
    consumers: int
    created: str


class ConsumerState(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer's figures: messages waiting for an acknowledgement, and messages not delivered yet."""

    name: str
    ack_pending: int
    pending: int


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A message as the stream holds it."""

    subject: str
    seq: int
    time: float
    body: bytes
    headers: Headers = NO_HEADERS


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A message as a consumer got it.

    Attributes:
        seq: its sequence in the stream.
        time: when the server stored it.
        delivered: how often this consumer has been given it, from 1 (starts again on every new consumer).
        pending: messages the consumer has still to deliver after this one.
        reply: the acknowledgement address; opaque.
    """

    subject: str
    seq: int
    time: float
    body: bytes
    headers: Headers = NO_HEADERS
    delivered: int = 1
    pending: int = 0
    reply: str = ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A core message: a hint, never a fact."""

    subject: str
    body: bytes
    headers: Headers = NO_HEADERS


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Have the server publish the message's body to ``target`` at ``due`` (Unix seconds). The schedule itself is stored
    under the subject it is appended to and goes away when it fires."""

    due: float
    target: str


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """One publish to a stream.

    Attributes:
        expect_last: sequence of the last message on this very subject (0: there must be none); None: do not check.
        message_id: ``Nats-Msg-Id``; an optimisation only, the server forgets it after two minutes.
        schedule: this is a message schedule.
        neutralise: replace whatever the subject holds by an empty message that goes away after a second.
    """

    subject: str
    body: bytes = b""
    expect_last: int | None = None
    message_id: str | None = None
    headers: Headers = NO_HEADERS
    schedule: Schedule | None = None
    neutralise: bool = False


AppendOutcome: TypeAlias = int | BrokerError
"""The stream sequence, or what went wrong."""


# --- the port ---------------------------------------------------------------------------------------------------------


class Link(Protocol):
    """The state of the connection."""

    @property
    def up(self) -> bool:
        """Whether the server answers, as far as this side knows."""
        ...

    @property
    def generation(self) -> int:
        """Counts every change between up and down."""
        ...

    async def changed(self, seen: int) -> int:
        """Wait until `generation` is another than `seen`, and return it."""
        ...


class Reader(Protocol):
    """A durable pull consumer that is being read: pulls stay open, with idle heartbeats, as long as it is open."""

    async def receive(self) -> Sequence[Delivery]:
        """The deliveries that have come since the last call, at least one, in consumer order without gaps.

        Raises:
            ReaderLost: something may have been missed; nothing more will come.
        """
        ...

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge. May be lost; on another reader's delivery it reaches nothing. Sent in order, soon."""
        ...

    def in_progress(self, delivery: Delivery) -> None:
        """Start the acknowledgement wait of this delivery anew."""
        ...


class Broker(Protocol):
    """What the protocol uses of JetStream."""

    @property
    def limits(self) -> BrokerLimits:
        """What the server told when the link came up last."""
        ...

    @property
    def link(self) -> Link:
        """The state of the connection."""
        ...

    async def provision(self, streams: Sequence[StreamSpec]) -> None:
        """Create the streams that are missing, and check the settings of those that exist.

        Raises:
            StreamDrift: one exists with other settings; it is left as it is.
            Rejected, StoreFull, NoAnswer: as the server says.
        """
        ...

    def append_soon(self, append: Append, on_outcome: Callable[[AppendOutcome], None]) -> None:
        """Send a publish; `on_outcome` is called once, synchronously in the broker's own time, never from within this
        call. Publishes of one link are sent in the order of these calls. Silence becomes `NoAnswer` after the link's
        answer timeout, or at once when the link goes down.
        """
        ...

    async def append(self, append: Append) -> int:
        """The same, waiting: returns the stream sequence.

        Raises:
            Conflict, NoAnswer, TooLarge, StoreFull, Rejected: see there. Cancelled: it may still land.
        """
        ...

    async def last(self, stream: str, subject: str, *, confirmed: bool = False) -> Stored | None:
        """The last message on `subject` (wildcards allowed: the one with the highest sequence), or None.

        Args:
            confirmed: ask the stream's leader. Otherwise a replica may answer, a moment behind.

        Raises:
            NoAnswer, Rejected: as the server says.
        """
        ...

    async def many(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        """The last message on each of the subjects (absent ones are left out), in stream order. At most 1,000 literals,
        or a wildcard that matches at most 1,000 subjects.

        Raises:
            Incomplete: the answer broke off. NoAnswer, Rejected: as the server says.
        """
        ...

    def scan(self, stream: str, subject: str, *, after: int = 0) -> AsyncIterator[Stored]:
        """All messages on `subject` (wildcards allowed) with a sequence above `after`, in stream order, page by page.

        Raises:
            Incomplete, NoAnswer, Rejected: as above.
        """
        ...

    async def delete(self, stream: str, seq: int) -> bool:
        """Delete one message; False if it was not there."""
        ...

    async def purge(self, stream: str, subject: str, *, keep: int = 0) -> int:
        """Delete all messages on `subject` but the last `keep`; returns how many."""
        ...

    async def stream_state(self, stream: str) -> StreamState | None:
        """The figures of a stream; None if there is none of that name."""
        ...

    async def consumers(self, stream: str) -> list[ConsumerState]:
        """The consumers of a stream."""
        ...

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """Delete a consumer; False if there is none of that name. Its unacknowledged messages stay in a work queue."""
        ...

    def open_reader(
        self,
        stream: str,
        name: str,
        subject: str,
        *,
        ack_wait: float | None,
        max_ack_pending: int = -1,
        credit_bytes: int = 4 * 1024 * 1024,
    ) -> AbstractAsyncContextManager[Reader]:
        """Create the durable consumer `name` if it is missing, and read it. Leaving closes the pulls, not the consumer.

        Args:
            ack_wait: seconds until an unacknowledged message is delivered again; None: practically never.
            max_ack_pending: how many deliveries may wait for an acknowledgement; -1: any number.
            credit_bytes: upper bound of what the server may send ahead of `Reader.receive`.

        Raises:
            ConsumerConflict: another consumer has these subjects of the work queue.
            NoAnswer, Rejected: as the server says.
        """
        ...

    def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        """Publish a core message. May be lost without notice."""
        ...

    def listen(self, subject: str) -> AbstractAsyncContextManager[MemoryReceiveChannel[Message]]:
        """Subscribe to core messages (wildcards allowed); subscribed at the server when entered. A reader that is too
        slow loses the oldest."""
        ...
