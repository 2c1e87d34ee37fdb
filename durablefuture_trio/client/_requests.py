"""Requests to the owner of a workflow: stored in its inbox, answered on the client's own address.

The acknowledgement of the publish means "stored: will be applied once, or refused with an answer". The answer, which
comes after the commit, is what a caller waits for. It is a hint: if it does not come the decision is looked up in the
history, and the request repeated under the same request id, which its owner never applies twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing
from functools import partial

import msgspec
import trio

from durablefuture_trio._ids import new_id, token
from durablefuture_trio.client._reading import Patience, unavailable
from durablefuture_trio.client._timing import (
    ASK_AGAIN_AFTER_S,
    ASK_AGAIN_MAX_S,
    EXPLAIN_AFTER_S,
    LOOK_EVERY_S,
    RESEND_AFTER_S,
    jittered,
)
from durablefuture_trio.errors import BrokerUnavailableError, HistoryError, PayloadError, RequestFailedError
from durablefuture_trio.history.commit import Commit
from durablefuture_trio.history.events import WorkflowStarted, WorkflowTerminated
from durablefuture_trio.ports.broker import (
    Append,
    AppendOutcome,
    Broker,
    BrokerError,
    Message,
    NoAnswer,
    StoreFull,
    TooLarge,
)
from durablefuture_trio.protocol.envelope import (
    Answer,
    StartRequest,
    TerminateRequest,
    answer_of,
    decode_answer,
    encode_envelope,
    kind_of,
    request_headers,
)
from durablefuture_trio.protocol.loading import HistoryReader
from durablefuture_trio.protocol.subjects import Subjects

logger = logging.getLogger("durablefuture_trio.client")

Request = StartRequest | TerminateRequest


class _Waiting:
    """A call of `Requests.ask` in progress. Changed by callbacks, which wake the caller through `changed`."""

    __slots__ = ("answer", "changed", "failure", "stored")

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.failure: BrokerError | None = None
        self.stored = False
        self.changed = trio.Event()

    def on_outcome(self, outcome: AppendOutcome) -> None:
        """What became of the publish."""
        if isinstance(outcome, int):
            self.stored = True
            return
        self.failure = outcome
        self.changed.set()

    def on_answer(self, answer: Answer) -> None:
        """The owner's decision."""
        self.answer = answer
        self.changed.set()


