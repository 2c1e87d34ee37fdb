"""A handle on one workflow."""

from __future__ import annotations

from functools import partial
from typing import Any, Generic, TypeVar

from durablefuture_trio._ids import new_id
from durablefuture_trio.client._core import Core
from durablefuture_trio.client._outcome import result_of
from durablefuture_trio.client._reading import last_commit, not_found, persistently
from durablefuture_trio.client._records import HistoryEvent, WorkflowDescription, described, history_events
from durablefuture_trio.errors import RequestFailedError, WorkflowNotFoundError
from durablefuture_trio.protocol.envelope import TerminateRequest
from durablefuture_trio.protocol.loading import NumberedCommit
from durablefuture_trio.protocol.projection import standing_record

R_co = TypeVar("R_co", covariant=True)


class WorkflowHandle(Generic[R_co]):
    """A workflow, seen from outside. Made by `Client.start` and `Client.handle`.

    A handle from `Client.start` means the run that was started (or used). A handle made without a run id means, at each
    call, the latest run of the id.
    """

    def __init__(self, core: Core, workflow_id: str, run_id: str | None, result_type: Any) -> None:
        self._core = core
        self._id = workflow_id
        self._run_id = run_id
        self._result_type = result_type

    def __repr__(self) -> str:
        return f"<WorkflowHandle {self._id!r} run {self._run_id or 'latest'}>"

    @property
    def id(self) -> str:
        """The workflow id."""
        return self._id

    @property
    def run_id(self) -> str | None:
        """The run this handle means; None: the latest one."""
        return self._run_id

    async def result(self) -> R_co:
        """Wait until the run has closed, and return what the workflow returned.

        Cancelling the wait does nothing to the workflow.

        Raises:
            WorkflowFailedError: the workflow raised; ``cause`` is what it raised.
            WorkflowTerminatedError, WorkflowTimedOutError: the run was ended from outside, or at its deadline.
            WorkflowNotFoundError: there is no such run.
            PayloadError: the result is not of the expected type.
            BrokerUnavailableError, HistoryError: the history cannot be read.
        """
        closing = await self._core.closings.of(self._id, self._run_id)
        result: R_co = result_of(self._id, closing, self._result_type)
        return result

    async def terminate(self, reason: str = "", *, request_id: str | None = None) -> None:
        """End the run from outside, at once and without running its code. Returns when that is recorded.

        Args:
            reason: kept in the history and told to those who wait for the result.
            request_id: makes a repetition of this very call harmless; default: a fresh one.

        Raises:
            WorkflowNotFoundError: there is no such run.
            RequestFailedError: the run has closed already, or the request could not be stored.
            BrokerUnavailableError: the server refuses to store the request.
        """
        request = TerminateRequest(workflow_id=self._id, run_id=await self._run_meant(), reason=reason)
        answer = await self._core.requests.ask(request, request_id or new_id())
        match answer.answer:
            case "applied":
                return
            case "not_found":
                raise WorkflowNotFoundError(
                    answer.message or f"workflow {self._id!r} is not known in this namespace",
                    workflow_id=self._id,
                    run_id=self._run_id or "",
                )
            case "closed":
                raise RequestFailedError(answer.message or f"workflow {self._id!r} has closed already")
            case other:
                raise RequestFailedError(answer.message or f"workflow {self._id!r} could not be terminated: {other}")

    async def _run_meant(self) -> str:
        """The run a request is about. It always names one: of two copies of a request about "the latest run" one could
        be refused, and the other applied to a run that began in between.

        Raises:
            WorkflowNotFoundError: there is no run of the id.
        """
        if self._run_id is not None:
            return self._run_id
        what = f"workflow {self._id!r}"
        tip = await persistently(what, partial(self._core.reader.tip, self._id, confirmed=True))
        if tip is None:
            raise not_found(self._id, None)
        return tip.commit.run_id

    async def describe(self) -> WorkflowDescription:
        """What is known about the run now, from its history.

        Raises:
            WorkflowNotFoundError: there is no such run.
            BrokerUnavailableError, HistoryError: the history cannot be read.
        """

        async def read() -> WorkflowDescription:
            commits = await self._commits()
            core = self._core
            return described(commits, await standing_record(core.broker, core.subjects, self._id))

        return await persistently(f"workflow {self._id!r}", read)

    async def history(self) -> list[HistoryEvent]:
        """Every recorded event of the run, oldest first.

        Raises:
            WorkflowNotFoundError: there is no such run.
            BrokerUnavailableError, HistoryError: the history cannot be read.
        """

        async def read() -> list[HistoryEvent]:
            return history_events(await self._commits())

        return await persistently(f"the history of workflow {self._id!r}", read)

    async def _commits(self) -> list[NumberedCommit]:
        """The commits of the run. The last one is taken as found: it may hold closing events from the next run's."""
        reader = self._core.reader
        last = await last_commit(reader, self._id, self._run_id)
        commits: list[NumberedCommit] = []
        async for chunk in reader.commits(self._id, last.commit.first_n, last.n - 1):
            commits.extend(chunk)
        commits.append(last)
        return commits
