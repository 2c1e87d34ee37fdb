"""`ports.broker.Broker` over NATS JetStream."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import outcome
import trio

from durablefuture_trio.errors import BrokerUnavailableError
from durablefuture_trio.nats_bridge._js_api import (
    JETSTREAM_OFF,
    STREAM_NAME_IN_USE,
    JetStream,
    append_outcome,
    error_for,
)
from durablefuture_trio.nats_bridge._link import BridgeLink
from durablefuture_trio.nats_bridge._reader import NatsReader, consumer_config
from durablefuture_trio.nats_bridge._wire import (
    append_headers,
    encode_headers,
    encode_subject,
    own_headers,
    parse_headers,
    publish_command,
)
from durablefuture_trio.nats_bridge.options import ConnectOptions
from durablefuture_trio.ports.broker import (
    NO_HEADERS,
    Append,
    AppendOutcome,
    BrokerError,
    BrokerLimits,
    ConsumerState,
    Headers,
    Message,
    NoAnswer,
    Rejected,
    Stored,
    StreamDrift,
    StreamSpec,
    StreamState,
    TooLarge,
)

logger = logging.getLogger("durablefuture_trio.nats")

OLDEST_SERVER = (2, 12)
"""Atomic expectations, message schedules and TTLs as used here came with nats-server 2.12."""

MANY_SUBJECTS = 1000
_LISTEN_BUFFER_MESSAGES = 4096


class NatsBroker:
    """JetStream as `ports.broker.Broker`; made by `open_broker`."""

    def __init__(self, link: BridgeLink) -> None:
        self._link = link
        self._api = JetStream(link)
        link.decode_with(append_outcome)

    @property
    def limits(self) -> BrokerLimits:
        """See `Broker`."""
        return BrokerLimits(max_payload_bytes=self._link.max_payload_bytes, server_version=self._link.server_version)

    @property
    def link(self) -> BridgeLink:
        """See `Broker`."""
        return self._link

    # --- streams ---

    async def provision(self, streams: Sequence[StreamSpec]) -> None:
        """See `Broker`."""
        for spec in streams:
            wanted = stream_config(spec)
            created = await self._api.create_stream(spec.name, wanted)
            if created.error is None:
                continue
            if created.error.err_code != STREAM_NAME_IN_USE:
                raise error_for(created.error)
            info = await self._api.stream_info(spec.name)
            if info is None:
                raise Rejected(f"stream {spec.name} was deleted while it was checked")
            differences = stream_differences(wanted, info.config)
            if differences:
                raise StreamDrift(spec.name, differences)

    async def stream_state(self, stream: str) -> StreamState | None:
        """See `Broker`."""
        return await self._api.stream_state(stream)

    # --- writing ---

    def append_soon(self, append: Append, on_outcome: Callable[[AppendOutcome], None]) -> None:
        """See `Broker`.

        Raises:
            ValueError: the subject or a header cannot be sent.
        """
        headers = append_headers(append)
        size = len(headers) + len(append.body)
        limit = self._link.max_payload_bytes
        if size > limit:
            self._link.later(on_outcome, TooLarge(f"{size} bytes with headers; the server takes {limit}"))
            return
        self._link.append_soon(encode_subject(append.subject), headers, append.body, on_outcome)

    async def append(self, append: Append) -> int:
        """See `Broker`."""
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()

        def done(result: AppendOutcome) -> None:
            if task is not None:
                known = outcome.Error(result) if isinstance(result, BrokerError) else outcome.Value(result)
                trio.lowlevel.reschedule(task, known)

        def abort(_: object) -> trio.lowlevel.Abort:
            nonlocal task
            task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self.append_soon(append, done)
        sequence: int = await trio.lowlevel.wait_task_rescheduled(abort)
        return sequence

    async def delete(self, stream: str, seq: int) -> bool:
        """See `Broker`."""
        return await self._api.delete_message(stream, seq)

    async def purge(self, stream: str, subject: str, *, keep: int = 0) -> int:
        """See `Broker`."""
        return await self._api.purge(stream, subject, keep)

    # --- reading ---

    async def last(self, stream: str, subject: str, *, confirmed: bool = False) -> Stored | None:
        """See `Broker`."""
        if confirmed:
            return await self._api.last_confirmed(stream, subject)
        return await self._api.last_direct(stream, subject)

    async def many(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        """See `Broker`.

        Raises:
            ValueError: more than 1,000 subjects.
        """
        if len(subjects) > MANY_SUBJECTS:
            raise ValueError(f"at most {MANY_SUBJECTS} subjects can be read at once, not {len(subjects)}")
        if not subjects:
            await trio.lowlevel.checkpoint()
            return []
        return await self._api.last_of_each(stream, list(subjects))

    def scan(self, stream: str, subject: str, *, after: int = 0) -> AsyncIterator[Stored]:
        """See `Broker`."""
        return _Scan(self._api, stream, subject, after)

    # --- consumers ---

    async def consumers(self, stream: str) -> list[ConsumerState]:
        """See `Broker`."""
        return await self._api.consumers(stream)

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """See `Broker`."""
        return await self._api.delete_consumer(stream, name)

    @asynccontextmanager
    async def open_reader(
        self,
        stream: str,
        name: str,
        subject: str,
        *,
        ack_wait: float | None,
        max_ack_pending: int = -1,
        credit_bytes: int = 4 * 1024 * 1024,
    ) -> AsyncIterator[NatsReader]:
        """See `Broker`. With an `ack_wait` the consumer may be shared, and gaps in its sequence are no loss."""
        config = consumer_config(name, subject, ack_wait_s=ack_wait, max_ack_pending=max_ack_pending)
        generation = self._link.generation
        info = await self._api.create_consumer(stream, name, config)
        reader = NatsReader(
            self._link,
            stream,
            name,
            credit_bytes=credit_bytes,
            contiguous_after=info.delivered.consumer_seq if ack_wait is None else None,
        )
        try:
            if self._link.generation != generation:
                raise NoAnswer("the connection was lost while the consumer was created")
            yield reader
        finally:
            reader.close()

    # --- core messages ---

    def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        """See `Broker`.

        Raises:
            TooLarge: it exceeds the server's max_payload.
            ValueError: the subject or a header cannot be sent.
        """
        encoded = encode_headers(headers)
        if len(encoded) + len(body) > self._link.max_payload_bytes:
            raise TooLarge(f"{len(encoded) + len(body)} bytes; the server takes {self._link.max_payload_bytes}")
        self._link.write(publish_command(encode_subject(subject), b"", encoded, body))

    @asynccontextmanager
    async def listen(self, subject: str) -> AsyncIterator[trio.MemoryReceiveChannel[Message]]:
        """See `Broker`.

        Raises:
            NoAnswer: the link is down when it is entered.
        """
        send, receive = trio.open_memory_channel[Message](_LISTEN_BUFFER_MESSAGES)

        def sink(subject: bytes, _: bytes, body: bytes, headers: bytes | None) -> None:
            message = Message(
                subject=subject.decode(),
                body=body,
                headers=own_headers(parse_headers(headers)) if headers is not None else NO_HEADERS,
            )
            try:
                send.send_nowait(message)
            except trio.WouldBlock:
                receive.receive_nowait()
                send.send_nowait(message)
            except trio.BrokenResourceError:
                # The listener has closed its end, and will leave.
                logger.debug("a message on %s came when nobody listened any more", message.subject)

        subscription = self._link.subscribe(encode_subject(subject), sink)
        try:
            await self._link.echo()
            with send, receive:
                yield receive
        finally:
            self._link.unsubscribe(subscription)


class _Scan:
    """An iterator and no generator, so that a loop over it may be left at any point without `aclosing`."""

    def __init__(self, api: JetStream, stream: str, subject: str, after: int) -> None:
        self._api = api
        self._stream = stream
        self._subject = subject
        self._after = after
        self._page: Iterator[Stored] = iter(())
        self._more = True

    def __aiter__(self) -> _Scan:
        return self

    async def __anext__(self) -> Stored:
        message = next(self._page, None)
        while message is None:
            if not self._more:
                raise StopAsyncIteration
            messages, left = await self._api.page_after(self._stream, self._subject, self._after)
            self._more = left > 0
            self._page = iter(messages)
            message = next(self._page, None)
        self._after = message.seq
        return message


def stream_config(spec: StreamSpec) -> dict[str, Any]:
    """The settings of a stream, as the API takes them. What is not named here is the server's default."""
    config: dict[str, Any] = {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "retention": spec.retention,
        "storage": "file",
        "discard": "old",
        "num_replicas": spec.replicas,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "max_consumers": -1,
        "max_msgs_per_subject": 1 if spec.last_per_subject else -1,
        "allow_direct": True,
    }
    if spec.schedules:
        config |= {"allow_msg_schedules": True, "allow_msg_ttl": True, "allow_rollup_hdrs": True}
    return config