class Requests:
    """The requests of one client. `serve` has to be running."""

    def __init__(self, broker: Broker, subjects: Subjects, reader: HistoryReader) -> None:
        self._broker = broker
        self._subjects = subjects
        self._reader = reader
        self._client = new_id()
        self._waiting: dict[str, list[_Waiting]] = {}

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand answers to those who wait for them; started when subscribed."""
        while True:
            try:
                async with self._broker.listen(self._subjects.answers(self._client)) as messages:
                    task_status.started()
                    async for message in messages:
                        self._deliver(message)
                return
            except NoAnswer as error:
                # Only when entered: afterwards the broker keeps the subscription over reconnects.
                logger.debug("cannot subscribe to answers just now: %r", error)
            await trio.sleep(jittered(1.0))

    def _deliver(self, message: Message) -> None:
        try:
            answer = decode_answer(message.body)
        except msgspec.MsgspecError as error:
            logger.warning(
                "an answer on %s cannot be read (%s); looking in the history instead", message.subject, error
            )
            return
        for waiting in self._waiting.get(answer.request_id, ()):
            waiting.on_answer(answer)

    async def ask(self, request: Request, request_id: str) -> Answer:
        """Store a request and wait for its decision, for as long as the caller's scope allows.

        Raises:
            PayloadError: it is larger than the server takes; nothing was sent.
            RequestFailedError: the server has no room; nothing was stored.
            BrokerUnavailableError: the server refuses to store it.
        """
        waiting = _Waiting()
        self._waiting.setdefault(request_id, []).append(waiting)
        try:
            return await self._ask(request, request_id, waiting)
        finally:
            waiters = self._waiting[request_id]
            waiters.remove(waiting)
            if not waiters:
                del self._waiting[request_id]

    async def _ask(self, request: Request, request_id: str, waiting: _Waiting) -> Answer:
        search = _DecisionSearch(self._reader, request.workflow_id, request_id)
        send = self._sender(request, request_id, waiting)
        send()
        now = trio.current_time()
        look_at, explain_at, send_at = now + jittered(LOOK_EVERY_S), now + EXPLAIN_AFTER_S, now + ASK_AGAIN_AFTER_S
        pause = ASK_AGAIN_AFTER_S
        patience = Patience()
        while True:
            with trio.move_on_at(min(look_at, explain_at, send_at)):
                await waiting.changed.wait()
            if waiting.answer is not None:
                return waiting.answer
            now = trio.current_time()
            if waiting.failure is not None:
                # A repetition that fails changes nothing about the message that is stored.
                if not patience.outlasts(waiting.failure) and not waiting.stored:
                    raise self._refusal(waiting.failure, request)
                waiting.failure = None
                waiting.changed = trio.Event()
                send_at = now + jittered(RESEND_AFTER_S)
            if now >= send_at:
                if self._broker.link.up:
                    send()
                    pause = min(2 * pause, ASK_AGAIN_MAX_S)
                    send_at = now + jittered(pause)
                else:
                    send_at = now + jittered(RESEND_AFTER_S)
            if now >= explain_at:
                explain_at = now + 60.0
                self._explain(request, waiting)
            if now >= look_at:
                answer = await search.look() if self._broker.link.up else None
                if answer is not None:
                    return answer
                look_at = trio.current_time() + jittered(LOOK_EVERY_S)

    def _sender(self, request: Request, request_id: str, waiting: _Waiting) -> Callable[[], None]:
        """A function that publishes the request. Without a message id: the server would answer a known one itself, and
        the owner would never see the repetition, nor answer it. The request id is what counts."""
        append = Append(
            subject=self._subjects.inbox(request.workflow_id, kind_of(request)),
            body=encode_envelope(request),
            headers=request_headers(request_id, self._subjects.answer(self._client, token(request_id))),
        )
        return partial(self._broker.append_soon, append, waiting.on_outcome)

    def _refusal(self, error: BrokerError, request: Request) -> Exception:
        """What the server's refusal to store a request means to the user."""
        what = f"{kind_of(request)} of workflow {request.workflow_id!r}"
        refusal: Exception
        match error:
            case TooLarge():
                limit = self._broker.limits.max_payload_bytes
                refusal = PayloadError(
                    f"{what} is too large: the server takes messages of {limit} bytes with their headers. Pass a "
                    "reference to large data instead of the data. Nothing was sent.",
                    path="",
                )
            case StoreFull():
                refusal = RequestFailedError(
                    f"{what} was refused: JetStream has no room left ({error}). Nothing was stored. Free disk space, "
                    "or raise the limits of the server or the account, and try again."
                )
            case _:
                refusal = BrokerUnavailableError(
                    f"{what} could not be stored: {error}. Nothing was stored. Check that namespace "
                    f"{self._subjects.namespace!r} is set up (a supervisor does that) and that this user may write."
                )
        refusal.__cause__ = error
        return refusal

    def _explain(self, request: Request, waiting: _Waiting) -> None:
        what = f"{kind_of(request)} of workflow {request.workflow_id!r}"
        if waiting.stored:
            logger.warning(
                "%s is stored and will not be lost; still waiting for a supervisor of namespace %r to decide it "
                "(is one with the role 'workflows' running?)",
                what,
                self._subjects.namespace,
            )
        else:
            logger.warning(
                "%s is not known to be stored yet: the server does not answer (link %s); trying on",
                what,
                "up" if self._broker.link.up else "down",
            )


class _DecisionSearch:
    """Looks for the decision of a request in the history, reading each commit once."""

    def __init__(self, reader: HistoryReader, workflow_id: str, request_id: str) -> None:
        self._reader = reader
        self._workflow_id = workflow_id
        self._request_id = request_id
        self._seen_n = 0
        self._patience = Patience()

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

    async def _look(self) -> Answer | None:
        tip = await self._reader.tip(self._workflow_id)
        if tip is None or tip.n <= self._seen_n:
            return None
        if (found := decision_in(tip.commit, self._request_id)) is not None:
            return found
        first_n = max(tip.commit.first_n, self._seen_n + 1)
        async with aclosing(self._reader.commits(self._workflow_id, first_n, tip.n - 1)) as chunks:
            async for chunk in chunks:
                for item in chunk:
                    if (found := decision_in(item.commit, self._request_id)) is not None:
                        return found
        self._seen_n = tip.n
        return None


def decision_in(commit: Commit, request_id: str) -> Answer | None:
    """What `commit` says about a request, or None if it says nothing."""
    found: Answer | None = None
    for event in commit.events:
        if isinstance(event, WorkflowStarted):
            if event.request_id == request_id:
                found = Answer(request_id=request_id, answer="applied", run_id=event.run_id)
            for record in event.carried:
                if found is None and record.request_id == request_id:
                    found = answer_of(record)
        elif isinstance(event, WorkflowTerminated) and event.request_id == request_id:
            # A start that terminates the run in its way is in both events; the WorkflowStarted comes later and counts.
            found = Answer(request_id=request_id, answer="applied", run_id=commit.run_id)
    for record in commit.refused:
        if record.request_id == request_id:
            found = answer_of(record)
    return found
