"""The namespace record: written first, by whoever comes first, and binding for everybody."""

from __future__ import annotations

import logging

import msgspec
import trio

from durablefuture_trio.errors import BrokerUnavailableError, NamespaceError
from durablefuture_trio.ports.broker import Append, Broker, BrokerError, Conflict, NoAnswer, StreamDrift
from durablefuture_trio.protocol.subjects import (
    Subjects,
    check_namespace,
    lease_stream,
    lease_stream_spec,
    namespace_record,
    stream_specs,
)

logger = logging.getLogger("durablefuture_trio.namespace")

DEFAULT_SHARDS = 4
PROTOCOL_VERSION = 1
AGAIN_S = 0.25


class NamespaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What can never change about a namespace.

    Attributes:
        protocol: version of the protocol its streams are written in.
        shards: into how many the workflow ids are divided.
    """

    protocol: int = PROTOCOL_VERSION
    shards: int = DEFAULT_SHARDS


_decoder = msgspec.json.Decoder(NamespaceRecord)


async def read_namespace(broker: Broker, namespace: str) -> NamespaceRecord | None:
    """The record of a namespace, or None if nobody has set it up yet.

    Raises:
        NamespaceError: it was written by a newer program, or is no such record.
    """
    check_namespace(namespace)
    stored = await broker.last(lease_stream(namespace), namespace_record(namespace), confirmed=True)
    if stored is None:
        return None
    try:
        record = _decoder.decode(stored.body)
    except msgspec.MsgspecError as error:
        raise NamespaceError(
            f"the record of namespace {namespace!r} ({stored.subject}) cannot be read: {error}"
        ) from error
    if record.protocol > PROTOCOL_VERSION:
        raise NamespaceError(
            f"namespace {namespace!r} speaks protocol {record.protocol}, this program up to {PROTOCOL_VERSION}: "
            "run a newer durablefuture-trio"
        )
    return record


async def establish_namespace(
    broker: Broker, namespace: str, *, shards: int = DEFAULT_SHARDS, replicas: int = 1
) -> Subjects:
    """Make the namespace exist: record first (the first writer wins), then the streams made from it. A server that
    does not answer is asked again, for as long as that takes: every part may be done twice.

    Raises:
        NamespaceError: a stream's settings drifted (all differences are named), or the record is newer than we are.
        BrokerUnavailableError: the server refuses.
    """
    check_namespace(namespace)
    while True:
        try:
            return await _establish(broker, namespace, shards, replicas)
        except NoAnswer as error:
            logger.warning("namespace %r cannot be set up yet, the server does not answer: %s", namespace, error)
            await _pause(broker)
        except StreamDrift as drift:
            lines = "".join(f"\n  {difference}" for difference in drift.differences)
            raise NamespaceError(
                f"stream {drift.stream} has other settings than namespace {namespace!r} needs; nothing was changed. "
                f"Set it right with the nats tool, or use another namespace:{lines}"
            ) from drift
        except BrokerError as error:
            raise BrokerUnavailableError(
                f"namespace {namespace!r} cannot be set up: {error}. Check the server's room for JetStream and that "
                "this user may create streams."
            ) from error


async def _establish(broker: Broker, namespace: str, shards: int, replicas: int) -> Subjects:
    await broker.provision([lease_stream_spec(namespace, replicas)])
    record = await _win_or_read(broker, namespace, shards)
    subjects = Subjects(namespace, record.shards)
    await broker.provision(stream_specs(subjects, replicas))
    return subjects


async def _pause(broker: Broker) -> None:
    """Until the link is back, and a moment longer."""
    link = broker.link
    await trio.sleep(AGAIN_S)
    while not link.up:
        await link.changed(link.generation)


async def _win_or_read(broker: Broker, namespace: str, shards: int) -> NamespaceRecord:
    while True:
        record = await read_namespace(broker, namespace)
        if record is not None:
            return record
        body = msgspec.json.encode(NamespaceRecord(shards=shards))
        try:
            await broker.append(Append(subject=namespace_record(namespace), body=body, expect_last=0))
        except Conflict:
            continue
