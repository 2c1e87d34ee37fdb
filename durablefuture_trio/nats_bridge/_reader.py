"""Reading a durable pull consumer: pulls that stay open, credit in bytes, and no message missed in silence.

One pull is open at a time. It asks for as many bytes as the reader may still hold; what ends it is decided by a table:

==============================  ===============================================================
100 idle heartbeat              the consumer lives; its last sequence must be the one seen here
404, 408                        the pull ended (nothing there, or expired): pull again
409 Message Size Exceeds …      the pull's bytes are used up: pull again when there is room
409 Batch Completed             the pull ended: pull again
409 anything else, 503, others  the consumer cannot be read on (deleted, its leader moved): lost
==============================  ===============================================================

With a practically infinite acknowledgement wait (the owner's inbox) the server never sends a message again that was
lost on the way, so the consumer sequence has to be contiguous, also at each heartbeat. With an ordinary wait (shared
task queues) a lost message comes again by itself, and the sequences are spread over all readers: not checked.
"""

from __future__ import annotations

import logging
from typing import Literal

import outcome
import trio

from durablefuture_trio.nats_bridge._link import BridgeLink
from durablefuture_trio.nats_bridge._wire import (
    own_headers,
    parse_ack_address,
    parse_headers,
    publish_command,
    status_of,
    status_text,
)
from durablefuture_trio.ports.broker import NO_HEADERS, Delivery, ReaderLost

logger = logging.getLogger("durablefuture_trio.nats")

IDLE_HEARTBEAT_S = 2.0
SILENCE_S = 5.0
"""Two heartbeats and a margin."""

PULL_EXPIRES_S = 120.0
_PULL_MESSAGES = 100_000
_ENVELOPE_BYTES = 8 * 1024
"""What the server may count beside body and headers: subject and acknowledgement address, each bounded by its maximal
control line of 4 KiB."""

LossReason = Literal["gap", "link", "deleted", "silent"]


