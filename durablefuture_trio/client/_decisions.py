"""What the history says about a request whose answer was lost."""

from __future__ import annotations

import logging
from contextlib import aclosing

from durablefuture_trio.client._reading import Patience, unavailable
from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.errors import HistoryError
from durablefuture_trio.history.commit import Commit
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    CancelRequested,
    RequestRecord,
    SignalReceived,
    Terminal,
    UpdateAccepted,
    UpdateCompleted,
    WorkflowStarted,
    WorkflowTerminated,
)
from durablefuture_trio.history.state import RUN_ENDED
from durablefuture_trio.ports.broker import BrokerError
from durablefuture_trio.protocol.envelope import Answer, answer_of
from durablefuture_trio.protocol.loading import HistoryReader, NumberedCommit

logger = logging.getLogger("durablefuture_trio.client")


class DecisionSearch:
    """Looks for the decision of a request in the history, reading each commit once.

    Args:
        update_id: the request is this update. That it was accepted decides nothing yet: its outcome does, or the end of
            the run without one.
    """

    def __init__(self, reader: HistoryReader, workflow_id: str, request_id: str, update_id: str | None = None) -> None:
        self._reader = reader
        self._workflow_id = workflow_id
        self._request_id = request_id
        self._update_id = update_id
        self._seen_n = 0
        self._accepted_in = ""
        self._patience = Patience()
        self.is_accepted = False
        """The update is accepted, and its handler has not returned as far as the history was read."""

    async def look(self) -> Answer | None:
        """The decision, or None if none is recorded (or the server could not be asked just now).

        Raises:
            BrokerUnavailableError: the server refuses to be read.
        """
        try:
            return await self._look()
        except HistoryError as error:
            # Commits of a closed run may have been purged by retention; the owner's answer is still to come.
            logger.debug("cannot look for request %s: %s", self._request_id, error)
        except BrokerError as error:
            if not self._patience.outlasts(error):
                raise unavailable(f"the history of workflow {self._workflow_id!r}", error) from error
            logger.debug("cannot look for request %s just now: %r", self._request_id, error)
        return None

    def accepted_in(self, run_id: str) -> None:
        """The owner says that the update was accepted in this run, and no more: what became of it is to be found."""
        self.is_accepted = True
        if run_id != self._accepted_in:
            # Perhaps a run before those that were read.
            self._accepted_in, self._seen_n = run_id, 0

    async def _look(self) -> Answer | None:
        tip = await self._reader.tip(self._workflow_id)
        if tip is None or tip.n <= self._seen_n:
            return None
        if (found := decision_in(tip.commit, self._request_id, self._update_id)) is not None:
            return found
        if self._seen_n:
            # Across the end of a run, if one has ended: the next one need not know of an update that it cut off.
            first_n = self._seen_n + 1
        else:
            first_n = await self._first_n(tip)
        try:
            found = await self._read_run(first_n, tip)
        except HistoryError:
            # Commits of a closed run may have been purged by retention; what mattered was carried over.
            found = await self._read_run(tip.commit.first_n, tip)
        self._seen_n = tip.n
        return found

    async def _first_n(self, tip: NumberedCommit) -> int:
        """Where to begin: with the latest run, or with the one that is known to have accepted the update."""
        commit: NumberedCommit | None = tip
        while self._accepted_in and commit is not None and commit.commit.run_id != self._accepted_in:
            commit = await self._reader.run_before(commit, self._workflow_id)
        return (commit or tip).commit.first_n

    async def _read_run(self, first_n: int, last: NumberedCommit) -> Answer | None:
        async with aclosing(self._reader.commits(self._workflow_id, first_n, last.n - 1)) as chunks:
            async for chunk in chunks:
                for item in chunk:
                    if (found := self._read(item.commit)) is not None:
                        return found
        return self._read(last.commit)

    def _read(self, commit: Commit) -> Answer | None:
        found = decision_in(commit, self._request_id, self._update_id)
        if found is not None or self._update_id is None:
            return found
        ended: Terminal | None = None
        for event in commit.events:
            match event:
                case UpdateAccepted(update_id=self._update_id):
                    self.is_accepted = True
                case WorkflowStarted():
                    # The end before it is that of the run it replaces or continues.
                    is_carried = any(item.update_id == self._update_id for item in event.updates)
                    if is_carried or event.run_id == self._accepted_in:
                        self.is_accepted, ended = True, None
                case _:
                    if self.is_accepted and isinstance(event, TERMINAL_EVENTS):
                        ended = event
        if ended is None:
            return None
        self.is_accepted = False
        return _unfinished(self._request_id, self._accepted_in or commit.run_id)


def _unfinished(request_id: str, run_id: str) -> Answer:
    """The answer to an update that was accepted in a run which ended before its handler had returned."""
    words = "the update was accepted, but the run ended before its handler had returned"
    return Answer(request_id=request_id, answer="failed", run_id=run_id, message=words)


def decision_in(commit: Commit, request_id: str, update_id: str | None = None) -> Answer | None:
    """What `commit` alone says about a request, or None if it says nothing.

    Args:
        update_id: the request is this update: it is decided by its outcome, or by its refusal.
    """
    found: Answer | None = None
    for event in commit.events:
        match event:
            case WorkflowStarted():
                if event.request_id == request_id:
                    found = _applied(request_id, event.run_id)
                for record in event.carried:
                    if found is None and _decides(record, request_id, update_id):
                        found = answer_of(record)
                for outcome in event.update_outcomes:
                    if outcome.update_id == update_id:
                        found = _outcome(request_id, event.run_id, outcome.result, outcome.failure)
            case UpdateCompleted() if event.update_id == update_id:
                found = _outcome(request_id, commit.run_id, event.result, event.failure)
            case WorkflowTerminated() | SignalReceived() | CancelRequested() if event.request_id == request_id:
                # A start that terminates the run in its way is in both events; the WorkflowStarted comes later and
                # counts. A start that uses an open run has brought it a signal.
                found = _applied(request_id, commit.run_id)
    for record in commit.refused:
        if _decides(record, request_id, update_id):
            found = answer_of(record)
    return found


def _decides(record: RequestRecord, request_id: str, update_id: str | None) -> bool:
    return record.request_id == request_id and (update_id is None or record.answer != "applied")


def _applied(request_id: str, run_id: str) -> Answer:
    return Answer(request_id=request_id, answer="applied", run_id=run_id)


def _outcome(request_id: str, run_id: str, result: Payload | None, failure: Failure | None) -> Answer:
    if failure is not None and failure.type == RUN_ENDED:
        return _unfinished(request_id, run_id)
    answer = "applied" if failure is None else "failed"
    return Answer(request_id=request_id, answer=answer, run_id=run_id, result=result, failure=failure)
