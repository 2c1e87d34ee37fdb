"""Listing workflows from their projection records."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import msgspec
import trio

from durablefuture_trio.client._reading import Patience, unavailable
from durablefuture_trio.client._records import WorkflowDescription, listed
from durablefuture_trio.client._timing import jittered
from durablefuture_trio.ports.broker import Broker, BrokerError, Stored
from durablefuture_trio.protocol.projection import ProjectionRecord, Status, decode_record
from durablefuture_trio.protocol.subjects import Subjects

logger = logging.getLogger("durablefuture_trio.client")


class Listing:
    """The records that match, in stream order. A scan that breaks off goes on behind the last record it gave.

    An object and not an async generator, which a caller that leaves the loop early would have to close by hand.
    """

    def __init__(
        self, broker: Broker, subjects: Subjects, status: frozenset[Status] | None, workflow: str | None
    ) -> None:
        self._broker = broker
        self._subjects = subjects
        self._status = status
        self._workflow = workflow
        self._after = 0
        self._shown: set[str] = set()
        self._scan = self._go_on()

    def __aiter__(self) -> Listing:
        return self

    async def __anext__(self) -> WorkflowDescription:
        while True:
            stored = await self._next()
            record = self._read(stored)
            if record is not None and self._matches(record):
                self._shown.add(record.workflow_id)
                return listed(record)

    async def _next(self) -> Stored:
        patience = Patience()
        while True:
            try:
                stored = await anext(self._scan)
            except BrokerError as error:
                if not patience.outlasts(error):
                    raise unavailable(f"the listing of namespace {self._subjects.namespace!r}", error) from error
                logger.debug("the listing broke off after record %d: %r", self._after, error)
            else:
                self._after = stored.seq
                return stored
            await trio.sleep(jittered(1.0))
            self._scan = self._go_on()

    def _go_on(self) -> AsyncIterator[Stored]:
        subjects = self._subjects
        return self._broker.scan(subjects.projection_stream, subjects.projection_filter, after=self._after)

    def _read(self, stored: Stored) -> ProjectionRecord | None:
        try:
            return decode_record(stored.body)
        except msgspec.MsgspecError as error:
            logger.warning("the listing record %s cannot be read and is left out: %s", stored.subject, error)
            return None

    def _matches(self, record: ProjectionRecord) -> bool:
        return (
            (self._status is None or record.status in self._status)
            and (self._workflow is None or record.workflow == self._workflow)
            # A record that is replaced during the scan moves to the end and comes again.
            and record.workflow_id not in self._shown
        )
