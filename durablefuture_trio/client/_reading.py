"""Reading histories for clients: which commit a run ended in, and patience while the server does not answer."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from durablefuture_trio.client._timing import EXPLAIN_AFTER_S, LEADER_WITHIN_S, jittered
from durablefuture_trio.errors import BrokerUnavailableError, WorkflowNotFoundError
from durablefuture_trio.history.commit import own_events
from durablefuture_trio.history.events import ContinuedAsNew, Terminal, WorkflowFailed, WorkflowStarted
from durablefuture_trio.ports.broker import NO_RESPONDERS, BrokerError, Incomplete, NoAnswer, Rejected
from durablefuture_trio.protocol.loading import HistoryReader, NumberedCommit, terminal_of

logger = logging.getLogger("durablefuture_trio.client")

T = TypeVar("T")


class Patience:
    """Whether it helps to ask again. One for each question."""

    def __init__(self) -> None:
        self._leader_by: float | None = None

    def outlasts(self, error: BrokerError) -> bool:
        """After this error: silence may last as long as it likes, a missing leader only so long."""
        if not isinstance(error, Rejected) or error.code != NO_RESPONDERS:
            self._leader_by = None
            return isinstance(error, NoAnswer | Incomplete)
        now = trio.current_time()
        if self._leader_by is None:
            self._leader_by = now + LEADER_WITHIN_S
        return now < self._leader_by


async def persistently(what: str, read: Callable[[], Awaitable[T]]) -> T:
    """The answer to `read`, asked again as long as the server does not answer and the caller's scope allows.

    Raises:
        BrokerUnavailableError: the server refuses.
    """
    patience = Patience()
    explain_at = trio.current_time() + EXPLAIN_AFTER_S
    while True:
        try:
            return await read()
        except BrokerError as error:
            if not patience.outlasts(error):
                raise unavailable(what, error) from error
            if trio.current_time() >= explain_at:
                logger.warning("cannot read %s: the server does not answer (%r); trying on", what, error)
                explain_at = trio.current_time() + 60.0
        await trio.sleep(jittered(1.0))


def unavailable(what: str, error: BrokerError) -> BrokerUnavailableError:
    """The user's error for a server that refuses to be read."""
    return BrokerUnavailableError(
        f"cannot read {what}: {error}. Check that the namespace is set up (a supervisor does that) and that this user "
        "may read it."
    )


async def last_commit(reader: HistoryReader, workflow_id: str, run_id: str | None) -> NumberedCommit:
    """The last commit of a run; None is the latest run of the id.

    Raises:
        WorkflowNotFoundError: there is no such run, and the stream's leader says so too.
        HistoryError: the history is damaged. BrokerError: as the server says.
    """
    for confirmed in (False, True):
        commit = await reader.tip(workflow_id, confirmed=confirmed)
        while commit is not None and run_id is not None and commit.commit.run_id != run_id:
            commit = await reader.run_before(commit, workflow_id)
        if commit is not None:
            return commit
    raise not_found(workflow_id, run_id)


async def end_of_chain(reader: HistoryReader, workflow_id: str, run_id: str) -> tuple[str, Terminal | None]:
    """The run that a run has come to by continuing as new or being tried again (or that very run), and the event that
    closed it; None: it is open.

    Raises:
        WorkflowNotFoundError, HistoryError, BrokerError: as `last_commit`.
    """
    for confirmed in (False, True):
        later: list[NumberedCommit] = []
        commit = await reader.tip(workflow_id, confirmed=confirmed)
        while commit is not None and commit.commit.run_id != run_id:
            if await _chain_of(reader, workflow_id, commit) == run_id:
                # A chain is named by its first run: no need to go back through all that lie between.
                break
            later.append(commit)
            commit = await reader.run_before(commit, workflow_id)
        if commit is not None:
            break
    else:
        raise not_found(workflow_id, run_id)
    event = await terminal_at(reader, workflow_id, commit)
    while event is not None and continued_in(event) and later:
        commit = later.pop()
        event = await terminal_at(reader, workflow_id, commit)
    return commit.commit.run_id, event


async def _chain_of(reader: HistoryReader, workflow_id: str, commit: NumberedCommit) -> str:
    """The first run of the chain that the run of `commit` belongs to."""
    first_n = commit.commit.first_n
    if commit.n != first_n:
        async for chunk in reader.commits(workflow_id, first_n, first_n):
            commit = chunk[0]
    for event in own_events(commit.commit):
        if isinstance(event, WorkflowStarted):
            return event.first_run_id or event.run_id
    return commit.commit.run_id


def continued_in(event: Terminal) -> str:
    """The run that goes on where this event closed one; empty: none does."""
    return event.next_run_id if isinstance(event, ContinuedAsNew | WorkflowFailed) else ""


def not_found(workflow_id: str, run_id: str | None) -> WorkflowNotFoundError:
    """The error for a run (None: any run of the id) that does not exist."""
    run = f" has no run {run_id!r}" if run_id else " is not known"
    return WorkflowNotFoundError(
        f"workflow {workflow_id!r}{run} in this namespace: check the id and the namespace (closed runs are removed "
        "after their retention time)",
        workflow_id=workflow_id,
        run_id=run_id or "",
    )


async def terminal_at(reader: HistoryReader, workflow_id: str, commit: NumberedCommit) -> Terminal | None:
    """The event that closed the run whose last commit is given, or None if it is open."""
    while not commit.commit.events and commit.n > commit.commit.first_n:
        # A commit without events only remembers refused requests; the close is before it.
        async for chunk in reader.commits(workflow_id, commit.n - 1, commit.n - 1):
            commit = chunk[0]
    return terminal_of(commit.commit)