def stream_differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One line for each setting that matters and differs. More replicas than wanted do no harm."""
    problems = []
    for field in (*wanted, *(flag for flag in _FORBIDDEN if flag not in wanted)):
        want = wanted.get(field, False)
        have = found.get(field, False if field in _FORBIDDEN or isinstance(want, bool) else None)
        if field == "subjects":
            same = sorted(want) == sorted(have or ())
        elif field == "num_replicas":
            same = (have or 1) >= want
        elif field in _UNLIMITED and want in _NO_LIMIT:
            same = (have or 0) in _NO_LIMIT
        else:
            same = want == have
        if not same:
            problems.append(f"{field}: wanted {want}, found {have}")
    return problems


_UNLIMITED = frozenset({"max_msgs", "max_bytes", "max_age", "max_msg_size", "max_consumers", "max_msgs_per_subject"})
_NO_LIMIT = frozenset({-1, 0})
_FORBIDDEN = ("no_ack", "sealed", "deny_delete", "deny_purge")


# --- connecting -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_broker(options: ConnectOptions) -> AsyncIterator[NatsBroker]:
    """Connect to NATS, and stay connected (again and again) as long as this is open.

    Raises:
        BrokerUnavailableError: there is no usable server: nothing listens, the credentials are refused (at once),
            JetStream is off, or the server is too old.
    """
    link = BridgeLink(options)
    broker = NatsBroker(link)
    async with link.running():
        await _wait_until_usable(link, broker._api)  # noqa: SLF001 - one module
        yield broker


async def _wait_until_usable(link: BridgeLink, api: JetStream) -> None:
    urls = link.options.safe_urls()
    with trio.move_on_after(link.options.connect_timeout_s):
        while True:
            await link.settled()
            if link.up:
                _check_version(link, urls)
                try:
                    answer = await api.account()
                except NoAnswer:
                    continue
                except Rejected as error:
                    raise _jetstream_off(urls, str(error)) from error
                if answer.error is None:
                    return
                if answer.error.err_code in JETSTREAM_OFF:
                    raise _jetstream_off(urls, answer.error.description)
                raise BrokerUnavailableError(f"NATS at {urls} refuses JetStream: {answer.error.description}")
            raise BrokerUnavailableError(
                f"NATS at {urls} refuses the connection: {link.problem}. Check the credentials and TLS settings under "
                "[nats] (user and password, token, credentials file or nkey)."
            ) from link.problem
    reason = f": {link.problem}" if link.problem is not None else ""
    raise BrokerUnavailableError(
        f"No NATS server could be reached at {urls} within {link.options.connect_timeout_s:g} s{reason}. Check the url "
        "under [nats], and that the server is running; without a url the supervisor runs a server of its own."
    ) from link.problem


def _check_version(link: BridgeLink, urls: str) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", link.server_version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise BrokerUnavailableError(
            f"NATS at {urls} is version {link.server_version or 'unknown'}, but {oldest} or newer is needed "
            "(message schedules and per-message TTLs). Upgrade nats-server."
        )


def _jetstream_off(urls: str, why: str) -> BrokerUnavailableError:
    return BrokerUnavailableError(
        f"NATS at {urls} has no JetStream for this account: {why}. Start the server with JetStream (-js, or a "
        "jetstream block in its configuration) and enable it for the account."
    )
