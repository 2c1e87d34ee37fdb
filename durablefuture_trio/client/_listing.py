"""Listing workflows from their projection records."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import msgspec
import trio

from durablefuture_trio.client._reading import unavailable
from durablefuture_trio.client._records import WorkflowDescription, listed
from durablefuture_trio.client._timing import jittered
from durablefuture_trio.ports.broker import Broker, BrokerError, Incomplete, NoAnswer
from durablefuture_trio.protocol.projection import Status, decode_record
from durablefuture_trio.protocol.subjects import Subjects

logger = logging.getLogger("durablefuture_trio.client")


async def descriptions(
    broker: Broker, subjects: Subjects, status: frozenset[Status] | None, workflow: str | None
) -> AsyncIterator[WorkflowDescription]:
    """The records that match, in stream order. A scan that breaks off goes on behind the last record it gave."""
    after = 0
    shown: set[str] = set()
    while True:
        try:
            async for stored in broker.scan(subjects.projection_stream, subjects.projection_filter, after=after):
                after = stored.seq
                try:
                    record = decode_record(stored.body)
                except msgspec.MsgspecError as error:
                    logger.warning("the listing record %s cannot be read and is left out: %s", stored.subject, error)
                    continue
                if status is not None and record.status not in status:
                    continue
                if workflow is not None and record.workflow != workflow:
                    continue
                # A record that is replaced during the scan moves to the end and comes again.
                if record.workflow_id in shown:
                    continue
                shown.add(record.workflow_id)
                yield listed(record)
            return
        except (NoAnswer, Incomplete) as error:
            logger.debug("the listing broke off after record %d: %r", after, error)
        except BrokerError as error:
            raise unavailable(f"the listing of namespace {subjects.namespace!r}", error) from error
        await trio.sleep(jittered(1.0))
