"""A handle on one workflow."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar, TypeVarTuple, overload

from durablefuture_trio._ids import MAX_ID_BYTES, new_id
from durablefuture_trio.client._answers import query_result, refusal, update_result
from durablefuture_trio.client._core import Core
from durablefuture_trio.client._messages import message_of
from durablefuture_trio.client._outcome import result_of
from durablefuture_trio.client._reading import end_of_chain, last_commit, not_found, persistently
from durablefuture_trio.client._records import HistoryEvent, WorkflowDescription, described, history_events
from durablefuture_trio.client._requests import Request
from durablefuture_trio.errors import RequestFailedError, WorkflowNotFoundError
from durablefuture_trio.history.events import Terminal
from durablefuture_trio.protocol.envelope import Answer, CancelRequest, SignalRequest, TerminateRequest, UpdateRequest
from durablefuture_trio.protocol.loading import NumberedCommit
from durablefuture_trio.protocol.projection import standing_record

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")


class WorkflowHandle(Generic[R_co]):
    """A workflow, seen from outside. Made by `Client.start` and `Client.handle`.

    A handle from `Client.start` means the run that was started (or used), and the runs that followed where it has
    continued as new or been tried again; only `describe` and `history` are about that one run. A handle made without a
    run id means, at each call, the latest run of the id.
    """

    def __init__(self, core: Core, workflow_id: str, run_id: str | None, result_type: Any) -> None:
        self._core = core
        self._id = workflow_id
        self._run_id = run_id
        self._result_type = result_type
        self._is_known = False

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
        """Wait until the run, or the last of those that continue it, has closed, and return what the workflow returned.

        Cancelling the wait does nothing to the workflow.

        Raises:
            WorkflowFailedError: the workflow raised; ``cause`` is what it raised.
            WorkflowCancelledError: it was cancelled, and let that end it.
            WorkflowTerminatedError, WorkflowTimedOutError: the run was ended from outside, or at its deadline.
            WorkflowNotFoundError: there is no such run.
            PayloadError: the result is not of the expected type.
            BrokerUnavailableError, HistoryError: the history cannot be read.
        """
        closing = await self._core.closings.of(self._id, self._run_id)
        result: R_co = result_of(self._id, closing, self._result_type)
        return result

    @overload
    async def signal(self, signal: str, *args: Any, request_id: str | None = ...) -> None: ...
    @overload
    async def signal(self, signal: Callable[[*Ts], Any], *args: *Ts, request_id: str | None = ...) -> None: ...
    async def signal(  # type: ignore[misc]  # mypy does not accept *args: Any as an implementation of *args: *Ts
        self, signal: Any, *args: Any, request_id: str | None = None
    ) -> None:
        """Send the workflow a signal. Returns when that is recorded: it will not be lost, whenever its handler runs.

        Args:
            signal: a declared signal, or the name of one.
            args: its arguments, by position.
            request_id: the same id makes a repetition of this very call harmless, even from another process; default: a
                fresh one.

        Raises:
            TypeError: `signal` is none, or the arguments do not fit its signature; nothing was sent.
            PayloadError: an argument cannot be encoded, or they are too large; nothing was sent.
            WorkflowNotFoundError: there is no such workflow.
            RequestFailedError: it has closed, has been sent too many signals, or the request could not be stored; the
                signal was not delivered.
            BrokerUnavailableError: the server refuses to store the request.
        """
        message = message_of("signal", signal, args)
        answer = await self._decide(
            lambda run_id: SignalRequest(
                workflow_id=self._id, run_id=run_id, name=message.name, arguments=message.arguments
            ),
            request_id,
        )
        if answer.answer != "applied":
            raise refusal(answer, f"signal {message.name!r}", self._id)

    @overload
    async def update(self, update: str, *args: Any, update_id: str | None = ..., result_type: type[R]) -> R: ...
    @overload
    async def update(self, update: str, *args: Any, update_id: str | None = ..., result_type: Any = ...) -> Any: ...
    @overload
    async def update(
        self, update: Callable[[*Ts], Coroutine[Any, Any, R]], *args: *Ts, update_id: str | None = ...
    ) -> R: ...
    @overload
    async def update(self, update: Callable[[*Ts], R], *args: *Ts, update_id: str | None = ...) -> R: ...
    async def update(  # type: ignore[misc]  # as for signal
        self, update: Any, *args: Any, update_id: str | None = None, result_type: Any = Any
    ) -> Any:
        """Have the workflow carry out an update, and wait for what its handler returns.

        Cancelling the wait does not take the update back: it may be carried out.

        Args:
            update: a declared update, or the name of one.
            args: its arguments, by position.
            update_id: an update of one id is carried out once in a workflow, however often it is asked for, and
                everybody who asks gets the same answer; default: a fresh one.
            result_type: what the result is rebuilt as, when `update` is a name.

        Raises:
            UpdateRejectedError: its validator refused it; ``cause`` is what that raised.
            UpdateFailedError: its handler raised (``cause`` is what), or the run ended before it had returned.
            TypeError, PayloadError, WorkflowNotFoundError, RequestFailedError, BrokerUnavailableError: as `signal`.
        """
        message = message_of("update", update, args, result_type)
        update_id = new_id() if update_id is None else _checked_update_id(update_id)
        answer = await self._decide(
            lambda run_id: UpdateRequest(
                workflow_id=self._id,
                run_id=run_id,
                update_id=update_id,
                name=message.name,
                arguments=message.arguments,
            ),
            # Not made of the update's id: an update that found the workflow closed may be asked for again, of a run
            # that began since. What it came to once it was accepted is remembered by its own id.
            None,
        )
        return update_result(answer, message.name, update_id, self._id, message.result_type)

    @overload
    async def query(self, query: str, *args: Any, result_type: type[R]) -> R: ...
    @overload
    async def query(self, query: str, *args: Any, result_type: Any = ...) -> Any: ...
    @overload
    async def query(self, query: Callable[[*Ts], R], *args: *Ts) -> R: ...
    async def query(  # type: ignore[misc]  # as for signal
        self, query: Any, *args: Any, result_type: Any = Any
    ) -> Any:
        """Ask the workflow something. Nothing is recorded, and a closed run answers too. It has seen every signal that
        was acknowledged before.

        Waits for a supervisor as long as the caller's scope allows.

        Args:
            query: a declared query, or the name of one.
            args: its arguments, by position.
            result_type: what the answer is rebuilt as, when `query` is a name.

        Raises:
            QueryFailedError: its handler raised (``cause`` is what), or the workflow has none of this name.
            WorkflowNotFoundError: there is no such run.
            RequestFailedError: the run is blocked.
            TypeError: `query` is none, or the arguments do not fit its signature. PayloadError: as `signal`.
        """
        message = message_of("query", query, args, result_type)
        run_id = self._run_id or ""
        while True:
            answer = await self._core.requests.query(self._id, run_id, message.name, message.arguments)
            if answer.answer not in ("closed", "not_found") or not run_id:
                break
            following, _ = await self._end_of_chain(run_id)
            if following == run_id:
                break
            run_id = following
        return query_result(answer, message.name, self._id, message.result_type)

    async def cancel(self, reason: str = "", *, request_id: str | None = None) -> None:
        """Ask the workflow to end: its root scope is cancelled, so that its code can clean up. Returns when that is
        recorded; `result` says how it ended.

        Args:
            reason: kept in the history and told to those who wait for the result.
            request_id: as of `signal`.

        Raises:
            WorkflowNotFoundError, RequestFailedError, BrokerUnavailableError: as `signal`.
        """
        answer = await self._decide(
            lambda run_id: CancelRequest(workflow_id=self._id, run_id=run_id, reason=reason), request_id
        )
        if answer.answer != "applied":
            raise refusal(answer, "the cancel", self._id)

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
        answer = await self._decide(
            lambda run_id: TerminateRequest(workflow_id=self._id, run_id=run_id, reason=reason),
            request_id,
            run_id=await self._run_meant(),
        )
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

    async def _decide(
        self, request: Callable[[str], Request], request_id: str | None, *, run_id: str | None = None
    ) -> Answer:
        """The answer to a request about the run of this handle, or the one that has continued it meanwhile.

        Without a run a request means whichever run is open when it is decided (a termination always names one). Two
        copies of it, of which one may be on its way for long, must not be decided differently: one that was applied, or
        refused because the run had closed, is remembered by its id over all runs of the workflow id (rule R2 of the
        protocol). Of a workflow id without any run nothing can be remembered, so nothing is sent to one.

        Raises:
            WorkflowNotFoundError: there is no such run. Others: as `Requests.ask`.
        """
        request_id = request_id or new_id()
        meant = run_id or self._run_id or ""
        if not meant and not self._is_known:
            await self._run_meant()
            self._is_known = True  # for good: the last commit of a workflow id is never removed
        asked = request_id
        while True:
            answer = await self._core.requests.ask(request(meant), asked)
            if answer.answer != "closed" or not meant:
                return answer
            following, end = await self._end_of_chain(meant)
            if following == meant or end is not None:
                return answer
            # The refusal for that run stands for ever, so this is another request. Its id is made of the first one's: a
            # repetition of the call comes to the same.
            meant, asked = following, f"{request_id} {following}"

    async def _end_of_chain(self, run_id: str) -> tuple[str, Terminal | None]:
        return await persistently(
            f"the history of workflow {self._id!r}", partial(end_of_chain, self._core.reader, self._id, run_id)
        )

    async def _run_meant(self) -> str:
        """The run a termination is about. It always names one: of two copies of a request about "the latest run" one
        could be refused, and the other applied to a run that began in between.

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


def _checked_update_id(update_id: object) -> str:
    if not isinstance(update_id, str) or not 0 < len(update_id.encode()) <= MAX_ID_BYTES:
        raise ValueError(f"an update id must be a string of 1 to {MAX_ID_BYTES} bytes")
    return update_id