class NatsReader:
    """Implements `ports.broker.Reader`.

    Args:
        stream, name: of the consumer, which exists.
        credit_bytes: most bytes to hold here unread; raised to the largest message, or that one would never come.
        contiguous_after: the consumer sequence already delivered, if they have to be contiguous; None: do not check.
    """

    def __init__(
        self, link: BridgeLink, stream: str, name: str, *, credit_bytes: int, contiguous_after: int | None
    ) -> None:
        self._link = link
        self._pull_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}".encode()
        self._largest = link.max_payload_bytes + _ENVELOPE_BYTES
        self._credit = max(credit_bytes, self._largest)
        self._seen = contiguous_after
        self._buffer: list[Delivery] = []
        self._buffered_bytes = 0
        self._lost: LossReason | None = None
        self._waiting: trio.lowlevel.Task | None = None
        self._heard = trio.current_time()
        self._pulls = 0
        self._pull_open = False
        self._pull_bytes = 0
        self._pull_messages = 0
        self._pull_delivered = False
        self._inbox = link.new_inbox()
        self._subscription = link.subscribe(self._inbox + b".*", self._on_message, lambda: self._lose("link"))
        self._pull()

    def close(self) -> None:
        """End the pulls. What was delivered and not received stays unacknowledged."""
        self._link.unsubscribe(self._subscription)
        if self._lost is None:
            self._lose("link")

    async def receive(self) -> list[Delivery]:
        """See `ports.broker.Reader`."""
        if not self._buffer and self._lost is None:
            await self._wait()
        else:
            await trio.lowlevel.checkpoint()
        if self._buffer:
            deliveries, self._buffer = self._buffer, []
            self._buffered_bytes = 0
            self._pull()
            return deliveries
        assert self._lost is not None
        raise ReaderLost(self._lost)

    def ack(self, delivery: Delivery) -> None:
        """See `ports.broker.Reader`."""
        self._link.write(publish_command(delivery.reply.encode(), b"", b"", b"+ACK"))

    def in_progress(self, delivery: Delivery) -> None:
        """See `ports.broker.Reader`."""
        self._link.write(publish_command(delivery.reply.encode(), b"", b"", b"+WPI"))

    async def _wait(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting = None
            return trio.lowlevel.Abort.SUCCEEDED

        if self._waiting is not None:
            raise RuntimeError("another task is already receiving from this reader")
        while not self._buffer and self._lost is None:
            with trio.move_on_at(self._heard + SILENCE_S) as silence:
                self._waiting = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            if silence.cancelled_caught and trio.current_time() >= self._heard + SILENCE_S:
                self._lose("silent")

    def _wake(self) -> None:
        task, self._waiting = self._waiting, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(None))

    def _lose(self, reason: LossReason) -> None:
        if self._lost is None:
            self._lost = reason
            self._pull_open = False
            self._link.unsubscribe(self._subscription)
            self._wake()

    # --- pulling ---

    def _pull(self) -> None:
        """Open the next pull, if none is open and there is room for any message."""
        room = self._credit - self._buffered_bytes
        if self._lost is not None or self._pull_open or room < max(self._largest, self._credit // 2):
            return
        self._pulls += 1
        self._pull_open = True
        self._pull_delivered = False
        self._pull_bytes = room
        self._pull_messages = _PULL_MESSAGES
        self._heard = trio.current_time()
        question = b'{"batch":%d,"max_bytes":%d,"expires":%d,"idle_heartbeat":%d}' % (
            _PULL_MESSAGES,
            room,
            PULL_EXPIRES_S * 1e9,
            IDLE_HEARTBEAT_S * 1e9,
        )
        self._link.write(publish_command(self._pull_subject, b"%b.%d" % (self._inbox, self._pulls), b"", question))

    def _pull_ended(self) -> None:
        self._pull_open = False
        self._pull()

    def _on_message(self, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        self._heard = trio.current_time()
        status = status_of(headers)
        if status:
            assert headers is not None
            self._on_status(status, subject, headers)
            return
        address = parse_ack_address(reply)
        if self._seen is not None:
            if address.consumer_seq != self._seen + 1:
                self._lose("gap")
                return
            self._seen = address.consumer_seq
        size = len(subject) + len(reply) + len(body) + (len(headers) if headers is not None else 0)
        self._buffered_bytes += size
        self._pull_delivered = True
        self._buffer.append(
            Delivery(
                subject=subject.decode(),
                seq=address.stream_seq,
                time=address.time,
                body=body,
                headers=own_headers(parse_headers(headers)) if headers is not None else NO_HEADERS,
                delivered=address.delivered,
                pending=address.pending,
                reply=reply.decode(),
            )
        )
        if self._waiting is not None:
            self._wake()
        self._count(size)

    def _count(self, size: int) -> None:
        """A pull whose last message or byte was used ends without a word from the server."""
        self._pull_bytes -= size
        self._pull_messages -= 1
        if self._pull_messages <= 0 or self._pull_bytes <= 0:
            self._pull_ended()

    def _on_status(self, status: int, subject: bytes, headers: bytes) -> None:
        of_this_pull = subject.endswith(b".%d" % self._pulls)
        if status == 100:
            last = parse_headers(headers).get("Nats-Last-Consumer")
            if self._seen is not None and last is not None and int(last) != self._seen:
                self._lose("gap")
        elif not _only_ends_pull(status, headers):
            logger.info("the consumer of %s is lost: %s", self._pull_subject.decode(), status_text(headers) or status)
            self._lose("deleted")
        elif of_this_pull:
            if status == 409 and not self._pull_delivered and self._pull_bytes >= self._credit:
                # A message larger than today's max_payload, from a server that allowed more: make room for it.
                self._credit *= 2
            self._pull_ended()


def _only_ends_pull(status: int, headers: bytes) -> bool:
    text = status_text(headers).lower()
    return status in {404, 408} or (status == 409 and ("maxbytes" in text or "batch completed" in text))


def consumer_config(name: str, subject: str, *, ack_wait_s: float | None, max_ack_pending: int) -> dict[str, str | int]:
    """The settings of a consumer, as the API takes them."""
    ten_years_s = 10 * 365 * 24 * 3600.0
    return {
        "name": name,
        "durable_name": name,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int((ten_years_s if ack_wait_s is None else ack_wait_s) * 1e9),
        "max_deliver": -1,
        "max_ack_pending": max_ack_pending,
        "filter_subject": subject,
        "replay_policy": "instant",
    }
